//! H06: invalidations that one client redirects to another, and what becomes of them over a switch.

use std::path::Path;

use crossfade::cli::demo::connection::Connection;
use crossfade::cli::demo::servers::server_binary;

use super::h06_sessions::{Raw, id, invalidates};
use crate::support::{Front, Lab, Setup, eventually};

/// Workers of the gateway: tracker and target are served by the same, or by two.
const WORKERS: usize = 2;
const PUSHED: &str = ">2\r\n$10\r\ninvalidate\r\n_\r\n";
const SENT: &str = "*3\r\n$7\r\nmessage\r\n$20\r\n__redis__:invalidate\r\n$-1\r\n";

/// The invalidation of a key as a RESP2 subscriber gets it.
fn message(key: &str) -> String {
    format!("*3\r\n$7\r\nmessage\r\n$20\r\n__redis__:invalidate\r\n*1\r\n${}\r\n{key}\r\n", key.len())
}

/// The client's id, and what HELLO said before.
async fn introduced(client: &mut Raw, hello: &str) -> String {
    client.send(&[hello]).await;
    client.settled().await;
    client.send(&["CLIENT ID"]).await;
    client.settled().await.trim_start_matches(':').trim_end().to_string()
}

/// A RESP2 client that subscribes to invalidations, and its id.
async fn subscriber(address: &str) -> (Raw, String) {
    let mut client = Raw::open(address).await;
    let id = introduced(&mut client, "PING").await;
    client.send(&["SUBSCRIBE __redis__:invalidate"]).await;
    client.until(":1\r\n").await;
    (client, id)
}

/// What a RESP2 subscriber has heard when PING is answered.
async fn heard(subscriber: &mut Raw) -> String {
    const PONG: &str = "*2\r\n$4\r\npong\r\n$0\r\n\r\n";
    subscriber.send(&["PING"]).await;
    let mut text = subscriber.until(PONG).await;
    text.truncate(text.len() - PONG.len());
    text
}

async fn tracker(address: &str, hello: &str, options: &str) -> Raw {
    let mut client = Raw::open(address).await;
    client.send(&[hello, &format!("CLIENT TRACKING ON {options}")]).await;
    let said = client.settled().await;
    assert!(said.ends_with("+OK\r\n"), "{options}: {said}");
    client
}

#[tokio::test(flavor = "multi_thread")]
async fn h06_redirected_tracking_goes_over_a_cutover_and_a_rollback() {
    redirected_tracking_goes_over_switches(["", ""]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn h06_redirected_tracking_goes_from_an_old_server_to_a_new_one() {
    let servers = ["redis-6.2", "valkey-9.1"];
    if let Some(missing) = servers.iter().find(|name| !Path::new(&server_binary(name)).exists()) {
        eprintln!("skipped: CROSSFADE_SERVERS names no {missing}");
        return;
    }
    redirected_tracking_goes_over_switches(servers).await;
}

async fn redirected_tracking_goes_over_switches(servers: [&'static str; 2]) {
    let setup = Setup { servers, ..Setup::new() };
    let mut lab = setup.config(&format!("listen.workers = {WORKERS}\n")).build().await;
    let address = lab.gateway.address();
    let (mut subscribed, subscribed_id) = subscriber(&address).await;
    // Pushes need no subscription, and this client no connection of its own for anything else.
    let mut pushed = Raw::open(&address).await;
    let pushed_id = introduced(&mut pushed, "HELLO 3").await;
    let mut unaware = Raw::open(&address).await;
    let unaware_id = introduced(&mut unaware, "PING").await;

    let mut old = tracker(&address, "HELLO 2", &format!("REDIRECT {subscribed_id}")).await;
    let prefixes = format!("BCAST PREFIX a: REDIRECT {unaware_id}");
    let mut broadcast = tracker(&address, "HELLO 3", &prefixes).await;
    // The latest says where invalidations go, those of the earlier prefix too.
    broadcast.send(&[&format!("CLIENT TRACKING ON BCAST REDIRECT {subscribed_id} PREFIX b:")]).await;
    broadcast.settled().await;
    let mut optin = tracker(&address, "HELLO 3", &format!("OPTIN REDIRECT {pushed_id}")).await;
    let mut itself = Raw::open(&address).await;
    let itself_id = introduced(&mut itself, "HELLO 3").await;
    itself.send(&[&format!("CLIENT TRACKING ON REDIRECT {itself_id} NOLOOP")]).await;
    assert_eq!(itself.settled().await, "+OK\r\n");

    let mut writer = Connection::open(&address).await.unwrap();
    lab.mirror().await;
    for turn in 0..3 {
        match turn {
            0 => {}
            1 => drop(lab.cutover().await),
            _ => drop(lab.rollback().await),
        }
        if turn > 0 {
            assert_eq!(heard(&mut subscribed).await, SENT, "once, for all who redirect to it");
            for client in [&mut pushed, &mut itself] {
                assert_eq!(client.settled().await, PUSHED);
            }
        }
        for client in [&mut old, &mut broadcast, &mut optin, &mut unaware] {
            assert_eq!(client.settled().await, "", "it goes to another, turn {turn}");
        }
        for (client, target) in
            [(&mut old, &subscribed_id), (&mut broadcast, &subscribed_id), (&mut optin, &pushed_id)]
        {
            client.send(&["CLIENT GETREDIR", "CLIENT TRACKINGINFO"]).await;
            let told = client.settled().await;
            assert!(told.starts_with(&format!(":{target}\r\n")), "{told}");
            assert!(told.contains(&format!("$8\r\nredirect\r\n:{target}\r\n")), "{told}");
            assert!(!told.contains("broken"), "{told}");
        }
        old.send(&["GET old"]).await;
        optin.send(&["GET not", "CLIENT CACHING YES", "GET in"]).await;
        itself.send(&["GET self", "GET mine", "SET mine 1"]).await;
        for client in [&mut old, &mut optin, &mut itself] {
            client.settled().await;
        }
        for key in ["old", "a:1", "b:1", "c:1", "in", "not", "self"] {
            writer.must(&["SET", key, &turn.to_string()]).await.unwrap();
        }
        for key in ["old", "a:1", "b:1"] {
            assert_eq!(subscribed.until(&message(key)).await, message(key), "turn {turn}");
        }
        assert_eq!(pushed.until(&invalidates("in")).await, invalidates("in"));
        assert_eq!(itself.until(&invalidates("self")).await, invalidates("self"));
        assert_eq!(heard(&mut subscribed).await, "");
        assert_eq!(pushed.settled().await + &itself.settled().await, "");
        for client in [&mut old, &mut broadcast, &mut optin, &mut unaware] {
            assert_eq!(client.settled().await, "", "turn {turn}");
        }
    }
}

async fn turn(lab: &Lab, there: bool) {
    if there {
        lab.cutover().await;
    } else {
        lab.rollback().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn h06_a_redirection_to_a_client_that_is_gone_is_broken_on_the_other_side_too() {
    let mut lab = Setup::new().config(&format!("listen.workers = {WORKERS}\n")).build().await;
    let address = lab.gateway.address();
    let (subscribed, target) = subscriber(&address).await;
    let options = format!("BCAST PREFIX k REDIRECT {target}");
    let mut new = tracker(&address, "HELLO 3", &options).await;
    let mut old = tracker(&address, "HELLO 2", &options).await;
    let mut writer = Connection::open(&address).await.unwrap();
    lab.mirror().await;
    drop(subscribed);
    eventually("it is gone", async || {
        let reply = writer.must(&["CLIENT", "LIST", "ID", &target]).await.unwrap();
        reply.bytes() == Some(b"")
    })
    .await;
    let broken = format!(">2\r\n$21\r\ntracking-redir-broken\r\n:{target}\r\n");
    for there in [true, false] {
        turn(&lab, there).await;
        // Told at once: what it has cached may have changed.
        assert_eq!(new.until(&broken).await, broken);
        for client in [&mut new, &mut old] {
            client.send(&["CLIENT GETREDIR", "CLIENT TRACKINGINFO"]).await;
            let told = client.settled().await;
            assert!(told.starts_with(&format!(":{target}\r\n")), "{told}");
            assert!(told.contains("2\r\n") && told.contains("$15\r\nbroken_redirect\r\n"), "{told}");
            assert!(told.contains(&format!("$8\r\nredirect\r\n:{target}\r\n")), "{told}");
            assert!(told.contains("$1\r\nk\r\n"), "the prefix: {told}");
        }
        // And the server finds it broken whenever it has something to say.
        writer.must(&["SET", "k", "1"]).await.unwrap();
        assert_eq!(new.until(&broken).await, broken);
        assert_eq!(old.settled().await, "");
    }
    // Named anew, it works.
    let (mut subscribed, target) = subscriber(&address).await;
    let again = format!("CLIENT TRACKING ON BCAST PREFIX k REDIRECT {target}");
    new.send(&["CLIENT TRACKING OFF", &again, "CLIENT TRACKINGINFO"]).await;
    let told = new.settled().await;
    assert!(told.starts_with("+OK\r\n+OK\r\n") && !told.contains("broken"), "{told}");
    turn(&lab, true).await;
    assert_eq!(subscribed.until(SENT).await, SENT);
    writer.must(&["SET", "k", "2"]).await.unwrap();
    assert_eq!(subscribed.until(&message("k")).await, message("k"));
    assert_eq!(new.settled().await, "");
}

/// A target keeps its connection, whatever it does: at a server its id is the same as long as it lives.
#[tokio::test(flavor = "multi_thread")]
async fn h06_a_target_stays_one_whatever_it_does() {
    let front = Front::new().await;
    let address = front.address();
    let mut target = Raw::open(&address).await;
    let target_id = introduced(&mut target, "PING").await;
    let mut client = tracker(&address, "HELLO 3", &format!("BCAST REDIRECT {target_id}")).await;
    let mut writer = Connection::open(&address).await.unwrap();
    for (lines, wanted) in [
        (&["PING"][..], String::new()),
        (&["SUBSCRIBE c"], message("k")),
        (
            &["UNSUBSCRIBE c", "SELECT 2", "SET mine 1", "MULTI", "GET mine", "EXEC", "SELECT 0"],
            String::new(),
        ),
        (&["HELLO 3"], invalidates("k")),
        (&["WATCH k", "UNWATCH", "BLPOP none 0.01"], invalidates("k")),
        (&["RESET"], String::new()),
        (&["HELLO 3"], invalidates("k")),
    ] {
        target.send(lines).await;
        if lines == ["SUBSCRIBE c"] {
            target.until(":1\r\n").await;
        } else {
            target.settled().await;
        }
        writer.must(&["SET", "k", "1"]).await.unwrap();
        let told = if lines == ["SUBSCRIBE c"] { heard(&mut target).await } else { target.settled().await };
        assert_eq!(told, wanted, "after {lines:?}");
        assert_eq!(client.settled().await, "", "after {lines:?}");
    }
    target.send(&["GET mine"]).await;
    assert_eq!(target.settled().await, "_\r\n", "RESET led back to db 0, RESP 3 was asked for again");
    // Gone, it is missed.
    drop(target);
    let mut other = Connection::open(&address).await.unwrap();
    let other_id = id(&mut other).await;
    let broken = format!(">2\r\n$21\r\ntracking-redir-broken\r\n:{target_id}\r\n");
    eventually("the server knows", async || {
        writer.must(&["SET", "k", "2"]).await.unwrap();
        client.settled().await.contains(&broken)
    })
    .await;
    client.send(&["CLIENT TRACKINGINFO", "CLIENT TRACKING OFF", "CLIENT GETREDIR"]).await;
    let told = client.settled().await;
    assert!(told.contains("broken_redirect") && told.ends_with("+OK\r\n:-1\r\n"), "{told}");
    client.send(&[&format!("CLIENT TRACKING ON REDIRECT {target_id}")]).await;
    assert_eq!(client.settled().await, "-ERR The client ID you want redirect to does not exist\r\n");
    client.send(&[&format!("CLIENT TRACKING ON REDIRECT {other_id}")]).await;
    assert_eq!(client.settled().await, "+OK\r\n");
}

/// A target that says nothing is woken when another names it, and once more when somebody ends it.
#[tokio::test(flavor = "multi_thread")]
async fn h06_a_target_that_is_killed_ends_at_once() {
    let front = Front::new().await;
    let address = front.address();
    let mut target = Raw::open(&address).await;
    let target_id = introduced(&mut target, "PING").await;
    let _tracker = tracker(&address, "HELLO 3", &format!("BCAST REDIRECT {target_id}")).await;
    let mut other = Connection::open(&address).await.unwrap();
    assert_eq!(other.must(&["CLIENT", "KILL", "ID", &target_id]).await.unwrap().number(), Some(1));
    target.ended().await;
}

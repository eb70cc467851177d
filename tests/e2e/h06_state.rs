//! H06, H31: what a command leaves on a connection of the server's stays with the client that sent it, is there again on the other
//! side of a switch, and is never found by anybody else.

use std::path::Path;
use std::time::{Duration, Instant};

use crossfade::cli::demo::connection::Connection;
use crossfade::cli::demo::servers::server_binary;

use super::h06_sessions::{Raw, error, id, invalidates, same, text, transcript};
use crate::support::{Front, Lab, Setup, eventually, start_server};

async fn turn(lab: &mut Lab, there: bool) {
    if there {
        lab.cutover().await;
    } else {
        lab.rollback().await;
    }
}

/// In a debugging session EVAL answers with the lines of the script. Connections of the pool are used by turns for what
/// watches keys.
#[tokio::test(flavor = "multi_thread")]
async fn h06_state_of_a_connection_is_not_passed_on_to_others() {
    let front = Front::new().await;
    let mut debugs = Connection::open(&front.address()).await.unwrap();
    debugs.must(&["SCRIPT", "DEBUG", "SYNC"]).await.unwrap();
    for _ in 0..3 {
        let said = transcript(&front.address(), &["WATCH k", "EVAL return(1) 0", "UNWATCH"]).await;
        assert_eq!(said, "+OK\r\n:1\r\n+OK\r\n+OK\r\n");
    }
    let shown = debugs.must(&["EVAL", "return 1", "0"]).await.unwrap();
    assert!(shown.items().iter().any(|line| line.brief().contains("Stopped at")), "{}", shown.brief());
}

#[tokio::test(flavor = "multi_thread")]
async fn h06_a_resp2_subscriber_is_told_what_it_may_say() {
    let front = Front::new().await;
    same(
        &front,
        &[
            &["SUBSCRIBE c", "CLIENT ID", "CLIENT SETNAME x", "CLIENT REPLY OFF", "SELECT 1", "PING"],
            &["SUBSCRIBE c", "AUTH x", "HELLO 3", "CLUSTER SLOTS", "GET k", "RESET", "CLIENT GETNAME"],
            &["HELLO 3", "SUBSCRIBE c", "CLIENT SETNAME x", "CLIENT GETNAME", "GET k"],
            // It would mark everybody's lane.
            &["CLIENT CAPA redirect", "CLIENT CAPA", "GET k"],
        ],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn h06_tracking_names_clients_by_their_ids_at_the_gateway() {
    let front = Front::new().await;
    let mut target = Connection::open(&front.address()).await.unwrap();
    let target_id = id(&mut target).await;
    target.must(&["SUBSCRIBE", "__redis__:invalidate"]).await.unwrap();
    for hello in ["2", "3"] {
        let mut client = Raw::open(&front.address()).await;
        client.send(&[&format!("HELLO {hello}"), &format!("CLIENT TRACKING ON REDIRECT {target_id}")]).await;
        client.settled().await;
        client.send(&["CLIENT GETREDIR"]).await;
        assert_eq!(client.settled().await, format!(":{target_id}\r\n"));
        client.send(&["CLIENT TRACKINGINFO"]).await;
        let said = client.settled().await;
        assert!(said.contains(&format!("$8\r\nredirect\r\n:{target_id}\r\n$8\r\nprefixes")), "{said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn h06_every_mode_of_tracking_goes_over_a_switch() {
    let mut lab = Setup::new().build().await;
    let address = lab.gateway.address();
    let mut prefixes = Raw::open(&address).await;
    let add = |prefix: &str| format!("CLIENT TRACKING ON BCAST PREFIX {prefix}");
    prefixes.send(&["HELLO 3", &add("a:"), &add("off"), &add("redirect")]).await;
    prefixes.settled().await;
    let mut optin = Raw::open(&address).await;
    optin.send(&["HELLO 3", "CLIENT TRACKING ON OPTIN", "CLIENT CACHING YES", "CLIENT ID"]).await;
    optin.until("+OK\r\n:").await;
    let mut optout = Raw::open(&address).await;
    optout.send(&["HELLO 3", "CLIENT TRACKING ON OPTOUT"]).await;
    optout.settled().await;
    let mut noloop = Raw::open(&address).await;
    noloop.send(&["HELLO 3", "CLIENT TRACKING ON NOLOOP"]).await;
    noloop.settled().await;
    lab.mirror().await;
    for there in [true, false] {
        turn(&mut lab, there).await;
        let (active, _) = lab.active().await;
        let forget = ">2\r\n$10\r\ninvalidate\r\n_\r\n";
        for client in [&mut prefixes, &mut optin, &mut optout, &mut noloop] {
            client.until(forget).await;
        }
        // What was said of the next command before the switch holds for the next command behind it, and for no other.
        optin.send(&["GET in", "GET not"]).await;
        optin.settled().await;
        optout.send(&["CLIENT CACHING NO", "GET not", "GET out"]).await;
        optout.settled().await;
        noloop.send(&["GET own", "GET other", "SET own 1"]).await;
        noloop.settled().await;
        for key in ["a:1", "not", "in", "out", "other", "off", "redirect", "b:1"] {
            active.call(&["SET", key, "1"]).await.unwrap();
        }
        for (client, keys) in [
            (&mut prefixes, &["a:1", "off", "redirect"][..]),
            (&mut optin, &["in"]),
            (&mut optout, &["out"]),
            (&mut noloop, &["other"]),
        ] {
            for key in keys {
                assert_eq!(client.until(&invalidates(key)).await, invalidates(key), "{there}");
            }
            client.send(&["CLIENT CACHING YES", "CLIENT ID"]).await;
            let rest = client.until("\r\n:").await;
            assert!(!rest.contains("invalidate"), "{rest:?}");
            client.until("\r\n").await;
        }
    }
}

/// A switch recalls WAIT as well, and its answer to that is no answer: there may be time left.
#[tokio::test(flavor = "multi_thread")]
async fn h31_wait_goes_over_a_switch() {
    const PATIENCE: Duration = Duration::from_secs(8);
    let mut lab = Setup::new().build().await;
    let address = lab.gateway.address();
    let dir = tempfile::tempdir().unwrap();
    let replica = start_server("", dir.path(), &[]).await;
    let mut waits = Connection::open(&address).await.unwrap();
    let mut goes = Connection::open(&address).await.unwrap();
    lab.mirror().await;
    for client in [&mut waits, &mut goes] {
        client.must(&["SET", "k", "1"]).await.unwrap();
    }
    // The mirror is one replica, and there is no other.
    let asked = Instant::now();
    let patience = PATIENCE.as_millis().to_string();
    waits.queue(&["WAIT", "3", &patience]);
    waits.flush().await.unwrap();
    goes.queue(&["WAIT", "2", "0"]);
    goes.flush().await.unwrap();
    let blocked = async || lab.source.info("blocked_clients").await.unwrap() == "2";
    eventually("both wait", blocked).await;
    lab.cutover().await;
    assert!(asked.elapsed() < PATIENCE, "the switch took too long for this test");
    // Two replicas confirm it on the new side: the mirror that leads back, and this one.
    let port = lab.destination.port().to_string();
    replica.call(&["REPLICAOF", "127.0.0.1", &port]).await.unwrap();
    let confirmed = goes.reply().await.unwrap().number();
    assert_eq!(confirmed, Some(2));
    let confirmed = waits.reply().await.unwrap().number();
    assert!(asked.elapsed() >= PATIENCE, "answered after {:?}", asked.elapsed());
    assert_eq!(confirmed, Some(2));
}

#[tokio::test(flavor = "multi_thread")]
async fn h31_who_has_waited_longest_is_served_first_behind_a_switch() {
    const CLIENTS: usize = 30;
    let mut lab = Setup::new().build().await;
    let address = lab.gateway.address();
    let mut clients = Vec::new();
    for n in 0..CLIENTS {
        let mut client = Connection::open(&address).await.unwrap();
        client.queue(&["BLPOP", "queue", "0"]);
        client.flush().await.unwrap();
        let blocked = async || lab.source.info("blocked_clients").await.unwrap() == (n + 1).to_string();
        eventually("it blocks", blocked).await;
        clients.push(client);
    }
    lab.mirror().await;
    for there in [true, false] {
        turn(&mut lab, there).await;
    }
    let blocked = async || lab.source.info("blocked_clients").await.unwrap() == CLIENTS.to_string();
    eventually("all of them wait again", blocked).await;
    let mut producer = Connection::open(&address).await.unwrap();
    for n in 0..CLIENTS {
        producer.must(&["RPUSH", "queue", &n.to_string()]).await.unwrap();
    }
    for (n, client) in clients.iter_mut().enumerate() {
        assert_eq!(client.reply().await.unwrap().brief(), format!("[queue {n}]"));
    }
}

/// Redis before 6.0 takes whole seconds only.
#[tokio::test(flavor = "multi_thread")]
async fn h31_timeouts_go_to_servers_that_know_no_fractions() {
    let old = "redis-5.0";
    if !Path::new(&server_binary(old)).exists() {
        eprintln!("skipped: CROSSFADE_SERVERS names no {old}");
        return;
    }
    let mut lab = Setup { servers: [old, ""], ..Setup::new() }.build().await;
    lab.expect_log("");
    let mut waits = Connection::open(&lab.gateway.address()).await.unwrap();
    lab.mirror().await;
    let asked = Instant::now();
    waits.queue(&["BLPOP", "queue", "4"]);
    waits.flush().await.unwrap();
    let info = async || text(&mut lab.source.connect().await.unwrap(), &["INFO", "clients"]).await;
    eventually("it waits", async || info().await.contains("blocked_clients:1\r\n")).await;
    lab.gateway.order("cutover", &serde_json::json!({"rehearse": true})).await.unwrap();
    assert_eq!(waits.reply().await.unwrap().brief(), "nil");
    assert!(asked.elapsed() >= Duration::from_secs(4) && asked.elapsed() < Duration::from_secs(6));
}

/// A command that is in no table may wait: whoever sends it does so alone.
#[tokio::test(flavor = "multi_thread")]
async fn h31_an_unknown_command_that_waits_holds_up_nobody() {
    let lab = Setup::new().source(&["--rename-command", "BLPOP", "take"]).build().await;
    let address = lab.gateway.address();
    let mut waits = Connection::open(&address).await.unwrap();
    waits.queue(&["TAKE", "queue", "0"]);
    waits.flush().await.unwrap();
    eventually("it waits", async || lab.source.info("blocked_clients").await.unwrap() == "1").await;
    let mut other = Connection::open(&address).await.unwrap();
    let served = tokio::time::timeout(Duration::from_secs(10), text(&mut other, &["ECHO", "served"])).await;
    assert_eq!(served.expect("others are served meanwhile"), "served");
    other.must(&["RPUSH", "queue", "x"]).await.unwrap();
    assert_eq!(waits.reply().await.unwrap().brief(), "[queue x]");
}

/// A name that one server does not know may be a command of the next.
#[tokio::test(flavor = "multi_thread")]
async fn h31_what_the_old_server_did_not_know_the_new_one_may() {
    let mut lab = Setup::new().destination(&["--rename-command", "BLPOP", "take"]).build().await;
    let mut waits = Connection::open(&lab.gateway.address()).await.unwrap();
    assert!(error(&mut waits, &["TAKE", "queue", "0"]).await.starts_with("ERR unknown command"));
    lab.mirror().await;
    lab.cutover().await;
    waits.queue(&["TAKE", "queue", "0"]);
    waits.flush().await.unwrap();
    eventually("it waits", async || lab.destination.info("blocked_clients").await.unwrap() == "1").await;
    let mut other = Connection::open(&lab.gateway.address()).await.unwrap();
    let served = tokio::time::timeout(Duration::from_secs(10), text(&mut other, &["ECHO", "served"])).await;
    assert_eq!(served.expect("others are served meanwhile"), "served");
    other.must(&["RPUSH", "queue", "x"]).await.unwrap();
    assert_eq!(waits.reply().await.unwrap().brief(), "[queue x]");
}

/// A switch asks whether the other side takes the users that are connected, not those who were.
#[tokio::test(flavor = "multi_thread")]
async fn h06_a_user_who_has_gone_is_in_nobodys_way() {
    let mut lab = Setup::new().build().await;
    lab.source.call(&["ACL", "SETUSER", "guest", "on", ">pw", "~*", "+@all"]).await.unwrap();
    let mut guest = Connection::open(&lab.gateway.address()).await.unwrap();
    guest.must(&["AUTH", "guest", "pw"]).await.unwrap();
    guest.must(&["SET", "k", "1"]).await.unwrap();
    lab.mirror().await;
    lab.expect_log("cutover aborted");
    let refused = lab.gateway.cutover().await.unwrap_err().to_string();
    assert!(refused.contains("does not take user guest") && refused.contains("WRONGPASS"), "{refused}");
    guest.must(&["SET", "k", "2"]).await.unwrap();
    drop(guest);
    let mut other = Connection::open(&lab.gateway.address()).await.unwrap();
    eventually("the guest has gone", async || {
        text(&mut other, &["CLIENT", "LIST"]).await.lines().count() == 1
    })
    .await;
    lab.cutover().await;
    assert_eq!(text(&mut other, &["GET", "k"]).await, "2");
}

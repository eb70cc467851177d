//! H06: commands that speak of the client itself are queued in a transaction as servers queue them, and answered by the gateway.

use crossfade::cli::demo::connection::{Connection, Reply};

use super::h06_sessions::{Raw, id, invalidates, same, text};
use crate::support::{Front, Setup};

#[tokio::test(flavor = "multi_thread")]
async fn h06_client_commands_in_a_transaction_do_as_at_the_server() {
    let front = Front::new().await;
    front.server.call(&["ACL", "SETUSER", "few", "on", ">pw", "~*", "+@all", "-client|kill"]).await.unwrap();
    same(
        &front,
        &[
            &["MULTI", "CLIENT GETNAME", "CLIENT SETNAME me", "CLIENT GETNAME", "EXEC", "CLIENT GETNAME"],
            &[
                "CLIENT SETNAME me",
                "MULTI",
                "CLIENT SETNAME a\nb",
                "CLIENT GETNAME",
                "EXEC",
                "CLIENT GETNAME",
            ],
            &["HELLO 3", "MULTI", "CLIENT GETNAME", "HGETALL none", "CLIENT SETNAME x", "EXEC", "PING"],
            // What does not run has not happened.
            &["MULTI", "CLIENT SETNAME a", "DISCARD", "CLIENT GETNAME"],
            &["MULTI", "CLIENT SETNAME a", "NOSUCH", "EXEC", "CLIENT GETNAME"],
            &["WATCH k", "SET k 1", "MULTI", "CLIENT SETNAME a", "CLIENT ID", "EXEC", "CLIENT GETNAME"],
            &["MULTI", "CLIENT ID x", "CLIENT SETNAME a", "EXEC", "CLIENT GETNAME"],
            &["MULTI", "CLIENT SETNAME a", "RESET", "CLIENT GETNAME"],
            &["MULTI", "CLIENT SETNAME a", "QUIT"],
            // And a transaction knows nothing of the one before.
            &[
                "MULTI",
                "CLIENT GETNAME",
                "DISCARD",
                "MULTI",
                "GET k",
                "EXEC",
                "MULTI",
                "CLIENT GETNAME",
                "EXEC",
            ],
            &["MULTI", "CLIENT KILL ID 999999", "CLIENT KILL 127.0.0.1:1", "CLIENT KILL TYPE nosuch", "EXEC"],
            &[
                "MULTI",
                "CLIENT KILL USER nosuch",
                "CLIENT LIST TYPE nosuch",
                "CLIENT LIST TYPE pubsub",
                "EXEC",
            ],
            &["AUTH few pw", "MULTI", "CLIENT KILL ID 9", "GET k", "EXEC", "MULTI", "CLIENT GETNAME", "EXEC"],
            &[
                "MULTI",
                "CLIENT NO-EVICT ON",
                "CLIENT PAUSE 0",
                "CLIENT UNPAUSE",
                "CLIENT HELP",
                "EXEC",
                "PING",
            ],
            &["CLIENT REPLY SKIP", "MULTI", "CLIENT SETNAME a", "EXEC", "CLIENT GETNAME"],
            &["CLIENT REPLY OFF", "MULTI", "CLIENT SETNAME a", "EXEC", "CLIENT REPLY ON", "CLIENT GETNAME"],
            &["MULTI", "SELECT 3", "CLIENT SETNAME a", "SET k 3", "EXEC", "GET k", "SELECT 0", "GET k"],
            &[
                "HELLO 3",
                "MULTI",
                "CLIENT TRACKING ON OPTIN",
                "CLIENT CACHING YES",
                "CLIENT TRACKINGINFO",
                "CLIENT GETREDIR",
                "EXEC",
                "CLIENT TRACKINGINFO",
            ],
            &["MULTI", "CLIENT TRACKING ON BCAST OPTIN", "CLIENT GETREDIR", "EXEC", "CLIENT TRACKINGINFO"],
            &["MULTI", "CLUSTER NOSUCH", "EXEC"],
        ],
    )
    .await;
    // The stand-ins have named no connection of the server's.
    let list = front.server.call(&["CLIENT", "LIST"]).await.unwrap();
    let list = String::from_utf8_lossy(list.bytes().unwrap()).into_owned();
    assert!(list.lines().all(|line| line.contains(" name= ")), "{list}");
}

#[tokio::test(flavor = "multi_thread")]
async fn h06_the_gateway_answers_within_the_reply_of_exec() {
    let front = Front::new().await;
    let address = front.address();
    let mut client = Connection::open(&address).await.unwrap();
    let mut victim = Connection::open(&address).await.unwrap();
    let (client_id, victim_id) = (id(&mut client).await, id(&mut victim).await);
    let slots = client.must(&["CLUSTER", "SLOTS"]).await.unwrap();
    let large = "x".repeat(5_000_000);
    client.must(&["SET", "large", &large]).await.unwrap();
    let queue: [&[&str]; 10] = [
        &["CLIENT", "ID"],
        &["GET", "large"],
        &["CLIENT", "INFO"],
        &["CLUSTER", "SLOTS"],
        &["CLUSTER", "KEYSLOT", "foo"],
        &["MGET", "large", "large", "none"],
        &["CLIENT", "LIST", "ID", &victim_id],
        &["CLIENT", "KILL", "ID", &victim_id],
        &["INCR", "large"],
        &["GET", "large"],
    ];
    client.must(&["MULTI"]).await.unwrap();
    for words in queue {
        assert_eq!(client.must(words).await.unwrap().brief(), "QUEUED");
    }
    let reply = client.must(&["EXEC"]).await.unwrap();
    let items = reply.items();
    assert_eq!(items.len(), queue.len());
    assert_eq!(items[0].number().unwrap().to_string(), client_id);
    let info = String::from_utf8_lossy(items[2].bytes().unwrap());
    let queued = format!(" multi={} ", queue.len());
    assert!(info.starts_with(&format!("id={client_id} ")) && info.contains(" flags=x "), "{info}");
    assert!(info.contains(&queued) && info.contains(" cmd=exec "), "{info}");
    assert_eq!(items[3], slots);
    assert_eq!(items[4].number(), Some(12182));
    let line = String::from_utf8_lossy(items[6].bytes().unwrap());
    assert!(line.starts_with(&format!("id={victim_id} ")) && line.lines().count() == 1, "{line}");
    assert_eq!(items[7].number(), Some(1));
    assert!(matches!(items[8], Reply::Error(_)), "{}", items[8].brief());
    for item in [&items[1], &items[9], &items[5].items()[0], &items[5].items()[1]] {
        assert_eq!(item.bytes(), Some(large.as_bytes()));
    }
    assert_eq!(items[5].items()[2], Reply::Nil);
    assert!(victim.call(&["PING"]).await.is_err(), "it was ended");
    assert_eq!(text(&mut client, &["GET", "large"]).await, large, "and this one goes on");
}

#[tokio::test(flavor = "multi_thread")]
async fn h06_what_is_queued_of_the_client_itself_goes_over_a_switch() {
    let mut lab = Setup::new().build().await;
    let address = lab.gateway.address();
    let mut named = Connection::open(&address).await.unwrap();
    let named_id = id(&mut named).await;
    let mut tracks = Raw::open(&address).await;
    tracks.send(&["HELLO 3", "MULTI", "CLIENT TRACKING ON BCAST PREFIX t:"]).await;
    tracks.until("+QUEUED\r\n").await;
    lab.mirror().await;
    for there in [true, false] {
        for words in [&["MULTI"][..], &["INCR", "n"], &["CLIENT", "SETNAME", "me"], &["CLIENT", "ID"]] {
            named.must(words).await.unwrap();
        }
        if there {
            lab.cutover().await;
        } else {
            lab.rollback().await;
        }
        named.must(&["CLIENT", "GETNAME"]).await.unwrap();
        let reply = named.must(&["EXEC"]).await.unwrap().brief();
        assert_eq!(reply, format!("[{} OK {named_id} me]", if there { 1 } else { 2 }));
        if there {
            tracks.send(&["EXEC"]).await;
            assert_eq!(tracks.until("*1\r\n+OK\r\n").await, "*1\r\n+OK\r\n");
        } else {
            // What EXEC has set is carried on.
            tracks.until(">2\r\n$10\r\ninvalidate\r\n_\r\n").await;
        }
        named.must(&["SET", "t:1", "1"]).await.unwrap();
        assert_eq!(tracks.until(&invalidates("t:1")).await, invalidates("t:1"));
    }
}

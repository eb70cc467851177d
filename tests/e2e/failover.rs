//! FAILOVER that a client sends through the gateway: the source becomes a replica of its own replica.
//!
//! The gateway stays at the address that it was given. Its clients go on reading there, and their writes get the server's own
//! READONLY; the mirror follows the source's stream, in which now comes what the new primary is told; and there is no switch
//! away from a replica.

use crossfade::cli::demo::connection::Connection;
use crossfade::cli::demo::servers::Server;

use crate::support::{Lab, PATIENCE, Setup, eventually, since, start_server};

/// A replica of the source, in step with it.
async fn replica(lab: &Lab) -> Server {
    let heir = start_server("", &lab.path().join("heir"), &["--repl-diskless-sync-delay", "0"]).await;
    heir.call(&["REPLICAOF", "127.0.0.1", &lab.source.port().to_string()]).await.unwrap();
    eventually("the replica is in step", async || heir.info("master_link_status").await.unwrap() == "up")
        .await;
    heir
}

async fn role(server: &Server) -> String {
    server.info("role").await.unwrap()
}

/// Writes until it is refused for good; how many writes were acknowledged, and with what it was refused.
async fn write_until_refused(address: &str, key: &str) -> (i64, String) {
    let mut client = Connection::open(address).await.unwrap();
    let mut acknowledged = 0;
    loop {
        let reply = client.call(&["INCR", key]).await.unwrap();
        match reply.number() {
            Some(number) => {
                assert_eq!(number, acknowledged + 1, "a write that was acknowledged is there");
                acknowledged = number;
            }
            // The connection goes on, and reads what it wrote.
            None => {
                let read = client.must(&["GET", key]).await.unwrap().number();
                assert_eq!(read, Some(acknowledged));
                return (acknowledged, reply.brief());
            }
        }
    }
}

/// A mirror that is live, and a replica of the source that a failover may lead to; `None` where servers know none.
async fn with_heir() -> Option<(Lab, Server)> {
    if !since("6.2", "7.2", "FAILOVER") {
        return None;
    }
    let mut lab = Setup::new().source(&["--repl-diskless-sync-delay", "0"]).build().await;
    let heir = replica(&lab).await;
    lab.mirror().await;
    Some((lab, heir))
}

#[tokio::test(flavor = "multi_thread")]
async fn h14_failover_through_the_gateway_loses_no_write_while_a_mirror_runs() {
    let Some((mut lab, heir)) = with_heir().await else { return };
    let address = lab.gateway.address();
    let mut writers = Vec::new();
    for number in 0..8 {
        let address = address.clone();
        writers.push(tokio::spawn(async move {
            write_until_refused(&address, &format!("writer:{number}")).await
        }));
    }
    let mut client = Connection::open(&address).await.unwrap();
    // Before it, so that something is being written: the first writes are there.
    eventually("they write", async || {
        client.must(&["EXISTS", "writer:7"]).await.unwrap().number() == Some(1)
    })
    .await;
    let to = heir.port().to_string();
    let said = client.must(&["FAILOVER", "TO", "127.0.0.1", &to, "TIMEOUT", "20000"]).await.unwrap();
    assert_eq!(said.brief(), "OK");
    eventually("the replica is the primary", async || role(&heir).await == "master").await;
    eventually("the source is its replica", async || {
        role(&lab.source).await == "slave" && lab.source.info("master_link_status").await.unwrap() == "up"
    })
    .await;
    for (number, writer) in writers.into_iter().enumerate() {
        let (acknowledged, refusal) = tokio::time::timeout(PATIENCE, writer).await.unwrap().unwrap();
        assert!(refusal.starts_with("-READONLY"), "{refusal}");
        let there = heir.call(&["GET", &format!("writer:{number}")]).await.unwrap().number();
        assert_eq!(there, Some(acknowledged), "what was acknowledged went over to the new primary");
    }
    // What the new primary is told comes through the source, and to the destination.
    heir.call(&["SET", "later", "1"]).await.unwrap();
    eventually("the destination has it", async || {
        lab.destination.call(&["GET", "later"]).await.unwrap().number() == Some(1)
    })
    .await;
    lab.same().await;
    // Not away from a replica: its writes cannot be held, and there would be no way back.
    lab.expect_log("cutover aborted");
    lab.expect_log("cutover refused");
    let refused = lab.gateway.cutover().await.unwrap_err().to_string();
    assert!(refused.contains("the source is a replica"), "{refused}");

    // And back again.
    let back = lab.source.port().to_string();
    heir.call(&["FAILOVER", "TO", "127.0.0.1", &back, "TIMEOUT", "20000"]).await.unwrap();
    eventually("the source is the primary again", async || {
        role(&lab.source).await == "master" && role(&heir).await == "slave"
    })
    .await;
    eventually("clients write again", async || {
        client.call(&["SET", "back", "1"]).await.unwrap().bytes() == Some(b"OK")
    })
    .await;
    lab.gateway.wait_phase("mirroring", PATIENCE).await.unwrap();
    lab.same().await;
    lab.cutover().await;
    client.must(&["INCR", "back"]).await.unwrap();
    lab.same().await;
}

/// While a failover waits for a replica that does not come, writes are held. Who asks for its end must get past them.
#[tokio::test(flavor = "multi_thread")]
async fn h14_failover_is_aborted_past_the_writes_that_it_holds() {
    let Some((mut lab, heir)) = with_heir().await else { return };
    let address = lab.gateway.address();
    let mut client = Connection::open(&address).await.unwrap();
    assert!(client.call(&["FAILOVER", "ABORT"]).await.unwrap().brief().starts_with("-ERR No failover in"));
    client.must(&["SET", "k", "0"]).await.unwrap();
    heir.signal("STOP").unwrap();
    // Something that the replica has not got, or there would be nothing to wait for.
    client.must(&["INCR", "k"]).await.unwrap();
    let to = heir.port().to_string();
    assert_eq!(client.must(&["FAILOVER", "TO", "127.0.0.1", &to]).await.unwrap().brief(), "OK");
    let state = async || lab.source.info("master_failover_state").await.unwrap();
    eventually("it waits for the replica", async || state().await == "waiting-for-sync").await;
    let mut writes = Connection::open(&address).await.unwrap();
    writes.queue(&["INCR", "k"]);
    writes.flush().await.unwrap();
    eventually("the write is held", async || lab.source.info("blocked_clients").await.unwrap() == "1").await;
    let again = ["FAILOVER", "TO", "127.0.0.1", &to];
    let second = tokio::time::timeout(PATIENCE, client.call(&again)).await.expect("it is answered").unwrap();
    assert!(second.brief().starts_with("-ERR FAILOVER already in progress"), "{second:?}");
    let abort = ["FAILOVER", "ABORT"];
    let aborted = tokio::time::timeout(PATIENCE, client.call(&abort)).await;
    assert_eq!(aborted.expect("it gets past the held write").unwrap().brief(), "OK");
    assert_eq!(writes.reply().await.unwrap().number(), Some(2), "the write goes on");
    assert_eq!((role(&lab.source).await.as_str(), state().await.as_str()), ("master", "no-failover"));
    heir.signal("CONT").unwrap();
    lab.same().await;
    lab.cutover().await;
    assert_eq!(client.must(&["INCR", "k"]).await.unwrap().number(), Some(3));
    lab.same().await;
}

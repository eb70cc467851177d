//! H37: EVALSHA goes on behind a switch, for every way in which a script can have come.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crossfade::cli::demo::connection::{Connection, Reply};

use crate::support::{Setup, eventually};

async fn text(client: &mut Connection, command: &[&str]) -> String {
    let reply = client.must(command).await.unwrap();
    String::from_utf8_lossy(reply.bytes().unwrap_or_default()).into_owned()
}

/// Loads a script; its digest.
async fn digest(client: &mut Connection, script: &str) -> String {
    text(client, &["SCRIPT", "LOAD", script]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn h37_evalsha_finds_its_script_on_the_new_side() {
    let mut lab = Setup::new().build().await;
    let mut client = Connection::open(&lab.gateway.address()).await.unwrap();
    let loaded = digest(&mut client, "return 'loaded'").await;
    client.must(&["EVAL", "return 'evaluated'", "0"]).await.unwrap();
    // Asked past the gateway: it must not learn the script by this.
    let mut direct = Connection::open(&lab.source.address()).await.unwrap();
    let evaluated = digest(&mut direct, "return 'evaluated'").await;
    client.must(&["MULTI"]).await.unwrap();
    client.must(&["SCRIPT", "LOAD", "return 'queued'"]).await.unwrap();
    let queued = client.must(&["EXEC"]).await.unwrap();
    let queued = String::from_utf8_lossy(queued.items()[0].bytes().unwrap()).into_owned();
    let scripts = [(loaded, "loaded"), (evaluated, "evaluated"), (queued, "queued")];

    lab.mirror().await;
    lab.cutover().await;
    for (sha, says) in &scripts {
        assert_eq!(text(&mut client, &["EVALSHA", sha, "0"]).await, *says);
    }
    let late = digest(&mut client, "return 'late'").await;
    lab.rollback().await;
    assert_eq!(text(&mut client, &["EVALSHA", &late, "0"]).await, "late");

    // What a client flushed is not brought back to a server that never had it.
    client.must(&["SCRIPT", "FLUSH"]).await.unwrap();
    lab.destination.call(&["SCRIPT", "FLUSH"]).await.unwrap();
    lab.cutover().await;
    let reply = client.call(&["EVALSHA", &late, "0"]).await.unwrap();
    assert!(matches!(&reply, Reply::Error(text) if text.starts_with(b"NOSCRIPT")), "{reply:?}");
}

/// Loads one script after the other and runs each at once, while clients are switched to and fro.
#[tokio::test(flavor = "multi_thread")]
async fn h37_scripts_that_come_during_a_switch_are_carried_too() {
    let mut lab = Setup::new().build().await;
    lab.mirror().await;
    let (done, counted) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let mut clients = Vec::new();
    for client in 0..4 {
        let (address, done, counted) = (lab.gateway.address(), Arc::clone(&done), Arc::clone(&counted));
        clients.push(tokio::spawn(async move {
            let mut connection = Connection::open(&address).await.unwrap();
            let mut n = 0u64;
            while !done.load(Ordering::Relaxed) {
                let script = format!("return 'script {n} of {client}'");
                let sha = digest(&mut connection, &script).await;
                let said = text(&mut connection, &["EVALSHA", &sha, "0"]).await;
                assert_eq!(said, format!("script {n} of {client}"));
                n += 1;
                counted.fetch_add(1, Ordering::Relaxed);
            }
        }));
    }
    for turn in 0..6 {
        let more = counted.load(Ordering::Relaxed) + 200;
        eventually("more scripts", async || counted.load(Ordering::Relaxed) >= more).await;
        if turn % 2 == 0 {
            lab.cutover().await;
        } else {
            lab.rollback().await;
        }
    }
    done.store(true, Ordering::Relaxed);
    for client in clients {
        client.await.unwrap();
    }
}

//! H36 writers that bypass the gateway, H40 postponed switches, and the ways in which a migration ends.

use std::path::Path;
use std::time::{Duration, Instant};

use crossfade::cli::demo::connection::Connection;
use crossfade::cli::demo::servers::server_binary;
use crossfade::cli::demo::workload::{Plan, Workload};
use serde_json::json;

use crate::support::{Lab, PATIENCE, Setup, eventually, operations};

/// Pushes numbers to a list until told otherwise; answers how many were acknowledged.
async fn bypass(address: String, until: tokio::sync::watch::Receiver<bool>) -> u64 {
    let mut acked = 0;
    let mut connection = Connection::open(&address).await.unwrap();
    while !*until.borrow() {
        match connection.call(&["RPUSH", "bypass", &acked.to_string()]).await {
            Ok(reply) if reply.number().is_some() => acked += 1,
            // Held by the fence, and closed behind the commit; or refused (NOREPLICAS). It is not acknowledged.
            _ => return acked,
        }
    }
    acked
}

/// Cuts over while somebody writes to the source directly: all that was acknowledged is on the destination.
async fn nothing_acknowledged_is_lost(lab: &mut Lab) {
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let writer = tokio::spawn(bypass(lab.source.address(), stopped));
    eventually("it writes", async || {
        lab.source.call(&["LLEN", "bypass"]).await.unwrap().number() > Some(100)
    })
    .await;
    lab.cutover().await;
    let acked =
        tokio::time::timeout(Duration::from_secs(5), writer).await.expect("it is not left hanging").unwrap();
    drop(stop);
    assert!(acked > 0);
    let length = lab.destination.call(&["LLEN", "bypass"]).await.unwrap().number().unwrap();
    assert_eq!(length, acked as i64, "what was acknowledged, and nothing else");
    eventually("the source has the same", async || {
        lab.source.call(&["LLEN", "bypass"]).await.unwrap().number() == Some(length)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn h36_a_writer_that_bypasses_the_gateway_is_fenced() {
    let mut lab = Setup::new().build().await;
    lab.expect_log("without the gateway");
    lab.mirror().await;
    nothing_acknowledged_is_lost(&mut lab).await;
    // The fence is down: the mirror back writes to the source.
    let mut client = Connection::open(&lab.gateway.address()).await.unwrap();
    client.must(&["SET", "after", "1"]).await.unwrap();
    lab.in_step().await;
    assert_eq!(lab.source.call(&["GET", "after"]).await.unwrap().bytes(), Some(&b"1"[..]));
}

/// Before 6.2 there is no CLIENT PAUSE WRITE; the fence is a setting, and it has to come down in every case.
#[tokio::test(flavor = "multi_thread")]
async fn h36_the_fence_of_old_servers_comes_down_again() {
    let old = "redis-6.0";
    if !Path::new(&server_binary(old)).exists() {
        eprintln!("skipped: CROSSFADE_SERVERS names no {old}");
        return;
    }
    let setup = Setup { servers: [old, ""], ..Setup::new() };
    let mut lab = setup.source(&["--min-replicas-max-lag", "11"]).build().await;
    lab.expect_log("");
    lab.mirror().await;
    let setting = async |lab: &Lab| {
        let reply = lab.source.call(&["CONFIG", "GET", "min-replicas-to-write"]).await.unwrap();
        String::from_utf8_lossy(reply.items()[1].bytes().unwrap()).into_owned()
    };
    lab.gateway.order("cutover", &json!({"rehearse": true})).await.unwrap();
    assert_eq!(setting(&lab).await, "0");
    // Dead with the fence up.
    lab.gateway.options().env = vec![("CROSSFADE_FAILPOINT".into(), "fence".into())];
    lab.gateway.restart().await.unwrap();
    lab.gateway.wait_phase("mirroring", PATIENCE).await.unwrap();
    let _ = lab.gateway.post("/v1/cutover", &json!({})).await;
    lab.gateway.wait_exit(Duration::from_secs(20)).await.unwrap();
    assert_ne!(setting(&lab).await, "0");
    lab.gateway.options().env.clear();
    lab.gateway.restart().await.unwrap();
    assert_eq!(setting(&lab).await, "0");
    lab.gateway.wait_phase("mirroring", PATIENCE).await.unwrap();
    nothing_acknowledged_is_lost(&mut lab).await;
    assert_eq!(setting(&lab).await, "0");
}

#[tokio::test(flavor = "multi_thread")]
async fn h40_a_postponed_cutover_waits_and_is_let_through() {
    let mut lab = Setup::new().build().await;
    let workload = Workload::start(&Plan { pace: Some(2000), ..Plan::new(lab.gateway.address()) });
    lab.mirror().await;
    let plan = lab.gateway.order("cutover", &json!({"postpone": true})).await.unwrap();
    assert_eq!((&plan["postponed"], &plan["verdict"]), (&json!(true), &json!("go")), "{plan}");
    // Traffic runs, on the source, for longer than settled expiries hold.
    tokio::time::sleep(Duration::from_secs(12)).await;
    operations(&workload, 500).await;
    let status = lab.gateway.status().await.unwrap();
    assert_eq!((&status["phase"], &status["active"]), (&json!("cutting-over"), &json!("source")), "{status}");
    let (code, refusal) = lab.gateway.post("/v1/pause", &json!({})).await.unwrap();
    assert!(code == 409 && refusal.to_string().contains("postponed"), "{code} {refusal}");

    let began = Instant::now();
    let entry = lab.cutover().await;
    assert_eq!(entry["epoch"], 1, "{entry}");
    assert!(began.elapsed() < Duration::from_secs(20));
    operations(&workload, 500).await;

    // Let go of: nothing changes.
    lab.gateway.order("rollback", &json!({"postpone": true})).await.unwrap();
    lab.gateway.order("abort", &json!({})).await.unwrap();
    lab.gateway.wait_phase("cut-over", PATIENCE).await.unwrap();
    let status = lab.gateway.status().await.unwrap();
    assert_eq!(status["switches"][1]["outcome"], "aborted", "{status}");
    operations(&workload, 500).await;
    lab.expect_log("rollback aborted");
    lab.judge(workload).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pause_resume_and_the_end_on_the_destination() {
    let mut lab = Setup::new().build().await;
    let mut client = Connection::open(&lab.gateway.address()).await.unwrap();
    client.must(&["SET", "leased", "1", "PX", "600000"]).await.unwrap();
    lab.mirror().await;
    lab.gateway.order("pause", &json!({})).await.unwrap();
    client.must(&["SET", "later", "1"]).await.unwrap();
    assert_eq!(lab.gateway.status().await.unwrap()["phase"], "paused");
    let (code, _) = lab.gateway.post("/v1/cutover", &json!({})).await.unwrap();
    assert_eq!(code, 409);
    // The pause outlives a restart.
    lab.gateway.signal("TERM").unwrap();
    lab.gateway.wait_exit(Duration::from_secs(20)).await.unwrap();
    lab.gateway.restart().await.unwrap();
    assert_eq!(lab.gateway.status().await.unwrap()["phase"], "paused");
    assert_eq!(lab.destination.call(&["EXISTS", "later"]).await.unwrap().number(), Some(0));
    lab.gateway.order("resume", &json!({})).await.unwrap();
    lab.gateway.wait_phase("mirroring", PATIENCE).await.unwrap();
    lab.in_step().await;
    assert_eq!(lab.destination.call(&["EXISTS", "later"]).await.unwrap().number(), Some(1));

    lab.cutover().await;
    let (code, refusal) = lab.gateway.post("/v1/abort", &json!({})).await.unwrap();
    assert!(code == 409 && refusal.to_string().contains("rollback"), "{refusal}");
    lab.gateway.order("finish", &json!({})).await.unwrap();
    let status = lab.gateway.status().await.unwrap();
    assert_eq!((&status["phase"], &status["active"]), (&json!("finished"), &json!("destination")));
    for server in [&lab.source, &lab.destination] {
        let own = server.call(&["KEYS", "crossfade:*"]).await.unwrap();
        assert!(own.items().is_empty(), "{}", own.brief());
        let left = server.call(&["PTTL", "leased"]).await.unwrap().number().unwrap();
        assert!((1..=600_000).contains(&left), "{left} ms: neither padded nor gone");
    }
    // And it stays so.
    lab.gateway.kill();
    lab.gateway.restart().await.unwrap();
    let status = lab.gateway.status().await.unwrap();
    assert_eq!((&status["phase"], &status["active"]), (&json!("finished"), &json!("destination")));
    let mut client = Connection::open(&lab.gateway.address()).await.unwrap();
    client.must(&["SET", "moved", "1"]).await.unwrap();
    assert_eq!(lab.destination.call(&["EXISTS", "moved"]).await.unwrap().number(), Some(1));
    let (code, _) = lab.gateway.post("/v1/start", &json!({})).await.unwrap();
    assert_eq!(code, 409);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_abort_ends_on_the_source_and_another_migration_may_begin() {
    let mut lab = Setup::new().build().await;
    let mut client = Connection::open(&lab.gateway.address()).await.unwrap();
    client.must(&["SET", "leased", "1", "PX", "600000"]).await.unwrap();
    lab.mirror().await;
    lab.gateway.order("abort", &json!({})).await.unwrap();
    assert_eq!(lab.gateway.status().await.unwrap()["phase"], "finished");
    let left = lab.destination.call(&["PTTL", "leased"]).await.unwrap().number().unwrap();
    assert!((1..=600_000).contains(&left), "{left} ms: the destination keeps its data, with true expiries");
    // The destination is not empty: refused, by name.
    let (code, refusal) = lab.gateway.post("/v1/start", &json!({})).await.unwrap();
    assert!(code == 409 && refusal.to_string().contains("leased"), "{code} {refusal}");
    lab.destination.call(&["FLUSHALL"]).await.unwrap();
    lab.mirror().await;
    lab.cutover().await;
    lab.same().await;
}

//! The copy: every type, with clients writing all the while; sources that are empty, idle, busy, spread over 16
//! databases; servers that restart.

use std::time::Duration;

use crossfade::cli::demo::fill;
use crossfade::cli::demo::workload::{Plan, Workload};

use crate::support::{PATIENCE, Setup, eventually, operations};

#[tokio::test(flavor = "multi_thread")]
async fn every_type_is_copied_while_clients_write_and_expiries_are_exact_after_the_cutover() {
    let mut lab = Setup::new().build().await;
    // above 16 MiB a value goes in chunks
    let filled = fill::fill(&lab.source.address(), 40_000, 20 << 20).await.unwrap();
    let workload = Workload::start(&Plan { pace: Some(4000), ..Plan::new(lab.gateway.address()) });
    operations(&workload, 2000).await;
    let status = lab.mirror().await;
    assert!(status["snapshot"]["keys_loaded"].as_u64().unwrap() >= filled.keys * 9 / 10, "{status}");
    operations(&workload, 4000).await;
    let verdict = lab.judge(workload).await;
    assert!(verdict.operations > 6000);
    let sample = lab.source.call(&["PEXPIRETIME", "session:3"]).await.unwrap();
    lab.cutover().await;
    // no longer padded: to the millisecond what the source says
    assert_eq!(lab.destination.call(&["PEXPIRETIME", "session:3"]).await.unwrap(), sample);
    lab.same().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn h19_a_source_without_any_key_and_an_idle_one() {
    let mut lab = Setup::new().build().await;
    let status = lab.mirror().await;
    assert_eq!(status["snapshot"]["keys_loaded"], 0);
    lab.same().await;
    // idle: the link stays, and a single write arrives at once
    let before = lab.source.info("sync_full").await.unwrap();
    tokio::time::sleep(Duration::from_secs(5)).await;
    lab.source.call(&["SET", "first", "1"]).await.unwrap();
    eventually("the write is there", async || {
        lab.destination.call(&["GET", "first"]).await.unwrap().number() == Some(1)
    })
    .await;
    assert_eq!(lab.source.info("sync_full").await.unwrap(), before);
    lab.cutover().await;
    lab.rollback().await;
    lab.same().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn h19_sixteen_databases() {
    let mut lab = Setup::new().build().await;
    let mut client = lab.source.connect().await.unwrap();
    for db in 0..16 {
        client.must(&["SELECT", &db.to_string()]).await.unwrap();
        for number in 0..50 {
            client.must(&["SET", &format!("k:{number}"), &format!("{db}:{number}")]).await.unwrap();
        }
    }
    lab.mirror().await;
    for db in (0..16).rev() {
        client.must(&["SELECT", &db.to_string()]).await.unwrap();
        client.must(&["INCR", "n"]).await.unwrap();
    }
    client.must(&["SWAPDB", "3", "4"]).await.unwrap();
    client.must(&["MOVE", "k:1", "7"]).await.unwrap();
    client.must(&["SELECT", "9"]).await.unwrap();
    client.must(&["FLUSHDB"]).await.unwrap();
    lab.same().await;
}

/// The stream comes faster than the destination takes it: the journal holds the difference, the source's buffer
/// does not, and the mirror catches up once there is room.
#[tokio::test(flavor = "multi_thread")]
async fn h19_a_source_that_is_busier_than_the_destination() {
    let mut lab = Setup::new().proxies().build().await;
    lab.mirror().await;
    let proxy = lab.destination_proxy.as_ref().unwrap();
    let slow = crate::support::proxy::Rules { bytes_per_second: Some(400_000), ..Default::default() };
    proxy.rules(crate::support::proxy::Way::Up, slow);
    let mut client = lab.source.connect().await.unwrap();
    let value = "v".repeat(500);
    for batch in 0..20 {
        for number in 0..1000 {
            client.queue(&["SET", &format!("busy:{}", batch * 1000 + number), &value]);
        }
        client.flush().await.unwrap();
        for _ in 0..1000 {
            client.reply().await.unwrap();
        }
    }
    eventually("everything is received", async || {
        let status = lab.gateway.status().await.unwrap();
        let end: u64 = lab.source.info("master_repl_offset").await.unwrap().parse().unwrap();
        status["mirror"]["received_offset"].as_u64().unwrap() >= end
    })
    .await;
    let status = lab.gateway.status().await.unwrap();
    assert!(status["mirror"]["lag_bytes"].as_u64().unwrap() > 1_000_000, "{status}");
    let buffered: u64 = lab.source.info("mem_clients_slaves").await.unwrap().parse().unwrap();
    assert!(buffered < 4 << 20, "the source holds {buffered} bytes for us");
    lab.destination_proxy.as_ref().unwrap().heal();
    lab.same().await;
    assert_eq!(lab.source.info("sync_full").await.unwrap(), "1");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_restart_during_the_mirror() {
    let mut lab = Setup::new().durable().build().await;
    lab.expect_log("");
    fill::fill(&lab.source.address(), 3000, 0).await.unwrap();
    let workload = Workload::start(&Plan { pace: Some(2000), ..Plan::new(lab.gateway.address()).tolerant() });
    lab.mirror().await;
    operations(&workload, 2000).await;
    lab.source.restart().await.unwrap();
    operations(&workload, 2000).await;
    // a restarted source has a new history: another full sync, whose offsets do not compare with the old ones
    eventually("the new full sync", async || lab.source.info("sync_full").await.unwrap() == "1").await;
    let history = workload.stop().await.unwrap();
    eventually("the servers are equal again", async || {
        crate::support::oracle::compare(&lab.source, &lab.destination).await.is_empty()
    })
    .await;
    lab.gateway.wait_phase("mirroring", PATIENCE).await.unwrap();
    let verdict = history.judge(&lab.source.address()).await.unwrap();
    assert!(verdict.is_clean(), "{verdict}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_destination_restart_during_the_snapshot_and_during_the_mirror() {
    let mut lab = Setup::new().durable().build().await;
    lab.expect_log("");
    fill::fill(&lab.source.address(), 60_000, 8 << 20).await.unwrap();
    let workload = Workload::start(&Plan { pace: Some(2000), ..Plan::new(lab.gateway.address()) });
    lab.gateway.begin().await.unwrap();
    lab.gateway
        .wait_until("some keys are loaded", PATIENCE, |status| {
            status["phase"] == "mirroring" || status["snapshot"]["keys_loaded"].as_u64() > Some(1000)
        })
        .await
        .unwrap();
    lab.destination.restart().await.unwrap();
    lab.gateway.wait_phase("mirroring", PATIENCE).await.unwrap();
    operations(&workload, 2000).await;
    lab.destination.restart().await.unwrap();
    operations(&workload, 2000).await;
    lab.judge(workload).await;
}

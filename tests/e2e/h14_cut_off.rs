//! H14: a source that cuts us off. Where its backlog holds what we lack, the stream goes on; else a new copy is made, and what is
//! gone from the source is gone from the destination too.

use std::time::Duration;

use crossfade::cli::demo::fill;
use crossfade::cli::demo::servers::Server;
use crossfade::cli::demo::workload::{Plan, Workload};

use crate::support::proxy::{Rules, Way};
use crate::support::{Lab, PATIENCE, Setup, eventually, operations, start_server};

async fn copies(server: &Server) -> u64 {
    server.info("sync_full").await.unwrap().parse().unwrap()
}

fn workload(lab: &Lab) -> Workload {
    Workload::start(&Plan { pace: Some(3000), ..Plan::new(lab.gateway.address()).tolerant() })
}

/// Ends the connections over which the source is replicated.
async fn kill_replicas(source: &Server) -> i64 {
    source.call(&["CLIENT", "KILL", "TYPE", "replica"]).await.unwrap().number().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn h14_a_killed_link_goes_on_from_the_backlog() {
    let mut lab = Setup::new().source(&["--repl-backlog-size", "64mb"]).build().await;
    lab.expect_log("the mirror waits");
    fill::fill(&lab.source.address(), 2000, 0).await.unwrap();
    let workload = workload(&lab);
    lab.mirror().await;
    let mut killed = 0;
    for _ in 0..15 {
        operations(&workload, 100).await;
        killed += kill_replicas(&lab.source).await;
        eventually("the link is there again", async || {
            lab.source.info("connected_slaves").await.unwrap() == "1"
        })
        .await;
    }
    assert!(killed >= 15, "{killed}");
    lab.judge(workload).await;
    assert_eq!(copies(&lab.source).await, 1, "the backlog covered every gap");
}

/// The source gives up a replica that does not read, and its backlog does not reach so far back.
#[tokio::test(flavor = "multi_thread")]
async fn h14_a_link_that_is_too_slow_is_cut_and_the_copy_begins_anew() {
    let mut lab = Setup::new()
        .source(&["--repl-backlog-size", "1mb", "--client-output-buffer-limit", "replica 4mb 4mb 1"])
        .proxies()
        .build()
        .await;
    lab.expect_log("");
    fill::fill(&lab.source.address(), 2000, 0).await.unwrap();
    let workload = workload(&lab);
    lab.mirror().await;
    lab.source.call(&["SET", "gone", "1"]).await.unwrap();
    lab.in_step().await;
    // Only what comes from the source stalls, and only for who is there already.
    let proxy = lab.source_proxy.as_ref().unwrap();
    let before = copies(&lab.source).await;
    proxy.rules(Way::Down, Rules { black_hole: true, ..Rules::default() });
    lab.source.call(&["DEL", "gone"]).await.unwrap();
    let value = "v".repeat(1 << 20);
    for n in 0..24 {
        lab.source.call(&["SET", &format!("large:{n}"), &value]).await.unwrap();
    }
    eventually("the source gave the link up", async || {
        lab.source.info("connected_slaves").await.unwrap() == "0"
    })
    .await;
    proxy.heal();
    lab.gateway.wait_until("the new copy", PATIENCE, |_| true).await.unwrap();
    eventually("a new copy was asked for", async || copies(&lab.source).await > before).await;
    lab.gateway.wait_phase("mirroring", PATIENCE).await.unwrap();
    assert_eq!(lab.destination.call(&["EXISTS", "gone"]).await.unwrap().number(), Some(0));
    lab.judge(workload).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn h14_another_replication_id_means_a_new_copy_without_leftovers() {
    let mut lab = Setup::new().build().await;
    lab.expect_log("");
    fill::fill(&lab.source.address(), 2000, 0).await.unwrap();
    let workload = workload(&lab);
    lab.mirror().await;
    lab.in_step().await;
    // What a source deletes while it is somebody else cannot be told by any stream.
    lab.gateway.order("pause", &serde_json::json!({})).await.unwrap();
    lab.source.call(&["DEBUG", "CHANGE-REPL-ID"]).await.unwrap();
    lab.source.call(&["DEL", "session:3"]).await.unwrap();
    kill_replicas(&lab.source).await;
    eventually("a new copy was asked for", async || copies(&lab.source).await == 2).await;
    lab.gateway.order("resume", &serde_json::json!({})).await.unwrap();
    lab.gateway.wait_phase("mirroring", PATIENCE).await.unwrap();
    lab.judge(workload).await;
    assert_eq!(lab.destination.call(&["EXISTS", "session:3"]).await.unwrap().number(), Some(0));
}

/// The source hands over to its own replica, and its address follows: the replica knows the old id, and the stream goes on.
#[tokio::test(flavor = "multi_thread")]
async fn h14_a_failover_to_the_sources_replica() {
    let fast = ["--repl-diskless-sync-delay", "0"];
    let mut lab = Setup::new().source(&fast).proxies().build().await;
    lab.expect_log("");
    fill::fill(&lab.source.address(), 2000, 0).await.unwrap();
    let heir = start_server("", &lab.path().join("heir"), &fast).await;
    heir.call(&["REPLICAOF", "127.0.0.1", &lab.source.port().to_string()]).await.unwrap();
    eventually("the heir is in step", async || heir.info("master_link_status").await.unwrap() == "up").await;
    let workload = workload(&lab);
    lab.mirror().await;
    operations(&workload, 500).await;
    let before = copies(&heir).await;
    let proxy = lab.source_proxy.as_ref().unwrap();
    // Nobody writes to a primary that is one no more: what is refused there would say nothing about the gateway.
    proxy.rules(Way::Up, Rules { black_hole: true, ..Rules::default() });
    lab.source
        .call(&["FAILOVER", "TO", "127.0.0.1", &heir.port().to_string(), "TIMEOUT", "10000"])
        .await
        .unwrap();
    eventually("the heir is the primary", async || heir.info("role").await.unwrap() == "master").await;
    proxy.lead_to(heir.address());
    proxy.cut();
    proxy.heal();
    operations(&workload, 500).await;
    lab.gateway.wait_phase("mirroring", PATIENCE).await.unwrap();
    lab.source = heir;
    lab.judge(workload).await;
    assert_eq!(copies(&lab.source).await, before, "the stream went on under the new id");
    tokio::time::timeout(Duration::from_secs(30), lab.cutover()).await.unwrap();
    lab.same().await;
}

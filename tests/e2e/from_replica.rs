//! The stream is read from a replica of the source, and from the source itself when there is none any more.

use crossfade::cli::demo::fill;
use crossfade::cli::demo::servers::Server;
use crossfade::cli::demo::workload::{Plan, Workload};

use crate::support::{PATIENCE, Setup, eventually, operations, start_server};

async fn replicas(server: &Server) -> String {
    server.info("connected_slaves").await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_spares_the_source_the_copy_and_its_end_costs_no_second_one() {
    let fast = ["--repl-diskless-sync-delay", "0"];
    let mut lab = Setup::new().source(&fast).config("[source]\nfeed_from = \"replica\"\n").build().await;
    // A lost link is the subject here.
    lab.expect_log("the mirror waits");
    fill::fill(&lab.source.address(), 5000, 0).await.unwrap();
    let mut replica = start_server("", &lab.path().join("replica"), &fast).await;
    replica.call(&["REPLICAOF", "127.0.0.1", &lab.source.port().to_string()]).await.unwrap();
    eventually("the replica is in step", async || {
        replica.info("master_link_status").await.unwrap() == "up" && replicas(&lab.source).await == "1"
    })
    .await;
    let workload = Workload::start(&Plan { pace: Some(3000), ..Plan::new(lab.gateway.address()) });
    lab.mirror().await;
    assert_eq!((replicas(&replica).await.as_str(), replicas(&lab.source).await.as_str()), ("1", "1"));
    let copies = lab.source.info("sync_full").await.unwrap();
    operations(&workload, 1000).await;
    lab.cutover().await;
    operations(&workload, 500).await;
    lab.rollback().await;
    lab.gateway.wait_phase("mirroring", PATIENCE).await.unwrap();
    replica.kill();
    operations(&workload, 500).await;
    lab.in_step().await;
    assert!(lab.gateway.log().contains("from the server itself"), "{}", lab.gateway.log());
    lab.judge(workload).await;
    assert_eq!(lab.source.info("sync_full").await.unwrap(), copies, "the source gave no snapshot");
}

//! An empty destination loads the snapshot as a replica of the gateway, where it can; whatever happens meanwhile, it ends as
//! a primary with its own configuration.

use std::sync::Arc;
use std::time::Duration;

use crossfade::Side;
use crossfade::backfill::primary::{Broken, prepare};
use crossfade::backfill::{LoadOptions, Progress};
use crossfade::cli::demo::fill;
use crossfade::cli::demo::servers::Server;
use crossfade::cli::demo::workload::{Plan, Workload};
use crossfade::server::{Capabilities, Client, Endpoint};
use tokio_util::sync::CancellationToken;

use crate::support::proxy::{Rules, Way};
use crate::support::{Lab, PATIENCE, Setup, eventually, operations, start_server};

async fn role(server: &Server) -> String {
    server.info("role").await.unwrap()
}

/// Asserts that the destination is what it was before.
async fn restored(server: &Server) {
    assert_eq!(role(server).await, "master");
    let setting = server.call(&["CONFIG", "GET", "repl-diskless-load"]).await.unwrap();
    assert_eq!(setting.items()[1].brief(), "disabled");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_destination_loads_as_a_replica_while_clients_write() {
    let mut lab = Setup::new().build().await;
    fill::fill(&lab.source.address(), 20_000, 20 << 20).await.unwrap();
    lab.source
        .call(&["FUNCTION", "LOAD", "#!lua name=lib\nredis.register_function('f', function() return 7 end)"])
        .await
        .unwrap();
    let workload = Workload::start(&Plan { pace: Some(4000), ..Plan::new(lab.gateway.address()) });
    operations(&workload, 500).await;
    let status = lab.mirror().await;
    assert_eq!(status["snapshot"]["method"], "replication", "{status}");
    restored(&lab.destination).await;
    operations(&workload, 1000).await;
    lab.judge(workload).await;
    lab.cutover().await;
    assert_eq!(lab.destination.call(&["FCALL", "f", "0"]).await.unwrap().number(), Some(7));
    let diskless = lab.gateway.log().contains("as a replica of the gateway");
    assert!(!diskless, "nothing went wrong");
    lab.same().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_destination_that_cannot_be_a_replica_loads_by_commands() {
    let plain = Setup::new;
    for (why, setup) in [
        ("switched off", plain().config("[snapshot]\nmethod = \"commands\"\n")),
        ("REPLICAOF is taken away", plain().destination(&["--rename-command", "REPLICAOF", ""])),
        ("CONFIG is taken away", plain().destination(&["--rename-command", "CONFIG", ""])),
        ("it would be written to", plain().destination(&["--replica-read-only", "no"])),
        ("limits are set", plain().config("[throttle]\nsnapshot_keys = \"1000000/s\"\n")),
    ] {
        let mut lab = setup.build().await;
        fill::fill(&lab.source.address(), 2000, 0).await.unwrap();
        let status = lab.mirror().await;
        assert_eq!(status["snapshot"]["method"], "commands", "{why}: {status}");
        assert_eq!(role(&lab.destination).await, "master", "{why}");
        lab.same().await;
    }
    let mut lab = plain().config("[snapshot]\non_existing_key = \"replace\"\n").build().await;
    lab.destination.call(&["SET", "mine", "1"]).await.unwrap();
    let status = lab.mirror().await;
    assert_eq!(status["snapshot"]["method"], "commands", "it is not empty: {status}");
    assert_eq!(lab.destination.call(&["GET", "mine"]).await.unwrap().number(), Some(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_destination_with_fewer_databases_is_told_so_and_lives() {
    let mut lab = Setup::new().destination(&["--databases", "4"]).build().await;
    let mut client = lab.source.connect().await.unwrap();
    client.must(&["SELECT", "9"]).await.unwrap();
    client.must(&["SET", "k", "v"]).await.unwrap();
    lab.expect_log("the mirror has stopped");
    lab.expect_log("the mirror stopped");
    let before = lab.destination.info("run_id").await.unwrap();
    lab.gateway.begin().await.unwrap();
    let failed = |status: &serde_json::Value| status["phase"] == "failed";
    let status = lab.gateway.wait_until("the refusal", PATIENCE, failed).await.unwrap();
    assert_eq!(status["error"]["side"], "destination", "{status}");
    restored(&lab.destination).await;
    assert_eq!(
        lab.destination.info("run_id").await.unwrap(),
        before,
        "it was not ended by what it cannot load"
    );
}

/// A gateway whose destination is being loaded as a replica, slowly.
async fn midway(durable: bool) -> (Lab, Workload) {
    let setup = if durable { Setup::new().durable() } else { Setup::new() };
    // Otherwise a server that loads answers once in 2 MiB.
    let setup = setup.destination(&["--loading-process-events-interval-bytes", "20000"]);
    let lab = setup.proxies().build().await;
    fill::fill(&lab.source.address(), 30_000, 0).await.unwrap();
    let workload = Workload::start(&Plan { pace: Some(1000), ..Plan::new(lab.gateway.address()).tolerant() });
    let slow = Rules { bytes_per_second: Some(600_000), ..Rules::default() };
    lab.source_proxy.as_ref().unwrap().rules(Way::Down, slow);
    lab.gateway.begin().await.unwrap();
    eventually("the destination loads", async || {
        lab.destination.info("loading").await.is_ok_and(|loading| loading == "1")
    })
    .await;
    assert_eq!(role(&lab.destination).await, "slave");
    (lab, workload)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_dies_meanwhile_makes_it_a_primary_again_when_it_comes_back() {
    let (mut lab, workload) = midway(false).await;
    lab.expect_log("");
    lab.gateway.restart().await.unwrap();
    lab.source_proxy.as_ref().unwrap().heal();
    lab.gateway.wait_phase("mirroring", PATIENCE).await.unwrap();
    restored(&lab.destination).await;
    lab.judge(workload).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_destination_or_a_link_that_dies_meanwhile_is_loaded_again() {
    let (mut lab, workload) = midway(true).await;
    lab.expect_log("");
    lab.destination.restart().await.unwrap();
    eventually("the next load has begun", async || {
        lab.gateway.status().await.unwrap()["snapshot"]["keys_loaded"].as_u64() > Some(0)
    })
    .await;
    lab.source_proxy.as_ref().unwrap().cut();
    lab.source_proxy.as_ref().unwrap().heal();
    lab.gateway.wait_phase("mirroring", PATIENCE).await.unwrap();
    restored(&lab.destination).await;
    lab.judge(workload).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_is_ended_or_aborted_meanwhile_leaves_a_primary() {
    let (mut lab, _workload) = midway(false).await;
    lab.expect_log("");
    lab.gateway.signal("TERM").unwrap();
    lab.gateway.wait_exit(PATIENCE).await.unwrap();
    restored(&lab.destination).await;

    let (mut lab, _workload) = midway(false).await;
    lab.expect_log("");
    lab.gateway.order("abort", &serde_json::json!({})).await.unwrap();
    restored(&lab.destination).await;
    assert_eq!(lab.destination.call(&["KEYS", "crossfade:*"]).await.unwrap().items().len(), 0);
}

/// The destination is looked at again when nobody can write to it any more.
#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_appears_at_the_last_moment_is_not_lost() {
    let dir = tempfile::tempdir().unwrap();
    let server = start_server("", dir.path(), &[]).await;
    let to = Endpoint::parse(Side::Destination, &server.url()).unwrap();
    let mut client = Client::open(&to, Duration::from_secs(5)).await.unwrap();
    let capabilities = Capabilities::probe(&mut client).await.unwrap();
    server.call(&["SET", "crossfade:position", "x"]).await.unwrap();
    let prepared = prepare(&mut client, &to, &capabilities, 1).await.unwrap();
    let undo = prepared.undo().clone();
    server.call(&["SELECT", "0"]).await.unwrap();
    server.call(&["SET", "late", "1"]).await.unwrap();
    let (options, cancel) = (LoadOptions::new(to), CancellationToken::new());
    let snapshot: &[u8] = b"REDIS0010\xff\0\0\0\0\0\0\0\0";
    let outcome = prepared
        .serve(&mut client, snapshot, Vec::new(), &options, Arc::new(Progress::default()), cancel)
        .await;
    assert!(
        matches!(&outcome, Err(Broken::Unfit(why)) if why.to_string().contains("not empty")),
        "{outcome:?}"
    );
    undo.run(&mut client).await.unwrap();
    restored(&server).await;
    assert_eq!(server.call(&["GET", "late"]).await.unwrap().number(), Some(1));
}

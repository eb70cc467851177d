//! H15: a destination that cannot take what is mirrored: shown with side and the time until which it is tried, nothing lost, and it
//! goes on by itself; clients notice nothing.

use crossfade::cli::demo::fill;
use crossfade::cli::demo::workload::{Plan, Workload};
use serde_json::Value as Json;

use crate::support::proxy::{Rules, Way};
use crate::support::{Lab, PATIENCE, Setup, operations};

async fn lab(config: &str) -> (Lab, Workload) {
    let mut lab = Setup::new().config(config).build().await;
    lab.expect_log("the mirror waits");
    lab.expect_log("the mirror goes on");
    fill::fill(&lab.source.address(), 1000, 0).await.unwrap();
    let workload = Workload::start(&Plan { pace: Some(2000), ..Plan::new(lab.gateway.address()) });
    lab.mirror().await;
    (lab, workload)
}

/// Waits until the status tells of trouble with this in its message.
async fn told(lab: &mut Lab, what: &'static str) -> Json {
    let told = move |status: &Json| {
        let error = &status["error"];
        error["side"] == "destination" && error["message"].as_str().is_some_and(|text| text.contains(what))
    };
    lab.gateway.wait_until(what, PATIENCE, told).await.unwrap()
}

async fn set(lab: &Lab, name: &str, value: &str) {
    let reply = lab.destination.call(&["CONFIG", "SET", name, value]).await.unwrap();
    assert_eq!(reply.brief(), "OK");
}

#[tokio::test(flavor = "multi_thread")]
async fn h15_full_or_read_only_is_waited_for() {
    let (mut lab, workload) = lab("").await;
    for (name, bad, good, text) in
        [("maxmemory", "1mb", "0", "OOM"), ("min-replicas-to-write", "1", "0", "NOREPLICAS")]
    {
        set(&lab, name, bad).await;
        let status = told(&mut lab, text).await;
        assert!(status["error"]["retry_until"].is_string(), "{status}");
        assert_ne!(status["phase"], "failed");
        operations(&workload, 500).await;
        set(&lab, name, good).await;
        let over = |status: &Json| status["error"].is_null() && status["phase"] == "mirroring";
        lab.gateway.wait_until("it goes on", PATIENCE, over).await.unwrap();
    }
    lab.judge(workload).await;
    assert_eq!(lab.source.info("sync_full").await.unwrap(), "1");
}

#[tokio::test(flavor = "multi_thread")]
async fn h15_stopped_dead_is_waited_for() {
    let (mut lab, workload) = lab("").await;
    // From then on it is batches that are not answered, not what is asked before the first of them.
    let applies = |status: &Json| status["mirror"]["commands_applied"].as_u64() > Some(100);
    lab.gateway.wait_until("it applies", PATIENCE, applies).await.unwrap();
    lab.destination.signal("STOP").unwrap();
    let status = told(&mut lab, "has not answered").await;
    assert!(status["error"]["retry_until"].is_string(), "{status}");
    operations(&workload, 500).await;
    lab.destination.signal("CONT").unwrap();
    lab.gateway.wait_phase("mirroring", PATIENCE).await.unwrap();
    lab.judge(workload).await;
    assert_eq!(lab.source.info("sync_full").await.unwrap(), "1");
}

#[tokio::test(flavor = "multi_thread")]
async fn h15_that_comes_back_empty_is_recognised() {
    let (mut lab, workload) = lab("").await;
    lab.expect_log("the mirror has stopped");
    lab.expect_log("the mirror stopped");
    // It keeps nothing on disk.
    lab.destination.restart().await.unwrap();
    let failed = |status: &Json| status["phase"] == "failed";
    let status = lab.gateway.wait_until("the refusal", PATIENCE, failed).await.unwrap();
    let error = &status["error"];
    assert_eq!(error["side"], "destination", "{status}");
    assert!(error["message"].as_str().unwrap().contains("emptied or replaced"), "{status}");
    assert!(error["remedy"].as_str().unwrap().contains("abort"), "{status}");
    operations(&workload, 300).await;
    // Nothing was written there behind its back.
    let keys = lab.destination.call(&["KEYS", "*"]).await.unwrap();
    assert!(keys.items().iter().all(|key| key.brief().starts_with("crossfade:")), "{}", keys.brief());
    let history = workload.stop().await.unwrap();
    let verdict = history.judge(&lab.source.address()).await.unwrap();
    assert!(verdict.is_clean(), "{verdict}");
}

/// When the window is over a person is asked, and what they resume goes on where it was.
#[tokio::test(flavor = "multi_thread")]
async fn h15_a_window_that_is_over_can_be_resumed() {
    let (mut lab, workload) = lab("[retry]\nother = \"2s\"\n").await;
    lab.expect_log("the mirror has stopped");
    lab.expect_log("the mirror stopped");
    set(&lab, "maxmemory", "1mb").await;
    let failed = |status: &Json| status["phase"] == "failed";
    let status = lab.gateway.wait_until("the end of the window", PATIENCE, failed).await.unwrap();
    let error = &status["error"];
    assert!(error["message"].as_str().unwrap().contains("OOM"), "{status}");
    assert!(error["retry_until"].is_null(), "{status}");
    operations(&workload, 300).await;
    set(&lab, "maxmemory", "0").await;
    lab.gateway.order("resume", &serde_json::json!({})).await.unwrap();
    lab.gateway.wait_phase("mirroring", PATIENCE).await.unwrap();
    lab.judge(workload).await;
    assert_eq!(lab.source.info("sync_full").await.unwrap(), "1", "it went on where it was");
}

/// A destination that has much to read when it starts says LOADING until it has, if it says anything.
#[tokio::test(flavor = "multi_thread")]
async fn h15_that_loads_for_long_is_waited_for() {
    let args = ["--appendonly", "yes", "--appendfsync", "no", "--key-load-delay", "400"];
    let config = "[snapshot]\nmethod = \"commands\"\n";
    let mut lab = Setup::new()
        .config(config)
        .destination(&args)
        .destination(&["--loading-process-events-interval-bytes", "1024"])
        .build()
        .await;
    lab.expect_log("the mirror waits");
    lab.expect_log("the mirror goes on");
    fill::fill(&lab.source.address(), 4000, 0).await.unwrap();
    let workload = Workload::start(&Plan { pace: Some(2000), ..Plan::new(lab.gateway.address()) });
    lab.mirror().await;
    operations(&workload, 2000).await;
    let Lab { gateway, destination, .. } = &mut lab;
    let loading = |status: &Json| {
        let error = &status["error"];
        error["side"] == "destination" && error["retry_until"].is_string()
    };
    let (restarted, told) =
        tokio::join!(destination.restart(), gateway.wait_until("that it loads", PATIENCE, loading));
    restarted.unwrap();
    told.unwrap();
    operations(&workload, 500).await;
    lab.gateway.wait_phase("mirroring", PATIENCE).await.unwrap();
    lab.judge(workload).await;
    assert_eq!(lab.source.info("sync_full").await.unwrap(), "1");
}

/// Behind a link that carries less than what is written the mirror falls behind, and the source neither waits nor keeps it.
#[tokio::test(flavor = "multi_thread")]
async fn h15_behind_a_slow_link_only_the_mirror_is_late() {
    let mut lab = Setup::new().proxies().build().await;
    let workload = Workload::start(&Plan { pace: Some(4000), ..Plan::new(lab.gateway.address()) });
    lab.mirror().await;
    let slow = Rules { bytes_per_second: Some(60_000), ..Rules::default() };
    lab.destination_proxy.as_ref().unwrap().rules(Way::Up, slow);
    let behind = |status: &Json| status["mirror"]["lag_ms"].as_f64() > Some(2000.0);
    lab.gateway.wait_until("the lag", PATIENCE, behind).await.unwrap();
    operations(&workload, 4000).await;
    let clients = lab.source.call(&["CLIENT", "LIST"]).await.unwrap();
    let text = String::from_utf8_lossy(clients.bytes().unwrap()).into_owned();
    let held =
        text.lines().filter_map(|line| line.split(" omem=").nth(1)?.split(' ').next()?.parse::<u64>().ok());
    assert!(held.max() < Some(4 << 20), "{text}");
    lab.destination_proxy.as_ref().unwrap().heal();
    lab.judge(workload).await;
    assert_eq!(lab.source.info("sync_full").await.unwrap(), "1");
}

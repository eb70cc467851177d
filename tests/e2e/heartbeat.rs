//! The heartbeat: the lag from end to end, on the side that is active, without a trace at the end.

use serde_json::{Value as Json, json};

use crate::support::proxy::{Rules, Way};
use crate::support::{PATIENCE, Setup, eventually};

/// The gateway's keys on a server.
async fn own_keys(server: &crossfade::cli::demo::servers::Server) -> Vec<String> {
    let found = server.call(&["KEYS", "crossfade:*"]).await.unwrap();
    found.items().iter().map(|key| key.brief()).collect()
}

fn beating(status: &Json) -> bool {
    let mirror = &status["mirror"];
    mirror["lag_from"] == "heartbeat" && mirror["heartbeat_age_ms"].as_f64().is_some_and(|age| age < 3000.0)
}

#[tokio::test(flavor = "multi_thread")]
async fn it_beats_on_the_active_side_and_is_gone_at_the_end() {
    let mut lab = Setup::new().build().await;
    assert_eq!(own_keys(&lab.source).await, [""; 0]);
    lab.mirror().await;
    let status = lab.gateway.wait_until("a beat", PATIENCE, beating).await.unwrap();
    assert!(status["mirror"]["lag_ms"].as_f64().unwrap() < 5000.0, "{status}");
    let [key] = &own_keys(&lab.source).await[..] else { panic!("one key") };
    assert!(key.starts_with("crossfade:heartbeat:"), "{key}");
    let left = lab.source.call(&["PTTL", key]).await.unwrap().number().unwrap();
    assert!((1..=60_000).contains(&left), "{left}");
    assert_eq!(lab.destination.call(&["EXISTS", key]).await.unwrap().number(), Some(0), "never mirrored");
    let (_, metrics) = lab.gateway.get("/metrics").await.unwrap();
    assert!(metrics.contains("crossfade_mirror_heartbeat_age_seconds{"), "{metrics}");

    lab.cutover().await;
    lab.gateway.wait_phase("cut-over", PATIENCE).await.unwrap();
    let last = lab.source.call(&["GET", key]).await.unwrap().brief();
    lab.gateway.wait_until("a beat on the other side", PATIENCE, beating).await.unwrap();
    let there = lab.destination.call(&["GET", key]).await.unwrap().brief();
    assert!(there.parse::<u64>().unwrap() > last.parse().unwrap(), "{there} {last}");
    assert_eq!(lab.source.call(&["GET", key]).await.unwrap().brief(), last, "no more beats here");
    lab.same().await;

    lab.rollback().await;
    eventually("beats on the source again", async || {
        let now = lab.source.call(&["GET", key]).await.unwrap().brief();
        now.parse::<u64>().is_ok_and(|now| now > there.parse().unwrap())
    })
    .await;
    lab.gateway.order("finish", &json!({})).await.unwrap();
    lab.gateway.wait_phase("finished", PATIENCE).await.unwrap();
    for server in [&lab.source, &lab.destination] {
        assert_eq!(own_keys(server).await, [""; 0]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_stream_that_has_stopped_shows_as_a_lag_that_grows() {
    let mut lab = Setup::new().proxies().build().await;
    lab.expect_log("");
    lab.mirror().await;
    lab.gateway.wait_until("a beat", PATIENCE, beating).await.unwrap();
    let proxy = lab.source_proxy.as_ref().unwrap();
    // Nobody writes, and no connection is lost: by the offsets the mirror is in step.
    proxy.rules(Way::Down, Rules { black_hole: true, ..Rules::default() });
    let growing = |status: &Json| status["mirror"]["lag_ms"].as_f64() > Some(2500.0);
    let status = lab.gateway.wait_until("a lag that grows", PATIENCE, growing).await.unwrap();
    assert!(status["mirror"]["heartbeat_age_ms"].as_f64() > Some(2000.0), "{status}");
    assert_eq!(status["mirror"]["lag_bytes"], 0, "{status}");
    proxy.heal();
    let well = |status: &Json| beating(status) && status["mirror"]["lag_ms"].as_f64() < Some(1000.0);
    lab.gateway.wait_until("in step again", PATIENCE, well).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_right_to_write_offsets_serve() {
    let narrow = ["--user", "default", "on", "nopass", "~app:*", "&*", "+@all"];
    let mut lab = Setup::new().source(&narrow).build().await;
    lab.mirror().await;
    eventually("it says so", async || lab.gateway.log().contains("the heartbeat cannot be written")).await;
    lab.source.call(&["SET", "app:1", "1"]).await.unwrap();
    lab.in_step().await;
    let status = lab.gateway.status().await.unwrap();
    assert_eq!(status["mirror"]["lag_from"], "stream", "{status}");
    assert!(status["mirror"]["heartbeat_age_ms"].is_null() && status["error"].is_null(), "{status}");
}

//! H39: a cutover is refused, with the reason, when it would not be safe; and a broken stream never looks caught up.

use serde_json::{Value as Json, json};

use crate::support::{Lab, PATIENCE, Setup, eventually};

/// The answer to a cutover that must not happen, as text.
async fn refused(lab: &Lab) -> String {
    let (code, answer) = lab.gateway.post("/v1/cutover", &json!({})).await.unwrap();
    let refused = code >= 400 || answer["outcome"] == "aborted";
    assert!(refused, "HTTP {code}: {answer}");
    let status = lab.gateway.status().await.unwrap();
    assert_eq!(status["active"], "source", "{status}");
    answer.to_string()
}

async fn refused_because(lab: &Lab, words: &[&str]) {
    let answer = refused(lab).await;
    let lower = answer.to_lowercase();
    assert!(words.iter().any(|word| lower.contains(word)), "none of {words:?} in: {answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn h39_before_the_copy_and_during_the_snapshot() {
    // By commands: as a replica the destination would load past the proxy.
    let mut lab = Setup::new().config("[snapshot]\nmethod = \"commands\"\n").proxies().build().await;
    lab.expect_log("");
    refused_because(&lab, &["start", "forwarding", "not mirroring"]).await;
    crossfade::cli::demo::fill::fill(&lab.source.address(), 20_000, 0).await.unwrap();
    let slow = crate::support::proxy::Rules { bytes_per_second: Some(200_000), ..Default::default() };
    lab.destination_proxy.as_ref().unwrap().rules(crate::support::proxy::Way::Up, slow);
    lab.gateway.begin().await.unwrap();
    lab.gateway.wait_until("snapshot", PATIENCE, |status| status["phase"] == "snapshot").await.unwrap();
    refused_because(&lab, &["snapshot"]).await;
    lab.destination_proxy.as_ref().unwrap().heal();
    lab.gateway.wait_phase("mirroring", PATIENCE).await.unwrap();
    lab.cutover().await;
    lab.same().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn h39_a_destination_that_is_not_fit() {
    let mut lab = Setup::new().build().await;
    lab.expect_log("");
    lab.mirror().await;
    lab.destination
        .call(&["CONFIG", "SET", "maxmemory", "100mb", "maxmemory-policy", "allkeys-lru"])
        .await
        .unwrap();
    refused_because(&lab, &["evict"]).await;
    lab.destination
        .call(&["CONFIG", "SET", "maxmemory", "0", "maxmemory-policy", "noeviction"])
        .await
        .unwrap();
    // read-only: nothing may be written without enough replicas
    lab.destination.call(&["CONFIG", "SET", "min-replicas-to-write", "1"]).await.unwrap();
    refused_because(&lab, &["noreplicas", "refuse", "write"]).await;
    lab.destination.call(&["CONFIG", "SET", "min-replicas-to-write", "0"]).await.unwrap();
    eventually("the mirror is well again", async || {
        let status = lab.gateway.status().await.unwrap();
        status["phase"] == "mirroring" && status["error"].is_null()
    })
    .await;
    // somebody else writes there
    let mut stranger = lab.destination.connect().await.unwrap();
    stranger.must(&["SET", "foreign", "1"]).await.unwrap();
    refused_because(&lab, &["writ", "foreign", "somebody"]).await;
    drop(stranger);
}

#[tokio::test(flavor = "multi_thread")]
async fn h39_a_destination_that_became_a_replica() {
    let mut lab = Setup::new().build().await;
    lab.expect_log("");
    lab.mirror().await;
    lab.destination.call(&["REPLICAOF", "127.0.0.1", "1"]).await.unwrap();
    refused_because(&lab, &["replica", "readonly", "read-only"]).await;
    lab.destination.call(&["REPLICAOF", "NO", "ONE"]).await.unwrap();
    lab.gateway
        .wait_until("well again", PATIENCE, |status: &Json| {
            status["phase"] == "mirroring" && status["error"].is_null()
        })
        .await
        .unwrap();
    lab.cutover().await;
    lab.same().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn h39_differences_that_a_verification_found() {
    let mut lab = Setup::new().build().await;
    lab.expect_log("");
    lab.source.call(&["SET", "k", "right"]).await.unwrap();
    lab.mirror().await;
    lab.destination.call(&["SET", "k", "wrong"]).await.unwrap();
    let (code, report) = lab.gateway.post("/v1/verify", &json!({"rounds": 1})).await.unwrap();
    assert_eq!((code, &report["difference_count"]), (200, &json!(1)), "{report}");
    refused_because(&lab, &["differ"]).await;
    lab.source.call(&["SET", "k", "right again"]).await.unwrap();
    lab.in_step().await;
    let (_, report) = lab.gateway.post("/v1/verify", &json!({})).await.unwrap();
    assert_eq!(report["difference_count"], 0, "{report}");
    lab.cutover().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn h39_lag_and_a_broken_stream() {
    let mut lab = Setup::new().proxies().build().await;
    lab.expect_log("");
    lab.mirror().await;
    let (code, answer) = lab.gateway.post("/v1/pause", &json!({})).await.unwrap();
    assert_eq!(code, 200, "{answer}");
    lab.source.call(&["SET", "late", "1"]).await.unwrap();
    refused_because(&lab, &["paused", "lag", "behind"]).await;
    lab.gateway.post("/v1/resume", &json!({})).await.unwrap();
    lab.gateway.wait_phase("mirroring", PATIENCE).await.unwrap();
    // the link to the source is gone: no lag can be seen, and that is not "no lag"
    let proxy = lab.source_proxy.as_ref().unwrap();
    proxy.refuse(true);
    proxy.cut();
    lab.source.call(&["SET", "unseen", "1"]).await.unwrap();
    refused_because(&lab, &["link", "stream", "connect", "source", "lost"]).await;
    proxy.heal();
    lab.in_step().await;
    lab.cutover().await;
    lab.same().await;
}

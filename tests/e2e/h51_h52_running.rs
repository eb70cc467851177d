//! H51: the gateway ends when it is told to, with clients busy, and goes on where it was. H52: two gateways do not share
//! a state directory or a destination.

use std::process::Command;
use std::time::Duration;

use crossfade::cli::demo::gateway::{Gateway, GatewayOptions};
use crossfade::cli::demo::workload::{Plan, Workload};
use serde_json::json;

use crate::support::{EXE, PATIENCE, Setup, operations};

#[tokio::test(flavor = "multi_thread")]
async fn h51_sigterm_drains_and_a_restart_goes_on_where_it_was() {
    let mut lab = Setup::new().build().await;
    lab.expect_log("");
    let workload = Workload::start(&Plan { pace: Some(3000), ..Plan::new(lab.gateway.address()).tolerant() });
    lab.mirror().await;
    for (phase, side) in [("mirroring", "source"), ("cut-over", "destination"), ("mirroring", "source")] {
        operations(&workload, 500).await;
        // the reverse feed of a switch attaches by a full sync of its own, whose snapshot is thrown away
        let syncs =
            [lab.source.info("sync_full").await.unwrap(), lab.destination.info("sync_full").await.unwrap()];
        lab.gateway.signal("TERM").unwrap();
        let status = lab.gateway.wait_exit(Duration::from_secs(20)).await.unwrap();
        assert_eq!(status.code(), Some(0), "exit status after SIGTERM");
        lab.gateway.restart().await.unwrap();
        let after = lab.gateway.wait_phase(phase, PATIENCE).await.unwrap();
        assert_eq!(after["active"], side, "{after}");
        operations(&workload, 500).await;
        lab.in_step().await;
        let now =
            [lab.source.info("sync_full").await.unwrap(), lab.destination.info("sync_full").await.unwrap()];
        assert_eq!(now, syncs, "the restart needed no full sync");
        if phase == "mirroring" && after["epoch"] == 0 {
            lab.cutover().await;
        } else if phase == "cut-over" {
            lab.rollback().await;
        }
    }
    lab.judge(workload).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn h52_a_second_gateway_with_the_same_state_directory_refuses_and_says_who_holds_it() {
    let lab = Setup::new().build().await;
    let state = lab.path().join("gateway/state");
    let output = Command::new(EXE)
        .args(["run", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"])
        .args(["--source", &lab.source.url(), "--destination", &lab.destination.url()])
        .arg("--state-dir")
        .arg(&state)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains(&lab.gateway.pid().to_string()), "it names the process that holds it: {text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn h52_a_second_gateway_for_the_same_destination_refuses_and_says_who_holds_it() {
    let mut lab = Setup::new().build().await;
    lab.mirror().await;
    let dir = tempfile::tempdir().unwrap();
    let options = GatewayOptions::new(EXE, dir.path(), &lab.source.url(), &lab.destination.url());
    let second = Gateway::start(options).await.unwrap();
    let (code, answer) = second.post("/v1/start", &json!({})).await.unwrap();
    assert!(code >= 400, "{answer}");
    assert!(answer.to_string().contains(&lab.gateway.pid().to_string()), "it names the holder: {answer}");
    drop(second);
    // the first goes on undisturbed
    lab.source.call(&["SET", "k", "1"]).await.unwrap();
    lab.same().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_commands_of_a_migration_from_the_shell() {
    let lab = Setup::new().build().await;
    let admin = lab.gateway.admin();
    let call = |args: &[&str]| {
        let output = Command::new(EXE).args(args).args(["--admin", &admin, "--json"]).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let json: serde_json::Value = serde_json::from_str(&text).unwrap_or_else(|error| {
            panic!("{args:?}: {error}: {text}{}", String::from_utf8_lossy(&output.stderr))
        });
        (output.status.code().unwrap(), json)
    };
    assert_eq!(call(&["status"]).1["phase"], "forwarding");
    assert_eq!(call(&["cutover"]).0, 1, "refused: nothing is mirrored");
    assert_eq!(call(&["start"]).0, 0);
    let (code, status) = call(&["status", "--wait", "mirroring", "--timeout", "30s"]);
    assert_eq!((code, &status["phase"]), (0, &json!("mirroring")));
    let (code, entry) = call(&["cutover"]);
    assert_eq!((code, &entry["outcome"], &entry["kind"]), (0, &json!("committed"), &json!("cutover")));
    assert_eq!(call(&["status"]).1["phase"], "cut-over");
    let (code, entry) = call(&["rollback"]);
    assert_eq!((code, &entry["outcome"], &entry["kind"]), (0, &json!("committed"), &json!("rollback")));
    assert_eq!(call(&["cutover"]).0, 0);
    assert_eq!(call(&["finish"]).0, 0);
    let status = call(&["status"]).1;
    assert_eq!((&status["phase"], &status["active"]), (&json!("finished"), &json!("destination")));
    for server in [&lab.source, &lab.destination] {
        let keys = server.call(&["KEYS", "crossfade:*"]).await.unwrap();
        assert!(keys.items().is_empty(), "finish removes the gateway's keys: {keys:?}");
    }
}

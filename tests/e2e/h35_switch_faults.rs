//! H35: the switch meets a fault at every step. Afterwards exactly one side is active, the same that the status names,
//! nothing acknowledged is lost, and the switch was wholly done or not at all.

use std::time::{Duration, Instant};

use crossfade::cli::demo::workload::{Plan, Workload};
use serde_json::json;

use crate::support::{Lab, PATIENCE, Setup, operations};

const STEPS: [&str; 9] = [
    "prepare",
    "close_gate",
    "drain_clients",
    "fence",
    "drain_mirror",
    "before_commit",
    "after_commit",
    "open_gate",
    "release",
];

fn settled(status: &serde_json::Value) -> bool {
    matches!(status["phase"].as_str(), Some("mirroring" | "cut-over"))
}

/// Writes through the gateway and finds the write on the active side, and, mirrored, on the other.
async fn one_side_is_active(lab: &mut Lab, mark: &str) {
    let mut client =
        crossfade::cli::demo::connection::Connection::open(&lab.gateway.address()).await.unwrap();
    client.must(&["SET", "mark", mark]).await.unwrap();
    let (active, _) = lab.active().await;
    let held = active.call(&["GET", "mark"]).await.unwrap();
    assert_eq!(held.bytes(), Some(mark.as_bytes()), "clients are on the side that the status names");
    lab.in_step().await;
    let (_, passive) = lab.active().await;
    assert_eq!(passive.call(&["GET", "mark"]).await.unwrap().bytes(), Some(mark.as_bytes()));
}

#[tokio::test(flavor = "multi_thread")]
async fn h35_the_gateway_dies_at_each_step() {
    let mut lab = Setup::new().build().await;
    lab.expect_log("");
    let workload = Workload::start(&Plan { pace: Some(2000), ..Plan::new(lab.gateway.address()).tolerant() });
    lab.mirror().await;
    let mut epoch = 0;
    for step in STEPS {
        for _ in 0..2 {
            // once on the way there, once on the way back, wherever the clients are now
            let before = lab.gateway.status().await.unwrap();
            let order = if before["active"] == "source" { "cutover" } else { "rollback" };
            lab.gateway.options().env = vec![("CROSSFADE_FAILPOINT".into(), step.into())];
            lab.gateway.restart().await.unwrap();
            lab.gateway.wait_until("settled", PATIENCE, settled).await.unwrap();
            operations(&workload, 300).await;
            let answer = lab.gateway.post(&format!("/v1/{order}"), &json!({})).await;
            let died = lab.gateway.wait_exit(Duration::from_secs(20)).await;
            assert!(died.is_ok(), "{order} at {step}: still alive; the answer was {answer:?}");
            lab.gateway.options().env.clear();
            lab.gateway.restart().await.unwrap();
            let after = lab.gateway.wait_until("settled", PATIENCE, settled).await.unwrap();
            let committed = matches!(step, "after_commit" | "open_gate" | "release");
            epoch += u64::from(committed);
            assert_eq!(after["epoch"], epoch, "{order} at {step}: {after}");
            assert_eq!(after["active"] != before["active"], committed, "{order} at {step}: {after}");
            operations(&workload, 300).await;
            one_side_is_active(&mut lab, &format!("{order} {step}")).await;
            if !committed {
                // the same switch, undisturbed
                if order == "cutover" {
                    lab.cutover().await
                } else {
                    lab.rollback().await
                };
                epoch += 1;
            }
        }
    }
    operations(&workload, 500).await;
    lab.judge(workload).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn h35_a_stopped_destination_makes_the_switch_abort_in_time_and_clients_go_on() {
    let mut lab = Setup::new().build().await;
    lab.expect_log("");
    let workload = Workload::start(&Plan { pace: Some(3000), ..Plan::new(lab.gateway.address()) });
    lab.mirror().await;
    let nothing = json!({});
    for delay_ms in [0, 3, 8, 20] {
        operations(&workload, 500).await;
        let began = Instant::now();
        let ((), answer) = tokio::join!(
            async {
                tokio::time::sleep(Duration::from_millis(delay_ms)).await;
                lab.destination.signal("STOP").unwrap();
            },
            lab.gateway.post("/v1/cutover", &nothing)
        );
        let (code, answer) = answer.unwrap();
        assert!(began.elapsed() < Duration::from_secs(30), "{:?}", began.elapsed());
        let done = answer["outcome"] == "committed";
        if !done {
            // refused, or aborted with a reason; the source serves
            assert!(code >= 400 || !answer["reason"].is_null(), "{code} {answer}");
            operations(&workload, 500).await;
        }
        lab.destination.signal("CONT").unwrap();
        lab.gateway.wait_until("settled", PATIENCE, settled).await.unwrap();
        let status = lab.gateway.status().await.unwrap();
        assert_eq!(status["active"] == "destination", done, "{status}");
        operations(&workload, 500).await;
        if done {
            lab.rollback().await;
        }
    }
    lab.cutover().await;
    operations(&workload, 1000).await;
    lab.judge(workload).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn h35_the_destination_dies_during_the_switch() {
    let mut lab = Setup::new().destination(&["--appendonly", "yes"]).build().await;
    lab.expect_log("");
    let workload = Workload::start(&Plan { pace: Some(2000), ..Plan::new(lab.gateway.address()).tolerant() });
    lab.mirror().await;
    let nothing = json!({});
    for delay_ms in [1, 4, 8, 14, 25, 50] {
        operations(&workload, 300).await;
        let (gateway, destination) = (&lab.gateway, &mut lab.destination);
        let (_, answer) = tokio::join!(
            async {
                tokio::time::sleep(Duration::from_millis(delay_ms)).await;
                destination.kill();
            },
            gateway.post("/v1/cutover", &nothing)
        );
        lab.destination.restart().await.unwrap();
        let status = lab.gateway.wait_until("settled", PATIENCE, settled).await.unwrap();
        operations(&workload, 300).await;
        one_side_is_active(&mut lab, &format!("after {delay_ms} ms")).await;
        if let Ok((_, answer)) = answer {
            assert_eq!(
                answer["outcome"] == "committed",
                status["active"] == "destination",
                "{answer} {status}"
            );
        }
        if status["active"] == "destination" {
            lab.rollback().await;
        }
    }
    lab.judge(workload).await;
}

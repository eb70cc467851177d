//! H35: the switch meets a fault at every step. Afterwards exactly one side is active, the same that the status names,
//! nothing acknowledged is lost, and the switch was wholly done or not at all.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crossfade::cli::demo::servers::Server;
use crossfade::cli::demo::workload::{Plan, Workload};
use serde_json::json;

use crate::support::proxy::{Proxy, Rules, Way};
use crate::support::{Lab, PATIENCE, Setup, Stops, eventually, operations};

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
async fn one_side_is_active(lab: &Lab, mark: &str) {
    let mut client =
        crossfade::cli::demo::connection::Connection::open(&lab.gateway.address()).await.unwrap();
    client.must(&["SET", "mark", mark]).await.unwrap();
    let (active, _) = lab.active().await;
    let held = active.call(&["GET", "mark"]).await.unwrap();
    assert_eq!(held.bytes(), Some(mark.as_bytes()), "clients are on the side that the status names");
    // Not by offsets: those of a server that was restarted begin anew.
    let (_, passive) = lab.active().await;
    eventually(&format!("the mirror brings: {mark}"), async || {
        passive.call(&["GET", "mark"]).await.is_ok_and(|held| held.bytes() == Some(mark.as_bytes()))
    })
    .await;
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
            one_side_is_active(&lab, &format!("{order} {step}")).await;
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

/// What happens to a server while a switch stands at a step. The new side is the one that clients are switched to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    NewDies,
    OldDies,
    /// Nothing passes any more, in neither direction; connections stay.
    NewOutOfReach,
}

impl Fault {
    /// How a switch ends that meets it at a step; `None`: either way is right.
    fn commits(self, step: &str) -> Option<bool> {
        match step {
            "after_commit" | "open_gate" | "release" => Some(true),
            // The new side has everything, but a sign of life is missing before the commit. The old side is not asked any more.
            "drain_mirror" | "before_commit" => Some(self == Self::OldDies),
            // It may have everything already.
            "fence" if self == Self::OldDies => None,
            _ => Some(false),
        }
    }

    fn strikes(self, ends: &mut Ends<'_>) {
        match self {
            Self::NewDies => ends.new.kill(),
            Self::OldDies => ends.old.kill(),
            Self::NewOutOfReach => {
                let proxy = ends.proxy.unwrap();
                proxy.rules(Way::Up, Rules { black_hole: true, ..Rules::default() });
                proxy.rules(Way::Down, Rules { black_hole: true, ..Rules::default() });
            }
        }
    }

    async fn passes(self, ends: &mut Ends<'_>) {
        match self {
            Self::NewDies => ends.new.restart().await.unwrap(),
            Self::OldDies => ends.old.restart().await.unwrap(),
            Self::NewOutOfReach => ends.proxy.unwrap().heal(),
        }
    }
}

/// The servers of a switch, and the proxy before the new one.
struct Ends<'a> {
    old: &'a mut Server,
    new: &'a mut Server,
    proxy: Option<&'a Proxy>,
}

/// What the new side has said less than 2 ms ago counts as a sign of life. What it said before the fault is older than this.
const NO_SIGN: Duration = Duration::from_millis(3);

/// The fault strikes when a switch stands at each of its steps, on the way there and on the way back. Then: committed, or
/// on the old side; clients go on wherever they can; nothing acknowledged is lost.
async fn strikes_at_each_step(fault: Fault, turns: usize) {
    let stops = Stops::new();
    // Synced before each answer: otherwise a server that dies may lose what it has acknowledged.
    let setup = stops.of(Setup::new().durable());
    let setup = if fault == Fault::NewOutOfReach { setup.proxies() } else { setup };
    let mut lab = setup.build().await;
    lab.expect_log("");
    // A timeout at a server that is out of reach ends late, and pairs would call that wrong: there are none below 12 clients.
    let clients = if fault == Fault::NewOutOfReach { 11 } else { 32 };
    let plan = Plan { pace: Some(1000), clients, ..Plan::new(lab.gateway.address()).tolerant() };
    let workload = Workload::start(&plan);
    lab.mirror().await;
    let (mut epoch, patient) = (0, json!({"max_pause": "3s"}));
    for step in STEPS {
        for turn in 0..turns {
            operations(&workload, 200).await;
            let before = lab.gateway.wait_until("settled", PATIENCE, settled).await.unwrap();
            let there = before["active"] == "source";
            let order = if there { "cutover" } else { "rollback" };
            let (from, to) = if there { ("source", "destination") } else { ("destination", "source") };
            let what = format!("{order} at {step}, {fault:?}");
            stops.arm(&[step]);
            let Lab { gateway, source, destination, source_proxy, destination_proxy, .. } = &mut lab;
            let mut ends = if there {
                Ends { old: source, new: destination, proxy: destination_proxy.as_ref() }
            } else {
                Ends { old: destination, new: source, proxy: source_proxy.as_ref() }
            };
            let begun = Instant::now();
            let (answer, took) = loop {
                let answered = AtomicBool::new(false);
                let switching = async {
                    let answer = gateway.post(&format!("/v1/{order}"), &patient).await;
                    answered.store(true, Ordering::Relaxed);
                    answer.unwrap().1
                };
                let striking = stops.at_unless(&answered, step, async || {
                    fault.strikes(&mut ends);
                    tokio::time::sleep(NO_SIGN).await;
                    Instant::now()
                });
                match tokio::join!(switching, striking) {
                    (answer, Some(struck)) => break (answer, struck.elapsed()),
                    // A busy machine does not get that far: the mirror lags too much, the pause is too short.
                    (answer, None) => assert!(begun.elapsed() < PATIENCE, "{what}: {answer}"),
                }
            };
            let committed = answer["outcome"] == "committed";
            eprintln!("{what}: {} after {took:.1?}: {}", answer["outcome"], answer["reason"]);
            if let Some(commits) = fault.commits(step) {
                assert_eq!(committed, commits, "{what}: {answer}");
            }
            assert!(committed || answer["outcome"] == "aborted" && !answer["reason"].is_null(), "{answer}");
            assert!(answer["pause_ms"].as_f64().unwrap() < 5000.0, "the budget of 3 s: {answer}");
            if !committed {
                // Nobody waits for the new side any longer than the pause may last; for the old side not at all.
                let most = if fault == Fault::OldDies { 2000 } else { 3800 };
                assert!(took < Duration::from_millis(most), "{what}: {took:?}: {answer}");
                let reason = answer["reason"].as_str().unwrap_or_default();
                let side = if fault == Fault::OldDies { from } else { to };
                assert!(reason.starts_with("at ") && reason.contains(side), "{what}: {answer}");
            }
            // Where the active side is not the one that is gone, clients go on at once.
            if committed == (fault == Fault::OldDies) {
                operations(&workload, 200).await;
            }
            fault.passes(&mut ends).await;
            let after = lab.gateway.wait_until("settled", PATIENCE, settled).await.unwrap();
            epoch += u64::from(committed);
            assert_eq!(after["epoch"], epoch, "{what}: {after}");
            assert_eq!(after["active"] != before["active"], committed, "{what}: {after}");
            operations(&workload, 200).await;
            one_side_is_active(&lab, &format!("{what} {turn}")).await;
            if !committed {
                // The same switch, undisturbed: the next one goes the other way. A server that came back may be copied anew.
                lab.gateway.wait_until("settled", PATIENCE, settled).await.unwrap();
                eventually(order, async || {
                    let (_, answer) = lab.gateway.post(&format!("/v1/{order}"), &patient).await.unwrap();
                    answer["outcome"] == "committed"
                })
                .await;
                epoch += 1;
            }
        }
    }
    operations(&workload, 500).await;
    lab.judge(workload).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn h35_the_new_side_dies_at_each_step() {
    strikes_at_each_step(Fault::NewDies, 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn h35_the_old_side_dies_at_each_step() {
    strikes_at_each_step(Fault::OldDies, 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn h35_the_new_side_is_out_of_reach_at_each_step() {
    strikes_at_each_step(Fault::NewOutOfReach, 1).await;
}

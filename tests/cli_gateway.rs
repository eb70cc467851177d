//! The command line against the control API, with a migration that answers as told: what people read, what scripts
//! read, and the exit status.

#![allow(clippy::unwrap_used)] // helpers of tests are tests, too

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use assert_cmd::Command;
use crossfade::admin::{Admin, Answer, Control, Order};
use crossfade::config::{self, Sources};
use crossfade::migration::status::{Phase, Status, SwitchEntry, SwitchKind, SwitchOutcome, SwitchRequest};
use crossfade::mirror::ThrottleRequest;
use crossfade::{Error, Side};
use serde_json::{Value as Json, json};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

struct Script {
    status: watch::Sender<Status>,
    /// How often somebody asked for it.
    watched: AtomicU64,
    orders: Mutex<Vec<Order>>,
    outcome: Mutex<SwitchOutcome>,
}

impl Control for Script {
    fn watch(&self) -> watch::Receiver<Status> {
        self.watched.fetch_add(1, Ordering::Relaxed);
        self.status.subscribe()
    }

    fn order(&self, order: Order) -> Answer {
        self.orders.lock().unwrap().push(order.clone());
        let outcome = *self.outcome.lock().unwrap();
        let status = self.status.borrow().clone();
        Box::pin(async move {
            match order {
                Order::Resume(_) => {
                    Err(Error::new(Side::Gateway, "nothing is paused").remedy("see `crossfade status`"))
                }
                Order::Start => Err(Error::passing(Side::Destination, "cannot connect to 10.0.0.9:6379")),
                Order::Switch(kind, SwitchRequest { dry_run: true, .. }) => Ok(json!({
                    "kind": kind, "postponed": false, "verdict": "refused", "reasons": ["the mirror is 3 s behind"],
                    "findings": [], "steps": ["close the gate"], "max_pause_ms": 500.0})),
                Order::Switch(kind, _) => Ok(serde_json::to_value(SwitchEntry {
                    kind,
                    outcome,
                    reason: (outcome == SwitchOutcome::Aborted).then(|| "GET of client 7 did not end".into()),
                    epoch: 1,
                    pause_ms: 8.5,
                    held_commands: 160,
                    max_hold_ms: 7.9,
                    steps_ms: Default::default(),
                    at: None,
                })
                .unwrap()),
                Order::Verify(_) => {
                    Ok(json!({"keys_a": 10, "keys_b": 9, "compared": 10, "difference_count": 1,
                    "differences": [{"db": 0, "key": "a", "kind": "missing-on-b", "what": "missing"}], "seconds": 0.1}))
                }
                Order::Throttle(_) => Ok(json!({"mirror_ops": "500/s", "snapshot_bytes": "off"})),
                _ => Ok(serde_json::to_value(status).unwrap()),
            }
        })
    }
}

struct Gateway {
    script: Arc<Script>,
    address: String,
    closed: CancellationToken,
    _runtime: tokio::runtime::Runtime,
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.closed.cancel();
    }
}

fn gateway(token: Option<&str>) -> Gateway {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let config = config::load(&Sources {
        source: Some("redis://127.0.0.1:1".into()),
        admin: Some("127.0.0.1:0".into()),
        token: token.map(str::to_owned),
        ..Sources::default()
    })
    .unwrap();
    let admin = runtime.block_on(Admin::bind(&config)).unwrap();
    let address = admin.address().to_string();
    let status = Status {
        name: "orders".into(),
        version: "0.0.0".into(),
        phase: Phase::Mirroring,
        rollback_safe: true,
        ..Status::default()
    };
    let script = Arc::new(Script {
        status: watch::Sender::new(status),
        watched: AtomicU64::new(0),
        orders: Mutex::default(),
        outcome: Mutex::new(SwitchOutcome::Committed),
    });
    let closed = CancellationToken::new();
    runtime.spawn(admin.serve(script.clone(), closed.clone()));
    Gateway { script, address, closed, _runtime: runtime }
}

impl Gateway {
    fn run(&self, args: &[&str]) -> (i32, String, String) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_crossfade"));
        command.args(args).env("CROSSFADE_ADMIN", &self.address).env_remove("CROSSFADE_ADMIN_TOKEN");
        let output = command.timeout(Duration::from_secs(30)).output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (output.status.code().unwrap_or(-1), text(output.stdout), text(output.stderr))
    }

    fn json(&self, args: &[&str]) -> (i32, Json) {
        let (code, out, _) = self.run(&[args, &["--json"]].concat());
        (code, serde_json::from_str(&out).unwrap_or_else(|error| panic!("{args:?}: {error} in {out:?}")))
    }
}

#[test]
fn status_for_people_and_for_scripts() {
    let gateway = gateway(None);
    let (code, out, error) = gateway.run(&["status"]);
    assert_eq!((code, error.as_str()), (0, ""));
    insta::assert_snapshot!(out, @r"
    orders, gateway 0.0.0
      phase    mirroring - the destination holds everything and is kept in step
      active   source (epoch 0)
      clients  0 connected, 0 pinned
      traffic  0 commands, 0/s, 0 errors
      mirror   source → destination, 0.00 ms behind (without a heartbeat, 0 B); 0 commands applied, 0 conflicts

    Next: `crossfade cutover --dry-run` shows the plan, `crossfade cutover` switches.
    ");
    let (code, document) = gateway.json(&["status"]);
    assert_eq!((code, &document["phase"], &document["active"]), (0, &json!("mirroring"), &json!("source")));
}

#[test]
fn waiting_for_a_phase() {
    let gateway = gateway(None);
    assert_eq!(gateway.run(&["status", "--wait", "mirroring"]).0, 0);
    let (code, _, error) = gateway.run(&["status", "--wait", "cut-over", "--timeout", "300ms"]);
    assert!(code == 1 && error.contains("still in phase mirroring"), "{error}");
    let script = gateway.script.clone();
    let asked = script.watched.load(Ordering::Relaxed);
    let later = std::thread::spawn(move || {
        // Once it has been told the phase of now, and waits.
        while script.watched.load(Ordering::Relaxed) == asked {
            std::thread::sleep(Duration::from_millis(1));
        }
        script.status.send_modify(|status| status.phase = Phase::CutOver);
    });
    let (code, document) = gateway.json(&["status", "--wait", "cut-over", "--timeout", "20s"]);
    assert_eq!((code, &document["phase"]), (0, &json!("cut-over")));
    later.join().unwrap();
    gateway.script.status.send_modify(|status| status.phase = Phase::Failed);
    let (code, document) = gateway.json(&["status", "--wait", "mirroring"]);
    assert!(code == 1 && document["error"]["message"].as_str().unwrap().contains("failed"), "{document}");
}

#[test]
fn a_switch_prints_its_entry() {
    let gateway = gateway(None);
    let (code, entry) = gateway.json(&["cutover", "--max-pause", "250ms"]);
    assert_eq!((code, &entry["kind"], &entry["outcome"]), (0, &json!("cutover"), &json!("committed")));
    assert!(entry["steps_ms"]["drain_mirror"].is_number() && entry["held_commands"] == 160, "{entry}");
    let asked = SwitchRequest { max_pause: Some(Duration::from_millis(250)), ..SwitchRequest::default() };
    assert_eq!(
        gateway.script.orders.lock().unwrap().last(),
        Some(&Order::Switch(SwitchKind::Cutover, asked))
    );
    let (code, out, _) = gateway.run(&["cutover"]);
    assert_eq!(code, 0);
    insta::assert_snapshot!(out, @r"
    Done: clients are on the destination (epoch 1).
      The pause took 8.50 ms; 160 commands were held, none for more than 7.90 ms.
      prepare        0.00 ms
      close gate     0.00 ms
      drain clients  0.00 ms
      fence          0.00 ms
      drain mirror   0.00 ms
      commit         0.00 ms
      open gate      0.00 ms

    Next: `crossfade finish` ends the migration; `crossfade rollback` switches back.
    ");
}

#[test]
fn an_aborted_switch_is_exit_1_and_says_why() {
    let gateway = gateway(None);
    *gateway.script.outcome.lock().unwrap() = SwitchOutcome::Aborted;
    let (code, entry) = gateway.json(&["rollback"]);
    assert_eq!((code, &entry["outcome"]), (1, &json!("aborted")));
    let (code, out, _) = gateway.run(&["rollback"]);
    assert!(code == 1 && out.contains("why: GET of client 7 did not end"), "{out}");
}

#[test]
fn a_dry_run_that_is_refused() {
    let gateway = gateway(None);
    let (code, out, _) = gateway.run(&["cutover", "--dry-run"]);
    assert_eq!(code, 1);
    insta::assert_snapshot!(out, @r"
    Refused: a cutover cannot begin like this.
      - the mirror is 3 s behind

    The steps:
      1. close the gate

    If clients would be held for more than 500 ms, it is undone.
    ");
    let (code, plan) = gateway.json(&["cutover", "--dry-run"]);
    assert_eq!((code, &plan["verdict"]), (1, &json!("refused")));
}

#[test]
fn refusals_and_servers_that_are_away() {
    let gateway = gateway(None);
    let (code, out, error) = gateway.run(&["resume"]);
    assert_eq!((code, out.as_str()), (1, ""));
    insta::assert_snapshot!(error, @r"
    crossfade: gateway: nothing is paused
      what to do: see `crossfade status`
    ");
    let (code, document) = gateway.json(&["start"]);
    assert_eq!((code, &document["error"]["side"]), (3, &json!("destination")));
}

#[test]
fn limits_are_sent_and_shown() {
    let gateway = gateway(None);
    let args = ["throttle", "--mirror-ops", "500/s", "--snapshot-bytes", "off"];
    let (code, out, _) = gateway.run(&args);
    assert_eq!((code, out.trim()), (0, "In force: mirror_ops 500/s, snapshot_bytes off."));
    let asked = ThrottleRequest {
        mirror_ops: Some(Some(500)),
        snapshot_bytes: Some(None),
        ..ThrottleRequest::default()
    };
    assert_eq!(gateway.script.orders.lock().unwrap().as_slice(), [Order::Throttle(asked)]);
}

#[test]
fn orders_without_arguments() {
    let gateway = gateway(None);
    for name in ["pause", "finish", "abort"] {
        let (code, document) = gateway.json(&[name]);
        assert_eq!((code, &document["name"]), (0, &json!("orders")), "{name}");
        let (code, out, _) = gateway.run(&[name]);
        assert!(code == 0 && !out.is_empty(), "{name}");
    }
    let orders = gateway.script.orders.lock().unwrap();
    assert_eq!(
        *orders,
        [Order::Pause, Order::Pause, Order::Finish, Order::Finish, Order::Abort, Order::Abort]
    );
}

#[test]
fn a_comparison_with_differences_is_exit_1() {
    let gateway = gateway(None);
    let (code, report) = gateway.json(&["verify", "--sample", "10"]);
    assert_eq!((code, &report["difference_count"]), (1, &json!(1)));
    let (code, out, _) = gateway.run(&["verify"]);
    assert!(code == 1 && out.contains("1 DIFFER") && out.contains("db0 a: missing"), "{out}");
}

#[test]
fn the_token_is_asked_for() {
    let gateway = gateway(Some("s3cret"));
    assert_eq!(gateway.run(&["status"]).0, 0, "reading is free");
    let (code, _, error) = gateway.run(&["pause"]);
    assert!(code == 1 && error.contains("--token"), "{error}");
    assert_eq!(gateway.run(&["pause", "--token", "wrong"]).0, 1);
    assert_eq!(gateway.run(&["pause", "--token", "s3cret"]).0, 0);
}

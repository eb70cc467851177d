//! H34: a long command is in flight. The switch is given up within its budget, the reason names the client and the
//! command, and traffic goes on at the old side.

use std::time::{Duration, Instant};

use crossfade::cli::demo::connection::Connection;
use crossfade::cli::demo::servers::Server;
use crossfade::cli::demo::workload::{Plan, Workload};
use serde_json::json;

use crate::support::resp3::Client;
use crate::support::{PATIENCE, Setup, Stops, eventually, operations};

/// Keeps the server busy for some milliseconds.
const BUSY: &str = "local function now() local t = redis.call('TIME') return t[1] * 1000 + t[2] / 1000 end
local till = now() + ARGV[1] while now() < till do end return 'done'";

/// A client runs it again and again; answers how a reason names the client.
async fn busy(address: &str, ms: u64, times: usize) -> (String, tokio::task::JoinHandle<()>) {
    let mut client = Connection::open(address).await.unwrap();
    let id = client.must(&["CLIENT", "ID"]).await.unwrap().number().unwrap();
    let running = tokio::spawn(async move {
        for _ in 0..times {
            client.must(&["EVAL", BUSY, "0", &ms.to_string()]).await.unwrap();
        }
    });
    (format!("(id {id})"), running)
}

/// Returns once the server is busy with a command.
async fn is_busy(server: &Server) {
    let mut other = Connection::open(&server.address()).await.unwrap();
    let unanswered =
        async || tokio::time::timeout(Duration::from_millis(100), other.call(&["PING"])).await.is_err();
    eventually("the server is busy", unanswered).await;
}

/// Whether the script and its client are named.
fn names(reason: &serde_json::Value, client: &str) -> bool {
    let reason = reason.as_str().unwrap_or_default();
    reason.split(';').any(|part| part.contains("EVAL of client") && part.contains(client))
}

#[tokio::test(flavor = "multi_thread")]
async fn h34_a_script_that_runs_when_the_switch_is_ordered_is_named() {
    let mut lab = Setup::new().build().await;
    lab.expect_log("");
    lab.mirror().await;
    let address = lab.gateway.address();
    let (client, script) = busy(&address, 8000, 1).await;
    is_busy(&lab.source).await;
    let ordered = Instant::now();
    let (status, answer) = lab.gateway.post("/v1/cutover", &json!({})).await.unwrap();
    assert!(status >= 400 && names(&answer["error"]["message"], &client), "{status} {answer}");
    assert!(
        ordered.elapsed() < Duration::from_secs(7),
        "it does not wait for the script: {:?}",
        ordered.elapsed()
    );
    script.await.unwrap();
    lab.cutover().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn h34_a_script_that_outlasts_the_pause_is_named_and_traffic_goes_on() {
    let stops = Stops::new();
    let mut lab = stops.of(Setup::new()).build().await;
    lab.expect_log("");
    lab.mirror().await;
    let address = lab.gateway.address();
    let workload = Workload::start(&Plan { clients: 8, ..Plan::new(address.clone()) });
    stops.arm(&["prepare"]);
    let order = json!({"max_pause": "60ms"});
    let (answer, (client, script)) = tokio::join!(
        lab.gateway.post("/v1/cutover", &order),
        stops.at("prepare", async || {
            let running = busy(&address, 1500, 1).await;
            is_busy(&lab.source).await;
            running
        })
    );
    let entry = answer.unwrap().1;
    assert!(entry["outcome"] == "aborted" && names(&entry["reason"], &client), "{entry}");
    let pause = entry["pause_ms"].as_f64().unwrap();
    assert!((60.0..260.0).contains(&pause), "the budget of 60 ms: {pause}");
    script.await.unwrap();
    operations(&workload, 1000).await;
    lab.cutover().await;
    operations(&workload, 1000).await;
    let verdict = lab.judge(workload).await;
    assert!(verdict.is_clean(), "{verdict}");
}

/// CLIENT PAUSE of a client holds the server, and so the switch: it is waited for with traffic on. Nobody but the clock ends the pause.
#[tokio::test(flavor = "multi_thread")]
async fn h34_a_pause_that_a_client_ordered_is_waited_for() {
    let mut lab = Setup::new().build().await;
    lab.expect_log("");
    lab.mirror().await;
    let address = lab.gateway.address();
    let workload = Workload::start(&Plan { clients: 8, ..Plan::new(address.clone()) });
    let mut client = Connection::open(&address).await.unwrap();
    for kind in ["WRITE", "ALL"] {
        operations(&workload, 500).await;
        client.must(&["CLIENT", "PAUSE", "2500", kind]).await.unwrap();
        let paused = Instant::now();
        let entry = lab.cutover().await;
        assert!(paused.elapsed() >= Duration::from_millis(2400), "{kind}: the pause ended early: {entry}");
        assert!(entry["max_hold_ms"].as_f64().unwrap() < 1000.0, "{kind} {entry}");
        operations(&workload, 500).await;
        lab.rollback().await;
    }
    client.must(&["CLIENT", "PAUSE", "150", "WRITE"]).await.unwrap();
    lab.cutover().await;
    operations(&workload, 500).await;
    lab.judge(workload).await;
}

/// A pause that is ordered when the switch is ready for the gate makes it end within its budget. CLIENT UNBLOCK of a command that waits
/// because of CLIENT PAUSE ends some servers. One that waited before goes on waiting as if nothing had happened, and ends in its time.
#[tokio::test(flavor = "multi_thread")]
async fn h34_blocked_commands_outlive_a_switch_that_a_pause_held_up() {
    let stops = Stops::new();
    let mut lab = stops.of(Setup::new()).source(&["--hz", "100"]).build().await;
    lab.expect_log("");
    lab.mirror().await;
    let address = lab.gateway.address();
    let [mut before, mut timed, mut within, mut other] = [
        Client::open_resp2(&address).await,
        Client::open_resp2(&address).await,
        Client::open_resp2(&address).await,
        Client::open_resp2(&address).await,
    ];
    let blocked = async |many: &str| lab.source.info("blocked_clients").await.unwrap() == many;
    before.queue(&["BLPOP", "before", "0"]);
    before.flush().await;
    stops.arm(&["prepare"]);
    let order = json!({"max_pause": "100ms"});
    let (answer, (began, paused)) = tokio::join!(
        lab.gateway.post("/v1/cutover", &order),
        stops.at("prepare", async || {
            let began = Instant::now();
            timed.queue(&["BLPOP", "nothing", "5"]);
            timed.flush().await;
            eventually("both wait", async || blocked("2").await).await;
            lab.source.call(&["CLIENT", "PAUSE", "3000", "WRITE"]).await.unwrap();
            let paused = Instant::now();
            within.queue(&["BLPOP", "within", "0"]);
            within.flush().await;
            eventually("the third waits too", async || blocked("3").await).await;
            (began, paused)
        })
    );
    let entry = answer.unwrap().1;
    assert_eq!(entry["outcome"], "aborted", "{entry}");
    assert!(entry["pause_ms"].as_f64().unwrap() < 600.0, "{entry}");
    for list in ["before", "within"] {
        assert_eq!(other.ask(&["RPUSH", list, "x"]).await, "1");
    }
    assert!(paused.elapsed() > Duration::from_millis(2900), "nobody but the clock ends the pause");
    assert_eq!(before.frame().await.text, "[before x]");
    assert_eq!(within.frame().await.text, "[within x]");
    assert_eq!(timed.frame().await.text, "nil");
    let late = began.elapsed().saturating_sub(Duration::from_secs(5));
    assert!(late < Duration::from_millis(300), "{late:?} late");
    lab.in_step().await;
    lab.cutover().await;
    assert_eq!(other.ask(&["RPUSH", "behind", "x"]).await, "1");
}

/// A script on the server outlasts the switch, and the recall waits behind it, before the writes that were held at the gate.
#[tokio::test(flavor = "multi_thread")]
async fn h34_what_is_recalled_too_late_misses_nothing() {
    const READERS: usize = 10;
    let stops = Stops::new();
    let mut lab = stops.of(Setup::new()).build().await;
    lab.expect_log("");
    lab.mirror().await;
    let address = lab.gateway.address();
    let mut clients = Vec::new();
    for _ in 0..3 * READERS {
        clients.push(Client::open_resp2(&address).await);
    }
    let (streams, rest) = clients.split_at_mut(READERS);
    let (lists, writers) = rest.split_at_mut(READERS);
    writers[0].ask(&["XADD", "s", "*", "n", "before"]).await;
    for turn in 0..4 {
        for (number, (stream, list)) in streams.iter_mut().zip(&mut *lists).enumerate() {
            stream.queue(&["XREAD", "BLOCK", "0", "STREAMS", "none", "s", "$", "$"]);
            stream.flush().await;
            list.queue(&["BLPOP", &format!("l:{number}"), "0"]);
            list.flush().await;
        }
        let blocked = async || lab.source.info("blocked_clients").await.unwrap() == (2 * READERS).to_string();
        eventually("all wait", blocked).await;
        stops.arm(&["prepare", "close_gate"]);
        let disturbing = async {
            // Not through the gateway: what is held there would wait behind it.
            let (_, running) = stops
                .at("prepare", async || {
                    let running = busy(&lab.source.address(), 1500, 1).await;
                    is_busy(&lab.source).await;
                    running
                })
                .await;
            stops
                .at("close_gate", async || {
                    for (number, writer) in writers.iter_mut().enumerate() {
                        writer.queue(&["XADD", "s", "*", "n", "v"]);
                        writer.queue(&["RPUSH", &format!("l:{number}"), &turn.to_string()]);
                        writer.flush().await;
                    }
                })
                .await;
            running.await.unwrap();
        };
        let order = json!({"max_pause": "300ms"});
        let (answer, ()) = tokio::join!(lab.gateway.post("/v1/cutover", &order), disturbing);
        let entry = answer.unwrap().1;
        assert_eq!(entry["outcome"], "aborted", "{entry}");
        let mut added = Vec::new();
        for writer in &mut *writers {
            let id = writer.frame().await.text;
            let (ms, count) = id.split_once('-').unwrap();
            added.push((ms.parse::<u64>().unwrap(), count.parse::<u64>().unwrap()));
            assert_eq!(writer.frame().await.text, "1");
        }
        let (ms, count) = added.into_iter().min().unwrap();
        for (number, (stream, list)) in streams.iter_mut().zip(&mut *lists).enumerate() {
            let got = stream.frame().await.text;
            assert!(got.starts_with(&format!("[[s [[{ms}-{count} ")), "turn {turn}: {got} {ms}-{count}");
            assert_eq!(list.frame().await.text, format!("[l:{number} {turn}]"));
        }
        lab.gateway.wait_phase("mirroring", PATIENCE).await.unwrap();
        lab.in_step().await;
    }
}

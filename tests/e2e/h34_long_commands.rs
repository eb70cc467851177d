//! H34: a long command is in flight. The switch is given up within its budget, the reason names the client and the
//! command, and traffic goes on at the old side.

use std::time::{Duration, Instant};

use crossfade::cli::demo::connection::Connection;
use crossfade::cli::demo::workload::{Plan, Workload};
use serde_json::json;

use crate::support::resp3::Client;
use crate::support::{Setup, eventually, operations};

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
    // It runs when another connection gets no answer.
    let mut other = Connection::open(&lab.source.address()).await.unwrap();
    let unanswered =
        async || tokio::time::timeout(Duration::from_millis(100), other.call(&["PING"])).await.is_err();
    eventually("the server is busy", unanswered).await;
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
    let mut lab = Setup::new().build().await;
    lab.expect_log("");
    lab.mirror().await;
    let address = lab.gateway.address();
    let workload = Workload::start(&Plan { clients: 8, ..Plan::new(address.clone()) });
    let (client, script) = busy(&address, 250, 12).await;
    let (_, entry) = lab.gateway.post("/v1/cutover", &json!({"max_pause": "60ms"})).await.unwrap();
    assert!(entry["outcome"] == "aborted" && names(&entry["reason"], &client), "{entry}");
    let pause = entry["pause_ms"].as_f64().unwrap();
    assert!((60.0..160.0).contains(&pause), "the budget of 60 ms: {pause}");
    script.await.unwrap();
    operations(&workload, 1000).await;
    lab.cutover().await;
    operations(&workload, 1000).await;
    let verdict = lab.judge(workload).await;
    assert!(verdict.is_clean(), "{verdict}");
}

/// CLIENT PAUSE of a client holds the server, and so the switch: it is waited for with traffic on where that is possible
/// (ALL holds the gateway's own questions), and else the switch ends within its budget. Nobody but the clock ends the pause.
#[tokio::test(flavor = "multi_thread")]
async fn h34_a_pause_that_a_client_ordered_holds_the_switch_and_no_longer_than_its_budget() {
    let mut lab = Setup::new().build().await;
    lab.expect_log("");
    lab.mirror().await;
    let address = lab.gateway.address();
    let workload = Workload::start(&Plan { clients: 8, ..Plan::new(address.clone()) });
    let mut client = Connection::open(&address).await.unwrap();
    for (kind, outcome) in [("WRITE", "aborted"), ("ALL", "committed")] {
        operations(&workload, 500).await;
        client.must(&["CLIENT", "PAUSE", "2500", kind]).await.unwrap();
        let paused = Instant::now();
        let (_, entry) = lab.gateway.post("/v1/cutover", &json!({"max_pause": "100ms"})).await.unwrap();
        assert_eq!(entry["outcome"], outcome, "{kind} {entry}");
        assert!(entry["max_hold_ms"].as_f64().unwrap() < 250.0, "{kind} {entry}");
        operations(&workload, 500).await;
        assert!(paused.elapsed() >= Duration::from_millis(2400), "{kind}: the pause ended early");
    }
    lab.rollback().await;
    client.must(&["CLIENT", "PAUSE", "150", "WRITE"]).await.unwrap();
    lab.cutover().await;
    operations(&workload, 500).await;
    lab.judge(workload).await;
}

/// CLIENT UNBLOCK of a command that waits because of CLIENT PAUSE ends some servers. One that waited before goes on waiting as if nothing
/// had happened, and ends in its time.
#[tokio::test(flavor = "multi_thread")]
async fn h34_blocked_commands_outlive_a_switch_that_a_pause_held_up() {
    let mut lab = Setup::new().build().await;
    lab.expect_log("");
    lab.mirror().await;
    let address = lab.gateway.address();
    let [mut before, mut timed, mut within, mut other] = [
        Client::open_resp2(&address).await,
        Client::open_resp2(&address).await,
        Client::open_resp2(&address).await,
        Client::open_resp2(&address).await,
    ];
    before.queue(&["BLPOP", "before", "0"]);
    before.flush().await;
    let began = Instant::now();
    timed.queue(&["BLPOP", "nothing", "2"]);
    timed.flush().await;
    let blocked = async |many: &str| lab.source.info("blocked_clients").await.unwrap() == many;
    eventually("both wait", async || blocked("2").await).await;
    lab.source.call(&["CLIENT", "PAUSE", "1000", "WRITE"]).await.unwrap();
    within.queue(&["BLPOP", "within", "0"]);
    within.flush().await;
    eventually("the third waits too", async || blocked("3").await).await;
    let (_, entry) = lab.gateway.post("/v1/cutover", &json!({"max_pause": "100ms"})).await.unwrap();
    assert_eq!(entry["outcome"], "aborted", "{entry}");
    assert!(entry["max_hold_ms"].as_f64().unwrap() < 250.0, "{entry}");
    for list in ["before", "within"] {
        assert_eq!(other.ask(&["RPUSH", list, "x"]).await, "1");
    }
    assert_eq!(before.frame().await.text, "[before x]");
    assert_eq!(within.frame().await.text, "[within x]");
    assert_eq!(timed.frame().await.text, "nil");
    let late = began.elapsed().saturating_sub(Duration::from_secs(2));
    assert!(late < Duration::from_millis(300), "{late:?} late");
    lab.in_step().await;
    lab.cutover().await;
    assert_eq!(other.ask(&["RPUSH", "behind", "x"]).await, "1");
}

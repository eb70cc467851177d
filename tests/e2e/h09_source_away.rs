//! H09: the source restarts or cannot be reached for a while.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crossfade::cli::demo::connection::Connection;
use crossfade::cli::demo::workload::{Plan, Workload};
use serde_json::json;

use crate::support::proxy::{Rules, Way};
use crate::support::{Front, Lab, PATIENCE, Setup, Stops, eventually, operations};

#[tokio::test(flavor = "multi_thread")]
async fn h09_idle_clients_stay_and_the_next_command_waits() {
    let mut front = Front::new().await;
    let mut idle = Connection::open(&front.address()).await.unwrap();
    idle.must(&["SET", "k", "1"]).await.unwrap();
    front.server.kill();
    eventually("the gateway knows", async || front.log().contains("lost its connection")).await;
    // sent while there is no server: waits for it, within server.reconnect_wait
    let began = Instant::now();
    idle.queue(&["SET", "k", "2"]);
    idle.flush().await.unwrap();
    let early = tokio::time::timeout(Duration::from_millis(400), idle.reply()).await;
    assert!(early.is_err(), "answered without a server: {early:?}");
    front.server.restart().await.unwrap();
    assert_eq!(idle.reply().await.unwrap().brief(), "OK");
    assert!(began.elapsed() >= Duration::from_millis(400));
    assert_eq!(idle.must(&["GET", "k"]).await.unwrap().brief(), "2");
}

#[tokio::test(flavor = "multi_thread")]
async fn h09_restarts_under_load_run_nothing_twice() {
    let mut front = Front::durable().await;
    let plan = Plan { pace: Some(6000), ..Plan::new(front.address()).tolerant() };
    let workload = Workload::start(&plan);
    for _ in 0..3 {
        operations(&workload, 3000).await;
        front.server.restart().await.unwrap();
    }
    operations(&workload, 6000).await;
    let verdict = workload.stop().await.unwrap().judge(&front.server.address()).await.unwrap();
    assert!(verdict.is_clean(), "{verdict}");
    assert!(verdict.reconnects > 0, "{verdict}");
}

#[tokio::test(flavor = "multi_thread")]
async fn h09_three_seconds_out_of_reach() {
    let front = Front::behind_proxy().await;
    let proxy = front.proxy.as_ref().unwrap();
    let workload = Workload::start(&Plan { pace: Some(4000), ..Plan::new(front.address()) });
    operations(&workload, 3000).await;
    for way in [Way::Up, Way::Down] {
        proxy.rules(way, Rules { black_hole: true, ..Rules::default() });
    }
    tokio::time::sleep(Duration::from_secs(3)).await;
    proxy.heal();
    operations(&workload, 3000).await;
    let verdict = workload.stop().await.unwrap().judge(&front.server.address()).await.unwrap();
    // nothing was cut, so nothing was lost: the replies only came late
    assert!(verdict.is_clean(), "{verdict}");
    assert!(verdict.worst_ms > 2500.0, "{verdict}");
}

#[tokio::test(flavor = "multi_thread")]
async fn h09_links_cut_in_the_middle_of_a_frame() {
    let front = Front::behind_proxy().await;
    let proxy = front.proxy.as_ref().unwrap();
    let workload = Workload::start(&Plan { pace: Some(6000), ..Plan::new(front.address()).tolerant() });
    for round in 0..10_u64 {
        operations(&workload, 800).await;
        let way = if round % 2 == 0 { Way::Up } else { Way::Down };
        proxy.rules(way, Rules { cut_after: Some(100 + round * 37), ..Rules::default() });
        operations(&workload, 300).await;
        proxy.heal();
    }
    operations(&workload, 2000).await;
    let verdict = workload.stop().await.unwrap().judge(&front.server.address()).await.unwrap();
    assert!(verdict.is_clean(), "{verdict}");
    assert!(verdict.reconnects > 0, "{verdict}");
}

/// A command that waits for its server does not come to its end by a closed gate: a switch that is asked for meanwhile is
/// refused at once, and one whose source goes away while it is prepared is given up before clients are held.
#[tokio::test(flavor = "multi_thread")]
async fn h09_no_switch_begins_while_commands_wait_for_the_source() {
    let stops = Stops::new();
    let setup = stops.of(Setup::new().durable());
    let mut lab = setup.config("server.reconnect_wait = \"60s\"\n").build().await;
    lab.expect_log("");
    let mut client = Connection::open(&lab.gateway.address()).await.unwrap();
    client.must(&["SET", "k", "0"]).await.unwrap();
    lab.mirror().await;
    let patient = json!({"max_pause": "5s"});
    for prepared in [false, true] {
        let lost = lab.gateway.log().matches("a lane lost its connection").count();
        let Lab { gateway, source, .. } = &mut lab;
        let mut go_away = async |client: &mut Connection| {
            source.kill();
            eventually("the gateway notices", async || {
                gateway.log().matches("a lane lost its connection").count() > lost
            })
            .await;
            let before = gateway.status().await.unwrap()["traffic"]["commands"].as_u64();
            client.queue(&["INCR", "k"]);
            client.flush().await.unwrap();
            eventually("the command waits", async || {
                gateway.status().await.unwrap()["traffic"]["commands"].as_u64() > before
            })
            .await;
            Instant::now()
        };
        let (answer, since) = if prepared {
            loop {
                stops.arm(&["prepare"]);
                let answered = AtomicBool::new(false);
                let switching = async {
                    let answer = gateway.post("/v1/cutover", &patient).await;
                    answered.store(true, Ordering::Relaxed);
                    answer.unwrap().1
                };
                let striking = stops.at_unless(&answered, "prepare", async || go_away(&mut client).await);
                match tokio::join!(switching, striking) {
                    (answer, Some(since)) => break (answer, since),
                    // The mirror has hardly come back.
                    (answer, None) => eprintln!("not yet: {answer}"),
                }
            }
        } else {
            let since = go_away(&mut client).await;
            (gateway.post("/v1/cutover", &patient).await.unwrap().1, since)
        };
        let took = since.elapsed();
        let said = answer.to_string();
        assert!(
            said.contains("the source is away; clients whose commands wait for it: 1"),
            "{prepared}: {said}"
        );
        assert!(took < Duration::from_secs(3), "{prepared}: {took:?} {said}");
        let pause = answer["pause_ms"].as_f64();
        assert_eq!(pause, prepared.then_some(0.0), "the gate was never closed: {said}");
        source.restart().await.unwrap();
        let number = if prepared { "2" } else { "1" };
        assert_eq!(client.reply().await.unwrap().brief(), number);
        gateway.wait_phase("mirroring", PATIENCE).await.unwrap();
    }
    eventually("the same switch, undisturbed", async || {
        let (_, answer) = lab.gateway.post("/v1/cutover", &patient).await.unwrap();
        answer["outcome"] == "committed"
    })
    .await;
    assert_eq!(client.must(&["GET", "k"]).await.unwrap().brief(), "2");
}

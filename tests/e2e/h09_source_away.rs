//! H09: the source restarts or cannot be reached for a while.

use std::time::{Duration, Instant};

use crossfade::cli::demo::connection::Connection;
use crossfade::cli::demo::workload::{Plan, Workload};

use crate::support::proxy::{Rules, Way};
use crate::support::{Front, eventually, operations};

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

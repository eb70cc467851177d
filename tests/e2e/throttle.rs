//! Limits that somebody sets while the copy and the mirror run.

use std::process::Command;
use std::time::{Duration, Instant};

use crossfade::cli::demo::connection::Connection;

use crate::support::{EXE, Lab, PATIENCE, Setup};

/// `crossfade throttle` with these arguments; what it prints as JSON.
async fn throttle(lab: &Lab, args: &'static [&'static str]) -> serde_json::Value {
    let url = lab.gateway.admin();
    let ran = tokio::task::spawn_blocking(move || {
        Command::new(EXE).args(["throttle", "--json", "--admin", &url]).args(args).output().unwrap()
    });
    let output = ran.await.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_copy_and_the_mirror_keep_to_limits_that_change_while_they_run() {
    let mut lab = Setup::new().build().await;
    let mut client = Connection::open(&lab.gateway.address()).await.unwrap();
    for n in 0..6000 {
        client.queue(&["SET", &format!("key:{n}"), "v"]);
    }
    client.flush().await.unwrap();
    for _ in 0..6000 {
        client.reply().await.unwrap();
    }

    let told = throttle(&lab, &["--snapshot-keys", "1000/s"]).await;
    assert_eq!((&told["snapshot_keys"], &told["mirror_ops"]), (&"1000/s".into(), &"off".into()), "{told}");
    let began = Instant::now();
    lab.gateway.begin().await.unwrap();
    let some = |status: &serde_json::Value| status["snapshot"]["keys_loaded"].as_u64() > Some(1500);
    let status = lab.gateway.wait_until("some keys", PATIENCE, some).await.unwrap();
    assert!(began.elapsed() > Duration::from_secs(1), "{:?}", began.elapsed());
    assert_eq!(status["throttle"]["snapshot_keys"], "1000/s");
    throttle(&lab, &["--snapshot-keys", "off"]).await;
    lab.gateway.wait_phase("mirroring", PATIENCE).await.unwrap();
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());

    throttle(&lab, &["--mirror-ops", "500/s"]).await;
    let before = lab.gateway.status().await.unwrap()["mirror"]["commands_applied"].as_u64().unwrap();
    let began = Instant::now();
    for n in 0..3000 {
        client.queue(&["INCR", &format!("n:{}", n % 100)]);
    }
    client.flush().await.unwrap();
    for _ in 0..3000 {
        client.reply().await.unwrap();
    }
    assert!(began.elapsed() < Duration::from_secs(2), "clients do not notice: {:?}", began.elapsed());
    let applied = |more: u64| {
        move |status: &serde_json::Value| status["mirror"]["commands_applied"].as_u64() >= Some(before + more)
    };
    lab.gateway.wait_until("a third of them", PATIENCE, applied(1000)).await.unwrap();
    let took = began.elapsed();
    assert!(took > Duration::from_millis(900) && took < Duration::from_secs(6), "{took:?}");
    throttle(&lab, &["--mirror-ops", "off"]).await;
    lab.gateway.wait_until("all of them", PATIENCE, applied(3000)).await.unwrap();
    assert!(began.elapsed() < Duration::from_millis(5500), "6 s at the limit: {:?}", began.elapsed());
    lab.same().await;

    // Near a switch nothing is held back.
    throttle(&lab, &["--mirror-ops", "1/s"]).await;
    client.must(&["SET", "last", "1"]).await.unwrap();
    lab.cutover().await;
    assert_eq!(client.must(&["GET", "last"]).await.unwrap().brief(), "1");
}

//! Limits that somebody sets while the copy and the mirror run.

use std::process::Command;
use std::time::{Duration, Instant};

use crossfade::cli::demo::connection::Connection;
use serde_json::Value as Json;

use crate::support::proxy::{Rules, Way};
use crate::support::{EXE, Lab, PATIENCE, Setup, eventually};

/// `crossfade throttle` with these arguments; what it prints as JSON.
async fn throttle(lab: &Lab, args: &[&str]) -> Json {
    let url = lab.gateway.admin();
    let args: Vec<String> = args.iter().map(ToString::to_string).collect();
    let ran = tokio::task::spawn_blocking(move || {
        Command::new(EXE).args(["throttle", "--json", "--admin", &url]).args(args).output().unwrap()
    });
    let output = ran.await.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_copy_and_the_mirror_keep_to_limits_that_change_while_they_run() {
    // What is held back makes the mirror late, on a slow machine too late for a switch to begin.
    let mut lab = Setup::new().config("[cutover]\nmax_lag = \"30s\"\n").build().await;
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
    let some = |status: &Json| status["snapshot"]["keys_loaded"].as_u64() > Some(1500);
    let status = lab.gateway.wait_until("some keys", PATIENCE, some).await.unwrap();
    assert!(began.elapsed() > Duration::from_secs(1), "{:?}", began.elapsed());
    assert_eq!(status["throttle"]["snapshot_keys"], "1000/s");
    throttle(&lab, &["--snapshot-keys", "off"]).await;
    lab.gateway.wait_phase("mirroring", PATIENCE).await.unwrap();
    assert!(began.elapsed() < Duration::from_millis(5900), "6 s at the limit: {:?}", began.elapsed());

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
    assert!(began.elapsed() < Duration::from_secs(4), "clients do not notice: {:?}", began.elapsed());
    let applied =
        |more: u64| move |status: &Json| status["mirror"]["commands_applied"].as_u64() >= Some(before + more);
    lab.gateway.wait_until("a third of them", PATIENCE, applied(1000)).await.unwrap();
    let took = began.elapsed();
    assert!(took > Duration::from_millis(900), "{took:?}");
    let applied_so_far = lab.gateway.status().await.unwrap()["mirror"]["commands_applied"].as_u64().unwrap();
    let left = (before + 3000).saturating_sub(applied_so_far);
    throttle(&lab, &["--mirror-ops", "off"]).await;
    let began = Instant::now();
    lab.gateway.wait_until("all of them", PATIENCE, applied(3000)).await.unwrap();
    let (took, at_the_limit) = (began.elapsed(), Duration::from_millis(left * 2));
    assert!(took < at_the_limit || left < 500, "{left} in {took:?}");
    lab.same().await;

    // Near a switch nothing is held back.
    throttle(&lab, &["--mirror-ops", "1/s"]).await;
    client.must(&["SET", "last", "1"]).await.unwrap();
    lab.cutover().await;
    assert_eq!(client.must(&["GET", "last"]).await.unwrap().brief(), "1");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_destination_that_answers_slowly_gets_less_to_do() {
    let mut lab = Setup::new().proxies().build().await;
    lab.mirror().await;
    let told = throttle(&lab, &["--max-destination-latency", "30ms"]).await;
    assert_eq!(told["max_destination_latency"], "30ms", "{told}");
    let measured = |status: &Json| status["throttle"]["automatic"]["latency_ms"].is_number();
    let status = lab.gateway.wait_until("a measurement", PATIENCE, measured).await.unwrap();
    assert_eq!(status["error"], Json::Null, "{status}");

    let far = Rules { delay: Duration::from_millis(60), ..Rules::default() };
    lab.destination_proxy.as_ref().unwrap().rules(Way::Down, far);
    let slow = |status: &Json| status["throttle"]["automatic"]["factor"].as_f64() < Some(0.1);
    let status = lab.gateway.wait_until("it slows down", PATIENCE, slow).await.unwrap();
    let automatic = &status["throttle"]["automatic"];
    assert!(automatic["reason"].as_str().unwrap().contains("shall take 30ms"), "{automatic}");
    assert_eq!((&automatic["waiting"], &status["error"]), (&false.into(), &Json::Null), "{status}");
    // A batch takes 60 ms, so nine times as long nothing follows it.
    let mut applied = Vec::new();
    for key in ["one", "two"] {
        lab.source.call(&["SET", key, "1"]).await.unwrap();
        eventually("it arrives", async || {
            lab.destination.call(&["EXISTS", key]).await.unwrap().number() == Some(1)
        })
        .await;
        applied.push(Instant::now());
    }
    assert!(applied[1] - applied[0] > Duration::from_millis(500), "{:?}", applied[1] - applied[0]);

    lab.destination_proxy.as_ref().unwrap().heal();
    let quick = |status: &Json| status["throttle"]["automatic"]["factor"] == 1.0;
    lab.gateway.wait_until("full speed again", PATIENCE, quick).await.unwrap();
    let told = throttle(&lab, &["--max-destination-latency", "off"]).await;
    assert_eq!(told["max_destination_latency"], "off", "{told}");
    let off = |status: &Json| status["throttle"]["automatic"].is_null();
    lab.gateway.wait_until("nothing is measured any more", PATIENCE, off).await.unwrap();
    let log = lab.gateway.log();
    for once in ["the copy and the mirror slow down", "run at full speed"] {
        assert_eq!(log.matches(once).count(), 1, "a change of state is logged, not a step: {once}");
    }
    lab.same().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn copy_and_mirror_wait_while_the_destination_uses_too_much_memory() {
    const MIB: i64 = 1 << 20;
    let mut lab = Setup::new().build().await;
    lab.expect_log("the copy and the mirror wait");
    lab.source.call(&["DEBUG", "POPULATE", "20000", "key", "1000"]).await.unwrap();
    let used = async |lab: &Lab| lab.destination.info("used_memory").await.unwrap().parse::<i64>().unwrap();
    let limit = used(&lab).await + 4 * MIB;
    throttle(&lab, &["--max-destination-memory", &limit.to_string(), "--snapshot-bytes", "10MB/s"]).await;
    lab.gateway.begin().await.unwrap();
    let waits =
        |status: &Json| status["throttle"]["automatic"]["waiting"] == true && !status["error"].is_null();
    let status = lab.gateway.wait_until("it waits", PATIENCE, waits).await.unwrap();
    let error = &status["error"];
    assert_eq!((&error["side"], &status["phase"]), (&"destination".into(), &"snapshot".into()), "{status}");
    assert!(error["message"].as_str().unwrap().contains("of memory"), "{error}");
    assert!(error["remedy"].as_str().unwrap().contains("--max-destination-memory"), "{error}");
    assert!(used(&lab).await < limit + 8 * MIB, "{limit}");

    // A part of maxmemory, far away: it goes on by itself.
    lab.destination.call(&["CONFIG", "SET", "maxmemory", "1gb"]).await.unwrap();
    throttle(&lab, &["--max-destination-memory", "90%", "--snapshot-bytes", "off"]).await;
    let status = lab.gateway.wait_phase("mirroring", PATIENCE).await.unwrap();
    assert_eq!((&status["error"], &status["throttle"]["automatic"]["waiting"]), (&Json::Null, &false.into()));
    lab.same().await;

    // The mirror waits too, and the server's own limit decides.
    lab.destination
        .call(&["CONFIG", "SET", "maxmemory", &(used(&lab).await + MIB).to_string()])
        .await
        .unwrap();
    throttle(&lab, &["--max-destination-memory", "50%"]).await;
    lab.gateway.wait_until("it waits", PATIENCE, waits).await.unwrap();
    let end: u64 = {
        lab.source.call(&["SET", "late", "1"]).await.unwrap();
        lab.source.info("master_repl_offset").await.unwrap().parse().unwrap()
    };
    let behind = |status: &Json| {
        status["mirror"]["received_offset"].as_u64() >= Some(end)
            && status["mirror"]["applied_offset"].as_u64() < Some(end)
    };
    lab.gateway.wait_until("received, and not applied", PATIENCE, behind).await.unwrap();
    assert_eq!(lab.destination.call(&["EXISTS", "late"]).await.unwrap().number(), Some(0));
    lab.destination.call(&["CONFIG", "SET", "maxmemory", "1gb"]).await.unwrap();
    lab.in_step().await;
    lab.same().await;
    assert_eq!(lab.gateway.status().await.unwrap()["error"], Json::Null);
}

//! The checker checks: clean traffic is clean, and every kind of damage is found.

use std::time::Duration;

use crossfade::cli::demo::servers::Server;
use crossfade::cli::demo::workload::{Plan, Workload};

async fn traffic(server: &Server, operations: u64) -> crossfade::cli::demo::workload::History {
    let workload = Workload::start(&Plan::new(server.address()));
    while workload.operations() < operations {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    workload.stop().await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn clean_traffic_is_clean() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), &[]).await.unwrap();
    let verdict = traffic(&server, 30_000).await.judge(&server.address()).await.unwrap();
    assert!(verdict.is_clean(), "{verdict}");
    assert!(verdict.operations >= 30_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_kind_of_damage_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), &[]).await.unwrap();
    let history = traffic(&server, 20_000).await;
    let mut last = history.judge(&server.address()).await.unwrap();
    assert!(last.is_clean(), "{last}");
    let damage: [(&[&str], &str); 9] = [
        (&["INCR", "live:0:counter"], "duplicated"),
        (&["DECRBY", "live:0:counter", "3"], "lost"),
        (&["LPOP", "live:1:tail"], "lost"),
        (&["RPUSH", "live:1:head", "1.1"], "duplicated"),
        (&["SETRANGE", "live:3:log", "0", "0000002|0000001|"], "reordered"),
        (&["INCR", "live:shared:counter:1"], "duplicated"),
        (&["RPOP", "live:shared:list:0"], "lost"),
        (&["DECR", "live:4:pair:a"], "lost"),
        (&["RPUSH", "live:belt:1", "1.1"], "duplicated"),
    ];
    for (command, kind) in damage {
        server.call(command).await.unwrap();
        let now = history.judge(&server.address()).await.unwrap();
        let more = match kind {
            "lost" => now.lost > last.lost,
            "duplicated" => now.duplicated > last.duplicated,
            _ => now.reordered > last.reordered,
        };
        assert!(more, "{command:?} has to show as {kind}: {now}");
        last = now;
    }
}

/// The server is killed in the middle and comes back from its append-only file: outcomes in flight are unknown,
/// and nothing else is wrong.
#[tokio::test(flavor = "multi_thread")]
async fn lost_connections_leave_unknown_outcomes_and_no_faults() {
    let dir = tempfile::tempdir().unwrap();
    let mut server =
        Server::start(dir.path(), &["--appendonly", "yes", "--appendfsync", "always"]).await.unwrap();
    let workload = Workload::start(&Plan { pace: Some(5000), ..Plan::new(server.address()).tolerant() });
    for round in 1..=4 {
        while workload.operations() < round * 3000 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        server.restart().await.unwrap();
    }
    while workload.operations() < 20_000 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let verdict = workload.stop().await.unwrap().judge(&server.address()).await.unwrap();
    assert!(verdict.is_clean(), "{verdict}");
    assert!(verdict.reconnects > 30, "{verdict}");
}

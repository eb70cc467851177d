//! A journal that may not grow: the receiver stops taking, says so, and goes on when the destination has caught up.

use crate::support::{Lab, PATIENCE, Setup};

async fn write(lab: &Lab, from: usize, mib: usize) {
    let mut client = lab.source.connect().await.unwrap();
    let value = "v".repeat(64 << 10);
    for nth in 0..mib * 16 {
        client.queue(&["SET", &format!("key:{}", from + nth), &value]);
        if nth % 16 == 15 {
            client.flush().await.unwrap();
            for _ in 0..16 {
                client.reply().await.unwrap();
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_receiver_stops_at_the_limit_and_goes_on_when_there_is_room() {
    let mut lab = Setup::new()
        .config("[state]\nmax_bytes = \"64MiB\"\n")
        .source(&["--client-output-buffer-limit", "replica 0 0 0"])
        .build()
        .await;
    lab.expect_log("the receiver waits for the disk");
    lab.mirror().await;
    lab.gateway.order("pause", &serde_json::json!({})).await.unwrap();
    write(&lab, 0, 100).await;
    let full = |status: &serde_json::Value| {
        status["error"]["message"].as_str().is_some_and(|m| m.contains("max_bytes"))
    };
    let status = lab.gateway.wait_until("the limit", PATIENCE, full).await.unwrap();
    assert_eq!(status["error"]["side"], "gateway", "{status}");
    assert!(status["error"]["remedy"].as_str().unwrap().contains("state.max_bytes"), "{status}");
    let size: u64 = walk(&lab.path().join("gateway"));
    assert!((32 << 20..66 << 20).contains(&size), "{size} bytes on disk");
    // Clients notice nothing of it.
    let mut client =
        crossfade::cli::demo::connection::Connection::open(&lab.gateway.address()).await.unwrap();
    client.must(&["SET", "through", "1"]).await.unwrap();
    lab.gateway.order("resume", &serde_json::json!({})).await.unwrap();
    lab.gateway.wait_phase("mirroring", PATIENCE).await.unwrap();
    // More than the limit, and it never fills: what was applied makes room.
    for part in 1..4 {
        write(&lab, part * 10_000, 40).await;
        lab.in_step().await;
    }
    lab.same().await;
    assert_eq!(lab.source.info("sync_full").await.unwrap(), "1");
}

/// Bytes of the files below a folder.
fn walk(dir: &std::path::Path) -> u64 {
    std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap())
        .map(|entry| {
            if entry.file_type().unwrap().is_dir() {
                walk(&entry.path())
            } else {
                entry.metadata().unwrap().len()
            }
        })
        .sum()
}

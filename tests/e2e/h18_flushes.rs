//! H18: commands that move or remove what the snapshot holds, loaded already or not yet, while it is loaded.

use std::time::Duration;

use crossfade::cli::demo::connection::Connection;
use crossfade::cli::demo::fill;

use crate::support::proxy::{Rules, Way};
use crate::support::{Lab, PATIENCE, Setup, eventually};

async fn run(client: &mut Connection, lines: &[&str]) {
    for line in lines {
        client
            .must(&line.split(' ').collect::<Vec<_>>())
            .await
            .unwrap_or_else(|error| panic!("{line}: {error}"));
    }
}

/// A gateway in the middle of a load that takes about two seconds.
async fn midway(method: &str) -> Lab {
    let limit = if method == "commands" { "[throttle]\nsnapshot_keys = \"4000/s\"\n" } else { "" };
    let config = format!("[snapshot]\nmethod = \"{method}\"\n{limit}");
    let lab = Setup::new().config(&config).proxies().build().await;
    fill::fill(&lab.source.address(), 8000, 0).await.unwrap();
    let mut client = lab.source.connect().await.unwrap();
    for db in ["0", "5", "6", "7"] {
        client.must(&["SELECT", db]).await.unwrap();
        for n in 0..300 {
            client.queue(&["SET", &format!("moved:{n}"), &format!("{db}:{n}")]);
            client.queue(&["RPUSH", &format!("list:{n}"), db, "b"]);
            client.queue(&["SET", &format!("expiring:{n}"), db, "EX", "1000"]);
        }
        client.flush().await.unwrap();
        for _ in 0..900 {
            client.reply().await.unwrap();
        }
    }
    if method == "auto" {
        let slow = Rules { bytes_per_second: Some(500_000), ..Rules::default() };
        lab.source_proxy.as_ref().unwrap().rules(Way::Down, slow);
    }
    lab.gateway.begin().await.unwrap();
    eventually("the load has begun", async || {
        let status = lab.gateway.status().await.unwrap();
        status["snapshot"]["keys_loaded"].as_u64() > Some(0)
    })
    .await;
    assert_eq!(lab.gateway.status().await.unwrap()["phase"], "snapshot");
    lab
}

async fn moved_about(method: &str) {
    let mut lab = midway(method).await;
    let mut client = Connection::open(&lab.gateway.address()).await.unwrap();
    for n in 0..300 {
        let to = 300 + n;
        run(
            &mut client,
            &[
                "SELECT 0",
                &format!("RENAME moved:{n} moved:{to}"),
                &format!("COPY list:{n} list:{to}"),
                &format!("RPUSH list:{to} more"),
                &format!("COPY expiring:{n} expiring:{to} REPLACE"),
                &format!("PERSIST expiring:{n}"),
                &format!("MOVE moved:{to} 7"),
            ],
        )
        .await;
        if n % 50 == 0 {
            run(&mut client, &["SWAPDB 5 6", "SELECT 5", &format!("APPEND moved:{} x", n + 1), "SELECT 6"])
                .await;
            run(&mut client, &[&format!("DEL list:{}", n + 2), "SWAPDB 0 6", "SWAPDB 6 0"]).await;
        }
        if n == 150 {
            run(&mut client, &["SELECT 7", "FLUSHDB", "SET after:flush 1"]).await;
        }
    }
    lab.source_proxy.as_ref().unwrap().heal();
    let status = lab.gateway.wait_phase("mirroring", PATIENCE).await.unwrap();
    assert_eq!(status["snapshot"]["method"] == "replication", method == "auto", "{status}");
    lab.same().await;
    lab.cutover().await;
    lab.same().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn h18_by_commands() {
    moved_about("commands").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn h18_as_a_replica() {
    moved_about("auto").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn h18_everything_is_flushed_while_it_is_loaded() {
    for method in ["commands", "auto"] {
        let mut lab = midway(method).await;
        let mut client = Connection::open(&lab.gateway.address()).await.unwrap();
        run(&mut client, &["SET before 1", "FLUSHALL", "SET after 1", "RPUSH list:1 new"]).await;
        lab.source_proxy.as_ref().unwrap().heal();
        lab.gateway.wait_phase("mirroring", PATIENCE).await.unwrap();
        lab.same().await;
        let keys = lab.destination.call(&["KEYS", "*"]).await.unwrap();
        let keys: Vec<String> =
            keys.items().iter().map(|key| key.brief()).filter(|key| !key.starts_with("crossfade:")).collect();
        assert_eq!(keys.len(), 2, "{method}: {keys:?}");
        // The gateway's own keys are there again, and it goes on from them.
        tokio::time::timeout(Duration::from_secs(30), lab.gateway.restart()).await.unwrap().unwrap();
        lab.gateway.wait_phase("mirroring", PATIENCE).await.unwrap();
        assert_eq!(lab.source.info("sync_full").await.unwrap(), "1");
    }
}

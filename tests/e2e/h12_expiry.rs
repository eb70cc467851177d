//! H12: keys whose life changes while the copy is behind. What makes every loader lose them: a key expires in the snapshot at T, the
//! application extends it at T-1, the loader drops it at T+60, and the extension finds nothing (RedisShake #981).

use std::time::Duration;

use crossfade::cli::demo::connection::Connection;
use crossfade::cli::demo::fill;

use crate::support::proxy::{Rules, Way};
use crate::support::{PATIENCE, Setup, eventually};

const KEYS: usize = 200;

async fn all(client: &mut Connection, line: impl Fn(usize) -> String) {
    for n in 0..KEYS {
        client.queue(&line(n).split(' ').collect::<Vec<_>>());
    }
    client.flush().await.unwrap();
    for _ in 0..KEYS {
        client.reply().await.unwrap();
    }
}

async fn extended_while_the_load_is_slow(method: &str) {
    let limit = if method == "commands" { "[throttle]\nsnapshot_keys = \"2000/s\"\n" } else { "" };
    let mut lab =
        Setup::new().config(&format!("[snapshot]\nmethod = \"{method}\"\n{limit}")).proxies().build().await;
    fill::fill(&lab.source.address(), 8000, 0).await.unwrap();
    let mut client = Connection::open(&lab.gateway.address()).await.unwrap();
    for (kind, ms) in
        [("extended", 1500), ("persisted", 1500), ("shortened", 600_000), ("anew", 1200), ("gone", 1200)]
    {
        all(&mut client, |n| format!("SET {kind}:{n} v PX {ms}")).await;
        all(&mut client, |n| format!("RPUSH {kind}:list:{n} a b")).await;
        all(&mut client, |n| format!("PEXPIRE {kind}:list:{n} {ms}")).await;
    }
    if method == "auto" {
        let slow = Rules { bytes_per_second: Some(250_000), ..Rules::default() };
        lab.source_proxy.as_ref().unwrap().rules(Way::Down, slow);
    }
    lab.gateway.begin().await.unwrap();
    lab.gateway
        .wait_until("the snapshot is taken", PATIENCE, |status| status["phase"] == "snapshot")
        .await
        .unwrap();
    eventually("the source has begun to send", async || lab.source.info("sync_full").await.unwrap() == "1")
        .await;
    // Some of it before the end of the old life, some a moment after.
    for kind in ["extended", "extended:list"] {
        all(&mut client, |n| format!("PEXPIRE {kind}:{n} 900000")).await;
    }
    for kind in ["persisted", "persisted:list"] {
        all(&mut client, |n| format!("PERSIST {kind}:{n}")).await;
    }
    for kind in ["shortened", "shortened:list"] {
        all(&mut client, |n| format!("PEXPIRE {kind}:{n} 400000")).await;
    }
    eventually("the short lives are over", async || {
        lab.source.call(&["EXISTS", "anew:7", "gone:list:7"]).await.unwrap().number() == Some(0)
    })
    .await;
    all(&mut client, |n| format!("SET anew:{n} again PX 700000")).await;
    all(&mut client, |n| format!("RPUSH anew:list:{n} c")).await;
    let status = lab.gateway.status().await.unwrap();
    assert_eq!(status["phase"], "snapshot", "it was to be slow: {status}");
    // Loaded, and the stream has yet to come: time enough for a server that expires keys to do so.
    lab.gateway.order("pause", &serde_json::json!({})).await.unwrap();
    lab.source_proxy.as_ref().unwrap().heal();
    eventually("it is loaded", async || {
        let keys = lab.destination.call(&["EXISTS", "gone:7", "anew:list:7", "extended:7"]).await.unwrap();
        keys.number() == Some(3) && lab.destination.info("role").await.unwrap() == "master"
    })
    .await;
    tokio::time::sleep(Duration::from_millis(600)).await;
    lab.gateway.order("resume", &serde_json::json!({})).await.unwrap();
    lab.gateway.wait_phase("mirroring", PATIENCE).await.unwrap();
    lab.same().await;
    lab.cutover().await;
    // To the millisecond, now that nothing is padded any more.
    for kind in ["extended", "extended:list", "persisted", "shortened", "shortened:list", "anew", "anew:list"]
    {
        for n in [0, 77, KEYS - 1] {
            let key = format!("{kind}:{n}");
            let there = lab.destination.call(&["PEXPIRETIME", &key]).await.unwrap().number().unwrap();
            let here = lab.source.call(&["PEXPIRETIME", &key]).await.unwrap().number().unwrap();
            assert_ne!(there, -2, "{key} is lost");
            // The mirror back pads what the source holds now.
            let exact = crossfade::mirror::expiry::true_expiry(u64::try_from(here).unwrap_or(0));
            assert!(there == here || u64::try_from(there) == Ok(exact), "{key}: {there} and {here}");
        }
    }
    assert_eq!(lab.destination.call(&["EXISTS", "gone:7", "gone:list:7"]).await.unwrap().number(), Some(0));
    lab.same().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn h12_extended_while_it_is_loaded_by_commands() {
    extended_while_the_load_is_slow("commands").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn h12_extended_while_it_is_loaded_as_a_replica() {
    extended_while_the_load_is_slow("auto").await;
}

/// The stream waits, and what it says of expiries comes late.
#[tokio::test(flavor = "multi_thread")]
async fn h12_a_mirror_that_lags_keeps_what_was_extended() {
    let mut lab = Setup::new().build().await;
    let mut client = Connection::open(&lab.gateway.address()).await.unwrap();
    lab.mirror().await;
    all(&mut client, |n| format!("SET short:{n} v PX 800")).await;
    all(&mut client, |n| format!("SET over:{n} v PX 800")).await;
    lab.in_step().await;
    lab.gateway.order("pause", &serde_json::json!({})).await.unwrap();
    all(&mut client, |n| format!("EXPIRE short:{n} 1000")).await;
    eventually("the others are gone", async || {
        lab.source.call(&["EXISTS", "over:7"]).await.unwrap().number() == Some(0)
    })
    .await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(lab.destination.call(&["EXISTS", "short:7", "over:7"]).await.unwrap().number(), Some(2));
    lab.gateway.order("resume", &serde_json::json!({})).await.unwrap();
    lab.gateway.wait_phase("mirroring", PATIENCE).await.unwrap();
    lab.same().await;
    lab.cutover().await;
    assert_eq!(lab.destination.call(&["EXISTS", "short:7", "over:7"]).await.unwrap().number(), Some(1));
}

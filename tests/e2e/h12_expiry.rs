//! H12: keys whose life changes while the copy is behind. What makes every loader lose them: a key expires in the snapshot at T, the
//! application extends it at T-1, the loader drops it at T+60, and the extension finds nothing (RedisShake #981).

use std::time::Duration;

use crossfade::cli::demo::connection::Connection;
use crossfade::cli::demo::fill;
use crossfade::cli::demo::servers::Server;

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

/// Expiries move while a sweep goes over them: with their keys, and with whole databases.
#[tokio::test(flavor = "multi_thread")]
async fn h12_expiries_that_move_during_a_sweep_are_not_missed() {
    let mut lab = Setup::new().build().await;
    lab.source.call(&["CONFIG", "SET", "repl-diskless-sync-delay", "0"]).await.unwrap();
    lab.destination.call(&["CONFIG", "SET", "repl-diskless-sync-delay", "0"]).await.unwrap();
    let mut client = Connection::open(&lab.gateway.address()).await.unwrap();
    const MANY: usize = 30_000;
    for db in ["0", "1"] {
        client.must(&["SELECT", db]).await.unwrap();
        for n in 0..MANY {
            client.queue(&["SET", &format!("k:{n}"), "v", "EX", "5000"]);
        }
        client.flush().await.unwrap();
        for _ in 0..MANY {
            client.reply().await.unwrap();
        }
    }
    lab.mirror().await;
    for round in 0..4 {
        let mut mover = Connection::open(&lab.gateway.address()).await.unwrap();
        let moving = tokio::spawn(async move {
            for n in 0.. {
                let (from, to) = (format!("k:{}", n * 7919 % MANY), format!("moved:{}", n % 5000));
                mover.must(&["COPY", &from, &to, "REPLACE"]).await.unwrap();
                mover.must(&["RENAME", &to, &from]).await.unwrap();
                mover.must(&["COPY", &from, &to, "REPLACE"]).await.unwrap();
                if n % 40 == 0 {
                    mover.must(&["SWAPDB", "0", "1"]).await.unwrap();
                }
            }
        });
        let (active, passive) = if round % 2 == 0 {
            lab.cutover().await;
            (&lab.destination, &lab.source)
        } else {
            lab.rollback().await;
            (&lab.source, &lab.destination)
        };
        let odd = padded(active, true).await;
        assert!(odd.is_empty(), "to be exact after the switch: {odd:?}");
        moving.abort();
        let _ = moving.await;
        eventually("the other side is padded", async || padded(passive, false).await.is_empty()).await;
    }
    lab.same().await;
}

/// Again and again a db gets its first expiry: some of them wait behind the mirror's limit when the sweep before a switch looks which dbs
/// have any.
#[tokio::test(flavor = "multi_thread")]
async fn h12_the_first_expiry_of_a_db_just_before_the_sweep() {
    const DBS: [&str; 2] = ["--databases", "5000"];
    let limit = "[throttle]\nmirror_ops = \"100/s\"\n";
    let mut lab = Setup::new().source(&DBS).destination(&DBS).config(limit).build().await;
    for server in [&lab.source, &lab.destination] {
        server.call(&["CONFIG", "SET", "repl-diskless-sync-delay", "0"]).await.unwrap();
    }
    lab.mirror().await;
    lab.expect_log("connections that write to the source without the gateway were closed");
    let mut client = lab.source.connect().await.unwrap();
    let writing = tokio::spawn(async move {
        for db in 0..5000 {
            client.queue(&["SELECT", &db.to_string()]);
            client.queue(&["SET", "lock", "v", "EX", "500"]);
            client.flush().await.unwrap();
            let (first, second) = (client.reply().await, client.reply().await);
            if first.and(second).is_err() {
                // The switch has fenced the source.
                break;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    });
    lab.cutover().await;
    writing.abort();
    let _ = writing.await;
    let mut client = lab.destination.connect().await.unwrap();
    for db in 0..5000 {
        client.must(&["SELECT", &db.to_string()]).await.unwrap();
        let left = client.must(&["PTTL", "lock"]).await.unwrap().number().unwrap();
        assert!(left < 500_000, "db {db}: {left}");
        if left < 0 {
            assert!(db > 2, "the sweep met few dbs");
            break;
        }
    }
}

/// Keys whose stored expiry is padded, or is not.
async fn padded(server: &Server, wanted: bool) -> Vec<String> {
    let mut client = server.connect().await.unwrap();
    let mut found = Vec::new();
    for db in ["0", "1"] {
        client.must(&["SELECT", db]).await.unwrap();
        let keys = client.must(&["KEYS", "*"]).await.unwrap();
        let mut keys: Vec<String> = keys.items().iter().map(|key| key.brief()).collect();
        keys.retain(|key| !key.starts_with("crossfade:"));
        keys.iter().for_each(|key| client.queue(&["PEXPIRETIME", key]));
        client.flush().await.unwrap();
        for key in &keys {
            let at = u64::try_from(client.reply().await.unwrap().number().unwrap()).unwrap_or(0);
            if at > 0 && crossfade::mirror::expiry::is_padded(at) == wanted {
                found.push(format!("{key} in {db}: {at}"));
            }
        }
    }
    found.truncate(20);
    found
}

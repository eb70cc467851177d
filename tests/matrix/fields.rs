//! H12 for the fields of hashes: their lives change while the mirror is behind, and around a switch and back.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crossfade::cli::demo::connection::Connection as Client;
use crossfade::cli::demo::gateway::{Gateway, GatewayOptions};
use crossfade::mirror::expiry::{is_field_padded, true_field_expiry};
use crossfade::resp::value::Value;
use serde_json::json;

use crate::now_ms;
use crate::server::{Connection, Server};

const EXE: &str = env!("CARGO_BIN_EXE_crossfade");
const PATIENCE: Duration = Duration::from_secs(30);
/// How long the lives are that are extended at the last moment.
const SHORT_MS: u64 = 4000;
/// Hashes of each kind.
const HASHES: usize = 12;
/// Fields of a hash that is no listpack any more.
const MANY: usize = 1500;

type Times = BTreeMap<(String, String), i64>;

/// The names of the hashes, and how many fields each has beside `extended`, `dies`, `kept` and `far`.
fn hashes(prefix: &str) -> Vec<(String, usize)> {
    (0..HASHES).map(|n| (format!("{prefix}:{n}"), if n % 4 == 3 { MANY } else { n % 3 })).collect()
}

/// Writes them: values that compress well, and lives of all lengths.
async fn write(client: &mut Client, prefix: &str) {
    for (hash, more) in hashes(prefix) {
        let value = "abc".repeat(20);
        for field in ["extended", "dies", "kept", "far", "never"] {
            client.must(&["HSET", &hash, field, &value]).await.unwrap();
        }
        let fields: Vec<String> = (0..more).map(|n| format!("f{n}")).collect();
        for part in fields.chunks(100) {
            let mut words = vec!["HSET", &hash];
            part.iter().for_each(|field| words.extend([field.as_str(), &value]));
            client.must(&words).await.unwrap();
            let count = part.len().to_string();
            let mut words = vec!["HEXPIRE", &hash, "5000", "FIELDS", &count];
            words.extend(part.iter().map(String::as_str));
            client.must(&words).await.unwrap();
        }
        let short = SHORT_MS.to_string();
        client.must(&["HPEXPIRE", &hash, &short, "FIELDS", "3", "extended", "dies", "kept"]).await.unwrap();
        client.must(&["HPEXPIRE", &hash, "7000000", "FIELDS", "1", "far"]).await.unwrap();
    }
}

/// The stored expiry of every field in db 0; -1 for those without.
fn times(server: &mut Connection) -> Times {
    let mut found = Times::new();
    let Value::Array(keys) = server.must(&["KEYS", "*"]) else { panic!("no keys") };
    for key in keys.iter().filter_map(Value::as_str).filter(|key| !key.starts_with("crossfade:")) {
        if server.must(&["TYPE", key]).as_str() != Some("hash") {
            continue;
        }
        let Value::Array(fields) = server.must(&["HKEYS", key]) else { panic!("no fields") };
        for part in fields.chunks(200) {
            let names: Vec<&str> = part.iter().filter_map(Value::as_str).collect();
            let count = names.len().to_string();
            let mut words = vec!["HPEXPIRETIME", key, "FIELDS", &count];
            words.extend(&names);
            let Value::Array(at) = server.must(&words) else { panic!("no times") };
            for (name, at) in names.iter().zip(at) {
                found.insert((key.to_owned(), (*name).to_owned()), at.as_i64().unwrap());
            }
        }
    }
    found
}

/// Compares what two servers mean, but for what expires so soon that one may have it and the other not any more.
fn alike(a: Times, b: Times) {
    let until = now_ms() + 1000;
    let meant = |times: Times| {
        let meant = |at: i64| if at < 0 { at } else { true_field_expiry(at as u64) as i64 };
        let times = times.into_iter().map(|(field, at)| (field, meant(at)));
        times.filter(|(_, at)| *at < 0 || *at > until).collect::<Times>()
    };
    let (a, b) = (meant(a), meant(b));
    let odd: Vec<_> = a
        .keys()
        .chain(b.keys())
        .filter(|field| a.get(*field) != b.get(*field))
        .map(|field| (field, a.get(field), b.get(field)))
        .collect();
    assert!(odd.is_empty(), "{odd:?}");
}

fn is_padded(at: i64) -> bool {
    at >= 0 && is_field_padded(at as u64)
}

async fn within(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < PATIENCE, "{what}: not within {PATIENCE:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn in_step(gateway: &mut Gateway, active: &mut Connection) {
    let Value::Bulk(info) = active.must(&["INFO", "replication"]) else { panic!("INFO without text") };
    let info = String::from_utf8_lossy(&info).into_owned();
    let end = info.lines().find_map(|line| line.strip_prefix("master_repl_offset:")).unwrap();
    let end: u64 = end.trim().parse().unwrap();
    let applied = |status: &serde_json::Value| status["mirror"]["applied_offset"].as_u64() >= Some(end);
    gateway.wait_until("the mirror in step", PATIENCE, applied).await.unwrap();
}

async fn same(gateway: &mut Gateway, active: &mut Connection) {
    in_step(gateway, active).await;
    let report = gateway.order("verify", &json!({})).await.unwrap();
    assert_eq!(report["difference_count"], 0, "{report}");
}

/// What happens to the short lives while the mirror stands still.
async fn extend(client: &mut Client, prefix: &str) {
    for (hash, _) in hashes(prefix) {
        let reply =
            client.must(&["HPEXPIRE", &hash, "900000", "GT", "FIELDS", "1", "extended"]).await.unwrap();
        assert_eq!(reply.items()[0].number(), Some(1), "{hash}: the machine is too slow for this");
        client.must(&["HPERSIST", &hash, "FIELDS", "1", "kept"]).await.unwrap();
        let reply = client.must(&["HEXPIRE", &hash, "5000", "LT", "FIELDS", "1", "far"]).await.unwrap();
        assert_eq!(reply.items()[0].number(), Some(1), "{hash}");
    }
}

pub async fn run(from: &'static str, to: &'static str, method: &str) {
    let (source, destination) = (Server::start(from), Server::start(to));
    let (mut at_source, mut at_destination) = (source.connect(), destination.connect());
    at_source.line("CONFIG SET repl-diskless-sync-delay 0");
    at_destination.line("CONFIG SET repl-diskless-sync-delay 0");
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("crossfade.toml");
    std::fs::write(&file, format!("[snapshot]\nmethod = \"{method}\"\n")).unwrap();
    let options = GatewayOptions::new(EXE, folder.path(), &source.url(), &destination.url())
        .args(&["--config", &file.display().to_string()]);
    let mut gateway = Gateway::start(options).await.unwrap();
    let mut client = Client::open(&gateway.address()).await.unwrap();

    write(&mut client, "snapshot").await;
    gateway.begin().await.unwrap();
    gateway.wait_phase("mirroring", PATIENCE).await.unwrap();
    write(&mut client, "stream").await;
    in_step(&mut gateway, &mut at_source).await;
    let there = times(&mut at_destination);
    assert!(there.len() > 2 * HASHES * 5);
    let odd: Vec<_> = there.iter().filter(|((_, name), at)| (name == "never") == is_padded(**at)).collect();
    assert!(odd.is_empty(), "to be padded: {odd:?}");
    gateway.order("pause", &json!({})).await.unwrap();
    for prefix in ["snapshot", "stream"] {
        extend(&mut client, prefix).await;
    }
    within("the others die", || {
        let left = times(&mut at_source);
        !left.keys().any(|(_, name)| name == "dies")
    })
    .await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(times(&mut at_destination).len(), there.len(), "nothing expires there by itself");
    gateway.order("resume", &json!({})).await.unwrap();
    gateway.wait_phase("mirroring", PATIENCE).await.unwrap();
    same(&mut gateway, &mut at_source).await;
    alike(times(&mut at_destination), times(&mut at_source));

    // Around a switch: lives that end before, soon after, and long after it, and some that change while it is prepared.
    let mut writer = Client::open(&gateway.address()).await.unwrap();
    let rounds = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&rounds);
    let changing = tokio::spawn(async move {
        for n in 0u64.. {
            count.store(n, Ordering::Relaxed);
            let hash = format!("stream:{}", n % HASHES as u64);
            let ms = (2000 + n * 37 % 90_000).to_string();
            let flag = ["GT", "LT", "NX", "XX"][n as usize % 4];
            let field = format!("w{}", n % 20);
            writer.must(&["HSET", &hash, &field, "v"]).await.unwrap();
            writer.must(&["HPEXPIRE", &hash, "30000", "FIELDS", "1", &field]).await.unwrap();
            writer.must(&["HPEXPIRE", &hash, &ms, flag, "FIELDS", "2", &field, "extended"]).await.unwrap();
            let (copy, moved) = (format!("copy:{}", n % 7), format!("moved:{}", n % 7));
            writer.must(&["COPY", &hash, &copy, "REPLACE"]).await.unwrap();
            writer.must(&["RENAME", &copy, &moved]).await.unwrap();
            if n > 300 {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        }
    });
    within("there is traffic", || rounds.load(Ordering::Relaxed) >= 20).await;
    gateway.cutover().await.unwrap();
    let switched = rounds.load(Ordering::Relaxed);
    within("traffic goes on", || rounds.load(Ordering::Relaxed) >= switched + 50).await;
    changing.abort();
    let _ = changing.await;
    let now = times(&mut at_destination);
    let odd: Vec<_> = now.iter().filter(|(_, at)| is_padded(**at)).collect();
    assert!(odd.is_empty(), "to be exact after the switch: {odd:?}");
    same(&mut gateway, &mut at_destination).await;
    within("the source is padded", || times(&mut at_source).values().all(|at| *at < 0 || is_padded(*at)))
        .await;
    alike(times(&mut at_destination), times(&mut at_source));

    gateway.rollback().await.unwrap();
    let odd: Vec<_> = times(&mut at_source).into_iter().filter(|(_, at)| is_padded(*at)).collect();
    assert!(odd.is_empty(), "to be exact after the way back: {odd:?}");
    same(&mut gateway, &mut at_source).await;
    within("the destination is padded", || {
        times(&mut at_destination).values().all(|at| *at < 0 || is_padded(*at))
    })
    .await;
    gateway.order("finish", &json!({})).await.unwrap();
    within("the end leaves nothing padded", || !times(&mut at_destination).values().any(|at| is_padded(*at)))
        .await;
    let errors: Vec<String> =
        gateway.log().lines().filter(|line| line.contains("ERROR")).map(ToOwned::to_owned).collect();
    assert!(errors.is_empty(), "{errors:?}");
}

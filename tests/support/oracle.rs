//! Compares two servers of one version without any of the gateway's code: by the servers' own digests of every value
//! (`DEBUG DIGEST-VALUE`), by expiry, and for streams by their groups and pending entries.

use std::collections::{BTreeMap, BTreeSet};

use crossfade::cli::demo::connection::{Connection, Reply};
use crossfade::cli::demo::servers::Server;

/// Expiries on the passive side are later by this many milliseconds (see `mirror::expiry`).
const PAD: i64 = 1 << 52;

/// What is known of a key, by name.
type Facts = BTreeMap<String, String>;

/// What differs, one line each, at most 50. Keys of the gateway itself are passed over.
pub async fn compare(a: &Server, b: &Server) -> Vec<String> {
    let mut differences = Vec::new();
    for round in 0..2 {
        differences = once(a, b).await;
        // a key may expire between the two looks at it; it does not do so twice
        if differences.is_empty() || round > 0 {
            break;
        }
    }
    differences
}

async fn once(a: &Server, b: &Server) -> Vec<String> {
    let (mut a, mut b) = (a.connect().await.unwrap(), b.connect().await.unwrap());
    let mut differences = Vec::new();
    for db in databases(&mut a).await.union(&databases(&mut b).await) {
        for side in [&mut a, &mut b] {
            side.must(&["SELECT", &db.to_string()]).await.unwrap();
        }
        let (keys_a, keys_b) = (keys(&mut a).await, keys(&mut b).await);
        let only = |side: &str, key: &Vec<u8>| format!("db {db}: only on the {side}: {}", key.escape_ascii());
        for key in keys_a.difference(&keys_b) {
            if lives(&mut a, key).await {
                differences.push(only("first", key));
            }
        }
        for key in keys_b.difference(&keys_a) {
            if lives(&mut b, key).await {
                differences.push(only("second", key));
            }
        }
        let common: Vec<&Vec<u8>> = keys_a.intersection(&keys_b).collect();
        for chunk in common.chunks(400) {
            let (of_a, of_b) = (look(&mut a, chunk).await, look(&mut b, chunk).await);
            for (key, (at_a, at_b)) in chunk.iter().zip(of_a.iter().zip(&of_b)) {
                let at_b = &with_expiry_of(at_a, at_b);
                if at_a != at_b && !is_over(at_a) && !is_over(at_b) {
                    let facts = |of: &Facts, other: &Facts| {
                        let differing = of.iter().filter(|(name, value)| other.get(*name) != Some(value));
                        differing.map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join(" ")
                    };
                    let (told_a, told_b) = (facts(at_a, at_b), facts(at_b, at_a));
                    differences.push(format!("db {db}: {}: {told_a} against {told_b}", key.escape_ascii()));
                }
            }
            if differences.len() > 50 {
                return differences;
            }
        }
    }
    // A server names its libraries, and the functions of each, in an order of its own: name, engine and code tell all.
    let libraries = async |server: &mut Connection| {
        let listed = server.must(&["FUNCTION", "LIST", "WITHCODE"]).await.ok()?;
        let told = |library: &Reply| {
            library
                .items()
                .iter()
                .filter(|part| part.items().is_empty())
                .map(Reply::brief)
                .collect::<Vec<_>>()
        };
        Some(listed.items().iter().map(told).collect::<BTreeSet<_>>())
    };
    if let (Some(at_a), Some(at_b)) = (libraries(&mut a).await, libraries(&mut b).await)
        && at_a != at_b
    {
        differences.push(format!("functions: {at_a:?} against {at_b:?}"));
    }
    differences
}

/// `b` with the expiry of `a` where both were worked out from the time that is left and are nearly the same.
fn with_expiry_of(a: &Facts, b: &Facts) -> Facts {
    let mut b = b.clone();
    let worked_out = |facts: &Facts| facts["expiry"].strip_prefix('~').map(|ms| ms.parse::<i64>().unwrap());
    if let (Some(one), Some(other)) = (worked_out(a), worked_out(&b))
        && (one - other).abs() < 1000
    {
        b.insert("expiry".into(), a["expiry"].clone());
    }
    b
}

/// What differs between `a` and `b`, where each key of `a` has another name and db on `b`. Nobody may be writing.
pub async fn compare_renamed(
    a: &Server,
    b: &Server,
    on_b: impl Fn(u32, &[u8]) -> (u32, Vec<u8>),
) -> Vec<String> {
    let renamed = everything(a).await.into_iter().map(|((db, key), facts)| (on_b(db, &key), facts));
    let (a, mut b) = (renamed.collect::<Vec<_>>(), everything(b).await);
    let mut differences = Vec::new();
    for ((db, key), facts) in a {
        let name = key.escape_ascii().to_string();
        match b.remove(&(db, key)) {
            Some(other) if other == facts => {}
            other => differences.push(format!("db {db}: {name}: {facts:?} against {other:?}")),
        }
    }
    let only = b.keys().map(|(db, key)| format!("db {db}: only on the second: {}", key.escape_ascii()));
    differences.extend(only);
    differences
}

/// All that lives there.
async fn everything(server: &Server) -> BTreeMap<(u32, Vec<u8>), Facts> {
    let mut server = server.connect().await.unwrap();
    let mut found = BTreeMap::new();
    for db in databases(&mut server).await {
        server.must(&["SELECT", &db.to_string()]).await.unwrap();
        let keys = keys(&mut server).await;
        let keys: Vec<&Vec<u8>> = keys.iter().collect();
        for (key, facts) in keys.iter().zip(look(&mut server, &keys).await) {
            if !is_over(&facts) {
                found.insert((db, (*key).clone()), facts);
            }
        }
    }
    found
}

async fn databases(server: &mut Connection) -> BTreeSet<u32> {
    let info = server.must(&["INFO", "keyspace"]).await.unwrap();
    let text = String::from_utf8_lossy(info.bytes().unwrap()).into_owned();
    text.lines().filter_map(|line| line.strip_prefix("db")?.split_once(':')?.0.parse().ok()).collect()
}

async fn keys(server: &mut Connection) -> BTreeSet<Vec<u8>> {
    let (mut found, mut cursor) = (BTreeSet::new(), b"0".to_vec());
    loop {
        let reply = server.must(&[b"SCAN".as_slice(), &cursor, b"COUNT", b"5000"]).await.unwrap();
        let [next, keys] = reply.items() else { panic!("SCAN: {reply:?}") };
        let own = |key: &&[u8]| !key.starts_with(b"crossfade:");
        found.extend(keys.items().iter().filter_map(Reply::bytes).filter(own).map(<[u8]>::to_vec));
        cursor = next.bytes().unwrap().to_vec();
        if cursor == b"0" {
            return found;
        }
    }
}

/// Whether it is there and its life is not over: a server keeps an expired key until it comes across it, and the
/// passive side until it hears of that.
async fn lives(server: &mut Connection, key: &[u8]) -> bool {
    let (exact, left) = ([b"PEXPIRETIME".as_slice(), key], [b"PTTL".as_slice(), key]);
    let (exact, left) = (server.call(&exact).await.unwrap(), server.must(&left).await.unwrap());
    match exact.number() {
        Some(expiry) => expiry != -2 && !in_the_past(true_expiry(expiry)),
        None => left.number() != Some(-2),
    }
}

fn is_over(facts: &Facts) -> bool {
    in_the_past(facts["expiry"].trim_start_matches('~').parse().unwrap())
}

/// When a key expires. Before 7.0 that is worked out from what is left, which is not exact.
fn expiry(exact: &Reply, left: &Reply) -> String {
    match (exact.number(), left.number().unwrap()) {
        (Some(expiry), _) => true_expiry(expiry).to_string(),
        (None, left) if left < 0 => left.to_string(),
        (None, left) => format!("~{}", true_expiry(now_ms() + left)),
    }
}

fn now_ms() -> i64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    i64::try_from(now.as_millis()).unwrap()
}

fn in_the_past(expiry: i64) -> bool {
    expiry >= 0 && expiry <= now_ms()
}

fn true_expiry(expiry: i64) -> i64 {
    if expiry > PAD { expiry - PAD } else { expiry }
}

/// Digest, expiry and, for streams, everything else that the server tells about each key.
async fn look(server: &mut Connection, keys: &[&Vec<u8>]) -> Vec<Facts> {
    for key in keys {
        // in this order: DEBUG looks at a key whose life is over, PEXPIRETIME removes it
        server.queue(&[b"PEXPIRETIME".as_slice(), key]);
        server.queue(&[b"PTTL".as_slice(), key]);
        server.queue(&[b"DEBUG".as_slice(), b"DIGEST-VALUE", key]);
        server.queue(&[b"TYPE".as_slice(), key]);
    }
    server.flush().await.unwrap();
    let mut seen = Vec::new();
    for _ in keys {
        let (exact, left) = (server.reply().await.unwrap(), server.reply().await.unwrap());
        let digest = server.reply().await.unwrap();
        let digest = digest.items().first().unwrap_or_else(|| panic!("{digest:?}")).brief();
        let kind = server.reply().await.unwrap().brief();
        let facts = [("digest", digest), ("expiry", expiry(&exact, &left)), ("type", kind)];
        seen.push(facts.map(|(name, value)| (name.to_string(), value)).into_iter().collect::<Facts>());
    }
    for (key, facts) in keys.iter().zip(&mut seen) {
        if facts["type"] == "stream" {
            // an error: it went away between the two looks, and the next round will tell
            let info =
                server.call(&[b"XINFO".as_slice(), b"STREAM", key, b"FULL", b"COUNT", b"0"]).await.unwrap();
            collect(&info, "", facts);
        }
    }
    seen
}

/// The fields of XINFO STREAM FULL that are data, not layout and not the time of the last look.
fn collect(info: &Reply, prefix: &str, facts: &mut Facts) {
    for pair in info.items().chunks(2) {
        let [name, value] = pair else { continue };
        let name = name.brief();
        let path = format!("{prefix}{name}");
        match name.as_str() {
            // entries-read and lag: after XREADGROUP replication carries the last id only
            "radix-tree-keys" | "radix-tree-nodes" | "seen-time" | "active-time" | "entries"
            | "entries-read" | "lag" => {}
            // reading one's own pending entries again changes their time and count on the primary alone: replication
            // does not carry that
            "pel" | "pending" => {
                let ids: Vec<_> =
                    value.items().iter().filter_map(|entry| Some(entry.items().first()?.brief())).collect();
                facts.insert(path, ids.join(","));
            }
            "groups" | "consumers" => {
                for (index, item) in value.items().iter().enumerate() {
                    collect(item, &format!("{path}.{index}."), facts);
                }
            }
            _ => {
                facts.insert(path, value.brief());
            }
        }
    }
}

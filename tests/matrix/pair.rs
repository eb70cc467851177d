//! One pair of servers: filled, mirrored under writes, compared, emptied.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use crossfade::cli::demo::connection::Connection as Client;
use crossfade::cli::demo::gateway::{Gateway, GatewayOptions, tail};
use crossfade::resp::value::Value;

use crate::fill::fill;
use crate::server::{Connection, Look, Server, differences, look};
use crate::versions::Version;
use crate::writes::Writer;

const EXE: &str = env!("CARGO_BIN_EXE_crossfade");

/// The time that anything may take on a loaded machine before it counts as stuck.
const PATIENCE: Duration = Duration::from_secs(30);

const DBS: [u32; 16] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15];

/// Commands that write and are not run, and why.
const EXEMPT: [(&str, &str); 6] = [
    ("migrate", "needs a third server, and reaches the stream as DEL"),
    ("pfdebug", "changes how a value is stored, for tests of the server"),
    ("restore-asking", "RESTORE inside a cluster"),
    ("trimslots", "clusters only"),
    ("cluster|flushslot", "clusters only"),
    ("xidmprecord", "written by AOF rewrites only"),
];

/// Runs the pair; what is worth telling, or what is wrong.
pub fn run(from: &'static str, to: &'static str) -> Result<String, String> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| error.to_string())?
        .block_on(async {
            let (said, method) = mirrored(from, to, "auto").await?;
            if method == "commands" {
                return Ok(said);
            }
            let (more, _) =
                mirrored(from, to, "commands").await.map_err(|what| format!("by commands: {what}"))?;
            Ok(format!("{said} as a replica{more} by commands"))
        })
}

/// Runs a pair whose destination cannot hold everything, with both policies; what was dropped.
pub fn lacking(from: &'static str, to: &'static str) -> Result<String, String> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| error.to_string())?
        .block_on(both_policies(from, to))
}

async fn both_policies(from: &'static str, to: &'static str) -> Result<String, String> {
    let source = Server::start(from);
    let mut at_source = source.connect();
    at_source.line("CONFIG SET repl-diskless-sync-delay 0");
    fill(&source);
    let mut said = String::new();
    for policy in ["fail", "drop"] {
        let destination = Server::start(to);
        let mut at_destination = destination.connect();
        let newer = version(&mut at_destination);
        let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
        let file = folder.path().join("crossfade.toml");
        std::fs::write(&file, format!("[snapshot]\non_unsupported = \"{policy}\"\n"))
            .map_err(|error| error.to_string())?;
        let options = GatewayOptions::new(EXE, folder.path(), &source.url(), &destination.url())
            .args(&["--config", &file.display().to_string()]);
        let mut gateway = Gateway::start(options).await.map_err(|error| error.to_string())?;
        gateway.begin().await.map_err(|error| error.to_string())?;
        let status = gateway
            .wait_until("an end", PATIENCE, |status| status["phase"] == "mirroring" || stopped(status))
            .await
            .map_err(|error| error.to_string())?;
        if policy == "fail" {
            let remedy = status["error"]["remedy"].as_str().unwrap_or_default();
            if !remedy.contains("on_unsupported") {
                return Err(format!("the remedy is missing: {status}"));
            }
            continue;
        }
        // The stream too: the first of a kind by its refusal, the others by its name.
        for nth in 0..3 {
            at_source.line(&format!("ARSET array:late {nth} v"));
            at_source.line(&format!("VADD v:late VALUES 2 1 2 {nth}"));
            at_source.must(&["HSET", "hf:late", "a", "1"]);
            at_source.line("HEXPIRE hf:late 1000 FIELDS 1 a");
            at_source.must(&["INCR", "counted"]);
        }
        let mut wrong = compare(&mut gateway, &mut at_source, &mut at_destination).await?;
        let fields = newer.since("7.4", "9.0");
        wrong.retain(|line| {
            let lost = line.contains(" array:") || line.contains(" v:late") || line.starts_with("functions");
            // The fields are there; only when they expire is lost.
            let bare = !fields
                && (line.contains(" hash:field-expiry") || line.contains(" hf:late"))
                && !line.contains("is missing");
            !lost && !bare
        });
        if !wrong.is_empty() {
            return Err(wrong.join("\n"));
        }
        let status = gateway.status().await.map_err(|error| error.to_string())?;
        let dropped = &status["snapshot"]["dropped"];
        if dropped["count"].as_u64() < Some(3) || dropped["named"].as_array().is_none_or(Vec::is_empty) {
            return Err(format!("not counted: {status}"));
        }
        said = format!("{} dropped, {}", dropped["count"], dropped["named"][0]);
    }
    Ok(said)
}

/// What is worth telling, and how the snapshot travelled.
async fn mirrored(from: &'static str, to: &'static str, method: &str) -> Result<(String, String), String> {
    let source = Server::start(from);
    let destination = Server::start(to);
    let (mut at_source, mut at_destination) = (source.connect(), destination.connect());
    // Not before 2.8.18, and otherwise a wait of five seconds before the snapshot.
    at_source.line("CONFIG SET repl-diskless-sync-delay 0");
    let (older, newer) = (version(&mut at_source), version(&mut at_destination));
    fill(&source);
    reduce(&mut at_source, newer);

    let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
    let file = folder.path().join("crossfade.toml");
    std::fs::write(&file, format!("[snapshot]\nmethod = \"{method}\"\n"))
        .map_err(|error| error.to_string())?;
    let options = GatewayOptions::new(EXE, folder.path(), &source.url(), &destination.url())
        .args(&["--config", &file.display().to_string()]);
    let mut gateway = Gateway::start(options).await.map_err(|error| error.to_string())?;
    let client = Client::open(&gateway.address()).await.map_err(|error| error.to_string())?;
    let mut writer = Writer::new(client, older, newer);

    writer.round().await;
    if !writer.refused.is_empty() {
        return Err(format!("lines that are wrong: {:#?}", writer.refused));
    }
    gateway.begin().await.map_err(|error| error.to_string())?;
    let mut during = 0;
    loop {
        writer.round().await;
        during += 1;
        let status = gateway.status().await.map_err(|error| error.to_string())?;
        if status["phase"] == "mirroring" || during == 50 {
            break;
        }
        if stopped(&status) {
            return Err(format!("{}\n{}", status["error"], gateway.log()));
        }
    }
    let mirroring = gateway.wait_phase("mirroring", PATIENCE).await;
    let status = mirroring.map_err(|error| format!("{error}\nthe source:\n{}", tail(&source.log(), 30)))?;
    let travelled = status["snapshot"]["method"].as_str().unwrap_or_default().to_owned();
    writer.round().await;
    if !older.since("5.0", "7.2") {
        // Scripts travel as text, and the second time by their digests, which nobody knows any more (H20).
        at_destination.line("SCRIPT FLUSH");
        gateway.restart().await.map_err(|error| error.to_string())?;
        gateway.wait_phase("mirroring", PATIENCE).await.map_err(|error| error.to_string())?;
        writer.reconnected(Client::open(&gateway.address()).await.map_err(|error| error.to_string())?);
        writer.round().await;
    }

    let mut wrong = compare(&mut gateway, &mut at_source, &mut at_destination).await?;
    if older != newer {
        // PFMERGE chooses between two forms of one value.
        wrong.retain(|line| !line.contains(" pf:merged:"));
    }
    if wrong.is_empty() {
        writer.flush_all().await;
        if from == to {
            untried(&mut at_source, &writer.ran)?;
        }
        wrong = compare(&mut gateway, &mut at_source, &mut at_destination).await?;
    }
    let noise: Vec<String> =
        gateway.log().lines().filter(|line| line.contains("ERROR")).map(ToOwned::to_owned).collect();
    if wrong.is_empty() && noise.is_empty() {
        return Ok((format!(", {} rounds", during + 2), travelled));
    }
    wrong.truncate(40);
    Err(format!("{}\n{}", wrong.join("\n"), noise.join("\n")))
}

/// Whether something is wrong that does not pass by itself.
fn stopped(status: &serde_json::Value) -> bool {
    status["phase"] == "failed" || (!status["error"].is_null() && status["error"]["retry_until"].is_null())
}

fn version(connection: &mut Connection) -> Version {
    let Value::Bulk(info) = connection.must(&["INFO", "server"]) else { panic!("INFO without text") };
    Version::of(&String::from_utf8_lossy(&info))
}

/// Removes from the source what the destination cannot hold.
fn reduce(source: &mut Connection, destination: Version) {
    for db in crate::fill::DBS {
        source.must(&["SELECT", &db.to_string()]);
        if !destination.since("7.4", "9.0") {
            source.must(&["DEL", "hash:field-expiry", "hash:field-expiry:many"]);
        }
        if !destination.since("8.8", "-") {
            source.must(&["DEL", "array:samples", "array:inserted", "array:sparse", "array:many"]);
        }
        if !destination.since("5.0", "7.2") {
            for key in ["one", "same", "other", "samples", "many", "dangling", "emptied", "deleted", "never"]
            {
                source.must(&["DEL", &format!("stream:{key}")]);
            }
        }
    }
    source.must(&["SELECT", "0"]);
    if !destination.since("7.0", "7.2") {
        source.line("FUNCTION FLUSH");
    }
}

/// Commands that the server's table calls writing, and that nobody ran.
fn untried(source: &mut Connection, ran: &BTreeSet<String>) -> Result<(), String> {
    let mut missing = Vec::new();
    let Value::Array(table) = source.must(&["COMMAND"]) else { panic!("COMMAND without a table") };
    let mut each = |entry: &Value| {
        let Some(entry) = entry.as_array() else { return };
        let name = entry[0].as_str().unwrap_or_default().to_lowercase();
        let writes =
            entry[2].as_array().is_some_and(|flags| flags.iter().any(|flag| flag.as_str() == Some("write")));
        if writes && !ran.contains(&name) && !EXEMPT.iter().any(|(exempt, _)| *exempt == name) {
            missing.push(name);
        }
    };
    for entry in &table {
        each(entry);
        if let Some(subcommands) = entry.as_array().and_then(|entry| entry.get(9)?.as_array()) {
            subcommands.iter().for_each(&mut each);
        }
    }
    if missing.is_empty() { Ok(()) } else { Err(format!("nobody ran {missing:?}")) }
}

/// What differs once the mirror holds everything that the source has written.
async fn compare(
    gateway: &mut Gateway,
    from: &mut Connection,
    to: &mut Connection,
) -> Result<Vec<String>, String> {
    // What has come due is deleted when somebody looks at it, and the look tells the replicas.
    tokio::time::sleep(Duration::from_millis(50)).await;
    for db in DBS {
        from.must(&["SELECT", &db.to_string()]);
        from.must(&["SCAN", "0", "COUNT", "1000000"]);
    }
    let expected = look(from, &DBS);
    let end = offset(from);
    let begun = Instant::now();
    gateway
        .wait_until("the mirror in step", PATIENCE, |status| {
            status["mirror"]["applied_offset"].as_u64().is_some_and(|applied| applied >= end)
                || stopped(status)
        })
        .await
        .map_err(|error| error.to_string())?;
    let status = gateway.status().await.map_err(|error| error.to_string())?;
    if stopped(&status) {
        return Err(format!("after {:?}: {}", begun.elapsed(), status["error"]));
    }
    let alike = version(from) == version(to);
    let mut wrong = differences(&replicated(expected, alike), &replicated(look(to, &DBS), alike));
    wrong.extend(functions(from, to));
    Ok(wrong)
}

/// Without what no replica is told: XREADGROUP travels as XCLAIM, which does not count what a group has read. Between
/// versions of which each says other things about a stream, its entries.
fn replicated(mut looks: BTreeMap<(u32, Vec<u8>), Look>, alike: bool) -> BTreeMap<(u32, Vec<u8>), Look> {
    for ((_, key), look) in &mut looks {
        if !alike && look.value.starts_with("stream: ") {
            look.value = look.value.split("] ").next().unwrap_or_default().to_owned();
            continue;
        }
        if key.starts_with(b"x:") {
            let facts = look
                .value
                .split_inclusive(", ")
                .filter(|fact| !["entries-read: ", "lag: "].iter().any(|told| fact.starts_with(told)));
            look.value = facts.collect();
        }
    }
    looks
}

/// Function libraries that are not the same on both sides.
fn functions(from: &mut Connection, to: &mut Connection) -> Option<String> {
    let list = |connection: &mut Connection| match connection.call(&["FUNCTION", "LIST", "WITHCODE"]) {
        Value::Array(all) => {
            let mut all: Vec<String> = all.iter().map(|one| format!("{one:?}")).collect();
            all.sort();
            all
        }
        _ => Vec::new(),
    };
    let (a, b) = (list(from), list(to));
    (a != b).then(|| format!("functions\n    {a:?}\n    {b:?}"))
}

fn offset(source: &mut Connection) -> u64 {
    let Value::Bulk(info) = source.must(&["INFO", "replication"]) else { panic!("INFO without text") };
    let info = String::from_utf8_lossy(&info).into_owned();
    let offset = info.lines().find_map(|line| line.strip_prefix("master_repl_offset:"));
    offset.and_then(|offset| offset.trim().parse().ok()).expect("an offset")
}

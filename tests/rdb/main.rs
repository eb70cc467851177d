//! The RDB reader and the snapshot loader against what real servers write.
//!
//! `redis-server` is taken from PATH. `CROSSFADE_SERVERS` may name a folder of further servers, each as
//! `NAME/redis-server`.

#![allow(clippy::unwrap_used)] // clippy takes helpers of an integration test for library code

mod fill;
mod server;

use std::collections::BTreeMap;
use std::io::Read;
use std::sync::Arc;

use crossfade::backfill::{self, LoadOptions, LoadReport, Progress};
use crossfade::config::OnExistingKey;
use crossfade::rdb::{Dialect, Item, RawValue, ReadOptions, Reader, What, split_dump};
use crossfade::resp::value::Value;
use tokio_util::sync::CancellationToken;

use fill::{DBS, fill, noise};
use server::{Server, differences, look, servers};

/// Every server whose files are understood.
const ALL: [&str; 19] = [
    "redis-2.8",
    "redis-3.0",
    "redis-3.2",
    "redis-4.0rc",
    "redis-5.0",
    "redis-6.0",
    "redis-6.2",
    "redis-7.0",
    "redis-7.2",
    "redis-7.4",
    "redis-8.0",
    "redis-8.2",
    "redis-8.6",
    "redis-8.10",
    "redict-7.3",
    "valkey-8.0",
    "valkey-8.1",
    "valkey-9.0",
    "valkey-9.1",
];

fn dialect(name: &str) -> Dialect {
    Dialect {
        hash_field_expiry: name == "redis-7.4" || name.starts_with("redis-8") || name.starts_with("valkey-9"),
        streams: !matches!(name, "redis-2.8" | "redis-3.0" | "redis-3.2" | "redis-4.0rc"),
        idempotence: matches!(name, "redis-8.6" | "redis-8.10"),
        redis_8_8: name == "redis-8.10",
        create_consumer: !matches!(name, "redis-5.0" | "redis-6.0"),
        stream_counters: !matches!(name, "redis-5.0" | "redis-6.0" | "redis-6.2"),
        lose_field_expiry: false,
        padded_fields: false,
    }
}

/// Gives few bytes at a time, of changing number.
struct Trickle<'a>(&'a [u8], usize);

impl Read for Trickle<'_> {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        self.1 = self.1 * 7 % 1013 + 1;
        let n = self.1.min(buf.len()).min(self.0.len());
        buf[..n].copy_from_slice(&self.0[..n]);
        self.0 = &self.0[n..];
        Ok(n)
    }
}

#[test]
fn files_of_every_server_restore_to_the_same_values() {
    for name in servers(&ALL) {
        let source = Server::start(name);
        fill(&source);
        let file = source.save();
        let mut from = source.connect();
        let expected = look(&mut from, &DBS);

        let restored = Server::start(name);
        let mut to = restored.connect();
        let mut reader = Reader::new(Trickle(&file, 1), ReadOptions::default());
        let mut keys = 0;
        let mut selected = u32::MAX;
        while let Some(item) = reader.next_item().unwrap() {
            let Item::Entry(entry) = item else { continue };
            if entry.db != selected {
                selected = entry.db;
                for connection in [&mut from, &mut to] {
                    connection.must(&["SELECT", &selected.to_string()]);
                }
            }
            keys += 1;
            let mut payload = Vec::new();
            entry.value.dump_payload(&mut payload);
            // The same bytes that the server itself gives, but for version and checksum.
            let Value::Bulk(dumped) = from.must(&[b"DUMP", entry.key]) else { panic!() };
            // A hash with a template comes without it.
            let plain = split_dump(&dumped).unwrap().0.plain_payload();
            assert_eq!(plain.is_some(), entry.key.starts_with(b"hash:template:"), "{name}");
            let dumped = plain.unwrap_or_else(|| dumped.to_vec());
            let (ours, its) = (&payload[..payload.len() - 10], &dumped[..dumped.len() - 10]);
            let key = entry.key.escape_ascii();
            // A hash table may be walked in another order the next time.
            if matches!(ours[0], 2 | 4 | 5 | 22 | 24) {
                assert_eq!(ours.len(), its.len(), "{name}: {key}");
            } else {
                assert_eq!(ours, its, "{name}: {key}");
            }
            to.must(&[b"RESTORE", entry.key, b"0", &payload]);
            if let Some(at) = entry.expire_at_ms {
                to.must(&[b"PEXPIREAT", entry.key, at.to_string().as_bytes()]);
            }
        }
        assert_eq!(keys, expected.len(), "{name}");
        assert_eq!(reader.bytes_read(), file.len() as u64);
        let found = differences(&expected, &look(&mut to, &DBS));
        assert!(found.is_empty(), "{name}:\n{}", found.join("\n"));
    }
}

/// Runs the commands of every key of a file at a server.
fn write_as_commands(file: &[u8], options: ReadOptions, server: &Server, dialect: &Dialect) -> usize {
    let mut to = server.connect();
    let mut reader = Reader::new(Trickle(file, 3), options);
    let mut big = 0;
    let mut selected = 0;
    while let Some(item) = reader.next_item().unwrap() {
        let db = match &item {
            Item::Entry(entry) => entry.db,
            Item::Big(entry) => entry.db,
            _ => continue,
        };
        if db != selected {
            selected = db;
            to.must(&["SELECT", &db.to_string()]);
        }
        let mut sink = |args: &[&[u8]]| {
            to.must(args);
            Ok(())
        };
        let (key, expiry) = match item {
            Item::Entry(entry) => {
                entry.value.commands(entry.key, dialect, &mut sink).unwrap();
                (entry.key.to_vec(), entry.expire_at_ms)
            }
            Item::Big(entry) => {
                big += 1;
                let (key, expiry) = (entry.key.clone(), entry.expire_at_ms);
                entry.commands(dialect, &mut sink).unwrap();
                (key, expiry)
            }
            _ => continue,
        };
        if let Some(at) = expiry {
            to.must(&[b"PEXPIREAT", &key[..], at.to_string().as_bytes()]);
        }
    }
    big
}

#[test]
fn files_of_every_server_written_as_commands_give_the_same_values() {
    for name in servers(&ALL) {
        let source = Server::start(name);
        fill(&source);
        let file = source.save();
        let expected = look(&mut source.connect(), &DBS);

        let written = Server::start(name);
        write_as_commands(&file, ReadOptions::default(), &written, &dialect(name));
        let found = differences(&expected, &look(&mut written.connect(), &DBS));
        assert!(found.is_empty(), "{name}:\n{}", found.join("\n"));

        // The same with everything above 100 bytes streamed. Pending entries of deleted ones are beyond that.
        let streamed = Server::start(name);
        let big = write_as_commands(
            &file,
            ReadOptions { big_value: 100, ..Default::default() },
            &streamed,
            &dialect(name),
        );
        assert!(big > 50, "{name}: {big}");
        let mut found = differences(&expected, &look(&mut streamed.connect(), &DBS));
        found.retain(|line| !line.contains("stream:dangling") && !line.contains("stream:emptied"));
        assert!(found.is_empty(), "{name}:\n{}", found.join("\n"));
    }
}

fn load(file: Vec<u8>, options: LoadOptions) -> crossfade::Result<LoadReport> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let progress = Arc::new(Progress::default());
    runtime.block_on(backfill::load(std::io::Cursor::new(file), options, progress, CancellationToken::new()))
}

#[test]
fn snapshots_are_loaded_into_servers_of_other_versions() {
    let pairs = [
        ("redis-7.0", "redis-7.0"),
        ("redis-2.8", "redis-8.0"),
        ("redis-3.2", "valkey-9.0"),
        ("redis-6.2", "redis-7.4"),
        ("redis-7.4", "redis-7.4"),
        ("redis-7.4", "valkey-9.0"),
        ("redis-8.0", "redis-8.0"),
        ("redis-8.6", "redis-8.10"),
        ("redis-8.10", "redis-8.10"),
        ("valkey-9.0", "valkey-9.0"),
        ("valkey-9.0", "redis-8.0"),
        ("redict-7.3", "valkey-8.1"),
        // Backwards: no field expiries there.
        ("redis-7.4", "redis-6.2"),
        ("redis-8.0", "redis-7.0"),
        ("redis-8.10", "valkey-9.0"),
        ("redis-8.10", "redis-8.2"),
        ("redis-7.2", "redis-5.0"),
        ("valkey-9.0", "redis-7.2"),
    ];
    let names = servers(&ALL);
    let known = pairs.into_iter().filter(|(from, to)| names.contains(from) && names.contains(to));
    let known: Vec<_> = if names == [""] { vec![("", "")] } else { known.collect() };
    for (from, to) in known {
        let source = Server::start(from);
        fill(&source);
        let file = source.save();
        let expected = look(&mut source.connect(), &DBS);
        let destination = Server::start(to);
        // What is in the way is replaced, whatever its type.
        let mut before = destination.connect();
        for key in ["string:1", "list:samples", "hash:many", "stream:same"] {
            before.must(&["SADD", key, "in the way"]);
        }
        let options = LoadOptions { skip_failed: true, ..LoadOptions::new(destination.endpoint()) };
        let report = load(file, options).unwrap_or_else(|error| panic!("{from} to {to}: {error}"));
        let mut found = differences(&expected, &look(&mut before, &DBS));
        for failed in &report.failed {
            assert!(
                ["field-expiry", "array:", "function"].iter().any(|what| failed.key.contains(what)),
                "{from} to {to}: {failed}"
            );
            found.retain(|line| !line.contains(failed.key.trim_matches('"')));
        }
        // Counters of streams differ where one side does not have them, and 7.0 changed what XINFO says.
        if dialect(from).stream_counters != dialect(to).stream_counters
            || dialect(from).streams != dialect(to).streams
            || from != to
        {
            found.retain(|line| !line.contains(" stream:"));
        }
        assert!(found.is_empty(), "{from} to {to}:\n{}", found.join("\n"));
        // What the destination has no command for.
        let expires = |name: &str| dialect(name).hash_field_expiry;
        let lacking = expires(from) && !expires(to)
            || dialect(from).redis_8_8 && !dialect(to).redis_8_8
            || (from, to) == ("redis-7.2", "redis-5.0"); // functions
        assert_eq!(report.failed_count > 0, lacking, "{from} to {to}: {:?}", report.failed);
        assert_eq!(
            report.keys
                + report.failed.iter().filter(|failed| !failed.key.starts_with("function")).count() as u64,
            expected.len() as u64,
            "{from} to {to}"
        );
    }
}

#[test]
fn keys_that_are_there_are_kept_when_that_is_wanted() {
    let name = servers(&["redis-7.0"])[0];
    let source = Server::start(name);
    fill(&source);
    let file = source.save();
    let mut expected = look(&mut source.connect(), &DBS);
    let destination = Server::start(name);
    let mut before = destination.connect();
    for key in ["string:1", "string:expires:0", "list:samples", "hash:many", "stream:same", "string:long"] {
        before.must(&["SADD", key, "kept"]);
    }
    let kept = look(&mut before, &[0]);
    expected.extend(kept.clone());
    for big_value in [16 << 20, 100] {
        let options = LoadOptions {
            existing: OnExistingKey::Keep,
            big_value,
            ..LoadOptions::new(destination.endpoint())
        };
        let report = load(file.clone(), options).unwrap();
        let there = if big_value == 100 { expected.len() } else { kept.len() };
        assert_eq!((report.kept, report.keys), (there as u64, (expected.len() - there) as u64));
        let found = differences(&expected, &look(&mut before, &DBS));
        assert!(found.is_empty(), "{}", found.join("\n"));
    }
}

#[test]
fn big_values_travel_in_pieces() {
    let name = servers(&["redis-7.0"])[0];
    let source = Server::start(name);
    let mut from = source.connect();
    from.must(&[b"SET", &b"noise"[..], &noise(70 << 20, 11)]);
    from.must(&[b"SET", &b"zeros"[..], &vec![0; 70 << 20]]);
    from.must(&["PEXPIRE", "noise", "1000000"]);
    for i in 0..600 {
        let chunk = noise(60_000, i);
        from.must(&[&b"RPUSH"[..], b"list", &chunk]);
        from.must(&[&b"HSET"[..], b"hash", i.to_string().as_bytes(), &chunk]);
    }
    let file = source.save();
    let expected = look(&mut from, &[0]);
    let destination = Server::start(name);
    let report = load(file, LoadOptions::new(destination.endpoint())).unwrap();
    assert_eq!(report.keys, 4);
    let found = differences(&expected, &look(&mut destination.connect(), &[0]));
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn a_destination_that_is_full_ends_the_load_with_a_passing_error() {
    let name = servers(&["redis-7.0"])[0];
    let source = Server::start(name);
    fill(&source);
    let file = source.save();
    let destination = Server::start_with(name, &["--maxmemory", "2mb"]);
    let error = load(file.clone(), LoadOptions::new(destination.endpoint())).unwrap_err();
    assert!(error.retry && error.to_string().contains("OOM"), "{error}");
    destination.connect().must(&["CONFIG", "SET", "maxmemory", "0"]);
    let report = load(file, LoadOptions::new(destination.endpoint())).unwrap();
    let expected = look(&mut source.connect(), &DBS);
    assert_eq!(report.keys, expected.len() as u64);
    assert!(differences(&expected, &look(&mut destination.connect(), &DBS)).is_empty());
}

#[test]
fn a_db_that_the_destination_lacks_is_named_and_nothing_lands_elsewhere() {
    let name = servers(&["redis-7.0"])[0];
    let source = Server::start(name);
    let mut from = source.connect();
    from.must(&["SET", "a", "0"]);
    from.must(&["SELECT", "9"]);
    from.must(&["SET", "a", "9"]);
    let destination = Server::start_with(name, &["--databases", "4"]);
    // One connection, so that what went before the refused SELECT is known to be there.
    let options = LoadOptions { connections: 1, ..LoadOptions::new(destination.endpoint()) };
    let error = load(source.save(), options).unwrap_err();
    assert!(!error.retry && error.to_string().contains("db 9"), "{error}");
    assert_eq!(destination.connect().must(&["GET", "a"]).as_bytes(), Some(&b"0"[..]));
}

/// A file that is still being written: more comes when the test says so.
struct Live(std::sync::mpsc::Receiver<Vec<u8>>, Vec<u8>);

impl Read for Live {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        if self.1.is_empty() {
            self.1 = self.0.recv().unwrap_or_default();
        }
        let n = buf.len().min(self.1.len());
        buf[..n].copy_from_slice(&self.1[..n]);
        self.1.drain(..n);
        Ok(n)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn loading_follows_the_file_and_ends_when_it_is_cancelled_or_the_destination_is_lost() {
    let name = servers(&["redis-7.0"])[0];
    let source = Server::start(name);
    let mut from = source.connect();
    for i in 0..20_000 {
        from.must(&["SET", &format!("key:{i}"), "a value of some length, so that batches fill"]);
    }
    let file = source.save();
    let half = file.len() / 2;
    let deadline = std::time::Duration::from_secs(20);
    for end in ["whole", "cancelled", "lost"] {
        let mut destination = Server::start(name);
        let (more, live) = std::sync::mpsc::sync_channel(2);
        let progress = Arc::new(Progress::default());
        let cancel = CancellationToken::new();
        let options = LoadOptions::new(destination.endpoint());
        let load = backfill::load(Live(live, Vec::new()), options, Arc::clone(&progress), cancel.clone());
        let load = tokio::spawn(load);
        more.send(file[..half].to_vec()).unwrap();
        let begun = std::time::Instant::now();
        while progress.view().keys_loaded < 8_000 {
            assert!(begun.elapsed() < deadline, "{end}: {:?}", progress.view());
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
        assert_eq!(progress.view().keys_expected, 20_000);
        match end {
            "cancelled" => cancel.cancel(),
            "lost" => destination.kill(),
            _ => {}
        }
        if end != "cancelled" {
            more.send(file[half..].to_vec()).unwrap();
            drop(more);
        }
        let outcome = tokio::time::timeout(deadline, load).await.expect(end).unwrap();
        match end {
            "whole" => assert_eq!(outcome.unwrap().keys, 20_000),
            _ => {
                let error = outcome.unwrap_err();
                assert!(error.retry, "{end}: {error}");
            }
        }
    }
}

#[test]
fn a_throttled_load_takes_its_time() {
    let name = servers(&["redis-7.0"])[0];
    let source = Server::start(name);
    let mut from = source.connect();
    for i in 0..2000 {
        from.must(&[b"SET", format!("key:{i}").as_bytes(), &noise(1000, i)]);
    }
    let destination = Server::start(name);
    let options = LoadOptions::new(destination.endpoint());
    options.throttle.bytes.store(4_000_000, std::sync::atomic::Ordering::Relaxed);
    let report = load(source.save(), options).unwrap();
    // 2 MB, less what the first moments are allowed.
    assert!((0.3..3.0).contains(&report.took.as_secs_f64()), "{:?}", report.took);
}

/// Reads to the end or to the first error, taking every value apart.
fn read_all(file: &[u8], big_value: usize) -> Result<BTreeMap<Vec<u8>, usize>, What> {
    let mut reader = Reader::new(file, ReadOptions { big_value, ..Default::default() });
    let mut seen = BTreeMap::new();
    while let Some(item) = reader.next_item().map_err(|error| error.what)? {
        match item {
            Item::Entry(entry) => {
                take_apart(&entry.value);
                seen.insert(entry.key.to_vec(), entry.value.body.len());
            }
            Item::Big(entry) => {
                let key = entry.key.clone();
                entry.commands(&Dialect::default(), &mut |_| Ok(())).map_err(|error| error.what)?;
                seen.insert(key, 0);
            }
            _ => {}
        }
    }
    Ok(seen)
}

fn take_apart(value: &RawValue<'_>) {
    let _ = value.plain_string();
    let _ = value.commands(b"key", &Dialect::default(), &mut |_| Ok(()));
}

#[test]
fn damaged_files_are_refused_and_never_panic() {
    for name in servers(&["redis-2.8", "redis-6.2", "redis-7.0", "redis-7.4", "valkey-9.0"]) {
        let source = Server::start(name);
        let mut to = source.connect();
        for line in [
            "SET s 12",
            "SET t text",
            "RPUSH l a 1 300 70000",
            "SADD i 1 2 3",
            "SADD m a b",
            "HMSET h f v g 9",
            "ZADD z 1 a 2.5 b",
            "XADD x 1-1 f v",
            "XADD x 1-2 f w",
            "XGROUP CREATE x g 0",
            "XREADGROUP GROUP g c COUNT 1 STREAMS x >",
            "HPEXPIRE h 1000000 FIELDS 1 f",
            "PEXPIRE z 1000000",
        ] {
            to.line(line);
        }
        to.must(&[b"SET", &b"lzf"[..], &[b'q'; 200]]);
        let file = source.save();
        let whole = read_all(&file, 1 << 20).unwrap();
        assert!(whole.len() >= 8, "{name}: {whole:?}");
        for cut in 0..file.len() {
            for big_value in [1 << 20, 4] {
                let error = read_all(&file[..cut], big_value).unwrap_err();
                assert!(matches!(error, What::Truncated), "{name} cut at {cut}: {error}");
            }
        }
        // Any single changed byte is found, by the checksum at the latest.
        for at in 0..file.len() {
            for bit in 0..8 {
                let mut changed = file.clone();
                changed[at] ^= 1 << bit;
                for big_value in [1 << 20, 4] {
                    let outcome = read_all(&changed, big_value);
                    // Eight zeros would say "no checksum"; one bit does not make that.
                    assert!(outcome.is_err(), "{name} changed at {at}");
                }
            }
        }
        let mut state = 1u64;
        for _ in 0..20_000 {
            let mut changed = file.clone();
            for _ in 0..1 + state % 5 {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                let at = (state >> 33) as usize % changed.len();
                changed[at] = (state >> 20) as u8;
            }
            // Without a checksum, so that damage gets as far as it can.
            let end = changed.len() - 8;
            changed[end..].fill(0);
            let _ = read_all(&changed, 1 << 20);
            let _ = read_all(&changed, 16);
        }
    }
}

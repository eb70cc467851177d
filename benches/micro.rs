//! The inner loops: frame boundaries, the command table, boundaries and payloads of an RDB file.
//!
//! `cargo bench --bench micro`

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use crossfade::command;
use crossfade::rdb::{self, Item, ReadOptions, Reader};
use crossfade::resp::scan::{CommandScanner, Limits, ReplyScanner};
use crossfade::resp::value;
use crossfade::resp::write;

fn scanner(c: &mut Criterion) {
    let limits = Limits::default();
    let mut group = c.benchmark_group("scan");

    for (name, args) in [
        ("get", vec![&b"GET"[..], b"key:000000012345"]),
        ("set_64", vec![b"SET", b"key:000000012345", &[b'x'; 64]]),
        ("mset_16", vec![&b"MSET"[..]; 33]),
    ] {
        let mut one = Vec::new();
        write::command(&mut one, &args);
        let pipeline = one.repeat(100);
        group.throughput(Throughput::Elements(100));
        group.bench_function(format!("command_{name}"), |b| {
            b.iter(|| {
                let mut scanner = CommandScanner::default();
                let mut at = 0;
                while at < pipeline.len() {
                    let frame = scanner.next(black_box(&pipeline[at..]), &limits);
                    at += frame.ok().flatten().map_or(usize::MAX, |frame| frame.len);
                }
                at
            });
        });
    }

    let mut bulk = Vec::new();
    write::bulk(&mut bulk, &[b'x'; 64]);
    let mut range = Vec::new();
    write::array_header(&mut range, 100);
    range.extend(bulk.repeat(100));
    for (name, reply) in [("ok", b"+OK\r\n".to_vec()), ("bulk_64", bulk), ("array_100", range)] {
        let replies = reply.repeat(100);
        group.throughput(Throughput::Elements(100));
        group.bench_function(format!("reply_{name}"), |b| {
            b.iter(|| {
                let mut scanner = ReplyScanner::default();
                let mut at = 0;
                while at < replies.len() {
                    let feed = scanner.feed(black_box(&replies[at..]));
                    at += feed.map_or(usize::MAX, |feed| feed.consumed);
                }
                at
            });
        });
        group.throughput(Throughput::Elements(1));
        group.bench_function(format!("value_{name}"), |b| b.iter(|| value::decode(black_box(&reply))));
    }
    group.finish();
}

fn table(c: &mut Criterion) {
    let mut group = c.benchmark_group("command");
    let mix: [&[u8]; 8] =
        [b"GET", b"set", b"HSET", b"incrby", b"ZRANGEBYSCORE", b"XREADGROUP", b"EVALSHA", b"PEXPIRE"];
    group.throughput(Throughput::Elements(mix.len() as u64));
    group.bench_function("lookup", |b| {
        b.iter(|| mix.iter().filter(|name| command::lookup(black_box(name)).is_some()).count());
    });
    group.bench_function("lookup_unknown", |b| {
        b.iter(|| {
            [&b"JSON.SET"[..]; 8].iter().filter(|name| command::lookup(black_box(name)).is_some()).count()
        });
    });
    group.throughput(Throughput::Elements(1));
    for line in
        ["GET a", "MSET a 1 b 2 c 3", "EVALSHA x 2 a b c", "XREADGROUP GROUP g c COUNT 1 STREAMS a b > >"]
    {
        let args: Vec<&str> = line.split(' ').collect();
        let Some(spec) = command::lookup(args[0].as_bytes()) else { continue };
        group.bench_function(format!("keys_{}", spec.name), |b| {
            b.iter(|| command::keys(black_box(spec), black_box(&args)).map(|keys| keys.len()));
        });
    }
    group.finish();
}

/// A file of `keys` strings of 100 bytes, or of hashes of ten fields, as Redis writes them.
fn rdb_file(keys: u32, hashes: bool) -> Vec<u8> {
    let mut file = b"REDIS0010\xfe\x00".to_vec();
    for i in 0..keys {
        let key = format!("key:{i:012}");
        file.push(if hashes { 4 } else { 0 });
        file.push(key.len() as u8);
        file.extend_from_slice(key.as_bytes());
        if hashes {
            file.push(10);
            for field in 0..10 {
                file.extend_from_slice(format!("\x06field{field}\x0avalue{field:05}").as_bytes());
            }
        } else {
            file.extend_from_slice(b"\x40\x64");
            file.extend_from_slice(&[b'v'; 100]);
        }
    }
    file.push(255);
    let sum = rdb::checksum(&file);
    file.extend_from_slice(&sum.to_le_bytes());
    file
}

fn snapshot(c: &mut Criterion) {
    let mut group = c.benchmark_group("rdb");
    for (name, hashes) in [("strings_100", false), ("hashes_10", true)] {
        let keys = 10_000;
        let file = rdb_file(keys, hashes);
        group.throughput(Throughput::Bytes(file.len() as u64));
        group.bench_function(format!("read_{name}"), |b| {
            b.iter(|| {
                let mut reader = Reader::new(black_box(&file[..]), ReadOptions::default());
                let mut seen = 0;
                while let Ok(Some(item)) = reader.next_item() {
                    seen += u32::from(matches!(item, Item::Entry(_)));
                }
                assert_eq!(seen, keys);
            });
        });
        group.bench_function(format!("dump_{name}"), |b| {
            let mut payload = Vec::new();
            b.iter(|| {
                let mut reader = Reader::new(black_box(&file[..]), ReadOptions::default());
                while let Ok(Some(item)) = reader.next_item() {
                    if let Item::Entry(entry) = item {
                        payload.clear();
                        entry.value.dump_payload(&mut payload);
                    }
                }
                payload.len()
            });
        });
    }
    let block = vec![7; 1 << 20];
    group.throughput(Throughput::Bytes(block.len() as u64));
    group.bench_function("checksum", |b| b.iter(|| rdb::checksum(black_box(&block))));
    group.finish();
}

criterion_group!(benches, scanner, table, snapshot);
criterion_main!(benches);

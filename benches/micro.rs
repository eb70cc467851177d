//! The inner loops: frame boundaries and the command table.
//!
//! `cargo bench --bench micro`

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use crossfade::command;
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

criterion_group!(benches, scanner, table);
criterion_main!(benches);

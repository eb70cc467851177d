//! The verifier against pairs of real servers: equal data is equal whatever the encoding and the version, and
//! each way in which two keys can differ is found and named.
//!
//! Servers other than the one on PATH are taken from `CROSSFADE_SERVERS` when it is set.

#![allow(clippy::unwrap_used)] // clippy takes helpers of an integration test for library code

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crossfade::Side;
use crossfade::cli::demo::servers::{Server, server_binary};
use crossfade::mirror::expiry::padded;
use crossfade::resp::value::Value;
use crossfade::server::{Client, Endpoint};
use crossfade::verify::{self, Kind, Report, VerifyOptions};

const TIMEOUT: Duration = Duration::from_secs(20);

struct Both {
    a: Server,
    b: Server,
    to_a: Client,
    to_b: Client,
    _folder: tempfile::TempDir,
}

fn endpoint(server: &Server, side: Side) -> Endpoint {
    Endpoint::parse(side, &server.url()).unwrap()
}

impl Both {
    async fn start(names: [&str; 2], args_b: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let a = Server::start_as(&server_binary(names[0]), &folder.path().join("a"), &[]).await.unwrap();
        let b = Server::start_as(&server_binary(names[1]), &folder.path().join("b"), args_b).await.unwrap();
        let to_a = Client::open(&endpoint(&a, Side::Source), TIMEOUT).await.unwrap();
        let to_b = Client::open(&endpoint(&b, Side::Destination), TIMEOUT).await.unwrap();
        Self { a, b, to_a, to_b, _folder: folder }
    }

    /// The same command on both, if both know it.
    async fn on_both(&mut self, line: &str) {
        let args = words(line);
        let a = self.to_a.call(&args).await.unwrap();
        let b = self.to_b.call(&args).await.unwrap();
        assert_eq!(a.is_error(), b.is_error(), "{line}: {a:?} {b:?}");
    }

    async fn on_a(&mut self, line: &str) -> Value {
        self.to_a.command(&words(line)).await.unwrap()
    }

    async fn on_b(&mut self, line: &str) -> Value {
        self.to_b.command(&words(line)).await.unwrap()
    }

    async fn compare(&self, options: VerifyOptions) -> Report {
        let (a, b) = (endpoint(&self.a, Side::Source), endpoint(&self.b, Side::Destination));
        verify::compare(&a, &b, options).await.unwrap()
    }

    async fn same(&self, options: VerifyOptions) -> Report {
        let report = self.compare(options).await;
        assert_eq!(report.difference_count, 0, "{:#?}", report.differences);
        report
    }

    /// The one difference there is.
    async fn difference(&self, options: VerifyOptions) -> verify::Difference {
        let report = self.compare(options).await;
        assert_eq!(report.difference_count, 1, "{:#?}", report.differences);
        report.differences[0].clone()
    }
}

/// Splits at blanks; `@` stands for an empty argument, `big:N` for N bytes.
fn words(line: &str) -> Vec<Vec<u8>> {
    let word = |word: &str| match word.strip_prefix("big:") {
        Some(len) => (0..len.parse::<usize>().unwrap()).map(|at| b'a' + (at / 7 % 26) as u8).collect(),
        None if word == "@" => Vec::new(),
        None => word.as_bytes().to_vec(),
    };
    line.split(' ').map(word).collect()
}

fn quick() -> VerifyOptions {
    VerifyOptions { rounds: 1, ..VerifyOptions::default() }
}

fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as u64
}

fn has(names: &[&str]) -> bool {
    names.iter().all(|name| *name == "redis-server" || Path::new(&server_binary(name)).exists())
}

/// Values of every type; what one of the servers is too old for is left out.
async fn fill(both: &mut Both, newest: bool) {
    let in_a_day = now_ms() + 86_400_000;
    for n in 0..120 {
        both.on_both(&format!("SET string:{n} value-{n}")).await;
        both.on_both(&format!("SET number:{n} {n}")).await;
        both.on_both(&format!("RPUSH list:{n} a b {n}")).await;
        both.on_both(&format!("SADD ints:{n} 1 2 {n}")).await;
        both.on_both(&format!("SADD set:{n} a b {n}")).await;
        both.on_both(&format!("HMSET hash:{n} f {n} g x")).await;
        both.on_both(&format!("ZADD zset:{n} 0.1 a -1.5 b {n} c inf d")).await;
    }
    for n in 0..100 {
        both.on_both(&format!("PEXPIREAT string:{n} {}", in_a_day + n)).await;
        both.on_both(&format!("PEXPIREAT hash:{n} {}", in_a_day + n)).await;
    }
    both.on_both("SET empty @").await;
    both.on_both("SET gone x PX 1").await;
    both.on_both("SET large:string big:600000").await;
    for from in (0..3000).step_by(100) {
        let row = |each: &dyn Fn(i32) -> String| (from..from + 100).map(each).collect::<Vec<_>>().join(" ");
        both.on_both(&format!("RPUSH large:list {}", row(&|n| format!("element-{n}-big")))).await;
        both.on_both(&format!("SADD large:set {}", row(&|n| format!("member-{n}")))).await;
        both.on_both(&format!("HMSET large:hash {}", row(&|n| format!("field-{n} value-{n}")))).await;
        both.on_both(&format!("ZADD large:zset {}", row(&|n| format!("{n}.25 member-{n}")))).await;
    }
    both.on_both("SELECT 3").await;
    both.on_both("SET other:db x").await;
    both.on_both("SELECT 0").await;
    if newest {
        for n in 1..40 {
            both.on_both(&format!("XADD stream {n}-1 f {n} g x")).await;
        }
        for n in 1..3000 {
            both.on_both(&format!("XADD large:stream {n}-1 field value-{n} other-field something-{n}")).await;
        }
        for stream in ["stream", "large:stream"] {
            both.on_both(&format!("XGROUP CREATE {stream} g 0")).await;
            both.on_both(&format!("XGROUP CREATE {stream} h $")).await;
            both.on_both(&format!("XREADGROUP GROUP g alice COUNT 5 STREAMS {stream} >")).await;
            both.on_both(&format!("XREADGROUP GROUP g bob COUNT 5 STREAMS {stream} >")).await;
            both.on_both(&format!("XACK {stream} g 2-1")).await;
            both.on_both(&format!("XDEL {stream} 3-1")).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn equal_data_is_equal() {
    let mut both = Both::start(["", ""], &[]).await;
    fill(&mut both, true).await;
    let code = "#!lua name=mylib\nredis.register_function('f', function() return 1 end)";
    for client in [&mut both.to_a, &mut both.to_b] {
        client.command(&["FUNCTION", "LOAD", code]).await.unwrap();
        client.command(&["SET", "crossfade:position", &format!("{:?}", client.side())]).await.unwrap();
    }
    let report = both.same(quick()).await;
    assert_eq!((report.keys_a, report.keys_b, report.compared), (849, 849, 849));
    let progress = Arc::new(AtomicU64::new(0));
    let options = VerifyOptions { sample: Some(90), progress: Some(progress.clone()), ..quick() };
    let report = both.same(options).await;
    assert!((70..=110).contains(&report.compared), "{}", report.compared);
    assert_eq!(progress.load(Ordering::Relaxed), report.compared);
    // In chunks, all of it.
    both.same(VerifyOptions { chunk: 100, batch: 50, ..quick() }).await;
    both.same(VerifyOptions { chunk: 2000, ..quick() }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn encodings_do_not_matter() {
    let plain = [
        ("--hash-max-listpack-entries", "0"),
        ("--zset-max-listpack-entries", "0"),
        ("--set-max-intset-entries", "0"),
        ("--list-max-listpack-size", "1"),
        ("--stream-node-max-entries", "7"),
    ];
    let args: Vec<&str> = plain.iter().flat_map(|(name, value)| [*name, *value]).collect();
    let mut both = Both::start(["", ""], &args).await;
    fill(&mut both, true).await;
    both.same(quick()).await;
    both.same(VerifyOptions { chunk: 2000, ..quick() }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn versions_do_not_matter() {
    for (names, newest) in [
        (["redis-6.2", "redis-server"], true),
        (["redis-server", "redis-8.0"], true),
        (["redis-7.2", "valkey-9.0"], true),
        (["valkey-8.1", "redis-8.10"], true),
        (["redis-5.0", "redis-7.4"], true),
        (["redis-2.8", "redis-server"], false),
        (["redis-3.2", "redis-8.6"], false),
        (["redis-4.0rc", "valkey-9.1"], false),
    ] {
        if !has(&names) {
            continue;
        }
        let mut both = Both::start(names, &[]).await;
        fill(&mut both, newest).await;
        let report = both.compare(quick()).await;
        assert_eq!(report.difference_count, 0, "{names:?} {:#?}", report.differences);
        assert_eq!(report.compared, if newest { 849 } else { 847 }, "{names:?}");
        both.on_b("HSET hash:7 g y").await;
        both.on_b("RPUSH large:list x").await;
        both.on_b("PEXPIRE string:8 100000000").await;
        let report = both.compare(quick()).await;
        assert_eq!(report.difference_count, 3, "{names:?} {:#?}", report.differences);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_difference_is_found() {
    let mut both = Both::start(["", ""], &[]).await;
    fill(&mut both, true).await;
    // What to do on b, the key that then differs, how; and what mends it.
    let cases = [
        ("DEL string:1", "string:1", Kind::MissingOnB, "SET string:1 value-1 PXAT {string:1}"),
        ("SET more x", "more", Kind::MissingOnA, "DEL more"),
        ("SET number:5 6", "number:5", Kind::Value, "SET number:5 5"),
        ("APPEND number:5 0", "number:5", Kind::Value, "SET number:5 5"),
        ("LSET list:1 1 c", "list:1", Kind::Value, "LSET list:1 1 b"),
        ("SREM set:9 a", "set:9", Kind::Value, "SADD set:9 a"),
        ("HSET hash:110 f x", "hash:110", Kind::Value, "HSET hash:110 f 110"),
        ("ZADD zset:1 0.10001 a", "zset:1", Kind::Value, "ZADD zset:1 0.1 a"),
        ("SETRANGE large:string 500000 Z", "large:string", Kind::Value, ""),
        ("LSET large:list 2222 x", "large:list", Kind::Value, "LSET large:list 2222 element-2222-big"),
        ("SADD large:set x", "large:set", Kind::Value, "SREM large:set x"),
        ("HSET large:hash field-7 x", "large:hash", Kind::Value, "HSET large:hash field-7 value-7"),
        ("ZINCRBY large:zset 1 member-5", "large:zset", Kind::Value, "ZINCRBY large:zset -1 member-5"),
        ("PEXPIREAT string:2 {string:3}", "string:2", Kind::Expiry, "PEXPIREAT string:2 {string:2}"),
        ("PERSIST string:2", "string:2", Kind::Expiry, "PEXPIREAT string:2 {string:2}"),
        ("EXPIRE number:2 1000", "number:2", Kind::Expiry, "PERSIST number:2"),
        ("XACK stream g 4-1", "stream", Kind::Value, "XCLAIM stream g alice 0 4-1 FORCE JUSTID"),
        ("XCLAIM stream g bob 0 4-1", "stream", Kind::Value, "XCLAIM stream g alice 0 4-1 JUSTID"),
        ("XGROUP CREATECONSUMER stream g carol", "stream", Kind::Value, "XGROUP DELCONSUMER stream g carol"),
        ("XGROUP DESTROY large:stream h", "large:stream", Kind::Value, "XGROUP CREATE large:stream h $"),
        ("XSETID stream 99-1", "stream", Kind::Value, "XSETID stream 39-1"),
        ("RENAME number:7 number:x", "number:7", Kind::MissingOnB, "RENAME number:x number:7"),
    ];
    for (change, key, kind, mend) in cases {
        for chunk in [256 * 1024, 2000] {
            // A stream in chunks and one as a whole take different ways.
            if chunk == 2000 && !matches!(kind, Kind::Value) {
                continue;
            }
            let mut line = change.to_owned();
            for name in ["string:1", "string:2", "string:3"] {
                if let Some(at) = both.on_a(&format!("PEXPIRETIME {name}")).await.as_i64() {
                    line = line.replace(&format!("{{{name}}}"), &at.to_string());
                }
            }
            both.on_b(&line).await;
            let report = both.compare(VerifyOptions { chunk, ..quick() }).await;
            let found: Vec<_> = report.differences.iter().filter(|found| found.key == key).collect();
            assert_eq!(found.len(), 1, "{line}: {:#?}", report.differences);
            assert_eq!(found[0].kind, kind, "{line}: {:?}", found[0]);
            let allowed = if line.starts_with("RENAME") { 2 } else { 1 };
            assert_eq!(report.difference_count, allowed, "{line}: {:#?}", report.differences);
            let mut line = mend.to_owned();
            for name in ["string:1", "string:2", "string:3"] {
                if let Some(at) = both.on_a(&format!("PEXPIRETIME {name}")).await.as_i64() {
                    line = line.replace(&format!("{{{name}}}"), &at.to_string());
                }
            }
            if line.is_empty() {
                both.to_b.command(&words("SET large:string big:600000")).await.unwrap();
            } else {
                both.on_b(&line).await;
            }
        }
    }
    both.same(quick()).await;

    both.on_b("SELECT 3").await;
    both.on_b("DEL other:db").await;
    both.on_b("LPUSH other:db x").await;
    both.on_b("SELECT 0").await;
    let found = both.difference(quick()).await;
    assert_eq!((found.db, found.kind, found.key.as_str()), (3, Kind::Type, "other:db"));
    both.on_b("FLUSHALL").await;
    let report = both.compare(VerifyOptions { listed: 10, ..quick() }).await;
    assert_eq!((report.difference_count, report.differences.len(), report.keys_b), (849, 10, 0));
    both.on_a("FLUSHALL").await;
    both.same(quick()).await;
    both.to_a
        .command(&["FUNCTION", "LOAD", "#!lua name=l\nredis.register_function('f', function() end)"])
        .await
        .unwrap();
    let found = both.difference(quick()).await;
    assert_eq!((found.kind, found.key.as_str()), (Kind::Library, "l"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn padded_expiries_are_read_as_they_are_meant() {
    let mut both = Both::start(["", ""], &[]).await;
    let now = now_ms();
    for n in 0..50u64 {
        let at = now + 100_000 + n;
        both.on_a(&format!("SET k{n} v PXAT {at}")).await;
        both.on_b(&format!("SET k{n} v PXAT {}", padded(at))).await;
    }
    // Expired in truth, and only there because of the pad.
    both.on_b(&format!("SET old v PXAT {}", padded(now - 1000))).await;
    both.same(VerifyOptions { padded: true, ..quick() }).await;
    let report = both.compare(quick()).await;
    assert_eq!(report.difference_count, 51);
    both.on_b(&format!("PEXPIREAT k7 {}", padded(now + 100_008))).await;
    let found = both.difference(VerifyOptions { padded: true, ..quick() }).await;
    assert_eq!((found.key.as_str(), found.kind), ("k7", Kind::Expiry));
    assert!(found.what.contains("1 ms later"), "{}", found.what);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_comes_late_is_no_difference() {
    let mut both = Both::start(["", ""], &[]).await;
    both.on_a("SET k 1").await;
    both.on_both("SET l 1").await;
    let options = VerifyOptions { rounds: 20, delay: Duration::from_millis(100), ..VerifyOptions::default() };
    let (a, b) = (endpoint(&both.a, Side::Source), endpoint(&both.b, Side::Destination));
    let comparing = tokio::spawn(async move { verify::compare(&a, &b, options).await });
    // It has looked for the key there, and looks again later.
    let misses = |info: &str| {
        info.lines().any(|line| line.starts_with("keyspace_misses:") && !line.trim_end().ends_with(":0"))
    };
    let began = std::time::Instant::now();
    while !misses(&String::from_utf8_lossy(both.b.call(&["INFO", "stats"]).await.unwrap().bytes().unwrap())) {
        assert!(began.elapsed() < TIMEOUT, "nobody looks");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    both.on_b("SET k 1").await;
    let report = comparing.await.unwrap().unwrap();
    assert_eq!(report.difference_count, 0);
    assert!(report.rounds > 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_may_change_while_they_are_read() {
    let mut both = Both::start(["", ""], &["--hash-max-listpack-entries", "0"]).await;
    let (a, b) = (endpoint(&both.a, Side::Source), endpoint(&both.b, Side::Destination));
    let comparing = tokio::spawn(async move {
        let end = tokio::time::Instant::now() + Duration::from_secs(3);
        let mut rounds = 0;
        while tokio::time::Instant::now() < end {
            let options = VerifyOptions { chunk: [1, 200, 256 * 1024][rounds % 3], batch: 20, ..quick() };
            verify::compare(&a, &b, options).await.unwrap();
            rounds += 1;
        }
        rounds
    });
    let forms = [
        "SET k{} some-value-or-other",
        "RPUSH k{} a b c d",
        "SADD k{} a b c d",
        "HSET k{} a b c d",
        "ZADD k{} 1 b 2 d",
        "XADD k{} * f v",
        "XGROUP CREATE k{} g 0",
        "XREADGROUP GROUP g c STREAMS k{} >",
        "EXPIRE k{} 100",
        "DEL k{}",
        "DEL k{}",
    ];
    let mut turn = 0usize;
    while !comparing.is_finished() {
        turn = turn.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let line = forms[(turn >> 33) % forms.len()].replace("{}", &((turn >> 50) % 60).to_string());
        let args = words(&line);
        both.to_a.call(&args).await.unwrap();
        both.to_b.call(&args).await.unwrap();
    }
    assert!(comparing.await.unwrap() > 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn expiries_of_hash_fields() {
    for name in ["redis-7.4", "redis-8.0", "redis-8.10", "valkey-9.0"] {
        if !has(&[name]) {
            continue;
        }
        let mut both = Both::start([name, name], &["--hash-max-listpack-entries", "1"]).await;
        let at = now_ms() + 100_000;
        for n in 0..50 {
            both.on_both(&format!("HSET h{n} f 1 g 2 h 3")).await;
            both.on_both(&format!("HPEXPIREAT h{n} {at} FIELDS 2 f g")).await;
        }
        for chunk in [256 * 1024, 1] {
            both.same(VerifyOptions { chunk, ..quick() }).await;
        }
        both.on_b(&format!("HPEXPIREAT h7 {} FIELDS 1 g", at + 1)).await;
        for chunk in [256 * 1024, 1] {
            let found = both.difference(VerifyOptions { chunk, ..quick() }).await;
            assert_eq!((found.key.as_str(), found.kind), ("h7", Kind::Expiry), "{name}");
        }
        for n in 0..50 {
            both.on_b(&format!("HPEXPIREAT h{n} {} FIELDS 2 f g", padded(at).min(1 << 45))).await;
        }
        let report = both.compare(quick()).await;
        assert_eq!(report.difference_count, 50);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn types_of_one_family() {
    if !has(&["redis-8.10"]) {
        return;
    }
    let mut both = Both::start(["redis-8.10", "redis-8.10"], &[]).await;
    for n in 0..300 {
        // The graphs differ: each server draws its own random numbers.
        both.on_both(&format!("VADD v VALUES 3 {n} 2 3 e{n} SETATTR {{\"n\":{n}}}")).await;
        both.on_both(&format!("ARSET arr {} x{n}", n * n * n)).await;
    }
    both.same(quick()).await;
    for (change, key, mend) in [
        ("ARSET arr 27 y", "arr", "ARSET arr 27 x3"),
        ("ARDEL arr 27", "arr", "ARSET arr 27 x3"),
        ("ARSET arr 99999999 y", "arr", "ARDEL arr 99999999"),
        ("VSETATTR v e5 @", "v", "VSETATTR v e5 {\"n\":5}"),
        ("VADD v VALUES 3 -5 2 3 e5", "v", "VADD v VALUES 3 5 2 3 e5"),
        ("VREM v e7", "v", "VADD v VALUES 3 7 2 3 e7 SETATTR {\"n\":7}"),
    ] {
        both.on_b(change).await;
        let found = both.difference(quick()).await;
        assert_eq!((found.key.as_str(), found.kind), (key, Kind::Value), "{change}");
        both.on_b(mend).await;
    }
    both.same(quick()).await;
}

/// `cargo test --release --test verify -- --ignored --nocapture`
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "measures"]
async fn speed() {
    let mut both = Both::start(["", ""], &[]).await;
    for n in 0..60 {
        let fill = format!("for i=1,5000 do redis.call('SET','key:'..({n}*5000+i),string.rep('x',64)) end");
        both.to_a.command(&["EVAL", &fill, "0"]).await.unwrap();
        both.to_b.command(&["EVAL", &fill, "0"]).await.unwrap();
    }
    for _ in 0..3 {
        let report = both.same(quick()).await;
        println!("same encodings: {} keys in {:.2} s", report.compared, report.seconds);
    }
    if has(&["redis-8.0"]) {
        let mut both = Both::start(["", "redis-8.0"], &[]).await;
        for _ in 0..2 {
            for n in 0..60 {
                let fill = format!("for i=1,5000 do redis.call('HSET','h'..({n}*5000+i),'f',i,'g','x') end");
                both.to_a.command(&["EVAL", &fill, "0"]).await.unwrap();
                both.to_b.command(&["EVAL", &fill, "0"]).await.unwrap();
            }
            let report = both.same(quick()).await;
            println!("300,000 hashes, two versions: {} keys in {:.2} s", report.compared, report.seconds);
        }
    }
}

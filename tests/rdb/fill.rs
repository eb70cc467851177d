//! Data of every type, in every encoding that the server has, with the edges of each.

use crate::server::{Connection, Server, now_ms};
use crossfade::resp::value::Value;

/// The dbs that are used.
pub(crate) const DBS: [u32; 3] = [0, 3, 9];

/// Fills a server as far as it knows the commands.
pub(crate) fn fill(server: &Server) {
    let mut to = server.connect();
    for (db, compact) in [(0, true), (3, false), (9, true)] {
        to.must(&["SELECT", &db.to_string()]);
        encodings(&mut to, compact);
        // Compressed nodes inside lists.
        to.line(if db == 9 {
            "CONFIG SET list-compress-depth 1"
        } else {
            "CONFIG SET list-compress-depth 0"
        });
        strings(&mut to);
        keys(&mut to);
        lists(&mut to);
        sets(&mut to);
        hashes(&mut to);
        sorted_sets(&mut to);
        streams(&mut to);
        arrays(&mut to);
        templates(&mut to);
    }
    functions(&mut to);
}

/// Old names of options: newer servers take them too.
fn encodings(to: &mut Connection, compact: bool) {
    let (entries, value) = if compact { ("512", "6000") } else { ("0", "0") };
    for kind in ["hash", "zset"] {
        to.line(&format!("CONFIG SET {kind}-max-ziplist-entries {entries}"));
        to.line(&format!("CONFIG SET {kind}-max-ziplist-value {value}"));
    }
    to.line(&format!("CONFIG SET set-max-intset-entries {entries}"));
    to.line(&format!("CONFIG SET set-max-listpack-entries {entries}"));
    // Before 3.2 lists have two encodings as well.
    to.line(&format!("CONFIG SET list-max-ziplist-entries {entries}"));
    to.line(if compact {
        "CONFIG SET list-max-ziplist-size -2"
    } else {
        "CONFIG SET list-max-ziplist-size 3"
    });
    to.line(if compact {
        "CONFIG SET stream-node-max-entries 100"
    } else {
        "CONFIG SET stream-node-max-entries 3"
    });
}

/// Bytes that do not compress.
pub(crate) fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..len)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as u8
        })
        .collect()
}

/// Strings at the edges of every encoding of a string or an element.
fn samples() -> Vec<Vec<u8>> {
    let mut all: Vec<Vec<u8>> = [
        "",
        "a",
        "0",
        "-1",
        "12",
        "13",
        "127",
        "128",
        "-128",
        "-129",
        "4095",
        "-4096",
        "4096",
        "32767",
        "-32768",
        "32768",
        "8388607",
        "-8388608",
        "8388608",
        "2147483647",
        "-2147483648",
        "2147483648",
        "9223372036854775807",
        "-9223372036854775808",
        "9223372036854775808",
        "007",
        "+1",
        "-0",
        " 1",
        "1.5",
        "inf",
        "ünïcödé",
    ]
    .iter()
    .map(|text| text.as_bytes().to_vec())
    .collect();
    for len in [20, 21, 63, 64, 250, 253, 254, 255, 4095, 4096, 5000] {
        all.push(b"abcabc".iter().copied().cycle().take(len).collect());
        all.push(noise(len, len as u64));
    }
    all.push((0..=255).collect());
    all
}

fn strings(to: &mut Connection) {
    for (i, sample) in samples().iter().enumerate() {
        to.must(&[b"SET", format!("string:{i}").as_bytes(), sample]);
    }
    to.must(&[b"SET", &b"string:long-compressible"[..], &vec![b'x'; 300_000]]);
    to.must(&[b"SET", &b"string:long"[..], &noise(300_000, 7)]);
    for (i, seconds) in [100, 10_000, 400_000_000].into_iter().enumerate() {
        let key = format!("string:expires:{i}");
        to.must(&["SET", &key, "soon"]);
        to.must(&["PEXPIREAT", &key, &(now_ms() + seconds * 1000 + 123).to_string()]);
    }
}

fn keys(to: &mut Connection) {
    for key in
        [&b"12345"[..], b"-7", b"99999999999", b"\x00\xff\r\n binary", &[b'k'; 1000], b"", &noise(500, 3)]
    {
        to.must(&[b"SET", key, b"under a special key"]);
    }
}

fn chunked(to: &mut Connection, command: &str, key: &str, args: &[Vec<u8>]) {
    for chunk in args.chunks(100) {
        let mut all = vec![command.as_bytes().to_vec(), key.as_bytes().to_vec()];
        all.extend_from_slice(chunk);
        to.must(&all);
    }
}

fn expire(to: &mut Connection, key: &str) {
    to.must(&["PEXPIREAT", key, &(now_ms() + 5_000_000).to_string()]);
}

fn many(n: usize, text: &str) -> Vec<Vec<u8>> {
    (0..n).map(|i| format!("{text}{i}").into_bytes()).collect()
}

fn lists(to: &mut Connection) {
    chunked(to, "RPUSH", "list:one", &[b"x".to_vec()]);
    chunked(to, "RPUSH", "list:samples", &samples());
    chunked(to, "RPUSH", "list:many", &many(1000, "element number "));
    // Larger than a node: a plain node from 7.0 on.
    chunked(to, "RPUSH", "list:large", &[noise(20_000, 1), b"between".to_vec(), vec![b'z'; 20_000]]);
    expire(to, "list:many");
}

fn sets(to: &mut Connection) {
    for (width, edge) in [(16, 32_767i64), (32, i64::from(i32::MAX)), (64, i64::MAX)] {
        let members: Vec<Vec<u8>> =
            [0, 1, -1, edge, -edge - 1, edge / 3].iter().map(|n| n.to_string().into_bytes()).collect();
        chunked(to, "SADD", &format!("set:integers:{width}"), &members);
    }
    chunked(to, "SADD", "set:one", &[b"x".to_vec()]);
    chunked(to, "SADD", "set:samples", &samples());
    chunked(to, "SADD", "set:many", &many(700, "member "));
    chunked(to, "SADD", "set:many-integers", &many(700, ""));
    expire(to, "set:one");
}

fn hashes(to: &mut Connection) {
    let pairs: Vec<Vec<u8>> = samples()
        .into_iter()
        .enumerate()
        .flat_map(|(i, sample)| [format!("f{i}").into_bytes(), sample])
        .collect();
    chunked(to, "HMSET", "hash:values", &pairs);
    let pairs: Vec<Vec<u8>> = samples()
        .into_iter()
        .enumerate()
        .flat_map(|(i, sample)| [sample, i.to_string().into_bytes()])
        .collect();
    chunked(to, "HMSET", "hash:fields", &pairs);
    chunked(to, "HMSET", "hash:one", &[b"f".to_vec(), b"v".to_vec()]);
    let pairs: Vec<Vec<u8>> =
        many(600, "field ").into_iter().flat_map(|field| [field, noise(30, 5)]).collect();
    chunked(to, "HMSET", "hash:many", &pairs);
    expire(to, "hash:many");
    // Fields that expire.
    for (key, n) in [("hash:field-expiry", 5), ("hash:field-expiry:many", 600)] {
        let pairs: Vec<Vec<u8>> =
            (0..n).flat_map(|i| [format!("f{i}").into_bytes(), format!("value {i}").into_bytes()]).collect();
        chunked(to, "HMSET", key, &pairs);
        for i in (0..n).step_by(2) {
            let at = (now_ms() + 3_000_000 + i * 1000).to_string();
            if matches!(to.call(&["HPEXPIREAT", key, &at, "FIELDS", "1", &format!("f{i}")]), Value::Error(_))
            {
                break;
            }
        }
    }
}

fn sorted_sets(to: &mut Connection) {
    let scores = [
        "0",
        "-0",
        "1",
        "-1",
        "1.5",
        "3.141592653589793",
        "0.1",
        "1e300",
        "-1e300",
        "1e-300",
        "inf",
        "-inf",
        "17179869184.5",
        "9007199254740993",
        "1e17",
        "123456789012345680000",
        "0.00001",
        "0.000001",
    ];
    let pairs: Vec<Vec<u8>> = scores
        .iter()
        .enumerate()
        .flat_map(|(i, score)| [score.as_bytes().to_vec(), format!("m{i}").into_bytes()])
        .collect();
    chunked(to, "ZADD", "zset:scores", &pairs);
    let pairs: Vec<Vec<u8>> = samples()
        .into_iter()
        .enumerate()
        .flat_map(|(i, sample)| [i.to_string().into_bytes(), sample])
        .collect();
    chunked(to, "ZADD", "zset:samples", &pairs);
    let pairs: Vec<Vec<u8>> = (0..600)
        .flat_map(|i| [format!("{}.25", i).into_bytes(), format!("member {i}").into_bytes()])
        .collect();
    chunked(to, "ZADD", "zset:many", &pairs);
    chunked(to, "ZADD", "zset:one", &[b"7".to_vec(), b"x".to_vec()]);
    expire(to, "zset:scores");
}

fn streams(to: &mut Connection) {
    if matches!(to.line("XADD stream:one 1-1 f v"), Value::Error(_)) {
        return; // before 5.0
    }
    for i in 1..=20 {
        to.must(&[
            "XADD",
            "stream:same",
            &format!("{}-{i}", 1000 + i / 3),
            "temperature",
            &i.to_string(),
            "name",
            "x",
        ]);
        let field = format!("field{}", i % 4);
        to.must(&["XADD", "stream:other", &format!("{}-0", i * 1_000_000_007u64), &field, "v", "second", ""]);
    }
    for (i, sample) in samples().iter().enumerate() {
        to.must(&[
            b"XADD",
            &b"stream:samples"[..],
            format!("5-{}", i + 1).as_bytes(),
            b"sample",
            sample,
            sample,
            b"x",
        ]);
    }
    for i in 0..500 {
        to.must(&["XADD", "stream:many", &format!("{}-1", 1_700_000_000_000u64 + i), "i", &i.to_string()]);
    }
    expire(to, "stream:many");
    for id in ["1000-1", "1002-6", "1006-20"] {
        to.must(&["XDEL", "stream:same", id]);
    }
    // Groups: one that read nothing, one with consumers of which one read, and one that never did.
    to.line("XGROUP CREATE stream:same unread $");
    to.line("XGROUP CREATE stream:same readers 0");
    to.line("XREADGROUP GROUP readers alice COUNT 5 STREAMS stream:same >");
    to.line("XREADGROUP GROUP readers bob COUNT 5 STREAMS stream:same >");
    to.line("XACK stream:same readers 1001-4");
    to.line("XCLAIM stream:same readers carol 0 1001-3 TIME 1600000000000 RETRYCOUNT 7 FORCE");
    to.line("XGROUP CREATECONSUMER stream:same readers idle");
    // Pending although deleted, before, between and behind what is left.
    for i in 1..=12 {
        to.must(&["XADD", "stream:dangling", &format!("{i}-0"), "i", &i.to_string()]);
    }
    to.line("XGROUP CREATE stream:dangling g 0");
    to.line("XREADGROUP GROUP g c COUNT 10 STREAMS stream:dangling >");
    for id in ["5-0", "9-0"] {
        to.line(&format!("XDEL stream:dangling {id}"));
    }
    to.line("XTRIM stream:dangling MAXLEN 8");
    // The same with nothing left, and streams that are empty in other ways.
    to.line("XADD stream:emptied 7-7 f v");
    to.line("XGROUP CREATE stream:emptied g 0");
    to.line("XREADGROUP GROUP g c STREAMS stream:emptied >");
    to.line("XTRIM stream:emptied MAXLEN 0");
    to.line("XADD stream:deleted 3-1 f v");
    to.line("XDEL stream:deleted 3-1");
    to.line("XGROUP CREATE stream:never g $ MKSTREAM");
    // Idempotent producers (8.6), and entries that were given back (8.8).
    to.line("XADD stream:idempotent IDMP producer id1 * f v");
    to.line("XADD stream:idempotent IDMP producer id2 * f v");
    to.line("XADD stream:idempotent IDMPAUTO another * f w");
    to.line("XNACK stream:same readers FAIL IDS 2 1002-7 1002-8");
    to.line("XADD stream:ahead 10-0 f v");
    to.line("XSETID stream:ahead 99-5");
}

/// Hashes that share the names of their fields (8.10); others do not know the command.
fn templates(to: &mut Connection) {
    to.line("HIMPORT PREPARE pair first second 3");
    let long = "long ".repeat(30);
    for nth in 0..20 {
        let value = if nth % 3 == 0 { &*long } else { "short" };
        to.call(&["HIMPORT", "SET", &format!("hash:template:{nth}"), "pair", &nth.to_string(), value, "-7"]);
    }
    to.line("HIMPORT DISCARDALL");
}

fn arrays(to: &mut Connection) {
    for (i, sample) in samples().iter().enumerate() {
        to.call(&[b"ARSET", &b"array:samples"[..], (i * i * i).to_string().as_bytes(), sample]);
    }
    to.line("ARINSERT array:inserted a b 3 4.5 -0.0");
    to.line("ARSEEK array:inserted 3");
    to.line("ARSET array:sparse 100000000000 far");
    for i in 0..500 {
        to.call(&["ARSET", "array:many", &(i * 3).to_string(), &format!("value {i}")]);
    }
}

fn functions(to: &mut Connection) {
    for name in ["one", "two"] {
        let code =
            format!("#!lua name={name}\nredis.register_function('f_{name}', function() return '{name}' end)");
        to.call(&["FUNCTION", "LOAD", &code]);
    }
}

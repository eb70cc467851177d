//! A data set with something of everything: every type in its small and its large encoding, binary keys, expiries
//! far and near, three databases, streams with groups and pending entries, a function, one value of 64 MiB.

use std::io;

use super::connection::{Connection, Reply};
use super::workload::Dice;

/// Commands that are sent before their replies are read.
const BATCH: usize = 4000;

/// The large value's size in bytes.
pub const LARGE: usize = 64 << 20;

/// What was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Filled {
    /// Keys in all databases.
    pub keys: u64,
    /// Databases in use.
    pub databases: u64,
}

struct Pipe {
    connection: Connection,
    waiting: usize,
}

impl Pipe {
    async fn send<A: AsRef<[u8]>>(&mut self, args: &[A]) -> io::Result<()> {
        self.connection.queue(args);
        self.waiting += 1;
        if self.waiting >= BATCH { self.settle().await } else { Ok(()) }
    }

    async fn settle(&mut self) -> io::Result<()> {
        self.connection.flush().await?;
        for _ in 0..std::mem::take(&mut self.waiting) {
            if let Reply::Error(text) = self.connection.reply().await? {
                return Err(io::Error::other(String::from_utf8_lossy(&text).into_owned()));
            }
        }
        Ok(())
    }
}

/// Writes at least `keys` keys to the server at `host:port`.
///
/// # Errors
/// The server is not there or refuses.
pub async fn fill(address: &str, keys: u64, large: usize) -> io::Result<Filled> {
    let mut pipe = Pipe { connection: Connection::open(address).await?, waiting: 0 };
    let mut dice = Dice::new(7);
    for (db, share) in [(0, keys * 8 / 10), (1, keys * 15 / 100), (2, keys - keys * 8 / 10 - keys * 15 / 100)]
    {
        pipe.send(&["SELECT", &db.to_string()]).await?;
        for number in 0..share {
            small(&mut pipe, number, &mut dice).await?;
        }
        encodings(&mut pipe).await?;
    }
    pipe.send(&["SELECT", "0"]).await?;
    // gone before the demo ends: the copy has to let them go, neither sooner nor later
    for number in 0..1000 + dice.below(10) {
        let ms = 2000 + dice.below(25_000);
        pipe.send(&["SET", &format!("fleeting:{number}"), "soon gone", "PX", &ms.to_string()]).await?;
    }
    let library = "#!lua name=demo\nredis.register_function('demo_double', function(keys, args) return args[1] * 2 end)";
    pipe.settle().await?;
    // FUNCTION is new in 7.0; older servers do without
    let _ = pipe.connection.call(&["FUNCTION", "LOAD", library]).await?;
    if large > 0 {
        let noise: Vec<u8> = (0..large / 8).flat_map(|_| dice.next().to_le_bytes()).collect();
        pipe.send(&[&b"SET"[..], b"large:blob", &noise]).await?;
    }
    pipe.settle().await?;
    let info = pipe.connection.must(&["INFO", "keyspace"]).await?;
    let text = String::from_utf8_lossy(info.bytes().unwrap_or_default()).into_owned();
    let counts = text.lines().filter_map(|line| {
        let rest = line.strip_prefix("db")?.split_once(":keys=")?.1;
        rest.split(',').next()?.parse::<u64>().ok()
    });
    let (keys, databases) = counts.fold((0, 0), |(keys, databases), count| (keys + count, databases + 1));
    Ok(Filled { keys, databases })
}

/// One key of a common kind: mostly strings, then the others; every tenth expires, hours from now.
async fn small(pipe: &mut Pipe, number: u64, dice: &mut Dice) -> io::Result<()> {
    let noise = format!("{:016x}{:016x}", dice.next(), dice.next());
    let n = number.to_string();
    let key = match number % 20 {
        0..=8 => {
            let key = format!("session:{n}");
            let value = if number.is_multiple_of(3) {
                n
            } else {
                format!("{{\"user\":{n},\"token\":\"{noise}{noise}\"}}")
            };
            pipe.send(&["SET", &key, &value]).await?;
            key
        }
        9..=11 => {
            let key = format!("user:{n}");
            let mut args = vec!["HSET".to_string(), key.clone()];
            for field in ["name", "mail", "city", "seen", "score"] {
                args.extend([field.to_string(), format!("{field}-{}", &noise[..10])]);
            }
            pipe.send(&args).await?;
            key
        }
        12..=13 => {
            let key = format!("feed:{n}");
            pipe.send(&["RPUSH", &key, &noise[..4], &noise[4..12], &n, &noise, "-1"]).await?;
            key
        }
        14..=15 => {
            let key = format!("tags:{n}");
            let (a, b, c) =
                (dice.below(1000).to_string(), dice.below(1 << 40).to_string(), dice.below(9).to_string());
            pipe.send(&["SADD", &key, &a, &b, &c]).await?;
            key
        }
        16..=17 => {
            let key = format!("rank:{n}");
            pipe.send(&["ZADD", &key, "1.5", &noise[..6], "-3", "low", "1e20", "high", "inf", "top"]).await?;
            key
        }
        18 => {
            let key = format!("log:{n}");
            pipe.send(&["XADD", &key, "*", "event", &noise[..8]]).await?;
            pipe.send(&["XADD", &key, "*", "event", &noise[8..16], "more", &n]).await?;
            if number.is_multiple_of(100) || number % 100 == 18 {
                pipe.send(&["XGROUP", "CREATE", &key, "workers", "0"]).await?;
                pipe.send(&["XREADGROUP", "GROUP", "workers", "w1", "COUNT", "1", "STREAMS", &key, ">"])
                    .await?;
            }
            key
        }
        _ => {
            let key = format!("unique:{n}");
            pipe.send(&["PFADD", &key, &noise[..5], &noise[5..9], &n]).await?;
            key
        }
    };
    if number % 10 == 3 {
        let seconds = 3600 + dice.below(360_000);
        pipe.send(&["EXPIRE", &key, &seconds.to_string()]).await?;
    }
    Ok(())
}

/// The other encodings, once per database: large collections, sets of integers, binary keys, bitmaps, places.
async fn encodings(pipe: &mut Pipe) -> io::Result<()> {
    for chunk in 0..30 {
        let members: Vec<String> = (chunk * 100..chunk * 100 + 100).map(|n| n.to_string()).collect();
        let mut hash = vec!["HSET".to_string(), "large:hash".into()];
        let mut zset = vec!["ZADD".to_string(), "large:zset".into()];
        for member in &members {
            hash.extend([format!("field:{member}"), format!("{member}:{}", "v".repeat(chunk))]);
            zset.extend([format!("{member}.25"), format!("member:{member}")]);
        }
        let with = |command: &str, key: &str, prefix: &str| {
            let named = members.iter().map(|member| format!("{prefix}{member}"));
            [command.to_string(), key.to_string()].into_iter().chain(named).collect::<Vec<_>>()
        };
        pipe.send(&hash).await?;
        pipe.send(&zset).await?;
        pipe.send(&with("SADD", "large:set", "member:")).await?;
        pipe.send(&with("SADD", "large:integers", "10000000")).await?;
        pipe.send(&with("RPUSH", "large:list", "an element of the list, number ")).await?;
        pipe.send(&with("PFADD", "large:unique", "")).await?;
        for member in members.iter().step_by(10) {
            pipe.send(&["XADD", "large:stream", "*", "number", member, "text", "some text"]).await?;
        }
    }
    let group: [&[&str]; 6] = [
        &["XGROUP", "CREATE", "large:stream", "readers", "0"],
        &["XREADGROUP", "GROUP", "readers", "anna", "COUNT", "40", "STREAMS", "large:stream", ">"],
        &["XREADGROUP", "GROUP", "readers", "ben", "COUNT", "7", "STREAMS", "large:stream", ">"],
        &["XGROUP", "CREATE", "large:stream", "idle", "$"],
        &["SETBIT", "bits", "100000", "1"],
        &["GEOADD", "places", "13.4", "52.5", "Berlin", "2.35", "48.86", "Paris", "-0.13", "51.5", "London"],
    ];
    for command in group {
        pipe.send(command).await?;
    }
    pipe.send(&[&b"SET"[..], b"binary:\0\xff\r\n:key", b"\0\r\n$-1\r\n\xfe"]).await?;
    pipe.send(&["SET", "empty", ""]).await?;
    pipe.send(&["SET", "", "the empty key"]).await?;
    pipe.send(&["SET", "repeats", &"abc".repeat(5000)]).await?;
    pipe.send(&["RPUSH", "list:one", &"x".repeat(20_000)]).await
}

//! The copy, from `start` to `mirroring`: against native replication, and of a data set with one value that is a gigabyte.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use crossfade::cli::demo::connection::Connection;
use crossfade::cli::demo::servers::Server;
use serde_json::json;

use super::measures::{gateway, print};
use super::process::{cpu_us, rss_mib};
use super::{Args, machine, median, round};

/// What is copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Data {
    /// Strings of 100 bytes.
    Strings,
    /// Hashes of 10, lists, sets and sorted sets of 20, streams of 10; every fifth key expires.
    Mixed,
    /// 1 GiB of strings, and a hash of 1 GiB.
    Big,
}

/// From `start` to `mirroring`, and native REPLICAOF with diskless transfer on both ends, by turns.
pub(crate) async fn snapshot(args: &Args, data: Data) -> Result<()> {
    args.note(&machine());
    let dir = tempfile::tempdir()?;
    let diskless = ["--repl-diskless-sync", "yes", "--repl-diskless-sync-delay", "0"];
    let source = Server::start(&dir.path().join("source"), &diskless).await?;
    let destination =
        Server::start(&dir.path().join("destination"), &["--repl-diskless-load", "on-empty-db"]).await?;
    args.note(&format!("filling: {data:?}"));
    match data {
        Data::Strings => strings(&source, args.keys, 100).await?,
        Data::Mixed => mixed(&source).await?,
        Data::Big => big(&source).await?,
    }
    let wanted = keys(&source).await?;
    let (mut native, mut ours, mut ratios, mut peak, mut cpu) = (vec![], vec![], vec![], vec![], vec![]);
    let mut buffers = 0.0_f64;
    for turn in 0..args.rounds {
        let mut pair = [0.0; 2];
        for half in 0..2 {
            destination.call(&["FLUSHALL", "SYNC"]).await?;
            if (turn + half) % 2 == 0 {
                let began = Instant::now();
                destination.call(&["REPLICAOF", "127.0.0.1", &source.port().to_string()]).await?;
                loaded(&destination, wanted).await?;
                pair[0] = began.elapsed().as_secs_f64();
                destination.call(&["REPLICAOF", "NO", "ONE"]).await?;
            } else {
                let own = tempfile::tempdir()?;
                let mut gateway = gateway(own.path(), &source, &destination).await?;
                let (done, pid) = (Arc::new(AtomicBool::new(false)), gateway.pid());
                let watch = tokio::spawn(sample(pid, done.clone()));
                let buffer = tokio::spawn(buffered(source.connect().await?, done.clone()));
                let before = cpu_us(pid);
                let began = Instant::now();
                gateway.begin().await?;
                gateway.wait_phase("mirroring", Duration::from_secs(300)).await?;
                pair[1] = began.elapsed().as_secs_f64();
                cpu.push((cpu_us(pid) - before) / 1e6);
                done.store(true, Ordering::Relaxed);
                peak.push(watch.await?);
                buffers = buffers.max(buffer.await??);
                let copied = keys(&destination).await?;
                if copied < wanted {
                    bail!("mirroring with {copied} of {wanted} keys");
                }
            }
        }
        native.push(pair[0]);
        ours.push(pair[1]);
        ratios.push(pair[1] / pair[0]);
        args.note(&format!("round {}: native {:.2} s, gateway {:.2} s", turn + 1, pair[0], pair[1]));
    }
    let document = json!({
        "case": "snapshot",
        "data": format!("{data:?}").to_lowercase(),
        "keys": wanted,
        "source_mib": round(rss_mib(source.pid()), 0),
        "native_seconds": round(median(&native), 2),
        "gateway_seconds": round(median(&ours), 2),
        "ratio": round(median(&ratios), 2),
        "gateway_cpu_seconds": round(median(&cpu), 2),
        "gateway_peak_mib": round(peak.iter().copied().fold(0.0, f64::max), 1),
        "source_buffer_peak_mib": round(buffers, 2),
    });
    print(args, &document);
    Ok(())
}

/// Sends commands in portions, and reads their replies.
async fn send(to: &mut Connection, commands: impl Iterator<Item = Vec<String>>) -> Result<()> {
    let mut sent = 0;
    for command in commands {
        to.queue(&command);
        sent += 1;
        if sent == 1000 {
            answers(to, std::mem::take(&mut sent)).await?;
        }
    }
    answers(to, sent).await
}

async fn answers(to: &mut Connection, count: u32) -> Result<()> {
    to.flush().await?;
    for _ in 0..count {
        to.reply().await?;
    }
    Ok(())
}

async fn strings(source: &Server, count: u64, bytes: usize) -> Result<()> {
    let value = "v".repeat(bytes);
    let set = |number: u64| vec!["SET".into(), format!("key:{number:012}"), value.clone()];
    send(&mut source.connect().await?, (0..count).map(set)).await
}

async fn mixed(source: &Server) -> Result<()> {
    let mut to = source.connect().await?;
    let element = |n: u32| format!("element-{n:04}");
    for (name, command, count, elements) in [
        ("hash", "HSET", 200_000, 10),
        ("list", "RPUSH", 100_000, 20),
        ("set", "SADD", 100_000, 20),
        ("zset", "ZADD", 100_000, 20),
    ] {
        let fill = |number: u32| {
            let mut words = vec![command.to_owned(), format!("{name}:{number:08}")];
            for n in 0..elements {
                match name {
                    "hash" => words.extend([format!("field-{n}"), element(n)]),
                    "zset" => words.extend([(number + n).to_string(), element(n)]),
                    _ => words.push(element(n)),
                }
            }
            words
        };
        send(&mut to, (0..count).map(fill)).await?;
        let expire = |number: u32| vec!["EXPIRE".into(), format!("{name}:{number:08}"), "86400".into()];
        send(&mut to, (0..count).step_by(5).map(expire)).await?;
    }
    let add = |n: u32| {
        ["XADD", &format!("stream:{:08}", n / 10), "*", "field", &element(n)].map(str::to_owned).to_vec()
    };
    send(&mut to, (0..200_000).map(add)).await?;
    let expire = |number: u32| vec!["EXPIRE".into(), format!("stream:{number:08}"), "86400".into()];
    send(&mut to, (0..20_000).step_by(5).map(expire)).await
}

async fn big(source: &Server) -> Result<()> {
    strings(source, 1 << 18, 4096).await?;
    let value = "v".repeat(1024);
    let fields = |portion: u32| {
        let mut words = vec!["HSET".to_owned(), "hash:1-gib".into()];
        (0..64).for_each(|n| words.extend([format!("field-{:010}", portion * 64 + n), value.clone()]));
        words
    };
    send(&mut source.connect().await?, (0..1 << 14).map(fields)).await
}

/// The most that the source held for a replica, in MiB.
async fn buffered(mut source: Connection, done: Arc<AtomicBool>) -> Result<f64> {
    let mut peak = 0.0_f64;
    while !done.load(Ordering::Relaxed) {
        let list = source.must(&["CLIENT", "LIST", "TYPE", "REPLICA"]).await?;
        let text = String::from_utf8_lossy(list.bytes().unwrap_or_default()).into_owned();
        for word in text.split_whitespace().filter_map(|word| word.strip_prefix("omem=")) {
            peak = peak.max(word.parse::<f64>()? / f64::from(1 << 20));
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(peak)
}

async fn sample(pid: u32, done: Arc<AtomicBool>) -> f64 {
    let mut peak = 0.0_f64;
    while !done.load(Ordering::Relaxed) {
        peak = peak.max(rss_mib(pid));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    peak
}

/// Keys in all databases, those of the gateway included.
async fn keys(server: &Server) -> Result<u64> {
    let info = server.call(&["INFO", "keyspace"]).await?;
    let text = String::from_utf8_lossy(info.bytes().unwrap_or_default()).into_owned();
    let count = |line: &str| line.split_once(":keys=")?.1.split(',').next()?.parse::<u64>().ok();
    Ok(text.lines().filter_map(count).sum())
}

async fn loaded(replica: &Server, keys_wanted: u64) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(300);
    let mut asking: Option<Connection> = None;
    while Instant::now() < deadline {
        if asking.is_none() {
            asking = replica.connect().await.ok();
        }
        if let Some(connection) = &mut asking {
            let info = connection.must(&["INFO", "replication"]).await?;
            let text = String::from_utf8_lossy(info.bytes().unwrap_or_default()).into_owned();
            if text.contains("master_link_status:up") && keys(replica).await? >= keys_wanted {
                return Ok(());
            }
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    bail!("the replica is not in step after 300 s")
}

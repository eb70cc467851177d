//! What the migration costs while it runs: the mirror, the snapshot, the switch.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use crossfade::cli::demo::connection::Connection;
use crossfade::cli::demo::gateway::{Gateway, GatewayOptions};
use crossfade::cli::demo::servers::Server;
use crossfade::cli::demo::workload::{Plan, Workload, create_user};
use serde_json::json;
use tempfile::TempDir;

use super::load::{case, redis_benchmark};
use super::process::{cpu_us, rss_mib};
use super::{Args, machine, median, round};

/// A source, a destination and a gateway.
pub(crate) struct Rig {
    pub(crate) gateway: Gateway,
    pub(crate) source: Server,
    pub(crate) destination: Server,
    _dir: TempDir,
}

impl Rig {
    pub(crate) async fn new(server_args: &[&str], destination_args: &[&str]) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let source = Server::start(&dir.path().join("source"), server_args).await?;
        let destination = Server::start(&dir.path().join("destination"), destination_args).await?;
        let gateway = gateway(dir.path(), &source, &destination).await?;
        Ok(Self { gateway, source, destination, _dir: dir })
    }

    pub(crate) fn port(&self) -> Result<u16> {
        port_of(&self.gateway)
    }

    /// Waits until the destination has what the source has executed.
    pub(crate) async fn in_step(&mut self) -> Result<()> {
        let end: u64 = self.source.info("master_repl_offset").await?.parse()?;
        let applied = |status: &serde_json::Value| {
            status["mirror"]["applied_offset"].as_u64().is_some_and(|offset| offset >= end)
        };
        self.gateway.wait_until("the mirror", Duration::from_secs(120), applied).await?;
        Ok(())
    }
}

/// The port that clients of a gateway connect to.
pub(crate) fn port_of(gateway: &Gateway) -> Result<u16> {
    Ok(gateway.address().rsplit_once(':').context("the gateway's port")?.1.parse()?)
}

async fn gateway(dir: &std::path::Path, source: &Server, destination: &Server) -> Result<Gateway> {
    let exe = env!("CARGO_BIN_EXE_crossfade");
    Ok(Gateway::start(GatewayOptions::new(exe, &dir.join("gateway"), &source.url(), &destination.url()))
        .await?)
}

/// SET through the gateway with a live mirror and without one, interleaved, at P=1 and P=16; processor time per write of
/// every process, the time until the mirror is in step again included.
pub(crate) async fn mirror(args: &Args) -> Result<()> {
    args.note(&machine());
    let plain = Rig::new(&[], &[]).await?;
    let mut mirrored = Rig::new(&[], &[]).await?;
    mirrored.gateway.begin().await?;
    mirrored.gateway.wait_phase("mirroring", Duration::from_secs(60)).await?;
    for name in ["set_p1", "set_p16"] {
        let case = case(name).context("a case")?;
        let probe = redis_benchmark(plain.port()?, case, 50_000).await?;
        redis_benchmark(mirrored.port()?, case, 50_000).await?;
        let requests = (probe.rps * args.seconds) as u64;
        // rows: rps, gateway, source, destination
        let mut without: [Vec<f64>; 3] = Default::default();
        let mut with: [Vec<f64>; 4] = Default::default();
        let mut ratios = Vec::new();
        for turn in 0..args.rounds {
            let mut pair = [0.0; 2];
            for half in 0..2 {
                mirrored.in_step().await?;
                if (turn + half) % 2 == 0 {
                    let pids = [plain.gateway.pid(), plain.source.pid()];
                    let before = pids.map(cpu_us);
                    let run = redis_benchmark(plain.port()?, case, requests).await?;
                    pair[0] = run.rps;
                    without[0].push(run.rps);
                    for (index, pid) in pids.into_iter().enumerate() {
                        without[index + 1].push((cpu_us(pid) - before[index]) / run.commands);
                    }
                } else {
                    let pids = [mirrored.gateway.pid(), mirrored.source.pid(), mirrored.destination.pid()];
                    let before = pids.map(cpu_us);
                    let run = redis_benchmark(mirrored.port()?, case, requests).await?;
                    mirrored.in_step().await?;
                    pair[1] = run.rps;
                    with[0].push(run.rps);
                    for (index, pid) in pids.into_iter().enumerate() {
                        with[index + 1].push((cpu_us(pid) - before[index]) / run.commands);
                    }
                }
            }
            ratios.push(pair[1] / pair[0]);
        }
        let extra: Vec<f64> = with[1].iter().zip(&without[1]).map(|(with, without)| with - without).collect();
        let document = json!({
            "case": format!("mirror_{name}"),
            "without_rps": median(&without[0]).round(),
            "with_rps": median(&with[0]).round(),
            "ratio": round(median(&ratios), 3),
            "gateway_extra_cpu_us_per_write": round(median(&extra), 3),
            "cpu_us_per_write": {
                "without": {"gateway": round(median(&without[1]), 3), "source": round(median(&without[2]), 3)},
                "with": {
                    "gateway": round(median(&with[1]), 3),
                    "source": round(median(&with[2]), 3),
                    "destination": round(median(&with[3]), 3),
                },
            },
        });
        print(args, &document);
    }
    Ok(())
}

/// A copy of many strings: from `start` to `mirroring`, and native REPLICAOF with diskless transfer on both ends.
pub(crate) async fn snapshot(args: &Args) -> Result<()> {
    args.note(&machine());
    let dir = tempfile::tempdir()?;
    let diskless = ["--repl-diskless-sync", "yes", "--repl-diskless-sync-delay", "0"];
    let source = Server::start(&dir.path().join("source"), &diskless).await?;
    let destination =
        Server::start(&dir.path().join("destination"), &["--repl-diskless-load", "on-empty-db"]).await?;
    args.note(&format!("filling {} keys of 100 bytes", args.keys));
    let mut fill = source.connect().await?;
    let value = "v".repeat(100);
    for first in (0..args.keys).step_by(10_000) {
        let numbers = first..args.keys.min(first + 10_000);
        let count = numbers.end - numbers.start;
        numbers.for_each(|number| fill.queue(&["SET", &format!("key:{number:012}"), &value]));
        fill.flush().await?;
        for _ in 0..count {
            fill.reply().await?;
        }
    }
    let (mut native, mut ours, mut ratios, mut peak, mut cpu) = (vec![], vec![], vec![], vec![], vec![]);
    for turn in 0..args.rounds {
        let mut pair = [0.0; 2];
        for half in 0..2 {
            destination.call(&["FLUSHALL", "SYNC"]).await?;
            if (turn + half) % 2 == 0 {
                let began = Instant::now();
                destination.call(&["REPLICAOF", "127.0.0.1", &source.port().to_string()]).await?;
                loaded(&destination, args.keys).await?;
                pair[0] = began.elapsed().as_secs_f64();
                destination.call(&["REPLICAOF", "NO", "ONE"]).await?;
            } else {
                let own = tempfile::tempdir()?;
                let mut gateway = gateway(own.path(), &source, &destination).await?;
                let (done, pid) = (Arc::new(AtomicBool::new(false)), gateway.pid());
                let watch = tokio::spawn(sample(pid, done.clone()));
                let before = cpu_us(pid);
                let began = Instant::now();
                gateway.begin().await?;
                gateway.wait_phase("mirroring", Duration::from_secs(300)).await?;
                pair[1] = began.elapsed().as_secs_f64();
                cpu.push((cpu_us(pid) - before) / 1e6);
                done.store(true, Ordering::Relaxed);
                peak.push(watch.await?);
                let copied = keys(&destination).await?;
                if copied < args.keys {
                    bail!("mirroring with {copied} of {} keys", args.keys);
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
        "keys": args.keys,
        "native_seconds": round(median(&native), 2),
        "gateway_seconds": round(median(&ours), 2),
        "ratio": round(median(&ratios), 2),
        "gateway_cpu_seconds": round(median(&cpu), 2),
        "gateway_peak_mib": round(peak.iter().copied().fold(0.0, f64::max), 1),
    });
    print(args, &document);
    Ok(())
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

/// Switches there and back under checked traffic.
pub(crate) async fn switches(args: &Args, count: usize) -> Result<()> {
    args.note(&machine());
    let mut rig = Rig::new(&[], &[]).await?;
    let pace = (args.pace > 0).then_some(args.pace);
    create_user(&rig.destination.address()).await?;
    let user = Some(create_user(&rig.source.address()).await?);
    let plan = Plan { pace, clients: args.clients, user, modern: true, ..Plan::new(rig.gateway.address()) };
    let workload = Workload::start(&plan);
    rig.gateway.begin().await?;
    rig.gateway.wait_phase("mirroring", Duration::from_secs(60)).await?;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let (mut holds, mut pauses, mut seen) = (Vec::new(), Vec::new(), Vec::new());
    let began = Instant::now();
    let first = workload.operations();
    for turn in 0..count {
        workload.take_worst_ms();
        let entry = if turn % 2 == 0 { rig.gateway.cutover().await? } else { rig.gateway.rollback().await? };
        holds.push(entry["max_hold_ms"].as_f64().context("max_hold_ms")?);
        pauses.push(entry["pause_ms"].as_f64().context("pause_ms")?);
        tokio::time::sleep(Duration::from_millis(1000)).await;
        seen.push(workload.take_worst_ms());
        args.note(&format!("{} {entry}", turn + 1));
    }
    let rate = (workload.operations() - first) as f64 / began.elapsed().as_secs_f64();
    let history = workload.stop().await?;
    let active = if count % 2 == 1 { &rig.destination } else { &rig.source };
    let verdict = history.judge(&active.address()).await?;
    let worst = |figures: &[f64]| figures.iter().copied().fold(0.0, f64::max);
    let document = json!({
        "case": "switches",
        "switches": count,
        "clients": args.clients,
        "commands_per_second": rate.round(),
        "max_hold_ms": {"median": round(median(&holds), 2), "worst": round(worst(&holds), 2)},
        "pause_ms": {"median": round(median(&pauses), 2), "worst": round(worst(&pauses), 2)},
        "longest_reply_ms": {"median": round(median(&seen), 2), "worst": round(worst(&seen), 2)},
        "errors": verdict.errors + verdict.wrong + verdict.reordered,
        "lost": verdict.lost,
        "duplicated": verdict.duplicated,
    });
    print(args, &document);
    if !verdict.is_clean() {
        bail!("{verdict}");
    }
    Ok(())
}

/// The document itself, or laid out for a person.
pub(crate) fn print(args: &Args, document: &serde_json::Value) {
    if args.json {
        println!("{document}");
    } else {
        println!("{document:#}");
    }
}

//! What the migration costs while it runs: the mirror and the switch.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use crossfade::cli::demo::gateway::{Gateway, GatewayOptions};
use crossfade::cli::demo::servers::Server;
use crossfade::cli::demo::workload::{Plan, Workload, create_user};
use serde_json::json;
use tempfile::TempDir;

use super::load::{case, redis_benchmark};
use super::process::cpu_us;
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

pub(crate) async fn gateway(dir: &std::path::Path, source: &Server, destination: &Server) -> Result<Gateway> {
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

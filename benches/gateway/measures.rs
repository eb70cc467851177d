//! What the migration costs while it runs: the mirror and the switch.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use crossfade::cli::demo::connection::Reply;
use crossfade::cli::demo::gateway::{Gateway, GatewayOptions};
use crossfade::cli::demo::servers::Server;
use crossfade::cli::demo::workload::{Plan, Workload, create_library, create_user};
use serde_json::json;
use tempfile::TempDir;

use super::load::{Case, case, order, redis_benchmark};
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

/// What has each write besides the source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Second {
    Nothing,
    /// The destination, by the gateway's mirror.
    Mirror,
    /// The destination, as a native replica of the source: the gateway forwards and nothing else.
    Replica,
}

/// A rig under load, and per run: rate, processor time per write of gateway, source and destination.
struct Loaded {
    second: Second,
    rig: Rig,
    rows: [Vec<f64>; 4],
}

impl Loaded {
    async fn new(second: Second) -> Result<Self> {
        let mut rig = Rig::new(&["--repl-diskless-sync-delay", "0"], &[]).await?;
        match second {
            Second::Nothing => {}
            Second::Mirror => {
                rig.gateway.begin().await?;
                rig.gateway.wait_phase("mirroring", Duration::from_secs(60)).await?;
            }
            Second::Replica => {
                let source = rig.source.port().to_string();
                rig.destination.call(&["REPLICAOF", "127.0.0.1", &source]).await?;
            }
        }
        Ok(Self { second, rig, rows: Default::default() })
    }

    async fn in_step(&mut self) -> Result<()> {
        match self.second {
            Second::Nothing => Ok(()),
            Second::Mirror => self.rig.in_step().await,
            Second::Replica => {
                let until = Instant::now() + Duration::from_secs(120);
                loop {
                    let mut source = self.rig.source.connect().await?;
                    // WAIT looks at what its own connection wrote; it asks the replica how far it is.
                    source.must(&["DEL", "in-step"]).await?;
                    if matches!(source.must(&["WAIT", "1", "1000"]).await?, Reply::Integer(1)) {
                        return Ok(());
                    }
                    if Instant::now() > until {
                        bail!("the replica does not come into step");
                    }
                }
            }
        }
    }

    async fn run(&mut self, case: Case, requests: u64) -> Result<f64> {
        self.in_step().await?;
        let pids = [self.rig.gateway.pid(), self.rig.source.pid(), self.rig.destination.pid()];
        let before = pids.map(cpu_us);
        let run = redis_benchmark(self.rig.port()?, case, requests).await?;
        self.in_step().await?;
        self.rows[0].push(run.rps);
        for (index, pid) in pids.into_iter().enumerate() {
            self.rows[index + 1].push((cpu_us(pid) - before[index]) / run.commands);
        }
        Ok(run.rps)
    }
}

/// SET through the gateway with a live mirror, without one, and with a native replica of the source instead, interleaved,
/// at P=1 and P=16; processor time per write of every process, the time until the second server is in step again included.
pub(crate) async fn mirror(args: &Args) -> Result<()> {
    args.note(&machine());
    let mut all = Vec::new();
    for second in [Second::Nothing, Second::Mirror, Second::Replica] {
        all.push(Loaded::new(second).await?);
    }
    for name in ["set_p1", "set_p16"] {
        let case = case(name).context("a case")?;
        let mut requests = 50_000;
        // The first of them is for warming up, and tells how much is to be done in the others.
        for turn in 0..=args.rounds {
            let mut rates = [0.0; 3];
            for index in order(all.len(), turn) {
                rates[index] = all[index].run(case, requests).await?;
            }
            if turn == 0 {
                requests = (rates[0] * args.seconds) as u64;
                all.iter_mut().for_each(|loaded| loaded.rows = Default::default());
            }
        }
        let against = |index: usize, row: usize, than: usize| -> Vec<f64> {
            all[index].rows[row].iter().zip(&all[than].rows[row]).map(|(one, other)| one / other).collect()
        };
        let ratio = |index, than| round(median(&against(index, 0, than)), 3);
        let extra: Vec<f64> =
            all[1].rows[1].iter().zip(&all[0].rows[1]).map(|(with, without)| with - without).collect();
        let rps = |index: usize| median(&all[index].rows[0]).round();
        let cpu = |index: usize| {
            let [_, gateway, source, destination] = &all[index].rows;
            json!({
                "gateway": round(median(gateway), 3),
                "source": round(median(source), 3),
                "destination": round(median(destination), 3),
            })
        };
        let document = json!({
            "case": format!("mirror_{name}"),
            "without_rps": rps(0),
            "with_rps": rps(1),
            "ratio": ratio(1, 0),
            "gateway_extra_cpu_us_per_write": round(median(&extra), 3),
            "native_replica_rps": rps(2),
            "native_replica_ratio": ratio(2, 0),
            "of_native_replica": ratio(1, 2),
            "cpu_us_per_write": { "without": cpu(0), "with": cpu(1), "native_replica": cpu(2) },
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
    create_library(&rig.source.address()).await?;
    let plan = Plan {
        pace,
        clients: args.clients,
        user,
        modern: true,
        monitored: true,
        ..Plan::new(rig.gateway.address())
    };
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

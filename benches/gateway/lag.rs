//! How far the mirror is behind: from the answer of the source to the moment at which the write is visible at the
//! destination, beside other writes; and how long the destination works on after the fastest stream has ended.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use crossfade::cli::demo::connection::Connection;
use serde_json::json;

use super::load::{case, redis_benchmark};
use super::measures::{Rig, print};
use super::process::cpu_us;
use super::{Args, machine, round};

/// Connections that write beside the probe.
const WRITERS: u32 = 4;
/// Between two bursts of one of them.
const TICK: Duration = Duration::from_millis(2);
/// Between two probes.
const PROBE: Duration = Duration::from_millis(5);

/// SETs at `args.pace` a second for `args.seconds`, and `args.keys` SETs as fast as they go.
pub(crate) async fn lag(args: &Args) -> Result<()> {
    args.note(&machine());
    let mut rig = Rig::new(&[], &[]).await?;
    rig.gateway.begin().await?;
    rig.gateway.wait_phase("mirroring", Duration::from_secs(60)).await?;
    let (stop, written) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let each = args.pace / WRITERS;
    let writers: Vec<_> = (0..WRITERS)
        .map(|number| {
            tokio::spawn(write(rig.gateway.address(), number, each, Arc::clone(&stop), Arc::clone(&written)))
        })
        .collect();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let pids = [rig.gateway.pid(), rig.source.pid(), rig.destination.pid()];
    let (before, began, first) = (pids.map(cpu_us), Instant::now(), written.load(Ordering::Relaxed));
    let mut lags = Vec::new();
    let mut writer = Connection::open(&rig.gateway.address()).await?;
    let mut reader = rig.destination.connect().await?;
    while began.elapsed().as_secs_f64() < args.seconds {
        let text = lags.len().to_string();
        writer.must(&["SET", "probe", &text]).await?;
        let answered = Instant::now();
        while reader.must(&["GET", "probe"]).await?.bytes() != Some(text.as_bytes()) {}
        lags.push(answered.elapsed().as_secs_f64() * 1e3);
        tokio::time::sleep(PROBE).await;
    }
    let count = (written.load(Ordering::Relaxed) - first) as f64;
    let rate = count / began.elapsed().as_secs_f64();
    let cpu: Vec<f64> =
        pids.iter().zip(before).map(|(pid, before)| round((cpu_us(*pid) - before) / count, 2)).collect();
    stop.store(true, Ordering::Relaxed);
    for writer in writers {
        writer.await??;
    }
    lags.sort_by(f64::total_cmp);
    let at = |share: f64| round(lags[((lags.len() - 1) as f64 * share) as usize], 3);
    print(
        args,
        &json!({
            "case": "lag",
            "writes_per_second": rate.round(),
            "seconds": args.seconds,
            "probes": lags.len(),
            "lag_ms": {"p50": at(0.5), "p99": at(0.99), "worst": at(1.0)},
            "cpu_us_per_write": {"gateway": cpu[0], "source": cpu[1], "destination": cpu[2]},
        }),
    );

    rig.in_step().await?;
    let before = pids.map(cpu_us);
    let run = redis_benchmark(rig.port()?, case("set_p16").context("a case")?, args.keys).await?;
    let ended = Instant::now();
    rig.in_step().await?;
    let behind = ended.elapsed().as_secs_f64();
    let cpu: Vec<f64> = pids
        .iter()
        .zip(before)
        .map(|(pid, before)| round((cpu_us(*pid) - before) / run.commands, 2))
        .collect();
    print(
        args,
        &json!({
            "case": "full_speed",
            "writes": run.commands,
            "writes_per_second": run.rps.round(),
            "destination_done_after_s": round(behind, 3),
            "cpu_us_per_write": {"gateway": cpu[0], "source": cpu[1], "destination": cpu[2]},
        }),
    );
    Ok(())
}

/// Writes in small bursts, so many a second.
async fn write(
    address: String,
    number: u32,
    per_second: u32,
    stop: Arc<AtomicBool>,
    written: Arc<AtomicU64>,
) -> Result<()> {
    let mut connection = Connection::open(&address).await?;
    let value = "v".repeat(64);
    let began = Instant::now();
    let mut sent = 0_u64;
    while !stop.load(Ordering::Relaxed) {
        let due = (began.elapsed().as_secs_f64() * f64::from(per_second)) as u64;
        let burst = due - sent;
        for n in sent..due {
            connection.queue(&["SET", &format!("{number}:{}", n % 25_000), &value]);
        }
        connection.flush().await?;
        for _ in 0..burst {
            connection.reply().await?;
        }
        sent = due;
        written.fetch_add(burst, Ordering::Relaxed);
        tokio::time::sleep(TICK).await;
    }
    Ok(())
}

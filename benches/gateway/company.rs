//! What clients cost one another: thousands that are idle, one that moves large values or runs slow scripts.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use crossfade::cli::demo::gateway::{Gateway, GatewayOptions};
use crossfade::cli::demo::servers::Server;
use crossfade::resp::write;
use serde_json::json;

use super::load::{CASES, case, redis_benchmark};
use super::measures::{port_of, print};
use super::process::{cpu_us, rss_mib};
use super::{Args, machine, median, round};

/// Clients that ask while one moves large values, and how often each does.
const OTHERS: usize = 50;
const EVERY: Duration = Duration::from_millis(10);

fn front(dir: &std::path::Path, source: &Server) -> GatewayOptions {
    GatewayOptions::new(env!("CARGO_BIN_EXE_crossfade"), dir, &source.url(), "")
}

/// 50 busy clients alone and beside `--count` idle ones that have all spoken once, interleaved.
pub(crate) async fn idle(args: &Args, count: usize) -> Result<()> {
    args.note(&machine());
    rlimit::increase_nofile_limit(count as u64 * 2 + 1024)?;
    let dir = tempfile::tempdir()?;
    let source = Server::start(&dir.path().join("source"), &[]).await?;
    let config = dir.path().join("crossfade.toml");
    std::fs::write(&config, format!("[listen]\nmax_clients = {}\n", count + 1000))?;
    let options = front(&dir.path().join("gateway"), &source);
    let gateway = Gateway::start(options.env("CROSSFADE_CONFIG", config.to_str().context("a path")?)).await?;
    let port = port_of(&gateway)?;
    redis_benchmark(source.port(), CASES[3], 300_000).await?;
    for name in ["get_p1", "set_p1"] {
        let case = case(name).context("a case")?;
        let probe = redis_benchmark(port, case, 50_000).await?;
        let requests = (probe.rps * args.seconds) as u64;
        let (mut ratios, mut alone, mut beside) = (Vec::new(), Vec::new(), Vec::new());
        let (mut per_client, mut memory, mut cpu) = (Vec::new(), Vec::new(), [Vec::new(), Vec::new()]);
        for turn in 0..args.rounds {
            let mut pair = [0.0; 2];
            for half in 0..2 {
                let crowded = (turn + half) % 2 == 1;
                let before = rss_mib(gateway.pid());
                let crowd = if crowded { crowd(port, count)? } else { Vec::new() };
                if crowded {
                    per_client.push((rss_mib(gateway.pid()) - before) * 1024.0 / count as f64);
                }
                let spent = cpu_us(gateway.pid());
                let run = redis_benchmark(port, case, requests).await?;
                cpu[usize::from(crowded)].push((cpu_us(gateway.pid()) - spent) / run.commands);
                pair[usize::from(crowded)] = run.rps;
                if crowded {
                    memory.push(rss_mib(gateway.pid()));
                    beside.push(run.rps);
                } else {
                    alone.push(run.rps);
                }
                drop(crowd);
                // The sessions end in the background.
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
            ratios.push(pair[1] / pair[0]);
        }
        let document = json!({
            "case": format!("idle_{name}"),
            "idle_clients": count,
            "alone_rps": median(&alone).round(),
            "beside_rps": median(&beside).round(),
            "ratio": round(median(&ratios), 3),
            "gateway_cpu_us_per_command": {"alone": round(median(&cpu[0]), 3), "beside": round(median(&cpu[1]), 3)},
            "gateway_mib": round(memory.iter().copied().fold(0.0, f64::max), 1),
            // From the first round: later ones use memory that the earlier ones left.
            "kib_per_idle_client": round(per_client.first().copied().unwrap_or(f64::NAN), 2),
        });
        print(args, &document);
    }
    Ok(())
}

/// Clients that have asked something and say no more.
fn crowd(port: u16, count: usize) -> Result<Vec<TcpStream>> {
    let mut all = Vec::with_capacity(count);
    for number in 0..count {
        let mut stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.write_all(b"*2\r\n$3\r\nGET\r\n$16\r\nkey:000000000001\r\n")?;
        all.push(stream);
        // Answers are taken in portions, so that neither side waits for the other each time.
        if number % 64 == 63 || number + 1 == count {
            let from = number / 64 * 64;
            for stream in &mut all[from..] {
                let mut reply = [0; 256];
                if stream.read(&mut reply)? == 0 {
                    bail!("an idle client was closed");
                }
            }
        }
    }
    Ok(all)
}

/// What one client does, without a rest.
#[derive(Debug, Clone, Copy)]
enum Neighbour {
    /// Sends and fetches values of 50 MiB by turns.
    BothWays,
    /// Fetches values of 100 MiB.
    Fetches,
    /// Sends values of 100 MiB.
    Sends,
    /// Runs scripts of some 10 ms.
    Scripts,
    /// Three clients, one for each of the last three.
    Three,
}

impl Neighbour {
    fn name(self) -> &'static str {
        match self {
            Self::BothWays => "fair",
            Self::Fetches => "fair_fetches",
            Self::Sends => "fair_sends",
            Self::Scripts => "fair_scripts",
            Self::Three => "fair_three",
        }
    }

    /// Bytes of a value.
    fn size(self) -> usize {
        match self {
            Self::BothWays => 50 << 20,
            Self::Fetches | Self::Sends | Self::Three => 100 << 20,
            Self::Scripts => 0,
        }
    }
}

/// GETs of 50 clients at a steady rate beside each kind of neighbour.
pub(crate) async fn fair(args: &Args) -> Result<()> {
    args.note(&machine());
    use Neighbour::{BothWays, Fetches, Scripts, Sends, Three};
    for neighbour in [BothWays, Fetches, Sends, Scripts, Three] {
        beside(args, neighbour).await?;
    }
    Ok(())
}

/// GETs of 50 clients at a steady rate while another client keeps the server busy: on the server itself and through the
/// gateway, interleaved.
async fn beside(args: &Args, neighbour: Neighbour) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let source = Server::start(&dir.path().join("source"), &[]).await?;
    let gateway = Gateway::start(front(&dir.path().join("gateway"), &source)).await?;
    let through = port_of(&gateway)?;
    redis_benchmark(source.port(), CASES[3], 300_000).await?;
    let seconds = args.seconds.max(3.0);
    // rows: p50, p99, values per second
    let mut direct: [Vec<f64>; 3] = Default::default();
    let mut gatewayed: [Vec<f64>; 3] = Default::default();
    let mut ratios = Vec::new();
    for turn in 0..args.rounds {
        let mut pair = [0.0; 2];
        for half in 0..2 {
            let is_gateway = (turn + half) % 2 == 1;
            let port = if is_gateway { through } else { source.port() };
            let figures = mix(port, neighbour, seconds).await?;
            pair[usize::from(is_gateway)] = figures[1];
            let rows = if is_gateway { &mut gatewayed } else { &mut direct };
            for (row, figure) in rows.iter_mut().zip(figures) {
                row.push(figure);
            }
        }
        ratios.push(pair[1] / pair[0]);
        args.note(&format!(
            "{}, round {} of {}: p99 {:.0} and {:.0} µs",
            neighbour.name(),
            turn + 1,
            args.rounds,
            pair[0],
            pair[1]
        ));
    }
    let side = |rows: &[Vec<f64>; 3]| {
        json!({
            "p50_us": median(&rows[0]).round(),
            "p99_us": median(&rows[1]).round(),
            "neighbour_per_second": round(median(&rows[2]), 1),
        })
    };
    let document = json!({
        "case": neighbour.name(),
        "others": OTHERS,
        "large_bytes": neighbour.size(),
        "direct": side(&direct),
        "gateway": side(&gatewayed),
        "p99_ratio": round(median(&ratios), 3),
        "gateway_mib": round(rss_mib(gateway.pid()), 1),
    });
    print(args, &document);
    Ok(())
}

/// The mix on one port: p50 and p99 of the small GETs in microseconds, and how many commands of the neighbour per second.
async fn mix(port: u16, neighbour: Neighbour, seconds: f64) -> Result<[f64; 3]> {
    let stop = Arc::new(AtomicBool::new(false));
    let moved = Arc::new(AtomicU64::new(0));
    let kinds = match neighbour {
        Neighbour::Three => vec![Neighbour::Fetches, Neighbour::Sends, Neighbour::Scripts],
        one => vec![one],
    };
    let movers: Vec<_> = kinds
        .into_iter()
        .map(|kind| {
            let (stop, moved) = (Arc::clone(&stop), Arc::clone(&moved));
            std::thread::spawn(move || neighbour_of(kind, port, &stop, &moved))
        })
        .collect();
    let askers: Vec<_> = (0..OTHERS)
        .map(|number| {
            let stop = Arc::clone(&stop);
            tokio::spawn(async move { ask(port, number, &stop).await })
        })
        .collect();
    // The beginning does not count: connections are opened, memory is taken for the first time.
    tokio::time::sleep(Duration::from_millis(700)).await;
    moved.store(0, Ordering::Relaxed);
    let began = Instant::now();
    tokio::time::sleep(Duration::from_secs_f64(seconds)).await;
    let rate = moved.load(Ordering::Relaxed) as f64 / began.elapsed().as_secs_f64();
    stop.store(true, Ordering::Relaxed);
    let mut times = Vec::new();
    for asker in askers {
        let of_one = asker.await??;
        let skip = of_one.len() / 5;
        times.extend_from_slice(&of_one[skip..]);
    }
    for mover in movers {
        mover.join().map_err(|_| anyhow::anyhow!("the neighbour panicked"))??;
    }
    times.sort_by(f64::total_cmp);
    let at = |share: f64| times.get((times.len() as f64 * share) as usize).copied().unwrap_or(f64::NAN);
    Ok([at(0.5), at(0.99), rate])
}

/// Does what the neighbour does until it is stopped.
fn neighbour_of(kind: Neighbour, port: u16, stop: &AtomicBool, moved: &AtomicU64) -> Result<()> {
    const SCRIPT: &[u8] = b"local x = 0 for i = 1, 1000000 do x = x + i end return x";
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    let size = kind.size();
    let (mut set, mut get, mut script) = (Vec::new(), Vec::new(), Vec::new());
    write::command(&mut set, &[b"SET".as_slice(), b"large", &vec![b'x'; size]]);
    write::command(&mut get, &["GET", "large"]);
    write::command(&mut script, &[b"EVAL".as_slice(), SCRIPT, b"0"]);
    let answer = size + format!("${size}\r\n\r\n").len();
    let commands: &[(&[u8], usize)] = match kind {
        Neighbour::BothWays => &[(&set, 5), (&get, answer)],
        Neighbour::Fetches => &[(&get, answer)],
        Neighbour::Sends => &[(&set, 5)],
        Neighbour::Scripts | Neighbour::Three => &[(&script, ":500000500000\r\n".len())],
    };
    let mut buffer = vec![0; 256 * 1024];
    let mut ask = |command: &[u8], mut left: usize| -> Result<()> {
        stream.write_all(command)?;
        while left > 0 {
            match stream.read(&mut buffer)? {
                0 => bail!("the neighbour's connection was closed"),
                got if buffer[0] == b'-' => bail!("{}", String::from_utf8_lossy(&buffer[..got.min(80)])),
                got => left = left.checked_sub(got).context("a longer answer than expected")?,
            }
        }
        Ok(())
    };
    // There is something to fetch.
    if size > 0 {
        ask(&set, 5)?;
    }
    while !stop.load(Ordering::Relaxed) {
        for (command, answer) in commands {
            ask(command, *answer)?;
            moved.fetch_add(1, Ordering::Relaxed);
        }
    }
    Ok(())
}

/// One GET every 10 ms; the time that each took, waiting for its turn included.
async fn ask(port: u16, number: usize, stop: &AtomicBool) -> Result<Vec<f64>> {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", port)).await?;
    stream.set_nodelay(true)?;
    let mut times = Vec::new();
    let mut reply = [0; 256];
    let start = tokio::time::Instant::now() + EVERY.mul_f64(number as f64 / OTHERS as f64);
    for turn in 0.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let due = start + EVERY * turn;
        tokio::time::sleep_until(due).await;
        let asked = Instant::now();
        stream.write_all(format!("*2\r\n$3\r\nGET\r\n$16\r\nkey:{turn:012}\r\n").as_bytes()).await?;
        let mut length = 0;
        while !reply[..length].ends_with(b"\r\n") || reply[..length] == *b"$64\r\n" {
            match stream.read(&mut reply[length..]).await? {
                0 => bail!("the connection was closed"),
                got => length += got,
            }
        }
        times.push(asked.elapsed().as_secs_f64() * 1e6);
    }
    Ok(times)
}

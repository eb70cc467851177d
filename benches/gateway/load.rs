//! Throughput and latency: the same load on the server itself, through the gateway and through the peers.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use crossfade::cli::demo::gateway::{Gateway, GatewayOptions};
use crossfade::cli::demo::servers::Server;
use serde_json::{Value as Json, json};

use super::peers::{self, Peer};
use super::process::cpu_us;
use super::{Args, machine, median, round};

/// One kind of load.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Case {
    pub(crate) name: &'static str,
    command: &'static str,
    pipeline: u32,
    clients: u32,
}

const fn case_of(name: &'static str, command: &'static str, pipeline: u32, clients: u32) -> Case {
    Case { name, command, pipeline, clients }
}

/// All of them. The last is not made by redis-benchmark: one client, one command at a time, timed here.
pub(crate) const CASES: [Case; 9] = [
    case_of("get_p1", "get", 1, 50),
    case_of("set_p1", "set", 1, 50),
    case_of("get_p16", "get", 16, 50),
    case_of("set_p16", "set", 16, 50),
    case_of("get_p64", "get", 64, 50),
    case_of("set_p64", "set", 64, 50),
    case_of("get_c500", "get", 1, 500),
    case_of("set_c500", "set", 1, 500),
    case_of("latency_1", "get", 1, 1),
];

pub(crate) fn case(name: &str) -> Option<Case> {
    CASES.into_iter().find(|case| case.name == name)
}

/// Between two runs: the server lets go of the last one's clients.
const REST: Duration = Duration::from_millis(200);

/// What one run of one target gave.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Run {
    pub(crate) rps: f64,
    pub(crate) commands: f64,
    /// Median time to a reply, in microseconds.
    pub(crate) p50_us: f64,
}

/// Runs redis-benchmark against a port.
pub(crate) async fn redis_benchmark(port: u16, case: Case, requests: u64) -> Result<Run> {
    let output = tokio::process::Command::new("redis-benchmark")
        .args(["-h", "127.0.0.1", "-p", &port.to_string(), "-d", "64", "-r", "100000", "--csv"])
        .args(["-t", case.command, "-c", &case.clients.to_string(), "-P", &case.pipeline.to_string()])
        .args(["-n", &requests.to_string()])
        .stdin(Stdio::null())
        .output()
        .await
        .context("redis-benchmark (package redis-tools)")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    // "test","rps","avg_latency_ms","min_latency_ms","p50_latency_ms",…
    let line =
        text.lines().rfind(|line| line.to_ascii_lowercase().starts_with(&format!("\"{}\"", case.command)));
    let fields: Vec<f64> = line
        .with_context(|| format!("redis-benchmark: {text}{}", String::from_utf8_lossy(&output.stderr)))?
        .split(',')
        .skip(1)
        .filter_map(|field| field.trim_matches('"').parse().ok())
        .collect();
    let [rps, _, _, p50, ..] = fields[..] else { bail!("redis-benchmark: {text}") };
    Ok(Run { rps, commands: requests as f64, p50_us: p50 * 1e3 })
}

/// One client, one GET at a time.
fn one_client(port: u16, requests: u64) -> Result<Run> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_nodelay(true)?;
    let mut times = Vec::with_capacity(requests as usize);
    let mut reply = [0; 256];
    let began = Instant::now();
    for number in 0..requests {
        let sent = Instant::now();
        write!(stream, "*2\r\n$3\r\nGET\r\n$16\r\nkey:{number:012}\r\n")?;
        let mut length = 0;
        while !reply[..length].ends_with(b"\r\n") {
            match stream.read(&mut reply[length..])? {
                0 => bail!("the connection was closed"),
                more => length += more,
            }
        }
        times.push(sent.elapsed().as_secs_f64() * 1e6);
    }
    Ok(Run {
        rps: requests as f64 / began.elapsed().as_secs_f64(),
        commands: requests as f64,
        p50_us: median(&times),
    })
}

/// In which order a round runs its targets: over 2 × `count` rounds each of them comes as often at each place, and as often
/// directly behind each of the others (a Williams design). What ran before leaves the scheduler and the server in a state that
/// the next one feels, so turning the same order round and round would always favour the same ones.
pub(crate) fn order(count: usize, round: usize) -> Vec<usize> {
    // 0, 1, n-1, 2, n-2, …
    let zigzag =
        (0..count).map(|place| if place % 2 == 1 { place.div_ceil(2) } else { (count - place / 2) % count });
    let mut row: Vec<usize> = zigzag.map(|target| (target + round) % count).collect();
    if (round / count) % 2 == 1 {
        row.reverse();
    }
    row
}

/// Something to send load to.
struct Target {
    name: &'static str,
    port: u16,
    /// The process between, if there is one.
    pid: Option<u32>,
    /// What suits `--seconds`, per case.
    requests: BTreeMap<&'static str, u64>,
}

#[derive(Debug, Default)]
struct Figures {
    rps: Vec<f64>,
    p50_us: Vec<f64>,
    source_cpu: Vec<f64>,
    own_cpu: Vec<f64>,
}

pub(crate) async fn run(args: &Args) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let source = Server::start(&dir.path().join("source"), &[]).await?;
    let destination = Server::start(&dir.path().join("destination"), &[]).await?;
    let options = GatewayOptions::new(
        env!("CARGO_BIN_EXE_crossfade"),
        &dir.path().join("gateway"),
        &source.url(),
        &destination.url(),
    );
    let gateway = Gateway::start(options).await?;
    let peers = if args.peers { peers::start_all(dir.path(), source.port()).await? } else { Vec::new() };
    let names: Vec<&str> = peers.iter().map(|peer| peer.name).collect();
    args.note(&format!(
        "{}\nredis {}; peers: {}",
        machine(),
        source.info("redis_version").await?,
        names.join(", ")
    ));
    let mut targets = targets(&source, &gateway, &peers)?;
    let cases: Vec<Case> = args.cases.iter().filter_map(|name| case(name)).collect();
    let mut figures: BTreeMap<(&str, &str), Figures> = BTreeMap::new();
    // the keys that GET asks for, and a first look at how fast each target is
    redis_benchmark(source.port(), CASES[3], 300_000).await?;
    for turn in 0..=args.rounds {
        for &case in &cases {
            for index in order(targets.len(), turn) {
                let target = &mut targets[index];
                tokio::time::sleep(REST).await;
                let warming = turn == 0;
                let requests = target.requests.get(case.name).copied().unwrap_or(20_000);
                let (source_before, own_before) = (cpu_us(source.pid()), target.pid.map(cpu_us));
                let run = match case.clients {
                    1 => one_client(target.port, requests.min(30_000))?,
                    _ => redis_benchmark(target.port, case, requests).await?,
                };
                if warming {
                    let wanted = (run.rps * args.seconds).max(2000.0);
                    target.requests.insert(case.name, wanted as u64);
                    continue;
                }
                let entry = figures.entry((case.name, target.name)).or_default();
                entry.rps.push(run.rps);
                entry.p50_us.push(run.p50_us);
                entry.source_cpu.push((cpu_us(source.pid()) - source_before) / run.commands);
                if let (Some(pid), Some(before)) = (target.pid, own_before) {
                    entry.own_cpu.push((cpu_us(pid) - before) / run.commands);
                }
            }
        }
        let word =
            if turn == 0 { "warmed up".to_string() } else { format!("round {turn} of {}", args.rounds) };
        args.note(&word);
    }
    report(args, &cases, &peers, &figures);
    Ok(())
}

fn targets(source: &Server, gateway: &Gateway, peers: &[Peer]) -> Result<Vec<Target>> {
    let through = super::measures::port_of(gateway)?;
    let target = |name, port, pid| Target { name, port, pid, requests: BTreeMap::new() };
    let mut targets =
        vec![target("direct", source.port(), None), target("gateway", through, Some(gateway.pid()))];
    targets.extend(peers.iter().map(|peer| target(peer.name, peer.port, Some(peer.pid()))));
    Ok(targets)
}

fn report(
    args: &Args,
    cases: &[Case],
    peers: &[Peer],
    figures: &BTreeMap<(&'static str, &'static str), Figures>,
) {
    let mut table = comfy_table::Table::new();
    table.load_preset(comfy_table::presets::UTF8_HORIZONTAL_ONLY);
    table.set_header(["case", "target", "commands/s", "ratio", "p50 µs", "source µs/cmd", "own µs/cmd"]);
    for case in cases {
        let figures_of = |name: &'static str| figures.get(&(case.name, name));
        let Some(direct) = figures_of("direct") else { continue };
        // ratios are taken round by round: what disturbs a round disturbs both
        let ratio = |of: &Figures| {
            median(&of.rps.iter().zip(&direct.rps).map(|(own, direct)| own / direct).collect::<Vec<_>>())
        };
        let names = ["direct", "gateway"].into_iter().chain(peers.iter().map(|peer| peer.name));
        let mut document = json!({"case": case.name, "clients": case.clients, "pipeline": case.pipeline, "rounds": args.rounds});
        for name in names {
            let Some(of) = figures_of(name) else { continue };
            let (rps, p50, own) = (median(&of.rps), median(&of.p50_us), median(&of.own_cpu));
            let source_cpu = median(&of.source_cpu);
            let own_text = if own.is_finite() { format!("{own:.2}") } else { "-".into() };
            table.add_row([
                case.name.to_string(),
                name.to_string(),
                format!("{rps:.0}"),
                format!("{:.2}", ratio(of)),
                format!("{p50:.1}"),
                format!("{source_cpu:.2}"),
                own_text,
            ]);
            match name {
                "direct" => {
                    document["direct_rps"] = json!(rps.round());
                    document["p50_us"]["direct"] = json!(round(p50, 1));
                    document["source_cpu_us_per_command"]["direct"] = json!(round(source_cpu, 3));
                }
                "gateway" => {
                    document["gateway_rps"] = json!(rps.round());
                    document["ratio"] = json!(round(ratio(of), 3));
                    document["p50_us"]["gateway"] = json!(round(p50, 1));
                    document["source_cpu_us_per_command"]["gateway"] = json!(round(source_cpu, 3));
                    document["gateway_cpu_us_per_command"] = json!(round(own, 3));
                }
                peer => {
                    let entry: Json = json!({
                        "rps": rps.round(),
                        "ratio": round(ratio(of), 3),
                        "p50_us": round(p50, 1),
                        "source_cpu_us_per_command": round(source_cpu, 3),
                        "cpu_us_per_command": round(own, 3),
                    });
                    document["peers"][peer] = entry;
                }
            }
        }
        if args.json {
            println!("{document}");
        }
    }
    if args.json { eprintln!("{table}") } else { println!("{table}") }
}

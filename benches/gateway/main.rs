//! What the gateway costs and what it gives, against the server itself and against other proxies, in one run on one
//! machine.
//!
//! ```text
//! cargo bench --bench gateway                        throughput and latency, direct | gateway | peers, interleaved
//! cargo bench --bench gateway -- --json              the same, one JSON object per case
//!     --rounds N        rounds (5); figures are medians over them
//!     --cases a,b       get_p1 set_p1 get_p16 set_p16 get_p64 set_p64 get_c500 set_c500 latency_1
//!     --seconds S       length of one run (1.5)
//!     --no-peers        without HAProxy, twemproxy and Envoy (looked up on PATH and in $CROSSFADE_PEERS)
//! cargo bench --bench gateway -- --mirror            SET with a live mirror, without one, and with a native replica
//! cargo bench --bench gateway -- --snapshot [--keys N]   from `start` to `mirroring`, against native REPLICAOF
//! cargo bench --bench gateway -- --mixed | --big         the same with collections, or with a value of 1 GiB among others
//! cargo bench --bench gateway -- --switches [--count N] [--clients N] [--pace N]
//!                                                        cutovers and rollbacks under 20,000 commands a second of 32
//!                                                        clients; --pace 0: as fast as they can
//! cargo bench --bench gateway -- --lag [--seconds S] [--pace N] [--keys N]
//!                                                        from the source's answer to the destination, beside 20,000 SETs
//!                                                        a second for 60 s; then 5,000,000 SETs as fast as they go
//! cargo bench --bench gateway -- --idle [--count N]      50 busy clients beside 10,000 idle ones, against 50 alone
//! cargo bench --bench gateway -- --fair                  GET of 50 clients beside one that moves values of 50 or 100 MiB, or runs
//!                                                        slow scripts
//! ```
//! `redis-benchmark` makes the load; it and the servers run on the same cores, so ratios mean more than absolutes.
//! Every round runs every target of a case once; over the rounds each of them comes as often at each place and behind each other.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a program that reports to a person")]

mod company;
mod copy;
mod lag;
mod load;
mod measures;
mod peers;
mod process;

use anyhow::{Context, Result, bail};

/// What was asked for on the command line.
#[derive(Debug, Clone)]
struct Args {
    json: bool,
    rounds: usize,
    cases: Vec<String>,
    seconds: f64,
    peers: bool,
    keys: u64,
    count: Option<usize>,
    clients: usize,
    pace: u32,
    what: What,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum What {
    Throughput,
    Mirror,
    Snapshot(copy::Data),
    Switches,
    Idle,
    Fair,
    Lag,
}

impl Args {
    fn parse() -> Result<Self> {
        let mut args = Self {
            json: false,
            rounds: 5,
            cases: load::CASES.iter().map(|case| case.name.to_string()).collect(),
            seconds: 1.5,
            peers: true,
            keys: 2_000_000,
            count: None,
            clients: 32,
            pace: 20_000,
            what: What::Throughput,
        };
        let mut words = std::env::args().skip(1);
        while let Some(word) = words.next() {
            let mut value = || words.next().with_context(|| format!("{word} needs a value"));
            match word.as_str() {
                "--bench" => {} // cargo adds it
                "--json" => args.json = true,
                "--no-peers" => args.peers = false,
                "--rounds" => args.rounds = value()?.parse()?,
                "--seconds" => args.seconds = value()?.parse()?,
                "--keys" => args.keys = value()?.parse()?,
                "--count" => args.count = Some(value()?.parse()?),
                "--clients" => args.clients = value()?.parse()?,
                "--pace" => args.pace = value()?.parse()?,
                "--cases" => args.cases = value()?.split(',').map(ToString::to_string).collect(),
                "--mirror" => args.what = What::Mirror,
                "--snapshot" => args.what = What::Snapshot(copy::Data::Strings),
                "--mixed" => args.what = What::Snapshot(copy::Data::Mixed),
                "--big" => args.what = What::Snapshot(copy::Data::Big),
                "--switches" => args.what = What::Switches,
                "--idle" => args.what = What::Idle,
                "--fair" => args.what = What::Fair,
                "--lag" => (args.what, args.seconds, args.keys) = (What::Lag, 60.0, 5_000_000),
                other => {
                    bail!("{other}: not an option of this benchmark; its first lines of source list them")
                }
            }
        }
        if let Some(unknown) = args.cases.iter().find(|name| load::case(name).is_none()) {
            bail!("{unknown}: not a case; known: {}", load::CASES.map(|case| case.name).join(" "));
        }
        Ok(args)
    }

    /// Something for the person who waits.
    fn note(&self, text: &str) {
        eprintln!("{text}");
    }
}

fn main() -> Result<()> {
    let args = Args::parse()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        match args.what {
            What::Throughput => load::run(&args).await,
            What::Mirror => measures::mirror(&args).await,
            What::Snapshot(data) => copy::snapshot(&args, data).await,
            What::Switches => measures::switches(&args, args.count.unwrap_or(20)).await,
            What::Idle => company::idle(&args, args.count.unwrap_or(10_000)).await,
            What::Fair => company::fair(&args).await,
            What::Lag => lag::lag(&args).await,
        }
    })
}

/// The middle of some figures.
fn median(figures: &[f64]) -> f64 {
    let mut sorted: Vec<f64> = figures.iter().copied().filter(|figure| figure.is_finite()).collect();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => sorted[n / 2],
        n => f64::midpoint(sorted[n / 2 - 1], sorted[n / 2]),
    }
}

/// Rounded for a document.
fn round(figure: f64, digits: i32) -> f64 {
    let scale = 10_f64.powi(digits);
    (figure * scale).round() / scale
}

/// What the figures were measured on.
fn machine() -> String {
    let read = |path: &str, key: &str| {
        let text = std::fs::read_to_string(path).unwrap_or_default();
        text.lines()
            .find(|line| line.starts_with(key))
            .and_then(|line| line.split_once(':'))
            .map(|(_, v)| v.trim().to_string())
    };
    let cores = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    let cpu = read("/proc/cpuinfo", "model name").unwrap_or_else(|| "unknown processor".into());
    let memory = read("/proc/meminfo", "MemTotal").unwrap_or_default();
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    format!("{cores} cores of {cpu}, {memory}, Linux {}", kernel.trim())
}

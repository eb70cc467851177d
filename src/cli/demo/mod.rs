//! `crossfade demo`: two real servers, live checked traffic, copy, cutover, rollback, in one command.
//!
//! It starts two `redis-server` processes on free ports in a temporary directory, fills the first, runs the gateway
//! as a process of its own and 32 clients through it that check every reply, and takes them to the second server,
//! back, and over again. Then it compares both servers key by key and every client's history with what is stored.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command that talks to a person")]

pub mod connection;
pub mod fill;
pub mod gateway;
mod report;
pub mod servers;
pub mod workload;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value as Json;

use self::fill::Filled;
use self::gateway::{Gateway, GatewayOptions};
use self::report::{Report, Story};
use self::servers::{Server, server_binary};
use self::workload::{Plan, Workload};
use crate::Side;
use crate::server::Endpoint;
use crate::verify::{self, VerifyOptions};

/// Arguments of `crossfade demo`.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Leave the servers and the gateway running and print where they are
    #[arg(long)]
    pub keep: bool,
    /// Keys to fill the source with
    #[arg(long, default_value_t = 310_000, value_name = "N")]
    pub keys: u64,
    /// Clients that send checked traffic
    #[arg(long, default_value_t = 32, value_name = "N")]
    pub clients: usize,
    /// Commands a second that all clients send together
    #[arg(long, default_value_t = 12_000, value_name = "N")]
    pub pace: u32,
    /// The redis-server to start as the source
    #[arg(long, value_name = "PATH", default_value = "redis-server")]
    pub source_server: PathBuf,
    /// The redis-server to start as the destination
    #[arg(long, value_name = "PATH", default_value = "redis-server")]
    pub destination_server: PathBuf,
}

/// Runs the demo; exit status 0 only when nothing was lost, nothing doubled, nothing differs and no client saw an error.
///
/// # Errors
/// A server or the gateway cannot be started, or does not get where it should in time.
pub fn run(args: &Args, json: bool) -> Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        tokio::select! {
            done = demonstrate(args, json) => done,
            // everything that was started ends with the values that are dropped here
            () = interrupted() => bail!("interrupted; the servers and the gateway have been ended"),
        }
    })
}

async fn interrupted() {
    let terminated = async {
        match tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()) {
            Ok(mut signal) => drop(signal.recv().await),
            Err(_) => std::future::pending().await,
        }
    };
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        () = terminated => {}
    }
}

/// What the demo works with; dropping it ends the processes, then removes the directory.
struct Stage {
    gateway: Gateway,
    source: Server,
    destination: Server,
    dir: tempfile::TempDir,
}

async fn demonstrate(args: &Args, json: bool) -> Result<ExitCode> {
    let began = Instant::now();
    let mut story = Story::new(json);
    story.title();
    let (mut stage, filled) = set_up(args, &mut story).await?;
    let workload = Workload::start(&Plan {
        clients: args.clients,
        pace: Some(args.pace),
        ..Plan::new(stage.gateway.address())
    });
    let mut report = Report::new(filled.keys);
    let travelled = travel(&mut stage, &workload, &mut story, &mut report).await;
    if let Err(error) = travelled {
        // what the clients saw often says why
        for finding in workload.findings() {
            eprintln!("{finding}");
        }
        return Err(error);
    }
    let history = workload.stop().await?;
    settle(&mut stage).await?;
    let active = &stage.destination;
    let verdict = history.judge(&active.address()).await.context("reading what the clients wrote")?;
    let compared = compare(&stage).await?;
    report.switches = stage.gateway.status().await?["switches"].as_array().cloned().unwrap_or_default();
    report.finish(&verdict, &compared, began.elapsed());
    story.verdict(&report);
    if json {
        println!("{}", report.json());
    }
    let clean = report.is_clean();
    if args.keep {
        story.kept(&stage);
        let Stage { mut gateway, mut source, mut destination, dir } = stage;
        gateway.leave();
        source.leave();
        destination.leave();
        let _ = dir.keep();
    }
    Ok(if clean { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn set_up(args: &Args, story: &mut Story) -> Result<(Stage, Filled)> {
    let dir = tempfile::Builder::new().prefix("crossfade-demo-").tempdir()?;
    let start = async |path: &PathBuf, side: &str| {
        Server::start_as(
            &path.to_str().map_or_else(|| path.clone(), server_binary),
            &dir.path().join(side),
            &[],
        )
        .await
    };
    let (source, destination) = tokio::try_join!(
        start(&args.source_server, "source"),
        start(&args.destination_server, "destination")
    )?;
    let filling = Instant::now();
    let filled = fill::fill(&source.address(), args.keys, fill::LARGE).await.context("filling the source")?;
    let memory = source.info("used_memory_human").await.unwrap_or_default();
    story
        .server(
            "source",
            &source,
            &format!(
                "{} keys of every type in {} databases, {memory}, filled in {:.1} s",
                report::thousands(filled.keys),
                filled.databases,
                filling.elapsed().as_secs_f64()
            ),
        )
        .await;
    story.server("destination", &destination, "empty").await;
    let exe = std::env::current_exe().context("finding the crossfade executable")?;
    let options = GatewayOptions::new(exe, &dir.path().join("gateway"), &source.url(), &destination.url());
    let gateway = Gateway::start(options.args(&["--name", "demo"])).await?;
    story.gateway(&gateway, args.clients);
    Ok((Stage { gateway, source, destination, dir }, filled))
}

/// The way there, back, and there again, under load.
async fn travel(
    stage: &mut Stage,
    workload: &Workload,
    story: &mut Story,
    report: &mut Report,
) -> Result<()> {
    let gateway = &mut stage.gateway;
    after(workload, 3_000, Duration::ZERO).await?;
    let starting = Instant::now();
    gateway.begin().await.context("starting the mirror")?;
    let status = loop {
        let status = gateway.status().await?;
        match status["phase"].as_str() {
            Some("mirroring") => break status,
            Some("failed") => bail!("the migration failed: {}", status["error"]),
            _ if starting.elapsed() > Duration::from_secs(60) => {
                bail!("not mirroring after 60 s; {status}\n{}", gateway::tail(&gateway.log(), 20))
            }
            _ => story.progress(&status),
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    report.copy_seconds = starting.elapsed().as_secs_f64();
    story.mirroring(&status, report.copy_seconds);
    for (index, order) in ["cutover", "rollback", "cutover"].into_iter().enumerate() {
        after(workload, 10_000, Duration::from_secs(2)).await?;
        workload.take_worst_ms();
        let entry: Json = match order {
            "cutover" => gateway.cutover().await,
            _ => gateway.rollback().await,
        }
        .with_context(|| format!("{order} (switch {})\n{}", index + 1, gateway::tail(&gateway.log(), 20)))?;
        // the replies that waited have arrived when every client has gone on for a while
        after(workload, 2_000, Duration::from_millis(200)).await?;
        story.switched(&entry, workload.take_worst_ms());
    }
    after(workload, 10_000, Duration::from_secs(1)).await
}

/// Lets the clients work: at least so many operations and so much time.
async fn after(workload: &Workload, operations: u64, time: Duration) -> Result<()> {
    let (began, first) = (Instant::now(), workload.operations());
    while workload.operations() < first + operations || began.elapsed() < time {
        if began.elapsed() > time + Duration::from_secs(20) {
            bail!("the clients are stuck: {} operations in 20 s", workload.operations() - first);
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Ok(())
}

/// Waits until the reverse mirror has applied everything that the active side has executed.
async fn settle(stage: &mut Stage) -> Result<()> {
    let end: u64 = stage.destination.info("master_repl_offset").await?.parse()?;
    let applied =
        |status: &Json| status["mirror"]["applied_offset"].as_u64().is_some_and(|offset| offset >= end);
    stage.gateway.wait_until("the reverse mirror", Duration::from_secs(20), applied).await?;
    Ok(())
}

/// Both servers, key by key. The source is the passive side at the end: its expiries are padded.
async fn compare(stage: &Stage) -> Result<verify::Report> {
    let active = Endpoint::parse(Side::Destination, &stage.destination.url())?;
    let passive = Endpoint::parse(Side::Source, &stage.source.url())?;
    let options = VerifyOptions { padded: true, ..VerifyOptions::default() };
    Ok(verify::compare(&active, &passive, options).await?)
}

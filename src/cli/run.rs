//! `crossfade run`: the gateway itself.

use std::process::ExitCode;

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::addressing::Addressing;
use super::{Failure, Global, output};
use crate::{config, migration, server};

/// Arguments.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Begin to mirror at once
    #[arg(long)]
    start: bool,
    #[command(flatten)]
    addressing: Addressing,
}

pub(super) fn run(args: &Args, global: &Global) -> Result<ExitCode, Failure> {
    let config = config::load(&args.addressing.sources())?;
    if args.start && config.destination.is_none() {
        return Err(
            Failure::usage("--start needs a destination").remedy("give --destination redis://HOST:PORT")
        );
    }
    // Each client is a file; the soft limit of most systems is 1024. What the hard limit forbids stays forbidden.
    if let Err(error) = rlimit::increase_nofile_limit(config.listen.max_clients as u64 + 1024) {
        tracing::warn!(%error, "the limit of open files cannot be raised; fewer clients than max_clients will fit");
    }
    server::let_neighbours_run([Some(&config.source), config.destination.as_ref()].into_iter().flatten());
    // The data path has threads of its own; this one carries the control.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("control")
        // Also those for blocking work, which are started by threads that stand aside.
        .on_thread_start(server::roam)
        // What it does should hold up nobody, on a full machine.
        .on_thread_park(server::stand_aside)
        .enable_all()
        .build()
        .map_err(|error| Failure::failed(format!("no threads can be started: {error}")))?;
    let outcome = runtime.block_on(async {
        let shutdown = CancellationToken::new();
        watch_signals(&shutdown)?;
        migration::run(config, args.start, shutdown).await.map_err(Failure::from)
    });
    // A blocking task (the RDB parser) may sit in a read; nothing that matters waits for it.
    runtime.shutdown_background();
    outcome?;
    if global.json {
        output::json(&serde_json::json!({"stopped": true}));
    }
    Ok(ExitCode::SUCCESS)
}

/// The first SIGTERM or SIGINT drains, the second ends the process at once. The state on disk is whole either way.
fn watch_signals(shutdown: &CancellationToken) -> Result<(), Failure> {
    let listen =
        |kind| signal(kind).map_err(|error| Failure::failed(format!("no signals can be caught: {error}")));
    let (mut terminate, mut interrupt) = (listen(SignalKind::terminate())?, listen(SignalKind::interrupt())?);
    let shutdown = shutdown.clone();
    tokio::spawn(async move {
        for attempt in 0.. {
            let name = tokio::select! {
                _ = terminate.recv() => "SIGTERM",
                _ = interrupt.recv() => "SIGINT",
            };
            if attempt > 0 {
                tracing::warn!(signal = name, "the second signal: ending at once");
                std::process::exit(1);
            }
            tracing::info!(signal = name, "draining; a second signal ends at once");
            shutdown.cancel();
        }
    });
    Ok(())
}

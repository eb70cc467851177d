//! The snapshot loader: from an RDB file, while it is still being received, to the destination.
//!
//! Guarantees:
//! - [`load`] answers `Ok` only when the file was read to its sound end and the destination has answered every
//!   command. Nothing is left out silently: a key that could not be written is named ([`LoadReport::failed`]).
//! - It can be begun again from the start at any time: what is written replaces what an earlier attempt left.
//! - Expiries are stored padded ([`crate::mirror::expiry`]), also those that lie in the past: the source's own DEL
//!   removes the key, so a key that the application extended meanwhile is not lost.
//!   Expiries of single hash fields are not padded: RESTORE carries them as they are.
//! - Memory is bounded by [`LoadOptions::budget`] plus one value below [`LoadOptions::big_value`].
//!
//! How a key travels, cheapest first:
//!
//! ```text
//! string without expiry        MSET, 16 keys a command (replaces the key and its expiry)
//! string with expiry           SET … PXAT (6.2), before that RESTORE
//! LZF string, other types      RESTORE … ABSTTL: the bytes of the file, with a footer
//! type unknown to the          DEL, then commands (RPUSH, HMSET, XADD …), then PEXPIREAT; the same when RESTORE is
//!   destination; big values    answered with "Bad data format"
//! ```
//!
//! ```text
//! file ─ thread: rdb::Reader ─ Encoder ─ batches of 64 KiB ─┬─ bounded ─ connection ─ destination
//!                                                           └─ bounded ─ connection ─ destination
//! ```
//! A batch holds commands of one db. Batches go to the connections in turn: keys are independent. The commands of one
//! value that spans batches (a *sequence*) stay on one connection. A connection keeps a batch until all of it is
//! answered, so that an error names its key and a refused RESTORE can be written as commands.

mod connection;
mod encoder;
mod feeder;
mod pace;
pub mod primary;
mod progress;

use std::io::Read;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::config::OnExistingKey;
use crate::error::{Error, Result, Side};
use crate::mirror::{Mapping, Selection};
use crate::server::{Capabilities, Client, Endpoint};

use connection::Connection;
use encoder::Plan;
use feeder::Feeder;
pub use pace::{Brake, Pace, Throttle};
use progress::Failures;
pub use progress::{FailedKey, Progress, ProgressView};

/// Keys that the gateway itself writes; one in a snapshot is a leftover of another migration.
pub const OWN_PREFIX: &[u8] = b"crossfade:";

/// How to load.
#[derive(Debug, Clone)]
pub struct LoadOptions {
    /// The server to write to.
    pub to: Endpoint,
    /// Connections that share the work.
    pub connections: usize,
    /// What becomes of a key that is there already. [`OnExistingKey::Fail`] is a condition on the start of a migration
    /// (an empty destination), not on the load: here it replaces, as an attempt to load again must.
    pub existing: OnExistingKey,
    /// A value of more bytes than this is streamed as commands.
    pub big_value: usize,
    /// Bytes that may be on their way to the destination, unanswered.
    pub budget: usize,
    /// For the connect, and for an answer once something was sent.
    pub timeout: Duration,
    /// Go on over keys that cannot be written: they stand in the report. Otherwise the load reads to the end,
    /// and answers with an error that names them.
    pub skip_failed: bool,
    /// What the destination has no command for is left out: it stands in the report, apart from what failed. A hash
    /// whose fields expire is written without these expiries.
    pub drop_unsupported: bool,
    /// Keys that are copied; all of them where there is none.
    pub select: Option<Arc<Selection>>,
    /// What has another name at the destination.
    pub map: Option<Arc<Mapping>>,
    /// Limits of speed, which may change while the load runs.
    pub throttle: Arc<Throttle>,
}

impl LoadOptions {
    /// The defaults.
    pub fn new(to: Endpoint) -> Self {
        Self {
            to,
            connections: 2,
            existing: OnExistingKey::Replace,
            big_value: 16 * 1024 * 1024,
            budget: 4 * 1024 * 1024,
            timeout: Duration::from_secs(60),
            skip_failed: false,
            drop_unsupported: false,
            select: None,
            map: None,
            throttle: Arc::default(),
        }
    }
}

/// What a load did.
#[derive(Debug, Clone, Default)]
pub struct LoadReport {
    /// Keys that the destination holds now.
    pub keys: u64,
    /// Keys that were there and were kept, as configured.
    pub kept: u64,
    /// The gateway's own keys, left out.
    pub own_keys: u64,
    /// Keys that could not be written; at most the first hundred of them.
    pub failed: Vec<FailedKey>,
    /// How many could not be written.
    pub failed_count: u64,
    /// What was left out because the destination has no command for it; at most the first hundred.
    pub dropped: Vec<FailedKey>,
    /// How much that was.
    pub dropped_count: u64,
    /// Function libraries loaded.
    pub functions: u64,
    /// Modules with data beside the keys, which no command can write.
    pub module_data: Vec<String>,
    /// Length of the file.
    pub bytes: u64,
    /// How long it took.
    pub took: Duration,
}

/// Reads a snapshot to its end and writes it to the destination.
///
/// `from` may block, and is read in a thread of its own. When this future answers, also when it is dropped or
/// cancelled, nothing more is written to the destination; the thread ends with its current read.
///
/// # Errors
/// Passing: the destination was lost, is out of memory, read-only or loading, or the snapshot broke off: load again
/// from its start. Lasting: the snapshot holds what this version cannot read, or keys that the destination refuses.
pub async fn load<R: Read + Send + 'static>(
    from: R,
    options: LoadOptions,
    progress: Arc<Progress>,
    cancel: CancellationToken,
) -> Result<LoadReport> {
    let begun = Instant::now();
    let mut endpoint = options.to.clone();
    endpoint.db = 0;
    let mut client = Client::open(&endpoint, options.timeout).await?;
    let plan = Arc::new(Plan::new(&Capabilities::probe(&mut client).await?, &options));
    let mut first = Some(client);
    let failures = Arc::new(Failures::new(options.drop_unsupported));
    // In KiB, so that the whole budget is a number of permits.
    let budget = Arc::new(Semaphore::new(options.budget.div_ceil(1024).max(256)));
    let mut tasks = JoinSet::new();
    let mut lanes = Vec::new();
    for _ in 0..options.connections.max(1) {
        let client = match first.take() {
            Some(client) => client,
            None => Client::open(&endpoint, options.timeout).await?,
        };
        let (sender, receiver) = mpsc::channel(8);
        lanes.push(sender);
        let connection = Connection::new(
            client.side(),
            receiver,
            Arc::clone(&plan),
            Arc::clone(&failures),
            Arc::clone(&progress),
            options.timeout,
        );
        tasks.spawn(connection.run(client));
    }
    let (done, fed) = oneshot::channel();
    let feeder = Feeder::new(
        plan,
        lanes,
        budget,
        Arc::clone(&failures),
        Arc::clone(&progress),
        &options,
        cancel.clone(),
    );
    std::thread::Builder::new()
        .name("snapshot-loader".into())
        .spawn(move || {
            crate::server::processors::roam();
            // The other side is gone when the load was given up.
            let _ = done.send(feeder.run(from));
        })
        .map_err(|cause| {
            Error::passing(Side::Gateway, "cannot start the thread that reads the snapshot").because(cause)
        })?;

    let connections = async {
        while let Some(ended) = tasks.join_next().await {
            ended.map_err(|cause| Error::new(Side::Gateway, "the loader broke").because(cause))??;
        }
        Ok::<(), Error>(())
    };
    // A connection ends before the feeder only by an error; both results are needed for success.
    let answered = tokio::select! {
        () = cancel.cancelled() => return Err(cancelled()),
        answered = connections => answered,
    };
    // The feeder drops its senders before it reports, so this does not wait for long unless a connection failed
    // first, and then its own error is the one that counts.
    answered?;
    let fed =
        fed.await.map_err(|_| Error::new(Side::Gateway, "the thread that reads the snapshot broke"))??;

    let (failed, failed_count) = failures.take_failed();
    let (dropped, dropped_count) = failures.take_dropped();
    let view = progress.view();
    let report = LoadReport {
        keys: view.keys_loaded,
        kept: view.keys_kept,
        own_keys: fed.own_keys,
        failed,
        failed_count,
        dropped,
        dropped_count,
        functions: fed.functions,
        module_data: fed.module_data,
        bytes: view.bytes_read,
        took: begun.elapsed(),
    };
    if report.failed_count > 0 && !options.skip_failed {
        return Err(refused(&report));
    }
    Ok(report)
}

fn cancelled() -> Error {
    Error::passing(Side::Gateway, "loading the snapshot was stopped")
}

/// The error that names the keys which could not be written.
fn refused(report: &LoadReport) -> Error {
    const NAMED: usize = 5;
    let named: Vec<String> = report.failed.iter().take(NAMED).map(ToString::to_string).collect();
    let more = if report.failed_count > named.len() as u64 { "; …" } else { "" };
    let message = format!(
        "{} keys of the snapshot could not be written: {}{more}",
        report.failed_count,
        named.join("; ")
    );
    let remedy = report.failed.first().map(|failed| failed.remedy).unwrap_or_default();
    Error::new(Side::Destination, message).remedy(remedy)
}

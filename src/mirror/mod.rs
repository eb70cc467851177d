//! From the journal to the destination: decode, batch with position, apply exactly once.
//!
//! # What is guaranteed
//!
//! Every command of the source's stream is applied to the destination once, in the order of the stream,
//! whichever of source, gateway and destination dies when, and however often. Why:
//!
//! 1. A batch is one `MULTI … EXEC`, and its last command records the position behind it on the destination
//!    itself ([`batch`]). So the destination holds the commands and the position, or neither, also in its AOF,
//!    its RDB file and on its replicas.
//! 2. One batch is on its way at a time. What became of it is learned from its answer, or, if that does not
//!    come, from the position.
//! 3. Before the position is read, every older connection of this mirror is ended on the server ([`link`]), so no
//!    batch can run behind our back afterwards.
//! 4. The stream is read again from exactly that position: from the journal, or from the source by PSYNC. The
//!    journal is cut off only behind a position that the destination confirmed.
//! 5. A position is recorded only where no transaction of the source is open, and with the db that is selected
//!    there, so that reading can start there with nothing else known.
//!
//! A command that fails inside EXEC leaves the rest of its batch and the position applied. It is written to the
//! durable failure file before anything else happens, the mirror stops, and it stays stopped through restarts
//! until somebody resolves it. (Killed between EXEC and that write, the mirror does not know of the failure; the
//! verification finds such a key.)
//!
//! The snapshot is loaded under a mark of its own (`loading`), which is on the destination before the first
//! key. A load that was interrupted begins again, and replaces what it finds.
//!
//! # Expiry
//!
//! See [`expiry`] for why and how the destination's expiries are padded, [`settle`] for how they become exact
//! for a switch.
//!
//! # Who does what
//!
//! ```text
//! source ─ receiver ─ journal ─┬─ snapshot ─ loader ──────────────┐
//!                              └─ stream ─ decode ─ transform ─ batch ─ link ─ destination
//! ```
//! One task owns all of it (`run`); a [`Mirror`] is a handle that sends it requests and watches its state.

mod apply;
pub mod batch;
mod conflict;
pub mod copying;
pub mod decode;
pub mod expiry;
mod governor;
mod guard;
mod heartbeat;
pub mod kinds;
mod limits;
pub mod link;
mod load;
pub mod map;
pub mod notes;
pub mod older;
mod position;
mod run;
pub mod scripts;
pub mod select;
mod serve;
pub mod settle;
mod standby;
pub mod transform;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::config::{OnConflict, OnError, OnExistingKey, OnUnsupported, Retry, SnapshotMethod};
use crate::error::{Error, Result, Side};
use crate::server::Endpoint;

pub use batch::BatchLimits;
pub use governor::Automatic;
pub use heartbeat::heartbeat_key;
pub use limits::{Limits, ThrottleRequest, Throttling};
pub use map::Mapping;
pub use position::{Direction, Mark, POSITION_KEY, Position, Reach};
pub use select::Selection;
pub(crate) use serve::make_writable;
pub(crate) use transform::is_own;

/// What a mirror is to do.
#[derive(Debug, Clone)]
pub struct MirrorOptions {
    /// The server whose stream is read.
    pub from: Endpoint,
    /// Whether it is read from one of that server's replicas, where one is in step.
    pub from_replica: bool,
    /// The server that is written to.
    pub to: Endpoint,
    /// Which of a migration's two mirrors this is.
    pub direction: Direction,
    /// Where its journal and its own notes live; one directory for one mirror.
    pub dir: PathBuf,
    /// The migration's id.
    pub id: String,
    /// Where to begin.
    pub start: Start,
    /// What happens to keys that the destination holds before the snapshot is loaded.
    pub on_existing_key: OnExistingKey,
    /// What happens to what the destination has no command for.
    pub on_unsupported: OnUnsupported,
    /// What happens when a command fails because the destination's data differs.
    pub on_conflict: OnConflict,
    /// What happens when a command fails for another reason.
    pub on_error: OnError,
    /// What is copied; all of it where there is none.
    pub select: Option<Arc<Selection>>,
    /// What has another name on `to`; nothing where there is none.
    pub map: Option<Arc<Mapping>>,
    /// How large its journal may become on disk.
    pub journal_bytes: Option<u64>,
    /// How the snapshot travels.
    pub method: SnapshotMethod,
    /// Connections that load the snapshot.
    pub load_connections: usize,
    /// When a batch is full.
    pub batch: BatchLimits,
    /// How fast it may go.
    pub limits: Arc<Limits>,
    /// For how long what may pass by itself is tried again.
    pub retry: Retry,
    /// How often the time is written to `from`, to measure the lag; none: never.
    pub heartbeat: Option<Duration>,
    /// Keys of the gateway in db 0 of `to`, besides the position, that are put back when a mirrored FLUSHALL,
    /// FLUSHDB or SWAPDB takes them away.
    pub own_keys: Vec<(String, Vec<u8>)>,
}

impl MirrorOptions {
    /// Options with the defaults of the configuration file.
    pub fn new(
        from: Endpoint,
        to: Endpoint,
        direction: Direction,
        dir: PathBuf,
        id: &str,
        start: Start,
    ) -> Self {
        Self {
            from,
            from_replica: false,
            to,
            direction,
            dir,
            id: id.to_owned(),
            start,
            on_existing_key: OnExistingKey::Fail,
            on_unsupported: OnUnsupported::Fail,
            on_conflict: OnConflict::Stop,
            on_error: OnError::Stop,
            select: None,
            map: None,
            journal_bytes: None,
            method: SnapshotMethod::Auto,
            load_connections: 2,
            batch: BatchLimits::default(),
            limits: Arc::default(),
            retry: Retry { connection: Duration::from_secs(12 * 3600), other: Duration::from_secs(600) },
            heartbeat: Some(Duration::from_secs(1)),
            own_keys: Vec::new(),
        }
    }
}

/// Where a mirror begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Start {
    /// With a snapshot. If the destination bears this migration's mark already, as with [`Start::Resume`].
    Snapshot,
    /// Where it stopped: the position is read from the destination.
    Resume,
    /// Prepared for a switch: it follows the stream, applies nothing, and remembers which db is selected, until
    /// [`Mirror::engage`] and [`Mirror::go`].
    Standby,
    /// Exactly here, or behind it if the destination's own position is further: after a crash past a switch's
    /// commit line.
    At(Position),
}

/// What a mirror is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stage {
    /// Reaching both servers.
    Connecting,
    /// Loading the snapshot.
    Snapshot,
    /// Applying what came while the snapshot was loaded, or while the mirror was away.
    CatchingUp,
    /// In step.
    Live,
    /// Following without applying.
    Standby,
    /// Paused by a person; the journal goes on receiving.
    Paused,
    /// Stopped on request.
    Stopped,
    /// Stopped by something that does not pass by itself.
    Failed,
}

/// How far the snapshot is.
#[derive(Debug, Clone, Copy, PartialEq, Default, serde::Serialize)]
pub struct SnapshotProgress {
    /// Keys that the destination holds.
    pub keys_loaded: u64,
    /// Keys that the source said it has; 0 while unknown.
    pub keys_expected: u64,
    /// Bytes of the snapshot that have been read by the loader.
    pub bytes_read: u64,
    /// Its size; 0 while unknown (diskless).
    pub bytes_expected: u64,
    /// Time since the beginning, or that the whole took.
    pub seconds: f64,
    /// How it travels.
    pub method: Travels,
}

/// How a snapshot travels to the destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Travels {
    /// By commands.
    #[default]
    Commands,
    /// The destination loads it as a replica of the gateway.
    Replication,
}

/// Something that is wrong now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trouble {
    /// Whose fault it is.
    pub side: Side,
    /// What happened.
    pub message: String,
    /// What a person can do about it.
    pub remedy: Option<String>,
    /// Until when it is tried again; none when it is not.
    pub retry_until: Option<SystemTime>,
}

impl Trouble {
    /// An error that is tried again until `retry_until`.
    pub fn new(error: &Error, retry_until: Option<SystemTime>) -> Self {
        use std::error::Error as _;
        let mut message = error.message.clone();
        let mut cause = error.source();
        while let Some(inner) = cause {
            message.push_str(": ");
            message.push_str(&inner.to_string());
            cause = inner.source();
        }
        Self { side: error.side, message, remedy: error.remedy.clone(), retry_until }
    }
}

/// What the lag of a mirror rests on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LagFrom {
    /// Heartbeats, and the stream's offsets between them.
    Heartbeat,
    /// The stream's offsets and the times at which its bytes arrived.
    #[default]
    Stream,
}

/// A mirror as it can be watched. Published at every change of stage, and otherwise a few times a second.
#[derive(Debug, Clone, PartialEq)]
pub struct MirrorState {
    /// What it is doing.
    pub stage: Stage,
    /// The replication id of `from`; empty while unknown.
    pub replid: String,
    /// The last offset that is in the journal.
    pub received: u64,
    /// The last offset that the destination holds.
    pub applied: u64,
    /// What the destination does not hold yet is at most so old: the age of the oldest byte that is received and not applied,
    /// of a heartbeat that is on its way, or what the last heartbeat took.
    pub lag_ms: f64,
    /// What the lag rests on.
    pub lag_from: LagFrom,
    /// When the last heartbeat came by.
    pub heartbeat: Option<std::time::Instant>,
    /// Commands of the stream that were applied by this mirror since it was started.
    pub commands_applied: u64,
    /// Commands that failed on the destination.
    pub conflicts: u64,
    /// Those of them that were left out, by policy or by a person.
    pub skipped: notes::Dropped,
    /// Keys that were copied anew because of the others.
    pub copied: u64,
    /// How far the snapshot is.
    pub snapshot: SnapshotProgress,
    /// What was left out because the destination has no command for it.
    pub dropped: notes::Dropped,
    /// What is wrong.
    pub error: Option<Trouble>,
    /// Snapshots that the source made us take beyond the first.
    pub full_resyncs: u64,
    /// Whether expiries on the destination are (all but the nearest) exact.
    pub settled: bool,
}

impl MirrorState {
    fn new() -> Self {
        Self {
            stage: Stage::Connecting,
            replid: String::new(),
            received: 0,
            applied: 0,
            lag_ms: 0.0,
            lag_from: LagFrom::Stream,
            heartbeat: None,
            commands_applied: 0,
            conflicts: 0,
            skipped: notes::Dropped::default(),
            copied: 0,
            snapshot: SnapshotProgress::default(),
            dropped: notes::Dropped::default(),
            error: None,
            full_resyncs: 0,
            settled: false,
        }
    }
}

/// What [`Mirror::settle`] did.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct SettleReport {
    /// Keys that were looked at.
    pub keys: u64,
    /// Expiries that were made exact.
    pub exact: u64,
    /// Keys left for [`Mirror::settle_last`].
    pub near: u64,
    /// How long it took.
    pub seconds: f64,
}

/// How a failed command is resolved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resolution {
    /// The command is left out.
    Skip,
    /// Its keys are copied anew.
    Copy,
}

/// What a handle asks of its mirror.
#[derive(Debug)]
enum Request {
    Engage { offset: u64, deadline: Instant, reply: oneshot::Sender<Result<Position>> },
    Settle { deadline: Instant, reply: oneshot::Sender<Result<SettleReport>> },
    SettleLast { reply: oneshot::Sender<Result<()>> },
    Pad { reply: oneshot::Sender<Result<()>> },
    Resolve { resolution: Resolution, reply: oneshot::Sender<Result<()>> },
    CopyAnew { keys: Vec<transform::Place>, reply: oneshot::Sender<Result<()>> },
}

/// A handle on a running mirror. Clones speak to the same one.
#[derive(Debug, Clone)]
pub struct Mirror {
    requests: mpsc::Sender<Request>,
    state: watch::Receiver<MirrorState>,
    applied: watch::Receiver<u64>,
    paused: watch::Sender<bool>,
    going: watch::Sender<bool>,
    cancel: CancellationToken,
}

impl Mirror {
    /// Starts a mirror. It stops when `cancel` is cancelled, or by [`Mirror::stop`].
    pub fn spawn(options: MirrorOptions, cancel: CancellationToken) -> Mirror {
        let cancel = cancel.child_token();
        let (requests, requested) = mpsc::channel(16);
        let (publish, state) = watch::channel(MirrorState::new());
        let (applied_to, applied) = watch::channel(0);
        let paused = watch::Sender::new(false);
        let going = watch::Sender::new(false);
        let mirror = Mirror {
            requests,
            state,
            applied,
            paused: paused.clone(),
            going: going.clone(),
            cancel: cancel.clone(),
        };
        let ends = run::Ends {
            publish,
            applied: applied_to,
            requests: requested,
            paused: paused.subscribe(),
            going: going.subscribe(),
            cancel,
        };
        tokio::spawn(run::run(options, ends));
        mirror
    }

    /// The state, to read or to wait on.
    pub fn state(&self) -> watch::Receiver<MirrorState> {
        self.state.clone()
    }

    /// Waits until the destination holds everything up to `offset`; answers the offset that it holds then.
    ///
    /// # Errors
    /// The deadline passed, or the mirror stopped.
    pub async fn wait_applied(&self, offset: u64, deadline: Instant) -> Result<u64> {
        let mut applied = self.applied.clone();
        let waited = tokio::time::timeout_at(deadline, applied.wait_for(|now| *now >= offset)).await;
        match waited {
            Ok(Ok(now)) => Ok(*now),
            Ok(Err(_)) => Err(self.gone()),
            Err(_) => {
                let state = self.state.borrow().clone();
                let now = *self.applied.borrow();
                let why = match state.error {
                    Some(trouble) => format!("; {}: {}", trouble.side, trouble.message),
                    None => String::new(),
                };
                Err(Error::passing(
                    Side::Gateway,
                    format!(
                        "the mirror is at offset {now}, {} bytes short of {offset}{why}",
                        offset.saturating_sub(now)
                    ),
                ))
            }
        }
    }

    /// For [`Start::Standby`]: reads up to `offset`, throwing away everything up to there; answers the position,
    /// with the db that is selected there. Nothing behind it is read before [`Mirror::go`].
    ///
    /// # Errors
    /// The deadline passed, the mirror is no standby, or it does not hold that part of the stream.
    pub async fn engage(&self, offset: u64, deadline: Instant) -> Result<Position> {
        self.ask(deadline, |reply| Request::Engage { offset, deadline, reply }).await
    }

    /// After [`Mirror::engage`]: the switch has committed, apply.
    pub fn go(&self) {
        self.going.send_replace(true);
    }

    /// Stops applying; the journal goes on receiving.
    pub fn pause(&self) {
        self.paused.send_replace(true);
    }

    /// Applies again.
    pub fn resume(&self) {
        self.paused.send_replace(false);
    }

    /// Makes the expiries on the destination exact, except those that come due within seconds, and keeps them
    /// so. This holds for some seconds ([`settle::HOLDS`]); if [`Mirror::settle_last`] has not come by then, they
    /// are padded again. May be called again.
    ///
    /// # Errors
    /// The deadline passed (what was done is undone in the background), or the mirror is not live.
    pub async fn settle(&self, deadline: Instant) -> Result<SettleReport> {
        self.ask(deadline, |reply| Request::Settle { deadline, reply }).await
    }

    /// Inside the pause, with everything applied: makes the last expiries exact.
    ///
    /// # Errors
    /// The expiries are not settled, or the destination does not answer.
    pub async fn settle_last(&self) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(30);
        self.ask(deadline, |reply| Request::SettleLast { reply }).await
    }

    /// Pads the expiries again. New ones are padded when this returns; the others follow in the background, the
    /// nearest first.
    ///
    /// # Errors
    /// The mirror is not applying, or the deadline passed: then it is done later, at the latest when they do not hold any more.
    pub async fn pad(&self, deadline: Instant) -> Result<()> {
        self.ask(deadline, |reply| Request::Pad { reply }).await
    }

    /// Resolves the failure that the mirror stopped at, and lets it go on.
    ///
    /// # Errors
    /// There is no failure, or it cannot be recorded.
    pub async fn resolve(&self, resolution: Resolution) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(30);
        self.ask(deadline, |reply| Request::Resolve { resolution, reply }).await
    }

    /// Copies keys anew at their place in the order; returns when the destination has confirmed them.
    ///
    /// # Errors
    /// The deadline passed (they are copied nevertheless), the mirror is not live, a switch is near, or the mirror stopped.
    pub async fn copy_anew(&self, keys: Vec<transform::Place>, deadline: Instant) -> Result<()> {
        self.ask(deadline, |reply| Request::CopyAnew { keys, reply }).await
    }

    /// Ends the mirror: the batch on its way is answered (for up to five seconds), the position stays on the
    /// destination, the receiver ends. Returns when nothing of it runs any more.
    pub async fn stop(&self) {
        self.cancel.cancel();
        let mut state = self.state.clone();
        // The sender is dropped when the task has ended.
        while state.changed().await.is_ok() {}
    }

    async fn ask<T>(
        &self,
        deadline: Instant,
        request: impl FnOnce(oneshot::Sender<Result<T>>) -> Request,
    ) -> Result<T> {
        let (reply, answer) = oneshot::channel();
        let exchange = async {
            self.requests.send(request(reply)).await.map_err(|_| self.gone())?;
            answer.await.map_err(|_| self.gone())?
        };
        match tokio::time::timeout_at(deadline, exchange).await {
            Ok(outcome) => outcome,
            Err(_) => Err(Error::passing(Side::Gateway, "the mirror did not get that far in time")),
        }
    }

    fn gone(&self) -> Error {
        match &self.state.borrow().error {
            Some(trouble) => Error::new(trouble.side, format!("the mirror has stopped: {}", trouble.message)),
            None => Error::new(Side::Gateway, "the mirror has stopped"),
        }
    }
}

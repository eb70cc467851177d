//! The task behind a [`Mirror`](super::Mirror): where to begin, retries, and what becomes of errors. Loading a snapshot
//! is [`super::load`], applying the stream [`super::apply`], following it before a switch [`super::standby`].
//!
//! ```text
//!            position on `to`                                begins with
//! Snapshot,  ours, an offset                                 the journal, or PSYNC, from there
//! Resume     ours, loading                                   the snapshot on disk if it is that one and whole, else a new one
//!            none, and it never had one                      a new snapshot
//!            none, and it had one                            error: emptied or swapped
//! At(p)      ours, and p was begun with                      as Resume
//!            anything else of this migration, or none        p
//! any        of another migration                            error
//! ```
//! A source that no longer has what we lack makes us take a new snapshot. Then the destination is emptied first, since it
//! may hold keys that are gone; where it may hold keys of its own (`on_existing_key`) the mirror stops instead.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::governor;
use super::heartbeat::Heartbeat;
use super::link::{self, Found, Opened};
use super::notes::{KeyAt, Notes};
use super::position::lineage;
use super::transform::Clocks;
use super::{
    Direction, LagFrom, Mark, MirrorOptions, MirrorState, POSITION_KEY, Position, Reach, Request, Resolution,
    Stage, Start, Trouble,
};
use crate::config::OnExistingKey;
use crate::error::{Error, Result, Side};
use crate::replication::{
    Journal, JournalOptions, Link as ReceiverLink, ReceiveFrom, Receiver, ReceiverHandle, ReceiverOptions,
};
use crate::resp::value::Value;
use crate::server::Client;

/// For connecting to the destination, and for single questions.
pub(super) const TIMEOUT: Duration = Duration::from_secs(5);
/// How often the state is published when nothing changes.
pub(super) const TICK: Duration = Duration::from_millis(100);
/// The first and the longest wait between attempts.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));

/// Why a step does not go on.
#[derive(Debug)]
pub(super) enum End {
    /// On request.
    Stopped,
    /// It cannot.
    Failed(Error),
}

impl From<Error> for End {
    fn from(error: Error) -> Self {
        End::Failed(error)
    }
}

pub(super) type Step<T> = std::result::Result<T, End>;

/// Why applying ended.
pub(super) enum Exit {
    /// The connection is to be opened anew, and the position read.
    Reopen,
    /// The source began a new stream.
    Superseded,
}

/// How to bring the destination to a position.
enum Origin {
    /// It is there.
    At(Position),
    /// By the snapshot of this generation of the journal, or of a later one.
    Snapshot { generation: u64, flush: bool },
    /// By a snapshot that has yet to be asked for.
    Fresh { flush: bool },
}

/// The time as the journal has it.
pub(super) fn unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

/// Trouble that is being waited out.
#[derive(Debug)]
struct Waiting {
    since: Instant,
    next: Duration,
}

pub(super) struct Task {
    pub(super) options: MirrorOptions,
    pub(super) notes: Notes,
    pub(super) journal: Arc<Journal>,
    pub(super) receiver: Option<ReceiverHandle>,
    /// A switch is near: [`ReceiverOptions::hurry`].
    pub(super) hurry: Arc<AtomicBool>,
    pub(super) heartbeat: Option<Heartbeat>,
    /// The destination refused what was joined from several commands.
    pub(super) each_by_itself: bool,
    /// Commands that the destination does not know, and that are left out, in lower case.
    pub(super) left_out: HashSet<Vec<u8>>,
    /// Keys are being copied anew.
    pub(super) copying: Option<CopyingNow>,
    /// Who waits for keys that are copied anew.
    pub(super) copy_waiters: Vec<oneshot::Sender<Result<()>>>,
    /// The offset that the destination holds: for the source's ACK, and for whoever waits.
    pub(super) applied: watch::Sender<u64>,
    publish: watch::Sender<MirrorState>,
    pub(super) state: MirrorState,
    pub(super) requests: mpsc::Receiver<Request>,
    pub(super) paused: watch::Receiver<bool>,
    pub(super) going: watch::Receiver<bool>,
    pub(super) cancel: CancellationToken,
    waiting: Option<Waiting>,
    /// Where a standby was engaged.
    engaged: Option<Position>,
    /// The destination could not load a snapshot as a replica.
    pub(super) by_commands: bool,
    /// Since when something is received that is not applied, as far as that is known without the stream.
    behind_since: Option<Instant>,
    /// How the servers' clocks go, as far as they were asked.
    pub(super) clocks: Clocks,
    jitter: u64,
}

/// Keys that are being copied anew.
#[derive(Debug)]
pub(super) struct CopyingNow {
    pub(super) keys: Vec<KeyAt>,
    /// The stream in which their place is.
    pub(super) replid: Option<String>,
}

/// What a handle and its task share.
pub(super) struct Ends {
    pub(super) publish: watch::Sender<MirrorState>,
    pub(super) applied: watch::Sender<u64>,
    pub(super) requests: mpsc::Receiver<Request>,
    pub(super) paused: watch::Receiver<bool>,
    pub(super) going: watch::Receiver<bool>,
    pub(super) cancel: CancellationToken,
}

/// Runs a mirror until it is cancelled.
pub(super) async fn run(options: MirrorOptions, mut ends: Ends) {
    let opened = loop {
        let sizes = JournalOptions::within(options.journal_bytes);
        let opened =
            Notes::open(&options.dir).and_then(|notes| Ok((notes, Journal::open_with(&options.dir, sizes)?)));
        match opened {
            Ok(opened) => break Some(opened),
            Err(error) => {
                ends.publish.send_modify(|state| {
                    state.stage = Stage::Failed;
                    state.error = Some(Trouble::new(&error, None));
                });
                if ends
                    .cancel
                    .run_until_cancelled(ends.paused.changed())
                    .await
                    .is_none_or(|gone| gone.is_err())
                {
                    break None;
                }
            }
        }
    };
    let Some((notes, journal)) = opened else { return };
    let Ends { publish, applied, requests, paused, going, cancel } = ends;
    let state =
        MirrorState { dropped: notes.dropped(), skipped: notes.skipped(), ..publish.borrow().clone() };
    let mut task = Task {
        options,
        notes,
        journal: Arc::new(journal),
        receiver: None,
        hurry: Arc::default(),
        heartbeat: None,
        each_by_itself: false,
        left_out: HashSet::new(),
        copying: None,
        copy_waiters: Vec::new(),
        applied,
        publish,
        state,
        requests,
        paused,
        going,
        cancel,
        waiting: None,
        engaged: None,
        by_commands: false,
        behind_since: None,
        clocks: Clocks::default(),
        jitter: unix_ms() | 1,
    };
    let governor = (task.options.direction == Direction::Forward).then(|| {
        let (to, limits) = (task.options.to.clone(), Arc::clone(&task.options.limits));
        tokio::spawn(governor::run(to, limits, task.publish.subscribe()))
    });
    loop {
        match task.session().await {
            Err(End::Stopped) => break,
            Err(End::Failed(_)) if task.cancel.is_cancelled() => break,
            Err(End::Failed(error)) => {
                tracing::error!(direction = %task.options.direction, %error, "the mirror has stopped");
                task.state.stage = Stage::Failed;
                task.state.error = Some(Trouble::new(&error, None));
                task.publish();
                if task.wait_for_help(&error).await.is_err() {
                    break;
                }
                task.waiting = None;
                task.state.error = None;
            }
            Ok(()) => {}
        }
    }
    if let Some(governor) = governor {
        governor.abort();
        let _ = governor.await;
    }
    if let Some(heartbeat) = task.heartbeat.take() {
        heartbeat.stop().await;
    }
    if let Some(receiver) = task.receiver.take() {
        receiver.stop().await;
    }
    task.state.stage = Stage::Stopped;
    task.publish();
}

impl Task {
    /// Everything from the beginning to an end.
    async fn session(&mut self) -> Step<()> {
        if let Some(failures) = self.notes.failures()?
            && !failures.skip
            && let Some(first) = failures.commands.first()
        {
            self.state.conflicts = self.state.conflicts.max(failures.commands.len() as u64);
            return Err(first.to_error(self.options.to.side, failures.commands.len() - 1).into());
        }
        self.stage(Stage::Connecting);
        self.end_serving().await?;
        if self.options.start == Start::Standby && self.engaged.is_none() {
            let opened = self.open().await?;
            self.refuse_foreign(&opened.found)?;
            drop(opened);
            self.notes.set_padded(false)?;
            self.notes.set_begun(None)?;
            self.engaged = Some(self.standby().await?);
        }
        let (mut opened, mut origin) = self.begin().await?;
        loop {
            let position = match origin {
                Origin::At(position) => {
                    self.follow(&position).await;
                    position
                }
                Origin::Snapshot { generation, flush } => {
                    self.load(&mut opened.client, generation, flush).await?
                }
                Origin::Fresh { flush } => {
                    let generation = self.full_sync().await;
                    self.load(&mut opened.client, generation, flush).await?
                }
            };
            origin = match self.apply(opened, position).await? {
                Exit::Reopen => {
                    opened = self.open().await?;
                    self.reread(&opened.found)?
                }
                Exit::Superseded => {
                    opened = self.open().await?;
                    // A receiver that was told to throw snapshots away is replaced by one that takes them.
                    self.state.full_resyncs += 1;
                    match self.journal.snapshot() {
                        Some(info) => Origin::Snapshot { generation: info.generation, flush: true },
                        None => Origin::Fresh { flush: true },
                    }
                }
            };
        }
    }

    /// A connection to the destination, and where to begin. The first mark is written on the way: what passes is waited out.
    async fn begin(&mut self) -> Step<(Opened, Origin)> {
        loop {
            let mut opened = self.open().await?;
            match self.origin(&mut opened).await {
                Ok(origin) => return Ok((opened, origin)),
                Err(End::Failed(error)) => self.wait_out(error, self.options.retry.connection).await?,
                Err(end) => return Err(end),
            }
        }
    }

    fn ours(&self, mark: &Mark) -> bool {
        mark.id == self.options.id && mark.direction == self.options.direction
    }

    fn refuse_foreign(&self, found: &Found) -> Result<()> {
        let side = self.options.to.side;
        let text = match found {
            Found::Mark(mark) if lineage(&mark.id) != lineage(&self.options.id) => {
                format!("migration {:?}", mark.id)
            }
            Found::Other(text) => format!("something else ({text:?})"),
            _ => return Ok(()),
        };
        Err(Error::new(
            side,
            format!("the {side} is being written to by {text}, as its key {POSITION_KEY} says"),
        )
        .remedy(format!(
            "finish or abort that migration, or delete the key {POSITION_KEY} if it is long over"
        )))
    }

    fn emptied(&self) -> Error {
        let side = self.options.to.side;
        Error::new(
            side,
            format!("its key {POSITION_KEY} does not hold this mirror's position any more: the {side} was emptied or replaced, or came back with old data"),
        )
        .remedy("if nobody did that on purpose, look at that server first; then abort and start again")
    }

    async fn origin(&mut self, opened: &mut Opened) -> Step<Origin> {
        self.refuse_foreign(&opened.found)?;
        let floor = match (&self.options.start, &self.engaged) {
            (Start::At(position), _) | (Start::Standby, Some(position)) => Some(position.clone()),
            _ => None,
        };
        if let Some(floor) = floor {
            let begun = self.notes.begun();
            let ours = match &opened.found {
                Found::Mark(mark) if self.ours(mark) => Some(&mark.reach),
                _ => None,
            };
            match ours {
                Some(Reach::At(at)) if self.goes_on(at, &floor, begun.as_deref()) => {
                    if begun.is_none() {
                        self.notes.set_begun(Some(&floor.to_string()))?;
                    }
                    return Ok(Origin::At(at.clone()));
                }
                // It had to copy everything anew, and ended on the way.
                Some(Reach::Loading { generation }) if begun.is_some() => {
                    return Ok(self.load_again(*generation));
                }
                _ if begun.is_some() => return Err(self.emptied().into()),
                _ => {}
            }
            self.mark(&mut opened.client, Reach::At(floor.clone())).await?;
            self.notes.set_begun(Some(&floor.to_string()))?;
            return Ok(Origin::At(floor));
        }
        match &opened.found {
            Found::Nothing if self.notes.begun().is_none() => {
                self.check_existing(&mut opened.client).await?;
                Ok(Origin::Fresh { flush: false })
            }
            Found::Mark(mark) if self.ours(mark) => match mark.reach {
                Reach::Loading { generation } => Ok(self.load_again(generation)),
                Reach::At(_) => Ok(self.reread(&opened.found)?),
            },
            found => Ok(self.reread(found)?),
        }
    }

    /// Whether a mark of this direction is this mirror's, which begins, or began, at `floor`. An earlier one left its mark
    /// there too: that lies before the floor as long as the history is the same, and its offset says nothing when the server
    /// was restarted meanwhile, since those of a new history begin at 0.
    fn goes_on(&self, at: &Position, floor: &Position, begun: Option<&str>) -> bool {
        let same = at.replid == floor.replid;
        match begun {
            // Engaged just now, it has written nothing yet.
            None if self.engaged.is_some() => same && at.offset >= floor.offset,
            // It has loaded a snapshot of another history since, or followed the server into one.
            Some(_) if !same => true,
            _ => at.offset >= floor.offset,
        }
    }

    /// A load that ended on its way: from the journal, if the snapshot is there.
    fn load_again(&mut self, generation: u64) -> Origin {
        let whole = self.journal.snapshot().filter(|info| info.complete && info.generation == generation);
        if whole.is_some() && self.journal.can_continue() {
            self.receive(ReceiveFrom::Journal);
            return Origin::Snapshot { generation, flush: false };
        }
        Origin::Fresh { flush: true }
    }

    /// Where to go on, by what the destination says.
    fn reread(&self, found: &Found) -> Result<Origin> {
        match found {
            Found::Mark(mark) if self.ours(mark) => match &mark.reach {
                Reach::At(position) => Ok(Origin::At(position.clone())),
                // It came back with data from the time of the load.
                Reach::Loading { .. } => Ok(Origin::Fresh { flush: true }),
            },
            Found::Nothing => Err(self.emptied()),
            found => self.refuse_foreign(found).and_then(|()| Err(self.emptied())),
        }
    }

    /// With `on_existing_key = "fail"` the destination must hold nothing but keys of the gateway.
    async fn check_existing(&mut self, client: &mut Client) -> Result<()> {
        if self.options.on_existing_key != OnExistingKey::Fail {
            return Ok(());
        }
        let side = self.options.to.side;
        let refusal = |what: String| {
            Error::new(side, format!("the {side} is not empty: {what}")).remedy(
                "empty it, or set snapshot.on_existing_key to \"keep\" or \"replace\" to load beside what is there",
            )
        };
        for space in client.info("keyspace").await?.keyspace() {
            if space.db != 0 || space.keys > 100 {
                return Err(refusal(format!("db {} holds {} keys", space.db, space.keys)));
            }
            let mut cursor = "0".to_owned();
            loop {
                let reply = client.command(&["SCAN", &cursor, "COUNT", "1000"]).await?;
                let parts = reply.into_array().unwrap_or_default();
                let keys = parts.get(1).and_then(Value::as_array).unwrap_or_default();
                let foreign =
                    keys.iter().filter_map(Value::as_bytes).find(|key| !super::transform::is_own(key));
                if let Some(key) = foreign {
                    return Err(refusal(format!("db 0 holds the key {:?}", String::from_utf8_lossy(key))));
                }
                cursor = parts.first().and_then(Value::as_str).unwrap_or("0").to_owned();
                if cursor == "0" {
                    break;
                }
            }
        }
        Ok(())
    }

    /// Writes the position key.
    pub(super) async fn mark(&self, client: &mut Client, reach: Reach) -> Result<()> {
        client.command(&["SET", POSITION_KEY, &self.mark_text(reach)]).await.map(drop)
    }

    pub(super) fn mark_text(&self, reach: Reach) -> String {
        Mark { id: self.options.id.clone(), direction: self.options.direction, reach }.to_string()
    }

    /// The text of the position key for a place in the stream.
    pub(super) fn mark_at(&self, offset: u64, db: u32) -> String {
        self.mark_text(Reach::At(self.place(offset, db)))
    }

    pub(super) fn place(&self, offset: u64, db: u32) -> Position {
        let replid = self.journal.replid().unwrap_or_else(|| "?".into());
        Position { replid, offset, db }
    }

    fn receive(&mut self, start: ReceiveFrom) {
        let mut options = ReceiverOptions::new(
            self.options.from.clone(),
            Arc::clone(&self.journal),
            start,
            self.applied.subscribe(),
            // Not a child of the mirror's: children hear first, and the stream would end before the applier knows why.
            CancellationToken::new(),
        );
        options.hurry = Arc::clone(&self.hurry);
        options.prefer_replica = self.options.from_replica;
        self.receiver = Some(Receiver::spawn(options));
    }

    /// Whether what the source sends is wanted the moment it comes, for the length of a pause depends on it.
    pub(super) fn is_hurried(&self) -> bool {
        self.hurry.load(Ordering::Relaxed)
    }

    pub(super) fn hurry(&self, hurry: bool) {
        self.hurry.store(hurry, Ordering::Relaxed);
    }

    /// Begins a receiver of the given kind in place of the one that runs.
    pub(super) async fn replace_receiver(&mut self, start: ReceiveFrom) {
        if let Some(receiver) = self.receiver.take() {
            receiver.stop().await;
        }
        self.receive(start);
    }

    /// Asks for a snapshot; answers the generation that it will have.
    pub(super) async fn full_sync(&mut self) -> u64 {
        let generation = self.journal.generation() + 1;
        self.applied.send_replace(0);
        self.replace_receiver(ReceiveFrom::FullSync).await;
        generation
    }

    /// The destination's position. While keys in front of it are yet to be copied anew it does not hold everything up to there:
    /// what was known before stays, or it is a byte short.
    pub(super) fn stand_at(&self, offset: u64) {
        if self.notes.copies().is_ok_and(|copies| copies.is_empty()) {
            self.applied.send_replace(offset);
        } else if *self.applied.borrow() == 0 {
            self.applied.send_replace(offset.saturating_sub(1));
        }
    }

    /// Makes sure that the journal gives the stream behind a position.
    async fn follow(&mut self, position: &Position) {
        self.stand_at(position.offset);
        if self.receiver.is_none() || !self.journal.covers(position) {
            self.replace_receiver(ReceiveFrom::Continue(position.clone())).await;
        }
    }

    /// Opens the connection to the destination, for as long as the retry window allows.
    pub(super) async fn open(&mut self) -> Step<Opened> {
        loop {
            let cancel = self.cancel.clone();
            let opening = link::open(&self.options.to, &self.options.id, self.options.direction, TIMEOUT);
            match cancel.run_until_cancelled(opening).await.ok_or(End::Stopped)? {
                Ok(opened) => return Ok(opened),
                Err(error) => self.wait_out(error, self.options.retry.connection).await?,
            }
        }
    }

    /// Waits before the next attempt, if the error may pass and the window is open.
    pub(super) async fn wait_out(&mut self, error: Error, window: Duration) -> Step<()> {
        if !error.retry {
            return Err(error.into());
        }
        let waiting = self.waiting.get_or_insert_with(|| {
            tracing::warn!(%error, ?window, "the mirror waits");
            Waiting { since: Instant::now(), next: BACKOFF.0 }
        });
        let left = window.saturating_sub(waiting.since.elapsed());
        if left.is_zero() {
            let message = format!("{}; tried again for {window:?}", error.message);
            return Err(Error::new(error.side, message).because(error).into());
        }
        let wait = waiting.next.min(left);
        waiting.next = (waiting.next * 2).min(BACKOFF.1);
        self.state.error = Some(Trouble::new(&error, Some(SystemTime::now() + left)));
        self.state.stage = Stage::Connecting;
        self.publish_behind();
        // Up to a quarter more, so that several mirrors do not come back at the same instant.
        self.jitter =
            self.jitter.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let wait = wait + wait.mul_f64((self.jitter >> 40) as f64 / f64::from(1u32 << 26));
        self.rest(wait, "the mirror is not connected").await
    }

    /// Sleeps; requests are refused meanwhile.
    async fn rest(&mut self, time: Duration, why: &str) -> Step<()> {
        let until = Instant::now() + time;
        loop {
            tokio::select! {
                () = self.cancel.cancelled() => return Err(End::Stopped),
                () = tokio::time::sleep_until(until) => return Ok(()),
                () = tokio::time::sleep(TICK) => self.publish_behind(),
                Some(request) = self.requests.recv() => refuse(request, why),
            }
        }
    }

    /// Whatever it was that was waited out, it is over.
    pub(super) fn recovered(&mut self) {
        if let Some(waiting) = self.waiting.take() {
            tracing::info!(after = ?waiting.since.elapsed(), "the mirror goes on");
        }
        if self.state.error.take().is_some() {
            self.publish();
        }
    }

    /// Whether trouble with the destination is being waited out: nothing was applied since.
    pub(super) fn is_waiting(&self) -> bool {
        self.waiting.is_some()
    }

    /// Stays failed until somebody resolves the failure, or resumes a mirror that has none.
    async fn wait_for_help(&mut self, error: &Error) -> Step<()> {
        for waiter in self.copy_waiters.drain(..) {
            let _ = waiter.send(Err(Error::new(error.side, error.message.clone())));
        }
        self.paused.mark_unchanged();
        loop {
            let request = tokio::select! {
                () = self.cancel.cancelled() => return Err(End::Stopped),
                changed = self.paused.changed() => {
                    let resumed = changed.is_ok() && !*self.paused.borrow();
                    if resumed { return Ok(()) }
                    continue;
                }
                Some(request) = self.requests.recv() => request,
            };
            let Request::Resolve { resolution, reply } = request else {
                refuse(request, &format!("the mirror has failed: {}", error.message));
                continue;
            };
            let resolved = match resolution {
                Resolution::Skip => self.notes.skip_failures(self.options.to.side),
                Resolution::Copy => self.notes.copy_failures(),
            };
            self.state.skipped = self.notes.skipped();
            let done = resolved.is_ok();
            let _ = reply.send(resolved);
            if done {
                return Ok(());
            }
        }
    }

    /// Takes the receiver's troubles over into the state.
    pub(super) fn note_receiver(&mut self, link: &ReceiverLink) -> Result<()> {
        match link {
            ReceiverLink::Lost { since, error } => {
                let left = self.options.retry.connection.saturating_sub(since.elapsed());
                self.state.error = Some(Trouble::new(error, Some(SystemTime::now() + left)));
            }
            ReceiverLink::Failed(error) if error.retry => self.state.error = Some(Trouble::new(error, None)),
            ReceiverLink::Failed(error) => {
                self.receiver = None;
                let mut lasting = Error::new(error.side, error.message.clone()).because(Arc::clone(error));
                lasting.remedy.clone_from(&error.remedy);
                return Err(lasting);
            }
            _ => {
                if self.waiting.is_none() {
                    self.state.error = None;
                }
            }
        }
        Ok(())
    }

    pub(super) fn stage(&mut self, stage: Stage) {
        if self.state.stage != stage {
            tracing::debug!(direction = %self.options.direction, from = ?self.state.stage, to = ?stage, "mirror");
            self.state.stage = stage;
            self.publish();
        }
    }

    /// Says how far behind the mirror is.
    pub(super) fn set_lag(&mut self, lag_ms: f64) {
        self.state.lag_ms = lag_ms;
        self.behind_since = (lag_ms > 0.0).then(|| Instant::now() - Duration::from_secs_f64(lag_ms / 1000.0));
    }

    /// As [`Self::publish`], while nobody looks at the stream.
    fn publish_behind(&mut self) {
        if *self.applied.borrow() >= self.journal.received() {
            self.behind_since = None;
        } else {
            self.behind_since.get_or_insert_with(Instant::now);
        }
        self.state.lag_ms = self.behind_since.map_or(0.0, |since| since.elapsed().as_secs_f64() * 1000.0);
        self.publish();
    }

    /// Shows the state to whoever watches.
    pub(super) fn publish(&mut self) {
        self.state.heartbeat = self.heartbeat.as_ref().and_then(Heartbeat::last);
        self.state.lag_from =
            if self.state.heartbeat.is_some() { LagFrom::Heartbeat } else { LagFrom::Stream };
        self.state.received = self.journal.received();
        self.state.applied = *self.applied.borrow();
        if let Some(replid) = self.journal.replid() {
            self.state.replid = replid;
        }
        // It waits by itself and ends by itself, so it stands beside what the stages note and forget.
        let waits = self.options.limits.automatic().filter(|_| self.options.direction == Direction::Forward);
        let waits = waits.and_then(|automatic| automatic.trouble(&self.options.to));
        let noted = self.state.error.clone();
        self.state.error = noted.clone().or(waits);
        self.publish.send_if_modified(|shown| {
            let differs = *shown != self.state;
            if differs {
                shown.clone_from(&self.state);
            }
            differs
        });
        self.state.error = noted;
    }
}

/// Answers a request that cannot be served now.
pub(super) fn refuse(request: Request, why: &str) {
    let error = || Error::passing(Side::Gateway, why);
    match request {
        Request::Engage { reply, .. } => drop(reply.send(Err(error()))),
        Request::Settle { reply, .. } => drop(reply.send(Err(error()))),
        Request::SettleLast { reply }
        | Request::Pad { reply }
        | Request::Resolve { reply, .. }
        | Request::CopyAnew { reply, .. } => {
            drop(reply.send(Err(error())));
        }
    }
}

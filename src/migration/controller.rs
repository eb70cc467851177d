//! The controller: one task that owns the phase, the record, the mirrors and the data path.
//!
//! `let event = self.next().await; self.apply(event).await` — arms of the `select!` return a value and do nothing else, so
//! that cancelling them is always safe. What takes long (a precheck, a switch, a comparison, the end) runs in a task of
//! its own and reports back as an event. A switch takes the record with it and brings it back: nobody else can write
//! to the record meanwhile.

use std::future::{Future, pending};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::handle::{Answer, Ask, SwitchReply, VerifyRequest};
use super::holder::{self, Holder};
use super::machine::{Begin, Ending, Input, Machine, Output, Seen};
use super::progress::{Progress, Rate};
use super::record::{Failure, Fence, Intent, Record, Store};
use super::status::{
    ActiveSide, Clients, ErrorInfo, MirrorDirection, MirrorStatus, Phase, Snapshot, Status, SwitchEntry,
    SwitchKind, SwitchOutcome, SwitchRequest, Traffic,
};
use super::{ending, precheck, switching};
use crate::config::Config;
use crate::cutover::live::{Left, strays, take_down};
use crate::cutover::verdict::{Limits, Verification};
use crate::error::{Error, Result, Side};
use crate::mirror::{
    BatchLimits, Direction, Mirror, MirrorOptions, MirrorState, Position, SnapshotProgress, Stage, Start,
    Trouble,
};
use crate::proxy::Proxy;
use crate::server::Endpoint;
use crate::verify;

/// How often the status is looked at.
const TICK: Duration = Duration::from_millis(200);

/// Between two looks for writers that do not use the gateway.
const STRAYS: Duration = Duration::from_secs(10);

/// Between attempts at what may pass by itself.
const RETRY: Duration = Duration::from_secs(1);

/// What happens to the controller.
enum Event {
    Ask(Ask),
    /// All handles are gone.
    Unattended,
    Mirror,
    Prechecked(Result<()>),
    Ended(Result<()>),
    SwitchReady,
    Switched(Box<switching::Done>),
    Verified(Result<verify::Report>),
    Note(Note),
    Tick,
    Shutdown,
}

/// What tasks that run for long report.
#[derive(Debug)]
enum Note {
    /// The destination is ours.
    Held,
    /// It cannot be reached to say so.
    NotHeld(Error),
    /// Somebody else's.
    HeldByOther(Error),
    /// A fence that was left behind is down.
    FenceDown,
    /// These connections write where only the mirror may write.
    Strays(Vec<String>),
}

/// The mirror that runs.
#[derive(Debug)]
struct Running {
    mirror: Mirror,
    state: watch::Receiver<MirrorState>,
}

/// A switch that runs in its own task.
struct Switching {
    kind: SwitchKind,
    task: JoinHandle<switching::Done>,
    answer: Option<Answer<SwitchReply>>,
    /// For a postponed one.
    ready: Option<oneshot::Receiver<switching::Ready>>,
    plan: Option<crate::cutover::Plan>,
    through: Option<oneshot::Sender<()>>,
    /// The mirror as it was, for the status.
    state: watch::Receiver<MirrorState>,
}

impl Switching {
    /// Readiness is told before the end.
    async fn event(&mut self) -> Event {
        if let Some(ready) = &mut self.ready {
            let told = tokio::select! {
                biased;
                told = ready => told.ok(),
                done = joined(Some(&mut self.task)) => return Event::Switched(Box::new(done)),
            };
            self.ready = None;
            if let Some(ready) = told {
                self.plan = Some(ready.plan);
                return Event::SwitchReady;
            }
        }
        Event::Switched(Box::new(joined(Some(&mut self.task)).await))
    }
}

struct Verifying {
    task: JoinHandle<Result<verify::Report>>,
    answer: Answer<verify::Report>,
}

pub(super) struct Controller {
    config: Arc<Config>,
    proxy: Proxy,
    machine: Machine,
    /// With the switch while one runs.
    store: Option<Store>,
    /// As it was when the store was last here.
    record: Record,
    epoch: u64,
    running: Option<Running>,
    switching: Option<Switching>,
    /// A precheck or an ending, and who waits for it.
    starting: Option<JoinHandle<Result<()>>>,
    ending: Option<JoinHandle<Result<()>>>,
    answer: Option<Answer<()>>,
    verifying: Option<Verifying>,
    verification: Verification,
    /// Keeps the destination ours.
    holding: Option<CancellationToken>,
    /// How the mirror begins once the destination is ours.
    begin: Option<Begin>,
    failure: Option<Failure>,
    /// What is wrong without being a failure of the mirror.
    complaint: Option<ErrorInfo>,
    retry_start: Option<(Instant, Instant)>,
    /// The last state of a mirror, shown when none runs.
    last: Option<MirrorState>,
    /// The last snapshot that was loaded; a mirror behind a switch loads none.
    snapshot: SnapshotProgress,
    rate: Rate,
    progress: Progress,
    fence_tried: Instant,
    strays_at: Instant,
    strays: Vec<String>,
    asks: mpsc::Receiver<Ask>,
    notes: mpsc::Receiver<Note>,
    noting: mpsc::Sender<Note>,
    status: watch::Sender<Status>,
    cancel: CancellationToken,
    shutdown: CancellationToken,
}

impl Controller {
    pub(super) fn new(
        config: Arc<Config>,
        proxy: Proxy,
        store: Store,
        asks: mpsc::Receiver<Ask>,
        status: watch::Sender<Status>,
        shutdown: CancellationToken,
    ) -> (Self, Vec<Output>) {
        let record = store.record().clone();
        let line = store.line().clone();
        let (machine, outputs) = Machine::restored(
            line.active,
            record.intent == Intent::Mirror,
            record.mirrored_epoch == Some(line.epoch) || line.epoch > 0,
            record.paused,
            record.failure.is_some(),
            record.intent == Intent::Finished,
        );
        let (noting, notes) = mpsc::channel(16);
        let controller = Self {
            config,
            proxy,
            machine,
            epoch: line.epoch,
            failure: record.failure.clone(),
            record,
            store: Some(store),
            running: None,
            switching: None,
            starting: None,
            ending: None,
            answer: None,
            verifying: None,
            verification: Verification::Never,
            holding: None,
            begin: None,
            complaint: None,
            retry_start: None,
            last: None,
            snapshot: SnapshotProgress::default(),
            rate: Rate::over(Duration::from_secs(2)),
            progress: Progress::new(),
            fence_tried: Instant::now(),
            strays_at: Instant::now(),
            strays: Vec::new(),
            asks,
            notes,
            noting,
            status,
            cancel: CancellationToken::new(),
            shutdown,
        };
        (controller, outputs)
    }

    /// Runs until the shutdown is asked for, and ends in order.
    pub(super) async fn run(mut self, outputs: Vec<Output>, start_now: bool) {
        tracing::info!(phase = %self.machine.phase(), active = %self.machine.active(), epoch = self.epoch, "ready");
        self.perform(outputs).await;
        if start_now && self.machine.phase() == Phase::Forwarding {
            self.begin_by_itself().await;
        }
        self.publish();
        loop {
            let event = self.next().await;
            if matches!(event, Event::Shutdown) {
                break;
            }
            let before = self.machine.phase();
            self.apply(event).await;
            let after = self.machine.phase();
            if before != after {
                tracing::info!(from = %before, active = %self.machine.active(), "phase: {after}");
                self.progress.clear();
            }
            self.publish();
        }
        self.shut_down().await;
    }

    async fn next(&mut self) -> Event {
        tokio::select! {
            biased;
            () = self.shutdown.cancelled() => Event::Shutdown,
            note = self.notes.recv() => note.map_or(Event::Tick, Event::Note),
            event = maybe(self.switching.as_mut().map(Switching::event)) => event,
            done = joined(self.starting.as_mut()) => Event::Prechecked(done),
            done = joined(self.ending.as_mut()) => Event::Ended(done),
            done = joined(self.verifying.as_mut().map(|v| &mut v.task)) => Event::Verified(done),
            changed = maybe(self.running.as_mut().map(|r| r.state.changed())) => match changed {
                Ok(()) => Event::Mirror,
                // The mirror's task ended; its last state says why.
                Err(_) => {
                    tokio::time::sleep(TICK).await;
                    Event::Mirror
                }
            },
            ask = self.asks.recv() => ask.map_or(Event::Unattended, Event::Ask),
            () = tokio::time::sleep(TICK) => Event::Tick,
        }
    }

    async fn apply(&mut self, event: Event) {
        match event {
            Event::Ask(ask) => self.asked(ask).await,
            Event::Unattended => tokio::time::sleep(TICK).await,
            Event::Mirror => self.mirror_moved().await,
            Event::Prechecked(outcome) => {
                self.starting = None;
                self.prechecked(outcome).await;
            }
            Event::Ended(outcome) => {
                self.ending = None;
                let good = outcome.is_ok();
                if good {
                    self.running = None;
                    self.failure = None;
                    self.complaint = None;
                    tracing::info!(
                        "the migration has ended; the clients stay on the {}",
                        self.machine.active()
                    );
                }
                if let Err(error) = self.feed(Input::Ended(good)).await {
                    tracing::error!(%error, "the end of the migration could not be recorded");
                }
                self.reply(outcome);
            }
            Event::SwitchReady => self.switch_ready().await,
            Event::Switched(done) => self.switched(*done).await,
            Event::Verified(outcome) => self.verified(outcome),
            Event::Note(note) => self.noted(note).await,
            Event::Tick => self.tick().await,
            Event::Shutdown => {}
        }
    }

    async fn asked(&mut self, ask: Ask) {
        match ask {
            Ask::Start(answer) => self.simple(Input::Start, answer).await,
            Ask::Pause(answer) => self.simple(Input::Pause, answer).await,
            Ask::Resume(answer) => self.simple(Input::Resume, answer).await,
            Ask::Finish(answer) => self.simple(Input::End(Ending::Finish), answer).await,
            Ask::Abort(answer) => self.simple(Input::End(Ending::Abort), answer).await,
            Ask::Cutover(request, answer) => self.switch(SwitchKind::Cutover, request, answer).await,
            Ask::Rollback(request, answer) => self.switch(SwitchKind::Rollback, request, answer).await,
            Ask::Verify(request, answer) => self.verify(&request, answer),
        }
    }

    /// Requests whose answer is yes or an error. Those that take long are answered when they end.
    async fn simple(&mut self, input: Input, answer: Answer<()>) {
        if self.config.destination.is_none() {
            let _ = answer.send(Err(Error::new(Side::Gateway, "no destination is configured")
                .remedy("name one in [destination] or with --destination")));
            return;
        }
        match self.feed(input).await {
            Ok(()) if (self.starting.is_some() || self.ending.is_some()) && self.answer.is_none() => {
                self.answer = Some(answer)
            }
            outcome => {
                let _ = answer.send(outcome);
            }
        }
    }

    fn reply(&mut self, outcome: Result<()>) {
        if let Some(answer) = self.answer.take() {
            let _ = answer.send(outcome);
        } else if let Err(error) = outcome {
            tracing::error!(%error, "it did not succeed");
        }
    }

    async fn begin_by_itself(&mut self) {
        if let Err(error) = self.feed(Input::Start).await {
            tracing::error!(%error, "the migration cannot begin");
            self.complaint = Some(ErrorInfo::new(&error, None));
        }
    }

    async fn prechecked(&mut self, outcome: Result<()>) {
        let now = Instant::now();
        match &outcome {
            Ok(()) => {
                self.complaint = None;
                self.retry_start = None;
            }
            Err(error) if self.answer.is_none() && error.retry => {
                // `run --start` before its servers are up.
                let until = self.retry_start.map_or(now + self.config.retry.connection, |(_, until)| until);
                self.retry_start = (now < until).then_some((now + RETRY, until));
                if self.complaint.is_none() {
                    tracing::warn!(%error, "the migration cannot begin yet");
                }
                self.complaint =
                    Some(ErrorInfo::new(error, Some(std::time::SystemTime::now() + (until - now))));
            }
            Err(error) => {
                self.retry_start = None;
                if self.answer.is_none() {
                    tracing::error!(%error, "the migration cannot begin");
                    self.complaint = Some(ErrorInfo::new(error, None));
                }
            }
        }
        let mut recorded = Ok(());
        if outcome.is_ok() {
            // Finished before: another migration, with an id of its own.
            if self.record.intent == Intent::Finished {
                recorded = self.with_store(Store::renew);
            }
            self.failure = None;
            self.verification = Verification::Never;
        }
        let fed = self.feed(Input::Prechecked(outcome.is_ok() && recorded.is_ok())).await;
        if self.answer.is_some() {
            self.reply(outcome.and(recorded).and(fed));
        }
    }

    /// Gives the machine an input and does what it says.
    async fn feed(&mut self, input: Input) -> Result<()> {
        let outputs = self.machine.handle(input)?;
        self.perform(outputs).await;
        Ok(())
    }

    async fn perform(&mut self, outputs: Vec<Output>) {
        for output in outputs {
            match output {
                Output::Precheck => self.precheck(),
                Output::SpawnMirror(begin) => {
                    self.begin = Some(begin);
                    self.hold();
                }
                Output::DropMirror => {
                    self.begin = None;
                    if let Some(running) = self.running.take() {
                        self.last = Some(running.state.borrow().clone());
                        running.mirror.stop().await;
                    }
                }
                Output::PauseMirror => {
                    if let Some(running) = &self.running {
                        running.mirror.pause();
                    }
                }
                Output::ResumeMirror => {
                    if let Some(running) = &self.running {
                        running.mirror.resume();
                    }
                }
                // Done by whoever asked, who has the answer to give.
                Output::Switch(..) | Output::LetThrough => {}
                Output::CancelSwitch => {
                    if let Some(switching) = &mut self.switching {
                        switching.through = None;
                    }
                }
                Output::Settle(_) => self.settle(),
                Output::Remember => self.remember(),
            }
        }
    }

    fn remember(&mut self) {
        let intent = match self.machine.phase() {
            Phase::Forwarding => Intent::Forward,
            Phase::Finished => Intent::Finished,
            _ => Intent::Mirror,
        };
        let paused = self.machine.paused() && intent == Intent::Mirror;
        if self.machine.phase() != Phase::Failed {
            self.failure = None;
        }
        let failure = self.failure.clone();
        let (source, destination) =
            (self.config.source.address.to_string(), self.address(ActiveSide::Destination));
        let outcome = self.with_store(|store| {
            store.update(|record| {
                record.intent = intent;
                record.paused = paused;
                record.failure = failure;
                record.source = source;
                record.destination = destination;
            })?;
            if intent == Intent::Finished {
                store.remove_journals(&[]);
            }
            Ok(())
        });
        if let Err(error) = outcome {
            // The disk is full or gone: the data path does not care, and neither may we.
            tracing::error!(%error, "what the gateway does cannot be recorded");
            self.complaint = Some(ErrorInfo::new(&error, None));
        }
    }

    fn with_store<T>(&mut self, use_it: impl FnOnce(&mut Store) -> Result<T>) -> Result<T> {
        let store = self
            .store
            .as_mut()
            .ok_or_else(|| Error::new(Side::Gateway, "a switch is under way").remedy("wait for it to end"))?;
        let outcome = use_it(store);
        self.record = store.record().clone();
        self.epoch = store.line().epoch;
        outcome
    }

    fn endpoint(&self, side: ActiveSide) -> Option<&Endpoint> {
        match side {
            ActiveSide::Source => Some(&self.config.source),
            ActiveSide::Destination => self.config.destination.as_ref(),
        }
    }

    fn address(&self, side: ActiveSide) -> String {
        self.endpoint(side).map(|e| e.address.to_string()).unwrap_or_default()
    }

    fn precheck(&mut self) {
        let Some(destination) = self.config.destination.clone() else { return };
        let (source, policy) = (self.config.source.clone(), self.config.snapshot.on_existing_key);
        let holder = Holder::this(&self.record.id);
        let within = self.config.server.connect_timeout;
        self.starting = Some(tokio::spawn(async move {
            precheck::begin(&source, &destination, policy, &holder, within).await
        }));
    }

    /// Keeps the destination ours from now on; says so once, and when it changes.
    fn hold(&mut self) {
        let Some(endpoint) = self.config.destination.clone() else { return };
        if let Some(old) = self.holding.take() {
            old.cancel();
        }
        let cancel = self.cancel.child_token();
        self.holding = Some(cancel.clone());
        let holder = Holder::this(&self.record.id);
        let (noting, within) = (self.noting.clone(), self.config.server.connect_timeout);
        tokio::spawn(async move {
            tokio::select! {
                () = cancel.cancelled() => {}
                () = keep_held(endpoint, holder, within, noting) => {}
            }
        });
    }

    fn mirror_options(&self, epoch: u64, active: ActiveSide, start: Start) -> Option<MirrorOptions> {
        let store = self.store.as_ref()?;
        let direction = match active {
            ActiveSide::Source => Direction::Forward,
            ActiveSide::Destination => Direction::Reverse,
        };
        let (from, to) = (self.endpoint(active)?.clone(), self.endpoint(active.other())?.clone());
        let mut options =
            MirrorOptions::new(from, to, direction, store.journal_dir(epoch, active), &self.record.id, start);
        options.on_existing_key = self.config.snapshot.on_existing_key;
        options.on_conflict = self.config.mirror.on_conflict;
        options.on_error = self.config.mirror.on_error;
        options.load_connections = self.config.snapshot.connections;
        options.batch = BatchLimits {
            commands: self.config.mirror.batch_commands,
            bytes: self.config.mirror.batch_bytes,
        };
        options.retry = self.config.retry;
        if active == ActiveSide::Source {
            options.own_keys =
                vec![(holder::KEY.to_owned(), Holder::this(&self.record.id).to_string().into_bytes())];
        }
        Some(options)
    }

    fn spawn_mirror(&mut self) {
        let Some(begin) = self.begin.take() else { return };
        let Some(store) = &self.store else { return };
        let line = store.line().clone();
        let start = match (line.start, begin) {
            // Also right behind a crash between the commit line and the first thing that the mirror back wrote. How far it
            // has come since is written on its target.
            (Some(start), _) => {
                Start::At(Position { replid: start.replid, offset: start.offset, db: start.db })
            }
            (None, Begin::Snapshot) => Start::Snapshot,
            (None, Begin::Resume) => Start::Resume,
        };
        let Some(options) = self.mirror_options(line.epoch, line.active, start) else { return };
        store.remove_journals(std::slice::from_ref(&options.dir));
        tracing::info!(start = ?options.start, "mirroring from the {} ({}) to the {} ({})", options.from.side, options.from.address, options.to.side, options.to.address);
        let mirror = Mirror::spawn(options, self.cancel.clone());
        if self.machine.paused() {
            mirror.pause();
        }
        let mut state = mirror.state();
        state.mark_changed();
        self.running = Some(Running { mirror, state });
    }

    async fn mirror_moved(&mut self) {
        let Some(running) = &mut self.running else { return };
        let state = running.state.borrow_and_update().clone();
        let seen = match state.stage {
            Stage::Snapshot => Seen::Snapshot,
            Stage::CatchingUp => Seen::CatchingUp,
            Stage::Live => Seen::Live,
            Stage::Failed => Seen::Failed,
            Stage::Connecting | Stage::Standby | Stage::Paused | Stage::Stopped => return,
        };
        if seen == Seen::Live && self.record.mirrored_epoch != Some(self.epoch) && self.store.is_some() {
            let epoch = self.epoch;
            if let Err(error) =
                self.with_store(|store| store.update(|record| record.mirrored_epoch = Some(epoch)))
            {
                tracing::error!(%error, "that the mirror is complete cannot be recorded");
            }
        }
        if seen == Seen::Failed && self.failure.is_none() {
            let trouble = state.error.clone().unwrap_or_else(|| {
                Trouble::new(&Error::new(Side::Gateway, "the mirror stopped without a reason"), None)
            });
            self.fail(trouble.side, trouble.message, trouble.remedy);
        }
        if seen == Seen::Snapshot {
            self.progress.look(Instant::now(), &state.snapshot);
        }
        if let Err(error) = self.feed(Input::Mirror(seen)).await {
            tracing::error!(%error, "the phases are confused");
        }
    }

    fn fail(&mut self, side: Side, message: String, remedy: Option<String>) {
        tracing::error!(%side, remedy, "the mirror stopped: {message}");
        self.failure = Some(Failure { side, message, remedy, at_ms: super::record::now_ms() });
    }

    async fn switch(&mut self, kind: SwitchKind, request: SwitchRequest, answer: Answer<SwitchReply>) {
        if self.config.destination.is_none() {
            let _ = answer.send(Err(Error::new(Side::Gateway, "no destination is configured")
                .remedy("name one in [destination] or with --destination")));
            return;
        }
        let outputs = match self.machine.handle(Input::Switch(kind, request.clone())) {
            Ok(outputs) => outputs,
            Err(error) => {
                let _ = answer.send(Err(error));
                return;
            }
        };
        if outputs.contains(&Output::LetThrough) {
            if let Some(switching) = &mut self.switching {
                switching.answer = Some(answer);
                if let Some(through) = switching.through.take() {
                    let _ = through.send(());
                }
            }
            return;
        }
        let back = self.mirror_options(self.epoch + 1, kind.target(), Start::Standby);
        let (from, to) = (self.endpoint(kind.origin()).cloned(), self.endpoint(kind.target()).cloned());
        match (self.running.take(), self.store.take(), back, from, to) {
            (Some(running), Some(store), Some(back), Some(from), Some(to)) => {
                let (ready_sender, ready) = oneshot::channel();
                let (through, let_through) = oneshot::channel();
                let limits = Limits {
                    max_lag: self.config.cutover.max_lag,
                    force_unverified: request.force_unverified,
                };
                let postpone = request.postpone;
                let job = switching::Job {
                    kind,
                    max_pause: request.max_pause.unwrap_or(self.config.cutover.max_pause),
                    request,
                    limits,
                    verification: self.verification,
                    from,
                    to,
                    proxy: self.proxy.clone(),
                    mirror: running.mirror,
                    back,
                    cancel: self.cancel.clone(),
                    store,
                    connect_timeout: self.config.server.connect_timeout,
                    ready: ready_sender,
                    let_through,
                };
                tracing::info!("{} to the {} ({})", kind.name(), kind.target(), self.address(kind.target()));
                self.switching = Some(Switching {
                    kind,
                    task: tokio::spawn(job.run()),
                    answer: Some(answer),
                    ready: postpone.then_some(ready),
                    plan: None,
                    through: Some(through),
                    state: running.state,
                });
            }
            (running, store, ..) => {
                self.running = running;
                self.store = store;
                let _ = self.machine.handle(Input::SwitchEnded(None));
                let _ = answer.send(Err(Error::passing(Side::Gateway, "the mirror is not running yet")
                    .remedy("wait a moment, then try again")));
            }
        }
    }

    async fn switch_ready(&mut self) {
        if let Some(switching) = &mut self.switching {
            switching.ready = None;
            tracing::info!("the {} is ready and waits at the gate", switching.kind.name());
            if let (Some(plan), Some(answer)) = (switching.plan.take(), switching.answer.take()) {
                let _ = answer.send(Ok(SwitchReply::Plan(plan)));
            }
        }
        let _ = self.feed(Input::SwitchReady).await;
    }

    async fn switched(&mut self, done: switching::Done) {
        let Some(switching) = self.switching.take() else { return };
        let switching::Done { left: Left { store, mirror }, entry, reply } = done;
        self.store = Some(store);
        let mut state = mirror.state();
        state.mark_changed();
        self.running = Some(Running { mirror, state });
        let outcome = entry.as_ref().map(|entry| entry.outcome);
        if let Some(entry) = entry {
            log(&entry);
            if let Err(error) = self.with_store(|store| store.update(|record| record.switches.push(entry))) {
                tracing::error!(%error, "the switch cannot be added to the history");
            }
        } else {
            let _ = self.with_store(|_| Ok(()));
        }
        if outcome == Some(SwitchOutcome::Committed) {
            // What was compared before the switch says nothing about the other direction.
            self.verification = Verification::Never;
        }
        if let Err(error) = self.feed(Input::SwitchEnded(outcome)).await {
            tracing::error!(%error, "the phases are confused");
        }
        // The new phase is visible before the answer is.
        self.publish();
        match switching.answer {
            Some(answer) => {
                let _ = answer.send(reply);
            }
            None => {
                if let Err(error) = reply {
                    tracing::warn!(%error, "the switch did not begin");
                }
            }
        }
    }

    fn settle(&mut self) {
        let active = self.machine.active();
        let (Some(active), Some(other)) =
            (self.endpoint(active).cloned(), self.endpoint(active.other()).cloned())
        else {
            return;
        };
        if let Some(holding) = self.holding.take() {
            holding.cancel();
        }
        self.begin = None;
        let mirror = self.running.as_ref().map(|running| running.mirror.clone());
        let within = self.config.server.connect_timeout;
        self.ending = Some(tokio::spawn(ending::end(mirror, active, other, within)));
    }

    fn verify(&mut self, request: &VerifyRequest, answer: Answer<verify::Report>) {
        let refused = |what: &str, remedy: &str| Err(Error::new(Side::Gateway, what).remedy(remedy));
        let active = self.machine.active();
        let (Some(a), Some(b)) = (self.endpoint(active).cloned(), self.endpoint(active.other()).cloned())
        else {
            let _ = answer.send(refused(
                "no destination is configured",
                "name one in [destination] or with --destination",
            ));
            return;
        };
        if self.verifying.is_some() {
            let _ = answer.send(refused("a comparison is under way", "wait for it to end"));
            return;
        }
        if request.repair {
            let _ = answer.send(refused(
                "--repair is not in this version",
                "compare without it; `crossfade abort` and `start` copy everything anew",
            ));
            return;
        }
        if matches!(
            self.machine.phase(),
            Phase::Snapshot | Phase::CatchingUp | Phase::CuttingOver | Phase::RollingBack
        ) && !self.machine.switching()
        {
            let _ = answer.send(refused(
                "the copy is not complete yet",
                "wait until it is mirroring (`crossfade status --wait mirroring`)",
            ));
            return;
        }
        let options = verify::VerifyOptions {
            rounds: request.rounds.unwrap_or(self.config.verify.rounds),
            sample: request.sample.or(self.config.verify.sample),
            padded: self.record.intent == Intent::Mirror,
            ..verify::VerifyOptions::default()
        };
        let task = tokio::spawn(async move { verify::compare(&a, &b, options).await });
        self.verifying = Some(Verifying { task, answer });
    }

    fn verified(&mut self, outcome: Result<verify::Report>) {
        let Some(verifying) = self.verifying.take() else { return };
        if let Ok(report) = &outcome {
            self.verification = Verification::Differences(report.difference_count);
            tracing::info!(
                compared = report.compared,
                differences = report.difference_count,
                seconds = report.seconds,
                "compared the servers"
            );
        }
        let _ = verifying.answer.send(outcome);
    }

    async fn noted(&mut self, note: Note) {
        match note {
            Note::Held => {
                self.complaint = None;
                self.spawn_mirror();
            }
            Note::NotHeld(error) => {
                // Only before the mirror runs is this worth showing: afterwards the mirror tells it better.
                if self.running.is_none() && self.switching.is_none() {
                    self.complaint = Some(ErrorInfo::new(
                        &error,
                        Some(std::time::SystemTime::now() + self.config.retry.connection),
                    ));
                }
            }
            Note::HeldByOther(error) => {
                self.fail(error.side, error.message.clone(), error.remedy.clone());
                self.begin = None;
                if let Err(error) = self.feed(Input::Mirror(Seen::Failed)).await {
                    tracing::error!(%error, "the phases are confused");
                }
            }
            Note::Strays(found) => {
                let side = self.machine.active().other();
                let new: Vec<&String> = found.iter().filter(|stray| !self.strays.contains(stray)).collect();
                if !new.is_empty() {
                    tracing::warn!(
                        strays = ?new,
                        "somebody writes to the {side} without the gateway: the two servers will differ; stop these clients, then verify"
                    );
                }
                self.strays = found;
            }
            Note::FenceDown => {
                if let Err(error) = self.with_store(|store| store.update(|record| record.fence = None)) {
                    tracing::debug!(%error, "the record still speaks of a fence");
                }
            }
        }
    }

    async fn tick(&mut self) {
        let now = Instant::now();
        if let (Some(fence), true, true) =
            (&self.record.fence, self.store.is_some(), now - self.fence_tried > RETRY)
        {
            self.fence_tried = now;
            self.take_fence_down(fence.clone());
        }
        if now - self.strays_at > STRAYS && self.running.is_some() && self.machine.mirrors() {
            self.strays_at = now;
            self.look_for_strays();
        }
        if let (Some((at, _)), None) = (self.retry_start, &self.starting) {
            if now >= at && self.machine.phase() == Phase::Forwarding {
                self.begin_by_itself().await;
            }
        }
    }

    fn look_for_strays(&self) {
        let Some(endpoint) = self.endpoint(self.machine.active().other()).cloned() else { return };
        let Some(at_ms) = self.store.as_ref().map(|store| store.line().at_ms) else { return };
        let noting = self.noting.clone();
        tokio::spawn(async move {
            // That it cannot be reached is the mirror's to tell.
            if let Ok(found) = strays(&endpoint, at_ms).await {
                let _ = noting.send(Note::Strays(found)).await;
            }
        });
    }

    fn take_fence_down(&self, fence: Fence) {
        let Some(endpoint) = self.endpoint(fence.side).cloned() else { return };
        let noting = self.noting.clone();
        let abandoned = fence.side != self.machine.active();
        tokio::spawn(async move {
            match take_down(&endpoint, &fence, abandoned).await {
                Ok(()) => {
                    tracing::info!("the fence that was left on the {} is down", fence.side);
                    let _ = noting.send(Note::FenceDown).await;
                }
                Err(error) => tracing::debug!(%error, "the fence on the {} is still up", fence.side),
            }
        });
    }

    fn publish(&mut self) {
        let stats = self.proxy.stats();
        let state = match (&self.running, &self.switching) {
            (Some(running), _) => Some(running.state.borrow().clone()),
            (None, Some(switching)) => Some(switching.state.borrow().clone()),
            (None, None) => self.last.clone(),
        };
        let per_second = self.rate.read(Instant::now(), stats.commands);
        let trouble = state.as_ref().and_then(|state| state.error.as_ref());
        let error = match (&self.failure, trouble, &self.complaint) {
            (Some(failure), ..) => Some(ErrorInfo {
                side: failure.side,
                message: failure.message.clone(),
                retry_until: None,
                remedy: failure.remedy.clone(),
            }),
            (None, Some(trouble), _) if self.machine.mirrors() => Some(ErrorInfo {
                side: trouble.side,
                message: trouble.message.clone(),
                retry_until: trouble.retry_until.map(|at| humantime::format_rfc3339_seconds(at).to_string()),
                remedy: trouble.remedy.clone(),
            }),
            (None, _, complaint) => complaint.clone(),
        };
        let active = self.machine.active();
        let in_step = state.as_ref().is_some_and(|state| state.stage == Stage::Live && state.error.is_none());
        if let Some(state) = state.as_ref().filter(|state| state.snapshot.seconds > 0.0) {
            self.snapshot = state.snapshot;
        }
        let snapshot = self.snapshot;
        let feed = state.map(|state| MirrorStatus {
            received_offset: state.received,
            applied_offset: state.applied,
            lag_bytes: state.received.saturating_sub(state.applied),
            lag_ms: state.lag_ms,
            commands_applied: state.commands_applied,
            conflicts: state.conflicts,
            ..MirrorStatus::default()
        });
        let status = Status {
            name: self.config.name.clone(),
            environment: self.config.environment.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            phase: self.machine.phase(),
            active,
            epoch: self.epoch,
            error,
            rollback_safe: active == ActiveSide::Source || (self.machine.mirrors() && in_step),
            clients: Clients { connected: stats.connected as u64, pinned: stats.pinned as u64 },
            traffic: Traffic {
                commands: stats.commands,
                commands_per_second: (per_second * 10.0).round() / 10.0,
                errors: stats.errors,
            },
            snapshot: Snapshot {
                keys_loaded: snapshot.keys_loaded,
                keys_expected: snapshot.keys_expected,
                bytes_read: snapshot.bytes_read,
                bytes_expected: snapshot.bytes_expected,
                seconds: snapshot.seconds,
            },
            mirror: MirrorStatus {
                direction: match active {
                    ActiveSide::Source => MirrorDirection::Forward,
                    ActiveSide::Destination => MirrorDirection::Reverse,
                },
                ..feed.unwrap_or_default()
            },
            switches: self.record.switches.clone(),
        };
        self.status.send_if_modified(|shown| {
            let changed = *shown != status;
            *shown = status;
            changed
        });
    }

    async fn shut_down(&mut self) {
        // A switch is let go or runs to its end; either is short.
        if let Some(mut switching) = self.switching.take() {
            switching.through = None;
            if let Ok(done) = (&mut switching.task).await {
                self.switching = Some(switching);
                self.switched(done).await;
            }
        }
        if let Some(ending) = self.ending.take() {
            let outcome = ending.await.unwrap_or_else(|_| Err(Error::new(Side::Gateway, "a task failed")));
            self.apply(Event::Ended(outcome)).await;
        }
        self.proxy.shutdown(GRACE).await;
        if let Some(running) = self.running.take() {
            running.mirror.stop().await;
        }
        self.cancel.cancel();
        tracing::info!(phase = %self.machine.phase(), active = %self.machine.active(), "stopped; started again, it goes on from here");
    }
}

/// For commands in flight at the end.
const GRACE: Duration = Duration::from_secs(5);

async fn keep_held(endpoint: Endpoint, holder: Holder, within: Duration, noting: mpsc::Sender<Note>) {
    let mut client = None;
    let mut ours = false;
    loop {
        let attempt = async {
            let client = match &mut client {
                Some(client) => client,
                slot => slot.insert(crate::cutover::live::connect(&endpoint, within).await?),
            };
            holder.claim(client, endpoint.side).await
        };
        let (note, pause) = match attempt.await {
            Ok(()) if ours => (None, holder::RENEWAL),
            Ok(()) => {
                ours = true;
                (Some(Note::Held), holder::RENEWAL)
            }
            // Who holds it is the gateway's own matter; what the server says is the server's.
            Err(error) if error.side == Side::Gateway => {
                let _ = noting.send(Note::HeldByOther(error)).await;
                return;
            }
            Err(error) => {
                client = None;
                (Some(Note::NotHeld(error)), RETRY)
            }
        };
        if let Some(note) = note {
            if noting.send(note).await.is_err() {
                return;
            }
        }
        tokio::time::sleep(pause).await;
    }
}

fn log(entry: &SwitchEntry) {
    let steps = entry.steps_ms;
    let kind = entry.kind.name();
    match (entry.outcome, &entry.reason) {
        (SwitchOutcome::Aborted, reason) => {
            tracing::warn!(
                pause_ms = entry.pause_ms,
                reason = reason.as_deref().unwrap_or("unknown"),
                "{kind} aborted; nothing changed"
            );
        }
        (outcome, _) => tracing::info!(
            epoch = entry.epoch,
            pause_ms = entry.pause_ms,
            held_commands = entry.held_commands,
            max_hold_ms = entry.max_hold_ms,
            close_gate = steps.close_gate,
            drain_clients = steps.drain_clients,
            fence = steps.fence,
            drain_mirror = steps.drain_mirror,
            commit = steps.commit,
            open_gate = steps.open_gate,
            "{kind} {}",
            outcome.name()
        ),
    }
}

async fn maybe<F: Future>(future: Option<F>) -> F::Output {
    match future {
        Some(future) => future.await,
        None => pending().await,
    }
}

/// A task that panics has broken an invariant: the process ends and recovers from its durable state.
async fn joined<T>(task: Option<&mut JoinHandle<T>>) -> T {
    match maybe(task).await {
        Ok(value) => value,
        Err(error) => {
            tracing::error!(%error, "a task of the controller failed; ending the process");
            std::process::abort();
        }
    }
}

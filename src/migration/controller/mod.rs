//! The controller: one task that owns the phase, the record, the mirrors and the data path.
//!
//! `let event = self.next().await; self.apply(event).await` — arms of the `select!` return a value and do nothing else, so
//! that cancelling them is always safe. What takes long (a precheck, a switch, a comparison, the end) runs in a task of
//! its own and reports back as an event. A switch takes the record with it and brings it back: nobody else can write
//! to the record meanwhile.

mod comparing;
mod mirroring;
mod publish;
mod switches;

use std::future::{Future, pending};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::handle::{Answer, Ask, SwitchReply};
use super::holder::Holder;
use super::machine::{Begin, Ending, Input, Machine, Output};
use super::progress::{Progress, Rate};
use super::record::{Failure, Intent, Record, Store, choice, new_id};
use super::status::{ActiveSide, ErrorInfo, Phase, Status, SwitchKind};
use super::{ending, precheck, switching};
use crate::config::Config;
use crate::cutover::verdict::Verification;
use crate::error::{Error, Result, Side};
use crate::mirror::{Limits, Mirror, MirrorState, SnapshotProgress};
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
    limits: Arc<Limits>,
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
    /// The id of the migration that would begin after a finished one.
    next_id: Option<String>,
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
    /// The attempt to take it down.
    unfencing: Option<JoinHandle<()>>,
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
        limits: Arc<Limits>,
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
            record.mirrored_epoch == Some(line.epoch) || line.start.is_some(),
            record.paused,
            record.failure.is_some(),
            record.intent == Intent::Finished,
        );
        let (noting, notes) = mpsc::channel(16);
        let mut controller = Self {
            config,
            limits,
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
            next_id: None,
            complaint: None,
            retry_start: None,
            last: None,
            snapshot: SnapshotProgress::default(),
            rate: Rate::over(Duration::from_secs(2)),
            progress: Progress::new(),
            fence_tried: Instant::now(),
            unfencing: None,
            strays_at: Instant::now(),
            strays: Vec::new(),
            asks,
            notes,
            noting,
            status,
            cancel: CancellationToken::new(),
            shutdown,
        };
        // Before anybody can ask.
        controller.publish();
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
            Ask::Resume(request, answer) => match self.resolve_failed(request).await {
                Ok(()) => self.simple(Input::Resume, answer).await,
                Err(error) => drop(answer.send(Err(error))),
            },
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
                recorded = self
                    .next_id
                    .take()
                    .map_or_else(new_id, Ok)
                    .and_then(|id| self.with_store(|store| store.renew(id)));
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
        let chosen = choice(&self.config);
        let outcome = self.with_store(|store| {
            store.update(|record| {
                record.intent = intent;
                record.paused = paused;
                record.failure = failure;
                record.source = source;
                record.destination = destination;
                record.chosen = (intent == Intent::Mirror).then_some(chosen);
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
        // Kept over failed attempts: the destination is held under it for a while.
        if self.record.intent == Intent::Finished && self.next_id.is_none() {
            self.next_id = new_id().ok();
        }
        let holder = Holder::this(self.next_id.as_ref().unwrap_or(&self.record.id));
        let within = self.config.server.connect_timeout;
        self.starting = Some(tokio::spawn(async move {
            precheck::begin(&source, &destination, policy, &holder, within).await
        }));
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
        self.ending = Some(tokio::spawn(ending::end(mirror, active, other, within, self.record.id.clone())));
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

//! The order of the steps, their deadline, and what happens when one fails.

use std::future::Future;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};

use super::failpoint;
use crate::error::{Error, Result, Side};
use crate::migration::cell::StartPosition;
use crate::migration::status::{ActiveSide, StepTimes, SwitchEntry, SwitchKind, SwitchOutcome};

/// For undoing what was prepared, where the pause leaves less: servers that answer need a fraction of it.
const UNDONE: Duration = Duration::from_millis(250);

/// What is to be done.
#[derive(Debug)]
pub struct Order {
    /// Which way.
    pub kind: SwitchKind,
    /// The epoch that the commit would begin.
    pub epoch: u64,
    /// From the closing of the gate to the commit line.
    pub max_pause: Duration,
    /// For everything up to the gate.
    pub prepare_within: Duration,
    /// All but the commit.
    pub rehearse: bool,
    /// Wait for this before the gate is closed.
    pub postponed: Option<Postponed>,
}

/// A switch that is made ready and kept.
#[derive(Debug)]
pub struct Postponed {
    /// Told when everything up to the gate is done.
    pub ready: oneshot::Sender<()>,
    /// Lets it through; dropped, the switch is given up.
    pub through: oneshot::Receiver<()>,
}

/// What clients noticed of a closed gate.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Held {
    /// Commands that arrived while it was closed.
    pub commands: u64,
    /// The longest that one of them waited.
    pub longest: Duration,
}

/// Why the commit line is not on the disk.
#[derive(Debug)]
pub enum Uncommitted {
    /// It is certain that it is not: the old side goes on.
    Revoked(Error),
    /// The disk answers neither way. The old side goes on, and a crash before the disk recovers may find the line.
    Unknown(Error),
}

/// Everything that a switch acts upon. Implemented for the real world and for a simulated one.
pub trait Parts: Send {
    /// With traffic running: connections, the standby mirror, expiries. May be called again after a postponement.
    fn prepare(&mut self, deadline: Instant) -> impl Future<Output = Result<()>> + Send;
    /// The gate may be closed: what would make clients wait in vain is not so.
    fn last_look(&mut self) -> impl Future<Output = Result<()>> + Send;
    /// No command is handed out from here on.
    fn close_gate(&mut self) -> impl Future<Output = Result<()>> + Send;
    /// Everything that was handed out is answered.
    fn drain_clients(&mut self, deadline: Instant) -> impl Future<Output = Result<()>> + Send;
    /// Writers that bypass the gateway are held. Returns the offset of the old side's stream behind which nothing
    /// follows.
    fn fence(&mut self) -> impl Future<Output = Result<u64>> + Send;
    /// The new side has applied everything up to `offset`, and its expiries are exact. Returns where the mirror back begins.
    fn drain_mirror(
        &mut self,
        offset: u64,
        deadline: Instant,
    ) -> impl Future<Output = Result<StartPosition>> + Send;
    /// The new side is there at this moment. Costs nothing where it has just been heard of.
    fn last_sign(&mut self, deadline: Instant) -> impl Future<Output = Result<()>> + Send;
    /// Writes the commit line.
    fn commit(
        &mut self,
        epoch: u64,
        start: StartPosition,
        pause: Duration,
    ) -> impl Future<Output = Result<(), Uncommitted>> + Send;
    /// Opens the gate on `side`.
    fn open_gate(&mut self, side: ActiveSide, epoch: u64) -> impl Future<Output = Held> + Send;
    /// Past the commit: the old mirror ends, the fence comes down, the mirror back begins.
    fn release(&mut self, epoch: u64) -> impl Future<Output = ()> + Send;
    /// The fence comes down after an abort. Called before the gate opens, only when the fence was tried.
    fn unfence(&mut self) -> impl Future<Output = ()> + Send;
    /// What else was prepared is undone; what needs a server that does not answer until then goes on by itself.
    fn undo(&mut self, until: Instant) -> impl Future<Output = ()> + Send;
}

/// Runs a switch to its end, whichever that is.
pub async fn run<P: Parts>(parts: &mut P, order: Order) -> SwitchEntry {
    let kind = order.kind;
    let mut times = StepTimes::default();
    let mut gate = Gate::default();
    let outcome = steps(parts, order, &mut times, &mut gate).await;
    let (outcome, reason, epoch, held) = match outcome {
        Ok(End::Committed { epoch, held }) => (SwitchOutcome::Committed, None, epoch, held),
        Ok(End::Rehearsed { epoch }) => {
            let held = give_up(parts, kind, epoch, &mut gate, &mut times).await;
            (SwitchOutcome::Rehearsed, None, epoch, held)
        }
        Err((error, epoch)) => {
            let held = give_up(parts, kind, epoch, &mut gate, &mut times).await;
            (SwitchOutcome::Aborted, Some(format!("at {}: {error}", gate.step)), epoch, held)
        }
    };
    SwitchEntry {
        kind,
        outcome,
        reason,
        epoch,
        pause_ms: gate.pause.map_or(0.0, ms),
        held_commands: held.commands,
        max_hold_ms: ms(held.longest),
        steps_ms: times,
        at: Some(humantime::format_rfc3339_millis(std::time::SystemTime::now()).to_string()),
    }
}

enum End {
    Committed { epoch: u64, held: Held },
    Rehearsed { epoch: u64 },
}

/// What has to be undone, and the pause.
#[derive(Default)]
struct Gate {
    /// The step that it has come to.
    step: &'static str,
    closed_at: Option<Instant>,
    /// When the pause is over at the latest.
    deadline: Option<Instant>,
    fence_tried: bool,
    pause: Option<Duration>,
}

async fn steps<P: Parts>(
    parts: &mut P,
    order: Order,
    times: &mut StepTimes,
    gate: &mut Gate,
) -> Result<End, (Error, u64)> {
    let Order { kind, epoch, max_pause, prepare_within, rehearse, postponed } = order;
    let standing = epoch - 1;
    let stays = |error: Error| (error, standing);

    gate.step = "prepare";
    let began = Instant::now();
    parts.prepare(began + prepare_within).await.map_err(stays)?;
    times.prepare = ms(began.elapsed());
    if let Some(Postponed { ready, through }) = postponed {
        let _ = ready.send(());
        through.await.map_err(|_| stays(Error::new(Side::Gateway, "the postponed switch was let go")))?;
        // Clients came and went meanwhile: what is missing is made ready now.
        let again = Instant::now();
        parts.prepare(again + prepare_within).await.map_err(stays)?;
        times.prepare += ms(again.elapsed());
    }
    failpoint::reach("prepare").await;
    parts.last_look().await.map_err(stays)?;

    // From here on clients wait.
    let mut clock = Clock::new(max_pause);
    (gate.closed_at, gate.deadline) = (Some(clock.began), Some(clock.deadline));
    gate.step = "close_gate";
    within(clock.deadline, "closing the gate", parts.close_gate()).await.map_err(stays)?;
    times.close_gate = clock.lap();
    failpoint::reach("close_gate").await;

    gate.step = "drain_clients";
    parts.drain_clients(clock.deadline).await.map_err(stays)?;
    times.drain_clients = clock.lap();
    failpoint::reach("drain_clients").await;

    gate.step = "fence";
    gate.fence_tried = true;
    let offset = within(clock.deadline, "the fence", parts.fence()).await.map_err(stays)?;
    times.fence = clock.lap();
    failpoint::reach("fence").await;

    gate.step = "drain_mirror";
    let start = within(clock.deadline, "draining the mirror", parts.drain_mirror(offset, clock.deadline))
        .await
        .map_err(stays)?;
    times.drain_mirror = clock.lap();
    failpoint::reach("drain_mirror").await;

    if rehearse {
        return Ok(End::Rehearsed { epoch: standing });
    }
    gate.step = "commit";
    if Instant::now() >= clock.deadline {
        return Err(stays(late("everything before the commit", max_pause)));
    }
    failpoint::reach("before_commit").await;
    within(clock.deadline, "the last sign of life", parts.last_sign(clock.deadline)).await.map_err(stays)?;

    // ---- THE POINT OF NO RETURN ----------------------------------------------------------------------------------
    // Above this line every `?` leads to `give_up`: the old side goes on. Once `commit` has returned, the new side is
    // the active one, whatever happens to this process; nothing below may fail, return early or be cancelled.
    if let Err(uncommitted) = parts.commit(epoch, start, clock.began.elapsed()).await {
        return Err(stays(match uncommitted {
            Uncommitted::Revoked(error) => error,
            Uncommitted::Unknown(error) => {
                tracing::error!(%error, "the disk of state_dir failed at the commit line; the old side stays active; do not restart the gateway before the disk is repaired");
                error
            }
        }));
    }
    times.commit = clock.lap();
    failpoint::reach("after_commit").await;

    let held = parts.open_gate(kind.target(), epoch).await;
    times.open_gate = clock.lap();
    gate.pause = Some(clock.began.elapsed());
    failpoint::reach("open_gate").await;

    parts.release(epoch).await;
    failpoint::reach("release").await;
    Ok(End::Committed { epoch, held })
}

/// Abort and the end of a rehearsal: traffic first, then the rest.
async fn give_up<P: Parts>(
    parts: &mut P,
    kind: SwitchKind,
    epoch: u64,
    gate: &mut Gate,
    times: &mut StepTimes,
) -> Held {
    let mut held = Held::default();
    if let Some(closed_at) = gate.closed_at {
        let began = Instant::now();
        if gate.fence_tried {
            // The clients' own writes would run into it.
            parts.unfence().await;
        }
        held = parts.open_gate(kind.origin(), epoch).await;
        times.open_gate = ms(began.elapsed());
        gate.pause = Some(closed_at.elapsed());
    }
    failpoint::reach("undo").await;
    let soon = Instant::now() + UNDONE;
    parts.undo(gate.deadline.map_or(soon, |deadline| deadline.max(soon))).await;
    held
}

struct Clock {
    began: Instant,
    lap: Instant,
    deadline: Instant,
}

impl Clock {
    fn new(budget: Duration) -> Self {
        let began = Instant::now();
        Self { began, lap: began, deadline: began + budget }
    }

    fn lap(&mut self) -> f64 {
        let now = Instant::now();
        ms(now - std::mem::replace(&mut self.lap, now))
    }
}

async fn within<T>(deadline: Instant, what: &str, step: impl Future<Output = Result<T>>) -> Result<T> {
    match timeout_at(deadline, step).await {
        Ok(result) => result,
        Err(_) => Err(Error::passing(Side::Gateway, format!("{what} took longer than the pause allows"))
            .remedy("try again, or allow a longer pause (--max-pause)")),
    }
}

fn late(what: &str, budget: Duration) -> Error {
    Error::passing(Side::Gateway, format!("{what} took longer than {}", humantime::format_duration(budget)))
        .remedy("try again, or allow a longer pause (--max-pause)")
}

fn ms(duration: Duration) -> f64 {
    // Microseconds are precise enough, and a reader of the JSON is not helped by more digits.
    duration.as_micros() as f64 / 1e3
}

//! The phases: what may follow what, and what is to be done about each event. No socket, no clock, no disk.
//!
//! ```text
//!  forwarding ──> snapshot ──> catching-up ──> mirroring <──> cutting-over ──> cut-over <──> rolling-back
//!                    ^ a full resync leads back     ^─────────────────────────────────────────────┘
//!  paused and failed may follow any phase in which a mirror runs, and lead back to it; finished may follow all of these
//! ```

use super::status::{ActiveSide, Phase, SwitchKind, SwitchOutcome, SwitchRequest};
use crate::error::{Error, Side};

/// What happened.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Input {
    /// Somebody wants to begin.
    Start,
    /// The precheck that [`Output::Precheck`] asked for went well, or not.
    Prechecked(bool),
    /// Somebody wants a switch.
    Switch(SwitchKind, SwitchRequest),
    /// A postponed switch is ready.
    SwitchReady,
    /// A switch ended; `None` when it was refused before it began, or only planned.
    SwitchEnded(Option<SwitchOutcome>),
    /// Somebody wants a pause.
    Pause,
    /// Somebody wants to go on.
    Resume,
    /// Somebody wants to end it.
    End(Ending),
    /// The end is reached, or was not.
    Ended(bool),
    /// The mirror moved.
    Mirror(Seen),
}

/// How a migration ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ending {
    /// On the active side.
    Finish,
    /// On the source.
    Abort,
}

/// What the mirror is seen to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Seen {
    /// Loading.
    Snapshot,
    /// Applying what has piled up.
    CatchingUp,
    /// In step.
    Live,
    /// Stopped; a person is needed.
    Failed,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Output {
    /// Look whether a migration may begin.
    Precheck,
    /// Begin a mirror, from the active side to the other.
    SpawnMirror(Begin),
    /// Let it go without ceremony.
    DropMirror,
    /// Apply nothing more.
    PauseMirror,
    /// Apply again.
    ResumeMirror,
    /// Judge, and run a switch (or only plan it).
    Switch(SwitchKind, SwitchRequest),
    /// Let the postponed switch through.
    LetThrough,
    /// Let go of it.
    CancelSwitch,
    /// Stop the mirror, make expiries exact, remove the gateway's keys.
    Settle(Ending),
    /// Write what was asked for into the record.
    Remember,
}

/// How a mirror begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Begin {
    /// With a snapshot.
    Snapshot,
    /// Where it was.
    Resume,
}

/// What keeps other requests waiting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Busy {
    Starting,
    Switching { kind: SwitchKind, ready: bool },
    Ending,
}

/// The state.
#[derive(Debug, Clone)]
pub(super) struct Machine {
    phase: Phase,
    active: ActiveSide,
    /// Where the mirror stands, whatever else goes on.
    seen: Seen,
    /// A person asked for a pause.
    paused: bool,
    busy: Option<Busy>,
}

type Answer = Result<Vec<Output>, Error>;

impl Machine {
    /// As recorded. `complete` is true when the other side once held everything.
    pub(super) fn restored(
        active: ActiveSide,
        mirroring: bool,
        complete: bool,
        paused: bool,
        failed: bool,
        finished: bool,
    ) -> (Self, Vec<Output>) {
        let seen = match (failed, complete) {
            (true, _) => Seen::Failed,
            (false, true) => Seen::CatchingUp,
            (false, false) => Seen::Snapshot,
        };
        let mut machine = Self { phase: Phase::Forwarding, active, seen, paused, busy: None };
        if finished {
            machine.phase = Phase::Finished;
            return (machine, Vec::new());
        }
        if !mirroring {
            return (machine, Vec::new());
        }
        machine.phase = machine.resting();
        if failed {
            return (machine, Vec::new());
        }
        let mut outputs = vec![Output::SpawnMirror(Begin::Resume)];
        if paused {
            outputs.push(Output::PauseMirror);
        }
        (machine, outputs)
    }

    pub(super) fn phase(&self) -> Phase {
        self.phase
    }

    pub(super) fn active(&self) -> ActiveSide {
        self.active
    }

    pub(super) fn paused(&self) -> bool {
        self.paused
    }

    /// Whether the server that is not active is being kept in step.
    pub(super) fn mirrors(&self) -> bool {
        !matches!(self.phase, Phase::Forwarding | Phase::Finished | Phase::Failed)
    }

    /// Whether a switch is under way (a postponed one that is ready included).
    pub(super) fn switching(&self) -> bool {
        matches!(self.busy, Some(Busy::Switching { .. }))
    }

    pub(super) fn handle(&mut self, input: Input) -> Answer {
        match input {
            Input::Start => self.start(),
            Input::Prechecked(good) => {
                self.busy = None;
                if !good {
                    return Ok(Vec::new());
                }
                self.seen = Seen::Snapshot;
                self.paused = false;
                self.set(Phase::Snapshot)?;
                Ok(vec![Output::Remember, Output::SpawnMirror(Begin::Snapshot)])
            }
            Input::Switch(kind, request) => self.switch(kind, request),
            Input::SwitchReady => {
                if let Some(Busy::Switching { ready, .. }) = &mut self.busy {
                    *ready = true;
                }
                Ok(Vec::new())
            }
            Input::SwitchEnded(outcome) => self.switch_ended(outcome),
            Input::Pause => self.pause(),
            Input::Resume => self.resume(),
            Input::End(ending) => self.end(ending),
            Input::Ended(good) => {
                self.busy = None;
                if good {
                    self.set(Phase::Finished)?;
                    return Ok(vec![Output::Remember]);
                }
                // The mirror may have been stopped already: it goes on where it was.
                if !self.mirrors() {
                    return Ok(Vec::new());
                }
                if self.seen == Seen::Failed {
                    return self.rest();
                }
                let mut outputs = vec![Output::DropMirror, Output::SpawnMirror(Begin::Resume)];
                if self.paused {
                    outputs.push(Output::PauseMirror);
                }
                Ok(outputs)
            }
            Input::Mirror(seen) => self.mirror(seen),
        }
    }

    fn start(&mut self) -> Answer {
        self.idle()?;
        match (self.phase, self.active) {
            (Phase::Forwarding | Phase::Finished, ActiveSide::Source) => {
                self.busy = Some(Busy::Starting);
                Ok(vec![Output::Precheck])
            }
            (Phase::Forwarding | Phase::Finished, ActiveSide::Destination) => Err(refused(
                "the last migration ended on the destination, where the clients are",
                "to move on, make that server the source of a new configuration with a state_dir of its own",
            )),
            (Phase::Failed, _) => Err(refused(
                "the migration has failed",
                "see `crossfade status` for the reason, then `crossfade resume`",
            )),
            (phase, _) => Err(refused(format!("it has begun already: {phase}"), "see `crossfade status`")),
        }
    }

    fn switch(&mut self, kind: SwitchKind, request: SwitchRequest) -> Answer {
        if let Some(Busy::Switching { kind: under_way, ready: true }) = self.busy {
            if under_way != kind {
                return Err(refused(
                    format!("a postponed {} is ready", under_way.name()),
                    "let it through, or `crossfade abort` it",
                ));
            }
            if request.dry_run || request.postpone || request.rehearse {
                return Err(refused(
                    format!("a postponed {} is ready already", kind.name()),
                    format!("`crossfade {}` lets it through, `crossfade abort` lets it go", kind.name()),
                ));
            }
            return Ok(vec![Output::LetThrough]);
        }
        self.idle()?;
        if self.active == kind.target() {
            return Err(refused(
                format!("the clients are on the {} already", kind.target()),
                "see `crossfade status`",
            ));
        }
        let running = match kind {
            SwitchKind::Cutover => Phase::CuttingOver,
            SwitchKind::Rollback => Phase::RollingBack,
        };
        match self.phase {
            Phase::Mirroring | Phase::CutOver => {}
            Phase::Forwarding | Phase::Finished => {
                return Err(refused("nothing is being mirrored", "`crossfade start` first"));
            }
            Phase::Snapshot => {
                return Err(refused(
                    "the snapshot is not finished",
                    "wait until it is mirroring (`crossfade status --wait mirroring`)",
                ));
            }
            Phase::CatchingUp => {
                return Err(refused(
                    "the mirror has not caught up yet",
                    "wait until it is mirroring (`crossfade status --wait mirroring`)",
                ));
            }
            Phase::Paused => return Err(refused("the mirror is paused", "`crossfade resume` first")),
            Phase::Failed => {
                return Err(refused(
                    "the mirror has failed",
                    "see `crossfade status` for the reason, then `crossfade resume`",
                ));
            }
            Phase::CuttingOver | Phase::RollingBack => {
                return Err(busy(Busy::Switching { kind, ready: false }));
            }
        }
        self.busy = Some(Busy::Switching { kind, ready: false });
        if !request.dry_run {
            self.set(running)?;
        }
        Ok(vec![Output::Switch(kind, request)])
    }

    fn switch_ended(&mut self, outcome: Option<SwitchOutcome>) -> Answer {
        if outcome == Some(SwitchOutcome::Committed) {
            if let Some(Busy::Switching { kind, .. }) = self.busy {
                self.active = kind.target();
                // The mirror back begins with nothing to catch up with.
                self.seen = Seen::Live;
            }
        }
        self.busy = None;
        self.rest()
    }

    fn pause(&mut self) -> Answer {
        self.idle()?;
        if self.paused {
            return Err(refused("it is paused already", "`crossfade resume` goes on"));
        }
        if !self.mirrors() {
            return Err(refused(
                format!("nothing is being mirrored: {}", self.phase),
                "see `crossfade status`",
            ));
        }
        self.paused = true;
        self.rest()?;
        Ok(vec![Output::Remember, Output::PauseMirror])
    }

    fn resume(&mut self) -> Answer {
        self.idle()?;
        match self.phase {
            Phase::Paused => {
                self.paused = false;
                self.rest()?;
                Ok(vec![Output::Remember, Output::ResumeMirror])
            }
            Phase::Failed => {
                self.seen = Seen::CatchingUp;
                self.paused = false;
                self.rest()?;
                Ok(vec![Output::Remember, Output::DropMirror, Output::SpawnMirror(Begin::Resume)])
            }
            phase => Err(refused(format!("nothing is paused: {phase}"), "see `crossfade status`")),
        }
    }

    fn end(&mut self, ending: Ending) -> Answer {
        if let (Some(Busy::Switching { ready: true, .. }), Ending::Abort) = (self.busy, ending) {
            return Ok(vec![Output::CancelSwitch]);
        }
        self.idle()?;
        match (self.phase, ending, self.active) {
            (Phase::Forwarding, ..) => Err(refused("no migration has begun", "see `crossfade status`")),
            (Phase::Finished, ..) => {
                Err(refused("the migration has ended already", "see `crossfade status`"))
            }
            (_, Ending::Abort, ActiveSide::Destination) => Err(refused(
                "the clients are on the destination",
                "`crossfade rollback` first, or `crossfade finish` to stay there",
            )),
            (Phase::Snapshot | Phase::CatchingUp, Ending::Finish, _) => Err(refused(
                "the destination does not hold everything yet",
                "wait, or `crossfade abort` to end on the source",
            )),
            _ => {
                self.busy = Some(Busy::Ending);
                Ok(vec![Output::Settle(ending)])
            }
        }
    }

    fn mirror(&mut self, seen: Seen) -> Answer {
        // While it runs, a mirror that fails is the switch's business first.
        self.seen = match (self.seen, seen) {
            // In step once is in step until a snapshot says otherwise: a short lag is no phase.
            (Seen::Live, Seen::CatchingUp) => Seen::Live,
            (_, seen) => seen,
        };
        if self.busy.is_some() || !self.mirrors() {
            return Ok(Vec::new());
        }
        self.rest()?;
        if self.phase == Phase::Failed {
            return Ok(vec![Output::DropMirror, Output::Remember]);
        }
        Ok(Vec::new())
    }

    /// Goes to the phase that fits when nothing is under way.
    fn rest(&mut self) -> Answer {
        self.set(self.resting())?;
        if self.phase == Phase::Failed {
            return Ok(vec![Output::DropMirror, Output::Remember]);
        }
        Ok(Vec::new())
    }

    fn resting(&self) -> Phase {
        match (self.seen, self.active) {
            (Seen::Failed, _) => Phase::Failed,
            _ if self.paused => Phase::Paused,
            (_, ActiveSide::Destination) => Phase::CutOver,
            (Seen::Snapshot, _) => Phase::Snapshot,
            (Seen::CatchingUp, _) => Phase::CatchingUp,
            (Seen::Live, _) => Phase::Mirroring,
        }
    }

    fn idle(&self) -> Result<(), Error> {
        self.busy.map_or(Ok(()), |what| Err(busy(what)))
    }

    /// The one place that assigns the phase.
    fn set(&mut self, to: Phase) -> Result<(), Error> {
        if self.phase == to {
            return Ok(());
        }
        if !allowed(self.phase, to) {
            return Err(Error::new(Side::Gateway, format!("{} does not lead to {to}", self.phase))
                .remedy("please report this"));
        }
        self.phase = to;
        Ok(())
    }
}

/// What may follow what.
pub(super) fn allowed(from: Phase, to: Phase) -> bool {
    use Phase::{
        CatchingUp, CutOver, CuttingOver, Failed, Finished, Forwarding, Mirroring, Paused, RollingBack,
        Snapshot,
    };
    match (from, to) {
        (Forwarding, Snapshot) => true,
        (Forwarding, _) => false,
        (Snapshot, CatchingUp | Mirroring | Paused | Failed | Finished) => true,
        (Snapshot, _) => false,
        (CatchingUp, Snapshot | Mirroring | Paused | Failed | Finished) => true,
        (CatchingUp, _) => false,
        // A full resync leads back to the snapshot.
        (Mirroring, Snapshot | CatchingUp | CuttingOver | Paused | Failed | Finished) => true,
        (Mirroring, _) => false,
        (CuttingOver, Snapshot | CatchingUp | Mirroring | CutOver | Failed) => true,
        (CuttingOver, _) => false,
        (CutOver, RollingBack | Paused | Failed | Finished) => true,
        (CutOver, _) => false,
        (RollingBack, CutOver | Mirroring | Failed) => true,
        (RollingBack, _) => false,
        (Paused, Snapshot | CatchingUp | Mirroring | CutOver | Failed | Finished) => true,
        (Paused, _) => false,
        (Failed, Snapshot | CatchingUp | Mirroring | CutOver | Paused | Finished) => true,
        (Failed, _) => false,
        // Another migration, from the same source.
        (Finished, Snapshot) => true,
        (Finished, _) => false,
    }
}

fn busy(what: Busy) -> Error {
    let what = match what {
        Busy::Starting => "the servers are being checked".to_owned(),
        Busy::Switching { kind, ready: false } => format!("a {} is under way", kind.name()),
        Busy::Switching { kind, ready: true } => {
            return refused(
                format!("a postponed {} is ready", kind.name()),
                format!("`crossfade {}` lets it through, `crossfade abort` lets it go", kind.name()),
            );
        }
        Busy::Ending => "the migration is being ended".to_owned(),
    };
    refused(what, "wait for it to end")
}

fn refused(what: impl Into<String>, remedy: impl Into<String>) -> Error {
    Error::new(Side::Gateway, what).remedy(remedy)
}

#[cfg(test)]
#[path = "machine_tests.rs"]
mod tests;

//! The switch over a simulated world, with seeds: steps fail, hang and take long, the process dies anywhere, clients and
//! writers that bypass the gateway write whenever they can.

use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::{Instant, sleep};

use super::switch::{Held, Order, Parts, Postponed, Uncommitted, run};
use crate::dice::{Dice, seeds};
use crate::error::{Error, Result, Side};
use crate::migration::cell::StartPosition;
use crate::migration::status::{ActiveSide, SwitchEntry, SwitchKind, SwitchOutcome};

/// What can be done to a step.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Fate {
    Well,
    Fails,
    /// Never answers.
    Hangs,
    /// The process dies before the step has its effect, or after it.
    DiesBefore,
    DiesAfter,
}

const STEPS: [&str; 11] = [
    "prepare",
    "last_look",
    "close_gate",
    "drain_clients",
    "fence",
    "drain_mirror",
    "last_sign",
    "commit",
    "open_gate",
    "release",
    "undo",
];

struct World {
    dice: Dice,
    fates: Vec<(&'static str, Fate)>,
    kind: SwitchKind,
    /// Acked writes on each side; the value is unique.
    old: Vec<u64>,
    new: Vec<u64>,
    /// How much of `old` the mirror has carried over.
    carried: usize,
    /// How much of `new` was there when the mirror back begins.
    next_write: u64,
    gate: Option<ActiveSide>,
    fenced: bool,
    standby: bool,
    settled: bool,
    old_mirror: bool,
    back_runs: bool,
    /// The durable line.
    cell: Option<(u64, StartPosition)>,
    visited: Vec<&'static str>,
}

impl World {
    fn new(seed: u64, kind: SwitchKind) -> Self {
        let mut dice = Dice::new(seed);
        let mut fates = Vec::new();
        if dice.below(4) > 0 {
            let step = STEPS[dice.below(STEPS.len() as u64) as usize];
            let fate = [Fate::Fails, Fate::Hangs, Fate::DiesBefore, Fate::DiesAfter][dice.below(4) as usize];
            fates.push((step, fate));
        }
        Self {
            dice,
            fates,
            kind,
            old: Vec::new(),
            new: Vec::new(),
            carried: 0,
            next_write: 0,
            gate: Some(kind.origin()),
            fenced: false,
            standby: false,
            settled: false,
            old_mirror: true,
            back_runs: false,
            cell: None,
            visited: Vec::new(),
        }
    }

    /// Everybody else does something.
    fn others(&mut self) {
        for _ in 0..self.dice.below(4) {
            self.next_write += 1;
            match self.gate {
                Some(side) if side == self.kind.origin() => {
                    assert!(!self.fenced, "clients would run into the fence");
                    self.old.push(self.next_write);
                }
                Some(_) => self.new.push(self.next_write),
                None => {}
            }
        }
        // A writer that bypasses the gateway; after the commit it writes in vain, which is reported.
        if !self.fenced && self.cell.is_none() && self.dice.below(2) == 0 {
            self.next_write += 1;
            self.old.push(self.next_write);
        }
        if self.old_mirror && self.dice.below(3) > 0 {
            self.carry();
        }
    }

    fn carry(&mut self) {
        if self.carried < self.old.len() {
            let step = 1 + self.dice.below((self.old.len() - self.carried) as u64) as usize;
            let rest = self.old[self.carried..self.carried + step].to_vec();
            self.new.extend(rest);
            self.carried += step;
        }
    }

    async fn step(&mut self, name: &'static str) -> Result<()> {
        self.visited.push(name);
        self.others();
        sleep(Duration::from_micros(self.dice.below(3000))).await;
        self.others();
        match self.fate(name) {
            Fate::Fails => Err(Error::passing(Side::Gateway, format!("{name} fails"))),
            Fate::Hangs | Fate::DiesBefore => std::future::pending().await,
            Fate::Well | Fate::DiesAfter => Ok(()),
        }
    }

    async fn after(&mut self, name: &'static str) {
        if self.fate(name) == Fate::DiesAfter {
            std::future::pending::<()>().await;
        }
    }

    fn fate(&self, name: &str) -> Fate {
        self.fates.iter().find(|(step, _)| *step == name).map_or(Fate::Well, |(_, fate)| *fate)
    }
}

impl Parts for World {
    async fn prepare(&mut self, deadline: Instant) -> Result<()> {
        self.standby = true;
        self.settled = true;
        tokio::time::timeout_at(deadline, self.step("prepare"))
            .await
            .unwrap_or_else(|_| Err(Error::passing(Side::Gateway, "prepare hangs")))?;
        self.after("prepare").await;
        Ok(())
    }

    async fn last_look(&mut self) -> Result<()> {
        let outlook = tokio::time::timeout(Duration::from_secs(1), self.step("last_look")).await;
        outlook.unwrap_or_else(|_| Err(Error::passing(Side::Gateway, "last_look hangs")))?;
        self.after("last_look").await;
        Ok(())
    }

    async fn close_gate(&mut self) -> Result<()> {
        self.step("close_gate").await?;
        self.gate = None;
        self.after("close_gate").await;
        Ok(())
    }

    async fn drain_clients(&mut self, deadline: Instant) -> Result<()> {
        tokio::time::timeout_at(deadline, self.step("drain_clients"))
            .await
            .unwrap_or_else(|_| Err(Error::passing(Side::Client, "KEYS is still running")))?;
        self.after("drain_clients").await;
        Ok(())
    }

    async fn fence(&mut self) -> Result<u64> {
        self.step("fence").await?;
        self.fenced = true;
        let offset = self.old.len() as u64;
        self.after("fence").await;
        Ok(offset)
    }

    async fn drain_mirror(&mut self, offset: u64, _deadline: Instant) -> Result<StartPosition> {
        self.step("drain_mirror").await?;
        while (self.carried as u64) < offset {
            self.carry();
            sleep(Duration::from_micros(200)).await;
        }
        assert!(self.standby && self.settled);
        self.after("drain_mirror").await;
        Ok(StartPosition { replid: "r".into(), offset: self.new.len() as u64, db: 0 })
    }

    async fn last_sign(&mut self, _deadline: Instant) -> Result<()> {
        self.step("last_sign").await?;
        self.after("last_sign").await;
        Ok(())
    }

    async fn commit(
        &mut self,
        epoch: u64,
        start: StartPosition,
        _pause: Duration,
    ) -> Result<(), Uncommitted> {
        self.step("commit").await.map_err(Uncommitted::Revoked)?;
        self.cell = Some((epoch, start));
        self.after("commit").await;
        Ok(())
    }

    async fn open_gate(&mut self, side: ActiveSide, _epoch: u64) -> Held {
        // Opening may be slow, it does not fail.
        let _ = self.step("open_gate").await;
        self.gate = Some(side);
        self.after("open_gate").await;
        Held { commands: 3, longest: Duration::from_millis(1) }
    }

    async fn release(&mut self, _epoch: u64) {
        self.old_mirror = false;
        let _ = self.step("release").await;
        self.fenced = false;
        self.back_runs = true;
        self.after("release").await;
    }

    async fn unfence(&mut self) {
        self.fenced = false;
    }

    async fn undo(&mut self, _until: Instant) {
        let _ = self.step("undo").await;
        self.standby = false;
        self.settled = false;
        self.after("undo").await;
    }
}

fn order(kind: SwitchKind, rehearse: bool) -> Order {
    Order {
        kind,
        epoch: 7,
        max_pause: Duration::from_millis(100),
        prepare_within: Duration::from_secs(5),
        rehearse,
        postponed: None,
    }
}

async fn simulate(seed: u64) {
    let mut dice = Dice::new(seed.rotate_left(17));
    let kind = if dice.below(2) == 0 { SwitchKind::Cutover } else { SwitchKind::Rollback };
    let rehearse = dice.below(5) == 0;
    let mut world = World::new(seed, kind);
    for _ in 0..5 {
        world.others();
    }
    // A process that dies, dies here: its future is dropped wherever it hangs.
    let ended =
        tokio::time::timeout(Duration::from_secs(60), run(&mut world, order(kind, rehearse))).await.ok();
    let context = format!(
        "seed {seed:#x}: {kind:?} {:?} rehearse {rehearse}: {ended:?}, visited {:?}",
        world.fates, world.visited
    );

    match (&world.cell, &ended) {
        (Some((epoch, start)), _) => {
            assert!(!rehearse, "{context}");
            assert_eq!(*epoch, 7, "{context}");
            // Whole: the new side has every write that was acked on the old side, each once, in its order.
            assert_eq!(world.new[..start.offset as usize], world.old[..], "{context}");
        }
        (None, _) => {
            // Not at all: clients write nowhere but to the old side.
            assert_ne!(world.gate, Some(kind.target()), "{context}");
            assert_eq!(world.new[..], world.old[..world.carried], "{context}");
        }
    }
    let Some(entry) = ended else {
        assert!(
            world.fates.iter().any(|(_, fate)| *fate != Fate::Fails),
            "only death stops a switch: {context}"
        );
        return;
    };
    check(&world, &entry, rehearse, &context);
}

fn check(world: &World, entry: &SwitchEntry, rehearse: bool, context: &str) {
    assert!(!world.fenced, "{context}");
    match entry.outcome {
        SwitchOutcome::Committed => {
            assert!(world.cell.is_some() && world.back_runs && !world.old_mirror, "{context}");
            assert_eq!(world.gate, Some(world.kind.target()), "{context}");
            assert_eq!((entry.epoch, entry.held_commands), (7, 3), "{context}");
        }
        SwitchOutcome::Aborted | SwitchOutcome::Rehearsed => {
            assert!(
                world.cell.is_none() && !world.standby && !world.settled && world.old_mirror,
                "{context}"
            );
            assert_eq!(world.gate, Some(world.kind.origin()), "{context}");
            assert_eq!(entry.epoch, 6, "{context}");
            assert_eq!(entry.reason.is_some(), entry.outcome == SwitchOutcome::Aborted, "{context}");
            assert_eq!(
                entry.outcome == SwitchOutcome::Rehearsed,
                rehearse && entry.reason.is_none(),
                "{context}"
            );
            // Hanging steps are cut off at the budget.
            assert!(entry.pause_ms < 130.0, "{context}");
        }
    }
}

/// `CROSSFADE_SEED=0x…` replays one.
#[tokio::test(start_paused = true)]
async fn whatever_happens_the_switch_is_wholly_done_or_not_at_all() {
    for seed in seeds(1999) {
        simulate(seed).await;
    }
}

#[tokio::test(start_paused = true)]
async fn an_undisturbed_switch_times_its_steps() {
    let mut world = World::new(1, SwitchKind::Cutover);
    world.fates.clear();
    let entry = run(&mut world, order(SwitchKind::Cutover, false)).await;
    assert_eq!(entry.outcome, SwitchOutcome::Committed);
    let steps = entry.steps_ms;
    let sum = steps.close_gate
        + steps.drain_clients
        + steps.fence
        + steps.drain_mirror
        + steps.commit
        + steps.open_gate;
    assert!((entry.pause_ms - sum).abs() < 0.1, "{entry:?}");
}

#[tokio::test(start_paused = true)]
async fn a_postponed_switch_waits_at_the_gate() {
    let (ready, made_ready) = oneshot::channel();
    let (let_through, through) = oneshot::channel();
    let mut world = World::new(1, SwitchKind::Cutover);
    world.fates.clear();
    let order = Order { postponed: Some(Postponed { ready, through }), ..order(SwitchKind::Cutover, false) };
    let task = tokio::spawn(async move {
        let entry = run(&mut world, order).await;
        (world, entry)
    });
    made_ready.await.unwrap();
    sleep(Duration::from_secs(3600)).await;
    assert!(!task.is_finished());
    let_through.send(()).unwrap();
    let (world, entry) = task.await.unwrap();
    assert_eq!(entry.outcome, SwitchOutcome::Committed);
    assert_eq!(world.visited[..2], ["prepare", "prepare"]);
}

#[tokio::test(start_paused = true)]
async fn a_postponed_switch_that_is_let_go_changes_nothing() {
    let (ready, made_ready) = oneshot::channel();
    let (let_through, through) = oneshot::channel::<()>();
    let mut world = World::new(1, SwitchKind::Cutover);
    world.fates.clear();
    let order = Order { postponed: Some(Postponed { ready, through }), ..order(SwitchKind::Cutover, false) };
    let task = tokio::spawn(async move { (run(&mut world, order).await, world) });
    made_ready.await.unwrap();
    drop(let_through);
    let (entry, world) = task.await.unwrap();
    assert_eq!(entry.outcome, SwitchOutcome::Aborted);
    check(&world, &entry, false, "let go");
    assert!(!world.visited.contains(&"close_gate"));
}

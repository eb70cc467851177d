//! A switch as the controller sees it: a task that takes the record and the mirror, and brings both back.

use std::time::Duration;

use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::handle::SwitchReply;
use super::record::Store;
use super::status::{SwitchEntry, SwitchKind, SwitchOutcome, SwitchRequest};
use crate::cutover::live::{Left, Live, Open};
use crate::cutover::switch::{self, Order, Postponed};
use crate::cutover::verdict::{self, Limits, Verdict, Verification};
use crate::cutover::{Facts, Plan};
use crate::error::{Error, Result, Side};
use crate::mirror::{Mirror, MirrorOptions};
use crate::proxy::Proxy;
use crate::server::Endpoint;

/// For everything up to the gate: attaching the mirror back may take a snapshot that is thrown away.
const PREPARE_WITHIN: Duration = Duration::from_secs(300);

/// A moment of lag is waited for before anybody is told "not yet", from when it was first seen: a server that is paused answers late, and
/// then the mirror has heard nothing for as long.
const PATIENCE: Duration = Duration::from_secs(2);

/// Everything that a switch needs.
pub(super) struct Job {
    pub(super) kind: SwitchKind,
    pub(super) request: SwitchRequest,
    pub(super) max_pause: Duration,
    pub(super) limits: Limits,
    pub(super) verification: Verification,
    pub(super) from: Endpoint,
    pub(super) to: Endpoint,
    pub(super) proxy: Proxy,
    pub(super) mirror: Mirror,
    pub(super) back: MirrorOptions,
    pub(super) cancel: CancellationToken,
    pub(super) store: Store,
    pub(super) connect_timeout: Duration,
    /// Somebody is about to take down the fence of an earlier switch.
    pub(super) unfencing: Option<JoinHandle<()>>,
    pub(super) ready: oneshot::Sender<Ready>,
    pub(super) let_through: oneshot::Receiver<()>,
}

/// A postponed switch is ready.
#[derive(Debug)]
pub(super) struct Ready {
    pub(super) plan: Plan,
}

/// What came of it.
#[derive(Debug)]
pub(super) struct Done {
    pub(super) left: Left,
    pub(super) entry: Option<SwitchEntry>,
    pub(super) reply: Result<SwitchReply>,
}

impl Job {
    pub(super) async fn run(self) -> Done {
        let Job { kind, request, max_pause, limits, verification, ready, let_through, .. } = self;
        if let Some(unfencing) = self.unfencing {
            // What takes that one down would take down this switch's too.
            let _ = unfencing.await;
        }
        let epoch = self.store.line().epoch + 1;
        let mut live = Live {
            kind,
            from: self.from,
            to: self.to,
            proxy: self.proxy,
            mirror: self.mirror,
            back: self.back,
            cancel: self.cancel,
            store: self.store,
            max_pause,
            connect_timeout: self.connect_timeout,
            open: Open::default(),
        };
        let (facts, verdict) = match judged(&mut live, verification, &limits).await {
            Ok(judged) => judged,
            Err(error) => return Done { left: live.finish(), entry: None, reply: Err(error) },
        };
        tracing::info!("{}: {verdict}", kind.name());
        let mut plan = Plan {
            kind,
            postponed: false,
            verdict: verdict.clone(),
            findings: verdict::findings(&facts, &limits),
            steps: steps(&facts),
            max_pause_ms: max_pause.as_secs_f64() * 1e3,
        };
        if request.dry_run {
            return Done { left: live.finish(), entry: None, reply: Ok(SwitchReply::Plan(plan)) };
        }
        if !verdict.is_go() {
            return Done { left: live.finish(), entry: None, reply: Err(refusal(kind, &verdict)) };
        }
        let postponed = request.postpone.then(|| {
            plan.postponed = true;
            let (at_gate, is_ready) = oneshot::channel();
            tokio::spawn(async move {
                if is_ready.await.is_ok() {
                    let _ = ready.send(Ready { plan });
                }
            });
            Postponed { ready: at_gate, through: let_through }
        });
        let order = Order {
            kind,
            epoch,
            max_pause,
            prepare_within: PREPARE_WITHIN,
            rehearse: request.rehearse,
            postponed,
        };
        let entry = switch::run(&mut live, order).await;
        Done { left: live.finish(), entry: Some(entry.clone()), reply: Ok(SwitchReply::Entry(entry)) }
    }
}

async fn judged(live: &mut Live, verification: Verification, limits: &Limits) -> Result<(Facts, Verdict)> {
    let mut until = None;
    loop {
        let facts = live.facts(verification).await?;
        let verdict = verdict::judge(&facts, limits);
        let until = *until.get_or_insert_with(|| Instant::now() + PATIENCE);
        if !matches!(verdict, Verdict::NotYet { .. }) || Instant::now() >= until {
            return Ok((facts, verdict));
        }
        sleep(Duration::from_millis(100)).await;
    }
}

fn refusal(kind: SwitchKind, verdict: &Verdict) -> Error {
    let what = format!("the {} was not begun: {verdict}", kind.name());
    match verdict {
        Verdict::NotYet { .. } => Error::passing(Side::Gateway, what),
        _ => Error::new(Side::Gateway, what),
    }
}

fn steps(facts: &Facts) -> Vec<String> {
    let (from, to) = (facts.kind.origin(), facts.kind.target());
    let mut steps = vec![
        format!(
            "prepare: connect every lane and session to the {to}, attach the mirror back, make expiries exact"
        ),
        "close the gate: clients wait".to_owned(),
        format!("drain clients: everything sent to the {from} is answered"),
    ];
    steps.push(match facts.from.fence {
        Some(how) => format!("fence the {from} with {how}"),
        None => format!("no fence: the {from} allows none"),
    });
    steps.extend([
        format!("drain the mirror: the {to} has applied the last byte of the {from}"),
        format!("commit: the {to} is active"),
        format!("open the gate on the {to}; mirror from the {to} to the {from}"),
    ]);
    steps
}

/// The entry of a switch whose process died behind the commit line: it was done, and its entry was not written.
pub(super) fn recovered(line: &super::cell::Line, switches: &[SwitchEntry]) -> Option<SwitchEntry> {
    use super::status::{ActiveSide, StepTimes};
    let last = switches.iter().rev().find(|entry| entry.outcome == SwitchOutcome::Committed);
    let standing = last.map_or(ActiveSide::Source, |entry| entry.kind.target());
    if standing == line.active {
        return None;
    }
    let kind = match line.active {
        ActiveSide::Destination => SwitchKind::Cutover,
        ActiveSide::Source => SwitchKind::Rollback,
    };
    let at = std::time::UNIX_EPOCH + Duration::from_millis(line.at_ms);
    Some(SwitchEntry {
        kind,
        outcome: SwitchOutcome::Committed,
        reason: Some(
            "the gateway died behind the commit line; the switch was finished at its restart".to_owned(),
        ),
        epoch: line.epoch,
        pause_ms: line.pause_ms,
        held_commands: 0,
        max_hold_ms: 0.0,
        steps_ms: StepTimes::default(),
        at: Some(humantime::format_rfc3339_millis(at).to_string()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::migration::cell::Line;
    use crate::migration::status::ActiveSide;

    #[test]
    fn a_switch_without_its_entry_is_found_by_the_line() {
        let line = |epoch, active| Line { epoch, active, start: None, at_ms: 0, pause_ms: 4.0 };
        assert_eq!(recovered(&Line::first(), &[]), None);
        let cutover = recovered(&line(1, ActiveSide::Destination), &[]).unwrap();
        assert_eq!((cutover.kind, cutover.epoch), (SwitchKind::Cutover, 1));
        let history = [cutover];
        assert_eq!(recovered(&line(1, ActiveSide::Destination), &history), None);
        // A revoked line keeps the side.
        assert_eq!(recovered(&line(3, ActiveSide::Destination), &history), None);
        assert_eq!(recovered(&line(2, ActiveSide::Source), &history).unwrap().kind, SwitchKind::Rollback);
    }
}

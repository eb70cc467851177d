//! Seeded simulation of the phases: a model world that does what the outputs say, and inputs in any order.

use super::*;
use crate::dice::{Dice, seeds};

/// What the outputs have done to the world.
#[derive(Debug, Default)]
struct World {
    mirror: bool,
    mirror_paused: bool,
    pending: Option<Pending>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Pending {
    Precheck,
    Switch { dry_run: bool, postponed: bool },
    Settle,
}

fn apply(world: &mut World, outputs: &[Output]) {
    for output in outputs {
        match output {
            Output::Precheck => {
                assert_eq!(world.pending, None);
                world.pending = Some(Pending::Precheck);
            }
            Output::SpawnMirror(_) => {
                assert!(!world.mirror, "two mirrors would write to one server");
                world.mirror = true;
                world.mirror_paused = false;
            }
            Output::DropMirror => world.mirror = false,
            Output::PauseMirror => world.mirror_paused = true,
            Output::ResumeMirror => world.mirror_paused = false,
            Output::Switch(_, request) => {
                assert_eq!(world.pending, None);
                assert!(world.mirror && !world.mirror_paused, "a switch needs a running mirror");
                world.pending =
                    Some(Pending::Switch { dry_run: request.dry_run, postponed: request.postpone });
            }
            Output::LetThrough | Output::CancelSwitch => {
                assert!(matches!(world.pending, Some(Pending::Switch { .. })));
            }
            Output::Settle(_) => {
                assert_eq!(world.pending, None);
                world.pending = Some(Pending::Settle);
            }
            Output::Remember => {}
        }
    }
}

fn random_request(dice: &mut Dice) -> SwitchRequest {
    SwitchRequest {
        dry_run: dice.below(5) == 0,
        rehearse: dice.below(5) == 0,
        postpone: dice.below(5) == 0,
        ..SwitchRequest::default()
    }
}

fn random_input(dice: &mut Dice, world: &World) -> Input {
    if let (Some(pending), true) = (world.pending, dice.below(3) == 0) {
        return match pending {
            Pending::Precheck => Input::Prechecked(dice.below(3) > 0),
            Pending::Settle => Input::Ended(dice.below(4) > 0),
            Pending::Switch { dry_run: true, .. } => Input::SwitchEnded(None),
            Pending::Switch { postponed: true, .. } if dice.below(2) == 0 => Input::SwitchReady,
            Pending::Switch { .. } => Input::SwitchEnded(match dice.below(4) {
                0 => None,
                1 => Some(SwitchOutcome::Aborted),
                2 => Some(SwitchOutcome::Rehearsed),
                _ => Some(SwitchOutcome::Committed),
            }),
        };
    }
    match dice.below(14) {
        0 | 1 => Input::Start,
        2..=4 => Input::Switch(SwitchKind::Cutover, random_request(dice)),
        5..=6 => Input::Switch(SwitchKind::Rollback, random_request(dice)),
        7 => Input::Pause,
        8 => Input::Resume,
        9 if dice.below(4) == 0 => Input::End(Ending::Finish),
        10 if dice.below(4) == 0 => Input::End(Ending::Abort),
        _ => Input::Mirror(match dice.below(9) {
            0 => Seen::Snapshot,
            1 | 2 => Seen::CatchingUp,
            3 if dice.below(3) == 0 => Seen::Failed,
            _ => Seen::Live,
        }),
    }
}

fn simulate(seed: u64) {
    let mut dice = Dice::new(seed);
    let (mut machine, outputs) = Machine::restored(ActiveSide::Source, false, false, false, false, false);
    let mut world = World::default();
    apply(&mut world, &outputs);
    for step in 0..400 {
        let input = random_input(&mut dice, &world);
        if matches!(input, Input::Mirror(_)) && !world.mirror {
            continue;
        }
        let ends = matches!(input, Input::Prechecked(_) | Input::SwitchEnded(_) | Input::Ended(_));
        let (before, active_before) = (machine.phase(), machine.active());
        if ends {
            world.pending = None;
        }
        if matches!(input, Input::Ended(true)) {
            world.mirror = false;
        }
        let outcome = machine.handle(input.clone());
        let context =
            format!("seed {seed:#x} step {step}: {before} + {input:?} -> {} {outcome:?}", machine.phase());
        match &outcome {
            Ok(outputs) => apply(&mut world, outputs),
            Err(error) => {
                assert!(!error.message.contains("does not lead to"), "{context}");
                assert!(error.remedy.is_some(), "{context}");
                assert_eq!(machine.phase(), before, "{context}");
                assert!(!ends, "{context}");
            }
        }
        if before != machine.phase() {
            assert!(allowed(before, machine.phase()), "{context}");
        }
        if machine.active() != active_before {
            assert_eq!(input, Input::SwitchEnded(Some(SwitchOutcome::Committed)), "{context}");
        }
        let should_mirror = machine.mirrors() || matches!(world.pending, Some(Pending::Settle));
        if machine.mirrors() {
            assert!(world.mirror, "{context}");
        }
        assert!(should_mirror || !world.mirror, "{context}");
        match machine.phase() {
            Phase::Mirroring | Phase::Snapshot | Phase::CatchingUp | Phase::CuttingOver => {
                assert_eq!(machine.active(), ActiveSide::Source, "{context}")
            }
            Phase::CutOver | Phase::RollingBack => {
                assert_eq!(machine.active(), ActiveSide::Destination, "{context}")
            }
            Phase::Paused => assert!(world.mirror_paused, "{context}"),
            _ => {}
        }
    }
}

/// `CROSSFADE_SEED=0x…` replays one.
#[test]
fn any_order_of_events_keeps_the_invariants() {
    for seed in seeds(2999) {
        simulate(seed);
    }
}

#[test]
fn the_main_road() {
    let (mut machine, _) = Machine::restored(ActiveSide::Source, false, false, false, false, false);
    let go = |machine: &mut Machine, input: Input| {
        machine.handle(input).unwrap();
        machine.phase()
    };
    go(&mut machine, Input::Start);
    assert_eq!(go(&mut machine, Input::Prechecked(true)), Phase::Snapshot);
    assert_eq!(go(&mut machine, Input::Mirror(Seen::CatchingUp)), Phase::CatchingUp);
    assert_eq!(go(&mut machine, Input::Mirror(Seen::Live)), Phase::Mirroring);
    assert_eq!(go(&mut machine, Input::Mirror(Seen::CatchingUp)), Phase::Mirroring);
    assert_eq!(
        go(&mut machine, Input::Switch(SwitchKind::Cutover, SwitchRequest::default())),
        Phase::CuttingOver
    );
    assert_eq!(go(&mut machine, Input::SwitchEnded(Some(SwitchOutcome::Committed))), Phase::CutOver);
    assert!(machine.handle(Input::End(Ending::Abort)).is_err());
    assert_eq!(
        go(&mut machine, Input::Switch(SwitchKind::Rollback, SwitchRequest::default())),
        Phase::RollingBack
    );
    assert_eq!(go(&mut machine, Input::SwitchEnded(Some(SwitchOutcome::Committed))), Phase::Mirroring);
    go(&mut machine, Input::End(Ending::Finish));
    assert_eq!(go(&mut machine, Input::Ended(true)), Phase::Finished);
}

#[test]
fn a_restart_goes_on_where_it_was() {
    let (machine, outputs) = Machine::restored(ActiveSide::Destination, true, true, false, false, false);
    assert_eq!(machine.phase(), Phase::CutOver);
    assert_eq!(outputs, [Output::SpawnMirror(Begin::Resume)]);
    let (machine, outputs) = Machine::restored(ActiveSide::Source, true, false, true, false, false);
    assert_eq!(machine.phase(), Phase::Paused);
    assert_eq!(outputs, [Output::SpawnMirror(Begin::Resume), Output::PauseMirror]);
    let (machine, outputs) = Machine::restored(ActiveSide::Source, true, true, false, true, false);
    assert_eq!((machine.phase(), outputs.len()), (Phase::Failed, 0));
    let (machine, _) = Machine::restored(ActiveSide::Destination, true, true, false, false, true);
    assert_eq!(machine.phase(), Phase::Finished);
}

#[test]
fn a_failure_during_a_switch_shows_when_the_switch_has_ended() {
    let (mut machine, _) = Machine::restored(ActiveSide::Source, true, true, false, false, false);
    machine.handle(Input::Mirror(Seen::Live)).unwrap();
    machine.handle(Input::Switch(SwitchKind::Cutover, SwitchRequest::default())).unwrap();
    machine.handle(Input::Mirror(Seen::Failed)).unwrap();
    assert_eq!(machine.phase(), Phase::CuttingOver);
    let outputs = machine.handle(Input::SwitchEnded(Some(SwitchOutcome::Aborted))).unwrap();
    assert_eq!(machine.phase(), Phase::Failed);
    assert!(outputs.contains(&Output::DropMirror));
}

#[test]
fn a_postponed_switch_is_let_through_or_let_go() {
    let (mut machine, _) = Machine::restored(ActiveSide::Source, true, true, false, false, false);
    machine.handle(Input::Mirror(Seen::Live)).unwrap();
    let postpone = SwitchRequest { postpone: true, ..SwitchRequest::default() };
    machine.handle(Input::Switch(SwitchKind::Cutover, postpone)).unwrap();
    assert!(machine.handle(Input::Switch(SwitchKind::Cutover, SwitchRequest::default())).is_err());
    machine.handle(Input::SwitchReady).unwrap();
    assert!(machine.handle(Input::Pause).is_err());
    assert_eq!(
        machine.handle(Input::Switch(SwitchKind::Cutover, SwitchRequest::default())).unwrap(),
        [Output::LetThrough]
    );
    assert_eq!(machine.handle(Input::End(Ending::Abort)).unwrap(), [Output::CancelSwitch]);
}

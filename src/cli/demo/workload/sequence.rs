//! What one writer knows about one thing that it alone changes, step by step: a counter, a list, a log.
//!
//! Every step has a number. A step is *acknowledged* (a reply came), *refused* (an error reply came: it did not
//! happen) or *unknown* (the connection was lost while it was in flight: it may have happened once). From that
//! follows what the thing may contain: every acknowledged step once, no refused one, each unknown one at most once,
//! in the order in which they were sent.

use std::collections::BTreeSet;

/// What is wrong with a thing, in words, with the step that shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// What kind of fault it is.
    pub kind: FaultKind,
    /// The step that it shows at, if it shows at one.
    pub step: Option<u64>,
    /// What was found and what should have been.
    pub text: String,
}

/// The ways in which a data set or a reply can be wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum FaultKind {
    /// Acknowledged, and not there.
    Lost,
    /// There more often than it was sent, or though it was refused.
    Duplicated,
    /// There, but not in the order in which it was sent.
    Reordered,
    /// A reply that does not belong to this command, or an older state than this client has seen.
    WrongReply,
    /// An error reply or a lost connection where none is allowed.
    Error,
}

impl Fault {
    pub(super) fn new(kind: FaultKind, step: Option<u64>, text: impl Into<String>) -> Self {
        Self { kind, step, text: text.into() }
    }
}

/// The steps of one thing.
#[derive(Debug, Clone, Default)]
pub struct Sequence {
    attempts: u64,
    acknowledged: u64,
    unknown: BTreeSet<u64>,
    refused: BTreeSet<u64>,
    /// Unknown outcomes before a total was last reported: that report has settled them.
    settled: u64,
    /// What the last total was above the acknowledged steps: the settled ones that had happened. (Below zero
    /// after a fault, so that one fault is told once.)
    above: i64,
}

impl Sequence {
    /// A thing that does not exist yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// The number of the next step, counted from 1.
    pub fn attempt(&mut self) -> u64 {
        self.attempts += 1;
        self.attempts
    }

    /// Steps sent so far.
    pub fn attempts(&self) -> u64 {
        self.attempts
    }

    /// Steps that a reply came for.
    pub fn acknowledged(&self) -> u64 {
        self.acknowledged
    }

    /// Steps whose outcome nobody knows.
    pub fn unknown(&self) -> u64 {
        self.unknown.len() as u64
    }

    /// The step was lost in flight.
    pub fn lose(&mut self, step: u64) {
        self.unknown.insert(step);
    }

    /// The step was answered with an error.
    pub fn refuse(&mut self, step: u64) {
        self.refused.insert(step);
    }

    /// The step was answered. `total` is the number of steps that the reply says have happened, where it says so.
    ///
    /// # Errors
    /// The total is not one that can be.
    pub fn acknowledge(&mut self, step: u64, total: Option<u64>) -> Result<(), Fault> {
        self.acknowledged += 1;
        let Some(total) = total else { return Ok(()) };
        let checked = self.check_total(Some(step), total);
        self.settled = self.unknown();
        self.above = total as i64 - self.acknowledged as i64;
        checked
    }

    /// Whether `total` steps can have happened by now. `step`: the one just acknowledged.
    ///
    /// # Errors
    /// Too few (lost) or too many (duplicated).
    pub fn check_total(&self, step: Option<u64>, total: u64) -> Result<(), Fault> {
        // what is certain: every acknowledged step, and the settled unknown ones that had happened
        let least = self.acknowledged.saturating_add_signed(self.above);
        let most = least + self.unknown() - self.settled;
        let told = |many: &str| {
            let range = if least == most { least.to_string() } else { format!("{least} to {most}") };
            format!(
                "{many}: the total is {total}, it has to be {range} ({} of unknown outcome)",
                self.unknown()
            )
        };
        if total < least {
            return Err(Fault::new(FaultKind::Lost, step, told("steps are missing")));
        }
        if total > most {
            return Err(Fault::new(FaultKind::Duplicated, step, told("more steps than were sent")));
        }
        Ok(())
    }

    /// Compares the steps that the thing holds at the end, in its own order, with what is known of them.
    pub fn judge(&self, found: &[u64]) -> Vec<Fault> {
        self.judge_with(found, 0)
    }

    /// As [`judge`](Self::judge) where up to `missing` acknowledged steps may be absent (taken out by a reader whose
    /// connection was lost while it took one).
    pub fn judge_with(&self, found: &[u64], missing: u64) -> Vec<Fault> {
        let mut faults = Vec::new();
        let mut seen = BTreeSet::new();
        let mut last = 0;
        for &step in found {
            if !seen.insert(step) {
                faults.push(Fault::new(
                    FaultKind::Duplicated,
                    Some(step),
                    format!("step {step} is there twice"),
                ));
            } else if step == 0 || step > self.attempts || self.refused.contains(&step) {
                let why = if self.refused.contains(&step) { "was refused" } else { "was never sent" };
                let text = format!("step {step} is there and {why}");
                faults.push(Fault::new(FaultKind::Duplicated, Some(step), text));
            } else if step < last {
                let text = format!("step {step} stands behind step {last}");
                faults.push(Fault::new(FaultKind::Reordered, Some(step), text));
            }
            last = last.max(step);
        }
        let absent: Vec<u64> = (1..=self.attempts)
            .filter(|step| {
                !seen.contains(step) && !self.unknown.contains(step) && !self.refused.contains(step)
            })
            .collect();
        if absent.len() as u64 > missing {
            faults.extend(absent.iter().map(|&step| {
                Fault::new(
                    FaultKind::Lost,
                    Some(step),
                    format!("step {step} was acknowledged and is not there"),
                )
            }));
        }
        faults
    }
}

/// The bytes of one token in a log.
pub(super) const TOKEN: usize = 8;

/// What a log gets for a step.
pub(super) fn token(step: u64) -> String {
    format!("{step:07}|")
}

/// The step of a token; 0, which no step has, when it is none.
pub(super) fn parse_token(token: &[u8]) -> u64 {
    match token {
        [digits @ .., b'|'] if digits.len() == 7 => {
            std::str::from_utf8(digits).ok().and_then(|digits| digits.parse().ok()).unwrap_or(0)
        }
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kinds(faults: &[Fault]) -> Vec<FaultKind> {
        faults.iter().map(|fault| fault.kind).collect()
    }

    #[test]
    fn every_total_is_checked_against_what_can_have_happened() {
        let mut steps = Sequence::new();
        for total in 1..=3 {
            let step = steps.attempt();
            assert_eq!(steps.acknowledge(step, Some(total)), Ok(()));
        }
        let step = steps.attempt();
        assert_eq!(steps.acknowledge(step, Some(3)).unwrap_err().kind, FaultKind::Lost);
        let mut steps = Sequence::new();
        let step = steps.attempt();
        assert_eq!(steps.acknowledge(step, Some(2)).unwrap_err().kind, FaultKind::Duplicated);
    }

    #[test]
    fn an_unknown_outcome_may_have_happened_once_and_is_settled_by_the_next_total() {
        for (total, after) in [(2, 3), (1, 2)] {
            let mut steps = Sequence::new();
            let step = steps.attempt();
            steps.lose(step);
            let step = steps.attempt();
            assert_eq!(steps.acknowledge(step, Some(total)), Ok(()));
            let step = steps.attempt();
            assert_eq!(steps.acknowledge(step, Some(after)), Ok(()));
            assert!(steps.check_total(None, after + 1).is_err(), "settled: it cannot happen again");
            assert!(steps.check_total(None, after - 1).is_err());
        }
    }

    #[test]
    fn contents_are_judged_step_by_step() {
        let mut steps = Sequence::new();
        for _ in 0..5 {
            let step = steps.attempt();
            match step {
                2 => steps.lose(step),
                4 => steps.refuse(step),
                _ => steps.acknowledge(step, None).unwrap(),
            }
        }
        assert_eq!(steps.judge(&[1, 3, 5]), []);
        assert_eq!(steps.judge(&[1, 2, 3, 5]), []);
        assert_eq!(kinds(&steps.judge(&[1, 3])), [FaultKind::Lost]);
        assert_eq!(steps.judge_with(&[1, 3], 1), []);
        assert_eq!(kinds(&steps.judge(&[1, 3, 3, 5])), [FaultKind::Duplicated]);
        assert_eq!(kinds(&steps.judge(&[1, 3, 4, 5])), [FaultKind::Duplicated]);
        assert_eq!(kinds(&steps.judge(&[1, 5, 3])), [FaultKind::Reordered]);
    }
}

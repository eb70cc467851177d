//! Which calls may wait at the server, and where they say for how long.

use std::time::Duration;

use super::keys::stream_options;
use super::{Lane, Pin, Spec};

/// In what a timeout is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Unit {
    /// Seconds, with a fraction from Redis 6.0.
    Seconds,
    /// Whole milliseconds.
    Milliseconds,
}

/// A call that may wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Blocking {
    /// The argument that holds the timeout; 0 in it means for ever.
    pub timeout_arg: usize,
    /// In what it is counted.
    pub unit: Unit,
}

impl Blocking {
    /// The timeout of the call: `None` inside when it waits for ever, `None` outside when it is no number that
    /// the server would take.
    pub fn timeout<A: AsRef<[u8]>>(&self, args: &[A]) -> Option<Option<Duration>> {
        let text = std::str::from_utf8(args.get(self.timeout_arg)?.as_ref()).ok()?;
        let wait = match self.unit {
            Unit::Milliseconds => Duration::from_millis(text.parse().ok()?),
            // Refuses what is negative, infinite or beyond the range of a Duration.
            Unit::Seconds => Duration::try_from_secs_f64(text.parse().ok()?).ok()?,
        };
        Some(if wait.is_zero() { None } else { Some(wait) })
    }

    /// How to write that `left` of the timeout is left. Never 0, which would mean for ever.
    pub fn text(&self, left: Duration) -> String {
        match self.unit {
            Unit::Milliseconds => left.as_millis().max(1).to_string(),
            Unit::Seconds => {
                let millis = left.as_millis().max(1);
                format!("{}.{:03}", millis / 1000, millis % 1000)
            }
        }
    }
}

/// Where a command keeps its timeout.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rule {
    Last(Unit),
    At(u8, Unit),
    /// Behind the word BLOCK, which is optional.
    AfterBlock,
}

/// Whether this call may wait at the server, and where its timeout stands.
pub fn blocking_form<A: AsRef<[u8]>>(spec: &Spec, args: &[A]) -> Option<Blocking> {
    let (timeout_arg, unit) = match spec.blocks? {
        Rule::Last(unit) => (args.len().checked_sub(1)?, unit),
        Rule::At(index, unit) => (usize::from(index), unit),
        Rule::AfterBlock => (stream_options(args).1?, Unit::Milliseconds),
    };
    (timeout_arg > 0 && timeout_arg < args.len()).then_some(Blocking { timeout_arg, unit })
}

/// Whether a lane is one of a command that waits.
pub fn waits(lane: Lane) -> bool {
    matches!(lane, Lane::Pinned(Pin::Blocking | Pin::Wait))
}

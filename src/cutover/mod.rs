//! The switch: from the server that is active to the other one, and back by the same code.
//!
//! ```text
//!          traffic runs            |            nothing runs            |  traffic runs
//!  prepare ── (postponed) ── close gate ─ drain clients ─ fence ─ drain mirror ─ COMMIT ─ open gate ─ release
//!        everything up to here is undone by any surprise: the old side goes on ──┘  └── and this always runs to its end
//! ```
//!
//! What it guarantees:
//!
//! * *One line decides.* Before the commit line any surprise reopens the gate on the old side with nothing changed; the last
//!   thing asked for is a sign of life of the new side. Past the line the switch always runs to its end, after a crash too: it
//!   holds the new active side and the position at which the mirror towards the old side begins, and one write to the disk
//!   makes both true at once.
//! * *Nothing is lost.* At the commit no command is in flight, no writer that bypasses the gateway can write to the old
//!   side, and the new side has applied the last byte of the old side's stream: equality of offsets, not silence.
//! * *Clients wait, they do not fail.* From the closing of the gate to the commit a budget is kept (`max_pause`); when
//!   it runs out, the switch is given up.
//!
//! [`verdict`] decides whether a switch may begin; [`switch`] runs the steps over anything that can do them
//! ([`switch::Parts`]); [`live`] does them for real; the tests run the same steps over a simulated world with seeds.

pub mod failpoint;
mod fence;
pub mod live;
mod own;
pub mod switch;
pub mod verdict;

#[cfg(test)]
mod simulation;

use serde::Serialize;

use crate::migration::status::{Finding, SwitchKind};

pub use switch::Order;
pub use verdict::{Facts, Limits, Verdict};

/// What would be done, or what is kept ready: the answer to `--dry-run` and to `--postpone`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Plan {
    /// Which way.
    pub kind: SwitchKind,
    /// Everything up to the gate is done and kept ready; the next request lets it through.
    pub postponed: bool,
    /// May it begin?
    #[serde(flatten)]
    pub verdict: Verdict,
    /// Everything that was looked at.
    pub findings: Vec<Finding>,
    /// The steps, in words.
    pub steps: Vec<String>,
    /// The longest pause that clients would see before the switch is given up.
    pub max_pause_ms: f64,
}

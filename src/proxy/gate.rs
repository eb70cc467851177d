//! The gate: how the control side and the workers speak during a switch.
//!
//! ```text
//!  prepare      connections to the other side are opened; traffic runs
//!  close_gate   no worker hands out another command; what arrives is kept
//!  drain        everything handed out has been answered; blocked commands are recalled
//!  arm          (past the commit) sessions with connection state stand ready on the new side
//!  open_gate    kept commands leave, to the side that is now active
//! ```
//!
//! Each step is one request to every worker and one answer from each. A worker answers `drain` only when
//! the queues of its lanes are empty and no session has anything in flight, so after the answers no
//! command of any client is being executed anywhere. `arm` is answered by all before `open_gate` goes to any:
//! a subscriber on one worker stands on the new side before a publisher on another may publish there.

use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::Active;

/// What `prepare` did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PrepareReport {
    /// Lanes that stand ready on the other side.
    pub lanes: usize,
    /// Connections for sessions with state.
    pub pinned: usize,
}

/// What `drain` found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DrainReport {
    /// Blocked commands that were recalled and will be issued again.
    pub recalled: usize,
    /// Open transactions that will be replayed.
    pub transactions: usize,
}

/// What happened when the gate was opened.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OpenReport {
    /// Commands that had waited.
    pub held_commands: u64,
    /// The longest time that one of them had waited.
    pub max_hold: Duration,
}

/// A request to one worker; dropped senders mean that the worker is gone.
#[derive(Debug)]
pub(super) enum Request {
    Prepare { to: Active, deadline: Instant, answer: oneshot::Sender<Result<PrepareReport, String>> },
    Close { answer: oneshot::Sender<()> },
    Drain { deadline: Instant, answer: oneshot::Sender<Result<DrainReport, String>> },
    Arm { active: Active, deadline: Instant, answer: oneshot::Sender<Result<(), String>> },
    Open { active: Active, epoch: u64, answer: oneshot::Sender<OpenReport> },
    Shutdown { deadline: Instant, answer: oneshot::Sender<()> },
}

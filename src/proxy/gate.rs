//! The gate: how the control side and the workers speak during a switch.
//!
//! ```text
//!  prepare      connections to the other side are opened; traffic runs
//!  close_gate   no worker hands out another command; what arrives is kept
//!  drain        everything handed out has been answered; blocked commands are recalled
//!  hear         what that has published has come to the subscribers
//!  connect      (past the commit) sessions with connection state get their connections to the new side
//!  arm          (past the commit) sessions with connection state stand ready on the new side
//!  open_gate    kept commands leave, to the side that is now active
//! ```
//!
//! Each step is one request to every worker and one answer from each. A worker answers `drain` only when
//! the queues of its lanes are empty and no session has anything in flight, so after the answers no
//! command of any client is being executed anywhere. `hear` comes after the answers of all: what a publisher on one
//! worker has published may still be on its way to a subscriber on another. `connect` comes before `arm`: the state of one
//! client may name the new connection of another. `arm` is answered by all before `open_gate`
//! goes to any: a subscriber on one worker stands on the new side before a publisher on another may publish there.

use std::cmp::Reverse;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::Active;
use crate::command::{self, Kind, flags};

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

/// A command in flight.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Busy {
    /// The command that its client sent last, in lower case.
    pub command: &'static str,
    /// Address and id of the client.
    pub client: String,
    /// How long it has been in flight, to a tenth of a second.
    pub age: Duration,
}

impl Busy {
    /// The likeliest to hold up a server first: scripts, then what takes more than constant time, each by age. Which
    /// one a server is busy with only the server knows, and it does not answer.
    pub(super) fn sort(all: &mut [Busy]) {
        all.sort_by_cached_key(|busy| {
            let rank = match command::lookup(busy.command.as_bytes()) {
                Some(spec) if spec.kind == Kind::Script => 0,
                Some(spec) if spec.kind == Kind::Transaction || spec.has(flags::FAST) => 2,
                _ => 1,
            };
            (rank, Reverse(busy.age))
        });
    }

    /// Up to five of them, for a person; `None` when there is none.
    pub fn name(all: &[Busy]) -> Option<String> {
        let named = all.iter().take(5).map(|busy| {
            let (command, age) = (busy.command.to_ascii_uppercase(), busy.age.as_secs_f64());
            format!("{command} of client {}, in flight for {age:.1} s", busy.client)
        });
        let named: Vec<String> = named.collect();
        (!named.is_empty()).then(|| named.join("; "))
    }
}

/// The active server cannot be reached, and clients' commands wait for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Away {
    pub(super) side: Active,
    /// Clients that wait.
    pub(super) clients: usize,
}

/// Why a worker is not drained.
#[derive(Debug)]
pub(super) enum Undrained {
    /// Something did not come to its end in time.
    Late(&'static str),
    /// What waits for a server that is away does not come to its end by waiting.
    Away(Away),
}

/// A request to one worker; dropped senders mean that the worker is gone.
#[derive(Debug)]
pub(super) enum Request {
    Prepare { to: Active, deadline: Instant, answer: oneshot::Sender<Result<PrepareReport, String>> },
    Busy { answer: oneshot::Sender<Vec<Busy>> },
    Away { answer: oneshot::Sender<Option<Away>> },
    Close { answer: oneshot::Sender<()> },
    Drain { deadline: Instant, answer: oneshot::Sender<Result<DrainReport, Undrained>> },
    Hear { deadline: Instant, answer: oneshot::Sender<Result<(), Undrained>> },
    Connect { active: Active, deadline: Instant, answer: oneshot::Sender<Result<(), String>> },
    Arm { active: Active, deadline: Instant, answer: oneshot::Sender<Result<(), String>> },
    Open { active: Active, epoch: u64, answer: oneshot::Sender<OpenReport> },
    Shutdown { deadline: Instant, answer: oneshot::Sender<()> },
}

//! Named places at which the process can be made to die, for the tests that prove that a switch is wholly done or not
//! at all.
//!
//! Inert unless `CROSSFADE_FAILPOINT` is set when the process starts. Its value is one of these names, optionally with
//! `#N` behind it: die at the N-th visit (1 when absent).
//!
//! | name | the process dies |
//! |---|---|
//! | `prepare` | when everything up to the gate is ready |
//! | `close_gate` | when the gate is closed |
//! | `drain_clients` | when no client command is in flight any more |
//! | `fence` | when the fence on the old side stands |
//! | `drain_mirror` | when the new side has applied the last byte |
//! | `before_commit` | when the commit line is about to be written |
//! | `after_commit` | when the commit line is on the disk, and nothing else is done |
//! | `open_gate` | when the clients are on the new side |
//! | `release` | when the old side is released and the mirror towards it runs |
//! | `undo` | when an aborted switch has reopened the gate, and nothing else is undone |

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

struct Armed {
    name: String,
    visits: AtomicU64,
}

static ARMED: OnceLock<Option<Armed>> = OnceLock::new();

/// Reads the environment. Later changes of it have no effect.
pub fn arm() {
    ARMED.get_or_init(|| {
        let value = std::env::var("CROSSFADE_FAILPOINT").ok().filter(|v| !v.is_empty())?;
        let (name, visits) = match value.split_once('#') {
            Some((name, n)) => (name.to_owned(), n.parse().unwrap_or(1)),
            None => (value, 1),
        };
        Some(Armed { name, visits: AtomicU64::new(visits) })
    });
}

/// Dies here when `name` is armed.
pub(super) fn reach(name: &str) {
    if let Some(Some(armed)) = ARMED.get() {
        if armed.name == name && armed.visits.fetch_sub(1, Ordering::Relaxed) == 1 {
            tracing::warn!(name, "dying at a failpoint, as CROSSFADE_FAILPOINT asks");
            std::process::abort();
        }
    }
}

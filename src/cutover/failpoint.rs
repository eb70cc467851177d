//! Named places at which the process can be made to die or to wait, for the tests that prove that a switch is wholly done
//! or not at all, whatever ends at which step.
//!
//! Inert unless one of two variables is set when the process starts. `CROSSFADE_FAILPOINT` is one of these names,
//! optionally with `#N` behind it: die at the N-th visit (1 when absent). `CROSSFADE_STOPS` is a directory: whoever comes
//! to a place whose name is a file there renames it to `NAME.reached` and waits until that is removed, but not for
//! more than ten seconds.
//!
//! | name | the process dies, or waits |
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

use std::path::PathBuf;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::{Instant, sleep};

/// A test that has died does not hold the process for ever.
const LONGEST: Duration = Duration::from_secs(10);

#[derive(Default)]
struct Armed {
    /// Where to die, and after how many visits.
    death: Option<(String, AtomicU64)>,
    /// Where the names of the places to wait at are.
    stops: Option<PathBuf>,
}

static ARMED: OnceLock<Armed> = OnceLock::new();

/// Reads the environment. Later changes of it have no effect.
pub fn arm() {
    ARMED.get_or_init(|| {
        let variable = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
        let death = variable("CROSSFADE_FAILPOINT").map(|value| match value.split_once('#') {
            Some((name, n)) => (name.to_owned(), AtomicU64::new(n.parse().unwrap_or(1))),
            None => (value, AtomicU64::new(1)),
        });
        Armed { death, stops: variable("CROSSFADE_STOPS").map(PathBuf::from) }
    });
}

/// Dies here when `name` is armed; waits here when it is to.
pub(super) async fn reach(name: &str) {
    let Some(armed) = ARMED.get() else { return };
    if let Some((place, visits)) = &armed.death {
        if place == name && visits.fetch_sub(1, Ordering::Relaxed) == 1 {
            tracing::warn!(name, "dying at a failpoint, as CROSSFADE_FAILPOINT asks");
            std::process::abort();
        }
    }
    let Some(stops) = &armed.stops else { return };
    let reached = stops.join(format!("{name}.reached"));
    if std::fs::rename(stops.join(name), &reached).is_ok() {
        let until = Instant::now() + LONGEST;
        while reached.exists() && Instant::now() < until {
            sleep(Duration::from_millis(1)).await;
        }
    }
}

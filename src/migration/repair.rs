//! Copies anew what a comparison found different, from the active side, while the mirror runs.
//!
//! The mirror does it ([`crate::mirror::copying`]): each value is taken at one offset of the stream and written at that place in
//! the order, so clients may go on writing, and what is written meanwhile is neither lost nor there twice. Afterwards the
//! same keys are compared once more.

use std::time::Duration;

use tokio::time::Instant;

use crate::config::OnExistingKey;
use crate::error::Result;
use crate::mirror::{Mirror, Stage, copying};
use crate::server::Endpoint;
use crate::verify::{self, Difference, Kind, Report, VerifyOptions};

/// Keys that are copied together: their values are in memory until they are written.
const TOGETHER: usize = 64;
/// For each of these portions.
const TIMEOUT: Duration = Duration::from_secs(300);

/// Repairs what `report` found, and notes in it how many keys were copied and how many differences are left.
///
/// What cannot be copied stays as it is, and is counted among what is left: function libraries, values above
/// [`copying::LARGEST`] bytes, keys that have no name on the other side, and keys that only the other side has where it may hold keys of its own.
///
/// # Errors
/// A server cannot be reached, or the mirror is not live, or stops over it.
pub(super) async fn run(
    mirror: &Mirror,
    active: &Endpoint,
    other: &Endpoint,
    policy: OnExistingKey,
    options: VerifyOptions,
    report: &mut Report,
) -> Result<()> {
    let mine = |found: &&Difference| match found.kind {
        Kind::Library => false,
        Kind::MissingOnA => policy == OnExistingKey::Fail,
        Kind::MissingOnB | Kind::Type | Kind::Value | Kind::Expiry => true,
    };
    let named = |found: &&Difference| {
        options.map.as_ref().is_none_or(|map| map.place(found.db, &found.raw_key).is_ok())
    };
    let found: Vec<&Difference> = report.differences.iter().filter(mine).filter(named).collect();
    let places: Vec<_> = found.iter().map(|found| (found.db, Box::from(&*found.raw_key))).collect();
    let mut copied = 0;
    for places in places.chunks(TOGETHER) {
        let small = copying::small(active, places).await?;
        copied += small.len() as u64;
        if !small.is_empty() {
            let deadline = Instant::now() + TIMEOUT;
            // It catches up after each portion.
            let mut state = mirror.state();
            let rests = |stage| matches!(stage, Stage::Live | Stage::Failed | Stage::Stopped);
            let _ = tokio::time::timeout_at(deadline, state.wait_for(|state| rests(state.stage))).await;
            mirror.copy_anew(small, deadline).await?;
        }
    }
    let differ = verify::compare_keys(active, other, options, found.into_iter()).await?;
    let untouched = report.difference_count.saturating_sub(places.len() as u64);
    tracing::info!(copied, left = differ + untouched, "copied anew what differed");
    report.repaired = Some(copied);
    report.left = Some(differ + untouched);
    Ok(())
}

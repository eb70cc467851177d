//! The phases of a migration and their durable record.
//!
//! One task, the controller, owns the phase, the record, the mirrors and the data path. Everybody else speaks to it
//! through a [`Handle`]. What may follow what is decided in `machine`, which knows no socket and no clock; what the
//! gateway remembers is in [`record`], and which server is active in [`cell`].

pub mod cell;
mod disk;
mod handle;
pub mod holder;
mod machine;
pub mod record;
pub mod status;

pub use handle::{Handle, SwitchReply, VerifyRequest};

use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::error::Result;

/// Runs the gateway until `shutdown` is cancelled: data path, control API, migration.
///
/// # Errors
/// When it cannot begin: the state directory is in use, an address cannot be bound.
#[allow(clippy::unused_async)]
pub async fn run(config: Config, start_now: bool, shutdown: CancellationToken) -> Result<()> {
    let _ = (config, start_now, shutdown);
    Ok(())
}

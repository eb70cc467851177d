//! The phases of a migration and their durable record.
//!
//! One task, the controller, owns the phase, the record, the mirrors and the data path. Everybody else speaks to it
//! through a [`Handle`]. What may follow what is decided in `machine`, which knows no socket and no clock; what the
//! gateway remembers is in [`record`], and which server is active in [`cell`].

pub mod cell;
mod controller;
mod ending;
mod handle;
pub mod holder;
mod machine;
mod precheck;
mod progress;
pub mod record;
mod repair;
mod run;
pub mod status;
mod switching;

pub use handle::{Handle, ResumeRequest, SwitchReply, VerifyRequest};
pub use run::run;

//! Log set-up; metric handles, their names in one place.
//!
//! Logs go to stderr, as text or as one JSON object a line. A level says who must act: error a person
//! now, warn a person soon, info is the story of the migration, debug is ours. Metrics have no label
//! that holds a key or a client.

mod log;
mod metrics;

pub use log::{LogFormat, init};
pub use metrics::Metrics;

//! `crossfade start`: begin to mirror.

use std::process::ExitCode;

use super::api::Gateway;
use super::{Failure, Global, report};

/// Arguments.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    gateway: Gateway,
}

pub(super) fn run(args: &Args, global: &Global) -> Result<ExitCode, Failure> {
    report::order(
        &args.gateway,
        global,
        "start",
        "The mirror has begun. `crossfade status --watch` shows how far it is.",
    )
}

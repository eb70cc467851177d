//! `crossfade pause`: stop applying to the destination.

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
        "pause",
        "Paused: nothing is applied, the journal keeps receiving. `crossfade resume` goes on.",
    )
}

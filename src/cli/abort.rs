//! `crossfade abort`: end the migration on the source.

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
        "abort",
        "The migration is aborted; clients stay on the source, and the destination keeps its data.",
    )
}

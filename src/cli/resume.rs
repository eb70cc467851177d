//! `crossfade resume`: go on with applying.

use std::process::ExitCode;

use super::api::Gateway;
use super::{Failure, Global, order};
use crate::migration::ResumeRequest;

/// Arguments.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Leave out the commands that failed and stopped the mirror (`status` names them)
    #[arg(long)]
    skip_failed: bool,
    /// Copy the keys of the commands that failed and stopped the mirror anew from the active server
    #[arg(long, conflicts_with = "skip_failed")]
    copy_failed: bool,
    #[command(flatten)]
    gateway: Gateway,
}

pub(super) fn run(args: &Args, global: &Global) -> Result<ExitCode, Failure> {
    let request = ResumeRequest { skip_failed: args.skip_failed, copy_failed: args.copy_failed };
    order::post(&args.gateway, global, "/v1/resume", &request, "Resumed.")
}

//! `crossfade cutover`: switch clients to the destination.

use std::process::ExitCode;

use super::{Failure, Global, switch};
use crate::migration::status::SwitchKind;

/// Arguments.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    switch: switch::Options,
}

pub(super) fn run(args: &Args, global: &Global) -> Result<ExitCode, Failure> {
    switch::run(SwitchKind::Cutover, &args.switch, global)
}

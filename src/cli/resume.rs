//! `crossfade resume`: go on with applying.

use std::process::ExitCode;

use serde_json::json;

use super::api::Gateway;
use super::{Failure, Global, order};

/// Arguments.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    gateway: Gateway,
}

pub(super) fn run(args: &Args, global: &Global) -> Result<ExitCode, Failure> {
    order::post(&args.gateway, global, "/v1/resume", &json!({}), "Resumed.")
}

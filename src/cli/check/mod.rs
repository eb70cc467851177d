//! `crossfade check`: would a migration between these servers work? Changes nothing.
//!
//! [`facts`] asks the servers, [`assess`] judges what they said.

mod assess;
mod facts;

use std::process::ExitCode;

use serde_json::json;

use super::addressing::Addressing;
use super::{Failure, Global, output};
use crate::config;
use crate::migration::status::Level;

/// Arguments.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    addressing: Addressing,
}

pub(super) fn run(args: &Args, global: &Global) -> Result<ExitCode, Failure> {
    let config = config::load(&args.addressing.sources())?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::failed(format!("no connection can be made: {error}")))?;
    let facts = runtime.block_on(facts::gather(&config));
    let findings = assess::assess(&facts, &config);
    let count = |level| findings.iter().filter(|finding| finding.level == level).count();
    let (errors, warnings) = (count(Level::Error), count(Level::Warn));
    if global.json {
        output::json(
            &json!({"ok": errors == 0, "errors": errors, "warnings": warnings, "findings": findings}),
        );
    } else {
        output::line(&output::findings(&findings));
        output::line(&match (errors, warnings) {
            (0, 0) => "\nAll is well. Next: `crossfade run … --start`".to_owned(),
            (0, w) => format!("\nIt will work; {w} thing(s) to know about. Next: `crossfade run … --start`"),
            (e, _) => format!("\nIt will not work like this: {e} error(s). Nothing was changed."),
        });
    }
    Ok(if facts.unreachable() {
        ExitCode::from(3)
    } else if errors > 0 {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

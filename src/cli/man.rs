//! `crossfade man`: the manual page of the program, or of one subcommand.

use std::process::ExitCode;

use clap::CommandFactory;

use super::{Cli, Failure, output};

/// Arguments.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The page of this subcommand instead
    subcommand: Option<String>,
}

pub(super) fn run(args: &Args) -> Result<ExitCode, Failure> {
    let mut command = Cli::command();
    command.build();
    let page = match &args.subcommand {
        None => command,
        Some(name) => command.find_subcommand(name).cloned().ok_or_else(|| {
            Failure::usage(format!("there is no subcommand '{name}'")).remedy("see `crossfade --help`")
        })?,
    };
    let mut text = Vec::new();
    clap_mangen::Man::new(page)
        .render(&mut text)
        .map_err(|error| Failure::failed(format!("the page cannot be written: {error}")))?;
    output::raw(&text);
    Ok(ExitCode::SUCCESS)
}

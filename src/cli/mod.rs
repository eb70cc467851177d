//! The command line: one file per subcommand, but for the bare orders (`order`); output as a table or as JSON.
//!
//! `run`, `check`, `demo`, `completions` and `man` work by themselves; every other subcommand speaks to a running
//! gateway over its control API (`api`). With `--json` exactly one JSON document goes to stdout, also for a
//! failure (`{"error": {side, message, remedy}}`); logs and everything else go to stderr. Exit status: 0 done,
//! 1 refused or failed, 2 wrong usage or configuration, 3 no gateway, or a server, could not be reached.

mod addressing;
mod api;
mod check;
mod completions;
mod cutover;
pub mod demo;
mod failure;
mod man;
mod order;
mod output;
mod report;
mod resume;
mod rollback;
mod run;
mod status;
mod switch;
mod throttle;
mod verify;

use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

pub use failure::Failure;

use crate::telemetry::{self, LogFormat};

/// Moves a live Redis or Valkey to another server while applications keep working, and can move it back.
#[derive(Debug, Parser)]
#[command(
    name = "crossfade",
    version,
    about,
    max_term_width = 110,
    arg_required_else_help = true,
    disable_help_subcommand = true,
    after_help = "Exit status: 0 done; 1 refused or failed, with the reason; 2 wrong usage or configuration; \
                  3 no gateway, or a server, could not be reached."
)]
pub struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// Options of every subcommand.
#[derive(Debug, Clone, Args)]
pub struct Global {
    /// One JSON document on stdout; logs on stderr
    #[arg(long, global = true, help_heading = "Output")]
    pub json: bool,
    /// Log level, or directives as in "info,crossfade::proxy=debug"
    #[arg(
        long,
        global = true,
        env = "CROSSFADE_LOG",
        default_value = "info",
        hide_env_values = true,
        help_heading = "Output"
    )]
    pub log: String,
    /// How a line of the log looks
    #[arg(
        long,
        global = true,
        env = "CROSSFADE_LOG_FORMAT",
        value_enum,
        default_value = "text",
        hide_env_values = true,
        help_heading = "Output"
    )]
    pub log_format: LogFormat,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the gateway: stays in the foreground; SIGTERM drains and exits 0
    Run(run::Args),
    /// Precheck both servers and the configuration; changes nothing
    Check(check::Args),
    /// Begin to mirror: snapshot, catch up, keep in step
    Start(order::Args),
    /// Where it stands
    Status(status::Args),
    /// Compare the two servers
    Verify(verify::Args),
    /// Switch clients to the destination
    Cutover(cutover::Args),
    /// Switch clients back to the source
    Rollback(rollback::Args),
    /// End the migration: stop mirroring, remove the gateway's keys, stay on the active side
    Finish(order::Args),
    /// End the migration on the source: stop mirroring, remove the gateway's keys; the destination keeps its data
    Abort(order::Args),
    /// Stop applying to the destination; the journal keeps receiving
    Pause(order::Args),
    /// Go on with applying to the destination
    Resume(resume::Args),
    /// Change limits while running
    Throttle(throttle::Args),
    /// Two real servers, live checked traffic, copy, cutover, rollback, in one command
    Demo(demo::Args),
    /// Completions for a shell, on stdout
    Completions(completions::Args),
    /// The manual page, on stdout
    Man(man::Args),
}

/// What the binary does: arguments in, exit status out.
#[must_use]
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let global = cli.global;
    if let Err(message) = telemetry::init(global.log_format, &global.log) {
        return Failure::usage(message).report(&global);
    }
    match dispatch(cli.command, &global) {
        Ok(code) => code,
        Err(failure) => failure.report(&global),
    }
}

fn dispatch(command: Command, global: &Global) -> Result<ExitCode, Failure> {
    match command {
        Command::Run(args) => run::run(&args, global),
        Command::Check(args) => check::run(&args, global),
        Command::Start(args) => order::START.run(&args, global),
        Command::Status(args) => status::run(&args, global),
        Command::Verify(args) => verify::run(&args, global),
        Command::Cutover(args) => cutover::run(&args, global),
        Command::Rollback(args) => rollback::run(&args, global),
        Command::Finish(args) => order::FINISH.run(&args, global),
        Command::Abort(args) => order::ABORT.run(&args, global),
        Command::Pause(args) => order::PAUSE.run(&args, global),
        Command::Resume(args) => resume::run(&args, global),
        Command::Throttle(args) => throttle::run(&args, global),
        Command::Demo(args) => {
            demo::run(&args, global.json).map_err(|error| Failure::failed(format!("{error:#}")))
        }
        Command::Completions(args) => Ok(completions::run(&args)),
        Command::Man(args) => man::run(&args),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_arguments_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_public_command_and_flag_exists() {
        for line in [
            "run --config f --listen a --source b --destination c --admin d --state-dir e --name n --start --json",
            "check --source a --destination b --listen c --admin d --state-dir e --name n --json",
            "start --admin a --token t --json",
            "status --watch",
            "status --wait mirroring --timeout 60s --json",
            "verify --repair --sample 10 --rounds 3",
            "cutover --dry-run",
            "cutover --rehearse --max-pause 500ms",
            "cutover --postpone",
            "cutover --force-unverified --json",
            "rollback --dry-run",
            "rollback --rehearse --max-pause 500ms --force-unverified",
            "rollback --postpone",
            "finish",
            "abort",
            "pause",
            "resume --skip-failed",
            "throttle --snapshot-bytes 50MB/s --snapshot-keys 1000/s --mirror-ops off",
            "demo --json --keep",
            "completions bash",
            "man",
        ] {
            let words = std::iter::once("crossfade").chain(line.split(' '));
            Cli::try_parse_from(words).unwrap_or_else(|error| panic!("{line}: {error}"));
        }
    }
}

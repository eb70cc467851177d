//! `crossfade status`: where it stands; once, until a phase is reached, or refreshed.

use std::io::IsTerminal;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::api::Gateway;
use super::{Failure, Global, output, report};
use crate::config::units;
use crate::migration::status::{Phase, Status};

/// Between two looks while waiting for a phase.
const WAIT_INTERVAL: Duration = Duration::from_millis(100);
/// Between two looks with `--watch`.
const WATCH_INTERVAL: Duration = Duration::from_millis(500);

/// Arguments.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Refresh until interrupted
    #[arg(long)]
    watch: bool,
    /// Return when this phase is reached; fail at once when the migration fails
    #[arg(long, value_name = "PHASE")]
    wait: Option<Phase>,
    /// With --wait: fail after this time [default: wait for as long as it takes]
    #[arg(long, value_name = "DURATION", requires = "wait", value_parser = units::parse_duration)]
    timeout: Option<Duration>,
    #[command(flatten)]
    gateway: Gateway,
}

pub(super) fn run(args: &Args, global: &Global) -> Result<ExitCode, Failure> {
    let deadline = args.timeout.map(|timeout| Instant::now() + timeout);
    let screen = Screen::new(args.watch, global);
    loop {
        let status = match args.gateway.status() {
            Ok(status) => status,
            // A gateway that is being started or restarted is what somebody may be waiting for.
            Err(failure) if failure.exit == 3 && deadline.is_some_and(|at| Instant::now() < at) => {
                std::thread::sleep(WAIT_INTERVAL);
                continue;
            }
            Err(failure) => return Err(failure),
        };
        match args.wait {
            Some(wanted) => match waited(&status, wanted, deadline.is_some_and(|at| Instant::now() >= at)) {
                Waited::Reached => {
                    screen.last(&status, global);
                    return Ok(ExitCode::SUCCESS);
                }
                Waited::InVain(failure) => {
                    screen.clear();
                    return Err(failure);
                }
                Waited::NotYet => screen.show(&status, global),
            },
            None if !args.watch => {
                screen.last(&status, global);
                return Ok(ExitCode::SUCCESS);
            }
            None => screen.show(&status, global),
        }
        std::thread::sleep(if args.wait.is_some() { WAIT_INTERVAL } else { WATCH_INTERVAL });
    }
}

#[derive(Debug, PartialEq)]
enum Waited {
    Reached,
    NotYet,
    InVain(Failure),
}

fn waited(status: &Status, wanted: Phase, late: bool) -> Waited {
    if status.phase == wanted {
        return Waited::Reached;
    }
    let failed = match (&status.error, status.phase) {
        (Some(error), Phase::Failed) => {
            let mut failure = Failure::failed(format!("the migration failed: {}", error.message));
            failure.side = error.side;
            failure.remedy = error.remedy.clone();
            Some(failure)
        }
        (None, Phase::Failed) => Some(Failure::failed("the migration failed")),
        (_, Phase::Finished) => {
            Some(Failure::failed(format!("the migration is finished; it does not get to {wanted} any more")))
        }
        _ => None,
    };
    match failed {
        Some(failure) => Waited::InVain(failure),
        None if late => Waited::InVain(
            Failure::failed(format!("still in phase {} when the time for {wanted} was over", status.phase))
                .remedy(report::next(status)),
        ),
        None => Waited::NotYet,
    }
}

/// Where the refreshed status goes: in place on a terminal, one JSON document a line with `--json`, else only changes.
struct Screen {
    refreshed: Option<ProgressBar>,
    every: bool,
}

impl Screen {
    fn new(watch: bool, global: &Global) -> Self {
        let in_place = watch && !global.json && std::io::stdout().is_terminal();
        let refreshed = in_place.then(|| {
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stdout());
            // The template is a constant; should it ever be wrong, the default style shows less but works.
            if let Ok(style) = ProgressStyle::with_template("{msg}") {
                bar.set_style(style);
            }
            bar
        });
        Self { refreshed, every: watch }
    }

    fn show(&self, status: &Status, global: &Global) {
        match &self.refreshed {
            Some(bar) => bar.set_message(report::status(status)),
            None if self.every && global.json => output::json(status),
            None if self.every => output::line(&format!("{}\n", report::status(status))),
            None => {}
        }
    }

    fn last(&self, status: &Status, global: &Global) {
        self.clear();
        if global.json {
            output::json(status);
        } else {
            output::line(&report::status(status));
        }
    }

    fn clear(&self) {
        if let Some(bar) = &self.refreshed {
            bar.finish_and_clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Side;
    use crate::migration::status::ErrorInfo;

    #[test]
    fn waiting_for_a_phase() {
        let mut status = Status { phase: Phase::Snapshot, ..Status::default() };
        assert_eq!(waited(&status, Phase::Mirroring, false), Waited::NotYet);
        let Waited::InVain(failure) = waited(&status, Phase::Mirroring, true) else {
            panic!("the time was over")
        };
        assert!(failure.exit == 1 && failure.message.contains("still in phase snapshot"), "{failure}");
        status.phase = Phase::Mirroring;
        assert_eq!(waited(&status, Phase::Mirroring, true), Waited::Reached);
        status.phase = Phase::Failed;
        status.error = Some(ErrorInfo {
            side: Side::Source,
            message: "gone".into(),
            retry_until: None,
            remedy: Some("x".into()),
        });
        let Waited::InVain(failure) = waited(&status, Phase::Mirroring, false) else { panic!("it failed") };
        assert_eq!((failure.side, failure.remedy.as_deref()), (Side::Source, Some("x")));
        assert_eq!(waited(&status, Phase::Failed, false), Waited::Reached);
    }
}

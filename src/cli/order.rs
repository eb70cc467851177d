//! `crossfade start`, `pause`, `finish` and `abort`: orders that need no more than their name, and are answered with the
//! status.

use std::process::ExitCode;

use serde::Serialize;
use serde_json::json;

use super::api::Gateway;
use super::{Failure, Global, output};

/// Arguments.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    gateway: Gateway,
}

/// An order.
pub(super) struct Order {
    path: &'static str,
    /// What a person reads when it was taken.
    done: &'static str,
}

pub(super) const START: Order = Order {
    path: "/v1/start",
    done: "The mirror has begun. `crossfade status --watch` shows how far it is.",
};

pub(super) const PAUSE: Order = Order {
    path: "/v1/pause",
    done: "Paused: nothing is applied, the journal keeps receiving. `crossfade resume` goes on.",
};

pub(super) const FINISH: Order = Order {
    path: "/v1/finish",
    done: "The migration is finished; the gateway goes on forwarding to the active side.",
};

pub(super) const ABORT: Order = Order {
    path: "/v1/abort",
    done: "The migration is aborted; clients stay on the source, and the destination keeps its data.",
};

impl Order {
    pub(super) fn run(&self, args: &Args, global: &Global) -> Result<ExitCode, Failure> {
        post(&args.gateway, global, self.path, &json!({}), self.done)
    }
}

/// A `POST` that is answered with the status: reports it, or to a person `done`.
pub(super) fn post(
    gateway: &Gateway,
    global: &Global,
    path: &str,
    body: &impl Serialize,
    done: &str,
) -> Result<ExitCode, Failure> {
    let answer = gateway.post(path, body)?;
    if global.json {
        output::json(&answer);
    } else {
        output::line(done);
    }
    Ok(ExitCode::SUCCESS)
}

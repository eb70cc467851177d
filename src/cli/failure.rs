//! Why a command did not do what it was asked, with the exit status that says so.

use std::process::ExitCode;

use serde_json::json;

use super::{Global, output};
use crate::config::ConfigError;
use crate::{Error, Side};

/// What went wrong, on which side, what to do, and the exit status.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// 1 refused or failed, 2 wrong usage or configuration, 3 not reached.
    pub exit: u8,
    /// On which side.
    pub side: Side,
    /// What happened.
    pub message: String,
    /// What to do.
    pub remedy: Option<String>,
}

impl Failure {
    /// Refused or failed.
    pub fn failed(message: impl Into<String>) -> Self {
        Self { exit: 1, side: Side::Gateway, message: message.into(), remedy: None }
    }

    /// Wrong usage or configuration.
    pub fn usage(message: impl Into<String>) -> Self {
        Self { exit: 2, ..Self::failed(message) }
    }

    /// No gateway, or a server, could be reached.
    pub fn unreachable(side: Side, message: impl Into<String>) -> Self {
        Self { exit: 3, side, ..Self::failed(message) }
    }

    /// Adds what to do.
    #[must_use]
    pub fn remedy(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = Some(remedy.into());
        self
    }

    /// Tells the user; gives the exit status.
    pub fn report(&self, global: &Global) -> ExitCode {
        if global.json {
            let body = json!({"side": self.side, "message": self.message, "remedy": self.remedy});
            output::json(&json!({ "error": body }));
        }
        output::complain(&self.to_string());
        ExitCode::from(self.exit)
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (self.exit, self.side) {
            (2, _) => write!(f, "crossfade: {}", self.message)?,
            (_, side) => write!(f, "crossfade: {side}: {}", self.message)?,
        }
        match &self.remedy {
            Some(remedy) => write!(f, "\n  what to do: {remedy}"),
            None => Ok(()),
        }
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Self { remedy: error.remedy, ..Self::usage(error.message) }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        // A server that could not be reached is a passing fault on its side.
        let away = error.retry && matches!(error.side, Side::Source | Side::Destination);
        let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}")).unwrap_or_default();
        Self {
            exit: if away { 3 } else { 1 },
            side: error.side,
            message: format!("{}{cause}", error.message),
            remedy: error.remedy,
        }
    }
}

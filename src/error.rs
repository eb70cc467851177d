//! The one error type of the library: it says on which side something went wrong, what happened,
//! and what a person can do about it.

use std::fmt;

/// On whose side a fault lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Side {
    /// An application connected to the gateway.
    Client,
    /// The server that the data comes from.
    Source,
    /// The server that the data goes to.
    Destination,
    /// Crossfade itself, its disk or its configuration.
    Gateway,
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Side::Client => "client",
            Side::Source => "source",
            Side::Destination => "destination",
            Side::Gateway => "gateway",
        })
    }
}

/// What a library call answers.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A fault: the side it lies on, what happened, whether trying again can help, and the remedy.
#[derive(Debug)]
pub struct Error {
    /// Whose fault it is.
    pub side: Side,
    /// Whether the same attempt may succeed later without anybody doing anything.
    pub retry: bool,
    /// What happened, as a sentence without a final stop.
    pub message: String,
    /// What a person can do about it.
    pub remedy: Option<String>,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    /// A fault that trying again does not mend.
    pub fn new(side: Side, message: impl Into<String>) -> Self {
        Self { side, retry: false, message: message.into(), remedy: None, source: None }
    }

    /// A fault that may pass by itself: a lost connection, a server that is loading.
    pub fn passing(side: Side, message: impl Into<String>) -> Self {
        Self { retry: true, ..Self::new(side, message) }
    }

    /// Adds what a person can do about it.
    #[must_use]
    pub fn remedy(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = Some(remedy.into());
        self
    }

    /// Adds the error that caused this one.
    #[must_use]
    pub fn because(mut self, cause: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        self.source = Some(cause.into());
        self
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.side, self.message)?;
        if let Some(cause) = &self.source {
            write!(f, ": {cause}")?;
        }
        if let Some(remedy) = &self.remedy {
            write!(f, " ({remedy})")?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_deref().map(|cause| cause as _)
    }
}

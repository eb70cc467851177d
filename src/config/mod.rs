//! The TOML file, its defaults, its checks and its documentation.
//!
//! What the user typed is a [`File`]; what the program uses is a [`Config`]. [`load`] leads from one
//! to the other, and after it there is nothing left to check. Flags win over `CROSSFADE_…` variables
//! of the environment, which win over the file, which wins over the defaults. A wrong configuration is
//! a [`ConfigError`] that names the line, the key and the nearest valid one. Secrets come from the
//! file, from `${ENV}` in it or from a `password_file`; they are never printed.

mod check;
mod file;
mod load;
mod pattern;
pub mod units;

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;

pub use check::is_loopback;
pub use file::{
    FeedChoice, FeedFrom, File, KeyCase, OnConflict, OnError, OnExistingKey, OnUnsupported, SnapshotMethod,
    Throttle, ValueType,
};
pub use pattern::Pattern;

use crate::server::{Endpoint, Secret};

/// `configs/full.toml`: every key with its default and what it is for.
pub const FULL: &str = include_str!("../../configs/full.toml");

/// `configs/minimal.toml`: what a migration needs at least.
pub const MINIMAL: &str = include_str!("../../configs/minimal.toml");

/// A checked configuration.
#[derive(Debug, Clone)]
pub struct Config {
    /// The migration's name.
    pub name: String,
    /// A tag on metrics, alerts and the dashboard; may be empty.
    pub environment: String,
    /// Where the record and the journal live.
    pub state_dir: PathBuf,
    /// What is copied and mirrored.
    pub filter: Filter,
    /// What has another name on the destination.
    pub map: Map,
    /// Which server of the source is read.
    pub feed_from: FeedFrom,
    /// How large the journal of a mirror may become on disk.
    pub journal_bytes: Option<u64>,
    /// Where applications connect.
    pub listen: Listen,
    /// The server that the data comes from.
    pub source: Endpoint,
    /// The server that the data goes to; without one the gateway only forwards.
    pub destination: Option<Endpoint>,
    /// How connections to either server are treated.
    pub server: Connection,
    /// The control API.
    pub admin: Admin,
    /// The mirror.
    pub mirror: Mirror,
    /// The snapshot.
    pub snapshot: Snapshot,
    /// How fast the copy and the mirror may go, to begin with.
    pub throttle: Throttle,
    /// For how long the gateway tries by itself.
    pub retry: Retry,
    /// The switch.
    pub cutover: Cutover,
    /// The comparison.
    pub verify: Verify,
    /// How often the time is written to the active server, to measure the lag; none: never.
    pub heartbeat: Option<Duration>,
}

/// `[listen]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listen {
    /// `host:port`; port 0 asks the system for a free one.
    pub address: String,
    /// A unix socket beside it.
    pub unix_socket: Option<PathBuf>,
    /// TLS towards applications.
    pub tls: Option<ListenTls>,
    /// Threads of the data path, at least 1.
    pub workers: usize,
    /// Clients at the same time.
    pub max_clients: usize,
    /// Bytes of replies that one client may leave unread before it is closed.
    pub output_buffer_limit: usize,
    /// Bytes of one client's unfinished command.
    pub query_buffer_limit: usize,
    /// Idle clients are closed after this time; none keeps them.
    pub idle_timeout: Option<Duration>,
    /// Silence of a client until the first TCP keepalive probe, the others follow at a third of it; none switches it off.
    pub tcp_keepalive: Option<Duration>,
    /// Whether a client may replicate the active server through the gateway.
    pub allow_replicas: bool,
}

/// `[listen.tls]`: PEM files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListenTls {
    /// Certificate chain.
    pub cert: PathBuf,
    /// Private key.
    pub key: PathBuf,
    /// Clients must show a certificate signed by one of these.
    pub client_ca: Option<PathBuf>,
}

/// `[server]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Connection {
    /// For one attempt to connect, TLS handshake and authentication included.
    pub connect_timeout: Duration,
    /// For how long commands wait for a lost server connection to come back.
    pub reconnect_wait: Duration,
}

/// `[admin]`.
#[derive(Debug, Clone)]
pub struct Admin {
    /// `host:port`; port 0 asks the system for a free one.
    pub address: String,
    /// What a request has to show.
    pub token: Option<Secret>,
}

/// `[mirror]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mirror {
    /// Who witnesses the order of the writes.
    pub feed: FeedChoice,
    /// What happens when the receiving server's data differs.
    pub on_conflict: OnConflict,
    /// What happens when the receiving server refuses for another reason.
    pub on_error: OnError,
    /// Most commands in one transaction.
    pub batch_commands: usize,
    /// Most bytes in one transaction, unless a single command is larger.
    pub batch_bytes: usize,
}

/// `[snapshot]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Snapshot {
    /// What happens when the destination holds a key already.
    pub on_existing_key: OnExistingKey,
    /// What happens to what the destination has no command for.
    pub on_unsupported: OnUnsupported,
    /// How it travels.
    pub method: SnapshotMethod,
    /// Connections to the destination for loading.
    pub connections: usize,
}

/// `[filter]`: what is copied and mirrored.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Filter {
    /// Keys that are copied; none: all of them.
    pub include_keys: Vec<Pattern>,
    /// Keys of these that are not.
    pub exclude_keys: Vec<Pattern>,
    /// Databases that are copied; none: all of them.
    pub databases: Vec<u32>,
    /// Types of values that are copied; none: all of them.
    pub types: Vec<ValueType>,
    /// Commands of the stream that are left out, in lower case.
    pub exclude_commands: Vec<String>,
}

impl Filter {
    /// Whether it leaves anything out.
    pub fn is_set(&self) -> bool {
        *self != Self::default()
    }

    /// Whether it chooses among the keys of a database.
    pub fn has_keys(&self) -> bool {
        !(self.include_keys.is_empty() && self.exclude_keys.is_empty() && self.types.is_empty())
    }

    /// Whether values of a type are copied.
    pub fn keeps_type(&self, kind: ValueType) -> bool {
        self.types.is_empty() || self.types.contains(&kind)
    }

    /// Whether anything of a database is copied.
    pub fn keeps_db(&self, db: u32) -> bool {
        self.databases.is_empty() || self.databases.contains(&db)
    }

    /// Whether a key is copied.
    pub fn keeps(&self, db: u32, key: &[u8]) -> bool {
        let named = |patterns: &[Pattern]| patterns.iter().any(|pattern| pattern.matches(key));
        self.keeps_db(db)
            && (self.include_keys.is_empty() || named(&self.include_keys))
            && !named(&self.exclude_keys)
    }
}

/// `[map]`: what has another name on the destination.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Map {
    /// Databases of the source, and where they go. Others keep their numbers.
    pub databases: BTreeMap<u32, u32>,
    /// What keys begin with at the source, and what they begin with instead. The longest one that fits counts.
    pub prefixes: BTreeMap<String, String>,
    /// What becomes of their letters.
    pub key_case: KeyCase,
}

impl Map {
    /// Whether it gives anything another name.
    pub fn is_set(&self) -> bool {
        *self != Self::default()
    }
}

/// `[retry]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retry {
    /// For lost and refused connections.
    pub connection: Duration,
    /// For everything else that may pass by itself.
    pub other: Duration,
}

/// `[cutover]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cutover {
    /// The longest that clients may be held; after it the switch is aborted.
    pub max_pause: Duration,
    /// The largest lag at which the gate may be closed.
    pub max_lag: Duration,
}

/// `[verify]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verify {
    /// How often a key that differs is looked at again before it counts: it may be on its way.
    pub rounds: u32,
    /// Number of keys to compare; none compares all.
    pub sample: Option<u64>,
}

/// A configuration that cannot be used: what is wrong, where, and what to write instead.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError {
    /// What is wrong, beginning with `file:line` where there is one.
    pub message: String,
    /// What to write instead.
    pub remedy: Option<String>,
}

impl ConfigError {
    fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), remedy: None }
    }

    fn remedy(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = Some(remedy.into());
        self
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        self.remedy.as_ref().map_or(Ok(()), |remedy| write!(f, " ({remedy})"))
    }
}

impl std::error::Error for ConfigError {}

impl From<ConfigError> for crate::Error {
    fn from(error: ConfigError) -> Self {
        let made = Self::new(crate::Side::Gateway, error.message);
        match error.remedy {
            Some(remedy) => made.remedy(remedy),
            None => made,
        }
    }
}

/// Where a configuration comes from. Fields that are set win over the file.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    /// The file; none runs on the defaults and the fields below.
    pub file: Option<PathBuf>,
    /// `listen.address`
    pub listen: Option<String>,
    /// `source.url`
    pub source: Option<String>,
    /// `destination.url`
    pub destination: Option<String>,
    /// `admin.address`
    pub admin: Option<String>,
    /// `admin.token`
    pub token: Option<String>,
    /// `state_dir`
    pub state_dir: Option<PathBuf>,
    /// `name`
    pub name: Option<String>,
}

/// Reads and checks a configuration.
///
/// # Errors
/// Whatever keeps it from being used: see [`ConfigError`].
pub fn load(sources: &Sources) -> Result<Config, ConfigError> {
    let environment = |name: &str| std::env::var(name).ok();
    let mut file = match &sources.file {
        Some(path) => {
            let text = std::fs::read_to_string(path)
                .map_err(|error| ConfigError::new(format!("{}: cannot be read: {error}", path.display())))?;
            load::read(&text, path, &environment)?
        }
        None => File::default(),
    };
    file.overlay(sources);
    check::check(file)
}

impl File {
    /// An empty variable of the environment (as compose files like to pass) says nothing.
    fn overlay(&mut self, sources: &Sources) {
        fn set<T: Clone, U: From<T>>(to: &mut U, from: &Option<T>, empty: impl Fn(&T) -> bool) -> bool {
            match from.clone().filter(|value| !empty(value)) {
                Some(value) => *to = value.into(),
                None => return false,
            }
            true
        }
        let hidden = |text: &Option<String>| text.clone().map(file::Hidden);
        let nothing = |text: &file::Hidden| text.0.is_empty();
        set(&mut self.listen.address, &sources.listen, String::is_empty);
        set(&mut self.source.url, &hidden(&sources.source), nothing);
        set(&mut self.destination.url, &hidden(&sources.destination), nothing);
        set(&mut self.admin.address, &sources.admin, String::is_empty);
        set(&mut self.state_dir, &sources.state_dir, |path: &PathBuf| path.as_os_str().is_empty());
        set(&mut self.name, &sources.name, String::is_empty);
        if set(&mut self.admin.token, &hidden(&sources.token), nothing) {
            self.admin.token_file = None;
        }
    }
}

#[cfg(test)]
mod tests;

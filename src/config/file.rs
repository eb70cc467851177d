//! What the user typed: the TOML file, key by key, with the documented defaults.
//!
//! Nothing here is checked beyond its type; [`Config`](super::Config) is what the program uses.
//! `configs/full.toml` names every key that stands here; a test holds the two together.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::pattern::Pattern;
use super::units;

/// The whole file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct File {
    pub(super) name: String,
    pub(super) environment: String,
    pub(super) state_dir: PathBuf,
    pub(super) state: State,
    pub(super) listen: Listen,
    pub(super) source: Source,
    pub(super) destination: Server,
    pub(super) server: Connection,
    pub(super) admin: Admin,
    pub(super) mirror: Mirror,
    pub(super) snapshot: Snapshot,
    pub(super) throttle: Throttle,
    pub(super) retry: Retry,
    pub(super) filter: Filter,
    pub(super) map: Map,
    pub(super) cutover: Cutover,
    pub(super) shadow: Shadow,
    pub(super) verify: Verify,
    pub(super) alerts: Alerts,
    pub(super) heartbeat: Heartbeat,
}

impl Default for File {
    fn default() -> Self {
        Self {
            name: "crossfade".into(),
            environment: String::new(),
            state_dir: "crossfade-state".into(),
            state: State::default(),
            listen: Listen::default(),
            source: Source::default(),
            destination: Server::default(),
            server: Connection::default(),
            admin: Admin::default(),
            mirror: Mirror::default(),
            snapshot: Snapshot::default(),
            throttle: Throttle::default(),
            retry: Retry::default(),
            filter: Filter::default(),
            map: Map::default(),
            cutover: Cutover::default(),
            shadow: Shadow::default(),
            verify: Verify::default(),
            alerts: Alerts::default(),
            heartbeat: Heartbeat::default(),
        }
    }
}

/// `[listen]`: where applications connect.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Listen {
    pub(super) address: String,
    pub(super) unix_socket: Option<PathBuf>,
    pub(super) tls: Option<ListenTls>,
    pub(super) workers: Workers,
    pub(super) max_clients: usize,
    #[serde(with = "units::size")]
    pub(super) output_buffer_limit: u64,
    #[serde(with = "units::size")]
    pub(super) query_buffer_limit: u64,
    #[serde(with = "units::duration")]
    pub(super) idle_timeout: Duration,
    #[serde(with = "units::duration")]
    pub(super) tcp_keepalive: Duration,
    pub(super) allow_replicas: bool,
}

impl Default for Listen {
    fn default() -> Self {
        Self {
            address: "127.0.0.1:6400".into(),
            unix_socket: None,
            tls: None,
            workers: Workers::Auto,
            max_clients: 10_000,
            output_buffer_limit: 1 << 30,
            query_buffer_limit: 1 << 30,
            idle_timeout: Duration::ZERO,
            tcp_keepalive: Duration::from_secs(300),
            allow_replicas: false,
        }
    }
}

/// `[listen.tls]`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct ListenTls {
    pub(super) cert: Option<PathBuf>,
    pub(super) key: Option<PathBuf>,
    pub(super) client_ca: Option<PathBuf>,
}

/// `listen.workers`: a number, or `"auto"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Workers {
    /// Half of the cores, at least one.
    Auto,
    /// Exactly so many.
    Count(u64),
}

impl Serialize for Workers {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Auto => serializer.serialize_str("auto"),
            Self::Count(count) => serializer.serialize_u64(*count),
        }
    }
}

impl<'de> Deserialize<'de> for Workers {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl serde::de::Visitor<'_> for Visitor {
            type Value = Workers;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number of threads or \"auto\"")
            }
            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Workers, E> {
                match text.parse() {
                    Ok(count) => Ok(Workers::Count(count)),
                    Err(_) if text.eq_ignore_ascii_case("auto") => Ok(Workers::Auto),
                    Err(_) => Err(E::invalid_value(serde::de::Unexpected::Str(text), &self)),
                }
            }
            fn visit_i64<E: serde::de::Error>(self, count: i64) -> Result<Workers, E> {
                match u64::try_from(count) {
                    Ok(count) => Ok(Workers::Count(count)),
                    Err(_) => Err(E::invalid_value(serde::de::Unexpected::Signed(count), &self)),
                }
            }
            fn visit_u64<E: serde::de::Error>(self, count: u64) -> Result<Workers, E> {
                Ok(Workers::Count(count))
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

/// Text that is never shown: a password, a token, a URL that may hold one.
#[derive(Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub(super) struct Hidden(pub(super) String);

impl fmt::Debug for Hidden {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl Serialize for Hidden {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str("***")
    }
}

/// `[source]` and `[destination]`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Server {
    pub(super) url: Option<Hidden>,
    pub(super) user: Option<String>,
    pub(super) password: Option<Hidden>,
    pub(super) password_file: Option<PathBuf>,
    pub(super) tls: Option<ServerTls>,
}

/// `[source]`: a server, and what is asked of the source alone.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Source {
    pub(super) url: Option<Hidden>,
    pub(super) user: Option<String>,
    pub(super) password: Option<Hidden>,
    pub(super) password_file: Option<PathBuf>,
    pub(super) tls: Option<ServerTls>,
    pub(super) feed_from: FeedFrom,
}

impl Source {
    /// What it has in common with the destination.
    pub(super) fn server(&self) -> Server {
        Server {
            url: self.url.clone(),
            user: self.user.clone(),
            password: self.password.clone(),
            password_file: self.password_file.clone(),
            tls: self.tls.clone(),
        }
    }
}

/// `source.feed_from`: which server of the source gives the snapshot and the stream.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FeedFrom {
    /// The source itself.
    #[default]
    Primary,
    /// One of its replicas that is in step; the source itself while there is none.
    Replica,
}

/// `[source.tls]` and `[destination.tls]`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct ServerTls {
    pub(super) ca: Option<PathBuf>,
    pub(super) cert: Option<PathBuf>,
    pub(super) key: Option<PathBuf>,
    pub(super) server_name: Option<String>,
}

/// `[server]`: how the gateway treats its connections to either server.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Connection {
    #[serde(with = "units::duration")]
    pub(super) connect_timeout: Duration,
    #[serde(with = "units::duration")]
    pub(super) reconnect_wait: Duration,
}

impl Default for Connection {
    fn default() -> Self {
        Self { connect_timeout: Duration::from_secs(5), reconnect_wait: Duration::from_secs(10) }
    }
}

/// `[admin]`: the control API, metrics and dashboard.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Admin {
    pub(super) address: String,
    pub(super) token: Option<Hidden>,
    pub(super) token_file: Option<PathBuf>,
}

impl Default for Admin {
    fn default() -> Self {
        Self { address: "127.0.0.1:6401".into(), token: None, token_file: None }
    }
}

/// `[mirror]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Mirror {
    pub(super) feed: FeedChoice,
    pub(super) on_conflict: OnConflict,
    pub(super) on_error: OnError,
    pub(super) batch_commands: u64,
    #[serde(with = "units::size")]
    pub(super) batch_bytes: u64,
}

impl Default for Mirror {
    fn default() -> Self {
        Self {
            feed: FeedChoice::Auto,
            on_conflict: OnConflict::Stop,
            on_error: OnError::Stop,
            batch_commands: 512,
            batch_bytes: 256 << 10,
        }
    }
}

/// `mirror.feed`: who witnesses the order of the writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FeedChoice {
    /// The replication stream where the server allows it.
    Auto,
    /// The replication stream, or nothing.
    Stream,
    /// The gateway itself.
    Tap,
}

/// `mirror.on_conflict`: what happens when the receiving server's data differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnConflict {
    /// The mirror stops and names the command; a person decides.
    Stop,
    /// Its keys are copied anew from the active side, at that place in the order.
    #[serde(rename = "copy-key", alias = "copy")]
    Copy,
    /// The command is recorded and left out.
    Skip,
}

/// `mirror.on_error`: what happens when the receiving server refuses a command for another reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnError {
    /// The mirror stops and names the command; a person decides.
    Stop,
    /// The keys that the command changed are copied from the active side, at that place in the order.
    #[serde(rename = "copy-key", alias = "copy")]
    Copy,
    /// The command is recorded and left out.
    Skip,
}

/// `[snapshot]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Snapshot {
    pub(super) on_existing_key: OnExistingKey,
    pub(super) on_unsupported: OnUnsupported,
    pub(super) method: SnapshotMethod,
    pub(super) connections: u64,
}

impl Default for Snapshot {
    fn default() -> Self {
        Self {
            on_existing_key: OnExistingKey::Fail,
            on_unsupported: OnUnsupported::Fail,
            method: SnapshotMethod::Auto,
            connections: 2,
        }
    }
}

/// `[state]`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct State {
    /// 0 is no limit.
    #[serde(with = "units::size")]
    pub(super) max_bytes: u64,
}

/// `snapshot.on_existing_key`: what happens when the destination holds a key already.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnExistingKey {
    /// The migration does not begin unless the destination is empty.
    Fail,
    /// The destination's value stays.
    Keep,
    /// The source's value takes its place.
    Replace,
}

/// `snapshot.on_unsupported`: what happens to what the destination has no command for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnUnsupported {
    /// The copy stops and names it.
    #[default]
    Fail,
    /// It is left out, counted and named.
    Drop,
}

/// `snapshot.method`: how the snapshot travels to the destination.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SnapshotMethod {
    /// An empty destination that lets itself be made a replica loads it as a replica of the gateway; any other by commands.
    #[default]
    Auto,
    /// By commands.
    Commands,
}

/// `[throttle]`: limits a second, and on what the destination may suffer; none where there is none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Throttle {
    /// Bytes of the snapshot that are written to the destination.
    #[serde(with = "units::rate")]
    pub snapshot_bytes: Option<u64>,
    /// Keys of the snapshot.
    #[serde(with = "units::count_rate")]
    pub snapshot_keys: Option<u64>,
    /// Commands of the stream.
    #[serde(with = "units::count_rate")]
    pub mirror_ops: Option<u64>,
    /// Bytes of these commands.
    #[serde(with = "units::rate")]
    pub mirror_bytes: Option<u64>,
    /// What a PING may take the destination.
    #[serde(with = "units::latency_limit")]
    pub max_destination_latency: Option<Duration>,
    /// What the destination may use.
    #[serde(with = "units::memory_limit")]
    pub max_destination_memory: Option<units::MemoryLimit>,
}

/// `[retry]`: for how long the gateway tries by itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Retry {
    #[serde(with = "units::duration")]
    pub(super) connection: Duration,
    #[serde(with = "units::duration")]
    pub(super) other: Duration,
}

impl Default for Retry {
    fn default() -> Self {
        Self { connection: Duration::from_secs(12 * 3600), other: Duration::from_secs(600) }
    }
}

/// `[filter]`: what is left out of the copy.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Filter {
    pub(super) include_keys: Vec<Pattern>,
    pub(super) exclude_keys: Vec<Pattern>,
    pub(super) databases: Vec<u32>,
    pub(super) types: Vec<ValueType>,
    pub(super) exclude_commands: Vec<String>,
}

/// A type of values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ValueType {
    /// Strings, also as counters, bitmaps and HyperLogLogs.
    String,
    /// Lists.
    List,
    /// Sets.
    Set,
    /// Sorted sets, also with coordinates.
    Zset,
    /// Hashes.
    Hash,
    /// Streams.
    Stream,
    /// Everything else: values of modules, vector sets, arrays.
    Module,
}

impl ValueType {
    /// Its name in the configuration, which is what TYPE answers but for [`ValueType::Module`].
    pub fn name(self) -> &'static str {
        match self {
            ValueType::String => "string",
            ValueType::List => "list",
            ValueType::Set => "set",
            ValueType::Zset => "zset",
            ValueType::Hash => "hash",
            ValueType::Stream => "stream",
            ValueType::Module => "module",
        }
    }
}

/// `[map]`: what gets another name on the destination.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Map {
    pub(super) databases: BTreeMap<String, u32>,
    pub(super) prefixes: BTreeMap<String, String>,
    pub(super) key_case: KeyCase,
}

/// What becomes of the letters of a key, those of ASCII.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum KeyCase {
    /// They stay.
    #[default]
    AsIs,
    /// All of them become capitals.
    Upper,
    /// None of them is a capital.
    Lower,
}

/// `[cutover]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Cutover {
    #[serde(with = "units::duration")]
    pub(super) max_pause: Duration,
    #[serde(with = "units::duration")]
    pub(super) max_lag: Duration,
}

impl Default for Cutover {
    fn default() -> Self {
        Self { max_pause: Duration::from_millis(500), max_lag: Duration::from_millis(250) }
    }
}

/// `[shadow]`: reads sent to the destination as well, for comparison.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Shadow {
    pub(super) sample: f64,
}

/// `[verify]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Verify {
    pub(super) rounds: u64,
    pub(super) sample: u64,
}

impl Default for Verify {
    fn default() -> Self {
        Self { rounds: 3, sample: 0 }
    }
}

/// `[alerts]`: whom to call.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Alerts {
    pub(super) webhook: Option<Hidden>,
    pub(super) command: Option<String>,
}

/// `[heartbeat]`: a key written to the source at intervals, to measure the lag end to end.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Heartbeat {
    #[serde(with = "units::duration")]
    pub(super) interval: Duration,
}

impl Default for Heartbeat {
    fn default() -> Self {
        Self { interval: Duration::from_secs(1) }
    }
}

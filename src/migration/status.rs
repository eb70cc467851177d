//! The status document: what `GET /v1/status` and `crossfade status --json` print.
//!
//! The names and the shape are public. Fields may be added, none is renamed or removed.

use std::fmt;
use std::str::FromStr;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use crate::Side;
pub use crate::mirror::Travels;
use crate::mirror::{LagFrom, Throttling};

/// Where the migration stands.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// Commands go to the source; nothing is mirrored yet.
    #[default]
    Forwarding,
    /// The snapshot of the source is being loaded into the destination.
    Snapshot,
    /// The snapshot is in; the stream that piled up meanwhile is being applied.
    CatchingUp,
    /// The destination holds everything and the feed is live.
    Mirroring,
    /// A switch to the destination is running.
    CuttingOver,
    /// Clients are on the destination; the reverse mirror keeps the source in step.
    CutOver,
    /// A switch back to the source is running.
    RollingBack,
    /// An operator stopped the applying; the journal keeps receiving.
    Paused,
    /// The mirror stopped and needs a person; clients are still served.
    Failed,
    /// The migration is over; the gateway forwards to the active side.
    Finished,
}

impl Phase {
    /// Every phase, in the order in which a migration meets them.
    pub const ALL: [Self; 10] = [
        Self::Forwarding,
        Self::Snapshot,
        Self::CatchingUp,
        Self::Mirroring,
        Self::CuttingOver,
        Self::CutOver,
        Self::RollingBack,
        Self::Paused,
        Self::Failed,
        Self::Finished,
    ];

    /// The public name, as it stands in the JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Forwarding => "forwarding",
            Self::Snapshot => "snapshot",
            Self::CatchingUp => "catching-up",
            Self::Mirroring => "mirroring",
            Self::CuttingOver => "cutting-over",
            Self::CutOver => "cut-over",
            Self::RollingBack => "rolling-back",
            Self::Paused => "paused",
            Self::Failed => "failed",
            Self::Finished => "finished",
        }
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Phase {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL.into_iter().find(|phase| phase.name() == text).ok_or_else(|| {
            let names: Vec<_> = Self::ALL.iter().map(|phase| phase.name()).collect();
            format!("no such phase; one of {}", names.join(", "))
        })
    }
}

/// The side that clients are served from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ActiveSide {
    /// The server that the data came from.
    #[default]
    Source,
    /// The server that the data goes to.
    Destination,
}

impl ActiveSide {
    /// The other one.
    #[must_use]
    pub fn other(self) -> Self {
        match self {
            Self::Source => Self::Destination,
            Self::Destination => Self::Source,
        }
    }
}

impl From<ActiveSide> for Side {
    fn from(active: ActiveSide) -> Self {
        match active {
            ActiveSide::Source => Self::Source,
            ActiveSide::Destination => Self::Destination,
        }
    }
}

impl fmt::Display for ActiveSide {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Source => "source",
            Self::Destination => "destination",
        })
    }
}

/// The whole document.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// The migration's name, from the configuration.
    pub name: String,
    /// The environment tag, from the configuration; empty when none is set.
    pub environment: String,
    /// The gateway's version.
    pub version: String,
    /// Where the migration stands.
    pub phase: Phase,
    /// The side that clients are served from.
    pub active: ActiveSide,
    /// How many switches have been committed.
    pub epoch: u64,
    /// What is wrong now, if anything.
    pub error: Option<ErrorInfo>,
    /// Whether a switch back would lose nothing: the reverse mirror is complete, or no switch was made.
    pub rollback_safe: bool,
    /// The gateway's clients.
    pub clients: Clients,
    /// What they send.
    pub traffic: Traffic,
    /// Progress of the snapshot.
    pub snapshot: Snapshot,
    /// The feed and its lag.
    pub mirror: MirrorStatus,
    /// The limits in force, and what they do.
    pub throttle: Throttling,
    /// Every switch that was tried, oldest first.
    pub switches: Vec<SwitchEntry>,
}

/// Counts of clients.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Clients {
    /// Open client connections.
    pub connected: u64,
    /// Those that hold a server connection of their own at the moment.
    pub pinned: u64,
}

/// Counts of commands.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Traffic {
    /// Commands answered since the gateway started.
    pub commands: u64,
    /// Commands per second, over the last second or so.
    pub commands_per_second: f64,
    /// Errors that the gateway itself gave to clients.
    pub errors: u64,
}

/// What was left out: because the destination is too old for it (`snapshot.on_unsupported = "drop"`), or because it failed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dropped {
    /// How much.
    pub count: u64,
    /// The first of it, each with the reason.
    pub named: Vec<String>,
}

/// Progress of the snapshot.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Snapshot {
    /// Keys that the destination has confirmed.
    pub keys_loaded: u64,
    /// Keys in the snapshot as far as it says so, 0 if unknown.
    pub keys_expected: u64,
    /// Bytes of the snapshot read so far.
    pub bytes_read: u64,
    /// Size of the snapshot, 0 while unknown (a diskless transfer does not announce it).
    pub bytes_expected: u64,
    /// Time spent on it so far, or in total once it is complete.
    pub seconds: f64,
    /// How it travels.
    #[serde(default)]
    pub method: Travels,
    /// What was left out, of the snapshot and of the stream behind it.
    #[serde(default)]
    pub dropped: Dropped,
}

/// Which way the mirror runs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MirrorDirection {
    /// From the source to the destination.
    #[default]
    Forward,
    /// From the destination to the source, after a cutover.
    Reverse,
}

/// Who witnesses the order of the writes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Feed {
    /// The active server's own replication stream.
    #[default]
    Stream,
    /// The gateway, for servers that refuse replication.
    Tap,
}

/// The feed and its lag.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct MirrorStatus {
    /// Which way.
    pub direction: MirrorDirection,
    /// By which feed.
    pub feed: Feed,
    /// Last offset of the stream that lies in the journal.
    pub received_offset: u64,
    /// Last offset that the receiving server has confirmed.
    pub applied_offset: u64,
    /// Received but not applied, in bytes.
    pub lag_bytes: u64,
    /// Age of the oldest byte that is not applied, of a heartbeat that is late, or what the last heartbeat took from end to
    /// end, in milliseconds: the largest of them.
    pub lag_ms: f64,
    /// What the lag rests on.
    #[serde(default)]
    pub lag_from: LagFrom,
    /// Time since the last heartbeat came by; none while the lag does not rest on them.
    #[serde(default)]
    pub heartbeat_age_ms: Option<f64>,
    /// Commands applied since the mirror started.
    pub commands_applied: u64,
    /// Commands that the receiving server refused because its data differs.
    pub conflicts: u64,
    /// Commands that were left out (`mirror.on_conflict`, `mirror.on_error`, `resume --skip-failed`).
    #[serde(default)]
    pub skipped: Dropped,
    /// Keys that were copied anew because a command failed.
    #[serde(default)]
    pub copied: u64,
}

/// Something is wrong: where, what, and until when the gateway tries by itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorInfo {
    /// On which side.
    pub side: Side,
    /// What happened.
    pub message: String,
    /// RFC 3339 time until which the gateway keeps trying; none when it does not.
    pub retry_until: Option<String>,
    /// What a person can do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

impl ErrorInfo {
    /// From an error of the library, and the end of its retry window if it has one.
    pub fn new(error: &crate::Error, retry_until: Option<SystemTime>) -> Self {
        Self {
            side: error.side,
            message: error.message.clone(),
            retry_until: retry_until.map(|at| humantime::format_rfc3339_seconds(at).to_string()),
            remedy: error.remedy.clone(),
        }
    }
}

/// Which switch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SwitchKind {
    /// From the source to the destination.
    Cutover,
    /// From the destination to the source.
    Rollback,
}

impl SwitchKind {
    /// The public name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cutover => "cutover",
            Self::Rollback => "rollback",
        }
    }
}

/// How a switch ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SwitchOutcome {
    /// Clients are on the other side.
    Committed,
    /// Nothing changed; `reason` says why.
    Aborted,
    /// All but the commit was done, then undone, on request.
    Rehearsed,
}

impl SwitchOutcome {
    /// The public name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Committed => "committed",
            Self::Aborted => "aborted",
            Self::Rehearsed => "rehearsed",
        }
    }
}

/// One switch: how it ended and what clients saw of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SwitchEntry {
    /// Which way.
    pub kind: SwitchKind,
    /// How it ended.
    pub outcome: SwitchOutcome,
    /// Why it was aborted.
    pub reason: Option<String>,
    /// The epoch after it.
    pub epoch: u64,
    /// From closing the gate to opening it.
    pub pause_ms: f64,
    /// Commands that arrived during the pause and were answered after it.
    pub held_commands: u64,
    /// The longest that one command was held.
    pub max_hold_ms: f64,
    /// Time of each step.
    pub steps_ms: StepTimes,
    /// RFC 3339 time at which it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<String>,
}

/// Milliseconds spent in each step of a switch; 0 for steps that were not reached.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct StepTimes {
    /// Preconditions, connections, reverse feed; traffic runs.
    pub prepare: f64,
    /// Every worker has stopped handing out commands.
    pub close_gate: f64,
    /// Commands in flight are answered.
    pub drain_clients: f64,
    /// Writers that bypass the gateway are held.
    pub fence: f64,
    /// The mirror has applied everything.
    pub drain_mirror: f64,
    /// The new side is on disk and on the destination.
    pub commit: f64,
    /// The gate is open on the active side.
    pub open_gate: f64,
}

impl StepTimes {
    /// The steps in their order, by their public names.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, f64)> {
        [
            ("prepare", self.prepare),
            ("close_gate", self.close_gate),
            ("drain_clients", self.drain_clients),
            ("fence", self.fence),
            ("drain_mirror", self.drain_mirror),
            ("commit", self.commit),
            ("open_gate", self.open_gate),
        ]
        .into_iter()
    }
}

/// What an operator asks of a switch; the body of `POST /v1/cutover` and `POST /v1/rollback`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SwitchRequest {
    /// The budget for the pause; the configured `cutover.max_pause` when none. Text such as `"500ms"`.
    #[serde(with = "crate::config::units::duration_option", skip_serializing_if = "Option::is_none")]
    pub max_pause: Option<Duration>,
    /// Only the plan and the checks.
    pub dry_run: bool,
    /// All but the commit, then back: measures the pause that clients would see.
    pub rehearse: bool,
    /// Everything up to the gate is done and kept ready; a second call lets it through.
    pub postpone: bool,
    /// Go without a comparison of both servers.
    pub force_unverified: bool,
    /// The clients know that part of the data is left out of the copy (`[filter]`), or has other names (`[map]`).
    pub clients_know_the_map: bool,
}

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// As it should be.
    Ok,
    /// It works, but a person should know.
    Warn,
    /// It cannot work like this.
    Error,
}

/// One finding of a precheck or of a switch's dry run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// How bad.
    pub level: Level,
    /// On which side.
    pub side: Side,
    /// What was found.
    pub what: String,
    /// What to do about it.
    pub remedy: Option<String>,
}

impl Finding {
    /// As it should be.
    pub fn ok(side: Side, what: impl Into<String>) -> Self {
        Self { level: Level::Ok, side, what: what.into(), remedy: None }
    }

    /// It works, but a person should know.
    pub fn warn(side: Side, what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { level: Level::Warn, side, what: what.into(), remedy: Some(remedy.into()) }
    }

    /// It cannot work like this.
    pub fn error(side: Side, what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { level: Level::Error, side, what: what.into(), remedy: Some(remedy.into()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phases_have_the_same_name_in_json_and_in_text() {
        for phase in Phase::ALL {
            assert_eq!(serde_json::to_value(phase).unwrap(), phase.name());
            assert_eq!(phase.name().parse::<Phase>().unwrap(), phase);
        }
        assert!("mirrored".parse::<Phase>().is_err());
    }

    #[test]
    fn the_document_has_the_public_shape() {
        let mut status = Status { name: "orders".into(), version: "0.1.0".into(), ..Status::default() };
        status.switches.push(SwitchEntry {
            kind: SwitchKind::Cutover,
            outcome: SwitchOutcome::Committed,
            reason: None,
            epoch: 1,
            pause_ms: 0.0,
            held_commands: 0,
            max_hold_ms: 0.0,
            steps_ms: StepTimes::default(),
            at: None,
        });
        let expected = serde_json::json!({
            "name": "orders", "environment": "", "version": "0.1.0",
            "phase": "forwarding", "active": "source", "epoch": 0, "error": null, "rollback_safe": false,
            "clients": {"connected": 0, "pinned": 0},
            "traffic": {"commands": 0, "commands_per_second": 0.0, "errors": 0},
            "snapshot": {"keys_loaded": 0, "keys_expected": 0, "bytes_read": 0, "bytes_expected": 0, "seconds": 0.0,
                         "method": "commands", "dropped": {"count": 0, "named": []}},
            "mirror": {"direction": "forward", "feed": "stream", "received_offset": 0, "applied_offset": 0,
                       "lag_bytes": 0, "lag_ms": 0.0, "lag_from": "stream", "heartbeat_age_ms": null,
                       "commands_applied": 0, "conflicts": 0,
                       "skipped": {"count": 0, "named": []}, "copied": 0},
            "throttle": {"snapshot_bytes": "off", "snapshot_keys": "off", "mirror_ops": "off", "mirror_bytes": "off",
                         "max_destination_latency": "off", "max_destination_memory": "off", "automatic": null},
            "switches": [{"kind": "cutover", "outcome": "committed", "reason": null, "epoch": 1,
                          "pause_ms": 0.0, "held_commands": 0, "max_hold_ms": 0.0,
                          "steps_ms": {"prepare": 0.0, "close_gate": 0.0, "drain_clients": 0.0, "fence": 0.0,
                                       "drain_mirror": 0.0, "commit": 0.0, "open_gate": 0.0}}]});
        assert_eq!(serde_json::to_value(&status).unwrap(), expected);
        let back: Status = serde_json::from_value(expected).unwrap();
        assert_eq!(back, status);
    }

    #[test]
    fn a_switch_request_takes_the_pause_as_text() {
        let request: SwitchRequest =
            serde_json::from_str(r#"{"max_pause": "250ms", "rehearse": true}"#).unwrap();
        assert_eq!(request.max_pause, Some(Duration::from_millis(250)));
        assert!(request.rehearse && !request.dry_run);
        assert!(serde_json::from_str::<SwitchRequest>(r#"{"max_paus": "250ms"}"#).is_err());
        assert!(serde_json::from_str::<SwitchRequest>("{}").is_ok());
    }
}

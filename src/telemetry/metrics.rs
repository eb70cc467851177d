//! Every metric of the gateway, by name, in one struct.
//!
//! The values come from the [`Status`] document, so a scrape, the dashboard and `crossfade status`
//! never disagree. The recorder belongs to the struct; there is no process-wide one.

use metrics::{Counter, Gauge, Histogram, Unit, with_local_recorder};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use parking_lot::Mutex;

use crate::migration::status::{ActiveSide, Phase, Status, SwitchKind, SwitchOutcome};

/// Upper bounds of the pause histogram, in seconds; the default budget is 0.5.
const PAUSE_BUCKETS: [f64; 12] = [0.001, 0.0025, 0.005, 0.01, 0.015, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0];

/// The handles.
pub struct Metrics {
    render: PrometheusHandle,
    clients_connected: Gauge,
    clients_pinned: Gauge,
    commands: Counter,
    errors: Counter,
    phase: [Gauge; Phase::ALL.len()],
    active: [Gauge; 2],
    epoch: Gauge,
    failed: Gauge,
    rollback_safe: Gauge,
    snapshot_keys: Gauge,
    snapshot_keys_expected: Gauge,
    snapshot_bytes: Gauge,
    snapshot_bytes_expected: Gauge,
    received_offset: Gauge,
    applied_offset: Gauge,
    lag_bytes: Gauge,
    lag_seconds: Gauge,
    heartbeat_age_seconds: Gauge,
    commands_applied: Counter,
    conflicts: Counter,
    skipped: Counter,
    copied: Counter,
    switches: Vec<(SwitchKind, SwitchOutcome, Counter)>,
    pause: Histogram,
    hold: Histogram,
    /// How many entries of the switch history have been counted; none before the first look, because what the
    /// record held at the start happened in an earlier process.
    counted: Mutex<Option<usize>>,
}

impl std::fmt::Debug for Metrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

impl Metrics {
    /// Handles whose every sample carries the labels `name` and, unless empty, `environment`.
    pub fn new(name: &str, environment: &str) -> Self {
        let mut builder = PrometheusBuilder::new().add_global_label("name", name);
        if !environment.is_empty() {
            builder = builder.add_global_label("environment", environment);
        }
        // Both fail for an empty list of buckets only.
        for histogram in ["crossfade_switch_pause_seconds", "crossfade_switch_max_hold_seconds"] {
            builder = match builder.set_buckets_for_metric(Matcher::Full(histogram.into()), &PAUSE_BUCKETS) {
                Ok(builder) => builder,
                Err(error) => unreachable!("{PAUSE_BUCKETS:?} is not empty: {error}"),
            };
        }
        let recorder = builder.build_recorder();
        let render = recorder.handle();
        with_local_recorder(&recorder, || Self::registered(render))
    }

    fn registered(render: PrometheusHandle) -> Self {
        let gauge = |name: &'static str, unit: Unit, text: &'static str| {
            metrics::describe_gauge!(name, unit, text);
            metrics::gauge!(name)
        };
        let counter = |name: &'static str, unit: Unit, text: &'static str| {
            metrics::describe_counter!(name, unit, text);
            metrics::counter!(name)
        };
        let histogram = |name: &'static str, text: &'static str| {
            metrics::describe_histogram!(name, Unit::Seconds, text);
            metrics::histogram!(name)
        };
        metrics::describe_gauge!("crossfade_phase", "1 for the phase that the migration is in");
        metrics::describe_gauge!("crossfade_active", "1 for the side that clients are served from");
        metrics::describe_counter!("crossfade_switches_total", "Switches by kind and outcome");
        let mut switches = Vec::new();
        for kind in [SwitchKind::Cutover, SwitchKind::Rollback] {
            for outcome in [SwitchOutcome::Committed, SwitchOutcome::Aborted, SwitchOutcome::Rehearsed] {
                let labels = [("kind", kind.name()), ("outcome", outcome.name())];
                let counter = metrics::counter!("crossfade_switches_total", &labels);
                counter.absolute(0);
                switches.push((kind, outcome, counter));
            }
        }
        Self {
            render,
            clients_connected: gauge("crossfade_clients_connected", Unit::Count, "Open client connections"),
            clients_pinned: gauge(
                "crossfade_clients_pinned",
                Unit::Count,
                "Clients that hold a server connection of their own",
            ),
            commands: counter("crossfade_commands_total", Unit::Count, "Commands answered"),
            errors: counter(
                "crossfade_errors_total",
                Unit::Count,
                "Errors that the gateway itself gave to clients",
            ),
            phase: Phase::ALL.map(|phase| metrics::gauge!("crossfade_phase", "phase" => phase.name())),
            active: [ActiveSide::Source, ActiveSide::Destination]
                .map(|side| metrics::gauge!("crossfade_active", "side" => side.to_string())),
            epoch: gauge("crossfade_epoch", Unit::Count, "Committed switches"),
            failed: gauge("crossfade_error", Unit::Count, "1 while the status holds an error"),
            rollback_safe: gauge(
                "crossfade_rollback_safe",
                Unit::Count,
                "1 while a switch back would lose nothing",
            ),
            snapshot_keys: gauge(
                "crossfade_snapshot_keys_loaded",
                Unit::Count,
                "Keys of the snapshot loaded",
            ),
            snapshot_keys_expected: gauge(
                "crossfade_snapshot_keys_expected",
                Unit::Count,
                "Keys in the snapshot, 0 while unknown",
            ),
            snapshot_bytes: gauge("crossfade_snapshot_read_bytes", Unit::Bytes, "Bytes of the snapshot read"),
            snapshot_bytes_expected: gauge(
                "crossfade_snapshot_expected_bytes",
                Unit::Bytes,
                "Size of the snapshot, 0 while unknown",
            ),
            received_offset: gauge(
                "crossfade_mirror_received_offset",
                Unit::Bytes,
                "Last offset of the stream in the journal",
            ),
            applied_offset: gauge(
                "crossfade_mirror_applied_offset",
                Unit::Bytes,
                "Last offset that the receiving server confirmed",
            ),
            lag_bytes: gauge("crossfade_mirror_lag_bytes", Unit::Bytes, "Received but not applied"),
            lag_seconds: gauge(
                "crossfade_mirror_lag_seconds",
                Unit::Seconds,
                "Age of the oldest byte that is not applied, or the lag of the last heartbeat",
            ),
            heartbeat_age_seconds: gauge(
                "crossfade_mirror_heartbeat_age_seconds",
                Unit::Seconds,
                "Time since the last heartbeat came by, NaN without heartbeats",
            ),
            commands_applied: counter(
                "crossfade_mirror_commands_applied_total",
                Unit::Count,
                "Commands applied to the receiving server",
            ),
            conflicts: counter(
                "crossfade_mirror_conflicts_total",
                Unit::Count,
                "Commands refused because the data differs",
            ),
            skipped: counter(
                "crossfade_mirror_skipped_total",
                Unit::Count,
                "Commands left out because the receiving server did not run them",
            ),
            copied: counter(
                "crossfade_mirror_keys_copied_total",
                Unit::Count,
                "Keys copied anew because a command on them failed",
            ),
            switches,
            pause: histogram("crossfade_switch_pause_seconds", "From closing the gate to opening it"),
            hold: histogram(
                "crossfade_switch_max_hold_seconds",
                "The longest that a switch held one command",
            ),
            counted: Mutex::new(None),
        }
    }

    /// Takes the values over.
    pub fn observe(&self, status: &Status) {
        let flag = |on: bool| if on { 1.0 } else { 0.0 };
        self.clients_connected.set(status.clients.connected as f64);
        self.clients_pinned.set(status.clients.pinned as f64);
        self.commands.absolute(status.traffic.commands);
        self.errors.absolute(status.traffic.errors);
        for (gauge, phase) in self.phase.iter().zip(Phase::ALL) {
            gauge.set(flag(phase == status.phase));
        }
        for (gauge, side) in self.active.iter().zip([ActiveSide::Source, ActiveSide::Destination]) {
            gauge.set(flag(side == status.active));
        }
        self.epoch.set(status.epoch as f64);
        self.failed.set(flag(status.error.is_some()));
        self.rollback_safe.set(flag(status.rollback_safe));
        self.snapshot_keys.set(status.snapshot.keys_loaded as f64);
        self.snapshot_keys_expected.set(status.snapshot.keys_expected as f64);
        self.snapshot_bytes.set(status.snapshot.bytes_read as f64);
        self.snapshot_bytes_expected.set(status.snapshot.bytes_expected as f64);
        self.received_offset.set(status.mirror.received_offset as f64);
        self.applied_offset.set(status.mirror.applied_offset as f64);
        self.lag_bytes.set(status.mirror.lag_bytes as f64);
        self.lag_seconds.set(status.mirror.lag_ms / 1000.0);
        self.heartbeat_age_seconds.set(status.mirror.heartbeat_age_ms.map_or(f64::NAN, |ms| ms / 1000.0));
        self.commands_applied.absolute(status.mirror.commands_applied);
        self.conflicts.absolute(status.mirror.conflicts);
        self.skipped.absolute(status.mirror.skipped.count);
        self.copied.absolute(status.mirror.copied);

        let mut counted = self.counted.lock();
        let from = counted.replace(status.switches.len()).unwrap_or(status.switches.len());
        for entry in status.switches.iter().skip(from) {
            for (kind, outcome, counter) in &self.switches {
                if (*kind, *outcome) == (entry.kind, entry.outcome) {
                    counter.increment(1);
                }
            }
            self.pause.record(entry.pause_ms / 1000.0);
            self.hold.record(entry.max_hold_ms / 1000.0);
        }
    }

    /// The exposition text, after [`Self::observe`].
    pub fn render(&self) -> String {
        self.render.run_upkeep();
        self.render.render()
    }

    /// Moves samples into their buckets; called every few seconds so that memory stays flat unscraped.
    pub fn upkeep(&self) {
        self.render.run_upkeep();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::migration::status::{StepTimes, SwitchEntry};

    fn entry(pause_ms: f64) -> SwitchEntry {
        SwitchEntry {
            kind: SwitchKind::Cutover,
            outcome: SwitchOutcome::Committed,
            reason: None,
            epoch: 1,
            pause_ms,
            held_commands: 3,
            max_hold_ms: pause_ms,
            steps_ms: StepTimes::default(),
            at: None,
        }
    }

    #[test]
    fn names_labels_and_buckets() {
        let metrics = Metrics::new("orders", "production");
        let mut status = Status { phase: Phase::Mirroring, ..Status::default() };
        status.traffic.commands = 7;
        status.mirror.lag_ms = 1.5;
        status.switches.push(entry(900.0));
        metrics.observe(&status);
        status.switches.push(entry(12.0));
        metrics.observe(&status);
        metrics.observe(&status);
        let text = metrics.render();
        let labels = r#"name="orders",environment="production""#;
        for line in [
            format!("crossfade_commands_total{{{labels}}} 7"),
            format!("crossfade_mirror_lag_seconds{{{labels}}} 0.0015"),
            format!(r#"crossfade_phase{{{labels},phase="mirroring"}} 1"#),
            format!(r#"crossfade_phase{{{labels},phase="failed"}} 0"#),
            format!(r#"crossfade_active{{{labels},side="source"}} 1"#),
            format!(r#"crossfade_switches_total{{{labels},kind="cutover",outcome="committed"}} 1"#),
            format!(r#"crossfade_switch_pause_seconds_bucket{{{labels},le="0.01"}} 0"#),
            format!(r#"crossfade_switch_pause_seconds_bucket{{{labels},le="0.015"}} 1"#),
            format!(r#"crossfade_switch_pause_seconds_count{{{labels}}} 1"#),
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is missing in\n{text}");
        }
        for line in text.lines().filter(|line| !line.starts_with('#') && !line.is_empty()) {
            assert!(line.starts_with("crossfade_"), "{line}");
        }
    }

    #[test]
    fn a_recorder_of_its_own() {
        let (one, two) = (Metrics::new("a", ""), Metrics::new("b", ""));
        one.observe(&Status::default());
        two.observe(&Status::default());
        assert!(one.render().contains("name=\"a\"") && !one.render().contains("name=\"b\""));
    }
}

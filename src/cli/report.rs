//! The status and the entries of the switch history, for people: what happened, on which side, what to do.

use std::time::Duration;

use super::output;
use crate::config::units;
use crate::migration::status::{
    ActiveSide, MirrorDirection, Phase, Snapshot, Status, SwitchEntry, SwitchKind, SwitchOutcome, Travels,
};
use crate::mirror::LagFrom;

/// What a phase means.
fn meaning(phase: Phase) -> &'static str {
    match phase {
        Phase::Forwarding => "commands go to the source; nothing is mirrored",
        Phase::Snapshot => "the source's snapshot is being loaded into the destination",
        Phase::CatchingUp => "the snapshot is in; what was written meanwhile is being applied",
        Phase::Mirroring => "the destination holds everything and is kept in step",
        Phase::CuttingOver => "clients are being switched to the destination",
        Phase::CutOver => "clients are on the destination; the source is kept in step",
        Phase::RollingBack => "clients are being switched back to the source",
        Phase::Paused => "nothing is applied; the journal keeps receiving",
        Phase::Failed => "the mirror has stopped and needs a person; clients are served",
        Phase::Finished => "the migration is over",
    }
}

/// What a person can do next.
pub(super) fn next(status: &Status) -> &'static str {
    match status.phase {
        Phase::Forwarding => "`crossfade start` begins to mirror.",
        Phase::Snapshot | Phase::CatchingUp => "wait: `crossfade status --wait mirroring`.",
        Phase::Mirroring if status.mirror.direction == MirrorDirection::Reverse => {
            "`crossfade rollback` switches back."
        }
        Phase::Mirroring => "`crossfade cutover --dry-run` shows the plan, `crossfade cutover` switches.",
        Phase::CuttingOver | Phase::RollingBack => "wait: it ends by itself, or is undone by itself.",
        Phase::CutOver if status.rollback_safe => {
            "`crossfade finish` ends the migration; `crossfade rollback` switches back."
        }
        Phase::CutOver => "wait until a rollback is safe, or `crossfade finish` to stay.",
        Phase::Paused => "`crossfade resume` goes on.",
        Phase::Failed => "remove the cause above, then `crossfade resume`; or `crossfade abort`.",
        Phase::Finished => "point applications at the active server, then stop the gateway.",
    }
}

/// How far the snapshot is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Progress {
    /// 0 to 1, if it can be known.
    pub(super) fraction: Option<f64>,
    /// Keys per second.
    pub(super) keys_per_second: f64,
    /// Bytes per second.
    pub(super) bytes_per_second: f64,
    /// Time left, if it can be known.
    pub(super) left: Option<Duration>,
}

/// From the counters; by bytes where the size is known, else by keys.
pub(super) fn progress(snapshot: &Snapshot) -> Progress {
    let part = |done: u64, all: u64| (all > 0).then(|| (done as f64 / all as f64).min(1.0));
    let fraction = part(snapshot.keys_loaded, snapshot.keys_expected)
        .or_else(|| part(snapshot.bytes_read, snapshot.bytes_expected));
    let seconds = snapshot.seconds;
    let rate = |amount: u64| if seconds > 0.0 { amount as f64 / seconds } else { 0.0 };
    // The first moments say nothing about the rest.
    let left = fraction
        .filter(|done| *done > 0.001 && seconds >= 0.5)
        .and_then(|done| Duration::try_from_secs_f64(seconds * (1.0 - done) / done).ok());
    Progress {
        fraction,
        keys_per_second: rate(snapshot.keys_loaded),
        bytes_per_second: rate(snapshot.bytes_read),
        left,
    }
}

fn bar(fraction: f64, width: usize) -> String {
    let full = (fraction.clamp(0.0, 1.0) * width as f64).floor() as usize;
    format!("{}{}", "█".repeat(full), "░".repeat(width - full))
}

/// A duration in seconds, minutes or hours.
pub(super) fn span(duration: Duration) -> String {
    match duration.as_secs() {
        s @ 0..=99 => format!("{s} s"),
        s @ 100..=5999 => format!("{} min {} s", s / 60, s % 60),
        s => format!("{} h {} min", s / 3600, s % 3600 / 60),
    }
}

fn snapshot(snapshot: &Snapshot, running: bool) -> String {
    let progress = progress(snapshot);
    let keys = match snapshot.keys_expected {
        0 => format!("{} keys", output::count(snapshot.keys_loaded)),
        all => format!("{} of {} keys", output::count(snapshot.keys_loaded), output::count(all)),
    };
    let rate = format!(
        "{} keys/s, {}/s",
        output::count(progress.keys_per_second as u64),
        units::about(progress.bytes_per_second as u64)
    );
    if !running {
        let how = match snapshot.method {
            Travels::Commands => "by commands",
            Travels::Replication => "as a replica",
        };
        return format!(
            "{keys}, {} in {:.1} s, loaded {how}",
            units::about(snapshot.bytes_read),
            snapshot.seconds
        );
    }
    let mut out = String::new();
    if let Some(fraction) = progress.fraction {
        out.push_str(&format!("{} {:.0} %\n", bar(fraction, 40), (fraction * 100.0).floor()));
    }
    out.push_str(&format!("{keys}, {rate}"));
    if let Some(left) = progress.left {
        out.push_str(&format!(", about {} left", span(left)));
    }
    out
}

/// The whole status.
pub(super) fn status(status: &Status) -> String {
    let mut table = output::table(&[]);
    let mut row = |name: &str, text: String| {
        table.add_row([name.to_owned(), text]);
    };
    row("phase", format!("{} - {}", status.phase, meaning(status.phase)));
    if let Some(error) = &status.error {
        let mut text = format!("{}: {}", error.side, error.message);
        if let Some(remedy) = &error.remedy {
            text.push_str(&format!("\n→ {remedy}"));
        }
        if let Some(until) = &error.retry_until {
            text.push_str(&format!("\nThe gateway tries by itself until {until}."));
        }
        row("ERROR", text);
    }
    row("active", format!("{} (epoch {})", status.active, status.epoch));
    row("clients", format!("{} connected, {} pinned", status.clients.connected, status.clients.pinned));
    row(
        "traffic",
        format!(
            "{} commands, {:.0}/s, {} errors",
            output::count(status.traffic.commands),
            status.traffic.commands_per_second,
            output::count(status.traffic.errors)
        ),
    );
    let loading = status.phase == Phase::Snapshot;
    if loading || status.snapshot.keys_loaded > 0 {
        row("snapshot", snapshot(&status.snapshot, loading));
        let dropped = &status.snapshot.dropped;
        if dropped.count > 0 {
            let more = if dropped.count > dropped.named.len() as u64 { "; …" } else { "" };
            row("left out", format!("{}: {}{more}", output::count(dropped.count), dropped.named.join("; ")));
        }
    }
    if !matches!(status.phase, Phase::Forwarding | Phase::Finished) {
        let way = match status.mirror.direction {
            MirrorDirection::Forward => "source → destination",
            MirrorDirection::Reverse => "destination → source",
        };
        let by = match status.mirror.lag_from {
            LagFrom::Heartbeat => "",
            LagFrom::Stream => "without a heartbeat, ",
        };
        row(
            "mirror",
            format!(
                "{way}, {} behind ({by}{}); {} commands applied, {} conflicts",
                output::ms(status.mirror.lag_ms),
                units::about(status.mirror.lag_bytes),
                output::count(status.mirror.commands_applied),
                output::count(status.mirror.conflicts)
            ),
        );
    }
    let skipped = &status.mirror.skipped;
    if skipped.count > 0 {
        let more = if skipped.count > skipped.named.len() as u64 { "; …" } else { "" };
        row("skipped", format!("{}: {}{more}", output::count(skipped.count), skipped.named.join("; ")));
    }
    if status.active == ActiveSide::Destination {
        let safe = if status.rollback_safe { "safe" } else { "NOT safe: the source would miss writes" };
        row("rollback", safe.into());
    }
    let tag =
        if status.environment.is_empty() { String::new() } else { format!(" ({})", status.environment) };
    let mut out = format!("{}{tag}, gateway {}\n{}", status.name, status.version, output::indented(&table));
    if !status.switches.is_empty() {
        out.push_str(&format!("\n\nSwitches, the latest last:\n{}", history(&status.switches)));
    }
    out.push_str(&format!("\n\nNext: {}", next(status)));
    out
}

fn history(entries: &[SwitchEntry]) -> String {
    let mut table = output::table(&["", "outcome", "epoch", "pause", "longest hold", "held", "at"]);
    let hidden = entries.len().saturating_sub(10);
    for entry in &entries[hidden..] {
        let outcome = match &entry.reason {
            Some(reason) => format!("{}: {reason}", entry.outcome.name()),
            None => entry.outcome.name().to_owned(),
        };
        table.add_row([
            entry.kind.name().to_owned(),
            outcome,
            entry.epoch.to_string(),
            output::ms(entry.pause_ms),
            output::ms(entry.max_hold_ms),
            entry.held_commands.to_string(),
            entry.at.clone().unwrap_or_default(),
        ]);
    }
    let mut out = output::indented(&table);
    if hidden > 0 {
        out.push_str(&format!("\n  ({hidden} older ones: --json shows them all)"));
    }
    out
}

/// One switch that has ended.
pub(super) fn switch(entry: &SwitchEntry) -> String {
    let (here, there) = match entry.kind {
        SwitchKind::Cutover => ("source", "destination"),
        SwitchKind::Rollback => ("destination", "source"),
    };
    let mut out = match entry.outcome {
        SwitchOutcome::Committed => format!("Done: clients are on the {there} (epoch {}).", entry.epoch),
        SwitchOutcome::Rehearsed => {
            format!("Rehearsed: clients are on the {here} as before, nothing has changed.")
        }
        SwitchOutcome::Aborted => format!(
            "Aborted: clients are on the {here} as before, nothing has changed.\n  why: {}",
            entry.reason.as_deref().unwrap_or("no reason was given")
        ),
    };
    out.push_str(&format!(
        "\n  The pause took {}; {} commands were held, none for more than {}.\n",
        output::ms(entry.pause_ms),
        output::count(entry.held_commands),
        output::ms(entry.max_hold_ms)
    ));
    let mut table = output::table(&[]);
    for (step, ms) in entry.steps_ms.iter() {
        table.add_row([step.replace('_', " "), output::ms(ms)]);
    }
    out.push_str(&output::indented(&table));
    out.push_str(match (entry.kind, entry.outcome) {
        (SwitchKind::Cutover, SwitchOutcome::Committed) => {
            "\n\nNext: `crossfade finish` ends the migration; `crossfade rollback` switches back."
        }
        (SwitchKind::Rollback, SwitchOutcome::Committed) => {
            "\n\nNext: `crossfade cutover` tries again; `crossfade abort` ends the migration on the source."
        }
        (_, SwitchOutcome::Rehearsed) => "\n\nNext: the same without --rehearse.",
        (_, SwitchOutcome::Aborted) => "\n\nNext: `crossfade status`; remove the cause, then try again.",
    });
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Side;
    use crate::migration::status::{ErrorInfo, StepTimes};

    fn entry(kind: SwitchKind, outcome: SwitchOutcome) -> SwitchEntry {
        SwitchEntry {
            kind,
            outcome,
            reason: (outcome == SwitchOutcome::Aborted).then(|| "the mirror did not drain".into()),
            epoch: 1,
            pause_ms: 8.25,
            held_commands: 160,
            max_hold_ms: 7.9,
            steps_ms: StepTimes { prepare: 120.0, drain_mirror: 1.5, ..StepTimes::default() },
            at: None,
        }
    }

    #[test]
    fn rate_and_time_left() {
        let half = Snapshot {
            keys_loaded: 500,
            keys_expected: 1000,
            bytes_read: 50,
            bytes_expected: 0,
            seconds: 10.0,
            ..Snapshot::default()
        };
        let progress = progress(&half);
        assert_eq!(progress.fraction, Some(0.5));
        assert_eq!(progress.keys_per_second, 50.0);
        assert_eq!(progress.left, Some(Duration::from_secs(10)));
        let unknown = super::progress(&Snapshot { keys_loaded: 5, seconds: 1.0, ..Snapshot::default() });
        assert_eq!((unknown.fraction, unknown.left), (None, None));
        let bytes = super::progress(&Snapshot {
            bytes_read: 1,
            bytes_expected: 4,
            seconds: 1.0,
            ..Snapshot::default()
        });
        assert_eq!(bytes.fraction, Some(0.25));
        assert_eq!(super::progress(&Snapshot::default()).keys_per_second, 0.0);
    }

    #[test]
    fn bars_and_spans() {
        assert_eq!(bar(0.5, 4), "██░░");
        assert_eq!(bar(7.0, 2), "██");
        assert_eq!(span(Duration::from_secs(75)), "75 s");
        assert_eq!(span(Duration::from_secs(125)), "2 min 5 s");
        assert_eq!(span(Duration::from_secs(7260)), "2 h 1 min");
    }

    #[test]
    fn a_status_for_people() {
        let mut document = Status {
            name: "orders".into(),
            environment: "production".into(),
            version: "0.1.0".into(),
            phase: Phase::Failed,
            ..Status::default()
        };
        document.error = Some(ErrorInfo {
            side: Side::Destination,
            message: "OOM command not allowed".into(),
            retry_until: Some("2026-01-01T00:00:00Z".into()),
            remedy: Some("raise maxmemory".into()),
        });
        document.switches.push(entry(SwitchKind::Cutover, SwitchOutcome::Aborted));
        let text = status(&document);
        for part in [
            "orders (production)",
            "failed - the mirror has stopped",
            "destination: OOM",
            "→ raise maxmemory",
            "2026-01-01T00:00:00Z",
            "aborted: the mirror did not drain",
            "Next: remove the cause above",
        ] {
            assert!(text.contains(part), "{part} is missing in\n{text}");
        }
    }

    #[test]
    fn a_running_snapshot_has_a_bar() {
        let mut document = Status { phase: Phase::Snapshot, ..Status::default() };
        document.snapshot = Snapshot {
            keys_loaded: 250_000,
            keys_expected: 1_000_000,
            bytes_read: 1 << 20,
            bytes_expected: 0,
            seconds: 5.0,
            ..Snapshot::default()
        };
        let text = status(&document);
        assert!(
            text.contains("25 %") && text.contains("50 000 keys/s") && text.contains("about 15 s left"),
            "{text}"
        );
    }

    #[test]
    fn every_phase_says_what_is_next() {
        for phase in Phase::ALL {
            let document = Status { phase, ..Status::default() };
            assert!(status(&document).contains("Next: "), "{phase}");
        }
    }

    #[test]
    fn a_switch_for_people() {
        let text = switch(&entry(SwitchKind::Cutover, SwitchOutcome::Committed));
        assert!(text.contains("clients are on the destination (epoch 1)"), "{text}");
        assert!(text.contains("none for more than 7.90 ms"), "{text}");
        let text = switch(&entry(SwitchKind::Rollback, SwitchOutcome::Aborted));
        assert!(text.contains("on the destination as before") && text.contains("did not drain"), "{text}");
    }
}

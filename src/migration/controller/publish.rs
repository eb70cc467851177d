//! The status document, from what the controller, the mirror and the data path know.

use std::time::Instant;

use super::Controller;
use crate::migration::status::{
    ActiveSide, Clients, Dropped, ErrorInfo, MirrorDirection, MirrorStatus, Snapshot, Status, Traffic,
};
use crate::mirror::Stage;

impl Controller {
    pub(super) fn publish(&mut self) {
        let stats = self.proxy.stats();
        let state = match (&self.running, &self.switching) {
            (Some(running), _) => Some(running.state.borrow().clone()),
            (None, Some(switching)) => Some(switching.state.borrow().clone()),
            (None, None) => self.last.clone(),
        };
        let per_second = self.rate.read(Instant::now(), stats.commands);
        let trouble = state.as_ref().and_then(|state| state.error.as_ref());
        let error = match (&self.failure, trouble, &self.complaint) {
            (Some(failure), ..) => Some(ErrorInfo {
                side: failure.side,
                message: failure.message.clone(),
                retry_until: None,
                remedy: failure.remedy.clone(),
            }),
            (None, Some(trouble), _) if self.machine.mirrors() => Some(ErrorInfo {
                side: trouble.side,
                message: trouble.message.clone(),
                retry_until: trouble.retry_until.map(|at| humantime::format_rfc3339_seconds(at).to_string()),
                remedy: trouble.remedy.clone(),
            }),
            (None, _, complaint) => complaint.clone(),
        };
        let active = self.machine.active();
        let in_step = state.as_ref().is_some_and(|state| state.stage == Stage::Live && state.error.is_none());
        if let Some(state) = state.as_ref().filter(|state| state.snapshot.seconds > 0.0) {
            self.snapshot = state.snapshot;
        }
        let snapshot = self.snapshot;
        let dropped = state
            .as_ref()
            .map(|state| Dropped { count: state.dropped.count, named: state.dropped.named.clone() });
        let dropped = dropped.unwrap_or_default();
        let feed = state.map(|state| MirrorStatus {
            received_offset: state.received,
            applied_offset: state.applied,
            lag_bytes: state.received.saturating_sub(state.applied),
            lag_ms: state.lag_ms,
            lag_from: state.lag_from,
            heartbeat_age_ms: state.heartbeat.map(|at| (at.elapsed().as_secs_f64() * 1000.0).round()),
            commands_applied: state.commands_applied,
            conflicts: state.conflicts,
            skipped: Dropped { count: state.skipped.count, named: state.skipped.named },
            copied: state.copied,
            ..MirrorStatus::default()
        });
        let status = Status {
            throttle: self.limits.status(),
            name: self.config.name.clone(),
            environment: self.config.environment.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            phase: self.machine.phase(),
            active,
            epoch: self.epoch,
            error,
            rollback_safe: active == ActiveSide::Source || (self.machine.mirrors() && in_step),
            clients: Clients { connected: stats.connected as u64, pinned: stats.pinned as u64 },
            traffic: Traffic {
                commands: stats.commands,
                commands_per_second: (per_second * 10.0).round() / 10.0,
                errors: stats.errors,
            },
            snapshot: Snapshot {
                keys_loaded: snapshot.keys_loaded,
                keys_expected: snapshot.keys_expected,
                bytes_read: snapshot.bytes_read,
                bytes_expected: snapshot.bytes_expected,
                seconds: snapshot.seconds,
                method: snapshot.method,
                dropped,
            },
            mirror: MirrorStatus {
                direction: match active {
                    ActiveSide::Source => MirrorDirection::Forward,
                    ActiveSide::Destination => MirrorDirection::Reverse,
                },
                ..feed.unwrap_or_default()
            },
            switches: self.record.switches.clone(),
        };
        self.status.send_if_modified(|shown| {
            let changed = *shown != status;
            *shown = status;
            changed
        });
    }
}

//! Rates, and what the log says while a snapshot is loaded.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::mirror::SnapshotProgress;

/// A counter's rate over the last moments.
#[derive(Debug)]
pub(super) struct Rate {
    window: Duration,
    samples: VecDeque<(Instant, u64)>,
}

impl Rate {
    pub(super) fn over(window: Duration) -> Self {
        Self { window, samples: VecDeque::new() }
    }

    /// Takes a reading and answers the rate per second.
    pub(super) fn read(&mut self, now: Instant, count: u64) -> f64 {
        while self.samples.len() > 1 && now - self.samples[0].0 > self.window {
            self.samples.pop_front();
        }
        self.samples.push_back((now, count));
        let (first, was) = self.samples[0];
        let seconds = (now - first).as_secs_f64();
        if seconds <= 0.0 { 0.0 } else { count.saturating_sub(was) as f64 / seconds }
    }

    pub(super) fn clear(&mut self) {
        self.samples.clear();
    }
}

/// Says now and then how far the snapshot is.
#[derive(Debug)]
pub(super) struct Progress {
    keys: Rate,
    bytes: Rate,
    said: Option<Instant>,
}

impl Progress {
    /// Between two lines.
    const EVERY: Duration = Duration::from_secs(5);

    pub(super) fn new() -> Self {
        let window = Duration::from_secs(10);
        Self { keys: Rate::over(window), bytes: Rate::over(window), said: None }
    }

    pub(super) fn clear(&mut self) {
        self.keys.clear();
        self.bytes.clear();
        self.said = None;
    }

    /// Called several times a second while a snapshot is loaded.
    pub(super) fn look(&mut self, now: Instant, snapshot: &SnapshotProgress) {
        let keys = self.keys.read(now, snapshot.keys_loaded);
        let bytes = self.bytes.read(now, snapshot.bytes_read);
        if now - *self.said.get_or_insert(now) < Self::EVERY {
            return;
        }
        self.said = Some(now);
        let left = remaining(snapshot, keys, bytes)
            .map_or_else(|| "unknown".to_owned(), |left| humantime::format_duration(left).to_string());
        tracing::info!(
            keys = snapshot.keys_loaded,
            of = snapshot.keys_expected,
            keys_per_second = keys.round() as u64,
            mb_per_second = format!("{:.1}", bytes / 1e6),
            left,
            "loading the snapshot"
        );
    }
}

fn remaining(snapshot: &SnapshotProgress, keys: f64, bytes: f64) -> Option<Duration> {
    let left =
        |done: u64, all: u64, rate: f64| (all > done && rate > 0.0).then(|| (all - done) as f64 / rate);
    let seconds = left(snapshot.keys_loaded, snapshot.keys_expected, keys)
        .or_else(|| left(snapshot.bytes_read, snapshot.bytes_expected, bytes))?;
    // A rate near zero promises centuries.
    Duration::try_from_secs_f64(seconds.ceil()).ok().filter(|left| left.as_secs() < 30 * 24 * 3600)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_forgets_what_is_old() {
        let mut rate = Rate::over(Duration::from_secs(2));
        let start = Instant::now();
        assert_eq!(rate.read(start, 0), 0.0);
        assert_eq!(rate.read(start + Duration::from_secs(1), 100), 100.0);
        for second in 2..10 {
            rate.read(start + Duration::from_secs(second), 100);
        }
        assert_eq!(rate.read(start + Duration::from_secs(10), 100), 0.0);
    }

    #[test]
    fn the_time_that_is_left() {
        let mut snapshot =
            SnapshotProgress { keys_loaded: 50, keys_expected: 100, ..SnapshotProgress::default() };
        assert_eq!(remaining(&snapshot, 10.0, 0.0), Some(Duration::from_secs(5)));
        assert_eq!(remaining(&snapshot, 0.0, 0.0), None);
        snapshot = SnapshotProgress { bytes_read: 10, bytes_expected: 110, ..SnapshotProgress::default() };
        assert_eq!(remaining(&snapshot, 10.0, 50.0), Some(Duration::from_secs(2)));
    }
}

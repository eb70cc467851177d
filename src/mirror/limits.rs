//! How fast a migration may go: limits a second, which somebody may change at any time.
//!
//! They keep the average under the limit in batches: one batch goes whole, and the next waits until its share of the time
//! is over. A pause earns no burst afterwards. While a switch is near the limits of the mirror are not kept: clients may be
//! waiting.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde::{Deserialize, Deserializer};
use tokio::time::Instant;

use crate::backfill;
use crate::config::{Throttle, units};

/// The limits in force, shared by all that keeps them. 0 is none.
#[derive(Debug, Default)]
pub struct Limits {
    pub(super) snapshot: Arc<backfill::Throttle>,
    mirror_ops: AtomicU64,
    mirror_bytes: AtomicU64,
}

/// New limits; what is absent stays as it is. The JSON body of `POST /v1/throttle`, with rates as `"50MB/s"`, `"1000/s"`
/// and `"off"`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ThrottleRequest {
    /// Bytes of the snapshot that are written to the destination.
    #[serde(deserialize_with = "given")]
    pub snapshot_bytes: Option<Option<u64>>,
    /// Keys of the snapshot.
    #[serde(deserialize_with = "given")]
    pub snapshot_keys: Option<Option<u64>>,
    /// Commands of the stream.
    #[serde(deserialize_with = "given")]
    pub mirror_ops: Option<Option<u64>>,
    /// Bytes of these commands.
    #[serde(deserialize_with = "given")]
    pub mirror_bytes: Option<Option<u64>>,
}

fn given<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Option<u64>>, D::Error> {
    units::rate::deserialize(deserializer).map(Some)
}

impl Limits {
    /// The limits of the configuration.
    pub fn new(throttle: &Throttle) -> Self {
        let limits = Self::default();
        limits.change(&ThrottleRequest {
            snapshot_bytes: Some(throttle.snapshot_bytes),
            snapshot_keys: Some(throttle.snapshot_keys),
            mirror_ops: Some(throttle.mirror_ops),
            mirror_bytes: Some(throttle.mirror_bytes),
        });
        limits
    }

    /// Changes some of them, with effect from the next batch on.
    pub fn change(&self, request: &ThrottleRequest) {
        let all = [
            (&self.snapshot.bytes, request.snapshot_bytes),
            (&self.snapshot.keys, request.snapshot_keys),
            (&self.mirror_ops, request.mirror_ops),
            (&self.mirror_bytes, request.mirror_bytes),
        ];
        for (limit, asked) in all {
            if let Some(rate) = asked {
                limit.store(rate.unwrap_or(0), Ordering::Relaxed);
            }
        }
    }

    /// What is in force.
    pub fn status(&self) -> Throttle {
        let show = |limit: &AtomicU64| Some(limit.load(Ordering::Relaxed)).filter(|&rate| rate > 0);
        Throttle {
            snapshot_bytes: show(&self.snapshot.bytes),
            snapshot_keys: show(&self.snapshot.keys),
            mirror_ops: show(&self.mirror_ops),
            mirror_bytes: show(&self.mirror_bytes),
        }
    }

    /// The time that a batch takes at these rates, at least; at most a minute.
    fn time_of(&self, commands: u64, bytes: usize) -> Duration {
        let share = |limit: &AtomicU64, amount: f64| match limit.load(Ordering::Relaxed) {
            0 => 0.0,
            rate => amount / rate as f64,
        };
        let seconds = share(&self.mirror_ops, commands as f64).max(share(&self.mirror_bytes, bytes as f64));
        Duration::from_secs_f64(seconds.min(60.0))
    }
}

/// Until when the next batch has to wait.
#[derive(Debug)]
pub(super) struct Pace {
    limits: Arc<Limits>,
    /// The moment up to which the allowance is used up.
    until: Instant,
}

impl Pace {
    pub(super) fn new(limits: Arc<Limits>) -> Self {
        Self { limits, until: Instant::now() }
    }

    /// Takes note of a batch that is sent.
    pub(super) fn spend(&mut self, commands: u64, bytes: usize) {
        let time = self.limits.time_of(commands, bytes);
        if !time.is_zero() {
            self.until = self.until.max(Instant::now()) + time;
        }
    }

    /// When the next batch may go, if that is not now. Limits that were lifted meanwhile hold nothing back.
    pub(super) fn held_until(&self) -> Option<Instant> {
        let in_force = !self.limits.time_of(1, 1).is_zero();
        (in_force && self.until > Instant::now()).then_some(self.until)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(json: &str) -> ThrottleRequest {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn what_is_absent_stays() {
        let limits = Limits::new(&Throttle { mirror_ops: Some(500), ..Throttle::default() });
        limits.change(&request(r#"{"snapshot_bytes": "2MB/s", "snapshot_keys": "10/s"}"#));
        limits.change(&request(r#"{"snapshot_keys": "off"}"#));
        let told = serde_json::to_string(&limits.status()).unwrap();
        assert_eq!(
            told,
            r#"{"snapshot_bytes":"2MB/s","snapshot_keys":"off","mirror_ops":"500/s","mirror_bytes":"off"}"#
        );
    }

    #[tokio::test(start_paused = true)]
    async fn the_average_stays_under_the_limit_and_a_pause_earns_nothing() {
        let limits = Arc::new(Limits::new(&Throttle { mirror_ops: Some(100), ..Throttle::default() }));
        let mut pace = Pace::new(limits.clone());
        tokio::time::advance(Duration::from_secs(100)).await;
        let began = Instant::now();
        for _ in 0..5 {
            assert_eq!(pace.held_until(), None);
            pace.spend(50, 1000);
            tokio::time::sleep_until(pace.held_until().unwrap()).await;
        }
        assert!((2500..2520).contains(&began.elapsed().as_millis()), "{:?}", began.elapsed());
        pace.spend(50, 1000);
        limits.change(&request(r#"{"mirror_ops": "off"}"#));
        assert_eq!(pace.held_until(), None);
        limits.change(&request(r#"{"mirror_bytes": "1KB/s"}"#));
        pace.spend(50, 1000);
        assert!(pace.held_until().unwrap() - Instant::now() > Duration::from_millis(900));
    }
}

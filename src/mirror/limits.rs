//! How fast a migration may go: limits a second, which somebody may change at any time, and limits on what the destination
//! may suffer, which [`super::governor`] keeps.
//!
//! While a switch is near the limits of the mirror are not kept: clients may be waiting.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use parking_lot::Mutex;
use serde::{Deserialize, Deserializer, Serialize};

use super::governor::{Automatic, Bounds};
use crate::backfill::{self, Brake};
use crate::config::Throttle;
use crate::config::units::{self, MemoryLimit};

/// The limits in force, shared by all that keep them.
#[derive(Debug)]
pub struct Limits {
    pub(super) snapshot: Arc<backfill::Throttle>,
    pub(super) mirror: Arc<backfill::Throttle>,
    pub(super) brake: Arc<Brake>,
    bounds: Mutex<Bounds>,
    automatic: Mutex<Option<Automatic>>,
}

impl Default for Limits {
    fn default() -> Self {
        let brake = Arc::<Brake>::default();
        let under_it = || Arc::new(backfill::Throttle::with(Arc::clone(&brake)));
        Self {
            snapshot: under_it(),
            mirror: under_it(),
            brake: Arc::clone(&brake),
            bounds: Mutex::default(),
            automatic: Mutex::default(),
        }
    }
}

/// What is in force, and what that does at the moment.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Throttling {
    /// The limits.
    #[serde(flatten)]
    pub limits: Throttle,
    /// What the limits on the destination's latency and memory do; none while there are none, or nothing is written.
    #[serde(default)]
    pub automatic: Option<Automatic>,
}

/// New limits; what is absent stays as it is. The JSON body of `POST /v1/throttle`, with rates as `"50MB/s"`, `"1000/s"`
/// and `"off"`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ThrottleRequest {
    /// Bytes of the snapshot that are written to the destination.
    #[serde(deserialize_with = "rate")]
    pub snapshot_bytes: Option<Option<u64>>,
    /// Keys of the snapshot.
    #[serde(deserialize_with = "rate")]
    pub snapshot_keys: Option<Option<u64>>,
    /// Commands of the stream.
    #[serde(deserialize_with = "rate")]
    pub mirror_ops: Option<Option<u64>>,
    /// Bytes of these commands.
    #[serde(deserialize_with = "rate")]
    pub mirror_bytes: Option<Option<u64>>,
    /// What a PING may take the destination.
    #[serde(deserialize_with = "latency")]
    pub max_destination_latency: Option<Option<Duration>>,
    /// What the destination may use.
    #[serde(deserialize_with = "memory")]
    pub max_destination_memory: Option<Option<MemoryLimit>>,
}

type Given<T, E> = Result<Option<Option<T>>, E>;

fn rate<'de, D: Deserializer<'de>>(deserializer: D) -> Given<u64, D::Error> {
    units::rate::deserialize(deserializer).map(Some)
}

fn latency<'de, D: Deserializer<'de>>(deserializer: D) -> Given<Duration, D::Error> {
    units::latency_limit::deserialize(deserializer).map(Some)
}

fn memory<'de, D: Deserializer<'de>>(deserializer: D) -> Given<MemoryLimit, D::Error> {
    units::memory_limit::deserialize(deserializer).map(Some)
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
            max_destination_latency: Some(throttle.max_destination_latency),
            max_destination_memory: Some(throttle.max_destination_memory),
        });
        limits
    }

    /// Changes some of them, with effect from the next batch on.
    pub fn change(&self, request: &ThrottleRequest) {
        let all = [
            (&self.snapshot.bytes, request.snapshot_bytes),
            (&self.snapshot.items, request.snapshot_keys),
            (&self.mirror.items, request.mirror_ops),
            (&self.mirror.bytes, request.mirror_bytes),
        ];
        for (limit, asked) in all {
            if let Some(rate) = asked {
                limit.store(rate.unwrap_or(0), Relaxed);
            }
        }
        let mut bounds = self.bounds.lock();
        if let Some(latency) = request.max_destination_latency {
            bounds.latency = latency;
        }
        if let Some(memory) = request.max_destination_memory {
            bounds.memory = memory;
        }
    }

    /// What is in force.
    pub fn status(&self) -> Throttling {
        let show = |limit: &std::sync::atomic::AtomicU64| Some(limit.load(Relaxed)).filter(|&rate| rate > 0);
        let bounds = self.bounds();
        let limits = Throttle {
            snapshot_bytes: show(&self.snapshot.bytes),
            snapshot_keys: show(&self.snapshot.items),
            mirror_ops: show(&self.mirror.items),
            mirror_bytes: show(&self.mirror.bytes),
            max_destination_latency: bounds.latency,
            max_destination_memory: bounds.memory,
        };
        Throttling { limits, automatic: self.automatic() }
    }

    /// Whether the snapshot may have to be slowed down, or stopped.
    pub(super) fn paces_the_snapshot(&self) -> bool {
        self.snapshot.is_set() || self.bounds() != Bounds::default()
    }

    pub(super) fn bounds(&self) -> Bounds {
        *self.bounds.lock()
    }

    pub(super) fn automatic(&self) -> Option<Automatic> {
        self.automatic.lock().clone()
    }

    pub(super) fn show(&self, automatic: Option<Automatic>) {
        *self.automatic.lock() = automatic;
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
        limits.change(&request(r#"{"snapshot_keys": "off", "max_destination_latency": "20ms"}"#));
        limits.change(&request(r#"{"max_destination_memory": "80%"}"#));
        let told = serde_json::to_string(&limits.status()).unwrap();
        assert_eq!(
            told,
            r#"{"snapshot_bytes":"2MB/s","snapshot_keys":"off","mirror_ops":"500/s","mirror_bytes":"off","max_destination_latency":"20ms","max_destination_memory":"80%","automatic":null}"#
        );
        assert_eq!(serde_json::from_str::<Throttling>(&told).unwrap(), limits.status());
        limits.change(&request(r#"{"max_destination_latency": "off", "max_destination_memory": "off"}"#));
        assert_eq!(limits.bounds(), Bounds::default());
    }
}

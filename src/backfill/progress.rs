//! What a running load tells.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Instant;

use parking_lot::Mutex;

/// Counters of a running load, shared with whoever shows them.
#[derive(Debug)]
pub struct Progress {
    pub(super) keys_loaded: AtomicU64,
    pub(super) keys_kept: AtomicU64,
    pub(super) keys_expected: AtomicU64,
    pub(super) bytes_read: AtomicU64,
    bytes_expected: AtomicU64,
    begun: Instant,
}

impl Default for Progress {
    fn default() -> Self {
        Self {
            keys_loaded: AtomicU64::new(0),
            keys_kept: AtomicU64::new(0),
            keys_expected: AtomicU64::new(0),
            bytes_read: AtomicU64::new(0),
            bytes_expected: AtomicU64::new(0),
            begun: Instant::now(),
        }
    }
}

/// [`Progress`] at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Default, serde::Serialize)]
pub struct ProgressView {
    /// Keys that the destination has confirmed.
    pub keys_loaded: u64,
    /// Keys that were there and were kept.
    pub keys_kept: u64,
    /// Keys that the snapshot has announced so far: a database announces its own when it begins.
    pub keys_expected: u64,
    /// Bytes of the snapshot that were read.
    pub bytes_read: u64,
    /// Its length, 0 when it is not known (a diskless transfer).
    pub bytes_expected: u64,
    /// Since the load began.
    pub seconds: f64,
}

impl Progress {
    /// Says how long the snapshot is, once that is known.
    pub fn set_bytes_expected(&self, bytes: u64) {
        self.bytes_expected.store(bytes, Relaxed);
    }

    /// The counters now.
    pub fn view(&self) -> ProgressView {
        ProgressView {
            keys_loaded: self.keys_loaded.load(Relaxed),
            keys_kept: self.keys_kept.load(Relaxed),
            keys_expected: self.keys_expected.load(Relaxed),
            bytes_read: self.bytes_read.load(Relaxed),
            bytes_expected: self.bytes_expected.load(Relaxed),
            seconds: self.begun.elapsed().as_secs_f64(),
        }
    }
}

impl ProgressView {
    /// Keys a second, on the average so far.
    pub fn keys_per_second(&self) -> f64 {
        if self.seconds > 0.0 { self.keys_loaded as f64 / self.seconds } else { 0.0 }
    }

    /// Seconds that are left at this rate; by bytes when their number is known, else by keys.
    pub fn seconds_left(&self) -> Option<f64> {
        let (done, all) = if self.bytes_expected > 0 {
            (self.bytes_read, self.bytes_expected)
        } else {
            (self.keys_loaded, self.keys_expected)
        };
        (done > 0 && all >= done).then(|| self.seconds * (all - done) as f64 / done as f64)
    }
}

/// A key that could not be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FailedKey {
    /// Its db.
    pub db: u32,
    /// The key, or what else it was (`function library …`), as a person reads it.
    pub key: String,
    /// What the destination answered, or why no command could be given.
    pub reason: String,
    /// What a person can do.
    pub remedy: &'static str,
    /// The destination has no command for it.
    pub unsupported: bool,
}

impl fmt::Display for FailedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} in db {}: {}", self.key, self.db, self.reason)
    }
}

/// The keys that could not be written: all are counted, the first are remembered.
#[derive(Debug, Default)]
pub(super) struct Failures {
    drop_unsupported: bool,
    failed: Mutex<(Vec<FailedKey>, u64)>,
    dropped: Mutex<(Vec<FailedKey>, u64)>,
}

impl Failures {
    const REMEMBERED: usize = 100;

    /// Where what is unsupported is dropped, it stands apart.
    pub(super) fn new(drop_unsupported: bool) -> Self {
        Self { drop_unsupported, ..Self::default() }
    }

    pub(super) fn add(&self, failed: FailedKey) {
        if self.drop_unsupported && failed.unsupported {
            tracing::warn!(
                key = failed.key,
                db = failed.db,
                reason = failed.reason,
                "left out: the destination has no command for it"
            );
            return Self::remember(&self.dropped, failed);
        }
        tracing::warn!(
            key = failed.key,
            db = failed.db,
            reason = failed.reason,
            "a key of the snapshot could not be written"
        );
        Self::remember(&self.failed, failed);
    }

    fn remember(all: &Mutex<(Vec<FailedKey>, u64)>, key: FailedKey) {
        let mut all = all.lock();
        all.1 += 1;
        if all.0.len() < Self::REMEMBERED {
            all.0.push(key);
        }
    }

    pub(super) fn take_failed(&self) -> (Vec<FailedKey>, u64) {
        std::mem::take(&mut self.failed.lock())
    }

    pub(super) fn take_dropped(&self) -> (Vec<FailedKey>, u64) {
        std::mem::take(&mut self.dropped.lock())
    }
}

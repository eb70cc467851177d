//! How fast a copy or a mirror may go: limits a second that anybody may change at any time, and a brake for whoever watches the
//! server that is written to. No socket, no sleep: the time goes in, and until when to wait comes out. ([`Pace::wait`] sleeps, for
//! threads.)
//!
//! A batch goes whole, and its share of the time is waited beside it, so the average stays under the limits. A pause earns no
//! more than [`CREDIT`]. Every look counts with the limits of that moment.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

/// What time without work earns, at most: a server that is busy for a moment does not lower the average.
const CREDIT: Duration = Duration::from_millis(100);
/// Between two looks at limits that may have changed.
const STEP: Duration = Duration::from_millis(50);
/// The longest that one batch makes the next wait.
const LONGEST: f64 = 60.0;
/// The longest rest that the brake makes behind one batch.
const LONGEST_REST: Duration = Duration::from_secs(1);

/// Limits a second; 0 is none.
#[derive(Debug, Default)]
pub struct Throttle {
    /// Bytes that are written to the destination.
    pub bytes: AtomicU64,
    /// Keys, or commands.
    pub items: AtomicU64,
    /// Beyond these limits.
    pub brake: Arc<Brake>,
}

impl Throttle {
    /// Limits under a brake that others share.
    pub fn with(brake: Arc<Brake>) -> Self {
        Self { brake, ..Self::default() }
    }

    /// Whether there is a limit.
    pub fn is_set(&self) -> bool {
        self.bytes.load(Relaxed) > 0 || self.items.load(Relaxed) > 0
    }

    /// How long so much takes, at least.
    fn time_of(&self, bytes: usize, items: u64) -> Duration {
        let cost = |limit: &AtomicU64, amount: f64| match limit.load(Relaxed) {
            0 => 0.0,
            rate => amount / rate as f64,
        };
        let seconds = cost(&self.bytes, bytes as f64).max(cost(&self.items, items as f64));
        Duration::from_secs_f64(seconds.min(LONGEST))
    }
}

/// Slows down whatever is paced under it: to a share of the time that it works by itself, or altogether.
#[derive(Debug)]
pub struct Brake {
    /// In thousandths.
    share: AtomicU32,
    stopped: AtomicBool,
}

impl Default for Brake {
    fn default() -> Self {
        Self { share: AtomicU32::new(1000), stopped: AtomicBool::new(false) }
    }
}

impl Brake {
    /// Lets it work for this share of the time, above 0 and up to 1; or not at all.
    pub fn set(&self, share: f64, stopped: bool) {
        self.share.store((share.clamp(0.001, 1.0) * 1000.0).round() as u32, Relaxed);
        self.stopped.store(stopped, Relaxed);
    }

    /// What belongs behind so much work.
    fn rest(&self, worked: Duration) -> Duration {
        let share = f64::from(self.share.load(Relaxed)) / 1000.0;
        worked.mul_f64((1.0 - share) / share).min(LONGEST_REST)
    }
}

/// What one worker has done, and until when it has to wait.
#[derive(Debug)]
pub struct Pace {
    limits: Arc<Throttle>,
    /// Where the time of the last batch began, and how much it was.
    began: Instant,
    bytes: usize,
    items: u64,
    /// When the last piece of work ended, and how long it took.
    worked: (Instant, Duration),
    /// When [`Pace::wait`] let go last.
    released: Instant,
    /// Whether the brake may stop it.
    stops: bool,
}

impl Pace {
    /// Nothing is used up.
    pub fn new(limits: Arc<Throttle>, now: Instant) -> Self {
        let worked = (now, Duration::ZERO);
        Self { limits, began: now, bytes: 0, items: 0, worked, released: now, stops: true }
    }

    /// For work that may be slowed down, but would be lost if it stood still.
    pub fn that_never_stops(self) -> Self {
        Self { stops: false, ..self }
    }

    /// The moment up to which the allowance is used up.
    fn used_until(&self) -> Instant {
        self.began + self.limits.time_of(self.bytes, self.items)
    }

    /// Takes note of a batch.
    pub fn spend(&mut self, now: Instant, bytes: usize, items: u64) {
        let earliest = now.checked_sub(CREDIT).unwrap_or(now);
        let latest = now + Duration::from_secs_f64(LONGEST);
        self.began = self.used_until().clamp(earliest, latest);
        (self.bytes, self.items) = (bytes, items);
    }

    /// Takes note of the time that the work itself took, which is what the brake shortens.
    pub fn worked(&mut self, now: Instant, took: Duration) {
        self.worked = (now, took);
    }

    /// When the next batch may go, if that is not now. To be asked again then.
    pub fn held_until(&self, now: Instant) -> Option<Instant> {
        if self.stops && self.limits.brake.stopped.load(Relaxed) {
            return Some(now + STEP);
        }
        let (at, took) = self.worked;
        let until = self.used_until().max(at + self.limits.brake.rest(took));
        (until > now).then_some(until)
    }

    /// Waits for the time of a batch that is about to go. For threads.
    pub fn wait(&mut self, bytes: usize, items: u64, cancel: &CancellationToken) {
        let now = Instant::now();
        self.worked(now, now.saturating_duration_since(self.released));
        self.spend(now, bytes, items);
        let mut now = now;
        while let Some(until) = self.held_until(now)
            && !cancel.is_cancelled()
        {
            std::thread::sleep((until - now).min(STEP));
            now = Instant::now();
        }
        self.released = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: fn(u64) -> Duration = Duration::from_millis;

    #[test]
    fn the_average_stays_under_the_limits() {
        let limits = Arc::new(Throttle::default());
        let start = Instant::now();
        let mut pace = Pace::new(Arc::clone(&limits), start);
        assert_eq!(pace.held_until(start), None);
        limits.items.store(100, Relaxed);
        limits.bytes.store(1000, Relaxed);
        // Ten seconds without work earn a tenth.
        let mut now = start + MS(10_000);
        for (bytes, items) in [(100, 50), (500, 1), (1000, 100)] {
            pace.spend(now, bytes, items);
            now = pace.held_until(now).unwrap();
        }
        assert_eq!(now - start, MS(10_000 - 100 + 500 + 500 + 1000));
        // A limit that is lifted, or set, counts for what is waited already.
        pace.spend(now, 1000, 0);
        limits.bytes.store(0, Relaxed);
        assert_eq!(pace.held_until(now), None);
        limits.bytes.store(10_000, Relaxed);
        assert_eq!(pace.held_until(now), Some(now + MS(100)));
    }

    #[test]
    fn the_brake_leaves_a_share_of_the_time_or_nothing() {
        let limits = Arc::new(Throttle::default());
        let now = Instant::now();
        let mut pace = Pace::new(Arc::clone(&limits), now);
        pace.worked(now, MS(20));
        assert_eq!(pace.held_until(now), None);
        limits.brake.set(0.25, false);
        assert_eq!(pace.held_until(now), Some(now + MS(60)));
        pace.worked(now, Duration::from_secs(20));
        assert_eq!(pace.held_until(now), Some(now + LONGEST_REST));
        limits.brake.set(1.0, true);
        assert_eq!(pace.held_until(now), Some(now + STEP));
        assert_eq!(pace.that_never_stops().held_until(now), None);
    }
}

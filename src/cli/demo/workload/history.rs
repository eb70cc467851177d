//! What happened, kept while it happens: every client's latest steps, and the faults with the steps around them.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::sequence::{Fault, FaultKind};

/// Steps that a client remembers.
const REMEMBERED: usize = 4096;
/// Faults that are kept with their story; further ones are counted.
const TOLD: usize = 40;

/// One step of one client, as it is remembered.
#[derive(Debug, Clone)]
pub(super) struct Event {
    pub(super) at: Duration,
    pub(super) took: Duration,
    pub(super) what: &'static str,
    pub(super) step: u64,
    pub(super) reply: Option<i64>,
    pub(super) outcome: &'static str,
}

/// The latest steps of one client.
#[derive(Debug, Clone, Default)]
pub(super) struct Memory(VecDeque<Event>);

impl Memory {
    pub(super) fn add(&mut self, event: Event) {
        if self.0.len() == REMEMBERED {
            self.0.pop_front();
        }
        self.0.push_back(event);
    }

    /// The steps around the named one, or the latest.
    pub(super) fn around(&self, what: &str, step: Option<u64>) -> Vec<String> {
        let found = step.and_then(|step| self.0.iter().position(|e| e.step == step && e.what == what));
        let centre = found.unwrap_or(self.0.len());
        let from = centre.saturating_sub(6);
        self.0
            .iter()
            .enumerate()
            .skip(from)
            .take(12)
            .map(|(index, e)| {
                let mark = if Some(index) == found { ">" } else { " " };
                let reply = e.reply.map_or_else(String::new, |reply| format!(" = {reply}"));
                format!(
                    "{mark} {:9.3} s  {:<12} step {:<6}{reply:<12} {} after {:.1} ms",
                    e.at.as_secs_f64(),
                    e.what,
                    e.step,
                    e.outcome,
                    e.took.as_secs_f64() * 1e3
                )
            })
            .collect()
    }
}

/// A fault and the steps that surround it.
#[derive(Debug, Clone)]
pub struct Finding {
    /// Which client or key it concerns.
    pub whose: String,
    /// What is wrong.
    pub fault: Fault,
    /// The client's steps before and after, one line each.
    pub story: Vec<String>,
}

impl std::fmt::Display for Finding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}: {}: {}", self.fault.kind, self.whose, self.fault.text)?;
        for line in &self.story {
            write!(f, "\n    {line}")?;
        }
        Ok(())
    }
}

/// What all clients of one workload share: counters, faults, waiting times.
#[derive(Debug)]
pub(super) struct Ledger {
    pub(super) began: Instant,
    pub(super) operations: AtomicU64,
    pub(super) reconnects: AtomicU64,
    pub(super) tolerated: AtomicU64,
    counts: [AtomicU64; 5],
    told: Mutex<Vec<Finding>>,
    waits: Waits,
}

impl Ledger {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self {
            began: Instant::now(),
            operations: AtomicU64::new(0),
            reconnects: AtomicU64::new(0),
            tolerated: AtomicU64::new(0),
            counts: Default::default(),
            told: Mutex::default(),
            waits: Waits::default(),
        })
    }

    pub(super) fn report(&self, whose: impl Into<String>, fault: Fault, story: Vec<String>) {
        self.counts[fault.kind as usize].fetch_add(1, Ordering::Relaxed);
        let mut told = self.told.lock();
        if told.len() < TOLD {
            told.push(Finding { whose: whose.into(), fault, story });
        }
    }

    pub(super) fn count(&self, kind: FaultKind) -> u64 {
        self.counts[kind as usize].load(Ordering::Relaxed)
    }

    pub(super) fn findings(&self) -> Vec<Finding> {
        self.told.lock().clone()
    }

    pub(super) fn waited(&self, time: Duration) {
        self.waits.add(time);
    }

    pub(super) fn waits(&self) -> &Waits {
        &self.waits
    }
}

/// Times from sending to the reply: a histogram with 16 steps to each doubling (6 % wide), in microseconds.
#[derive(Debug)]
pub(super) struct Waits {
    buckets: Vec<AtomicU64>,
    worst: AtomicU64,
    /// The longest since somebody last took it.
    lately: AtomicU64,
}

const FINE: u32 = 16;

impl Default for Waits {
    fn default() -> Self {
        let buckets = (0..36 * FINE).map(|_| AtomicU64::new(0)).collect();
        Self { buckets, worst: AtomicU64::new(0), lately: AtomicU64::new(0) }
    }
}

impl Waits {
    fn add(&self, time: Duration) {
        let micros = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        self.worst.fetch_max(micros, Ordering::Relaxed);
        self.lately.fetch_max(micros, Ordering::Relaxed);
        let index = ((micros.max(1) as f64).log2() * f64::from(FINE)) as usize;
        if let Some(bucket) = self.buckets.get(index.min(self.buckets.len() - 1)) {
            bucket.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The time in milliseconds that this share (0..=1) of the replies stayed under.
    pub(super) fn quantile_ms(&self, share: f64) -> f64 {
        let total: u64 = self.buckets.iter().map(|bucket| bucket.load(Ordering::Relaxed)).sum();
        let mut left = (total as f64 * share) as u64;
        for (index, bucket) in self.buckets.iter().enumerate() {
            let here = bucket.load(Ordering::Relaxed);
            if here > left {
                return ((index + 1) as f64 / f64::from(FINE)).exp2() / 1e3;
            }
            left -= here;
        }
        self.worst_ms()
    }

    /// The longest time, in milliseconds.
    pub(super) fn worst_ms(&self) -> f64 {
        self.worst.load(Ordering::Relaxed) as f64 / 1e3
    }

    /// The longest time since the last call, in milliseconds.
    pub(super) fn take_worst_ms(&self) -> f64 {
        self.lately.swap(0, Ordering::Relaxed) as f64 / 1e3
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_within_their_step() {
        let waits = Waits::default();
        for micros in 1..=1000 {
            waits.add(Duration::from_micros(micros));
        }
        for (share, expected) in [(0.5, 0.5), (0.99, 0.99)] {
            let got = waits.quantile_ms(share);
            assert!((got / expected - 1.0).abs() < 0.07, "{share}: {got}");
        }
        assert_eq!(waits.worst_ms(), 1.0);
    }
}

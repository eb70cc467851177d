//! The limits that keep themselves: while the destination answers slowly, or uses more memory than it may, the copy and the
//! mirror slow down or wait (`throttle.max_destination_latency`, `throttle.max_destination_memory`).
//!
//! *Latency* is that of a PING over a connection of its own, every tenth of a second. The time that our own batches take grows
//! with the batches and tells what we wait for; a PING stands behind whatever the server is executing, and tells what
//! everybody else waits for. Each PING above the limit takes 30 % of the share away, each below gives two hundredths back: down
//! quickly and up gently, so that several who do the same share the server fairly.
//!
//! *Memory* is `used_memory`, five times a second. Above the limit copy and mirror wait, and go on by themselves [`SLACK`] below it.
//!
//! A destination only has limits while it is the one that is written to. What slows down is a share of the time ([`Brake`]), so it
//! needs no idea of how fast the copy would be. Near a switch the mirror is not held back.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::time::sleep;

use super::{Limits, MirrorState, Stage, Trouble};
use crate::backfill::Brake;
use crate::config::units::{self, MemoryLimit};
use crate::error::{Error, Result};
use crate::server::{Client, Endpoint, Info};

/// Between two PINGs.
const PROBE: Duration = Duration::from_millis(100);
/// Between two looks at the memory.
const MEMORY: Duration = Duration::from_millis(200);
/// The longest that a PING is waited for.
const TIMEOUT: Duration = Duration::from_secs(2);
/// The smallest share of the time: what is slowed down still moves.
const LEAST: f64 = 1.0 / 64.0;
const DOWN: f64 = 0.7;
const UP: f64 = 0.02;
/// Memory has to fall this far below the limit.
const SLACK: f64 = 0.97;

/// What the limits do by themselves.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Automatic {
    /// The share of the time in which the copy and the mirror work; 1 when nothing slows them down.
    pub factor: f64,
    /// Whether they wait for memory of the destination.
    pub waiting: bool,
    /// Why they are slow, or wait.
    pub reason: Option<String>,
    /// What the last PING took.
    pub latency_ms: Option<f64>,
    /// What the destination uses, in bytes.
    pub memory: Option<u64>,
}

/// Limits of which the destination's own state decides.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Bounds {
    pub(super) latency: Option<Duration>,
    pub(super) memory: Option<MemoryLimit>,
}

/// The decisions, without a server.
#[derive(Debug)]
struct Governor {
    share: f64,
    latency: Option<Duration>,
    memory: Option<u64>,
    /// Memory above the limit, which is this many bytes.
    above: Option<u64>,
}

impl Governor {
    fn new() -> Self {
        Self { share: 1.0, latency: None, memory: None, above: None }
    }

    /// A PING took so long.
    fn pinged(&mut self, took: Duration, limit: Duration) {
        self.latency = Some(took);
        self.share = if took > limit { (self.share * DOWN).max(LEAST) } else { (self.share + UP).min(1.0) };
    }

    /// The server uses so much of what it may.
    fn uses(&mut self, used: u64, limit: u64) {
        self.memory = Some(used);
        let may_go = (limit as f64 * SLACK) as u64;
        self.above = match self.above {
            None => (used > limit).then_some(limit),
            Some(_) => (used > may_go).then_some(limit),
        };
    }

    /// What is not limited does not hold anything back.
    fn forget(&mut self, bounds: Bounds) {
        if bounds.latency.is_none() {
            (self.share, self.latency) = (1.0, None);
        }
        if bounds.memory.is_none() {
            (self.above, self.memory) = (None, None);
        }
    }

    fn shown(&self, bounds: Bounds) -> Option<Automatic> {
        if bounds == Bounds::default() {
            return None;
        }
        let slow = match (self.latency, bounds.latency) {
            (Some(took), Some(limit)) if self.share < 1.0 => Some(format!(
                "a PING takes the destination {:.1} ms now, and shall take {} at most",
                took.as_secs_f64() * 1000.0,
                units::show_duration(limit)
            )),
            _ => None,
        };
        let full = self.above.zip(self.memory).map(|(limit, used)| {
            let (used, limit) = (units::about(used), units::about(limit));
            format!("the destination uses {used} of memory, and shall use {limit} at most")
        });
        Some(Automatic {
            factor: (self.share * 1000.0).round() / 1000.0,
            waiting: full.is_some(),
            reason: full.or(slow),
            latency_ms: self.latency.map(|took| (took.as_secs_f64() * 1e5).round() / 100.0),
            memory: self.memory,
        })
    }
}

impl Automatic {
    /// What a person has to know while copy and mirror wait.
    pub(super) fn trouble(&self, to: &Endpoint) -> Option<Trouble> {
        let reason = self.reason.as_ref().filter(|_| self.waiting)?;
        let error = Error::passing(to.side, format!("{reason}: the copy and the mirror wait")).remedy(
            "give it more memory, remove keys there that do not belong to it, or raise the limit with `crossfade throttle --max-destination-memory`; it goes on by itself",
        );
        Some(Trouble::new(&error, None))
    }
}

/// The destination as it is asked.
struct Probe {
    to: Endpoint,
    client: Option<Client>,
}

impl Probe {
    async fn client(&mut self) -> Result<&mut Client> {
        match &mut self.client {
            Some(client) => Ok(client),
            slot => {
                let mut fresh = Client::open(&Endpoint { db: 0, ..self.to.clone() }, TIMEOUT).await?;
                // Narrow rights may refuse it; nothing depends on it.
                fresh.call(&["CLIENT", "SETNAME", "crossfade-governor"]).await?;
                Ok(slot.insert(fresh))
            }
        }
    }

    /// How long a PING takes; no answer in time counts with that time.
    async fn ping(&mut self) -> Result<Duration> {
        let client = self.client().await?;
        let sent = Instant::now();
        let answered = client.call(&["PING"]).await;
        let took = sent.elapsed();
        match answered {
            // A server that loads answers everybody with an error, and is not slow.
            Ok(_) => Ok(took),
            Err(_) if took >= TIMEOUT => {
                self.client = None;
                Ok(took)
            }
            Err(error) => Err(error),
        }
    }

    async fn memory(&mut self, limit: MemoryLimit) -> Result<Option<(u64, u64)>> {
        let info = self.client().await?.info("memory").await?;
        Ok(info.u64("used_memory").zip(bytes(limit, &info)))
    }
}

/// The limit in bytes; none when it is a part of something unknown.
fn bytes(limit: MemoryLimit, info: &Info) -> Option<u64> {
    match limit {
        MemoryLimit::Bytes(bytes) => Some(bytes),
        MemoryLimit::Percent(percent) => {
            let set = info.u64("maxmemory").filter(|bytes| *bytes > 0);
            let all = set.or_else(|| info.u64("total_system_memory"))?;
            Some((all as f64 * f64::from(percent) / 100.0) as u64)
        }
    }
}

/// Lets everything go when it is dropped: another mirror may be paced under the same limits.
struct Hold(Arc<Limits>);

impl Hold {
    fn brake(&self) -> &Brake {
        &self.0.brake
    }

    fn release(&self) {
        self.brake().set(1.0, false);
        self.0.show(None);
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.release();
    }
}

/// Watches the destination for as long as its mirror runs; ends by being aborted.
pub(super) async fn run(to: Endpoint, limits: Arc<Limits>, state: watch::Receiver<MirrorState>) {
    let hold = Hold(Arc::clone(&limits));
    let mut probe = Probe { to, client: None };
    let mut governor = Governor::new();
    let mut memory_at: Option<Instant> = None;
    let mut told = Automatic { factor: 1.0, ..Automatic::default() };
    loop {
        sleep(PROBE).await;
        let bounds = limits.bounds();
        let writes = matches!(
            state.borrow().stage,
            Stage::Connecting | Stage::Snapshot | Stage::CatchingUp | Stage::Live
        );
        if bounds == Bounds::default() || !writes {
            if limits.automatic().is_some() {
                hold.release();
            }
            (probe.client, governor, memory_at) = (None, Governor::new(), None);
            told = Automatic { factor: 1.0, ..Automatic::default() };
            continue;
        }
        governor.forget(bounds);
        let asked = async {
            if let Some(limit) = bounds.latency {
                let took = probe.ping().await?;
                governor.pinged(took, limit);
            }
            if let Some(limit) = bounds.memory
                && memory_at.is_none_or(|at| at.elapsed() >= MEMORY)
            {
                memory_at = Some(Instant::now());
                match probe.memory(limit).await? {
                    Some((used, limit)) => governor.uses(used, limit),
                    // A percentage of nothing that is known.
                    None => (governor.above, governor.memory) = (None, None),
                }
            }
            Ok::<(), Error>(())
        };
        if let Err(error) = asked.await {
            // That it cannot be reached is the mirror's to tell.
            tracing::debug!(%error, "the destination was not measured");
            probe.client = None;
        }
        hold.brake().set(governor.share, governor.above.is_some());
        let shown = governor.shown(bounds).unwrap_or_default();
        tell(&told, &shown);
        told = shown.clone();
        limits.show(Some(shown));
    }
}

/// Logs what has changed, not every step.
fn tell(before: &Automatic, now: &Automatic) {
    let reason = now.reason.as_deref().unwrap_or_default();
    match (before.waiting, now.waiting) {
        (false, true) => tracing::warn!(
            remedy = "give it more memory, or raise the limit with `crossfade throttle`",
            "{reason}: the copy and the mirror wait"
        ),
        (true, false) => tracing::info!("the destination has memory again: the copy and the mirror go on"),
        _ if before.factor >= 1.0 && now.factor < 1.0 => {
            tracing::info!(factor = now.factor, "{reason}: the copy and the mirror slow down");
        }
        _ if before.factor < 1.0 && now.factor >= 1.0 => {
            tracing::info!("the destination answers in time: the copy and the mirror run at full speed");
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slow_answers_slow_down_quickly_and_fast_ones_speed_up_gently() {
        let (limit, fast, slow) =
            (Duration::from_millis(20), Duration::from_millis(1), Duration::from_millis(30));
        let bounds = Bounds { latency: Some(limit), memory: None };
        let mut governor = Governor::new();
        governor.pinged(fast, limit);
        assert_eq!((governor.share, governor.shown(bounds).unwrap().reason), (1.0, None));
        governor.pinged(slow, limit);
        governor.pinged(slow, limit);
        assert!((governor.share - DOWN * DOWN).abs() < 1e-9);
        assert!(governor.shown(bounds).unwrap().reason.unwrap().contains("30.0 ms now, and shall take 20ms"));
        for _ in 0..100 {
            governor.pinged(slow, limit);
        }
        assert_eq!(governor.share, LEAST);
        governor.pinged(fast, limit);
        assert!((governor.share - LEAST - UP).abs() < 1e-9);
        for _ in 0..50 {
            governor.pinged(fast, limit);
        }
        assert_eq!(governor.share, 1.0);
        governor.pinged(slow, limit);
        governor.forget(Bounds::default());
        assert_eq!((governor.share, governor.shown(Bounds::default())), (1.0, None));
    }

    #[test]
    fn memory_above_the_limit_waits_until_it_is_well_below() {
        let bounds = Bounds { latency: None, memory: Some(MemoryLimit::Bytes(1000)) };
        let mut governor = Governor::new();
        let mut waits = |used| {
            governor.uses(used, 1000);
            governor.shown(bounds).unwrap().waiting
        };
        assert_eq!([1000, 1001, 999, 971, 970, 999].map(&mut waits), [false, true, true, true, false, false]);
    }

    #[test]
    fn a_part_of_the_memory_is_one_of_maxmemory_or_of_the_machine() {
        let read = |text: &str| bytes(MemoryLimit::Percent(80), &Info::parse(text));
        assert_eq!(read("maxmemory:1000\r\ntotal_system_memory:5000\r\n"), Some(800));
        assert_eq!(read("maxmemory:0\r\ntotal_system_memory:5000\r\n"), Some(4000));
        assert_eq!(read("used_memory:1\r\n"), None);
    }
}

//! The heartbeat: once a second the gateway writes the time to a key of its own on the server whose stream is mirrored
//! (`crossfade:heartbeat:<id>`). When that write comes by in the stream and the destination has answered everything in front
//! of it, the time since then is the lag from end to end, taken with one clock.
//!
//! What it adds to the offsets: a stream that has silently stopped looks idle to them, and shows here as a lag that grows.
//!
//! * The write is never mirrored, expires by itself should nobody remove it, and is left out while a switch is near: the
//!   fence would hold it, and nothing shall be on its way to a server that is being left.
//! * A server that refuses it (no right to write, a replica, no memory) is asked again every [`AGAIN`]; until then offsets
//!   and times of arrival tell the lag alone, and the status says so.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use super::position::lineage;
use super::run::unix_ms;
use crate::error::Result;
use crate::server::{Client, Endpoint};

/// After a refusal.
const AGAIN: Duration = Duration::from_secs(10);
/// For connecting, and for one write.
const TIMEOUT: Duration = Duration::from_secs(2);
/// The key outlives its last write by so many intervals, and by a minute at least.
const KEPT: u32 = 60;

/// The key that a migration writes.
pub fn heartbeat_key(id: &str) -> String {
    format!("crossfade:heartbeat:{}", lineage(id))
}

/// A beat that the server has taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Beat {
    /// What was written: unix time in milliseconds.
    ms: u64,
    at: Instant,
}

/// What the writer has to tell.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Written {
    /// The last beat that was sent: it may come by before the server's answer does.
    sent: Option<Beat>,
    /// The last that the server has taken.
    taken: Option<Beat>,
    /// It takes none.
    refused: bool,
}

/// The beats of one mirror: written here, and looked for in its stream.
#[derive(Debug)]
pub(super) struct Heartbeat {
    interval: Duration,
    /// Whether nothing is to be written now.
    quiet: Arc<AtomicBool>,
    written: watch::Receiver<Written>,
    cancel: CancellationToken,
    writer: JoinHandle<()>,
    seen: Seen,
}

/// What is known of the beats.
#[derive(Debug)]
struct Seen {
    /// The first that was taken and has not come by.
    due: Option<Beat>,
    /// The content of the last that came by.
    passed_ms: u64,
    /// When that was, and its lag in milliseconds.
    passed: Option<(Instant, f64)>,
    /// Since when beats are to be expected.
    since: Instant,
}

impl Seen {
    /// A beat that the server has taken.
    fn taken(&mut self, beat: Beat) {
        if beat.ms > self.passed_ms {
            self.due.get_or_insert(beat);
        }
    }

    /// The destination holds everything in front of the beat with this content.
    fn passed(&mut self, ms: u64, written: Written, now: Instant, now_ms: u64) {
        // Our own clock where we know when it was; that of the wall for beats of an earlier process.
        let known = [written.sent, written.taken, self.due].into_iter().flatten().find(|beat| beat.ms == ms);
        let lag_ms = match known {
            Some(beat) => now.saturating_duration_since(beat.at).as_secs_f64() * 1000.0,
            None => now_ms.saturating_sub(ms) as f64,
        };
        self.passed = Some((now, lag_ms));
        self.since = now;
        self.passed_ms = ms;
        self.due = written.taken.filter(|beat| beat.ms > ms);
    }

    /// A snapshot stands for the stream up to here: beats that it holds do not come by any more.
    fn begin_anew(&mut self, written: Written, now: Instant) {
        let newest = [written.sent, written.taken].into_iter().flatten().map(|beat| beat.ms).max();
        self.passed_ms = self.passed_ms.max(newest.unwrap_or(0));
        self.due = None;
        self.since = now;
    }

    /// For how long a beat is late, in milliseconds: one that was taken and is on its way, or the next when none is taken.
    fn late_ms(&self, interval: Duration, now: Instant) -> f64 {
        let due = self.due.map_or(Duration::ZERO, |beat| now.saturating_duration_since(beat.at));
        // Only where beats came by before: a writer that never got through tells nothing about the stream.
        let silence = self.passed.map_or(Duration::ZERO, |_| now.saturating_duration_since(self.since));
        let late = due.max(if silence > interval * 2 { silence } else { Duration::ZERO });
        late.as_secs_f64() * 1000.0
    }
}

impl Heartbeat {
    /// Begins to write, every `interval` in which `quiet` is not set.
    pub(super) fn spawn(from: &Endpoint, id: &str, interval: Duration, quiet: Arc<AtomicBool>) -> Self {
        let (tell, written) = watch::channel(Written::default());
        let cancel = CancellationToken::new();
        let endpoint = Endpoint { db: 0, ..from.clone() };
        let writer = Writer { endpoint, key: heartbeat_key(id), interval, quiet: Arc::clone(&quiet), tell };
        let seen = Seen { due: None, passed_ms: 0, passed: None, since: Instant::now() };
        let writer = tokio::spawn(writer.run(cancel.clone()));
        Self { interval, quiet, written, cancel, writer, seen }
    }

    /// The destination holds everything in front of the beat with this content.
    pub(super) fn passed(&mut self, ms: u64) {
        let written = *self.written.borrow();
        self.seen.passed(ms, written, Instant::now(), unix_ms());
    }

    /// The stream goes on behind a new snapshot. Near a switch no further beat would come to make good for those that were
    /// on their way.
    pub(super) fn begin_anew(&mut self) {
        let written = *self.written.borrow();
        self.seen.begin_anew(written, Instant::now());
    }

    /// For how long a beat is late, in milliseconds. To be asked a few times an interval.
    pub(super) fn late_ms(&mut self) -> f64 {
        let now = Instant::now();
        let written = *self.written.borrow();
        if written.refused {
            self.seen.due = None;
            self.seen.since = now;
            return 0.0;
        }
        if self.quiet.load(Ordering::Relaxed) {
            self.seen.since = now;
        }
        if let Some(beat) = written.taken {
            self.seen.taken(beat);
        }
        self.seen.late_ms(self.interval, now)
    }

    /// The lag of the last beat, in milliseconds, while that is news.
    pub(super) fn lag_ms(&self) -> Option<f64> {
        let (at, lag_ms) = self.seen.passed?;
        (at.elapsed() < self.interval * 2).then_some(lag_ms)
    }

    /// When the last beat came by, if the lag rests on beats.
    pub(super) fn last(&self) -> Option<Instant> {
        self.seen.passed.map(|(at, _)| at).filter(|_| !self.written.borrow().refused)
    }

    /// Ends it; when this answers, nothing more is written.
    pub(super) async fn stop(self) {
        self.cancel.cancel();
        // It ends within the time of one write.
        let _ = self.writer.await;
    }
}

struct Writer {
    endpoint: Endpoint,
    key: String,
    interval: Duration,
    quiet: Arc<AtomicBool>,
    tell: watch::Sender<Written>,
}

impl Writer {
    async fn run(self, cancel: CancellationToken) {
        let mut tick = tokio::time::interval(self.interval);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut client = None;
        let mut again = Instant::now();
        loop {
            tokio::select! {
                biased;
                () = cancel.cancelled() => return,
                _ = tick.tick() => {}
            }
            if self.quiet.load(Ordering::Relaxed) || Instant::now() < again {
                continue;
            }
            // Not cut short: what was sent has ended when the mirror has.
            match self.write(&mut client).await {
                Ok(Ok(beat)) => {
                    if self.tell(|written| written.taken = Some(beat), false) {
                        tracing::info!(side = %self.endpoint.side, "the heartbeat is written again");
                    }
                }
                Ok(Err(refusal)) => {
                    again = Instant::now() + AGAIN;
                    if self.tell(|written| written.taken = None, true) {
                        tracing::info!(
                            side = %self.endpoint.side,
                            refusal,
                            "the heartbeat cannot be written: offsets and times of arrival tell the lag alone"
                        );
                    }
                }
                Err(error) => {
                    client = None;
                    tracing::debug!(%error, "no heartbeat");
                }
            }
        }
    }

    /// Tells what came of a beat. True: the server has changed its mind.
    fn tell(&self, change: impl FnOnce(&mut Written), refused: bool) -> bool {
        let mut changed = false;
        self.tell.send_modify(|written| {
            change(written);
            changed = std::mem::replace(&mut written.refused, refused) != refused;
        });
        changed
    }

    /// Writes one beat. The inner error: the server's refusal.
    async fn write(&self, client: &mut Option<Client>) -> Result<Result<Beat, String>> {
        let client = match client {
            Some(client) => client,
            slot => {
                let mut fresh = Client::open(&self.endpoint, TIMEOUT).await?;
                // Narrow rights may refuse it; nothing depends on it.
                fresh.call(&["CLIENT", "SETNAME", "crossfade-heartbeat"]).await?;
                slot.insert(fresh)
            }
        };
        let beat = Beat { ms: unix_ms(), at: Instant::now() };
        self.tell.send_modify(|written| written.sent = Some(beat));
        let expiry = (self.interval * KEPT).max(Duration::from_secs(60)).as_millis().to_string();
        let reply = client.call(&["SET", &self.key, &beat.ms.to_string(), "PX", &expiry]).await?;
        Ok(match reply.error() {
            Some(refusal) => Err(refusal),
            None => Ok(beat),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_beat_on_its_way_is_late_and_one_that_came_by_tells_the_lag() {
        let start = Instant::now();
        let mut seen = Seen { due: None, passed_ms: 0, passed: None, since: start };
        let first = Beat { ms: 1000, at: start };
        let second = Beat { ms: 2000, at: start + SECOND };
        let written = Written { sent: Some(second), taken: Some(second), refused: false };
        seen.taken(first);
        seen.taken(second);
        assert_eq!(seen.late_ms(SECOND, start + SECOND), 1000.0);
        // What counts is our own clock, not the wall's.
        seen.passed(1000, written, start + SECOND * 2, 77);
        assert_eq!(seen.passed.unwrap().1, 2000.0);
        assert_eq!(seen.late_ms(SECOND, start + SECOND * 2), 1000.0);
        seen.passed(2000, written, start + SECOND * 2, 77);
        assert_eq!((seen.passed.unwrap().1, seen.late_ms(SECOND, start + SECOND * 2)), (1000.0, 0.0));
        // Told late by the writer, it is not expected again.
        seen.taken(second);
        assert_eq!(seen.due, None);
    }

    #[test]
    fn silence_is_late_too_and_a_beat_of_an_earlier_process_counts_by_the_wall() {
        let start = Instant::now();
        let mut seen = Seen { due: None, passed_ms: 0, passed: None, since: start };
        assert_eq!(seen.late_ms(SECOND, start + SECOND * 9), 0.0, "none ever came by");
        seen.passed(5000, Written::default(), start, 65_000);
        assert_eq!(seen.passed.unwrap().1, 60_000.0);
        assert_eq!(seen.late_ms(SECOND, start + SECOND * 2), 0.0);
        assert_eq!(seen.late_ms(SECOND, start + SECOND * 3), 3000.0);
    }

    #[test]
    fn beats_that_a_snapshot_may_hold_are_not_waited_for() {
        let start = Instant::now();
        let mut seen = Seen { due: None, passed_ms: 0, passed: None, since: start };
        let [first, second, third] =
            [1, 2, 3].map(|n: u32| Beat { ms: u64::from(n), at: start + SECOND * n });
        seen.taken(first);
        // The second is sent, and its answer on its way.
        let written = Written { sent: Some(second), taken: Some(first), refused: false };
        seen.begin_anew(written, start + SECOND * 2);
        seen.taken(second);
        assert_eq!(seen.late_ms(SECOND, start + SECOND * 3), 0.0);
        seen.taken(third);
        assert_eq!(seen.late_ms(SECOND, start + SECOND * 4), 1000.0);
    }

    #[test]
    fn the_key_outlives_an_epoch() {
        assert_eq!(heartbeat_key("orders.3"), heartbeat_key("orders"));
    }
}

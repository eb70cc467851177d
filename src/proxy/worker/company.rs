//! On which processor a worker runs, on a machine that it shares with the server it works for.
//!
//! Where no processor is idle, worker and server belong on the same one: one of them waits for the other most of the time, so together they
//! fill one processor, and the clients have the rest to themselves. The kernel does not find that by itself. It chooses a
//! processor each time it wakes a thread, by what is idle at that moment, and puts the server or the worker beside a client;
//! that client then waits for milliseconds, and with it all the commands that it would have sent. On two cores that costs a tenth of
//! the throughput of 50 clients that send one command at a time.
//!
//! So a lone worker of a server on this machine stays where the server is, as long as the machine is full: the kernel keeps, for each
//! socket, the processor that handed in its last packet (`SO_INCOMING_CPU`, socket(7)), and on the loopback interface that is the sender's.
//! The moment that processors are idle, or clients pipeline (then both have enough to do to run side by side), it may run anywhere again.

use std::cell::{Cell, RefCell};
use std::time::{Duration, Instant};

use crate::server::Stream;

/// The machine is full while less than this many of the worker's processors are idle, on average over [`WINDOW`].
const IDLE: f64 = 0.4;
/// Over how long idleness is measured. The kernel counts it in hundredths of a second.
const WINDOW: Duration = Duration::from_millis(90);
/// The server's processor is asked for once in so many answers: every few milliseconds, when it matters.
const ANSWERS: u32 = 64;

/// Decides whether the worker's thread stays beside its server, and sees to it.
pub(super) struct Company {
    /// None where it does not apply: other workers run beside this one, or there is only one processor.
    rules: Option<RefCell<Rules>>,
    full: Cell<bool>,
    answers: Cell<u32>,
}

impl Company {
    /// For the calling thread; `alone` when no other worker serves this gateway's clients.
    pub(super) fn new(alone: bool) -> Self {
        let rules = if alone { Rules::new() } else { None };
        Self { rules: rules.map(RefCell::new), full: Cell::new(false), answers: Cell::new(0) }
    }

    /// Looks at the machine, from time to time. `pipelined`: whether clients have, since the last look.
    pub(super) fn look(&self, now: Instant, pipelined: bool) {
        let Some(rules) = &self.rules else { return };
        let rules = &mut *rules.borrow_mut();
        if let Some(idle) = rules.idle.look(now, || platform::idle(&rules.allowed)) {
            self.full.set(idle < IDLE);
        }
        if pipelined {
            self.full.set(false);
        }
        if !self.full.get() {
            rules.leave();
        }
    }

    /// The server has answered on this connection.
    #[inline]
    pub(super) fn answered(&self, stream: &Stream) {
        if self.full.get() {
            let answers = self.answers.get() + 1;
            self.answers.set(answers % ANSWERS);
            if answers == ANSWERS {
                self.follow(stream);
            }
        }
    }

    fn follow(&self, stream: &Stream) {
        let (Some(rules), Stream::Tcp(tcp)) = (&self.rules, stream) else { return };
        if tcp.peer_addr().is_ok_and(|peer| peer.ip().to_canonical().is_loopback()) {
            if let Some(processor) = platform::incoming(tcp) {
                rules.borrow_mut().stay_on(processor);
            }
        }
    }
}

/// What is known of the processors.
struct Rules {
    /// Where the thread may run.
    allowed: platform::Processors,
    /// Where it stays at present.
    stays: Option<usize>,
    idle: Idleness,
}

impl Rules {
    fn new() -> Option<Self> {
        let allowed = platform::allowed().filter(|allowed| platform::count(allowed) > 1)?;
        Some(Self { allowed, stays: None, idle: Idleness::default() })
    }

    fn stay_on(&mut self, processor: usize) {
        // Where it is not allowed or not possible, the kernel goes on choosing.
        if self.stays != Some(processor) && platform::stay_on(&self.allowed, processor) {
            self.stays = Some(processor);
        }
    }

    fn leave(&mut self) {
        if self.stays.take().is_some() {
            platform::roam(&self.allowed);
        }
    }
}

/// How many processors were idle lately.
#[derive(Debug, Default)]
struct Idleness {
    last: Option<(Instant, f64)>,
}

impl Idleness {
    /// The number of idle processors since the last answer, once that is [`WINDOW`] ago. `read` gives the seconds that they
    /// have been idle altogether since some moment.
    fn look(&mut self, now: Instant, read: impl FnOnce() -> Option<f64>) -> Option<f64> {
        if let Some((then, _)) = self.last.filter(|(then, _)| now.saturating_duration_since(*then) < WINDOW) {
            debug_assert!(then <= now);
            return None;
        }
        let idle = read()?;
        let (then, before) = self.last.replace((now, idle))?;
        Some((idle - before) / now.saturating_duration_since(then).as_secs_f64())
    }
}

/// Seconds that processors have been idle, from the text of `/proc/stat`: the fourth number of each `cpuN` line
/// (proc_stat(5)), in hundredths.
#[cfg_attr(not(target_os = "linux"), allow(dead_code, reason = "there is no such file"))]
fn idle_seconds(stat: &str, counts: impl Fn(usize) -> bool) -> Option<f64> {
    let mut hundredths = None;
    for line in stat.lines() {
        let mut words = line.split_ascii_whitespace();
        let number =
            words.next().and_then(|name| name.strip_prefix("cpu")).and_then(|number| number.parse().ok());
        if number.is_some_and(&counts) {
            let idle: u64 = words.nth(3)?.parse().ok()?;
            hundredths = Some(hundredths.unwrap_or(0) + idle);
        }
    }
    Some(hundredths? as f64 / 100.0)
}

#[cfg(target_os = "linux")]
mod platform {
    use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

    pub(super) type Processors = CpuSet;

    pub(super) fn allowed() -> Option<CpuSet> {
        sched_getaffinity(None).ok()
    }

    pub(super) fn count(set: &CpuSet) -> u32 {
        set.count()
    }

    pub(super) fn incoming(socket: &tokio::net::TcpStream) -> Option<usize> {
        rustix::net::sockopt::socket_incoming_cpu(socket).ok().and_then(|processor| processor.try_into().ok())
    }

    pub(super) fn stay_on(allowed: &CpuSet, processor: usize) -> bool {
        if processor >= CpuSet::MAX_CPU || !allowed.is_set(processor) {
            return false;
        }
        let mut one = CpuSet::new();
        one.set(processor);
        sched_setaffinity(None, &one).is_ok()
    }

    pub(super) fn roam(allowed: &CpuSet) {
        let _ = sched_setaffinity(None, allowed);
    }

    pub(super) fn idle(allowed: &CpuSet) -> Option<f64> {
        let stat = std::fs::read_to_string("/proc/stat").ok()?;
        super::idle_seconds(&stat, |number| number < CpuSet::MAX_CPU && allowed.is_set(number))
    }
}

#[cfg(not(target_os = "linux"))]
mod platform {
    pub(super) type Processors = ();

    pub(super) fn allowed() -> Option<()> {
        None
    }

    pub(super) fn count((): &()) -> u32 {
        0
    }

    pub(super) fn incoming(_: &tokio::net::TcpStream) -> Option<usize> {
        None
    }

    pub(super) fn stay_on((): &(), _: usize) -> bool {
        false
    }

    pub(super) fn roam((): &()) {}

    pub(super) fn idle((): &()) -> Option<f64> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STAT: &str = "cpu  10 20 30 999 0 0 0 0 0 0\ncpu0 1 2 3 400 5 6 7 8 0 0\ncpu1 1 2 3 250 5 6 7 8 0 0\n\
                        cpu12 1 2 3 7 5 6 7 8 0 0\nintr 5 0 0\n";

    #[test]
    fn only_the_workers_own_processors_count() {
        assert_eq!(idle_seconds(STAT, |_| true), Some(6.57));
        assert_eq!(idle_seconds(STAT, |number| number == 1), Some(2.5));
        assert_eq!(idle_seconds(STAT, |number| number == 12), Some(0.07));
        assert_eq!(idle_seconds(STAT, |number| number == 2), None);
        assert_eq!(idle_seconds("cpu0 1 2\n", |_| true), None);
    }

    #[test]
    fn idleness_is_an_average_over_the_time_between_two_looks() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut idle = Idleness::default();
        assert_eq!(idle.look(at(0), || Some(10.0)), None);
        assert_eq!(idle.look(at(100), || panic!("too early")), None);
        assert_eq!(idle.look(at(400), || Some(10.2)).map(|idle| (idle * 100.0).round()), Some(50.0));
        assert_eq!(idle.look(at(700), || None), None);
        assert_eq!(idle.look(at(1400), || Some(10.2)), Some(0.0));
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_thread_stays_where_it_is_told_and_may_roam_again() {
        std::thread::spawn(|| {
            let Some(mut rules) = Rules::new() else { return };
            let first = (0..).find(|number| rules.allowed.is_set(*number)).unwrap();
            let here = || rustix::thread::sched_getaffinity(None).unwrap();
            rules.stay_on(rustix::thread::CpuSet::MAX_CPU);
            assert_eq!((rules.stays, here().count()), (None, rules.allowed.count()));
            rules.stay_on(first);
            assert_eq!((rules.stays, here().count(), here().is_set(first)), (Some(first), 1, true));
            rules.leave();
            assert_eq!((rules.stays, here().count()), (None, rules.allowed.count()));
        })
        .join()
        .unwrap();
    }
}

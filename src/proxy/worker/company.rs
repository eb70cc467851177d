//! On which processor a worker runs, on a machine that it shares with the server it works for.
//!
//! Where no processor is idle, worker and server belong on the same one: one of them waits for the other most of the time, so together
//! they fill one processor, and the clients have the rest to themselves. The kernel does not find that by itself. It chooses a
//! processor each time it wakes a thread, by what is idle at that moment, and puts the server or the worker beside a client;
//! that client then waits for milliseconds, and with it all the commands that it would have sent. On two cores that costs a tenth of
//! the throughput of 50 clients that send one command at a time.
//!
//! So a lone worker of a server on this machine stays where the server is, as long as the machine is full ([`processors::incoming`] tells
//! where that is), and the mirror keeps off that processor. The moment that processors are idle, or clients pipeline (then
//! worker and server both have enough to do to run side by side), both may run anywhere again.

use std::cell::{Cell, RefCell};
use std::time::{Duration, Instant};

use crate::server::Stream;
use crate::server::processors::{self, Processors};

/// The machine is full while less than this many of the worker's processors are idle, on average over [`WINDOW`].
const IDLE: f64 = 0.4;
/// Over how long idleness is measured: from one tick of the worker to the next. The kernel counts it in hundredths of a second.
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
        if let Some(idle) = rules.idle.look(now, || rules.allowed.idle()) {
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
            if let Some(processor) = processors::incoming(tcp) {
                rules.borrow_mut().stay_on(processor);
            }
        }
    }
}

/// What is known of the processors.
struct Rules {
    /// Where the thread may run.
    allowed: Processors,
    /// Where it stays at present.
    stays: Option<usize>,
    idle: Idleness,
}

impl Rules {
    fn new() -> Option<Self> {
        let allowed = Processors::allowed().filter(|allowed| allowed.count() > 1)?;
        Some(Self { allowed, stays: None, idle: Idleness::default() })
    }

    fn stay_on(&mut self, processor: usize) {
        // Where it is not allowed or not possible, the kernel goes on choosing.
        if self.stays != Some(processor) && self.allowed.only(processor).is_some_and(|one| one.apply()) {
            self.stays = Some(processor);
            processors::share(self.stays);
        }
    }

    fn leave(&mut self) {
        if self.stays.take().is_some() {
            self.allowed.apply();
            processors::share(None);
        }
    }
}

impl Drop for Rules {
    fn drop(&mut self) {
        self.leave();
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
        if self.last.is_some_and(|(then, _)| now.saturating_duration_since(then) < WINDOW) {
            return None;
        }
        let idle = read()?;
        let (then, before) = self.last.replace((now, idle))?;
        Some((idle - before) / now.saturating_duration_since(then).as_secs_f64())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idleness_is_an_average_over_the_time_between_two_looks() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut idle = Idleness::default();
        assert_eq!(idle.look(at(0), || Some(10.0)), None);
        assert_eq!(idle.look(at(50), || panic!("too early")), None);
        assert_eq!(idle.look(at(400), || Some(10.2)).map(|idle| (idle * 100.0).round()), Some(50.0));
        assert_eq!(idle.look(at(700), || None), None);
        assert_eq!(idle.look(at(1400), || Some(10.2)), Some(0.0));
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_thread_stays_where_it_is_told_and_may_roam_again() {
        std::thread::spawn(|| {
            let here = || Processors::allowed().unwrap();
            let Some(mut rules) = Rules::new() else { return };
            let all = here();
            let first = (0..).find(|number| all.has(*number)).unwrap();
            rules.stay_on(usize::MAX - 1);
            assert_eq!((rules.stays, here()), (None, all.clone()));
            rules.stay_on(first);
            assert_eq!((rules.stays, here()), (Some(first), all.only(first).unwrap()));
            rules.leave();
            assert_eq!((rules.stays, here()), (None, all));
        })
        .join()
        .unwrap();
    }
}

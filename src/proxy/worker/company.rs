//! On which processor a worker runs, on a machine that it shares with the server it works for.
//!
//! Where no processor is idle, worker and server belong on the same one: one of them waits for the other most of the time, so together
//! they fill one processor, and the clients have the rest to themselves. The kernel does not find that by itself. It chooses a
//! processor each time it wakes a thread, by what is idle at that moment, and puts the server or the worker beside a client;
//! that client then waits for milliseconds, and with it all the commands that it would have sent. On two cores that costs a tenth of
//! the throughput of 50 clients that send one command at a time.
//!
//! So a lone worker of a server on this machine stays where the server is, as long as the machine is full ([`processors::of_server`] tells
//! where that is); the mirror then runs where the destination does not. The kernel moves the server some ten times a second, more often
//! with a mirror, and as long as worker and server are apart, one of them is beside the clients: so the worker follows within a millisecond.
//! It may run anywhere again the moment that
//! - processors are idle. Where it was the staying itself that left others idle, since worker and server need more than one, it is
//!   not tried again for a while;
//! - clients pipeline, or there is only one: then worker and server should run side by side;
//! - the server that answers is not on this machine.

use std::cell::{Cell, RefCell};
use std::time::{Duration, Instant};

use crate::server::Stream;
use crate::server::processors::{self, Processors};

/// The machine is full when less than this many of the worker's processors are idle, on average over [`WINDOW`].
const IDLE: f64 = 0.4;
/// It is not any more when so many are.
const LEAVES: f64 = 0.7;
/// A processor is full while it is idle for less than this part of the time.
const FULL: f64 = 0.1;
/// Over how long idleness is measured: from one tick of the worker to the next. The kernel counts it in hundredths of a second.
const WINDOW: Duration = Duration::from_millis(90);
/// The server's processor is asked for once in so many answers: about once in a millisecond, when it matters. With 64 a mirror costs 3 %
/// more of the throughput.
const ANSWERS: u32 = 4;
/// With fewer answers than this from one tick of the worker to the next, it is not the gateway that fills the machine.
const BUSY: u32 = 64;
/// So many windows in a row in which the worker's processor was full and more than [`IDLE`] others were idle, and staying is to blame.
const WASTED: u32 = 5;
/// For how long the worker roams then.
const BACK_OFF: Duration = Duration::from_secs(10);

/// Decides whether the worker's thread stays beside its server, and sees to it.
pub(super) struct Company {
    /// None where it does not apply: other workers run beside this one, or there is only one processor.
    place: Option<RefCell<Place>>,
    full: Cell<bool>,
    /// Answers since the last look.
    answers: Cell<u32>,
    /// Whether it has been asked since then where the server is, and whether that is on this machine.
    asked: Cell<bool>,
    near: Cell<bool>,
}

impl Company {
    /// For the calling thread; `alone` when no other worker serves this gateway's clients.
    pub(super) fn new(alone: bool) -> Self {
        let place = if alone { Place::new() } else { None };
        Self {
            place: place.map(RefCell::new),
            full: Cell::new(false),
            answers: Cell::new(0),
            asked: Cell::new(false),
            near: Cell::new(false),
        }
    }

    /// Looks at the machine, from time to time. `apart`: whether clients have done, since the last look, what worker and server do better
    /// side by side.
    pub(super) fn look(&self, now: Instant, apart: bool) {
        let Some(place) = &self.place else { return };
        let mut place = place.borrow_mut();
        let busy = self.answers.take() >= BUSY;
        self.asked.set(false);
        if self.near.take() && busy && !apart {
            let idle = place.allowed.idle();
            self.full.set(place.is_for_staying(now, idle).unwrap_or(self.full.get()));
        } else {
            place.last = None;
            self.full.set(false);
        }
        if !self.full.get() {
            place.leave();
        }
    }

    /// The server has answered on this connection.
    #[inline]
    pub(super) fn answered(&self, stream: &Stream) {
        let answers = self.answers.get() + 1;
        self.answers.set(answers);
        if answers.is_multiple_of(ANSWERS) {
            self.follow(stream);
        }
    }

    fn follow(&self, stream: &Stream) {
        let Some(place) = &self.place else { return };
        if self.asked.replace(true) && !self.full.get() {
            return;
        }
        if let Some(processor) = processors::of_server(stream) {
            self.near.set(true);
            if self.full.get() {
                place.borrow_mut().stay_on(processor);
            }
        }
    }
}

/// Where a worker may run and does.
struct Place {
    allowed: Processors,
    /// Where it stays at present.
    stays: Option<usize>,
    /// When the processors were looked at last, and for how many seconds each had been idle then.
    last: Option<(Instant, Vec<(usize, f64)>)>,
    /// Windows in a row in which it filled its processor and left others idle.
    wasted: u32,
    /// Until when it roams, whatever is idle.
    roams_until: Option<Instant>,
}

impl Place {
    fn new() -> Option<Self> {
        let allowed = Processors::allowed().filter(|allowed| allowed.count() > 1)?;
        Some(Self { allowed, stays: None, last: None, wasted: 0, roams_until: None })
    }

    /// Whether this is a time for staying beside the server; `None` while it is too early to tell. `idle`: for how many seconds each
    /// processor has been idle by now.
    fn is_for_staying(&mut self, now: Instant, idle: Vec<(usize, f64)>) -> Option<bool> {
        let Some((then, before)) = &self.last else {
            self.last = Some((now, idle));
            return None;
        };
        let seconds = now.saturating_duration_since(*then).as_secs_f64();
        if seconds < WINDOW.as_secs_f64() {
            return None;
        }
        let (mut whole, mut own) = (0.0, 0.0);
        for ((number, after), (_, before)) in idle.iter().zip(before) {
            let part = (after - before) / seconds;
            whole += part;
            if self.stays == Some(*number) {
                own = part;
            }
        }
        self.last = Some((now, idle));
        let stays = self.stays.is_some();
        self.wasted = if stays && whole >= IDLE && own < FULL { self.wasted + 1 } else { 0 };
        if self.wasted == WASTED {
            self.wasted = 0;
            self.roams_until = Some(now + BACK_OFF);
        }
        let bound = if stays { LEAVES } else { IDLE };
        Some(whole < bound && self.roams_until.is_none_or(|end| now >= end))
    }

    fn stay_on(&mut self, processor: usize) {
        if self.stays == Some(processor) {
            return;
        }
        if self.allowed.only(processor).is_some_and(|one| one.apply()) {
            self.stays = Some(processor);
            processors::share(self.stays);
        } else {
            // Where it is not allowed or not possible, the kernel chooses.
            self.leave();
        }
    }

    fn leave(&mut self) {
        if self.stays.take().is_some() {
            self.allowed.apply();
            processors::share(None);
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.leave();
    }
}

#[cfg(test)]
#[cfg(target_os = "linux")]
mod tests {
    use super::*;

    #[test]
    fn a_full_machine_is_for_staying_unless_staying_leaves_others_idle() {
        let Some(mut place) = Place::new() else { return };
        let start = Instant::now();
        let mut tenths = 0;
        let mut idle = [50.0, 90.0];
        // A tenth of a second in which each was idle for so many hundredths.
        let mut look = |place: &mut Place, hundredths: [f64; 2]| {
            tenths += 1;
            idle = [idle[0] + hundredths[0] / 100.0, idle[1] + hundredths[1] / 100.0];
            place
                .is_for_staying(start + Duration::from_millis(tenths * 100), vec![(0, idle[0]), (1, idle[1])])
        };
        assert_eq!(look(&mut place, [0.0, 0.0]), None);
        assert_eq!(look(&mut place, [1.0, 2.0]), Some(true));
        assert_eq!(look(&mut place, [5.0, 0.0]), Some(false));
        assert_eq!(look(&mut place, [0.0, 1.0]), Some(true));
        place.stays = Some(0);
        // A pause of the clients is no reason to leave, the end of the load is.
        assert_eq!(look(&mut place, [2.0, 3.0]), Some(true));
        assert_eq!(look(&mut place, [9.0, 9.0]), Some(false));
        // It fills its own, and the other one is idle.
        for _ in 1..WASTED {
            assert_eq!(look(&mut place, [0.0, 5.0]), Some(true));
        }
        assert_eq!(look(&mut place, [0.0, 5.0]), Some(false));
        place.stays = None;
        for _ in 1..100 {
            assert_eq!(look(&mut place, [0.0, 0.0]), Some(false));
        }
        assert_eq!(look(&mut place, [0.0, 0.0]), Some(true));
    }

    #[test]
    fn a_thread_stays_where_it_is_told_and_may_roam_again() {
        std::thread::spawn(|| {
            let here = || Processors::allowed().unwrap();
            let Some(mut place) = Place::new() else { return };
            let all = here();
            let first = (0..).find(|number| all.has(*number)).unwrap();
            place.stay_on(usize::MAX - 1);
            assert_eq!((place.stays, here()), (None, all.clone()));
            place.stay_on(first);
            assert_eq!((place.stays, here()), (Some(first), all.only(first).unwrap()));
            // The server went where this one may not.
            place.stay_on(usize::MAX - 1);
            assert_eq!((place.stays, here()), (None, all.clone()));
            place.stay_on(first);
            place.leave();
            assert_eq!((place.stays, here()), (None, all));
        })
        .join()
        .unwrap();
    }
}

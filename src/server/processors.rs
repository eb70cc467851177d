//! On which processors a thread may run, and which of them a server beside it uses.
//!
//! Only Linux knows any of this; elsewhere [`Processors::allowed`] is `None`, and everything stays with the kernel.

use std::cell::RefCell;
use std::sync::atomic::{AtomicUsize, Ordering};

pub(crate) use platform::{Processors, incoming};

/// The processor that a worker and its server share for the time being; [`NONE`] while there is no such thing.
static SHARED: AtomicUsize = AtomicUsize::new(NONE);
const NONE: usize = usize::MAX;

/// Says, to threads that had better keep off it, on which processor a worker stays beside its server.
pub(crate) fn share(processor: Option<usize>) {
    SHARED.store(processor.unwrap_or(NONE), Ordering::Relaxed);
}

struct Aside {
    allowed: Option<Processors>,
    kept_off: usize,
}

thread_local! {
    static ASIDE: RefCell<Aside> = RefCell::new(Aside {
        allowed: Processors::allowed().filter(|allowed| allowed.count() > 1),
        kept_off: NONE,
    });
}

/// Keeps the calling thread off the processor that a worker shares with its server: what it does there would hold up every client.
/// To be called again and again; costs next to nothing while the worker stays where it was.
pub(crate) fn stand_aside() {
    ASIDE.with_borrow_mut(|aside| {
        let shared = SHARED.load(Ordering::Relaxed);
        if shared != aside.kept_off {
            aside.kept_off = shared;
            if let Some(allowed) = &aside.allowed {
                allowed.without(shared).apply();
            }
        }
    });
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

    /// A set of processors.
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub(crate) struct Processors(CpuSet);

    impl Processors {
        /// Those on which the calling thread may run.
        pub(crate) fn allowed() -> Option<Self> {
            sched_getaffinity(None).ok().map(Self)
        }

        pub(crate) fn count(&self) -> u32 {
            self.0.count()
        }

        pub(crate) fn has(&self, processor: usize) -> bool {
            processor < CpuSet::MAX_CPU && self.0.is_set(processor)
        }

        /// This one alone.
        pub(crate) fn only(&self, processor: usize) -> Option<Self> {
            self.has(processor).then(|| {
                let mut one = CpuSet::new();
                one.set(processor);
                Self(one)
            })
        }

        /// All but this one.
        pub(crate) fn without(&self, processor: usize) -> Self {
            let mut rest = self.clone();
            if self.has(processor) {
                rest.0.unset(processor);
            }
            rest
        }

        /// Lets the calling thread run on these only; false where that is not allowed.
        pub(crate) fn apply(&self) -> bool {
            sched_setaffinity(None, &self.0).is_ok()
        }

        /// For how many seconds they have been idle altogether since some moment.
        pub(crate) fn idle(&self) -> Option<f64> {
            let stat = std::fs::read_to_string("/proc/stat").ok()?;
            super::idle_seconds(&stat, |number| self.has(number))
        }
    }

    /// The processor that handed in the last packet of a socket (`SO_INCOMING_CPU`, socket(7)). On the loopback interface that is the
    /// sender's.
    pub(crate) fn incoming(socket: &tokio::net::TcpStream) -> Option<usize> {
        rustix::net::sockopt::socket_incoming_cpu(socket).ok().and_then(|processor| processor.try_into().ok())
    }
}

#[cfg(not(target_os = "linux"))]
mod platform {
    /// Nothing is known of them here.
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub(crate) enum Processors {}

    impl Processors {
        pub(crate) fn allowed() -> Option<Self> {
            None
        }

        pub(crate) fn count(&self) -> u32 {
            match *self {}
        }

        pub(crate) fn only(&self, _: usize) -> Option<Self> {
            match *self {}
        }

        pub(crate) fn without(&self, _: usize) -> Self {
            match *self {}
        }

        pub(crate) fn apply(&self) -> bool {
            match *self {}
        }

        pub(crate) fn idle(&self) -> Option<f64> {
            match *self {}
        }
    }

    pub(crate) fn incoming(_: &tokio::net::TcpStream) -> Option<usize> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STAT: &str = "cpu  10 20 30 999 0 0 0 0 0 0\ncpu0 1 2 3 400 5 6 7 8 0 0\ncpu1 1 2 3 250 5 6 7 8 0 0\n\
                        cpu12 1 2 3 7 5 6 7 8 0 0\nintr 5 0 0\n";

    #[test]
    fn only_those_that_count_are_idle() {
        assert_eq!(idle_seconds(STAT, |_| true), Some(6.57));
        assert_eq!(idle_seconds(STAT, |number| number == 1), Some(2.5));
        assert_eq!(idle_seconds(STAT, |number| number == 12), Some(0.07));
        assert_eq!(idle_seconds(STAT, |number| number == 2), None);
        assert_eq!(idle_seconds("cpu0 1 2\n", |_| true), None);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_thread_keeps_off_what_another_shares_with_its_server() {
        std::thread::spawn(|| {
            let here = || Processors::allowed().unwrap();
            let all = here();
            stand_aside();
            if all.count() < 2 {
                return;
            }
            let first = (0..).find(|number| all.has(*number)).unwrap();
            assert_eq!(all.only(usize::MAX - 1), None);
            share(Some(first));
            stand_aside();
            assert_eq!(here(), all.without(first));
            assert_eq!(here().count(), all.count() - 1);
            share(None);
            stand_aside();
            assert_eq!(here(), all);
        })
        .join()
        .unwrap();
    }
}

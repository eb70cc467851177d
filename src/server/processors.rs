//! On which processors a thread may run, which of them a worker shares with a server beside it, and which the mirror leaves alone.
//!
//! On a full machine with two processors there are three things to be done at a time: the clients, the worker with its server, and the
//! destination. Two of them come to share a processor, and the kernel decides which, as it sees fit, some ten times a second:
//!
//! ```text
//! worker, server, destination | clients, mirror
//! worker, server, mirror      | clients, destination
//! ```
//! The mirror, which has the least to do, makes up for it: it keeps off the processor on which the destination was last. With three
//! processors it keeps off the worker's, with more off both.
//!
//! Only Linux knows any of this; elsewhere [`Processors::allowed`] is `None`, and everything stays with the kernel.

use std::cell::RefCell;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::Stream;

pub(crate) use platform::Processors;

/// The processor that a worker and its server share for the time being; [`NONE`] while there is no such thing.
static SHARED: AtomicUsize = AtomicUsize::new(NONE);
/// The processor on which the server was, when it answered last, that the mirror writes to; [`NONE`] where that is not known.
static DESTINATION: AtomicUsize = AtomicUsize::new(NONE);
const NONE: usize = usize::MAX;

/// Says, to threads that had better know, on which processor a worker stays beside its server.
pub(crate) fn share(processor: Option<usize>) {
    SHARED.store(processor.unwrap_or(NONE), Ordering::Relaxed);
}

/// The same of the destination, where it was when it answered on this connection a moment ago; costs next to nothing while no worker stays anywhere.
pub(crate) fn note_destination(stream: &Stream) {
    if SHARED.load(Ordering::Relaxed) != NONE {
        DESTINATION.store(of_server(stream).unwrap_or(NONE), Ordering::Relaxed);
    }
}

/// The destination has nothing to do, or the mirror no connection to it any more.
pub(crate) fn forget_destination() {
    DESTINATION.store(NONE, Ordering::Relaxed);
}

/// On which processor a server on this machine was when it sent what came last on this connection; `None` for any other server, and
/// where it is not known.
pub(crate) fn of_server(stream: &Stream) -> Option<usize> {
    let Stream::Tcp(tcp) = stream else { return None };
    let here = tcp.peer_addr().is_ok_and(|peer| peer.ip().to_canonical().is_loopback());
    if here { platform::incoming(tcp) } else { None }
}

/// While a worker stays beside its server, keeps the calling thread off the destination's processor if there are two, off the worker's if
/// there are three, and off both if there are more; off the worker's alone as long as nothing is known of the destination.
/// To be called again and again; costs next to nothing while all are where they were.
pub fn stand_aside() {
    thread_local! {
        static ASIDE: RefCell<Aside> = RefCell::new(Aside::new());
    }
    ASIDE.with_borrow_mut(|aside| {
        aside.keep_off(SHARED.load(Ordering::Relaxed), DESTINATION.load(Ordering::Relaxed));
    });
}

/// Lets the calling thread run wherever the process could at its start: a thread inherits what bound the one that started it.
pub fn roam() {
    if let Some(whole) = whole() {
        whole.apply();
    }
}

/// What the process could run on when this was first asked, which is before any of its threads is bound.
fn whole() -> Option<&'static Processors> {
    static WHOLE: OnceLock<Option<Processors>> = OnceLock::new();
    WHOLE.get_or_init(Processors::allowed).as_ref()
}

/// A thread that keeps off processors.
struct Aside {
    allowed: Option<Processors>,
    kept_off: (usize, usize),
}

impl Aside {
    fn new() -> Self {
        Self { allowed: whole().filter(|all| all.count() > 1).cloned(), kept_off: (NONE, NONE) }
    }

    /// `shared`: where a worker stays beside its server; `destination`: where the other server is.
    #[inline]
    fn keep_off(&mut self, shared: usize, destination: usize) {
        let destination = if shared == NONE { NONE } else { destination };
        if (shared, destination) != self.kept_off {
            self.kept_off = (shared, destination);
            if let Some(allowed) = &self.allowed {
                let rest = allowed.without(shared).without(destination);
                let here = match allowed.count() {
                    2 if rest.count() == 0 => allowed.without(destination),
                    3 => allowed.without(shared),
                    _ => rest,
                };
                here.apply();
            }
        }
    }
}

/// Seconds since some moment that each processor has had nothing to do, from the text of `/proc/stat`: the fourth and the fifth
/// number of each `cpuN` line (proc_stat(5): idle, and idle while something waits for a disk), in hundredths.
#[cfg_attr(not(target_os = "linux"), allow(dead_code, reason = "there is no such file"))]
fn idle_seconds(stat: &str) -> impl Iterator<Item = (usize, f64)> {
    stat.lines().filter_map(|line| {
        let mut words = line.split_ascii_whitespace();
        // The line of all processors together has no number.
        let number = words.next()?.strip_prefix("cpu")?.parse().ok()?;
        let mut idle = words.skip(3).map_while(|word| word.parse::<u64>().ok());
        Some((number, (idle.next()? + idle.next()?) as f64 / 100.0))
    })
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

        /// For how many seconds since some moment each of them has been idle.
        pub(crate) fn idle(&self) -> Vec<(usize, f64)> {
            let stat = std::fs::read_to_string("/proc/stat").unwrap_or_default();
            super::idle_seconds(&stat).filter(|(number, _)| self.has(*number)).collect()
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

        pub(crate) fn idle(&self) -> Vec<(usize, f64)> {
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
    fn each_processor_has_its_idle_time() {
        assert_eq!(idle_seconds(STAT).collect::<Vec<_>>(), [(0, 4.05), (1, 2.55), (12, 0.12)]);
        assert_eq!(idle_seconds("cpu0 1 2 3 4\ncpu1 1 2 3 x 5\ncpux 1 2 3 4 5\n").count(), 0);
    }

    #[tokio::test]
    #[cfg(target_os = "linux")]
    async fn a_server_on_this_machine_is_where_it_sent_from() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = tokio::net::TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (server, _) = listener.accept().await.unwrap();
        let mut stream = Stream::Tcp(client);
        server.writable().await.unwrap();
        let all = Processors::allowed().unwrap();
        for number in (0..1024).filter(|number| all.has(*number)) {
            let server = &server;
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    all.only(number).unwrap().apply();
                    assert_eq!(server.try_write(b"+OK").unwrap(), 3);
                });
            });
            assert_eq!(tokio::io::AsyncReadExt::read_exact(&mut stream, &mut [0; 3]).await.unwrap(), 3);
            assert_eq!(of_server(&stream), Some(number));
        }
        let (unix, _other) = tokio::net::UnixStream::pair().unwrap();
        assert_eq!(of_server(&Stream::Unix(unix)), None);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_thread_keeps_off_what_another_shares_with_its_server() {
        std::thread::spawn(|| {
            let here = || Processors::allowed().unwrap();
            let all = here();
            let mut aside = Aside::new();
            if all.count() < 2 {
                return;
            }
            let mut numbers = (0..).filter(|number| all.has(*number));
            let (first, second) = (numbers.next().unwrap(), numbers.next().unwrap());
            assert_eq!(all.only(usize::MAX - 1), None);
            aside.keep_off(first, NONE);
            assert_eq!(here(), all.without(first));
            assert_eq!(here().count(), all.count() - 1);
            aside.keep_off(first, first);
            assert_eq!(here(), all.without(first));
            aside.keep_off(first, second);
            let expected = match all.count() {
                2 => all.without(second),
                3 => all.without(first),
                _ => all.without(first).without(second),
            };
            assert_eq!(here(), expected);
            // No worker stays anywhere.
            aside.keep_off(NONE, second);
            assert_eq!(here(), all);
            all.only(first).unwrap().apply();
            roam();
            assert_eq!(here(), all);
        })
        .join()
        .unwrap();
    }
}

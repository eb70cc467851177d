//! Every client of the gateway, whatever worker serves it: what CLIENT LIST shows and CLIENT KILL ends.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::time::Instant;

use bytes::Bytes;
use dashmap::DashMap;
use futures_util::task::AtomicWaker;
use parking_lot::Mutex;
use tokio::sync::Notify;

/// What is known of one client outside its worker.
#[derive(Debug)]
pub(super) struct ClientEntry {
    pub(super) id: u64,
    pub(super) addr: String,
    pub(super) laddr: String,
    pub(super) since: Instant,
    pub(super) name: Mutex<Bytes>,
    pub(super) user: Mutex<Bytes>,
    pub(super) lib_name: Mutex<Bytes>,
    pub(super) lib_ver: Mutex<Bytes>,
    pub(super) db: AtomicU32,
    pub(super) resp: AtomicU32,
    /// The id that the server gave to the pinned connection of this client; 0 without one.
    pub(super) server_id: AtomicU64,
    /// The server is to send this client the invalidations of another: it keeps a connection for itself.
    pub(super) redirected_to: AtomicBool,
    /// Told when this client has got a connection for itself, or can have none.
    pub(super) connected: Notify,
    /// What it was told of another's keys holds no longer: it has to hear so.
    pub(super) forgets: AtomicBool,
    /// Set by CLIENT KILL.
    pub(super) killed: AtomicBool,
    pub(super) waker: AtomicWaker,
    /// Milliseconds from `since` to the last command.
    pub(super) last_active: AtomicU64,
    /// Flags as CLIENT LIST shows them: P for pub/sub, x in a transaction, b blocked, O monitor, N none.
    pub(super) flags: Mutex<&'static str>,
}

impl ClientEntry {
    /// One line of CLIENT LIST, in Redis's own format (`catClientInfoString`).
    pub(super) fn line(&self, now: Instant) -> String {
        let age = now.saturating_duration_since(self.since).as_millis() as u64;
        let idle = age.saturating_sub(self.last_active.load(Ordering::Relaxed)) / 1000;
        format!(
            "id={} addr={} laddr={} fd=-1 name={} age={} idle={} flags={} db={} sub=0 psub=0 ssub=0 multi=-1 \
             watch=0 qbuf=0 qbuf-free=0 argv-mem=0 multi-mem=0 rbs=0 rbp=0 obl=0 oll=0 omem=0 tot-mem=0 events=r \
             cmd=NULL user={} redir=-1 resp={} lib-name={} lib-ver={}\n",
            self.id,
            self.addr,
            self.laddr,
            String::from_utf8_lossy(&self.name.lock()),
            age / 1000,
            idle,
            *self.flags.lock(),
            self.db.load(Ordering::Relaxed),
            String::from_utf8_lossy(&self.user.lock()),
            self.resp.load(Ordering::Relaxed),
            String::from_utf8_lossy(&self.lib_name.lock()),
            String::from_utf8_lossy(&self.lib_ver.lock()),
        )
    }

    /// Ends this client: its own worker closes the connection.
    pub(super) fn kill(&self) {
        self.killed.store(true, Ordering::Release);
        self.waker.wake();
    }
}

/// All clients by their id.
#[derive(Debug, Default)]
pub(super) struct Registry {
    clients: DashMap<u64, Arc<ClientEntry>>,
    /// Places that are taken: one for each client, from before it is in `clients` until after it is not.
    taken: AtomicUsize,
    next: AtomicU64,
}

impl Registry {
    /// An id that no client had before.
    pub(super) fn next_id(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Takes one of `most` places for a client; false when there is none. [`Self::remove`] gives it back.
    pub(super) fn reserve(&self, most: usize) -> bool {
        // Several workers accept at once: looking and taking is one step.
        let one_more = |taken| (taken < most).then_some(taken + 1);
        self.taken.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more).is_ok()
    }

    /// A client that has its place.
    pub(super) fn insert(&self, entry: Arc<ClientEntry>) {
        self.clients.insert(entry.id, entry);
    }

    pub(super) fn remove(&self, id: u64) {
        if self.clients.remove(&id).is_some() {
            self.taken.fetch_sub(1, Ordering::Relaxed);
        }
    }

    pub(super) fn find(&self, id: u64) -> Option<Arc<ClientEntry>> {
        self.clients.get(&id).map(|entry| Arc::clone(entry.value()))
    }

    /// The id that the server knows this client's own connection by; 0 when there is none.
    pub(super) fn connection_of(&self, id: u64) -> u64 {
        self.find(id).map_or(0, |entry| entry.server_id.load(Ordering::SeqCst))
    }

    pub(super) fn len(&self) -> usize {
        self.clients.len()
    }

    /// All clients, oldest first.
    pub(super) fn all(&self) -> Vec<Arc<ClientEntry>> {
        let mut all: Vec<_> = self.clients.iter().map(|entry| Arc::clone(entry.value())).collect();
        all.sort_by_key(|entry| entry.id);
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_place_is_taken_twice() {
        let (registry, together) = (Registry::default(), std::sync::Barrier::new(4));
        let taken: usize = std::thread::scope(|scope| {
            let takes = || {
                together.wait();
                (0..300_000).filter(|_| registry.reserve(1_000_000)).count()
            };
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(takes)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        assert_eq!(taken, 1_000_000);
        assert!(!registry.reserve(1_000_000));
        assert!(registry.reserve(1_000_001));
    }
}

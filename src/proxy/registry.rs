//! Every client of the gateway, whatever worker serves it: what CLIENT LIST shows and CLIENT KILL ends.
//!
//! A client's worker writes what others may look at; nothing here is locked, and little is written, on the path of commands.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU16, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::time::Instant;

use bytes::Bytes;
use dashmap::DashMap;
use futures_util::task::AtomicWaker;
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::Active;
use crate::command;

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
    /// The connection that this client has for itself.
    pub(super) connection: OwnConnection,
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
    pub(super) shown: Shown,
}

/// The connection that a client has for itself, as its server names it: the id, and which server's it is. Another worker may
/// be on the other side of a switch already, where the same id is somebody else's.
#[derive(Debug, Default)]
pub(super) struct OwnConnection(AtomicU64);

impl OwnConnection {
    pub(super) fn set(&self, side: Active, id: u64) {
        self.0.store(id << 1 | u64::from(side == Active::Destination), Ordering::SeqCst);
    }

    pub(super) fn clear(&self) {
        self.0.store(0, Ordering::SeqCst);
    }

    /// Its id on this side; 0 when there is none.
    pub(super) fn on(&self, side: Active) -> u64 {
        let known = self.0.load(Ordering::SeqCst);
        if known & 1 == u64::from(side == Active::Destination) { known >> 1 } else { 0 }
    }
}

/// What CLIENT LIST shows of a client's state, as its worker has written it last.
#[derive(Debug, Default)]
pub(super) struct Shown {
    /// The number of the command that came last ([`command::name_of`]).
    pub(super) cmd: AtomicU16,
    /// Bits of [`flag`].
    pub(super) flags: AtomicU32,
    pub(super) channels: AtomicU32,
    pub(super) patterns: AtomicU32,
    pub(super) shards: AtomicU32,
    pub(super) watched: AtomicU32,
    /// Commands in the transaction and 1; 0 where there is none.
    pub(super) queued: AtomicU32,
    /// The client that gets its invalidations, 0 if it does so itself, and -1 where it does not track; and 1.
    pub(super) redirect: AtomicI64,
}

impl Shown {
    /// The client holds no state at the server.
    pub(super) fn clear(&self) {
        let Self { cmd: _, flags, channels, patterns, shards, watched, queued, redirect } = self;
        for counter in [flags, channels, patterns, shards, watched, queued] {
            counter.store(0, Ordering::Relaxed);
        }
        redirect.store(0, Ordering::Relaxed);
    }
}

/// The flags of CLIENT LIST (`catClientInfoString` in `networking.c`).
pub(super) mod flag {
    /// The letters of the bits, in the order in which servers show them.
    pub(super) const LETTERS: &str = "SOPxbtRBdUeTI";
    pub(in crate::proxy) const REPLICA: u32 = 1;
    pub(in crate::proxy) const MONITOR: u32 = 1 << 1;
    pub(in crate::proxy) const PUBSUB: u32 = 1 << 2;
    pub(in crate::proxy) const TRANSACTION: u32 = 1 << 3;
    pub(in crate::proxy) const BLOCKED: u32 = 1 << 4;
    pub(in crate::proxy) const TRACKING: u32 = 1 << 5;
    pub(in crate::proxy) const BROKEN_REDIRECT: u32 = 1 << 6;
    pub(in crate::proxy) const BROADCAST: u32 = 1 << 7;
    /// EXEC will answer nil, as far as the gateway knows.
    pub(in crate::proxy) const CONFLICT: u32 = 1 << 8;
    pub(super) const UNIX_SOCKET: u32 = 1 << 9;
    pub(in crate::proxy) const NO_EVICT: u32 = 1 << 10;
    pub(in crate::proxy) const NO_TOUCH: u32 = 1 << 11;
    pub(in crate::proxy) const IMPORT_SOURCE: u32 = 1 << 12;
}

/// What CLIENT LIST and CLIENT KILL call the type of a client. A monitor is an ordinary one, and the gateway has no master.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ClientType {
    Normal,
    Replica,
    PubSub,
    Master,
}

impl ClientType {
    /// By its name, in whatever case.
    pub(super) fn parse(name: &[u8]) -> Option<Self> {
        match name.to_ascii_lowercase().as_slice() {
            b"normal" => Some(Self::Normal),
            b"replica" | b"slave" => Some(Self::Replica),
            b"pubsub" => Some(Self::PubSub),
            b"master" => Some(Self::Master),
            _ => None,
        }
    }
}

impl ClientEntry {
    /// One line of CLIENT LIST, in Redis's own format (`catClientInfoString`).
    pub(super) fn line(&self, now: Instant) -> String {
        let age = now.saturating_duration_since(self.since).as_millis() as u64;
        let idle = age.saturating_sub(self.last_active.load(Ordering::Relaxed)) / 1000;
        let shown = &self.shown;
        let count = |counter: &AtomicU32| counter.load(Ordering::Relaxed);
        format!(
            "id={} addr={} laddr={} fd=-1 name={} age={} idle={} flags={} db={} sub={} psub={} ssub={} multi={} \
             watch={} qbuf=0 qbuf-free=0 argv-mem=0 multi-mem=0 rbs=0 rbp=0 obl=0 oll=0 omem=0 tot-mem=0 events=r \
             cmd={} user={} redir={} resp={} lib-name={} lib-ver={}\n",
            self.id,
            self.addr,
            self.laddr,
            String::from_utf8_lossy(&self.name.lock()),
            age / 1000,
            idle,
            self.letters(),
            self.db.load(Ordering::Relaxed),
            count(&shown.channels),
            count(&shown.patterns),
            count(&shown.shards),
            i64::from(count(&shown.queued)) - 1,
            count(&shown.watched),
            command::name_of(shown.cmd.load(Ordering::Relaxed)).unwrap_or("NULL"),
            String::from_utf8_lossy(&self.user.lock()),
            shown.redirect.load(Ordering::Relaxed) - 1,
            self.resp.load(Ordering::Relaxed),
            String::from_utf8_lossy(&self.lib_name.lock()),
            String::from_utf8_lossy(&self.lib_ver.lock()),
        )
    }

    fn letters(&self) -> String {
        let mut bits = self.shown.flags.load(Ordering::Relaxed);
        if self.addr.starts_with('/') {
            bits |= flag::UNIX_SOCKET;
        }
        let letters = flag::LETTERS.chars().enumerate();
        let set: String =
            letters.filter(|(bit, _)| bits & (1 << bit) != 0).map(|(_, letter)| letter).collect();
        if set.is_empty() { "N".into() } else { set }
    }

    /// See [`ClientType`].
    pub(super) fn kind(&self) -> ClientType {
        let bits = self.shown.flags.load(Ordering::Relaxed);
        if bits & flag::REPLICA != 0 {
            ClientType::Replica
        } else if bits & flag::PUBSUB != 0 {
            ClientType::PubSub
        } else {
            ClientType::Normal
        }
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

    /// The id that the server of this side knows this client's own connection by; 0 when there is none.
    pub(super) fn connection_of(&self, id: u64, side: Active) -> u64 {
        self.find(id).map_or(0, |entry| entry.connection.on(side))
    }

    pub(super) fn len(&self) -> usize {
        self.clients.len()
    }

    /// All clients, oldest first, but for those that have been ended.
    pub(super) fn all(&self) -> Vec<Arc<ClientEntry>> {
        let mut all: Vec<_> = self.clients.iter().map(|entry| Arc::clone(entry.value())).collect();
        all.retain(|entry| !entry.killed.load(Ordering::Relaxed));
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

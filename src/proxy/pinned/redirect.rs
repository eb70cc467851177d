//! CLIENT TRACKING … REDIRECT: the invalidations of one client go to another, the *target*.
//!
//! Clients name each other by their ids at the gateway, servers by those of connections. So a target has a connection for
//! itself from the moment that it is named, and for as long as it lives; its worker may be another than the tracker's. On the
//! other side of a switch both have new connections: those of all clients stand before any of them says its state there
//! ([`super::super::gate`]). A target that has gone is stood in for by a connection that is closed again, so that the
//! server itself finds the redirection broken and says so.

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;

use super::Pinned;
use crate::proxy::registry::ClientEntry;
use crate::proxy::session::{Closing, Core, Session};
use crate::proxy::special::Outcome;
use crate::proxy::upstream::{Key, dial_patiently};
use crate::resp::write::{self, Proto};

/// An id that no connection has.
const NOBODY: u64 = i64::MAX as u64;
const BROKEN: &[u8] = b">2\r\n$21\r\ntracking-redir-broken\r\n:";
const CHANNEL: &[u8] = b"__redis__:invalidate";

/// The connection of the server's that a client is to be named by.
pub(super) enum Target {
    /// By this id; of nobody, if there is no such client.
    Connection(u64),
    /// It has been told to get one.
    Awaited(Arc<ClientEntry>),
}

impl Session {
    /// The connection of the client with this id. `asked`: it has had the time to get one.
    pub(super) fn target(&self, id: u64, asked: bool) -> Target {
        let Some(entry) = self.worker.shared.registry.find(id) else { return Target::Connection(NOBODY) };
        if !asked {
            // Before its connection is looked for: whoever lets go of one looks at this behind that.
            entry.redirected_to.store(true, Ordering::SeqCst);
        }
        match entry.connection.on(self.worker.active.get()) {
            0 if asked => Target::Connection(NOBODY),
            0 => Target::Awaited(entry),
            id => Target::Connection(id),
        }
    }

    /// Waits until the target has got a connection, is gone, or has failed to get one.
    pub(super) fn await_target(self: &Rc<Self>, core: &mut Core, target: Arc<ClientEntry>) {
        let wait = self.worker.options().reconnect_wait;
        let side = self.worker.active.get();
        core.pending = Some(Box::pin(async move {
            let mut told = std::pin::pin!(target.connected.notified());
            told.as_mut().enable();
            if target.connection.on(side) == 0 {
                target.waker.wake();
                let _ = tokio::time::timeout(wait, told).await;
            }
            Outcome::Named
        }));
    }

    /// Whether another client has redirected its invalidations to this one, which has no connection yet that they could come by.
    #[inline]
    pub(in crate::proxy) fn is_awaited(&self, core: &Core) -> bool {
        self.entry.redirected_to.load(Ordering::Relaxed) && core.pinned.is_none()
    }

    /// Gets a connection for this client, to which another has redirected its invalidations.
    pub(in crate::proxy) fn attend(self: &Rc<Self>, core: &mut Core) {
        if core.pending.is_some() || self.inflight.get() > 0 || self.closing.get() != Closing::Open {
            return;
        }
        let key = Key::new(self.worker.active.get(), core.identity.clone());
        if let Some(upstream) = self.worker.take_pooled(&key) {
            return self.pin(core, upstream);
        }
        let worker = Rc::clone(&self.worker);
        core.pending = Some(Box::pin(async move {
            let wait = worker.options().reconnect_wait;
            Outcome::Awaited(dial_patiently(&worker, &key, false, wait).await)
        }));
    }

    /// Whether the connection may serve others from now on: nobody has redirected anything to it.
    pub(super) fn lets_go(&self) -> bool {
        if self.entry.redirected_to.load(Ordering::SeqCst) {
            return false;
        }
        // Whoever redirects to it says so first, and looks for the connection then.
        self.entry.connection.clear();
        !self.entry.redirected_to.load(Ordering::SeqCst)
    }

    /// What this client was told of another's keys holds no longer, which it hears as it does after FLUSHALL
    /// (`trackingInvalidateKeysOnFlush` in `tracking.c`). A RESP2 client that is not subscribed cannot be told.
    pub(in crate::proxy) fn tell_to_forget(&self, resp3: bool, subscribed: bool) {
        if resp3 {
            self.send(b">2\r\n$10\r\ninvalidate\r\n_\r\n");
        } else if subscribed {
            self.reply(|out| {
                write::array_header(out, 3);
                write::bulk(out, b"message");
                write::bulk(out, CHANNEL);
                write::null(out, Proto::Resp2);
            });
        }
    }

    /// Tells this client that whoever was to get its invalidations is gone; RESP2 has no words for it.
    pub(in crate::proxy) fn tell_of_broken(&self, target: u64, resp3: bool) {
        if resp3 {
            self.send(&broken(target));
        }
    }
}

fn broken(target: u64) -> Vec<u8> {
    [BROKEN, target.to_string().as_bytes(), b"\r\n"].concat()
}

impl Pinned {
    /// What the server says of a redirection that broke, with the client's id at the gateway; `None`: it says something else.
    pub(super) fn redirection_broke(&mut self, frame: &[u8]) -> Option<Vec<u8>> {
        let target = self.state.redirect().filter(|_| frame.starts_with(BROKEN))?;
        self.state.note_broken();
        Some(broken(target))
    }

    /// The answer of GETREDIR or TRACKINGINFO with the target's id at the gateway in place of its connection's at the server,
    /// and with what the server of the other side knew.
    pub(super) fn tracking_told(&self, frame: &[u8]) -> Option<Bytes> {
        let target = self.state.redirect()?.to_string();
        if frame.first() == Some(&b':') {
            return Some([b":", target.as_bytes(), b"\r\n"].concat().into());
        }
        let id = behind(frame, b"$8\r\nredirect\r\n:")?;
        let told = [&frame[..id], target.as_bytes(), &frame[line_end(frame, id)?..]].concat();
        let flagged = if self.state.is_broken() { with_flag(&told) } else { None };
        Some(flagged.unwrap_or(told).into())
    }
}

/// The answer of TRACKINGINFO with one flag more; `None`: it is there.
fn with_flag(info: &[u8]) -> Option<Vec<u8>> {
    const FLAG: &[u8] = b"$15\r\nbroken_redirect\r\n";
    if behind(info, FLAG).is_some() {
        return None;
    }
    // Behind the letter of an array or a set.
    let count = behind(info, b"$5\r\nflags\r\n")? + 1;
    let end = line_end(info, count)?;
    let flags: usize = std::str::from_utf8(info.get(count..end)?).ok()?.parse().ok()?;
    let more = (flags + 1).to_string();
    Some([&info[..count], more.as_bytes(), b"\r\n", FLAG, info.get(end + 2..)?].concat())
}

/// Where `text` ends in the frame.
fn behind(frame: &[u8], text: &[u8]) -> Option<usize> {
    Some(memchr::memmem::find(frame, text)? + text.len())
}

/// Where the line ends that `from` is in.
fn line_end(frame: &[u8], from: usize) -> Option<usize> {
    Some(from + memchr::memchr(b'\r', frame.get(from..)?)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_another_server_knew_of_a_redirection_is_added_once() {
        let info = b"%2\r\n$5\r\nflags\r\n~1\r\n$2\r\non\r\n$8\r\nredirect\r\n:7\r\n";
        let more =
            b"%2\r\n$5\r\nflags\r\n~2\r\n$15\r\nbroken_redirect\r\n$2\r\non\r\n$8\r\nredirect\r\n:7\r\n";
        assert_eq!(with_flag(info).as_deref(), Some(more.as_slice()));
        assert_eq!(with_flag(more), None);
        assert_eq!(with_flag(b"-ERR no such thing\r\n"), None);
        assert_eq!(with_flag(b"$5\r\nflags\r\n~"), None);
    }
}

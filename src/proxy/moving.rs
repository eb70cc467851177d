//! How a session with connection state crosses a switch: drained on one side, armed on the other.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};

use super::Active;
use super::pinned::{Blocked, Expect, Fate, Pinned, Replica, SPOIL};
use super::session::Session;
use super::special::{PING, ask_aside, ask_on};
use super::upstream::{Key, Upstream, dial};
use crate::resp::scan::{CommandScanner, Limits};
use crate::resp::value::{self, Value};
use crate::resp::write;

/// For the ends of streams where a switch was given up.
const AT_HOME: Duration = Duration::from_millis(50);

/// What a session did when it was told to drain.
#[derive(Debug, Default)]
pub(super) struct Drained {
    /// The command that blocks and must be recalled.
    pub(super) recall: Option<Recall>,
    pub(super) transaction: bool,
}

/// A blocked command that has to be recalled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Recall {
    pub(super) whom: Whom,
    pub(super) db: u32,
    /// The streams that it follows from their end, see [`Blocked::open_ends`].
    pub(super) ends: Vec<(usize, Bytes)>,
}

/// The connection that blocks, as the server knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Whom {
    /// By its id.
    Id(u64),
    /// Its user may not ask for the id: by the address that it comes from.
    From(SocketAddr),
}

impl Session {
    /// Begins to drain: says which blocked command to recall.
    pub(super) fn begin_drain(&self) -> Drained {
        let mut core = self.core.borrow_mut();
        let Some(pinned) = core.pinned.as_deref_mut() else { return Drained::default() };
        if pinned.is_held_back() {
            self.wake();
        }
        Drained { recall: self.recall(pinned), transaction: pinned.transaction.is_some() }
    }

    /// Fences a subscriber's messages and what MONITOR shows: all of that from before has been sent to its connection before
    /// the answer to this PING. Asked only when no command of any client is in flight: one that publishes could come behind it.
    pub(super) fn hear_out(&self) {
        let mut core = self.core.borrow_mut();
        let Some(pinned) = core.pinned.as_deref_mut() else { return };
        // A PING behind MULTI would become part of the transaction.
        if (pinned.is_subscribed() || pinned.state.monitors()) && pinned.transaction.is_none() {
            pinned.ask(PING, Expect::Swallow, false);
            self.wake();
        }
    }

    /// The blocked command that still has to be recalled.
    fn recall(&self, pinned: &mut Pinned) -> Option<Recall> {
        let whom = match pinned.upstream.client_id {
            0 => Whom::From(pinned.upstream.stream.local_addr()?),
            id => Whom::Id(id),
        };
        let db = pinned.upstream.key.identity.db;
        let blocked = pinned.blocked.as_mut()?;
        if blocked.held.is_some() {
            return None;
        }
        blocked.recalled = true;
        Some(Recall { whom, db, ends: blocked.open_ends() })
    }

    /// Its command was recalled where these streams ended with these ids: from there it goes on. The command may be a later one than
    /// was meant, if it follows the same streams.
    pub(super) fn follow_from(&self, db: u32, ends: Vec<((usize, Bytes), Bytes)>) {
        let Ok(mut core) = self.core.try_borrow_mut() else { return };
        let Some(pinned) = core.pinned.as_deref_mut().filter(|pinned| pinned.upstream.key.identity.db == db)
        else {
            return;
        };
        let Some(blocked) = pinned.blocked.as_mut().filter(|blocked| blocked.recalled) else { return };
        let open = blocked.open_ends();
        for (end, id) in ends.into_iter().filter(|(end, _)| open.contains(end)) {
            blocked.set_id(end.0, id);
        }
    }

    /// As [`Session::begin_drain`], for a command that the server had not received yet at the first attempt.
    pub(super) fn still_blocked(&self) -> Option<Recall> {
        let mut core = self.core.try_borrow_mut().ok()?;
        let pinned = core.pinned.as_deref_mut()?;
        self.recall(pinned)
    }

    /// Whether nothing of this session is in flight at a server.
    pub(super) fn is_quiet(&self) -> bool {
        let Ok(core) = self.core.try_borrow() else { return false };
        let pinned_quiet = core.pinned.as_ref().is_none_or(|pinned| {
            !pinned.owes() && pinned.blocked.as_ref().is_none_or(|blocked| blocked.held.is_some())
        });
        self.inflight.get() == 0 && core.pending.is_none() && pinned_quiet
    }

    /// Whether it waits for a connection of its own, or for what another one is asked.
    pub(super) fn is_dialling(&self) -> bool {
        self.core.try_borrow().is_ok_and(|core| core.pending.is_some())
    }

    /// Whether it has to be armed before the gate opens.
    pub(super) fn has_pinned(&self) -> bool {
        self.core.try_borrow().is_ok_and(|core| core.pinned.is_some())
    }

    /// Whether it is on this side, and the gateway's own questions on a new connection have been answered. What else is not answered
    /// yet, such as the last question of a switch that was given up, nobody has to wait for.
    pub(super) fn is_armed(&self, active: Active) -> bool {
        self.core.try_borrow().is_ok_and(|core| {
            core.pinned.as_ref().is_none_or(|pinned| {
                let owed = |(expect, _): &(Expect, bool)| matches!(expect, Expect::Swallow | Expect::Carried);
                pinned.upstream.key.side == active && !(pinned.arriving && pinned.expects.iter().any(owed))
            })
        })
    }

    /// The state is on the new side: what stood in for a client that is gone has done its part.
    pub(super) fn settle_in(&self) {
        if let Some(pinned) = self.core.borrow_mut().pinned.as_deref_mut() {
            pinned.stand_in = None;
            pinned.arriving = false;
        }
    }

    /// Gets a connection to `active` for the state that is to be brought there.
    pub(super) async fn connect(self: Rc<Self>, active: Active) -> Result<(), String> {
        let (key, target) = {
            let core = self.core.borrow();
            let Some(pinned) = core.pinned.as_deref().filter(|pinned| pinned.upstream.key.side != active)
            else {
                return Ok(());
            };
            if pinned.replica != Replica::No {
                // The other side has a history of its own: it has to attach anew.
                self.close_now();
                return Ok(());
            }
            (Key::new(active, pinned.upstream.key.identity.clone()), pinned.state.redirect())
        };
        if let Some(target) = target.and_then(|id| self.worker.shared.registry.find(id)) {
            target.forgets.store(true, Ordering::SeqCst);
        }
        // The one that it has is the other server's.
        self.entry.connection.clear();
        let fresh = if self.needs_connection() { self.take_or_dial(&key).await.map(Some) } else { Ok(None) };
        let id = fresh.as_ref().ok().and_then(Option::as_ref).map_or(0, |upstream| upstream.client_id);
        self.entry.connection.set(active, id);
        let fresh = fresh?;
        if let Some(pinned) = self.core.borrow_mut().pinned.as_deref_mut() {
            pinned.fresh = fresh;
        }
        Ok(())
    }

    /// A connection for this session, which is closed if there is none to be had.
    async fn take_or_dial(&self, key: &Key) -> Result<Upstream, String> {
        if let Some(upstream) = self.worker.take_pooled(key) {
            return Ok(upstream);
        }
        dial(&self.worker, key, false).await.map_err(|error| {
            self.close_now();
            format!("{}: {error}", self.entry.addr)
        })
    }

    /// Brings the connection state to `active`, where [`Session::connect`] has got a connection. On the side where it
    /// already is, only a recalled command is issued again.
    pub(super) async fn arm(self: Rc<Self>, active: Active) -> Result<(), String> {
        let (key, moves, mut fresh, redirect) = {
            let mut core = self.core.borrow_mut();
            let Some(pinned) = core.pinned.as_deref_mut() else { return Ok(()) };
            let moves = pinned.upstream.key.side != active;
            let key = Key::new(active, pinned.upstream.key.identity.clone());
            (key, moves, pinned.fresh.take(), pinned.state.redirect().filter(|_| moves))
        };
        if moves && fresh.is_none() && self.needs_connection() {
            // It got none in time.
            self.close_now();
            return Ok(());
        }
        let mut target = redirect.map(|id| self.worker.shared.registry.connection_of(id, active));
        let mut stand_in = None;
        if target == Some(0) {
            let upstream = self.take_or_dial(&key).await?;
            target = Some(upstream.client_id);
            stand_in = Some(upstream);
        }
        // On the side where it is, the recall has asked already, as a rule; a server that does not answer holds nobody up for it.
        let ends = if moves {
            self.ends(&key, fresh.as_mut()).await
        } else {
            tokio::time::timeout(AT_HOME, self.ends(&key, None)).await.unwrap_or_default()
        };
        let mut core = self.core.borrow_mut();
        let Some(mut pinned) = core.pinned.take() else { return Ok(()) };
        if let Some(blocked) = &mut pinned.blocked {
            ends.into_iter().for_each(|(arg, id)| blocked.set_id(arg, id));
        }
        if moves {
            if pinned.state.leave_unknown() {
                tracing::warn!(client = %self.entry.addr, "what an unknown command set on a client's connection stays behind");
            }
            if !pinned.watched.is_empty() && pinned.transaction.is_none() {
                core.watch_lost = true;
            }
            let Some(upstream) = fresh else {
                // Only watched keys: there is nothing to carry but the conflict.
                self.entry.shown.clear();
                self.worker.count_pinned(-1);
                return Ok(());
            };
            pinned = Box::new(carry(*pinned, upstream, target));
            if let (Some(target), Some(_)) = (redirect, &stand_in) {
                pinned.state.note_broken();
                self.tell_of_broken(target, key.identity.resp3);
            }
            pinned.stand_in = stand_in;
            if self.entry.forgets.swap(false, Ordering::SeqCst) || pinned.tracks_for_itself() {
                self.tell_to_forget(key.identity.resp3, pinned.is_subscribed());
            }
        }
        pinned.show(&self.entry.shown);
        core.pinned = Some(pinned);
        drop(core);
        self.wake();
        Ok(())
    }

    /// Since when its command has been waiting that has to be issued again.
    pub(super) fn held_since(&self) -> Option<Instant> {
        let core = self.core.try_borrow().ok()?;
        let blocked = core.pinned.as_deref()?.blocked.as_ref()?;
        blocked.held.as_ref().map(|_| blocked.asked)
    }

    /// The gate opens: how long something had waited, and how many whole commands.
    pub(super) fn take_hold(&self, now: Instant) -> Option<(Duration, u64)> {
        let mut core = self.core.borrow_mut();
        let since = core.held_since.take()?;
        let mut scanner = CommandScanner::default();
        let (mut at, mut count) = (0, 0);
        while let Ok(Some(frame)) = scanner.next(&core.input[at..], &Limits::default()) {
            at += frame.len;
            count += u64::from(frame.argc > 0);
        }
        Some((now.saturating_duration_since(since), count))
    }

    /// Issues a recalled command again, on the side where the session has been armed.
    pub(super) fn resume(&self, active: Active) {
        let Ok(mut core) = self.core.try_borrow_mut() else { return };
        let Some(pinned) = core.pinned.as_deref_mut().filter(|pinned| pinned.upstream.key.side == active)
        else {
            return;
        };
        if let Some(answer) = pinned.resume(Instant::now(), self.worker.recalling.get() > 0) {
            self.send(&answer);
        }
        drop(core);
        self.wake();
    }

    /// For an XREAD that is issued again: the ids that its `$` stand for, while the gate is closed. Left to the server they
    /// would stand for what is there when the command arrives, and others' commands may be faster once the gate is open.
    async fn ends(&self, key: &Key, mut on: Option<&mut Upstream>) -> Vec<(usize, Bytes)> {
        let ends = {
            let core = self.core.borrow();
            let blocked = core.pinned.as_deref().and_then(|pinned| pinned.blocked.as_ref());
            blocked.filter(|blocked| blocked.held.is_some()).map(Blocked::open_ends).unwrap_or_default()
        };
        let mut ids = Vec::with_capacity(ends.len());
        for (arg, stream) in ends {
            let mut question = BytesMut::new();
            write::command(&mut question, &[b"XINFO".as_slice(), b"STREAM", &stream]);
            let reply = match &mut on {
                Some(upstream) => ask_on(upstream, &question).await.ok(),
                None => ask_aside(&self.worker, key, &question).await.ok(),
            };
            let reply = reply.and_then(|reply| Some(value::decode(&reply).ok()??.0));
            ids.extend(reply.as_ref().and_then(last_id).map(|id| (arg, id)));
        }
        ids
    }

    fn needs_connection(&self) -> bool {
        let core = self.core.borrow();
        core.pinned.as_deref().is_some_and(|pinned| {
            pinned.transaction.is_some()
                || pinned.blocked.is_some()
                || pinned.is_subscribed()
                || pinned.state.can_be_said()
                || self.entry.redirected_to.load(Ordering::SeqCst)
        })
    }
}

/// What XINFO STREAM says of the last id; that of no stream is 0-0. `None`: the server does not tell.
pub(super) fn last_id(reply: &Value) -> Option<Bytes> {
    if matches!(reply, Value::Error(text) if text.starts_with(b"ERR no such key")) {
        return Some(Bytes::from_static(b"0-0"));
    }
    reply.field("last-generated-id")?.as_bytes().map(Bytes::copy_from_slice)
}

/// The state of `old` on a new connection: what gave it that state is said again, and the answers are swallowed.
///
/// `target`: the connection there that gets the invalidations.
fn carry(old: Pinned, upstream: Upstream, target: Option<u64>) -> Pinned {
    let mut new = Pinned::new(upstream);
    new.arriving = true;
    for command in old.state.commands(target) {
        let expect = if target.is_some() { Expect::Carried } else { Expect::Swallow };
        new.ask(&command, expect, false);
    }
    for (name, channels) in
        [("SUBSCRIBE", &old.channels), ("PSUBSCRIBE", &old.patterns), ("SSUBSCRIBE", &old.shards)]
    {
        for channel in channels {
            let mut bytes = Vec::new();
            write::command(&mut bytes, &[name.as_bytes(), channel]);
            new.ask(&bytes, Expect::Swallow, false);
        }
    }
    if let Some(command) = old.state.caching() {
        new.ask(command, Expect::Swallow, false);
    }
    if let Some(mut transaction) = old.transaction {
        if !old.watched.is_empty() {
            transaction.fate = Fate::Conflict;
        }
        if transaction.is_too_large() {
            transaction.fate = Fate::TooLarge;
        }
        new.ask(b"*1\r\n$5\r\nMULTI\r\n", Expect::Swallow, false);
        for command in &transaction.queued {
            new.ask(command, Expect::Swallow, false);
        }
        if transaction.refused {
            new.ask(SPOIL, Expect::Swallow, false);
        }
        new.transaction = Some(transaction);
    }
    new.blocked = old.blocked;
    new.state = old.state;
    new.channels = old.channels;
    new.patterns = old.patterns;
    new.shards = old.shards;
    new
}

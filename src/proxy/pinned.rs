//! A connection that one session has for itself while it holds state: a transaction, a blocked command,
//! subscriptions, tracking.
//!
//! `expects` says, for each reply that is owed, what it will mean for that state; [`replies`] reads the replies by it.
//! When no state is left the connection goes back to the pool. While a command blocks, nothing is sent behind it: a
//! switch must be able to issue it again on the other side, before what follows.

mod blocked;
mod redirect;
mod replies;
mod state;
mod transaction;

use std::collections::{HashSet, VecDeque};
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite};

use super::outbuf::{OutBuf, SLICES};
use super::registry::{Shown, flag};
use super::session::{Closing, Core, ReplyMode, Session};
use super::special::{PING, Step, credentials};
use super::upstream::{Identity, Upstream};
use super::{cursors, local};
use crate::command::{self, Lane as Route, Pin as Why, Spec, Switch};
use crate::resp::scan::ReplyScanner;
use crate::resp::write;

pub(super) use blocked::Blocked;
use redirect::Target;
pub(super) use state::State;
use state::{Change, change, redirected};
pub(super) use transaction::Fate;
use transaction::{Elements, Queueing, Transaction, Within, queueing};

/// Nobody is meant to listen there.
const OWN_CHANNEL: &[u8] = b"crossfade:wait";
/// Moves the offset that WAIT on this connection looks at.
const ADVANCE: &[u8] = b"*3\r\n$7\r\nPUBLISH\r\n$14\r\ncrossfade:wait\r\n$0\r\n\r\n";
/// ECHO without its argument: every server refuses to queue it, and EXEC then answers EXECABORT.
pub(super) const SPOIL: &[u8] = b"*1\r\n$4\r\nECHO\r\n";

/// While so much of what it asked for waits to be read by the client, no more is read from its own connection.
pub(super) const HELD_BACK: usize = 4 * 1024 * 1024;

/// What a reply that is owed will mean.
#[derive(Debug)]
pub(super) enum Expect {
    Plain,
    Multi,
    /// A command inside MULTI, as the server got it.
    Queued(Bytes, Option<Within>),
    /// A command that cannot be inside MULTI; the server was sent one that spoils the transaction.
    Forbidden,
    /// EXEC or DISCARD of a transaction.
    EndTransaction,
    /// DISCARD in place of an EXEC that must not run; the client is told `instead`.
    Replaced(&'static [u8]),
    /// Of these keys.
    Watch(Vec<Bytes>),
    Unwatch,
    Blocking,
    /// Confirmations of SUBSCRIBE and its kin.
    Subscription {
        left: usize,
    },
    /// A command that changes what the connection keeps for as long as it lives.
    State(Change, Bytes),
    /// It names a connection of the server's: the client knows it by another id.
    Redirection,
    Select(u32),
    Auth(Identity),
    /// HELLO, with the name that the client gives itself.
    Hello(Identity, Option<Bytes>),
    /// A step of a scan: the cursor in its reply gets the epoch's mark.
    Scanned,
    /// RESET of a client that others have redirected their invalidations to: it keeps its connection.
    Reset,
    /// The gateway's own question; the client does not see the answer.
    Swallow,
    /// As that, about state without which the client cannot go on.
    Carried,
}

/// Whether the client is a replica (`listen.allow_replicas`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Replica {
    No,
    /// It has said REPLCONF.
    Introduced,
    /// It has asked for the stream: from here on bytes go both ways as they are.
    Attached,
}

/// The connection and what is known of its state.
#[derive(Debug)]
pub(super) struct Pinned {
    pub(super) upstream: Upstream,
    out: OutBuf,
    buf: BytesMut,
    scanner: ReplyScanner,
    scanned: usize,
    pub(super) expects: VecDeque<(Expect, bool)>,
    pub(super) transaction: Option<Transaction>,
    /// Keys that are watched, with their db.
    pub(super) watched: HashSet<(u32, Bytes)>,
    pub(super) blocked: Option<Blocked>,
    pub(super) state: State,
    pub(super) channels: HashSet<Bytes>,
    pub(super) patterns: HashSet<Bytes>,
    pub(super) shards: HashSet<Bytes>,
    pub(super) replica: Replica,
    /// The connection to the new side, while the state is not there yet.
    pub(super) fresh: Option<Upstream>,
    /// The connection is a new one, and not all of the state is there yet.
    pub(super) arriving: bool,
    /// On the new side, for as long as that takes its state: it stands for a client that is gone, to which invalidations were redirected.
    pub(super) stand_in: Option<Upstream>,
    /// The reply of EXEC is being taken apart.
    elements: Option<Elements>,
    /// A large reply is being passed on as it comes; whether the client wants it.
    streaming: Option<bool>,
    /// Nothing more is read before the client has taken what it has.
    held_back: bool,
}

impl Pinned {
    pub(super) fn new(upstream: Upstream) -> Self {
        Self {
            upstream,
            out: OutBuf::default(),
            buf: BytesMut::new(),
            scanner: ReplyScanner::default(),
            scanned: 0,
            expects: VecDeque::new(),
            transaction: None,
            watched: HashSet::new(),
            blocked: None,
            state: State::default(),
            channels: HashSet::new(),
            patterns: HashSet::new(),
            shards: HashSet::new(),
            replica: Replica::No,
            fresh: None,
            arriving: false,
            stand_in: None,
            elements: None,
            streaming: None,
            held_back: false,
        }
    }

    /// Whether what is read next begins a reply or a message.
    fn is_between_frames(&self) -> bool {
        self.scanned == 0 && self.streaming.is_none()
    }

    /// Whether replies are still to come.
    pub(super) fn owes(&self) -> bool {
        !self.expects.is_empty() || self.streaming.is_some()
    }

    pub(super) fn is_blocked(&self) -> bool {
        self.blocked.is_some()
    }

    pub(super) fn is_subscribed(&self) -> bool {
        !(self.channels.is_empty() && self.patterns.is_empty() && self.shards.is_empty())
    }

    /// Whether the connection may serve anybody.
    pub(super) fn is_clean(&self) -> bool {
        !self.owes()
            && self.transaction.is_none()
            && self.watched.is_empty()
            && self.blocked.is_none()
            && self.state.is_empty()
            && !self.is_subscribed()
            && self.replica == Replica::No
            && self.buf.is_empty()
            && self.out.is_empty()
    }

    /// Lets the connection's next WAIT look at everything that the client has written, whatever connection carried it.
    fn advance(&mut self) {
        self.ask(PING, Expect::Swallow, false);
        self.ask(ADVANCE, Expect::Swallow, false);
    }

    /// The connection has been reset: nothing is left on it.
    fn forget(&mut self) {
        self.transaction = None;
        self.watched.clear();
        self.state = State::default();
        self.channels.clear();
        self.patterns.clear();
        self.shards.clear();
        self.upstream.key.identity = Identity::default();
    }

    /// Sends what can be sent; how many bytes.
    fn write(&mut self, cx: &mut Context<'_>) -> io::Result<usize> {
        let mut sent = 0;
        while !self.out.is_empty() {
            let written = {
                let mut slices = [IoSlice::new(&[]); SLICES];
                let count = self.out.slices(&mut slices);
                Pin::new(&mut self.upstream.stream).poll_write_vectored(cx, &slices[..count])?
            };
            match written {
                Poll::Ready(0) => return Err(io::ErrorKind::WriteZero.into()),
                Poll::Ready(n) => {
                    self.out.advance(n);
                    sent += n;
                }
                Poll::Pending => break,
            }
        }
        match Pin::new(&mut self.upstream.stream).poll_flush(cx) {
            Poll::Ready(Err(cause)) => Err(cause),
            _ => Ok(sent),
        }
    }

    /// Issues a recalled command again, at once, so that others stay in their order; if its time is over, its answer for
    /// the client. `recalling`: a recall is under way that may find it.
    pub(super) fn resume(&mut self, now: Instant, recalling: bool) -> Option<Bytes> {
        let blocked = self.blocked.as_mut()?;
        let (nil, discard) = blocked.held.take()?;
        let waits = blocked.is_wait();
        blocked.recalled = recalling;
        let Some(command) = blocked.reissue(now) else {
            self.blocked = None;
            return (!discard).then_some(nil);
        };
        if waits {
            self.advance();
        }
        self.ask(&command, Expect::Blocking, discard);
        // What does not go now, or fails, is seen when the session runs.
        let _ = self.write(&mut Context::from_waker(Waker::noop()));
        None
    }

    /// Sends bytes whose reply will mean `expect`.
    pub(super) fn ask(&mut self, bytes: &[u8], expect: Expect, discard: bool) {
        self.out.extend(bytes);
        self.expects.push_back((expect, discard));
    }

    /// Whether the server tells this client itself, in pushes, which of its keys have changed. Another server does not
    /// know what it has cached.
    pub(super) fn tracks_for_itself(&self) -> bool {
        self.upstream.key.identity.resp3 && self.state.tracks() && self.state.redirect().is_none()
    }

    /// Passes on what an attached replica says.
    pub(super) fn relay(&mut self, bytes: &[u8]) {
        self.out.extend(bytes);
    }

    /// Whether reading can go on, now that the client has taken something.
    pub(super) fn is_held_back(&self) -> bool {
        self.held_back
    }

    /// Lets others see the state.
    pub(super) fn show(&self, shown: &Shown) {
        let conflict =
            self.transaction.as_ref().is_some_and(|transaction| transaction.fate == Fate::Conflict);
        let mut bits = self.state.flags();
        for (is, bit) in [
            (self.replica == Replica::Attached, flag::REPLICA),
            (self.is_subscribed(), flag::PUBSUB),
            (self.transaction.is_some(), flag::TRANSACTION),
            (self.is_blocked(), flag::BLOCKED),
            (conflict, flag::CONFLICT),
        ] {
            bits |= if is { bit } else { 0 };
        }
        shown.flags.store(bits, Ordering::Relaxed);
        let queued = self.transaction.as_ref().map_or(0, |transaction| transaction.count + 1);
        for (counter, count) in [
            (&shown.channels, self.channels.len()),
            (&shown.patterns, self.patterns.len()),
            (&shown.shards, self.shards.len()),
            (&shown.watched, self.watched.len()),
            (&shown.queued, queued),
        ] {
            counter.store(u32::try_from(count).unwrap_or(u32::MAX), Ordering::Relaxed);
        }
        let redirect = if self.state.tracks() {
            i64::try_from(self.state.redirect().unwrap_or(0)).map_or(i64::MAX, |id| id.saturating_add(1))
        } else {
            0
        };
        shown.redirect.store(redirect, Ordering::Relaxed);
    }

    /// The set that confirmations of this name speak of.
    fn subscriptions(&mut self, name: &[u8]) -> &mut HashSet<Bytes> {
        match name.first() {
            Some(b'p' | b'P') => &mut self.patterns,
            Some(b's' | b'S') if name.get(1).is_some_and(|b| b.eq_ignore_ascii_case(&b's')) => {
                &mut self.shards
            }
            // "subscribe" and "sunsubscribe" differ in their second letters.
            Some(b's' | b'S') if name.get(2).is_some_and(|b| b.eq_ignore_ascii_case(&b'n')) => {
                &mut self.shards
            }
            _ => &mut self.channels,
        }
    }

    /// The replies that one (un)subscribe command brings: one for each channel.
    fn confirmations(&mut self, name: &[u8], channels: usize) -> usize {
        if channels > 0 {
            return channels;
        }
        self.subscriptions(name).len().max(1)
    }
}

/// Whether this subcommand of CLIENT answers with the id of a connection.
fn names_a_connection(sub: &[u8]) -> bool {
    sub.eq_ignore_ascii_case(b"getredir") || sub.eq_ignore_ascii_case(b"trackinginfo")
}

impl Session {
    /// A command of a session that has a connection for itself.
    pub(super) fn pinned_command(
        self: &Rc<Self>,
        core: &mut Core,
        raw: &[u8],
        args: &[&[u8]],
        spec: Option<&'static Spec>,
    ) -> Step {
        let discard = core.reply_mode != ReplyMode::On;
        // A recall that is late names connections: it finds whatever blocks there.
        let recalled = self.worker.recalling.get() > 0;
        let Some(pinned) = core.pinned.as_deref_mut() else { return Step::Wait };
        let name = spec.map_or("", |spec| spec.name);
        // Some things need a quiet connection: their reply is made here, or depends on what came before.
        let route = spec.map(|spec| self.lane_of(spec, args));
        let cursor = spec.and_then(|spec| match spec.switch {
            Switch::Cursor(at) if self.worker.epoch.get() > 0 => Some(usize::from(at)),
            _ => None,
        });
        // What was sent last decides: behind an EXEC in flight the transaction is over, though not answered yet.
        let in_transaction = pinned
            .expects
            .iter()
            .rev()
            .find_map(|(expect, _)| match expect {
                Expect::Multi => Some(true),
                Expect::EndTransaction | Expect::Replaced(_) => Some(false),
                _ => None,
            })
            .unwrap_or(pinned.transaction.is_some());
        if (!in_transaction && !matches!(name, "client" | "multi")) || matches!(name, "exec" | "discard") {
            pinned.state.spend_caching();
        }
        if pinned.blocked.is_some() || (pinned.out.len() > 4 * 1024 * 1024 && pinned.owes()) {
            return Step::Wait;
        }
        if let Some(Route::Local | Route::Refused | Route::Pinned(Why::ReplyMode)) = route {
            let immediate = matches!(name, "quit" | "reset");
            if !in_transaction || immediate {
                if pinned.owes() {
                    return Step::Wait;
                }
                if let (Some(Route::Refused), Some(spec)) = (route, spec) {
                    self.refuse(core, spec);
                    return Step::Done;
                }
                return self.local_while_pinned(core, name, raw, args);
            }
        }
        let expect = match name {
            "multi" if !in_transaction => Expect::Multi,
            "exec" | "discard" if in_transaction => {
                if pinned.owes() {
                    // Whether EXEC may run depends on how the commands before it were taken.
                    return Step::Wait;
                }
                let fate = pinned.transaction.as_ref().map_or(Fate::Live, |transaction| transaction.fate);
                let refused = pinned.transaction.as_ref().is_some_and(|transaction| transaction.refused);
                let instead: &'static [u8] = match (name, fate) {
                    ("discard", _) | (_, Fate::Live) => b"",
                    _ if refused => b"-EXECABORT Transaction discarded because of previous errors.\r\n",
                    (_, Fate::Conflict) if core.identity.resp3 => b"_\r\n",
                    (_, Fate::Conflict) => b"*-1\r\n",
                    (_, Fate::TooLarge) => {
                        b"-EXECABORT Transaction discarded: it was too large to be carried over the switch.\r\n"
                    }
                };
                if !instead.is_empty() {
                    pinned.ask(b"*1\r\n$7\r\nDISCARD\r\n", Expect::Replaced(instead), discard);
                    return Step::Done;
                }
                Expect::EndTransaction
            }
            _ if in_transaction => match queueing(name, route, raw, args) {
                Queueing::AsItIs(within) => Expect::Queued(Bytes::copy_from_slice(raw), within),
                Queueing::Instead(command, within) => {
                    pinned.ask(&command, Expect::Queued(command.clone(), Some(within)), discard);
                    return Step::Done;
                }
                Queueing::Refused => {
                    if pinned.owes() {
                        // Whether MULTI itself was accepted.
                        return Step::Wait;
                    }
                    pinned.ask(SPOIL, Expect::Forbidden, discard);
                    return Step::Done;
                }
            },
            "replconf" => {
                pinned.replica = Replica::Introduced;
                Expect::Plain
            }
            "psync" | "sync" => {
                if pinned.owes() {
                    return Step::Wait;
                }
                pinned.replica = Replica::Attached;
                pinned.out.extend(raw);
                pinned.show(&self.entry.shown);
                return Step::Done;
            }
            _ if cursor.is_some() => {
                let at = cursor.unwrap_or_default();
                let command = cursors::command_for_server(args, at, self.worker.epoch.get());
                pinned.ask(&command, Expect::Scanned, discard);
                return Step::Done;
            }
            "watch" => Expect::Watch(args[1..].iter().map(|key| Bytes::copy_from_slice(key)).collect()),
            "unwatch" => Expect::Unwatch,
            "client" if args.get(1).is_some_and(|sub| names_a_connection(sub)) => Expect::Redirection,
            _ if matches!(route, Some(Route::Pinned(Why::Monitor | Why::Tracking | Why::Other))) => {
                match change(args) {
                    Change::Nothing => Expect::Plain,
                    change => {
                        let raw = Bytes::copy_from_slice(raw);
                        let said = match change.redirect() {
                            Some(id) => match self.target(id, std::mem::take(&mut core.target_asked)) {
                                Target::Connection(connection) => redirected(args, Some(connection)),
                                Target::Awaited(target) => {
                                    self.await_target(core, target);
                                    return Step::Wait;
                                }
                            },
                            None => raw.clone(),
                        };
                        pinned.ask(&said, Expect::State(change, raw), discard);
                        return Step::Done;
                    }
                }
            }
            "wait" | "waitaof" => {
                if pinned.owes() {
                    return Step::Wait;
                }
                // WAIT looks at what *this* connection has written. Before Redis 7.2 its offset is the server's newest after
                // any command, which covers what the lane wrote before; since then, and in Valkey, only after one that
                // is replicated. PUBLISH is, and changes no key.
                pinned.advance();
                match spec.and_then(|spec| command::blocking_form(spec, args)) {
                    Some(form) => {
                        pinned.blocked = Some(Blocked::new(args, form, recalled));
                        Expect::Blocking
                    }
                    None => Expect::Plain,
                }
            }
            _ => match (route, spec) {
                (Some(Route::Pinned(Why::Subscribe)), _) => {
                    if pinned.owes() {
                        return Step::Wait;
                    }
                    Expect::Subscription { left: pinned.confirmations(args[0], args.len() - 1) }
                }
                (Some(Route::Pinned(Why::Blocking)), Some(spec)) => {
                    match command::blocking_form(spec, args) {
                        Some(form) => {
                            if pinned.owes() {
                                return Step::Wait;
                            }
                            pinned.blocked = Some(Blocked::new(args, form, recalled));
                            Expect::Blocking
                        }
                        None => Expect::Plain,
                    }
                }
                _ => Expect::Plain,
            },
        };
        pinned.ask(raw, expect, discard);
        pinned.show(&self.entry.shown);
        Step::Done
    }

    /// A command about the connection itself, from a session that has one of its own.
    fn local_while_pinned(self: &Rc<Self>, core: &mut Core, name: &str, raw: &[u8], args: &[&[u8]]) -> Step {
        let discard = core.reply_mode != ReplyMode::On;
        let Some(pinned) = core.pinned.as_deref_mut() else { return Step::Wait };
        if pinned.is_subscribed() && !core.identity.resp3 && !matches!(name, "quit" | "reset") {
            // The server knows best with which words it refuses this to a subscriber.
            pinned.ask(raw, Expect::Plain, discard);
            return Step::Done;
        }
        match name {
            "select" => {
                let db = args.get(1).and_then(|text| std::str::from_utf8(text).ok()?.parse().ok());
                let expect = db.map_or(Expect::Plain, Expect::Select);
                pinned.ask(raw, expect, discard);
                Step::Done
            }
            "auth" => {
                let identity = Identity { credentials: credentials(&args[1..]), ..core.identity.clone() };
                pinned.ask(raw, Expect::Auth(identity), discard);
                Step::Done
            }
            "hello" => {
                // Only the protocol and the user can change under a connection with state.
                match local::hello_options(&core.identity, args) {
                    Ok((identity, name)) => {
                        pinned.ask(raw, Expect::Hello(identity, name), discard);
                        Step::Done
                    }
                    Err(text) => local::say(self, core, |out| write::error(out, text.as_bytes())),
                }
            }
            "reset" if self.entry.redirected_to.load(Ordering::Relaxed) => {
                pinned.ask(raw, Expect::Reset, false);
                Step::Done
            }
            "reset" => {
                if let Some(pinned) = core.pinned.take() {
                    self.release(*pinned);
                }
                local::reset(self, core);
                Step::Done
            }
            _ => local::answer(self, core, name, raw, args),
        }
    }

    /// Moves bytes between the session's own connection and the client; whether anything moved.
    pub(super) fn poll_pinned(self: &Rc<Self>, core: &mut Core, cx: &mut Context<'_>) -> bool {
        let mut progress = false;
        loop {
            if progress && self.is_turn_over() {
                return true;
            }
            let Some(pinned) = core.pinned.as_deref_mut() else { return progress };
            match pinned.write(cx) {
                Ok(0) => {}
                Ok(n) => {
                    self.note_moved(n);
                    progress = true;
                }
                Err(_) => return self.pinned_lost(),
            }
            // A switch waits for the reply whatever the client does, so then all of it is taken.
            pinned.held_back = self.unread() > HELD_BACK && !self.worker.gate_closed();
            if pinned.held_back {
                return progress;
            }
            let room = if pinned.streaming.is_some() { 64 * 1024 } else { 16 * 1024 };
            pinned.buf.reserve(room);
            match poll_read(pinned, cx) {
                Poll::Pending => return progress,
                Poll::Ready(Ok(n)) if n > 0 => {
                    self.note_moved(n);
                    progress = true;
                }
                Poll::Ready(_) => return self.pinned_lost(),
            }
            if pinned.replica == Replica::Attached {
                let bytes = pinned.buf.split().freeze();
                self.send_whole(bytes);
                continue;
            }
            if !self.pinned_frames(core) {
                return self.pinned_lost();
            }
            let clean = core.pinned.as_ref().is_some_and(|pinned| pinned.is_clean());
            if clean && !self.worker.gate_closed() && self.lets_go() {
                if let Some(pinned) = core.pinned.take() {
                    self.release(*pinned);
                }
            }
            if self.worker.gate_closed() {
                self.worker.progress.notify_one();
            }
        }
    }

    /// The server closed a connection with state: Redis would have closed the client's.
    fn pinned_lost(&self) -> bool {
        self.closing.set(Closing::Now);
        true
    }

    /// Gives the connection back, or closes it when it still has state.
    pub(super) fn release(&self, pinned: Pinned) {
        self.entry.connection.clear();
        self.entry.shown.clear();
        self.worker.count_pinned(-1);
        // What is redirected to a connection goes on coming there: nobody else may have it.
        if pinned.is_clean() && !self.entry.redirected_to.load(Ordering::SeqCst) {
            self.worker.give_pooled(pinned.upstream);
        }
    }
}

fn poll_read(pinned: &mut Pinned, cx: &mut Context<'_>) -> Poll<std::io::Result<usize>> {
    let have = pinned.buf.len();
    let room = pinned.buf.capacity() - have;
    pinned.buf.resize(have + room, 0);
    let mut read = tokio::io::ReadBuf::new(&mut pinned.buf[have..]);
    let outcome = Pin::new(&mut pinned.upstream.stream).poll_read(cx, &mut read);
    let got = read.filled().len();
    pinned.buf.truncate(have + got);
    match outcome {
        Poll::Pending => Poll::Pending,
        Poll::Ready(Ok(())) => Poll::Ready(Ok(got)),
        Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
    }
}

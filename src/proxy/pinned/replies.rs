//! What the server's frames mean for a pinned connection's state.
//!
//! Messages that nobody asked for (pub/sub, MONITOR, invalidations) and the confirmations of (un)subscribing are told
//! apart by their form. Every other frame answers the oldest of `expects`, changes the state as that says, and goes to
//! the client unless the gateway itself had asked.

use std::rc::Rc;
use std::time::Instant;

use bytes::Bytes;

use super::blocked::is_nil;
use super::{Expect, Fate, OWN_CHANNEL, Pinned, Transaction};
use crate::mirror::is_own as is_own_key;
use crate::proxy::session::{Core, Session};
use crate::proxy::upstream::Identity;
use crate::proxy::{cursors, local};

/// A reply that is longer than this is passed on as it comes.
const STREAMED: usize = 64 * 1024;

impl Pinned {
    /// Whether what answers the oldest question can be dealt with by its first bytes.
    fn may_stream(&self) -> bool {
        if self.elements.is_some() {
            return self.streaming.is_some() || self.element_passes();
        }
        self.streaming.is_some()
            || self.expects.front().is_none_or(|(expect, _)| {
                matches!(expect, Expect::Plain | Expect::EndTransaction | Expect::Blocking)
            })
    }
}

impl Session {
    /// Takes every whole frame out of what was read; `false` when the connection cannot go on.
    pub(super) fn pinned_frames(self: &Rc<Self>, core: &mut Core) -> bool {
        loop {
            let Some(pinned) = core.pinned.as_deref_mut() else { return true };
            match pinned.open() {
                Ok(None) => {}
                Ok(Some(_)) if !pinned.fits() => {
                    tracing::error!(client = %self.entry.addr, "EXEC answered more or less than was queued");
                    return false;
                }
                Ok(Some(line)) => {
                    if pinned.expects.front().is_some_and(|(_, discard)| !discard) {
                        self.send_whole(line);
                    }
                }
                Err(()) => return true,
            }
            let feed = match pinned.scanner.feed(&pinned.buf[pinned.scanned..]) {
                Ok(feed) => feed,
                Err(error) => {
                    tracing::error!(client = %self.entry.addr, "a reply that is no RESP: {error}");
                    return false;
                }
            };
            pinned.scanned += feed.consumed;
            if !feed.complete && (pinned.scanned < STREAMED || !pinned.may_stream()) {
                return true;
            }
            let frame = pinned.buf.split_to(pinned.scanned).freeze();
            pinned.scanned = 0;
            let mut element = pinned.elements.is_some();
            let shown = match pinned.streaming.take() {
                Some(shown) => {
                    if shown {
                        self.send_whole(frame);
                    }
                    shown
                }
                None if pinned.is_element(&frame) => self.element(core, frame),
                None => {
                    element = false;
                    let owed = pinned.expects.len();
                    let wanted = pinned.expects.front().is_none_or(|(_, discard)| !discard);
                    if !self.pinned_frame(core, frame) {
                        return false;
                    }
                    // What answers nothing is a message, and always shown.
                    let unasked = core.pinned.as_ref().is_some_and(|pinned| pinned.expects.len() == owed);
                    wanted || unasked
                }
            };
            if !feed.complete {
                if let Some(pinned) = core.pinned.as_deref_mut() {
                    pinned.streaming = Some(shown);
                }
                return true;
            }
            if element {
                self.end_element(core);
            }
        }
    }

    /// One whole reply or message; `false` when it does not fit what was asked.
    fn pinned_frame(self: &Rc<Self>, core: &mut Core, frame: Bytes) -> bool {
        let Some(pinned) = core.pinned.as_deref_mut() else { return false };
        if self.unasked(pinned, &frame) {
            return true;
        }
        let Some((expect, discard)) = pinned.expects.pop_front() else {
            tracing::error!(client = %self.entry.addr, "a reply came that the client had not asked for");
            return false;
        };
        let refused = frame.first() == Some(&b'-');
        if refused {
            self.worker.count_errors(1);
        }
        let mut answer = Some(frame.clone());
        match expect {
            Expect::Plain => {}
            Expect::Subscription { .. } => {}
            Expect::Swallow => answer = None,
            Expect::Scanned => {
                answer = cursors::for_client(&frame, self.worker.epoch.get()).map(Bytes::from).or(answer);
            }
            Expect::Multi if !refused => {
                let fate = if std::mem::take(&mut core.watch_lost) { Fate::Conflict } else { Fate::Live };
                pinned.transaction = Some(Transaction::new(fate));
            }
            Expect::Multi => {}
            Expect::Queued(raw, within) => {
                if let Some(transaction) = &mut pinned.transaction {
                    if refused {
                        transaction.refused = true;
                    } else {
                        let select = queued_select(&raw);
                        transaction.remember(raw, select, within);
                    }
                }
            }
            Expect::Forbidden => {
                if let Some(transaction) = &mut pinned.transaction {
                    transaction.refused = true;
                }
                answer = Some(Bytes::from_static(b"-ERR Command not allowed inside a transaction\r\n"));
            }
            Expect::EndTransaction => {
                self.end_transaction(core, frame.first() == Some(&b'*') && !is_nil(&frame));
            }
            Expect::Replaced(instead) => {
                pinned.transaction = None;
                pinned.watched.clear();
                answer = Some(Bytes::from_static(instead));
            }
            Expect::Watch(keys) if !refused => {
                let db = pinned.upstream.key.identity.db;
                pinned.watched.extend(keys.into_iter().map(|key| (db, key)));
            }
            Expect::Watch(_) => {}
            Expect::Unwatch => {
                pinned.watched.clear();
                core.watch_lost = false;
            }
            Expect::Blocking => {
                if let Some(blocked) = &mut pinned.blocked {
                    if blocked.recalled && blocked.ended_early(&frame) {
                        blocked.held = Some((frame.clone(), discard));
                        // With the gate open, the switch was given up before this came. Then it is issued again as soon as it is
                        // known from where.
                        let now = Instant::now();
                        let recalling = self.worker.recalling.get() > 0;
                        let asks = recalling && !blocked.open_ends().is_empty();
                        let waits = self.worker.gate_closed() || asks && !blocked.is_over(now);
                        answer = if waits { None } else { pinned.resume(now, recalling) };
                    } else if let Some(command) = blocked.in_whole_seconds(&frame) {
                        pinned.ask(&command, Expect::Blocking, discard);
                        answer = None;
                    } else {
                        pinned.blocked = None;
                    }
                }
            }
            Expect::State(change, command) if !refused => {
                pinned.state.apply(change, command);
                // What came behind CACHING has used it up.
                let still_holds = |expect: &Expect| {
                    matches!(expect, Expect::Multi | Expect::Queued(..) | Expect::State(..))
                };
                if !pinned.expects.iter().all(|(expect, _)| still_holds(expect)) {
                    pinned.state.spend_caching();
                }
            }
            Expect::State(..) => {}
            Expect::Redirection => answer = pinned.tracking_told(&frame).or(answer),
            Expect::Carried if refused => {
                let why = String::from_utf8_lossy(&frame);
                tracing::warn!(client = %self.entry.addr, "a client was closed: the other side did not take its state: {}", why.trim());
                return false;
            }
            Expect::Carried => answer = None,
            Expect::Reset => {
                answer = None;
                if refused {
                    // The server does not know the command: the connection cannot be as new.
                    if let Some(pinned) = core.pinned.take() {
                        self.release(*pinned);
                    }
                } else {
                    pinned.forget();
                }
                local::reset(self, core);
            }
            Expect::Select(db) if !refused => {
                pinned.upstream.key.identity.db = db;
                let identity = Identity { db, ..core.identity.clone() };
                self.change_identity(core, identity);
            }
            Expect::Auth(identity) if !refused => {
                pinned.upstream.key.identity = identity.clone();
                self.change_identity(core, identity);
            }
            Expect::Hello(identity, name) if !refused => {
                let Some(greeting) = self.greet(&frame, name) else { return false };
                answer = Some(greeting.into());
                pinned.upstream.key.identity = identity.clone();
                self.change_identity(core, identity);
            }
            Expect::Select(_) | Expect::Auth(_) | Expect::Hello(..) => {}
        }
        if let Some(answer) = answer.filter(|_| !discard) {
            self.send_whole(answer);
        }
        if let Some(pinned) = core.pinned.as_deref() {
            pinned.show(&self.entry.shown);
        }
        true
    }

    /// Passes on what is no answer: messages, and the confirmations of (un)subscribing; whether it was one.
    fn unasked(&self, pinned: &mut Pinned, frame: &[u8]) -> bool {
        let asked_subscription = matches!(pinned.expects.front(), Some((Expect::Subscription { .. }, _)));
        let swallowed = matches!(pinned.expects.front(), Some((Expect::Swallow, _)));
        match classify(frame, asked_subscription || pinned.is_subscribed() || swallowed) {
            Some(Push::Message { own }) => {
                match pinned.redirection_broke(frame) {
                    Some(told) => self.send(&told),
                    None if !own => self.send(frame),
                    None => {}
                }
                true
            }
            Some(Push::Confirmation { name, channel }) => {
                if let Some(channel) = channel {
                    let channel = Bytes::copy_from_slice(channel);
                    let ends = name.windows(2).any(|two| two == b"un");
                    let set = pinned.subscriptions(name);
                    if ends {
                        set.remove(&channel);
                    } else {
                        set.insert(channel);
                    }
                }
                let done = match pinned.expects.front_mut() {
                    Some((Expect::Subscription { left }, discard)) => {
                        *left = left.saturating_sub(1);
                        let (done, discard) = (*left == 0, *discard);
                        if !discard {
                            self.send(frame);
                        }
                        done
                    }
                    // Re-subscribed by the gateway: one question for each confirmation.
                    Some((Expect::Swallow, _)) => true,
                    _ => {
                        self.send(frame);
                        false
                    }
                };
                if done {
                    pinned.expects.pop_front();
                }
                pinned.show(&self.entry.shown);
                true
            }
            None if pinned.state.monitors()
                && frame.first() == Some(&b'+')
                && frame.get(1).is_some_and(u8::is_ascii_digit) =>
            {
                self.send(frame);
                true
            }
            // A debugger that comes to the end at once (as that of Valkey 9.1 may) says so, and then what the script answers.
            None if pinned.state.debugs() && pinned.expects.is_empty() => {
                self.send(frame);
                true
            }
            None => false,
        }
    }
}

/// Messages that come unasked, and confirmations, by their first element.
enum Push<'a> {
    /// `own`: it speaks of what the gateway itself does.
    Message {
        own: bool,
    },
    Confirmation {
        name: &'a [u8],
        channel: Option<&'a [u8]>,
    },
}

fn bulk(buf: &[u8]) -> Option<(&[u8], &[u8])> {
    let line = memchr::memchr(b'\n', buf)?;
    let len: usize = std::str::from_utf8(buf.get(1..line - 1)?).ok()?.parse().ok()?;
    let body = buf.get(line + 1..line + 1 + len)?;
    Some((body, buf.get(line + 3 + len..)?))
}

fn classify(frame: &[u8], pubsub: bool) -> Option<Push<'_>> {
    let resp3 = frame.first() == Some(&b'>');
    if !resp3 && !(pubsub && (frame.starts_with(b"*3\r\n$") || frame.starts_with(b"*4\r\n$"))) {
        return None;
    }
    let after = memchr::memchr(b'\n', frame)? + 1;
    let (name, rest) = bulk(&frame[after..])?;
    if name.ends_with(b"subscribe") {
        return Some(Push::Confirmation { name, channel: bulk(rest).map(|(channel, _)| channel) });
    }
    let is_message = name.ends_with(b"message");
    (resp3 || is_message).then(|| Push::Message { own: is_message && is_own(name, rest) })
}

/// Whether a message is of the gateway's own making: keyspace notifications of its keys, and what lets WAIT move.
fn is_own(name: &[u8], rest: &[u8]) -> bool {
    let rest = if name == b"pmessage" { bulk(rest).map(|(_, rest)| rest) } else { Some(rest) };
    let Some((channel, rest)) = rest.and_then(bulk) else { return false };
    if channel == OWN_CHANNEL {
        return true;
    }
    let key = if channel.starts_with(b"__keyevent@") {
        bulk(rest).map(|(key, _)| key)
    } else if channel.starts_with(b"__keyspace@") {
        memchr::memmem::find(channel, b"__:").map(|at| &channel[at + 3..])
    } else {
        None
    };
    key.is_some_and(is_own_key)
}

/// The db of a queued `SELECT n`.
fn queued_select(raw: &[u8]) -> Option<u32> {
    let upper = raw.get(..16)?.to_ascii_uppercase();
    if !upper.starts_with(b"*2\r\n$6\r\nSELECT") {
        return None;
    }
    let (index, _) = bulk(raw.get(16..)?)?;
    std::str::from_utf8(index).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_gateway_does_is_heard_by_nobody() {
        let own = |words: &[&str]| {
            let mut frame = Vec::new();
            crate::resp::write::command(&mut frame, words);
            match classify(&frame, true) {
                Some(Push::Message { own }) => own,
                _ => panic!("{words:?} is a message"),
            }
        };
        for words in [
            &["pmessage", "*", "__keyevent@0__:set", "crossfade:position"][..],
            &["message", "__keyevent@0__:set", "crossfade:position"],
            &["pmessage", "__key*", "__keyspace@0__:crossfade:heartbeat:1", "set"],
            &["pmessage", "*", "crossfade:wait", ""],
        ] {
            assert!(own(words), "{words:?}");
        }
        for words in [
            &["pmessage", "*", "__keyevent@0__:set", "k"][..],
            &["pmessage", "crossfade:*", "c", "crossfade:position"],
            &["message", "crossfade:mine", "x"],
            &["smessage", "c", "__keyevent@0__:set"],
            &["message", "__keyspace@0__:k", "crossfade:"],
        ] {
            assert!(!own(words), "{words:?}");
        }
    }
}

//! An open transaction: what is queued in it, and what becomes of commands that speak of the client itself.
//!
//! Servers queue CLIENT and CLUSTER like all else. So they are queued at the server here too: as they came where that leaves
//! nothing on a connection that others will have, else in a form that does nothing. Arguments and rights are then the
//! server's matter, as are DISCARD, EXECABORT and keys that have changed: what does not run has no reply, and nothing of it
//! has happened. The reply of EXEC is taken apart ([`Elements`]), and what the gateway has to say stands in the place of what
//! the server said to the stand-in. All other elements pass as they come, however large.
//!
//! Refused, though servers queue it: SUBSCRIBE and its kin (one reply for each channel, in RESP3 pushes in the middle of
//! EXEC's), CLIENT REPLY (it leaves elements out, and Valkey refuses it), AUTH, HELLO and CLIENT CAPA (the connection would
//! keep it), CLIENT UNBLOCK and a redirection (whom they name is another connection behind a switch).

use std::collections::VecDeque;

use bytes::Bytes;

use super::state::{Change, Topic, change};
use super::{Expect, Pinned};
use crate::command::{Lane as Route, Pin as Why};
use crate::proxy::session::{Core, Session};
use crate::proxy::upstream::Identity;
use crate::proxy::{cluster, local};
use crate::resp::write;

/// A transaction's commands are remembered up to this many bytes, to be replayed after a switch.
const REMEMBERED: usize = 64 * 1024 * 1024;

/// What becomes of an element in the reply of EXEC.
#[derive(Debug)]
pub(in crate::proxy) enum Within {
    /// The gateway's answer to these words takes its place.
    Own(Vec<Bytes>),
    /// The command has changed the state of the connection.
    State(Change, Bytes),
    /// It names a connection of the server's: the client knows it by another id.
    Redirection,
}

/// How a command goes to the server behind MULTI.
pub(super) enum Queueing {
    AsItIs(Option<Within>),
    /// In this form.
    Instead(Bytes, Within),
    /// Not at all.
    Refused,
}

/// How this command goes to the server behind MULTI. There it would run on a connection that goes back to the pool: AUTH would
/// hand its user's rights to whoever gets it next, CLIENT KILL would take ids of clients for those of connections.
pub(super) fn queueing(name: &str, route: Option<Route>, raw: &[u8], args: &[&[u8]]) -> Queueing {
    let own = || Within::Own(args.iter().map(|arg| Bytes::copy_from_slice(arg)).collect());
    let instead = |words: &[&[u8]]| {
        let mut bytes = Vec::new();
        write::command(&mut bytes, words);
        Queueing::Instead(bytes.into(), own())
    };
    let speaks_of_itself = matches!(name, "client" | "cluster");
    let sub =
        args.get(1).filter(|_| speaks_of_itself).map(|sub| sub.to_ascii_lowercase()).unwrap_or_default();
    let rest = args.get(2..).unwrap_or_default();
    match (route, name, sub.as_slice()) {
        (Some(Route::Local), "select" | "readonly" | "readwrite" | "asking", _) => Queueing::AsItIs(None),
        (Some(Route::Local), "cluster", _) => Queueing::AsItIs(cluster::is_own(args).then(own)),
        (Some(Route::Local), "client", sub) => match (sub, rest) {
            (b"id" | b"getname" | b"info", []) | (b"list", _) => Queueing::AsItIs(Some(own())),
            (b"setname", [_]) | (b"setinfo", [_, _]) => instead(&[b"CLIENT", b"GETNAME"]),
            (b"kill", [_, ..]) => instead(&local::kill_probe(rest)),
            (b"unblock" | b"capa", _) => Queueing::Refused,
            // A wrong number of arguments.
            _ => Queueing::AsItIs(None),
        },
        (Some(Route::Local | Route::Refused), ..) => Queueing::Refused,
        (Some(Route::Pinned(Why::Tracking | Why::Other)), "client", sub) => match sub {
            b"getredir" | b"trackinginfo" => Queueing::AsItIs(Some(Within::Redirection)),
            _ => match change(args) {
                // Behind EXEC it holds no longer.
                Change::Nothing | Change::Set(Topic::Caching) => Queueing::AsItIs(None),
                Change::Set(Topic::Unknown) => Queueing::Refused,
                change if change.redirect().is_some() => Queueing::Refused,
                change => Queueing::AsItIs(Some(Within::State(change, Bytes::copy_from_slice(raw)))),
            },
        },
        (
            Some(Route::Pinned(Why::Subscribe | Why::Monitor | Why::Tracking | Why::ReplyMode | Why::Other)),
            ..,
        ) => Queueing::Refused,
        _ => Queueing::AsItIs(None),
    }
}

/// Why a transaction cannot run when EXEC comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::proxy) enum Fate {
    /// It can.
    Live,
    /// A watched key's state was lost with the switch: as if the key had changed.
    Conflict,
    /// It was too large to be remembered.
    TooLarge,
}

#[derive(Debug)]
pub(in crate::proxy) struct Transaction {
    pub(in crate::proxy) queued: Vec<Bytes>,
    /// What becomes of their replies within that of EXEC, by their place in it; of most, nothing.
    within: VecDeque<(usize, Within)>,
    /// How many there are, remembered or not.
    pub(super) count: usize,
    bytes: usize,
    pub(in crate::proxy) fate: Fate,
    /// A command was refused when it was queued: EXEC will answer EXECABORT.
    pub(in crate::proxy) refused: bool,
    /// The db that a queued SELECT leads to.
    pub(super) select: Option<u32>,
}

impl Transaction {
    pub(super) fn new(fate: Fate) -> Self {
        Self {
            queued: Vec::new(),
            within: VecDeque::new(),
            count: 0,
            bytes: 0,
            fate,
            refused: false,
            select: None,
        }
    }

    /// Whether the commands could not all be remembered.
    pub(in crate::proxy) fn is_too_large(&self) -> bool {
        self.bytes > REMEMBERED
    }

    /// A command was queued; `select` is the db that it leads to.
    pub(super) fn remember(&mut self, raw: Bytes, select: Option<u32>, within: Option<Within>) {
        self.within.extend(within.map(|within| (self.count, within)));
        self.count += 1;
        self.bytes += raw.len();
        if self.is_too_large() {
            self.queued = Vec::new();
        } else {
            self.select = select.or(self.select);
            self.queued.push(raw);
        }
    }
}

/// A reply of EXEC that is taken apart.
#[derive(Debug)]
pub(super) struct Elements {
    next: usize,
    total: usize,
}

impl Pinned {
    /// Whether a reply of EXEC begins here that has to be taken apart.
    fn opens(&self) -> bool {
        self.elements.is_none()
            && self.is_between_frames()
            && self.buf.first() == Some(&b'*')
            && matches!(self.expects.front(), Some((Expect::EndTransaction, _)))
            && self.transaction.as_ref().is_some_and(|transaction| !transaction.within.is_empty())
    }

    /// The first line of a reply of EXEC that has to be taken apart, if one begins here; `Err` when it is not whole yet.
    pub(super) fn open(&mut self) -> Result<Option<Bytes>, ()> {
        if !self.opens() {
            return Ok(None);
        }
        let end = memchr::memchr(b'\n', &self.buf).ok_or(())? + 1;
        let count = self.buf.get(1..end - 2).and_then(|text| std::str::from_utf8(text).ok()?.parse().ok());
        // Without a count it is nil: a watched key has changed.
        let Some(total) = count else { return Ok(None) };
        self.elements = Some(Elements { next: 0, total });
        Ok(Some(self.buf.split_to(end).freeze()))
    }

    /// Whether the reply of EXEC that is taken apart has as many elements as commands were queued.
    pub(super) fn fits(&self) -> bool {
        let queued = self.transaction.as_ref().map(|transaction| transaction.count);
        self.elements.as_ref().is_none_or(|elements| Some(elements.total) == queued)
    }

    /// Whether what comes next is an element of EXEC's reply, not a message.
    pub(super) fn is_element(&self, frame: &[u8]) -> bool {
        self.elements.is_some() && frame.first() != Some(&b'>')
    }

    /// Whether the next element passes as it comes.
    pub(super) fn element_passes(&self) -> bool {
        let elements = self.elements.as_ref();
        elements.is_some_and(|elements| self.is_element(&self.buf) && self.within(elements).is_none())
    }

    fn within(&self, elements: &Elements) -> Option<&Within> {
        let (at, within) = self.transaction.as_ref()?.within.front()?;
        (*at == elements.next).then_some(within)
    }

    /// What becomes of the next element.
    fn take_within(&mut self) -> Option<Within> {
        self.within(self.elements.as_ref()?)?;
        Some(self.transaction.as_mut()?.within.pop_front()?.1)
    }

    /// An element has come to its end; whether it was the last.
    fn next_element(&mut self) -> bool {
        let Some(elements) = &mut self.elements else { return false };
        elements.next += 1;
        elements.next == elements.total
    }
}

impl Session {
    /// Passes on an element of EXEC's reply, or the beginning of one that passes as it comes; whether the client sees it.
    pub(super) fn element(self: &std::rc::Rc<Self>, core: &mut Core, frame: Bytes) -> bool {
        let Some(pinned) = core.pinned.as_deref_mut() else { return false };
        let shown = pinned.expects.front().is_some_and(|(_, discard)| !discard);
        let refused = frame.first() == Some(&b'-');
        let answer = match pinned.take_within() {
            Some(Within::Own(args)) if !refused || is_cluster_refusal(&args, &frame) => {
                local::answer_within(self, core, &args, shown);
                return shown;
            }
            Some(Within::State(change, command)) if !refused => {
                pinned.state.apply(change, command);
                frame
            }
            Some(Within::Redirection) => pinned.tracking_told(&frame).unwrap_or(frame),
            _ => frame,
        };
        if shown {
            self.send_whole(answer);
        }
        shown
    }

    /// An element of EXEC's reply has come to its end.
    pub(super) fn end_element(&self, core: &mut Core) {
        let Some(pinned) = core.pinned.as_deref_mut() else { return };
        if pinned.next_element() {
            pinned.elements = None;
            pinned.expects.pop_front();
            self.end_transaction(core, true);
        }
    }

    /// The transaction is over; whether its commands have run.
    pub(super) fn end_transaction(&self, core: &mut Core, has_run: bool) {
        let Some(pinned) = core.pinned.as_deref_mut() else { return };
        let select = pinned.transaction.take().and_then(|transaction| transaction.select);
        pinned.watched.clear();
        if let Some(db) = select.filter(|_| has_run) {
            pinned.upstream.key.identity.db = db;
        }
        pinned.show(&self.entry.shown);
        if let Some(db) = select.filter(|_| has_run) {
            let identity = Identity { db, ..core.identity.clone() };
            self.change_identity(core, identity);
        }
    }
}

/// Whether a server says that it is no cluster, which to its clients the gateway is.
fn is_cluster_refusal(args: &[Bytes], frame: &[u8]) -> bool {
    args.first().is_some_and(|name| name.eq_ignore_ascii_case(b"cluster")) && frame.starts_with(b"-ERR ")
}

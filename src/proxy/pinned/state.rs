//! What commands leave on a connection for as long as it lives, and what has to be said on another one to have it there too.
//!
//! A connection with any of it never goes back to the pool: whoever got it next would have the state as well.

use bytes::Bytes;

use crate::proxy::local::number;
use crate::proxy::registry::flag;
use crate::resp::scan::{CommandScanner, Limits};
use crate::resp::write;

/// What a state is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::proxy) enum Topic {
    Monitor,
    Tracking {
        /// The client, by its id at the gateway, that gets its invalidations instead.
        redirect: Option<u64>,
        /// Of all keys that begin as said, whatever the client has read.
        broadcast: bool,
    },
    /// CLIENT CACHING: what it says holds for the next command.
    Caching,
    NoEvict,
    NoTouch,
    ImportSource,
    Debug,
    /// A set of fields that HIMPORT SET names.
    Fields(Bytes),
    /// What a command may have left that the table does not have: only the server knows.
    Unknown,
}

impl Topic {
    /// Whether the later one takes the place of the earlier.
    fn is_same(&self, other: &Self) -> bool {
        matches!((self, other), (Self::Tracking { .. }, Self::Tracking { .. })) || self == other
    }
}

/// What a command does to the state of its connection when the server accepts it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::proxy) enum Change {
    Nothing,
    /// This is how it is now.
    Set(Topic),
    /// This besides what is there.
    Add(Topic),
    End(Topic),
    /// There are no sets of fields any more.
    EndFields,
}

impl Change {
    /// The id of the client to which the command redirects invalidations.
    pub(super) fn redirect(&self) -> Option<u64> {
        match self {
            Self::Set(Topic::Tracking { redirect, .. }) | Self::Add(Topic::Tracking { redirect, .. }) => {
                *redirect
            }
            _ => None,
        }
    }
}

/// What `args` does.
pub(super) fn change(args: &[&[u8]]) -> Change {
    let is =
        |at: usize, word: &str| args.get(at).is_some_and(|arg| arg.eq_ignore_ascii_case(word.as_bytes()));
    let switched =
        |topic: Topic| if is(2, "off") || is(2, "no") { Change::End(topic) } else { Change::Set(topic) };
    if is(0, "monitor") {
        return Change::Set(Topic::Monitor);
    }
    if is(0, "script") {
        return if is(1, "debug") { switched(Topic::Debug) } else { Change::Set(Topic::Unknown) };
    }
    if is(0, "himport") {
        let fields = |at: usize| args.get(at).map(|name| Topic::Fields(Bytes::copy_from_slice(name)));
        return match fields(2) {
            Some(fields) if is(1, "prepare") => Change::Set(fields),
            Some(fields) if is(1, "discard") => Change::End(fields),
            _ if is(1, "discardall") => Change::EndFields,
            _ if is(1, "set") => Change::Nothing,
            _ => Change::Set(Topic::Unknown),
        };
    }
    if !is(0, "client") {
        return Change::Set(Topic::Unknown);
    }
    if is(1, "tracking") {
        let redirect = redirect_at(args).and_then(|at| number(args[at]));
        let broadcast = options(args).any(|(_, word)| word.eq_ignore_ascii_case(b"bcast"));
        let topic = Topic::Tracking { redirect, broadcast };
        // Each of these adds its prefixes (`enableTracking` in `tracking.c`); the mode cannot change on the way.
        return if is(2, "on") && broadcast { Change::Add(topic) } else { switched(topic) };
    }
    match args.get(1).map(|sub| sub.to_ascii_lowercase()).unwrap_or_default().as_slice() {
        b"caching" => Change::Set(Topic::Caching),
        b"no-evict" => switched(Topic::NoEvict),
        b"no-touch" => switched(Topic::NoTouch),
        b"import-source" => switched(Topic::ImportSource),
        b"trackinginfo" | b"getredir" => Change::Nothing,
        _ => Change::Set(Topic::Unknown),
    }
}

/// The options of CLIENT TRACKING, each with its place; what a prefix or an id says is none.
fn options<'a>(args: &'a [&'a [u8]]) -> impl Iterator<Item = (usize, &'a [u8])> {
    let mut at = 3;
    std::iter::from_fn(move || {
        let word = *args.get(at)?;
        let place = at;
        let has_value = word.eq_ignore_ascii_case(b"prefix") || word.eq_ignore_ascii_case(b"redirect");
        at += 1 + usize::from(has_value);
        Some((place, word))
    })
}

/// Where CLIENT TRACKING says to whom invalidations go.
fn redirect_at(args: &[&[u8]]) -> Option<usize> {
    let (at, _) = options(args).find(|(_, word)| word.eq_ignore_ascii_case(b"redirect"))?;
    (at + 1 < args.len()).then_some(at + 1)
}

/// The words of CLIENT TRACKING with this id of a connection where it names a client; without one, it names none.
pub(in crate::proxy) fn redirected(args: &[&[u8]], connection: Option<u64>) -> Bytes {
    let id = connection.map(|id| id.to_string());
    let mut words = args.to_vec();
    match (redirect_at(args), &id) {
        (Some(at), Some(id)) => words[at] = id.as_bytes(),
        (Some(at), None) => drop(words.drain(at - 1..=at)),
        (None, _) => {}
    }
    let mut bytes = Vec::new();
    write::command(&mut bytes, &words);
    bytes.into()
}

/// The state of a connection, and the commands that gave it as the client sent them, in their order.
#[derive(Debug, Default)]
pub(in crate::proxy) struct State {
    said: Vec<(Topic, Bytes)>,
    /// Whoever was to get the invalidations is gone, and one could not be sent.
    broken: bool,
}

impl State {
    /// The server has accepted `command`, which does this.
    pub(super) fn apply(&mut self, change: Change, command: Bytes) {
        if let Change::Set(Topic::Tracking { .. })
        | Change::Add(Topic::Tracking { .. })
        | Change::End(Topic::Tracking { .. }) = change
        {
            self.broken = false;
        }
        match change {
            Change::Nothing => {}
            Change::Set(topic) => {
                self.said.retain(|(other, _)| !topic.is_same(other));
                self.said.push((topic, command));
            }
            Change::Add(topic) => {
                // What comes again word by word adds nothing, but its options hold from here on.
                self.said.retain(|(_, other)| *other != command);
                self.said.push((topic, command));
            }
            Change::End(topic) => self.said.retain(|(other, _)| !topic.is_same(other)),
            Change::EndFields => self.said.retain(|(topic, _)| !matches!(topic, Topic::Fields(_))),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.said.is_empty()
    }

    /// What has to be said on another connection before anything else.
    fn said_first(&self) -> impl Iterator<Item = &(Topic, Bytes)> {
        self.said.iter().filter(|(topic, _)| !matches!(topic, Topic::Caching | Topic::Unknown))
    }

    /// What has to be said on another connection before anything else; `target` is the connection there that gets the
    /// invalidations. The latest TRACKING decides whether they are redirected, so that no other needs to name anybody.
    pub(in crate::proxy) fn commands(&self, target: Option<u64>) -> Vec<Bytes> {
        self.said_first()
            .map(|(topic, command)| match topic {
                Topic::Tracking { redirect: Some(_), .. } => {
                    with_args(command, |args| redirected(args, target))
                }
                _ => command.clone(),
            })
            .collect()
    }

    /// What has to be said last, since it holds for the command behind it.
    pub(in crate::proxy) fn caching(&self) -> Option<&Bytes> {
        self.said.iter().find(|(topic, _)| *topic == Topic::Caching).map(|(_, command)| command)
    }

    /// A command has come to which CACHING spoke.
    pub(super) fn spend_caching(&mut self) {
        if !self.said.is_empty() {
            self.said.retain(|(topic, _)| *topic != Topic::Caching);
        }
    }

    /// Whether anything has to be said on another connection.
    pub(in crate::proxy) fn can_be_said(&self) -> bool {
        self.said_first().next().is_some()
    }

    /// Leaves behind what cannot be said on another connection; whether there was any.
    pub(in crate::proxy) fn leave_unknown(&mut self) -> bool {
        let before = self.said.len();
        self.said.retain(|(topic, _)| *topic != Topic::Unknown);
        self.said.len() < before
    }

    /// What CLIENT LIST shows of it.
    pub(super) fn flags(&self) -> u32 {
        let bits = self.said.iter().map(|(topic, _)| match topic {
            Topic::Monitor => flag::MONITOR,
            Topic::Tracking { broadcast: true, .. } => flag::TRACKING | flag::BROADCAST,
            Topic::Tracking { .. } => flag::TRACKING,
            Topic::NoEvict => flag::NO_EVICT,
            Topic::NoTouch => flag::NO_TOUCH,
            Topic::ImportSource => flag::IMPORT_SOURCE,
            Topic::Caching | Topic::Debug | Topic::Fields(_) | Topic::Unknown => 0,
        });
        bits.fold(if self.broken { flag::BROKEN_REDIRECT } else { 0 }, |all, bit| all | bit)
    }

    pub(in crate::proxy) fn monitors(&self) -> bool {
        self.said.iter().any(|(topic, _)| *topic == Topic::Monitor)
    }

    /// Whether scripts are answered with what the debugger says, in as many replies as it takes.
    pub(in crate::proxy) fn debugs(&self) -> bool {
        self.said.iter().any(|(topic, _)| *topic == Topic::Debug)
    }

    /// Whether the server tells this client which of its keys have changed.
    pub(in crate::proxy) fn tracks(&self) -> bool {
        self.said.iter().any(|(topic, _)| matches!(topic, Topic::Tracking { .. }))
    }

    /// The client, by its id at the gateway, to which that goes instead: the latest TRACKING decides.
    pub(in crate::proxy) fn redirect(&self) -> Option<u64> {
        let latest = self.said.iter().rev().find_map(|(topic, _)| match topic {
            Topic::Tracking { redirect, .. } => Some(*redirect),
            _ => None,
        });
        latest.flatten()
    }

    /// Whoever was to get the invalidations is gone, and one could not be sent.
    pub(in crate::proxy) fn note_broken(&mut self) {
        self.broken = true;
    }

    /// See [`State::note_broken`].
    pub(in crate::proxy) fn is_broken(&self) -> bool {
        self.broken
    }
}

/// Calls `f` with the arguments of a command that a client has sent.
fn with_args<T>(command: &[u8], f: impl FnOnce(&[&[u8]]) -> T) -> T {
    let frame = CommandScanner::default().next(command, &Limits::default());
    match frame {
        Ok(Some(frame)) => f(&frame.args(command).collect::<Vec<_>>()),
        // What the server has accepted is whole.
        _ => f(&[]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The state after these commands, and what is said of it.
    fn after(commands: &[&str]) -> (State, Vec<String>) {
        let mut state = State::default();
        for command in commands {
            let args: Vec<&[u8]> = command.split(' ').map(str::as_bytes).collect();
            state.apply(change(&args), Bytes::copy_from_slice(command.as_bytes()));
        }
        let said =
            state.commands(Some(9)).iter().map(|said| String::from_utf8_lossy(said).into_owned()).collect();
        (state, said)
    }

    #[test]
    fn prefixes_add_up_until_tracking_ends() {
        let (a, b) = ("CLIENT TRACKING ON BCAST PREFIX a", "client tracking on PREFIX b bcast");
        assert_eq!(after(&[a, b]).1, [a, b]);
        assert_eq!(after(&[a, b, a]).1, [b, a]);
        assert!(after(&[a, b, "CLIENT TRACKING off"]).0.is_empty());
        let (optin, noloop) = ("CLIENT TRACKING ON OPTIN", "CLIENT TRACKING ON OPTIN NOLOOP");
        assert_eq!(after(&[optin, noloop]).1, [noloop]);
    }

    #[test]
    fn a_prefix_says_nothing_of_its_own() {
        let words = "CLIENT TRACKING ON PREFIX off PREFIX redirect PREFIX monitor PREFIX bcast BCAST";
        let (state, said) = after(&[words]);
        assert_eq!(said, [words]);
        assert!(state.tracks() && state.redirect().is_none() && !state.monitors());
        let args: Vec<&[u8]> =
            "CLIENT TRACKING ON PREFIX redirect REDIRECT 7".split(' ').map(str::as_bytes).collect();
        assert_eq!(redirect_at(&args), Some(6));
        assert_eq!(after(&["CLIENT TRACKING ON PREFIX redirect REDIRECT 7"]).0.redirect(), Some(7));
    }

    #[test]
    fn what_is_ended_leaves_nothing() {
        for (on, off) in [
            ("CLIENT NO-EVICT ON", "client no-evict off"),
            ("CLIENT NO-TOUCH on", "CLIENT NO-TOUCH OFF"),
            ("CLIENT IMPORT-SOURCE ON", "CLIENT IMPORT-SOURCE OFF"),
            ("SCRIPT DEBUG YES", "SCRIPT DEBUG NO"),
            ("HIMPORT PREPARE f a b", "HIMPORT DISCARD f"),
            ("HIMPORT PREPARE f a b", "HIMPORT DISCARDALL"),
        ] {
            assert_eq!(after(&[on, on]).1, [on]);
            assert!(after(&[on, off]).0.is_empty(), "{off}");
        }
        let two = ["HIMPORT PREPARE f a", "HIMPORT PREPARE g b"];
        assert_eq!(after(&two).1, two);
        assert_eq!(after(&["HIMPORT PREPARE f a", "HIMPORT PREPARE g b", "HIMPORT DISCARD f"]).1, two[1..]);
        assert!(after(&["HIMPORT SET k f 1", "CLIENT TRACKINGINFO", "CLIENT GETREDIR"]).0.is_empty());
    }

    #[test]
    fn what_only_the_server_knows_keeps_the_connection_and_is_not_said_again() {
        for command in ["CLIENT SOMETHING NEW", "SCRIPT NEWER", "HIMPORT NEWER x", "NEWER THING"] {
            let (mut state, said) = after(&[command]);
            assert!(said.is_empty() && !state.is_empty() && !state.can_be_said());
            assert!(state.leave_unknown() && state.is_empty() && !state.leave_unknown());
        }
    }

    #[test]
    fn caching_holds_until_the_next_command() {
        let (mut state, said) = after(&["CLIENT TRACKING ON OPTIN", "CLIENT CACHING YES"]);
        assert_eq!(said, ["CLIENT TRACKING ON OPTIN"]);
        assert_eq!(state.caching().unwrap(), "CLIENT CACHING YES");
        state.spend_caching();
        assert!(state.caching().is_none() && state.tracks());
    }
}

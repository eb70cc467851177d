//! Where the keys of a call stand.
//!
//! Most commands are answered by key specifications, as Redis 7.0 and later publish them: where a search
//! begins (at an index, behind a keyword) and how keys follow from there (a range, or a count that stands
//! before them). Where the servers' own specifications are marked as incomplete, the rules are written out
//! here, as in the servers' `get_keys_function`s (`db.c`).
//!
//! Guarantees: no panic and no work beyond the number of arguments, whatever the arguments say; every
//! index that is reported is one of an argument.

use std::fmt;
use std::ops::Deref;

use super::{Kind, Spec, subcommand};

/// How a key is used; bits of a key specification's flags.
pub mod access {
    /// Reads.
    pub const RO: u16 = 1;
    /// Reads and writes.
    pub const RW: u16 = 1 << 1;
    /// Overwrites, without regard to what was there.
    pub const OW: u16 = 1 << 2;
    /// Removes.
    pub const RM: u16 = 1 << 3;
    /// Returns, copies or uses the value.
    pub const ACCESS: u16 = 1 << 4;
    /// Adds data to the value.
    pub const INSERT: u16 = 1 << 5;
    /// Changes data of the value.
    pub const UPDATE: u16 = 1 << 6;
    /// Removes data from the value.
    pub const DELETE: u16 = 1 << 7;
    /// Not a key: a channel, or something else that a cluster assigns to a slot.
    pub const CHANNEL: u16 = 1 << 8;
    /// The specification may miss keys.
    pub const INCOMPLETE: u16 = 1 << 9;
    /// The use depends on other arguments.
    pub const VARIABLE: u16 = 1 << 10;
}

/// One key specification.
#[derive(Debug, Clone, Copy)]
pub struct KeySpec {
    begin: Begin,
    find: Find,
    flags: u16,
}

/// For the generated table.
pub(super) const fn spec(begin: Begin, find: Find, flags: u16) -> KeySpec {
    KeySpec { begin, find, flags }
}

/// Where the search for keys begins.
#[derive(Debug, Clone, Copy)]
pub(super) enum Begin {
    /// At this argument.
    Index(i16),
    /// Behind this word, looked for from this argument on; backwards from the end when negative.
    Keyword(&'static str, i16),
    /// By rules that no specification can express.
    Unknown,
}

/// How keys follow from where the search begins.
#[derive(Debug, Clone, Copy)]
pub(super) enum Find {
    /// Last key (relative to the first, or to the end when negative), step, and the share of the
    /// remaining arguments that are keys (2: the first half).
    Range(i16, i16, i16),
    /// A number of keys: its place, that of the first key, and the step.
    Count(i16, i16, i16),
    /// By rules that no specification can express.
    Unknown,
}

/// Commands whose keys are found by hand-written rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Movable {
    BySpec,
    Sort,
    GeoRadius,
    Migrate,
    Streams,
    Stralgo,
}

/// What a call does with a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Access {
    /// It cannot change it.
    Read,
    /// It may change it.
    Write,
    /// It is no key but a channel.
    Channel,
}

/// Arguments from which no keys can be told; the server will refuse the call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeyError;

impl fmt::Display for KeyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // As COMMAND GETKEYS words it.
        f.write_str("Invalid arguments specified for command")
    }
}

impl std::error::Error for KeyError {}

/// Indices of arguments; up to six without an allocation.
#[derive(Debug, Clone, Default)]
pub struct KeyList {
    few: [u32; 6],
    len: usize,
    many: Vec<u32>,
}

impl KeyList {
    fn push(&mut self, index: usize) {
        let index = index as u32;
        if self.len < self.few.len() {
            self.few[self.len] = index;
        } else {
            if self.many.is_empty() {
                self.many.extend_from_slice(&self.few);
            }
            self.many.push(index);
        }
        self.len += 1;
    }
}

impl Deref for KeyList {
    type Target = [u32];

    fn deref(&self) -> &[u32] {
        if self.many.is_empty() { &self.few[..self.len] } else { &self.many }
    }
}

/// The keys of a call, as indices into `args` (0 is the command's name). Channels are left out.
///
/// # Errors
/// When the arguments are such that the server itself will refuse the call.
pub fn keys<A: AsRef<[u8]>>(spec: &Spec, args: &[A]) -> Result<KeyList, KeyError> {
    let mut list = KeyList::default();
    each_key(spec, args, |index, access| {
        if access != Access::Channel {
            list.push(index);
        }
    })?;
    Ok(list)
}

/// Calls `found` with the index and use of each key, and of each channel that a cluster assigns to a slot.
///
/// # Errors
/// As [`keys`]; some keys may have been reported before.
pub fn each_key<A: AsRef<[u8]>>(
    spec: &Spec,
    args: &[A],
    mut found: impl FnMut(usize, Access),
) -> Result<(), KeyError> {
    if spec.is_container() {
        let sub = args.get(1).and_then(|name| subcommand(spec, name.as_ref()));
        return sub.map_or(Ok(()), |sub| each_key(sub, args, found));
    }
    match spec.movable {
        Movable::BySpec => {
            for one in spec.key_specs {
                by_spec(one, spec, args, &mut found)?;
            }
            Ok(())
        }
        Movable::Sort => sort(args, found),
        Movable::GeoRadius => georadius(spec, args, found),
        Movable::Migrate => migrate(args, found),
        Movable::Streams => streams(spec, args, found),
        Movable::Stralgo => stralgo(args, found),
    }
}

fn use_of(one: &KeySpec, spec: &Spec) -> Access {
    if one.flags & access::CHANNEL != 0 {
        Access::Channel
    } else if one.flags & access::RO != 0 || spec.kind == Kind::Read {
        // Vector sets register all their keys as RW, those of commands that only read too.
        Access::Read
    } else {
        Access::Write
    }
}

fn by_spec<A: AsRef<[u8]>>(
    one: &KeySpec,
    spec: &Spec,
    args: &[A],
    found: &mut impl FnMut(usize, Access),
) -> Result<(), KeyError> {
    let argc = args.len() as i64;
    let begin = match one.begin {
        Begin::Index(index) => i64::from(index),
        Begin::Keyword(word, from) => match keyword(args, word, from) {
            Some(at) => at as i64 + 1,
            None => return Ok(()),
        },
        Begin::Unknown => return Ok(()),
    };
    let (first, last, step) = match one.find {
        Find::Range(last, step, limit) => {
            let (last, limit) = (i64::from(last), i64::from(limit));
            let last = match last {
                0.. => begin + last,
                _ if limit > 1 => begin + (argc - begin) / limit + last,
                _ => argc + last,
            };
            (begin, last, i64::from(step))
        }
        Find::Count(at, first, step) => {
            let at = usize::try_from(begin + i64::from(at)).map_err(|_| KeyError)?;
            let count = number(args.get(at).ok_or(KeyError)?.as_ref()).filter(|n| *n >= 0).ok_or(KeyError)?;
            let (first, step) = (begin + i64::from(first), i64::from(step));
            // More keys than arguments is an error before any arithmetic with the number.
            if count > argc || (count > 0 && first + (count - 1) * step >= argc) {
                return Err(KeyError);
            }
            (first, first + (count - 1) * step, step)
        }
        Find::Unknown => return Ok(()),
    };
    if first >= argc && last >= first && matches!(one.begin, Begin::Index(_)) {
        return Err(KeyError);
    }
    let used = use_of(one, spec);
    let mut at = first;
    while at <= last && at < argc {
        found(at as usize, used);
        at += step.max(1);
    }
    Ok(())
}

fn keyword<A: AsRef<[u8]>>(args: &[A], word: &str, from: i16) -> Option<usize> {
    let is = |at: &usize| args[*at].as_ref().eq_ignore_ascii_case(word.as_bytes());
    if from >= 0 {
        (usize::from(from.unsigned_abs())..args.len()).find(is)
    } else {
        let start = args.len().checked_sub(usize::from(from.unsigned_abs()))?;
        (1..=start).rev().find(is)
    }
}

/// A decimal number as Redis reads it (`string2ll`): no plus sign, no leading zero, no blank.
fn number(text: &[u8]) -> Option<i64> {
    let digits = text.strip_prefix(b"-").unwrap_or(text);
    let plain = match digits {
        [b'0'] => text.len() == 1,
        [b'1'..=b'9', ..] => true,
        _ => false,
    };
    if plain { std::str::from_utf8(text).ok()?.parse().ok() } else { None }
}

fn is<A: AsRef<[u8]>>(arg: &A, word: &str) -> bool {
    arg.as_ref().eq_ignore_ascii_case(word.as_bytes())
}

fn sort<A: AsRef<[u8]>>(args: &[A], mut found: impl FnMut(usize, Access)) -> Result<(), KeyError> {
    if args.len() < 2 {
        return Err(KeyError);
    }
    found(1, Access::Read);
    let mut store = None;
    let mut at = 2;
    while at < args.len() {
        if is(&args[at], "limit") {
            at += 2;
        } else if is(&args[at], "get") || is(&args[at], "by") {
            at += 1;
        } else if is(&args[at], "store") && at + 1 < args.len() {
            // The last one counts, as for the server.
            store = Some(at + 1);
            at += 1;
        }
        at += 1;
    }
    if let Some(store) = store {
        found(store, Access::Write);
    }
    Ok(())
}

fn georadius<A: AsRef<[u8]>>(
    spec: &Spec,
    args: &[A],
    mut found: impl FnMut(usize, Access),
) -> Result<(), KeyError> {
    if args.len() < usize::from(spec.arity.unsigned_abs()) {
        return Err(KeyError);
    }
    found(1, Access::Read);
    let mut store = None;
    let mut at = 5;
    while at + 1 < args.len() {
        if is(&args[at], "store") || is(&args[at], "storedist") {
            store = Some(at + 1);
            at += 1;
        }
        at += 1;
    }
    if let Some(store) = store {
        found(store, Access::Write);
    }
    Ok(())
}

/// `MIGRATE host port key|"" db timeout [COPY] [REPLACE] [AUTH …] [AUTH2 … …] [KEYS key …]`
fn migrate<A: AsRef<[u8]>>(args: &[A], mut found: impl FnMut(usize, Access)) -> Result<(), KeyError> {
    if args.len() < 6 {
        return Err(KeyError);
    }
    if args[3].as_ref().is_empty() {
        let mut at = 6;
        while at < args.len() {
            if is(&args[at], "keys") {
                (at + 1..args.len()).for_each(|key| found(key, Access::Write));
                return Ok(());
            }
            // A password may read KEYS.
            at += if is(&args[at], "auth") {
                2
            } else if is(&args[at], "auth2") {
                3
            } else {
                1
            };
        }
    }
    found(3, Access::Write);
    Ok(())
}

/// Where `STREAMS` stands in XREAD and XREADGROUP, and the argument of BLOCK.
pub(super) fn stream_options<A: AsRef<[u8]>>(args: &[A]) -> (Option<usize>, Option<usize>) {
    let mut block = None;
    let mut at = 1;
    while at < args.len() {
        if is(&args[at], "streams") {
            return (Some(at), block);
        }
        at += if is(&args[at], "group") {
            3
        } else if is(&args[at], "block") {
            block = Some(at + 1);
            2
        } else if ["count", "maxcount", "maxsize", "claim"].iter().any(|word| is(&args[at], word)) {
            2
        } else {
            // NOACK, or an option newer than this table.
            1
        };
    }
    (None, block)
}

fn streams<A: AsRef<[u8]>>(
    spec: &Spec,
    args: &[A],
    mut found: impl FnMut(usize, Access),
) -> Result<(), KeyError> {
    let at = stream_options(args).0.ok_or(KeyError)?;
    let rest = args.len() - at - 1;
    if rest == 0 || !rest.is_multiple_of(2) {
        return Err(KeyError);
    }
    let used = if spec.name == "xread" { Access::Read } else { Access::Write };
    (at + 1..at + 1 + rest / 2).for_each(|key| found(key, used));
    Ok(())
}

/// `STRALGO LCS [IDX] [KEYS a b | STRINGS a b] …` (6.0 and 6.2)
fn stralgo<A: AsRef<[u8]>>(args: &[A], mut found: impl FnMut(usize, Access)) -> Result<(), KeyError> {
    for at in 2..args.len() {
        if is(&args[at], "strings") {
            return Ok(());
        }
        if is(&args[at], "keys") && at + 2 < args.len() {
            found(at + 1, Access::Read);
            found(at + 2, Access::Read);
            return Ok(());
        }
    }
    Ok(())
}

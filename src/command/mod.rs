//! The command table: what the gateway knows of every command of Redis and Valkey.
//!
//! Guarantees: [`lookup`] neither allocates nor depends on the number of commands; every command and
//! subcommand that Redis 6.2 to 8.10 and Valkey 8.0 to 9.1 list is in the table; what is not in it is never
//! guessed, but looked up at the server ([`Unknown`]).
//!
//! Three layers: `table` is written by a script from the servers' own `COMMAND` (name, arity, flags, key
//! specifications); `attributes` adds by hand what no server says (how a command crosses the lane, the
//! mirror and the switch); `keys` and `blocking` answer questions about one call with its arguments.

mod attributes;
pub mod blocking;
pub mod keys;
mod table;
mod unknown;

use std::sync::LazyLock;

pub use blocking::{Blocking, Unit, blocking_form};
pub use keys::{Access, KeyError, KeyList, each_key, keys};
pub use unknown::Unknown;

use keys::{KeySpec, Movable};

/// Flags as the servers' `COMMAND` gives them, as bits.
pub mod flags {
    /// May change data.
    pub const WRITE: u32 = 1;
    /// Reads keys and changes none.
    pub const READONLY: u32 = 1 << 1;
    /// Refused when memory is full.
    pub const DENYOOM: u32 = 1 << 2;
    /// An administrator's command.
    pub const ADMIN: u32 = 1 << 3;
    /// Belongs to publish/subscribe.
    pub const PUBSUB: u32 = 1 << 4;
    /// Not allowed in scripts.
    pub const NOSCRIPT: u32 = 1 << 5;
    /// May block its client.
    pub const BLOCKING: u32 = 1 << 6;
    /// Allowed while the server loads.
    pub const LOADING: u32 = 1 << 7;
    /// Allowed on a replica without its master.
    pub const STALE: u32 = 1 << 8;
    /// O(1) or O(log N).
    pub const FAST: u32 = 1 << 9;
    /// Allowed before authentication.
    pub const NO_AUTH: u32 = 1 << 10;
    /// Allowed while a script runs too long.
    pub const ALLOW_BUSY: u32 = 1 << 11;
    /// First, last and step do not name all keys.
    pub const MOVABLE: u32 = 1 << 12;
    /// Not allowed in MULTI.
    pub const NO_MULTI: u32 = 1 << 13;
    /// Comes from a module, even if built in.
    pub const MODULE: u32 = 1 << 14;
}

/// What a command is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Reads keys.
    Read,
    /// Changes keys.
    Write,
    /// Speaks of the server, not of keys.
    Admin,
    /// Speaks of the connection.
    Connection,
    /// Publish and subscribe.
    PubSub,
    /// Scripts and functions: may do anything, unless they are the read-only forms.
    Script,
    /// MULTI and its company.
    Transaction,
}

/// How a client's command crosses the data path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Lane {
    /// One command, one reply, no state on the connection: it goes down the shared lane.
    Shared,
    /// It needs a server connection of its own.
    Pinned(Pin),
    /// The gateway itself answers.
    Local,
    /// No client of a gateway may send it.
    Refused,
}

/// Why a command needs a server connection of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Pin {
    /// MULTI, EXEC, DISCARD, WATCH, UNWATCH.
    Transaction,
    /// It may wait for data; only in the form for which [`blocking_form`] answers.
    Blocking,
    /// SUBSCRIBE, UNSUBSCRIBE and their pattern and shard forms.
    Subscribe,
    /// MONITOR.
    Monitor,
    /// CLIENT TRACKING, CACHING, TRACKINGINFO, GETREDIR.
    Tracking,
    /// CLIENT REPLY.
    ReplyMode,
    /// WAIT, WAITAOF: waits for what *this connection* wrote (send PING there first, so that it covers the lane).
    Wait,
    /// Other state on the connection: CLIENT NO-EVICT, SCRIPT DEBUG, HIMPORT.
    Other,
    /// No state at all, but it must not queue behind commands that it is meant to free: the lane itself may be
    /// what runs the script that SCRIPT KILL ends, or hold the write that CLIENT UNPAUSE lets through. The
    /// connection can go back to the pool as soon as the reply is there.
    Aside,
}

/// What a command leaves behind, and so what the mirror has to carry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Effect {
    /// Nothing.
    None,
    /// Values of its keys.
    Keys,
    /// Values of its keys, and it may set, move or remove expiries (of keys or of hash fields).
    Expiry,
    /// Whole databases: FLUSHALL, FLUSHDB, SWAPDB.
    Keyspace,
    /// Scripts and function libraries.
    Scripts,
    /// A message, which the replication stream carries too.
    Publish,
    /// Anything: the effects of a script arrive in the stream as other commands (as text before Redis 5).
    Any,
    /// The server itself; never mirrored (CONFIG SET, ACL SETUSER, CLUSTER …).
    Node,
}

/// What happens to a command that is in flight when the clients are switched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Switch {
    /// Its reply is waited for.
    Finish,
    /// It is unblocked on the old side and issued again on the new one with the time that is left.
    Reissue,
    /// Queued commands are replayed on the new side.
    Replay,
    /// Its subscriptions exist on both sides before the switch.
    Resubscribe,
    /// Its cursor, at this argument, means nothing on the other side: it starts again at 0.
    Cursor(u8),
    /// It names a script by its digest: the script has been loaded on the new side.
    ScriptCache,
    /// It brings a script, which is kept to be loaded on the new side.
    BringsScript,
    /// State that is set anew on the new side's connection.
    Carried,
}

/// One command or subcommand.
#[derive(Debug)]
pub struct Spec {
    /// Its number, from 1: a client's last command is remembered by it ([`name_of`]).
    pub id: u16,
    /// In lower case; a subcommand is `parent|sub`.
    pub name: &'static str,
    /// Arguments, the name included; negative: at least that many.
    pub arity: i16,
    /// Bits of [`flags`].
    pub flags: u32,
    /// What it is about.
    pub kind: Kind,
    /// How it crosses the data path. Of a container, and of a command that blocks only sometimes, [`route`]
    /// knows more.
    pub lane: Lane,
    /// What it leaves behind.
    pub effect: Effect,
    /// What the switch does with it.
    pub switch: Switch,
    blocks: Option<blocking::Rule>,
    key_specs: &'static [KeySpec],
    movable: Movable,
    subs: &'static [Sub],
}

impl Spec {
    /// Whether the command has this flag.
    pub fn has(&self, flag: u32) -> bool {
        self.flags & flag != 0
    }

    /// Whether the number of arguments, the name included, is right.
    pub fn accepts(&self, argc: usize) -> bool {
        let wanted = usize::from(self.arity.unsigned_abs());
        if self.arity < 0 { argc >= wanted } else { argc == wanted }
    }

    /// Whether it is only a name for subcommands.
    pub fn is_container(&self) -> bool {
        !self.subs.is_empty()
    }

    /// Its subcommands.
    pub fn subcommands(&self) -> impl Iterator<Item = &'static Spec> {
        self.subs.iter().map(|sub| sub.spec)
    }

    /// Whether [`blocking_form`] has to look at its arguments.
    pub fn may_block(&self) -> bool {
        self.blocks.is_some()
    }

    /// Whether it can change what is in the databases: a write, a script that is not read-only, or EXEC.
    pub fn may_write(&self) -> bool {
        !matches!(self.effect, Effect::None | Effect::Node | Effect::Publish) || self.name == "exec"
    }
}

/// A name as three words, its bytes in lower case: equal words and equal lengths are equal names.
type Words = [u64; 3];

#[derive(Debug)]
struct Sub {
    words: Words,
    len: usize,
    spec: &'static Spec,
}

/// Names longer than this are not in the table.
const LONGEST: usize = 24;

#[inline]
fn words(name: &[u8]) -> Option<Words> {
    // First and last words overlap where the length is no multiple: together with the length they still name
    // every byte, and no byte is read one at a time.
    let found = match name.len() {
        1..=3 => {
            let (first, middle, last) = (name[0], name[name.len() / 2], name[name.len() - 1]);
            [u64::from(first) | u64::from(middle) << 8 | u64::from(last) << 16, 0, 0]
        }
        4..=8 => {
            let first = u32::from_le_bytes(*name.first_chunk()?);
            let last = u32::from_le_bytes(*name.last_chunk()?);
            [u64::from(first) | u64::from(last) << 32, 0, 0]
        }
        9..=16 => [u64::from_le_bytes(*name.first_chunk()?), u64::from_le_bytes(*name.last_chunk()?), 0],
        17..=LONGEST => [
            u64::from_le_bytes(*name.first_chunk()?),
            u64::from_le_bytes(*name[8..].first_chunk()?),
            u64::from_le_bytes(*name.last_chunk()?),
        ],
        _ => return None,
    };
    Some(found.map(lower))
}

/// Eight ASCII bytes at a time: `A` to `Z` become `a` to `z`, everything else stays.
#[inline]
fn lower(word: u64) -> u64 {
    const EACH: u64 = 0x0101_0101_0101_0101;
    let seven = word & (EACH * 0x7f);
    let from_a = seven + EACH * u64::from(0x80 - b'A');
    let past_z = seven + EACH * u64::from(0x7f - b'Z');
    let upper = (from_a ^ past_z) & !word & (EACH * 0x80);
    word | upper >> 2
}

const SLOTS: usize = 1024;

#[inline]
fn slot(words: &Words, len: usize) -> usize {
    let mixed = words[0] ^ words[1].rotate_left(29) ^ words[2].rotate_left(43) ^ len as u64;
    (mixed.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (64 - SLOTS.trailing_zeros())) as usize
}

struct Table {
    /// Open addressing with linear probing, at most a third full.
    slots: Box<[Option<Sub>]>,
    specs: Vec<&'static Spec>,
}

static TABLE: LazyLock<Table> = LazyLock::new(Table::build);

impl Table {
    fn build() -> Self {
        let mut table = Self { slots: (0..SLOTS).map(|_| None).collect(), specs: Vec::new() };
        // Rows are sorted, so subcommands stand behind their parent; `|` sorts after every letter, so other
        // commands may stand between them.
        for (row, id) in table::ROWS.iter().zip(1..).filter(|(row, _)| !row.name.contains('|')) {
            let children = table::ROWS.iter().zip(1..).filter_map(|(sub, id)| {
                let name = sub.name.strip_prefix(row.name)?.strip_prefix('|')?;
                Some(entry(name, attributes::spec(id, sub, &[])))
            });
            let children: Vec<Sub> = children.flatten().collect();
            let spec = attributes::spec(id, row, Vec::leak(children));
            let Some(sub) = entry(row.name, spec) else { continue };
            let mut at = slot(&sub.words, sub.len);
            while table.slots[at].is_some() {
                at = (at + 1) % SLOTS;
            }
            table.specs.push(sub.spec);
            table.slots[at] = Some(sub);
        }
        table
    }
}

fn entry(name: &str, spec: Spec) -> Option<Sub> {
    // Leaked: built once, for as long as the process lives.
    words(name.as_bytes()).map(|words| Sub { words, len: name.len(), spec: Box::leak(Box::new(spec)) })
}

/// The command of this name, in whatever case.
#[inline]
pub fn lookup(name: &[u8]) -> Option<&'static Spec> {
    let words = words(name)?;
    let table = &*TABLE;
    let mut at = slot(&words, name.len());
    while let Some(found) = &table.slots[at % SLOTS] {
        if found.words == words && found.len == name.len() {
            return Some(found.spec);
        }
        at += 1;
    }
    None
}

/// The name of the command with this number.
pub fn name_of(id: u16) -> Option<&'static str> {
    let at = usize::from(id).checked_sub(1)?;
    match table::ROWS.get(at) {
        Some(row) => Some(row.name),
        None => unknown::name_at(at - table::ROWS.len()),
    }
}

/// The subcommand `sub` of a container, in whatever case.
#[inline]
pub fn subcommand(parent: &Spec, sub: &[u8]) -> Option<&'static Spec> {
    if parent.subs.is_empty() {
        return None;
    }
    let words = words(sub)?;
    parent.subs.iter().find(|found| found.words == words && found.len == sub.len()).map(|found| found.spec)
}

/// What a whole command is: of a container, its subcommand. `None`: it is not in the table.
pub fn lookup_call(args: &[&[u8]]) -> Option<&'static Spec> {
    let spec = lookup(args.first()?)?;
    if spec.is_container() { subcommand(spec, args.get(1)?) } else { Some(spec) }
}

/// Which argument names another database than the one that is selected: of MOVE, and of COPY with DB.
pub fn other_db(args: &[&[u8]]) -> Option<usize> {
    let name = args.first()?;
    if name.eq_ignore_ascii_case(b"MOVE") {
        return Some(2);
    }
    let options = args.get(3..).filter(|_| name.eq_ignore_ascii_case(b"COPY"))?;
    options.iter().position(|word| word.eq_ignore_ascii_case(b"DB")).map(|at| at + 4)
}

/// Every command of the table; subcommands through [`Spec::subcommands`].
pub fn all() -> impl Iterator<Item = &'static Spec> {
    TABLE.specs.iter().copied()
}

/// The specification that really applies to a call, a container's subcommand for instance, and its lane.
#[inline]
pub fn route<A: AsRef<[u8]>>(spec: &'static Spec, args: &[A]) -> (&'static Spec, Lane) {
    if spec.is_container() {
        let Some(sub) = args.get(1) else { return (spec, Lane::Shared) };
        return match subcommand(spec, sub.as_ref()) {
            Some(sub) => (sub, sub.lane),
            // Newer than the table. In these families it may change the connection that it runs on.
            None if matches!(spec.name, "client" | "script" | "himport") => (spec, Lane::Pinned(Pin::Other)),
            None => (spec, Lane::Shared),
        };
    }
    if spec.may_block() && spec.lane == Lane::Shared && blocking_form(spec, args).is_some() {
        return (spec, Lane::Pinned(Pin::Blocking));
    }
    (spec, spec.lane)
}

/// One row of the generated table.
struct Row {
    name: &'static str,
    arity: i16,
    flags: u32,
    keys: &'static [KeySpec],
}

const fn row(name: &'static str, arity: i16, flags: u32, keys: &'static [KeySpec]) -> Row {
    Row { name, arity, flags, keys }
}

#[cfg(test)]
mod tests;

//! What becomes of each command of the stream on its way to the destination.
//!
//! Most go as they are, byte for byte. The others:
//!
//! * PING, REPLCONF and keep-alives only advance the position. So do commands on keys that begin with
//!   `crossfade:`: these belong to a gateway (also to this one, which writes its position on the other
//!   side). A DEL with keys of both kinds loses ours.
//! * Everything that sets an expiry is rewritten to an absolute and [padded](super::expiry) one. Relative
//!   ones count from the time of arrival (Redis before 7.0 sends EXPIRE, SETEX and SET EX as relative times;
//!   `expire.c` and `t_string.c` of 7.0 made them absolute). NX, XX, GT and LT are dropped on the way: a
//!   source only sends what took effect, and against padded expiries the comparison would go wrong.
//! * So is everything that sets the expiry of a hash's field (`fields.rs`).
//! * FLUSHALL, FLUSHDB and SWAPDB would take the gateway's own keys along: these are put back in the same
//!   transaction.
//!
//! While expiries are being made exact ([`Mode::Settling`]), a new expiry that is far enough away is written
//! exact, and a near one is written padded and its key remembered.
//!
//! Scripts that a source before 5.0 sends as text: see [`super::scripts`].

mod class;
mod dialect;
mod fields;

use std::collections::{HashSet, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::copying::Dumped;
use super::decode::Command;
use super::expiry::padded;
use super::older::{self, Payload};
use super::scripts::{self, Scripts};
use crate::command::other_db;
use crate::rdb;
use crate::resp::write;

pub use class::{Class, Unit, classify};
pub use dialect::Dialect;
pub use fields::{COMPARED, Field};

/// What keys of a gateway begin with.
pub const OWN_PREFIX: &[u8] = b"crossfade:";

/// How expiries are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// All of them padded.
    Padded,
    /// Exact when they lie further away than `window_ms`; nearer ones padded, and remembered.
    Settling {
        /// How near is near, in milliseconds.
        window_ms: u64,
    },
}

/// A key and its db.
pub type Place = (u32, Box<[u8]>);

/// What is to be done with a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Plan {
    /// It has no effect on the destination.
    Skip,
    /// The stream goes on in another db.
    Select(u32),
    /// A transaction begins.
    Multi,
    /// A transaction ends.
    Exec,
    /// It goes as it is.
    Raw,
    /// [`Transform::write`] makes something else of it.
    Rewrite(Class),
}

/// Whether a key belongs to a gateway.
#[inline]
pub fn is_own(key: &[u8]) -> bool {
    key.starts_with(OWN_PREFIX)
}

/// How far the servers' clocks are ahead of the gateway's, in milliseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Clocks {
    /// Where the stream comes from.
    pub source_ms: i64,
    /// Where it goes to.
    pub destination_ms: i64,
}

/// It is collected, and not yet applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NotYet;

/// Turns commands of the stream into commands for the destination.
#[derive(Debug)]
pub struct Transform {
    dialect: Dialect,
    mode: Mode,
    /// Unix time in milliseconds, as of the last [`Transform::tick`]: the destination's, if that is ahead of ours.
    now_ms: u64,
    /// The clocks of the two servers minus ours, in milliseconds.
    clocks: Clocks,
    /// Keys of the gateway that live in db 0 besides the position, and their values.
    own: Vec<(Vec<u8>, Vec<u8>)>,
    /// Set when `own` may have been wiped out by what was written.
    wiped: bool,
    /// Padded keys that [`Mode::Settling`] left over, and those to which an expiry came along that may be exact or padded.
    near: HashSet<Place>,
    /// Exact keys that come due soon: within so many milliseconds.
    soon: HashSet<Place>,
    soon_ms: u64,
    /// The same for fields of hashes.
    near_fields: HashSet<Field>,
    soon_fields: HashSet<Field>,
    /// Whether any field expires, as far as is known.
    field_expiries: bool,
    /// Stored expiries may be exact or padded: they are settled, or a sweep is under way.
    mixed: bool,
    /// Databases that changed places, and the offset in the stream, until [`Transform::take_swap`].
    swaps: VecDeque<(u64, u32, u32)>,
    scripts: Scripts,
    /// Names of commands that the destination does not know, and how many of them came.
    left_out: HashSet<Vec<u8>>,
    left_out_count: AtomicU64,
}

impl Transform {
    /// A transform in [`Mode::Padded`].
    pub fn new(dialect: Dialect, own: Vec<(Vec<u8>, Vec<u8>)>) -> Self {
        Self {
            dialect,
            mode: Mode::Padded,
            now_ms: 0,
            clocks: Clocks::default(),
            own,
            wiped: false,
            near: HashSet::new(),
            soon: HashSet::new(),
            soon_ms: 0,
            near_fields: HashSet::new(),
            soon_fields: HashSet::new(),
            field_expiries: false,
            mixed: false,
            swaps: VecDeque::new(),
            scripts: Scripts::default(),
            left_out: HashSet::new(),
            left_out_count: AtomicU64::new(0),
        }
    }

    /// Tells the time by our clock.
    pub fn tick(&mut self, now_ms: u64) {
        self.now_ms = now_ms.saturating_add_signed(self.clocks.destination_ms.max(0));
    }

    /// Whether an expiry comes due within so many milliseconds at the destination.
    pub fn comes_within(&self, at_ms: u64, ms: u64) -> bool {
        at_ms <= self.now_ms + ms
    }

    /// How the servers' clocks go. What a source before 7.0 says of an expiry counts from the moment at which it said so, by its
    /// own clock; when it arrived is known by ours.
    pub fn set_clocks(&mut self, clocks: Clocks) {
        self.clocks = clocks;
    }

    /// What the destination understands, as it may have been replaced by another version.
    pub fn set_dialect(&mut self, dialect: Dialect) {
        self.dialect = dialect;
    }

    /// How expiries are stored now.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// Changes how expiries are stored from the next command on.
    pub fn set_mode(&mut self, mode: Mode) {
        self.mixed |= mode != Mode::Padded;
        self.mode = mode;
    }

    /// Keys whose padded expiry is near; the caller takes care of them.
    pub fn near(&mut self) -> &mut HashSet<Place> {
        &mut self.near
    }

    /// Exact expiries nearer than this are remembered from now on, so that they can be padded again before they come due.
    pub fn set_soon(&mut self, within_ms: u64) {
        self.soon_ms = within_ms;
    }

    /// Whether an exact expiry comes due soon.
    pub fn is_soon(&self, at_ms: u64) -> bool {
        self.comes_within(at_ms, self.soon_ms)
    }

    /// What was left over may be exact by now, after a RENAME: it comes with what comes due soon.
    pub fn all_soon(&mut self) {
        self.soon.extend(self.near.drain());
        self.soon_fields.extend(self.near_fields.drain());
    }

    /// Keys whose exact expiry comes soon, see [`Transform::set_soon`].
    pub fn soon(&mut self) -> &mut HashSet<Place> {
        &mut self.soon
    }

    /// Commands of these names, in lower case, are not passed on.
    pub fn leave_out(&mut self, names: HashSet<Vec<u8>>) {
        self.left_out = names;
    }

    /// How many commands were left out since the last call.
    pub fn take_left_out(&mut self) -> u64 {
        self.left_out_count.swap(0, Relaxed)
    }

    /// The scripts that came as text.
    pub fn scripts(&mut self) -> &mut Scripts {
        &mut self.scripts
    }

    /// What to store for a key of `db` that expires at `at_ms`.
    fn store(&mut self, db: u32, key: &[u8], at_ms: u64) -> u64 {
        let Mode::Settling { window_ms } = self.mode else {
            return padded(at_ms);
        };
        if self.comes_within(at_ms, window_ms) {
            self.near.insert((db, key.into()));
            return padded(at_ms);
        }
        if self.is_soon(at_ms) {
            self.soon.insert((db, key.into()));
        }
        at_ms
    }

    /// Decides what becomes of a command.
    #[inline]
    pub fn plan(&self, command: &Command<'_>) -> Plan {
        let class = classify(command.name());
        if class == Class::Idle {
            return Plan::Skip;
        }
        if !self.left_out.is_empty() && self.left_out.contains(&command.name().to_ascii_lowercase()) {
            self.left_out_count.fetch_add(1, Relaxed);
            return Plan::Skip;
        }
        let mut args = command.args();
        args.next();
        match class {
            Class::Other => match args.next() {
                Some(key) if is_own(key) => Plan::Skip,
                _ if older::concerns(command.name(), command.args().skip(1), &self.dialect) => {
                    Plan::Rewrite(Class::Older)
                }
                _ => Plan::Raw,
            },
            Class::Publish => Plan::Raw,
            Class::Multi => Plan::Multi,
            Class::Exec => Plan::Exec,
            Class::Select => {
                match args.next().and_then(|db| std::str::from_utf8(db).ok()).and_then(|db| db.parse().ok()) {
                    Some(db) => Plan::Select(db),
                    None => Plan::Raw,
                }
            }
            Class::Delete => {
                let (mut ours, mut theirs) = (false, false);
                for key in args {
                    if is_own(key) { ours = true } else { theirs = true }
                }
                match (ours, theirs) {
                    (true, false) => Plan::Skip,
                    (true, true) => Plan::Rewrite(class),
                    (false, _) => Plan::Raw,
                }
            }
            Class::FlushAll
            | Class::FlushDb
            | Class::SwapDb
            | Class::MultiSetEx
            | Class::Evaluate
            | Class::Script => Plan::Rewrite(class),
            _ => match args.next() {
                Some(key) if is_own(key) => Plan::Skip,
                _ if class == Class::Set && command.argc() <= 3 => Plan::Raw,
                _ if matches!(class, Class::Carry | Class::Move) && !self.mixed => Plan::Raw,
                _ => Plan::Rewrite(class),
            },
        }
    }

    /// Writes what becomes of a command that is to be rewritten, run in `db`, to `out`; answers how many
    /// commands that are. What cannot be understood goes as it is: the server shall judge it.
    pub fn write(&mut self, class: Class, command: &Command<'_>, db: u32, out: &mut Vec<u8>) -> u32 {
        let args: Vec<&[u8]> = command.args().collect();
        let before = out.len();
        let arrived_ms = command.arrived_ms.saturating_add_signed(self.clocks.source_ms);
        match self.rewrite(class, &args, (arrived_ms, command.end), db, out) {
            Some(commands) => commands,
            None => {
                out.truncate(before);
                out.extend_from_slice(command.bytes);
                1
            }
        }
    }

    fn rewrite(
        &mut self,
        class: Class,
        args: &[&[u8]],
        (arrived_ms, end): (u64, u64),
        db: u32,
        out: &mut Vec<u8>,
    ) -> Option<u32> {
        let relative = |unit: Unit, number: &[u8]| unit.behind(arrived_ms, number);
        let absolute = |unit: Unit, number: &[u8]| unit.behind(0, number);
        match class {
            Class::Delete => {
                let kept: Vec<&[u8]> = args
                    .iter()
                    .enumerate()
                    .filter(|(nth, key)| *nth == 0 || !is_own(key))
                    .map(|(_, key)| *key)
                    .collect();
                write::command(out, &kept);
                Some(1)
            }
            Class::Set => {
                let [_, key, value, options @ ..] = args else { return None };
                if !self.dialect.keep_ttl && options.iter().any(|word| word.eq_ignore_ascii_case(b"KEEPTTL"))
                {
                    write::command(out, &[b"EVAL", older::SET_KEEPTTL.as_bytes(), b"1", key, value]);
                    return Some(1);
                }
                let options = Options::read(options, arrived_ms)?;
                let at = options.at?;
                Some(self.set(db, key, value, at, out))
            }
            Class::SetEx(unit) => {
                let [_, key, time, value] = args else { return None };
                Some(self.set(db, key, value, relative(unit, time)?, out))
            }
            Class::GetEx => {
                let [_, key, options @ ..] = args else { return None };
                let options = Options::read(options, arrived_ms)?;
                match options.at {
                    Some(at) => self.pexpireat(db, key, at, out),
                    None if options.persist => write::command(out, &[b"PERSIST", *key]),
                    None => return None,
                }
                Some(1)
            }
            Class::MultiSetEx => {
                let pairs = usize::try_from(int(args.get(1)?)?).ok()?;
                let options = args.get(2usize.checked_add(pairs.checked_mul(2)?)?..)?;
                let at = Options::read(options, arrived_ms)?.at?;
                let mut commands = 0;
                for pair in args[2..2 + pairs * 2].chunks_exact(2) {
                    if !is_own(pair[0]) {
                        commands += self.set(db, pair[0], pair[1], at, out);
                    }
                }
                Some(commands)
            }
            Class::Expire(unit) => {
                self.pexpireat(db, args.get(1)?, relative(unit, args.get(2)?)?, out);
                Some(1)
            }
            Class::ExpireAt(unit) => {
                self.pexpireat(db, args.get(1)?, absolute(unit, args.get(2)?)?, out);
                Some(1)
            }
            Class::Restore => self.restore(db, args, arrived_ms, out),
            Class::FieldExpire(unit) => self.field_expire(db, args, unit, arrived_ms, out),
            Class::FieldExpireAt(unit) => self.field_expire(db, args, unit, 0, out),
            Class::FieldSetEx => self.field_set_ex(db, args, arrived_ms, out),
            Class::FieldGetEx => self.field_get_ex(db, args, arrived_ms, out),
            Class::Carry => {
                let target = args.get(2)?;
                let db = match other_db(args) {
                    Some(at) => u32::try_from(int(args.get(at)?)?).ok()?,
                    None => db,
                };
                self.value_arrived(db, target);
                None
            }
            Class::Move => {
                let target = u32::try_from(int(args.get(2)?)?).ok()?;
                self.value_arrived(target, args.get(1)?);
                None
            }
            Class::Evaluate => {
                if self.mixed {
                    self.near.extend(scripts::declared(args).into_iter().map(|key| (db, key.into())));
                }
                self.scripts.evaluate(args, arrived_ms, out)
            }
            Class::Older => older::write(args, &self.dialect, out),
            Class::Script => {
                self.scripts.script(args);
                None
            }
            Class::FlushAll => {
                self.wiped = true;
                None
            }
            Class::FlushDb => {
                self.wiped |= db == 0;
                None
            }
            Class::SwapDb => self.swapdb(args, db, end, out),
            _ => None,
        }
    }

    fn set(&mut self, db: u32, key: &[u8], value: &[u8], at_ms: u64, out: &mut Vec<u8>) -> u32 {
        let mut number = itoa::Buffer::new();
        let at = number.format(self.store(db, key, at_ms)).as_bytes();
        if self.dialect.set_pxat {
            write::command(out, &[b"SET", key, value, b"PXAT", at]);
            return 1;
        }
        write::command(out, &[b"SET", key, value]);
        write::command(out, &[b"PEXPIREAT", key, at]);
        2
    }

    fn pexpireat(&mut self, db: u32, key: &[u8], at_ms: u64, out: &mut Vec<u8>) {
        let mut number = itoa::Buffer::new();
        let at = number.format(self.store(db, key, at_ms)).as_bytes();
        write::command(out, &[b"PEXPIREAT", key, at]);
    }

    fn restore(&mut self, db: u32, args: &[&[u8]], arrived_ms: u64, out: &mut Vec<u8>) -> Option<u32> {
        let [name, key, ttl, payload, options @ ..] = args else { return None };
        let ttl_ms = u64::try_from(int(ttl)?).ok()?;
        if rdb::has_field_expiries(payload) {
            self.expects_field_expiries();
            self.hash_arrived(db, key);
        }
        let stamped;
        let payload = match older::value(key, payload, &self.dialect) {
            Payload::Same if ttl_ms == 0 => return None,
            Payload::Same => payload,
            Payload::Stamped(payload) => {
                stamped = payload;
                &&stamped[..]
            }
            Payload::Commands(commands, count) => {
                write::command(out, &[&b"DEL"[..], *key]);
                out.extend_from_slice(&commands);
                if ttl_ms > 0 {
                    let absolute = options.iter().any(|word| word.eq_ignore_ascii_case(b"ABSTTL"));
                    let at = if absolute { ttl_ms } else { arrived_ms.checked_add(ttl_ms)? };
                    self.pexpireat(db, key, at, out);
                }
                return Some(1 + count + u32::from(ttl_ms > 0));
            }
        };
        if ttl_ms == 0 {
            let mut words = vec![*name, *key, *ttl, *payload];
            words.extend_from_slice(options);
            write::command(out, &words);
            return Some(1);
        }
        let ttl = ttl_ms;
        let is_absolute = |word: &[u8]| word.eq_ignore_ascii_case(b"ABSTTL");
        let at =
            if options.iter().any(|word| is_absolute(word)) { ttl } else { arrived_ms.checked_add(ttl)? };
        let stored = self.store(db, key, at);
        let mut number = itoa::Buffer::new();
        let time =
            if self.dialect.restore_absttl { stored } else { stored.saturating_sub(self.now_ms).max(1) };
        let mut words = vec![&b"RESTORE"[..], *key, number.format(time).as_bytes(), *payload];
        words.extend(options.iter().filter(|word| !is_absolute(word)));
        if self.dialect.restore_absttl {
            words.push(b"ABSTTL");
        }
        write::command(out, &words);
        Some(1)
    }

    /// Writes the value that a key has at this place of the stream, or that it has none. Answers how many commands that are.
    pub fn put(&mut self, db: u32, key: &[u8], value: Option<&Dumped>, out: &mut Vec<u8>) -> u32 {
        // Before 3.0 RESTORE knows no REPLACE.
        write::command(out, &[b"DEL", key]);
        let Some(Dumped { payload, expires_at }) = value else { return 1 };
        let ttl = expires_at.unwrap_or(0).to_string();
        let mut words = vec![&b"RESTORE"[..], key, ttl.as_bytes(), payload];
        if expires_at.is_some() {
            words.push(b"ABSTTL");
        }
        let before = out.len();
        match self.restore(db, &words, 0, out) {
            Some(commands) => 1 + commands,
            None => {
                out.truncate(before);
                write::command(out, &words);
                2
            }
        }
    }

    /// SWAPDB with db 0 takes our keys into the other db; there they are removed. Remembered keys follow.
    fn swapdb(&mut self, args: &[&[u8]], db: u32, end: u64, out: &mut Vec<u8>) -> Option<u32> {
        let one = u32::try_from(int(args.get(1)?)?).ok()?;
        let two = u32::try_from(int(args.get(2)?)?).ok()?;
        for places in [&mut self.near, &mut self.soon] {
            let moved = std::mem::take(places).into_iter().map(|(db, key)| (swapped(db, one, two), key));
            *places = moved.collect();
        }
        self.swap_fields(one, two);
        self.swaps.push_back((end, one, two));
        let other = match (one, two) {
            (0, 0) => return None,
            (0, other) | (other, 0) => other,
            _ => return None,
        };
        self.wiped = true;
        write::command(out, args);
        select(other, out);
        let mut names: Vec<&[u8]> = vec![b"DEL", super::position::POSITION_KEY.as_bytes()];
        names.extend(self.own.iter().map(|(key, _)| key.as_slice()));
        write::command(out, &names);
        select(db, out);
        Some(4)
    }

    /// The next two databases that have changed places at the server that is written to, where the stream is applied up to `applied`;
    /// [`NotYet`] where they have yet to.
    pub fn take_swap(&mut self, applied: u64) -> Result<Option<(u32, u32)>, NotYet> {
        match self.swaps.front() {
            None => Ok(None),
            Some((end, ..)) if *end > applied => Err(NotYet),
            Some(_) => Ok(self.swaps.pop_front().map(|(_, one, two)| (one, two))),
        }
    }

    /// No sweep has to be told of the databases that have changed places up to there.
    pub fn forget_swaps(&mut self, applied: u64) {
        self.swaps.retain(|(end, ..)| *end > applied);
    }

    /// Whether something was written since the last call that takes the gateway's own keys away.
    pub fn take_wiped(&mut self) -> bool {
        std::mem::take(&mut self.wiped)
    }

    /// Puts back the gateway's own keys, the position apart; db 0 is selected. Answers how many commands that
    /// are.
    pub fn put_back(&self, out: &mut Vec<u8>) -> u32 {
        for (key, value) in &self.own {
            write::command(out, &[b"SET", key.as_slice(), value]);
        }
        self.own.len() as u32
    }
}

/// Where the keys of a db are once two of them have changed places.
pub fn swapped(db: u32, one: u32, two: u32) -> u32 {
    match db {
        db if db == one => two,
        db if db == two => one,
        db => db,
    }
}

/// Writes a SELECT.
pub fn select(db: u32, out: &mut Vec<u8>) {
    let mut number = itoa::Buffer::new();
    write::command(out, &[&b"SELECT"[..], number.format(db).as_bytes()]);
}

fn int(word: &[u8]) -> Option<i64> {
    std::str::from_utf8(word).ok()?.parse().ok()
}

/// The options of SET, GETEX, MSETEX, HSETEX and HGETEX.
struct Options {
    /// When it expires.
    at: Option<u64>,
    persist: bool,
}

impl Options {
    /// `None`: there is something in them that we do not know, or a number that is none.
    fn read(words: &[&[u8]], arrived_ms: u64) -> Option<Self> {
        let mut options = Options { at: None, persist: false };
        let mut words = words.iter();
        while let Some(word) = words.next() {
            let (unit, base) = match word.to_ascii_uppercase().as_slice() {
                b"EX" => (Unit::Seconds, arrived_ms),
                b"PX" => (Unit::Millis, arrived_ms),
                b"EXAT" => (Unit::Seconds, 0),
                b"PXAT" => (Unit::Millis, 0),
                b"PERSIST" => {
                    options.persist = true;
                    continue;
                }
                // These held on the source, or the command would not have been sent.
                b"NX" | b"XX" | b"GET" | b"FNX" | b"FXX" => continue,
                b"IFEQ" | b"IFNE" | b"IFDEQ" | b"IFDNE" => {
                    words.next()?;
                    continue;
                }
                // KEEPTTL goes with no expiry.
                _ => return None,
            };
            options.at = Some(unit.behind(base, words.next()?)?);
        }
        Some(options)
    }
}

#[cfg(test)]
mod tests;

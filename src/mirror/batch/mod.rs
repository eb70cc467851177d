//! Collects commands of the stream into batches; what the destination answers is read by [`Replies`]. No socket, no
//! clock: bytes and the time go in, bytes come out.
//!
//! A batch on the wire, in db 0:
//!
//! ```text
//! MULTI
//!   [SELECT db] command … command        as in the stream; transactions without their MULTI and EXEC
//!   [SELECT 0] [SET crossfade:… …]       the gateway's own keys, if a FLUSHALL took them along
//!   SET crossfade:position <mark>
//! EXEC
//! ```
//! Small SETs that follow one another become one MSET: inside a transaction the destination then has a third of the
//! work with them, and one reply to write. To the keys it is the same: MSET replaces whatever a key held, drops its
//! expiry and announces `set` for each (`t_string.c`).
//!
//! A batch ends only where no transaction of the source is open, so a transaction larger than the limits
//! makes one large batch. A transaction of which only a part has arrived is carried over to the next batch.

mod replies;
mod wire;

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;

use super::copying::{Copying, Stuck, Taken};
use super::decode::{Command, Decoder};
use super::guard::Guard;
use super::map::Mapping;
use super::position::POSITION_KEY;
use super::select::{Selection, Verdict};
use super::transform::{Plan, Transform, select};
use crate::resp::scan::ProtocolError;
use crate::resp::write;

pub use replies::{Answer, Replies};
pub use wire::{Batch, Named};

use wire::{Place, place_rest};

const MULTI: &[u8] = b"*1\r\n$5\r\nMULTI\r\n";
const EXEC: &[u8] = b"*1\r\n$4\r\nEXEC\r\n";

/// What a SET without options begins with, up to its key; its name in any case.
const SET_HEAD: &[u8] = b"*3\r\n$3\r\nSET\r\n";
/// SETs that become one MSET at most, and how large each may be: larger ones gain nothing.
const RUN: usize = 16;
const SMALL: usize = 1024;

/// What an error begins with that is the filter's or the mapping's own.
pub const REFUSED: &str = "it cannot be mirrored";

/// Beats that are remembered.
const BEATS: usize = 16;

/// When a batch is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchLimits {
    /// Commands in one batch.
    pub commands: usize,
    /// Bytes in one batch. One command, or one transaction, may exceed it.
    pub bytes: usize,
}

impl Default for BatchLimits {
    fn default() -> Self {
        Self { commands: 512, bytes: 512 * 1024 }
    }
}

/// SETs at the end of a batch that become one MSET when something else comes, or the batch goes.
#[derive(Debug, Clone, Copy)]
struct Run {
    at: usize,
    sets: usize,
}

/// Key and value of a SET that may be joined with others, as they stand in the stream.
fn key_and_value(bytes: &[u8]) -> Option<&[u8]> {
    let (head, rest) = bytes.split_at_checked(SET_HEAD.len())?;
    (head.eq_ignore_ascii_case(SET_HEAD) && rest.len() <= SMALL).then_some(rest)
}

/// The state at the last place where a batch may end.
#[derive(Debug, Clone, Copy)]
struct Seal {
    wire: usize,
    places: usize,
    commands: u64,
    end: u64,
    db: u32,
    connection_db: u32,
}

/// Collects the next batch while the last one is being answered.
#[derive(Debug)]
pub struct Collector {
    decoder: Decoder,
    transform: Transform,
    limits: BatchLimits,
    open: Batch,
    spare: Batch,
    /// The db that is selected in the stream.
    db: u32,
    /// The db that is selected on the connection at the end of `open`.
    connection_db: u32,
    in_transaction: bool,
    seal: Seal,
    run: Option<Run>,
    joins: bool,
    /// Whether the gateway's own keys have to be put back with the sealed part.
    wiped: bool,
    /// Commands that end at or before this offset are read and thrown away.
    discard: u64,
    /// Nothing behind this offset is read.
    hold: u64,
    /// The end of the last command that was read.
    read: u64,
    /// Nothing more is read.
    frozen: bool,
    select: Option<Arc<Selection>>,
    guard: Option<Guard>,
    map: Option<Arc<Mapping>>,
    /// What filter and mapping cannot decide by themselves: the command, and what is to be done.
    unselected: Option<(Named, Stuck)>,
    /// Commands that a person decided to leave out, by the offset of their last byte.
    skip: HashSet<u64>,
    /// The key of the heartbeat, and the beats that were read: offset of the last byte, and content.
    heartbeat: Vec<u8>,
    beats: VecDeque<(u64, u64)>,
    /// Keys that are copied anew, until their values are collected.
    copying: Option<Box<Copying>>,
}

impl Collector {
    /// A collector for the stream behind offset `after`, with `db` selected there.
    pub fn new(after: u64, db: u32, transform: Transform, limits: BatchLimits) -> Self {
        Self {
            decoder: Decoder::new(after),
            transform,
            limits,
            open: Batch::default(),
            spare: Batch::default(),
            db,
            connection_db: 0,
            in_transaction: false,
            seal: Seal { wire: 0, places: 0, commands: 0, end: after, db, connection_db: 0 },
            run: None,
            joins: true,
            wiped: false,
            discard: 0,
            hold: u64::MAX,
            read: after,
            frozen: false,
            select: None,
            guard: None,
            map: None,
            unselected: None,
            skip: HashSet::new(),
            heartbeat: Vec::new(),
            beats: VecDeque::new(),
            copying: None,
        }
    }

    /// Starts again behind another offset: what was collected is dropped. Expiry mode, skips, and the bounds
    /// of [`Collector::discard_until`] and [`Collector::hold_at`] stay.
    pub fn restart(&mut self, after: u64, db: u32) {
        self.decoder = Decoder::new(after);
        self.read = after;
        self.frozen = false;
        self.open.clear();
        self.db = db;
        self.connection_db = 0;
        self.in_transaction = false;
        self.seal = Seal { wire: 0, places: 0, commands: 0, end: after, db, connection_db: 0 };
        self.run = None;
        self.wiped = false;
        self.copying = None;
        self.unselected = None;
        self.transform.take_wiped();
    }

    /// The transform, for what concerns expiries.
    pub fn transform(&mut self) -> &mut Transform {
        &mut self.transform
    }

    /// Reads commands up to this offset only for the db that they select.
    pub fn discard_until(&mut self, offset: u64) {
        self.discard = offset;
    }

    /// Leaves everything behind this offset unread.
    pub fn hold_at(&mut self, offset: u64) {
        self.hold = offset;
    }

    /// Where the last command ends that was read: what stands before it is collected, if not yet sent.
    pub fn read_to(&self) -> u64 {
        self.read
    }

    /// Reads nothing more, or goes on. Inside a transaction it reads on, and answers false.
    pub fn freeze(&mut self, frozen: bool) -> bool {
        self.frozen = frozen && !self.in_transaction;
        self.frozen == frozen
    }

    /// Only what is selected is collected from here on.
    pub fn select(&mut self, select: Option<Arc<Selection>>) {
        self.guard = select.as_ref().and_then(|select| select.guard());
        self.select = select;
    }

    /// What is collected from here on has other names.
    pub fn map(&mut self, map: Option<Arc<Mapping>>) {
        self.map = map;
    }

    /// The command that filter or mapping stop at, and why.
    pub fn unselected(&self) -> Option<(&Named, &Stuck)> {
        self.unselected.as_ref().map(|(named, stuck)| (named, stuck))
    }

    /// Leaves out the command that ends at this offset.
    pub fn skip(&mut self, end: u64) {
        self.skip.insert(end);
    }

    /// Passes over the commands on these keys up to the offset at which their values were taken, and writes the values there.
    pub fn copy(&mut self, copying: Copying) {
        self.copying = Some(Box::new(copying));
    }

    /// Why nothing more is collected, if the keys that are copied anew are the reason. What was collected is of no use then.
    pub fn stuck(&self) -> Option<&Stuck> {
        self.copying.as_ref()?.stuck.as_ref()
    }

    /// Remembers the beats of this key, which are not passed on.
    pub fn watch_heartbeat(&mut self, key: String) {
        self.heartbeat = key.into_bytes();
    }

    /// The content of the last beat up to `applied`, if there is one that was not answered before.
    pub fn beat_before(&mut self, applied: u64) -> Option<u64> {
        let mut last = None;
        while let Some(&(end, ms)) = self.beats.front()
            && end <= applied
        {
            last = Some(ms);
            self.beats.pop_front();
        }
        last
    }

    /// From here on every SET goes by itself, as it came.
    pub fn join_nothing(&mut self) {
        self.joins = false;
    }

    /// Takes bytes from the journal.
    pub fn push(&mut self, bytes: &[u8], arrived_ms: u64) {
        self.decoder.push(bytes, arrived_ms);
    }

    /// The offset of the last byte pushed.
    pub fn received(&self) -> u64 {
        self.decoder.received()
    }

    /// Where the batch that is being collected would end: no transaction is open there.
    pub fn sealed(&self) -> (u64, u32) {
        (self.seal.end, self.seal.db)
    }

    /// Whether something is collected that changes the destination.
    pub fn has_effects(&self) -> bool {
        self.seal.wire > 0
    }

    /// Whether no more can be collected before a batch is taken.
    pub fn is_full(&self) -> bool {
        let full = !self.in_transaction
            && (self.open.wire.len() >= self.limits.bytes || self.open.places.len() >= self.limits.commands);
        full || self.frozen
    }

    /// Whether more of the stream is of use: there is room, and nothing stands in the way.
    pub fn is_hungry(&self) -> bool {
        !self.is_full() && self.stuck().is_none() && self.unselected.is_none()
    }

    /// The highest db that the next batch may select.
    pub fn highest_db(&self) -> u32 {
        self.open.highest_db
    }

    /// When the oldest byte arrived that has been pushed and has not been taken with a batch.
    pub fn oldest_ms(&self) -> Option<u64> {
        if self.open.oldest_ms != 0 { Some(self.open.oldest_ms) } else { self.decoder.oldest_ms() }
    }

    /// Reads what was pushed, as far as there is room.
    ///
    /// # Errors
    /// The bytes are no replication stream.
    pub fn collect(&mut self) -> Result<(), ProtocolError> {
        while !self.is_full() && self.seal.end < self.hold && self.unselected.is_none() {
            if self.copying.is_some() && !self.may_go_on() {
                break;
            }
            let Some(command) = self.decoder.command()? else {
                self.decoder.shrink();
                break;
            };
            let end = command.end;
            self.read = end;
            let at = self.open.wire.len();
            let plan = self.transform.plan(&command);
            let (instead, mut held_back);
            let (command, plan) = match &self.select {
                Some(select) if is_data(plan) && end > self.discard && !self.skip.contains(&end) => {
                    held_back = select.judge(&command.args().collect::<Vec<_>>(), self.db);
                    // What is copied anew later than this comes to nothing here.
                    let held =
                        |places: &[_]| self.copying.as_ref().is_some_and(|copying| copying.holds(places));
                    if matches!(&held_back, Verdict::Copy(places) if held(places)) {
                        held_back = Verdict::Drop;
                    }
                    match held_back {
                        Verdict::Pass => (command, plan),
                        Verdict::Drop => {
                            self.seal_here(end);
                            continue;
                        }
                        Verdict::Instead(bytes) => {
                            instead = bytes;
                            in_place_of(command, plan, &instead, &self.transform)
                        }
                        Verdict::Copy(places) => {
                            self.unselected = Some((named(&command, self.db), Stuck::Missing(places)));
                            break;
                        }
                        Verdict::Stop(why) => {
                            let why = format!("{REFUSED} under [filter] or [map]: {why}");
                            self.unselected = Some((named(&command, self.db), Stuck::Obstacle(why)));
                            break;
                        }
                    }
                }
                _ => (command, plan),
            };
            if let Some(copying) = &mut self.copying
                && passed_over(copying, &command, plan, self.db)
            {
                self.seal_here(end);
                continue;
            }
            let renamed;
            let (command, plan) = match &self.map {
                Some(map) if is_data(plan) && end > self.discard && !self.skip.contains(&end) => {
                    let args: Vec<&[u8]> = command.args().collect();
                    let db = if map.needs_db(&args) { map.db(self.db) } else { Ok(0) };
                    match db.and_then(|_| map.command(&args)) {
                        Ok(None) => (command, plan),
                        Ok(Some(bytes)) => {
                            renamed = bytes;
                            in_place_of(command, plan, &renamed, &self.transform)
                        }
                        Err(why) => {
                            let why = format!("{REFUSED}: {why}");
                            self.unselected = Some((named(&command, self.db), Stuck::Obstacle(why)));
                            break;
                        }
                    }
                }
                _ => (command, plan),
            };
            let db = match &self.map {
                // What belongs to no database goes on where others did.
                Some(map) => map.db(self.db).unwrap_or(self.connection_db),
                None => self.db,
            };
            match plan {
                Plan::Skip => note_beat(&command, &self.heartbeat, &mut self.beats),
                Plan::Select(db) => self.db = db,
                Plan::Multi => {
                    // What comes may have to wait for its EXEC, and what was collected before must not.
                    close(&mut self.run, &mut self.open, &mut self.seal);
                    self.in_transaction = true;
                }
                Plan::Exec => self.in_transaction = false,
                _ if end <= self.discard => {}
                _ if !self.skip.is_empty() && self.skip.contains(&end) => {}
                plan => {
                    if self.open.oldest_ms == 0 {
                        self.open.oldest_ms = command.arrived_ms.max(1);
                    }
                    let small = match plan {
                        Plan::Raw if self.joins && self.guard.is_none() => key_and_value(command.bytes),
                        _ => None,
                    };
                    match (&mut self.run, small, self.open.places.last_mut()) {
                        (Some(run), Some(pair), Some(place))
                            if run.sets < RUN && self.connection_db == db =>
                        {
                            self.open.wire.extend_from_slice(pair);
                            place.end = end;
                            run.sets += 1;
                            self.open.commands += 1;
                            self.seal_here(end);
                            continue;
                        }
                        _ => close(&mut self.run, &mut self.open, &mut self.seal),
                    }
                    if at == 0 {
                        self.open.wire.extend_from_slice(MULTI);
                    }
                    if self.connection_db != db {
                        self.open.places.push(Place { at: self.open.wire.len(), end: 0 });
                        select(db, &mut self.open.wire);
                        self.connection_db = db;
                        self.open.highest_db = self.open.highest_db.max(db);
                    }
                    let start = self.open.wire.len();
                    self.open.places.push(Place { at: start, end });
                    let wire = &mut self.open.wire;
                    let mut commands = match plan {
                        Plan::Rewrite(class) => self.transform.write(class, &command, db, wire),
                        _ => {
                            wire.extend_from_slice(command.bytes);
                            1
                        }
                    };
                    if let Some(guard) = &self.guard {
                        commands = guard.stand_before(wire, start, db);
                    }
                    if commands != 1 {
                        place_rest(&self.open.wire, &mut self.open.places, commands, end);
                    }
                    if small.is_some() {
                        self.run = Some(Run { at: start, sets: 1 });
                    }
                    self.open.commands += 1;
                }
            }
            self.seal_here(end);
        }
        Ok(())
    }

    /// Writes the values that are copied anew when their place has come. False: the copy is stuck.
    fn may_go_on(&mut self) -> bool {
        let Some(mut copying) = self.copying.take_if(|copying| {
            !self.in_transaction && self.seal.end >= copying.until && copying.stuck.is_none()
        }) else {
            return self.stuck().is_none();
        };
        if let Some(map) = &self.map {
            let named = |taken: &Taken| {
                let (db, key) = map.place(taken.place.0, &taken.place.1)?;
                Ok((db, Box::from(&*key)))
            };
            match copying.taken.iter().map(named).collect::<Result<Vec<_>, String>>() {
                Ok(names) => copying.taken.iter_mut().zip(names).for_each(|(taken, name)| taken.place = name),
                Err(why) => {
                    copying.stuck = Some(Stuck::Obstacle(why));
                    self.copying = Some(copying);
                    return false;
                }
            }
        }
        close(&mut self.run, &mut self.open, &mut self.seal);
        for taken in copying.taken {
            let (db, key) = taken.place;
            if self.open.wire.is_empty() {
                self.open.wire.extend_from_slice(MULTI);
            }
            if self.connection_db != db {
                self.open.places.push(Place { at: self.open.wire.len(), end: 0 });
                select(db, &mut self.open.wire);
                self.connection_db = db;
                self.open.highest_db = self.open.highest_db.max(db);
            }
            let start = self.open.wire.len();
            self.open.places.push(Place { at: start, end: 0 });
            let mut commands = self.transform.put(db, &key, taken.value.as_ref(), &mut self.open.wire);
            if let Some(guard) = &self.guard {
                commands = guard.stand_before(&mut self.open.wire, start, db);
            }
            place_rest(&self.open.wire, &mut self.open.places, commands, 0);
        }
        self.open.copies = true;
        self.seal_here(self.seal.end);
        true
    }

    /// A batch may end behind the command that ends at `end`, unless a transaction is open there.
    fn seal_here(&mut self, end: u64) {
        if !self.in_transaction {
            self.wiped |= self.transform.take_wiped();
            self.seal = Seal {
                wire: self.open.wire.len(),
                places: self.open.places.len(),
                commands: self.open.commands,
                end,
                db: self.db,
                connection_db: self.connection_db,
            };
        }
    }

    /// Takes what is collected as a batch that records `mark(offset, db)`. `None` when it would change nothing,
    /// unless `anyway`.
    pub fn take(&mut self, anyway: bool, mark: impl FnOnce(u64, u32) -> String) -> Option<Batch> {
        if self.seal.wire == 0 && !anyway {
            return None;
        }
        close(&mut self.run, &mut self.open, &mut self.seal);
        let mut batch = std::mem::take(&mut self.open);
        let mut next = std::mem::take(&mut self.spare);
        next.clear();
        let seal = self.seal;
        if batch.wire.len() > seal.wire {
            self.carry_over(&mut batch, &mut next);
        } else {
            self.connection_db = 0;
        }
        if seal.wire == 0 {
            batch.wire.extend_from_slice(MULTI);
        }
        batch.commands = seal.commands;
        batch.end = seal.end;
        batch.db = seal.db;
        let own = |batch: &mut Batch| batch.places.push(Place { at: batch.wire.len(), end: 0 });
        if seal.connection_db != 0 {
            own(&mut batch);
            select(0, &mut batch.wire);
        }
        if std::mem::take(&mut self.wiped) {
            let first = batch.wire.len();
            batch.places.push(Place { at: first, end: 0 });
            let commands = self.transform.put_back(&mut batch.wire);
            if commands == 0 {
                batch.places.pop();
            } else {
                place_rest(&batch.wire, &mut batch.places, commands, 0);
            }
        }
        own(&mut batch);
        write::command(&mut batch.wire, &["SET", POSITION_KEY, &mark(seal.end, seal.db)]);
        batch.wire.extend_from_slice(EXEC);
        self.open = next;
        self.seal = Seal { wire: 0, places: 0, commands: 0, connection_db: 0, ..seal };
        Some(batch)
    }

    /// Moves the part of a transaction that stands behind the seal to the next batch.
    fn carry_over(&mut self, batch: &mut Batch, next: &mut Batch) {
        let seal = self.seal;
        next.wire.extend_from_slice(MULTI);
        if seal.connection_db != 0 {
            next.places.push(Place { at: next.wire.len(), end: 0 });
            select(seal.connection_db, &mut next.wire);
        }
        // With nothing sealed, `batch` begins with the tail's own MULTI.
        let from = if seal.wire == 0 { MULTI.len() } else { seal.wire };
        let shift = |at: usize| at - from;
        let base = next.wire.len();
        let first = batch.joined.partition_point(|index| *index < seal.places);
        let before = next.places.len();
        next.joined.extend(batch.joined.drain(first..).map(|index| before + index - seal.places));
        let tail = batch.places.drain(seal.places..);
        next.places.extend(tail.map(|place| Place { at: base + shift(place.at), end: place.end }));
        next.wire.extend_from_slice(&batch.wire[from..]);
        next.commands = batch.commands - seal.commands;
        next.oldest_ms = batch.oldest_ms;
        next.highest_db = batch.highest_db;
        batch.wire.truncate(seal.wire);
    }

    /// Gives back a batch whose memory can serve again.
    pub fn recycle(&mut self, batch: Batch) {
        self.spare = batch;
        self.spare.clear();
    }
}

/// Whether a command changes data.
fn is_data(plan: Plan) -> bool {
    !matches!(plan, Plan::Skip | Plan::Select(_) | Plan::Multi | Plan::Exec)
}

/// Another command in the place of one of the stream, and what is to be done with it.
fn in_place_of<'a>(
    command: Command<'a>,
    plan: Plan,
    bytes: &'a [u8],
    transform: &Transform,
) -> (Command<'a>, Plan) {
    match command.instead(bytes) {
        Some(other) => {
            let plan = transform.plan(&other);
            (other, plan)
        }
        None => (command, plan),
    }
}

/// A command of the stream, for a message.
fn named(command: &Command<'_>, db: u32) -> Named {
    Named {
        name: String::from_utf8_lossy(command.name()).to_uppercase(),
        key: command.args().nth(1).map(<[u8]>::to_vec),
        db,
        end: command.end,
        places: Vec::new(),
    }
}

/// Whether a command comes to nothing because its keys are copied anew behind it.
#[cold]
fn passed_over(copying: &mut Copying, command: &Command<'_>, plan: Plan, db: u32) -> bool {
    if !is_data(plan) {
        return false;
    }
    if command.end > copying.until {
        let why = "the offset at which the keys were read lies inside a command";
        copying.stuck = Some(Stuck::Obstacle(why.into()));
        return true;
    }
    copying.passes_over(&command.args().collect::<Vec<_>>(), db)
}

/// Takes note of a command that is passed over, if it is a beat.
fn note_beat(command: &Command<'_>, key: &[u8], beats: &mut VecDeque<(u64, u64)>) {
    if key.is_empty() || command.argc() < 3 {
        return;
    }
    let mut args = command.args().skip(1);
    if args.next() != Some(key) {
        return;
    }
    let content = args.next().and_then(|text| std::str::from_utf8(text).ok()?.parse().ok());
    if let Some(ms) = content {
        // Those in front tell the age of what waits; of those behind, the last one is enough.
        if beats.len() == BEATS {
            beats.pop_back();
        }
        beats.push_back((command.end, ms));
    }
}

/// Makes one MSET of the SETs at the end of a batch.
fn close(run: &mut Option<Run>, batch: &mut Batch, seal: &mut Seal) {
    let Some(Run { at, sets }) = run.take().filter(|run| run.sets > 1) else { return };
    // The run is either wholly sealed, or wholly behind the seal.
    let sealed = seal.wire == batch.wire.len();
    let head = format!("*{}\r\n$4\r\nMSET\r\n", 1 + 2 * sets);
    batch.wire.splice(at..at + SET_HEAD.len(), head.into_bytes());
    batch.joined.push(batch.places.len() - 1);
    if sealed {
        seal.wire = batch.wire.len();
    }
}

#[cfg(test)]
mod tests;

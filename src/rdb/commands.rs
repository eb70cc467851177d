//! A value as commands: for what RESTORE cannot carry, and for values too large for memory.
//!
//! The key must not exist when the first command runs: elements are added to what is there. Commands carry about
//! [`CHUNK_BYTES`] or [`CHUNK_ELEMENTS`] each, so that no single one holds the destination up.

use super::error::What;
use super::input::{Input, Numbers};
use super::length::length;
use super::listpack::{self, Element};
use super::opcode::*;
use super::stream;
use super::templates::Templates;
use super::text::{in_pieces, inside, read_string};
use super::{array, packed, scan, ziplist};
use crate::mirror::expiry::field_padded;

/// Size after which a command is sent.
const CHUNK_BYTES: usize = 64 * 1024;
/// Elements after which a command is sent.
const CHUNK_ELEMENTS: usize = 128;
/// Strings are appended in larger pieces: they cost the destination a copy and nothing else.
const STRING_CHUNK: usize = 512 * 1024;

/// Takes one command after the other.
pub type Sink<'a> = dyn FnMut(&[&[u8]]) -> Result<(), Stopped> + 'a;

/// The receiver of commands does not want more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stopped;

impl From<Stopped> for What {
    fn from(_: Stopped) -> Self {
        Self::Stopped
    }
}

/// Which commands the destination knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dialect {
    /// HPEXPIREAT: Redis 7.4, Valkey 9.0.
    pub hash_field_expiry: bool,
    /// XADD and its family: 5.0.
    pub streams: bool,
    /// XGROUP CREATECONSUMER: 6.2.
    pub create_consumer: bool,
    /// XCFGSET and XIDMPRECORD: 8.6.
    pub idempotence: bool,
    /// XNACK and arrays: 8.8.
    pub redis_8_8: bool,
    /// XGROUP CREATE … ENTRIESREAD and XSETID … ENTRIESADDED … MAXDELETEDID: 7.0.
    pub stream_counters: bool,
    /// Where fields cannot expire, a hash is written without their expiries; otherwise it is an error of the key.
    pub lose_field_expiry: bool,
    /// Expiries of fields are written padded ([`crate::mirror::expiry`]).
    pub padded_fields: bool,
}

impl Default for Dialect {
    /// Everything that any server knows.
    fn default() -> Self {
        Self {
            hash_field_expiry: true,
            streams: true,
            create_consumer: true,
            idempotence: true,
            redis_8_8: true,
            stream_counters: true,
            lose_field_expiry: false,
            padded_fields: false,
        }
    }
}

/// Collects the arguments of commands that may be cut between elements.
pub(super) struct Chunk<'a, 's> {
    sink: &'a mut Sink<'s>,
    arena: Vec<u8>,
    ends: Vec<usize>,
    /// Arguments that each chunk begins with.
    head: usize,
    elements: usize,
}

impl<'a, 's> Chunk<'a, 's> {
    pub(super) fn new(sink: &'a mut Sink<'s>) -> Self {
        Self { sink, arena: Vec::new(), ends: Vec::new(), head: 0, elements: 0 }
    }

    /// Sends what is collected; the commands that follow begin with `head`.
    pub(super) fn begin(&mut self, head: &[&[u8]]) -> Result<(), What> {
        self.flush()?;
        self.arena.clear();
        self.ends.clear();
        for arg in head {
            self.arg(arg);
        }
        self.head = head.len();
        Ok(())
    }

    pub(super) fn arg(&mut self, bytes: &[u8]) {
        self.arena.extend_from_slice(bytes);
        self.ends.push(self.arena.len());
    }

    pub(super) fn element(&mut self, element: Element<'_>) {
        match element {
            Element::Text(text) => self.arg(text),
            Element::Integer(n) => self.arg(itoa::Buffer::new().format(n).as_bytes()),
        }
    }

    /// A string of the file as one argument.
    pub(super) fn string(&mut self, input: &mut dyn Input) -> Result<(), What> {
        read_string(input, &mut self.arena)?;
        self.ends.push(self.arena.len());
        Ok(())
    }

    /// An element is complete; says whether the command was sent.
    pub(super) fn complete(&mut self) -> Result<bool, What> {
        self.elements += 1;
        let full = self.elements >= CHUNK_ELEMENTS || self.arena.len() >= CHUNK_BYTES;
        if full {
            self.flush()?;
        }
        Ok(full)
    }

    /// Sends what is collected, if there is more than the head.
    pub(super) fn flush(&mut self) -> Result<(), What> {
        if self.ends.len() > self.head {
            self.send()?;
        }
        Ok(())
    }

    fn send(&mut self) -> Result<(), What> {
        let mut args = Vec::with_capacity(self.ends.len());
        let mut from = 0;
        for &end in &self.ends {
            args.push(&self.arena[from..end]);
            from = end;
        }
        (self.sink)(&args)?;
        self.ends.truncate(self.head);
        self.arena.truncate(self.ends.last().copied().unwrap_or(0));
        self.elements = 0;
        Ok(())
    }

    /// Sends one command of its own.
    pub(super) fn one(&mut self, args: &[&[u8]]) -> Result<(), What> {
        self.begin(args)?;
        self.head = 0;
        self.send()
    }
}

/// Reads a value of this type and writes its commands.
pub(super) fn write(
    input: &mut dyn Input,
    type_id: u8,
    flavour: Flavour,
    key: &[u8],
    dialect: &Dialect,
    dangling: &[stream::Id],
    sink: &mut Sink<'_>,
) -> Result<(), What> {
    let mut chunk = Chunk::new(sink);
    match type_id {
        STRING => {
            let mut command: &[u8] = b"SET";
            in_pieces(input, STRING_CHUNK, &mut |piece| {
                chunk.one(&[command, key, piece])?;
                command = b"APPEND";
                Ok(())
            })?;
        }
        LIST | SET => {
            chunk.begin(&[if type_id == LIST { b"RPUSH" } else { b"SADD" }, key])?;
            for _ in 0..length(input)? {
                chunk.string(input)?;
                chunk.complete()?;
            }
        }
        LIST_ZIPLIST | LIST_QUICKLIST => {
            chunk.begin(&[b"RPUSH", key])?;
            let nodes = if type_id == LIST_QUICKLIST { length(input)? } else { 1 };
            for _ in 0..nodes {
                inside(input, &mut |input| {
                    each(input, Packing::Ziplist, &mut |element| single(&mut chunk, element))
                })?;
            }
        }
        LIST_QUICKLIST_2 => {
            chunk.begin(&[b"RPUSH", key])?;
            for _ in 0..length(input)? {
                match length(input)? {
                    1 => {
                        chunk.string(input)?;
                        chunk.complete()?;
                    }
                    2 => inside(input, &mut |input| {
                        each(input, Packing::Listpack, &mut |element| single(&mut chunk, element))
                    })?,
                    _ => return Err(What::Corrupt("a quicklist node of unknown kind")),
                }
            }
        }
        SET_INTSET => {
            chunk.begin(&[b"SADD", key])?;
            inside(input, &mut |input| packed::intset(input, &mut |element| single(&mut chunk, element)))?;
        }
        SET_LISTPACK => {
            chunk.begin(&[b"SADD", key])?;
            inside(input, &mut |input| {
                each(input, Packing::Listpack, &mut |element| single(&mut chunk, element))
            })?;
        }
        HASH | HASH_ZIPMAP | HASH_ZIPLIST | HASH_LISTPACK => plain_hash(input, type_id, key, &mut chunk)?,
        ZSET | ZSET_2 | ZSET_ZIPLIST | ZSET_LISTPACK => sorted_set(input, type_id, key, &mut chunk)?,
        MODULE_PRE_GA | MODULE_2 => {
            let module = scan::module_name(length(input)?);
            return Err(What::NoCommand(format!(
                "the value belongs to the module {module}; only a destination with that module can hold it"
            )));
        }
        _ if is_stream(type_id) => stream::write(input, type_id, key, dialect, dangling, &mut chunk)?,
        ARRAY if dialect.redis_8_8 => array::write(input, key, &mut chunk)?,
        ARRAY => return Err(What::NoCommand("the destination does not know arrays (Redis 8.8 does)".into())),
        VALKEY_HASH_2 if flavour == Flavour::Valkey => {
            expiring_hash(input, Expiries::Valkey, key, dialect, &mut chunk)?
        }
        HASH_METADATA_PRE_GA => expiring_hash(input, Expiries::Absolute, key, dialect, &mut chunk)?,
        HASH_METADATA => expiring_hash(input, Expiries::Relative, key, dialect, &mut chunk)?,
        HASH_LISTPACK_EX_PRE_GA => expiring_listpack(input, key, dialect, &mut chunk)?,
        HASH_LISTPACK_EX => {
            input.take(8)?; // the smallest expiry, which the elements say too
            expiring_listpack(input, key, dialect, &mut chunk)?;
        }
        _ => return Err(What::UnknownType(type_id)),
    }
    chunk.flush()
}

/// The same for a hash with a template.
pub(super) fn template(
    input: &mut dyn Input,
    type_id: u8,
    templates: &Templates,
    key: &[u8],
    sink: &mut Sink<'_>,
) -> Result<(), What> {
    let mut chunk = Chunk::new(sink);
    chunk.begin(&[b"HMSET", key])?;
    templates.each(input, type_id, &mut |_, field, value| {
        chunk.arg(field);
        chunk.arg(value);
        chunk.complete().map(drop)
    })?;
    chunk.flush()
}

#[derive(Clone, Copy)]
enum Packing {
    Ziplist,
    Listpack,
}

/// Hands out the elements of a ziplist or listpack.
fn each(
    input: &mut dyn Input,
    packing: Packing,
    then: &mut dyn FnMut(Element<'_>) -> Result<(), What>,
) -> Result<(), What> {
    match packing {
        Packing::Ziplist => {
            ziplist::begin(input)?;
            while let Some(element) = ziplist::next(input)? {
                then(element)?;
            }
        }
        Packing::Listpack => {
            listpack::begin(input)?;
            while let Some(element) = listpack::next(input)? {
                then(element)?;
            }
        }
    }
    Ok(())
}

fn single(chunk: &mut Chunk<'_, '_>, element: Element<'_>) -> Result<(), What> {
    chunk.element(element);
    chunk.complete().map(drop)
}

const ODD: What = What::Corrupt("a packed hash or sorted set ends in the middle of a pair");

fn plain_hash(input: &mut dyn Input, type_id: u8, key: &[u8], chunk: &mut Chunk<'_, '_>) -> Result<(), What> {
    // Not HSET: it takes several fields only from 4.0 on.
    chunk.begin(&[b"HMSET", key])?;
    if type_id == HASH {
        for _ in 0..length(input)? {
            chunk.string(input)?;
            chunk.string(input)?;
            chunk.complete()?;
        }
        return Ok(());
    }
    let mut value = false;
    let mut then = |element: Element<'_>| {
        chunk.element(element);
        if value {
            chunk.complete()?;
        }
        value = !value;
        Ok(())
    };
    inside(input, &mut |input| match type_id {
        HASH_ZIPMAP => packed::zipmap(input, &mut then),
        HASH_ZIPLIST => each(input, Packing::Ziplist, &mut then),
        _ => each(input, Packing::Listpack, &mut then),
    })?;
    if value { Err(ODD) } else { Ok(()) }
}

fn sorted_set(input: &mut dyn Input, type_id: u8, key: &[u8], chunk: &mut Chunk<'_, '_>) -> Result<(), What> {
    chunk.begin(&[b"ZADD", key])?;
    // The file has the member first, the command the score.
    let mut member = Vec::new();
    if matches!(type_id, ZSET | ZSET_2) {
        for _ in 0..length(input)? {
            member.clear();
            read_string(input, &mut member)?;
            if type_id == ZSET_2 {
                let score = f64::from_bits(input.u64_le()?);
                if score.is_nan() {
                    return Err(What::Corrupt("a score is not a number"));
                }
                chunk.arg(score_text(score).as_bytes());
            } else {
                match input.byte()? {
                    253 => return Err(What::Corrupt("a score is not a number")),
                    254 => chunk.arg(b"inf"),
                    255 => chunk.arg(b"-inf"),
                    n => chunk.arg(input.take(usize::from(n))?),
                }
            }
            chunk.arg(&member);
            chunk.complete()?;
        }
        return Ok(());
    }
    let mut score = false;
    let mut then = |element: Element<'_>| {
        if score {
            chunk.element(element);
            chunk.arg(&member);
            chunk.complete()?;
        } else {
            member.clear();
            match element {
                Element::Text(text) => member.extend_from_slice(text),
                Element::Integer(n) => member.extend_from_slice(itoa::Buffer::new().format(n).as_bytes()),
            }
        }
        score = !score;
        Ok(())
    };
    let packing = if type_id == ZSET_ZIPLIST { Packing::Ziplist } else { Packing::Listpack };
    inside(input, &mut |input| each(input, packing, &mut then))?;
    if score { Err(ODD) } else { Ok(()) }
}

/// The shortest text that reads back as the same double.
fn score_text(score: f64) -> String {
    let size = score.abs();
    if score == 0.0 || (1e-5..1e17).contains(&size) || size.is_infinite() {
        format!("{score}")
    } else {
        format!("{score:e}")
    }
}

/// Where the expiry of a field stands in a hash table.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Expiries {
    /// After the value, 8 bytes, -1 for none.
    Valkey,
    /// Before the field, a length, 0 for none.
    Absolute,
    /// The same, counted from one below the smallest expiry, which stands in front of all.
    Relative,
}

/// Fields whose expiry is still to be set, once the HMSET that holds them is out.
struct FieldExpiries<'a> {
    key: &'a [u8],
    known: bool,
    lose: bool,
    padded: bool,
    pending: Vec<(Vec<u8>, u64)>,
}

impl<'a> FieldExpiries<'a> {
    fn new(key: &'a [u8], dialect: &Dialect) -> Self {
        Self {
            key,
            known: dialect.hash_field_expiry,
            lose: dialect.lose_field_expiry,
            padded: dialect.padded_fields,
            pending: Vec::new(),
        }
    }

    fn add(&mut self, field: &[u8], at_ms: u64) -> Result<(), What> {
        if !self.known {
            if self.lose {
                return Ok(());
            }
            return Err(What::NoCommand(
                "fields of this hash expire, which the destination does not know (Redis 7.4 or Valkey 9.0 do)".into(),
            ));
        }
        self.pending.push((field.to_vec(), if self.padded { field_padded(at_ms) } else { at_ms }));
        Ok(())
    }

    /// Sends what is pending, and makes the chunk ready for more fields.
    fn set(&mut self, chunk: &mut Chunk<'_, '_>) -> Result<(), What> {
        if self.pending.is_empty() {
            return Ok(());
        }
        for (field, at_ms) in self.pending.drain(..) {
            let at_ms = itoa::Buffer::new().format(at_ms).to_owned();
            chunk.one(&[b"HPEXPIREAT", self.key, at_ms.as_bytes(), b"FIELDS", b"1", &field])?;
        }
        chunk.begin(&[b"HMSET", self.key])
    }
}

fn expiring_hash(
    input: &mut dyn Input,
    expiries: Expiries,
    key: &[u8],
    dialect: &Dialect,
    chunk: &mut Chunk<'_, '_>,
) -> Result<(), What> {
    let mut fields = FieldExpiries::new(key, dialect);
    let smallest = if expiries == Expiries::Relative { input.u64_le()? } else { 1 };
    let mut field = Vec::new();
    chunk.begin(&[b"HMSET", key])?;
    for _ in 0..length(input)? {
        let before = if expiries == Expiries::Valkey { 0 } else { length(input)? };
        field.clear();
        read_string(input, &mut field)?;
        chunk.arg(&field);
        chunk.string(input)?;
        let at = match expiries {
            Expiries::Valkey => Some(input.u64_le()?).filter(|at| *at != u64::MAX),
            _ => Some(before).filter(|at| *at != 0).map(|at| at.saturating_add(smallest).saturating_sub(1)),
        };
        if let Some(at) = at {
            fields.add(&field, at)?;
        }
        if chunk.complete()? {
            fields.set(chunk)?;
        }
    }
    chunk.flush()?;
    fields.set(chunk)
}

fn expiring_listpack(
    input: &mut dyn Input,
    key: &[u8],
    dialect: &Dialect,
    chunk: &mut Chunk<'_, '_>,
) -> Result<(), What> {
    let mut fields = FieldExpiries::new(key, dialect);
    let mut field = Vec::new();
    let mut place = 0;
    chunk.begin(&[b"HMSET", key])?;
    inside(input, &mut |input| {
        each(input, Packing::Listpack, &mut |element| {
            match place {
                0 => {
                    field.clear();
                    match element {
                        Element::Text(text) => field.extend_from_slice(text),
                        Element::Integer(n) => {
                            field.extend_from_slice(itoa::Buffer::new().format(n).as_bytes())
                        }
                    }
                    chunk.arg(&field);
                }
                1 => chunk.element(element),
                _ => {
                    let at = u64::try_from(element.number()?)
                        .map_err(|_| What::Corrupt("a field expires before 1970"))?;
                    if at != 0 {
                        fields.add(&field, at)?;
                    }
                    if chunk.complete()? {
                        fields.set(chunk)?;
                    }
                }
            }
            place = (place + 1) % 3;
            Ok(())
        })
    })?;
    if place != 0 {
        return Err(ODD);
    }
    chunk.flush()?;
    fields.set(chunk)
}

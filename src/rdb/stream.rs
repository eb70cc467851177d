//! Streams: nodes of entries, counters, consumer groups. Versions 1 (5.0), 2 (7.0), 3 (7.2), 4 (8.6) and 5 (8.8).
//!
//! ```text
//! length  [16-byte id of the node (BE)  listpack]*
//! length(entries)  last id (ms, seq as lengths)
//!    2+:  first id   greatest deleted id   entries ever added
//! length(groups)  [ name  last delivered id   2+: entries read (-1: unknown)
//!    length(pending)   [16-byte id   delivered at (8, LE ms)   delivery count]*
//!    length(consumers) [name   seen at (8)   3+: active at (8)   length(pending) 16-byte id*]*
//!    5: length(pending without an owner) 16-byte id* ]*
//! 4+: how long (s) and how many ids of producers are remembered
//!    length(producers) [name  length(remembered) [id  entry's id (ms, seq as lengths)]* ]*
//!    ids ever remembered  duplicates found
//!
//! node    live  deleted  fields(n)  field*n  0  entry*
//! entry   flags(1 deleted, 2 same fields)  ms - node's  seq - node's  [n [field value]* | value*]  elements before
//! ```

use super::commands::{Chunk, Dialect};
use super::error::What;
use super::input::{Input, Numbers, Slice};
use super::length::length;
use super::listpack::{self, Element};
use super::opcode::{
    STREAM_LISTPACKS, STREAM_LISTPACKS_2, STREAM_LISTPACKS_3, STREAM_LISTPACKS_4, is_stream,
};
use super::reader::RawValue;
use super::text::{inside, read_string, skip_string};

/// An entry's id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(super) struct Id {
    ms: u64,
    seq: u64,
}

impl Id {
    fn big_endian(input: &mut dyn Input) -> Result<Self, What> {
        Ok(Self { ms: input.u64_be()?, seq: input.u64_be()? })
    }

    fn lengths(input: &mut dyn Input) -> Result<Self, What> {
        Ok(Self { ms: length(input)?, seq: length(input)? })
    }

    fn text(self) -> String {
        format!("{}-{}", self.ms, self.seq)
    }
}

/// Counters that stand between the nodes and the groups.
struct Counters {
    entries: u64,
    last: Id,
    deleted: Id,
    added: u64,
}

fn counters(input: &mut dyn Input, version: u8) -> Result<Counters, What> {
    let entries = length(input)?;
    let last = Id::lengths(input)?;
    if version < 2 {
        return Ok(Counters { entries, last, deleted: Id::default(), added: entries });
    }
    Id::lengths(input)?; // the first id, which the entries say
    Ok(Counters { entries, last, deleted: Id::lengths(input)?, added: length(input)? })
}

fn version(type_id: u8) -> u8 {
    match type_id {
        STREAM_LISTPACKS => 1,
        STREAM_LISTPACKS_2 => 2,
        STREAM_LISTPACKS_3 => 3,
        STREAM_LISTPACKS_4 => 4,
        _ => 5,
    }
}

/// Hands out what one node holds: each live entry's id, and its fields and values when `then` takes them.
fn node(input: &mut dyn Input, visit: &mut dyn FnMut(Visit<'_>) -> Result<(), What>) -> Result<(), What> {
    let mut id = Vec::with_capacity(16);
    read_string(input, &mut id)?;
    let mut id = Slice::new(&id);
    let first = Id::big_endian(&mut id)?;
    inside(input, &mut |input| {
        listpack::begin(input)?;
        let count = number(input)?.saturating_add(number(input)?);
        let mut fields: Vec<Vec<u8>> = Vec::new();
        for _ in 0..number(input)? {
            fields.push(owned(listpack::next(input)?)?);
        }
        listpack::number(input)?;
        for _ in 0..count {
            let flags = listpack::number(input)?;
            let ms = first.ms.wrapping_add(listpack::number(input)? as u64);
            let seq = first.seq.wrapping_add(listpack::number(input)? as u64);
            let live = flags & 1 == 0;
            if live {
                visit(Visit::Entry(Id { ms, seq }))?;
            }
            let same = flags & 2 != 0;
            let pairs = if same { fields.len() as u64 } else { number(input)? };
            for i in 0..pairs {
                if same {
                    visit_if(live, visit, Element::Text(&fields[i as usize]))?;
                } else {
                    visit_if(live, visit, element(listpack::next(input)?)?)?;
                }
                visit_if(live, visit, element(listpack::next(input)?)?)?;
            }
            listpack::number(input)?;
        }
        match listpack::next(input)? {
            None => Ok(()),
            Some(_) => Err(What::Corrupt("a stream node holds more than it says")),
        }
    })
}

/// What a node holds, in order.
enum Visit<'a> {
    /// A live entry begins.
    Entry(Id),
    /// Its fields and values, in turn.
    Part(Element<'a>),
}

fn visit_if(
    live: bool,
    visit: &mut dyn FnMut(Visit<'_>) -> Result<(), What>,
    part: Element<'_>,
) -> Result<(), What> {
    if live { visit(Visit::Part(part)) } else { Ok(()) }
}

fn number(input: &mut dyn Input) -> Result<u64, What> {
    u64::try_from(listpack::number(input)?).map_err(|_| What::Corrupt("a count in a stream is negative"))
}

fn element(element: Option<Element<'_>>) -> Result<Element<'_>, What> {
    element.ok_or(What::Corrupt("a stream node ends too early"))
}

fn owned(part: Option<Element<'_>>) -> Result<Vec<u8>, What> {
    Ok(match element(part)? {
        Element::Text(text) => text.to_vec(),
        Element::Integer(n) => n.to_string().into_bytes(),
    })
}

/// The ids that are pending in a group although their entries are gone, in order.
///
/// XCLAIM refuses to make them pending (from 7.0), so each gets a stand-in entry that is removed in the end.
pub(super) fn dangling(value: &RawValue<'_>) -> Result<Vec<Id>, What> {
    if !is_stream(value.type_id) {
        return Ok(Vec::new());
    }
    let version = version(value.type_id);
    let mut input = Slice::new(value.body);
    let nodes = length(&mut input)?;
    for _ in 0..nodes {
        skip_string(&mut input)?;
        skip_string(&mut input)?;
    }
    counters(&mut input, version)?;
    let mut ids = Vec::new();
    for _ in 0..length(&mut input)? {
        group(&mut input, version, &mut |part| {
            if let GroupPart::Pending(pending) = part {
                ids.extend(pending.iter().map(|pending| pending.id));
            }
            Ok(())
        })?;
    }
    ids.sort_unstable();
    ids.dedup();
    if ids.is_empty() {
        return Ok(ids);
    }
    let mut gone = vec![true; ids.len()];
    let mut input = Slice::new(value.body);
    for _ in 0..length(&mut input)? {
        node(&mut input, &mut |visit| {
            if let Visit::Entry(id) = visit
                && let Ok(at) = ids.binary_search(&id)
            {
                gone[at] = false;
            }
            Ok(())
        })?;
    }
    let mut gone = gone.into_iter();
    ids.retain(|_| gone.next() == Some(true));
    Ok(ids)
}

/// A pending entry of a group.
#[derive(Clone, Copy)]
struct Pending {
    id: Id,
    delivered_ms: u64,
    count: u64,
}

/// What a group holds, in order.
enum GroupPart<'a> {
    Head {
        name: &'a [u8],
        last: Id,
        read: Option<i64>,
    },
    Pending(&'a [Pending]),
    Consumer {
        group: &'a [u8],
        name: &'a [u8],
        pending: &'a [Pending],
    },
    /// Given back by their consumer, to be delivered again.
    Unowned {
        group: &'a [u8],
        pending: &'a [Pending],
    },
}

fn group(
    input: &mut dyn Input,
    version: u8,
    visit: &mut dyn FnMut(GroupPart<'_>) -> Result<(), What>,
) -> Result<(), What> {
    let mut group = Vec::new();
    read_string(input, &mut group)?;
    let last = Id::lengths(input)?;
    // -1 is stored as the largest number.
    let read = if version >= 2 { Some(length(input)? as i64) } else { None };
    visit(GroupPart::Head { name: &group, last, read })?;
    let mut all = Vec::new();
    for _ in 0..length(input)? {
        let id = Id::big_endian(input)?;
        all.push(Pending { id, delivered_ms: input.u64_le()?, count: length(input)? });
    }
    visit(GroupPart::Pending(&all))?;
    all.sort_unstable_by_key(|pending| pending.id);
    for _ in 0..length(input)? {
        let mut name = Vec::new();
        read_string(input, &mut name)?;
        input.take(if version >= 3 { 16 } else { 8 })?;
        let own = some_of(input, &all)?;
        visit(GroupPart::Consumer { group: &group, name: &name, pending: &own })?;
    }
    if version >= 5 {
        let pending = some_of(input, &all)?;
        visit(GroupPart::Unowned { group: &group, pending: &pending })?;
    }
    Ok(())
}

/// A list of ids, each of which is among the pending ones of the group.
fn some_of(input: &mut dyn Input, all: &[Pending]) -> Result<Vec<Pending>, What> {
    let mut some = Vec::new();
    for _ in 0..length(input)? {
        let id = Id::big_endian(input)?;
        let at = all
            .binary_search_by_key(&id, |pending| pending.id)
            .map_err(|_| What::Corrupt("a consumer has an entry pending that its group does not have"))?;
        some.push(all[at]);
    }
    Ok(some)
}

/// Writes a stream's commands: entries, groups, pending entries, counters.
pub(super) fn write(
    input: &mut dyn Input,
    type_id: u8,
    key: &[u8],
    dialect: &Dialect,
    dangling: &[Id],
    chunk: &mut Chunk<'_, '_>,
) -> Result<(), What> {
    if !dialect.streams {
        return Err(What::NoCommand("the destination does not know streams (Redis 5.0 does)".into()));
    }
    let version = version(type_id);
    let mut stand_ins = dangling.iter().copied().peekable();
    let mut first_live = None;
    for _ in 0..length(input)? {
        node(input, &mut |visit| {
            match visit {
                Visit::Entry(id) => {
                    while let Some(gone) = stand_ins.next_if(|gone| *gone < id) {
                        stand_in(chunk, key, gone)?;
                    }
                    first_live.get_or_insert(id);
                    // Several entries cannot share a command: the head is the whole of it so far.
                    chunk.begin(&[b"XADD", key, id.text().as_bytes()])?;
                }
                Visit::Part(part) => chunk.element(part),
            }
            Ok(())
        })?;
    }
    chunk.begin(&[])?;
    for gone in stand_ins {
        stand_in(chunk, key, gone)?;
    }
    let counters = counters(input, version)?;
    if first_live.is_none() && dangling.is_empty() {
        // A stream without entries: one entry that is trimmed in the same command. 0-0 is not a valid id for it.
        let id = counters.last.max(Id { ms: 0, seq: 1 });
        chunk.one(&[b"XADD", key, b"MAXLEN", b"0", id.text().as_bytes(), b"x", b"y"])?;
    }
    for _ in 0..length(input)? {
        group(input, version, &mut |part| write_group(chunk, key, dialect, part))?;
    }
    if version >= 4 {
        producers(input, key, dialect, chunk)?;
    }
    remove_stand_ins(chunk, key, dangling, first_live, counters.entries)?;
    let last = counters.last.text();
    if dialect.stream_counters {
        let (added, deleted) = (counters.added.to_string(), counters.deleted.text());
        let added = added.as_bytes();
        chunk.one(&[
            b"XSETID",
            key,
            last.as_bytes(),
            b"ENTRIESADDED",
            added,
            b"MAXDELETEDID",
            deleted.as_bytes(),
        ])
    } else {
        chunk.one(&[b"XSETID", key, last.as_bytes()])
    }
}

fn stand_in(chunk: &mut Chunk<'_, '_>, key: &[u8], id: Id) -> Result<(), What> {
    chunk.one(&[b"XADD", key, id.text().as_bytes(), b"x", b"y"])
}

/// What lies before the first entry was trimmed away, which leaves no trace in the greatest deleted id; what lies
/// behind it was deleted, which the counters in the file cover.
fn remove_stand_ins(
    chunk: &mut Chunk<'_, '_>,
    key: &[u8],
    dangling: &[Id],
    first_live: Option<Id>,
    entries: u64,
) -> Result<(), What> {
    let Some(first) = dangling.first() else { return Ok(()) };
    if let Some(live) = first_live {
        for gone in dangling.iter().filter(|gone| **gone > live) {
            chunk.one(&[b"XDEL", key, gone.text().as_bytes()])?;
        }
    }
    if first_live.is_none_or(|live| *first < live) {
        chunk.one(&[b"XTRIM", key, b"MAXLEN", entries.to_string().as_bytes()])?;
    }
    Ok(())
}

fn write_group(
    chunk: &mut Chunk<'_, '_>,
    key: &[u8],
    dialect: &Dialect,
    part: GroupPart<'_>,
) -> Result<(), What> {
    match part {
        GroupPart::Head { name, last, read } => {
            let (last, read) =
                (last.text(), read.filter(|_| dialect.stream_counters).map(|read| read.to_string()));
            let mut args = vec![&b"XGROUP"[..], b"CREATE", key, name, last.as_bytes()];
            if let Some(read) = &read {
                args.extend([&b"ENTRIESREAD"[..], read.as_bytes()]);
            }
            chunk.one(&args)
        }
        GroupPart::Pending(_) => Ok(()),
        GroupPart::Consumer { group, name, pending } => {
            if dialect.create_consumer {
                chunk.one(&[b"XGROUP", b"CREATECONSUMER", key, group, name])?;
            } else if pending.is_empty() {
                // Reading its own (empty) history makes the consumer and has no other effect.
                chunk.one(&[b"XREADGROUP", b"GROUP", group, name, b"STREAMS", key, b"0"])?;
            }
            claim(chunk, key, group, name, pending)
        }
        GroupPart::Unowned { group, pending } if dialect.redis_8_8 => {
            for run in runs(pending) {
                let ids: Vec<String> = run.iter().map(|pending| pending.id.text()).collect();
                let (len, count) = (run.len().to_string(), run[0].count.to_string());
                let mut args = vec![&b"XNACK"[..], key, group, b"SILENT", b"IDS", len.as_bytes()];
                args.extend(ids.iter().map(String::as_bytes));
                args.extend([&b"RETRYCOUNT"[..], count.as_bytes(), b"FORCE"]);
                chunk.one(&args)?;
            }
            Ok(())
        }
        // An older server has no pending entries without an owner. One that never comes leaves them to XAUTOCLAIM,
        // where without any they would be lost to the group.
        GroupPart::Unowned { group, pending } => claim(chunk, key, group, b"nobody", pending),
    }
}

/// Stretches of entries that one command can name: delivered at the same time, equally often.
fn runs(pending: &[Pending]) -> impl Iterator<Item = &[Pending]> {
    const IDS: usize = 128;
    let alike = |a: &Pending, b: &Pending| a.delivered_ms == b.delivered_ms && a.count == b.count;
    pending.chunk_by(alike).flat_map(|run| run.chunks(IDS))
}

fn claim(
    chunk: &mut Chunk<'_, '_>,
    key: &[u8],
    group: &[u8],
    name: &[u8],
    pending: &[Pending],
) -> Result<(), What> {
    for run in runs(pending) {
        let ids: Vec<String> = run.iter().map(|pending| pending.id.text()).collect();
        let (time, count) = (run[0].delivered_ms.to_string(), run[0].count.to_string());
        let mut args = vec![&b"XCLAIM"[..], key, group, name, b"0"];
        args.extend(ids.iter().map(String::as_bytes));
        args.extend([&b"TIME"[..], time.as_bytes(), b"RETRYCOUNT", count.as_bytes(), b"FORCE", b"JUSTID"]);
        chunk.one(&args)?;
    }
    Ok(())
}

/// What the stream remembers of its idempotent producers; a server that does not know them loses nothing by it but
/// the recognition of what is sent a second time.
fn producers(
    input: &mut dyn Input,
    key: &[u8],
    dialect: &Dialect,
    chunk: &mut Chunk<'_, '_>,
) -> Result<(), What> {
    let (duration, size) = (length(input)?.to_string(), length(input)?.to_string());
    if dialect.idempotence {
        let (duration, size) = (duration.as_bytes(), size.as_bytes());
        chunk.one(&[b"XCFGSET", key, b"IDMP-DURATION", duration, b"IDMP-MAXSIZE", size])?;
    }
    let (mut producer, mut id) = (Vec::new(), Vec::new());
    for _ in 0..length(input)? {
        producer.clear();
        read_string(input, &mut producer)?;
        for _ in 0..length(input)? {
            id.clear();
            read_string(input, &mut id)?;
            let entry = Id::lengths(input)?.text();
            if dialect.idempotence {
                chunk.one(&[b"XIDMPRECORD", key, &producer, &id, entry.as_bytes()])?;
            }
        }
    }
    length(input)?;
    length(input)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::Flavour;
    use super::*;

    #[test]
    fn an_empty_stream_with_a_group_is_rebuilt() {
        // No node, no entry, last id 5-3, first 0-0, deleted 5-3, 2 added; one group at 5-3 that read 2; no pending;
        // one consumer without pending entries.
        let mut body = b"\x00\x00\x05\x03\x00\x00\x05\x03\x02\x01\x01g\x05\x03\x02\x00\x01\x01c".to_vec();
        body.extend_from_slice(&[0; 16]);
        body.push(0);
        let value = RawValue { type_id: STREAM_LISTPACKS_3, body: &body, flavour: Flavour::Redis };
        let mut seen = Vec::new();
        value
            .commands(b"s", &Dialect::default(), &mut |args| {
                seen.push(
                    args.iter()
                        .map(|arg| String::from_utf8_lossy(arg).into_owned())
                        .collect::<Vec<_>>()
                        .join(" "),
                );
                Ok(())
            })
            .unwrap();
        assert_eq!(
            seen,
            [
                "XADD s MAXLEN 0 5-3 x y",
                "XGROUP CREATE s g 5-3 ENTRIESREAD 2",
                "XGROUP CREATECONSUMER s g c",
                "XSETID s 5-3 ENTRIESADDED 2 MAXDELETEDID 5-3"
            ]
        );
    }
}

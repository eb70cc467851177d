//! Commands of the stream in words that the destination understands, where it is older than the source or where only
//! a replica may say them.
//!
//! ```text
//! RESTORE, FUNCTION RESTORE    a payload stamped with a version that the destination does not read: the lowest that has its
//!                              type, or the value as commands
//! XADD … IDMP (8.6)            with an explicit id, which servers take from their master only: XADD, then XIDMPRECORD
//! XGROUP, XSETID               without the counters that came with 7.0
//! XGROUP CREATECONSUMER        nothing before 6.2: consumers come into being as they read
//! SET KEEPTTL                  a script before 6.0 (from there on INCRBYFLOAT is sent so)
//! HSETEX without an expiry     HSET where it is not known (8.2 sends HINCRBYFLOAT so)
//! HGETDEL                      HDEL
//! ```
//! What cannot be said otherwise goes as it is, and the destination's answer decides.

use super::expiry::field_padded;
use super::transform::{COMPARED, Dialect};
use crate::rdb;
use crate::resp::write;

/// SET with KEEPTTL, for servers before 6.0.
pub const SET_KEEPTTL: &str = "local left=redis.call('PTTL',KEYS[1]) redis.call('SET',KEYS[1],ARGV[1]) \
    if left>0 then redis.call('PEXPIRE',KEYS[1],string.format('%.0f',left)) end";

/// Whether the text of a script is one of ours, which change the key that they are given and no other.
pub fn is_ours(text: &[u8]) -> bool {
    [SET_KEEPTTL, COMPARED].iter().any(|script| text == script.as_bytes())
}

/// Whether a command may need other words; `args` begins behind the name.
pub fn concerns<'a>(name: &[u8], mut args: impl Iterator<Item = &'a [u8]>, dialect: &Dialect) -> bool {
    let is = |word: &str| name.eq_ignore_ascii_case(word.as_bytes());
    match name.len() {
        4 if is("XADD") => {
            args.take(8).any(|word| word.len() >= 4 && word[..4].eq_ignore_ascii_case(b"IDMP"))
        }
        6 if is("XGROUP") || is("XSETID") => !dialect.stream_counters || !dialect.create_consumer,
        7 => is("HGETDEL"),
        8 if is("FUNCTION") => args.next().is_some_and(|sub| sub.eq_ignore_ascii_case(b"RESTORE")),
        _ => false,
    }
}

/// Writes the command in other words; answers how many commands that are. `None`: it goes as it is.
pub fn write(args: &[&[u8]], dialect: &Dialect, out: &mut Vec<u8>) -> Option<u32> {
    match args.first()?.to_ascii_uppercase().as_slice() {
        b"XADD" => idempotent(args, dialect, out),
        b"XGROUP" => group(args, dialect, out),
        b"XSETID" if !dialect.stream_counters => {
            write::command(out, args.get(..3)?);
            Some(1)
        }
        b"HGETDEL" => {
            let mut words = vec![&b"HDEL"[..], args.get(1)?];
            words.extend_from_slice(args.get(4..)?);
            write::command(out, &words);
            Some(1)
        }
        b"FUNCTION" => {
            let payload = libraries(args.get(2)?, dialect)?;
            let mut words = args.to_vec();
            words[2] = &payload;
            write::command(out, &words);
            Some(1)
        }
        _ => None,
    }
}

/// Whether the destination reads a payload of this RDB version.
fn reads(version: u32, dialect: &Dialect) -> bool {
    // From 80 on Valkey counts by itself, and does not read what Redis added since the fork.
    version <= dialect.rdb_version && !(dialect.rdb_version >= 80 && (12..80).contains(&version))
}

/// What becomes of a payload of DUMP.
#[derive(Debug, PartialEq, Eq)]
pub enum Payload {
    /// The destination reads it as it is, or nobody can help it.
    Same,
    /// It reads this one.
    Stamped(Vec<u8>),
    /// It does not know the type: the value as so many commands for a key that is not there.
    Commands(Vec<u8>, u32),
}

/// A value for the destination, the expiries of a hash's fields padded.
pub fn value(key: &[u8], payload: &[u8], dialect: &Dialect) -> Payload {
    let Ok((value, stamped)) = rdb::split_dump(payload) else { return Payload::Same };
    if !dialect.hash_templates
        && let Some(plain) = value.plain_payload()
    {
        return Payload::Stamped(plain);
    }
    let moved = value.with_field_expiries(field_padded);
    if moved.is_none() && reads(u32::from(stamped), dialect) {
        return Payload::Same;
    }
    if value.minimum_version().is_some_and(|version| reads(version, dialect)) {
        let mut stamped = Vec::with_capacity(payload.len());
        let body = moved.as_deref().unwrap_or(value.body);
        rdb::RawValue { body, ..value }.dump_payload(&mut stamped);
        return Payload::Stamped(stamped);
    }
    let (mut out, mut count) = (Vec::new(), 0);
    let words = rdb::Dialect {
        hash_field_expiry: dialect.hash_field_expiry,
        streams: dialect.rdb_version >= 9,
        create_consumer: dialect.create_consumer,
        idempotence: dialect.idempotence,
        redis_8_8: dialect.rdb_version == 15,
        stream_counters: dialect.stream_counters,
        lose_field_expiry: false,
        padded_fields: true,
    };
    let mut sink = |args: &[&[u8]]| {
        write::command(&mut out, args);
        count += 1;
        Ok(())
    };
    match value.commands(key, &words, &mut sink) {
        Ok(()) => Payload::Commands(out, count),
        Err(_) => Payload::Same,
    }
}

/// A payload of FUNCTION DUMP with the version of 7.0, whose opcodes every server with functions reads.
fn libraries(payload: &[u8], dialect: &Dialect) -> Option<Vec<u8>> {
    let at = payload.len().checked_sub(10)?;
    let stamped = u16::from_le_bytes([payload[at], payload[at + 1]]);
    if reads(u32::from(stamped), dialect) {
        return None;
    }
    let mut payload = payload[..at].to_vec();
    payload.extend_from_slice(&10u16.to_le_bytes());
    let checksum = rdb::checksum(&payload);
    payload.extend_from_slice(&checksum.to_le_bytes());
    Some(payload)
}

fn idempotent(args: &[&[u8]], dialect: &Dialect, out: &mut Vec<u8>) -> Option<u32> {
    let is =
        |at: usize, word: &str| args.get(at).is_some_and(|arg| arg.eq_ignore_ascii_case(word.as_bytes()));
    let mut words = args.get(..2)?.to_vec();
    let mut record = None;
    let mut at = 2;
    loop {
        let kept = if is(at, "IDMP") {
            record = Some((*args.get(at + 1)?, *args.get(at + 2)?));
            at += 3;
            continue;
        } else if is(at, "IDMPAUTO") {
            // Without the id that the server computed there is nothing to record.
            at += 2;
            continue;
        } else if is(at, "MAXLEN") || is(at, "MINID") {
            2 + usize::from(is(at + 1, "=") || is(at + 1, "~"))
        } else if is(at, "LIMIT") {
            2
        } else if ["NOMKSTREAM", "KEEPREF", "DELREF", "ACKED"].iter().any(|word| is(at, word)) {
            1
        } else {
            break;
        };
        words.extend_from_slice(args.get(at..at + kept)?);
        at += kept;
    }
    let id = *args.get(at)?;
    if id == b"*" && words.len() < at {
        // The source gives the id that it chose, unless it knew the entry already and added none.
        return Some(0);
    }
    words.extend_from_slice(&args[at..]);
    write::command(out, &words);
    match record {
        Some((producer, key)) if dialect.idempotence => {
            write::command(out, &[b"XIDMPRECORD", args[1], producer, key, id]);
            Some(2)
        }
        _ => Some(1),
    }
}

fn group(args: &[&[u8]], dialect: &Dialect, out: &mut Vec<u8>) -> Option<u32> {
    let sub = args.get(1)?;
    if sub.eq_ignore_ascii_case(b"CREATECONSUMER") && !dialect.create_consumer {
        return Some(0);
    }
    let counted = args.iter().position(|arg| arg.eq_ignore_ascii_case(b"ENTRIESREAD"))?;
    // Not the name of a group: XGROUP SUB key group id …
    if dialect.stream_counters || counted < 5 {
        return None;
    }
    let mut words = args.to_vec();
    words.drain(counted..words.len().min(counted + 2));
    write::command(out, &words);
    Some(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(line: &str, dialect: &Dialect) -> Option<Vec<Vec<String>>> {
        let args: Vec<&[u8]> = line.split(' ').map(str::as_bytes).collect();
        if !concerns(args[0], args[1..].iter().copied(), dialect) {
            return None;
        }
        let mut out = Vec::new();
        let commands = write(&args, dialect, &mut out)?;
        let text = String::from_utf8(out).unwrap();
        let mut words = text.split("\r\n");
        let mut all = Vec::new();
        while let Some(count) = words.next().and_then(|head| head.strip_prefix('*')) {
            let one = (0..count.parse().unwrap()).map(|_| {
                words.next();
                words.next().unwrap().to_owned()
            });
            all.push(one.collect());
        }
        assert_eq!(all.len(), commands as usize);
        Some(all)
    }

    fn lines(line: &str, dialect: &Dialect) -> Option<Vec<String>> {
        Some(run(line, dialect)?.iter().map(|words| words.join(" ")).collect())
    }

    #[test]
    fn other_words_for_older_destinations() {
        let (old, new) = (Dialect::of_version(5, 0), Dialect::of_version(8, 8));
        let one = |line: &str| Some(vec![line.to_owned()]);
        assert_eq!(lines("XGROUP SETID x g 3-0 ENTRIESREAD 4", &old), one("XGROUP SETID x g 3-0"));
        assert_eq!(lines("XGROUP SETID x g 3-0 ENTRIESREAD 4", &new), None);
        assert_eq!(
            lines("XGROUP CREATE x g 0 MKSTREAM ENTRIESREAD 4", &old),
            one("XGROUP CREATE x g 0 MKSTREAM")
        );
        assert_eq!(lines("XGROUP CREATECONSUMER x g c", &old), Some(vec![]));
        assert_eq!(lines("XSETID x 9-9 ENTRIESADDED 4 MAXDELETEDID 1-0", &old), one("XSETID x 9-9"));
        assert_eq!(lines("HGETDEL h FIELDS 2 a b", &new), one("HDEL h a b"));
        let both = vec!["XADD x MAXLEN ~ 9 5-1 f v".to_owned(), "XIDMPRECORD x p i 5-1".to_owned()];
        assert_eq!(lines("XADD x IDMP p i MAXLEN ~ 9 5-1 f v", &new), Some(both));
        assert_eq!(lines("XADD x IDMP p i * f v", &new), Some(vec![]));
        assert_eq!(lines("XADD x MAXLEN 5 * IDMP v", &new), one("XADD x MAXLEN 5 * IDMP v"));
        assert_eq!(lines("XADD x IDMPAUTO p 5-1 IDMP v", &new), one("XADD x 5-1 IDMP v"));
        assert_eq!(lines("XADD x 5-1 IDMP v", &new), one("XADD x 5-1 IDMP v"));
        assert_eq!(lines("XADD x 5-1 f v", &old), None);
    }

    #[test]
    fn payloads_get_the_version_that_the_destination_reads() {
        let seal = |version: u16| {
            let mut payload = vec![0, 1, b'v'];
            payload.extend_from_slice(&version.to_le_bytes());
            let checksum = rdb::checksum(&payload);
            payload.extend_from_slice(&checksum.to_le_bytes());
            payload
        };
        let dialect = Dialect::of_version(7, 0);
        assert_eq!(value(b"k", &seal(10), &dialect), Payload::Same);
        assert_eq!(value(b"k", &seal(12), &dialect), Payload::Stamped(seal(6)));
        let valkey = Dialect { rdb_version: 80, ..dialect };
        assert_eq!(value(b"k", &seal(12), &valkey), Payload::Stamped(seal(6)));
        assert_eq!(value(b"k", &seal(11), &valkey), Payload::Same);
        assert_eq!(libraries(&seal(12), &dialect), Some(seal(10)));
        assert_eq!(libraries(&seal(10), &dialect), None);
    }
}

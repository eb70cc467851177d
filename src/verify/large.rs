//! Values too large to be read whole: chunk by chunk, both sides side by side.
//!
//! Strings, lists and streams have an order: equal chunks at equal places. Sets, hashes and sorted sets have
//! none that two servers share: all members of `a` must be in `b` with the same value, and the numbers of
//! members must be equal. So no digest is needed, and it does not matter that SCAN may repeat a member.

use bytes::Bytes;

use super::link::Commands;
use super::typed::{
    Type, Verdict, entries, expiry_answer, expiry_question, now_ms, outnumbered, payloads, score_bits,
    stream_info, value,
};
use super::{Kind, Pair, newer};
use crate::error::Result;
use crate::resp::value::Value;

/// Elements in one chunk, at most.
const MOST_ELEMENTS: u64 = 1000;
/// Pending entries in one chunk.
const PENDING: usize = 1000;

/// A read that was refused because the key has changed meanwhile (it was deleted, or has another type): it
/// counts as a difference, which a later round will judge again.
pub(super) fn settled(outcome: Result<Verdict>) -> Result<Verdict> {
    match outcome {
        Err(error)
            if !error.retry
                && ["WRONGTYPE", "no such key", "NOGROUP"].iter().any(|t| error.message.contains(t)) =>
        {
            Ok(value("it changed while it was read".into()))
        }
        outcome => outcome,
    }
}

/// Compares one key; `size` is its size in bytes if that is known.
pub(super) async fn compare(
    pair: &mut Pair,
    key: &Bytes,
    kind: &Type,
    size: Option<u64>,
    chunk: u64,
) -> Result<Verdict> {
    let Some(command) = kind.length_command() else {
        return match kind {
            Type::Vectors => newer::vectors(pair, key).await,
            Type::Array => newer::array(pair, key, MOST_ELEMENTS).await,
            Type::Other(name) => {
                // There is no way to read it in parts.
                let question: [&[u8]; 2] = [b"DUMP", key];
                let (a, b) = pair.one(&question).await?;
                Ok(payloads(&a, &b, name))
            }
            _ => Ok(None),
        };
    };
    let question: [&[u8]; 2] = [command, key];
    let (a, b) = pair.one(&question).await?;
    let (a, b) = (a.as_i64().unwrap_or(0), b.as_i64().unwrap_or(0));
    // A hash may hold fields that are expired in truth.
    let may_differ = *kind == Type::Hash && (pair.a.can.field_expiry || pair.b.can.field_expiry);
    if a != b && !may_differ {
        let what = match kind {
            Type::String => "bytes",
            Type::List => "elements",
            Type::Stream => "entries",
            _ => "members",
        };
        return Ok(value(format!("{a} {what} against {b}")));
    }
    let each = size.map_or(1024, |size| size / (a.max(1) as u64)).max(1);
    let count = (chunk / each).clamp(1, MOST_ELEMENTS) as i64;
    match kind {
        Type::String => ranges(pair, b"GETRANGE", key, a, chunk.max(1) as i64).await,
        Type::List => ranges(pair, b"LRANGE", key, a, count).await,
        Type::Stream => stream(pair, key, count).await,
        _ => scan(pair, key, kind, count, (a, b)).await,
    }
}

/// Strings and lists.
async fn ranges(pair: &mut Pair, command: &[u8], key: &[u8], len: i64, step: i64) -> Result<Verdict> {
    let mut at = 0;
    while at < len {
        let (from, to) = (at.to_string(), (at + step - 1).to_string());
        let args: [&[u8]; 4] = [command, key, from.as_bytes(), to.as_bytes()];
        let (a, b) = pair.one(&args).await?;
        if a != b {
            return Ok(value(format!("it differs between positions {from} and {to}")));
        }
        at += step;
    }
    Ok(None)
}

/// Sets, hashes and sorted sets.
async fn scan(
    pair: &mut Pair,
    key: &Bytes,
    kind: &Type,
    count: i64,
    (mut len_a, mut len_b): (i64, i64),
) -> Result<Verdict> {
    let command: &[u8] = match kind {
        Type::Set => b"SSCAN",
        Type::Hash => b"HSCAN",
        _ => b"ZSCAN",
    };
    let count = count.to_string();
    let mut cursor = Bytes::from_static(b"0");
    loop {
        let reply = pair.a.one(&[command, key, &cursor, b"COUNT", count.as_bytes()]).await?;
        let mut reply = reply.into_array().unwrap_or_default();
        let (Some(items), Some(Value::Bulk(next))) = (reply.pop().and_then(Value::into_array), reply.pop())
        else {
            return Err(pair.a.odd("a scan of members"));
        };
        let mut items: Vec<Bytes> = items
            .into_iter()
            .filter_map(|item| match item {
                Value::Bulk(bytes) => Some(bytes),
                _ => None,
            })
            .collect();
        let mut values = Vec::new();
        if *kind != Type::Set {
            let mut names = Vec::with_capacity(items.len() / 2);
            let mut both = items.into_iter();
            while let (Some(name), Some(value)) = (both.next(), both.next()) {
                names.push(name);
                values.push(value);
            }
            items = names;
        }
        if !items.is_empty()
            && let Some(verdict) = chunk_on_b(pair, key, kind, &items, &values).await?
        {
            return Ok(Some(verdict));
        }
        cursor = next;
        if cursor.as_ref() == b"0" {
            break;
        }
    }
    if len_a != len_b {
        // Only hashes come here: count what is not expired in truth.
        len_a = live_fields(pair, key, &count, true).await?;
        len_b = live_fields(pair, key, &count, false).await?;
        if len_a != len_b {
            return Ok(value(outnumbered("field", len_a as usize, len_b as usize, None)));
        }
    }
    Ok(None)
}

/// Whether `b` has these members with these values.
async fn chunk_on_b(
    pair: &mut Pair,
    key: &[u8],
    kind: &Type,
    names: &[Bytes],
    values: &[Bytes],
) -> Result<Option<(Kind, String)>> {
    let differs = |at: usize| {
        let what = if *kind == Type::Hash { "field" } else { "member" };
        (Kind::Value, format!("first {what} that differs: {:.80}", names[at].escape_ascii()))
    };
    let mut questions = Commands::default();
    match kind {
        Type::Hash => {
            let mut args: Vec<&[u8]> = vec![b"HMGET", key];
            args.extend(names.iter().map(|name| name.as_ref()));
            questions.add(&args);
        }
        Type::Set => names.iter().for_each(|name| questions.add(&[b"SISMEMBER", key, name])),
        _ => names.iter().for_each(|name| questions.add(&[b"ZSCORE", key, name])),
    }
    let mut answers = pair.b.ask(&questions).await?;
    if *kind == Type::Hash {
        answers = answers.pop().and_then(Value::into_array).unwrap_or_default();
    }
    if answers.len() != names.len() {
        return Ok(Some((Kind::Value, "it could not be read".into())));
    }
    let mut expiries = Default::default();
    if *kind == Type::Hash && (pair.a.can.field_expiry || pair.b.can.field_expiry) {
        let mut question = Commands::default();
        expiry_question(&mut question, key, names.iter());
        let nothing = Commands::default();
        let for_a = if pair.a.can.field_expiry { &question } else { &nothing };
        let for_b = if pair.b.can.field_expiry { &question } else { &nothing };
        let (mut a, mut b) = tokio::try_join!(pair.a.ask(for_a), pair.b.ask(for_b))?;
        expiries = (
            expiry_answer(&pair.a, names.to_vec(), a.pop()),
            expiry_answer(&pair.b, names.to_vec(), b.pop()),
        );
    }
    let now = now_ms();
    for (at, answer) in answers.iter().enumerate() {
        let (expires_a, expires_b) = (expiries.0.get(&names[at]), expiries.1.get(&names[at]));
        let live = |at: Option<&u64>| at.is_none_or(|at| *at > now);
        if !live(expires_a) {
            continue;
        }
        let same = match (kind, answer) {
            (Type::Set, Value::Integer(1)) => true,
            (Type::Hash, Value::Bulk(found)) => *found == values[at] && live(expires_b),
            (Type::ZSet, Value::Bulk(score)) => score_bits(score) == score_bits(&values[at]),
            _ => false,
        };
        if !same {
            return Ok(Some(differs(at)));
        }
        if expires_a != expires_b {
            return Ok(Some((
                Kind::Expiry,
                format!("field {:.80} expires at another time", names[at].escape_ascii()),
            )));
        }
    }
    Ok(None)
}

/// How many fields of a hash are not expired in truth.
async fn live_fields(pair: &mut Pair, key: &[u8], count: &str, of_a: bool) -> Result<i64> {
    let link = if of_a { &mut pair.a } else { &mut pair.b };
    let mut live = std::collections::HashSet::new();
    let mut cursor = Bytes::from_static(b"0");
    loop {
        let reply = link.one(&[b"HSCAN", key, &cursor, b"COUNT", count.as_bytes()]).await?;
        let mut reply = reply.into_array().unwrap_or_default();
        let (Some(items), Some(Value::Bulk(next))) = (reply.pop().and_then(Value::into_array), reply.pop())
        else {
            return Err(link.odd("HSCAN"));
        };
        let names: Vec<Bytes> = items
            .into_iter()
            .step_by(2)
            .filter_map(|item| match item {
                Value::Bulk(bytes) => Some(bytes),
                _ => None,
            })
            .collect();
        let mut expiries = Default::default();
        if link.can.field_expiry && !names.is_empty() {
            let mut question = Commands::default();
            expiry_question(&mut question, key, names.iter());
            let answer = link.ask(&question).await?.pop();
            expiries = expiry_answer(link, names.clone(), answer);
        }
        let now = now_ms();
        // By hash, not by name: a field may be long, and there may be millions.
        live.extend(
            names.iter().filter(|name| expiries.get(*name).is_none_or(|at| *at > now)).map(fingerprint),
        );
        cursor = next;
        if cursor.as_ref() == b"0" {
            return Ok(live.len() as i64);
        }
    }
}

fn fingerprint(name: &Bytes) -> u64 {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut hasher = DefaultHasher::new();
    name.hash(&mut hasher);
    hasher.finish()
}

async fn stream(pair: &mut Pair, key: &Bytes, count: i64) -> Result<Verdict> {
    let count = count.to_string();
    let mut from = Bytes::from_static(b"-");
    loop {
        let args: [&[u8]; 6] = [b"XRANGE", key, &from, b"+", b"COUNT", count.as_bytes()];
        let (a, b) = pair.one(&args).await?;
        let verdict = entries(&a, &b);
        if verdict.is_some() {
            return Ok(verdict);
        }
        let last = a.as_array().and_then(|entries| entries.last()?.as_array()?.first()?.as_bytes());
        let Some(next) = last.and_then(following) else { break };
        from = next;
    }
    let info: [&[u8]; 3] = [b"XINFO", b"STREAM", key];
    let (a, b) = pair.one(&info).await?;
    match stream_info(&a, &b) {
        None => groups(pair, key).await,
        verdict => Ok(verdict),
    }
}

/// The id behind this one. (`(id` as the start of a range is 6.2's.)
fn following(id: &[u8]) -> Option<Bytes> {
    let (ms, seq) = std::str::from_utf8(id).ok()?.split_once('-')?;
    let (ms, seq): (u64, u64) = (ms.parse().ok()?, seq.parse().ok()?);
    let next = match seq.checked_add(1) {
        Some(seq) => format!("{ms}-{seq}"),
        None => format!("{}-0", ms.checked_add(1)?),
    };
    Some(Bytes::from(next))
}

/// Compares the groups of a stream: names, last delivered ids, consumers, and who has which entry pending.
pub(super) async fn groups(pair: &mut Pair, key: &Bytes) -> Result<Verdict> {
    let question: [&[u8]; 3] = [b"XINFO", b"GROUPS", key];
    let (a, b) = pair.one(&question).await?;
    let (mut a, mut b) = (a.into_array().unwrap_or_default(), b.into_array().unwrap_or_default());
    let name = |group: &Value| group.field("name").and_then(Value::as_bytes).map(<[u8]>::to_vec);
    a.sort_by_key(name);
    b.sort_by_key(name);
    if a.iter().map(name).ne(b.iter().map(name)) {
        return Ok(value(format!("{} consumer groups against {}, or others", a.len(), b.len())));
    }
    for (a, b) in a.iter().zip(&b) {
        let group = name(a).unwrap_or_default();
        let named = group.escape_ascii().to_string();
        for field in ["last-delivered-id", "pending"] {
            if a.field(field) != b.field(field) {
                return Ok(value(format!("group {named:.80}: its {field} differs")));
            }
        }
        // `entries-read` is left out: XREADGROUP is replicated as XCLAIM, which does not move it, so that a
        // native replica's differs too (seen with 7.0.15). It only serves the estimate that XINFO calls lag.
        if a.field("pending").and_then(Value::as_i64).unwrap_or(0) > 0
            && let Some(verdict) = pending(pair, key, &group, &named).await?
        {
            return Ok(Some(verdict));
        }
        // Before 7.0 replication did not carry consumers that never got an entry.
        if pair.a.can.pexpiretime && pair.b.can.pexpiretime {
            let question: [&[u8]; 4] = [b"XINFO", b"CONSUMERS", key, &group];
            let (a, b) = pair.one(&question).await?;
            let names = |consumers: Value| {
                let mut names: Vec<Option<Vec<u8>>> =
                    consumers.into_array().unwrap_or_default().iter().map(name).collect();
                names.sort();
                names
            };
            if names(a) != names(b) {
                return Ok(value(format!("group {named:.80}: its consumers differ")));
            }
        }
    }
    Ok(None)
}

async fn pending(pair: &mut Pair, key: &[u8], group: &[u8], named: &str) -> Result<Verdict> {
    let count = PENDING.to_string();
    let mut from = Bytes::from_static(b"-");
    loop {
        let args: [&[u8]; 6] = [b"XPENDING", key, group, &from, b"+", count.as_bytes()];
        let (a, b) = pair.one(&args).await?;
        let (a, b) = (a.into_array().unwrap_or_default(), b.into_array().unwrap_or_default());
        // Id and consumer; idle time and delivery count are not compared.
        let brief = |entry: &Value| entry.as_array().map(|parts| parts[..parts.len().min(2)].to_vec());
        if a.iter().map(brief).ne(b.iter().map(brief)) {
            return Ok(value(format!("group {named:.80}: its pending entries differ")));
        }
        let last = a.last().and_then(|entry| entry.as_array()?.first()?.as_bytes());
        match last.and_then(following) {
            Some(next) if a.len() == PENDING => from = next,
            _ => return Ok(None),
        }
    }
}

//! Values that are small enough to be read whole, many keys to a round trip.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;

use super::large;
use super::link::{Commands, Link};
use super::{Kind, Pair};
use crate::error::Result;
use crate::resp::value::Value;

/// What TYPE says.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Type {
    String,
    List,
    Set,
    Hash,
    ZSet,
    Stream,
    Vectors,
    Array,
    /// A module's, or one newer than this verifier.
    Other(String),
}

impl Type {
    pub(super) fn named(name: &str) -> Self {
        match name {
            "string" => Type::String,
            "list" => Type::List,
            "set" => Type::Set,
            "hash" => Type::Hash,
            "zset" => Type::ZSet,
            "stream" => Type::Stream,
            "vectorset" => Type::Vectors,
            "array" => Type::Array,
            other => Type::Other(other.to_owned()),
        }
    }

    /// The command that tells its length.
    pub(super) fn length_command(&self) -> Option<&'static [u8]> {
        Some(match self {
            Type::String => b"STRLEN",
            Type::List => b"LLEN",
            Type::Set => b"SCARD",
            Type::Hash => b"HLEN",
            Type::ZSet => b"ZCARD",
            Type::Stream => b"XLEN",
            Type::Vectors | Type::Array | Type::Other(_) => return None,
        })
    }

    /// Adds the commands that read it whole.
    fn read(&self, key: &[u8], out: &mut Commands) -> usize {
        match self {
            Type::String => out.add(&[b"GET", key]),
            Type::List => out.add(&[b"LRANGE", key, b"0", b"-1"]),
            Type::Set => out.add(&[b"SMEMBERS", key]),
            Type::Hash => out.add(&[b"HGETALL", key]),
            Type::ZSet => out.add(&[b"ZRANGE", key, b"0", b"-1", b"WITHSCORES"]),
            Type::Stream => {
                out.add(&[b"XRANGE", key, b"-", b"+"]);
                out.add(&[b"XINFO", b"STREAM", key]);
                out.add(&[b"XINFO", b"GROUPS", key]);
                return 3;
            }
            // Vector sets and arrays do not come here.
            Type::Vectors | Type::Array | Type::Other(_) => out.add(&[b"DUMP", key]),
        }
        1
    }
}

pub(super) type Verdict = Option<(Kind, String)>;

/// Compares small keys of the same type.
pub(super) async fn compare(
    pair: &mut Pair,
    keys: &[Bytes],
    part: &[(usize, Type)],
    verdicts: &mut [Verdict],
) -> Result<()> {
    let mut questions = Commands::default();
    let counts: Vec<usize> = part.iter().map(|(at, kind)| kind.read(&keys[*at], &mut questions)).collect();
    let (a, b) = tokio::try_join!(pair.a.ask(&questions), pair.b.ask(&questions))?;
    let (mut a, mut b) = (a.into_iter(), b.into_iter());
    let mut hashes = Vec::new();
    let mut streams = Vec::new();
    for ((at, kind), count) in part.iter().zip(counts) {
        let a: Vec<Value> = a.by_ref().take(count).collect();
        let b: Vec<Value> = b.by_ref().take(count).collect();
        for (link, answers) in [(&pair.a, &a), (&pair.b, &b)] {
            for answer in answers {
                match answer {
                    // Another type by now: a client is writing. A later round will see.
                    Value::Error(text) if !transient(text) => {
                        return Err(link.refused("reading a key", text));
                    }
                    _ => {}
                }
            }
        }
        verdicts[*at] = judge(kind, a, b, *at, &mut hashes, &mut streams);
    }
    field_expiries(pair, keys, hashes, verdicts).await?;
    for at in streams {
        if verdicts[at].is_none() {
            verdicts[at] = large::settled(large::groups(pair, &keys[at]).await)?;
        }
    }
    Ok(())
}

/// An error that means the key has changed since it was asked for its type.
pub(super) fn transient(text: &[u8]) -> bool {
    ["WRONGTYPE", "ERR no such key", "NOGROUP"].iter().any(|known| text.starts_with(known.as_bytes()))
}

pub(super) fn value(what: String) -> Verdict {
    Some((Kind::Value, what))
}

/// The fields of one hash on both sides.
struct Fields {
    at: usize,
    a: HashMap<Bytes, Bytes>,
    b: HashMap<Bytes, Bytes>,
}

fn judge(
    kind: &Type,
    mut a: Vec<Value>,
    mut b: Vec<Value>,
    at: usize,
    hashes: &mut Vec<Fields>,
    streams: &mut Vec<usize>,
) -> Verdict {
    if *kind == Type::Stream {
        let verdict = entries(&a[0], &b[0]).or_else(|| stream_info(&a[1], &b[1]));
        let has_groups = [&a[2], &b[2]].iter().any(|g| g.as_array().is_some_and(|g| !g.is_empty()));
        if verdict.is_none() && has_groups {
            streams.push(at);
        }
        return verdict;
    }
    let (Some(a), Some(b)) = (a.pop(), b.pop()) else { return value("it could not be read".into()) };
    if *kind != Type::Hash && a == b {
        return None;
    }
    match kind {
        Type::String => {
            let (a, b) = (a.as_bytes().unwrap_or_default(), b.as_bytes().unwrap_or_default());
            value(if a.len() == b.len() {
                format!("strings of {} bytes differ", a.len())
            } else {
                format!("a string of {} bytes against one of {}", a.len(), b.len())
            })
        }
        Type::List => {
            let (a, b) = (a.as_array().unwrap_or_default(), b.as_array().unwrap_or_default());
            let same = a.iter().zip(b).take_while(|(a, b)| a == b).count();
            value(format!("lists of {} and {} elements differ from index {same} on", a.len(), b.len()))
        }
        Type::Set => {
            let (a, b) = (members(a), members(b));
            if a == b {
                None
            } else {
                value(outnumbered("member", a.len(), b.len(), a.difference(&b).next()))
            }
        }
        Type::ZSet => {
            let (a, b) = (scores(a), scores(b));
            let odd =
                a.iter().find(|(member, score)| b.get(*member) != Some(*score)).map(|(member, _)| member);
            if odd.is_none() && a.len() == b.len() {
                None
            } else {
                value(outnumbered("member", a.len(), b.len(), odd))
            }
        }
        Type::Hash => {
            // Fields may be expired in truth and still be there: judged with their expiries.
            hashes.push(Fields { at, a: pairs(a), b: pairs(b) });
            None
        }
        Type::Stream | Type::Vectors | Type::Array => None,
        Type::Other(name) => payloads(&a, &b, name),
    }
}

/// Values of types that cannot be read otherwise, by what DUMP gave.
pub(super) fn payloads(a: &Value, b: &Value, name: &str) -> Verdict {
    match (a, b) {
        (Value::Bulk(a), Value::Bulk(b)) if payload(a) == payload(b) => None,
        _ => value(format!(
            "its payload differs; values of type {name} can only be compared between servers of one version"
        )),
    }
}

/// A DUMP payload without version (2 bytes) and checksum (8).
pub(super) fn payload(dump: &[u8]) -> &[u8] {
    &dump[..dump.len().saturating_sub(10)]
}

pub(super) fn outnumbered(what: &str, a: usize, b: usize, odd: Option<&Bytes>) -> String {
    let odd = odd.map(|odd| format!(", first {what} that differs: {:.80}", odd.escape_ascii()));
    format!("{a} {what}s against {b}{}", odd.unwrap_or_default())
}

fn strings(value: Value) -> impl Iterator<Item = Bytes> {
    value.into_array().unwrap_or_default().into_iter().map(|item| match item {
        Value::Bulk(bytes) => bytes,
        _ => Bytes::new(),
    })
}

fn members(value: Value) -> BTreeSet<Bytes> {
    strings(value).collect()
}

fn pairs(value: Value) -> HashMap<Bytes, Bytes> {
    let mut items = strings(value);
    let mut pairs = HashMap::new();
    while let (Some(key), Some(value)) = (items.next(), items.next()) {
        pairs.insert(key, value);
    }
    pairs
}

/// Scores as numbers: 7.0 and 8.0 write the same fraction with different digits. As bits, so that two NaN (which
/// cannot be) would be equal and 0 and -0 are not taken for different below.
fn scores(value: Value) -> BTreeMap<Bytes, u64> {
    pairs(value).into_iter().map(|(member, score)| (member, score_bits(&score))).collect()
}

pub(super) fn score_bits(text: &[u8]) -> u64 {
    let score: f64 = std::str::from_utf8(text).ok().and_then(|text| text.parse().ok()).unwrap_or(f64::NAN);
    // -0 and 0 are one score.
    if score == 0.0 { 0 } else { score.to_bits() }
}

/// Entries of a stream, in order.
pub(super) fn entries(a: &Value, b: &Value) -> Verdict {
    if a == b {
        return None;
    }
    let (a, b) = (a.as_array().unwrap_or_default(), b.as_array().unwrap_or_default());
    let odd = a.iter().zip(b).find(|(a, b)| a != b).map(|(entry, _)| entry);
    let id = odd.and_then(|entry| entry.as_array()?.first()?.as_str()).unwrap_or_default();
    value(if id.is_empty() {
        format!("{} entries against {}", a.len(), b.len())
    } else {
        format!("{} entries against {}, first that differs: {id}", a.len(), b.len())
    })
}

/// What a stream says of itself, as far as both servers tell it.
pub(super) fn stream_info(a: &Value, b: &Value) -> Verdict {
    for field in ["length", "last-generated-id", "max-deleted-entry-id", "entries-added"] {
        if let (Some(a), Some(b)) = (a.field(field), b.field(field))
            && a != b
        {
            let text = |value: &Value| match value {
                Value::Integer(number) => number.to_string(),
                other => other.as_str().unwrap_or("nil").to_owned(),
            };
            return value(format!("the stream's {field} is {} against {}", text(a), text(b)));
        }
    }
    None
}

/// Compares hashes, with the expiries of their fields where a server has such.
async fn field_expiries(
    pair: &mut Pair,
    keys: &[Bytes],
    mut hashes: Vec<Fields>,
    verdicts: &mut [Verdict],
) -> Result<()> {
    let ask = |link: &Link, side: fn(&Fields) -> &HashMap<Bytes, Bytes>| {
        let mut questions = Commands::default();
        for hash in hashes.iter().filter(|hash| link.can.field_expiry && !side(hash).is_empty()) {
            expiry_question(&mut questions, &keys[hash.at], side(hash).keys());
        }
        questions
    };
    let (for_a, for_b) = (ask(&pair.a, |hash| &hash.a), ask(&pair.b, |hash| &hash.b));
    let (answers_a, answers_b) = tokio::try_join!(pair.a.ask(&for_a), pair.b.ask(&for_b))?;
    let (mut answers_a, mut answers_b) = (answers_a.into_iter(), answers_b.into_iter());
    for hash in &mut hashes {
        let expire =
            |link: &Link, fields: &mut HashMap<Bytes, Bytes>, answers: &mut dyn Iterator<Item = Value>| {
                if !link.can.field_expiry || fields.is_empty() {
                    return HashMap::new();
                }
                let names: Vec<Bytes> = fields.keys().cloned().collect();
                let expiries = expiry_answer(link, names, answers.next());
                let now = now_ms();
                fields.retain(|field, _| expiries.get(field).is_none_or(|at| *at > now));
                expiries.into_iter().filter(|(_, at)| *at > now).collect::<HashMap<Bytes, u64>>()
            };
        let expiries_a = expire(&pair.a, &mut hash.a, &mut answers_a);
        let expiries_b = expire(&pair.b, &mut hash.b, &mut answers_b);
        verdicts[hash.at] = fields(&hash.a, &hash.b, &expiries_a, &expiries_b);
    }
    Ok(())
}

fn fields(
    a: &HashMap<Bytes, Bytes>,
    b: &HashMap<Bytes, Bytes>,
    expiries_a: &HashMap<Bytes, u64>,
    expiries_b: &HashMap<Bytes, u64>,
) -> Verdict {
    let odd = a.iter().find(|(field, value)| b.get(*field) != Some(*value)).map(|(field, _)| field);
    if odd.is_some() || a.len() != b.len() {
        return value(outnumbered("field", a.len(), b.len(), odd));
    }
    let odd = a.keys().find(|field| expiries_a.get(*field) != expiries_b.get(*field))?;
    let text = |at: Option<&u64>| at.map_or("never".to_owned(), |at| format!("at {at}"));
    Some((
        Kind::Expiry,
        format!(
            "field {:.80} expires {} on the first server, {} on the second (unix time in ms)",
            odd.escape_ascii(),
            text(expiries_a.get(odd)),
            text(expiries_b.get(odd))
        ),
    ))
}

pub(super) fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

/// `HPEXPIRETIME key FIELDS n field …`
pub(super) fn expiry_question<'a>(
    out: &mut Commands,
    key: &'a [u8],
    fields: impl ExactSizeIterator<Item = &'a Bytes>,
) {
    let count = fields.len().to_string();
    let mut args: Vec<&[u8]> = vec![b"HPEXPIRETIME", key, b"FIELDS", count.as_bytes()];
    args.extend(fields.map(|field| field.as_ref()));
    out.add(&args);
}

/// The true expiries of those fields that have one.
pub(super) fn expiry_answer(link: &Link, fields: Vec<Bytes>, answer: Option<Value>) -> HashMap<Bytes, u64> {
    let times = answer.and_then(Value::into_array).unwrap_or_default();
    fields
        .into_iter()
        .zip(times)
        .filter_map(|(field, at)| Some((field, link.true_field_expiry(u64::try_from(at.as_i64()?).ok()?))))
        .collect()
}

//! Compares some hundreds of keys of one db in a few round trips.
//!
//! 1. Both sides: expiry, size, and the type unless payloads will do.
//! 2. Small keys: `DUMP`, for as long as equal values give equal payloads.
//! 3. What is left: the type; small values whole, by type; large ones in chunks ([`large`]).

use std::sync::atomic::Ordering;
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;

use super::link::{Commands, Link};
use super::typed::{self, Type};
use super::{Difference, Kind, Pair, Shared, large};
use crate::error::Result;
use crate::mirror::Selection;
use crate::mirror::kinds::of_name;
use crate::resp::value::Value;
use crate::server::Clock;

/// Bytes of replies in one round trip, as far as sizes are known beforehand.
const ROUND_TRIP: u64 = 8 * 1024 * 1024;
/// Where sizes are known as numbers of elements only, more than this is large.
const MANY_ELEMENTS: i64 = 512;

/// What is known of one key on one side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Meta {
    present: bool,
    expires: Option<u64>,
    /// Bytes; `None` when the server cannot tell.
    size: Option<u64>,
}

/// What a comparison of some keys found.
#[derive(Debug, Default)]
pub(super) struct Compared {
    /// The keys that differ.
    pub(super) differences: Vec<Difference>,
    /// How many were compared: a filter may leave some out by their type.
    pub(super) keys: u64,
}

/// Compares keys of one db.
pub(super) async fn compare(pair: &mut Pair, db: u32, keys: &[Bytes], shared: &Shared) -> Result<Compared> {
    // What has no name on the other side cannot be there.
    if let Some(map) = &shared.options.map
        && let Some(nameless) = keys.iter().position(|key| map.place(db, key).is_err())
    {
        let why = map.place(db, &keys[nameless]).err().unwrap_or_default();
        let (named, others): (Vec<Bytes>, Vec<Bytes>) =
            keys.iter().cloned().partition(|key| map.place(db, key).is_ok());
        let mut found = match named.is_empty() {
            true => Compared::default(),
            false => Box::pin(compare(pair, db, &named, shared)).await?,
        };
        let missing = |key: &Bytes| difference(db, key, Kind::MissingOnB, why.clone());
        found.differences.extend(others.iter().map(missing));
        found.keys += others.len() as u64;
        return Ok(found);
    }
    tokio::try_join!(pair.a.select(db), pair.b.select(db))?;
    let (mut a, mut b) = tokio::try_join!(metas(&mut pair.a, keys), metas(&mut pair.b, keys))?;
    let mut left_out = 0;
    if let Some(select) = shared.options.select.as_ref().filter(|select| select.has_types()) {
        let there = |a: &[Meta], b: &[Meta]| a.iter().zip(b).filter(|(a, b)| a.present || b.present).count();
        let before = there(&a, &b);
        tokio::try_join!(
            leave_types_out(&mut pair.a, keys, &mut a, select),
            leave_types_out(&mut pair.b, keys, &mut b, select)
        )?;
        left_out = before - there(&a, &b);
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64);
    let alive = |meta: &Meta| meta.present && meta.expires.is_none_or(|at| at > now);

    let mut found = Vec::new();
    let mut found_in =
        |at: usize, kind: Kind, what: String| found.push(difference(db, &keys[at], kind, what));
    let mut both = Vec::with_capacity(keys.len());
    for at in 0..keys.len() {
        match (alive(&a[at]), alive(&b[at])) {
            (true, true) => both.push(at),
            (false, false) => {}
            (true, false) => {
                found_in(at, Kind::MissingOnB, "the key is missing on the second server".into());
            }
            (false, true) => {
                found_in(at, Kind::MissingOnA, "the key is missing on the first server".into());
            }
        }
    }

    let mut differing = vec![None; keys.len()];
    let mut rest: Vec<usize> = both.clone();
    let size = |at: usize| a[at].size.zip(b[at].size).map(|(a, b)| a.max(b));
    if shared.by_dump.load(Ordering::Relaxed) && pair.a.can.dump && pair.b.can.dump {
        let (small, other): (Vec<usize>, Vec<usize>) =
            rest.iter().copied().partition(|at| size(*at).is_some_and(|bytes| bytes <= shared.options.chunk));
        let tried = small.len();
        rest = other;
        for part in parts(small, size) {
            rest.extend(by_dump(pair, keys, part).await?);
        }
        let unequal: Vec<usize> = rest.iter().copied().filter(|at| size(*at).is_some()).collect();
        by_type(pair, keys, rest, &size, shared, &mut differing).await?;
        let only_payload = unequal.iter().filter(|at| differing[**at].is_none()).count();
        if tried >= 16 && only_payload * 2 > tried {
            shared.by_dump.store(false, Ordering::Relaxed);
        }
    } else {
        by_type(pair, keys, rest, &size, shared, &mut differing).await?;
    }

    let exact = pair.a.can.pexpiretime && pair.b.can.pexpiretime;
    let tolerance = if exact { 0 } else { shared.options.expiry_tolerance.as_millis() as u64 };
    for at in both {
        if let Some((kind, what)) = differing[at].take() {
            found_in(at, kind, what);
        } else if let Some(what) = expiries(a[at].expires, b[at].expires, tolerance) {
            found_in(at, Kind::Expiry, what);
        }
    }
    Ok(Compared { differences: found, keys: (keys.len() - left_out) as u64 })
}

pub(super) fn difference(db: u32, key: &Bytes, kind: Kind, what: String) -> Difference {
    Difference { db, key: key.escape_ascii().to_string(), kind, what, raw_key: key.clone() }
}

/// In words, in what two expiries differ.
fn expiries(a: Option<u64>, b: Option<u64>, tolerance: u64) -> Option<String> {
    match (a, b) {
        (Some(a), Some(b)) if a.abs_diff(b) <= tolerance => None,
        (Some(a), Some(b)) => {
            let (by, when) = (a.abs_diff(b), if b > a { "later" } else { "earlier" });
            Some(format!("it expires {by} ms {when} on the second server"))
        }
        (Some(_), None) => Some("it does not expire on the second server".into()),
        (None, Some(_)) => Some("it expires on the second server only".into()),
        (None, None) => None,
    }
}

/// Groups of keys whose replies fit a round trip.
fn parts(keys: Vec<usize>, size: impl Fn(usize) -> Option<u64>) -> Vec<Vec<usize>> {
    let mut parts = Vec::new();
    let mut part = Vec::new();
    let mut bytes = 0;
    for at in keys {
        let more = size(at).unwrap_or(ROUND_TRIP / 256);
        if bytes + more > ROUND_TRIP && !part.is_empty() {
            parts.push(std::mem::take(&mut part));
            bytes = 0;
        }
        bytes += more;
        part.push(at);
    }
    if !part.is_empty() {
        parts.push(part);
    }
    parts
}

async fn metas(link: &mut Link, keys: &[Bytes]) -> Result<Vec<Meta>> {
    let mut questions = Commands::default();
    let expiry: &[u8] = if link.can.pexpiretime { b"PEXPIRETIME" } else { b"PTTL" };
    questions.add(&[b"TIME"]);
    for key in keys {
        questions.add(&[expiry, key]);
        if link.can.memory_usage {
            questions.add(&[b"MEMORY", b"USAGE", key]);
        }
    }
    let mut answers = link.ask(&questions).await?.into_iter();
    let clock = answers.next().as_ref().and_then(Clock::read);
    let mut metas = Vec::with_capacity(keys.len());
    for _ in keys {
        let expiry = match answers.next() {
            Some(Value::Integer(number)) => number,
            Some(Value::Error(text)) => return Err(link.refused("PTTL", &text)),
            _ => return Err(link.odd("PTTL")),
        };
        let expires = match u64::try_from(expiry) {
            Ok(at) if link.can.pexpiretime => Some(at),
            // Told by a server before 7.0: relative to its clock, which was read a moment before.
            Ok(left) => Some(clock.unwrap_or(0) + left),
            Err(_) => None,
        };
        let size = if link.can.memory_usage { answers.next().and_then(|size| size.as_i64()) } else { None };
        metas.push(Meta {
            // PEXPIRETIME and PTTL: -2 without the key (2.6 says -1 too, but has no SCAN either).
            present: expiry != -2,
            expires: expires.map(|at| link.true_expiry(at)),
            size: size.and_then(|size| u64::try_from(size).ok()),
        });
    }
    Ok(metas)
}

/// A key of a type that is not compared counts as none.
async fn leave_types_out(
    link: &mut Link,
    keys: &[Bytes],
    metas: &mut [Meta],
    select: &Selection,
) -> Result<()> {
    let mut questions = Commands::default();
    for key in keys {
        questions.add(&[b"TYPE", key]);
    }
    for (meta, answer) in metas.iter_mut().zip(link.ask(&questions).await?) {
        // Without an answer a key would pass for one of a type that is left out.
        if let Value::Error(text) = &answer {
            return Err(link.refused("TYPE", text));
        }
        meta.present &= select.keeps_type(of_name(answer.as_str().unwrap_or_default()));
    }
    Ok(())
}

/// Those of the keys whose payloads are not the same.
async fn by_dump(pair: &mut Pair, keys: &[Bytes], part: Vec<usize>) -> Result<Vec<usize>> {
    let mut questions = Commands::default();
    for at in &part {
        questions.add(&[b"DUMP", &keys[*at]]);
    }
    let (a, b) = tokio::try_join!(pair.a.ask(&questions), pair.b.ask(&questions))?;
    let differs = |(at, (a, b)): (usize, (Value, Value))| match (&a, &b) {
        (Value::Bulk(a), Value::Bulk(b)) if typed::payload(a) == typed::payload(b) => None,
        _ => Some(at),
    };
    Ok(part.into_iter().zip(a.into_iter().zip(b)).filter_map(differs).collect())
}

type Verdicts = [Option<(Kind, String)>];

/// Compares keys by type and value.
async fn by_type(
    pair: &mut Pair,
    keys: &[Bytes],
    rest: Vec<usize>,
    size: &impl Fn(usize) -> Option<u64>,
    shared: &Shared,
    verdicts: &mut Verdicts,
) -> Result<()> {
    let mut questions = Commands::default();
    for at in &rest {
        questions.add(&[b"TYPE", &keys[*at]]);
    }
    let (a, b) = tokio::try_join!(pair.a.ask(&questions), pair.b.ask(&questions))?;
    let mut same: Vec<(usize, Type)> = Vec::new();
    for (at, (a, b)) in rest.into_iter().zip(a.into_iter().zip(b)) {
        for (link, answer) in [(&pair.a, &a), (&pair.b, &b)] {
            if let Value::Error(text) = answer {
                return Err(link.refused("TYPE", text));
            }
        }
        let (a, b) = (a.as_str().unwrap_or_default(), b.as_str().unwrap_or_default());
        if a == b {
            same.push((at, Type::named(a)));
        } else {
            verdicts[at] =
                Some((Kind::Type, format!("it is a {a} on the first server, a {b} on the second")));
        }
    }

    let unsized_keys: Vec<(usize, Type)> =
        same.iter().filter(|(at, _)| size(*at).is_none()).cloned().collect();
    let lengths = lengths(pair, keys, &unsized_keys).await?;
    let is_large = |at: usize| match size(at) {
        Some(bytes) => bytes > shared.options.chunk,
        None => lengths.iter().any(|(known, large)| *known == at && *large),
    };
    let (large, small): (Vec<_>, Vec<_>) =
        same.into_iter().partition(|(at, kind)| is_large(*at) || matches!(kind, Type::Vectors | Type::Array));
    let types: std::collections::HashMap<usize, Type> = small.iter().cloned().collect();
    for part in parts(small.into_iter().map(|(at, _)| at).collect(), size) {
        let part: Vec<(usize, Type)> = part.into_iter().map(|at| (at, types[&at].clone())).collect();
        typed::compare(pair, keys, &part, verdicts).await?;
    }
    for (at, kind) in large {
        let verdict = large::compare(pair, &keys[at], &kind, size(at), shared.options.chunk).await;
        verdicts[at] = large::settled(verdict)?;
    }
    Ok(())
}

/// Which keys are large, on servers that know no MEMORY USAGE.
async fn lengths(pair: &mut Pair, keys: &[Bytes], same: &[(usize, Type)]) -> Result<Vec<(usize, bool)>> {
    let mut questions = Commands::default();
    let mut asked = Vec::new();
    for (at, kind) in same {
        if let Some(command) = kind.length_command() {
            questions.add(&[command, &keys[*at]]);
            asked.push((*at, kind));
        }
    }
    let (a, b) = tokio::try_join!(pair.a.ask(&questions), pair.b.ask(&questions))?;
    Ok(asked
        .into_iter()
        .zip(a.iter().zip(&b))
        .map(|((at, kind), (a, b))| {
            let length = a.as_i64().unwrap_or(0).max(b.as_i64().unwrap_or(0));
            let most = if *kind == Type::String { 64 * 1024 } else { MANY_ELEMENTS };
            (at, length > most)
        })
        .collect())
}

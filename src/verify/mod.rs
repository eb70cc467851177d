//! Compares two servers key by key: by type, value and expiry, whatever the encodings.
//!
//! # What is compared
//!
//! Every key of every db on either side, and the function libraries. Values are compared as a client sees
//! them: strings and lists byte by byte and in order; sets and hashes without regard to order; scores as numbers;
//! streams with their entries, last id, groups, and the id and consumer of each pending entry; hash-field
//! expiries where a server has them. Expiries are compared to the millisecond where both servers tell them
//! as absolute times (7.0), else within a tolerance.
//!
//! # What is not
//!
//! Keys of the gateway itself (`crossfade:`), those that a filter leaves out, and those of `b` that have no name on `a`. Where keys have other names on
//! `b`, the report names them as on `a`; where the policy on letters leaves no way back, keys that only `b` has are not
//! found. Keys that are expired by their true expiry, also if the server still
//! holds them. Idle times, access counts, a group's `entries-read`, and delivery counts of pending entries:
//! replication itself does not carry them faithfully (a consumer that reads its own history again raises the
//! count on the primary alone).
//!
//! # How
//!
//! ```text
//! a: SCAN ──► batches of keys ──► workers, each with a connection to a and one to b ──┐
//! b: SCAN ──► EXISTS on a ──► keys that a does not have ─────────────────────────────┴─► suspects ─► rounds
//! ```
//! A worker asks both servers at once, some commands for each of hundreds of keys in one round trip. As long as
//! it pays, values are compared by their `DUMP` payload first, and read by type only where that differs.
//! What is large (by `MEMORY USAGE`, or by length before 4.0) is read in chunks: never a whole large value in
//! memory. While clients write, the two sides are read at different moments; so keys that differ are compared
//! again, after a pause, for as many rounds as asked, and only what still differs is reported.

mod batch;
mod large;
mod link;
mod newer;
mod typed;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{Mutex, mpsc};
use tokio::task::JoinSet;

use crate::error::{Error, Result, Side};
use crate::mirror::{Mapping, Selection};
use crate::resp::value::Value;
use crate::server::Endpoint;
use link::{Commands, Link, On};

/// How to compare.
#[derive(Debug, Clone)]
pub struct VerifyOptions {
    /// How often a key that differs is compared before it is reported; at least 1.
    pub rounds: u32,
    /// The pause before each further round.
    pub delay: Duration,
    /// About how many keys to compare, spread over the whole of the data; `None`: all.
    pub sample: Option<u64>,
    /// What is compared, by the names on `a`; all of it where there is none.
    pub select: Option<Arc<Selection>>,
    /// What names on `a` are on `b`; where there is none, they are the same. What has no name on `a` is not compared.
    pub map: Option<Arc<Mapping>>,
    /// Expiries on `b` are stored padded, because a mirror is writing there (see [`crate::mirror`]).
    pub padded: bool,
    /// How far expiries may lie apart where a server cannot tell them as absolute times.
    pub expiry_tolerance: Duration,
    /// Keys in one round trip.
    pub batch: usize,
    /// Above this many bytes a value is read in chunks of about this size.
    pub chunk: u64,
    /// Pairs of connections that compare at the same time.
    pub connections: usize,
    /// For connecting, and for each round trip.
    pub timeout: Duration,
    /// Differences that the report lists; the others are only counted.
    pub listed: usize,
    /// Counts the keys that were compared, while it goes on.
    pub progress: Option<Arc<AtomicU64>>,
}

impl Default for VerifyOptions {
    fn default() -> Self {
        Self {
            rounds: 3,
            delay: Duration::from_millis(500),
            sample: None,
            select: None,
            map: None,
            padded: false,
            expiry_tolerance: Duration::from_secs(1),
            batch: 500,
            chunk: 256 * 1024,
            connections: 2,
            timeout: Duration::from_secs(30),
            listed: 100,
            progress: None,
        }
    }
}

/// What a comparison found.
#[derive(Debug, Clone, Default, serde::Serialize, serde::Deserialize)]
pub struct Report {
    /// Keys seen on `a`, those of the gateway left out.
    pub keys_a: u64,
    /// Keys seen on `b`, those of the gateway left out.
    pub keys_b: u64,
    /// Keys that were compared.
    pub compared: u64,
    /// Keys and libraries that differ.
    pub difference_count: u64,
    /// The first of them.
    pub differences: Vec<Difference>,
    /// Keys that were copied anew, when that was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub repaired: Option<u64>,
    /// Differences that were left after that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub left: Option<u64>,
    /// Rounds that it took.
    pub rounds: u32,
    /// How long it took.
    pub seconds: f64,
}

/// One key, or function library, that differs.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Difference {
    /// The db of the key.
    pub db: u32,
    /// The key, what is not printable as `\xHH`.
    pub key: String,
    /// In what it differs.
    pub kind: Kind,
    /// The difference in words.
    pub what: String,
    /// The key as it is.
    #[serde(skip)]
    pub raw_key: Bytes,
}

/// In what two keys differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// `a` does not have it.
    MissingOnA,
    /// `b` does not have it.
    MissingOnB,
    /// It is of another type.
    Type,
    /// Its value.
    Value,
    /// Its expiry, or that of a hash field.
    Expiry,
    /// A function library.
    Library,
}

/// Keys that a later round compares again; what is beyond is reported as it was found first.
const MOST_SUSPECTS: usize = 100_000;

/// What the workers share.
struct Shared {
    options: VerifyOptions,
    /// Cleared when most payloads differ: other versions serialize otherwise.
    by_dump: AtomicBool,
    compared: AtomicU64,
}

type Keys = (u32, Vec<Bytes>);
type Suspects = BTreeMap<(u32, Bytes), Option<Difference>>;

/// Compares all of `a` with all of `b`, from wherever the endpoints' own dbs point.
///
/// # Errors
/// A server could not be reached, or refuses a command that cannot be done without (SCAN, TYPE, reads).
pub async fn compare(a: &Endpoint, b: &Endpoint, options: VerifyOptions) -> Result<Report> {
    let started = std::time::Instant::now();
    let shared = Arc::new(Shared { by_dump: AtomicBool::new(true), compared: AtomicU64::new(0), options });
    let mut left = Link::open(a, &shared.options, On::A).await?;
    let mut right = Link::open(b, &shared.options, On::B).await?;
    let mut report = Report::default();

    let dbs = {
        let (a, b) = tokio::try_join!(left.dbs(), right.dbs())?;
        let mut dbs: BTreeMap<u32, (u64, u64)> = BTreeMap::new();
        a.into_iter().for_each(|(db, keys)| dbs.entry(db).or_default().0 = keys);
        b.into_iter().for_each(|(db, keys)| dbs.entry(db).or_default().1 = keys);
        dbs
    };
    let stride = |total: u64| shared.options.sample.map_or(1, |sample| total.div_ceil(sample.max(1)).max(1));
    let stride_a = stride(dbs.values().map(|(keys, _)| keys).sum());
    let stride_b = stride(dbs.values().map(|(_, keys)| keys).sum());
    let select = shared.options.select.clone();
    let keeps = |db: &u32| select.as_ref().is_none_or(|select| select.keeps_db(*db));
    let dbs: Vec<u32> = dbs.into_keys().filter(keeps).collect();

    // Round 1: everything. Its tasks end with the set: dropping this future stops them.
    let suspects = Arc::new(Mutex::new(Found::default()));
    let mut tasks: JoinSet<Result<()>> = JoinSet::new();
    let (send, receive) = mpsc::channel::<Keys>(4);
    let receive = Arc::new(Mutex::new(receive));
    for _ in 0..shared.options.connections.max(1) {
        let mut pair = open_pair(a, b, &shared.options).await?;
        let (shared, receive, suspects) = (shared.clone(), receive.clone(), suspects.clone());
        tasks.spawn(async move {
            loop {
                let next = receive.lock().await.recv().await;
                let Some((db, keys)) = next else { return Ok(()) };
                let batch::Compared { differences, keys: count } =
                    batch::compare(&mut pair, db, &keys, &shared).await?;
                shared.compared.fetch_add(count, Ordering::Relaxed);
                if let Some(progress) = &shared.options.progress {
                    progress.fetch_add(count, Ordering::Relaxed);
                }
                suspects.lock().await.add(differences);
            }
        });
    }
    let (keys_a, keys_b) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    {
        let mut scanner = left;
        let (count, dbs, batch) = (keys_a.clone(), dbs.clone(), shared.options.batch);
        let select = shared.options.select.clone();
        tasks.spawn(async move {
            for db in dbs {
                let mut scan = Scan::new(db, stride_a);
                while let Some(keys) = scan.next(&mut scanner, batch, select.as_deref()).await? {
                    count.fetch_add(scan.seen, Ordering::Relaxed);
                    if !keys.is_empty() && send.send((db, keys)).await.is_err() {
                        // The workers are gone: one of them has the error.
                        return Ok(());
                    }
                }
            }
            Ok(())
        });
    }
    {
        let mut scanner = right;
        let mut asker = Link::open(a, &shared.options, On::A).await?;
        let (count, suspects, batch) = (keys_b.clone(), suspects.clone(), shared.options.batch);
        let (select, map) = (shared.options.select.clone(), shared.options.map.clone());
        tasks.spawn(async move {
            let map = map.as_deref();
            for db in dbs.into_iter().filter(|db| map.is_none_or(|map| map.db(*db).is_ok())) {
                let mut scan = Scan::new(db, stride_b);
                while let Some(keys) = scan.next(&mut scanner, batch, select.as_deref()).await? {
                    count.fetch_add(scan.seen, Ordering::Relaxed);
                    let missing = missing(&mut asker, db, keys).await?;
                    suspects.lock().await.add_unjudged(db, missing);
                }
            }
            Ok(())
        });
    }
    while let Some(ended) = tasks.join_next().await {
        match ended {
            Ok(outcome) => outcome?,
            Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            Err(error) => {
                return Err(Error::new(Side::Gateway, "the verification was stopped").because(error));
            }
        }
    }

    // Further rounds: what differed, until nothing does or the rounds are over.
    let Found { mut suspects, beyond } = std::mem::take(&mut *suspects.lock().await);
    let mut pair = open_pair(a, b, &shared.options).await?;
    report.rounds = 1;
    let unjudged: Suspects = {
        let (unjudged, judged) = suspects.into_iter().partition(|(_, found)| found.is_none());
        suspects = judged;
        unjudged
    };
    if !unjudged.is_empty() {
        let judged = again(&mut pair, &unjudged, &shared).await?;
        suspects.extend(judged);
    }
    suspects = settle(&mut pair, suspects, &shared, &mut report.rounds).await?;
    let libraries = libraries(&mut pair).await?;

    report.keys_a = keys_a.load(Ordering::Relaxed);
    report.keys_b = keys_b.load(Ordering::Relaxed);
    report.compared = shared.compared.load(Ordering::Relaxed);
    report.difference_count = suspects.len() as u64 + beyond + libraries.len() as u64;
    report.differences = libraries.into_iter().chain(suspects.into_values().flatten()).collect();
    report.differences.truncate(shared.options.listed);
    report.seconds = started.elapsed().as_secs_f64();
    Ok(report)
}

/// Compares only these keys, for as many rounds as for all of them; answers how many differ.
///
/// # Errors
/// As [`compare`].
pub async fn compare_keys<'a>(
    a: &Endpoint,
    b: &Endpoint,
    options: VerifyOptions,
    keys: impl Iterator<Item = &'a Difference>,
) -> Result<u64> {
    let shared = Shared { by_dump: AtomicBool::new(true), compared: AtomicU64::new(0), options };
    let suspects: Suspects = keys.map(|found| ((found.db, found.raw_key.clone()), None)).collect();
    let mut pair = open_pair(a, b, &shared.options).await?;
    let suspects = again(&mut pair, &suspects, &shared).await?;
    Ok(settle(&mut pair, suspects, &shared, &mut 1).await?.len() as u64)
}

/// Compares suspects again until none differs or the rounds are over.
async fn settle(
    pair: &mut Pair,
    mut suspects: Suspects,
    shared: &Shared,
    round: &mut u32,
) -> Result<Suspects> {
    while !suspects.is_empty() && *round < shared.options.rounds {
        tokio::time::sleep(shared.options.delay).await;
        suspects = again(pair, &suspects, shared).await?;
        *round += 1;
    }
    Ok(suspects)
}

/// A connection to either server.
pub(crate) struct Pair {
    pub(crate) a: Link,
    pub(crate) b: Link,
}

impl Pair {
    /// One command on both. Both answers are waited for, also when one is an error: the connections go on to be used.
    async fn one(&mut self, args: &[&[u8]]) -> Result<(Value, Value)> {
        let (a, b) = tokio::join!(self.a.one(args), self.b.one(args));
        Ok((a?, b?))
    }
}

async fn open_pair(a: &Endpoint, b: &Endpoint, options: &VerifyOptions) -> Result<Pair> {
    let (a, b) = tokio::try_join!(Link::open(a, options, On::A), Link::open(b, options, On::B))?;
    Ok(Pair { a, b })
}

/// What round 1 found.
#[derive(Default)]
struct Found {
    suspects: Suspects,
    beyond: u64,
}

impl Found {
    fn add(&mut self, found: Vec<Difference>) {
        for difference in found {
            let key = (difference.db, difference.raw_key.clone());
            if self.suspects.len() < MOST_SUSPECTS || self.suspects.contains_key(&key) {
                self.suspects.insert(key, Some(difference));
            } else {
                self.beyond += 1;
            }
        }
    }

    fn add_unjudged(&mut self, db: u32, keys: Vec<Bytes>) {
        for key in keys {
            if self.suspects.len() < MOST_SUSPECTS {
                self.suspects.entry((db, key)).or_insert(None);
            } else {
                self.beyond += 1;
            }
        }
    }
}

/// Compares suspects once more, and answers those that still differ.
async fn again(pair: &mut Pair, suspects: &Suspects, shared: &Shared) -> Result<Suspects> {
    let mut by_db: BTreeMap<u32, Vec<Bytes>> = BTreeMap::new();
    for (db, key) in suspects.keys() {
        by_db.entry(*db).or_default().push(key.clone());
    }
    let mut found = Found::default();
    for (db, keys) in by_db {
        for keys in keys.chunks(shared.options.batch.max(1)) {
            found.add(batch::compare(pair, db, keys, shared).await?.differences);
        }
    }
    Ok(found.suspects)
}

/// A walk over one db.
struct Scan {
    db: u32,
    cursor: Option<Bytes>,
    /// Keys that the last step saw.
    seen: u64,
    /// One key of so many is taken.
    stride: u64,
    turn: u64,
}

impl Scan {
    fn new(db: u32, stride: u64) -> Self {
        Self { db, cursor: Some(Bytes::from_static(b"0")), seen: 0, stride, turn: 0 }
    }

    /// The next keys; they may be none. `None`: the walk is over.
    async fn next(
        &mut self,
        link: &mut Link,
        batch: usize,
        select: Option<&Selection>,
    ) -> Result<Option<Vec<Bytes>>> {
        let Some(cursor) = self.cursor.take() else { return Ok(None) };
        link.select(self.db).await?;
        let count = batch.to_string();
        let mut reply =
            link.one(&[b"SCAN", &cursor, b"COUNT", count.as_bytes()]).await?.into_array().unwrap_or_default();
        let (Some(keys), Some(Value::Bulk(next))) = (reply.pop().and_then(Value::into_array), reply.pop())
        else {
            return Err(link.odd("SCAN"));
        };
        self.cursor = (next.as_ref() != b"0").then_some(next);
        self.seen = 0;
        // A set: while a table grows or shrinks, SCAN may give a key more than once.
        let mut taken = BTreeSet::new();
        for key in keys {
            let Value::Bulk(key) = key else { continue };
            let Some(key) = link.named_on_a(key) else { continue };
            if key.starts_with(b"crossfade:") || select.is_some_and(|select| !select.keeps(self.db, &key)) {
                continue;
            }
            self.seen += 1;
            if self.turn == 0 {
                taken.insert(key);
            }
            self.turn = (self.turn + 1) % self.stride;
        }
        Ok(Some(taken.into_iter().collect()))
    }
}

/// Those of the keys that the server does not have.
async fn missing(link: &mut Link, db: u32, mut keys: Vec<Bytes>) -> Result<Vec<Bytes>> {
    if keys.is_empty() {
        return Ok(keys);
    }
    link.select(db).await?;
    // Many keys at once since 3.0.3; before, an error or the first key alone: then the answer is too small.
    let mut args: Vec<&[u8]> = vec![b"EXISTS"];
    args.extend(keys.iter().map(|key| key.as_ref()));
    let mut question = Commands::default();
    question.add(&args);
    let answer = link.ask(&question).await?;
    if answer.first().and_then(Value::as_i64) == Some(keys.len() as i64) {
        return Ok(Vec::new());
    }
    let mut questions = Commands::default();
    for key in &keys {
        questions.add(&[b"EXISTS", key]);
    }
    let answers = link.ask(&questions).await?;
    let mut answers = answers.iter();
    keys.retain(|_| answers.next().and_then(Value::as_i64) != Some(1));
    Ok(keys)
}

/// Function libraries of both sides, by name and code.
async fn libraries(pair: &mut Pair) -> Result<Vec<Difference>> {
    let (a, b) = tokio::try_join!(pair.a.libraries(), pair.b.libraries())?;
    let names: BTreeSet<&String> = a.keys().chain(b.keys()).collect();
    let mut found = Vec::new();
    for name in names {
        let what = match (a.get(name), b.get(name)) {
            (Some(code), Some(other)) if code == other => continue,
            (Some(_), Some(_)) => "the library's code differs",
            (Some(_), None) => "the library is missing on the second server",
            _ => "the library is missing on the first server",
        };
        found.push(Difference {
            db: 0,
            key: name.clone(),
            kind: Kind::Library,
            what: what.to_owned(),
            raw_key: Bytes::new(),
        });
    }
    Ok(found)
}

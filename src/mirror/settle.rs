//! Makes the destination's expiries exact before a switch, and pads them again if it does not come.
//!
//! A sweep goes over all keys that have an expiry, in small slices between two batches of the stream. The applier is
//! the only writer and has no batch on its way during a slice, so reading an expiry and writing it is one step.
//!
//! ```text
//! settle         new expiries of the stream: exact if further away than the sweep takes, else padded and remembered ("near")
//!                the sweep does the same with those that are there
//!                the near ones once more: exact if further away than CLOSE; from now on CLOSE also for the stream
//! settle_last    inside the pause: the near ones, all of them
//! pad            new expiries of the stream are padded; then the exact ones that come due within a minute; then a sweep, and
//!                what a RENAME or COPY may have taken past it
//! ```
//! Between settle and settle_last no exact expiry can come due for CLOSE, in which time the switch happens; if it does
//! not, they are padded again by themselves after [`HOLDS`]. So at no time does the destination remove a key that the
//! source still has.

mod asking;
mod fields;

use std::borrow::Cow;
use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

use self::asking::Asking;
use super::SettleReport;
use super::batch::Collector;
use super::expiry::{is_padded, padded, true_expiry};
use super::kinds::of_name;
use super::map::Mapping;
use super::select::Selection;
use super::transform::{Mode, NotYet, Place, Transform, is_own, select, swapped};
use crate::error::{Error, Result};
use crate::resp::value::Value;
use crate::resp::write;
use crate::server::{Client, Clock, Info};

pub use fields::settle_all as settle_all_fields;

/// Expiries nearer than this are not made exact by the first round, and more where there are many keys: it covers the time that a
/// sweep takes.
const FAR: Duration = Duration::from_secs(60);
/// What a slice is reckoned with, besides four round trips; a sweep that is slower is given up in time.
const PER_SLICE: Duration = Duration::from_millis(10);
/// The longest time that is reckoned with for all of them.
const LONGEST: Duration = Duration::from_secs(300);
/// Expiries nearer than this are left for the very last.
const CLOSE: Duration = Duration::from_secs(12);
/// What is left of [`CLOSE`] at least when the second round is over: the time for a switch.
const LEFT: Duration = Duration::from_secs(3);
/// How long expiries stay settled while nobody asks for the last step.
pub const HOLDS: Duration = Duration::from_secs(10);
/// How long they stay exact after the last step, if the mirror is not stopped.
pub const HOLDS_LAST: Duration = Duration::from_secs(60);

/// Keys looked at in one slice.
const SLICE: usize = 500;

/// Which keys of the server that is written to are the mirror's: it may hold others.
#[derive(Debug)]
pub struct Ours<'a> {
    /// What is copied, by the names of the stream.
    pub select: Option<&'a Selection>,
    /// What these names are on the server that is written to.
    pub map: Option<&'a Mapping>,
}

impl Ours<'_> {
    fn has(&self, place: &Place) -> bool {
        let origin = match self.map {
            None => Cow::Borrowed(place),
            // Nothing leads back from those.
            Some(map) if map.merges() => return true,
            Some(map) => match map.origin(place) {
                Some(origin) => Cow::Owned(origin),
                None => return false,
            },
        };
        self.select.is_none_or(|select| select.keeps(origin.0, &origin.1))
    }

    /// Those of the keys whose values are of a type that is copied. The server is asked where that is not any type.
    async fn of_our_types(&self, client: &mut Client, places: Vec<Place>) -> Result<Vec<Place>> {
        let Some(filter) = self.select.filter(|filter| filter.has_types()) else { return Ok(places) };
        let mut ask = Asking::default();
        for (db, key) in &places {
            ask.add(*db, &[b"TYPE", key]);
        }
        let answers = ask.answers(client, "TYPE").await?.into_iter();
        let kept = |kind: Option<Value>| {
            filter.keeps_type(of_name(kind.as_ref().and_then(Value::as_str).unwrap_or_default()))
        };
        Ok(places.into_iter().zip(answers).filter_map(|(place, kind)| kept(kind).then_some(place)).collect())
    }
}

/// What a sweep does to the expiries that it finds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Aim {
    /// Padded ones become exact if they lie further away than this; nearer ones are remembered.
    Exact { beyond_ms: u64 },
    /// Exact ones become padded.
    Pad,
}

/// A sweep that is under way.
#[derive(Debug)]
pub struct Sweep {
    aim: Aim,
    /// Whether the dbs are listed that are to be looked at. Only what is applied can be seen there.
    listed: bool,
    /// Keys that come before everything else.
    first: Vec<Place>,
    /// Dbs that are still to be scanned; the front one from `cursor` on.
    dbs: VecDeque<u32>,
    cursor: Vec<u8>,
    /// Nothing is looked at before the stream is applied up to here.
    behind: u64,
    /// Since when the near keys have their second round.
    again: Option<Instant>,
    fields: fields::Rest,
    report: SettleReport,
    begun: Instant,
}

impl Sweep {
    /// Begins to make expiries exact.
    ///
    /// # Errors
    /// The destination does not answer.
    pub async fn settle(client: &mut Client, collector: &mut Collector) -> Result<Self> {
        let asked = Instant::now();
        let info = client.info("keyspace").await?;
        let per_slice = asked.elapsed() * 4 + PER_SLICE;
        let keys: u64 = info.keyspace().iter().map(|space| space.keys).sum();
        let slices = u32::try_from(keys / SLICE as u64).unwrap_or(u32::MAX);
        let window = FAR + per_slice.saturating_mul(slices).min(LONGEST);
        let window_ms = window.as_millis() as u64;
        let transform = collector.transform();
        transform.set_mode(Mode::Settling { window_ms });
        // Padding them again would take as long once more.
        transform.set_soon(2 * window_ms);
        Ok(Self::begin(&info, collector, Aim::Exact { beyond_ms: window_ms }))
    }

    /// Begins to pad expiries.
    ///
    /// # Errors
    /// The destination does not answer.
    pub async fn pad(client: &mut Client, collector: &mut Collector) -> Result<Self> {
        let info = client.info("keyspace").await?;
        let transform = collector.transform();
        transform.set_mode(Mode::Padded);
        transform.set_mixed(true);
        transform.all_soon();
        Ok(Self::begin(&info, collector, Aim::Pad))
    }

    fn begin(info: &Info, collector: &mut Collector, aim: Aim) -> Self {
        collector.freeze(false);
        let behind = collector.read_to();
        if info.keyspace().iter().any(|space| space.field_expires > 0) {
            // From now on what carries fields to another key is remembered. Those of the stream tell by themselves.
            collector.transform().expects_field_expiries();
        }
        Self {
            aim,
            listed: false,
            first: Vec::new(),
            dbs: VecDeque::new(),
            cursor: b"0".to_vec(),
            again: None,
            fields: fields::Rest::default(),
            behind,
            report: SettleReport::default(),
            begun: Instant::now(),
        }
    }

    /// Takes down what is to be looked at. Everything is applied that was collected under other rules, and no databases are about to
    /// change places.
    async fn list(&mut self, client: &mut Client, transform: &mut Transform) -> Result<()> {
        let info = client.info("keyspace").await?;
        let spaces = info.keyspace().into_iter().filter(|space| space.expires > 0);
        self.dbs = spaces.map(|space| space.db).collect();
        let mut fields = Vec::new();
        if self.aim == Aim::Pad {
            self.first = std::mem::take(transform.soon()).into_iter().collect();
            fields = std::mem::take(transform.soon_fields()).into_iter().collect();
        }
        self.fields = fields::Rest::new(&info, fields);
        self.listed = true;
        Ok(())
    }

    /// Until when no exact expiry comes due, once all are settled.
    pub fn holds_until(&self) -> Instant {
        let now = Instant::now();
        (self.again.unwrap_or(now) + CLOSE).min(now + HOLDS)
    }

    /// Whether it takes so long that something that was made exact could come due before the switch.
    pub fn is_late(&self) -> bool {
        match (self.aim, self.again) {
            (Aim::Pad, _) => false,
            (Aim::Exact { beyond_ms }, None) => {
                self.begun.elapsed() + CLOSE > Duration::from_millis(beyond_ms)
            }
            (Aim::Exact { .. }, Some(since)) => since.elapsed() + LEFT > CLOSE,
        }
    }

    /// Whether everything is applied that was collected when the sweep, or its present part, began: until then a key that was written
    /// under other rules may yet appear in a part that was looked at.
    pub fn is_ready(&self, applied: u64) -> bool {
        applied >= self.behind
    }

    /// Databases have changed places: what is still to be looked at is in the other one.
    fn swap(&mut self, one: u32, two: u32) {
        let other = |db: &mut u32| *db = swapped(*db, one, two);
        self.first.iter_mut().for_each(|(db, _)| other(db));
        self.dbs.iter_mut().for_each(other);
        self.fields.swap(other);
    }

    /// Whether it makes expiries exact.
    pub fn is_settling(&self) -> bool {
        self.aim != Aim::Pad
    }

    /// Does a slice of the work; the report when that was the last one. No batch may be on its way.
    ///
    /// # Errors
    /// The destination does not answer, or refuses; the sweep has to begin again.
    pub async fn slice(
        &mut self,
        client: &mut Client,
        collector: &mut Collector,
        applied: u64,
        ours: &Ours<'_>,
        exact_time: bool,
    ) -> Result<Option<SettleReport>> {
        let collected = collector.read_to();
        let transform = collector.transform();
        loop {
            match transform.take_swap(applied) {
                Ok(Some((one, two))) => self.swap(one, two),
                Ok(None) => break,
                Err(NotYet) => self.behind = self.behind.max(applied + 1),
            }
            if !self.is_ready(applied) {
                return Ok(None);
            }
        }
        if !self.is_ready(applied) {
            return Ok(None);
        }
        if !self.listed {
            self.list(client, transform).await?;
            return Ok(None);
        }
        if !self.first.is_empty() {
            let rest = self.first.len().saturating_sub(SLICE);
            let places = self.first.split_off(rest);
            let places = ours.of_our_types(client, places).await?;
            self.visit(client, transform, places, exact_time).await?;
            return Ok(None);
        }
        if !self.fields.first.is_empty() {
            self.slice_of_fields(client, transform, ours).await?;
            return Ok(None);
        }
        if let Some(&db) = self.dbs.front() {
            let keys = self.scan(client, db).await?;
            let places = keys.into_iter().map(|key| (db, key)).filter(|place| ours.has(place)).collect();
            let places = ours.of_our_types(client, places).await?;
            self.visit(client, transform, places, exact_time).await?;
            return Ok(None);
        }
        if self.slice_of_fields(client, transform, ours).await? {
            return Ok(None);
        }
        if self.is_settling() && self.again.is_none() {
            self.again = Some(Instant::now());
            let close_ms = CLOSE.as_millis() as u64;
            self.aim = Aim::Exact { beyond_ms: close_ms };
            transform.set_mode(Mode::Settling { window_ms: close_ms });
            self.first = std::mem::take(transform.near()).into_iter().collect();
            self.fields.first = std::mem::take(transform.near_fields()).into_iter().collect();
            self.behind = collected;
            return Ok(None);
        }
        if !self.is_settling() {
            // What came to another key meanwhile may have left the part that was still to be looked at. Nothing comes while that is done.
            if !collector.freeze(true) {
                // Not before the end of the transaction that is open.
                self.behind = collected + 1;
                return Ok(None);
            }
            let collected = collector.read_to();
            let transform = collector.transform();
            self.first = std::mem::take(transform.near()).into_iter().collect();
            self.fields.first = std::mem::take(transform.near_fields()).into_iter().collect();
            if !self.first.is_empty() || !self.fields.first.is_empty() {
                self.behind = collected;
                return Ok(None);
            }
            transform.set_mixed(false);
            collector.freeze(false);
        }
        let transform = collector.transform();
        self.report.near = (transform.near().len() + transform.near_fields().len()) as u64;
        self.report.seconds = self.begun.elapsed().as_secs_f64();
        Ok(Some(self.report))
    }

    async fn scan(&mut self, client: &mut Client, db: u32) -> Result<Vec<Box<[u8]>>> {
        let mut out = Vec::new();
        select(db, &mut out);
        write::command(&mut out, &[b"SCAN", self.cursor.as_slice(), b"COUNT", SLICE.to_string().as_bytes()]);
        let (cursor, mut keys) = scanned(client, &out).await?;
        self.cursor = cursor;
        if self.cursor == b"0" {
            self.dbs.pop_front();
        }
        keys.retain(|key| !is_own(key));
        Ok(keys)
    }

    async fn visit(
        &mut self,
        client: &mut Client,
        transform: &mut Transform,
        places: Vec<Place>,
        exact_time: bool,
    ) -> Result<()> {
        self.report.keys += places.len() as u64;
        let stored = expiries(client, &places, exact_time).await?;
        let mut changes = Vec::new();
        for (place, stored_ms) in places.into_iter().zip(stored) {
            let Some(stored_ms) = stored_ms else { continue };
            let at_ms = true_expiry(stored_ms);
            match self.aim {
                Aim::Pad if padded(stored_ms) != stored_ms => changes.push((place, padded(stored_ms))),
                Aim::Pad => {}
                Aim::Exact { beyond_ms } if is_padded(stored_ms) => {
                    if transform.comes_within(at_ms, beyond_ms) {
                        transform.near().insert(place);
                        continue;
                    }
                    if transform.is_soon(at_ms) {
                        transform.soon().insert(place.clone());
                    }
                    self.report.exact += 1;
                    changes.push((place, at_ms));
                }
                // Exact already, from the stream or from an earlier call.
                Aim::Exact { .. } => {
                    if transform.is_soon(at_ms) {
                        transform.soon().insert(place);
                    }
                }
            }
        }
        set_expiries(client, &changes).await
    }
}

/// SELECT and SCAN: the next cursor, and the keys.
async fn scanned(client: &mut Client, out: &[u8]) -> Result<(Vec<u8>, Vec<Box<[u8]>>)> {
    let mut replies = client.pipeline(out, 2).await?.into_iter();
    refused(client, replies.next(), "SELECT")?;
    let scanned = refused(client, replies.next(), "SCAN")?.into_array().unwrap_or_default();
    let [cursor, keys] = <[Value; 2]>::try_from(scanned)
        .map_err(|_| Error::new(client.side(), "SCAN did not answer as SCAN does"))?;
    let keys = keys.into_array().unwrap_or_default();
    let keys = keys.iter().filter_map(Value::as_bytes).map(Into::into).collect();
    Ok((cursor.as_bytes().unwrap_or(b"0").to_vec(), keys))
}

/// Makes the expiries exact that [`Sweep`] left over.
///
/// # Errors
/// The destination does not answer, or refuses.
pub async fn settle_last(client: &mut Client, transform: &mut Transform, exact_time: bool) -> Result<()> {
    fields::settle_last(client, transform.near_fields()).await?;
    let near = transform.near();
    // Kept until all is done: after an error the same call can come again.
    let places: Vec<Place> = near.iter().cloned().collect();
    for places in places.chunks(20_000) {
        let stored = expiries(client, places, exact_time).await?;
        let changes: Vec<(Place, u64)> = places
            .iter()
            .zip(stored)
            .filter_map(|(place, stored)| {
                stored.filter(|ms| is_padded(*ms)).map(|ms| (place.clone(), true_expiry(ms)))
            })
            .collect();
        // One that is due already is deleted by this, as the source would have done.
        set_expiries(client, &changes).await?;
    }
    near.clear();
    Ok(())
}

/// The stored expiries of keys, in milliseconds; `None` for keys without one and for keys that are not there.
async fn expiries(client: &mut Client, places: &[Place], exact_time: bool) -> Result<Vec<Option<u64>>> {
    if places.is_empty() {
        return Ok(Vec::new());
    }
    let mut ask = Asking::default();
    let name = if exact_time { &b"PEXPIRETIME"[..] } else { b"PTTL" };
    if let (false, Some((db, _))) = (exact_time, places.first()) {
        ask.add(*db, &[b"TIME"]);
    }
    for (db, key) in places {
        ask.add(*db, &[name, key]);
    }
    let mut answers = ask.answers(client, "PEXPIRETIME").await?.into_iter();
    let mut base = 0;
    if !exact_time {
        let time = answers.next().flatten().as_ref().and_then(Clock::read);
        base = time.ok_or_else(|| Error::new(client.side(), "TIME did not answer as TIME does"))?;
    }
    // -1: no expiry; -2: no key.
    let ms = |answer: Option<Value>| u64::try_from(answer?.as_i64()?).ok();
    Ok(answers.map(|answer| Some(base + ms(answer)?)).collect())
}

async fn set_expiries(client: &mut Client, changes: &[(Place, u64)]) -> Result<()> {
    let mut ask = Asking::default();
    for ((db, key), ms) in changes {
        let mut number = itoa::Buffer::new();
        ask.add(*db, &[b"PEXPIREAT", key, number.format(*ms).as_bytes()]);
    }
    ask.answers(client, "PEXPIREAT").await.map(drop)
}

fn refused(client: &Client, reply: Option<Value>, command: &str) -> Result<Value> {
    match reply {
        Some(Value::Error(text)) => {
            let text = String::from_utf8_lossy(&text);
            let message = format!("{command} was refused: {text}");
            Err(if crate::server::passes(&text) {
                Error::passing(client.side(), message)
            } else {
                Error::new(client.side(), message)
            })
        }
        Some(value) => Ok(value),
        None => Err(Error::passing(client.side(), "a reply is missing")),
    }
}

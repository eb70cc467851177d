//! The expiries of hashes' fields, made exact and padded as those of keys are. A server tells which of its dbs have such hashes
//! (`subexpiry` of INFO; `keys_with_volatile_items` in Valkey), but not which ones these are: every hash of the db is asked how it is stored
//! (a `listpack` has no expiries), and what may have some is read field by field, a bounded number in one slice.

use std::collections::{HashMap, HashSet, VecDeque};

use super::asking::Asking;
use super::{Aim, Ours, Sweep};
use crate::config::ValueType;
use crate::error::{Error, Result};
use crate::mirror::expiry::{field_padded, is_field_padded, true_field_expiry};
use crate::mirror::transform::{Field, Place, Transform, is_own, select};
use crate::resp::value::Value;
use crate::resp::write;
use crate::server::{Client, Info};

/// Fields that one slice looks at, about.
const FIELDS: usize = 4_000;
/// Fields that one HSCAN is asked for.
const PAGE: usize = 500;
/// Keys that one SCAN is asked for.
const KEYS: usize = 500;
/// Hashes that one slice looks into at most.
const HASHES: usize = 500;

/// What is still to be looked at.
#[derive(Debug, Default)]
pub(super) struct Rest {
    /// Fields that come before everything else.
    pub(super) first: Vec<Field>,
    /// Dbs with hashes whose fields expire; the front one from `cursor` on.
    dbs: VecDeque<u32>,
    cursor: Vec<u8>,
    /// Hashes that may have such fields, and how far each was read.
    hashes: VecDeque<Reading>,
}

#[derive(Debug)]
struct Reading {
    hash: Place,
    cursor: Vec<u8>,
    /// How many fields the next page may have.
    page: usize,
}

/// Fields of a hash, by their names.
type Named = (Place, Vec<Box<[u8]>>);

/// A field with the expiry that is stored for it.
struct Stored {
    hash: Place,
    name: Box<[u8]>,
    at_ms: u64,
}

impl Rest {
    pub(super) fn new(info: &Info, first: Vec<Field>) -> Self {
        let dbs = info.keyspace().into_iter().filter(|space| space.field_expires > 0).map(|space| space.db);
        Self { first, dbs: dbs.collect(), cursor: b"0".to_vec(), hashes: VecDeque::new() }
    }

    /// Databases have changed places.
    pub(super) fn swap(&mut self, other: impl Fn(&mut u32)) {
        self.first.iter_mut().for_each(|field| other(&mut field.hash.0));
        self.dbs.iter_mut().for_each(&other);
        self.hashes.iter_mut().for_each(|reading| other(&mut reading.hash.0));
    }

    /// The keys of hashes on the next page of the scan; `None` behind the last db.
    async fn scan(&mut self, client: &mut Client) -> Result<Option<Vec<Place>>> {
        let Some(&db) = self.dbs.front() else { return Ok(None) };
        let mut out = Vec::new();
        select(db, &mut out);
        let count = KEYS.to_string();
        let words: [&[u8]; 6] = [b"SCAN", &self.cursor, b"COUNT", count.as_bytes(), b"TYPE", b"hash"];
        write::command(&mut out, &words);
        let (cursor, keys) = super::scanned(client, &out).await?;
        self.cursor = cursor;
        if self.cursor == b"0" {
            self.dbs.pop_front();
        }
        Ok(Some(keys.into_iter().map(|key| (db, key)).collect()))
    }

    /// Remembers those of the keys that are hashes whose fields may expire.
    async fn find(&mut self, client: &mut Client, places: Vec<Place>) -> Result<()> {
        let mut ask = Asking::default();
        for (db, key) in &places {
            ask.add(*db, &[b"OBJECT", b"ENCODING", key]);
            ask.add(*db, &[b"HLEN", key]);
        }
        let mut answers = ask.answers(client, "OBJECT ENCODING").await?.into_iter();
        for hash in places {
            let (encoding, length) = (answers.next().flatten(), answers.next().flatten());
            // Of another type, HLEN is refused.
            let (Some(encoding), Some(length)) = (encoding, length.and_then(|length| length.as_i64())) else {
                continue;
            };
            // Neither a listpack nor a hash with a template has any.
            if length > 0 && matches!(encoding.as_str(), Some("listpackex" | "hashtable")) {
                let page = PAGE.min(usize::try_from(length).unwrap_or(PAGE));
                self.hashes.push_back(Reading { hash, cursor: b"0".to_vec(), page });
            }
        }
        Ok(())
    }

    /// The next page of some hashes: their fields.
    async fn pages(&mut self, client: &mut Client) -> Result<Vec<Named>> {
        let mut readings = Vec::new();
        let mut room = FIELDS;
        while let Some(next) = self.hashes.front()
            && (readings.is_empty() || (next.page <= room && readings.len() < HASHES))
        {
            room = room.saturating_sub(next.page);
            readings.extend(self.hashes.pop_front());
        }
        let mut ask = Asking::default();
        for Reading { hash: (db, key), cursor, .. } in &readings {
            ask.add(*db, &[b"HSCAN", key, cursor, b"COUNT", PAGE.to_string().as_bytes(), b"NOVALUES"]);
        }
        let mut pages = Vec::with_capacity(readings.len());
        for (mut reading, reply) in readings.into_iter().zip(ask.answers(client, "HSCAN").await?) {
            let Some(reply) = reply else { continue };
            let odd = || Error::new(client.side(), "HSCAN did not answer as HSCAN does");
            let [cursor, names] =
                <[Value; 2]>::try_from(reply.into_array().unwrap_or_default()).map_err(|_| odd())?;
            let names = names.into_array().unwrap_or_default();
            let names = names.iter().filter_map(Value::as_bytes).map(Into::into).collect();
            pages.push((reading.hash.clone(), names));
            reading.cursor = cursor.as_bytes().ok_or_else(odd)?.to_vec();
            if reading.cursor != b"0" {
                self.hashes.push_front(reading);
            }
        }
        Ok(pages)
    }
}

impl Sweep {
    /// Does a slice of the work on fields; false when there is none left.
    pub(super) async fn slice_of_fields(
        &mut self,
        client: &mut Client,
        transform: &mut Transform,
        ours: &Ours<'_>,
    ) -> Result<bool> {
        if !self.fields.first.is_empty() {
            let rest = self.fields.first.len().saturating_sub(FIELDS);
            let (hashes, fields) = parted(self.fields.first.split_off(rest));
            self.visit_fields(client, transform, fields).await?;
            self.fields.find(client, hashes).await?;
            return Ok(true);
        }
        if !self.fields.hashes.is_empty() {
            let pages = self.fields.pages(client).await?;
            self.visit_fields(client, transform, pages).await?;
            return Ok(true);
        }
        if ours.select.is_some_and(|select| !select.keeps_type(ValueType::Hash)) {
            self.fields.dbs.clear();
        }
        let Some(mut places) = self.fields.scan(client).await? else { return Ok(false) };
        places.retain(|place| !is_own(&place.1) && ours.has(place));
        self.fields.find(client, places).await?;
        Ok(true)
    }

    async fn visit_fields(
        &mut self,
        client: &mut Client,
        transform: &mut Transform,
        fields: Vec<Named>,
    ) -> Result<()> {
        let mut changes = Vec::new();
        for Stored { hash, name, at_ms: stored_ms } in stored(client, fields).await? {
            let at_ms = true_field_expiry(stored_ms);
            let soon = transform.is_soon(at_ms);
            let field = || Field { hash: hash.clone(), name: Some(name.clone()) };
            match self.aim {
                Aim::Pad if field_padded(stored_ms) == stored_ms => {}
                Aim::Pad => changes.push(Stored { hash, name, at_ms: field_padded(stored_ms) }),
                Aim::Exact { beyond_ms } if is_field_padded(stored_ms) => {
                    if transform.comes_within(at_ms, beyond_ms) {
                        transform.near_fields().insert(field());
                        continue;
                    }
                    if soon {
                        transform.soon_fields().insert(field());
                    }
                    self.report.exact += 1;
                    changes.push(Stored { hash, name, at_ms });
                }
                Aim::Exact { .. } if soon => {
                    transform.soon_fields().insert(field());
                }
                Aim::Exact { .. } => {}
            }
        }
        set(client, changes).await
    }
}

/// Makes the expiries exact that [`Sweep`] left over.
///
/// # Errors
/// The destination does not answer, or refuses.
pub(super) async fn settle_last(client: &mut Client, near: &mut HashSet<Field>) -> Result<()> {
    if near.is_empty() {
        return Ok(());
    }
    let mut rest = Rest::default();
    let (hashes, mut fields) = parted(near.iter().cloned());
    rest.find(client, hashes).await?;
    loop {
        make_exact(client, fields).await?;
        if rest.hashes.is_empty() {
            break;
        }
        fields = rest.pages(client).await?;
    }
    near.clear();
    Ok(())
}

/// Makes every padded expiry of a field exact, for the end of a migration. Answers how many these were.
///
/// # Errors
/// The server does not answer, or refuses.
pub async fn settle_all(client: &mut Client) -> Result<u64> {
    let mut settled = 0;
    let info = client.info("keyspace").await?;
    let mut rest = Rest::new(&info, Vec::new());
    while let Some(places) = rest.scan(client).await? {
        rest.find(client, places).await?;
        while !rest.hashes.is_empty() {
            let fields = rest.pages(client).await?;
            settled += make_exact(client, fields).await?;
        }
    }
    Ok(settled)
}

/// Whole hashes, and single fields.
fn parted(fields: impl IntoIterator<Item = Field>) -> (Vec<Place>, Vec<Named>) {
    let (mut hashes, mut named) = (Vec::new(), Vec::new());
    for Field { hash, name } in fields {
        match name {
            Some(name) => named.push((hash, vec![name])),
            None => hashes.push(hash),
        }
    }
    (hashes, named)
}

/// Makes the padded ones among these exact; one that is due already is deleted by this, as the source would have done. Answers how many
/// these were.
async fn make_exact(client: &mut Client, fields: Vec<Named>) -> Result<u64> {
    let padded = stored(client, fields).await?.into_iter().filter(|one| is_field_padded(one.at_ms));
    let exact: Vec<Stored> =
        padded.map(|one| Stored { at_ms: true_field_expiry(one.at_ms), ..one }).collect();
    let count = exact.len() as u64;
    set(client, exact).await?;
    Ok(count)
}

/// The stored expiries of those of the fields that have one.
async fn stored(client: &mut Client, fields: Vec<Named>) -> Result<Vec<Stored>> {
    let mut ask = Asking::default();
    for ((db, key), names) in &fields {
        let count = names.len().to_string();
        let mut words: Vec<&[u8]> = vec![b"HPEXPIRETIME", key, b"FIELDS", count.as_bytes()];
        words.extend(names.iter().map(|name| &**name));
        if names.is_empty() {
            // A page without fields: something that has no expiry.
            words = vec![b"HLEN", key];
        }
        ask.add(*db, &words);
    }
    let mut found = Vec::new();
    for ((hash, names), answer) in fields.into_iter().zip(ask.answers(client, "HPEXPIRETIME").await?) {
        // Nothing: no hash any more. A time below 0: no expiry, or no such field.
        let times = answer.and_then(Value::into_array).unwrap_or_default();
        for (name, at) in names.into_iter().zip(times) {
            if let Some(at_ms) = at.as_i64().and_then(|at| u64::try_from(at).ok()) {
                found.push(Stored { hash: hash.clone(), name, at_ms });
            }
        }
    }
    Ok(found)
}

async fn set(client: &mut Client, changes: Vec<Stored>) -> Result<()> {
    let mut ask = Asking::default();
    let mut together: HashMap<(&Place, u64), Vec<&[u8]>> = HashMap::new();
    for Stored { hash, name, at_ms } in &changes {
        together.entry((hash, *at_ms)).or_default().push(name);
    }
    for (((db, key), at_ms), names) in together {
        let (at_ms, count) = (at_ms.to_string(), names.len().to_string());
        let mut words: Vec<&[u8]> = vec![b"HPEXPIREAT", key, at_ms.as_bytes(), b"FIELDS", count.as_bytes()];
        words.extend(names);
        ask.add(*db, &words);
    }
    ask.answers(client, "HPEXPIREAT").await.map(drop)
}

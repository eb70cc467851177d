//! A batch as it goes over the wire, and the places of its commands in it.

use std::collections::BTreeSet;

use crate::mirror::copying;
use crate::mirror::decode::frames;
use crate::mirror::guard;
use crate::mirror::transform::is_own;

/// Memory that a buffer may keep for the next batch.
const KEEP: usize = 4 * 1024 * 1024;

/// Where a command stands in a batch, and where it ends in the stream (0: not from the stream).
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    pub(super) at: usize,
    pub(super) end: u64,
}

/// One MULTI … EXEC.
#[derive(Debug, Default)]
pub struct Batch {
    /// What goes over the wire.
    pub wire: Vec<u8>,
    pub(super) places: Vec<Place>,
    /// Indexes of `places` that stand for more than one command of the stream, ascending.
    pub(super) joined: Vec<usize>,
    /// The position behind the batch.
    pub end: u64,
    /// The db that is selected in the stream behind the batch.
    pub db: u32,
    /// Commands of the stream in it.
    pub commands: u64,
    /// The highest db that it selects.
    pub(super) highest_db: u32,
    /// When its oldest byte arrived (unix milliseconds); 0 when it holds nothing from the stream.
    pub oldest_ms: u64,
    /// Whether it writes the values of keys that are copied anew, see `Collector::copy`.
    pub copies: bool,
}

/// A command of a batch, taken apart for an error message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Named {
    /// Its name, in capitals.
    pub name: String,
    /// Its first argument.
    pub key: Option<Vec<u8>>,
    /// The db in which it ran.
    pub db: u32,
    /// The offset of its last byte in the stream; 0 for a command of our own.
    pub end: u64,
    /// The keys that it touches, if that can be told.
    pub places: Vec<crate::mirror::transform::Place>,
}

impl Batch {
    /// Commands between MULTI and EXEC.
    pub fn len(&self) -> usize {
        self.places.len()
    }

    /// Whether there is nothing between MULTI and EXEC.
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    fn args(&self, index: usize) -> Vec<&[u8]> {
        let start = self.places[index].at;
        let end = self.places.get(index + 1).map_or(self.wire.len(), |next| next.at);
        let bytes = &self.wire[start..end];
        match frames(bytes).next() {
            Some((_, frame)) if frame.argc > 0 && !frame.inline => guard::behind(frame.args(bytes).collect()),
            _ => Vec::new(),
        }
    }

    /// Whether a command was made from several of the stream.
    pub fn is_joined(&self, index: usize) -> bool {
        self.joined.binary_search(&index).is_ok()
    }

    /// Takes one of its commands apart.
    pub fn name(&self, index: usize) -> Named {
        let db = (0..index)
            .rev()
            .find_map(|before| {
                let args = self.args(before);
                let is_select = args.first().is_some_and(|name| name.eq_ignore_ascii_case(b"SELECT"));
                is_select
                    .then(|| args.get(1).and_then(|db| std::str::from_utf8(db).ok()?.parse().ok()))
                    .flatten()
            })
            .unwrap_or(0);
        let args = self.args(index);
        let places = copying::places(&args, db).unwrap_or_default();
        Named {
            name: args.first().map(|name| String::from_utf8_lossy(name).to_uppercase()).unwrap_or_default(),
            key: args.get(1).map(|key| key.to_vec()),
            db,
            end: self.places[index].end,
            places: places.into_iter().map(|(place, _)| place).collect(),
        }
    }

    /// The keys that are wrong at the end of the batch when these commands, in ascending order, did not run: theirs, and what the
    /// others behind them have made of these. None when that cannot be told.
    pub fn spread(&self, failed: &[usize]) -> Option<Vec<crate::mirror::transform::Place>> {
        let first = *failed.first()?;
        let mut wrong = BTreeSet::new();
        let mut db = self.name(first).db;
        for index in first..self.len() {
            let args = self.args(index);
            let is = |name: &[u8]| args.first().is_some_and(|word| word.eq_ignore_ascii_case(name));
            let number =
                |at: usize| args.get(at).and_then(|text| std::str::from_utf8(text).ok()?.parse().ok());
            if is(b"SELECT") {
                db = number(1)?;
            } else if is(b"SWAPDB") {
                let (one, two): (u32, u32) = (number(1)?, number(2)?);
                let other = |db| {
                    if db == one {
                        two
                    } else if db == two {
                        one
                    } else {
                        db
                    }
                };
                wrong = wrong.into_iter().map(|(db, key)| (other(db), key)).collect();
            } else {
                let places = copying::places(&args, db).ok()?;
                let fails = failed.binary_search(&index).is_ok();
                if fails || places.iter().any(|(place, _)| wrong.contains(place)) {
                    let changed = places
                        .into_iter()
                        .filter(|(place, written)| (fails || *written) && !is_own(&place.1));
                    wrong.extend(changed.map(|(place, _)| place));
                }
            }
        }
        Some(wrong.into_iter().collect())
    }

    pub(super) fn clear(&mut self) {
        self.wire.clear();
        self.places.clear();
        self.joined.clear();
        self.commands = 0;
        self.highest_db = 0;
        self.oldest_ms = 0;
        self.copies = false;
        if self.wire.capacity() > KEEP {
            self.wire = Vec::new();
        }
        if self.places.capacity() > KEEP / size_of::<Place>() {
            self.places = Vec::new();
        }
    }
}

/// The first of `commands` commands has its place; finds those of the others.
pub(super) fn place_rest(wire: &[u8], places: &mut Vec<Place>, commands: u32, end: u64) {
    if commands == 0 {
        places.pop();
        return;
    }
    let Some(first) = places.last().map(|place| place.at) else { return };
    for (at, _) in frames(&wire[first..]).take(commands as usize).skip(1) {
        places.push(Place { at: first + at, end });
    }
}

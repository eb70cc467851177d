//! From records to batches of commands. No I/O.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use tokio::sync::OwnedSemaphorePermit;

use super::LoadOptions;
use crate::config::OnExistingKey;
use crate::mirror::expiry::{field_padded, padded};
use crate::mirror::{Mapping, Selection};
use crate::rdb::{self, BigEntry, Dialect, Entry, RawValue, RdbError, Stopped, Text, What};
use crate::server::{Capabilities, Flavour};

/// A batch is handed over when it has grown to this.
pub(super) const BATCH: usize = 64 * 1024;
/// Keys in one MSET. It costs the destination 0.55 to 0.75 of as many SETs; more keys gain nothing measurable.
const MSET_KEYS: usize = 16;
/// A longer string travels alone.
const MSET_VALUE: usize = 4096;
/// Strings that expand to more than this are carried compressed, by RESTORE.
const EXPANDED: usize = 1024 * 1024;
/// A value above this, written as commands, gets a sequence of batches of its own.
const SEQUENCE: usize = 32 * 1024;

/// Where a value is collected that must not replace a key: the gateway's own, followed by the key.
pub(super) const BESIDE: &[u8] = b"crossfade:loading:";

/// What the destination can take, decided once.
#[derive(Debug)]
pub(super) struct Plan {
    keep: bool,
    mset: bool,
    flavour: Flavour,
    rdb_version: u32,
    restore: bool,
    abs_ttl: bool,
    replace: bool,
    set_pxat: bool,
    pub(super) functions: bool,
    /// What the destination has no command for is left out.
    pub(super) drop_unsupported: bool,
    /// What is copied, where that is not all.
    pub(super) select: Option<Arc<Selection>>,
    pub(super) map: Option<Arc<Mapping>>,
    pub(super) dialect: Dialect,
}

impl Plan {
    pub(super) fn new(to: &Capabilities, options: &LoadOptions) -> Self {
        let existing = options.existing;
        let since = |major, minor| to.at_least(major, minor);
        Self {
            keep: existing == OnExistingKey::Keep,
            // In a cluster the keys of one command must share a slot.
            mset: existing != OnExistingKey::Keep && !to.cluster,
            flavour: to.flavour,
            rdb_version: to.rdb_version,
            restore: to.restore,
            abs_ttl: to.restore_absttl,
            replace: since(3, 0),
            set_pxat: since(6, 2),
            functions: to.functions,
            drop_unsupported: options.drop_unsupported,
            select: options.select.clone(),
            map: options.map.clone(),
            dialect: Dialect {
                hash_field_expiry: match to.flavour {
                    Flavour::Valkey => to.version >= (9, 0, 0),
                    Flavour::Redict => false,
                    _ => since(7, 4),
                },
                streams: since(5, 0),
                create_consumer: since(6, 2),
                idempotence: since(8, 6),
                redis_8_8: since(8, 8),
                stream_counters: since(7, 0),
                lose_field_expiry: false,
                padded_fields: true,
            },
        }
    }

    /// Whether keys that are there stay.
    pub(super) fn keeps(&self) -> bool {
        self.keep
    }

    /// Whether RESTORE of this type is worth trying.
    fn restores(&self, value: &RawValue<'_>) -> bool {
        let Some(version) = value.minimum_version() else { return false };
        self.restore
            && match value.flavour {
                // Valkey's own types, for Valkey.
                rdb::Flavour::Valkey if version >= 80 => {
                    self.flavour == Flavour::Valkey && self.rdb_version >= version
                }
                // Redis's own types since the fork: Valkey refuses the version, Redict does not have the types.
                _ if version >= 12 => {
                    !matches!(self.flavour, Flavour::Valkey | Flavour::Redict) && self.rdb_version >= version
                }
                _ => self.rdb_version >= version,
            }
    }
}

/// What a batch is part of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    /// Commands of independent keys.
    Independent,
    /// The first batch of one key's commands.
    Begin,
    /// More commands of that key.
    Continue,
}

/// Commands for one db.
#[derive(Debug)]
pub(super) struct Batch {
    pub(super) db: u32,
    pub(super) bytes: Bytes,
    /// Commands in it, which is also the number of replies.
    pub(super) commands: u32,
    /// Keys that are written once all of it is answered.
    pub(super) keys: u32,
    pub(super) part: Part,
    /// Given back when the batch has been answered.
    pub(super) permit: Option<OwnedSemaphorePermit>,
}

/// Takes batches in order.
pub(super) type Out<'a> = dyn FnMut(Batch) -> Result<(), Stopped> + 'a;

/// Encodes records into batches.
pub(super) struct Encoder<'a> {
    plan: &'a Plan,
    db: u32,
    bytes: Vec<u8>,
    commands: u32,
    keys: u32,
    part: Part,
    /// Arguments of the MSET that is being collected.
    pairs: Vec<u8>,
    pair_count: usize,
}

impl<'a> Encoder<'a> {
    pub(super) fn new(plan: &'a Plan) -> Self {
        Self {
            plan,
            db: 0,
            bytes: Vec::with_capacity(BATCH + BATCH / 4),
            commands: 0,
            keys: 0,
            part: Part::Independent,
            pairs: Vec::with_capacity(MSET_KEYS * MSET_VALUE),
            pair_count: 0,
        }
    }

    /// What follows is for this db.
    pub(super) fn select(&mut self, db: u32, out: &mut Out<'_>) -> Result<(), Stopped> {
        if db != self.db {
            self.finish(out)?;
            self.db = db;
        }
        Ok(())
    }

    /// Hands over what is collected.
    pub(super) fn finish(&mut self, out: &mut Out<'_>) -> Result<(), Stopped> {
        self.close_mset();
        self.hand_over(out)
    }

    /// A key with its value in memory.
    pub(super) fn entry(&mut self, entry: &Entry<'_>, out: &mut Out<'_>) -> Result<(), What> {
        let expiry = entry.expire_at_ms.map(padded);
        // Access times travel with RESTORE only.
        if entry.idle.is_none()
            && entry.freq.is_none()
            && let Some(text) = entry.value.text()
            && self.string(entry.key, text, expiry)?
        {
            return Ok(self.hand_over_if_full(out)?);
        }
        if self.plan.restores(&entry.value) {
            match entry.value.with_field_expiries(field_padded) {
                Some(body) => {
                    self.restore(&Entry { value: RawValue { body: &body, ..entry.value }, ..*entry }, expiry)
                }
                None => self.restore(entry, expiry),
            }
            return Ok(self.hand_over_if_full(out)?);
        }
        self.as_commands(entry.key, expiry, &entry.value, out)
    }

    /// A plain string as SET or MSET; says whether that was possible.
    #[inline]
    fn string(&mut self, key: &[u8], text: Text<'_>, expiry: Option<u64>) -> Result<bool, What> {
        let len = text.len();
        if len > EXPANDED && matches!(text, Text::Lzf { .. }) {
            return Ok(false);
        }
        if expiry.is_none() && self.plan.mset && len <= MSET_VALUE {
            bulk(&mut self.pairs, key);
            self.pair_count += 1;
            bulk_text(&mut self.pairs, text, len)?;
            if self.pair_count == MSET_KEYS {
                self.close_mset();
            }
            return Ok(true);
        }
        if expiry.is_some() && !self.plan.set_pxat {
            return Ok(false);
        }
        let arguments = 3 + if expiry.is_some() { 2 } else { 0 } + usize::from(self.plan.keep);
        self.make_room(key.len() + len);
        self.begin(arguments);
        bulk(&mut self.bytes, b"SET");
        bulk(&mut self.bytes, key);
        bulk_text(&mut self.bytes, text, len)?;
        if let Some(at) = expiry {
            bulk(&mut self.bytes, b"PXAT");
            bulk_number(&mut self.bytes, at);
        }
        if self.plan.keep {
            bulk(&mut self.bytes, b"NX");
        }
        self.keys += 1;
        Ok(true)
    }

    fn close_mset(&mut self) {
        if self.pair_count == 0 {
            return;
        }
        self.begin(1 + 2 * self.pair_count);
        bulk(&mut self.bytes, b"MSET");
        self.bytes.extend_from_slice(&self.pairs);
        self.keys += self.pair_count as u32;
        self.pairs.clear();
        self.pair_count = 0;
    }

    fn restore(&mut self, entry: &Entry<'_>, expiry: Option<u64>) {
        let plan = self.plan;
        let replace = plan.replace && !plan.keep;
        if !replace && !plan.keep {
            self.command(&[b"DEL", entry.key]);
        }
        // ABSTTL came together with IDLETIME and FREQ.
        let (idle, freq) = if plan.abs_ttl { (entry.idle, entry.freq) } else { (None, None) };
        let absolute = plan.abs_ttl && expiry.is_some();
        // Before ABSTTL: an exact PEXPIREAT behind it, except where the key may be somebody else's.
        let behind = expiry.filter(|_| !plan.abs_ttl && !plan.keep);
        let ttl = match expiry {
            Some(at) if absolute => at,
            Some(at) if behind.is_none() => at.saturating_sub(now_ms()).max(1),
            _ => 0,
        };
        let options = usize::from(replace)
            + usize::from(absolute)
            + 2 * (usize::from(idle.is_some()) + usize::from(freq.is_some() && idle.is_none()));
        self.make_room(entry.key.len() + entry.value.dump_len());
        self.begin(4 + options);
        bulk(&mut self.bytes, b"RESTORE");
        bulk(&mut self.bytes, entry.key);
        bulk_number(&mut self.bytes, ttl);
        head(&mut self.bytes, b'$', entry.value.dump_len());
        entry.value.dump_payload(&mut self.bytes);
        self.bytes.extend_from_slice(b"\r\n");
        if replace {
            bulk(&mut self.bytes, b"REPLACE");
        }
        if absolute {
            bulk(&mut self.bytes, b"ABSTTL");
        }
        if let Some(idle) = idle {
            bulk(&mut self.bytes, b"IDLETIME");
            bulk_number(&mut self.bytes, idle);
        } else if let Some(freq) = freq {
            bulk(&mut self.bytes, b"FREQ");
            bulk_number(&mut self.bytes, u64::from(freq));
        }
        if let Some(at) = behind {
            self.expire_at(entry.key, at);
        }
        self.keys += 1;
    }

    /// A large value gets the room that it needs, and not twice as much.
    fn make_room(&mut self, len: usize) {
        if len > BATCH {
            self.bytes.reserve_exact(len + 256);
        }
    }

    fn expire_at(&mut self, key: &[u8], at_ms: u64) {
        self.begin(3);
        bulk(&mut self.bytes, b"PEXPIREAT");
        bulk(&mut self.bytes, key);
        bulk_number(&mut self.bytes, at_ms);
    }

    /// A value as commands. When it cannot be written so, what was encoded of it is taken back.
    pub(super) fn as_commands(
        &mut self,
        key: &[u8],
        expiry: Option<u64>,
        value: &RawValue<'_>,
        out: &mut Out<'_>,
    ) -> Result<(), What> {
        self.as_commands_of(self.plan.dialect, key, expiry, value, out)
    }

    /// The same for a hash whose fields expire, without these expiries.
    pub(super) fn without_field_expiries(
        &mut self,
        key: &[u8],
        expiry: Option<u64>,
        value: &RawValue<'_>,
        out: &mut Out<'_>,
    ) -> Result<(), What> {
        let dialect = Dialect { lose_field_expiry: true, ..self.plan.dialect };
        self.as_commands_of(dialect, key, expiry, value, out)
    }

    fn as_commands_of(
        &mut self,
        dialect: Dialect,
        key: &[u8],
        expiry: Option<u64>,
        value: &RawValue<'_>,
        out: &mut Out<'_>,
    ) -> Result<(), What> {
        if value.body.len() > SEQUENCE || self.plan.keep || matches!(value.text(), Some(Text::Lzf { .. })) {
            return self.sequence(key, expiry, out, |target, sink| value.commands(target, &dialect, sink));
        }
        let (len, commands) = (self.bytes.len(), self.commands);
        self.command(&[b"DEL", key]);
        let mut sink = |args: &[&[u8]]| {
            self.command(args);
            Ok(())
        };
        if let Err(what) = value.commands(key, &dialect, &mut sink) {
            self.bytes.truncate(len);
            self.commands = commands;
            return Err(what);
        }
        if let Some(at) = expiry {
            self.expire_at(key, at);
        }
        self.keys += 1;
        Ok(self.hand_over_if_full(out)?)
    }

    /// A value that does not fit memory.
    pub(super) fn big(&mut self, mut entry: BigEntry<'_>, out: &mut Out<'_>) -> Result<(), RdbError> {
        let (key, expiry) = (entry.key.clone(), entry.expire_at_ms.map(padded));
        let dialect = self.plan.dialect;
        self.sequence(&key, expiry, out, |target, sink| {
            entry.key = target.to_vec();
            entry.commands(&dialect, sink)
        })
        .map_err(|error| RdbError { key: error.key.map(|_| key.clone()), ..error })
    }

    /// Batches of one key's commands, which stay on one connection.
    ///
    /// A key that may be somebody else's is written beside it and put in place in one step: an attempt that ends in
    /// the middle leaves nothing that the next one would take for a key to be kept.
    fn sequence<E: From<Stopped>>(
        &mut self,
        key: &[u8],
        expiry: Option<u64>,
        out: &mut Out<'_>,
        write: impl FnOnce(&[u8], &mut rdb::Sink<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        self.finish(out)?;
        self.part = Part::Begin;
        let keep = self.plan.keep;
        let target = if keep { [BESIDE, key].concat() } else { key.to_vec() };
        self.command(&[b"DEL", &target]);
        let written = write(&target, &mut |args| {
            // Before the command, not behind it: the last batch, which counts the key, is never empty.
            self.hand_over_if_full(out)?;
            self.command(args);
            Ok(())
        });
        if written.is_ok() {
            if let Some(at) = expiry {
                self.expire_at(&target, at);
            }
            if keep {
                self.command(&[b"RENAMENX", &target, key]);
                self.command(&[b"DEL", &target]);
            }
            self.keys += 1;
        }
        let handed = self.hand_over(out);
        self.part = Part::Independent;
        written?;
        Ok(handed?)
    }

    /// Any other command.
    pub(super) fn command(&mut self, args: &[&[u8]]) {
        self.begin(args.len());
        for arg in args {
            bulk(&mut self.bytes, arg);
        }
    }

    fn begin(&mut self, arguments: usize) {
        head(&mut self.bytes, b'*', arguments);
        self.commands += 1;
    }

    #[inline]
    pub(super) fn hand_over_if_full(&mut self, out: &mut Out<'_>) -> Result<(), Stopped> {
        if self.bytes.len() >= BATCH { self.hand_over(out) } else { Ok(()) }
    }

    fn hand_over(&mut self, out: &mut Out<'_>) -> Result<(), Stopped> {
        if self.commands == 0 {
            return Ok(());
        }
        let part = match self.part {
            Part::Independent => Part::Independent,
            _ => std::mem::replace(&mut self.part, Part::Continue),
        };
        let bytes = std::mem::replace(&mut self.bytes, Vec::with_capacity(BATCH + BATCH / 4));
        let batch = Batch {
            db: self.db,
            bytes: bytes.into(),
            commands: std::mem::take(&mut self.commands),
            keys: std::mem::take(&mut self.keys),
            part,
            permit: None,
        };
        out(batch)
    }
}

pub(super) fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_millis() as u64)
}

#[inline]
fn head(out: &mut Vec<u8>, kind: u8, n: usize) {
    out.push(kind);
    out.extend_from_slice(itoa::Buffer::new().format(n).as_bytes());
    out.extend_from_slice(b"\r\n");
}

#[inline]
fn bulk(out: &mut Vec<u8>, bytes: &[u8]) {
    head(out, b'$', bytes.len());
    out.extend_from_slice(bytes);
    out.extend_from_slice(b"\r\n");
}

fn bulk_number(out: &mut Vec<u8>, n: u64) {
    bulk(out, itoa::Buffer::new().format(n).as_bytes());
}

/// A string of the file as an argument. `len` is what it claims; an expansion that gives something else is an error,
/// and the load ends with it, so the half-written command is never sent.
#[inline]
fn bulk_text(out: &mut Vec<u8>, text: Text<'_>, len: usize) -> Result<(), What> {
    head(out, b'$', len);
    text.append_to(out)?;
    out.extend_from_slice(b"\r\n");
    Ok(())
}

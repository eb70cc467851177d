//! The thread that reads the snapshot and hands batches to the connections, as fast as they take them.

use std::io::Read;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_util::sync::CancellationToken;

use super::encoder::{Batch, Encoder, Part, Plan};
use super::pace::Pace;
use super::progress::{FailedKey, Failures, Progress};
use super::{LoadOptions, OWN_PREFIX, cancelled};
use crate::error::{Error, Result, Side};
use crate::mirror::Mapping;
use crate::mirror::expiry::padded;
use crate::rdb::{self, Entry, Item, RdbError, ReadOptions, Reader, Stopped, What};

/// A value of more bytes than this is encoded only when there is room in the budget.
const LARGE: usize = 1024 * 1024;

/// What the feeder counted.
#[derive(Debug, Default)]
pub(super) struct Fed {
    pub(super) own_keys: u64,
    pub(super) functions: u64,
    pub(super) module_data: Vec<String>,
}

pub(super) struct Feeder {
    plan: Arc<Plan>,
    lanes: Lanes,
    failures: Arc<Failures>,
    progress: Arc<Progress>,
    big_value: usize,
}

/// The connections, in turn.
struct Lanes {
    senders: Vec<mpsc::Sender<Batch>>,
    turn: usize,
    budget: Arc<Semaphore>,
    whole: u32,
    runtime: Handle,
    cancel: CancellationToken,
    pace: Pace,
    /// Taken before the batch that it is for was encoded.
    reserved: Option<OwnedSemaphorePermit>,
    /// Batches handed over.
    sent: u64,
}

impl Feeder {
    /// Must be called inside the runtime.
    pub(super) fn new(
        plan: Arc<Plan>,
        senders: Vec<mpsc::Sender<Batch>>,
        budget: Arc<Semaphore>,
        failures: Arc<Failures>,
        progress: Arc<Progress>,
        options: &LoadOptions,
        cancel: CancellationToken,
    ) -> Self {
        let whole = u32::try_from(budget.available_permits()).unwrap_or(u32::MAX);
        let pace = Pace::new(Arc::clone(&options.throttle), Instant::now());
        let lanes = Lanes {
            senders,
            turn: 0,
            budget,
            whole,
            runtime: Handle::current(),
            cancel,
            pace,
            reserved: None,
            sent: 0,
        };
        Self { plan, lanes, failures, progress, big_value: options.big_value }
    }

    /// Reads `from` to its end. Blocks.
    pub(super) fn run<R: Read>(self, from: R) -> Result<Fed> {
        let Self { plan, mut lanes, failures, progress, big_value } = self;
        let mut reader = Reader::new(from, ReadOptions { big_value, ..Default::default() });
        let mut encoder = Encoder::new(&plan);
        let mut fed = Fed::default();
        let outcome = feed(&mut reader, &mut encoder, &mut lanes, &plan, &failures, &progress, &mut fed);
        progress.bytes_read.store(reader.bytes_read(), Relaxed);
        match outcome {
            Ok(()) => Ok(fed),
            Err(Ended::Refused(error)) => Err(error),
            Err(Ended::Snapshot(error)) => Err(Self::broken(error, &lanes)),
        }
    }

    fn broken(error: RdbError, lanes: &Lanes) -> Error {
        match error {
            RdbError { what: What::Stopped, .. } if lanes.cancel.is_cancelled() => cancelled(),
            // A connection is gone, and its own error tells why.
            RdbError { what: What::Stopped, .. } => {
                Error::passing(Side::Destination, "the connection was lost while the snapshot was loaded")
            }
            error => error.into(),
        }
    }
}

/// Why the snapshot is not read to its end.
enum Ended {
    Snapshot(RdbError),
    /// A key of it cannot be written.
    Refused(Error),
}

impl<E: Into<RdbError>> From<E> for Ended {
    fn from(error: E) -> Self {
        Self::Snapshot(error.into())
    }
}

fn feed<R: Read>(
    reader: &mut Reader<R>,
    encoder: &mut Encoder<'_>,
    lanes: &mut Lanes,
    plan: &Plan,
    failures: &Failures,
    progress: &Progress,
    fed: &mut Fed,
) -> Result<(), Ended> {
    let mut batches = 0;
    let select = plan.select.as_deref();
    let outside =
        |db, key: &[u8], type_id| select.is_some_and(|select| !select.keeps_value(db, key, type_id));
    let map = plan.map.as_deref();
    loop {
        if lanes.sent != batches {
            batches = lanes.sent;
            progress.bytes_read.store(reader.bytes_read(), Relaxed);
        }
        let Some(item) = reader.next_item()? else { break };
        let out = &mut |batch| lanes.send(batch);
        match item {
            Item::Entry(entry) if outside(entry.db, entry.key, entry.value.type_id) => {}
            Item::Big(entry) if outside(entry.db, &entry.key, entry.type_id) => {}
            Item::SelectDb(db) if select.is_some_and(|select| !select.keeps_db(db)) => {}
            Item::Entry(entry) if entry.key.starts_with(OWN_PREFIX) => fed.own_keys += 1,
            Item::Entry(entry) => {
                let name = renamed(map, entry.db, entry.key).map_err(Ended::Refused)?;
                let entry = match &name {
                    Some((db, key)) => Entry { db: *db, key, ..entry },
                    None => entry,
                };
                if entry.value.body.len() > LARGE {
                    encoder.finish(out)?;
                    lanes.reserve(entry.value.body.len())?;
                }
                let out = &mut |batch| lanes.send(batch);
                if let Err(what) = encoder.entry(&entry, out) {
                    let key = entry.key.to_vec();
                    match what {
                        // No command can write it: an error of this key, not of the file.
                        What::NoCommand(reason) => {
                            let expiry = entry.expire_at_ms.map(padded);
                            let less = plan.drop_unsupported
                                && encoder.without_field_expiries(&key, expiry, &entry.value, out).is_ok();
                            failures.add(unsupported(entry.db, &key, reason, less));
                        }
                        what => {
                            let opcode = Some(entry.value.type_id);
                            let offset = reader.bytes_read();
                            return Err(RdbError { offset, opcode, key: Some(key), what }.into());
                        }
                    }
                }
            }
            Item::Big(entry) if entry.key.starts_with(OWN_PREFIX) => fed.own_keys += 1,
            Item::Big(mut entry) => {
                if let Some((db, key)) = renamed(map, entry.db, &entry.key).map_err(Ended::Refused)? {
                    (entry.db, entry.key) = (db, key);
                }
                encoder.big(entry, out)?;
            }
            // One that cannot have its number there is refused with its first key.
            Item::SelectDb(db) => {
                encoder.select(map.map_or(Ok(db), |map| map.db(db)).unwrap_or(db), out)?;
            }
            Item::ResizeDb { keys, .. } => {
                progress.keys_expected.fetch_add(keys, Relaxed);
            }
            // Before 7.0 the snapshot for a replica carries the scripts that EVALSHA in the stream will name.
            Item::Aux { name, value } if name == b"lua" => {
                encoder.command(&[b"SCRIPT", b"LOAD", &value]);
                encoder.hand_over_if_full(out)?;
            }
            Item::Aux { .. } | Item::Template { .. } => {}
            Item::Function(source) if plan.functions => {
                encoder.command(&[b"FUNCTION", b"LOAD", b"REPLACE", &source]);
                encoder.hand_over_if_full(out)?;
                fed.functions += 1;
            }
            Item::Function(source) => {
                failures.add(FailedKey {
                    db: 0,
                    key: library(&source),
                    reason: "the destination does not know functions".into(),
                    remedy: "use a destination of Redis 7.0 or Valkey, or delete the library at the source, or set snapshot.on_unsupported = \"drop\"",
                    unsupported: true,
                });
            }
            Item::FunctionPreGa { name } => failures.add(FailedKey {
                db: 0,
                key: library(&name),
                reason:
                    "it is stored in the format of a 7.0 release candidate, which no released server reads"
                        .into(),
                remedy: "load the library at the source again with FUNCTION LOAD REPLACE, or delete it",
                unsupported: true,
            }),
            Item::ModuleAux { module } => {
                if !fed.module_data.contains(&module) {
                    tracing::info!(
                        module,
                        "the snapshot holds data of a module beside its keys; no command can write that"
                    );
                    fed.module_data.push(module);
                }
            }
        }
    }
    encoder.finish(&mut |batch| lanes.send(batch))?;
    Ok(())
}

/// A key's database and name at the destination, where there is a mapping.
pub(super) fn renamed(map: Option<&Mapping>, db: u32, key: &[u8]) -> Result<Option<(u32, Vec<u8>)>> {
    let Some(map) = map else { return Ok(None) };
    match map.place(db, key) {
        Ok((db, key)) => Ok(Some((db, key.into_owned()))),
        Err(why) => Err(Error::new(Side::Source, format!("its keys cannot be copied: {why}")).remedy(
            "choose names that no other key has, or leave one of the two out with [filter]; then start the gateway anew, `crossfade abort` and `crossfade start`",
        )),
    }
}

/// Names a function library by the first line of its source, which says its name.
pub(super) fn library(source: &[u8]) -> String {
    let first = source.split(|byte| *byte == b'\n').next().unwrap_or_default();
    format!("function library {}", rdb::printable(first))
}

/// A key for which there is no command.
pub(super) fn unwritten(db: u32, key: &[u8], reason: String) -> FailedKey {
    FailedKey {
        db,
        key: rdb::printable(key),
        reason,
        remedy: "delete or convert that key at the source, or use a destination that knows its type",
        unsupported: false,
    }
}

/// A key of which the destination can hold nothing, or all but the expiries of its fields.
pub(super) fn unsupported(db: u32, key: &[u8], reason: String, only_expiries: bool) -> FailedKey {
    let reason =
        if only_expiries { format!("written without the expiries of its fields: {reason}") } else { reason };
    FailedKey {
        remedy: "delete or convert that key at the source, use a destination that knows its type, or set snapshot.on_unsupported = \"drop\" to leave it out",
        unsupported: true,
        ..unwritten(db, key, reason)
    }
}

impl Lanes {
    /// Waits for room within the budget and for the connection whose turn it is.
    fn send(&mut self, mut batch: Batch) -> Result<(), Stopped> {
        if self.cancel.is_cancelled() {
            return Err(Stopped);
        }
        self.pace.wait(batch.bytes.len(), u64::from(batch.keys), &self.cancel);
        // The rest of a sequence follows its beginning.
        if batch.part != Part::Continue {
            self.turn = (self.turn + 1) % self.senders.len();
        }
        batch.permit = Some(match self.reserved.take() {
            Some(permit) => permit,
            None => self.permit(batch.bytes.len())?,
        });
        self.sent += 1;
        self.senders[self.turn].blocking_send(batch).map_err(|_| Stopped)
    }

    /// Waits for room for a batch that is yet to be made.
    fn reserve(&mut self, bytes: usize) -> Result<(), Stopped> {
        self.reserved = Some(self.permit(bytes)?);
        Ok(())
    }

    fn permit(&self, bytes: usize) -> Result<OwnedSemaphorePermit, Stopped> {
        // A batch larger than the whole budget travels alone.
        let size = u32::try_from(bytes / 1024 + 1).unwrap_or(u32::MAX).min(self.whole);
        let budget = Arc::clone(&self.budget);
        if let Ok(permit) = Arc::clone(&budget).try_acquire_many_owned(size) {
            return Ok(permit);
        }
        let lost = async {
            // What is in flight on a lost connection never comes back.
            futures_util::future::select_all(self.senders.iter().map(|lane| Box::pin(lane.closed()))).await
        };
        self.runtime.block_on(async {
            tokio::select! {
                biased;
                permit = budget.acquire_many_owned(size) => permit.map_err(|_| Stopped),
                _ = lost => Err(Stopped),
                () = self.cancel.cancelled() => Err(Stopped),
            }
        })
    }
}

//! The journal: a snapshot and the stream behind it, on disk, between a receiver that is as fast as the source
//! and readers that are as fast as the destination.
//!
//! # Layout
//!
//! ```text
//! <dir>/journal.json                    generation, series, replication ids, base offset, state of the snapshot, boot id
//! <dir>/snapshot-<series>.rdb           the source's RDB, byte for byte
//! <dir>/stream-<series>-<base>.log      segments of the stream; the first record of each begins at offset base + 1
//!
//! segment   "CFSTREAM" | series u64 | base u64 | record | record | …
//! record    length u32 | CRC-32C u32 | offset of the first byte u64 | arrival, ms since 1970, u64 | bytes
//!                                                     (numbers are little-endian; the CRC covers all but itself)
//! ```
//!
//! # Guarantees
//!
//! - One writer, the receiver; any number of readers. Readers never wait for the disk to have written, and the
//!   writer never waits for a reader.
//! - Records of a series follow one another without a gap: each begins at the offset where the one before ended. What
//!   does not is damage, never data.
//! - Memory is bounded: the last few MiB of the stream, and one block per reader that is behind.
//!
//! # The life of a record
//!
//! Bytes come from the socket and are at once visible to readers, in memory ([`JournalOptions::recent_bytes`]). They
//! are pending for the disk until 256 KiB have come together or a few milliseconds have passed; then they become one
//! record and one write. They leave memory only when they are written. When a segment is full (64 MiB) the next one is
//! begun. Once the applied offset is past the end of a segment by [`JournalOptions::keep_bytes`], the segment is
//! deleted: a destination that comes back from a backup with older data may need what lies a little behind.
//!
//! # What a crash does
//!
//! *kill -9 of the gateway* loses nothing. What was written is in the kernel's hands. What was pending is sent again by
//! the source: the next receiver asks for the byte behind the last whole record, or, if the destination has applied more
//! than that from memory, for the byte behind the destination's position. A torn record at the end fails its checksum and
//! is cut off.
//!
//! *Power loss* may take any write that was not synced, and nothing here is, record by record: the position on
//! the destination is the truth about what was applied, and what the disk does not hold is fetched again. The boot id
//! in `journal.json` tells that it happened. Then every record is checked anew, and the stream ends at the first one that
//! is not whole; a snapshot, which has no checksums inside, is believed only if it had been synced.

mod meta;
mod reader;
mod record;
mod snapshot;
mod store;

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::watch;

use self::meta::{History, Meta, Stored};
use self::snapshot::Progress;
use self::store::Tail;
use super::position::Position;
use crate::error::{Error, Result, Side};

pub use self::reader::JournalReader;
pub use self::record::Chunk;
pub(super) use self::snapshot::SnapshotWriter;
pub use self::snapshot::{SnapshotInfo, SnapshotReader};

/// Sizes of a journal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct JournalOptions {
    /// When a segment is full.
    pub segment_bytes: u64,
    /// How much of the stream is kept behind the applied offset.
    pub keep_bytes: u64,
    /// How much of the stream is kept in memory.
    pub recent_bytes: usize,
    /// How large snapshot and stream may become on disk together: nothing more is taken until some of it has been applied.
    pub max_bytes: Option<u64>,
}

impl Default for JournalOptions {
    fn default() -> Self {
        Self { segment_bytes: 64 << 20, keep_bytes: 256 << 20, recent_bytes: 4 << 20, max_bytes: None }
    }
}

impl JournalOptions {
    /// The defaults, within a limit on disk: what is kept behind the applied offset is then so little that there is always
    /// something that can be let go.
    pub fn within(max_bytes: Option<u64>) -> Self {
        let sizes = Self { max_bytes, ..Self::default() };
        match max_bytes {
            Some(most) => Self {
                segment_bytes: sizes.segment_bytes.min(most / 8),
                keep_bytes: sizes.keep_bytes.min(most / 4),
                ..sizes
            },
            None => sizes,
        }
    }

    /// Refuses to have more than `bytes` on disk.
    fn admit(&self, bytes: u64) -> io::Result<()> {
        match self.max_bytes {
            Some(most) if bytes > most => Err(io::Error::new(io::ErrorKind::QuotaExceeded, Full(most))),
            _ => Ok(()),
        }
    }
}

/// A journal that may not become larger.
#[derive(Debug, thiserror::Error)]
#[error("it has reached state.max_bytes, {} bytes", .0)]
struct Full(u64);

/// The snapshot and the stream of one source, on disk.
#[derive(Debug)]
pub struct Journal {
    shared: Arc<Shared>,
    /// The writer's own; never held together with a wait.
    tail: Mutex<Tail>,
}

/// What readers and the writer share.
#[derive(Debug)]
struct Shared {
    dir: PathBuf,
    options: JournalOptions,
    /// The last offset that readers may have.
    end: watch::Sender<u64>,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    meta: Meta,
    snapshot: Option<Arc<Progress>>,
    /// Oldest first; the last one is written to.
    segments: VecDeque<Segment>,
    /// The last offset that is on disk, and the length of the last segment up to there.
    flushed: u64,
    length: u64,
    /// The end of the stream in memory, without gaps, up to `end`.
    recent: VecDeque<Chunk>,
    recent_bytes: usize,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Segment {
    path: PathBuf,
    base: u64,
}

impl Journal {
    /// Opens the journal in `dir`, or begins one. What a crash left behind is brought in order: see the head of this
    /// module.
    ///
    /// # Errors
    /// The folder cannot be read or written.
    pub fn open(dir: impl Into<PathBuf>) -> Result<Self> {
        Self::open_with(dir, JournalOptions::default())
    }

    /// As [`Self::open`], with other sizes.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_with(dir: impl Into<PathBuf>, options: JournalOptions) -> Result<Self> {
        let dir = dir.into();
        let (inner, tail) = store::recover(&dir)
            .map_err(|cause| disk(format!("the journal in {} cannot be opened", dir.display()), cause))?;
        let end = watch::Sender::new(inner.flushed);
        Ok(Self {
            shared: Arc::new(Shared { dir, options, end, inner: Mutex::new(inner) }),
            tail: Mutex::new(tail),
        })
    }

    /// The folder.
    pub fn dir(&self) -> &Path {
        &self.shared.dir
    }

    /// How many full synchronisations this journal has begun.
    pub fn generation(&self) -> u64 {
        self.shared.inner.lock().meta.generation
    }

    /// The current replication id; `None` before the first synchronisation, and from a server that only knows `SYNC`.
    pub fn replid(&self) -> Option<String> {
        self.shared.inner.lock().replid()
    }

    /// The offset behind which the stream is kept: the byte at `start() + 1` is the first that can be read.
    pub fn start(&self) -> u64 {
        self.shared.inner.lock().start()
    }

    /// The last offset that was received.
    pub fn received(&self) -> u64 {
        *self.shared.end.borrow()
    }

    /// Follows [`Self::received`]. It falls when a full synchronisation begins the stream anew.
    pub fn end(&self) -> watch::Receiver<u64> {
        self.shared.end.subscribe()
    }

    /// The snapshot, as far as it is there.
    pub fn snapshot(&self) -> Option<SnapshotInfo> {
        let inner = self.shared.inner.lock();
        let progress = inner.snapshot.as_ref()?;
        let stored = inner.meta.snapshot.as_ref()?;
        Some(SnapshotInfo {
            generation: inner.meta.generation,
            replid: inner.meta.ids.first().map(|id| id.replid.clone()),
            offset: stored.offset,
            bytes: progress.bytes(),
            expected: progress.expected,
            complete: progress.is_complete(),
            path: self.shared.snapshot_path(inner.meta.series),
        })
    }

    /// Reads the snapshot from its start.
    ///
    /// # Errors
    /// There is none, or its file cannot be opened.
    pub fn snapshot_reader(&self) -> Result<SnapshotReader> {
        let (path, progress) = {
            let inner = self.shared.inner.lock();
            let progress = inner.snapshot.clone();
            (self.shared.snapshot_path(inner.meta.series), progress)
        };
        let progress =
            progress.ok_or_else(|| Error::passing(Side::Gateway, "the journal holds no snapshot"))?;
        let file = File::open(path).map_err(|cause| disk("the snapshot cannot be opened", cause))?;
        Ok(SnapshotReader::new(file, progress))
    }

    /// Reads the stream behind `after`, which is the last offset that the reader has.
    ///
    /// # Errors
    /// The stream does not reach back to there, or not up to there.
    pub fn reader(&self, after: u64) -> Result<JournalReader> {
        JournalReader::new(self.shared.clone(), after)
    }

    /// Whether a reader could go on from there: the id is one of this stream's, and the bytes behind it are kept.
    pub fn covers(&self, position: &Position) -> bool {
        self.shared.inner.lock().covers(position, self.received())
    }

    /// Whether a source can be asked to go on where this journal ends: there is a complete snapshot, or there was no
    /// need for one, and the history has a name.
    pub fn can_continue(&self) -> bool {
        self.shared.inner.lock().can_continue()
    }

    /// Deletes what nobody will read again, everything up to `applied` being durable at the destination: whole segments,
    /// short of [`JournalOptions::keep_bytes`], and the snapshot once the stream behind it has been applied.
    pub fn trim(&self, applied: u64) {
        let keep = applied.saturating_sub(self.shared.options.keep_bytes);
        let mut inner = self.shared.inner.lock();
        let mut gone = Vec::new();
        while inner.segments.get(1).is_some_and(|next| next.base <= keep) {
            gone.extend(inner.segments.pop_front().map(|segment| segment.path));
        }
        let loaded = inner.meta.snapshot.as_ref().is_some_and(|s| s.bytes.is_some() && applied > s.offset);
        if loaded && self.shared.forget_snapshot(&mut inner) {
            gone.push(self.shared.snapshot_path(inner.meta.series));
        }
        drop(inner);
        remove(gone);
    }

    /// Deletes the snapshot: it is loaded. The stream stays.
    pub fn drop_snapshot(&self) {
        let mut inner = self.shared.inner.lock();
        if self.shared.forget_snapshot(&mut inner) {
            let path = self.shared.snapshot_path(inner.meta.series);
            drop(inner);
            remove([path]);
        }
    }

    /// Begins a generation: everything before is deleted, and a snapshot at `offset` will be written.
    pub(super) fn begin(
        &self,
        replid: Option<&str>,
        offset: u64,
        expected: Option<u64>,
    ) -> io::Result<SnapshotWriter> {
        let stored = Stored { offset, bytes: None, synced: false };
        let mut inner = self.anew(replid, offset, true, Some(stored))?;
        let file = File::create(self.shared.snapshot_path(inner.meta.series))?;
        let progress = Progress::arriving(expected);
        inner.snapshot = Some(progress.clone());
        Ok(SnapshotWriter::new(file, progress, self.shared.options))
    }

    /// Begins a generation that has no snapshot: the stream behind `offset` is all that is wanted.
    pub(super) fn begin_tail(&self, replid: Option<&str>, offset: u64) -> io::Result<()> {
        self.anew(replid, offset, true, None).map(drop)
    }

    /// Begins the stream anew behind a position, without a full synchronisation: the destination has what lies before.
    pub(super) fn begin_at(&self, position: &Position) -> io::Result<()> {
        self.anew(Some(&position.replid), position.offset, false, None).map(drop)
    }

    /// The snapshot is complete.
    pub(super) fn finish(&self, writer: &mut SnapshotWriter) -> io::Result<()> {
        let bytes = writer.bytes();
        let mut inner = self.shared.inner.lock();
        let mut meta = inner.meta.clone();
        if let Some(stored) = meta.snapshot.as_mut() {
            stored.bytes = Some(bytes);
        }
        // Described on disk before readers see the end, so that nobody acts on a snapshot that a restart would not know.
        meta.store(&self.shared.dir)?;
        let series = meta.series;
        inner.meta = meta;
        let file = writer.finish()?;
        drop(inner);
        self.sync_behind(file, series);
        Ok(())
    }

    /// Syncs a snapshot without anybody waiting for it; a failure only means that a power loss costs the snapshot.
    fn sync_behind(&self, file: File, series: u64) {
        // A journal that has been closed meanwhile may be open again: its description is no longer ours to write.
        let shared = Arc::downgrade(&self.shared);
        let sync = move || {
            if let Err(error) = file.sync_data() {
                tracing::debug!(%error, "the snapshot could not be synced");
                return;
            }
            let Some(shared) = shared.upgrade() else { return };
            let mut inner = shared.inner.lock();
            if inner.meta.series == series
                && let Some(stored) = inner.meta.snapshot.as_mut()
            {
                stored.synced = true;
                // Ignored: see above.
                let _ = inner.meta.store(&shared.dir);
            }
        };
        if let Err(error) = std::thread::Builder::new().name("crossfade-sync".into()).spawn(sync) {
            tracing::debug!(%error, "no thread to sync the snapshot");
        }
    }

    /// The source goes on with the same stream under another id.
    pub(super) fn adopt(&self, replid: &str) -> io::Result<()> {
        let end = self.received();
        let mut inner = self.shared.inner.lock();
        if inner.replid().as_deref() == Some(replid) {
            return Ok(());
        }
        let mut meta = inner.meta.clone();
        meta.ids.push(History { replid: replid.to_owned(), since: end });
        meta.store(&self.shared.dir)?;
        inner.meta = meta;
        Ok(())
    }

    fn anew(
        &self,
        replid: Option<&str>,
        offset: u64,
        full: bool,
        snapshot: Option<Stored>,
    ) -> io::Result<parking_lot::MutexGuard<'_, Inner>> {
        let mut tail = self.tail.lock();
        let mut inner = self.shared.inner.lock();
        *tail = Tail::default();
        inner.recent.clear();
        inner.recent_bytes = 0;
        inner.snapshot = None;
        // First what takes up room: the disk may be full. A crash before the next line leaves a description of files
        // that are not there, which is an empty journal.
        let gone: Vec<_> = inner.segments.drain(..).map(|segment| segment.path).collect();
        remove(gone);
        remove([self.shared.snapshot_path(inner.meta.series)]);
        let meta = Meta {
            generation: inner.meta.generation + u64::from(full),
            series: inner.meta.series + 1,
            boot: meta::boot_id(),
            base: offset,
            ids: replid.map(|id| History { replid: id.to_owned(), since: offset }).into_iter().collect(),
            snapshot,
            ..inner.meta.clone()
        };
        inner.flushed = offset;
        inner.length = 0;
        // Until the description is stored there is nothing to go on from.
        inner.meta.series = meta.series;
        inner.meta.ids.clear();
        inner.meta.snapshot = None;
        self.shared.end.send_replace(offset);
        meta.store(&self.shared.dir)?;
        inner.meta = meta;
        Ok(inner)
    }
}

impl Shared {
    fn snapshot_path(&self, series: u64) -> PathBuf {
        store::snapshot_path(&self.dir, series)
    }

    /// Whether its file may be deleted now: nobody would look for it after a restart.
    fn forget_snapshot(&self, inner: &mut Inner) -> bool {
        if inner.meta.snapshot.as_ref().is_none_or(|stored| stored.bytes.is_none()) {
            return false;
        }
        let meta = Meta { snapshot: None, ..inner.meta.clone() };
        match meta.store(&self.dir) {
            Ok(()) => {
                inner.meta = meta;
                inner.snapshot = None;
                true
            }
            // It stays until the next trim.
            Err(_) => false,
        }
    }
}

impl Inner {
    fn start(&self) -> u64 {
        self.segments.front().map_or(self.flushed, |segment| segment.base)
    }

    fn replid(&self) -> Option<String> {
        self.meta.ids.last().map(|id| id.replid.clone())
    }

    fn can_continue(&self) -> bool {
        let arriving = self.meta.snapshot.as_ref().is_some_and(|stored| stored.bytes.is_none());
        !arriving && !self.meta.ids.is_empty()
    }

    fn covers(&self, position: &Position, end: u64) -> bool {
        if !self.can_continue() || position.offset < self.start() || position.offset > end {
            return false;
        }
        let Some(at) = self.meta.ids.iter().position(|id| id.replid == position.replid) else { return false };
        // A newer id covers all that lies before it; an older one ends where the next begins.
        self.meta.ids.get(at + 1).is_none_or(|next| position.offset <= next.since)
    }
}

/// Files that are in nobody's way any more; one that cannot be deleted is deleted at the next start.
fn remove(paths: impl IntoIterator<Item = PathBuf>) {
    for path in paths {
        match std::fs::remove_file(&path) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                tracing::debug!(%error, path = %path.display(), "a file of the journal stays behind")
            }
        }
    }
}

pub(super) fn disk(message: impl Into<String>, cause: io::Error) -> Error {
    if cause.get_ref().is_some_and(|inner| inner.is::<Full>()) {
        return Error::passing(Side::Gateway, message).because(cause).remedy(
            "nothing more is taken from the source until the destination has caught up, or state.max_bytes is raised; the source keeps it in its output buffer and its backlog meanwhile",
        );
    }
    let full = cause.kind() == io::ErrorKind::StorageFull || cause.kind() == io::ErrorKind::QuotaExceeded;
    let error = Error::passing(Side::Gateway, message).because(cause);
    if full { error.remedy("make room on the file system of state_dir; it goes on by itself") } else { error }
}

#[cfg(test)]
mod tests;

//! The files of a journal: recovery when it is opened, and the writer of the stream.

use std::borrow::Borrow;
use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;

use super::meta::{self, Meta};
use super::record::{self, Front, MAX_PAYLOAD, RECORD_HEADER, SEGMENT_HEADER};
use super::snapshot::Progress;
use super::{Chunk, Inner, Journal, Segment};

/// Pending bytes that are worth a write at once.
const WORTH_A_WRITE: usize = 256 * 1024;

/// The writer's end of the stream.
#[derive(Debug, Default)]
pub(super) struct Tail {
    open: Option<Open>,
    /// In memory already, not yet on disk; the arrival is that of the first.
    pending: Vec<Bytes>,
    pending_bytes: usize,
    pending_since_ms: u64,
    scratch: Vec<u8>,
}

#[derive(Debug)]
struct Open {
    file: File,
    /// Up to here the file is good; a failed write is written over.
    length: u64,
}

pub(super) fn snapshot_path(dir: &Path, series: u64) -> PathBuf {
    dir.join(format!("snapshot-{series}.rdb"))
}

fn segment_path(dir: &Path, series: u64, base: u64) -> PathBuf {
    // Twenty digits hold every u64, so the names sort as the numbers do.
    dir.join(format!("stream-{series}-{base:020}.log"))
}

impl Journal {
    /// Takes bytes that have just arrived: readers can have them when this returns. Gives false when so much is pending
    /// that [`Self::flush`] must come before more.
    pub(in crate::replication) fn append(&self, bytes: Bytes) -> bool {
        let mut tail = self.tail.lock();
        if !bytes.is_empty() {
            let now = now_ms();
            if tail.pending.is_empty() {
                tail.pending_since_ms = now;
            }
            tail.pending_bytes += bytes.len();
            tail.pending.push(bytes.clone());
            let end = self.received() + bytes.len() as u64;
            let mut inner = self.shared.inner.lock();
            inner.recent_bytes += bytes.len();
            let offset = end + 1 - bytes.len() as u64;
            inner.recent.push_back(Chunk { offset, arrived_ms: now, bytes });
            inner.shrink(self.shared.options.recent_bytes);
            drop(inner);
            self.shared.end.send_replace(end);
        }
        tail.pending_bytes < WORTH_A_WRITE
    }

    /// Whether something is in memory that is not on disk.
    pub(in crate::replication) fn has_pending(&self) -> bool {
        !self.tail.lock().pending.is_empty()
    }

    /// Hands everything that is pending to the kernel.
    ///
    /// # Errors
    /// The disk is full, or fails. Everything stays pending, and readers have it all the same.
    pub(in crate::replication) fn flush(&self) -> io::Result<()> {
        let mut tail = self.tail.lock();
        let tail = &mut *tail;
        if tail.pending.is_empty() {
            return Ok(());
        }
        let (series, from) = {
            let inner = self.shared.inner.lock();
            self.shared.options.admit(inner.occupied() + tail.pending_bytes as u64)?;
            (inner.meta.series, inner.flushed)
        };
        if tail.open.is_none() {
            let path = segment_path(&self.shared.dir, series, from);
            let file = OpenOptions::new().write(true).create(true).truncate(true).open(&path)?;
            file.write_all_at(&record::segment_header(series, from), 0)?;
            tail.open = Some(Open { file, length: SEGMENT_HEADER as u64 });
            let mut inner = self.shared.inner.lock();
            if inner.segments.back().is_none_or(|last| last.base != from) {
                inner.segments.push_back(Segment { path, base: from });
            }
        }
        let Some(open) = tail.open.as_mut() else { return Ok(()) };
        tail.scratch.clear();
        // As few records as payloads allow; parts are cut where a record is full.
        let (mut parts, mut size, mut at) = (Vec::with_capacity(tail.pending.len()), 0, from);
        for bytes in &tail.pending {
            for part in bytes.chunks(MAX_PAYLOAD) {
                if size + part.len() > MAX_PAYLOAD {
                    record::encode(&mut tail.scratch, at + 1, tail.pending_since_ms, parts.drain(..));
                    at += size as u64;
                    size = 0;
                }
                size += part.len();
                parts.push(part);
            }
        }
        record::encode(&mut tail.scratch, at + 1, tail.pending_since_ms, parts.drain(..));
        drop(parts);
        open.file.write_all_at(&tail.scratch, open.length)?;
        open.length += tail.scratch.len() as u64;
        let length = open.length;
        if length >= self.shared.options.segment_bytes {
            tail.open = None;
        }
        let mut inner = self.shared.inner.lock();
        inner.length = length;
        inner.flushed = from + tail.pending_bytes as u64;
        inner.shrink(self.shared.options.recent_bytes);
        drop(inner);
        tail.pending.clear();
        tail.pending_bytes = 0;
        // One burst must not hold its memory for good.
        tail.scratch.shrink_to(2 * WORTH_A_WRITE);
        Ok(())
    }
}

impl Inner {
    /// Bytes of snapshot and stream on disk.
    fn occupied(&self) -> u64 {
        let stream = self.segments.front().map_or(0, |first| self.flushed.saturating_sub(first.base));
        stream + self.snapshot.as_ref().map_or(0, |snapshot| snapshot.bytes())
    }

    /// Lets go of what is on disk and beyond the bound.
    fn shrink(&mut self, most: usize) {
        while self.recent_bytes > most && self.recent.front().is_some_and(|chunk| chunk.end() <= self.flushed)
        {
            if let Some(chunk) = self.recent.pop_front() {
                self.recent_bytes -= chunk.bytes.len();
            }
        }
    }
}

fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

/// Reads what is in the folder, checks it, cuts off what a crash tore, and deletes what belongs to nothing.
pub(super) fn recover(dir: &Path) -> io::Result<(Inner, Tail)> {
    std::fs::create_dir_all(dir)?;
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        if let Some((series, base)) = entry.file_name().to_str().and_then(parse_name) {
            files.push((series, base, entry.path()));
        }
    }
    let mut meta = match Meta::load(dir)? {
        Some(meta) => meta,
        // Numbers are not used twice, even if the description was lost: somebody may remember them.
        None => Meta::empty(files.iter().map(|(series, _, _)| *series).max().unwrap_or(0)),
    };
    let described = meta.clone();
    let same_boot = meta.boot == meta::boot_id();
    meta.boot = meta::boot_id();
    let mut segments: Vec<Segment> = Vec::new();
    for (series, base, path) in files {
        match base {
            Some(base) if series == meta.series && base >= meta.base => segments.push(Segment { path, base }),
            None if series == meta.series && meta.snapshot.is_some() => {}
            _ => super::remove([path]),
        }
    }
    segments.sort_by_key(|segment| segment.base);

    let snapshot = meta.snapshot.clone().and_then(|stored| {
        let bytes = stored.bytes.filter(|_| stored.synced || same_boot)?;
        let length = std::fs::metadata(snapshot_path(dir, meta.series)).ok()?.len();
        (length == bytes).then(|| Progress::complete(bytes))
    });
    if meta.snapshot.is_some() && snapshot.is_none() {
        // The stream behind a snapshot that nobody has is worth nothing, unless it was loaded; then the destination's
        // position says where to go on, and the source is asked again.
        super::remove(segments.drain(..).map(|segment| segment.path));
        super::remove([snapshot_path(dir, meta.series)]);
        meta.snapshot = None;
        meta.ids.clear();
    }

    let (flushed, open) = check_segments(&mut segments, &meta, !same_boot)?;
    if meta != described {
        meta.store(dir)?;
    }
    let segments = VecDeque::from(segments);
    let length = open.as_ref().map_or(0, |open| open.length);
    let recent = VecDeque::new();
    let inner = Inner { meta, snapshot, segments, flushed, length, recent, recent_bytes: 0 };
    Ok((inner, Tail { open, ..Tail::default() }))
}

/// `stream-<series>-<base>.log` or `snapshot-<series>.rdb`.
fn parse_name(name: &str) -> Option<(u64, Option<u64>)> {
    if let Some(series) = name.strip_prefix("snapshot-").and_then(|rest| rest.strip_suffix(".rdb")) {
        return Some((series.parse().ok()?, None));
    }
    let (series, base) = name.strip_prefix("stream-")?.strip_suffix(".log")?.split_once('-')?;
    Some((series.parse().ok()?, Some(base.parse().ok()?)))
}

/// Finds the end of the stream: the last one of the segments is read, or all of them after a power loss. What is not a
/// continuation is deleted, a torn end cut off.
fn check_segments(segments: &mut Vec<Segment>, meta: &Meta, all: bool) -> io::Result<(u64, Option<Open>)> {
    let mut end = segments.first().map_or(meta.base, |first| first.base);
    let mut open = None;
    let mut good = 0;
    for at in 0..segments.len() {
        let Segment { path, base } = &segments[at];
        if *base != end {
            break;
        }
        if let Some(next) = segments.get(at + 1).filter(|_| !all) {
            end = next.base;
            good = at + 1;
            continue;
        }
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        let (length, last) = scan(&file, meta.series, *base)?;
        if length == 0 {
            break;
        }
        if file.metadata()?.len() > length {
            tracing::info!(path = %path.display(), length, "a torn record at the end of the journal is cut off");
            file.set_len(length)?;
        }
        end = last;
        good = at + 1;
        open = Some(Open { file, length });
    }
    super::remove(segments.drain(good..).map(|segment| segment.path));
    Ok((end, open))
}

/// The length of the good part of a segment, 0 if not even its header is good, and the offset of its last byte.
fn scan(file: &File, series: u64, base: u64) -> io::Result<(u64, u64)> {
    let mut blocks = Blocks::new(file);
    let mut header = [0; SEGMENT_HEADER];
    let mut reader = file;
    match reader.read_exact(&mut header) {
        Ok(()) if header == record::segment_header(series, base) => {}
        Ok(()) => return Ok((0, base)),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok((0, base)),
        Err(error) => return Err(error),
    }
    let (mut length, mut end) = (SEGMENT_HEADER as u64, base);
    while let Some((_, payload)) = blocks.next(end + 1, u64::MAX)? {
        length += (RECORD_HEADER + payload.len()) as u64;
        end += payload.len() as u64;
    }
    Ok((length, end))
}

/// Reads a segment's records through a large buffer.
#[derive(Debug)]
pub(super) struct Blocks<F> {
    file: F,
    /// Where in the file the buffer ends.
    at: u64,
    buffer: Bytes,
}

/// Bytes of one read from a segment; more when a record is larger.
pub(super) const BLOCK: usize = 1024 * 1024;

impl<F: Borrow<File>> Blocks<F> {
    /// Begins at the first record.
    pub(super) fn new(file: F) -> Self {
        Self { file, at: SEGMENT_HEADER as u64, buffer: Bytes::new() }
    }

    /// The record that begins at stream offset `offset`: its arrival and its payload. Nothing behind `limit` bytes of
    /// the file is looked at, since the writer may be at work there. `None`: there is no whole and good record.
    pub(super) fn next(&mut self, offset: u64, limit: u64) -> io::Result<Option<(u64, Bytes)>> {
        loop {
            match record::front(&self.buffer, offset) {
                Front::Record { arrived_ms, payload } => {
                    let record = self.buffer.split_to(RECORD_HEADER + payload);
                    return Ok(Some((arrived_ms, record.slice(RECORD_HEADER..))));
                }
                Front::Damaged => return Ok(None),
                Front::Short { need } => {
                    if self.fill(need, limit)? == 0 {
                        return Ok(None);
                    }
                }
            }
        }
    }

    fn fill(&mut self, need: usize, limit: u64) -> io::Result<usize> {
        let kept = self.buffer.len();
        let wanted = (need - kept).max(BLOCK);
        let more = usize::try_from(limit.saturating_sub(self.at)).map_or(wanted, |left| left.min(wanted));
        let mut next = vec![0; kept + more];
        next[..kept].copy_from_slice(&self.buffer);
        let mut filled = kept;
        while filled < next.len() {
            match self.file.borrow().read_at(&mut next[filled..], self.at) {
                Ok(0) => break,
                Ok(read) => {
                    filled += read;
                    self.at += read as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        next.truncate(filled);
        self.buffer = Bytes::from(next);
        Ok(filled - kept)
    }
}

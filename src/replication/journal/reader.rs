//! Follows the stream: from memory at its end, from the segments when it is behind.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::sync::Arc;

use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::store::{BLOCK, Blocks};
use super::{Chunk, Segment, Shared, disk};
use crate::error::{Error, Result, Side};

/// Pieces that are taken from memory at a time.
const HANDFUL: usize = 64;

/// Reads the stream in order, without a gap. Dropping [`Self::next`] midway loses nothing.
#[derive(Debug)]
pub struct JournalReader {
    shared: Arc<Shared>,
    series: u64,
    /// The last offset that was looked up; what is `ready` lies before it.
    after: u64,
    ready: VecDeque<Chunk>,
    end: watch::Receiver<u64>,
    file: Option<Position>,
    reading: Option<JoinHandle<io::Result<Read>>>,
}

/// A place in a segment: the file is open and its next record begins behind `after`.
#[derive(Debug)]
struct Position {
    base: u64,
    blocks: Blocks<File>,
    after: u64,
}

#[derive(Debug)]
struct Read {
    position: Position,
    chunks: VecDeque<Chunk>,
}

/// Where the next piece is.
enum Whereabouts {
    Ready,
    NotYet,
    /// In this segment, which can be read up to this stream offset and this length.
    File {
        segment: Segment,
        until: u64,
        limit: u64,
    },
}

impl JournalReader {
    pub(super) fn new(shared: Arc<Shared>, after: u64) -> Result<Self> {
        let end = shared.end.subscribe();
        let series = {
            let inner = shared.inner.lock();
            let (start, end) = (inner.start(), *end.borrow());
            if after < start || after > end {
                return Err(Error::new(
                    Side::Gateway,
                    format!("the journal holds the stream from offset {start} to {end}, not from {after}"),
                ));
            }
            inner.meta.series
        };
        Ok(Self { shared, series, after, ready: VecDeque::new(), end, file: None, reading: None })
    }

    /// The offset of the last byte that was given out.
    pub fn position(&self) -> u64 {
        self.ready.front().map_or(self.after, |chunk| chunk.offset - 1)
    }

    /// Whether a full synchronisation, or a new beginning elsewhere, has replaced the stream that this reader follows.
    pub fn is_superseded(&self) -> bool {
        self.shared.inner.lock().meta.series != self.series
    }

    /// The next piece; waits for it to arrive.
    ///
    /// # Errors
    /// The stream was replaced ([`Self::is_superseded`]), trimmed away under the reader, or is damaged on disk.
    pub async fn next(&mut self) -> Result<Chunk> {
        loop {
            if let Some(chunk) = self.ready.pop_front() {
                return Ok(chunk);
            }
            if let Some(reading) = &mut self.reading {
                let outcome = reading.await;
                self.reading = None;
                let read = outcome
                    .map_err(|cause| {
                        Error::passing(Side::Gateway, "reading the journal was stopped").because(cause)
                    })?
                    .map_err(|cause| self.failed(cause))?;
                self.after = read.position.after;
                self.file = Some(read.position);
                self.ready = read.chunks;
                continue;
            }
            // Seen before the look, so that what comes after the look wakes us.
            self.end.borrow_and_update();
            match self.look()? {
                Whereabouts::Ready => {}
                Whereabouts::NotYet => {
                    // The sender lives in `shared`.
                    let _ = self.end.changed().await;
                }
                Whereabouts::File { segment, until, limit } => {
                    let position = self.file.take();
                    let after = self.after;
                    self.reading = Some(tokio::task::spawn_blocking(move || {
                        read(position, &segment, after, until, limit)
                    }));
                }
            }
        }
    }

    /// The next piece if it is in memory. `None` does not mean that there is none: ask [`Self::next`].
    pub fn try_next(&mut self) -> Option<Chunk> {
        if self.ready.is_empty() && self.reading.is_none() {
            let _ = self.look();
        }
        self.ready.pop_front()
    }

    /// Takes from memory what is there, or says where it is.
    fn look(&mut self) -> Result<Whereabouts> {
        let inner = self.shared.inner.lock();
        if inner.meta.series != self.series {
            return Err(Error::passing(Side::Gateway, "the stream in the journal has begun anew"));
        }
        let from = inner.recent.partition_point(|chunk| chunk.end() <= self.after);
        match inner.recent.get(from) {
            Some(first) if first.offset <= self.after + 1 => {
                let chunks = inner.recent.range(from..).take(HANDFUL);
                self.ready.extend(chunks.filter_map(|chunk| chunk.clone().behind(self.after)));
                self.after = self.ready.back().map_or(self.after, Chunk::end);
                self.file = None;
                return Ok(Whereabouts::Ready);
            }
            _ => {}
        }
        if self.after >= inner.flushed {
            return Ok(Whereabouts::NotYet);
        }
        let next = inner.segments.partition_point(|segment| segment.base <= self.after);
        let Some(segment) = next.checked_sub(1).and_then(|at| inner.segments.get(at)) else {
            return Err(Error::new(
                Side::Gateway,
                format!("the journal no longer holds the stream behind offset {}", self.after),
            ));
        };
        let (until, limit) = match inner.segments.get(next) {
            Some(next) => (next.base, u64::MAX),
            None => (inner.flushed, inner.length),
        };
        Ok(Whereabouts::File { segment: segment.clone(), until, limit })
    }

    fn failed(&self, cause: io::Error) -> Error {
        if cause.kind() == io::ErrorKind::InvalidData {
            let message = format!("the journal is damaged on disk behind offset {}", self.after);
            return Error::new(Side::Gateway, message).because(cause);
        }
        disk("the journal cannot be read", cause)
    }
}

/// Reads records until a block's worth of the stream behind `after` is there, or offset `until`.
fn read(
    position: Option<Position>,
    segment: &Segment,
    after: u64,
    until: u64,
    limit: u64,
) -> io::Result<Read> {
    let mut position = match position {
        Some(position) if position.base == segment.base && position.after <= after => position,
        _ => Position {
            base: segment.base,
            blocks: Blocks::new(File::open(&segment.path)?),
            after: segment.base,
        },
    };
    let (mut chunks, mut size) = (VecDeque::new(), 0);
    while position.after < until && size < BLOCK {
        let offset = position.after + 1;
        let Some((arrived_ms, bytes)) = position.blocks.next(offset, limit)? else {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("no good record at offset {offset} in {}", segment.path.display()),
            ));
        };
        position.after += bytes.len() as u64;
        if let Some(chunk) = (Chunk { offset, arrived_ms, bytes }).behind(after) {
            size += chunk.bytes.len();
            chunks.push_back(chunk);
        }
    }
    Ok(Read { position, chunks })
}

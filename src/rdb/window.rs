//! The stretch of the file that is in memory, and the checksum over all that has passed.
//!
//! ```text
//! buf   | …passed… | kept: the record being scanned | not scanned yet | free |
//!       0          mark                             pos               end    buf.len()
//! ```
//! While `keep` is set, the bytes from `mark` on stay, and the buffer doubles when they fill it, up to the limit for
//! one record; else bytes are let go as they are taken.

use std::io::{ErrorKind, Read};

use super::dump::Checksum;
use super::error::What;
use super::input::Input;

/// A record's bytes are a slice of this; larger only while one record needs it. Fits the second-level cache.
const BASE: usize = 256 * 1024;

pub(super) struct Window<R> {
    from: R,
    buf: Vec<u8>,
    mark: usize,
    pos: usize,
    end: usize,
    keep: bool,
    /// Kept bytes above this (counted from `mark`) are [`What::TooBig`].
    limit: usize,
    /// Offset in the file of `buf[0]`.
    base: u64,
    checksum: Checksum,
    /// Everything before this is in the checksum.
    summed: usize,
}

impl<R: Read> Window<R> {
    pub(super) fn new(from: R) -> Self {
        Self {
            from,
            buf: vec![0; BASE],
            mark: 0,
            pos: 0,
            end: 0,
            keep: false,
            limit: usize::MAX,
            base: 0,
            checksum: Checksum::default(),
            summed: 0,
        }
    }

    /// Keeps the bytes from here on, up to `limit` of them.
    pub(super) fn keep(&mut self, limit: usize) {
        self.keep = true;
        self.mark = self.pos;
        self.limit = limit;
    }

    /// Keeps nothing from here on.
    pub(super) fn release(&mut self) {
        self.keep = false;
    }

    /// Sets the limit to `more` bytes from the current place.
    pub(super) fn limit_from_here(&mut self, more: usize) {
        self.limit = self.taken().saturating_add(more);
    }

    /// Bytes taken since [`Window::keep`].
    pub(super) fn taken(&self) -> usize {
        self.pos - self.mark
    }

    /// Goes back to the place where `taken()` was `taken`, and keeps nothing from there on.
    pub(super) fn release_from(&mut self, taken: usize) {
        self.pos = self.mark + taken;
        self.keep = false;
    }

    /// Bytes kept, by their place since [`Window::keep`].
    pub(super) fn kept(&self, from: usize, to: usize) -> &[u8] {
        &self.buf[self.mark + from..self.mark + to]
    }

    /// The checksum of everything taken so far.
    pub(super) fn sum(&mut self) -> u64 {
        self.checksum.update(&self.buf[self.summed..self.pos]);
        self.summed = self.pos;
        self.checksum.value()
    }

    /// Makes `n` bytes available at `pos`.
    #[cold]
    fn fill(&mut self, n: usize) -> Result<(), What> {
        if self.keep && self.taken().saturating_add(n) > self.limit {
            return Err(What::TooBig);
        }
        let first = if self.keep { self.mark } else { self.pos };
        if self.summed < first {
            self.checksum.update(&self.buf[self.summed..first]);
            self.summed = first;
        }
        self.buf.copy_within(first..self.end, 0);
        self.base += first as u64;
        self.pos -= first;
        self.mark = 0;
        self.end -= first;
        self.summed -= first;
        if self.buf.len() > BASE && self.end < BASE / 2 && n < BASE / 2 {
            self.buf.truncate(BASE);
            self.buf.shrink_to_fit();
        }
        while self.end - self.pos < n {
            if self.end == self.buf.len() {
                // Doubling bytes that were seen: a length that lies costs nothing. Not beyond what may be kept.
                let most = if self.keep { self.limit.saturating_add(BASE) } else { usize::MAX };
                let grown = (self.buf.len() * 2).min(most.max(self.end + BASE));
                self.buf.reserve_exact(grown - self.buf.len());
                self.buf.resize(grown, 0);
            }
            match self.from.read(&mut self.buf[self.end..]) {
                Ok(0) => return Err(What::Truncated),
                Ok(read) => self.end += read,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(What::Io(error)),
            }
        }
        Ok(())
    }
}

impl<R: Read> Input for Window<R> {
    #[inline]
    fn take(&mut self, n: usize) -> Result<&[u8], What> {
        if self.end - self.pos < n {
            self.fill(n)?;
        }
        let from = self.pos;
        self.pos += n;
        Ok(&self.buf[from..self.pos])
    }

    #[inline]
    fn byte(&mut self) -> Result<u8, What> {
        if self.pos == self.end {
            self.fill(1)?;
        }
        let byte = self.buf[self.pos];
        self.pos += 1;
        Ok(byte)
    }

    fn offset(&self) -> u64 {
        self.base + self.pos as u64
    }

    #[inline]
    fn skip(&mut self, n: u64) -> Result<(), What> {
        if ((self.end - self.pos) as u64) >= n {
            self.pos += n as usize;
            return Ok(());
        }
        if self.keep {
            let n = usize::try_from(n).map_err(|_| What::TooBig)?;
            self.fill(n)?;
            self.pos += n;
            return Ok(());
        }
        let mut left = n;
        while left > 0 {
            if self.pos == self.end {
                self.fill(1)?;
            }
            let step = left.min((self.end - self.pos) as u64);
            self.pos += step as usize;
            left -= step;
        }
        Ok(())
    }
}

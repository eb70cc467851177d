//! Bytes on their way out: small pieces are copied together, large ones pass as they are.
//!
//! A socket is written from an [`OutBuf`] with one vectored call. Copying beats a chain of pieces up to
//! about 1.5 KiB; only pieces above [`LARGE`] are kept apart, so that a stream of small replies leaves as
//! one slice.

use std::collections::VecDeque;
use std::io::IoSlice;

use bytes::Bytes;

/// From this size on a piece that is already shared is not copied.
pub(super) const LARGE: usize = 16 * 1024;
/// An empty buffer keeps at most this much memory: there are as many as there are clients.
const KEEP: usize = 2 * 1024;
/// Slices of one vectored write.
pub(super) const SLICES: usize = 8;
/// Bytes that one task moves before others have their turn: what takes a worker about 0.1 ms. A client with large values
/// would otherwise make all those beside it wait for as long as the sockets take and give.
pub(super) const TURN: usize = 256 * 1024;

/// From this size on a piece is given back to the system by another thread: it takes the kernel some 10 ms for 100 MiB, and all
/// clients of the worker would wait.
const HUGE: usize = 4 * 1024 * 1024;

fn give_back(piece: Bytes) {
    if piece.len() >= HUGE {
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn_blocking(move || drop(piece));
        }
    }
}

/// A queue of bytes.
#[derive(Debug, Default)]
pub(super) struct OutBuf {
    /// Whole pieces in front of `tail`.
    front: VecDeque<Bytes>,
    /// Bytes of the first piece (of `tail` when there is none) that are already gone.
    gone: usize,
    tail: Vec<u8>,
    len: usize,
}

impl OutBuf {
    /// Bytes that wait.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Copies bytes to the end.
    #[inline]
    pub(super) fn extend(&mut self, bytes: &[u8]) {
        self.tail.extend_from_slice(bytes);
        self.len += bytes.len();
    }

    /// Copies bytes to the end; many of them as a piece of their own, so that the buffer need not grow in one piece.
    #[inline]
    pub(super) fn take(&mut self, bytes: &[u8]) {
        if bytes.len() < LARGE { self.extend(bytes) } else { self.push(Bytes::copy_from_slice(bytes)) }
    }

    /// Puts a shared piece at the end, without copying when it is large.
    pub(super) fn push(&mut self, bytes: Bytes) {
        if bytes.len() < LARGE {
            return self.extend(&bytes);
        }
        self.seal();
        self.len += bytes.len();
        self.front.push_back(bytes);
    }

    /// Makes `tail` a piece of its own.
    fn seal(&mut self) {
        if self.tail.is_empty() {
            return;
        }
        let mut piece = Bytes::from(std::mem::take(&mut self.tail));
        if self.front.is_empty() && self.gone > 0 {
            piece = piece.slice(self.gone..);
            self.gone = 0;
        }
        if !piece.is_empty() {
            self.front.push_back(piece);
        }
    }

    /// Fills `slices` with what comes next, up to [`TURN`] bytes; the number of slices.
    pub(super) fn slices<'a>(&'a self, slices: &mut [IoSlice<'a>; SLICES]) -> usize {
        let mut count = 0;
        let mut gone = self.gone;
        let mut room = TURN;
        for piece in self.front.iter().take(SLICES - 1) {
            let piece = &piece[gone..];
            slices[count] = IoSlice::new(&piece[..piece.len().min(room)]);
            gone = 0;
            count += 1;
            if piece.len() >= room {
                return count;
            }
            room -= piece.len();
        }
        if count == self.front.len() && self.tail.len() > gone {
            let rest = &self.tail[gone..];
            slices[count] = IoSlice::new(&rest[..rest.len().min(room)]);
            count += 1;
        }
        count
    }

    /// Drops `n` bytes from the front.
    pub(super) fn advance(&mut self, mut n: usize) {
        debug_assert!(n <= self.len);
        self.len -= n;
        while let Some(piece) = self.front.front() {
            let left = piece.len() - self.gone;
            if n < left {
                self.gone += n;
                return;
            }
            n -= left;
            self.gone = 0;
            if let Some(piece) = self.front.pop_front() {
                give_back(piece);
            }
        }
        self.gone += n;
        if self.gone >= self.tail.len() {
            self.gone = 0;
            if self.tail.capacity() > KEEP {
                self.tail = Vec::new();
            } else {
                self.tail.clear();
            }
        } else if self.gone > 1024 * 1024 {
            self.tail.drain(..self.gone);
            self.gone = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drain(buf: &mut OutBuf, step: usize) -> Vec<u8> {
        let mut all = Vec::new();
        while !buf.is_empty() {
            let mut slices = [IoSlice::new(&[]); SLICES];
            let count = buf.slices(&mut slices);
            assert!(count > 0, "bytes wait but no slice shows them");
            let mut taken = 0;
            for slice in &slices[..count] {
                let take = slice.len().min(step - taken);
                all.extend_from_slice(&slice[..take]);
                taken += take;
                if taken == step {
                    break;
                }
            }
            buf.advance(taken);
        }
        all
    }

    #[test]
    fn keeps_order_whatever_the_sizes() {
        for step in [1, 7, 4096, 1 << 20] {
            let mut buf = OutBuf::default();
            let mut expected = Vec::new();
            for i in 0..40usize {
                let piece = vec![i as u8; if i % 3 == 0 { LARGE + i } else { i * 11 }];
                expected.extend_from_slice(&piece);
                if i % 2 == 0 {
                    buf.push(Bytes::from(piece))
                } else {
                    buf.extend(&piece)
                }
                if i == 20 {
                    let mut slices = [IoSlice::new(&[]); SLICES];
                    buf.slices(&mut slices);
                }
            }
            assert_eq!(buf.len(), expected.len());
            if step > 1 || expected.len() < 1 << 20 {
                assert_eq!(drain(&mut buf, step), expected);
            }
        }
    }

    #[test]
    fn a_partly_written_tail_survives_a_large_piece() {
        let mut buf = OutBuf::default();
        buf.extend(b"hello world");
        buf.advance(6);
        buf.push(Bytes::from(vec![b'x'; LARGE]));
        let all = drain(&mut buf, 100);
        assert_eq!(&all[..5], b"world");
        assert_eq!(all.len(), 5 + LARGE);
    }
}

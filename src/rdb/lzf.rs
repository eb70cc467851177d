//! LZF, the compression of strings in RDB files.
//!
//! ```text
//! 000nnnnn                       n + 1 literal bytes follow
//! lllddddd dddddddd   (l 1..=6)  copy l + 2 bytes from d + 1 bytes back
//! 111ddddd llllllll dddddddd     copy l + 9 bytes from d + 1 bytes back
//! ```
//! A reference reaches back at most 8192 bytes, so expansion needs no more memory than that window.

use super::error::What;
use super::input::Input;

const WINDOW: usize = 8192;
const BROKEN: What = What::Corrupt("a compressed string does not expand as it claims");

/// Appends the expansion of `data` to `out`; it must give exactly `expanded` bytes.
pub(crate) fn expand(data: &[u8], expanded: usize, out: &mut Vec<u8>) -> Result<(), What> {
    let start = out.len();
    // Bounded by what the input can really give: 264 bytes from each 3.
    out.reserve(expanded.min(data.len().saturating_mul(88)));
    let mut at = 0;
    while at < data.len() {
        let control = usize::from(data[at]);
        at += 1;
        if control < 32 {
            let literal = data.get(at..at + control + 1).ok_or(BROKEN)?;
            out.extend_from_slice(literal);
            at += control + 1;
        } else {
            let mut count = control >> 5;
            if count == 7 {
                count += usize::from(*data.get(at).ok_or(BROKEN)?);
                at += 1;
            }
            let low = usize::from(*data.get(at).ok_or(BROKEN)?);
            at += 1;
            let distance = ((control & 31) << 8 | low) + 1;
            repeat(out, start, distance, count + 2)?;
        }
        if out.len() - start > expanded {
            return Err(BROKEN);
        }
    }
    if out.len() - start == expanded { Ok(()) } else { Err(BROKEN) }
}

/// Appends `count` bytes that stand `distance` back; source and target may overlap.
fn repeat(out: &mut Vec<u8>, start: usize, distance: usize, mut count: usize) -> Result<(), What> {
    let mut from = out.len().checked_sub(distance).filter(|from| *from >= start).ok_or(BROKEN)?;
    while count > 0 {
        let step = count.min(out.len() - from);
        out.extend_from_within(from..from + step);
        from += step;
        count -= step;
    }
    Ok(())
}

/// Expands while it is read, in memory that does not grow with the string.
pub(crate) struct Expander<'a> {
    inner: &'a mut dyn Input,
    compressed_left: u64,
    expanded_left: u64,
    window: Vec<u8>,
    at: usize,
}

impl<'a> Expander<'a> {
    pub(crate) fn new(inner: &'a mut dyn Input, compressed: u64, expanded: u64) -> Self {
        Self { inner, compressed_left: compressed, expanded_left: expanded, window: Vec::new(), at: 0 }
    }

    /// How many bytes were not taken yet, of those that the head promised.
    pub(crate) fn left(&self) -> u64 {
        self.expanded_left + (self.window.len() - self.at) as u64
    }

    fn compressed(&mut self, n: usize) -> Result<&[u8], What> {
        self.compressed_left = self.compressed_left.checked_sub(n as u64).ok_or(BROKEN)?;
        self.inner.take(n)
    }

    fn compressed_byte(&mut self) -> Result<usize, What> {
        Ok(usize::from(self.compressed(1)?[0]))
    }

    /// Runs one LZF operation.
    fn step(&mut self) -> Result<(), What> {
        let before = self.window.len();
        let control = self.compressed_byte()?;
        if control < 32 {
            self.compressed_left = self.compressed_left.checked_sub(control as u64 + 1).ok_or(BROKEN)?;
            self.window.extend_from_slice(self.inner.take(control + 1)?);
        } else {
            let mut count = control >> 5;
            if count == 7 {
                count += self.compressed_byte()?;
            }
            let distance = ((control & 31) << 8 | self.compressed_byte()?) + 1;
            repeat(&mut self.window, 0, distance, count + 2)?;
        }
        let grown = (self.window.len() - before) as u64;
        self.expanded_left = self.expanded_left.checked_sub(grown).ok_or(BROKEN)?;
        Ok(())
    }

    /// Checks that both sides ended together.
    pub(crate) fn finish(self) -> Result<(), What> {
        if self.compressed_left == 0 && self.left() == 0 { Ok(()) } else { Err(BROKEN) }
    }
}

impl Input for Expander<'_> {
    fn take(&mut self, n: usize) -> Result<&[u8], What> {
        if n as u64 > self.left() {
            return Err(What::Corrupt("an element reaches past its container"));
        }
        while self.window.len() - self.at < n {
            // Drop what was taken, in steps that keep the copying small against the expansion.
            if self.at > 16 * WINDOW {
                self.window.drain(..self.at - WINDOW);
                self.at = WINDOW;
            }
            self.step()?;
        }
        let from = self.at;
        self.at += n;
        Ok(&self.window[from..self.at])
    }
}

#[cfg(test)]
mod tests {
    use super::super::input::Slice;
    use super::*;

    fn both(data: &[u8], expanded: usize) -> Result<Vec<u8>, What> {
        let mut out = b"before".to_vec();
        let whole = expand(data, expanded, &mut out).map(|()| out.split_off(6));
        let mut slice = Slice::new(data);
        let mut expander = Expander::new(&mut slice, data.len() as u64, expanded as u64);
        let mut parts = Vec::new();
        let streamed = (|| {
            while expander.left() > 0 {
                let n = expander.left().min(7) as usize;
                parts.extend_from_slice(expander.take(n)?);
            }
            expander.finish()
        })();
        assert_eq!(whole.is_ok(), streamed.is_ok());
        if let Ok(whole) = &whole {
            assert_eq!(whole, &parts);
        }
        whole
    }

    #[test]
    fn literals_and_overlapping_references() {
        assert_eq!(both(b"\x02abc", 3).unwrap(), b"abc");
        // "a" then 10 bytes from one byte back.
        assert_eq!(both(b"\x00a\xe0\x01\x00", 11).unwrap(), b"aaaaaaaaaaa");
        assert_eq!(both(b"\x01ab\x40\x01", 6).unwrap(), b"ababab");
    }

    #[test]
    fn lies_are_refused() {
        assert!(both(b"\x02ab", 3).is_err());
        assert!(both(b"\x02abc", 4).is_err());
        assert!(both(b"\x02abc", 2).is_err());
        assert!(both(b"\x00a\x20\x05", 4).is_err());
        assert!(both(b"\xe0", 9).is_err());
        assert!(both(b"\x00a\xe0\x01", 9).is_err());
    }

    proptest::proptest! {
        #[test]
        fn never_panics(data in proptest::collection::vec(proptest::num::u8::ANY, 0..200), expanded in 0usize..1000) {
            let _ = both(&data, expanded);
        }
    }
}

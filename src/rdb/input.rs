//! Where the decoders take bytes from: a slice, the file's window, a limited part of either, or expanded LZF.
//!
//! Every decoder is written once over [`Input`], so a value that fits memory and one that does not are decoded by
//! the same code.

use super::error::What;

/// A forward-only supply of bytes.
pub(crate) trait Input {
    /// The next `n` bytes, consumed. Implementations must not allocate for `n` before they have seen the bytes.
    fn take(&mut self, n: usize) -> Result<&[u8], What>;

    /// One byte.
    fn byte(&mut self) -> Result<u8, What> {
        Ok(self.take(1)?[0])
    }

    /// Offset in the file of the next byte, where there is a file.
    fn offset(&self) -> u64 {
        0
    }

    /// Consumes `n` bytes without looking at them.
    fn skip(&mut self, mut n: u64) -> Result<(), What> {
        const STEP: u64 = 64 * 1024;
        while n > 0 {
            let step = n.min(STEP);
            self.take(step as usize)?;
            n -= step;
        }
        Ok(())
    }
}

/// Fixed-size little- and big-endian numbers, over any input.
pub(crate) trait Numbers: Input {
    fn array<const N: usize>(&mut self) -> Result<[u8; N], What> {
        let mut bytes = [0; N];
        bytes.copy_from_slice(self.take(N)?);
        Ok(bytes)
    }
    fn u32_le(&mut self) -> Result<u32, What> {
        Ok(u32::from_le_bytes(self.array()?))
    }
    fn u32_be(&mut self) -> Result<u32, What> {
        Ok(u32::from_be_bytes(self.array()?))
    }
    fn u64_le(&mut self) -> Result<u64, What> {
        Ok(u64::from_le_bytes(self.array()?))
    }
    fn u64_be(&mut self) -> Result<u64, What> {
        Ok(u64::from_be_bytes(self.array()?))
    }
}

impl<I: Input + ?Sized> Numbers for I {}

/// Bytes in memory.
pub(crate) struct Slice<'a> {
    left: &'a [u8],
}

impl<'a> Slice<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { left: bytes }
    }

    /// What was not consumed yet.
    pub(crate) fn rest(&self) -> &'a [u8] {
        self.left
    }

    /// As [`Input::take`], but the bytes live as long as the slice.
    pub(crate) fn take_long(&mut self, n: usize) -> Result<&'a [u8], What> {
        let (taken, left) = self.left.split_at_checked(n).ok_or(What::Truncated)?;
        self.left = left;
        Ok(taken)
    }
}

impl Input for Slice<'_> {
    #[inline]
    fn take(&mut self, n: usize) -> Result<&[u8], What> {
        self.take_long(n)
    }

    fn skip(&mut self, n: u64) -> Result<(), What> {
        let n = usize::try_from(n).map_err(|_| What::Truncated)?;
        self.take_long(n).map(drop)
    }
}

/// The next `left` bytes of another input and no more: a listpack inside a string never reads past the string.
pub(crate) struct Within<'a> {
    inner: &'a mut dyn Input,
    left: u64,
}

impl<'a> Within<'a> {
    pub(crate) fn new(inner: &'a mut dyn Input, left: u64) -> Self {
        Self { inner, left }
    }

    /// How many bytes were not consumed.
    pub(crate) fn left(&self) -> u64 {
        self.left
    }
}

impl Input for Within<'_> {
    fn take(&mut self, n: usize) -> Result<&[u8], What> {
        self.left =
            self.left.checked_sub(n as u64).ok_or(What::Corrupt("an element reaches past its container"))?;
        self.inner.take(n)
    }
}

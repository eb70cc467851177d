//! Strings: as stored, and as bytes.

use super::error::What;
use super::input::{Input, Slice, Within};
use super::length::{StringHead, string_head};
use super::lzf;

/// A string as it is stored in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Text<'a> {
    /// The bytes themselves.
    Raw(&'a [u8]),
    /// The decimal text of this number.
    Integer(i64),
    /// LZF-compressed.
    Lzf {
        /// Compressed bytes.
        data: &'a [u8],
        /// Length after expansion, as the file claims.
        expanded: usize,
    },
}

impl<'a> Text<'a> {
    pub(crate) fn read(from: &mut Slice<'a>) -> Result<Self, What> {
        Ok(match string_head(from)? {
            StringHead::Raw(n) => Self::Raw(from.take_long(size(n)?)?),
            StringHead::Integer(n) => Self::Integer(n),
            StringHead::Lzf { compressed, expanded } => {
                Self::Lzf { data: from.take_long(size(compressed)?)?, expanded: size(expanded)? }
            }
        })
    }

    /// Length of the string in bytes; for a compressed one, as the file claims.
    pub fn len(&self) -> usize {
        match self {
            Self::Raw(bytes) => bytes.len(),
            Self::Integer(n) => itoa::Buffer::new().format(*n).len(),
            Self::Lzf { expanded, .. } => *expanded,
        }
    }

    /// Whether it is the empty string.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Appends the string's bytes. After an error, what was appended is meaningless.
    pub fn append_to(&self, out: &mut Vec<u8>) -> Result<(), What> {
        match self {
            Self::Raw(bytes) => out.extend_from_slice(bytes),
            Self::Integer(n) => out.extend_from_slice(itoa::Buffer::new().format(*n).as_bytes()),
            Self::Lzf { data, expanded } => lzf::expand(data, *expanded, out)?,
        }
        Ok(())
    }
}

fn size(n: u64) -> Result<usize, What> {
    usize::try_from(n).map_err(|_| What::Truncated)
}

/// Consumes a string without looking inside.
#[inline]
pub(crate) fn skip_string<I: Input + ?Sized>(input: &mut I) -> Result<(), What> {
    match string_head(input)? {
        StringHead::Raw(n) => input.skip(n),
        StringHead::Integer(_) => Ok(()),
        StringHead::Lzf { compressed, .. } => input.skip(compressed),
    }
}

/// Appends a whole string to `out`: for field names, members, and what else has to be in memory at once.
pub(crate) fn read_string(input: &mut dyn Input, out: &mut Vec<u8>) -> Result<(), What> {
    in_pieces(input, 64 * 1024, &mut |piece| {
        out.extend_from_slice(piece);
        Ok(())
    })
}

/// Hands out a string in pieces of at most `limit` bytes; the empty string is one empty piece.
pub(crate) fn in_pieces(
    input: &mut dyn Input,
    limit: usize,
    each: &mut dyn FnMut(&[u8]) -> Result<(), What>,
) -> Result<(), What> {
    match string_head(input)? {
        StringHead::Integer(n) => each(itoa::Buffer::new().format(n).as_bytes()),
        StringHead::Raw(0) => each(b""),
        StringHead::Raw(mut left) => {
            while left > 0 {
                let n = left.min(limit as u64);
                each(input.take(n as usize)?)?;
                left -= n;
            }
            Ok(())
        }
        StringHead::Lzf { compressed, expanded } => {
            let mut expander = lzf::Expander::new(input, compressed, expanded);
            while expander.left() > 0 {
                let n = expander.left().min(limit as u64);
                each(expander.take(n as usize)?)?;
            }
            expander.finish()
        }
    }
}

/// Lets `decode` read the bytes inside a string, compressed or not; it must consume them all.
pub(crate) fn inside<T>(
    input: &mut dyn Input,
    decode: &mut dyn FnMut(&mut dyn Input) -> Result<T, What>,
) -> Result<T, What> {
    const REST: What = What::Corrupt("a packed value ends before its container does");
    match string_head(input)? {
        StringHead::Raw(n) => {
            let mut within = Within::new(input, n);
            let value = decode(&mut within)?;
            if within.left() == 0 { Ok(value) } else { Err(REST) }
        }
        StringHead::Lzf { compressed, expanded } => {
            let mut expander = lzf::Expander::new(input, compressed, expanded);
            let value = decode(&mut expander)?;
            if expander.left() > 0 {
                return Err(REST);
            }
            expander.finish()?;
            Ok(value)
        }
        StringHead::Integer(_) => Err(What::Corrupt("a number where a packed value must stand")),
    }
}

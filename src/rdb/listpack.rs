//! Listpacks: small lists, hashes, sets and sorted sets since 7.0, and the nodes of streams since 5.0.
//!
//! ```text
//! total bytes (u32 LE)  elements (u16 LE, 65535 = count them)  element*  0xFF
//! element = head [data] backlen       backlen = length of head and data, 1 to 5 bytes by its size
//!   0nnnnnnn 7-bit number               10nnnnnn string of n         110nnnnn n 13-bit number, signed
//!   1110nnnn n string of 12-bit length  11110000 u32 LE string       11110001..4 i16, i24, i32, i64 LE
//! ```

use super::error::What;
use super::input::{Input, Numbers};

/// One element of a packed container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Element<'a> {
    Text(&'a [u8]),
    Integer(i64),
}

impl Element<'_> {
    /// The number that this element is, also when it is stored as text.
    pub(crate) fn number(&self) -> Result<i64, What> {
        match self {
            Self::Integer(n) => Ok(*n),
            Self::Text(text) => std::str::from_utf8(text)
                .ok()
                .and_then(|text| text.parse().ok())
                .ok_or(What::Corrupt("text where a number must stand")),
        }
    }
}

/// Reads the header. The count in it is not needed: the end is marked.
pub(crate) fn begin(input: &mut dyn Input) -> Result<(), What> {
    input.take(6).map(drop)
}

/// Bytes that hold the length of an element whose head and data take `n` bytes.
fn backlen(n: usize) -> usize {
    match n {
        0..=127 => 1,
        128..=16_382 => 2,
        16_383..=2_097_150 => 3,
        2_097_151..=268_435_454 => 4,
        _ => 5,
    }
}

/// The next element, or `None` after the last one.
pub(crate) fn next(input: &mut dyn Input) -> Result<Option<Element<'_>>, What> {
    let head = input.byte()?;
    let (width, length) = match head {
        0x00..=0x7f => {
            input.take(1)?;
            return Ok(Some(Element::Integer(i64::from(head))));
        }
        0x80..=0xbf => (1, usize::from(head & 0x3f)),
        0xc0..=0xdf => {
            let low = input.take(2)?[0];
            // 13 bits, two's complement.
            let raw = i64::from(head & 0x1f) << 8 | i64::from(low);
            return Ok(Some(Element::Integer(if raw >= 1 << 12 { raw - (1 << 13) } else { raw })));
        }
        0xe0..=0xef => (2, usize::from(head & 0x0f) << 8 | usize::from(input.byte()?)),
        0xf0 => (5, input.u32_le()? as usize),
        0xf1 => return integer(input, 2),
        0xf2 => return integer(input, 3),
        0xf3 => return integer(input, 4),
        0xf4 => return integer(input, 8),
        0xff => return Ok(None),
        _ => return Err(What::Corrupt("a listpack element has an unknown encoding")),
    };
    let taken = input.take(length + backlen(width + length))?;
    Ok(Some(Element::Text(&taken[..length])))
}

fn integer(input: &mut dyn Input, width: usize) -> Result<Option<Element<'_>>, What> {
    let taken = input.take(width + 1)?;
    Ok(Some(Element::Integer(little_endian(&taken[..width]))))
}

/// A signed little-endian number of 1 to 8 bytes.
pub(crate) fn little_endian(bytes: &[u8]) -> i64 {
    let mut wide = [0; 8];
    wide[..bytes.len()].copy_from_slice(bytes);
    let unused = 64 - 8 * bytes.len() as u32;
    (i64::from_le_bytes(wide) << unused) >> unused
}

/// The next element, which must be there and be a number.
pub(crate) fn number(input: &mut dyn Input) -> Result<i64, What> {
    next(input)?.ok_or(What::Corrupt("a listpack ends too early"))?.number()
}

#[cfg(test)]
mod tests {
    use super::super::input::Slice;
    use super::*;

    #[test]
    fn numbers_of_every_width() {
        for (bytes, expected) in [
            (&b"\x7f\x01"[..], 127),
            (b"\xc0\x80\x02", 128),
            (b"\xdf\xff\x02", -1),
            (b"\xd0\x00\x02", -4096),
            (b"\xf1\x00\x80\x03", -32768),
            (b"\xf2\xff\xff\xff\x04", -1),
            (b"\xf3\x00\x00\x00\x80\x05", i64::from(i32::MIN)),
            (b"\xf4\xff\xff\xff\xff\xff\xff\xff\x7f\x09", i64::MAX),
        ] {
            let mut slice = Slice::new(bytes);
            assert_eq!(next(&mut slice).unwrap(), Some(Element::Integer(expected)));
            assert!(slice.rest().is_empty());
        }
    }

    #[test]
    fn strings_and_the_end() {
        let mut slice = Slice::new(b"\x83abc\x04\xe0\x03xyz\x05\xf0\x01\x00\x00\x00q\x06\xff");
        for expected in [&b"abc"[..], b"xyz", b"q"] {
            assert_eq!(next(&mut slice).unwrap(), Some(Element::Text(expected)));
        }
        assert_eq!(next(&mut slice).unwrap(), None);
        assert!(next(&mut slice).is_err());
    }
}

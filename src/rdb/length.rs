//! Lengths, and the heads of strings.

use super::error::What;
use super::input::{Input, Numbers};

/// A decoded length field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Length {
    /// A number.
    Plain(u64),
    /// `11eeeeee`: a special encoding of a string.
    Encoded(u8),
}

/// Reads a length field of any form.
#[inline]
pub(crate) fn length_or_encoding<I: Input + ?Sized>(input: &mut I) -> Result<Length, What> {
    let first = input.byte()?;
    Ok(match first >> 6 {
        0 => Length::Plain(u64::from(first & 0x3f)),
        1 => Length::Plain(u64::from(first & 0x3f) << 8 | u64::from(input.byte()?)),
        2 if first == 0x80 => Length::Plain(u64::from(input.u32_be()?)),
        2 if first == 0x81 => Length::Plain(input.u64_be()?),
        2 => return Err(What::Corrupt("a length begins with an unknown byte")),
        _ => Length::Encoded(first & 0x3f),
    })
}

/// Reads a length that must be a number.
#[inline]
pub(crate) fn length<I: Input + ?Sized>(input: &mut I) -> Result<u64, What> {
    match length_or_encoding(input)? {
        Length::Plain(n) => Ok(n),
        Length::Encoded(_) => Err(What::Corrupt("a string encoding where a number must stand")),
    }
}

/// How a string is stored; its bytes follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StringHead {
    /// That many bytes follow.
    Raw(u64),
    /// Nothing follows: the string is the text of this number.
    Integer(i64),
    /// `compressed` bytes follow, which expand to `expanded` bytes.
    Lzf { compressed: u64, expanded: u64 },
}

/// Reads the head of a string.
#[inline]
pub(crate) fn string_head<I: Input + ?Sized>(input: &mut I) -> Result<StringHead, What> {
    Ok(match length_or_encoding(input)? {
        Length::Plain(n) => StringHead::Raw(n),
        Length::Encoded(0) => StringHead::Integer(i64::from(input.byte()? as i8)),
        Length::Encoded(1) => StringHead::Integer(i64::from(i16::from_le_bytes(input.array()?))),
        Length::Encoded(2) => StringHead::Integer(i64::from(i32::from_le_bytes(input.array()?))),
        Length::Encoded(3) => {
            let compressed = length(input)?;
            let expanded = length(input)?;
            // One LZF operation of 3 bytes gives at most 264; anything above that ratio is a lie.
            if expanded / 264 > compressed {
                return Err(What::Corrupt("a compressed string claims more than it can hold"));
            }
            StringHead::Lzf { compressed, expanded }
        }
        Length::Encoded(_) => return Err(What::Corrupt("a string has an unknown encoding")),
    })
}

#[cfg(test)]
mod tests {
    use super::super::input::Slice;
    use super::*;

    #[test]
    fn every_form_of_a_length() {
        for (bytes, expected) in [
            (&b"\x00"[..], 0),
            (b"\x3f", 63),
            (b"\x40\x40", 64),
            (b"\x7f\xff", 16383),
            (b"\x80\x00\x00\x40\x00", 16384),
            (b"\x81\x00\x00\x00\x01\x00\x00\x00\x00", 1 << 32),
        ] {
            assert_eq!(length(&mut Slice::new(bytes)).unwrap(), expected);
            for cut in 0..bytes.len() {
                assert!(matches!(length(&mut Slice::new(&bytes[..cut])), Err(What::Truncated)));
            }
        }
        assert!(length(&mut Slice::new(b"\x82")).is_err());
        assert!(length(&mut Slice::new(b"\xc0\x01")).is_err());
    }

    #[test]
    fn integers_as_strings() {
        assert_eq!(string_head(&mut Slice::new(b"\xc0\xff")).unwrap(), StringHead::Integer(-1));
        assert_eq!(string_head(&mut Slice::new(b"\xc1\x00\x80")).unwrap(), StringHead::Integer(-32768));
        assert_eq!(
            string_head(&mut Slice::new(b"\xc2\xff\xff\xff\x7f")).unwrap(),
            StringHead::Integer(i32::MAX.into())
        );
        assert!(string_head(&mut Slice::new(b"\xc4")).is_err());
        assert!(string_head(&mut Slice::new(b"\xc3\x01\x80\x7f\xff\xff\xff")).is_err());
    }
}

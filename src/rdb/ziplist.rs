//! Ziplists: small lists, hashes and sorted sets before 7.0.
//!
//! ```text
//! total bytes (u32 LE)  offset of last (u32 LE)  entries (u16 LE)  entry*  0xFF
//! entry = length of the previous entry (1 byte, or 0xFE and u32 LE)  encoding  data
//!   00nnnnnn string of n   01nnnnnn n 14-bit BE   10...... u32 BE string
//!   0xC0 i16   0xD0 i32   0xE0 i64   0xF0 i24   0xFE i8   0xF1..0xFD the numbers 0 to 12
//! ```

use super::error::What;
use super::input::{Input, Numbers};
use super::listpack::{Element, little_endian};

/// Reads the header. The count in it is not needed: the end is marked.
pub(crate) fn begin(input: &mut dyn Input) -> Result<(), What> {
    input.take(10).map(drop)
}

/// The next entry, or `None` after the last one.
pub(crate) fn next(input: &mut dyn Input) -> Result<Option<Element<'_>>, What> {
    match input.byte()? {
        0xff => return Ok(None),
        0xfe => input.take(4).map(drop)?,
        _ => {}
    }
    let encoding = input.byte()?;
    let length = match encoding {
        0x00..=0x3f => usize::from(encoding),
        0x40..=0x7f => usize::from(encoding & 0x3f) << 8 | usize::from(input.byte()?),
        0x80..=0xbf => input.u32_be()? as usize,
        0xc0 => return integer(input, 2),
        0xd0 => return integer(input, 4),
        0xe0 => return integer(input, 8),
        0xf0 => return integer(input, 3),
        0xfe => return integer(input, 1),
        0xf1..=0xfd => return Ok(Some(Element::Integer(i64::from(encoding) - 0xf1))),
        _ => return Err(What::Corrupt("a ziplist entry has an unknown encoding")),
    };
    Ok(Some(Element::Text(input.take(length)?)))
}

fn integer(input: &mut dyn Input, width: usize) -> Result<Option<Element<'_>>, What> {
    Ok(Some(Element::Integer(little_endian(input.take(width)?))))
}

#[cfg(test)]
mod tests {
    use super::super::input::Slice;
    use super::*;

    #[test]
    fn entries_of_every_encoding() {
        let bytes = b"\x00\x03abc\x05\xf1\x02\xfd\x02\xfe\x80\xfe\x03\x00\x00\x00\xc0\x00\x80\x04\xf0\xff\xff\xff\x05\x40\x01z\xff";
        let mut slice = Slice::new(bytes);
        for expected in [
            Element::Text(b"abc"),
            Element::Integer(0),
            Element::Integer(12),
            Element::Integer(-128),
            Element::Integer(-32768),
            Element::Integer(-1),
            Element::Text(b"z"),
        ] {
            assert_eq!(next(&mut slice).unwrap(), Some(expected));
        }
        assert_eq!(next(&mut slice).unwrap(), None);
    }
}

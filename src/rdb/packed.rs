//! The two other packed containers: intsets (sets of integers) and zipmaps (small hashes before 2.6).
//!
//! ```text
//! intset   width (u32 LE: 2, 4 or 8)  count (u32 LE)  numbers of that width, LE
//! zipmap   entries (u8)  [length field  length free value free bytes]*  0xFF
//!          length = 1 byte below 254, or 254 and u32 LE
//! ```

use super::error::What;
use super::input::{Input, Numbers};
use super::listpack::{Element, little_endian};

/// Hands out the members of an intset.
pub(crate) fn intset(
    input: &mut dyn Input,
    each: &mut dyn FnMut(Element<'_>) -> Result<(), What>,
) -> Result<(), What> {
    let width = input.u32_le()? as usize;
    if !matches!(width, 2 | 4 | 8) {
        return Err(What::Corrupt("an intset has an unknown width"));
    }
    for _ in 0..input.u32_le()? {
        each(Element::Integer(little_endian(input.take(width)?)))?;
    }
    Ok(())
}

/// Hands out fields and values of a zipmap, in turn.
pub(crate) fn zipmap(
    input: &mut dyn Input,
    each: &mut dyn FnMut(Element<'_>) -> Result<(), What>,
) -> Result<(), What> {
    input.byte()?;
    while let Some(field) = zipmap_length(input)? {
        each(Element::Text(input.take(field)?))?;
        let value = zipmap_length(input)?.ok_or(What::Corrupt("a zipmap ends after a field"))?;
        let free = usize::from(input.byte()?);
        each(Element::Text(&input.take(value + free)?[..value]))?;
    }
    Ok(())
}

fn zipmap_length(input: &mut dyn Input) -> Result<Option<usize>, What> {
    Ok(match input.byte()? {
        255 => None,
        254 => Some(input.u32_le()? as usize),
        n => Some(usize::from(n)),
    })
}

#[cfg(test)]
mod tests {
    use super::super::input::Slice;
    use super::*;

    fn all(
        decode: impl Fn(&mut dyn Input, &mut dyn FnMut(Element<'_>) -> Result<(), What>) -> Result<(), What>,
        bytes: &[u8],
    ) -> Vec<String> {
        let mut seen = Vec::new();
        decode(&mut Slice::new(bytes), &mut |element| {
            seen.push(match element {
                Element::Text(text) => text.escape_ascii().to_string(),
                Element::Integer(n) => n.to_string(),
            });
            Ok(())
        })
        .unwrap();
        seen
    }

    #[test]
    fn intsets_of_two_and_eight_bytes() {
        assert_eq!(all(intset, b"\x02\0\0\0\x02\0\0\0\xff\xff\x01\x00"), ["-1", "1"]);
        assert_eq!(all(intset, b"\x08\0\0\0\x01\0\0\0\0\0\0\0\0\0\0\x80"), [i64::MIN.to_string()]);
        assert!(intset(&mut Slice::new(b"\x03\0\0\0\0\0\0\0"), &mut |_| Ok(())).is_err());
    }

    #[test]
    fn zipmaps_with_free_bytes() {
        assert_eq!(all(zipmap, b"\x02\x01a\x02\x03bc...\x01d\x00\x00\xff"), ["a", "bc", "d", ""]);
    }
}

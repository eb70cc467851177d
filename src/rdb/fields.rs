//! The expiries of a hash's fields, moved without decoding the rest: what stands between them goes on byte for byte.
//!
//! ```text
//! 24   smallest expiry (8, LE)  length [expiry - smallest + 1, or 0   field  value]*      all move with the smallest
//! 25   smallest expiry (8, LE)  string: listpack of [field  value  expiry or 0]*          numbers of 8 bytes: in place
//! 22   length [field  value  expiry (8, LE; -1: none)]*                                   Valkey 9
//! ```
//! The formats of 7.4's release candidates (22 and 23 of Redis) stay as they are.

use super::error::What;
use super::input::{Input, Numbers, Slice};
use super::length::length;
use super::opcode::*;
use super::reader::RawValue;
use super::scan::skip_value;
use super::text::{read_string, skip_string};
use super::write::{Pieces, Tee, write_length};

/// What a stored expiry becomes, both in unix milliseconds. It adds the same to all that it changes.
pub type Shift = fn(u64) -> u64;

/// Whether values of this type carry expiries that [`copy`] moves.
pub(super) fn has_expiries(type_id: u8, flavour: Flavour) -> bool {
    match flavour {
        Flavour::Redis => matches!(type_id, HASH_METADATA | HASH_LISTPACK_EX),
        Flavour::Valkey => type_id == VALKEY_HASH_2,
    }
}

/// Hands a value on, with other expiries. A listpack is in memory as a whole, everything else goes piece by piece.
pub(super) fn copy(
    input: &mut dyn Input,
    type_id: u8,
    flavour: Flavour,
    shift: Shift,
    to: &mut Pieces<'_>,
) -> Result<(), What> {
    if !has_expiries(type_id, flavour) {
        return skip_value(&mut Tee { input, to }, type_id, flavour);
    }
    if flavour == Flavour::Valkey {
        for _ in 0..length(&mut Tee { input, to })? {
            let mut tee = Tee { input, to };
            skip_string(&mut tee)?;
            skip_string(&mut tee)?;
            moved(input, shift, to)?;
        }
        return Ok(());
    }
    moved(input, shift, to)?;
    if type_id == HASH_METADATA {
        let mut tee = Tee { input, to };
        for _ in 0..length(&mut tee)? {
            length(&mut tee)?;
            skip_string(&mut tee)?;
            skip_string(&mut tee)?;
        }
        return Ok(());
    }
    let mut packed = Vec::new();
    read_string(input, &mut packed)?;
    move_listpack(&mut packed, shift)?;
    let mut head = Vec::with_capacity(9);
    write_length(&mut head, packed.len() as u64);
    to(&head)?;
    packed.chunks(64 * 1024).try_for_each(to).map_err(What::from)
}

fn moved(input: &mut dyn Input, shift: Shift, to: &mut Pieces<'_>) -> Result<(), What> {
    let at = input.u64_le()?;
    Ok(to(&shift(at).to_le_bytes())?)
}

/// Moves every third element of a listpack that takes 8 bytes, as every time since 1970's first month does.
fn move_listpack(packed: &mut [u8], shift: Shift) -> Result<(), What> {
    const I64: u8 = 0xf4;
    let whole = packed.len();
    let mut at = Vec::new();
    let mut slice = Slice::new(packed);
    super::listpack::begin(&mut slice)?;
    for nth in 0.. {
        let here = whole - slice.rest().len();
        if super::listpack::next(&mut slice)?.is_none() {
            break;
        }
        if nth % 3 == 2 && packed[here] == I64 {
            at.push(here + 1);
        }
    }
    for at in at {
        let Some(number) = packed.get_mut(at..at + 8) else { return Err(What::Truncated) };
        let mut bytes = [0; 8];
        bytes.copy_from_slice(number);
        number.copy_from_slice(&shift(u64::from_le_bytes(bytes)).to_le_bytes());
    }
    Ok(())
}

impl RawValue<'_> {
    /// The value with other expiries of its fields; `None` when it has none, or cannot be read.
    pub fn with_field_expiries(&self, shift: Shift) -> Option<Vec<u8>> {
        if !has_expiries(self.type_id, self.flavour) {
            return None;
        }
        let mut body = Vec::with_capacity(self.body.len());
        let mut input = Slice::new(self.body);
        copy(&mut input, self.type_id, self.flavour, shift, &mut |piece| {
            body.extend_from_slice(piece);
            Ok(())
        })
        .ok()?;
        input.rest().is_empty().then_some(body)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn later(at: u64) -> u64 {
        if at < 1 << 44 { at + (1 << 45) } else { at }
    }

    fn shifted(type_id: u8, flavour: Flavour, body: &[u8]) -> Option<Vec<u8>> {
        RawValue { type_id, body, flavour }.with_field_expiries(later)
    }

    #[test]
    fn only_expiries_change() {
        let at = 1_790_000_000_123u64;
        let (old, new) = (at.to_le_bytes(), later(at).to_le_bytes());
        let table = |time: &[u8]| [time, &b"\x02\x01\x01a\x011\x00\x01b\x012"[..]].concat();
        assert_eq!(shifted(24, Flavour::Redis, &table(&old)).unwrap(), table(&new));

        let valkey = |time: &[u8]| [&b"\x02\x01a\x011"[..], time, b"\x01b\x012", &[255; 8]].concat();
        assert_eq!(shifted(22, Flavour::Valkey, &valkey(&old)).unwrap(), valkey(&new));

        // A value whose bytes look like such a number stays.
        let packed = |time: &[u8]| {
            let elements =
                [&b"\x81a\x02\x09\x01\xf4"[..], time, b"\x09\x81b\x02\xf4", &old, b"\x09\x00\x01\xff"]
                    .concat();
            [&[6 + elements.len() as u8, 0, 0, 0, 6, 0], &elements[..]].concat()
        };
        let listpack = |time: &[u8]| [time, &[packed(time).len() as u8], &packed(time)[..]].concat();
        assert_eq!(shifted(25, Flavour::Redis, &listpack(&old)).unwrap(), listpack(&new));
    }

    #[test]
    fn what_has_none_or_is_broken_stays() {
        assert_eq!(shifted(4, Flavour::Redis, b"\x01\x01a\x011"), None);
        assert_eq!(shifted(22, Flavour::Redis, b"\x01\x01\x01a\x011"), None);
        assert_eq!(shifted(24, Flavour::Redis, b"\x01\x02\x03"), None);
        assert_eq!(shifted(25, Flavour::Redis, b"\0\0\0\0\0\0\0\0\x02\x01"), None);
        assert_eq!(shifted(22, Flavour::Valkey, b"\x01\x01a\x011"), None);
    }
}

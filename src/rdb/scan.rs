//! Where a value ends. Nothing is decoded that is not needed to know that.

use super::error::What;
use super::input::{Input, Numbers};
use super::length::length;
use super::opcode::*;
use super::templates::inline;
use super::text::skip_string;

/// Consumes the value of a key of this type.
pub(crate) fn skip_value<I: Input>(input: &mut I, type_id: u8, flavour: Flavour) -> Result<(), What> {
    match type_id {
        STRING | HASH_ZIPMAP..=HASH_ZIPLIST | HASH_LISTPACK | ZSET_LISTPACK | SET_LISTPACK => {
            skip_string(input)
        }
        LIST | SET | LIST_QUICKLIST => strings(input, 1),
        HASH => strings(input, 2),
        ZSET => {
            for _ in 0..length(input)? {
                skip_string(input)?;
                skip_text_double(input)?;
            }
            Ok(())
        }
        ZSET_2 => {
            for _ in 0..length(input)? {
                skip_string(input)?;
                input.skip(8)?;
            }
            Ok(())
        }
        MODULE_2 => skip_module(input),
        MODULE_PRE_GA => {
            Err(What::NoBoundary("a module value in the format of a 4.0 release candidate has no boundaries"))
        }
        LIST_QUICKLIST_2 => {
            for _ in 0..length(input)? {
                length(input)?;
                skip_string(input)?;
            }
            Ok(())
        }
        STREAM_LISTPACKS => skip_stream(input, 1),
        STREAM_LISTPACKS_2 => skip_stream(input, 2),
        STREAM_LISTPACKS_3 => skip_stream(input, 3),
        VALKEY_HASH_2 if flavour == Flavour::Valkey => {
            for _ in 0..length(input)? {
                skip_string(input)?;
                skip_string(input)?;
                input.skip(8)?;
            }
            Ok(())
        }
        _ if flavour == Flavour::Valkey => Err(What::UnknownType(type_id)),
        HASH_METADATA | HASH_METADATA_PRE_GA => {
            if type_id == HASH_METADATA {
                input.skip(8)?;
            }
            for _ in 0..length(input)? {
                length(input)?;
                skip_string(input)?;
                skip_string(input)?;
            }
            Ok(())
        }
        HASH_LISTPACK_EX => {
            input.skip(8)?;
            skip_string(input)
        }
        HASH_LISTPACK_EX_PRE_GA => skip_string(input),
        STREAM_LISTPACKS_4 => skip_stream(input, 4),
        STREAM_LISTPACKS_5 => skip_stream(input, 5),
        ARRAY => skip_array(input),
        HASH_TEMPLATE_LISTPACK => {
            length(input)?;
            skip_string(input)?;
            skip_string(input)
        }
        HASH_TEMPLATE_LISTPACK_REF => skip_string(input),
        HASH_TEMPLATE_ARRAY => {
            let count = inline(input)?.len();
            (0..count).try_for_each(|_| skip_string(input))
        }
        _ => Err(What::UnknownType(type_id)),
    }
}

fn strings<I: Input>(input: &mut I, each: u64) -> Result<(), What> {
    let count = length(input)?.checked_mul(each).ok_or(What::Corrupt("a count is out of range"))?;
    for _ in 0..count {
        skip_string(input)?;
    }
    Ok(())
}

/// Scores before 4.0: 255 is -inf, 254 is +inf, 253 is NaN, anything else the length of the text.
fn skip_text_double<I: Input>(input: &mut I) -> Result<(), What> {
    match input.byte()? {
        253..=255 => Ok(()),
        n => input.skip(u64::from(n)),
    }
}

/// A module's own value: its id, then typed pieces up to an end mark, so it has a boundary without the module.
pub(crate) fn skip_module<I: Input>(input: &mut I) -> Result<(), What> {
    length(input)?;
    skip_module_pieces(input)
}

/// The pieces alone, as they stand in a MODULE_AUX record too.
pub(crate) fn skip_module_pieces<I: Input>(input: &mut I) -> Result<(), What> {
    loop {
        match length(input)? {
            0 => return Ok(()),
            1 | 2 => length(input).map(drop)?,
            3 => input.skip(4)?,
            4 => input.skip(8)?,
            5 => skip_string(input)?,
            _ => return Err(What::Corrupt("a module value has a piece of unknown kind")),
        }
    }
}

/// See stream.rs for the layout.
fn skip_stream<I: Input>(input: &mut I, version: u8) -> Result<(), What> {
    let nodes = length(input)?;
    for _ in 0..nodes {
        skip_string(input)?;
        skip_string(input)?;
    }
    // Length, last id; from version 2 first id, greatest deleted id, entries ever added.
    for _ in 0..if version >= 2 { 8 } else { 3 } {
        length(input)?;
    }
    for _ in 0..length(input)? {
        skip_string(input)?;
        // Last delivered id; from version 2 entries read.
        for _ in 0..if version >= 2 { 3 } else { 2 } {
            length(input)?;
        }
        for _ in 0..length(input)? {
            // Id, delivery time; then delivery count.
            input.skip(24)?;
            length(input)?;
        }
        for _ in 0..length(input)? {
            skip_string(input)?;
            // Seen time; from version 3 active time.
            input.skip(if version >= 3 { 16 } else { 8 })?;
            skip_ids(input)?;
        }
        if version >= 5 {
            skip_ids(input)?;
        }
    }
    if version >= 4 {
        // Duration and size of the producers' memory, the producers, two counters.
        length(input)?;
        length(input)?;
        for _ in 0..length(input)? {
            skip_string(input)?;
            for _ in 0..length(input)? {
                skip_string(input)?;
                length(input)?;
                length(input)?;
            }
        }
        length(input)?;
        length(input)?;
    }
    Ok(())
}

fn skip_ids<I: Input>(input: &mut I) -> Result<(), What> {
    let bytes = length(input)?.checked_mul(16).ok_or(What::Corrupt("a count is out of range"))?;
    input.skip(bytes)
}

/// See array.rs for the layout.
fn skip_array<I: Input>(input: &mut I) -> Result<(), What> {
    let count = length(input)?;
    if length(input)? != 0 {
        length(input)?;
    }
    for _ in 0..count {
        length(input)?;
        match input.byte()? {
            0 => skip_string(input)?,
            1 | 2 => input.skip(8)?,
            3 => {
                let len = input.byte()?;
                input.skip(u64::from(len))?;
            }
            _ => return Err(What::Corrupt("an array element of unknown kind")),
        }
    }
    Ok(())
}

/// The name of a module, as its 64-bit id packs it: nine characters of six bits, then ten bits of version.
pub(crate) fn module_name(id: u64) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    (0..9).map(|i| char::from(LETTERS[(id >> (58 - 6 * i) & 63) as usize])).collect()
}

/// An expiry record's time in milliseconds.
pub(crate) fn expire_ms<I: Input>(input: &mut I) -> Result<u64, What> {
    input.u64_le()
}

//! Arrays of Redis 8.8 and later: sparse, indexed by number.
//!
//! ```text
//! length(elements)  0 | 1 length(place of the last insertion)  [length(index)  kind  value]*
//! kind    0 string   1 i64 LE   2 double LE   3 length(1) bytes, at most 7
//! ```
//! Learned from what Redis 8.10.2 dumps, and checked by restoring it and by whole files.

use super::commands::Chunk;
use super::error::What;
use super::input::{Input, Numbers};
use super::length::length;

/// Writes the commands of an array.
pub(super) fn write(input: &mut dyn Input, key: &[u8], chunk: &mut Chunk<'_, '_>) -> Result<(), What> {
    let count = length(input)?;
    let inserted = if length(input)? != 0 { Some(length(input)?) } else { None };
    chunk.begin(&[b"ARMSET", key])?;
    for _ in 0..count {
        chunk.arg(itoa::Buffer::new().format(length(input)?).as_bytes());
        match input.byte()? {
            0 => chunk.string(input)?,
            1 => chunk.arg(itoa::Buffer::new().format(input.u64_le()? as i64).as_bytes()),
            // Only doubles whose text reads back as it was are stored so: "-0.0", "3.5".
            2 => chunk.arg(format!("{:?}", f64::from_bits(input.u64_le()?)).as_bytes()),
            3 => {
                let len = input.byte()?;
                chunk.arg(input.take(usize::from(len))?);
            }
            _ => return Err(What::Corrupt("an array element of unknown kind")),
        }
        chunk.complete()?;
    }
    chunk.flush()?;
    match inserted {
        // It names the place for the next insertion.
        Some(last) => {
            let next = last.saturating_add(1).to_string();
            chunk.one(&[b"ARSEEK", key, next.as_bytes()])
        }
        None => Ok(()),
    }
}

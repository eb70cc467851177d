//! The RDB reader: opcodes, value boundaries, values, DUMP payloads.
//!
//! Guarantees:
//! - A [`Reader`] never trusts a length. Memory grows only with bytes that were really read (doubling), a
//!   value above [`ReadOptions::big_value`] is streamed in bounded chunks, and no input makes it panic.
//! - What it hands out as [`RawValue`] are the bytes of the file, not a re-encoding of them.
//! - The checksum at the end of the file is verified over every byte read; a reader that returned `None` has
//!   seen the whole file and found it sound.
//! - A type or opcode that it does not know stops it, with the number, the offset and the key. Nothing is guessed.
//!
//! ```text
//! file    "REDIS" 4 digits | "VALKEY" 3 digits      version (6 = 2.6 … 12 = 7.4, 13 = 8.6, 15 = 8.10; 80 = Valkey 9)
//!         record *
//!         0xFF  CRC64 (8 bytes LE, Jones, over everything before it; 0 = not computed)
//!
//! record  250 string string              AUX: redis-ver, repl-id, repl-offset, …
//!         254 length                     SELECTDB
//!         251 length length              RESIZEDB: keys, keys with an expiry
//!         244 length length length       SLOT_INFO: slot, keys, expires
//!         245 string                     FUNCTION2: source of one function library
//!         247 length opcodes             MODULE_AUX
//!         [252 ms(8, LE) | 253 s(4, LE)] [248 idle(length)] [249 freq(1)]  TYPE  key(string)  value
//!
//! length  00nnnnnn | 01nnnnnn nnnnnnnn (BE) | 0x80 u32 BE | 0x81 u64 BE | 11eeeeee special encoding e
//! string  length bytes | 11|0 i8 | 11|1 i16 LE | 11|2 i32 LE | 11|3 length(compressed) length(expanded) LZF
//!
//! DUMP    TYPE value version(2, LE) CRC64(8, LE): the value's bytes are those of the file, which is why most
//!         keys travel to the destination without being decoded
//! ```
//!
//! Facts are from rdb.c and rdb.h of the servers named, and from files that they wrote; what Redis 8.6 to 8.10 add (types 26 to
//! 28) was learned from the servers alone, from DUMPs of small values.

mod array;
mod commands;
mod dump;
mod error;
mod fields;
mod input;
mod length;
mod listpack;
mod lzf;
mod opcode;
mod packed;
mod reader;
mod scan;
mod stream;
mod templates;
mod text;
mod window;
mod write;
mod ziplist;

pub use commands::{Dialect, Sink, Stopped};
pub use dump::{DumpError, checksum, has_field_expiries, split_dump};
pub(crate) use error::printable;
pub use error::{RdbError, What};
pub use fields::Shift;
pub use opcode::{Flavour, minimum_version, type_name};
pub use reader::{BigEntry, Entry, Header, Item, RawValue, ReadOptions, Reader, stream_db};
pub use text::Text;
pub use write::{Pieces, Writer};

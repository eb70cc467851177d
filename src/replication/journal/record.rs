//! The bytes of a segment: its header and its records. No I/O.

use bytes::Bytes;
use crc::{CRC_32_ISCSI, Crc, Table};

/// CRC-32C with sixteen tables: the journal has to keep up with a network, and the reader with the journal.
const CRC: Crc<u32, Table<16>> = Crc::<u32, Table<16>>::new(&CRC_32_ISCSI);

const MAGIC: &[u8; 8] = b"CFSTREAM";
/// Bytes before the first record of a segment.
pub(super) const SEGMENT_HEADER: usize = 24;
/// Bytes before a record's payload.
pub(super) const RECORD_HEADER: usize = 24;
/// The longest payload that is written, and so the longest that is believed.
pub(super) const MAX_PAYLOAD: usize = 1024 * 1024;

/// The header of a segment whose first record begins behind offset `base`.
pub(super) fn segment_header(series: u64, base: u64) -> [u8; SEGMENT_HEADER] {
    let mut header = [0; SEGMENT_HEADER];
    header[..8].copy_from_slice(MAGIC);
    header[8..16].copy_from_slice(&series.to_le_bytes());
    header[16..].copy_from_slice(&base.to_le_bytes());
    header
}

/// Appends a record to `out`. The payload is given in parts, and is not longer than [`MAX_PAYLOAD`].
pub(super) fn encode<'a>(
    out: &mut Vec<u8>,
    offset: u64,
    arrived_ms: u64,
    parts: impl Iterator<Item = &'a [u8]>,
) {
    let at = out.len();
    out.resize(at + RECORD_HEADER, 0);
    for part in parts {
        out.extend_from_slice(part);
    }
    let length = (out.len() - at - RECORD_HEADER) as u32;
    debug_assert!(length > 0 && length as usize <= MAX_PAYLOAD);
    let record = &mut out[at..];
    record[..4].copy_from_slice(&length.to_le_bytes());
    record[8..16].copy_from_slice(&offset.to_le_bytes());
    record[16..24].copy_from_slice(&arrived_ms.to_le_bytes());
    let sum = checksum(record);
    record[4..8].copy_from_slice(&sum.to_le_bytes());
}

/// Over everything but the checksum itself.
fn checksum(record: &[u8]) -> u32 {
    let mut digest = CRC.digest();
    digest.update(&record[..4]);
    digest.update(&record[8..]);
    digest.finalize()
}

/// What stands at the front of some bytes of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Front {
    /// A whole record, checked.
    Record {
        /// When its first byte arrived, in ms since 1970.
        arrived_ms: u64,
        /// Bytes of payload; it begins at [`RECORD_HEADER`].
        payload: usize,
    },
    /// A record that goes on behind these bytes: so many are needed at least.
    Short {
        /// From the start of the record.
        need: usize,
    },
    /// No record, or not the one that begins at the expected offset.
    Damaged,
}

/// Looks at the record at the front of `buf`, which must begin at stream offset `offset`.
pub(super) fn front(buf: &[u8], offset: u64) -> Front {
    let Some(header) = buf.first_chunk::<RECORD_HEADER>() else {
        return Front::Short { need: RECORD_HEADER };
    };
    let payload = u32_at(header, 0) as usize;
    if payload == 0 || payload > MAX_PAYLOAD || u64_at(header, 8) != offset {
        return Front::Damaged;
    }
    let Some(record) = buf.get(..RECORD_HEADER + payload) else {
        return Front::Short { need: RECORD_HEADER + payload };
    };
    if checksum(record) != u32_at(header, 4) {
        return Front::Damaged;
    }
    Front::Record { arrived_ms: u64_at(header, 16), payload }
}

fn u32_at(header: &[u8; RECORD_HEADER], at: usize) -> u32 {
    u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
}

fn u64_at(header: &[u8; RECORD_HEADER], at: usize) -> u64 {
    u64::from(u32_at(header, at)) | u64::from(u32_at(header, at + 4)) << 32
}

/// A piece of the stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chunk {
    /// The offset of its first byte: one more than the last byte of the piece before.
    pub offset: u64,
    /// When it arrived at the gateway, in ms since 1970. Relative expiries count from here.
    pub arrived_ms: u64,
    /// The bytes, cut wherever reads cut them; never empty.
    pub bytes: Bytes,
}

impl Chunk {
    /// The offset of its last byte.
    pub fn end(&self) -> u64 {
        self.offset + self.bytes.len() as u64 - 1
    }

    /// What lies behind `after`, if anything does.
    pub(super) fn behind(mut self, after: u64) -> Option<Self> {
        if self.end() <= after {
            return None;
        }
        if self.offset <= after {
            self.bytes = self.bytes.slice((after + 1 - self.offset) as usize..);
            self.offset = after + 1;
        }
        Some(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_whole_or_short_or_damaged() {
        let mut record = Vec::new();
        encode(&mut record, 7, 1_700_000_000_123, [&b"hello "[..], b"world"].into_iter());
        assert_eq!(front(&record, 7), Front::Record { arrived_ms: 1_700_000_000_123, payload: 11 });
        assert_eq!(front(&record, 8), Front::Damaged);
        for cut in 0..record.len() {
            let need = if cut < RECORD_HEADER { RECORD_HEADER } else { record.len() };
            assert_eq!(front(&record[..cut], 7), Front::Short { need });
        }
        for at in 0..record.len() {
            let mut broken = record.clone();
            broken[at] ^= 0x10;
            assert!(!matches!(front(&broken, 7), Front::Record { .. }), "{at}");
        }
        assert_eq!(front(&[0; 64], 0), Front::Damaged);
    }

    #[test]
    fn what_lies_behind_an_offset() {
        let chunk = Chunk { offset: 10, arrived_ms: 1, bytes: Bytes::from_static(b"abc") };
        assert_eq!(chunk.end(), 12);
        assert_eq!(chunk.clone().behind(9), Some(chunk.clone()));
        assert_eq!(chunk.clone().behind(11).map(|c| (c.offset, c.bytes)), Some((12, "c".into())));
        assert_eq!(chunk.behind(12), None);
    }
}

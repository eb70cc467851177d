//! DUMP payloads: `type value version(2, LE) crc64(8, LE)`.

use crc::{CRC_64_REDIS, Crc, Digest, Table};

use super::opcode::{Flavour, minimum_version};
use super::reader::RawValue;

/// Jones' polynomial, as Redis uses it. Sixteen lanes: the whole snapshot goes through it once, most values twice.
static CRC: Crc<u64, Table<16>> = Crc::<u64, Table<16>>::new(&CRC_64_REDIS);

/// The checksum of Redis over `bytes`.
pub fn checksum(bytes: &[u8]) -> u64 {
    CRC.checksum(bytes)
}

/// The same, computed piece by piece.
pub(super) struct Checksum(Digest<'static, u64, Table<16>>);

impl Default for Checksum {
    fn default() -> Self {
        Self(CRC.digest())
    }
}

impl Checksum {
    pub(super) fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    pub(super) fn value(&self) -> u64 {
        self.0.clone().finalize()
    }
}

/// Why bytes are not a DUMP payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DumpError {
    /// Shorter than a type and a footer.
    #[error("the payload is too short")]
    Short,
    /// The checksum does not match.
    #[error("the payload's checksum does not match")]
    Checksum,
}

const FOOTER: usize = 10;

/// Takes a DUMP payload apart: the value, and the RDB version that it is stamped with.
pub fn split_dump(payload: &[u8]) -> Result<(RawValue<'_>, u16), DumpError> {
    let at = payload.len().checked_sub(FOOTER).filter(|at| *at >= 1).ok_or(DumpError::Short)?;
    let (body, footer) = payload.split_at(at);
    let version = u16::from_le_bytes([footer[0], footer[1]]);
    let mut stored = [0; 8];
    stored.copy_from_slice(&footer[2..]);
    let stored = u64::from_le_bytes(stored);
    // Redis itself takes 0 as "not computed".
    if stored != 0 && stored != checksum(&payload[..at + 2]) {
        return Err(DumpError::Checksum);
    }
    // 80 is Valkey's first version of its own; below it both count alike.
    let flavour = if version >= 80 { Flavour::Valkey } else { Flavour::Redis };
    Ok((RawValue { type_id: body[0], body: &body[1..], flavour }, version))
}

/// Whether a DUMP payload is a hash whose fields may expire.
pub fn has_field_expiries(payload: &[u8]) -> bool {
    payload.first().is_some_and(|id| (22..=25).contains(id))
        && split_dump(payload)
            .is_ok_and(|(value, _)| super::fields::has_expiries(value.type_id, value.flavour))
}

impl RawValue<'_> {
    /// The lowest RDB version whose servers read this value.
    pub fn minimum_version(&self) -> Option<u32> {
        minimum_version(self.type_id, self.flavour)
    }

    /// How long [`RawValue::dump_payload`] will be.
    pub fn dump_len(&self) -> usize {
        1 + self.body.len() + FOOTER
    }

    /// Appends the payload that RESTORE takes, stamped with the lowest version that has the type, without encoding
    /// the value again.
    pub fn dump_payload(&self, out: &mut Vec<u8>) {
        let start = out.len();
        out.push(self.type_id);
        out.extend_from_slice(self.body);
        // The reader hands out only types that have one.
        let version = self.minimum_version().unwrap_or(6) as u16;
        out.extend_from_slice(&version.to_le_bytes());
        let sum = checksum(&out[start..]);
        out.extend_from_slice(&sum.to_le_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_redis_writes_it() {
        assert_eq!(checksum(b"123456789"), 0xe9c6_d914_c4b8_d9ca);
        // DUMP of the string "10", Redis's documentation.
        let payload = b"\x00\xc0\n\n\x00n\x9fWE\x0e\xaec\xbb";
        let (value, version) = split_dump(payload).unwrap();
        assert_eq!((value.type_id, value.body, version), (0, &b"\xc0\n"[..], 10));
        let mut out = b"kept".to_vec();
        value.dump_payload(&mut out);
        assert_eq!(out.len(), 4 + value.dump_len());
        assert_eq!(split_dump(&out[4..]).unwrap(), (value, 6));
        let mut broken = payload.to_vec();
        broken[2] ^= 1;
        assert_eq!(split_dump(&broken).unwrap_err(), DumpError::Checksum);
        assert_eq!(split_dump(b"0123456789").unwrap_err(), DumpError::Short);
    }
}

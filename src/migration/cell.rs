//! The commit cell: the one place that says which server is active.
//!
//! What it guarantees:
//! - *One write decides.* A line is committed by one in-place write of one slot and one `fdatasync`. The file is allocated
//!   and filled once, when the cell is made, so a commit never waits for file system metadata.
//! - *A torn write changes nothing.* The slot that is written is never the one that holds the newest valid line: after a
//!   crash in the middle of a write the checksum of that slot fails, and the line before it still stands.
//! - *The highest epoch wins.* Epochs only grow.
//!
//! Layout, all integers little-endian; each slot begins at a page of its own, so that no device writes both at once:
//!
//! ```text
//! 0     "CFCELL01" | crc64 u64 | length u32 | epoch u64 | payload: JSON of Line, `length` bytes | zeros up to 4096
//! 4096  the same
//! ```
//!
//! The checksum covers everything behind it up to the end of the payload. Even epochs live in slot 0, odd ones in slot 1.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::status::ActiveSide;
use crate::disk::{self, CRC};
use crate::error::{Error, Result, Side};

const MAGIC: &[u8; 8] = b"CFCELL01";
const SLOT: usize = 4096;
const HEADER: usize = 8 + 8 + 4 + 8;

/// Where the mirror towards the old side begins: the state of the new side's stream at the instant of the switch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StartPosition {
    /// Replication id of the server that became active.
    pub replid: String,
    /// Its `master_repl_offset` at the switch: the last byte of its stream that the old side holds the effect of.
    pub offset: u64,
    /// The database selected in its stream at that offset.
    pub db: u32,
}

/// One committed line.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Line {
    /// Counts switches, committed and revoked ones; the highest valid one is the truth.
    pub epoch: u64,
    /// The server that answers the clients from this epoch on.
    pub active: ActiveSide,
    /// Where the mirror from the active server to the other one begins; none before the first switch.
    pub start: Option<StartPosition>,
    /// Unix time in milliseconds at which the line was written.
    pub at_ms: u64,
    /// The pause that clients saw up to this line, in milliseconds, for the entry of a switch that a crash interrupted.
    #[serde(default)]
    pub pause_ms: f64,
}

impl Line {
    /// What holds before anything was ever switched.
    #[must_use]
    pub fn first() -> Self {
        Self { epoch: 0, active: ActiveSide::Source, start: None, at_ms: 0, pause_ms: 0.0 }
    }
}

/// The open cell.
#[derive(Debug)]
pub struct Cell {
    file: File,
    line: Line,
}

impl Cell {
    /// Opens the cell at `path`, or makes it with [`Line::first`].
    ///
    /// # Errors
    /// When the disk refuses, or when both slots are damaged: then nobody can say which server is active, and guessing
    /// would lose writes.
    pub fn open(path: &Path) -> Result<Self> {
        if !path.exists() {
            // Made elsewhere and renamed: a half-made cell is never seen.
            let mut bytes = vec![0u8; 2 * SLOT];
            let first = encode(&Line::first()).map_err(|e| disk::error(path, e))?;
            bytes[..SLOT].copy_from_slice(&first);
            disk::replace(path, &bytes)?;
        }
        let file = OpenOptions::new().read(true).write(true).open(path).map_err(|e| disk::error(path, e))?;
        let mut bytes = Vec::with_capacity(2 * SLOT);
        io::Read::read_to_end(&mut &file, &mut bytes).map_err(|e| disk::error(path, e))?;
        let line = newest(&bytes).ok_or_else(|| {
            Error::new(Side::Gateway, format!("{} is damaged: it does not say which server is active", path.display()))
                .remedy("find out which server the clients wrote to last, then remove this state directory and begin anew from that server")
        })?;
        Ok(Self { file, line })
    }

    /// The newest committed line.
    #[must_use]
    pub fn line(&self) -> &Line {
        &self.line
    }

    /// Commits `line`. When this returns `Ok`, the line survives any crash.
    ///
    /// # Errors
    /// When the disk refuses. It is then unknown whether the line would survive a crash; [`Cell::revoke`] settles it.
    pub fn commit(&mut self, line: Line) -> io::Result<()> {
        if line.epoch <= self.line.epoch {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("epoch {} is not above {}", line.epoch, self.line.epoch),
            ));
        }
        self.write(&line)?;
        self.line = line;
        Ok(())
    }

    /// After a failed commit: writes a line above the failed one that keeps the active side as it was.
    ///
    /// # Errors
    /// When the disk still refuses.
    pub fn revoke(&mut self, failed_epoch: u64, at_ms: u64) -> io::Result<()> {
        // Two above has the slot of the failed line: the older one, which still stands, is not touched.
        let line = Line { epoch: failed_epoch + 2, at_ms, ..self.line.clone() };
        self.write(&line)?;
        self.line = line;
        Ok(())
    }

    fn write(&self, line: &Line) -> io::Result<()> {
        let slot = encode(line)?;
        self.file.write_all_at(&slot, (line.epoch % 2) * SLOT as u64)?;
        self.file.sync_data()
    }
}

fn encode(line: &Line) -> io::Result<Vec<u8>> {
    let payload = serde_json::to_vec(line)?;
    if HEADER + payload.len() > SLOT {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "the line does not fit its slot"));
    }
    let mut slot = vec![0u8; SLOT];
    slot[..8].copy_from_slice(MAGIC);
    slot[16..20].copy_from_slice(&(payload.len() as u32).to_le_bytes());
    slot[20..28].copy_from_slice(&line.epoch.to_le_bytes());
    slot[HEADER..HEADER + payload.len()].copy_from_slice(&payload);
    let sum = CRC.checksum(&slot[16..HEADER + payload.len()]);
    slot[8..16].copy_from_slice(&sum.to_le_bytes());
    Ok(slot)
}

fn decode(slot: &[u8]) -> Option<Line> {
    let header = slot.get(..HEADER)?;
    if &header[..8] != MAGIC {
        return None;
    }
    let sum = u64::from_le_bytes(header[8..16].try_into().ok()?);
    let length = u32::from_le_bytes(header[16..20].try_into().ok()?) as usize;
    // A damaged length must not reach beyond the slot.
    let covered = slot.get(16..HEADER.checked_add(length)?)?;
    if CRC.checksum(covered) != sum {
        return None;
    }
    let line: Line = serde_json::from_slice(&slot[HEADER..HEADER + length]).ok()?;
    (line.epoch == u64::from_le_bytes(header[20..28].try_into().ok()?)).then_some(line)
}

fn newest(bytes: &[u8]) -> Option<Line> {
    bytes.chunks(SLOT).take(2).filter_map(decode).max_by_key(|line| line.epoch)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(epoch: u64) -> Line {
        Line {
            epoch,
            active: if epoch.is_multiple_of(2) { ActiveSide::Source } else { ActiveSide::Destination },
            start: Some(StartPosition { replid: "a".repeat(40), offset: epoch * 1000, db: 3 }),
            at_ms: 1,
            pause_ms: 2.5,
        }
    }

    #[test]
    fn lines_survive_reopening() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("commit");
        let mut cell = Cell::open(&path).unwrap();
        assert_eq!(*cell.line(), Line::first());
        for epoch in 1..20 {
            cell.commit(line(epoch)).unwrap();
            assert_eq!(*Cell::open(&path).unwrap().line(), line(epoch));
        }
        assert!(cell.commit(line(5)).is_err());
        assert_eq!(std::fs::metadata(&path).unwrap().len(), 2 * SLOT as u64);
    }

    /// Whatever prefix of the new slot reached the disk, and in whatever state its tail is, either the old line or the
    /// new one is found, never another and never none.
    #[test]
    fn a_torn_write_is_the_old_line_or_the_new_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("commit");
        let mut cell = Cell::open(&path).unwrap();
        for epoch in 1..=7 {
            cell.commit(line(epoch)).unwrap();
        }
        let before = std::fs::read(&path).unwrap();
        let new = encode(&line(8)).unwrap();
        let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
        for cut in 0..=SLOT {
            for garbage in [false, true] {
                let mut torn = before.clone();
                torn[..cut].copy_from_slice(&new[..cut]);
                if garbage {
                    for byte in &mut torn[cut..SLOT] {
                        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                        *byte = (seed >> 33) as u8;
                    }
                }
                let found = newest(&torn).expect("one line always stands");
                assert!(found == line(7) || found == line(8), "cut {cut}: {found:?}");
                if cut == SLOT {
                    assert_eq!(found, line(8));
                }
            }
        }
    }

    #[test]
    fn a_revoked_line_does_not_come_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("commit");
        let mut cell = Cell::open(&path).unwrap();
        cell.commit(line(1)).unwrap();
        // The commit of epoch 2 failed after the bytes had reached the file.
        cell.write(&line(2)).unwrap();
        cell.revoke(2, 9).unwrap();
        let again = Cell::open(&path).unwrap();
        assert_eq!(again.line().active, ActiveSide::Destination);
        assert_eq!(again.line().start, line(1).start);
        assert!(again.line().epoch > 2);
    }

    #[test]
    fn damage_to_both_slots_is_an_error_with_a_remedy() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("commit");
        drop(Cell::open(&path).unwrap());
        std::fs::write(&path, vec![7u8; 2 * SLOT]).unwrap();
        assert!(Cell::open(&path).unwrap_err().to_string().contains("which server is active"));
        std::fs::write(&path, b"").unwrap();
        assert!(Cell::open(&path).is_err());
    }
}

//! `journal.json`: what the files of a journal mean. Replaced as a whole, so it is never half written.

use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

const NAME: &str = "journal.json";
const FORMAT: u32 = 1;

/// The durable description of a journal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Meta {
    pub(super) format: u32,
    /// Full synchronisations so far.
    pub(super) generation: u64,
    /// Raised whenever the stream begins anew; part of the names of the files that belong to it.
    pub(super) series: u64,
    /// The boot of the machine in which all this was written.
    pub(super) boot: String,
    /// The offset behind which the stream of this series begins.
    pub(super) base: u64,
    /// The replication ids of this series, oldest first.
    pub(super) ids: Vec<History>,
    pub(super) snapshot: Option<Stored>,
}

/// A replication id, and the offset from which on the source used it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct History {
    pub(super) replid: String,
    pub(super) since: u64,
}

/// The snapshot file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Stored {
    /// The offset of the stream that it stands at.
    pub(super) offset: u64,
    /// Its length, once it is complete.
    pub(super) bytes: Option<u64>,
    /// Whether its bytes have reached the disk itself.
    pub(super) synced: bool,
}

impl Meta {
    pub(super) fn empty(series: u64) -> Self {
        Self {
            format: FORMAT,
            generation: series,
            series,
            boot: boot_id(),
            base: 0,
            ids: Vec::new(),
            snapshot: None,
        }
    }

    /// `None`: there is none, or none that this version understands.
    pub(super) fn load(dir: &Path) -> io::Result<Option<Self>> {
        match std::fs::read(dir.join(NAME)) {
            Ok(text) => Ok(serde_json::from_slice(&text).ok().filter(|meta: &Self| meta.format == FORMAT)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Replaces the file. It is not synced: after a power loss the position on the destination is the truth, and
    /// an older description makes us fetch again what it does not speak of.
    pub(super) fn store(&self, dir: &Path) -> io::Result<()> {
        let next = dir.join("journal.json.new");
        let text = serde_json::to_vec_pretty(self).map_err(io::Error::other)?;
        std::fs::write(&next, text)?;
        std::fs::rename(next, dir.join(NAME))
    }
}

/// Names the current boot of the machine; the same text on systems that do not tell.
pub(super) fn boot_id() -> String {
    let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    id.trim().to_owned()
}

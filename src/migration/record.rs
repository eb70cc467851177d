//! What the gateway remembers across restarts.
//!
//! `state_dir` holds:
//!
//! ```text
//! lock          held (flock) while a gateway uses the directory; its text names the process
//! commit        which server is active: see [`super::cell`]
//! record.json   everything else, replaced atomically: what was asked for, why it stopped, the history of switches
//! scripts       texts that clients brought: see `proxy::scripts`
//! forward-N/    journal of the mirror that began at epoch N, source to destination
//! reverse-N/    the same, destination to source
//! ```
//!
//! The record never says which server is active: only the cell does. A crash between the two therefore cannot make them
//! contradict each other.

use std::fs::{File, OpenOptions};
use std::io::{Read as _, Seek as _, Write as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::cell::{Cell, Line};
use super::status::{ActiveSide, SwitchEntry};
use crate::config::Config;
use crate::disk;
use crate::error::{Error, Result, Side};

/// How many switches are remembered.
const HISTORY: usize = 100;

/// What a person has asked of the migration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Intent {
    /// Forward commands, nothing else.
    #[default]
    Forward,
    /// Keep the other server in step.
    Mirror,
    /// The migration ended; stay on the active side.
    Finished,
}

/// Why the mirror stopped and waits for a person.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// Whose fault it is.
    pub side: Side,
    /// What happened.
    pub message: String,
    /// What a person can do about it.
    #[serde(default)]
    pub remedy: Option<String>,
    /// Unix time in milliseconds.
    pub at_ms: u64,
}

/// A fence that was put up and has to come down, also after a crash.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fence {
    /// The fenced server.
    pub side: ActiveSide,
    /// Name and former value of the setting that fences servers without `CLIENT PAUSE … WRITE`.
    pub setting: Option<(String, String)>,
}

/// The contents of `record.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Names this migration on both servers.
    pub id: String,
    /// What was asked for.
    #[serde(default)]
    pub intent: Intent,
    /// Applying is paused on request.
    #[serde(default)]
    pub paused: bool,
    /// Where both servers were when the migration began; another address later is a mistake worth a warning.
    #[serde(default)]
    pub source: String,
    /// See `source`.
    #[serde(default)]
    pub destination: String,
    /// What is copied and how it is called, as the migration began: another choice later would fit neither what is there nor what comes.
    #[serde(default)]
    pub chosen: Option<serde_json::Value>,
    /// The mirror stopped and waits for a person.
    #[serde(default)]
    pub failure: Option<Failure>,
    /// The newest epoch whose mirror was in step once: after a restart it is catching up, not loading.
    #[serde(default)]
    pub mirrored_epoch: Option<u64>,
    /// Set before a fence goes up, cleared after it has come down.
    #[serde(default)]
    pub fence: Option<Fence>,
    /// Switches, oldest first.
    #[serde(default)]
    pub switches: Vec<SwitchEntry>,
}

/// The open state directory.
#[derive(Debug)]
pub struct Store {
    dir: PathBuf,
    record: Record,
    cell: Option<Cell>,
    line: Line,
    // Held for its lock; the kernel releases it however the process ends.
    _lock: File,
}

impl Store {
    /// Takes the lock of `dir` and reads what is there; makes what is not.
    ///
    /// # Errors
    /// When another gateway holds the directory (the message names its process), or when the disk refuses.
    pub fn open(dir: &Path) -> Result<Self> {
        std::fs::create_dir_all(dir).map_err(|e| disk::error(dir, e))?;
        let lock = lock(dir)?;
        let path = dir.join("record.json");
        let record = match std::fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|e| {
                Error::new(Side::Gateway, format!("{} cannot be understood", path.display()))
                    .because(e)
                    .remedy("was it written by a newer version of the gateway?")
            })?,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                let record = Record::new(new_id()?);
                disk::replace(&path, &encode(&record)?)?;
                record
            }
            Err(e) => return Err(disk::error(&path, e)),
        };
        let cell = Cell::open(&dir.join("commit"))?;
        let line = cell.line().clone();
        Ok(Self { dir: dir.to_owned(), record, cell: Some(cell), line, _lock: lock })
    }

    /// What is remembered.
    #[must_use]
    pub fn record(&self) -> &Record {
        &self.record
    }

    /// The committed line.
    #[must_use]
    pub fn line(&self) -> &Line {
        &self.line
    }

    /// Changes the record, on disk first.
    ///
    /// # Errors
    /// When the disk refuses; the record in memory is then unchanged.
    pub fn update(&mut self, change: impl FnOnce(&mut Record)) -> Result<()> {
        let mut next = self.record.clone();
        change(&mut next);
        if next.switches.len() > HISTORY {
            next.switches.drain(..next.switches.len() - HISTORY);
        }
        if next != self.record {
            disk::replace(&self.dir.join("record.json"), &encode(&next)?)?;
            self.record = next;
        }
        Ok(())
    }

    /// Begins a new migration in a directory whose last one has ended: under a new id, and with an epoch of its own, whose
    /// line holds no start position: that of the last switch belongs to the migration before.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn renew(&mut self, id: String) -> Result<()> {
        let path = self.dir.join("commit");
        let line = Line { epoch: self.line.epoch + 1, start: None, at_ms: now_ms(), ..self.line.clone() };
        if let Some(cell) = &mut self.cell {
            cell.commit(line).map_err(|e| disk::error(&path, e))?;
            self.line = cell.line().clone();
        }
        self.update(|record| {
            *record = Record { switches: std::mem::take(&mut record.switches), ..Record::new(id) }
        })
    }

    /// The cell, for the duration of a switch; [`Store::put_back`] returns it.
    pub fn take_cell(&mut self) -> Option<Cell> {
        self.cell.take()
    }

    /// Returns the cell.
    pub fn put_back(&mut self, cell: Cell) {
        self.line = cell.line().clone();
        self.cell = Some(cell);
    }

    /// The journal directory of the mirror that begins at `epoch` with `active` as its origin.
    #[must_use]
    pub fn journal_dir(&self, epoch: u64, active: ActiveSide) -> PathBuf {
        let direction = match active {
            ActiveSide::Source => "forward",
            ActiveSide::Destination => "reverse",
        };
        self.dir.join(format!("{direction}-{epoch}"))
    }

    /// Removes the journals of all epochs but `keep`'s.
    pub fn remove_journals(&self, keep: &[PathBuf]) {
        let Ok(entries) = std::fs::read_dir(&self.dir) else { return };
        for path in entries.flatten().map(|e| e.path()) {
            let journal = path
                .file_name()
                .and_then(|n| n.to_str())
                .is_some_and(|n| n.starts_with("forward-") || n.starts_with("reverse-"));
            if journal && !keep.contains(&path) {
                if let Err(error) = std::fs::remove_dir_all(&path) {
                    tracing::debug!(path = %path.display(), %error, "an old journal stays for now");
                }
            }
        }
    }
}

impl Record {
    fn new(id: String) -> Self {
        Self {
            id,
            intent: Intent::Forward,
            paused: false,
            source: String::new(),
            destination: String::new(),
            chosen: None,
            failure: None,
            mirrored_epoch: None,
            fence: None,
            switches: Vec::new(),
        }
    }
}

/// [`Record::chosen`] by the configuration: what is set, so that a key which a later version brings along changes nothing.
pub fn choice(config: &Config) -> serde_json::Value {
    let mut chosen = serde_json::json!({"filter": config.filter, "map": config.map});
    for table in chosen.as_object_mut().into_iter().flat_map(serde_json::Map::values_mut) {
        if let Some(table) = table.as_object_mut() {
            table.retain(|_, value| match value {
                serde_json::Value::Array(items) => !items.is_empty(),
                serde_json::Value::Object(items) => !items.is_empty(),
                value => value != "as-is",
            });
        }
    }
    chosen
}

/// Unix time in milliseconds.
#[must_use]
pub fn now_ms() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

fn encode(record: &Record) -> Result<Vec<u8>> {
    serde_json::to_vec_pretty(record)
        .map_err(|e| Error::new(Side::Gateway, "the record cannot be written").because(e))
}

/// Sixteen hexadecimal digits from the system's random source.
///
/// # Errors
/// When the system has none.
pub fn new_id() -> Result<String> {
    let mut bytes = [0u8; 8];
    let path = Path::new("/dev/urandom");
    File::open(path).and_then(|mut f| f.read_exact(&mut bytes)).map_err(|e| disk::error(path, e))?;
    Ok(format!("{:016x}", u64::from_ne_bytes(bytes)))
}

fn lock(dir: &Path) -> Result<File> {
    let path = dir.join("lock");
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .map_err(|e| disk::error(&path, e))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(std::fs::TryLockError::WouldBlock) => {
            let mut holder = String::new();
            let _ = file.read_to_string(&mut holder);
            let holder = if holder.trim().is_empty() { "another gateway" } else { holder.trim() };
            return Err(Error::new(
                Side::Gateway,
                format!("the state directory {} is in use by {holder}", dir.display()),
            )
            .remedy("stop that gateway, or give this one a state_dir of its own"));
        }
        Err(std::fs::TryLockError::Error(e)) => return Err(disk::error(&path, e)),
    }
    let text = format!("crossfade, process {} on {}\n", std::process::id(), super::holder::host());
    file.set_len(0)
        .and_then(|()| file.rewind())
        .and_then(|()| file.write_all(text.as_bytes()))
        .map_err(|e| disk::error(&path, e))?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_gateway_is_told_who_holds_the_directory() {
        let dir = tempfile::tempdir().unwrap();
        let first = Store::open(dir.path()).unwrap();
        let refused = Store::open(dir.path()).unwrap_err().to_string();
        assert!(refused.contains(&format!("process {}", std::process::id())), "{refused}");
        drop(first);
        Store::open(dir.path()).unwrap();
    }

    #[test]
    fn changes_survive_reopening_and_the_id_stays() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = Store::open(dir.path()).unwrap();
        let id = store.record().id.clone();
        store
            .update(|r| {
                r.intent = Intent::Mirror;
                r.fence = Some(Fence {
                    side: ActiveSide::Source,
                    setting: Some(("min-replicas-to-write".into(), "0".into())),
                });
            })
            .unwrap();
        let record = store.record().clone();
        drop(store);
        let mut store = Store::open(dir.path()).unwrap();
        assert_eq!(*store.record(), record);
        store.renew("00ff".into()).unwrap();
        assert_ne!(store.record().id, id);
        assert_eq!(store.record().intent, Intent::Forward);
    }

    #[test]
    fn journals_of_past_epochs_are_removed() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        for epoch in 0..4 {
            std::fs::create_dir(store.journal_dir(epoch, ActiveSide::Source)).unwrap();
        }
        let keep = store.journal_dir(2, ActiveSide::Source);
        store.remove_journals(std::slice::from_ref(&keep));
        assert!(keep.exists());
        assert!(!store.journal_dir(1, ActiveSide::Source).exists());
        assert!(dir.path().join("commit").exists());
    }
}

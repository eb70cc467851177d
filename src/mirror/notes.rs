//! What a mirror keeps on its own disk, beside the journal.
//!
//! ```text
//! failure.json    the commands that the destination did not run, and whether somebody resolved that
//! failures.log    those that were left out, one JSON object a line
//! skipped.json    how many these are, and the first of them
//! copies.json     keys that are to be copied anew, until the destination has confirmed them
//! begun           exists once the destination has borne our mark; holds the position that it began with
//! dropped.json    what was left out because the destination has no command for it
//! script-SHA1     the text of a script that the source sends by its digest
//! serving.json    how to undo what makes the destination our replica, while it may be one
//! padded          exists while every expiry on the destination is known to be padded
//! ```
//! Each file is replaced as a whole (written aside, synced, renamed), and so is what its absence means.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::batch::REFUSED;
use super::transform::Place;
use crate::backfill::primary::Undo;
use crate::error::{Error, Result, Side};

/// A command that the destination did not run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// When (unix milliseconds).
    pub at_ms: u64,
    /// Its name.
    pub command: String,
    /// Its first argument, as a person reads it.
    pub key: Option<String>,
    /// Its db.
    pub db: u32,
    /// The offset of its last byte in the source's stream.
    pub offset: u64,
    /// What the destination said.
    pub error: String,
    /// Whether the position behind it was applied, so that it will not come again by itself.
    pub passed: bool,
    /// The keys that it touches; none when that cannot be told.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub places: Vec<KeyAt>,
}

/// A key and its db.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct KeyAt {
    /// The db.
    pub db: u32,
    /// The key's bytes, as hexadecimal digits in the file.
    #[serde(with = "hex")]
    pub key: Vec<u8>,
}

/// Bytes that need not be text.
mod hex {
    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        let text = String::deserialize(deserializer)?;
        let digits: Vec<u32> = text.chars().filter_map(|digit| digit.to_digit(16)).collect();
        if digits.len() != text.chars().count() || !digits.len().is_multiple_of(2) {
            return Err(D::Error::custom("pairs of hexadecimal digits are expected"));
        }
        Ok(digits.chunks_exact(2).map(|pair| (pair[0] * 16 + pair[1]) as u8).collect())
    }
}

impl From<Place> for KeyAt {
    fn from((db, key): Place) -> Self {
        Self { db, key: key.into_vec() }
    }
}

impl Failure {
    /// The error that a person reads.
    pub fn to_error(&self, side: Side, more: usize) -> Error {
        let key = self.key.as_ref().map(|key| format!(" of key {key:?}")).unwrap_or_default();
        let more = if more > 0 { format!(", and {more} more") } else { String::new() };
        let message = format!(
            "{}{key} in db {} (stream offset {}) failed: {}{more}",
            self.command, self.db, self.offset, self.error
        );
        let remedy = if self.passed {
            "the data differs there; find out who else writes to that server, then `crossfade resume --copy-failed` copies its keys anew, and `crossfade resume --skip-failed` leaves it out: the key then differs until it is replaced as a whole, and `crossfade verify` names it until then"
        } else if self.error.starts_with(REFUSED) {
            "choose [filter] and [map] so that it can be, which needs a new copy (`crossfade abort`, then `start`); or leave it out with `crossfade resume --skip-failed`: the key then differs, and `crossfade verify` names it"
        } else {
            "the server cannot run this command; make it able to (version, modules, ACL), then `crossfade resume`; or copy its keys as values with `crossfade resume --copy-failed`, or leave it out with `crossfade resume --skip-failed`"
        };
        let side = if self.error.starts_with(REFUSED) { Side::Gateway } else { side };
        Error::new(side, message).remedy(remedy)
    }
}

/// The content of `failure.json`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failures {
    /// What failed, in the order of the stream.
    pub commands: Vec<Failure>,
    /// Somebody decided to leave them out.
    pub skip: bool,
}

/// What was left out because the destination has no command for it: all of it is counted, the first is named.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dropped {
    /// Keys, field expiries of keys, function libraries, and commands of the stream.
    pub count: u64,
    /// The first of it, each with the reason.
    pub named: Vec<String>,
}

impl Dropped {
    const NAMED: usize = 20;

    /// Counts `count` more, of which these can be named.
    pub fn add(&mut self, count: u64, names: impl IntoIterator<Item = String>) {
        self.count += count;
        let room = Self::NAMED.saturating_sub(self.named.len());
        self.named.extend(names.into_iter().take(room));
    }
}

/// The notes in one directory.
#[derive(Debug, Clone)]
pub struct Notes {
    dir: PathBuf,
}

impl Notes {
    /// The notes in `dir`, which is made if it is not there.
    ///
    /// # Errors
    /// The directory cannot be made.
    pub fn open(dir: &Path) -> Result<Self> {
        fs::create_dir_all(dir).map_err(|cause| failed("cannot make the mirror's directory", cause))?;
        Ok(Self { dir: dir.to_owned() })
    }

    /// The texts of scripts that came in earlier runs.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn scripts(&self) -> Result<Vec<Vec<u8>>> {
        let unreadable = |cause| failed("cannot read the scripts in the mirror's directory", cause);
        let mut texts = Vec::new();
        for entry in fs::read_dir(&self.dir).map_err(unreadable)? {
            let entry = entry.map_err(unreadable)?;
            let name = entry.file_name();
            let digest = name.to_str().and_then(|name| name.strip_prefix("script-"));
            if digest.is_some_and(|digest| digest.len() == 40) {
                texts.push(fs::read(entry.path()).map_err(unreadable)?);
            }
        }
        Ok(texts)
    }

    /// Keeps the text of a script.
    ///
    /// # Errors
    /// The disk does not take it.
    pub fn keep_script(&self, digest: &str, text: &[u8]) -> Result<()> {
        self.put(&format!("script-{digest}"), Some(text))
    }

    /// Removes the text of a script.
    ///
    /// # Errors
    /// The disk does not take it.
    pub fn forget_script(&self, digest: &str) -> Result<()> {
        self.put(&format!("script-{digest}"), None)
    }

    /// The failures that stand.
    ///
    /// # Errors
    /// The file cannot be read, or is none of ours.
    pub fn failures(&self) -> Result<Option<Failures>> {
        self.json("failure.json")
    }

    /// Records failures durably, or that there are none any more.
    ///
    /// # Errors
    /// The disk does not take it.
    pub fn set_failures(&self, failures: Option<&Failures>) -> Result<()> {
        let text = failures.map(|failures| serde_json::to_vec_pretty(failures).unwrap_or_default());
        self.put("failure.json", text.as_deref())
    }

    /// What was left out in earlier runs.
    pub fn dropped(&self) -> Dropped {
        // A count for people: one that cannot be read begins again.
        let text = fs::read(self.dir.join("dropped.json")).unwrap_or_default();
        serde_json::from_slice(&text).unwrap_or_default()
    }

    /// Records what was left out.
    ///
    /// # Errors
    /// The disk does not take it.
    pub fn set_dropped(&self, dropped: &Dropped) -> Result<()> {
        self.put("dropped.json", Some(&serde_json::to_vec_pretty(dropped).unwrap_or_default()))
    }

    /// Resolves the failures that stand: their commands are left out.
    ///
    /// # Errors
    /// There are none, or the disk does not take it.
    pub fn skip_failures(&self, side: Side) -> Result<()> {
        let copies = !self.copies()?.is_empty();
        self.set_copies(&[])?;
        let Some(mut failures) = self.failures()? else {
            return if copies { Ok(()) } else { Err(nothing_failed("skip")) };
        };
        self.skipped_too(&failures.commands, side)?;
        failures.skip = true;
        let to_come = failures.commands.iter().any(|failure| !failure.passed);
        self.set_failures(to_come.then_some(&failures))
    }

    /// Resolves the failures that stand: the keys of their commands are copied anew.
    ///
    /// # Errors
    /// There are none, or nobody knows their keys, or the disk does not take it.
    pub fn copy_failures(&self) -> Result<()> {
        let Some(failures) = self.failures()? else { return Err(nothing_failed("copy")) };
        if let Some(odd) = failures.commands.iter().find(|failure| failure.places.is_empty()) {
            let message = format!("nobody can tell which keys {} changes", odd.command);
            return Err(Error::new(Side::Gateway, message)
                .remedy("leave it out with `crossfade resume --skip-failed`, then verify"));
        }
        self.add_copies(failures.commands.into_iter().flat_map(|failure| failure.places))?;
        self.set_failures(None)
    }

    /// The keys that are to be copied anew.
    ///
    /// # Errors
    /// The file cannot be read, or is none of ours.
    pub fn copies(&self) -> Result<Vec<KeyAt>> {
        Ok(self.json("copies.json")?.unwrap_or_default())
    }

    /// Records durably which keys are to be copied anew.
    ///
    /// # Errors
    /// The disk does not take it.
    pub fn set_copies(&self, keys: &[KeyAt]) -> Result<()> {
        let text = (!keys.is_empty()).then(|| serde_json::to_vec_pretty(keys).unwrap_or_default());
        self.put("copies.json", text.as_deref())
    }

    /// Adds to them.
    ///
    /// # Errors
    /// As [`Self::copies`] and [`Self::set_copies`].
    pub fn add_copies(&self, keys: impl IntoIterator<Item = KeyAt>) -> Result<()> {
        let mut all = self.copies()?;
        for key in keys {
            if !all.contains(&key) {
                all.push(key);
            }
        }
        self.set_copies(&all)
    }

    /// What was left out because the destination did not run it.
    pub fn skipped(&self) -> Dropped {
        // As with `dropped`.
        let text = fs::read(self.dir.join("skipped.json")).unwrap_or_default();
        serde_json::from_slice(&text).unwrap_or_default()
    }

    /// Counts and names commands that are left out.
    ///
    /// # Errors
    /// The disk does not take it.
    pub fn skipped_too(&self, failures: &[Failure], side: Side) -> Result<Dropped> {
        for failure in failures {
            self.log(failure)?;
        }
        let mut skipped = self.skipped();
        let names = failures.iter().map(|failure| failure.to_error(side, 0).message);
        skipped.add(failures.len() as u64, names);
        self.put("skipped.json", Some(&serde_json::to_vec_pretty(&skipped).unwrap_or_default()))?;
        Ok(skipped)
    }

    /// Adds to the commands that were left out.
    ///
    /// # Errors
    /// The disk does not take it.
    fn log(&self, failure: &Failure) -> Result<()> {
        let append = || {
            let mut file =
                OpenOptions::new().create(true).append(true).open(self.dir.join("failures.log"))?;
            let mut line = serde_json::to_vec(failure)?;
            line.push(b'\n');
            file.write_all(&line)?;
            file.sync_data()
        };
        append().map_err(|cause| failed("cannot write failures.log", cause))
    }

    /// What `begun` holds.
    pub fn begun(&self) -> Option<String> {
        fs::read_to_string(self.dir.join("begun")).ok()
    }

    /// Records that the destination bears our mark since `origin`, or that it does not.
    ///
    /// # Errors
    /// The disk does not take it.
    pub fn set_begun(&self, origin: Option<&str>) -> Result<()> {
        self.put("begun", origin.map(str::as_bytes))
    }

    /// How to end the destination's being our replica.
    ///
    /// # Errors
    /// The file cannot be read, or is none of ours.
    pub fn serving(&self) -> Result<Option<Undo>> {
        self.json("serving.json")
    }

    /// Records durably that the destination may be our replica from here on, or that it is not.
    ///
    /// # Errors
    /// The disk does not take it.
    pub fn set_serving(&self, undo: Option<&Undo>) -> Result<()> {
        let text = undo.map(|undo| serde_json::to_vec_pretty(undo).unwrap_or_default());
        self.put("serving.json", text.as_deref())
    }

    /// Whether every expiry on the destination is padded.
    pub fn padded(&self) -> bool {
        self.dir.join("padded").exists()
    }

    /// Records whether every expiry on the destination is padded.
    ///
    /// # Errors
    /// The disk does not take it.
    pub fn set_padded(&self, padded: bool) -> Result<()> {
        if padded == self.padded() {
            return Ok(());
        }
        self.put("padded", padded.then_some(&b"yes\n"[..]))
    }

    fn json<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>> {
        match fs::read(self.dir.join(name)) {
            Ok(text) => serde_json::from_slice(&text).map(Some).map_err(|cause| {
                Error::new(Side::Gateway, format!("{name} in the state directory cannot be understood"))
                    .because(cause)
            }),
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(cause) => Err(failed(&format!("cannot read {name}"), cause)),
        }
    }

    fn put(&self, name: &str, text: Option<&[u8]>) -> Result<()> {
        let path = self.dir.join(name);
        let put = || {
            match text {
                Some(text) => {
                    let aside = self.dir.join(format!("{name}.new"));
                    let mut file = File::create(&aside)?;
                    file.write_all(text)?;
                    file.sync_all()?;
                    fs::rename(aside, path)?;
                }
                None => match fs::remove_file(path) {
                    Err(cause) if cause.kind() != io::ErrorKind::NotFound => return Err(cause),
                    _ => {}
                },
            }
            File::open(&self.dir)?.sync_all()
        };
        put().map_err(|cause| failed(&format!("cannot write {name}"), cause))
    }
}

fn nothing_failed(what: &str) -> Error {
    Error::new(Side::Gateway, format!("there is no failed command to {what}"))
        .remedy("remove what `crossfade status` names as the cause, then `crossfade resume` without it")
}

fn failed(what: &str, cause: io::Error) -> Error {
    Error::passing(Side::Gateway, what).because(cause).remedy("look at the disk that holds state_dir")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notes_are_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let notes = Notes::open(&dir.path().join("forward")).unwrap();
        assert_eq!((notes.failures().unwrap(), notes.begun(), notes.padded()), (None, None, false));
        let failure = Failure {
            at_ms: 1,
            command: "INCR".into(),
            key: Some("k".into()),
            db: 2,
            offset: 77,
            error: "WRONGTYPE".into(),
            passed: true,
            places: vec![KeyAt { db: 2, key: b"k\xff\n".to_vec() }],
        };
        let text = failure.to_error(Side::Destination, 1).to_string();
        for part in ["INCR", "\"k\"", "db 2", "77", "WRONGTYPE", "1 more"] {
            assert!(text.contains(part), "{text}");
        }
        let failures = Failures { commands: vec![failure.clone()], skip: false };
        notes.set_failures(Some(&failures)).unwrap();
        notes.set_begun(Some("x 1 0")).unwrap();
        notes.set_padded(true).unwrap();
        notes.skipped_too(&[failure.clone(), failure.clone()], Side::Destination).unwrap();
        assert_eq!(notes.skipped().count, 2);
        assert!(notes.skipped().named[1].contains("INCR of key"));
        assert_eq!(notes.failures().unwrap(), Some(failures.clone()));
        notes.copy_failures().unwrap();
        assert_eq!(notes.copies().unwrap(), failure.places);
        assert!(notes.failures().unwrap().is_none() && notes.copy_failures().is_err());
        notes.set_failures(Some(&failures)).unwrap();
        notes.skip_failures(Side::Destination).unwrap();
        assert!(notes.copies().unwrap().is_empty() && notes.skip_failures(Side::Destination).is_err());
        assert_eq!(notes.begun().as_deref(), Some("x 1 0"));
        assert!(notes.padded());
        notes.set_failures(None).unwrap();
        notes.set_failures(None).unwrap();
        notes.set_begun(None).unwrap();
        notes.set_padded(false).unwrap();
        assert_eq!((notes.failures().unwrap(), notes.begun(), notes.padded()), (None, None, false));
    }
}

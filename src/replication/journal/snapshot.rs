//! A snapshot file that is written by one and read by another at the same time.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::PathBuf;
use std::sync::Arc;

use parking_lot::{Condvar, Mutex};

use super::JournalOptions;

/// What is known of the current snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotInfo {
    /// The full synchronisation that it belongs to.
    pub generation: u64,
    /// The history it was taken from; `None` from a server that only knows `SYNC`.
    pub replid: Option<String>,
    /// The offset of the stream that it stands at: the stream goes on with the byte behind.
    pub offset: u64,
    /// Bytes that are there.
    pub bytes: u64,
    /// Bytes that the source announced; it does not know them beforehand in a diskless transfer.
    pub expected: Option<u64>,
    /// Whether all of it is there.
    pub complete: bool,
    /// The file.
    pub path: PathBuf,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Outcome {
    Arriving,
    Complete,
    GivenUp(String),
}

/// How far the writer is; what the readers wait on.
#[derive(Debug)]
pub(super) struct Progress {
    state: Mutex<(u64, Outcome)>,
    moved: Condvar,
    pub(super) expected: Option<u64>,
}

impl Progress {
    pub(super) fn arriving(expected: Option<u64>) -> Arc<Self> {
        Arc::new(Self { state: Mutex::new((0, Outcome::Arriving)), moved: Condvar::new(), expected })
    }

    pub(super) fn complete(bytes: u64) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::new((bytes, Outcome::Complete)),
            moved: Condvar::new(),
            expected: Some(bytes),
        })
    }

    pub(super) fn bytes(&self) -> u64 {
        self.state.lock().0
    }

    pub(super) fn is_complete(&self) -> bool {
        self.state.lock().1 == Outcome::Complete
    }

    fn end(&self, outcome: Outcome) {
        let mut state = self.state.lock();
        if state.1 == Outcome::Arriving {
            state.1 = outcome;
            self.moved.notify_all();
        }
    }
}

/// Takes the bytes of a snapshot. Dropped before [`Self::finish`], it gives the snapshot up, and readers learn.
#[derive(Debug)]
pub(in crate::replication) struct SnapshotWriter {
    file: File,
    progress: Arc<Progress>,
    options: JournalOptions,
}

impl SnapshotWriter {
    pub(super) fn new(file: File, progress: Arc<Progress>, options: JournalOptions) -> Self {
        Self { file, progress, options }
    }

    /// Appends as much of `bytes` as the disk takes, at least one byte, and says how much.
    ///
    /// # Errors
    /// The disk is full, or fails. Nothing is lost: the same bytes may be given again.
    pub(in crate::replication) fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.options.admit(self.progress.bytes() + bytes.len() as u64)?;
        let written = loop {
            match self.file.write(bytes) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => break written,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        };
        self.progress.state.lock().0 += written as u64;
        self.progress.moved.notify_all();
        Ok(written)
    }

    pub(super) fn bytes(&self) -> u64 {
        self.progress.bytes()
    }

    /// All of it is there. Gives the file, to be synced.
    pub(super) fn finish(&mut self) -> io::Result<File> {
        let file = self.file.try_clone()?;
        self.progress.end(Outcome::Complete);
        Ok(file)
    }
}

impl Drop for SnapshotWriter {
    fn drop(&mut self) {
        self.progress
            .end(Outcome::GivenUp("the transfer of the snapshot ended before the snapshot did".into()));
    }
}

/// Reads a snapshot while it still arrives, and blocks for what has not arrived; for a thread of its own.
///
/// The end of the file is the end of the snapshot. If the transfer breaks, reading fails with
/// [`io::ErrorKind::ConnectionAborted`] and what was read so far is worth nothing.
#[derive(Debug)]
pub struct SnapshotReader {
    file: File,
    progress: Arc<Progress>,
    at: u64,
    /// How far the writer was when last asked.
    there: u64,
}

impl SnapshotReader {
    pub(super) fn new(file: File, progress: Arc<Progress>) -> Self {
        Self { file, progress, at: 0, there: 0 }
    }

    /// Waits until something lies behind `at`; false: nothing ever will.
    fn wait(&mut self) -> io::Result<bool> {
        let mut state = self.progress.state.lock();
        loop {
            if state.0 > self.at {
                self.there = state.0;
                return Ok(true);
            }
            match &state.1 {
                Outcome::Complete => return Ok(false),
                Outcome::GivenUp(why) => {
                    return Err(io::Error::new(io::ErrorKind::ConnectionAborted, why.clone()));
                }
                Outcome::Arriving => self.progress.moved.wait(&mut state),
            }
        }
    }
}

impl Read for SnapshotReader {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if buf.is_empty() || (self.at >= self.there && !self.wait()?) {
            return Ok(0);
        }
        let most = usize::try_from(self.there - self.at).map_or(buf.len(), |left| left.min(buf.len()));
        match self.file.read(&mut buf[..most])? {
            0 => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the snapshot file was cut short on disk")),
            read => {
                self.at += read as u64;
                Ok(read)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(dir: &std::path::Path) -> (SnapshotWriter, SnapshotReader) {
        let path = dir.join("snapshot");
        let progress = Progress::arriving(None);
        let writer =
            SnapshotWriter::new(File::create(&path).unwrap(), progress.clone(), JournalOptions::default());
        (writer, SnapshotReader::new(File::open(path).unwrap(), progress))
    }

    #[test]
    fn a_reader_follows_and_sees_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let (mut writer, mut reader) = pair(dir.path());
        let reading = std::thread::spawn(move || {
            let mut all = Vec::new();
            reader.read_to_end(&mut all).map(|_| all)
        });
        let mut expected = Vec::new();
        for n in 0..200u32 {
            let piece = vec![n as u8; (n as usize * 37) % 5000 + 1];
            let mut left = &piece[..];
            while !left.is_empty() {
                let written = writer.write(left).unwrap();
                left = &left[written..];
            }
            expected.extend(piece);
        }
        writer.finish().unwrap();
        assert_eq!(reading.join().unwrap().unwrap(), expected);
    }

    #[test]
    fn a_reader_learns_that_it_was_given_up() {
        let dir = tempfile::tempdir().unwrap();
        let (mut writer, mut reader) = pair(dir.path());
        writer.write(b"REDIS").unwrap();
        let reading = std::thread::spawn(move || reader.read_to_end(&mut Vec::new()));
        drop(writer);
        assert_eq!(reading.join().unwrap().unwrap_err().kind(), io::ErrorKind::ConnectionAborted);
    }
}

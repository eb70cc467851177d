//! The scripts as they stand in `state_dir`, for the gateway that is started after this one.
//!
//! What it guarantees:
//! - *Nobody waits for it.* A thread of its own writes down what memory holds and the file does not. There is no queue
//!   between the two: what was forgotten before its turn came is never written.
//! - *A torn end does no harm.* The file is only appended to, and each record has a checksum: what is read ends before the
//!   first that is not whole, and is cut off there. It is not synced: a script is in the file some milliseconds after its
//!   client sent it, which the end of the process cannot undo; a power failure may take the last half minute.
//! - *It is bounded as the memory is.* It holds at most twice what is kept, and [`SLACK`]; then it is written anew beside
//!   itself. No more than [`RATE`] is written in a second, whatever clients send.
//!
//! Layout, all integers little-endian:
//!
//! ```text
//! "CFSCRPT1"
//! crc64 u64 | length u32 | kind u8, 1 of EVAL, 2 of SCRIPT LOAD | text, `length` bytes        over and over
//! ```
//!
//! The checksum covers everything behind it; that of zeros is zero, and zero is no kind. Reading keeps the texts in their order, as if clients had just sent them: the
//! same ones are left.

use std::fs::{File, OpenOptions};
use std::io::{self, BufReader, Read, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::{Kept, LOADED_BYTES, Scripts};
use crate::disk::{self, CRC};

const MAGIC: &[u8; 8] = b"CFSCRPT1";
const HEADER: usize = 8 + 4 + 1;
const EVALUATED: u8 = 1;
const LOADED: u8 = 2;
/// Bytes that may be out of date, besides as many as are not.
const SLACK: u64 = 8 * 1024 * 1024;
/// Bytes in a second.
const RATE: f64 = 16.0 * 1024.0 * 1024.0;
/// After the disk has refused.
const RETRY: Duration = Duration::from_secs(10);

/// The file, and what of the memory it holds.
#[derive(Debug)]
pub(super) struct Book {
    path: PathBuf,
    /// Open at its end; `None` when the disk has refused and nobody knows what it ends with.
    file: Option<File>,
    length: u64,
    /// The number behind the last text that is written.
    pub(super) next: u64,
    flushes: u64,
}

/// What is to be done.
enum Work {
    Write(Vec<(Bytes, bool)>),
    Empty,
    Renew,
    End,
}

/// Reads the file at `path`, or makes it; `keep` takes each text, and whether it was loaded.
pub(super) fn open(path: &Path, mut keep: impl FnMut(&[u8], bool)) -> io::Result<Book> {
    let book = |file, length| Book { path: path.to_owned(), file: Some(file), length, next: 0, flushes: 0 };
    if !std::fs::exists(path)? {
        return Ok(book(disk::replace_by(path, |file| file.write_all(MAGIC))?, MAGIC.len() as u64));
    }
    let mut file = OpenOptions::new().read(true).write(true).open(path)?;
    let mut reader = BufReader::new(&file);
    let mut magic = [0; MAGIC.len()];
    if !fill(&mut reader, &mut magic)? || magic != *MAGIC {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "it is not a file of scripts of this version",
        ));
    }
    let (mut length, mut text, mut count) = (MAGIC.len() as u64, Vec::new(), 0);
    while let Some(loaded) = record(&mut reader, &mut text)? {
        keep(&text, loaded);
        length += (HEADER + text.len()) as u64;
        count += 1;
    }
    drop(reader);
    let torn = file.metadata()?.len().saturating_sub(length);
    if torn > 0 {
        tracing::info!(path = %path.display(), torn, "the last script was not written to its end");
        file.set_len(length)?;
    }
    file.seek(SeekFrom::Start(length))?;
    tracing::debug!(count, length, "scripts of clients are known from before");
    Ok(book(file, length))
}

/// Says that scripts are not kept for the next gateway.
pub(super) fn unwritten(path: &Path, cause: &io::Error) {
    tracing::warn!(
        path = %path.display(),
        "the scripts of clients are not kept on the disk: a gateway that is started anew does not know them ({cause})"
    );
}

/// The next record, its text in `text`; `None` at the end, and where it is torn.
fn record(reader: &mut impl Read, text: &mut Vec<u8>) -> io::Result<Option<bool>> {
    let mut header = [0; HEADER];
    if !fill(reader, &mut header)? {
        return Ok(None);
    }
    let (sum, covered) = header.split_at(8);
    let length = u32::from_le_bytes([covered[0], covered[1], covered[2], covered[3]]) as usize;
    // A damaged length must not be allocated.
    if length > LOADED_BYTES {
        return Ok(None);
    }
    text.resize(length, 0);
    if !fill(reader, text)? {
        return Ok(None);
    }
    let whole = sum == checksum(covered, text).to_le_bytes() && matches!(covered[4], EVALUATED | LOADED);
    Ok(whole.then_some(covered[4] == LOADED))
}

/// Whether there was as much.
fn fill(reader: &mut impl Read, buffer: &mut [u8]) -> io::Result<bool> {
    match reader.read_exact(buffer) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

fn checksum(covered: &[u8], text: &[u8]) -> u64 {
    let mut digest = CRC.digest();
    digest.update(covered);
    digest.update(text);
    digest.finalize()
}

fn encode(texts: &[(Bytes, bool)]) -> Vec<u8> {
    let mut out = Vec::with_capacity(texts.iter().map(|(text, _)| HEADER + text.len()).sum());
    for (text, loaded) in texts {
        let mut covered = [0; HEADER - 8];
        // No text is longer than `LOADED_BYTES`.
        covered[..4].copy_from_slice(&(text.len() as u32).to_le_bytes());
        covered[4] = if *loaded { LOADED } else { EVALUATED };
        out.extend_from_slice(&checksum(&covered, text).to_le_bytes());
        out.extend_from_slice(&covered);
        out.extend_from_slice(text);
    }
    out
}

impl Book {
    /// Writes down what comes, until nothing comes any more.
    pub(super) fn keep_up(mut self, scripts: &Scripts) {
        let mut told = false;
        loop {
            let before = self.length;
            let done = match self.work(scripts) {
                Work::End => return,
                Work::Write(texts) => self.append(&texts),
                Work::Empty => self.empty(),
                Work::Renew => self.renew(scripts),
            };
            if let Err(error) = done {
                self.file = None;
                if !std::mem::replace(&mut told, true) {
                    unwritten(&self.path, &error);
                }
                let until = Instant::now() + RETRY;
                let mut kept = scripts.kept.lock();
                while !kept.closing && !scripts.changed.wait_until(&mut kept, until).timed_out() {}
                if kept.closing {
                    return;
                }
                continue;
            }
            told = false;
            let written = self.length.saturating_sub(before);
            std::thread::sleep(Duration::from_secs_f64(written as f64 / RATE));
        }
    }

    /// Waits for something to do.
    fn work(&mut self, scripts: &Scripts) -> Work {
        let mut kept = scripts.kept.lock();
        loop {
            if self.file.is_none() || self.length > 2 * written_length(&kept) + SLACK {
                return Work::Renew;
            }
            if kept.flushes != self.flushes {
                (self.flushes, self.next) = (kept.flushes, 0);
                return Work::Empty;
            }
            let texts = kept.portion(&mut self.next);
            if !texts.is_empty() {
                return Work::Write(texts);
            }
            if kept.closing {
                return Work::End;
            }
            scripts.changed.wait(&mut kept);
        }
    }

    fn append(&mut self, texts: &[(Bytes, bool)]) -> io::Result<()> {
        let Some(file) = &mut self.file else { return Ok(()) };
        let bytes = encode(texts);
        file.write_all(&bytes)?;
        self.length += bytes.len() as u64;
        Ok(())
    }

    fn empty(&mut self) -> io::Result<()> {
        let Some(file) = &mut self.file else { return Ok(()) };
        self.length = MAGIC.len() as u64;
        file.set_len(self.length)?;
        file.seek(SeekFrom::Start(self.length)).map(drop)
    }

    /// Writes all that is kept into another file, and puts that in the place of this one.
    fn renew(&mut self, scripts: &Scripts) -> io::Result<()> {
        self.flushes = scripts.kept.lock().flushes;
        let (mut next, mut length) = (0, MAGIC.len() as u64);
        let file = disk::replace_by(&self.path, |file| {
            file.write_all(MAGIC)?;
            loop {
                let texts = scripts.kept.lock().portion(&mut next);
                if texts.is_empty() {
                    return Ok(());
                }
                let bytes = encode(&texts);
                length += bytes.len() as u64;
                file.write_all(&bytes)?;
            }
        })?;
        (self.file, self.next, self.length) = (Some(file), next, length);
        Ok(())
    }
}

/// Bytes of a file that holds all of them once.
fn written_length(kept: &Kept) -> u64 {
    (MAGIC.len() + kept.loaded_bytes + kept.evaluated_bytes + kept.order.len() * HEADER) as u64
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::tests::texts;
    use super::super::{EVALUATED as MOST_EVALUATED, EVALUATED_BYTES};
    use super::*;

    fn eval(scripts: &Scripts, text: &str) {
        scripts.learn("eval", &[b"eval", text.as_bytes(), b"0"]);
    }

    fn load(scripts: &Scripts, text: &str) {
        scripts.learn("script", &[b"script", b"load", text.as_bytes()]);
    }

    /// What the next gateway finds.
    async fn again(scripts: Arc<Scripts>, path: &Path) -> Arc<Scripts> {
        scripts.close().await;
        Scripts::open(path)
    }

    #[tokio::test]
    async fn the_next_gateway_finds_them_in_their_order() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("scripts");
        let scripts = Scripts::open(&path);
        load(&scripts, "return 1");
        eval(&scripts, "return 2");
        eval(&scripts, "return 3");
        load(&scripts, "return 2");
        let scripts = again(scripts, &path).await;
        assert_eq!(texts(&scripts), ["return 1", "return 3", "return 2"]);
        let kept = |scripts: &Scripts| {
            let kept = scripts.kept.lock();
            (kept.loaded_bytes, kept.evaluated_bytes)
        };
        assert_eq!(kept(&scripts), (16, 8));
        // Nothing is written that is there.
        let length = std::fs::metadata(&path).unwrap().len();
        let scripts = again(scripts, &path).await;
        assert_eq!(std::fs::metadata(&path).unwrap().len(), length);

        scripts.learn("script", &[b"script", b"flush"]);
        eval(&scripts, "return 4");
        let scripts = again(scripts, &path).await;
        assert_eq!(texts(&scripts), ["return 4"]);
        scripts.learn("script", &[b"script", b"flush"]);
        let scripts = again(scripts, &path).await;
        assert!(texts(&scripts).is_empty());
        scripts.close().await;
    }

    /// Whatever prefix reached the disk, and whatever stands behind it: what is read is what was written whole, and what
    /// comes later is found behind it.
    #[tokio::test]
    async fn a_torn_end_takes_nothing_with_it_but_itself() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("scripts");
        let scripts = Scripts::open(&path);
        for n in 0..4 {
            load(&scripts, &format!("return 'number {n}'"));
        }
        scripts.close().await;
        let whole = std::fs::read(&path).unwrap();
        let length = (whole.len() - MAGIC.len()) / 4;
        for cut in MAGIC.len()..whole.len() {
            for garbage in [&b""[..], &[0; 40], &[0xff; 40]] {
                std::fs::write(&path, [&whole[..cut], garbage].concat()).unwrap();
                let scripts = Scripts::open(&path);
                let read = (cut - MAGIC.len()) / length;
                assert_eq!(texts(&scripts).len(), read, "cut at {cut}");
                load(&scripts, "return 'later'");
                let scripts = again(scripts, &path).await;
                let texts = texts(&scripts);
                assert_eq!((texts.len(), texts[read].as_str()), (read + 1, "return 'later'"), "cut at {cut}");
                scripts.close().await;
            }
        }
    }

    #[test]
    fn the_file_stays_bounded_and_keeps_the_newest() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("scripts");
        let scripts = Scripts::default();
        let mut book = open(&path, |_, _| {}).unwrap();
        scripts.kept.lock().closing = true;
        let quarter = "x".repeat(EVALUATED_BYTES / 4 - 100);
        let (mut renewed, mut longest) = (0, 0);
        for n in 0..24 {
            eval(&scripts, &format!("{n} {quarter}"));
            loop {
                match book.work(&scripts) {
                    Work::Write(texts) => book.append(&texts).unwrap(),
                    Work::Renew => book.renew(&scripts).map(|()| renewed += 1).unwrap(),
                    Work::Empty => panic!("nobody flushed"),
                    Work::End => break,
                }
            }
            longest = longest.max(std::fs::metadata(&path).unwrap().len());
        }
        assert!(longest <= 2 * EVALUATED_BYTES as u64 + SLACK, "{longest} bytes");
        assert!(renewed > 0 && renewed < 6, "written anew {renewed} times");
        let mut read = Vec::new();
        open(&path, |text, _| read.push(text[..2].to_vec())).unwrap();
        assert_eq!(read[read.len() - 4..], [b"20", b"21", b"22", b"23"]);
    }

    #[tokio::test]
    async fn what_is_forgotten_before_its_turn_is_not_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("scripts");
        let scripts = Scripts::default();
        let mut book = open(&path, |_, _| {}).unwrap();
        for n in 0..10 * MOST_EVALUATED {
            eval(&scripts, &format!("return {n}"));
        }
        let Work::Write(texts) = book.work(&scripts) else { panic!("there is something to write") };
        assert_eq!((texts.len(), &texts[0].0[..]), (MOST_EVALUATED, &b"return 4500"[..]));
    }

    #[tokio::test]
    async fn a_file_of_another_kind_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("scripts");
        std::fs::write(&path, "something else").unwrap();
        let scripts = Scripts::open(&path);
        load(&scripts, "return 1");
        assert_eq!(texts(&scripts), ["return 1"]);
        scripts.close().await;
        assert_eq!(std::fs::read(&path).unwrap(), b"something else");
    }

    /// A file that cannot be written is written anew as a whole once it can.
    #[test]
    fn after_a_refused_write_everything_is_written_anew() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("scripts");
        let scripts = Scripts::default();
        let mut book = open(&path, |_, _| {}).unwrap();
        load(&scripts, "return 1");
        book.file = None;
        assert!(matches!(book.work(&scripts), Work::Renew));
        book.renew(&scripts).unwrap();
        load(&scripts, "return 2");
        let Work::Write(texts) = book.work(&scripts) else { panic!("there is something to write") };
        book.append(&texts).unwrap();
        let mut read = Vec::new();
        open(&path, |text, loaded| read.push((text.to_vec(), loaded))).unwrap();
        assert_eq!(read, [(b"return 1".to_vec(), true), (b"return 2".to_vec(), true)]);
    }
}

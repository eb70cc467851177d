//! One connection to the destination: batches go out as they come, replies are checked one by one.
//!
//! ```text
//! waiting ─┐
//! detour ──┴─ outgoing (being written) ─ in flight (unanswered, in order) ─ answered: permit given back
//! ```
//! A *detour* is one value that RESTORE refused and that is written as commands instead, from the bytes of its RESTORE:
//! its batches go before those that wait.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::encoder::{BESIDE, Batch, Encoder, Part, Plan};
use super::feeder::{library, unsupported, unwritten};
use super::progress::{FailedKey, Failures, Progress};
use crate::error::{Error, Result, Side};
use crate::rdb::{self, What};
use crate::resp::scan::{CommandScanner, Limits};
use crate::resp::value::{self, Value};
use crate::resp::write;
use crate::server::{self, Client};

/// Batches that may be unanswered; their bytes are bounded by the budget.
const IN_FLIGHT: usize = 64;

pub(super) struct Connection {
    input: BytesMut,
    side: Side,
    waiting: mpsc::Receiver<Batch>,
    plan: Arc<Plan>,
    failures: Arc<Failures>,
    progress: Arc<Progress>,
    timeout: Duration,
    db: u32,
    in_flight: VecDeque<Flight>,
    /// Refused values, and the one whose batches are coming now.
    refused: VecDeque<Refused>,
    detour: Option<mpsc::Receiver<Batch>>,
    outgoing: Bytes,
    /// A batch that waits until its db is selected.
    held: Option<Batch>,
    /// The key that was named last as failed.
    failed: Option<(u32, Vec<u8>)>,
    /// Keys that failed before the batch that counts them.
    owed: u32,
}

/// A batch that is being answered.
struct Flight {
    kind: Kind,
    batch: Batch,
    answered: u32,
    /// Keys of it that were not written.
    less: u32,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Commands,
    Select,
}

/// A value that RESTORE refused.
struct Refused {
    db: u32,
    key: Bytes,
    expiry: Option<u64>,
    payload: Bytes,
    reason: String,
}

impl Connection {
    pub(super) fn new(
        side: Side,
        waiting: mpsc::Receiver<Batch>,
        plan: Arc<Plan>,
        failures: Arc<Failures>,
        progress: Arc<Progress>,
        timeout: Duration,
    ) -> Self {
        Self {
            input: BytesMut::with_capacity(16 * 1024),
            side,
            waiting,
            plan,
            failures,
            progress,
            timeout,
            db: 0,
            in_flight: VecDeque::new(),
            refused: VecDeque::new(),
            detour: None,
            outgoing: Bytes::new(),
            held: None,
            failed: None,
            owed: 0,
        }
    }

    /// Until the feeder is done and all is answered.
    pub(super) async fn run(mut self, client: Client) -> Result<()> {
        let (stream, input) = client.into_parts();
        self.input.extend_from_slice(&input);
        let (mut reader, mut writer) = tokio::io::split(stream);
        let mut exhausted = false;
        let mut heard = Instant::now();
        loop {
            self.begin_detour();
            let free = self.outgoing.is_empty() && self.held.is_none() && self.in_flight.len() < IN_FLIGHT;
            let idle = self.outgoing.is_empty() && self.in_flight.is_empty();
            if idle && exhausted && self.detour.is_none() {
                return Ok(());
            }
            if idle {
                heard = Instant::now();
            }
            let event = tokio::select! {
                written = writer.write(&self.outgoing), if !self.outgoing.is_empty() => Event::Written(written),
                read = reader.read_buf(&mut self.input), if !self.in_flight.is_empty() => Event::Read(read),
                batch = next(&mut self.detour), if free && self.detour.is_some() => Event::Detour(batch),
                batch = self.waiting.recv(), if free && self.detour.is_none() && !exhausted => Event::Batch(batch),
                () = tokio::time::sleep_until(heard + self.timeout), if !idle => Event::Silence,
            };
            match event {
                Event::Written(Ok(0)) => return Err(self.lost("it takes no more data")),
                Event::Read(Ok(0)) => return Err(self.lost("it closed the connection")),
                Event::Written(Err(cause)) | Event::Read(Err(cause)) => {
                    return Err(self.lost("").because(cause));
                }
                Event::Written(Ok(n)) => {
                    heard = Instant::now();
                    self.outgoing.advance(n);
                    if self.outgoing.is_empty() {
                        // Even when empty it would keep the batch in memory beyond its permit.
                        self.outgoing = Bytes::new();
                        writer.flush().await.map_err(|cause| self.lost("").because(cause))?;
                    }
                }
                Event::Read(Ok(_)) => {
                    heard = Instant::now();
                    self.replies()?;
                    self.input.reserve(16 * 1024);
                }
                Event::Batch(None) => exhausted = true,
                Event::Detour(None) => self.detour = None,
                Event::Batch(Some(batch)) | Event::Detour(Some(batch)) => self.send(batch),
                Event::Silence => {
                    let silent = format!("no answer within {:?} while the snapshot is loaded", self.timeout);
                    return Err(Error::passing(self.side, silent));
                }
            }
        }
    }

    fn lost(&self, why: &str) -> Error {
        let why = if why.is_empty() { String::new() } else { format!(": {why}") };
        Error::passing(self.side, format!("the connection was lost while the snapshot is loaded{why}"))
    }

    /// Sends a batch, when need be after SELECT, whose answer brings it here again.
    fn send(&mut self, batch: Batch) {
        if batch.db == self.db {
            self.outgoing = batch.bytes.clone();
            self.in_flight.push_back(Flight { kind: Kind::Commands, batch, answered: 0, less: 0 });
            return;
        }
        // Nothing may follow before the answer: were it an error, the batch would land in another db.
        let mut bytes = Vec::new();
        write::command(&mut bytes, &[&b"SELECT"[..], itoa::Buffer::new().format(batch.db).as_bytes()]);
        self.outgoing = bytes.into();
        let select = Batch {
            db: batch.db,
            bytes: Bytes::new(),
            commands: 1,
            keys: 0,
            part: Part::Independent,
            permit: None,
        };
        self.in_flight.push_back(Flight { kind: Kind::Select, batch: select, answered: 0, less: 0 });
        self.held = Some(batch);
    }

    /// Takes all whole replies from the input.
    fn replies(&mut self) -> Result<()> {
        const OK: &[u8] = b"+OK\r\n";
        loop {
            let Some(flight) = self.in_flight.front_mut() else {
                if self.input.is_empty() {
                    return Ok(());
                }
                return Err(Error::new(self.side, "a reply came that nothing was sent for"));
            };
            // Nearly every reply is this one.
            let wanted = (flight.batch.commands - flight.answered) as usize;
            let good =
                self.input.chunks_exact(OK.len()).take(wanted).take_while(|reply| *reply == OK).count();
            if good > 0 && flight.kind == Kind::Commands {
                self.input.advance(good * OK.len());
                flight.answered += good as u32;
            }
            if flight.answered < flight.batch.commands {
                let decoded = value::decode(&self.input).map_err(|error| {
                    Error::new(self.side, format!("a reply cannot be read: {}", error.text))
                })?;
                let Some((reply, len)) = decoded else { return Ok(()) };
                self.input.advance(len);
                self.reply(reply)?;
            }
            self.land();
        }
    }

    /// Lets go of the first batch when it is answered.
    fn land(&mut self) {
        if self.in_flight.front().is_some_and(|flight| flight.answered == flight.batch.commands) {
            let Some(flight) = self.in_flight.pop_front() else { return };
            let due = flight.less + self.owed;
            let written = flight.batch.keys.saturating_sub(due);
            self.owed = due - (flight.batch.keys - written);
            self.progress.keys_loaded.fetch_add(u64::from(written), Relaxed);
        }
    }

    /// A reply to the next command of the first batch that is not `+OK`.
    fn reply(&mut self, reply: Value) -> Result<()> {
        let Some(flight) = self.in_flight.front_mut() else { return Ok(()) };
        let at = flight.answered;
        flight.answered += 1;
        match (flight.kind, &reply) {
            (Kind::Select, Value::Error(text)) => {
                let text = String::from_utf8_lossy(text).into_owned();
                let error =
                    Error::new(self.side, format!("db {} cannot be selected: {text}", flight.batch.db));
                Err(error.remedy("set 'databases' at the destination at least as high as at the source"))
            }
            (Kind::Select, _) => {
                self.db = flight.batch.db;
                if let Some(batch) = self.held.take() {
                    self.send(batch);
                }
                Ok(())
            }
            (_, Value::Error(text)) => self.error(at, &String::from_utf8_lossy(text)),
            // SET … NX or RENAMENX over a key that is kept. DEL and others answer with 0 too.
            (Kind::Commands, Value::Nil | Value::Integer(0)) if self.plan.keeps() => {
                let asked = || commands(&flight.batch.bytes).nth(at as usize);
                if reply == Value::Nil || is(asked(), b"RENAMENX") {
                    flight.less += 1;
                    self.progress.keys_kept.fetch_add(1, Relaxed);
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// An error reply to command `at` of the first batch.
    fn error(&mut self, at: u32, text: &str) -> Result<()> {
        if server::passes(text) {
            return Err(Error::passing(self.side, format!("the destination refuses to be loaded: {text}"))
                .remedy("it goes on by itself once that has passed"));
        }
        let Some(flight) = self.in_flight.front_mut() else { return Ok(()) };
        let db = flight.batch.db;
        let mut commands = commands(&flight.batch.bytes).skip(at as usize);
        let args = commands.next().unwrap_or_default();
        let name = args.first().cloned().unwrap_or_default();
        let key = args.get(key_at(&name)).cloned().unwrap_or_default();
        let key = key.strip_prefix(BESIDE).map_or(key.clone(), |key_of| key.slice_ref(key_of));
        if text.starts_with("NOAUTH") || text.starts_with("NOPERM") || text.starts_with("ERR unknown command")
        {
            let name = String::from_utf8_lossy(&name).into_owned();
            let error =
                Error::new(self.side, format!("{name} for key {} was refused: {text}", rdb::printable(&key)));
            return Err(error.remedy("give the user the right to write every key with every command"));
        }
        match &name[..] {
            b"RESTORE" if text.starts_with("BUSYKEY") => {
                flight.less += 1;
                self.progress.keys_kept.fetch_add(1, Relaxed);
            }
            b"RESTORE" => {
                flight.less += 1;
                let behind =
                    commands.next().filter(|next| next[0] == b"PEXPIREAT"[..] && next.get(1) == Some(&key));
                let number =
                    |bytes: &Bytes| std::str::from_utf8(bytes).ok().and_then(|n| n.parse::<u64>().ok());
                let ttl = args.get(2).and_then(number).filter(|ttl| *ttl > 0);
                let expiry = match behind {
                    Some(next) => next.get(2).and_then(number),
                    None if args.iter().skip(4).any(|arg| arg[..] == b"ABSTTL"[..]) => ttl,
                    None => ttl.map(|ttl| ttl.saturating_add(super::encoder::now_ms())),
                };
                let payload = args.get(3).cloned().unwrap_or_default();
                self.refused.push_back(Refused { db, key, expiry, payload, reason: text.to_owned() });
            }
            b"FUNCTION" => self.failures.add(FailedKey {
                db: 0,
                key: library(args.get(3).map(|source| &source[..]).unwrap_or_default()),
                reason: text.to_owned(),
                remedy: "load that library at the destination by hand, or delete it at the source",
                unsupported: false,
            }),
            b"SCRIPT" => tracing::warn!(reason = text, "a script of the snapshot could not be loaded"),
            _ => {
                // The later commands of the same value fail as well: name it once.
                let failed = Some((db, key.to_vec()));
                if self.failed != failed {
                    self.failed = failed;
                    flight.less += 1;
                    let name = String::from_utf8_lossy(&name).into_owned();
                    self.failures.add(unwritten(db, &key, format!("{name} was refused: {text}")));
                }
            }
        }
        Ok(())
    }

    /// Starts to write the next refused value as commands, when none is being written.
    fn begin_detour(&mut self) {
        if self.detour.is_some() {
            return;
        }
        let Some(refused) = self.refused.pop_front() else { return };
        let (sender, receiver) = mpsc::channel(1);
        let (plan, failures) = (Arc::clone(&self.plan), Arc::clone(&self.failures));
        // Blocking, and as large as the value: off the runtime's own threads.
        tokio::task::spawn_blocking(move || {
            let mut encoder = Encoder::new(&plan);
            let out = &mut |batch| sender.blocking_send(batch).map_err(|_| rdb::Stopped);
            let written = encoder.select(refused.db, out).map_err(What::from).and_then(|()| {
                let (value, _) =
                    rdb::split_dump(&refused.payload).map_err(|_| What::Corrupt("a payload that was cut"))?;
                encoder.as_commands(&refused.key, refused.expiry, &value, out)?;
                Ok(encoder.finish(out)?)
            });
            match written {
                Ok(()) | Err(What::Stopped) => {}
                Err(What::NoCommand(reason)) => {
                    let reason = format!("RESTORE was refused ({}), and {reason}", refused.reason);
                    failures.add(unsupported(refused.db, &refused.key, reason, false));
                }
                Err(what) => {
                    let reason = format!("RESTORE was refused ({}), and as commands: {what}", refused.reason);
                    failures.add(unwritten(refused.db, &refused.key, reason));
                }
            }
        });
        self.detour = Some(receiver);
    }
}

/// Where the key stands among the arguments of a command that the loader writes.
fn key_at(name: &[u8]) -> usize {
    match name {
        b"XGROUP" => 2,
        b"XREADGROUP" => 5,
        _ => 1,
    }
}

fn is(command: Option<Vec<Bytes>>, name: &[u8]) -> bool {
    command.is_some_and(|args| args.first().is_some_and(|first| first[..] == *name))
}

enum Event {
    Written(std::io::Result<usize>),
    Read(std::io::Result<usize>),
    Batch(Option<Batch>),
    Detour(Option<Batch>),
    Silence,
}

async fn next(receiver: &mut Option<mpsc::Receiver<Batch>>) -> Option<Batch> {
    receiver.as_mut()?.recv().await
}

/// The commands of a batch, as arguments that share its memory.
fn commands(batch: &Bytes) -> impl Iterator<Item = Vec<Bytes>> + use<> {
    let mut rest = batch.clone();
    let limits = Limits { bulk: usize::MAX / 2, ..Limits::default() };
    std::iter::from_fn(move || {
        let frame = CommandScanner::default().next(&rest, &limits).ok().flatten()?;
        let args = frame.args(&rest).map(|arg| rest.slice_ref(arg)).collect();
        rest.advance(frame.len);
        Some(args)
    })
}

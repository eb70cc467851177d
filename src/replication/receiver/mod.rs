//! The receiver: attaches to a server as a replica does, and moves what comes into the journal.
//!
//! It lives in a thread of its own, since it writes to disk: a write that blocks delays nobody else. Its only outlets
//! are the journal and [`ReceiverState`]. It comes back after every passing fault, with `PSYNC` from the end of the
//! journal; it ends when it is cancelled, or at a fault that lasts (a refused login, a server that lets nobody
//! replicate it).

mod replica;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::error::{Error, Result, Side};
use crate::rdb;
use crate::replication::framing::{AckScan, Body, Header, Piece};
use crate::replication::handshake::{self, Answer, Ask, Attached, Introduction};
use crate::replication::journal::{Journal, SnapshotWriter};
use crate::replication::position::Position;
use crate::resp::write;
use crate::server::{Endpoint, Stream, processors};

/// Bytes of a snapshot that are read at a time.
const SNAPSHOT_READ: usize = 512 * 1024;
/// Bytes of the stream that are read at a time, and the least room for it.
const STREAM_READ: usize = 256 * 1024;
const STREAM_ROOM: usize = 16 * 1024;
/// How long received bytes may wait for others before they are written to disk.
const FLUSH_AFTER: Duration = Duration::from_millis(5);
/// How long a busy stream is left to itself between two reads.
/// Every read wakes the applier and, through it, the destination; a few bytes at a time that costs more than the
/// writes themselves. With 50 clients that send one SET at a time the mirror alone took 6 µs of CPU per write without a pace; mirror and destination together take 4.5
/// with one of 0.5 ms, 3.4 with this one, 3.3 with 2 ms. What the destination then does at a stretch keeps a processor from the source or the clients for as long.
const PACE: Duration = Duration::from_micros(1200);
/// Reads this close together are what makes a stream busy: one of fewer than a thousand writes a second never waits.
const CLOSE: Duration = Duration::from_millis(1);
/// So many bytes at once are a busy stream too, however late they were read.
const CROWD: usize = 1024;
/// As much of a snapshot that is thrown away is looked at: more than its first records take.
const SNAPSHOT_HEAD: usize = 4096;
/// Redis expects a replica to say once a second how far it is (`replicationCron`).
const ACK_EVERY: Duration = Duration::from_secs(1);
/// The same while the source may be waiting for one, see [`Acks::Eager`]; and how many of these.
const EAGER_EVERY: Duration = Duration::from_millis(5);
const EAGER_ACKS: u32 = 400;
/// How long to wait before a full disk is tried again.
const DISK_EVERY: Duration = Duration::from_secs(1);

/// Where a receiver begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReceiveFrom {
    /// With a snapshot, whatever the journal holds.
    FullSync,
    /// Behind a position that the destination has reached. If the journal covers it, the journal is continued at its
    /// end; otherwise the journal begins anew behind the position.
    Continue(Position),
    /// At the end of the journal; with a snapshot if the journal has nothing to continue.
    Journal,
    /// With the stream alone: the snapshot is thrown away, and an empty one asked for where the server can (7.0).
    /// The journal holds the stream from the offset at which the server took us on.
    Tail,
}

/// What a receiver needs.
#[derive(Debug)]
pub struct ReceiverOptions {
    /// The server to replicate.
    pub endpoint: Endpoint,
    /// Whether one of its replicas is to be read instead, where one is in step.
    pub prefer_replica: bool,
    /// Where everything goes. No other receiver may write to it.
    pub journal: Arc<Journal>,
    /// Where to begin.
    pub start: ReceiveFrom,
    /// The offset that is applied at the destination. It is what the server is told, so `WAIT 1 …` on the
    /// server means "the destination has it".
    pub acked: watch::Receiver<u64>,
    /// What `INFO replication` of the server shows as our port; nobody connects to it.
    pub listening_port: u16,
    /// Whether to say that we understand a transfer without a file at the server's. With it, servers since 7.0 wait
    /// `repl-diskless-sync-delay` (5 s) for other replicas before they begin; without it, they write the whole
    /// snapshot to their disk before they send its first byte.
    pub diskless: bool,
    /// While set, what comes is handed on at once; otherwise a busy stream is read once in a good millisecond.
    pub hurry: Arc<AtomicBool>,
    /// For the connect and each step before `PSYNC`.
    pub connect_timeout: Duration,
    /// The longest silence before the link counts as lost. The server pings every 10 s, and once a second
    /// while it prepares a snapshot.
    pub idle_timeout: Duration,
    /// The first and the longest wait between attempts; it doubles from one to the next.
    pub backoff: (Duration, Duration),
    /// Ends the receiver.
    pub cancel: CancellationToken,
}

impl ReceiverOptions {
    /// With the defaults of a replica: 60 s of silence, attempts after 0.1 s to 2 s.
    pub fn new(
        endpoint: Endpoint,
        journal: Arc<Journal>,
        start: ReceiveFrom,
        acked: watch::Receiver<u64>,
        cancel: CancellationToken,
    ) -> Self {
        Self {
            endpoint,
            prefer_replica: false,
            journal,
            start,
            acked,
            listening_port: 0,
            diskless: true,
            hurry: Arc::default(),
            connect_timeout: Duration::from_secs(5),
            idle_timeout: Duration::from_secs(60),
            backoff: (Duration::from_millis(100), Duration::from_secs(2)),
            cancel,
        }
    }
}

/// How a receiver stands with its server.
#[derive(Debug, Clone)]
pub enum Link {
    /// The first attempt is under way.
    Connecting,
    /// Attached; the server prepares a snapshot.
    WaitingForSnapshot,
    /// The snapshot arrives.
    Snapshot {
        /// Bytes so far.
        read: u64,
        /// Bytes altogether, where the server says so.
        expected: Option<u64>,
    },
    /// The stream arrives.
    Streaming,
    /// Passing trouble; the next attempt follows.
    Lost {
        /// When the link was lost; later failures to restore it do not change it.
        since: Instant,
        /// The latest failure.
        error: Arc<Error>,
    },
    /// With `retry` set: the disk takes nothing, and is tried again every second; nothing is lost. Without: the
    /// receiver has ended, and somebody has to do something.
    Failed(Arc<Error>),
    /// Ended, as it was told to.
    Stopped,
}

/// What is known of a receiver.
#[derive(Debug, Clone)]
pub struct ReceiverState {
    /// The server's replication id; `None` before it is known, and from a server that only knows `SYNC`.
    pub replid: Option<String>,
    /// The offset of the last byte that was received.
    pub received: u64,
    /// How it stands with the server.
    pub link: Link,
    /// [`Journal::generation`]: raised by every full synchronisation, also by one that was not asked for.
    pub generation: u64,
    /// How often the stream has been joined, the first time included.
    pub links: u64,
    /// The db that the stream has selected where the journal begins, with [`ReceiveFrom::Tail`].
    pub tail_db: u32,
}

/// Spawns receivers.
#[derive(Debug)]
pub struct Receiver;

/// A running receiver; dropping it ends it.
#[derive(Debug)]
pub struct ReceiverHandle {
    /// What is known of it. The sender goes away when the receiver has ended.
    pub state: watch::Receiver<ReceiverState>,
    cancel: DropGuard,
}

impl ReceiverHandle {
    /// Ends the receiver, and waits until everything it took is handed to the disk.
    pub async fn stop(self) {
        let Self { mut state, cancel } = self;
        drop(cancel);
        while state.changed().await.is_ok() {}
    }
}

impl Receiver {
    /// Starts a receiver in a thread of its own. When this returns, the journal is where [`ReceiveFrom::Continue`] wants it,
    /// unless the disk is in trouble, and a reader behind that position can be opened.
    pub fn spawn(options: ReceiverOptions) -> ReceiverHandle {
        let cancel = options.cancel.child_token();
        let (sender, state) = watch::channel(ReceiverState {
            replid: options.journal.replid(),
            received: options.journal.received(),
            link: Link::Connecting,
            generation: options.journal.generation(),
            links: 0,
            tail_db: 0,
        });
        let fresh = match options.start {
            ReceiveFrom::FullSync | ReceiveFrom::Tail => true,
            ReceiveFrom::Continue(_) | ReceiveFrom::Journal => false,
        };
        let mut task =
            Task { options, state: sender, fresh, shortcut: false, streamed: false, lost_since: None };
        // The task tries again where this fails.
        let _ = task.place();
        task.note(|_| {});
        let token = cancel.clone();
        let body = move || {
            processors::roam();
            let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
                Ok(runtime) => runtime,
                Err(cause) => return task.fail(cause),
            };
            runtime.block_on(task.run(&token));
        };
        if let Err(cause) = std::thread::Builder::new().name("crossfade-feed".into()).spawn(body) {
            tracing::error!(%cause, "no thread for the receiver");
        }
        ReceiverHandle { state, cancel: cancel.drop_guard() }
    }
}

/// The receiver from inside.
struct Task {
    options: ReceiverOptions,
    state: watch::Sender<ReceiverState>,
    /// The first full synchronisation is still to come.
    fresh: bool,
    /// A tail has been cut short before its snapshot, see [`Self::full`].
    shortcut: bool,
    /// The last attempt got as far as the stream.
    streamed: bool,
    lost_since: Option<Instant>,
}

impl Task {
    async fn run(mut self, cancel: &CancellationToken) {
        let (first, longest) = self.options.backoff;
        let mut wait = first;
        loop {
            let Some(outcome) = cancel.run_until_cancelled(self.attempt()).await else { break };
            // What was received is good, whatever ended the link.
            let flushed = self.options.journal.flush();
            let Err(error) = outcome else { continue };
            if !error.retry {
                tracing::error!(%error, "replication has ended");
                self.note(|state| state.link = Link::Failed(Arc::new(error)));
                return;
            }
            if let Err(cause) = flushed {
                tracing::warn!(%cause, "the journal could not be written");
            }
            if std::mem::take(&mut self.streamed) {
                wait = first;
            }
            let since = match self.lost_since {
                Some(since) => {
                    tracing::debug!(%error, ?wait, "the replication link is still down");
                    since
                }
                None => {
                    tracing::info!(%error, "the replication link is down");
                    Instant::now()
                }
            };
            self.lost_since = Some(since);
            self.note(|state| state.link = Link::Lost { since, error: Arc::new(error) });
            if cancel.run_until_cancelled(tokio::time::sleep(wait)).await.is_none() {
                break;
            }
            wait = (wait * 2).min(longest);
        }
        if let Err(cause) = self.options.journal.flush() {
            tracing::warn!(%cause, "the journal could not be written");
        }
        self.note(|state| state.link = Link::Stopped);
    }

    fn fail(self, cause: io::Error) {
        let error = Error::new(Side::Gateway, "the receiver cannot be started").because(cause);
        self.note(|state| state.link = Link::Failed(Arc::new(error)));
    }

    fn note(&self, change: impl FnOnce(&mut ReceiverState)) {
        let journal = &self.options.journal;
        self.state.send_modify(|state| {
            state.replid = journal.replid();
            state.generation = journal.generation();
            state.received = journal.received();
            change(state);
        });
    }

    /// Puts the journal where the position wants it.
    fn place(&mut self) -> io::Result<()> {
        if let ReceiveFrom::Continue(position) = &self.options.start {
            if !self.options.journal.covers(position) {
                self.options.journal.begin_at(position)?;
            }
            self.options.start = ReceiveFrom::Journal;
        }
        Ok(())
    }

    fn is_tail(&self) -> bool {
        self.options.start == ReceiveFrom::Tail
    }

    fn question(&self) -> Ask {
        let journal = &self.options.journal;
        match journal.replid().filter(|_| !self.fresh && journal.can_continue()) {
            Some(replid) => Ask::Behind { replid, offset: journal.received() },
            None => Ask::Everything,
        }
    }

    /// The server to read from, this time.
    async fn choose(&self, ask: &Ask) -> Result<Endpoint> {
        let source = &self.options.endpoint;
        if !self.options.prefer_replica {
            return Ok(source.clone());
        }
        let offset = if let Ask::Behind { offset, .. } = ask { *offset } else { 0 };
        let found = replica::choose(source, offset, self.options.connect_timeout).await?;
        match &found {
            Some(replica) => tracing::info!(replica = %replica.address, "the stream is read from a replica"),
            None => tracing::info!(
                side = %source.side,
                "no replica is in step and can be reached: the stream is read from the server itself"
            ),
        }
        Ok(found.unwrap_or_else(|| source.clone()))
    }

    /// One connection, from its beginning to its end. `Ok`: the next one should follow at once.
    async fn attempt(&mut self) -> Result<()> {
        processors::stand_aside();
        self.persist(Self::place).await;
        let ask = self.question();
        let how = Introduction {
            listening_port: self.options.listening_port,
            diskless: self.options.diskless,
            empty_snapshot: self.is_tail() && ask == Ask::Everything,
            connect_timeout: self.options.connect_timeout,
            idle_timeout: self.options.idle_timeout,
        };
        let endpoint = self.choose(&ask).await?;
        // Only the snapshot of a replica tells which db its stream has selected.
        let through_replica = endpoint.address != self.options.endpoint.address;
        let mut attached = handshake::introduce(&endpoint, &how).await?;
        if ask == Ask::Everything {
            self.note(|state| state.link = Link::WaitingForSnapshot);
        }
        let answer = attached.ask(&ask).await?;
        let acks = match &answer {
            Answer::Continue { replid } => {
                if let Some(replid) = replid {
                    self.persist(|task| task.options.journal.adopt(replid)).await;
                }
                tracing::info!(offset = self.options.journal.received(), "the stream goes on");
                Acks::Always
            }
            Answer::Full { replid, offset } => {
                if let Ask::Behind { offset: wanted, .. } = ask {
                    tracing::warn!(
                        wanted,
                        offset,
                        "the server no longer has what we lack: full synchronisation"
                    );
                }
                if self.is_tail() && !attached.empty_snapshot && !self.shortcut && !through_replica {
                    // The backlog holds the stream from here on, so the snapshot need not be sent at all.
                    self.shortcut = true;
                    self.tail(Some(replid), *offset).await;
                    return Ok(());
                }
                let marked =
                    matches!(self.full(&mut attached, Some(replid), *offset).await?, Header::Mark(_));
                if marked { Acks::Eager } else { Acks::Always }
            }
            Answer::Plain => {
                tracing::warn!(
                    "the server knows no PSYNC: a lost link will mean another full synchronisation"
                );
                // A server that knows no ACK either would answer to it in the middle of the stream. One that sends a mark does.
                let marked = matches!(self.full(&mut attached, None, 0).await?, Header::Mark(_));
                if marked { Acks::Eager } else { Acks::Never }
            }
        };
        self.stream(attached.stream, attached.input, acks).await
    }

    /// The journal holds the stream from `offset` on, and no snapshot.
    async fn tail(&mut self, replid: Option<&str>, offset: u64) {
        self.persist(|task| task.options.journal.begin_tail(replid, offset)).await;
        self.fresh = false;
        self.note(|_| {});
    }

    /// Takes the snapshot.
    async fn full(&mut self, attached: &mut Attached, replid: Option<&str>, offset: u64) -> Result<Header> {
        if self.is_tail() {
            self.tail(replid, offset).await;
        }
        self.note(|state| state.link = Link::WaitingForSnapshot);
        let header = attached.header().await?;
        let Some(mut body) = Body::new(&header) else {
            return Err(Error::passing(attached.side(), "the server gives no snapshot"));
        };
        let expected = body.bound();
        let mut writer = None;
        if !self.is_tail() {
            let begun = self.persist(|task| task.options.journal.begin(replid, offset, expected)).await;
            writer = Some(begun);
        }
        tracing::info!(offset, ?expected, "a snapshot arrives");
        let (mut buffer, mut held, mut read) = (vec![0; SNAPSHOT_READ], 0, 0u64);
        let mut head = Vec::new();
        loop {
            let (size, end) = match body.take(&buffer[..held]) {
                Piece::More { body } => (body, None),
                Piece::End { body, next } => (body, Some(next)),
            };
            match &mut writer {
                Some(writer) => self.write(writer, &buffer[..size]).await,
                None => head.extend_from_slice(&buffer[..size.min(SNAPSHOT_HEAD - head.len())]),
            }
            read += size as u64;
            self.state.send_modify(|state| state.link = Link::Snapshot { read, expected });
            if let Some(next) = end {
                let rest = std::mem::take(&mut attached.input);
                attached.input.extend_from_slice(&buffer[next..held]);
                attached.input.unsplit(rest);
                break;
            }
            buffer.copy_within(size..held, 0);
            held -= size;
            let most = body.bound().map_or(usize::MAX, |left| usize::try_from(left).unwrap_or(usize::MAX));
            let room = &mut buffer[held..];
            let room_len = room.len().min(most);
            held += attached.read(&mut room[..room_len]).await?;
        }
        if let Some(mut writer) = writer {
            self.persist(|task| task.options.journal.finish(&mut writer)).await;
        }
        self.fresh = false;
        if self.is_tail() {
            self.note(|state| state.tail_db = rdb::stream_db(&head[..]));
        }
        tracing::info!(offset, bytes = read, "the snapshot is here");
        Ok(header)
    }

    /// Writes all of it, however long the disk stays full.
    async fn write(&mut self, writer: &mut SnapshotWriter, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let written = match writer.write(bytes) {
                Ok(written) => written,
                Err(_) => self.persist(|_| writer.write(bytes)).await,
            };
            bytes = &bytes[written..];
        }
    }

    /// Does something on disk until it succeeds; says so in the state while it does not.
    async fn persist<T>(&mut self, mut step: impl FnMut(&mut Self) -> io::Result<T>) -> T {
        let mut before = None;
        loop {
            match step(self) {
                Ok(value) => {
                    if let Some(link) = before {
                        self.note(|state| state.link = link);
                    }
                    return value;
                }
                Err(cause) => {
                    self.disk_trouble(&mut before, cause);
                    tokio::time::sleep(DISK_EVERY).await;
                }
            }
        }
    }

    fn disk_trouble(&self, before: &mut Option<Link>, cause: io::Error) {
        let error = crate::replication::journal::disk("the journal cannot be written", cause);
        if before.is_none() {
            tracing::error!(%error, "the receiver waits for the disk");
            *before = Some(self.state.borrow().link.clone());
        }
        self.note(|state| state.link = Link::Failed(Arc::new(error)));
    }

    /// Takes the stream until the link breaks.
    async fn stream(&mut self, stream: Stream, mut input: BytesMut, acks: Acks) -> Result<()> {
        let side = self.options.endpoint.side;
        let broken = |cause: io::Error| handshake::lost(side, cause);
        self.streamed = true;
        self.lost_since = None;
        self.note(|state| {
            state.links += 1;
            state.link = Link::Streaming;
        });
        let (mut reader, mut writer) = tokio::io::split(stream);
        let mut applied = self.options.acked.clone();
        let mut out = BytesMut::new();
        let mut scan = AckScan::default();
        // An ACK is due whenever the applied offset moves, until it is here.
        let mut demanded = None;
        let mut deaf = false;
        let mut heard = Instant::now();
        // Eagerly for the first while, or until the stream begins.
        let mut eager = if acks == Acks::Eager { EAGER_ACKS } else { 0 };
        let mut tick = tokio::time::interval(if eager > 0 { EAGER_EVERY } else { ACK_EVERY });
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let flush = tokio::time::sleep(FLUSH_AFTER);
        tokio::pin!(flush);
        let mut pending = false;
        let mut unsent = false;
        let began = self.options.journal.received();
        let mut full = self.take(&mut input, &mut scan, &mut demanded);
        loop {
            if !pending && self.options.journal.has_pending() {
                pending = true;
                flush.as_mut().reset(Instant::now() + FLUSH_AFTER);
            }
            if full {
                unsent |= self.flush(&mut writer, &mut out, acks, &applied).await;
                (full, pending) = (false, false);
            }
            if input.capacity() - input.len() < STREAM_ROOM {
                input = BytesMut::with_capacity(STREAM_READ);
            }
            let event = tokio::select! {
                biased;
                _ = tick.tick() => Event::Tick,
                () = &mut flush, if pending => Event::Flush,
                changed = applied.changed(), if demanded.is_some() && !deaf => Event::Applied(changed.is_ok()),
                sent = send(&mut writer, &mut out), if unsent => Event::Sent(sent),
                read = reader.read_buf(&mut input) => Event::Read(read),
            };
            processors::stand_aside();
            match event {
                Event::Read(read) => {
                    if read.map_err(broken)? == 0 {
                        return Err(broken(io::ErrorKind::UnexpectedEof.into()));
                    }
                    let before = std::mem::replace(&mut heard, Instant::now());
                    let busy = (heard - before < CLOSE || input.len() > CROWD) && input.len() < STREAM_ROOM;
                    let already = demanded;
                    full = self.take(&mut input, &mut scan, &mut demanded);
                    if demanded != already && acks != Acks::Never {
                        ack(&mut out, *applied.borrow_and_update());
                    }
                    if busy && demanded.is_none() && !self.options.hurry.load(Ordering::Relaxed) {
                        // This thread has nothing else to do, and timers of the runtime are coarser.
                        std::thread::sleep(PACE);
                    }
                }
                Event::Tick => {
                    if heard.elapsed() > self.options.idle_timeout {
                        return Err(broken(io::ErrorKind::TimedOut.into()));
                    }
                    // A server that takes nothing gets one ACK when it does, not all those of the meantime.
                    if acks != Acks::Never && out.is_empty() {
                        ack(&mut out, *applied.borrow());
                    }
                    if eager > 0 {
                        eager = if self.options.journal.received() > began { 0 } else { eager - 1 };
                        if eager == 0 {
                            tick = tokio::time::interval_at(Instant::now() + ACK_EVERY, ACK_EVERY);
                            tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
                        }
                    }
                }
                Event::Applied(open) => {
                    deaf = !open;
                    let now = *applied.borrow_and_update();
                    if acks != Acks::Never {
                        ack(&mut out, now);
                    }
                    if demanded.is_some_and(|offset| now >= offset) {
                        demanded = None;
                    }
                }
                Event::Flush => {
                    unsent |= self.flush(&mut writer, &mut out, acks, &applied).await;
                    pending = false;
                }
                Event::Sent(sent) => {
                    sent.map_err(broken)?;
                    unsent = false;
                }
            }
            unsent |= !out.is_empty();
        }
    }

    /// Puts what was read into the journal; gives true when the disk has to take some before more is read.
    fn take(&mut self, input: &mut BytesMut, scan: &mut AckScan, demanded: &mut Option<u64>) -> bool {
        if input.is_empty() {
            return false;
        }
        let bytes: Bytes = input.split().freeze();
        let found = scan.feed(&bytes);
        let room = self.options.journal.append(bytes);
        let received = self.options.journal.received();
        self.state.send_modify(|state| state.received = received);
        if found {
            *demanded = Some(received);
        }
        !room
    }

    /// Hands everything to the disk. While the disk takes nothing, nothing is read; but the server hears from us, so
    /// that it keeps the link. Gives true when an ACK was begun and not sent.
    async fn flush(
        &mut self,
        writer: &mut (impl AsyncWriteExt + Unpin),
        out: &mut BytesMut,
        acks: Acks,
        applied: &watch::Receiver<u64>,
    ) -> bool {
        let (mut before, mut unsent) = (None, false);
        while let Err(cause) = self.options.journal.flush() {
            self.disk_trouble(&mut before, cause);
            tokio::time::sleep(DISK_EVERY).await;
            if acks != Acks::Never {
                ack(out, *applied.borrow());
                // A broken link shows itself when the disk is well again.
                unsent = tokio::time::timeout(DISK_EVERY, send(writer, out)).await.is_err();
            }
        }
        if let Some(link) = before {
            tracing::info!("the disk takes writes again");
            self.note(|state| state.link = link);
        }
        unsent
    }
}

/// What the server wants to hear.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Acks {
    /// Once a second, and on demand.
    Always,
    /// More often until the stream begins: after a diskless transfer the source waits for an ACK, and forgets those
    /// that come before its child has ended, which it looks for ten times a second.
    Eager,
    /// None.
    Never,
}

enum Event {
    Read(io::Result<usize>),
    Sent(io::Result<()>),
    Applied(bool),
    Tick,
    Flush,
}

/// Sends as much as goes.
async fn send(writer: &mut (impl AsyncWriteExt + Unpin), out: &mut BytesMut) -> io::Result<()> {
    while out.has_remaining() {
        writer.write_buf(out).await?;
    }
    writer.flush().await
}

fn ack(out: &mut BytesMut, offset: u64) {
    // The server has not read for long: more ACKs would only pile up.
    if out.len() < 4096 {
        write::command(out, &["REPLCONF", "ACK", itoa::Buffer::new().format(offset)]);
    }
}

#[cfg(test)]
mod tests;

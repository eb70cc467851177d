//! A lane: one pipelined connection to a server that many sessions share.
//!
//! Sessions append runs of commands to `out`; each run has an entry in `fifo` that says whose replies come
//! next, and how many. The lane's task writes once for all sessions that ran before it, reads once for all
//! replies that came, and hands them to the sessions in order.
//!
//! The order of `fifo` is the order of the bytes in `out`, since both are appended in one step on one
//! thread; a server answers in the order in which it was asked. A reply that nobody waits for means that
//! this has been broken: the lane and every session on it are closed.
//!
//! To a server nearby a lane sends one batch at a time: what comes while it is being answered is collected and goes
//! out with the next write. A server runs one command after the other anyway, so nothing waits longer for it, and
//! both sides spend far fewer system calls on a command. A lane to a server far away does not wait. Nor does one whose
//! batch is overdue: a server that is busy with something large reads all that has come when it is done, and what would come
//! only then could meet the next large thing.
//!
//! A lane for large values and its server could read and write for as long as there is something, and everybody else waits for
//! the server meanwhile. So it moves no more than [`SHARE`] between two answers to the others, while any of them waits: then
//! the socket is empty, or full, and the server turns to them.
//!
//! When the connection is lost, entries of which any byte was written have an unknown outcome: their
//! sessions are closed and the rest of a half-written entry is dropped. The others wait for the next connection, and when it
//! does not come within `server.reconnect_wait` they get an error.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::io::IoSlice;
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Notify;
use tokio::time::{Instant, Sleep};

use super::handle::side_of;
use super::outbuf::{OutBuf, SLICES, TURN};
use super::session::Session;
use super::upstream::{DialError, Key, dial, stayed_away};
use super::worker::{Worker, later, side_by_side};
use crate::resp::scan::ReplyScanner;
use crate::server::Stream;

/// Sessions stop handing out commands while this many bytes wait.
const FULL: usize = 4 * 1024 * 1024;
/// This many bytes are sent without waiting for the batch before them: as much as Redis reads at once.
const BATCH: usize = 16 * 1024;
/// A server that answers faster than this is near.
const NEAR: Duration = Duration::from_micros(400);
/// A batch that has not been answered for this long is overdue.
const PATIENCE: Duration = Duration::from_millis(1);
/// Bytes that a lane for large values moves while others wait for one answer: less than 1 ms for the server.
const SHARE: usize = 1024 * 1024;
/// From servers that need longer than this, answers are not waited for: it is the way that takes the time.
const SHARED: Duration = Duration::from_millis(5);
/// How long it waits for that answer, before it takes its next share: the server may be busy with something else.
const HOLD: Duration = Duration::from_millis(20);
/// So many single commands of one session in a row, and it is alone.
const ALONE: u32 = 32;
/// How long a lone command's answer is waited for without sleeping: on a machine that is not busy, waking up takes longer than
/// a server nearby needs.
const LINGER: Duration = Duration::from_micros(80);
/// One read from the server.
const READ: usize = 64 * 1024;

struct Entry {
    session: Rc<Session>,
    replies: u32,
    /// Where the entry's bytes end, counted from the lane's first byte.
    end: u64,
    /// The client asked not to be answered (CLIENT REPLY OFF or SKIP).
    discard: bool,
}

/// One shared connection.
pub(super) struct Lane {
    pub(super) key: Key,
    worker: Weak<Worker>,
    out: RefCell<OutBuf>,
    fifo: RefCell<VecDeque<Entry>>,
    /// Bytes ever appended.
    appended: Cell<u64>,
    /// Bytes ever written.
    written: Cell<u64>,
    /// Where the first entry of `fifo` begins.
    front_start: Cell<u64>,
    /// Where the last entry of `fifo` begins.
    back_start: Cell<u64>,
    /// Where the batch ends that is being written or answered. Entries begin before or at it, none spans it.
    batch_end: Cell<u64>,
    /// When the batch was sent, until its first reply comes.
    batch_sent: Cell<Option<Instant>>,
    /// The batch has gone unanswered for [`PATIENCE`].
    overdue: Cell<bool>,
    /// Lanes for large values share the server with it while a batch is unanswered, and this is counted.
    asks: Cell<bool>,
    /// For a lane that has to share: answers to the others, as it has seen them, and the bytes moved since.
    share: Cell<(u64, usize)>,
    /// Batches of one command each of one session, since there was another; and which session that is.
    singles: Cell<u32>,
    single: RefCell<Weak<Session>>,
    /// About the shortest time from a batch to its first reply.
    answer_time: Cell<Duration>,
    waker: RefCell<Option<Waker>>,
    /// When a reply came last, or the first command after a rest was sent, by the worker's clock.
    moved: Cell<u64>,
    scheduled: Cell<bool>,
    up: Cell<bool>,
    retired: Cell<bool>,
    crowded: RefCell<Vec<Rc<Session>>>,
    /// Told whenever `up` becomes true or an attempt failed.
    changed: Notify,
    refusal: RefCell<Option<String>>,
}

impl Lane {
    /// A lane for `key`; its task connects at once.
    pub(super) fn open(worker: &Rc<Worker>, key: Key) -> Rc<Lane> {
        let lane = Rc::new(Lane {
            key,
            worker: Rc::downgrade(worker),
            out: RefCell::default(),
            fifo: RefCell::default(),
            appended: Cell::new(0),
            written: Cell::new(0),
            front_start: Cell::new(0),
            back_start: Cell::new(0),
            batch_end: Cell::new(0),
            batch_sent: Cell::new(None),
            overdue: Cell::new(false),
            asks: Cell::new(false),
            share: Cell::default(),
            singles: Cell::new(0),
            single: RefCell::default(),
            answer_time: Cell::new(Duration::ZERO),
            waker: RefCell::new(None),
            moved: Cell::new(0),
            scheduled: Cell::new(false),
            up: Cell::new(false),
            retired: Cell::new(false),
            crowded: RefCell::default(),
            changed: Notify::new(),
            refusal: RefCell::new(None),
        });
        tokio::task::spawn_local(run(Rc::clone(&lane)));
        lane
    }

    /// Appends a run of `replies` commands of one session.
    #[inline]
    pub(super) fn push(&self, session: &Rc<Session>, bytes: &[u8], replies: u32, discard: bool) {
        self.out.borrow_mut().take(bytes);
        self.expect(session, bytes.len(), replies, discard);
    }

    /// As [`Lane::push`], without a copy of the bytes.
    pub(super) fn push_whole(&self, session: &Rc<Session>, bytes: Bytes) {
        let size = bytes.len();
        self.out.borrow_mut().push(bytes);
        self.expect(session, size, 1, false);
    }

    /// Takes note of whose replies the bytes that were just appended will bring.
    #[inline]
    fn expect(&self, session: &Rc<Session>, size: usize, replies: u32, discard: bool) {
        let start = self.appended.get();
        let end = start + size as u64;
        self.appended.set(end);
        let mut fifo = self.fifo.borrow_mut();
        match fifo.back_mut() {
            Some(last)
                if Rc::ptr_eq(&last.session, session)
                    && last.discard == discard
                    && self.back_start.get() >= self.batch_end.get() =>
            {
                last.replies += replies;
                last.end = end;
            }
            _ => {
                if fifo.is_empty() {
                    self.front_start.set(start);
                }
                self.back_start.set(start);
                fifo.push_back(Entry { session: Rc::clone(session), replies, end, discard });
            }
        }
        drop(fifo);
        if !self.waits_for_answers() {
            self.wake();
        }
    }

    /// Whether what has been appended since the last batch should wait for its answers.
    #[inline]
    fn waits_for_answers(&self) -> bool {
        self.front_start.get() < self.batch_end.get()
            && self.written.get() >= self.batch_end.get()
            && self.appended.get() - self.written.get() < BATCH as u64
            && self.answer_time.get() < NEAR
            && !self.overdue.get()
    }

    /// Finds out when a batch is overdue. The timer is not set anew for each batch, but when it has run out: under load it runs
    /// once a millisecond.
    fn watch(&self, cx: &mut Context<'_>, io: &mut Io) {
        let Some(sent) = self.batch_sent.get() else { return };
        if self.key.bulk || self.overdue.get() || self.answer_time.get() >= NEAR {
            return;
        }
        while io.patience.as_mut().poll(cx).is_ready() {
            let end = sent + PATIENCE;
            if Instant::now() >= end {
                self.overdue.set(true);
                return self.wake();
            }
            io.patience.as_mut().reset(end);
        }
    }

    /// Takes the time that the server needed for the batch; a slow moving minimum.
    fn note_answer(&self, worker: &Worker) {
        if let Some(sent) = self.end_batch(worker) {
            let known = self.answer_time.get();
            self.answer_time.set(sent.elapsed().min(known + known / 64 + Duration::from_micros(1)));
        }
    }

    /// A batch is sent while none is in flight.
    fn begin_batch(&self, worker: &Worker) {
        self.batch_sent.set(Some(Instant::now()));
        if !self.key.bulk && self.answer_time.get() < SHARED && !self.asks.replace(true) {
            worker.note_asking();
        }
    }

    /// The batch has its first answer, or is lost; when it was sent.
    fn end_batch(&self, worker: &Worker) -> Option<Instant> {
        self.overdue.set(false);
        if self.asks.replace(false) {
            worker.note_asked();
        }
        self.batch_sent.take()
    }

    /// Whether a lane for large values has had its share.
    fn holds_back(&self, cx: &mut Context<'_>, io: &mut Io, worker: &Worker) -> bool {
        let (seen, moved) = self.share.get();
        if !self.key.bulk || !worker.is_asking() || seen != worker.answers() || moved < SHARE {
            io.holds = false;
            return false;
        }
        if !std::mem::replace(&mut io.holds, true) {
            io.patience.as_mut().reset(Instant::now() + HOLD);
        }
        if io.patience.as_mut().poll(cx).is_pending() {
            worker.note_holding();
            return true;
        }
        io.holds = false;
        self.share.set((seen, 0));
        false
    }

    /// Takes note of bytes that went to the server or came from it.
    fn note_moved(&self, bytes: usize, worker: &Worker) {
        if self.key.bulk {
            let (seen, moved) = self.share.get();
            let answers = worker.answers();
            self.share.set((answers, if seen == answers { moved + bytes } else { bytes }));
        }
    }

    /// A batch begins: takes note of whether it is one more command of the session that sent the last one.
    fn note_single(&self) {
        let fifo = self.fifo.borrow();
        let alone = match fifo.front() {
            Some(entry) if fifo.len() == 1 && entry.replies == 1 => &entry.session,
            _ => return self.singles.set(0),
        };
        if self.single.borrow().as_ptr() == Rc::as_ptr(alone) {
            self.singles.set(self.singles.get().saturating_add(1));
        } else {
            *self.single.borrow_mut() = Rc::downgrade(alone);
            self.singles.set(0);
        }
    }

    /// Does not let the worker sleep while a lone client's command is being answered; others have the processor if they need it.
    fn linger(&self, cx: &mut Context<'_>) {
        if self.singles.get() >= ALONE
            && self.answer_time.get() < LINGER
            && self.batch_sent.get().is_some_and(|sent| sent.elapsed() < LINGER)
        {
            side_by_side();
            std::thread::yield_now();
            later(cx);
        }
    }

    pub(super) fn wake(&self) {
        if !self.scheduled.replace(true) {
            if let Some(waker) = &*self.waker.borrow() {
                waker.wake_by_ref();
            }
        }
    }

    /// Whether sessions should wait before they hand out more.
    pub(super) fn is_full(&self) -> bool {
        self.out.borrow().len() > FULL
    }

    /// Wakes the session when there is room again.
    pub(super) fn wait_for_room(&self, session: &Rc<Session>) {
        let mut crowded = self.crowded.borrow_mut();
        if !crowded.iter().any(|waiting| Rc::ptr_eq(waiting, session)) {
            crowded.push(Rc::clone(session));
        }
    }

    /// Whether every command has been answered.
    pub(super) fn is_idle(&self) -> bool {
        self.fifo.borrow().is_empty()
    }

    /// Whether the connection stands.
    pub(super) fn is_up(&self) -> bool {
        self.up.get()
    }

    /// Who waits for replies, and since when by the worker's clock. A server may answer a whole batch at its end, so any
    /// of them can be the one that takes long.
    pub(super) fn busy_with(&self) -> (Vec<Rc<Session>>, u64) {
        let sessions = self.fifo.borrow().iter().map(|entry| Rc::clone(&entry.session)).collect();
        (sessions, self.moved.get())
    }

    /// Ends the lane once everything has been answered.
    pub(super) fn retire(&self) {
        self.retired.set(true);
        self.wake();
        self.changed.notify_waiters();
    }

    /// Waits until the connection stands.
    pub(super) async fn ready(&self, deadline: Instant) -> Result<(), String> {
        loop {
            let changed = self.changed.notified();
            if self.up.get() {
                return Ok(());
            }
            if let Some(refusal) = self.refusal.borrow().clone() {
                return Err(refusal);
            }
            if tokio::time::timeout_at(deadline, changed).await.is_err() {
                return Err(format!("no connection to the {} in time", self.key.side));
            }
        }
    }

    fn poll(&self, cx: &mut Context<'_>, io: &mut Io, worker: &Worker) -> Poll<String> {
        self.scheduled.set(false);
        {
            let mut waker = self.waker.borrow_mut();
            if !waker.as_ref().is_some_and(|known| known.will_wake(cx.waker())) {
                *waker = Some(cx.waker().clone());
            }
        }
        if self.holds_back(cx, io, worker) {
            return Poll::Pending;
        }
        if let Poll::Ready(reason) = self.write(cx, io, worker) {
            return Poll::Ready(reason);
        }
        let mut outcome = self.read(cx, io, worker);
        if outcome.is_pending() && !self.out.borrow().is_empty() {
            outcome = self.write(cx, io, worker);
        }
        worker.flush_dirty();
        self.watch(cx, io);
        self.linger(cx);
        if worker.gate_closed() && self.is_idle() {
            worker.progress.notify_one();
        }
        if outcome.is_pending() && self.retired.get() && self.is_idle() {
            return Poll::Ready(String::new());
        }
        outcome
    }

    fn write(&self, cx: &mut Context<'_>, io: &mut Io, worker: &Worker) -> Poll<String> {
        if self.waits_for_answers() {
            return Poll::Pending;
        }
        let mut out = self.out.borrow_mut();
        if !out.is_empty() && self.batch_end.get() < self.appended.get() {
            if self.front_start.get() >= self.batch_end.get() {
                self.begin_batch(worker);
                self.moved.set(worker.clock());
                self.note_single();
            }
            self.batch_end.set(self.appended.get());
        }
        let mut turn = 0;
        while !out.is_empty() {
            if turn >= TURN {
                later(cx);
                break;
            }
            let written = {
                let mut slices = [IoSlice::new(&[]); SLICES];
                let count = out.slices(&mut slices);
                if count == 1 {
                    Pin::new(&mut io.stream).poll_write(cx, &slices[0])
                } else {
                    Pin::new(&mut io.stream).poll_write_vectored(cx, &slices[..count])
                }
            };
            match written {
                Poll::Ready(Ok(0)) => return Poll::Ready("the connection takes no more bytes".into()),
                Poll::Ready(Ok(n)) => {
                    out.advance(n);
                    turn += n;
                    self.written.set(self.written.get() + n as u64);
                    self.note_moved(n, worker);
                    io.unflushed = true;
                }
                Poll::Ready(Err(error)) => return Poll::Ready(error.to_string()),
                Poll::Pending => break,
            }
        }
        if io.unflushed {
            match Pin::new(&mut io.stream).poll_flush(cx) {
                Poll::Ready(Ok(())) => io.unflushed = false,
                Poll::Ready(Err(error)) => return Poll::Ready(error.to_string()),
                Poll::Pending => {}
            }
        }
        if out.len() < FULL / 2 {
            drop(out);
            for session in self.crowded.borrow_mut().drain(..) {
                session.wake();
            }
        }
        Poll::Pending
    }

    fn read(&self, cx: &mut Context<'_>, io: &mut Io, worker: &Worker) -> Poll<String> {
        // A bound, so that one busy lane does not keep the worker from its other tasks.
        for _ in 0..TURN / READ {
            let mut read = ReadBuf::new(&mut io.buf[io.held..]);
            match Pin::new(&mut io.stream).poll_read(cx, &mut read) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Err(error)) => return Poll::Ready(error.to_string()),
                Poll::Ready(Ok(())) => {
                    let got = read.filled().len();
                    if got == 0 {
                        return Poll::Ready("the server closed the connection".into());
                    }
                    self.note_answer(worker);
                    self.note_moved(got, worker);
                    worker.answered(&io.stream);
                    self.moved.set(worker.clock());
                    let have = io.held + got;
                    if let Err(reason) = self.deliver(io, have, worker) {
                        return Poll::Ready(reason);
                    }
                }
            }
        }
        later(cx);
        Poll::Pending
    }

    /// Hands the first `have` bytes of the read buffer to the sessions that they belong to.
    fn deliver(&self, io: &mut Io, have: usize, worker: &Worker) -> Result<(), String> {
        let mut fifo = self.fifo.borrow_mut();
        let data = &io.buf[..have];
        let mut at = 0;
        let mut errors = 0;
        'entries: while at < have {
            let Some(entry) = fifo.front_mut() else {
                return Err(format!("{} bytes came that no client had asked for", have - at));
            };
            let start = at;
            let asked = entry.replies;
            while entry.replies > 0 {
                if !io.scanner.is_midway() {
                    match data.get(at) {
                        Some(b'-') => errors += 1,
                        Some(b'>') => return Err("a message came, and a lane never asks for any".into()),
                        _ => {}
                    }
                }
                let feed = io.scanner.feed(&data[at..]).map_err(|error| error.to_string())?;
                at += feed.consumed;
                if !feed.complete {
                    let answered = asked - entry.replies;
                    entry.session.deliver(&data[start..at], answered, entry.discard, worker);
                    break 'entries;
                }
                entry.replies -= 1;
                if at == have {
                    break;
                }
            }
            entry.session.deliver(&data[start..at], asked - entry.replies, entry.discard, worker);
            if entry.replies == 0 {
                self.front_start.set(entry.end);
                fifo.pop_front();
            }
        }
        drop(fifo);
        if errors > 0 {
            worker.count_errors(errors);
        }
        io.buf.copy_within(at..have, 0);
        io.held = have - at;
        if io.held == io.buf.len() {
            let larger = io.buf.len() * 2;
            io.buf.resize(larger, 0);
        }
        Ok(())
    }

    /// Closes every session whose commands may have reached the server; keeps the others' commands.
    fn lost(&self, worker: &Worker) {
        self.up.set(false);
        let written = self.written.get();
        let mut fifo = self.fifo.borrow_mut();
        let mut start = self.front_start.get();
        let mut dropped_to = written;
        let mut closed = 0;
        while let Some(entry) = fifo.front() {
            if start >= written {
                break;
            }
            dropped_to = entry.end.max(written);
            start = entry.end;
            entry.session.close_now();
            closed += 1;
            fifo.pop_front();
        }
        self.front_start.set(start);
        self.batch_end.set(dropped_to);
        self.end_batch(worker);
        let rest = (dropped_to - written) as usize;
        self.out.borrow_mut().advance(rest);
        self.written.set(dropped_to);
        worker.flush_dirty();
        if closed > 0 {
            tracing::debug!(closed, side = %self.key.side, "sessions with commands in flight were closed");
        }
    }

    /// Answers every command that waits on this lane with `line`.
    fn give_up(&self, worker: &Worker, line: &[u8], closes: bool) {
        let entries: Vec<_> = self.fifo.borrow_mut().drain(..).collect();
        let waiting = self.out.borrow().len();
        self.out.borrow_mut().advance(waiting);
        self.written.set(self.appended.get());
        self.front_start.set(self.appended.get());
        self.batch_end.set(self.appended.get());
        for entry in entries {
            let replies = entry.replies;
            worker.count_errors(u64::from(replies));
            entry.session.deliver(&line.repeat(replies as usize), replies, entry.discard, worker);
            if closes {
                entry.session.close_after_replies();
            }
        }
        worker.flush_dirty();
    }
}

/// The connection of a lane, owned by its task.
struct Io {
    stream: Stream,
    buf: Vec<u8>,
    /// Bytes at the front of `buf` that are the beginning of a line.
    held: usize,
    scanner: ReplyScanner,
    unflushed: bool,
    /// It has had its share, and waits.
    holds: bool,
    /// Runs out when the batch that it was set for is overdue; for a lane that has to share, when it has waited for long enough.
    patience: Pin<Box<Sleep>>,
}

async fn run(lane: Rc<Lane>) {
    let mut pause = Duration::from_millis(5);
    let mut down_since = Instant::now();
    loop {
        let Some(worker) = lane.worker.upgrade() else { return };
        let patience = worker.options().reconnect_wait;
        let dialled = dial(&worker, &lane.key, false).await;
        let patient = down_since.elapsed() < patience;
        let failure = match dialled {
            Ok(upstream) if upstream.loading && patient => "the server is loading its data".to_owned(),
            Ok(upstream) => {
                worker.note_anonymous(&upstream);
                lane.up.set(true);
                *lane.refusal.borrow_mut() = None;
                lane.changed.notify_waiters();
                pause = Duration::from_millis(5);
                let mut io = Io {
                    stream: upstream.stream,
                    buf: vec![0; READ],
                    held: 0,
                    scanner: ReplyScanner::default(),
                    unflushed: false,
                    holds: false,
                    patience: Box::pin(tokio::time::sleep(PATIENCE)),
                };
                let reason = poll_fn(|cx| lane.poll(cx, &mut io, &worker)).await;
                *lane.waker.borrow_mut() = None;
                lane.lost(&worker);
                worker.drained();
                if lane.retired.get() && lane.is_idle() {
                    worker.forget_lane(&lane);
                    return;
                }
                tracing::info!(side = %lane.key.side, db = lane.key.identity.db, "a lane lost its connection: {reason}");
                down_since = Instant::now();
                continue;
            }
            Err(DialError::Refused(line)) => {
                // The credentials or the db were right once. Those who wait are told what the server says, and closed: a
                // client authenticates when it connects.
                let text = String::from_utf8_lossy(&line).trim().to_owned();
                *lane.refusal.borrow_mut() = Some(text.clone());
                lane.give_up(&worker, &line, true);
                text
            }
            Err(DialError::Lost(error)) => error.to_string(),
        };
        lane.changed.notify_waiters();
        if !patient {
            if !lane.is_idle() {
                tracing::warn!(side = %lane.key.side, "commands were not run, since their server stayed away: {failure}");
            }
            lane.give_up(&worker, &stayed_away(side_of(lane.key.side), patience), false);
        }
        worker.drained();
        if lane.retired.get() || (lane.is_idle() && Rc::strong_count(&lane) <= 2) {
            worker.forget_lane(&lane);
            return;
        }
        drop(worker);
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_millis(250));
        if lane.is_idle() && !patient {
            // Nobody waits: the patience of the next one starts when he comes.
            down_since = Instant::now();
        }
    }
}

//! A session: one client of the gateway.
//!
//! Its task reads commands, hands runs of them to a lane, and deals with everything that a lane cannot
//! carry ([`super::special`], [`super::pinned`]). Replies are appended to `out` by whoever has them and written
//! by the worker once per batch; the session's task only writes when the socket was full.
//!
//! Order: commands are taken one after the other from the front of the input. One that cannot go on yet
//! (replies in flight that must come first, a connection being opened, the gate) stays in front, and
//! nothing behind it is looked at.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::io::IoSlice;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use bytes::{Buf, Bytes, BytesMut};

use super::client::ClientStream;
use super::lane::Lane;
use super::outbuf::{OutBuf, SLICES, TURN};
use super::pinned::{HELD_BACK, Pinned, Replica};
use super::registry::ClientEntry;
use super::special::{Outcome, Step};
use super::upstream::{Identity, Key};
use super::worker::{self, Worker, later};
use crate::command::{self, Lane as Route, Spec, Switch};
use crate::resp::scan::{CommandScanner, Limits};
use crate::resp::write;

/// From this size on a command or a reply is bulk, and its client's commands go over another lane than everybody's: a
/// lane is a queue, and what stands behind 100 MiB waits for them.
const BULK: usize = 64 * 1024;
/// For how long a client counts as one that moves much, in milliseconds.
const BULK_FOR: u64 = 10_000;

/// How far a session is from its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Closing {
    /// It goes on.
    Open,
    /// It ends when everything owed has been written.
    AfterReplies,
    /// It ends at once.
    Now,
}

/// CLIENT REPLY: which replies the client wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ReplyMode {
    On,
    Off,
    /// The next command's reply is left out.
    Skip,
}

/// What only the session's own task, and the gate, change.
pub(super) struct Core {
    /// Bytes that have not been handed out.
    pub(super) input: BytesMut,
    scanner: CommandScanner,
    pub(super) identity: Identity,
    lane: Option<Rc<Lane>>,
    lane_epoch: u64,
    /// The command in front is whole, large, and to be handed to the lane without a copy; its length.
    front: Option<usize>,
    pub(super) pinned: Option<Box<Pinned>>,
    /// Something that must finish before the next command: a connection being opened.
    pub(super) pending: Option<Pin<Box<dyn Future<Output = Outcome>>>>,
    pub(super) reply_mode: ReplyMode,
    /// Keys were watched on a side that is no longer active: the next EXEC answers nil.
    pub(super) watch_lost: bool,
    /// The server wants a password for the command in front, and says so in these words.
    pub(super) denied: Option<Bytes>,
    /// The command in front could not be looked up: it goes to the server as it is.
    pub(super) unnamed: bool,
    /// The client that the command in front names has had the time to get a connection.
    pub(super) target_asked: bool,
    eof: bool,
    /// Since when something has waited at the closed gate.
    pub(super) held_since: Option<Instant>,
}

/// One client.
pub(super) struct Session {
    pub(super) worker: Rc<Worker>,
    pub(super) entry: Arc<ClientEntry>,
    stream: RefCell<ClientStream>,
    out: RefCell<OutBuf>,
    /// Replies that lanes owe.
    pub(super) inflight: Cell<u32>,
    pub(super) closing: Cell<Closing>,
    waker: RefCell<Option<Waker>>,
    dirty: Cell<bool>,
    write_blocked: Cell<bool>,
    /// Bytes of a reply that has not come to its end.
    partial: Cell<usize>,
    /// Until when this is a client that moves much, by the worker's clock.
    bulk_until: Cell<u64>,
    /// Bytes that the session's task has moved in this turn.
    turn: Cell<usize>,
    /// The command that was handed out last; a container rather than its subcommand.
    pub(super) last: Cell<Option<&'static Spec>>,
    pub(super) core: RefCell<Core>,
}

impl Session {
    pub(super) fn new(worker: &Rc<Worker>, entry: Arc<ClientEntry>, stream: ClientStream) -> Rc<Session> {
        Rc::new(Session {
            worker: Rc::clone(worker),
            entry,
            stream: RefCell::new(stream),
            out: RefCell::default(),
            inflight: Cell::new(0),
            closing: Cell::new(Closing::Open),
            waker: RefCell::new(None),
            dirty: Cell::new(false),
            write_blocked: Cell::new(false),
            partial: Cell::new(0),
            bulk_until: Cell::new(0),
            turn: Cell::new(0),
            last: Cell::new(None),
            core: RefCell::new(Core {
                input: BytesMut::new(),
                scanner: CommandScanner::default(),
                identity: Identity::default(),
                lane: None,
                lane_epoch: 0,
                front: None,
                pinned: None,
                pending: None,
                reply_mode: ReplyMode::On,
                watch_lost: false,
                denied: None,
                unnamed: false,
                target_asked: false,
                eof: false,
                held_since: None,
            }),
        })
    }

    /// Serves the client until it ends.
    pub(super) async fn run(self: Rc<Self>) {
        poll_fn(|cx| self.poll(cx)).await;
        self.closing.set(Closing::Now);
        let pinned = {
            let mut core = self.core.borrow_mut();
            core.pending = None;
            core.lane = None;
            core.pinned.take()
        };
        if let Some(pinned) = pinned {
            self.release(*pinned);
        }
        self.stream.borrow_mut().farewell();
    }

    /// Runs the session's task again.
    pub(super) fn wake(&self) {
        if let Some(waker) = &*self.waker.borrow() {
            waker.wake_by_ref();
        }
    }

    /// Closes without another word: the outcome of something in flight is unknown.
    pub(super) fn close_now(&self) {
        self.closing.set(Closing::Now);
        self.wake();
    }

    /// Closes once what was answered has been written.
    pub(super) fn close_after_replies(&self) {
        if self.closing.get() == Closing::Open {
            self.closing.set(Closing::AfterReplies);
        }
        self.wake();
    }

    /// Whether a client that says nothing is merely idle. One that is blocked, subscribed, a monitor or a replica waits for
    /// others; all else that it holds on to is no reason to stay (`clientsCronHandleTimeout`).
    pub(super) fn may_time_out(&self) -> bool {
        let Ok(core) = self.core.try_borrow() else { return false };
        let waits_for_others = core.pinned.as_ref().is_some_and(|pinned| {
            pinned.owes()
                || pinned.is_blocked()
                || pinned.is_subscribed()
                || pinned.state.monitors()
                || pinned.replica != Replica::No
        });
        self.inflight.get() == 0 && core.pending.is_none() && !waits_for_others
    }

    /// Takes replies that a lane has read for this session.
    #[inline]
    pub(super) fn deliver(self: &Rc<Self>, bytes: &[u8], answered: u32, discard: bool, worker: &Worker) {
        let left = self.inflight.get().saturating_sub(answered);
        self.inflight.set(left);
        let partial = self.partial.get() + bytes.len();
        if answered <= 1 && partial >= BULK {
            self.note_bulk();
        }
        self.partial.set(if answered == 0 { partial } else { 0 });
        if !discard && self.closing.get() != Closing::Now {
            self.out.borrow_mut().take(bytes);
            self.mark_dirty(worker);
        }
        if left == 0 && (self.closing.get() != Closing::Open || self.waits_for_replies()) {
            self.wake();
        }
    }

    fn waits_for_replies(&self) -> bool {
        // Borrowed only while the session's own task runs, which then sees the new count itself.
        self.core.try_borrow().is_ok_and(|core| !core.input.is_empty() || core.eof || self.is_awaited(&core))
    }

    /// Something large passed: the client's next commands keep out of the others' way.
    fn note_bulk(&self) {
        self.bulk_until.set(self.worker.clock() + BULK_FOR);
    }

    fn mark_dirty(self: &Rc<Self>, worker: &Worker) {
        if !self.dirty.replace(true) {
            worker.dirty.borrow_mut().push(Rc::clone(self));
        }
    }

    /// Appends a reply that the gateway itself gives.
    pub(super) fn reply(&self, write: impl FnOnce(&mut Vec<u8>)) {
        let mut bytes = Vec::new();
        write(&mut bytes);
        self.out.borrow_mut().extend(&bytes);
    }

    /// Whether the client is answered at present.
    pub(super) fn wants_replies(&self, core: &Core) -> bool {
        core.reply_mode == ReplyMode::On
    }

    /// Appends bytes for the client.
    pub(super) fn send(&self, bytes: &[u8]) {
        self.out.borrow_mut().extend(bytes);
    }

    /// Appends bytes for the client, without a copy when they are many.
    pub(super) fn send_whole(&self, bytes: Bytes) {
        self.out.borrow_mut().push(bytes);
    }

    /// Writes what the socket takes, from outside the session's task.
    pub(super) fn flush_now(&self) {
        self.dirty.set(false);
        if self.write_blocked.get() || self.closing.get() == Closing::Now {
            return self.check_output();
        }
        let mut out = self.out.borrow_mut();
        let stream = self.stream.borrow();
        let mut turn = 0;
        while !out.is_empty() {
            if turn >= TURN {
                self.write_blocked.set(true);
                self.wake();
                break;
            }
            let written = {
                let mut slices = [IoSlice::new(&[]); SLICES];
                let count = out.slices(&mut slices);
                stream.try_write(&slices[..count])
            };
            match written {
                Ok(n) => {
                    out.advance(n);
                    turn += n;
                    self.note_output(n);
                }
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                    self.write_blocked.set(true);
                    self.wake();
                    break;
                }
                Err(_) => {
                    self.close_now();
                    break;
                }
            }
        }
        drop((out, stream));
        self.check_output();
    }

    /// Bytes that wait for the client.
    pub(super) fn unread(&self) -> usize {
        self.out.borrow().len()
    }

    /// A client that does not read is closed before its replies fill the memory.
    fn check_output(&self) {
        let waiting = self.unread();
        if waiting > self.worker.options().listen.output_buffer_limit && self.closing.get() != Closing::Now {
            tracing::info!(
                client = %self.entry.addr,
                waiting,
                "a client was closed: its unread replies passed listen.output_buffer_limit"
            );
            self.close_now();
        }
    }

    fn poll(self: &Rc<Self>, cx: &mut Context<'_>) -> Poll<()> {
        {
            let mut waker = self.waker.borrow_mut();
            if !waker.as_ref().is_some_and(|known| known.will_wake(cx.waker())) {
                *waker = Some(cx.waker().clone());
                self.entry.waker.register(cx.waker());
            }
        }
        if self.entry.redirected_to.load(Ordering::Relaxed) {
            // Whoever redirected to it has woken it by this, which can be done once.
            self.entry.waker.register(cx.waker());
        }
        let mut core = self.core.borrow_mut();
        self.turn.set(0);
        // A bound, so that one busy client does not keep the worker from the others.
        for _ in 0..16 {
            if self.entry.killed.load(Ordering::Acquire) || self.closing.get() == Closing::Now {
                return Poll::Ready(());
            }
            let mut progress = false;
            if self.is_awaited(&core) {
                self.attend(&mut core);
            }
            if let Some(pending) = &mut core.pending {
                if let Poll::Ready(outcome) = pending.as_mut().poll(cx) {
                    core.pending = None;
                    self.settle(&mut core, outcome);
                    progress = true;
                }
            }
            progress |= self.poll_pinned(&mut core, cx);
            if !core.input.is_empty() {
                progress |= self.process_input(&mut core);
            }
            progress |= self.poll_input(&mut core, cx);
            if self.poll_output(cx).is_ready() {
                return Poll::Ready(());
            }
            if self.is_done(&core) {
                return Poll::Ready(());
            }
            let held_back = core.pinned.as_ref().is_some_and(|pinned| pinned.is_held_back());
            if held_back && self.unread() <= HELD_BACK {
                progress = true;
            }
            if !progress {
                return Poll::Pending;
            }
            if self.is_turn_over() {
                break;
            }
        }
        later(cx);
        Poll::Pending
    }

    /// Whether others should have their turn before this session moves more bytes.
    pub(super) fn is_turn_over(&self) -> bool {
        self.turn.get() >= TURN
    }

    /// Counts bytes that were moved in this turn.
    pub(super) fn note_moved(&self, bytes: usize) {
        self.turn.set(self.turn.get() + bytes);
    }

    /// Whether everything owed has been delivered to a client that leaves.
    fn is_done(&self, core: &Core) -> bool {
        let answered = self.inflight.get() == 0 && core.pinned.as_ref().is_none_or(|pinned| !pinned.owes());
        let leaving = match self.closing.get() {
            Closing::Now => return true,
            Closing::AfterReplies => answered,
            // A blocked command ends with its client, as in Redis.
            Closing::Open if core.eof => {
                core.pinned.as_ref().is_some_and(|pinned| pinned.is_blocked())
                    || (answered && core.pending.is_none() && !self.worker.gate_closed())
            }
            Closing::Open => false,
        };
        leaving && self.out.borrow().is_empty()
    }

    fn poll_output(self: &Rc<Self>, cx: &mut Context<'_>) -> Poll<()> {
        let mut out = self.out.borrow_mut();
        if out.is_empty() && !self.write_blocked.get() {
            return Poll::Pending;
        }
        let mut stream = self.stream.borrow_mut();
        while !out.is_empty() {
            if self.is_turn_over() {
                later(cx);
                return Poll::Pending;
            }
            let written = {
                let mut slices = [IoSlice::new(&[]); SLICES];
                let count = out.slices(&mut slices);
                stream.poll_write(cx, &slices[..count])
            };
            match written {
                Poll::Ready(Ok(n)) if n > 0 => {
                    out.advance(n);
                    self.note_moved(n);
                    self.note_output(n);
                }
                Poll::Ready(_) => return Poll::Ready(()),
                Poll::Pending => {
                    self.write_blocked.set(true);
                    return Poll::Pending;
                }
            }
        }
        self.write_blocked.set(false);
        match stream.poll_flush(cx) {
            Poll::Ready(Err(_)) => Poll::Ready(()),
            _ => Poll::Pending,
        }
    }

    fn poll_input(self: &Rc<Self>, core: &mut Core, cx: &mut Context<'_>) -> bool {
        if core.eof || self.closing.get() != Closing::Open {
            return false;
        }
        let stuck = !self.may_process(core) || self.waits(core);
        if core.input.is_empty() {
            let mut scratch = self.worker.scratch.borrow_mut();
            let got = match self.stream.borrow_mut().poll_read(cx, &mut scratch) {
                Poll::Pending => return false,
                Poll::Ready(Ok(got)) if got > 0 => got,
                Poll::Ready(_) => {
                    core.eof = true;
                    return true;
                }
            };
            self.note_input(got);
            let used = self.process(core, &scratch[..got]);
            if used < got {
                core.input.extend_from_slice(&scratch[used..got]);
            }
            return true;
        }
        let (have, need) = (core.input.len(), core.scanner.need());
        // Of what is here by now no whole command can be taken, unless it is the session that is stuck. One read may take more than
        // the end of a command, so this is not asked behind it.
        if have > self.worker.options().listen.query_buffer_limit && (!stuck || have < need) {
            tracing::info!(client = %self.entry.addr, "a client was closed: its command passed listen.query_buffer_limit");
            self.closing.set(Closing::Now);
            return true;
        }
        // What waits at a closed gate or behind a slow step is bounded: beyond it the client's own socket fills.
        if stuck && have > 256 * 1024 && have >= need {
            return false;
        }
        let chunk = need.saturating_sub(have).clamp(16 * 1024, TURN);
        let got = match self.stream.borrow_mut().poll_append(cx, &mut core.input, chunk) {
            Poll::Pending => return false,
            Poll::Ready(Ok(got)) => got,
            Poll::Ready(Err(_)) => 0,
        };
        if got == 0 {
            core.eof = true;
        }
        self.note_input(got);
        true
    }

    fn note_input(&self, got: usize) {
        self.note_moved(got);
        self.worker.count_in(got);
        self.note_active();
    }

    fn note_output(&self, sent: usize) {
        self.worker.count_out(sent);
        self.note_active();
    }

    /// Lets others see what came last.
    #[inline]
    pub(super) fn note_command(&self, spec: Option<&Spec>) {
        self.entry.shown.cmd.store(spec.map_or(0, |spec| spec.id), Ordering::Relaxed);
    }

    /// As in Redis, a client is active when it is answered too: one that had to wait for long is not idle then.
    fn note_active(&self) {
        self.entry.last_active.store(self.worker.clock_ms(&self.entry), Ordering::Relaxed);
    }

    /// Whether the command in front waits for something that this session itself must get first.
    fn waits(&self, core: &Core) -> bool {
        self.inflight.get() > 0 || core.pinned.as_ref().is_some_and(|pinned| pinned.is_blocked())
    }

    fn may_process(&self, core: &Core) -> bool {
        core.pending.is_none()
            && self.closing.get() == Closing::Open
            && !self.worker.gate_closed()
            && !self.is_awaited(core)
    }

    /// Works on what is kept in `input`; whether anything was taken.
    fn process_input(self: &Rc<Self>, core: &mut Core) -> bool {
        if core.input.len() < core.scanner.need() {
            return false;
        }
        let was_pending = core.pending.is_some();
        let mut input = std::mem::take(&mut core.input);
        let mut used = self.process(core, &input);
        input.advance(used);
        if let Some(size) = core.front.take() {
            let command = input.split_to(size).freeze();
            self.push_whole(core, command);
            used += size;
        }
        if !input.is_empty() {
            core.input = input;
        }
        // A step that was begun has to be polled once, or nothing wakes the session when it is done.
        used > 0 || (core.pending.is_some() && !was_pending)
    }

    /// Takes whole commands from the front of `data`; how many bytes are done with.
    fn process(self: &Rc<Self>, core: &mut Core, data: &[u8]) -> usize {
        core.front = None;
        if !self.may_process(core) {
            if self.worker.gate_closed() && core.held_since.is_none() {
                core.held_since = Some(Instant::now());
            }
            return 0;
        }
        if let Some(lane) = core.lane.as_ref().filter(|lane| lane.is_full()) {
            lane.wait_for_room(self);
            return 0;
        }
        if let Some(pinned) = core.pinned.as_deref_mut().filter(|pinned| pinned.replica == Replica::Attached)
        {
            pinned.relay(data);
            return data.len();
        }
        let stranger = core.identity.credentials.is_none() && !self.worker.anonymous.get();
        let limits = if stranger { Limits::unauthenticated() } else { Limits::default() };
        let mut at = 0;
        // The run of commands that goes down the lane in one piece: from `run` to `at`.
        let (mut run, mut count) = (0, 0u32);
        let mut full = false;
        while at < data.len() {
            let frame = match core.scanner.next(&data[at..], &limits) {
                Ok(Some(frame)) => frame,
                Ok(None) => break,
                Err(error) => {
                    self.hand_out(core, &data[run..at], &mut count);
                    if self.inflight.get() > 0 || core.pinned.as_ref().is_some_and(|pinned| pinned.owes()) {
                        // What was asked before is answered before the error; the bytes are looked at again then.
                        return at;
                    }
                    if stranger && error.text.starts_with("unauthenticated") {
                        self.ask_whether_locked(core, error);
                        return at;
                    }
                    self.reply(|out| write::error(out, format!("ERR {error}")));
                    self.closing.set(Closing::AfterReplies);
                    return data.len();
                }
            };
            let end = at + frame.len;
            if frame.argc == 0 {
                self.hand_out(core, &data[run..at], &mut count);
                at = end;
                run = end;
                continue;
            }
            if !frame.inline && core.pinned.is_none() && core.reply_mode == ReplyMode::On {
                if let Some(spec) = command::lookup(&data[at + frame.name.start..at + frame.name.end]) {
                    if spec.lane == Route::Shared
                        && !spec.may_block()
                        && !spec.is_container()
                        && !matches!(spec.switch, Switch::BringsScript | Switch::Cursor(_))
                    {
                        if frame.len < BULK {
                            count += 1;
                            at = end;
                            self.last.set(Some(spec));
                            continue;
                        }
                        self.hand_out(core, &data[run..at], &mut count);
                        self.note_bulk();
                        let is_full = core.lane.as_ref().is_some_and(|lane| lane.is_full());
                        if !is_full && (self.inflight.get() == 0 || self.is_on_bulk_lane(core)) {
                            self.last.set(Some(spec));
                            core.front = Some(frame.len);
                        }
                        full = is_full;
                        run = at;
                        break;
                    }
                }
            }
            self.hand_out(core, &data[run..at], &mut count);
            run = at;
            if core.lane.as_ref().is_some_and(|lane| lane.is_full()) {
                full = true;
                break;
            }
            match self.special(core, &frame, &data[at..end]) {
                Step::Done => {
                    at = end;
                    run = end;
                    self.worker.count_commands(1);
                    if !self.may_process(core) {
                        return at;
                    }
                }
                Step::Wait => return at,
            }
        }
        self.hand_out(core, &data[run..at], &mut count);
        if full {
            if let Some(lane) = &core.lane {
                lane.wait_for_room(self);
            }
        }
        at
    }

    /// The command in front has been answered, and is not run.
    pub(super) fn pass_front(&self, core: &mut Core) {
        if let Ok(Some(frame)) = core.scanner.next(&core.input, &Limits::default()) {
            core.input.advance(frame.len);
            self.worker.count_commands(1);
        }
        if core.reply_mode == ReplyMode::Skip {
            core.reply_mode = ReplyMode::On;
        }
    }

    /// Sends a run of commands down the lane.
    #[inline]
    fn hand_out(self: &Rc<Self>, core: &mut Core, run: &[u8], count: &mut u32) {
        if *count > 0 {
            self.note_command(self.last.get());
            self.push(core, run, *count, false);
            self.worker.count_commands(u64::from(*count));
            worker::note_run(*count);
            *count = 0;
        }
    }

    fn is_on_bulk_lane(&self, core: &Core) -> bool {
        core.lane_epoch == self.worker.epoch.get() && core.lane.as_ref().is_some_and(|lane| lane.key.bulk)
    }

    /// The lane for what this session hands out now. It moves to another one only when nothing is in flight, or its
    /// replies would come out of order.
    #[inline]
    fn lane<'a>(&self, core: &'a mut Core) -> &'a Rc<Lane> {
        let epoch = self.worker.epoch.get();
        let bulk = self.bulk_until.get() > self.worker.clock();
        let stays = core.lane_epoch == epoch
            && core.lane.as_ref().is_some_and(|lane| lane.key.bulk == bulk || self.inflight.get() > 0);
        if !stays {
            core.lane = None;
            core.lane_epoch = epoch;
        }
        core.lane.get_or_insert_with(|| {
            let key = Key { bulk, ..Key::new(self.worker.active.get(), core.identity.clone()) };
            self.worker.lane(&key)
        })
    }

    /// Appends commands to the lane of this session's identity.
    pub(super) fn push(self: &Rc<Self>, core: &mut Core, bytes: &[u8], replies: u32, discard: bool) {
        let lane = self.lane(core);
        self.inflight.set(self.inflight.get() + replies);
        lane.push(self, bytes, replies, discard);
        if lane.is_full() {
            lane.wait_for_room(self);
        }
    }

    /// As [`Session::push`] for one large command, without a copy.
    fn push_whole(self: &Rc<Self>, core: &mut Core, command: Bytes) {
        let lane = self.lane(core);
        self.inflight.set(self.inflight.get() + 1);
        self.note_command(self.last.get());
        lane.push_whole(self, command);
        self.worker.count_commands(1);
        if lane.is_full() {
            lane.wait_for_room(self);
        }
    }

    /// The session speaks with another db, user or protocol from now on.
    pub(super) fn change_identity(&self, core: &mut Core, identity: Identity) {
        self.entry.db.store(identity.db, Ordering::Relaxed);
        self.entry.resp.store(if identity.resp3 { 3 } else { 2 }, Ordering::Relaxed);
        *self.entry.user.lock() = match &identity.credentials {
            Some(credentials) => credentials.user.clone().unwrap_or_else(|| "default".into()),
            None => "default".into(),
        };
        core.identity = identity;
        core.lane = None;
    }
}

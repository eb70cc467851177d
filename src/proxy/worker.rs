//! A worker: one thread that accepts clients and serves them, with its own lanes and pool.
//!
//! Everything here lives on one thread; `Rc` and `Cell` stand for locks. The control side speaks to it through
//! one bounded channel ([`Request`]).

mod company;
mod recall;
mod switching;

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::future::{Future, poll_fn};
use std::io::IoSlice;
use std::net::SocketAddr;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Context;
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::sync::{Notify, mpsc};

use super::client::ClientStream;
use super::gate::Request;
use super::handle::{Counters, Shared};
use super::lane::Lane;
use super::registry::{ClientEntry, Shown};
use super::session::Session;
use super::upstream::{Identity, Key, Upstream};
use super::{Active, ProxyOptions};
use crate::error::{Error, Result, Side};
use crate::server::{Stream, roam};

use company::Company;
use recall::Recaller;
use switching::{arm, away, busy, connect, drain, hear, open, prepare};

/// Idle connections kept for one identity.
const POOL: usize = 128;
/// How often a worker whose clients pipeline lets others run before it sleeps. On a busy machine they make work for it
/// meanwhile, which then comes in larger portions and with fewer changes of context; on an idle one it costs a microsecond.
/// With one command at a time per client it does not pay: each of them waits for the worker.
const YIELDS: u32 = 2;
/// Sockets that a worker looks at before its lanes send what came. With many more, clients that wait for one reply each have all
/// sent before the server hears of the first, and then have nothing to do until it answers; with few, every command costs more.
const EVENTS: usize = 20;
/// Somebody who waits for a server tries again sooner than this.
const AGAIN: Duration = Duration::from_millis(500);
/// As many commands from one read are a pipeline.
const PIPELINE: u32 = 4;

thread_local! {
    /// Whether a client of this worker has pipelined since it slept last.
    static PIPELINED: Cell<bool> = const { Cell::new(false) };
    /// Whether, since the last tick, clients have done what worker and server do better side by side.
    static APART: Cell<bool> = const { Cell::new(false) };
}

/// Takes note of the number of commands that came at once.
#[inline]
pub(super) fn note_run(commands: u32) {
    if commands >= PIPELINE {
        PIPELINED.set(true);
    }
}

/// Clients pipeline, or a lone one waits: worker and server had better not share a processor.
pub(super) fn side_by_side() {
    APART.set(true);
}

/// Before a worker sleeps.
fn give_way() {
    if PIPELINED.replace(false) {
        side_by_side();
        (0..YIELDS).for_each(|_| std::thread::yield_now());
    }
}

/// Runs the current task again once the sockets have been looked at and other tasks have had their turn. (A task that
/// only wakes itself is run again before that.)
pub(super) fn later(cx: &mut Context<'_>) {
    let mut turn = std::pin::pin!(tokio::task::yield_now());
    if turn.as_mut().poll(cx).is_ready() {
        cx.waker().wake_by_ref();
    }
}

/// What the sessions of one thread share.
pub(super) struct Worker {
    index: usize,
    pub(super) shared: Arc<Shared>,
    pub(super) active: Cell<Active>,
    /// The epoch of the switch that made `active` so. When it changes, sessions look up their lane again.
    pub(super) epoch: Cell<u64>,
    gate_closed: Cell<bool>,
    /// The active side takes commands from clients that have not authenticated, as far as it is known.
    pub(super) anonymous: Cell<bool>,
    /// When the last attempt to reach the active side failed; none since one succeeded.
    unreached: Cell<Option<Instant>>,
    lanes: RefCell<HashMap<Key, Rc<Lane>>>,
    pool: RefCell<HashMap<Key, Vec<Upstream>>>,
    sessions: RefCell<HashMap<u64, Rc<Session>>>,
    /// Where clients' bytes are read to; they are copied only when they must be kept.
    pub(super) scratch: RefCell<Box<[u8]>>,
    /// Sessions with new output.
    pub(super) dirty: RefCell<Vec<Rc<Session>>>,
    /// Lanes that wait for an answer, and how often one of them has been answered.
    asking: Cell<usize>,
    answers: Cell<u64>,
    /// Lanes that have to share hold back.
    holding: Cell<bool>,
    /// Told when something ends while the gate is closed.
    pub(super) progress: Notify,
    /// A connection with the gateway's own credentials, for CLIENT UNBLOCK.
    recaller: RefCell<Option<Recaller>>,
    /// Recalls that the server has not answered.
    pub(super) recalling: Cell<usize>,
    /// Where this thread runs.
    company: Company,
    started: Instant,
    clock: Cell<u64>,
}

impl Worker {
    pub(super) fn options(&self) -> &ProxyOptions {
        &self.shared.options
    }

    fn counters(&self) -> &Counters {
        &self.shared.counters[self.index]
    }

    /// The hot path's whole share of the gate.
    #[inline]
    pub(super) fn gate_closed(&self) -> bool {
        self.gate_closed.get()
    }

    // Only this thread writes its counters: a load and a store are enough.
    #[inline]
    pub(super) fn count_commands(&self, n: u64) {
        let counter = &self.counters().commands;
        counter.store(counter.load(Ordering::Relaxed) + n, Ordering::Relaxed);
    }

    pub(super) fn count_errors(&self, n: u64) {
        self.counters().errors.fetch_add(n, Ordering::Relaxed);
    }

    #[inline]
    pub(super) fn count_in(&self, n: usize) {
        let counter = &self.counters().bytes_in;
        counter.store(counter.load(Ordering::Relaxed) + n as u64, Ordering::Relaxed);
    }

    #[inline]
    pub(super) fn count_out(&self, n: usize) {
        let counter = &self.counters().bytes_out;
        counter.store(counter.load(Ordering::Relaxed) + n as u64, Ordering::Relaxed);
    }

    pub(super) fn count_pinned(&self, change: isize) {
        let counter = &self.counters().pinned;
        counter.store(counter.load(Ordering::Relaxed).saturating_add_signed(change), Ordering::Relaxed);
    }

    /// Milliseconds since the client came, by a clock that ticks ten times a second.
    pub(super) fn clock_ms(&self, entry: &ClientEntry) -> u64 {
        let came = entry.since.saturating_duration_since(self.started).as_millis() as u64;
        self.clock.get().saturating_sub(came)
    }

    /// Milliseconds since the client sent something, by the same clock.
    fn idle_ms(&self, entry: &ClientEntry) -> u64 {
        self.clock_ms(entry).saturating_sub(entry.last_active.load(Ordering::Relaxed))
    }

    /// The server has answered on this connection.
    #[inline]
    pub(super) fn answered(&self, stream: &Stream) {
        self.company.answered(stream);
    }

    /// Milliseconds since the worker began, ten ticks a second.
    #[inline]
    pub(super) fn clock(&self) -> u64 {
        self.clock.get()
    }

    /// The lane of an identity; opened when there is none.
    pub(super) fn lane(self: &Rc<Self>, key: &Key) -> Rc<Lane> {
        let known = self.lanes.borrow().get(key).cloned();
        known.unwrap_or_else(|| {
            let lane = Lane::open(self, key.clone());
            self.lanes.borrow_mut().insert(key.clone(), Rc::clone(&lane));
            lane
        })
    }

    /// Whether a lane stands for this identity on the active side: the server has accepted it.
    pub(super) fn has_lane(&self, identity: &Identity) -> bool {
        let key = Key::new(self.active.get(), identity.clone());
        self.lanes.borrow().get(&key).is_some_and(|lane| lane.is_up())
    }

    pub(super) fn forget_lane(&self, lane: &Rc<Lane>) {
        let mut lanes = self.lanes.borrow_mut();
        if lanes.get(&lane.key).is_some_and(|known| Rc::ptr_eq(known, lane)) {
            lanes.remove(&lane.key);
        }
    }

    /// Takes note of what the server thinks of a connection that was just opened.
    pub(super) fn note_anonymous(&self, upstream: &Upstream) {
        if upstream.key.identity.credentials.is_none() && upstream.key.side == self.active.get() {
            self.anonymous.set(!upstream.locked);
        }
    }

    /// Takes note of whether a server could be reached and takes commands.
    pub(super) fn note_reached(&self, side: Active, reached: bool) {
        if side == self.active.get() {
            self.unreached.set((!reached).then(Instant::now));
        }
    }

    /// Whether those who wait for the active side have just tried in vain to reach it: each tries again and again.
    fn is_away(&self) -> bool {
        let patience = self.options().connect_timeout + AGAIN;
        self.unreached.get().is_some_and(|since| since.elapsed() < patience)
    }

    /// A connection from the pool that still stands.
    pub(super) fn take_pooled(&self, key: &Key) -> Option<Upstream> {
        let mut pool = self.pool.borrow_mut();
        let idle = pool.get_mut(key)?;
        while let Some(mut upstream) = idle.pop() {
            if upstream.stream.is_silent() {
                return Some(upstream);
            }
        }
        pool.remove(key);
        None
    }

    pub(super) fn give_pooled(&self, upstream: Upstream) {
        let mut pool = self.pool.borrow_mut();
        let idle = pool.entry(upstream.key.clone()).or_default();
        if idle.len() < POOL {
            idle.push(upstream);
        }
    }

    /// A connection that a switch will take: as many as sessions need, whatever the pool keeps otherwise.
    fn stock(&self, upstream: Upstream) {
        self.pool.borrow_mut().entry(upstream.key.clone()).or_default().push(upstream);
    }

    /// Writes what lanes have delivered.
    pub(super) fn flush_dirty(&self) {
        loop {
            let Some(session) = self.dirty.borrow_mut().pop() else { return };
            session.flush_now();
        }
    }

    /// A lane waits for its server's answer.
    pub(super) fn note_asking(&self) {
        self.asking.set(self.asking.get() + 1);
    }

    /// It waits no longer.
    pub(super) fn note_asked(&self) {
        self.asking.set(self.asking.get().saturating_sub(1));
        self.answers.set(self.answers.get() + 1);
        if self.holding.replace(false) {
            let lanes = self.lanes.borrow();
            lanes.values().filter(|lane| lane.key.bulk).for_each(|lane| lane.wake());
        }
    }

    /// A lane holds back until then.
    pub(super) fn note_holding(&self) {
        self.holding.set(true);
    }

    /// Whether lanes wait that others have to share their server with.
    pub(super) fn is_asking(&self) -> bool {
        self.asking.get() > 0
    }

    /// How often one of them has been answered.
    pub(super) fn answers(&self) -> u64 {
        self.answers.get()
    }

    /// Something may have ended that a drain waits for.
    pub(super) fn drained(&self) {
        if self.gate_closed.get() {
            self.progress.notify_one();
        }
    }

    fn all_sessions(&self) -> Vec<Rc<Session>> {
        self.sessions.borrow().values().cloned().collect()
    }
}

/// One listener for each worker, all on the same port.
pub(super) fn bind(wanted: SocketAddr, count: usize) -> Result<Vec<std::net::TcpListener>> {
    let explain = |cause: std::io::Error| {
        Error::new(Side::Gateway, format!("cannot listen on {wanted}"))
            .because(cause)
            .remedy("is another program listening there? choose another listen.address")
    };
    // Without SO_REUSEPORT first: with it, two gateways could share a port and nobody would notice.
    let probe = socket(wanted, false).map_err(explain)?;
    let address = probe.local_addr().map_err(explain)?;
    drop(probe);
    (0..count).map(|_| socket(address, count > 1).map_err(explain)).collect()
}

fn socket(address: SocketAddr, share: bool) -> std::io::Result<std::net::TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    if share {
        socket.set_reuse_port(true)?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(1024)?;
    Ok(socket.into())
}

/// Listens on a Unix socket; one that a dead gateway left behind is replaced.
pub(super) fn bind_unix(path: &Path) -> Result<std::os::unix::net::UnixListener> {
    let explain = |cause: std::io::Error| {
        Error::new(Side::Gateway, format!("cannot listen on {}", path.display())).because(cause)
    };
    if let Ok(meta) = std::fs::symlink_metadata(path) {
        if meta.file_type().is_socket() && std::os::unix::net::UnixStream::connect(path).is_err() {
            std::fs::remove_file(path).map_err(explain)?;
        }
    }
    let listener = std::os::unix::net::UnixListener::bind(path).map_err(explain)?;
    listener.set_nonblocking(true).map_err(explain)?;
    Ok(listener)
}

/// Starts the thread of one worker.
pub(super) fn spawn(
    index: usize,
    shared: Arc<Shared>,
    listener: std::net::TcpListener,
    unix: Option<std::os::unix::net::UnixListener>,
    requests: mpsc::Receiver<Request>,
) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .on_thread_park(give_way)
        // Those that give back memory do not stay beside the server.
        .on_thread_start(roam)
        .max_io_events_per_tick(EVENTS)
        .build()
        .map_err(|cause| Error::new(Side::Gateway, "cannot start a worker").because(cause))?;
    std::thread::Builder::new()
        .name(format!("worker-{index}"))
        .spawn(move || {
            let local = tokio::task::LocalSet::new();
            local.block_on(&runtime, run(index, shared, listener, unix, requests));
        })
        .map_err(|cause| Error::new(Side::Gateway, "cannot start a worker").because(cause))?;
    Ok(())
}

async fn run(
    index: usize,
    shared: Arc<Shared>,
    listener: std::net::TcpListener,
    unix: Option<std::os::unix::net::UnixListener>,
    mut requests: mpsc::Receiver<Request>,
) {
    let worker = Rc::new(Worker {
        index,
        active: Cell::new(shared.options.active),
        epoch: Cell::new(shared.options.epoch),
        company: Company::new(shared.counters.len() == 1),
        shared,
        gate_closed: Cell::new(false),
        anonymous: Cell::new(false),
        unreached: Cell::new(None),
        lanes: RefCell::default(),
        pool: RefCell::default(),
        sessions: RefCell::default(),
        scratch: RefCell::new(vec![0; 64 * 1024].into_boxed_slice()),
        dirty: RefCell::default(),
        asking: Cell::new(0),
        answers: Cell::new(0),
        holding: Cell::new(false),
        progress: Notify::new(),
        recaller: RefCell::default(),
        recalling: Cell::new(0),
        started: Instant::now(),
        clock: Cell::new(0),
    });
    let tcp = tokio::task::spawn_local(accept_tcp(Rc::clone(&worker), listener));
    let unix = unix.map(|unix| tokio::task::spawn_local(accept_unix(Rc::clone(&worker), unix)));
    tokio::task::spawn_local(tick(Rc::downgrade(&worker)));
    while let Some(request) = requests.recv().await {
        match request {
            Request::Prepare { to, deadline, answer } => {
                let _ = answer.send(prepare(&worker, to, deadline).await);
            }
            Request::Busy { answer } => {
                let _ = answer.send(busy(&worker));
            }
            Request::Away { answer } => {
                let _ = answer.send(away(&worker));
            }
            Request::Close { answer } => {
                worker.gate_closed.set(true);
                let _ = answer.send(());
            }
            Request::Drain { deadline, answer } => {
                let _ = answer.send(drain(&worker, deadline, false).await);
            }
            Request::Hear { deadline, answer } => {
                let _ = answer.send(hear(&worker, deadline).await);
            }
            Request::Connect { active, deadline, answer } => {
                let _ = answer.send(connect(&worker, active, deadline).await);
            }
            Request::Arm { active, deadline, answer } => {
                let _ = answer.send(arm(&worker, active, deadline).await);
            }
            Request::Open { active, epoch, answer } => {
                let _ = answer.send(open(&worker, active, epoch));
            }
            Request::Shutdown { deadline, answer } => {
                tcp.abort();
                if let Some(unix) = &unix {
                    unix.abort();
                }
                worker.gate_closed.set(true);
                let _ = drain(&worker, deadline, true).await;
                for session in worker.all_sessions() {
                    session.close_now();
                }
                // Let the sessions' tasks run once more, so that their sockets close.
                for _ in 0..8 {
                    tokio::task::yield_now().await;
                }
                let _ = answer.send(());
                return;
            }
        }
    }
}

async fn tick(worker: std::rc::Weak<Worker>) {
    let mut interval = tokio::time::interval(Duration::from_millis(100));
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    loop {
        interval.tick().await;
        let Some(worker) = worker.upgrade() else { return };
        let now = worker.started.elapsed().as_millis() as u64;
        worker.clock.set(now);
        worker.company.look(Instant::now(), APART.replace(false));
        // Who waits at a closed gate is not idle.
        if let Some(limit) = worker.options().listen.idle_timeout.filter(|_| !worker.gate_closed()) {
            for session in worker.all_sessions() {
                let idle = worker.idle_ms(&session.entry);
                if u128::from(idle) > limit.as_millis() && session.may_time_out() {
                    session.close_now();
                }
            }
        }
    }
}

async fn accept_tcp(worker: Rc<Worker>, listener: std::net::TcpListener) {
    let listener = match tokio::net::TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => return tracing::error!("the listener does not work: {error}"),
    };
    let tls = worker.options().listen.tls.clone().map(tokio_rustls::TlsAcceptor::from);
    loop {
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of file descriptors, most likely: clients in service go on.
                tracing::warn!("a client could not be accepted: {error}");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let _ = crate::server::swift(&stream, peer);
        if let Some(after) = worker.options().listen.tcp_keepalive {
            let _ = crate::server::keep_alive(&stream, after);
        }
        let local = stream.local_addr().map(|addr| addr.to_string()).unwrap_or_default();
        let worker = Rc::clone(&worker);
        match &tls {
            None => serve(&worker, ClientStream::Tcp(stream), peer.to_string(), local),
            Some(tls) => {
                let handshake = tls.accept(stream);
                tokio::task::spawn_local(async move {
                    match tokio::time::timeout(Duration::from_secs(10), handshake).await {
                        Ok(Ok(stream)) => {
                            serve(&worker, ClientStream::Tls(Box::new(stream)), peer.to_string(), local);
                        }
                        Ok(Err(error)) => tracing::info!(%peer, "a TLS handshake failed: {error}"),
                        Err(_) => tracing::info!(%peer, "a TLS handshake took more than 10 s"),
                    }
                });
            }
        }
    }
}

async fn accept_unix(worker: Rc<Worker>, listener: std::os::unix::net::UnixListener) {
    let listener = match tokio::net::UnixListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => return tracing::error!("the Unix listener does not work: {error}"),
    };
    let path = worker.options().listen.unix_socket.as_ref().map(|path| format!("{}:0", path.display()));
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let path = path.clone().unwrap_or_default();
                serve(&worker, ClientStream::Unix(stream), path.clone(), path);
            }
            Err(error) => {
                tracing::warn!("a client could not be accepted: {error}");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

/// Tells a client that there are too many.
async fn refuse(mut stream: ClientStream) {
    let told = async {
        let line = [IoSlice::new(b"-ERR max number of clients reached\r\n")];
        poll_fn(|cx| stream.poll_write(cx, &line)).await?;
        poll_fn(|cx| stream.poll_flush(cx)).await
    };
    let _ = tokio::time::timeout(Duration::from_secs(1), told).await;
    stream.farewell();
}

fn serve(worker: &Rc<Worker>, stream: ClientStream, addr: String, laddr: String) {
    let registry = &worker.shared.registry;
    if !registry.reserve(worker.options().listen.max_clients) {
        tokio::task::spawn_local(refuse(stream));
        return;
    }
    let entry = Arc::new(ClientEntry {
        id: registry.next_id(),
        addr,
        laddr,
        since: Instant::now(),
        name: Default::default(),
        user: parking_lot::Mutex::new("default".into()),
        lib_name: Default::default(),
        lib_ver: Default::default(),
        db: 0.into(),
        resp: 2.into(),
        connection: Default::default(),
        redirected_to: false.into(),
        connected: Notify::new(),
        forgets: false.into(),
        killed: false.into(),
        waker: Default::default(),
        last_active: 0.into(),
        shown: Shown::default(),
    });
    let session = Session::new(worker, Arc::clone(&entry), stream);
    registry.insert(Arc::clone(&entry));
    worker.sessions.borrow_mut().insert(entry.id, Rc::clone(&session));
    let worker = Rc::clone(worker);
    tokio::task::spawn_local(async move {
        session.run().await;
        worker.shared.registry.remove(entry.id);
        entry.connected.notify_waiters();
        worker.sessions.borrow_mut().remove(&entry.id);
        worker.drained();
    });
}

//! The data path as the rest of the program sees it.

use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};

use super::gate::{Away, Busy, DrainReport, OpenReport, PrepareReport, Request, Undrained};
use super::registry::Registry;
use super::scripts::Scripts;
use super::worker;
use super::{Active, ProxyOptions};
use crate::command::Unknown;
use crate::error::{Error, Result, Side};

/// For the connections of clients that have state, when the gate opens.
const CONNECTED: Duration = Duration::from_secs(1);
/// For all of that, and their state said there.
const ARMED: Duration = Duration::from_secs(2);

/// Counters that the workers write and anybody may read.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) commands: AtomicU64,
    pub(super) errors: AtomicU64,
    pub(super) bytes_in: AtomicU64,
    pub(super) bytes_out: AtomicU64,
    pub(super) pinned: AtomicUsize,
}

/// What all workers share: nothing of it is touched on the command path except their own counters.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) options: ProxyOptions,
    pub(super) registry: Registry,
    pub(super) counters: Vec<Counters>,
    /// Commands that the table does not have.
    pub(super) unknown: Unknown,
    pub(super) scripts: Arc<Scripts>,
}

/// A reading of the data path's counters.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ProxyStats {
    /// Clients connected now.
    pub connected: usize,
    /// Clients that hold a server connection of their own now.
    pub pinned: usize,
    /// Commands handed to a server or answered by the gateway since the start.
    pub commands: u64,
    /// Error replies among the answers.
    pub errors: u64,
    /// Bytes read from clients.
    pub bytes_in: u64,
    /// Bytes written to clients.
    pub bytes_out: u64,
}

/// A handle on the running data path.
#[derive(Debug, Clone)]
pub struct Proxy {
    shared: Arc<Shared>,
    workers: Arc<Vec<mpsc::Sender<Request>>>,
    address: SocketAddr,
}

impl Proxy {
    /// Binds the listeners and starts the workers. Clients are accepted when it returns.
    ///
    /// # Errors
    /// The address cannot be bound.
    pub fn start(options: ProxyOptions) -> Result<Proxy> {
        let wanted = resolve(&options.listen.address)?;
        let count = options.listen.workers.max(1);
        let listeners = worker::bind(wanted, count)?;
        let address = listeners[0]
            .local_addr()
            .map_err(|cause| Error::new(Side::Gateway, "the listener has no address").because(cause))?;
        let unix = options.listen.unix_socket.as_deref().map(worker::bind_unix).transpose()?;
        let shared = Arc::new(Shared {
            counters: (0..count).map(|_| Counters::default()).collect(),
            registry: Registry::default(),
            unknown: Unknown::new(),
            scripts: options.scripts.as_deref().map_or_else(Arc::default, Scripts::open),
            options,
        });
        let mut workers = Vec::with_capacity(count);
        let mut unix = unix;
        for (index, listener) in listeners.into_iter().enumerate() {
            let (sender, requests) = mpsc::channel(16);
            worker::spawn(index, Arc::clone(&shared), listener, unix.take(), requests)?;
            workers.push(sender);
        }
        Ok(Proxy { shared, workers: Arc::new(workers), address })
    }

    /// Where clients connect.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// The counters as they stand.
    pub fn stats(&self) -> ProxyStats {
        let mut stats = ProxyStats { connected: self.shared.registry.len(), ..ProxyStats::default() };
        for counters in &self.shared.counters {
            stats.commands += counters.commands.load(Ordering::Relaxed);
            stats.errors += counters.errors.load(Ordering::Relaxed);
            stats.bytes_in += counters.bytes_in.load(Ordering::Relaxed);
            stats.bytes_out += counters.bytes_out.load(Ordering::Relaxed);
            stats.pinned += counters.pinned.load(Ordering::Relaxed);
        }
        stats
    }

    async fn ask<T>(&self, request: impl Fn(oneshot::Sender<T>) -> Request) -> Result<Vec<T>> {
        let mut answers = Vec::with_capacity(self.workers.len());
        for worker in self.workers.iter() {
            let (answer, receiver) = oneshot::channel();
            worker.send(request(answer)).await.map_err(|_| gone())?;
            answers.push(receiver);
        }
        let mut all = Vec::with_capacity(answers.len());
        for answer in answers {
            all.push(answer.await.map_err(|_| gone())?);
        }
        Ok(all)
    }

    /// Opens and authenticates connections to `to` for every lane and every session with state, and loads there the
    /// scripts that clients brought. Traffic goes on.
    ///
    /// # Errors
    /// A connection could not be made in time, or a client's credentials are refused on that side.
    pub async fn prepare(&self, to: Active, deadline: Instant) -> Result<PrepareReport> {
        let answers = self.ask(|answer| Request::Prepare { to, deadline, answer }).await?;
        let mut sum = PrepareReport::default();
        for answer in answers {
            let report = answer.map_err(|text| Error::passing(side_of(to), text))?;
            sum.lanes += report.lanes;
            sum.pinned += report.pinned;
        }
        let options = &self.shared.options;
        if let Some(endpoint) = options.endpoint(to) {
            let left = deadline.saturating_duration_since(Instant::now());
            self.shared.scripts.prepare(endpoint, left).await?;
        }
        Ok(sum)
    }

    /// Commands in flight, the likeliest to hold up a server first: what an active server that does not answer is busy
    /// with, if it came through the gateway.
    pub async fn busy(&self) -> Vec<Busy> {
        let answers = self.ask(|answer| Request::Busy { answer }).await.unwrap_or_default();
        let mut all: Vec<Busy> = answers.into_iter().flatten().collect();
        Busy::sort(&mut all);
        all
    }

    /// Whether the active server is away while clients' commands wait for it. To close the gate then would only make more
    /// of them wait.
    ///
    /// # Errors
    /// It is; the message says how many clients wait.
    pub async fn reaches_active(&self) -> Result<()> {
        let all = self.ask(|answer| Request::Away { answer }).await?;
        let sum = |sum: Away, away: Away| Away { clients: sum.clients + away.clients, ..away };
        all.into_iter().flatten().reduce(sum).map_or(Ok(()), |away| Err(is_away(away)))
    }

    /// Closes the gate: when it returns no worker hands out another command.
    ///
    /// # Errors
    /// A worker is gone.
    pub async fn close_gate(&self) -> Result<()> {
        self.ask(|answer| Request::Close { answer }).await.map(|_| ())
    }

    /// Waits until everything that was handed out has been answered. The gate must be closed.
    ///
    /// # Errors
    /// Something did not finish in time; the message names the client and its command.
    pub async fn drain(&self, deadline: Instant) -> Result<DrainReport> {
        let answers = self.ask(|answer| Request::Drain { deadline, answer }).await?;
        let mut sum = DrainReport::default();
        for answer in answers {
            let report = self.in_time(answer).await?;
            sum.recalled += report.recalled;
            sum.transactions += report.transactions;
        }
        for answer in self.ask(|answer| Request::Hear { deadline, answer }).await? {
            self.in_time(answer).await?;
        }
        // Everything has been answered: no script is on its way that is not kept.
        let caught_up = self.shared.scripts.catch_up();
        tokio::time::timeout_at(deadline.into(), caught_up).await.map_err(|_| {
            Error::passing(Side::Gateway, "the scripts that clients loaded lately did not get across in time")
        })??;
        Ok(sum)
    }

    /// A worker's answer; if something did not finish, with the name of the client and its command.
    async fn in_time<T>(&self, answer: std::result::Result<T, Undrained>) -> Result<T> {
        match answer {
            Ok(report) => Ok(report),
            Err(Undrained::Away(away)) => Err(is_away(away)),
            Err(Undrained::Late(text)) => {
                let named = Busy::name(&self.busy().await);
                let text = named.map_or(text.to_owned(), |named| format!("{text}: {named}"));
                Err(Error::passing(Side::Client, text))
            }
        }
    }

    /// Opens the gate on the given side; also the way back when a switch is given up.
    ///
    /// Sessions with connection state that could not be moved are closed; all others go on.
    pub async fn open_gate(&self, active: Active, epoch: u64) -> OpenReport {
        let began = Instant::now();
        // A connection that does not come up takes the time of its own client only.
        let deadline = began + CONNECTED;
        let connected = self.ask(|answer| Request::Connect { active, deadline, answer }).await;
        let deadline = began + ARMED;
        let armed = self.ask(|answer| Request::Arm { active, deadline, answer }).await;
        for outcome in [connected, armed] {
            match outcome {
                Ok(answers) => {
                    for text in answers.into_iter().filter_map(std::result::Result::err) {
                        tracing::warn!(
                            epoch,
                            "sessions closed while the gate opened on the {active}: {text}"
                        );
                    }
                }
                Err(error) => tracing::error!(epoch, "{error}"),
            }
        }
        let mut sum = OpenReport::default();
        match self.ask(|answer| Request::Open { active, epoch, answer }).await {
            Ok(answers) => {
                for report in answers {
                    sum.held_commands += report.held_commands;
                    sum.max_hold = sum.max_hold.max(report.max_hold);
                }
            }
            Err(error) => tracing::error!(epoch, "{error}"),
        }
        self.shared.scripts.rest().await;
        sum
    }

    /// Stops listening, lets commands in flight finish for at most `grace`, and closes all clients.
    pub async fn shutdown(&self, grace: Duration) {
        let deadline = Instant::now() + grace;
        let _ = self.ask(|answer| Request::Shutdown { deadline, answer }).await;
        self.shared.scripts.close().await;
    }
}

pub(super) fn side_of(active: Active) -> Side {
    match active {
        Active::Source => Side::Source,
        Active::Destination => Side::Destination,
    }
}

fn is_away(Away { side, clients }: Away) -> Error {
    let text = format!("the {side} is away; clients whose commands wait for it: {clients}");
    Error::passing(side_of(side), text).remedy("bring it back first, then try again")
}

fn gone() -> Error {
    Error::new(Side::Gateway, "a worker thread has ended").remedy("restart the gateway; its state is on disk")
}

fn resolve(address: &str) -> Result<SocketAddr> {
    address.to_socket_addrs().ok().and_then(|mut all| all.next()).ok_or_else(|| {
        Error::new(Side::Gateway, format!("listen.address {address:?} is no host:port"))
            .remedy("give an address such as 127.0.0.1:6400")
    })
}

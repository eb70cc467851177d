//! One client's connection: comes back after a loss where that is allowed, and tells replies from unknown outcomes.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::history::{Event, Ledger, Memory};
use super::sequence::{Fault, FaultKind};
use crate::cli::demo::connection::{Connection, Reply};

/// For how long the gateway has half of what a client sends, where the client is of that kind.
const HALF_SENT: Duration = Duration::from_millis(1);

pub(super) struct Link {
    address: String,
    pub(super) name: String,
    pub(super) db: u32,
    /// Speaks RESP3.
    pub(super) resp3: bool,
    /// Is told when what it has read is changed; speaks RESP3 for that.
    pub(super) tracking: bool,
    /// Sends each batch in two parts.
    pub(super) halves: bool,
    /// A user and its password; without them the default user.
    pub(super) user: Option<(String, String)>,
    /// A lost connection or a refused command is a fault.
    strict: bool,
    patience: Duration,
    connection: Option<Connection>,
    connected_before: bool,
    queued: usize,
    pub(super) ledger: Arc<Ledger>,
    pub(super) stop: CancellationToken,
    memory: Memory,
}

impl Link {
    pub(super) fn new(
        plan: &super::Plan,
        name: String,
        db: u32,
        ledger: &Arc<Ledger>,
        stop: &CancellationToken,
    ) -> Self {
        Self {
            address: plan.address.clone(),
            name,
            db,
            resp3: false,
            tracking: false,
            halves: false,
            user: None,
            strict: plan.strict,
            patience: plan.patience,
            connection: None,
            connected_before: false,
            queued: 0,
            ledger: ledger.clone(),
            stop: stop.clone(),
            memory: Memory::default(),
        }
    }

    pub(super) fn strict(&self) -> bool {
        self.strict
    }

    /// Makes sure that there is a connection; true when it is a new one. `None`: the traffic was stopped meanwhile.
    pub(super) async fn ready(&mut self) -> Option<bool> {
        if self.connection.is_some() {
            return Some(false);
        }
        loop {
            if self.stop.is_cancelled() {
                return None;
            }
            match timeout(self.patience, self.open()).await {
                Ok(Ok(connection)) => {
                    self.connection = Some(connection);
                    if self.connected_before {
                        self.ledger.reconnects.fetch_add(1, Ordering::Relaxed);
                    }
                    self.connected_before = true;
                    return Some(true);
                }
                Ok(Err(error)) if self.strict => {
                    self.fault("connect", None, FaultKind::Error, format!("connecting: {error}"))
                }
                Err(_) if self.strict => {
                    self.fault("connect", None, FaultKind::Error, "connecting: no answer".into())
                }
                _ => {}
            }
            sleep(Duration::from_millis(20)).await;
        }
    }

    async fn open(&self) -> std::io::Result<Connection> {
        let mut connection = Connection::open(&self.address).await?;
        if let Some((user, password)) = &self.user {
            connection.must(&["AUTH", user, password]).await?;
        }
        if self.resp3 || self.tracking {
            connection.must(&["HELLO", "3"]).await?;
        }
        if self.tracking {
            connection.keep_pushes();
            connection.must(&["CLIENT", "TRACKING", "ON"]).await?;
        }
        connection.must(&["CLIENT", "SETNAME", &self.name]).await?;
        if self.db != 0 {
            connection.must(&["SELECT", &self.db.to_string()]).await?;
        }
        Ok(connection)
    }

    /// Adds a command to what the next [`exchange`](Self::exchange) sends.
    pub(super) fn queue<A: AsRef<[u8]>>(&mut self, args: &[A]) {
        if let Some(connection) = &mut self.connection {
            connection.queue(args);
            self.queued += 1;
        }
    }

    /// Sends what was queued and reads the replies, as many as arrive: when they are fewer than the commands,
    /// the connection was lost, and the outcome of the others is unknown.
    pub(super) async fn exchange(&mut self) -> Vec<Reply> {
        let wanted = std::mem::take(&mut self.queued);
        let mut replies = Vec::with_capacity(wanted);
        let Some(mut connection) = self.connection.take() else { return replies };
        let began = Instant::now();
        let talk = async {
            if self.halves {
                connection.flush_in_halves(HALF_SENT).await?;
            } else {
                connection.flush().await?;
            }
            while replies.len() < wanted {
                replies.push(connection.reply().await?);
            }
            std::io::Result::Ok(())
        };
        let failed = match timeout(self.patience, talk).await {
            Ok(Ok(())) => None,
            Ok(Err(error)) => {
                // bytes that are no reply are a fault whatever the plan allows
                if error.kind() == std::io::ErrorKind::InvalidData {
                    self.fault("read", None, FaultKind::WrongReply, error.to_string());
                }
                Some(error.to_string())
            }
            Err(_) => Some(format!("no reply for {} s", self.patience.as_secs())),
        };
        match failed {
            None => {
                self.connection = Some(connection);
                self.ledger.waited(began.elapsed());
            }
            Some(why) if self.strict => {
                let text =
                    format!("connection lost with {} commands in flight: {why}", wanted - replies.len());
                self.fault("read", None, FaultKind::Error, text);
            }
            Some(_) => {}
        }
        self.ledger.operations.fetch_add(replies.len() as u64, Ordering::Relaxed);
        replies
    }

    /// Sends one command whose reply may take `extra` longer than others (a blocking command).
    pub(super) async fn blocking<A: AsRef<[u8]>>(&mut self, args: &[A], extra: Duration) -> Option<Reply> {
        let mut connection = self.connection.take()?;
        let reply = timeout(self.patience + extra, connection.call(args)).await;
        let why = match reply {
            Ok(Ok(reply)) => {
                self.connection = Some(connection);
                self.ledger.operations.fetch_add(1, Ordering::Relaxed);
                return Some(reply);
            }
            Ok(Err(error)) => error.to_string(),
            Err(_) => "no reply in time".into(),
        };
        if self.strict {
            self.fault("block", None, FaultKind::Error, format!("connection lost while blocked: {why}"));
        }
        None
    }

    /// The connection itself, for a subscriber.
    pub(super) fn connection(&mut self) -> Option<&mut Connection> {
        self.connection.as_mut()
    }

    /// Gives the connection up.
    pub(super) fn hang_up(&mut self) {
        self.connection = None;
    }

    pub(super) fn remember(
        &mut self,
        what: &'static str,
        step: u64,
        reply: Option<i64>,
        outcome: &'static str,
        began: Instant,
    ) {
        let at = began.duration_since(self.ledger.began);
        self.memory.add(Event { at, took: began.elapsed(), what, step, reply, outcome });
    }

    pub(super) fn fault(&self, what: &str, step: Option<u64>, kind: FaultKind, text: String) {
        self.told(what, Fault::new(kind, step, text));
    }

    pub(super) fn told(&self, what: &str, fault: Fault) {
        let story = self.memory.around(what, fault.step);
        self.ledger.report(format!("{} {what}", self.name), fault, story);
    }

    /// An error reply: a fault, unless errors are allowed for now; then the client slows down a little.
    pub(super) async fn refused(&mut self, what: &'static str, step: u64, text: &[u8]) {
        if self.strict {
            let text = format!("error reply: {}", String::from_utf8_lossy(text));
            self.fault(what, Some(step), FaultKind::Error, text);
        } else {
            self.ledger.tolerated.fetch_add(1, Ordering::Relaxed);
        }
        sleep(Duration::from_millis(5)).await;
    }
}

/// Small, fast, reproducible randomness (xorshift64*).
#[derive(Debug, Clone)]
pub(in crate::cli::demo) struct Dice(u64);

impl Dice {
    pub(in crate::cli::demo) fn new(seed: u64) -> Self {
        // splitmix64, so that neighbouring seeds do not give neighbouring streams
        let mut z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        Self((z ^ (z >> 31)) | 1)
    }

    pub(in crate::cli::demo) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `bound`.
    pub(in crate::cli::demo) fn below(&mut self, bound: u64) -> u64 {
        (self.next() >> 11) % bound.max(1)
    }
}

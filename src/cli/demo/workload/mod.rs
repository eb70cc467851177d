//! Live traffic that checks itself: clients that verify every reply, and a judgement over what the server holds at
//! the end.
//!
//! Used by `crossfade demo`, by the end-to-end tests and by the benchmark of the switch. What it checks:
//!
//! - unique appends to strings and lists: each once, in the client's order;
//! - counters (INCR, HINCRBY, ZINCRBY, scripts, WATCH/MULTI/EXEC): every reply is one more than the last;
//! - two keys in one transaction move together;
//! - a value that only one client knows is what that client reads, never an older one, never another's;
//! - shared counters, a shared list and a shared pair: sums of acknowledgements, order per client;
//! - blocking readers (BLPOP, BLMOVE, BZPOPMIN, XREADGROUP, XREAD): each element exactly once, time-outs on time;
//! - subscribers to channels, patterns and shard channels: each published message once;
//! - tracking: what a client was not told to forget has not changed;
//! - MONITOR: each command of a client that is looked for is shown once;
//! - CLIENT REPLY OFF and SKIP: what is sent then is done once, and not answered;
//! - scans of a set and of the database: everything that was there when a scan began is named by it;
//! - database, client name, protocol (every fourth client speaks RESP3), scripts by their hash, functions, expiry of a lease;
//! - every eighth client sends what it sends in two parts, and every eighth may be a user with fewer rights.
//!
//! An operation whose connection was lost in flight is *unknown*: it may have happened once, never twice.
//! In strict mode (the demo) a lost connection or an error reply is a fault by itself.

mod cached;
mod history;
mod link;
mod pairs;
mod scan;
mod sequence;
mod silent;
mod solo;

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use self::cached::Cached;
use self::history::Ledger;
use self::link::Link;
use self::pairs::{Giver, Taker, Way};
use self::silent::Silent;
use self::solo::Solo;
use super::connection::{Connection, Reply};

pub use self::history::Finding;
pub(super) use self::link::Dice;
pub use self::sequence::{Fault, FaultKind, Sequence};

/// Shared counters per database.
const SHARED: usize = 4;

/// The functions of [`Plan::modern`], for FUNCTION LOAD.
const LIBRARY: &str = "#!lua name=checked
redis.register_function('checked_incr', function(keys) return redis.call('INCR', keys[1]) end)";

/// What traffic to make.
#[derive(Debug, Clone)]
pub struct Plan {
    /// `host:port` of the gateway (or of a server).
    pub address: String,
    /// Clients in all. From 12 on there are pairs among them, one of each kind, and from 16 on
    /// clients that track, and clients that want no replies.
    pub clients: usize,
    /// Commands a second over all clients; `None`: as fast as it goes.
    pub pace: Option<u32>,
    /// Makes the choice of commands repeatable.
    pub seed: u64,
    /// What the names of all keys begin with.
    pub prefix: String,
    /// A lost connection or an error reply is a fault.
    pub strict: bool,
    /// How long a reply may take before the client gives the connection up.
    pub patience: Duration,
    /// Databases to spread over: clients use 0 to this, exclusive, most of them 0.
    pub databases: u32,
    /// A user and its password for every eighth client. It has to exist on every server, and may read and write.
    pub user: Option<(String, String)>,
    /// Also what servers before Redis 7 do not have: shard channels, and functions (see [`create_library`]).
    pub modern: bool,
    /// Also a client that has said MONITOR. It hears of everybody's commands, which costs a server half of its speed.
    pub monitored: bool,
}

impl Plan {
    /// Strict traffic of 32 clients in 3 databases.
    pub fn new(address: impl Into<String>) -> Self {
        Self {
            address: address.into(),
            clients: 32,
            pace: None,
            seed: 1,
            prefix: "live".into(),
            strict: true,
            patience: Duration::from_secs(15),
            databases: 3,
            user: None,
            modern: false,
            monitored: false,
        }
    }

    /// The same, where connections may be lost and commands refused for a while.
    #[must_use]
    pub fn tolerant(mut self) -> Self {
        self.strict = false;
        self
    }
}

/// Makes a user for [`Plan::user`] on the server at `host:port`: it may read and write, and not administer.
///
/// # Errors
/// The server cannot be asked, or is older than Redis 6.
pub async fn create_user(address: &str) -> io::Result<(String, String)> {
    let (user, password) = ("worker", "of-the-checked-traffic");
    let secret = format!(">{password}");
    let rights = ["~*", "+@all", "-@admin", "-@dangerous"];
    let mut server = Connection::open(address).await?;
    server.must(&[&["ACL", "SETUSER", user, "reset", "on", &secret][..], &rights].concat()).await?;
    // channels are restricted since 6.2
    let _ = server.call(&["ACL", "SETUSER", user, "allchannels"]).await?;
    Ok((user.into(), password.into()))
}

/// Loads the functions that [`Plan::modern`] calls into the server at `host:port`.
///
/// # Errors
/// The server cannot be asked, or is older than Redis 7.
pub async fn create_library(address: &str) -> io::Result<()> {
    let mut server = Connection::open(address).await?;
    server.must(&["FUNCTION", "LOAD", "REPLACE", LIBRARY]).await?;
    Ok(())
}

/// Running traffic.
pub struct Workload {
    ledger: Arc<Ledger>,
    givers_stop: CancellationToken,
    stop: CancellationToken,
    solos: Vec<JoinHandle<Solo>>,
    givers: Vec<JoinHandle<Giver>>,
    takers: Vec<(JoinHandle<Taker>, oneshot::Sender<u64>)>,
    cached: Vec<JoinHandle<()>>,
    silent: Vec<JoinHandle<Silent>>,
}

impl Workload {
    /// Starts all clients.
    pub fn start(plan: &Plan) -> Self {
        let ledger = Ledger::new();
        let (stop, givers_stop) = (CancellationToken::new(), CancellationToken::new());
        let ways = Way::of(plan);
        let apart = if plan.strict { plan.clients / 16 } else { 0 };
        let alone = plan.clients - 2 * ways.len() - 2 * apart;
        let interval = plan.pace.map(|pace| Duration::from_secs(alone.max(1) as u64) / pace.max(1));
        let link = |name: String, db, stop: &CancellationToken| Link::new(plan, name, db, &ledger, stop);
        let solos = (0..alone).map(|index| {
            let db = if index % 3 == 2 { (index as u32 / 3) % plan.databases.max(1) } else { 0 };
            let mut own = link(format!("{}-{index}", plan.prefix), db, &stop);
            own.resp3 = index % 4 == 1;
            own.halves = index % 8 == 6;
            own.user = plan.user.clone().filter(|_| index % 8 == 2);
            let solo = Solo::new(index, own, plan);
            tokio::spawn(solo.run(interval))
        });
        let solos = solos.collect();
        let (mut givers, mut takers) = (Vec::new(), Vec::new());
        for (index, way) in ways.into_iter().enumerate() {
            let giver = link(format!("{}-giver-{index}", plan.prefix), 0, &givers_stop);
            let taker = link(format!("{}-taker-{index}", plan.prefix), 0, &stop);
            let (giver, taker) = pairs::pair(index, way, giver, taker, plan);
            let (ready, is_ready) = oneshot::channel();
            let (last, is_last) = oneshot::channel();
            givers.push(tokio::spawn(giver.run(is_ready)));
            takers.push((tokio::spawn(taker.run(ready, is_last)), last));
        }
        let cached = (0..apart).map(|index| {
            let mut own = link(format!("{}-cached-{index}", plan.prefix), 0, &stop);
            own.tracking = true;
            tokio::spawn(Cached::new(own, plan).run())
        });
        let cached = cached.collect();
        let silent = (0..apart).map(|index| {
            let mut own = link(format!("{}-silent-{index}", plan.prefix), 0, &stop);
            own.resp3 = index % 2 == 1;
            tokio::spawn(Silent::new(index, own, plan).run())
        });
        let silent = silent.collect();
        Self { ledger, givers_stop, stop, solos, givers, takers, cached, silent }
    }

    /// Replies so far.
    pub fn operations(&self) -> u64 {
        self.ledger.operations.load(Ordering::Relaxed)
    }

    /// Connections that were lost and made again.
    pub fn reconnects(&self) -> u64 {
        self.ledger.reconnects.load(Ordering::Relaxed)
    }

    /// Faults so far.
    pub fn faults(&self) -> u64 {
        [
            FaultKind::Lost,
            FaultKind::Duplicated,
            FaultKind::Reordered,
            FaultKind::WrongReply,
            FaultKind::Error,
        ]
        .into_iter()
        .map(|kind| self.ledger.count(kind))
        .sum()
    }

    /// The faults that were kept with their story, so far.
    pub fn findings(&self) -> Vec<Finding> {
        self.ledger.findings()
    }

    /// The longest that a reply took since the last call, in milliseconds.
    pub fn take_worst_ms(&self) -> f64 {
        self.ledger.waits().take_worst_ms()
    }

    /// Stops the traffic; every client ends between two commands.
    ///
    /// # Errors
    /// A client that panicked.
    pub async fn stop(self) -> io::Result<History> {
        self.givers_stop.cancel();
        let mut pairs = Vec::new();
        for giver in self.givers {
            pairs.push(giver.await?);
        }
        let mut takers = Vec::new();
        for ((taker, last), giver) in self.takers.into_iter().zip(&pairs) {
            let _ = last.send(giver.last());
            takers.push(taker);
        }
        // subscribers hear the last message before the others are told to stop
        self.stop.cancel();
        let mut taken = Vec::new();
        for taker in takers {
            taken.push(taker.await?);
        }
        for cached in self.cached {
            cached.await?;
        }
        let mut silent = Vec::new();
        for one in self.silent {
            silent.push(one.await?);
        }
        let mut solos = Vec::new();
        for solo in self.solos {
            solos.push(solo.await?);
        }
        Ok(History { ledger: self.ledger, solos, silent, pairs: pairs.into_iter().zip(taken).collect() })
    }
}

/// What all clients did and saw.
pub struct History {
    ledger: Arc<Ledger>,
    solos: Vec<Solo>,
    silent: Vec<Silent>,
    pairs: Vec<(Giver, Taker)>,
}

impl History {
    /// Compares the contents of the server at `host:port` with what the clients know, and sums everything up.
    ///
    /// # Errors
    /// The server cannot be asked.
    pub async fn judge(&self, address: &str) -> io::Result<Verdict> {
        let mut server = Connection::open(address).await?;
        let mut by_db: BTreeMap<u32, Vec<&Solo>> = BTreeMap::new();
        for solo in &self.solos {
            by_db.entry(solo.db()).or_default().push(solo);
        }
        for (db, solos) in by_db {
            server.must(&["SELECT", &db.to_string()]).await?;
            for solo in &solos {
                solo.judge(&mut server).await?;
            }
            self.judge_shared(db, &solos, &mut server).await?;
        }
        server.must(&["SELECT", "0"]).await?;
        for silent in &self.silent {
            silent.judge(&mut server).await?;
        }
        for (giver, taker) in &self.pairs {
            pairs::judge(giver, taker, &mut server).await?;
        }
        let count = |kind| self.ledger.count(kind);
        let waits = self.ledger.waits();
        Ok(Verdict {
            operations: self.ledger.operations.load(Ordering::Relaxed),
            errors: count(FaultKind::Error),
            wrong: count(FaultKind::WrongReply),
            lost: count(FaultKind::Lost),
            duplicated: count(FaultKind::Duplicated),
            reordered: count(FaultKind::Reordered),
            reconnects: self.ledger.reconnects.load(Ordering::Relaxed),
            tolerated: self.ledger.tolerated.load(Ordering::Relaxed),
            p50_ms: waits.quantile_ms(0.5),
            p99_ms: waits.quantile_ms(0.99),
            worst_ms: waits.worst_ms(),
            findings: self.ledger.findings(),
        })
    }

    async fn judge_shared(&self, db: u32, solos: &[&Solo], server: &mut Connection) -> io::Result<()> {
        let Some(first) = solos.first() else { return Ok(()) };
        let whose = |what: &str| format!("shared {what}, db {db}");
        for index in 0..SHARED {
            let total = solo::number(server, &["GET", &first.shared("counter", index)]).await?;
            let steps: Vec<_> = solos.iter().map(|solo| &solo.shared_counters[index].0).collect();
            self.judge_sum(whose("counter"), &steps, total);
        }
        let steps: Vec<_> = solos.iter().map(|solo| &solo.shared_pair.0).collect();
        for index in 0..2 {
            let total = solo::number(server, &["GET", &first.shared("pair", index)]).await?;
            self.judge_sum(whose("pair"), &steps, total);
        }
        let list = server.must(&["LRANGE", &first.shared("list", 0), "0", "-1"]).await?;
        let mut by_client: BTreeMap<usize, Vec<u64>> = BTreeMap::new();
        for element in list.items() {
            match solo::parse_element(element) {
                Some((client, step)) => by_client.entry(client).or_default().push(step),
                None => self.strange(whose("list"), element),
            }
        }
        for solo in solos {
            let found = by_client.remove(&solo.index()).unwrap_or_default();
            for fault in solo.shared_list.judge(&found) {
                solo.told("shared-list", fault);
            }
        }
        Ok(())
    }

    fn strange(&self, whose: String, element: &Reply) {
        let text = format!("an element that nobody pushed: {}", element.brief());
        self.ledger.report(whose, Fault::new(FaultKind::WrongReply, None, text), Vec::new());
    }

    fn judge_sum(&self, whose: String, steps: &[&Sequence], total: u64) {
        let least: u64 = steps.iter().map(|steps| steps.acknowledged()).sum();
        let most = least + steps.iter().map(|steps| steps.unknown()).sum::<u64>();
        if total < least || total > most {
            let kind = if total < least { FaultKind::Lost } else { FaultKind::Duplicated };
            let text =
                format!("the sum is {total}, acknowledged are {least}, with those of unknown outcome {most}");
            self.ledger.report(whose, Fault::new(kind, None, text), Vec::new());
        }
    }
}

/// What came of it.
#[derive(Debug, Clone)]
pub struct Verdict {
    /// Replies that were checked.
    pub operations: u64,
    /// Error replies and lost connections that are not allowed.
    pub errors: u64,
    /// Replies that cannot be right.
    pub wrong: u64,
    /// Acknowledged steps that are not there.
    pub lost: u64,
    /// Steps that are there more than once.
    pub duplicated: u64,
    /// Steps out of order.
    pub reordered: u64,
    /// Connections made again.
    pub reconnects: u64,
    /// Error replies that were allowed.
    pub tolerated: u64,
    /// Median time from sending to the reply.
    pub p50_ms: f64,
    /// The time that 99 % of the replies stayed under.
    pub p99_ms: f64,
    /// The longest time.
    pub worst_ms: f64,
    /// The first faults, with the steps around them.
    pub findings: Vec<Finding>,
}

impl Verdict {
    /// Whether nothing is wrong.
    pub fn is_clean(&self) -> bool {
        self.errors + self.wrong + self.lost + self.duplicated + self.reordered == 0
    }
}

impl std::fmt::Display for Verdict {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} operations, {} errors, {} wrong replies, {} lost, {} duplicated, {} reordered ({} reconnects, {} errors allowed)",
            self.operations,
            self.errors,
            self.wrong,
            self.lost,
            self.duplicated,
            self.reordered,
            self.reconnects,
            self.tolerated
        )?;
        for finding in &self.findings {
            write!(f, "\n{finding}")?;
        }
        Ok(())
    }
}

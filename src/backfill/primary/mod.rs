//! The snapshot loader for an empty destination that may be made a replica: for as long as the snapshot takes, the gateway
//! is its primary. The destination then loads the file as it would load one of its own kind: no command and no checksum a
//! key, tables that have their size from the beginning, and every value, large or of a module, in the form it had.
//!
//! ```text
//! gateway                                                     destination
//! empty, fit, CONFIG SET repl-diskless-load on-empty-db  ───▶
//! MULTI, DEL of our own keys, REPLICAOF gateway, EXEC    ───▶ from here on nobody can write to it
//!                                                        ◀─── connects, PSYNC <its replication id> <offset>
//! is it ours, is it empty?                               ───▶
//! +FULLRESYNC, the snapshot with padded expiries,
//! our own keys as its last records                       ───▶ loads
//! keys counted; REPLICAOF NO ONE, CONFIG SET …           ───▶ a primary again, with our mark
//! ```
//! Guarantees:
//! - Nothing that the destination held is lost: that it holds nothing but our own keys is checked after it has become a
//!   replica and before it gets the answer that makes it empty itself.
//! - Data and mark arrive together or not at all, since a load that breaks off leaves an empty server. The load has not
//!   ended before an append-only file holds it.
//! - Whatever may end the destination's process (a database beyond its number, a value that needs a module, a file of a
//!   newer version) is looked for on the way and never sent.
//! - Only the destination gets the snapshot: whoever connects must name its replication id.
//! - [`Undo`] is known before anything is changed; run at any time later, also by another process, it leaves a primary with
//!   its own configuration.
//!
//! Facts: `replicaofCommand`, `replicationCacheMasterUsingMyself`, `syncWithMaster`, `readSyncBulkPayload` in replication.c,
//! `rdbLoadRioWithLoadingCtx` in rdb.c (Redis 6.0 to 8, Valkey 7.2 to 9).

mod handshake;
mod pass;

use std::io::Read;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, sleep, timeout_at};
use tokio_util::sync::CancellationToken;

use super::{LoadOptions, OWN_PREFIX, Progress, cancelled};
use crate::error::Error;
use crate::rdb;
use crate::resp::value::Value;
use crate::resp::write;
use crate::server::{Capabilities, Client, Endpoint, Flavour, Info};
use pass::Pass;

/// How long the destination may take to connect and to ask for the snapshot.
const CONNECTS: Duration = Duration::from_secs(3);
/// How long it may take to say that it has loaded everything, once it has everything.
const SETTLES: Duration = Duration::from_secs(60);
/// How long it may take to notice that the transfer broke off.
const NOTICES: Duration = Duration::from_secs(5);
/// Between two looks at it.
const LOOK: Duration = Duration::from_millis(5);
/// The configuration with which a replica loads from the connection, without a file in between.
const DISKLESS: &str = "repl-diskless-load";

/// Why the snapshot does not travel this way. Not an error: it goes as commands.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Unfit(String);

impl Unfit {
    fn new(why: impl Into<String>) -> Self {
        Self(why.into())
    }
}

/// What went wrong on the way.
#[derive(Debug)]
pub enum Broken {
    /// The snapshot may still go as commands.
    Unfit(Unfit),
    /// The snapshot itself broke off, or the load was stopped.
    Snapshot(Error),
}

impl From<Unfit> for Broken {
    fn from(unfit: Unfit) -> Self {
        Self::Unfit(unfit)
    }
}

/// How to make the destination what it was: a primary, with its own configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Undo {
    /// The gateway's address, as the destination knows its primary.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// What `repl-diskless-load` was.
    pub diskless_load: String,
    /// The generation of the snapshot.
    pub generation: u64,
}

impl Undo {
    /// Does it; does nothing where it is done.
    ///
    /// # Errors
    /// The destination cannot be reached, or refuses.
    pub async fn run(&self, client: &mut Client) -> Result<(), Error> {
        // A replica that is loading first has to notice that nothing more comes.
        let deadline = Instant::now() + NOTICES;
        loop {
            match self.attempt(client).await {
                Err(error) if error.retry && Instant::now() < deadline => sleep(LOOK * 10).await,
                outcome => return outcome,
            }
        }
    }

    async fn attempt(&self, client: &mut Client) -> Result<(), Error> {
        let info = client.info("replication").await?;
        if self.is_primary_of(&info) {
            client.command(&["REPLICAOF", "NO", "ONE"]).await?;
        }
        client.command(&["CONFIG", "SET", DISKLESS, &self.diskless_load]).await.map(drop)
    }

    fn is_primary_of(&self, info: &Info) -> bool {
        info.get("role") == Some("slave")
            && info.get("master_host") == Some(&self.host)
            && info.u64("master_port") == Some(u64::from(self.port))
    }
}

/// A destination that is fit, and the address where it will find the snapshot.
#[derive(Debug)]
pub struct Prepared {
    listener: TcpListener,
    undo: Undo,
    fit: Fit,
}

/// What a fit destination said of itself.
#[derive(Debug, Clone)]
struct Fit {
    replid: String,
    diskless_load: String,
    databases: u64,
    /// 0: no limit.
    max_memory: u64,
    vector_sets: bool,
    capabilities: Capabilities,
    /// Keys of ours that it holds.
    own: Vec<Vec<u8>>,
}

/// What was loaded.
#[derive(Debug, Default)]
pub struct Served {
    /// Keys.
    pub keys: u64,
    /// Keys of a gateway, left out.
    pub own_keys: u64,
    /// Function libraries.
    pub functions: u64,
    /// Scripts that the file of an old source carried, to be loaded by command.
    pub scripts: Vec<Vec<u8>>,
}

/// Whether the server is fit, as far as that can be told without changing anything there.
///
/// # Errors
/// Why it is not.
pub async fn fitness(client: &mut Client, to: &Endpoint, capabilities: &Capabilities) -> Result<(), Unfit> {
    questions(client, to, capabilities).await.map(drop)
}

async fn questions(client: &mut Client, to: &Endpoint, capabilities: &Capabilities) -> Result<Fit, Unfit> {
    if to.tls.is_some() {
        return Err(Unfit::new("it is reached by TLS, and what it loads would travel without"));
    }
    if capabilities.flavour == Flavour::Other || capabilities.cluster {
        return Err(Unfit::new("it is of a kind that cannot be made a replica"));
    }
    let failed = |error: Error| Unfit::new(error.to_string());
    let info = client.info("replication").await.map_err(failed)?;
    if info.get("role") != Some("master") || info.u64("connected_slaves") != Some(0) {
        return Err(Unfit::new("it is a replica, or has replicas of its own"));
    }
    let replid = info.get("master_replid").unwrap_or_default().to_owned();
    if replid.len() != 40 {
        return Err(Unfit::new("it shows no replication id"));
    }
    let list = client.command(&["CLIENT", "LIST"]).await.map_err(failed)?;
    if list.as_bytes().is_some_and(|text| memchr::memmem::find(text, b" name=sentinel-").is_some()) {
        return Err(Unfit::new("a Sentinel watches it"));
    }
    let diskless_load = setting(client, DISKLESS).await?;
    let number = |text: String| text.parse().map_err(|_| Unfit::new("its configuration is not understood"));
    let databases = number(setting(client, "databases").await?)?;
    let max_memory = number(setting(client, "maxmemory").await?)?;
    if setting(client, "replica-read-only").await? != "yes" {
        return Err(Unfit::new("it would take writes while it is a replica (replica-read-only)"));
    }
    if setting(client, "tls-replication").await.is_ok_and(|on| on != "no") {
        return Err(Unfit::new("it replicates by TLS"));
    }
    let modules = client.call(&["MODULE", "LIST"]).await.map_err(failed)?;
    let vector_sets = capabilities.flavour == Flavour::Redis && mentions(&modules, b"vectorset");
    let own = own_keys(client).await?;
    Ok(Fit {
        replid,
        diskless_load,
        databases,
        max_memory,
        vector_sets,
        capabilities: capabilities.clone(),
        own,
    })
}

/// Whether a text stands anywhere in a reply.
fn mentions(reply: &Value, text: &[u8]) -> bool {
    reply.as_bytes() == Some(text)
        || reply.as_array().is_some_and(|all| all.iter().any(|one| mentions(one, text)))
}

async fn setting(client: &mut Client, name: &str) -> Result<String, Unfit> {
    let reply =
        client.command(&["CONFIG", "GET", name]).await.map_err(|error| Unfit::new(error.to_string()))?;
    let value = reply.as_array().and_then(|pair| pair.get(1)).and_then(Value::as_str);
    value.map(str::to_owned).ok_or_else(|| Unfit::new(format!("it has no setting {name}")))
}

/// The keys of a server that holds none but those of a gateway.
pub(crate) async fn own_keys(client: &mut Client) -> Result<Vec<Vec<u8>>, Unfit> {
    const FEW: u64 = 100;
    let failed = |error: Error| Unfit::new(error.to_string());
    let not_empty = || Unfit::new("it is not empty");
    let spaces = client.info("keyspace").await.map_err(failed)?.keyspace();
    if spaces.iter().any(|space| space.db != 0 || space.keys > FEW) {
        return Err(not_empty());
    }
    let reply = client.command(&["KEYS", "*"]).await.map_err(failed)?;
    let keys: Vec<Vec<u8>> = reply
        .into_array()
        .unwrap_or_default()
        .iter()
        .filter_map(Value::as_bytes)
        .map(<[u8]>::to_vec)
        .collect();
    if keys.iter().all(|key| key.starts_with(OWN_PREFIX)) { Ok(keys) } else { Err(not_empty()) }
}

/// Looks whether the destination is fit, and listens for it. Nothing is changed there.
///
/// # Errors
/// Why it is not.
pub async fn prepare(
    client: &mut Client,
    to: &Endpoint,
    capabilities: &Capabilities,
    generation: u64,
) -> Result<Prepared, Unfit> {
    let fit = questions(client, to, capabilities).await?;
    let unbound = || Unfit::new("the gateway has no address that it could connect to");
    // Behind a unix socket it is on this machine.
    let here = client.local_addr().map_or(Ipv4Addr::LOCALHOST.into(), |address| address.ip());
    let listener = TcpListener::bind((here, 0)).await.map_err(|_| unbound())?;
    let port = listener.local_addr().map_err(|_| unbound())?.port();
    let host = here.to_canonical().to_string();
    let undo = Undo { host, port, diskless_load: fit.diskless_load.clone(), generation };
    Ok(Prepared { listener, undo, fit })
}

impl Prepared {
    /// How to undo what [`Self::serve`] will do; to be kept safely before.
    pub fn undo(&self) -> &Undo {
        &self.undo
    }

    /// Whether every key of ours that the destination holds is among these.
    pub fn knows(&self, own: &[(Vec<u8>, Vec<u8>)]) -> bool {
        self.fit.own.iter().all(|key| own.iter().any(|(known, _)| known == key))
    }

    /// Serves the snapshot, with `own` as its last keys. Whatever comes of it, [`Undo`] is to be run, except after
    /// `Ok`.
    ///
    /// # Errors
    /// See [`Broken`]. The destination is empty then, or will be as soon as it notices.
    pub async fn serve<R: Read + Send + 'static>(
        self,
        client: &mut Client,
        from: R,
        own: Vec<(Vec<u8>, Vec<u8>)>,
        options: &LoadOptions,
        progress: Arc<Progress>,
        cancel: CancellationToken,
    ) -> Result<Served, Broken> {
        let work = self.serve_whole(client, from, own, options, progress, cancel.clone());
        match cancel.run_until_cancelled(work).await {
            Some(outcome) => outcome,
            None => Err(Broken::Snapshot(cancelled())),
        }
    }

    async fn serve_whole<R: Read + Send + 'static>(
        self,
        client: &mut Client,
        from: R,
        own: Vec<(Vec<u8>, Vec<u8>)>,
        options: &LoadOptions,
        progress: Arc<Progress>,
        cancel: CancellationToken,
    ) -> Result<Served, Broken> {
        self.become_primary(client).await?;
        let mut socket = self.await_replica(client).await?;
        let mark = handshake::random_hex().map_err(|error| Unfit::new(error.to_string()))?;
        let id = handshake::random_hex().map_err(|error| Unfit::new(error.to_string()))?;
        let head = format!("+FULLRESYNC {id} 1\r\n$EOF:{mark}\r\n");
        socket.write_all(head.as_bytes()).await.map_err(lost)?;
        let count = own.len() as u64;
        let pass = Pass {
            capabilities: self.fit.capabilities.clone(),
            databases: self.fit.databases,
            max_memory: self.fit.max_memory,
            vector_sets: self.fit.vector_sets,
            own,
            mark,
            big_value: options.big_value,
            select: options.select.clone(),
            map: options.map.clone(),
            throttle: Arc::clone(&options.throttle),
            progress,
            cancel,
        };
        let (served, mut socket) = pass.run(from, socket, options.timeout).await?;
        self.await_loaded(client, &mut socket).await?;
        let failed = |error: Error| Unfit::new(error.to_string());
        let held: u64 =
            client.info("keyspace").await.map_err(failed)?.keyspace().iter().map(|s| s.keys).sum();
        if held != served.keys + count {
            let sent = served.keys + count;
            return Err(Unfit::new(format!("it holds {held} keys of the {sent} that it was sent")).into());
        }
        self.undo.run(client).await.map_err(failed)?;
        durable(client).await?;
        for script in &served.scripts {
            client.command(&[b"SCRIPT", &b"LOAD"[..], script]).await.map_err(failed)?;
        }
        Ok(served)
    }

    async fn become_primary(&self, client: &mut Client) -> Result<(), Unfit> {
        let failed = |error: Error| Unfit::new(error.to_string());
        if self.fit.diskless_load == "disabled" {
            client.command(&["CONFIG", "SET", DISKLESS, "on-empty-db"]).await.map_err(failed)?;
        }
        let mut out = Vec::new();
        write::command(&mut out, &["MULTI"]);
        for key in &self.fit.own {
            write::command(&mut out, &[b"DEL", &key[..]]);
        }
        write::command(&mut out, &["REPLICAOF", &self.undo.host, &self.undo.port.to_string()]);
        write::command(&mut out, &["EXEC"]);
        let replies = client.pipeline(&out, self.fit.own.len() + 3).await.map_err(failed)?;
        let results = replies.iter().chain(replies.last().and_then(Value::as_array).into_iter().flatten());
        match results.into_iter().find_map(Value::error) {
            Some(text) => Err(Unfit::new(format!("REPLICAOF was refused: {text}"))),
            None => Ok(()),
        }
    }

    /// Waits until the destination asks for the snapshot, and makes sure that it is the destination, and empty.
    async fn await_replica(&self, client: &mut Client) -> Result<TcpStream, Unfit> {
        let deadline = Instant::now() + CONNECTS;
        let socket = loop {
            let accepted = timeout_at(deadline, self.listener.accept()).await;
            let (mut socket, peer) = match accepted {
                Ok(Ok(accepted)) => accepted,
                Ok(Err(error)) => return Err(Unfit::new(format!("it could not connect: {error}"))),
                Err(_) => return Err(Unfit::new("it did not connect to the gateway")),
            };
            match timeout_at(deadline, handshake::greet(&mut socket, &self.fit.replid)).await {
                Ok(Ok(())) => break socket,
                Ok(Err(reason)) => tracing::warn!(%peer, reason, "somebody else asked for the snapshot"),
                Err(_) => return Err(Unfit::new("it did not ask for the snapshot")),
            }
        };
        let _ = socket.set_nodelay(true);
        let failed = |error: Error| Unfit::new(error.to_string());
        if !self.undo.is_primary_of(&client.info("replication").await.map_err(failed)?) {
            return Err(Unfit::new("it is no replica of the gateway any more"));
        }
        if !client.info("keyspace").await.map_err(failed)?.keyspace().is_empty() {
            return Err(Unfit::new("it is not empty"));
        }
        Ok(socket)
    }

    /// Waits until the destination has loaded what it was sent.
    async fn await_loaded(&self, client: &mut Client, socket: &mut TcpStream) -> Result<(), Unfit> {
        let deadline = Instant::now() + SETTLES;
        let mut spoken = [0; 512];
        while Instant::now() < deadline {
            tokio::select! {
                read = socket.read(&mut spoken) => match read {
                    Ok(0) | Err(_) => return Err(Unfit::new("it gave up loading; its log says why")),
                    // ACKs.
                    Ok(_) => {}
                },
                () = sleep(LOOK) => {}
            }
            let info = client.info("replication").await.map_err(|error| Unfit::new(error.to_string()))?;
            if !self.undo.is_primary_of(&info) {
                return Err(Unfit::new("it is no replica of the gateway any more"));
            }
            if info.get("master_link_status") == Some("up") {
                return Ok(());
            }
        }
        Err(Unfit::new("it did not end loading"))
    }
}

/// Waits until an append-only file, if there is one, holds what was loaded: after a synchronisation it is written anew in the
/// background, and a server that ends before that comes back without any of it (`restartAOFAfterSYNC`).
async fn durable(client: &mut Client) -> Result<(), Unfit> {
    loop {
        let info = client.info("persistence").await.map_err(|error| Unfit::new(error.to_string()))?;
        let is = |name: &str| info.get(name) == Some("1");
        if is("aof_enabled") && info.get("aof_last_bgrewrite_status") == Some("err") {
            return Err(Unfit::new("its append-only file cannot be written; its log says why"));
        }
        if !is("aof_enabled") || !(is("aof_rewrite_in_progress") || is("aof_rewrite_scheduled")) {
            return Ok(());
        }
        sleep(LOOK * 4).await;
    }
}

fn lost(error: std::io::Error) -> Unfit {
    Unfit::new(format!("it broke off the transfer ({error}); its log says why"))
}

/// Whether a server reads a file of this head.
fn reads(to: &Capabilities, file: rdb::Header) -> bool {
    // Valkey counts on from 80, and of Redis' own files it reads those up to 11.
    let known = match (file.flavour, to.flavour) {
        (rdb::Flavour::Redis, Flavour::Valkey | Flavour::Redict) => to.rdb_version.min(11),
        (rdb::Flavour::Redis, Flavour::Redis) | (rdb::Flavour::Valkey, Flavour::Valkey) => to.rdb_version,
        _ => 0,
    };
    file.version <= known
}

/// A snapshot cannot be read to its end.
fn unreadable(error: crate::rdb::RdbError) -> Broken {
    Broken::Snapshot(error.into())
}

//! What the two servers and this machine say. Only reads; a server that does not want to tell a thing leaves it unknown.

use std::net::ToSocketAddrs;
use std::path::Path;

use crate::backfill::primary;
use crate::config::Config;
use crate::resp::value::Value;
use crate::server::{Capabilities, Client, Clock, Endpoint, Events, Keyspace, paused};
use crate::{Result, Side};

/// Everything that was found out.
#[derive(Debug)]
pub(super) struct Facts {
    pub(super) source: Result<Server>,
    pub(super) destination: Option<Result<Server>>,
    pub(super) gateway: Gateway,
}

impl Facts {
    /// Whether a server could not be reached at all.
    pub(super) fn unreachable(&self) -> bool {
        let away = |server: &Result<Server>| server.as_ref().is_err_and(|error| error.retry);
        away(&self.source) || self.destination.as_ref().is_some_and(away)
    }
}

/// This machine.
#[derive(Debug, Clone, Default)]
pub(super) struct Gateway {
    /// Free bytes where the state will be.
    pub(super) space: Option<u64>,
    /// Why the state directory cannot be written.
    pub(super) state_dir: Option<String>,
    /// Addresses that cannot be listened on, with the reason.
    pub(super) taken: Vec<(&'static str, String)>,
}

/// `client-output-buffer-limit` of class replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct BufferLimit {
    /// Bytes; 0 is no limit.
    pub(super) hard: u64,
    /// Bytes for so many seconds; 0 is no limit.
    pub(super) soft: u64,
    /// Seconds.
    pub(super) soft_seconds: u64,
}

/// One server.
#[derive(Debug, Clone)]
pub(super) struct Server {
    pub(super) side: Side,
    pub(super) address: String,
    pub(super) capabilities: Capabilities,
    /// `master` or `slave`.
    pub(super) role: String,
    pub(super) loading: bool,
    pub(super) used_memory: u64,
    /// What the machine gives for it.
    pub(super) resident_memory: u64,
    /// 0 is no limit.
    pub(super) maxmemory: u64,
    pub(super) policy: String,
    pub(super) machine_memory: u64,
    pub(super) keyspace: Vec<Keyspace>,
    /// Bytes that arrive per second.
    pub(super) input_rate: u64,
    pub(super) backlog: Option<u64>,
    pub(super) buffer_limit: Option<BufferLimit>,
    pub(super) databases: Option<u64>,
    /// The keyspace notifications that it sends, if it tells.
    pub(super) events: Option<Events>,
    pub(super) clock: Clock,
    pub(super) modules: Vec<String>,
    /// Commands that the gateway needs there and this user may not give.
    pub(super) denied: Vec<String>,
    /// It may not do what a blocked command is recalled with.
    pub(super) no_recalls: bool,
    /// The handshake of a replica was refused with this.
    pub(super) replication_refused: Option<String>,
    /// Why it cannot load the snapshot as a replica.
    pub(super) unfit: Option<String>,
    /// Keys that a gateway wrote for itself.
    pub(super) own_keys: u64,
    /// `crossfade:position`: a migration has been here.
    pub(super) position: Option<String>,
    /// `crossfade:holder`: a gateway works here.
    pub(super) holder: Option<String>,
}

impl Server {
    /// Keys of applications.
    pub(super) fn keys(&self) -> u64 {
        self.keyspace.iter().map(|space| space.keys).sum::<u64>().saturating_sub(self.own_keys)
    }
}

/// Asks both servers at the same time.
pub(super) async fn gather(config: &Config) -> Facts {
    let destination = async {
        match &config.destination {
            Some(endpoint) => Some(server(endpoint, config).await),
            None => None,
        }
    };
    let (source, destination) = tokio::join!(server(&config.source, config), destination);
    Facts { source, destination, gateway: gateway(config) }
}

async fn server(endpoint: &Endpoint, config: &Config) -> Result<Server> {
    let timeout = config.server.connect_timeout;
    let mut client = Client::open(endpoint, timeout).await?;
    let capabilities = Capabilities::probe(&mut client).await?;
    let info = client.info("").await?;
    let keyspace = client.info("keyspace").await?.keyspace();
    let clock = Clock::ask(&mut client).await?;
    let number = |name: &str| info.u64(name).unwrap_or(0);
    let text = |name: &str| info.get(name).unwrap_or_default().to_owned();
    let mut found = Server {
        side: endpoint.side,
        address: endpoint.address.to_string(),
        role: text("role"),
        loading: info.get("loading") == Some("1"),
        used_memory: number("used_memory"),
        resident_memory: number("used_memory_rss"),
        maxmemory: number("maxmemory"),
        policy: text("maxmemory_policy"),
        machine_memory: number("total_system_memory"),
        // kilobytes, with decimals
        input_rate: text("instantaneous_input_kbps").parse::<f64>().map_or(0, |kb| (kb * 1024.0) as u64),
        keyspace,
        backlog: client.setting("repl-backlog-size").await?.and_then(|text| text.parse().ok()),
        buffer_limit: client
            .setting("client-output-buffer-limit")
            .await?
            .and_then(|text| buffer_limit(&text)),
        databases: client.setting("databases").await?.and_then(|text| text.parse().ok()),
        events: Events::ask(&mut client).await?,
        clock,
        modules: modules(&client.call(&["MODULE", "LIST"]).await?),
        denied: Vec::new(),
        no_recalls: false,
        replication_refused: None,
        unfit: None,
        own_keys: 0,
        position: None,
        holder: None,
        capabilities,
    };
    rights(&mut client, &mut found).await?;
    if endpoint.db != 0 {
        client.command(&["SELECT", "0"]).await?;
    }
    let own = client.call(&["EXISTS", "crossfade:position", "crossfade:holder", "crossfade:epoch"]).await?;
    found.own_keys = own.as_i64().and_then(|count| count.try_into().ok()).unwrap_or(0);
    found.position = own_key(&mut client, "crossfade:position").await?;
    found.holder = own_key(&mut client, "crossfade:holder").await?;
    if endpoint.side == Side::Destination {
        let fitness = primary::fitness(&mut client, endpoint, &found.capabilities).await;
        found.unfit = fitness.err().map(|unfit| unfit.to_string());
    }
    // Last, on a connection of its own: some servers treat a connection differently after REPLCONF.
    if found.capabilities.psync {
        found.replication_refused = handshake(endpoint, config).await?;
    }
    Ok(found)
}

async fn own_key(client: &mut Client, key: &str) -> Result<Option<String>> {
    let reply = client.call(&["GET", key]).await?;
    Ok(reply.as_bytes().filter(|_| !reply.is_error()).map(|text| String::from_utf8_lossy(text).into_owned()))
}

fn modules(reply: &Value) -> Vec<String> {
    let Some(list) = reply.as_array() else { return Vec::new() };
    list.iter()
        .filter_map(|module| {
            let fields = module.as_array()?;
            let at = fields.iter().position(|field| field.as_str() == Some("name"))?;
            // Valkey's script engine is a module that holds no data.
            fields.get(at + 1)?.as_str().filter(|name| *name != "lua").map(str::to_owned)
        })
        .collect()
}

/// "normal 0 0 0 slave 268435456 67108864 60 pubsub …"; the class is called replica by some.
pub(super) fn buffer_limit(text: &str) -> Option<BufferLimit> {
    let words: Vec<_> = text.split_whitespace().collect();
    let at = words.iter().position(|word| matches!(*word, "slave" | "replica"))?;
    let number = |offset: usize| words.get(at + offset)?.parse().ok();
    Some(BufferLimit { hard: number(1)?, soft: number(2)?, soft_seconds: number(3)? })
}

/// What the gateway's own user needs, as `ACL DRYRUN` (7.0+) takes it.
const NEEDED_EVERYWHERE: [&[&str]; 10] = [
    &["psync", "?", "-1"],
    &["replconf", "ack", "0"],
    &["info"],
    &["select", "0"],
    &["scan", "0"],
    &["dump", "crossfade:check"],
    &["client", "pause", "1", "write"],
    &["client", "unblock", "1"],
    &["multi"],
    &["exec"],
];
const NEEDED_TO_WRITE: [&[&str]; 5] = [
    &["restore", "crossfade:check", "0", "x"],
    &["set", "crossfade:check", "x"],
    &["del", "crossfade:check"],
    &["flushall"],
    &["publish", "crossfade:check", "x"],
];

/// Finds out what the gateway's user may not do there. From 7.0 on, and only with the right to ask; the handshake tells the rest.
async fn rights(client: &mut Client, server: &mut Server) -> Result<()> {
    let user = match client.call(&["ACL", "WHOAMI"]).await?.as_str() {
        Some(user) if server.capabilities.at_least(7, 0) => user.to_owned(),
        _ => return Ok(()),
    };
    let to_write = if server.side == Side::Destination { &NEEDED_TO_WRITE[..] } else { &[] };
    for needed in NEEDED_EVERYWHERE.iter().chain(to_write) {
        match may(client, &user, needed).await? {
            None => return Ok(()),
            Some(true) => {}
            Some(false) => {
                let words =
                    needed.iter().take(2).filter(|word| word.bytes().all(|b| b.is_ascii_alphabetic()));
                server.denied.push(words.copied().collect::<Vec<_>>().join(" ").to_uppercase());
            }
        }
    }
    for guard in paused::GUARDS {
        server.no_recalls = may(client, &user, guard).await? == Some(false);
        if !server.no_recalls {
            break;
        }
    }
    Ok(())
}

/// Whether a user may run a command; `None` where that may not be asked.
async fn may(client: &mut Client, user: &str, command: &[&str]) -> Result<Option<bool>> {
    let mut question = vec!["ACL", "DRYRUN", user];
    question.extend_from_slice(command);
    let reply = client.call(&question).await?;
    Ok(reply.error().is_none().then(|| reply.is_ok()))
}

/// The handshake of a replica up to, but without, PSYNC: nothing is started on the server.
async fn handshake(endpoint: &Endpoint, config: &Config) -> Result<Option<String>> {
    let mut client = Client::open(endpoint, config.server.connect_timeout).await?;
    for step in [&["REPLCONF", "listening-port", "0"][..], &["REPLCONF", "capa", "eof", "capa", "psync2"]] {
        let reply = client.call(step).await?;
        // Old servers do not know each option, which hurts nobody.
        if let Some(text) = reply.error().filter(|text| !text.contains("Unrecognized REPLCONF option")) {
            return Ok(Some(text));
        }
    }
    Ok(None)
}

fn gateway(config: &Config) -> Gateway {
    let existing = config
        .state_dir
        .ancestors()
        .map(|path| if path.as_os_str().is_empty() { Path::new(".") } else { path });
    let existing = existing.into_iter().find(|path| path.exists()).unwrap_or(Path::new("/"));
    let state_dir = match rustix::fs::access(existing, rustix::fs::Access::WRITE_OK) {
        Ok(()) if existing.is_dir() => None,
        Ok(()) => Some(format!("{} is no directory", existing.display())),
        Err(error) => Some(format!("{}: {error}", existing.display())),
    };
    let space = rustix::fs::statvfs(existing).ok().map(|disk| disk.f_bavail.saturating_mul(disk.f_frsize));
    let listens = [("listen.address", &config.listen.address), ("admin.address", &config.admin.address)];
    let taken =
        listens.into_iter().filter_map(|(key, address)| Some((key, bindable(address).err()?))).collect();
    Gateway { space, state_dir, taken }
}

fn bindable(address: &str) -> Result<(), String> {
    let mut resolved = address.to_socket_addrs().map_err(|error| format!("{address}: {error}"))?;
    let address = resolved.next().ok_or_else(|| format!("{address} is no address"))?;
    std::net::TcpListener::bind(address).map(drop).map_err(|error| format!("{address}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_of_replicas() {
        let limit = BufferLimit { hard: 268_435_456, soft: 67_108_864, soft_seconds: 60 };
        assert_eq!(
            buffer_limit("normal 0 0 0 slave 268435456 67108864 60 pubsub 33554432 8388608 60"),
            Some(limit)
        );
        assert_eq!(buffer_limit("normal 0 0 0 replica 268435456 67108864 60"), Some(limit));
        assert_eq!(buffer_limit("normal 0 0 0"), None);
        assert_eq!(buffer_limit("slave 1 2"), None);
    }
}

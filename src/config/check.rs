//! From [`File`] to [`Config`]: everything that can be told without talking to a server.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::file::{self, File, Workers};
use super::{
    Admin, Config, ConfigError, Connection, Cutover, Endpoint, FeedChoice, Filter, KeyCase, Listen,
    ListenTls, Map, Mirror, Retry, Secret, Snapshot, Verify, units,
};
use crate::Side;
use crate::server::TlsOptions;

type Result<T> = std::result::Result<T, ConfigError>;

pub(super) fn check(file: File) -> Result<Config> {
    not_in_this_version(&file)?;
    let listen = listen(&file.listen)?;
    let admin = admin(&file.admin)?;
    let source = server(Side::Source, &file.source.server())?.ok_or_else(|| {
        ConfigError::new("no source is given").remedy("give --source redis://HOST:PORT, or url in [source]")
    })?;
    let destination = server(Side::Destination, &file.destination)?;
    if let Some(destination) = &destination
        && destination.address == source.address
        && destination.db == source.db
    {
        return Err(ConfigError::new(format!(
            "source and destination are the same server, {}",
            source.address
        ))
        .remedy("a migration needs two; leave the destination out to forward only"));
    }
    for endpoint in [Some(&source), destination.as_ref()].into_iter().flatten() {
        if endpoint.address.to_string() == listen.address {
            return Err(ConfigError::new(format!(
                "the gateway's own address {} stands as the {}",
                listen.address, endpoint.side
            ))
            .remedy("listen on another port, then point applications at it"));
        }
    }
    if listen.address == admin.address && !listen.address.ends_with(":0") {
        return Err(ConfigError::new(format!(
            "listen.address and admin.address are both {}",
            listen.address
        ))
        .remedy("give the admin interface a port of its own"));
    }
    let name = file.name.trim().to_owned();
    if name.is_empty() || name.len() > 64 || name.chars().any(|c| c.is_whitespace() || c.is_control()) {
        return Err(ConfigError::new(format!("name '{}' cannot be used", name.escape_debug()))
            .remedy("up to 64 characters without blanks, as in \"orders-cache\""));
    }
    if file.state_dir.as_os_str().is_empty() {
        return Err(ConfigError::new("state_dir is empty").remedy("name a directory on a durable disk"));
    }
    Ok(Config {
        name,
        environment: file.environment.trim().to_owned(),
        state_dir: file.state_dir,
        filter: filter(file.filter)?,
        map: map(file.map)?,
        feed_from: file.source.feed_from,
        journal_bytes: match file.state.max_bytes {
            0 => None,
            most => Some(within_size("state.max_bytes", most, 64 << 20, 1 << 50)? as u64),
        },
        listen,
        source,
        destination,
        server: Connection {
            connect_timeout: positive("server.connect_timeout", file.server.connect_timeout)?,
            reconnect_wait: file.server.reconnect_wait,
        },
        admin,
        mirror: Mirror {
            feed: file.mirror.feed,
            on_conflict: file.mirror.on_conflict,
            on_error: file.mirror.on_error,
            batch_commands: within("mirror.batch_commands", file.mirror.batch_commands, 1, 100_000)?,
            batch_bytes: within_size("mirror.batch_bytes", file.mirror.batch_bytes, 1 << 10, 64 << 20)?,
        },
        snapshot: Snapshot {
            on_existing_key: file.snapshot.on_existing_key,
            on_unsupported: file.snapshot.on_unsupported,
            method: file.snapshot.method,
            connections: within("snapshot.connections", file.snapshot.connections, 1, 64)?,
        },
        throttle: file.throttle,
        retry: Retry {
            connection: window("retry.connection", file.retry.connection)?,
            other: window("retry.other", file.retry.other)?,
        },
        cutover: Cutover {
            max_pause: positive("cutover.max_pause", file.cutover.max_pause)?,
            max_lag: positive("cutover.max_lag", file.cutover.max_lag)?,
        },
        verify: Verify {
            rounds: within("verify.rounds", file.verify.rounds, 1, 100)? as u32,
            sample: (file.verify.sample > 0).then_some(file.verify.sample),
        },
        heartbeat: match file.heartbeat.interval {
            Duration::ZERO => None,
            interval if (Duration::from_millis(100)..=Duration::from_secs(3600)).contains(&interval) => {
                Some(interval)
            }
            interval => {
                return Err(ConfigError::new(format!(
                    "heartbeat.interval = {} is not between 100ms and 1h",
                    units::show_duration(interval)
                ))
                .remedy("\"1s\" is usual; \"0\" switches it off"));
            }
        },
    })
}

/// Keys that are documented but do nothing yet are refused when they are set: nobody shall believe
/// that keys were filtered when they were not.
fn not_in_this_version(file: &File) -> Result<()> {
    let defaults = File::default();
    let later = [
        ("mirror.feed = \"tap\"", file.mirror.feed == FeedChoice::Tap),
        ("[shadow]", file.shadow != defaults.shadow),
        ("[alerts]", file.alerts != defaults.alerts),
    ];
    match later.iter().find(|(_, set)| *set) {
        Some((what, _)) => {
            Err(ConfigError::new(format!("{what} is not in this version")).remedy("take it out"))
        }
        None => Ok(()),
    }
}

fn filter(file: file::Filter) -> Result<Filter> {
    let mut exclude_commands = Vec::new();
    for name in file.exclude_commands {
        // What holds the stream together is not anybody's to leave out.
        let name = name.to_ascii_lowercase();
        if matches!(name.as_str(), "multi" | "exec" | "select" | "ping" | "replconf") {
            return Err(ConfigError::new(format!(
                "filter.exclude_commands names {name}, which changes no data"
            ))
            .remedy("take it out"));
        }
        if crate::command::lookup(name.as_bytes()).is_none() {
            return Err(ConfigError::new(format!("filter.exclude_commands: no command is called {name:?}"))
                .remedy("write it as in the stream: \"publish\""));
        }
        exclude_commands.push(name);
    }
    Ok(Filter {
        include_keys: file.include_keys,
        exclude_keys: file.exclude_keys,
        databases: file.databases,
        types: file.types,
        exclude_commands,
    })
}

fn map(file: file::Map) -> Result<Map> {
    let mut databases = std::collections::BTreeMap::new();
    for (from, to) in file.databases {
        let number = from.parse().map_err(|_| {
            ConfigError::new(format!("map.databases: {from:?} is no number of a database"))
                .remedy("write numbers on both sides, as in { 0 = 3 }")
        })?;
        if databases.values().any(|other| *other == to) {
            return Err(ConfigError::new(format!("map.databases sends two databases to number {to}"))
                .remedy("their keys could not be told apart: give each one of its own"));
        }
        if databases.insert(number, to).is_some() {
            return Err(ConfigError::new(format!("map.databases names database {number} twice"))
                .remedy("leave one of the two out"));
        }
    }
    let mut prefixes = std::collections::BTreeMap::new();
    for (from, to) in file.prefixes {
        if [&from, &to].iter().any(|prefix| prefix.starts_with("crossfade:")) {
            return Err(ConfigError::new(
                "map.prefixes names crossfade:, where the gateway keeps its own keys",
            )
            .remedy("use another prefix"));
        }
        if prefixes.values().any(|other| *other == to) {
            return Err(ConfigError::new(format!("map.prefixes gives two prefixes the name {to:?}"))
                .remedy("their keys could not be told apart: give each one of its own"));
        }
        prefixes.insert(from, to);
    }
    if let (KeyCase::Upper | KeyCase::Lower, Some((from, to))) = (file.key_case, prefixes.iter().next()) {
        return Err(ConfigError::new(format!(
            "map.key_case changes all keys, and map.prefixes {from:?} to {to:?} too"
        ))
        .remedy("one of the two has to do"));
    }
    Ok(Map { databases, prefixes, key_case: file.key_case })
}

/// For how long something is tried again by itself.
fn window(key: &str, window: Duration) -> Result<Duration> {
    const DAYS: u64 = 30;
    if (Duration::from_secs(1)..=Duration::from_secs(DAYS * 86_400)).contains(&window) {
        return Ok(window);
    }
    let given = humantime::format_duration(window);
    Err(ConfigError::new(format!("{key} = \"{given}\" is not between 1 s and {DAYS} days"))
        .remedy("as long as somebody needs to notice and to mend it, as in \"12h\""))
}

fn positive(key: &str, duration: Duration) -> Result<Duration> {
    if duration.is_zero() {
        Err(ConfigError::new(format!("{key} must be more than 0")))
    } else {
        Ok(duration)
    }
}

fn within(key: &str, value: u64, least: u64, most: u64) -> Result<usize> {
    usize::try_from(value)
        .ok()
        .filter(|_| (least..=most).contains(&value))
        .ok_or_else(|| ConfigError::new(format!("{key} = {value} is not between {least} and {most}")))
}

fn within_size(key: &str, value: u64, least: u64, most: u64) -> Result<usize> {
    usize::try_from(value).ok().filter(|_| (least..=most).contains(&value)).ok_or_else(|| {
        let [value, least, most] = [value, least, most].map(units::show_size);
        ConfigError::new(format!("{key} = {value} is not between {least} and {most}"))
    })
}

fn listen(file: &file::Listen) -> Result<Listen> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let timeout = |duration: Duration| (!duration.is_zero()).then_some(duration);
    Ok(Listen {
        address: address("listen.address", &file.address)?,
        unix_socket: file.unix_socket.clone(),
        tls: match &file.tls {
            None => None,
            Some(tls) => Some(ListenTls {
                cert: readable("listen.tls.cert", tls.cert.as_ref())?.ok_or_else(|| {
                    ConfigError::new("[listen.tls] needs cert, the server's certificate chain")
                })?,
                key: readable("listen.tls.key", tls.key.as_ref())?
                    .ok_or_else(|| ConfigError::new("[listen.tls] needs key, the server's private key"))?,
                client_ca: readable("listen.tls.client_ca", tls.client_ca.as_ref())?,
            }),
        },
        workers: match file.workers {
            Workers::Auto => (cores / 2).max(1),
            Workers::Count(count) => within("listen.workers", count, 1, 1024)?,
        },
        max_clients: within("listen.max_clients", file.max_clients as u64, 1, 10_000_000)?,
        output_buffer_limit: within_size(
            "listen.output_buffer_limit",
            file.output_buffer_limit,
            1 << 16,
            1 << 40,
        )?,
        query_buffer_limit: within_size(
            "listen.query_buffer_limit",
            file.query_buffer_limit,
            1 << 16,
            1 << 40,
        )?,
        idle_timeout: timeout(file.idle_timeout),
        tcp_keepalive: timeout(file.tcp_keepalive),
        allow_replicas: file.allow_replicas,
    })
}

fn admin(file: &file::Admin) -> Result<Admin> {
    let address = address("admin.address", &file.address)?;
    let token = match (&file.token, &file.token_file) {
        (Some(_), Some(_)) => {
            return Err(ConfigError::new("[admin] has both token and token_file; keep one"));
        }
        (Some(token), None) => Some(Secret::new(token.0.clone())),
        (None, Some(path)) => Some(secret("admin.token_file", path)?),
        (None, None) => None,
    };
    if token.as_ref().is_some_and(|token| token.reveal().is_empty()) {
        return Err(ConfigError::new("the admin token is empty").remedy("leave it out, or give it a value"));
    }
    if token.is_none() && !is_loopback(&address) {
        return Err(ConfigError::new(format!(
            "admin.address {address} can be reached from other machines but has no token"
        ))
        .remedy("set token or token_file in [admin] or CROSSFADE_ADMIN_TOKEN, or listen on 127.0.0.1"));
    }
    Ok(Admin { address, token })
}

/// Whether `host:port` is an address that only this machine can reach.
pub fn is_loopback(address: &str) -> bool {
    match address.parse::<SocketAddr>() {
        Ok(address) => address.ip().to_canonical().is_loopback(),
        Err(_) => {
            let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
            host.eq_ignore_ascii_case("localhost")
                || host.trim_matches(['[', ']']).parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
        }
    }
}

/// `host:port` with a port that fits.
fn address(key: &str, text: &str) -> Result<String> {
    let text = text.trim();
    let wrong = |why: &str| {
        ConfigError::new(format!("{key} = \"{text}\": {why}"))
            .remedy("write it as \"127.0.0.1:6400\" or \"[::1]:6400\"")
    };
    let (host, port) = text.rsplit_once(':').ok_or_else(|| wrong("the port is missing"))?;
    if port.parse::<u16>().is_err() {
        return Err(wrong("the port is no number up to 65535"));
    }
    if host.contains("//") {
        return Err(wrong("an address is expected, not a URL"));
    }
    if host.contains(':') && !host.starts_with('[') {
        return Err(wrong("an IPv6 address stands in brackets"));
    }
    // ":6400" is how some write "on every interface".
    Ok(if host.is_empty() { format!("0.0.0.0:{port}") } else { text.to_owned() })
}

/// Schemes that people write, and what we say to them.
fn scheme(side: Side, url: &str) -> Result<()> {
    let name =
        url.split_once("://").map(|(name, _)| name).or_else(|| url.starts_with("unix:").then_some("unix"));
    let later = |what: &str| {
        Err(ConfigError::new(format!("{side}: {what} URLs are not in this version"))
            .remedy("give the address of one standalone server"))
    };
    match name {
        Some("redis" | "rediss" | "valkey" | "valkeys" | "unix" | "redis+unix") => Ok(()),
        Some(name) if name.contains("sentinel") => later("sentinel"),
        Some(name) if name.contains("cluster") => later("cluster"),
        Some(name) => {
            Err(ConfigError::new(format!("{side}: '{}://' is no known kind of URL", name.escape_debug()))
                .remedy("write redis://HOST:PORT, rediss://HOST:PORT (TLS) or unix:///PATH"))
        }
        None => Err(ConfigError::new(format!("{side}: a URL is expected"))
            .remedy("write redis://HOST:PORT, rediss://HOST:PORT (TLS) or unix:///PATH")),
    }
}

fn server(side: Side, file: &file::Server) -> Result<Option<Endpoint>> {
    let Some(url) = &file.url else {
        if *file != file::Server::default() {
            return Err(
                ConfigError::new(format!("[{side}] has no url")).remedy("write url = \"redis://HOST:PORT\"")
            );
        }
        return Ok(None);
    };
    let url = url.0.trim();
    scheme(side, url)?;
    let tls = tls(side, url, file.tls.as_ref())?;
    let mut endpoint = Endpoint::parse_with(side, url, tls.as_ref()).map_err(|error| {
        let made = ConfigError::new(format!("{side}: {}", error.message));
        made.remedy(error.remedy.unwrap_or_else(|| "write redis://[user[:password]@]host[:port][/db]".into()))
    })?;
    let password = match (&file.password, &file.password_file) {
        (Some(_), Some(_)) => {
            return Err(ConfigError::new(format!("[{side}] has both password and password_file; keep one")));
        }
        (Some(password), None) => Some(Secret::new(password.0.clone())),
        (None, Some(path)) => Some(secret(&format!("{side}.password_file"), path)?),
        (None, None) => None,
    };
    if password.is_some() && endpoint.password.is_some() {
        return Err(ConfigError::new(format!(
            "[{side}] has a password in its url and another beside it; keep one"
        )));
    }
    if file.user.is_some() && endpoint.user.is_some() && file.user != endpoint.user {
        return Err(ConfigError::new(format!(
            "[{side}] has a user in its url and another beside it; keep one"
        )));
    }
    endpoint.password = password.or(endpoint.password);
    endpoint.user = file.user.clone().or(endpoint.user);
    if endpoint.user.is_some() && endpoint.password.is_none() {
        return Err(ConfigError::new(format!("[{side}] has a user but no password"))
            .remedy("set password, or password_file, or ${ENV} in either"));
    }
    Ok(Some(endpoint))
}

fn secret(key: &str, path: &Path) -> Result<Secret> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| ConfigError::new(format!("{key}: {} cannot be read: {error}", path.display())))?;
    let text = text.strip_suffix('\n').unwrap_or(&text);
    let text = text.strip_suffix('\r').unwrap_or(text);
    if text.is_empty() {
        return Err(ConfigError::new(format!("{key}: {} is empty", path.display())));
    }
    Ok(Secret::new(text.to_owned()))
}

fn readable(key: &str, path: Option<&PathBuf>) -> Result<Option<PathBuf>> {
    match path {
        None => Ok(None),
        Some(path) => match std::fs::File::open(path) {
            Ok(_) => Ok(Some(path.clone())),
            Err(error) => Err(ConfigError::new(format!("{key}: {} cannot be read: {error}", path.display()))),
        },
    }
}

fn tls(side: Side, url: &str, file: Option<&file::ServerTls>) -> Result<Option<TlsOptions>> {
    let Some(tls) = file else { return Ok(None) };
    if !(url.starts_with("rediss://") || url.starts_with("valkeys://")) {
        return Err(ConfigError::new(format!("[{side}.tls] is set but the url does not ask for TLS"))
            .remedy("write rediss:// instead of redis://, or take the table out"));
    }
    if tls.cert.is_some() != tls.key.is_some() {
        return Err(ConfigError::new(format!("[{side}.tls] needs cert and key together")));
    }
    Ok(Some(TlsOptions {
        ca: readable(&format!("{side}.tls.ca"), tls.ca.as_ref())?,
        cert: readable(&format!("{side}.tls.cert"), tls.cert.as_ref())?,
        key: readable(&format!("{side}.tls.key"), tls.key.as_ref())?,
        server_name: tls.server_name.clone(),
    }))
}

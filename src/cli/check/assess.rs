//! What the facts mean for a migration: a list of findings, each with its side and its remedy.

use super::facts::{BufferLimit, Facts, Gateway, Server};
use crate::Side;
use crate::config::units::{about, show_duration};
use crate::config::{Config, OnExistingKey, OnUnsupported, SnapshotMethod};
use crate::migration::status::Finding;
use crate::mirror::Mapping;
use crate::server::{Capabilities, Flavour, Keyspace};

const MIB: u64 = 1 << 20;

/// How fast a snapshot travels, at worst, in a network that deserves the name: half a gigabit.
const SNAPSHOT_BYTES_PER_SECOND: u64 = 60 * MIB;

/// A lost link should be bridged by the backlog for at least so long.
const BACKLOG_SECONDS: u64 = 60;

pub(super) fn assess(facts: &Facts, config: &Config) -> Vec<Finding> {
    let mut all = Vec::new();
    match &facts.source {
        Ok(source) => {
            reached(source, &mut all);
            as_source(source, &mut all);
        }
        Err(error) => all.push(away(Side::Source, error)),
    }
    match &facts.destination {
        Some(Ok(destination)) => {
            reached(destination, &mut all);
            as_destination(destination, config.snapshot.on_existing_key, &mut all);
            if destination.position.is_none() {
                all.push(Finding::ok(Side::Destination, method(destination, config.snapshot.method)));
            }
        }
        Some(Err(error)) => all.push(away(Side::Destination, error)),
        None => all.push(Finding::warn(
            Side::Gateway,
            "no destination is configured: the gateway only forwards",
            "give --destination redis://HOST:PORT to migrate",
        )),
    }
    if let (Ok(source), Some(Ok(destination))) = (&facts.source, &facts.destination) {
        together(source, destination, config.snapshot.on_unsupported, &mut all);
        databases(source, destination, config, &mut all);
    }
    machine(&facts.gateway, facts.source.as_ref().ok(), config, &mut all);
    all
}

fn away(side: Side, error: &crate::Error) -> Finding {
    let cause = std::error::Error::source(error).map(|cause| format!(": {cause}")).unwrap_or_default();
    let remedy =
        error.remedy.clone().unwrap_or_else(|| "check the address, the network and that it runs".into());
    Finding::error(side, format!("{}{cause}", error.message), remedy)
}

fn reached(server: &Server, all: &mut Vec<Finding>) {
    let (side, can) = (server.side, &server.capabilities);
    let (major, minor, patch) = can.version;
    all.push(Finding::ok(
        side,
        format!(
            "{} {major}.{minor}.{patch} at {}, {} keys, {} in use",
            can.flavour,
            server.address,
            server.keys(),
            about(server.used_memory)
        ),
    ));
    if can.cluster {
        all.push(Finding::error(
            side,
            "it runs in cluster mode, which is not in this version",
            "only standalone servers can be migrated so far",
        ));
    }
    if server.loading {
        all.push(Finding::warn(side, "it is still loading its data", "wait until it has, then check again"));
    }
    // Following the destination is needed for the way back only.
    let (for_rollback, denied): (Vec<&str>, Vec<&str>) = (server.denied.iter().map(String::as_str))
        .partition(|name| side == Side::Destination && matches!(*name, "PSYNC" | "REPLCONF ACK"));
    let grant = "ACL SETUSER <user> on ~* &* +@all, or name a user that may (user, password)";
    if !denied.is_empty() {
        let what = format!("the gateway's user may not use {}", denied.join(", "));
        all.push(Finding::error(side, what, format!("allow it: {grant}")));
    }
    if !for_rollback.is_empty() {
        let what = format!(
            "the gateway's user may not use {}: no rollback after a cutover",
            for_rollback.join(", ")
        );
        all.push(Finding::warn(side, what, format!("allow it: {grant}")));
    }
    if server.no_recalls {
        all.push(Finding::warn(
            side,
            "the gateway's user may use neither PFCOUNT nor EVAL: a switch away from it is given up while clients wait in blocking commands",
            format!("allow one of them: {grant}"),
        ));
    }
    if server.clock.ahead_ms.abs() > 500 + server.clock.within_ms {
        all.push(Finding::warn(
            side,
            format!(
                "its clock is {} ms {} the gateway's",
                server.clock.ahead_ms.abs(),
                ahead(server.clock.ahead_ms)
            ),
            "run NTP on both machines: keys that expire would do so at the wrong time",
        ));
    }
}

fn ahead(difference: i64) -> &'static str {
    if difference > 0 { "ahead of" } else { "behind" }
}

/// Being followed by a mirror.
fn replication(server: &Server, consequence: &str, level_error: bool, all: &mut Vec<Finding>) {
    let refused = match (&server.replication_refused, server.capabilities.psync) {
        (Some(text), _) => Some(format!("it refuses a replica's handshake: {text}")),
        (None, false) => Some("it does not know PSYNC, as many managed servers".to_owned()),
        (None, true) => None,
    };
    match refused {
        None if server.denied.iter().any(|name| matches!(name.as_str(), "PSYNC" | "REPLCONF ACK")) => {}
        None => all.push(Finding::ok(server.side, "it lets the gateway attach as a replica")),
        Some(what) if level_error => {
            all.push(Finding::error(
                server.side,
                what,
                format!("{consequence}; use a server that allows replication"),
            ));
        }
        Some(what) => all.push(Finding::warn(server.side, what, consequence.to_owned())),
    }
}

fn as_source(source: &Server, all: &mut Vec<Finding>) {
    let side = Side::Source;
    replication(source, "the gateway cannot follow it", true, all);
    if source.role != "master" {
        all.push(Finding::warn(
            side,
            "it is a replica: applications cannot write to it",
            "name the primary as the source",
        ));
    }
    match source.buffer_limit {
        Some(limit) if cuts_off(limit, source) => all.push(Finding::warn(
            side,
            format!(
                "client-output-buffer-limit replica ({} hard, {} for {} s) may cut the gateway off while the snapshot \
                 of {} is sent and {}/s are written",
                about(limit.hard),
                about(limit.soft),
                limit.soft_seconds,
                about(source.used_memory),
                about(source.input_rate)
            ),
            "raise it for the migration: CONFIG SET client-output-buffer-limit \"replica 0 0 0\"",
        )),
        Some(_) => all.push(Finding::ok(side, "client-output-buffer-limit replica is wide enough")),
        None => all.push(Finding::warn(
            side,
            "it does not tell its client-output-buffer-limit",
            "make sure that the limit for replicas is above what is written while the snapshot is sent",
        )),
    }
    match source.backlog {
        Some(backlog) if backlog < 16 * MIB || backlog < source.input_rate * BACKLOG_SECONDS => {
            let covers = match source.input_rate {
                0..1024 => String::new(),
                rate => format!(", {} s at the present rate", backlog / rate),
            };
            all.push(Finding::warn(
                side,
                format!(
                    "repl-backlog-size is small ({}{covers}): a longer cut means a new snapshot",
                    about(backlog)
                ),
                format!(
                    "CONFIG SET repl-backlog-size {}mb",
                    (source.input_rate * BACKLOG_SECONDS / MIB + 1).max(64).next_power_of_two()
                ),
            ));
        }
        Some(backlog) => all.push(Finding::ok(side, format!("repl-backlog-size is {}", about(backlog)))),
        None => {}
    }
    let beside = source.machine_memory.saturating_sub(source.resident_memory);
    if fork_is_tight(source) {
        all.push(Finding::warn(
            side,
            format!(
                "its machine has {} of memory beside the {} that it uses: the child that writes the snapshot may need as \
                 much again while applications write",
                about(beside),
                about(source.resident_memory)
            ),
            "give the snapshot from a replica (source.feed_from = \"replica\"), or begin when few writes come",
        ));
    }
    if !source.capabilities.pause_write {
        all.push(Finding::warn(
            side,
            "it has no CLIENT PAUSE … WRITE (6.2): writers that bypass the gateway are held less gently at a switch",
            "let every application connect to the gateway before the cutover",
        ));
    }
}

/// Whether a copy of half of the pages that hold data, which a child's parent makes when it changes them, may not fit.
fn fork_is_tight(source: &Server) -> bool {
    let beside = source.machine_memory.saturating_sub(source.resident_memory);
    source.machine_memory > 0 && source.used_memory > 64 * MIB && source.used_memory / 2 > beside
}

/// Whether the source would drop a replica that reads a whole snapshot while writes pile up behind it.
fn cuts_off(limit: BufferLimit, source: &Server) -> bool {
    let seconds = source.used_memory / SNAPSHOT_BYTES_PER_SECOND + 1;
    // The stream is a little larger than what clients send: SELECT, MULTI, absolute expiries.
    let piled_up = source.input_rate.saturating_mul(seconds).saturating_mul(5) / 4;
    let hard = limit.hard > 0 && (limit.hard < 32 * MIB || piled_up > limit.hard);
    let soft = limit.soft > 0 && seconds > limit.soft_seconds && piled_up > limit.soft;
    hard || soft
}

fn as_destination(destination: &Server, policy: OnExistingKey, all: &mut Vec<Finding>) {
    let side = Side::Destination;
    if destination.role != "master" {
        all.push(Finding::error(
            side,
            "it is a replica and follows another server",
            "make it a primary: REPLICAOF NO ONE, or name another destination",
        ));
    }
    replication(destination, "after a cutover the source cannot be kept in step: no rollback", false, all);
    let under_way = destination.position.is_some();
    match (destination.keys(), policy) {
        (_, _) if under_way => {
            all.push(Finding::ok(side, "it holds the position of a migration, which can go on"))
        }
        (0, _) => all.push(Finding::ok(side, "it is empty")),
        (keys, OnExistingKey::Fail) => all.push(Finding::error(
            side,
            format!("it is not empty: {keys} keys"),
            "empty it, or choose snapshot.on_existing_key = \"keep\" or \"replace\"",
        )),
        (keys, policy) => {
            let fate = if policy == OnExistingKey::Keep { "stay as they are" } else { "are replaced" };
            all.push(Finding::warn(
                side,
                format!("it is not empty: of its {keys} keys, those that the source has too {fate}"),
                "make sure that this is meant",
            ));
        }
    }
    if let Some(holder) = &destination.holder {
        all.push(Finding::warn(
            side,
            format!("another gateway works here: {holder}"),
            "stop that one first; a second one is refused",
        ));
    }
    if destination.maxmemory > 0 && destination.policy != "noeviction" {
        all.push(Finding::warn(
            side,
            format!(
                "maxmemory-policy {} at {}: it may drop keys on its own",
                destination.policy,
                about(destination.maxmemory)
            ),
            "CONFIG SET maxmemory-policy noeviction until the migration is finished",
        ));
    } else {
        all.push(Finding::ok(side, "it evicts nothing"));
    }
}

/// How the snapshot will travel.
fn method(destination: &Server, method: SnapshotMethod) -> String {
    match (method, &destination.unfit) {
        (SnapshotMethod::Commands, _) => "the snapshot is loaded by commands, as configured".into(),
        (SnapshotMethod::Auto, None) => {
            "it loads the snapshot as a replica of the gateway, if it can reach the gateway and the user may REPLICAOF".into()
        }
        (SnapshotMethod::Auto, Some(why)) => format!("the snapshot is loaded by commands: {why}"),
    }
}

/// What the source may hold and the destination has no command for.
fn lacking(from: &Capabilities, to: &Capabilities) -> Vec<&'static str> {
    let redis = |of: &Capabilities, since| of.flavour == Flavour::Redis && of.compatible >= since;
    let fields = |of: &Capabilities| {
        redis(of, (7, 4, 0)) || (of.flavour == Flavour::Valkey && of.version >= (9, 0, 0))
    };
    let features = [
        ("streams (5.0)", from.at_least(5, 0), to.at_least(5, 0)),
        ("functions (7.0)", from.functions, to.functions),
        ("expiries of hash fields (Redis 7.4, Valkey 9.0)", fields(from), fields(to)),
        ("vector sets (Redis 8.0)", redis(from, (8, 0, 0)), redis(to, (8, 0, 0))),
        ("arrays (Redis 8.8)", redis(from, (8, 8, 0)), redis(to, (8, 8, 0))),
    ];
    features.into_iter().filter(|(_, has, knows)| *has && !knows).map(|(name, ..)| name).collect()
}

fn together(source: &Server, destination: &Server, policy: OnUnsupported, all: &mut Vec<Finding>) {
    let side = Side::Destination;
    let needed = source.used_memory;
    let room = [("maxmemory", destination.maxmemory), ("the machine's memory", destination.machine_memory)];
    for (name, limit) in room.into_iter().filter(|(_, limit)| *limit > 0) {
        let text = format!("{name} is {}, and the source uses {}", about(limit), about(needed));
        if limit < needed {
            all.push(Finding::error(side, text, "give it more memory"));
        } else if limit < needed + needed / 5 {
            all.push(Finding::warn(side, text, "leave at least a fifth more than the source uses"));
        }
    }
    if let (Some(from), Some(to)) = (&source.events, &destination.events)
        && let Some(lacking) = from.lacking_in(to)
    {
        all.push(Finding::warn(
            side,
            format!("it does not send keyspace notifications that the source sends (notify-keyspace-events {lacking})"),
            "CONFIG SET notify-keyspace-events there to what it is on the source, or subscribers hear nothing behind the switch",
        ));
    }
    let (from, to) = (&source.capabilities, &destination.capabilities);
    if to.rdb_version < from.rdb_version || (from.flavour != to.flavour && to.compatible < from.compatible) {
        all.push(Finding::warn(
            side,
            format!(
                "it is older than the source: it reads RDB up to version {}, the source writes {}",
                to.rdb_version, from.rdb_version
            ),
            "values in newer encodings are written with commands that it knows",
        ));
    }
    let lacking = lacking(from, to);
    if !lacking.is_empty() {
        let what = format!("it does not know {}", lacking.join(", "));
        all.push(match policy {
            OnUnsupported::Fail => Finding::warn(
                side,
                format!("{what}: the copy stops where the source uses that"),
                "make sure that no application does, or set snapshot.on_unsupported = \"drop\" to leave it out",
            ),
            OnUnsupported::Drop => Finding::warn(
                side,
                format!("{what}: what the source holds of that is left out (snapshot.on_unsupported)"),
                "`crossfade status` counts and names it",
            ),
        });
    }
    let missing: Vec<_> =
        source.modules.iter().filter(|name| !destination.modules.contains(name)).cloned().collect();
    if !missing.is_empty() {
        all.push(Finding::warn(
            side,
            format!("it lacks modules that the source has: {}", missing.join(", ")),
            "load them, or make sure that no key uses their types",
        ));
    }
    let apart = source.clock.ahead_ms - destination.clock.ahead_ms;
    let tolerance = 200 + source.clock.within_ms + destination.clock.within_ms;
    if apart.abs() > tolerance {
        all.push(Finding::warn(
            side,
            format!("its clock is {} ms {} the source's", apart.abs(), ahead(-apart)),
            "run NTP on both machines: after the cutover keys expire by the destination's clock",
        ));
    } else {
        all.push(Finding::ok(side, format!("both clocks agree within {tolerance} ms")));
    }
}

/// Where the keys of each database go.
fn databases(source: &Server, destination: &Server, config: &Config, all: &mut Vec<Finding>) {
    let map = Mapping::new(&config.map);
    let mut highest = None;
    let own = |space: &&Keyspace| space.db == 0 && space.keys <= source.own_keys;
    let kept = source.keyspace.iter().filter(|space| config.filter.keeps_db(space.db));
    for space in kept.filter(|space| !own(space)) {
        match map.as_ref().map_or(Ok(space.db), |map| map.db(space.db)) {
            Ok(db) => highest = highest.max(Some((db, space.db))),
            Err(why) => all.push(Finding::error(
                Side::Gateway,
                why,
                "give each a database of its own in map.databases, or leave one out with filter.databases",
            )),
        }
    }
    if let (Some(databases), Some((db, from))) = (destination.databases, highest)
        && u64::from(db) >= databases
    {
        let what = match from == db {
            true => format!("it has {databases} databases, and the source has keys in db {db}"),
            false => format!("it has {databases} databases, and [map] sends db {from} to {db}"),
        };
        let remedy = format!("set `databases {}` in its configuration and restart it", db + 1);
        all.push(Finding::error(Side::Destination, what, remedy));
    }
}

fn machine(gateway: &Gateway, source: Option<&Server>, config: &Config, all: &mut Vec<Finding>) {
    let side = Side::Gateway;
    let dir = config.state_dir.display();
    if let Some(reason) = &gateway.state_dir {
        all.push(Finding::error(
            side,
            format!("state_dir {dir} cannot be written: {reason}"),
            "name a directory that the gateway's user may write, with --state-dir or state_dir",
        ));
    }
    if let (Some(space), Some(source)) = (gateway.space, source) {
        // An RDB file is seldom larger than the memory it came from, and often much smaller; the journal comes on top.
        let text = format!(
            "state_dir {dir} has {} free, and the source uses {}",
            about(space),
            about(source.used_memory)
        );
        if space < source.used_memory / 4 {
            all.push(Finding::error(side, text, "name a state_dir on a larger disk"));
        } else if space < source.used_memory.saturating_mul(2) {
            all.push(Finding::warn(
                side,
                text,
                "leave twice the source's memory free: the snapshot and what is written meanwhile are kept there",
            ));
        } else {
            all.push(Finding::ok(side, text));
        }
    }
    for (key, reason) in &gateway.taken {
        all.push(Finding::warn(
            side,
            format!("{key}: {reason}"),
            "if that is not this gateway, already running: choose another port",
        ));
    }
    if config.retry.connection.as_secs() < 60 {
        all.push(Finding::warn(
            side,
            format!("retry.connection is only {}", show_duration(config.retry.connection)),
            "a server that restarts takes longer",
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::migration::status::Level;
    use crate::server::{Capabilities, Clock, Events, Flavour, Keyspace};

    fn server(side: Side) -> Server {
        Server {
            side,
            address: "a:1".into(),
            capabilities: Capabilities {
                flavour: Flavour::Redis,
                version: (7, 0, 15),
                compatible: (7, 0, 15),
                rdb_version: 10,
                cluster: false,
                psync: true,
                pause_write: true,
                rdb_filter: true,
                pexpiretime: true,
                functions: true,
                client_unblock: true,
                restore_absttl: true,
                restore: true,
                unlink: true,
            },
            role: "master".into(),
            loading: false,
            used_memory: 100 * MIB,
            resident_memory: 0,
            maxmemory: 0,
            policy: "noeviction".into(),
            machine_memory: 1024 * MIB,
            keyspace: Vec::new(),
            input_rate: 0,
            backlog: Some(64 * MIB),
            buffer_limit: Some(BufferLimit { hard: 256 * MIB, soft: 64 * MIB, soft_seconds: 60 }),
            databases: Some(16),
            events: Some(Events::parse("KEA")),
            clock: Clock { ahead_ms: 0, within_ms: 1 },
            modules: Vec::new(),
            denied: Vec::new(),
            no_recalls: false,
            replication_refused: None,
            unfit: None,
            own_keys: 0,
            position: None,
            holder: None,
        }
    }

    fn facts() -> Facts {
        Facts {
            source: Ok(server(Side::Source)),
            destination: Some(Ok(server(Side::Destination))),
            gateway: Gateway { space: Some(10 << 30), ..Gateway::default() },
        }
    }

    fn config(policy: &str) -> Config {
        let path = tempfile::NamedTempFile::new().unwrap();
        let text = format!(
            "source.url='redis://a:1'\ndestination.url='redis://b:1'\nsnapshot.on_existing_key='{policy}'\nlisten.address='127.0.0.1:0'"
        );
        std::fs::write(path.path(), text).unwrap();
        let sources = crate::config::Sources { file: Some(path.path().into()), ..Default::default() };
        crate::config::load(&sources).unwrap()
    }

    /// The findings that are not ok, after a change of the facts.
    fn after(change: impl FnOnce(&mut Server, &mut Server, &mut Gateway)) -> Vec<(Level, Side, String)> {
        let mut facts = facts();
        let Facts { source: Ok(source), destination: Some(Ok(destination)), gateway } = &mut facts else {
            panic!()
        };
        change(source, destination, gateway);
        let all = assess(&facts, &config("fail"));
        all.into_iter()
            .filter(|finding| finding.level != Level::Ok)
            .map(|finding| {
                assert!(finding.remedy.is_some(), "{finding:?} has no remedy");
                (finding.level, finding.side, finding.what)
            })
            .collect()
    }

    fn only(found: &[(Level, Side, String)], level: Level, side: Side, part: &str) {
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!((found[0].0, found[0].1), (level, side));
        assert!(found[0].2.contains(part), "{found:?}");
    }

    #[test]
    fn nothing_to_complain_about() {
        assert_eq!(after(|_, _, _| {}), []);
    }

    #[test]
    fn each_fact_has_its_finding() {
        use Level::{Error, Warn};
        use Side::{Destination, Gateway, Source};
        only(&after(|s, _, _| s.capabilities.psync = false), Error, Source, "PSYNC");
        only(&after(|s, _, _| s.replication_refused = Some("NOPERM".into())), Error, Source, "NOPERM");
        only(&after(|_, d, _| d.capabilities.psync = false), Warn, Destination, "PSYNC");
        only(&after(|s, _, _| s.capabilities.cluster = true), Error, Source, "cluster");
        only(&after(|s, _, _| s.role = "slave".into()), Warn, Source, "replica");
        only(&after(|_, d, _| d.role = "slave".into()), Error, Destination, "follows another");
        only(&after(|s, _, _| s.loading = true), Warn, Source, "loading");
        only(&after(|s, _, _| s.denied.push("PSYNC".into())), Error, Source, "may not use PSYNC");
        only(&after(|_, d, _| d.denied.push("PSYNC".into())), Warn, Destination, "no rollback");
        only(&after(|s, _, _| s.no_recalls = true), Warn, Source, "neither PFCOUNT nor EVAL");
        only(&after(|s, _, _| s.backlog = Some(MIB)), Warn, Source, "repl-backlog-size");
        only(&after(|s, _, _| s.buffer_limit = None), Warn, Source, "does not tell");
        only(&after(|s, _, _| s.capabilities.pause_write = false), Warn, Source, "CLIENT PAUSE");
        only(
            &after(|_, d, _| d.keyspace.push(Keyspace { db: 0, keys: 3, expires: 0, field_expires: 0 })),
            Error,
            Destination,
            "3 keys",
        );
        only(
            &after(|_, d, _| (d.maxmemory, d.policy) = (1 << 30, "allkeys-lru".into())),
            Warn,
            Destination,
            "allkeys-lru",
        );
        only(&after(|_, d, _| d.maxmemory = 50 * MIB), Error, Destination, "maxmemory is 50.0 MiB");
        only(&after(|_, d, _| d.maxmemory = 110 * MIB), Warn, Destination, "maxmemory is 110 MiB");
        only(&after(|_, d, _| d.machine_memory = MIB), Error, Destination, "the machine's memory");
        only(
            &after(|s, _, _| s.resident_memory = 980 * MIB),
            Warn,
            Source,
            "the child that writes the snapshot",
        );
        only(&after(|s, _, _| s.capabilities.rdb_version = 12), Warn, Destination, "older than the source");
        only(&after(|_, d, _| d.capabilities.functions = false), Warn, Destination, "functions (7.0)");
        only(
            &after(|_, d, _| d.events = Some(Events::parse("Kx"))),
            Warn,
            Destination,
            "notify-keyspace-events $Edeghlstz)",
        );
        only(&after(|s, _, _| s.modules.push("search".into())), Warn, Destination, "search");
        only(
            &after(|s, _, _| s.keyspace.push(Keyspace { db: 16, keys: 1, expires: 0, field_expires: 0 })),
            Error,
            Destination,
            "db 16",
        );
        only(
            &after(|s, d, _| (s.clock.ahead_ms, d.clock.ahead_ms) = (400, 100)),
            Warn,
            Destination,
            "300 ms behind",
        );
        only(&after(|_, _, g| g.space = Some(MIB)), Error, Gateway, "1.0 MiB free");
        only(&after(|_, _, g| g.space = Some(150 * MIB)), Warn, Gateway, "150 MiB free");
        only(&after(|_, _, g| g.state_dir = Some("denied".into())), Error, Gateway, "cannot be written");
        only(&after(|_, _, g| g.taken.push(("listen.address", "in use".into()))), Warn, Gateway, "in use");
        only(&after(|_, d, _| d.holder = Some("x".into())), Warn, Destination, "another gateway");
    }

    #[test]
    fn a_buffer_limit_that_cuts_off() {
        let mut busy = server(Side::Source);
        let limit = BufferLimit { hard: 256 * MIB, soft: 64 * MIB, soft_seconds: 60 };
        assert!(!cuts_off(limit, &busy));
        (busy.used_memory, busy.input_rate) = (20 << 30, 10 * MIB);
        assert!(cuts_off(limit, &busy));
        assert!(!cuts_off(BufferLimit { hard: 0, soft: 0, soft_seconds: 0 }, &busy));
        assert!(cuts_off(BufferLimit { hard: MIB, soft: 0, soft_seconds: 0 }, &server(Side::Source)));
    }

    #[test]
    fn a_migration_under_way_is_no_foreign_data() {
        let found = after(|_, d, _| {
            d.keyspace.push(Keyspace { db: 0, keys: 3, expires: 0, field_expires: 0 });
            d.position = Some("…".into());
        });
        assert_eq!(found, []);
    }

    #[test]
    fn existing_keys_by_policy() {
        let mut facts = facts();
        if let Some(Ok(destination)) = &mut facts.destination {
            destination.keyspace.push(Keyspace { db: 0, keys: 3, expires: 0, field_expires: 0 });
        }
        for (policy, part) in [("keep", "stay as they are"), ("replace", "are replaced")] {
            let all = assess(&facts, &config(policy));
            let found = all.iter().find(|finding| finding.what.contains("not empty")).unwrap();
            assert!(found.level == Level::Warn && found.what.contains(part), "{found:?}");
        }
    }

    #[test]
    fn databases_that_go_elsewhere() {
        let mut facts = facts();
        if let Ok(source) = &mut facts.source {
            source.keyspace = [0, 3].map(|db| Keyspace { db, keys: 1, expires: 0, field_expires: 0 }).into();
        }
        for (to, side, part, left) in [
            (3, Side::Gateway, "sends db 3 to 3, and db 0 too", 0),
            (20, Side::Destination, "[map] sends db 0 to 20", 3),
        ] {
            let mut config = config("fail");
            config.map.databases = [(0, to)].into();
            let errors: Vec<_> =
                assess(&facts, &config).into_iter().filter(|f| f.level == Level::Error).collect();
            assert_eq!((errors.len(), errors[0].side), (1, side), "{errors:?}");
            assert!(errors[0].what.contains(part), "{errors:?}");
            config.filter.databases = vec![left];
            assert!(assess(&facts, &config).iter().all(|f| f.level != Level::Error));
        }
    }

    #[test]
    fn servers_that_are_away() {
        let facts = Facts {
            source: Err(crate::Error::passing(Side::Source, "cannot connect to a:1")),
            destination: None,
            gateway: Gateway::default(),
        };
        assert!(facts.unreachable());
        let all = assess(&facts, &config("fail"));
        assert!(all.iter().any(|f| f.level == Level::Error && f.what.contains("cannot connect")), "{all:?}");
        assert!(all.iter().any(|f| f.level == Level::Warn && f.what.contains("only forwards")), "{all:?}");
    }
}

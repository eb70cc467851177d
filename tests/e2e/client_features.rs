//! What clients hold goes with them over a switch, whatever versions the two servers have.
//!
//! The pairs are made of the servers at hand: the one on PATH, and those under `CROSSFADE_SERVERS`. What one of the two lacks
//! is left out, and named.

use std::collections::BTreeSet;
use std::path::Path;

use crossfade::cli::demo::connection::{Connection, Reply};
use crossfade::cli::demo::servers::server_binary;

use crate::support::resp3::Client;
use crate::support::{Lab, Setup, eventually, version};

/// From old to new; the one on PATH has no name.
const SERVERS: [&str; 15] = [
    "redis-5.0",
    "redis-6.0",
    "redis-6.2",
    "redis-7.0",
    "",
    "redis-7.2",
    "redis-7.4",
    "redis-8.0",
    "redis-8.2",
    "redis-8.6",
    "redis-8.10",
    "valkey-8.0",
    "valkey-8.1",
    "valkey-9.0",
    "valkey-9.1",
];

const KEYS: usize = 300;
const LIBRARY: &str = "#!lua name=lib
redis.register_function('answer', function(keys, args) return 'function ' .. args[1] end)";

/// Each to the next, and to the newest.
fn pairs() -> Vec<(&'static str, &'static str)> {
    let there: Vec<_> = SERVERS
        .into_iter()
        .filter(|name| name.is_empty() || Path::new(&server_binary(name)).is_file())
        .collect();
    let newest = *there.last().unwrap_or(&"");
    let mut pairs: Vec<_> = there.windows(2).map(|two| (two[0], two[1])).collect();
    pairs.extend(there.iter().map(|old| (*old, newest)));
    pairs.sort_unstable();
    pairs.dedup();
    pairs
}

#[test]
fn h10_what_clients_hold_goes_over_a_switch_between_all_versions() {
    for (from, to) in pairs() {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        eprintln!("{from:?} -> {to:?}");
        runtime.unwrap().block_on(go(from, to));
    }
}

/// What both servers know.
#[derive(Debug, Clone, Copy)]
struct Known {
    /// Users, RESP3 and tracking.
    users: bool,
    /// Shard channels and functions.
    functions: bool,
}

async fn go(from: &'static str, to: &'static str) {
    let both = |redis: &str| version(from).since(redis, "7.2") && version(to).since(redis, "7.2");
    let known = Known { users: both("6.0"), functions: both("7.0") };
    for (known, what) in
        [(known.users, "users, RESP3, tracking"), (known.functions, "functions, shard channels")]
    {
        if !known {
            eprintln!("  left out: {what}");
        }
    }
    let mut lab = Setup { servers: [from, to], ..Setup::new() }.build().await;
    let mut client = Connection::open(&lab.gateway.address()).await.unwrap();
    for number in 0..KEYS {
        client.must(&["SET", &format!("key:{number}"), "x"]).await.unwrap();
    }
    if known.functions {
        client.must(&["FUNCTION", "LOAD", LIBRARY]).await.unwrap();
    }
    if known.users {
        for server in [&lab.source, &lab.destination] {
            server.call(&["ACL", "SETUSER", "guest", "on", ">pw", "~guest:*", "+@all"]).await.unwrap();
        }
    }
    lab.mirror().await;
    for turn in 0..2 {
        let held = Held::begin(&lab, known, turn).await;
        if turn == 0 {
            lab.cutover().await;
        } else {
            lab.rollback().await;
        }
        held.end(&lab).await;
    }
    lab.in_step().await;
    for key in ["guest:0", "silent:0", "silent:1", "queued:0", "queued:1"] {
        let (here, there) = (lab.source.call(&["GET", key]).await, lab.destination.call(&["GET", key]).await);
        assert_eq!(here.unwrap(), there.unwrap(), "{key}");
    }
}

/// Clients, each in the middle of something.
struct Held {
    turn: usize,
    watches: Client,
    queues: Client,
    waits: Client,
    hears: Client,
    loads: Client,
    silent: Client,
    scans: Connection,
    cursor: String,
    found: BTreeSet<String>,
    tracks: Option<Client>,
    resp3: Option<Client>,
    guest: Option<Client>,
    known: Known,
}

const SCRIPT: &str = "return 'script ' .. ARGV[1]";
/// Its SHA-1.
const SHA: &str = "026dbc954754cb01807d474fa980f992a9e5a0c5";

impl Held {
    async fn begin(lab: &Lab, known: Known, turn: usize) -> Self {
        let address = lab.gateway.address();
        let open = async || Client::open_resp2(&address).await;
        let (mut watches, mut queues, mut waits) = (open().await, open().await, open().await);
        let (mut hears, mut loads, mut silent) = (open().await, open().await, open().await);
        assert_eq!(watches.ask(&["WATCH", "watched"]).await, "OK");
        assert_eq!(queues.ask(&["MULTI"]).await, "OK");
        assert_eq!(queues.ask(&["SET", &format!("queued:{turn}"), "1"]).await, "QUEUED");
        waits.queue(&["BLPOP", "queue", "0"]);
        waits.flush().await;
        hears.ask(&["SUBSCRIBE", "news"]).await;
        hears.ask(&["PSUBSCRIBE", "ne*"]).await;
        if known.functions {
            hears.ask(&["SSUBSCRIBE", "shard"]).await;
        }
        assert_eq!(loads.ask(&["SCRIPT", "LOAD", SCRIPT]).await, SHA);
        silent.queue(&["CLIENT", "REPLY", "OFF"]);
        silent.queue(&["APPEND", &format!("silent:{turn}"), "1"]);
        silent.flush().await;
        let (mut tracks, mut resp3, mut guest) = (None, None, None);
        if known.users {
            let mut client = Client::open(&address).await;
            assert_eq!(client.ask(&["CLIENT", "TRACKING", "ON"]).await, "OK");
            client.ask(&["GET", "tracked"]).await;
            tracks = Some(client);
            let mut client = Client::open(&address).await;
            client.ask(&["SELECT", "2"]).await;
            client.ask(&["CLIENT", "SETNAME", "named"]).await;
            client.ask(&["HSET", "hash", "field", "value"]).await;
            resp3 = Some(client);
            let mut client = open().await;
            assert_eq!(client.ask(&["AUTH", "guest", "pw"]).await, "OK");
            guest = Some(client);
        }
        let scans = Connection::open(&address).await.unwrap();
        let mut held = Self {
            turn,
            watches,
            queues,
            waits,
            hears,
            loads,
            silent,
            scans,
            cursor: "0".into(),
            found: BTreeSet::new(),
            tracks,
            resp3,
            guest,
            known,
        };
        for _ in 0..3 {
            held.scan().await;
        }
        let (active, _) = lab.active().await;
        eventually("it waits", async || active.info("blocked_clients").await.unwrap() == "1").await;
        held
    }

    async fn scan(&mut self) {
        let reply = self.scans.must(&["SCAN", &self.cursor, "MATCH", "key:*", "COUNT", "20"]).await.unwrap();
        let [cursor, keys] = reply.items() else { panic!("{reply:?}") };
        self.cursor = String::from_utf8(cursor.bytes().unwrap().to_vec()).unwrap();
        self.found.extend(keys.items().iter().map(Reply::brief));
    }

    async fn end(mut self, lab: &Lab) {
        let (turn, mut other) = (self.turn, Client::open_resp2(&lab.gateway.address()).await);
        // As after a conflict: nobody knows whether the keys have changed.
        self.watches.ask(&["MULTI"]).await;
        self.watches.ask(&["SET", "watched", "1"]).await;
        assert_eq!(self.watches.ask(&["EXEC"]).await, "nil");
        self.watches.ask(&["WATCH", "watched"]).await;
        self.watches.ask(&["MULTI"]).await;
        self.watches.ask(&["SET", "watched", "1"]).await;
        assert_eq!(self.watches.ask(&["EXEC"]).await, "[OK]");

        assert_eq!(self.queues.ask(&["EXEC"]).await, "[OK]");
        assert_eq!(other.ask(&["GET", &format!("queued:{turn}")]).await, "1");

        assert_eq!(other.ask(&["RPUSH", "queue", "element"]).await, "1");
        assert_eq!(self.waits.frame().await.text, "[queue element]");

        assert_eq!(other.ask(&["PUBLISH", "news", "x"]).await, "2");
        assert_eq!(self.hears.frame().await.text, "[message news x]");
        assert_eq!(self.hears.frame().await.text, "[pmessage ne* news x]");
        if self.known.functions {
            assert_eq!(other.ask(&["SPUBLISH", "shard", "y"]).await, "1");
            assert_eq!(self.hears.frame().await.text, "[smessage shard y]");
            assert_eq!(self.loads.ask(&["FCALL", "answer", "0", "z"]).await, "function z");
        }
        assert_eq!(self.loads.ask(&["EVALSHA", SHA, "0", "a"]).await, "script a");

        self.silent.queue(&["APPEND", &format!("silent:{turn}"), "2"]);
        self.silent.queue(&["CLIENT", "REPLY", "ON"]);
        self.silent.flush().await;
        assert_eq!(self.silent.frame().await.text, "OK");
        assert_eq!(self.silent.ask(&["GET", &format!("silent:{turn}")]).await, "12");

        while self.cursor != "0" {
            self.scan().await;
        }
        assert_eq!(self.found.len(), KEYS, "a scan that was begun before the switch names every key");

        if let Some(client) = &mut self.tracks {
            assert_eq!(client.push().await, "[invalidate nil]");
            client.ask(&["GET", "tracked"]).await;
            other.ask(&["SET", "tracked", "1"]).await;
            assert_eq!(client.push().await, "[invalidate [tracked]]");
        }
        if let Some(client) = &mut self.resp3 {
            assert_eq!(client.ask(&["CLIENT", "GETNAME"]).await, "named");
            assert!(client.ask(&["HELLO"]).await.contains("proto 3"));
            assert!(client.ask(&["HGETALL", "hash"]).await.contains("field value"));
        }
        if let Some(client) = &mut self.guest {
            assert_eq!(client.ask(&["ACL", "WHOAMI"]).await, "guest");
            assert_eq!(client.ask(&["SET", "guest:0", "1"]).await, "OK");
            assert!(client.ask(&["SET", "other", "1"]).await.starts_with("-NOPERM"));
        }
    }
}

//! Real servers, and what their data looks like from outside.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::BytesMut;
use crossfade::error::Side;
use crossfade::mirror::expiry::{true_expiry, true_field_expiry};
use crossfade::resp::value::{Decoder, Value};
use crossfade::resp::write;
use crossfade::server::Endpoint;

/// A server on a unix socket in a folder of its own.
pub(crate) struct Server {
    child: Child,
    folder: tempfile::TempDir,
}

impl Server {
    pub(crate) fn start(name: &str) -> Self {
        Self::start_with(name, &[])
    }

    pub(crate) fn start_with(name: &str, args: &[&str]) -> Self {
        let binary = binary(name);
        let folder = tempfile::tempdir().unwrap();
        // Not an argument "--save ''": 2.8 does not take an empty one.
        std::fs::write(folder.path().join("conf"), "save \"\"\n").unwrap();
        let child = Command::new(&binary)
            .arg(folder.path().join("conf"))
            .args(["--port", "0", "--unixsocket"])
            .arg(folder.path().join("s"))
            .arg("--dir")
            .arg(folder.path())
            .arg("--logfile")
            .arg(folder.path().join("log"))
            .args(args)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| panic!("{}: {error}", binary.display()));
        let server = Self { child, folder };
        let deadline = Instant::now() + Duration::from_secs(20);
        while UnixStream::connect(server.socket()).is_err() {
            assert!(Instant::now() < deadline, "{} does not start", binary.display());
            std::thread::sleep(Duration::from_millis(10));
        }
        server
    }

    /// Ends it as a crash would.
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("s")
    }

    pub(crate) fn connect(&self) -> Connection {
        let stream = UnixStream::connect(self.socket()).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        Connection { stream, buf: BytesMut::new(), decoder: Decoder::default() }
    }

    pub(crate) fn endpoint(&self) -> Endpoint {
        Endpoint::parse(Side::Destination, &format!("unix://{}", self.socket().display())).unwrap()
    }

    /// What it logged.
    #[allow(dead_code, reason = "one of the two test binaries uses it")]
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    /// Its URL for a gateway.
    #[allow(dead_code, reason = "one of the two test binaries uses it")]
    pub(crate) fn url(&self) -> String {
        format!("unix://{}", self.socket().display())
    }

    /// Has it written to disk, and answers the file.
    pub(crate) fn save(&self) -> Vec<u8> {
        assert!(self.connect().call(&["SAVE"]).is_ok());
        std::fs::read(self.folder.path().join("dump.rdb")).unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn binary(name: &str) -> PathBuf {
    match std::env::var_os("CROSSFADE_SERVERS") {
        Some(folder) if !name.is_empty() => Path::new(&folder).join(name).join("redis-server"),
        _ => PathBuf::from("redis-server"),
    }
}

/// The servers that are there, of those named; at least the one on PATH.
pub(crate) fn servers(names: &[&'static str]) -> Vec<&'static str> {
    let mut found: Vec<_> =
        names.iter().copied().filter(|name| binary(name).is_absolute() && binary(name).exists()).collect();
    if found.is_empty() {
        found.push("");
    }
    found
}

pub(crate) struct Connection {
    stream: UnixStream,
    buf: BytesMut,
    decoder: Decoder,
}

impl Connection {
    pub(crate) fn call<A: AsRef<[u8]>>(&mut self, args: &[A]) -> Value {
        let mut out = Vec::new();
        write::command(&mut out, args);
        self.stream.write_all(&out).unwrap();
        loop {
            if let Some(value) = self.decoder.next(&mut self.buf).unwrap() {
                return value;
            }
            let mut chunk = [0; 65536];
            let read = self.stream.read(&mut chunk).unwrap();
            assert!(
                read > 0,
                "the server closed the connection after {:?}",
                args[0].as_ref().escape_ascii().to_string()
            );
            self.buf.extend_from_slice(&chunk[..read]);
        }
    }

    /// As [`Connection::call`]; an error is a failure of the test.
    pub(crate) fn must<A: AsRef<[u8]>>(&mut self, args: &[A]) -> Value {
        let reply = self.call(args);
        if let Value::Error(text) = &reply {
            let args: Vec<String> = args
                .iter()
                .map(|arg| arg.as_ref()[..arg.as_ref().len().min(60)].escape_ascii().to_string())
                .collect();
            panic!("{}: {}", args.join(" "), text.escape_ascii());
        }
        reply
    }

    /// A line of words.
    pub(crate) fn line(&mut self, line: &str) -> Value {
        self.call(&line.split(' ').collect::<Vec<_>>())
    }
}

/// What a key looks like: type and value as text that does not depend on the encoding, expiry in unix ms.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Look {
    pub(crate) value: String,
    pub(crate) expiry: i64,
}

/// Everything in these dbs, a gateway's own keys apart.
pub(crate) fn look(connection: &mut Connection, dbs: &[u32]) -> BTreeMap<(u32, Vec<u8>), Look> {
    let mut found = BTreeMap::new();
    for db in dbs {
        connection.must(&["SELECT", &db.to_string()]);
        let keys = list(connection.must(&["KEYS", "*"]));
        for key in keys.into_iter().filter(|key| !key.starts_with(b"crossfade:")) {
            // One that expired since KEYS is none.
            if let Some(looks) = look_at(connection, &key) {
                found.insert((*db, key), looks);
            }
        }
    }
    found
}

fn look_at(connection: &mut Connection, key: &[u8]) -> Option<Look> {
    let kind = text(&connection.must(&[b"TYPE", key]));
    let value = match kind.as_str() {
        "none" => return None,
        "string" => short(&bytes(connection.must(&[b"GET", key]))),
        "list" => {
            let items: Vec<String> = list(connection.must(&[b"LRANGE", key, b"0", b"-1"]))
                .iter()
                .map(|item| short(item))
                .collect();
            items.join(",")
        }
        "set" => {
            let mut items: Vec<String> =
                list(connection.must(&[b"SMEMBERS", key])).iter().map(|item| short(item)).collect();
            items.sort();
            items.join(",")
        }
        "hash" => {
            let all = list(connection.must(&[b"HGETALL", key]));
            if all.is_empty() {
                return None; // all of its fields have expired, and nobody has removed it yet
            }
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as i64;
            let mut items: Vec<String> = all
                .chunks(2)
                .filter_map(|pair| {
                    let expiry = match connection.call(&[b"HPEXPIRETIME", key, b"FIELDS", b"1", &pair[0]]) {
                        Value::Array(at) => at[0].as_i64().unwrap_or(-1),
                        _ => -1,
                    };
                    let expiry = if expiry > 0 { true_field_expiry(expiry as u64) as i64 } else { expiry };
                    // Nobody has removed it yet.
                    let live = expiry < 0 || expiry > now;
                    live.then(|| format!("{}={} ({expiry})", short(&pair[0]), short(&pair[1])))
                })
                .collect();
            if items.is_empty() {
                return None;
            }
            items.sort();
            items.join(",")
        }
        "zset" => {
            let all = list(connection.must(&[b"ZRANGE", key, b"0", b"-1", b"WITHSCORES"]));
            // 0 and -0 are one score, and 2.8 writes them apart.
            let score = |text: &[u8]| std::str::from_utf8(text).unwrap().parse::<f64>().unwrap() + 0.0;
            let items: Vec<String> =
                all.chunks(2).map(|pair| format!("{}={}", short(&pair[0]), score(&pair[1]))).collect();
            items.join(",")
        }
        "stream" => {
            let entries = format!("{:?}", flat(&connection.must(&[b"XRANGE", key, b"-", b"+"])));
            let told = match connection.call(&[&b"XINFO"[..], b"STREAM", key, b"FULL", b"COUNT", b"0"]) {
                Value::Array(told) => facts(&told),
                _ => {
                    let Value::Array(groups) = connection.must(&[&b"XINFO"[..], b"GROUPS", key]) else {
                        panic!()
                    };
                    groups.iter().map(|group| format!("{:?}", flat(group))).collect()
                }
            };
            format!("{entries} {told}")
        }
        "array" => {
            let told = flat(&connection.must(&[b"ARINFO", key]));
            let scanned = flat(&connection.must(&[&b"ARSCAN"[..], key, b"0", b"200000000000"]));
            format!("{scanned:?} {told:?}")
        }
        "vectorset" => {
            let mut items: Vec<String> = list(connection.must(&[&b"VRANDMEMBER"[..], key, b"1000000"]))
                .iter()
                .map(|item| {
                    let vector = flat(&connection.must(&[&b"VEMB"[..], key, item]));
                    let attributes = text(&connection.must(&[&b"VGETATTR"[..], key, item]));
                    format!("{}={vector:?} {attributes}", short(item))
                })
                .collect();
            items.sort();
            items.join(",")
        }
        other => panic!("a key of type {other}"),
    };
    let expiry = match connection.call(&[b"PEXPIRETIME", key]) {
        Value::Integer(at) => at,
        _ => match connection.must(&[b"PTTL", key]) {
            Value::Integer(left) if left >= 0 => now_ms() + left,
            _ => -1,
        },
    };
    let expiry = if expiry > 0 { true_expiry(expiry as u64) as i64 } else { expiry };
    Some(Look { value: format!("{kind}: {value}"), expiry })
}

pub(crate) fn now_ms() -> i64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_millis() as i64
}

/// XINFO STREAM FULL without what is layout, and without times of the last look at it.
fn facts(told: &[Value]) -> String {
    let mut facts = Vec::new();
    for pair in told.chunks(2) {
        let name = text(&pair[0]);
        match name.as_str() {
            "radix-tree-keys" | "radix-tree-nodes" | "entries" | "seen-time" | "active-time" => {}
            // Counters of a feature that 8.6 adds, and that no older server has.
            name if name.starts_with("idmp") || name.starts_with("pids") || name.starts_with("iids") => {}
            // Redis 8 counts those that are free to be claimed.
            "nacked-count" => {}
            "groups" | "consumers" => {
                let Value::Array(items) = &pair[1] else { panic!() };
                let mut items: Vec<String> = items
                    .iter()
                    .map(|item| match item {
                        Value::Array(item) => facts_of(item),
                        _ => panic!(),
                    })
                    .collect();
                items.sort();
                facts.push(format!("{name}: [{}]", items.join("; ")));
            }
            _ => facts.push(format!("{name}: {:?}", flat(&pair[1]))),
        }
    }
    facts.join(", ")
}

fn facts_of(told: &[Value]) -> String {
    facts(told)
}

fn flat(value: &Value) -> Vec<String> {
    match value {
        Value::Array(items) => items.iter().flat_map(flat).collect(),
        other => vec![text(other)],
    }
}

fn text(value: &Value) -> String {
    match value {
        Value::Simple(bytes) | Value::Bulk(bytes) | Value::Error(bytes) => short(bytes),
        Value::Integer(n) => n.to_string(),
        other => format!("{other:?}"),
    }
}

/// Long strings by length and checksum.
fn short(bytes: &[u8]) -> String {
    if bytes.len() > 80 {
        format!("<{} bytes, {:016x}>", bytes.len(), crossfade::rdb::checksum(bytes))
    } else {
        bytes.escape_ascii().to_string()
    }
}

fn bytes(value: Value) -> Vec<u8> {
    match value {
        Value::Bulk(bytes) => bytes.to_vec(),
        other => panic!("{other:?}"),
    }
}

fn list(value: Value) -> Vec<Vec<u8>> {
    match value {
        Value::Array(items) => items.into_iter().map(bytes).collect(),
        other => panic!("{other:?}"),
    }
}

/// What differs, for a person.
pub(crate) fn differences(
    a: &BTreeMap<(u32, Vec<u8>), Look>,
    b: &BTreeMap<(u32, Vec<u8>), Look>,
) -> Vec<String> {
    let mut all = Vec::new();
    for ((db, key), look) in a {
        let name = format!("db {db} {}", short(key));
        match b.get(&(*db, key.clone())) {
            None => all.push(format!("{name} is missing")),
            // Servers before 7.0 tell the time left, so the expiry is only known to the moment.
            Some(other) if look.value == other.value && (look.expiry - other.expiry).abs() < 2000 => {}
            Some(other) => all.push(format!("{name}\n    {look:?}\n    {other:?}")),
        }
    }
    all.extend(
        b.keys()
            .filter(|key| !a.contains_key(*key))
            .map(|(db, key)| format!("db {db} {} is too much", short(key))),
    );
    all
}

//! What the gateway believes about the wire and about commands, against real servers: how inline commands are
//! split, which bytes are refused and with what words, and which arguments are keys.
//!
//! `redis-server` is taken from PATH. `CROSSFADE_SERVERS` may name a folder of further servers, each as
//! `NAME/redis-server`; the key positions are then compared with every one of them.

#![allow(clippy::unwrap_used)] // clippy takes helpers of an integration test for library code

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use crossfade::command::{self, Access};
use crossfade::resp::scan::{CommandScanner, Limits, split_inline};
use crossfade::resp::value::{Decoder, Value};
use crossfade::resp::write;

/// A server on a unix socket in a folder of its own.
struct Server {
    child: Child,
    folder: tempfile::TempDir,
}

impl Server {
    fn start(binary: &Path) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let child = Command::new(binary)
            .args(["--port", "0", "--save", "", "--unixsocket"])
            .arg(folder.path().join("s"))
            .arg("--dir")
            .arg(folder.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| panic!("{}: {error}", binary.display()));
        let server = Self { child, folder };
        let deadline = Instant::now() + Duration::from_secs(20);
        while UnixStream::connect(server.folder.path().join("s")).is_err() {
            assert!(Instant::now() < deadline, "{} does not start", binary.display());
            std::thread::sleep(Duration::from_millis(20));
        }
        server
    }

    fn connect(&self) -> Connection {
        let stream = UnixStream::connect(self.folder.path().join("s")).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        Connection { stream, buf: BytesMut::new(), decoder: Decoder::default() }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

struct Connection {
    stream: UnixStream,
    buf: BytesMut,
    decoder: Decoder,
}

impl Connection {
    fn send(&mut self, bytes: &[u8]) -> Value {
        self.stream.write_all(bytes).unwrap();
        loop {
            if let Some(value) = self.decoder.next(&mut self.buf).unwrap() {
                return value;
            }
            let mut chunk = [0; 16384];
            let read = self.stream.read(&mut chunk).unwrap();
            assert!(read > 0, "the server closed the connection");
            self.buf.extend_from_slice(&chunk[..read]);
        }
    }

    fn call<A: AsRef<[u8]>>(&mut self, args: &[A]) -> Value {
        let mut out = Vec::new();
        write::command(&mut out, args);
        self.send(&out)
    }
}

fn on_path() -> PathBuf {
    PathBuf::from("redis-server")
}

/// The servers to compare with: the one on PATH, and those of `CROSSFADE_SERVERS` from 7.0 on.
fn servers() -> Vec<PathBuf> {
    let mut found = vec![on_path()];
    if let Some(folder) = std::env::var_os("CROSSFADE_SERVERS") {
        for name in ["redis-7.2", "redis-7.4", "redis-8.0", "redis-8.2", "redis-8.6", "redis-8.10"]
            .into_iter()
            .chain(["valkey-8.0", "valkey-8.1", "valkey-9.0", "valkey-9.1"])
        {
            let binary = Path::new(&folder).join(name).join("redis-server");
            if binary.exists() {
                found.push(binary);
            }
        }
    }
    found
}

#[test]
fn inline_commands_are_split_as_the_server_splits_them() {
    let server = Server::start(&on_path());
    let lines: &[&[u8]] = &[
        b"a b  c",
        b"\ta\t b",
        b"\"a b\" 'c d'",
        b"\"\\x41\\x4a\\x4A\\x\\xg1\\x4\"",
        b"\"\\n\\r\\t\\b\\a\\\\\\\"\\q\"",
        b"'\\n\\x41\\'b' 'it\\'s'",
        b"a\"b\"",
        b"a'b'c",
        b"\"a\"\"b\"",
        b"\"a\"b",
        b"'a'b",
        b"\"a",
        b"'a",
        b"\"a\\",
        b"\"a\\\"",
        b"''",
        b"\"\"",
        b"\"\" ''",
        b"a\\ b",
        b"\"\xff\xfe\" \xff",
        b"a\x0bb\x0cc",
        b"\"a\"\x0bb",
        b"x\"\\\"",
        b"\"a\\'b\" 'c\\\"d'",
    ];
    for line in lines {
        let mut text = b"EVAL \"return ARGV\" 0 ".to_vec();
        text.extend_from_slice(line);
        let ours = split_inline(&text);
        text.extend_from_slice(b"\r\n");
        let theirs = match server.connect().send(&text) {
            Value::Array(words) => {
                Some(words.iter().map(|word| word.as_bytes().unwrap().to_vec()).collect::<Vec<_>>())
            }
            Value::Error(error) => {
                assert_eq!(&error[..], b"ERR Protocol error: unbalanced quotes in request");
                None
            }
            other => panic!("{other:?}"),
        };
        let ours = ours.map(|words| words[3..].to_vec());
        assert_eq!(ours, theirs, "{}", line.escape_ascii());
    }
}

#[test]
fn refusals_have_the_words_of_the_server() {
    let server = Server::start(&on_path());
    let long = "1".repeat(70_000);
    let cases = [
        "*2147483648\r\n".to_owned(),
        "*01\r\n".to_owned(),
        "*+1\r\n".to_owned(),
        "*-0\r\n".to_owned(),
        "*\r\n".to_owned(),
        "*1 \r\n".to_owned(),
        "*abc\r\n".to_owned(),
        "*99999999999999999999\r\n".to_owned(),
        "*1\r\n$01\r\n".to_owned(),
        "*1\r\n$-1\r\n".to_owned(),
        "*1\r\n$\r\n".to_owned(),
        "*1\r\n$536870913\r\n".to_owned(),
        "*2\r\n$4\r\nECHO\r\n$-1\r\n".to_owned(),
        "*1\r\nPING\r\n".to_owned(),
        "*1\r\n:1\r\n".to_owned(),
        "echo \"a\r\n".to_owned(),
        "echo 'a'b\r\n".to_owned(),
        format!("*{long}"),
        format!("*1\r\n${long}"),
        long.clone(),
    ];
    for text in cases {
        let ours = CommandScanner::default().next(text.as_bytes(), &Limits::default()).unwrap_err();
        let theirs = server.connect().send(text.as_bytes()).error().unwrap();
        assert_eq!(format!("ERR {ours}"), theirs, "{:.60}", text.escape_default());
    }
    // What is passed over, and what is not checked.
    for text in ["*0\r\nPING\r\n", "*-1\r\nPING\r\n", "*-5\r\nPING\r\n", "\r\nPING\r\n", "*1\r\n$4\r\nPINGxx"]
    {
        let mut rest = text.as_bytes();
        let name = loop {
            let frame = CommandScanner::default().next(rest, &Limits::default()).unwrap().unwrap();
            if frame.argc > 0 {
                break if frame.inline { b"PING" } else { &rest[frame.name] };
            }
            rest = &rest[frame.len..];
        };
        assert_eq!(name, b"PING");
        assert_eq!(server.connect().send(text.as_bytes()).as_str(), Some("PONG"), "{text:?}");
    }
}

/// Calls whose keys are compared with `COMMAND GETKEYS`. A server that does not know the command, or the
/// form, is passed over; each line must be known to one server at least.
const CALLS: &str = "
GET a
SET a b EX 5
SET a b GET
MGET a b c
MSET a 1 b 2
MSETNX a 1 b 2
DEL a b c
UNLINK a
EXISTS a b
TOUCH a b
EXPIRE a 5 NX
COPY a b DB 1 REPLACE
RENAME a b
MOVE a 1
SORT a
SORT a BY w_* LIMIT 0 5 GET # GET o_* ASC ALPHA STORE dst
SORT a STORE x STORE y
SORT a BY store GET store STORE store
SORT_RO a BY w_* GET o_*
BITOP AND dst a b c
BITFIELD a GET u8 0
PFCOUNT a b
PFMERGE a b c
PFMERGE a
LCS a b LEN
LMOVE a b LEFT RIGHT
BLMOVE a b LEFT RIGHT 0
LMOVEM a b LEFT RIGHT COUNT 2 OBO
BLMOVEM a b LEFT RIGHT 0 COUNT 2 OBO
RPOPLPUSH a b
BRPOPLPUSH a b 0
LMPOP 2 a b LEFT COUNT 3
BLMPOP 0 2 a b LEFT
BLPOP a b c 0
BRPOP a 0
ZMPOP 1 a MIN
BZMPOP 0 2 a b MAX COUNT 2
BZPOPMIN a b 0
ZUNIONSTORE dst 2 a b WEIGHTS 1 2 AGGREGATE MAX
ZINTERSTORE dst 1 a
ZDIFFSTORE dst 3 a b c
ZUNION 2 a b WITHSCORES
ZINTER 2 a b
ZDIFF 2 a b
ZINTERCARD 2 a b LIMIT 1
SINTERCARD 2 a b LIMIT 1
SDIFFCARD 2 a b
SUNIONCARD 2 a b
ZRANGESTORE dst src 0 -1
ZADD a GT CH 1 m
ZRANGE a 0 -1
SINTERSTORE dst a b
SUNIONSTORE dst a
SDIFF a b c
SMOVE a b m
EVAL x 2 a b arg
EVAL_RO x 1 a
EVALSHA x 1 a
FCALL f 2 a b c
FCALL_RO f 1 a
XADD s * f v
XADD s NOMKSTREAM MAXLEN ~ 5 * f v
XREAD STREAMS a 0
XREAD COUNT 1 BLOCK 5 STREAMS a b 0 0
XREAD MAXCOUNT 5 STREAMS a b 0 0
XREADGROUP GROUP g c COUNT 1 BLOCK 5 NOACK STREAMS a b > >
XREADGROUP GROUP streams streams STREAMS streams >
XREADGROUP GROUP g c CLAIM 5 STREAMS a >
XGROUP CREATE a g $ MKSTREAM
XGROUP DESTROY a g
XINFO STREAM a FULL
XINFO CONSUMERS a g
XCLAIM a g c 5 1-1
XAUTOCLAIM a g c 5 0
XACKDEL a g KEEPREF IDS 1 1-1
XDELEX a IDS 1 1-1
XPENDING a g - + 5
XTRIM a MAXLEN 5
XSETID a 5-5
GEOADD a 1 2 m
GEORADIUS a 0 0 1 m
GEORADIUS a 0 0 1 m COUNT 5 STORE dst
GEORADIUS a 0 0 1 m STOREDIST dst
GEORADIUSBYMEMBER a m 1 m STORE dst
GEORADIUS_RO a 0 0 1 m
GEOSEARCH a FROMMEMBER m BYRADIUS 1 m
GEOSEARCHSTORE dst src FROMMEMBER m BYRADIUS 1 m
MIGRATE h 1 k 0 5
MIGRATE h 1 k 0 5 COPY REPLACE AUTH pass
MIGRATE h 1  0 5 KEYS a b c
MIGRATE h 1  0 5 REPLACE AUTH2 user KEYS KEYS a
MIGRATE h 1  0 5 AUTH KEYS KEYS a b
RESTORE k 0 payload REPLACE
DUMP k
OBJECT ENCODING k
OBJECT FREQ k
MEMORY USAGE k SAMPLES 5
HSET k f v
HEXPIRE k 5 FIELDS 1 f
HSETEX k FXX EX 5 FIELDS 1 f v
HGETEX k EX 5 FIELDS 1 f
HGETDEL k FIELDS 1 f
MSETEX 2 a 1 b 2 EX 5
DELEX k IFEQ v
DELIFEQ k v
INCREX k BYINT 5
DIGEST k
VADD v VALUES 1 1.0 m
VSIM v ELE m
ARSET a 0 x
ARGET a 0
WATCH a b
SETEX a 5 v
GETEX a PERSIST
GETDEL a
SUBSTR a 0 1
TYPE a
PFADD a b
PFDEBUG GETREG a
SSUBSCRIBE a b
SPUBLISH a b
";

#[test]
fn keys_are_those_of_command_getkeys() {
    let mut calls: Vec<(&str, bool)> =
        CALLS.lines().filter(|line| !line.is_empty()).map(|line| (line, false)).collect();
    let all = servers();
    for binary in &all {
        let server = Server::start(binary);
        let mut connection = server.connect();
        for (line, known) in &mut calls {
            let args: Vec<&str> = line.split(' ').collect();
            let mut question = vec!["COMMAND", "GETKEYS"];
            question.extend(&args);
            let theirs = match connection.call(&question) {
                Value::Error(error) => {
                    let text = String::from_utf8_lossy(&error);
                    let passed =
                        ["Invalid command", "no key arguments", "Invalid number", "Invalid arguments"];
                    assert!(passed.iter().any(|known| text.contains(known)), "{line}: {text}");
                    if text.contains("no key arguments") {
                        *known = true;
                    }
                    continue;
                }
                reply => reply.into_array().unwrap(),
            };
            *known = true;
            let mut theirs: Vec<&str> = theirs.iter().map(|key| key.as_str().unwrap()).collect();
            let spec =
                command::lookup(args[0].as_bytes()).unwrap_or_else(|| panic!("{line}: not in the table"));
            // GETKEYS lists channels of shards too.
            let mut ours = Vec::new();
            command::each_key(spec, &args, |at, _: Access| ours.push(args[at])).unwrap();
            theirs.sort_unstable();
            ours.sort_unstable();
            // The server lists a key twice that two of its specifications name.
            theirs.dedup();
            ours.dedup();
            assert_eq!(ours, theirs, "{line} at {}", binary.display());
        }
    }
    if all.len() > 5 {
        let unseen: Vec<&str> = calls.iter().filter(|call| !call.1).map(|call| call.0).collect();
        assert!(unseen.is_empty(), "no server knows {unseen:?}");
    }
}

#[test]
fn the_table_has_every_command_of_the_server() {
    for binary in servers() {
        let server = Server::start(&binary);
        let rows = server.connect().call(&["COMMAND"]).into_array().unwrap();
        assert!(rows.len() > 200);
        for row in &rows {
            let row = row.as_array().unwrap();
            let name = row[0].as_str().unwrap();
            let spec = command::lookup(name.as_bytes())
                .unwrap_or_else(|| panic!("{name} of {} is not in the table", binary.display()));
            for sub in row.get(9).and_then(Value::as_array).unwrap_or_default() {
                let full = sub.as_array().unwrap()[0].as_str().unwrap();
                let name = full.split_once('|').unwrap().1;
                assert!(command::subcommand(spec, name.as_bytes()).is_some(), "{full}");
            }
        }
    }
}

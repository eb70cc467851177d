//! The lines of `writes.txt`: which a server knows, and how they are run.

use std::collections::BTreeSet;
use std::time::{SystemTime, UNIX_EPOCH};

use crossfade::cli::demo::connection::{Connection, Reply};

use crate::versions::{Needs, Version};

/// A line, and what it takes to know it.
struct Line {
    source: Needs,
    destination: Needs,
    text: &'static str,
}

/// All lines, in order.
fn lines() -> Vec<Line> {
    let mut all = Vec::new();
    let mut needs = None;
    for text in include_str!("writes.txt").lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let Some(versions) = text.strip_prefix("@ ") else {
            let (source, destination) = needs.expect("a section begins before its lines");
            all.push(Line { source, destination, text });
            continue;
        };
        let words: Vec<&str> = versions.split(' ').collect();
        let source = Needs::parse(words[0], words[1]);
        needs = Some(match words[..] {
            [_, _, "to", redis, valkey] => (source, Needs::parse(redis, valkey)),
            [_, _] => (source, source),
            _ => panic!("{text}"),
        });
    }
    all
}

/// A client that runs the lines, round after round.
pub struct Writer {
    connection: Connection,
    lines: Vec<&'static str>,
    round: u32,
    /// Commands that were run; with their subcommand where that is a command of its own.
    pub ran: BTreeSet<String>,
    /// Lines that were answered with an error: the table is wrong.
    pub refused: BTreeSet<String>,
}

impl Writer {
    pub fn new(connection: Connection, source: Version, destination: Version) -> Self {
        let known = |line: &Line| source.has(line.source) && destination.has(line.destination);
        let lines = lines().into_iter().filter(known).map(|line| line.text).collect();
        Self { connection, lines, round: 0, ran: BTreeSet::new(), refused: BTreeSet::new() }
    }

    /// Goes on over another connection.
    pub fn reconnected(&mut self, connection: Connection) {
        self.connection = connection;
    }

    /// All lines once. Every reply but an error is fine; what the line does is judged by comparing the servers.
    pub async fn round(&mut self) {
        self.round += 1;
        for line in self.lines.clone() {
            let args = words(line, self.round);
            self.run(&args).await;
        }
        self.with_answers().await;
    }

    async fn run(&mut self, args: &[Vec<u8>]) -> Reply {
        let name = String::from_utf8_lossy(&args[0]).to_lowercase();
        if let Some(sub) = args.get(1) {
            self.ran.insert(format!("{name}|{}", String::from_utf8_lossy(sub).to_lowercase()));
        }
        self.ran.insert(name);
        let shown = || args.iter().map(|arg| arg.escape_ascii().to_string()).collect::<Vec<_>>().join(" ");
        let reply = self.connection.call(args).await.unwrap_or_else(|error| panic!("{}: {error}", shown()));
        for reply in std::iter::once(&reply).chain(reply.items()) {
            if let Reply::Error(text) = reply {
                self.refused.insert(format!("{}: {}", shown(), text.escape_ascii()));
            }
        }
        reply
    }

    /// What takes something from the answer to an earlier command.
    async fn with_answers(&mut self) {
        let round = self.round;
        let key = format!("restored:{round}").into_bytes();
        let command = |words: &[&[u8]]| words.iter().map(|word| word.to_vec()).collect::<Vec<_>>();
        let set = format!("set:{round}");
        let payload = self.run(&command(&[b"DUMP", set.as_bytes()])).await;
        let payload = payload.bytes().unwrap_or_default().to_vec();
        for ttl in [&b"0"[..], b"1000000"] {
            self.run(&command(&[b"DEL", &key])).await;
            self.run(&command(&[b"RESTORE", &key, ttl, &payload])).await;
        }
        let text = b"redis.call('SET', KEYS[1], 'by its hash') return redis.call('EXPIRE', KEYS[1], 1000)";
        let sha = self.run(&command(&[b"SCRIPT", b"LOAD", text])).await;
        let sha = sha.bytes().unwrap_or_default().to_vec();
        for nth in 0..2 {
            let key = format!("lua:sha:{nth}:{round}");
            self.run(&command(&[b"EVALSHA", &sha, b"1", key.as_bytes()])).await;
        }
        if self.lines.iter().any(|line| line.starts_with("FUNCTION")) {
            let payload = self.run(&command(&[b"FUNCTION", b"DUMP"])).await;
            let payload = payload.bytes().unwrap_or_default().to_vec();
            self.run(&command(&[b"FUNCTION", b"FLUSH"])).await;
            self.run(&command(&[b"FUNCTION", b"RESTORE", &payload])).await;
        }
    }

    /// Empties the source, and writes a little afterwards.
    pub async fn flush_all(&mut self) {
        self.run(&[b"FLUSHALL".to_vec()]).await;
        self.run(&[b"SET".to_vec(), b"after".to_vec(), b"v".to_vec()]).await;
    }
}

/// The words of a line.
fn words(line: &str, round: u32) -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    let mut rest = line;
    while !rest.is_empty() {
        let (word, left) = match rest.strip_prefix('"') {
            None => rest.split_once(' ').unwrap_or((rest, "")),
            Some(quoted) => {
                let end = (0..quoted.len())
                    .find(|at| {
                        quoted.as_bytes()[*at] == b'"' && (*at == 0 || quoted.as_bytes()[at - 1] != b'\\')
                    })
                    .unwrap_or_else(|| panic!("a quote is missing: {line}"));
                (&quoted[..end], quoted[end + 1..].trim_start())
            }
        };
        all.push(unescape(&fill_in(word, round)));
        rest = left;
    }
    all
}

fn fill_in(word: &str, round: u32) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_millis() as u64;
    let word = word.replace("{r}", &round.to_string());
    for (prefix, unit) in [("{ms+", 1), ("{s+", 1000)] {
        if let Some(number) = word.strip_prefix(prefix).and_then(|rest| rest.strip_suffix('}')) {
            return (now / unit + number.parse::<u64>().expect("a number")).to_string();
        }
    }
    word
}

fn unescape(word: &str) -> Vec<u8> {
    let mut out = Vec::new();
    let mut bytes = word.bytes();
    while let Some(byte) = bytes.next() {
        if byte != b'\\' {
            out.push(byte);
            continue;
        }
        match bytes.next() {
            Some(b'n') => out.push(b'\n'),
            Some(b'r') => out.push(b'\r'),
            Some(b'x') => {
                let digits = [bytes.next(), bytes.next()].map(|digit| digit.expect("two digits"));
                let digits = std::str::from_utf8(&digits).expect("digits").to_owned();
                out.push(u8::from_str_radix(&digits, 16).expect("hexadecimal digits"));
            }
            Some(other) => out.push(other),
            None => panic!("a lone backslash: {word}"),
        }
    }
    out
}

//! A connection to a server on behalf of clients: who it speaks for, and how it is opened.

use std::rc::Rc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::worker::Worker;
use super::{Active, ProxyOptions};
use crate::error::{Error, Side};
use crate::resp::scan::ReplyScanner;
use crate::resp::write;
use crate::server::Stream;

/// What a client authenticated with, as it sent it.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) struct Credentials {
    /// `None` for the one-argument form of AUTH.
    pub(super) user: Option<Bytes>,
    pub(super) password: Bytes,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Credentials({:?}, ***)", self.user)
    }
}

/// The connection state of a session that a shared connection can stand for.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub(super) struct Identity {
    pub(super) db: u32,
    pub(super) credentials: Option<Rc<Credentials>>,
    pub(super) resp3: bool,
}

/// An identity at one of the two servers.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub(super) side: Active,
    pub(super) identity: Identity,
    /// A lane for clients that send or fetch much at once; never set for a connection of the pool.
    pub(super) bulk: bool,
}

impl Key {
    pub(super) fn new(side: Active, identity: Identity) -> Self {
        Self { side, identity, bulk: false }
    }
}

/// A connection that is open and speaks for `key`.
#[derive(Debug)]
pub(super) struct Upstream {
    pub(super) stream: Stream,
    pub(super) key: Key,
    /// The server's id of this connection; 0 when it gives none (before Redis 5.0).
    pub(super) client_id: u64,
    /// The server's reply to HELLO, when one was sent.
    pub(super) hello: Option<Bytes>,
    /// The server said that it is loading its data.
    pub(super) loading: bool,
    /// The server said that it wants a password first.
    pub(super) locked: bool,
}

/// Why a connection could not be had.
#[derive(Debug)]
pub(super) enum DialError {
    /// The server refused what the client asked for; its error line, with CRLF, belongs to the client.
    Refused(Bytes),
    /// The server could not be reached or does not speak the protocol.
    Lost(Error),
}

impl std::fmt::Display for DialError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            DialError::Refused(line) => f.write_str(String::from_utf8_lossy(line).trim()),
            DialError::Lost(error) => error.fmt(f),
        }
    }
}

/// What a client is told whose command was not run, since its server stayed away for longer than commands wait.
pub(super) fn stayed_away(side: Side, wait: Duration) -> Vec<u8> {
    let mut out = Vec::new();
    let text =
        format!("ERR the {side} could not be reached within {wait:?}; the command was not run, try again");
    write::error(&mut out, text);
    out
}

fn side(active: Active) -> Side {
    match active {
        Active::Source => Side::Source,
        Active::Destination => Side::Destination,
    }
}

/// Opens a connection for `key`. `hello`: send HELLO even for RESP2, to have the server's answer.
pub(super) async fn dial(worker: &Worker, key: &Key, hello: bool) -> Result<Upstream, DialError> {
    let options = worker.options();
    let within = options.connect_timeout;
    let outcome = match tokio::time::timeout(within, attempt(options, key, hello)).await {
        Ok(outcome) => outcome,
        Err(_) => {
            let text = format!("no answer to a new connection in {within:?}");
            Err(DialError::Lost(Error::passing(side(key.side), text)))
        }
    };
    let reached = match &outcome {
        Ok(upstream) => !upstream.loading,
        Err(DialError::Refused(_)) => true,
        Err(DialError::Lost(_)) => false,
    };
    worker.note_reached(key.side, reached);
    outcome
}

async fn attempt(options: &ProxyOptions, key: &Key, hello: bool) -> Result<Upstream, DialError> {
    let endpoint = options
        .endpoint(key.side)
        .ok_or_else(|| DialError::Lost(Error::new(side(key.side), "no such server is configured")))?;
    let mut stream = endpoint.connect(options.connect_timeout).await.map_err(DialError::Lost)?;
    let identity = &key.identity;
    let mut out = BytesMut::new();
    let mut steps = Vec::new();
    let version: &[u8] = if identity.resp3 { b"3" } else { b"2" };
    match (identity.credentials.as_deref(), identity.resp3 || hello) {
        (Some(Credentials { user: Some(user), password }), true) => {
            write::command(&mut out, &[b"HELLO", version, b"AUTH", user, password]);
            steps.push(Answer::Hello);
        }
        // Not AUTH inside HELLO: servers answer the form without a user in words of its own.
        (Some(Credentials { user: None, password }), true) => {
            write::command(&mut out, &[b"AUTH", password.as_ref()]);
            steps.push(Answer::Ok);
            write::command(&mut out, &[b"HELLO".as_slice(), version]);
            steps.push(Answer::Hello);
        }
        (None, true) => {
            write::command(&mut out, &[b"HELLO".as_slice(), version]);
            steps.push(Answer::Hello);
        }
        (Some(Credentials { user: Some(user), password }), false) => {
            write::command(&mut out, &[b"AUTH", user.as_ref(), password]);
            steps.push(Answer::Ok);
        }
        (Some(Credentials { user: None, password }), false) => {
            write::command(&mut out, &[b"AUTH", password.as_ref()]);
            steps.push(Answer::Ok);
        }
        (None, false) => {}
    }
    if identity.db != 0 {
        write::command(&mut out, &[b"SELECT".as_slice(), identity.db.to_string().as_bytes()]);
        steps.push(Answer::Ok);
    }
    write::command(&mut out, &[b"CLIENT".as_slice(), b"ID"]);
    steps.push(Answer::Id);
    // A PING shows whether the server takes commands at all: "max number of clients reached" comes unasked.
    write::command(&mut out, &[b"PING"]);
    steps.push(Answer::Ping);

    let lost = |cause: std::io::Error| {
        DialError::Lost(
            Error::passing(side(key.side), "the connection broke while it was opened").because(cause),
        )
    };
    stream.write_all(&out).await.map_err(lost)?;
    let mut upstream =
        Upstream { stream, key: key.clone(), client_id: 0, hello: None, loading: false, locked: false };
    let mut buf = BytesMut::with_capacity(4096);
    for step in steps {
        let reply = read_reply(&mut upstream.stream, &mut buf).await.map_err(lost)?;
        let refused = reply.first() == Some(&b'-');
        if refused && reply.starts_with(b"-ERR max number of clients") {
            return Err(DialError::Lost(Error::passing(side(key.side), "the server takes no more clients")));
        }
        match step {
            Answer::Ok if refused => return Err(DialError::Refused(reply)),
            Answer::Hello if refused => return Err(DialError::Refused(reply)),
            Answer::Hello => upstream.hello = Some(reply),
            Answer::Id if !refused => {
                upstream.client_id = std::str::from_utf8(&reply[1..])
                    .ok()
                    .and_then(|text| text.trim().parse().ok())
                    .unwrap_or(0);
            }
            Answer::Ping => {
                upstream.loading = reply.starts_with(b"-LOADING");
                upstream.locked = reply.starts_with(b"-NOAUTH");
            }
            Answer::Ok | Answer::Id => {}
        }
    }
    if !buf.is_empty() {
        return Err(DialError::Lost(Error::new(side(key.side), "the server sent more replies than it owed")));
    }
    Ok(upstream)
}

enum Answer {
    Ok,
    Hello,
    Id,
    Ping,
}

/// Reads one whole reply.
pub(super) async fn read_reply(stream: &mut Stream, buf: &mut BytesMut) -> std::io::Result<Bytes> {
    let mut scanner = ReplyScanner::default();
    let mut scanned = 0;
    loop {
        let feed = scanner
            .feed(&buf[scanned..])
            .map_err(|error| std::io::Error::new(std::io::ErrorKind::InvalidData, error))?;
        scanned += feed.consumed;
        if feed.complete {
            return Ok(buf.split_to(scanned).freeze());
        }
        if stream.read_buf(buf).await? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
    }
}

/// Dials again and again until `wait` is over; refusals by the server end it at once.
pub(super) async fn dial_patiently(
    worker: &Worker,
    key: &Key,
    hello: bool,
    wait: Duration,
) -> Result<Upstream, DialError> {
    let end = tokio::time::Instant::now() + wait;
    let mut pause = Duration::from_millis(5);
    loop {
        match dial(worker, key, hello).await {
            Err(DialError::Lost(error)) if tokio::time::Instant::now() + pause < end => {
                tracing::debug!("{error}; trying again");
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(Duration::from_millis(250));
            }
            Ok(upstream) if upstream.loading && tokio::time::Instant::now() + pause < end => {
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(Duration::from_millis(250));
            }
            other => return other,
        }
    }
}

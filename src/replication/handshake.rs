//! What a replica says before it gets a snapshot or a stream (`replication.c`, `syncWithMaster`).

use std::io;
use std::time::Duration;

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::framing::{self, Header};
use super::position::is_replid;
use crate::error::{Error, Result, Side};
use crate::resp::value::Value;
use crate::resp::write;
use crate::server::{Client, Endpoint, Stream, passes};

/// The newest Valkey whose snapshots are read.
const KNOWN_VALKEY: &str = "9.1.0";

/// What to ask the source for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Ask {
    /// A snapshot and the stream behind it.
    Everything,
    /// The stream behind an offset of a history.
    Behind { replid: String, offset: u64 },
}

/// How to introduce ourselves.
#[derive(Debug, Clone)]
pub(super) struct Introduction {
    pub(super) listening_port: u16,
    /// Announce that we understand a transfer with an end mark.
    pub(super) diskless: bool,
    /// Ask for a snapshot without keys and functions.
    pub(super) empty_snapshot: bool,
    pub(super) connect_timeout: Duration,
    /// The longest silence.
    pub(super) idle_timeout: Duration,
}

/// What the source agrees to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Answer {
    /// A snapshot follows. The stream behind it begins with byte `offset + 1`.
    Full { replid: String, offset: u64 },
    /// The stream goes on behind the offset that was asked for, perhaps under another id.
    Continue { replid: Option<String> },
    /// The server knows only `SYNC`: a snapshot and a stream, but no offsets.
    Plain,
}

/// A connection on which we have introduced ourselves.
#[derive(Debug)]
pub(super) struct Attached {
    pub(super) stream: Stream,
    /// What was read from it and not used.
    pub(super) input: BytesMut,
    /// Whether the source will leave keys and functions out of the snapshot, having been asked to.
    pub(super) empty_snapshot: bool,
    side: Side,
    idle: Duration,
}

/// Connects, logs in and introduces us.
///
/// # Errors
/// Passing: not reachable, loading. Lasting: the login is refused.
pub(super) async fn introduce(endpoint: &Endpoint, how: &Introduction) -> Result<Attached> {
    let side = endpoint.side;
    let endpoint = Endpoint { db: 0, ..endpoint.clone() };
    let mut client = Client::open(&endpoint, how.connect_timeout).await?;
    if let Value::Error(text) = client.call(&["PING"]).await? {
        let text = String::from_utf8_lossy(&text).into_owned();
        if text.starts_with("NOAUTH") {
            return Err(Error::new(side, format!("PING was refused: {text}"))
                .remedy("put user and password into the URL or the configuration file"));
        }
        // Without the right to PING a replica can do all the rest; a server that loads cannot.
        if passes(&text) {
            return Err(Error::passing(side, format!("PING was refused: {text}")));
        }
    }
    // Old servers do not know all of these, and serve us all the same.
    client.call(&["REPLCONF", "listening-port", &how.listening_port.to_string()]).await?;
    if how.diskless || how.empty_snapshot {
        client.call(&["REPLCONF", "capa", "eof", "capa", "psync2"]).await?;
    } else {
        client.call(&["REPLCONF", "capa", "psync2"]).await?;
    }
    // Valkey 9.1 writes RDB 11 to replicas that do not say their version, and no snapshot at all when it holds something
    // that came after it. Others do not know this.
    client.call(&["REPLCONF", "version", KNOWN_VALKEY]).await?;
    let empty_snapshot =
        how.empty_snapshot && client.call(&["REPLCONF", "rdb-filter-only", ""]).await?.is_ok();
    let (stream, input) = client.into_parts();
    Ok(Attached { stream, input, empty_snapshot, side, idle: how.idle_timeout })
}

impl Attached {
    /// Asks, and waits for the answer. With `delay` of diskless transfers the source takes its time (5 s by default).
    ///
    /// # Errors
    /// Passing: the link broke, the server has no link to its own primary. Lasting: it lets nobody replicate it.
    pub(super) async fn ask(&mut self, ask: &Ask) -> Result<Answer> {
        let (replid, from) = match ask {
            Ask::Everything => ("?".to_owned(), "-1".to_owned()),
            Ask::Behind { replid, offset } => (replid.clone(), (offset + 1).to_string()),
        };
        let mut question = Vec::new();
        write::command(&mut question, &["PSYNC", &replid, &from]);
        self.send(&question).await?;
        let line = self.line().await?;
        match judge(&line, self.side)? {
            Some(Answer::Continue { .. }) if *ask == Ask::Everything => {
                Err(Error::passing(self.side, "the server continues a stream that nobody has"))
            }
            Some(answer) => Ok(answer),
            None => {
                self.send(b"*1\r\n$4\r\nSYNC\r\n").await?;
                Ok(Answer::Plain)
            }
        }
    }

    /// The announcement of the snapshot.
    ///
    /// # Errors
    /// Passing: the link broke, or the source could not make one. Lasting: it knows no SYNC.
    pub(super) async fn header(&mut self) -> Result<Header> {
        loop {
            match framing::header(&self.input).map_err(|what| Error::passing(self.side, what))? {
                Some((Header::Refused(text), _)) => {
                    let message = format!("the server gives no snapshot: {text}");
                    let lasting =
                        text.to_ascii_lowercase().contains("unknown command") || text.starts_with("NOPERM");
                    return Err(if lasting {
                        Error::new(self.side, message)
                            .remedy("some managed servers let nobody replicate them")
                    } else {
                        Error::passing(self.side, message)
                    });
                }
                Some((header, used)) => {
                    self.input.advance(used);
                    return Ok(header);
                }
                None => self.input.advance(framing::keepalives(&self.input)),
            }
            self.more().await?;
        }
    }

    /// One line, keep-alives passed over.
    async fn line(&mut self) -> Result<Vec<u8>> {
        loop {
            match framing::line(&self.input).map_err(|what| Error::passing(self.side, what))? {
                Some((line, used)) => {
                    let line = line.to_vec();
                    self.input.advance(used);
                    return Ok(line);
                }
                None => self.input.advance(framing::keepalives(&self.input)),
            }
            self.more().await?;
        }
    }

    /// The side whose server this is.
    pub(super) fn side(&self) -> Side {
        self.side
    }

    /// Some bytes of a snapshot: those that are here already first.
    ///
    /// # Errors
    /// The link broke.
    pub(super) async fn read(&mut self, room: &mut [u8]) -> Result<usize> {
        if self.input.has_remaining() {
            let size = room.len().min(self.input.len());
            self.input.copy_to_slice(&mut room[..size]);
            return Ok(size);
        }
        match tokio::time::timeout(self.idle, self.stream.read(room)).await {
            Ok(Ok(0)) => Err(lost(self.side, io::ErrorKind::UnexpectedEof.into())),
            Ok(outcome) => outcome.map_err(|cause| lost(self.side, cause)),
            Err(_) => Err(lost(self.side, io::ErrorKind::TimedOut.into())),
        }
    }

    async fn more(&mut self) -> Result<()> {
        self.input.reserve(4096);
        let outcome = match tokio::time::timeout(self.idle, self.stream.read_buf(&mut self.input)).await {
            Ok(Ok(0)) => Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(outcome) => outcome,
            Err(_) => Err(io::ErrorKind::TimedOut.into()),
        };
        outcome.map(drop).map_err(|cause| lost(self.side, cause))
    }

    async fn send(&mut self, bytes: &[u8]) -> Result<()> {
        self.stream.write_all(bytes).await.map_err(|cause| lost(self.side, cause))?;
        self.stream.flush().await.map_err(|cause| lost(self.side, cause))
    }
}

/// The link is gone; the next attempt may find it again.
pub(super) fn lost(side: Side, cause: io::Error) -> Error {
    let message = match cause.kind() {
        io::ErrorKind::UnexpectedEof => "the server closed the replication link",
        io::ErrorKind::TimedOut => "the server has been silent for too long on the replication link",
        _ => "the replication link broke",
    };
    Error::passing(side, message).because(cause)
}

/// What the answer to PSYNC means. `None`: the server does not know PSYNC, try SYNC.
fn judge(line: &[u8], side: Side) -> Result<Option<Answer>> {
    let text = String::from_utf8_lossy(line);
    let mut words = text.split(' ');
    match words.next().unwrap_or_default() {
        "+FULLRESYNC" => {
            let replid = words.next().filter(|id| is_replid(id));
            let offset = words.next().and_then(|offset| offset.trim().parse().ok());
            match (replid, offset) {
                (Some(replid), Some(offset)) => Ok(Some(Answer::Full { replid: replid.to_owned(), offset })),
                _ => Err(Error::new(side, format!("not a valid answer to PSYNC: {}", clip(&text)))),
            }
        }
        // Without an id from servers before 4.0.
        "+CONTINUE" => match words.next().map(str::trim).filter(|id| !id.is_empty()) {
            None => Ok(Some(Answer::Continue { replid: None })),
            Some(id) if is_replid(id) => Ok(Some(Answer::Continue { replid: Some(id.to_owned()) })),
            Some(_) => Err(Error::new(side, format!("not a valid answer to PSYNC: {}", clip(&text)))),
        },
        _ => {
            let Some(error) = text.strip_prefix('-') else {
                return Err(Error::new(side, format!("not a valid answer to PSYNC: {}", clip(&text))));
            };
            if error.to_ascii_lowercase().contains("unknown command") {
                return Ok(None);
            }
            let message = format!("PSYNC was refused: {}", clip(error));
            // "Can't SYNC while not connected with my master" was worded so before it got a code of its own.
            if passes(error) || error.contains("SYNC while not connected") {
                return Err(Error::passing(side, message));
            }
            Err(Error::new(side, message)
                .remedy("grant the user the commands psync and replconf; some managed servers let nobody replicate them"))
        }
    }
}

fn clip(text: &str) -> &str {
    let end = text.char_indices().nth(200).map_or(text.len(), |(at, _)| at);
    &text[..end]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_to_psync() {
        let id = "0123456789abcdef0123456789abcdef01234567".to_owned();
        let good = |line: &str| judge(line.as_bytes(), Side::Source).unwrap();
        let full = Answer::Full { replid: id.clone(), offset: 42 };
        assert_eq!(good(&format!("+FULLRESYNC {id} 42")), Some(full));
        assert_eq!(good("+CONTINUE"), Some(Answer::Continue { replid: None }));
        assert_eq!(good(&format!("+CONTINUE {id}")), Some(Answer::Continue { replid: Some(id.clone()) }));
        assert_eq!(good("-ERR unknown command 'PSYNC'"), None);
        assert_eq!(good("-ERR unknown command `PSYNC`, with args beginning with: "), None);
        for (line, retry) in [
            ("-NOMASTERLINK Can't SYNC while not connected with my master", true),
            ("-ERR Can't SYNC while not connected with my master", true),
            ("-LOADING Redis is loading the dataset in memory", true),
            ("-MASTERDOWN Link with MASTER is down", true),
            ("-NOPERM this user has no permissions to run the 'psync' command", false),
            ("-NOAUTH Authentication required.", false),
            ("+FULLRESYNC short 42", false),
            (&format!("+FULLRESYNC {id} -1"), false),
            ("+CONTINUE short", false),
            ("garbage", false),
        ] {
            assert_eq!(judge(line.as_bytes(), Side::Source).unwrap_err().retry, retry, "{line}");
        }
    }
}

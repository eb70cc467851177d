//! The one connection over which batches go to the destination.
//!
//! Opening it is also what makes the exactly-once rule hold: a connection that we gave up may still have a
//! batch in the server's socket buffer, which would run after we read the position. So each connection bears a
//! name, and the next one begins by killing whatever bears it; only then is the position read. `CLIENT KILL`
//! throws away what the server had not run yet. This covers the connection of a gateway that was killed, too.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::batch::{Answer, Batch, Replies};
use super::position::{Direction, Mark, POSITION_KEY, lineage};
use super::transform::Dialect;
use crate::error::{Error, Result, Side};
use crate::resp::value::Value;
use crate::server::{Capabilities, Client, Endpoint, Flavour, Stream, processors};

/// What the position key holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// No such key.
    Nothing,
    /// A mark.
    Mark(Mark),
    /// Something that is no mark.
    Other(String),
}

/// A destination that has been greeted.
#[derive(Debug)]
pub struct Opened {
    /// For batches.
    pub link: Link,
    /// For questions between batches.
    pub client: Client,
    /// What it understands.
    pub dialect: Dialect,
    /// What it can do.
    pub capabilities: Capabilities,
    /// What the position key held, after every older connection of ours had ended.
    pub found: Found,
}

/// The name of our connections.
fn connection_name(id: &str, direction: Direction) -> String {
    let id: String = lineage(id).chars().map(|c| if c.is_ascii_graphic() { c } else { '_' }).collect();
    format!("crossfade:{direction}:{id}")
}

/// Connects, ends what an older connection of ours may still do, and reads the position.
///
/// # Errors
/// The server cannot be reached, refuses us, or is in a state in which it cannot be written to.
pub async fn open(to: &Endpoint, id: &str, direction: Direction, timeout: Duration) -> Result<Opened> {
    let to = Endpoint { db: 0, ..to.clone() };
    let mut first = Client::open(&to, timeout).await?;
    first.set_timeout(timeout);
    let name = connection_name(id, direction);
    end_older(&mut first, &name).await?;
    let capabilities = Capabilities::probe(&mut first).await?;
    let dialect = Dialect {
        set_pxat: capabilities.at_least(6, 2),
        restore_absttl: capabilities.restore_absttl,
        pexpiretime: capabilities.pexpiretime,
        rdb_version: capabilities.rdb_version,
        create_consumer: capabilities.at_least(6, 2),
        stream_counters: capabilities.at_least(7, 0),
        hash_set_ex: match capabilities.flavour {
            Flavour::Valkey => capabilities.version >= (9, 0, 0),
            _ => capabilities.at_least(8, 0),
        },
        idempotence: capabilities.at_least(8, 6),
        hash_field_expiry: match capabilities.flavour {
            Flavour::Valkey => capabilities.version >= (9, 0, 0),
            Flavour::Redict => false,
            _ => capabilities.at_least(7, 4),
        },
        hash_templates: capabilities.flavour == Flavour::Redis && capabilities.version >= (8, 10, 0),
        keep_ttl: capabilities.at_least(6, 0),
    };
    set_name(&mut first, &name).await?;
    let found = match first.command(&["GET", POSITION_KEY]).await? {
        Value::Nil => Found::Nothing,
        value => match value.as_str() {
            Some(text) => Mark::parse(text).map_or_else(|| Found::Other(text.to_owned()), Found::Mark),
            None => Found::Other("<binary>".into()),
        },
    };
    let mut client = Client::open(&to, timeout).await?;
    client.set_timeout(timeout);
    set_name(&mut client, &name).await?;
    let (stream, rest) = first.into_parts();
    if !rest.is_empty() {
        return Err(Error::passing(to.side, "the server sent something that nobody asked for"));
    }
    Ok(Opened { link: Link::new(stream, to.side), client, dialect, capabilities, found })
}

async fn set_name(client: &mut Client, name: &str) -> Result<()> {
    match client.call(&["CLIENT", "SETNAME", name]).await? {
        Value::Error(text) => {
            tracing::warn!(
                error = %String::from_utf8_lossy(&text),
                "the mirror cannot name its connection; a batch in flight could run twice if that connection hangs"
            );
            Ok(())
        }
        _ => Ok(()),
    }
}

/// Kills the connections that bear the name.
async fn end_older(client: &mut Client, name: &str) -> Result<()> {
    let list = match client.call(&["CLIENT", "LIST"]).await? {
        Value::Error(text) => {
            tracing::warn!(
                error = %String::from_utf8_lossy(&text),
                "the mirror cannot list connections; a batch in flight could run twice if its connection hangs"
            );
            return Ok(());
        }
        value => value,
    };
    let text = list.as_bytes().map(String::from_utf8_lossy).unwrap_or_default();
    for line in text.lines() {
        let field = |wanted: &str| line.split(' ').find_map(|word| word.strip_prefix(wanted));
        if field("name=") == Some(name) {
            // Redis before 2.8.12 shows no id; the address serves there.
            let how = match (field("id="), field("addr=")) {
                (Some(id), _) => ["ID", id],
                (None, Some(address)) => ["ADDR", address],
                (None, None) => continue,
            };
            // "No such client": it ended by itself.
            let reply = client.call(&["CLIENT", "KILL", how[0], how[1]]).await?;
            tracing::debug!(client = how[1], ?reply, "ended an older connection of this mirror");
        }
    }
    Ok(())
}

/// A batch that is on its way.
#[derive(Debug)]
struct InFlight {
    batch: Batch,
    written: usize,
    flushed: bool,
    replies: Replies,
}

/// A connection that carries one batch at a time.
#[derive(Debug)]
pub struct Link {
    stream: Stream,
    side: Side,
    input: Box<[u8]>,
    /// Bytes of `input` that hold something.
    filled: usize,
    in_flight: Option<InFlight>,
}

impl Link {
    fn new(stream: Stream, side: Side) -> Self {
        Self { stream, side, input: vec![0; 64 * 1024].into(), filled: 0, in_flight: None }
    }

    /// Whether a batch is on its way.
    pub fn is_busy(&self) -> bool {
        self.in_flight.is_some()
    }

    /// When the oldest byte of the batch on its way arrived.
    pub fn oldest_ms(&self) -> Option<u64> {
        self.in_flight.as_ref().map(|flight| flight.batch.oldest_ms).filter(|ms| *ms != 0)
    }

    /// Puts a batch on its way. The link must not be busy.
    pub fn send(&mut self, batch: Batch) {
        debug_assert!(self.in_flight.is_none());
        let replies = Replies::new(batch.len());
        self.in_flight = Some(InFlight { batch, written: 0, flushed: false, replies });
    }

    /// Waits for the answer to the batch on its way; for ever when there is none. May be cancelled and called
    /// again.
    ///
    /// # Errors
    /// The connection is lost; whether the batch ran is not known.
    pub async fn answer(&mut self) -> Result<(Batch, Answer)> {
        let outcome = std::future::poll_fn(|cx| self.poll(cx)).await;
        let answer = outcome.map_err(|cause| {
            Error::passing(self.side, "the connection for mirrored writes was lost").because(cause)
        })?;
        match self.in_flight.take() {
            Some(flight) => Ok((flight.batch, answer)),
            None => Err(Error::new(Side::Gateway, "an answer came to no batch")),
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Answer>> {
        let Self { stream, input, filled, in_flight, .. } = self;
        if let Some(flight) = in_flight {
            while let Some(rest) = flight.batch.wire.get(flight.written..).filter(|rest| !rest.is_empty()) {
                match Pin::new(&mut *stream).poll_write(cx, rest)? {
                    Poll::Ready(0) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                    Poll::Ready(written) => flight.written += written,
                    Poll::Pending => break,
                }
            }
            if flight.written == flight.batch.wire.len() && !flight.flushed {
                flight.flushed = Pin::new(&mut *stream).poll_flush(cx)?.is_ready();
            }
        }
        loop {
            let mut into = ReadBuf::new(&mut input[*filled..]);
            let Poll::Ready(()) = Pin::new(&mut *stream).poll_read(cx, &mut into)? else {
                return Poll::Pending;
            };
            let read = into.filled().len();
            if read == 0 {
                return Poll::Ready(Err(io::Error::new(
                    io::ErrorKind::UnexpectedEof,
                    "the server closed it",
                )));
            }
            *filled += read;
            processors::note_destination(stream);
            let Some(flight) = in_flight else {
                return Poll::Ready(Err(io::Error::other("the server spoke without being asked")));
            };
            let (done, answer) = flight.replies.feed(&input[..*filled]).map_err(io::Error::other)?;
            input.copy_within(done..*filled, 0);
            *filled -= done;
            if let Some(answer) = answer {
                return Poll::Ready(Ok(answer));
            }
            if *filled == input.len() {
                return Poll::Ready(Err(io::Error::other("an error reply has no end")));
            }
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        processors::forget_destination();
    }
}

//! The client side of RESP2 and RESP3, for the demo's and the tests' own traffic.
//!
//! It shares no code with the gateway: a checker that used the gateway's own scanner would be blind to that
//! scanner's faults. It is strict instead of fast: whatever is not a whole, well-formed reply is an error.
//! What RESP3 adds is read as its nearest kin of RESP2: a map as an array of keys and values by turns, a set and a push as
//! arrays, a null as nil, a double as a string.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// How deep arrays may nest; nothing the demo asks for goes deeper than 4.
const DEPTH: usize = 16;

/// One reply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// `$-1`, `*-1` or `_`.
    Nil,
    /// `+OK` and the like.
    Simple(Vec<u8>),
    /// `-ERR …`, without the dash.
    Error(Vec<u8>),
    /// `:1`.
    Integer(i64),
    /// A bulk string.
    Bulk(Vec<u8>),
    /// An array.
    Array(Vec<Reply>),
}

impl Reply {
    /// The bytes of a bulk or simple string.
    pub fn bytes(&self) -> Option<&[u8]> {
        match self {
            Reply::Bulk(bytes) | Reply::Simple(bytes) => Some(bytes),
            _ => None,
        }
    }

    /// The number in an integer reply or in a string that holds one.
    pub fn number(&self) -> Option<i64> {
        match self {
            Reply::Integer(number) => Some(*number),
            Reply::Bulk(bytes) | Reply::Simple(bytes) => std::str::from_utf8(bytes).ok()?.parse().ok(),
            _ => None,
        }
    }

    /// The elements of an array; empty for anything else.
    pub fn items(&self) -> &[Reply] {
        match self {
            Reply::Array(items) => items,
            _ => &[],
        }
    }

    /// A few characters of it, for a report.
    pub fn brief(&self) -> String {
        match self {
            Reply::Nil => "nil".into(),
            Reply::Integer(number) => number.to_string(),
            Reply::Simple(bytes) | Reply::Bulk(bytes) => clip(bytes),
            Reply::Error(bytes) => format!("-{}", clip(bytes)),
            Reply::Array(items) => {
                let shown: Vec<_> = items.iter().take(4).map(Reply::brief).collect();
                format!("[{}{}]", shown.join(" "), if items.len() > 4 { " …" } else { "" })
            }
        }
    }
}

fn clip(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(80)]).into_owned();
    if bytes.len() > 80 { format!("{text}… ({} bytes)", bytes.len()) } else { text }
}

/// A connection that sends commands and reads replies in order.
#[derive(Debug)]
pub struct Connection {
    stream: TcpStream,
    out: Vec<u8>,
    input: Vec<u8>,
    /// Bytes of `input` that were handed out already.
    taken: usize,
    /// What the server said unasked, where that is not read as a reply.
    pushes: Option<Vec<Reply>>,
}

impl Connection {
    /// Connects to `host:port`.
    ///
    /// # Errors
    /// What the system says when it refuses.
    pub async fn open(address: &str) -> io::Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(Self::from_stream(stream))
    }

    /// Adds a command to what the next [`flush`](Self::flush) sends.
    pub fn queue<A: AsRef<[u8]>>(&mut self, args: &[A]) {
        encode(&mut self.out, args);
    }

    /// Adds bytes as they are.
    pub fn queue_raw(&mut self, bytes: &[u8]) {
        self.out.extend_from_slice(bytes);
    }

    /// Sends what was queued.
    ///
    /// # Errors
    /// A lost connection.
    pub async fn flush(&mut self) -> io::Result<()> {
        let sent = self.stream.write_all(&self.out).await;
        self.out.clear();
        if self.out.capacity() > 1 << 20 {
            self.out = Vec::new();
        }
        sent
    }

    /// Sends what was queued in two parts, so that the peer has half a command for `pause`.
    ///
    /// # Errors
    /// A lost connection.
    pub async fn flush_in_halves(&mut self, pause: Duration) -> io::Result<()> {
        let rest = self.out.split_off(self.out.len() / 2);
        self.flush().await?;
        tokio::time::sleep(pause).await;
        self.out = rest;
        self.flush().await
    }

    /// From now on a push is no reply; [`take_pushes`](Self::take_pushes) has it.
    pub fn keep_pushes(&mut self) {
        self.pushes.get_or_insert_default();
    }

    /// The pushes that came before the last reply, and were not taken yet.
    pub fn take_pushes(&mut self) -> Vec<Reply> {
        self.pushes.as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// Reads one reply.
    ///
    /// # Errors
    /// A lost connection (`UnexpectedEof` when the peer closed it), or bytes that are no reply (`InvalidData`).
    pub async fn reply(&mut self) -> io::Result<Reply> {
        loop {
            if let Some((reply, end)) = parse(&self.input, self.taken, DEPTH)? {
                let unasked = self.input[self.taken] == b'>';
                self.taken = end;
                if self.taken == self.input.len() {
                    self.input.clear();
                    self.taken = 0;
                }
                match &mut self.pushes {
                    Some(pushes) if unasked => pushes.push(reply),
                    _ => return Ok(reply),
                }
                continue;
            }
            if self.taken > 0 {
                self.input.drain(..self.taken);
                self.taken = 0;
            }
            self.input.reserve(16 * 1024);
            if self.stream.read_buf(&mut self.input).await? == 0 {
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the connection was closed"));
            }
        }
    }

    /// Sends one command and reads its reply.
    ///
    /// # Errors
    /// As [`reply`](Self::reply).
    pub async fn call<A: AsRef<[u8]>>(&mut self, args: &[A]) -> io::Result<Reply> {
        self.queue(args);
        self.flush().await?;
        self.reply().await
    }

    /// Sends one command whose reply must not be an error.
    ///
    /// # Errors
    /// As [`reply`](Self::reply), and an error reply as `Other`.
    pub async fn must<A: AsRef<[u8]>>(&mut self, args: &[A]) -> io::Result<Reply> {
        match self.call(args).await? {
            Reply::Error(text) => {
                let name = args.first().map(|name| clip(name.as_ref())).unwrap_or_default();
                Err(io::Error::other(format!("{name}: {}", clip(&text))))
            }
            reply => Ok(reply),
        }
    }

    /// A connection on which something was sent already.
    pub fn from_stream(stream: TcpStream) -> Self {
        Self { stream, out: Vec::new(), input: Vec::new(), taken: 0, pushes: None }
    }

    /// The socket, for tests that treat it badly.
    pub fn into_stream(self) -> TcpStream {
        self.stream
    }
}

/// Appends a command in its multibulk form.
pub fn encode<A: AsRef<[u8]>>(out: &mut Vec<u8>, args: &[A]) {
    let mut number = itoa::Buffer::new();
    out.push(b'*');
    out.extend_from_slice(number.format(args.len()).as_bytes());
    out.extend_from_slice(b"\r\n");
    for arg in args {
        let arg = arg.as_ref();
        out.push(b'$');
        out.extend_from_slice(number.format(arg.len()).as_bytes());
        out.extend_from_slice(b"\r\n");
        out.extend_from_slice(arg);
        out.extend_from_slice(b"\r\n");
    }
}

fn bad(what: &str, line: &[u8]) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("{what}: {}", clip(line)))
}

/// The reply at `at` and where it ends; `None` when more bytes are needed.
fn parse(buf: &[u8], at: usize, depth: usize) -> io::Result<Option<(Reply, usize)>> {
    let Some(len) = memchr::memchr(b'\n', &buf[at..]) else { return Ok(None) };
    let (line, mut end) = (&buf[at..at + len], at + len + 1);
    let [kind, text @ .., b'\r'] = line else { return Err(bad("not a reply", line)) };
    let number = || std::str::from_utf8(text).ok().and_then(|text| text.parse::<i64>().ok());
    let reply = match kind {
        b'+' => Reply::Simple(text.to_vec()),
        b'-' => Reply::Error(text.to_vec()),
        b':' => Reply::Integer(number().ok_or_else(|| bad("not an integer", line))?),
        b'$' | b'=' => match number() {
            Some(-1) => Reply::Nil,
            Some(len @ 0..=0x2000_0000) => {
                let len = len as usize;
                let Some(body) = buf.get(end..end + len + 2) else { return Ok(None) };
                if &body[len..] != b"\r\n" {
                    return Err(bad("a bulk string longer than announced", line));
                }
                end += len + 2;
                Reply::Bulk(body[..len].to_vec())
            }
            _ => return Err(bad("not a bulk length", line)),
        },
        b'_' if text.is_empty() => Reply::Nil,
        b',' | b'(' => Reply::Bulk(text.to_vec()),
        b'#' => Reply::Integer(i64::from(text == b"t")),
        b'*' | b'~' | b'>' | b'%' => match number() {
            Some(-1) => Reply::Nil,
            Some(count) if count >= 0 && depth > 0 => {
                let mut items = Vec::new();
                let each = if *kind == b'%' { 2 } else { 1 };
                for _ in 0..count * each {
                    let Some((item, after)) = parse(buf, end, depth - 1)? else { return Ok(None) };
                    items.push(item);
                    end = after;
                }
                Reply::Array(items)
            }
            _ => return Err(bad("not an array", line)),
        },
        _ => return Err(bad("not a reply", line)),
    };
    Ok(Some((reply, end)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replies_at_every_cut() {
        let bytes = b"*4\r\n:-7\r\n$-1\r\n*2\r\n+OK\r\n-ERR x\r\n$3\r\na\r\n\r\n";
        let whole = Reply::Array(vec![
            Reply::Integer(-7),
            Reply::Nil,
            Reply::Array(vec![Reply::Simple(b"OK".to_vec()), Reply::Error(b"ERR x".to_vec())]),
            Reply::Bulk(b"a\r\n".to_vec()),
        ]);
        for cut in 0..bytes.len() {
            assert!(parse(&bytes[..cut], 0, DEPTH).unwrap().is_none(), "{cut}");
        }
        assert_eq!(parse(bytes, 0, DEPTH).unwrap(), Some((whole, bytes.len())));
    }

    #[test]
    fn replies_of_resp3() {
        let bytes = b"%1\r\n+a\r\n~2\r\n,1.5\r\n_\r\n>1\r\n#t\r\n=6\r\ntxt:ab\r\n";
        let (map, end) = parse(bytes, 0, DEPTH).unwrap().unwrap();
        let set = Reply::Array(vec![Reply::Bulk(b"1.5".to_vec()), Reply::Nil]);
        assert_eq!(map, Reply::Array(vec![Reply::Simple(b"a".to_vec()), set]));
        let (push, end) = parse(bytes, end, DEPTH).unwrap().unwrap();
        assert_eq!(push, Reply::Array(vec![Reply::Integer(1)]));
        let (text, end) = parse(bytes, end, DEPTH).unwrap().unwrap();
        assert_eq!((text, end), (Reply::Bulk(b"txt:ab".to_vec()), bytes.len()));
    }

    #[test]
    fn what_is_no_reply_is_an_error() {
        for bytes in [&b"hello\r\n"[..], b"$3\r\nabcd\r\n", b":x\r\n", b"\r\n", b"+a\n", b"$-2\r\n"] {
            assert!(parse(bytes, 0, DEPTH).is_err(), "{}", String::from_utf8_lossy(bytes));
        }
    }
}

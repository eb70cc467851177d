//! A client that speaks RESP3, for what RESP2 has no form for: pushes between replies. It shares no code with the gateway.

use std::collections::VecDeque;
use std::time::Duration;

use crossfade::cli::demo::connection::encode;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::PATIENCE;

/// A frame, as text: `[message news 1]`; an error begins with a dash, null is `nil`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    pub push: bool,
    pub text: String,
}

pub struct Client<S = TcpStream> {
    stream: S,
    input: Vec<u8>,
    out: Vec<u8>,
    pushes: VecDeque<String>,
}

impl Client {
    /// Connects and says HELLO 3.
    pub async fn open(address: &str) -> Self {
        let mut client = Self::open_resp2(address).await;
        assert!(client.ask(&["HELLO", "3"]).await.contains("proto 3"));
        client
    }

    /// Connects and says nothing.
    pub async fn open_resp2(address: &str) -> Self {
        let stream = TcpStream::connect(address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        Self::over(stream)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Client<S> {
    /// Speaks over a stream of any kind, and says nothing yet.
    pub fn over(stream: S) -> Self {
        Self { stream, input: Vec::new(), out: Vec::new(), pushes: VecDeque::new() }
    }

    pub fn queue(&mut self, words: &[&str]) {
        encode(&mut self.out, words);
    }

    pub async fn flush(&mut self) {
        self.stream.write_all(&self.out).await.unwrap();
        self.out.clear();
    }

    /// One command and its reply; pushes that come before it are kept for [`Client::push`].
    pub async fn ask(&mut self, words: &[&str]) -> String {
        self.queue(words);
        self.flush().await;
        loop {
            let frame = self.frame().await;
            if !frame.push {
                return frame.text;
            }
            self.pushes.push_back(frame.text);
        }
    }

    /// The next push, whether it came already or not.
    pub async fn push(&mut self) -> String {
        if let Some(kept) = self.pushes.pop_front() {
            return kept;
        }
        let frame = self.frame().await;
        assert!(frame.push, "a reply that nobody asked for: {}", frame.text);
        frame.text
    }

    /// Pushes that came and were not taken.
    pub fn kept(&self) -> &VecDeque<String> {
        &self.pushes
    }

    /// Whatever comes next.
    pub async fn frame(&mut self) -> Frame {
        loop {
            let mut at = 0;
            if let Some(text) = parse(&self.input, &mut at) {
                let push = self.input[0] == b'>';
                self.input.drain(..at);
                return Frame { push, text };
            }
            self.input.reserve(64 * 1024);
            let read = timeout(PATIENCE, self.stream.read_buf(&mut self.input)).await;
            let length = read.expect("nothing comes").unwrap();
            assert!(length > 0, "the connection was closed");
        }
    }

    /// Adds bytes as they are to what the next flush sends.
    pub fn queue_raw(&mut self, bytes: &[u8]) {
        self.out.extend_from_slice(bytes);
    }

    /// Waits until the other side closes the connection; nothing may come before that.
    ///
    /// Answers whether it was closed in an orderly way: not by a reset, and over TLS with a word of farewell.
    pub async fn ended(&mut self) -> bool {
        assert!(self.input.is_empty(), "not asked for: {}", self.input.escape_ascii());
        let read = timeout(PATIENCE, self.stream.read_buf(&mut self.input)).await;
        match read.expect("the connection stays open") {
            Ok(length) => assert_eq!(length, 0, "not asked for: {}", self.input.escape_ascii()),
            Err(_) => return false,
        }
        true
    }

    /// The stream, for tests that treat it badly.
    pub fn into_stream(self) -> S {
        self.stream
    }

    /// Asserts that nothing comes for this long.
    pub async fn silence(&mut self, long: Duration) {
        assert!(self.pushes.is_empty(), "{:?}", self.pushes);
        let read = timeout(long, self.stream.read_buf(&mut self.input)).await;
        assert!(read.is_err(), "{read:?} bytes came: {}", self.input.escape_ascii());
    }
}

/// The frame at `at`, which is moved behind it; `None` when it is not whole.
fn parse(buf: &[u8], at: &mut usize) -> Option<String> {
    let end = *at + memchr::memchr(b'\n', buf.get(*at..)?)?;
    let (kind, line) = (buf[*at], std::str::from_utf8(&buf[*at + 1..end - 1]).unwrap());
    *at = end + 1;
    let length = || line.parse::<i64>().unwrap_or_else(|_| panic!("no length: {line:?}"));
    Some(match kind {
        b'+' | b':' | b',' | b'#' | b'(' => line.to_owned(),
        b'-' => format!("-{line}"),
        b'_' => "nil".to_owned(),
        b'$' | b'=' | b'*' | b'>' | b'~' | b'%' if length() < 0 => "nil".to_owned(),
        b'$' | b'=' => {
            let length = length() as usize;
            let body = buf.get(*at..*at + length + 2)?;
            *at += length + 2;
            assert!(body.ends_with(b"\r\n"), "a string longer than announced");
            String::from_utf8_lossy(&body[..length]).into_owned()
        }
        b'*' | b'>' | b'~' | b'%' => {
            let count = length() * if kind == b'%' { 2 } else { 1 };
            let items: Option<Vec<String>> = (0..count).map(|_| parse(buf, at)).collect();
            format!("[{}]", items?.join(" "))
        }
        other => panic!("not RESP: {:?}{line}", other as char),
    })
}

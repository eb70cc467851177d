//! A request/response connection for the cold paths: prechecks, INFO, CLIENT PAUSE, SCAN, the record on the
//! destination. It speaks RESP2, so nothing arrives that was not asked for.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{Endpoint, Info, Stream};
use crate::error::{Error, Result, Side};
use crate::resp::value::{Decoder, Value};
use crate::resp::write;

/// One connection, logged in; calls are answered one after the other.
#[derive(Debug)]
pub struct Client {
    stream: Stream,
    side: Side,
    input: BytesMut,
    decoder: Decoder,
    per_call: Duration,
    /// Set while a call is under way. Whoever drops a call before its end leaves it set, and the connection is
    /// not used again: the next reply would be the answer to another question.
    midway: bool,
    /// When the last replies had come.
    heard: Instant,
}

impl Client {
    /// Connects, logs in and selects the endpoint's db; `timeout` bounds the connect and each of the calls, also
    /// the later ones until [`Self::set_timeout`].
    ///
    /// # Errors
    /// A passing error when the server cannot be reached or is not ready; a lasting one when it refuses the
    /// login or the db.
    pub async fn open(endpoint: &Endpoint, timeout: Duration) -> Result<Self> {
        let stream = endpoint.connect(timeout).await?;
        let mut client = Self {
            stream,
            side: endpoint.side,
            input: BytesMut::with_capacity(16 * 1024),
            decoder: Decoder::default(),
            per_call: timeout,
            midway: false,
            heard: Instant::now(),
        };
        client.log_in(endpoint).await?;
        if endpoint.db != 0 {
            client.command(&["SELECT", &endpoint.db.to_string()]).await?;
        }
        Ok(client)
    }

    async fn log_in(&mut self, endpoint: &Endpoint) -> Result<()> {
        let password = endpoint.password.as_ref().map(super::Secret::reveal);
        let reply = match (endpoint.user.as_deref(), password) {
            (None, None) => return Ok(()),
            // Servers before 6.0 know one user and no name for it.
            (None | Some("default"), Some(password)) => self.call(&["AUTH", password]).await?,
            (Some(user), password) => self.call(&["AUTH", user, password.unwrap_or("")]).await?,
        };
        match reply {
            Value::Error(text) => {
                let text = String::from_utf8_lossy(&text).into_owned();
                let error = refusal(self.side, "AUTH", &text);
                Err(if error.retry {
                    error
                } else {
                    error.remedy("check user and password in the URL or in the configuration file")
                })
            }
            _ => Ok(()),
        }
    }

    /// This end's address, as the server sees it where nothing translates addresses between; `None` for a unix socket.
    pub fn local_addr(&self) -> Option<SocketAddr> {
        self.stream.local_addr()
    }

    /// Changes how long a call may take.
    pub fn set_timeout(&mut self, per_call: Duration) {
        self.per_call = per_call;
    }

    /// The side whose server this is.
    pub fn side(&self) -> Side {
        self.side
    }

    /// Sends one command and waits for its reply. An error reply is a value.
    ///
    /// # Errors
    /// The connection failed, the call took too long, or an earlier one had.
    pub async fn call<A: AsRef<[u8]>>(&mut self, args: &[A]) -> Result<Value> {
        let mut out = Vec::with_capacity(write::command_len(args));
        write::command(&mut out, args);
        let mut replies = self.pipeline(&out, 1).await?;
        replies.pop().ok_or_else(|| Error::passing(self.side, "no reply came"))
    }

    /// As [`Self::call`], but an error reply is an error, which names the command.
    ///
    /// # Errors
    /// As [`Self::call`]; also an error reply, as [`passes`] judges it.
    pub async fn command<A: AsRef<[u8]>>(&mut self, args: &[A]) -> Result<Value> {
        match self.call(args).await? {
            Value::Error(text) => {
                let name = args.first().map(|name| String::from_utf8_lossy(name.as_ref()).into_owned());
                Err(refusal(self.side, &name.unwrap_or_default(), &String::from_utf8_lossy(&text)))
            }
            value => Ok(value),
        }
    }

    /// Sends commands that are written already and waits for so many replies. Error replies are values.
    ///
    /// # Errors
    /// As [`Self::call`].
    pub async fn pipeline(&mut self, commands: &[u8], replies: usize) -> Result<Vec<Value>> {
        if self.midway {
            return Err(Error::passing(self.side, "the connection was given up in the middle of a call"));
        }
        self.midway = true;
        let exchange = exchange(&mut self.stream, &mut self.input, &mut self.decoder, commands, replies);
        let outcome = match tokio::time::timeout(self.per_call, exchange).await {
            Ok(outcome) => outcome,
            Err(_) => Err(format!("no reply within {:?}", self.per_call).into()),
        };
        match outcome {
            Ok(values) => {
                self.midway = false;
                self.heard = Instant::now();
                Ok(values)
            }
            Err(cause) => {
                Err(Error::passing(self.side, "the connection to the server failed").because(cause))
            }
        }
    }

    /// Makes sure that the server is there: an answer that is younger than `recent` says so, on a connection that still
    /// stands; else it is asked.
    ///
    /// # Errors
    /// As [`Self::call`]. A server that answers with an error is there.
    pub async fn hears(&mut self, recent: Duration) -> Result<()> {
        if !self.midway && self.heard.elapsed() < recent && self.stream.is_silent() {
            return Ok(());
        }
        self.call(&["PING"]).await.map(drop)
    }

    /// One section of INFO; an empty name gives the default sections.
    ///
    /// # Errors
    /// As [`Self::command`].
    pub async fn info(&mut self, section: &str) -> Result<Info> {
        let reply = if section.is_empty() {
            self.command(&["INFO"]).await?
        } else {
            self.command(&["INFO", section]).await?
        };
        let text = reply.as_bytes().map(String::from_utf8_lossy).unwrap_or_default();
        Ok(Info::parse(&text))
    }

    /// A setting, unless the server keeps it to itself (managed servers refuse CONFIG).
    ///
    /// # Errors
    /// The connection is lost.
    pub async fn setting(&mut self, name: &str) -> Result<Option<String>> {
        let reply = self.call(&["CONFIG", "GET", name]).await?;
        Ok(match reply.into_array().as_deref() {
            Some([_, value]) => value.as_str().map(str::to_owned),
            _ => None,
        })
    }

    /// Gives up request and response: the stream, and the bytes that were read from it and belong to no reply.
    pub fn into_parts(self) -> (Stream, BytesMut) {
        (self.stream, self.input)
    }
}

type Cause = Box<dyn std::error::Error + Send + Sync>;

/// Writes and reads at the same time: a server that is sent much stops reading when nobody takes its replies.
async fn exchange(
    stream: &mut Stream,
    input: &mut BytesMut,
    decoder: &mut Decoder,
    commands: &[u8],
    replies: usize,
) -> Result<Vec<Value>, Cause> {
    let mut values = Vec::with_capacity(replies.min(1024));
    let mut left = commands;
    let (mut reader, mut writer) = tokio::io::split(stream);
    loop {
        while values.len() < replies {
            match decoder.next(input)? {
                Some(value) => values.push(value),
                None => break,
            }
        }
        if values.len() == replies && left.is_empty() {
            return Ok(values);
        }
        input.reserve(16 * 1024);
        tokio::select! {
            written = writer.write(left), if !left.is_empty() => {
                let written = written?;
                left = &left[written..];
                if left.is_empty() {
                    writer.flush().await?;
                }
            }
            read = reader.read_buf(input), if values.len() < replies => {
                if read? == 0 {
                    return Err("the server closed the connection".into());
                }
            }
        }
    }
}

/// Whether the state that an error reply speaks of may pass without anybody doing anything to the request: the
/// server loads, is busy, has no memory, has lost its own primary, or fails over.
pub fn passes(reply: &str) -> bool {
    const PASSING: [&str; 11] = [
        "LOADING",
        "BUSY",
        "TRYAGAIN",
        "MASTERDOWN",
        "NOMASTERLINK",
        "CLUSTERDOWN",
        "OOM",
        "READONLY",
        "MISCONF",
        "NOREPLICAS",
        "UNBLOCKED",
    ];
    let code = reply.split(' ').next().unwrap_or_default();
    PASSING.contains(&code) || reply.starts_with("ERR max number of clients reached")
}

/// The error for what a server replied to a command: a passing one where [`passes`].
pub(crate) fn refusal(side: Side, command: &str, reply: &str) -> Error {
    let message = format!("{} was refused: {reply}", command.to_ascii_uppercase());
    if passes(reply) { Error::passing(side, message) } else { Error::new(side, message) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpListener;

    async fn scripted(script: &'static [(&'static str, &'static str)]) -> Endpoint {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            let (mut socket, _) = listener.accept().await.unwrap();
            for (expected, answer) in script {
                let mut got = vec![0; expected.len()];
                socket.read_exact(&mut got).await.unwrap();
                assert_eq!(String::from_utf8_lossy(&got), *expected);
                socket.write_all(answer.as_bytes()).await.unwrap();
            }
            let _ = socket.read(&mut [0; 16]).await;
        });
        Endpoint::parse(Side::Destination, &format!("redis://127.0.0.1:{port}")).unwrap()
    }

    const SECOND: Duration = Duration::from_secs(1);

    #[tokio::test]
    async fn errors_are_values_or_errors_as_asked() {
        let endpoint = scripted(&[
            ("*1\r\n$4\r\nPING\r\n", "-LOADING wait\r\n"),
            ("*1\r\n$4\r\nPING\r\n", "-NOPERM no\r\n"),
            ("*1\r\n$4\r\nPING\r\n", "+PONG\r\n"),
        ])
        .await;
        let mut client = Client::open(&endpoint, SECOND).await.unwrap();
        let error = client.command(&["PING"]).await.unwrap_err();
        assert!(error.retry && error.side == Side::Destination, "{error}");
        assert_eq!(client.call(&["PING"]).await.unwrap().as_bytes(), Some(&b"NOPERM no"[..]));
        assert_eq!(client.call(&["PING"]).await.unwrap().as_bytes(), Some(&b"PONG"[..]));
    }

    #[tokio::test]
    async fn a_call_that_was_cut_short_ends_the_connection() {
        let endpoint = scripted(&[("*1\r\n$4\r\nPING\r\n", "")]).await;
        let mut client = Client::open(&endpoint, SECOND).await.unwrap();
        client.set_timeout(Duration::from_millis(10));
        let late = client.call(&["PING"]).await.unwrap_err().to_string();
        assert!(late.contains("no reply within"), "{late}");
        let after = client.call(&["PING"]).await.unwrap_err().to_string();
        assert!(after.contains("in the middle"), "{after}");
    }

    #[tokio::test]
    async fn a_server_that_has_just_answered_is_not_asked_again() {
        const HOUR: Duration = Duration::from_secs(3600);
        const PING: (&str, &str) = ("*1\r\n$4\r\nPING\r\n", "+PONG\r\n");
        let endpoint = scripted(&[PING, PING]).await;
        let mut client = Client::open(&endpoint, SECOND).await.unwrap();
        client.call(&["PING"]).await.unwrap();
        client.hears(HOUR).await.unwrap();
        client.hears(Duration::ZERO).await.unwrap();
        client.hears(HOUR).await.unwrap();
        // What was scripted is over: the server reads one more thing, and closes.
        let gone = client.hears(Duration::ZERO).await.unwrap_err();
        assert!(gone.retry, "{gone}");
        client.hears(HOUR).await.unwrap_err();
    }

    #[tokio::test]
    async fn a_wrong_password_is_lasting_and_not_shown() {
        let mut endpoint =
            scripted(&[("*2\r\n$4\r\nAUTH\r\n$6\r\ns3cret\r\n", "-WRONGPASS invalid\r\n")]).await;
        endpoint.password = Some(crate::server::Secret::new("s3cret"));
        let error = Client::open(&endpoint, SECOND).await.unwrap_err();
        assert!(!error.retry && error.to_string().contains("WRONGPASS"), "{error}");
        assert!(!error.to_string().contains("s3cret"), "{error}");
    }
}

//! The data path: listener, worker, session, lane, pinned connection, gate.
//!
//! Each *worker* is one thread with its own listener (SO_REUSEPORT), its own sessions and its own
//! connections to the servers; nothing is shared on the command path.
//!
//! ```text
//! client ─ session ─┐                     ┌─ lane (server, db, user, protocol) ── server
//! client ─ session ─┼─ worker (a thread) ─┤
//! client ─ session ─┘                     └─ pinned connections, from a pool ──── server
//! ```
//!
//! What it guarantees:
//!
//! * replies come to a session in the order of its commands, and never to another session;
//! * a command is handed to a server at most once: when a connection to the server is lost, sessions with
//!   commands in flight on it are closed, since the outcome is unknown; commands that had not been
//!   written wait for the next connection;
//! * while the gate is closed no command leaves for a server; what arrives is kept in order;
//! * bytes are forwarded as they came.

mod client;
mod cluster;
mod cursors;
mod gate;
mod handle;
mod lane;
mod local;
mod moving;
mod outbuf;
mod pinned;
mod registry;
mod scripts;
mod session;
mod special;
mod upstream;
mod worker;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

pub use gate::{Busy, DrainReport, OpenReport, PrepareReport};
pub use handle::{Proxy, ProxyStats};

use crate::server::Endpoint;

/// Which of the two servers answers the clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Active {
    /// The server that the migration starts from.
    Source,
    /// The server that the migration leads to.
    Destination,
}

impl Active {
    /// The other server.
    #[must_use]
    pub fn other(self) -> Self {
        match self {
            Active::Source => Active::Destination,
            Active::Destination => Active::Source,
        }
    }
}

impl std::fmt::Display for Active {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Active::Source => "source",
            Active::Destination => "destination",
        })
    }
}

/// Where clients connect, and what they may ask for.
#[derive(Debug, Clone)]
pub struct ListenOptions {
    /// `host:port`; port 0 lets the system choose.
    pub address: String,
    /// A Unix socket to listen on as well.
    pub unix_socket: Option<PathBuf>,
    /// TLS for the TCP listener.
    pub tls: Option<Arc<rustls::ServerConfig>>,
    /// Worker threads; at least 1.
    pub workers: usize,
    /// Clients at once; one more gets Redis's own error.
    pub max_clients: usize,
    /// A client whose unread replies exceed this many bytes is closed.
    pub output_buffer_limit: usize,
    /// A client whose unfinished command exceeds this many bytes is closed.
    pub query_buffer_limit: usize,
    /// Clients that say nothing for so long are closed; `None`: never.
    pub idle_timeout: Option<Duration>,
    /// TCP keep-alive probes; `None`: off.
    pub tcp_keepalive: Option<Duration>,
    /// Whether clients may replicate: PSYNC, SYNC and REPLCONF are passed on, and such a client is closed by a
    /// switch, so that it attaches to the other side.
    pub allow_replicas: bool,
}

impl Default for ListenOptions {
    fn default() -> Self {
        Self {
            address: "127.0.0.1:6400".into(),
            unix_socket: None,
            tls: None,
            workers: 1,
            max_clients: 10_000,
            output_buffer_limit: 256 * 1024 * 1024,
            query_buffer_limit: 1024 * 1024 * 1024,
            idle_timeout: None,
            tcp_keepalive: Some(Duration::from_secs(300)),
            allow_replicas: false,
        }
    }
}

/// What the data path needs to know.
#[derive(Debug, Clone)]
pub struct ProxyOptions {
    /// The clients' side.
    pub listen: ListenOptions,
    /// The source.
    pub source: Endpoint,
    /// The destination; without one the gateway only forwards.
    pub destination: Option<Endpoint>,
    /// The side that answers at the start.
    pub active: Active,
    /// The epoch at the start: the number of the latest switch.
    pub epoch: u64,
    /// How long one attempt to connect and authenticate may take.
    pub connect_timeout: Duration,
    /// How long a command waits for a lost server before its client gets an error.
    pub reconnect_wait: Duration,
    /// The file that keeps the scripts of clients for the next gateway; without one they are kept in memory only.
    pub scripts: Option<PathBuf>,
}

impl ProxyOptions {
    /// The server on the given side.
    pub(crate) fn endpoint(&self, side: Active) -> Option<&Endpoint> {
        match side {
            Active::Source => Some(&self.source),
            Active::Destination => self.destination.as_ref(),
        }
    }
}

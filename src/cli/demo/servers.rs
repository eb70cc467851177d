//! Real `redis-server` processes on free ports, for the demo, the tests and the benchmarks.
//!
//! A server's files and its log stand in the directory it is given. It is ended, by its process id, when its value
//! is dropped.

use std::io;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::connection::{Connection, Reply};

/// A port that nobody listens on at this moment.
///
/// # Errors
/// No port is free.
pub fn free_port() -> io::Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// The `redis-server` to use by name: `redis-server` (or an empty name) is the one on PATH; a path is itself; `redis-7.2` and the like are looked up
/// under `$CROSSFADE_SERVERS` (see `scripts/servers.sh`).
pub fn server_binary(name: &str) -> PathBuf {
    if name.is_empty() || name == "redis-server" {
        return "redis-server".into();
    }
    if name.contains('/') {
        return name.into();
    }
    let root = std::env::var_os("CROSSFADE_SERVERS").map_or_else(|| PathBuf::from("servers"), PathBuf::from);
    root.join(name).join("redis-server")
}

/// A running server.
#[derive(Debug)]
pub struct Server {
    binary: PathBuf,
    dir: PathBuf,
    args: Vec<String>,
    port: u16,
    child: Child,
    left: bool,
}

impl Server {
    /// Starts the server on PATH, without persistence, with further `--key value` arguments.
    ///
    /// # Errors
    /// It cannot be started, or does not answer within 20 s.
    pub async fn start(dir: &Path, args: &[&str]) -> io::Result<Self> {
        Self::start_as(&server_binary(""), dir, args).await
    }

    /// Starts the given server.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub async fn start_as(binary: &Path, dir: &Path, args: &[&str]) -> io::Result<Self> {
        std::fs::create_dir_all(dir)?;
        let args: Vec<String> = args.iter().map(ToString::to_string).collect();
        let mut tries = 0;
        loop {
            let port = free_port()?;
            let child = launch(binary, dir, port, &args)?;
            let mut server = Self {
                binary: binary.to_path_buf(),
                dir: dir.to_path_buf(),
                args: args.clone(),
                port,
                child,
                left: false,
            };
            match server.answers(Duration::from_secs(20)).await {
                Ok(()) => return Ok(server),
                // somebody else may have taken the port in between
                Err(_) if tries < 3 && server.has_exited() => tries += 1,
                Err(error) => return Err(error),
            }
        }
    }

    /// `host:port`.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// The URL without credentials.
    pub fn url(&self) -> String {
        format!("redis://{}", self.address())
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its files and its log.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// A connection of its own.
    ///
    /// # Errors
    /// The server is not there.
    pub async fn connect(&self) -> io::Result<Connection> {
        Connection::open(&self.address()).await
    }

    /// One command on a connection of its own.
    ///
    /// # Errors
    /// The server is not there, or answers with an error.
    pub async fn call<A: AsRef<[u8]>>(&self, args: &[A]) -> io::Result<Reply> {
        self.connect().await?.must(args).await
    }

    /// A field of INFO.
    ///
    /// # Errors
    /// The server is not there, or has no such field.
    pub async fn info(&self, field: &str) -> io::Result<String> {
        let info = self.call(&["INFO", "all"]).await?;
        let text = String::from_utf8_lossy(info.bytes().unwrap_or_default()).into_owned();
        text.lines()
            .find_map(|line| {
                line.strip_prefix(field)?.strip_prefix(':').map(|value| value.trim().to_string())
            })
            .ok_or_else(|| io::Error::other(format!("INFO has no {field}")))
    }

    /// Leaves it running when this value is dropped.
    pub fn leave(&mut self) {
        self.left = true;
    }

    /// Sends a signal (`STOP`, `CONT`, `TERM`, `KILL`).
    ///
    /// # Errors
    /// The process is gone.
    pub fn signal(&self, name: &str) -> io::Result<()> {
        signal(self.pid(), name)
    }

    /// Ends it at once, as a power cut would.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Starts it again on the same port with the same files, after [`kill`](Self::kill).
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub async fn restart(&mut self) -> io::Result<()> {
        self.kill();
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            self.child = launch(&self.binary, &self.dir, self.port, &self.args)?;
            match self.answers(Duration::from_secs(60)).await {
                // the old socket may linger for a moment
                Err(_) if self.has_exited() && Instant::now() < deadline => {
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
                other => return other,
            }
        }
    }

    fn has_exited(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(Some(_)) | Err(_))
    }

    /// Whether the connection leads to this process: another one may have taken the port a moment before.
    async fn is_this(&self, connection: &mut Connection) -> bool {
        let Ok(info) = connection.call(&["INFO", "server"]).await else { return false };
        let info = String::from_utf8_lossy(info.bytes().unwrap_or_default());
        let pid = info.lines().find_map(|line| line.strip_prefix("process_id:"));
        pid.is_none_or(|pid| pid.trim().parse() == Ok(self.child.id()))
    }

    async fn answers(&mut self, within: Duration) -> io::Result<()> {
        let deadline = Instant::now() + within;
        loop {
            if let Ok(mut connection) = self.connect().await
                && let Ok(Reply::Simple(_)) = connection.call(&["PING"]).await
                && self.is_this(&mut connection).await
            {
                return Ok(());
            }
            if self.has_exited() || Instant::now() > deadline {
                let log = std::fs::read_to_string(self.dir.join("redis.log")).unwrap_or_default();
                let tail: Vec<&str> = log.lines().rev().take(5).collect();
                let tail = tail.into_iter().rev().collect::<Vec<_>>().join("\n");
                return Err(io::Error::other(format!("{} does not answer:\n{tail}", self.binary.display())));
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if !self.left {
            self.kill();
        }
    }
}

fn launch(binary: &Path, dir: &Path, port: u16, args: &[String]) -> io::Result<Child> {
    let log = std::fs::OpenOptions::new().create(true).append(true).open(dir.join("redis.log"))?;
    // A server waits 5 s for further replicas before each diskless snapshot; nobody else comes here. 2.8 does not know the word.
    let old = binary.parent().is_some_and(|folder| folder.ends_with("redis-2.8"));
    let delay: &[&str] = if old { &[] } else { &["--repl-diskless-sync-delay", "0"] };
    Command::new(binary)
        .args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--daemonize", "no"])
        .args(delay)
        .arg("--dir")
        .arg(dir)
        .args(args)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .map_err(|error| {
            let hint = if error.kind() == io::ErrorKind::NotFound {
                " (install the package redis-server)"
            } else {
                ""
            };
            io::Error::new(error.kind(), format!("starting {}: {error}{hint}", binary.display()))
        })
}

/// Sends a signal by name to a process.
///
/// # Errors
/// `kill` is not there or refuses.
pub fn signal(pid: u32, name: &str) -> io::Result<()> {
    let status = Command::new("kill").arg(format!("-{name}")).arg(pid.to_string()).status()?;
    if status.success() { Ok(()) } else { Err(io::Error::other(format!("kill -{name} {pid} failed"))) }
}

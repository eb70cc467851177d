//! The gateway as a child process: start, ask, steer, end. For the demo, the tests and the benchmarks.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value as Json;

use super::servers::{free_port, signal};

/// How to start a gateway.
#[derive(Debug, Clone)]
pub struct GatewayOptions {
    /// The `crossfade` executable.
    pub exe: PathBuf,
    /// Where its state and its log go.
    pub dir: PathBuf,
    /// URL of the source.
    pub source: String,
    /// URL of the destination; empty: there is none.
    pub destination: String,
    /// Further arguments of `run`.
    pub args: Vec<String>,
    /// Environment variables.
    pub env: Vec<(String, String)>,
}

impl GatewayOptions {
    /// A gateway between two servers, with its state in `dir`.
    pub fn new(exe: impl Into<PathBuf>, dir: &Path, source: &str, destination: &str) -> Self {
        Self {
            exe: exe.into(),
            dir: dir.to_path_buf(),
            source: source.into(),
            destination: destination.into(),
            args: Vec::new(),
            env: Vec::new(),
        }
    }

    /// With further arguments of `run`.
    #[must_use]
    pub fn args(mut self, args: &[&str]) -> Self {
        self.args.extend(args.iter().map(ToString::to_string));
        self
    }

    /// With an environment variable.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.into(), value.into()));
        self
    }
}

/// A running gateway.
#[derive(Debug)]
pub struct Gateway {
    options: GatewayOptions,
    listen: u16,
    admin: u16,
    child: Child,
    left: bool,
}

impl Gateway {
    /// Starts it and waits until it answers.
    ///
    /// # Errors
    /// It ends or does not answer within 20 s; the end of its log is in the message.
    pub async fn start(options: GatewayOptions) -> io::Result<Self> {
        std::fs::create_dir_all(&options.dir)?;
        let mut tries = 0;
        loop {
            let (listen, admin) = (free_port()?, free_port()?);
            if listen == admin {
                continue;
            }
            let child = launch(&options, listen, admin)?;
            let mut gateway = Self { options: options.clone(), listen, admin, child, left: false };
            match gateway.answers().await {
                Ok(()) => return Ok(gateway),
                // somebody else may have taken a port in between
                Err(_) if tries < 2 && gateway.log().contains("in use") => tries += 1,
                Err(error) => return Err(error),
            }
        }
    }

    /// Starts it again on the same ports with the same state.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub async fn restart(&mut self) -> io::Result<()> {
        self.kill();
        self.child = launch(&self.options, self.listen, self.admin)?;
        self.answers().await
    }

    /// Options for the next [`restart`](Self::restart).
    pub fn options(&mut self) -> &mut GatewayOptions {
        &mut self.options
    }

    /// `host:port` for clients.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.listen)
    }

    /// `host:port` of its HTTP interface.
    pub fn admin(&self) -> String {
        format!("127.0.0.1:{}", self.admin)
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Where its log is.
    pub fn log_file(&self) -> PathBuf {
        self.options.dir.join("gateway.log")
    }

    /// Everything it has logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.log_file()).unwrap_or_default()
    }

    /// Ends it at once (SIGKILL).
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Leaves it running when this value is dropped.
    pub fn leave(&mut self) {
        self.left = true;
    }

    /// Sends a signal by name.
    ///
    /// # Errors
    /// The process is gone.
    pub fn signal(&self, name: &str) -> io::Result<()> {
        signal(self.pid(), name)
    }

    /// How it ended, if it did.
    pub fn exited(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// Waits until it has ended.
    ///
    /// # Errors
    /// It has not ended in time.
    pub async fn wait_exit(&mut self, within: Duration) -> io::Result<ExitStatus> {
        let deadline = Instant::now() + within;
        loop {
            if let Some(status) = self.exited() {
                return Ok(status);
            }
            if Instant::now() > deadline {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "the gateway does not end"));
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// `GET` of a path: status and body.
    ///
    /// # Errors
    /// No answer.
    pub async fn get(&self, path: &str) -> io::Result<(u16, String)> {
        http(self.admin(), path.into(), None).await
    }

    /// `POST` of a JSON body: status and answer.
    ///
    /// # Errors
    /// No answer, or one that is no JSON.
    pub async fn post(&self, path: &str, body: &Json) -> io::Result<(u16, Json)> {
        let (status, body) = http(self.admin(), path.into(), Some(body.to_string())).await?;
        let json =
            serde_json::from_str(&body).map_err(|error| io::Error::other(format!("{error}: {body}")))?;
        Ok((status, json))
    }

    /// `GET /v1/status`.
    ///
    /// # Errors
    /// No answer.
    pub async fn status(&self) -> io::Result<Json> {
        let (_, body) = self.get("/v1/status").await?;
        serde_json::from_str(&body).map_err(|error| io::Error::other(format!("{error}: {body}")))
    }

    /// Waits until the status satisfies the condition, and returns it.
    ///
    /// # Errors
    /// Not within the time; the message holds the last status and the end of the log.
    pub async fn wait_until(
        &mut self,
        what: &str,
        within: Duration,
        is: impl Fn(&Json) -> bool,
    ) -> io::Result<Json> {
        let deadline = Instant::now() + within;
        loop {
            let status = self.status().await;
            if let Ok(status) = &status
                && is(status)
            {
                return Ok(status.clone());
            }
            let ended = self.exited();
            if ended.is_some() || Instant::now() > deadline {
                let tail = tail(&self.log(), 25);
                return Err(io::Error::other(format!(
                    "waited for {what} in vain (ended: {ended:?}); status: {status:?}; log:\n{tail}"
                )));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Waits until the migration is in the phase.
    ///
    /// # Errors
    /// As [`wait_until`](Self::wait_until); also at once when the phase is `failed` and another was wanted.
    pub async fn wait_phase(&mut self, phase: &str, within: Duration) -> io::Result<Json> {
        let status = self
            .wait_until(phase, within, |status| status["phase"] == phase || status["phase"] == "failed")
            .await?;
        if status["phase"] == phase {
            return Ok(status);
        }
        Err(io::Error::other(format!("the migration failed: {}\n{}", status["error"], tail(&self.log(), 25))))
    }

    /// `POST /v1/start`.
    ///
    /// # Errors
    /// Refused.
    pub async fn begin(&self) -> io::Result<()> {
        self.order("start", &serde_json::json!({})).await.map(drop)
    }

    /// Switches over; the entry of `switches`.
    ///
    /// # Errors
    /// Refused, or not committed.
    pub async fn cutover(&self) -> io::Result<Json> {
        self.order("cutover", &serde_json::json!({})).await
    }

    /// Switches back; the entry of `switches`.
    ///
    /// # Errors
    /// Refused, or not committed.
    pub async fn rollback(&self) -> io::Result<Json> {
        self.order("rollback", &serde_json::json!({})).await
    }

    /// A POST that has to succeed.
    ///
    /// # Errors
    /// Any status but 2xx; for switches also any outcome but `committed`.
    pub async fn order(&self, order: &str, body: &Json) -> io::Result<Json> {
        let (status, answer) = self.post(&format!("/v1/{order}"), body).await?;
        let outcome = answer.get("outcome").and_then(Json::as_str);
        let expected = if body.get("rehearse").is_some() { "rehearsed" } else { "committed" };
        if !(200..300).contains(&status) || outcome.is_some_and(|outcome| outcome != expected) {
            return Err(io::Error::other(format!("{order}: HTTP {status}: {answer}")));
        }
        Ok(answer)
    }

    async fn answers(&mut self) -> io::Result<()> {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            if let Ok((200, _)) = self.get("/healthz").await {
                return Ok(());
            }
            let ended = self.exited();
            if ended.is_some() || Instant::now() > deadline {
                let tail = tail(&self.log(), 25);
                return Err(io::Error::other(format!(
                    "the gateway does not answer (ended: {ended:?}); log:\n{tail}"
                )));
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        if !self.left {
            self.kill();
        }
    }
}

/// The last lines of a text.
pub fn tail(text: &str, lines: usize) -> String {
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

fn launch(options: &GatewayOptions, listen: u16, admin: u16) -> io::Result<Child> {
    let log = File::options().create(true).append(true).open(options.dir.join("gateway.log"))?;
    let mut command = Command::new(&options.exe);
    command
        .arg("run")
        .args(["--listen", &format!("127.0.0.1:{listen}")])
        .args(["--admin", &format!("127.0.0.1:{admin}")])
        .args(["--source", &options.source])
        .arg("--state-dir")
        .arg(options.dir.join("state"))
        .args(&options.args)
        .envs(options.env.iter().map(|(name, value)| (name, value)))
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log);
    if !options.destination.is_empty() {
        command.args(["--destination", &options.destination]);
    }
    command
        .spawn()
        .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", options.exe.display())))
}

async fn http(address: String, path: String, body: Option<String>) -> io::Result<(u16, String)> {
    let ask = move || {
        let agent: ureq::Agent = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .timeout_global(Some(Duration::from_secs(120)))
            .build()
            .into();
        let url = format!("http://{address}{path}");
        let answer = match body {
            None => agent.get(&url).call(),
            Some(body) => agent.post(&url).content_type("application/json").send(body),
        };
        let mut answer = answer.map_err(io::Error::other)?;
        let status = answer.status().as_u16();
        let body = answer.body_mut().read_to_string().map_err(io::Error::other)?;
        Ok((status, body))
    };
    tokio::task::spawn_blocking(ask).await?
}

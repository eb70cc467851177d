//! What the end-to-end tests stand on: two servers and a gateway in a directory of their own, an oracle that compares
//! the servers without the gateway's code, a proxy that makes faults.
//!
//! `redis-server` is taken from PATH. `CROSSFADE_SERVER` may name another one, by its path or as a folder of `CROSSFADE_SERVERS`
//! (see `scripts/servers.sh`): `CROSSFADE_SERVER=redis-6.2 CROSSFADE_SERVERS=$PWD/servers scripts/test.sh --test e2e h06`. A test
//! that asks for what that version lacks leaves it out, and says so ([`since`]).
//!
//! A test fails on any WARN or ERROR line in the gateway's log that it did not announce with [`Lab::expect_log`].
//! When a test fails, its directory (logs, journals, data) stays, and its path is printed.

pub mod browser;
pub mod certificates;
pub mod oracle;
pub mod proxy;
pub mod resp3;
pub mod socket;
#[path = "../matrix/versions.rs"]
pub mod versions;

use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crossfade::cli::demo::connection::Reply;
use crossfade::cli::demo::gateway::{Gateway, GatewayOptions, tail};
use crossfade::cli::demo::servers::{Server, server_binary};
use crossfade::cli::demo::workload::{Verdict, Workload};
use crossfade::mirror::{Mark, POSITION_KEY, Reach};
use serde_json::Value as Json;

use versions::Version;

/// The executable under test.
pub const EXE: &str = env!("CARGO_BIN_EXE_crossfade");

/// The time that anything may take on a loaded machine before a test calls it stuck.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// What a lab consists of.
#[derive(Debug, Clone, Default)]
pub struct Setup {
    /// Arguments of the source.
    pub source: Vec<&'static str>,
    /// Arguments of the destination.
    pub destination: Vec<&'static str>,
    /// The gateway's configuration file.
    pub config: String,
    /// Arguments of `crossfade run`.
    pub gateway: Vec<String>,
    /// Environment of the gateway.
    pub env: Vec<(String, String)>,
    /// The servers' names (see `server_binary`); empty: the one that the tests run with.
    pub servers: [&'static str; 2],
    /// Put the fault proxy between the gateway and the source, and between it and the destination.
    pub proxies: bool,
}

impl Setup {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn gateway(mut self, args: &[&str]) -> Self {
        self.gateway.extend(args.iter().map(ToString::to_string));
        self
    }

    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.into(), value.into()));
        self
    }

    pub fn config(mut self, text: &str) -> Self {
        self.config.push_str(text);
        self
    }

    pub fn source(mut self, args: &[&'static str]) -> Self {
        self.source.extend(args);
        self
    }

    pub fn destination(mut self, args: &[&'static str]) -> Self {
        self.destination.extend(args);
        self
    }

    /// An append-only file that survives `kill -9` of the server to the last acknowledged write.
    pub fn durable(self) -> Self {
        const AOF: [&str; 4] = ["--appendonly", "yes", "--appendfsync", "always"];
        self.source(&AOF).destination(&AOF)
    }

    pub fn proxies(mut self) -> Self {
        self.proxies = true;
        self
    }

    pub async fn build(self) -> Lab {
        Lab::build(self).await
    }
}

/// Two servers and a gateway between them.
pub struct Lab {
    pub gateway: Gateway,
    pub source: Server,
    pub destination: Server,
    pub source_proxy: Option<proxy::Proxy>,
    pub destination_proxy: Option<proxy::Proxy>,
    expected: Vec<&'static str>,
    dir: Option<tempfile::TempDir>,
}

impl Lab {
    async fn build(setup: Setup) -> Self {
        let dir = tempfile::Builder::new().prefix("crossfade-test-").tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let (old, new) = (at("source"), at("destination"));
        let (source, destination) = tokio::join!(
            start_server(setup.servers[0], &old, &setup.source),
            start_server(setup.servers[1], &new, &setup.destination)
        );
        let (mut urls, mut proxies) = ([source.url(), destination.url()], [None, None]);
        if setup.proxies {
            for (url, (slot, server)) in urls.iter_mut().zip(proxies.iter_mut().zip([&source, &destination]))
            {
                let proxy = proxy::Proxy::start(server.address()).await;
                *url = format!("redis://{}", proxy.address());
                *slot = Some(proxy);
            }
        }
        let mut options = GatewayOptions::new(EXE, &at("gateway"), &urls[0], &urls[1]);
        options.args = setup.gateway;
        options.env = setup.env;
        if !setup.config.is_empty() {
            let file = at("crossfade.toml");
            std::fs::write(&file, setup.config).unwrap();
            options.env.push(("CROSSFADE_CONFIG".into(), file.display().to_string()));
        }
        let gateway = match Gateway::start(options).await {
            Ok(gateway) => gateway,
            Err(error) => panic!("{error}; files in {}", dir.keep().display()),
        };
        let [source_proxy, destination_proxy] = proxies;
        Self {
            gateway,
            source,
            destination,
            source_proxy,
            destination_proxy,
            expected: Vec::new(),
            dir: Some(dir),
        }
    }

    /// The directory of everything.
    pub fn path(&self) -> PathBuf {
        self.dir.as_ref().expect("there until dropped").path().to_path_buf()
    }

    /// WARN and ERROR lines that contain this are part of the test.
    pub fn expect_log(&mut self, text: &'static str) {
        self.expected.push(text);
    }

    /// `start`, then waits until the mirror is live.
    pub async fn mirror(&mut self) -> Json {
        self.gateway.begin().await.unwrap();
        self.gateway.wait_phase("mirroring", PATIENCE).await.unwrap()
    }

    /// Cuts over. The pause may take longer than a user would allow it: the machine may be busy. Where the gateway says "not yet" it is
    /// asked again: a mirror may be behind for a moment, and after a restart it is not there at once.
    pub async fn cutover(&self) -> Json {
        self.switched("cutover").await
    }

    /// As [`Self::cutover`], back.
    pub async fn rollback(&self) -> Json {
        self.switched("rollback").await
    }

    async fn switched(&self, order: &str) -> Json {
        let until = Instant::now() + PATIENCE;
        loop {
            let error = match self.gateway.order(order, &serde_json::json!({"max_pause": "3s"})).await {
                Ok(entry) => return entry,
                Err(error) => error.to_string(),
            };
            let later =
                error.contains("HTTP 409") && (error.contains("not yet") || error.contains("wait a moment"));
            assert!(later && Instant::now() < until, "{error}\n{}", tail(&self.gateway.log(), 25));
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// The server that clients are served from, by what the status says, and the other.
    pub async fn active(&self) -> (&Server, &Server) {
        let status = self.gateway.status().await.unwrap();
        match status["active"].as_str() {
            Some("destination") => (&self.destination, &self.source),
            Some("source") => (&self.source, &self.destination),
            other => panic!("active is {other:?}"),
        }
    }

    /// Waits until the passive side has everything that the active side has executed so far.
    pub async fn in_step(&mut self) {
        let (active, passive) = self.active().await;
        // An offset says nothing without the history that it belongs to: that of a server that was restarted counts from 0
        // again, and the one that is applied lies far ahead until everything has been copied anew. A server that nobody has
        // replicated from yet begins another history when somebody does, so both are read until they fit.
        let mut end = 0;
        eventually("the mirror follows the history of the active server", async || {
            let history = match active.info("master_replid").await {
                Ok(history) => history,
                Err(_) => active.info("run_id").await.unwrap_or_default(),
            };
            let held = passive.call(&["GET", POSITION_KEY]).await;
            let held = held.as_ref().ok().and_then(Reply::bytes).map(String::from_utf8_lossy);
            let mark = held.and_then(|text| Mark::parse(&text));
            let follows =
                mark.is_some_and(|mark| matches!(mark.reach, Reach::At(at) if at.replid == history));
            if follows {
                end = active.info("master_repl_offset").await.unwrap().parse::<u64>().unwrap();
            }
            follows
        })
        .await;
        let applied = |status: &Json| {
            let reached = status["mirror"]["applied_offset"].as_u64().is_some_and(|offset| offset >= end);
            reached && matches!(status["phase"].as_str(), Some("mirroring" | "cut-over"))
        };
        self.gateway.wait_until(&format!("applied offset {end}"), PATIENCE, applied).await.unwrap();
    }

    /// Stops the traffic and asserts that the histories are clean and both servers hold the same.
    pub async fn judge(&mut self, workload: Workload) -> Verdict {
        let history = workload.stop().await.unwrap();
        self.in_step().await;
        let (active, passive) = self.active().await;
        let verdict = history.judge(&active.address()).await.unwrap();
        assert!(verdict.is_clean(), "{verdict}");
        let differences = oracle::compare(active, passive).await;
        assert!(differences.is_empty(), "{} differences: {differences:#?}", differences.len());
        verdict
    }

    /// Asserts that both servers hold the same.
    pub async fn same(&mut self) {
        self.in_step().await;
        let differences = oracle::compare(&self.source, &self.destination).await;
        assert!(differences.is_empty(), "{} differences: {differences:#?}", differences.len());
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let log = self.gateway.log();
        self.gateway.kill();
        let odd: Vec<&str> = log
            .lines()
            .filter(|line| ["WARN", "ERROR", "panicked"].iter().any(|level| line.contains(level)))
            .filter(|line| !self.expected.iter().any(|expected| line.contains(expected)))
            .take(20)
            .collect();
        if (std::thread::panicking() || !odd.is_empty())
            && let Some(dir) = self.dir.take()
        {
            eprintln!("files of the failed test: {}", dir.keep().display());
        }
        if !std::thread::panicking() {
            assert!(odd.is_empty(), "unexpected lines in the gateway's log:\n{}", odd.join("\n"));
        }
    }
}

/// A figure of a process's memory by its name in `/proc/PID/status`: `VmRSS:` what is resident, `VmHWM:` the most that ever was.
pub fn memory_kib(pid: u32, name: &str) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    line.split_whitespace().next().unwrap().parse().unwrap()
}

/// A server that answers DEBUG, which the oracle needs. Without a name it is the one that the tests run with.
pub async fn start_server(name: &str, dir: &Path, args: &[&str]) -> Server {
    let binary = binary(name);
    let debug: &[&str] =
        if version_of(&binary).since("7.0", "7.2") { &["--enable-debug-command", "yes"] } else { &[] };
    let args: Vec<&str> = debug.iter().chain(args).copied().collect();
    Server::start_as(&binary, dir, &args).await.unwrap()
}

fn binary(name: &str) -> PathBuf {
    match std::env::var("CROSSFADE_SERVER") {
        Ok(chosen) if name.is_empty() => server_binary(&chosen),
        _ => server_binary(name),
    }
}

/// The version of a server by its name (see [`start_server`]).
pub fn version(name: &str) -> Version {
    version_of(&binary(name))
}

/// From what it calls itself: `Redis server v=7.0.15 …`.
fn version_of(binary: &Path) -> Version {
    let told = std::process::Command::new(binary).arg("--version").output().unwrap().stdout;
    let told = String::from_utf8_lossy(&told).into_owned();
    let number = told.split("v=").nth(1).and_then(|rest| rest.split(' ').next()).unwrap();
    let family = if told.starts_with("Valkey") { "valkey" } else { "redis" };
    Version::of(&format!("{family}_version:{number}"))
}

/// Whether the servers that the tests run with are at least this Redis, or this Valkey; if not, what is left out is named.
pub fn since(redis: &str, valkey: &str, what: &str) -> bool {
    let is = is_since(redis, valkey);
    if !is {
        eprintln!("skipped before Redis {redis} and Valkey {valkey}: {what}");
    }
    is
}

/// As [`since`], without a word.
pub fn is_since(redis: &str, valkey: &str) -> bool {
    static VERSION: OnceLock<Version> = OnceLock::new();
    VERSION.get_or_init(|| version("")).since(redis, valkey)
}

/// Steps at which a switch waits (`CROSSFADE_STOPS`).
pub struct Stops(tempfile::TempDir);

impl Stops {
    pub fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub fn of(&self, setup: Setup) -> Setup {
        setup.env("CROSSFADE_STOPS", self.0.path().to_str().unwrap())
    }

    /// The next switch will wait at these.
    pub fn arm(&self, steps: &[&str]) {
        steps.iter().for_each(|step| std::fs::write(self.0.path().join(step), "").unwrap());
    }

    /// Does something while it waits there.
    pub async fn at<T>(&self, step: &str, act: impl AsyncFnOnce() -> T) -> T {
        self.at_unless(&AtomicBool::new(false), step, act).await.unwrap()
    }

    /// As [`Self::at`], unless the switch is `over` before it comes to that step.
    pub async fn at_unless<T>(
        &self,
        over: &AtomicBool,
        step: &str,
        act: impl AsyncFnOnce() -> T,
    ) -> Option<T> {
        let reached = self.0.path().join(format!("{step}.reached"));
        eventually(step, async || reached.exists() || over.load(Ordering::Relaxed)).await;
        if !reached.exists() {
            return None;
        }
        let done = act().await;
        std::fs::remove_file(&reached).unwrap();
        Some(done)
    }
}

/// Waits until the condition holds.
pub async fn eventually(what: &str, mut is: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is().await {
        assert!(Instant::now() < deadline, "waited in vain for: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Waits until the clients have done so many more operations.
pub async fn operations(workload: &Workload, more: u64) {
    let target = workload.operations() + more;
    let deadline = Instant::now() + PATIENCE;
    while workload.operations() < target {
        if Instant::now() > deadline {
            let findings: Vec<String> = workload.findings().iter().map(ToString::to_string).collect();
            panic!("the clients are stuck at {} of {target}: {findings:#?}", workload.operations());
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// A server and the gateway in front of it, without a migration: for tests of the data path.
pub struct Front {
    pub server: Server,
    pub proxy: Option<proxy::Proxy>,
    gateway: Gateway,
    _dir: tempfile::TempDir,
}

impl Front {
    pub async fn new() -> Self {
        Self::build(&[], false).await
    }

    /// The server keeps an append-only file that survives `kill -9`.
    pub async fn durable() -> Self {
        Self::build(&["--appendonly", "yes", "--appendfsync", "always"], false).await
    }

    /// The fault proxy stands between the gateway and the server.
    pub async fn behind_proxy() -> Self {
        Self::build(&[], true).await
    }

    async fn build(args: &[&str], faults: bool) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let server = start_server("", dir.path(), args).await;
        let mut url = server.url();
        let mut proxy = None;
        if faults {
            let between = proxy::Proxy::start(server.address()).await;
            url = format!("redis://{}", between.address());
            proxy = Some(between);
        }
        let options = GatewayOptions::new(EXE, &dir.path().join("gateway"), &url, "");
        let gateway = Gateway::start(options).await.unwrap();
        Self { server, proxy, gateway, _dir: dir }
    }

    /// Resident memory of the gateway.
    pub fn rss_kib(&self) -> u64 {
        memory_kib(self.gateway.pid(), "VmRSS:")
    }

    /// `host:port` of the gateway.
    pub fn address(&self) -> String {
        self.gateway.address()
    }

    /// Everything that the gateway has logged.
    pub fn log(&self) -> String {
        self.gateway.log()
    }
}

impl Drop for Front {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the end of the gateway's log:\n{}", tail(&self.gateway.log(), 25));
        }
    }
}

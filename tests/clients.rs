//! What applications and people really connect with, through the gateway: redis-py, ioredis and node-redis with their
//! pools, pipelines, scripts, queues and subscribers, over cutovers and rollbacks; redis-cli and redis-benchmark, which
//! say of the gateway what they say of the server.
//!
//! The libraries' versions are pinned beside their programs in `tests/clients/`; they are installed once, below `target/`, by
//! the machine's own pip and npm. A tool that is missing fails the test with the name of the package that brings it.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]
#![allow(clippy::print_stderr, reason = "what was done and where the files of a failed test are")]
#![allow(unreachable_pub, missing_docs, reason = "nothing outside this binary sees it")]
#![allow(dead_code, reason = "the support serves other tests, too")]

mod support;

use std::collections::BTreeSet;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crossfade::cli::demo::connection::{Connection, encode};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout};
use tokio::time::timeout;

use crate::support::{Lab, PATIENCE, Setup, eventually};

/// Rounds of the slowest worker between two switches.
const ROUNDS: u64 = 3;

/// A directory below `target/` with what `install` puts there, once for each content of `pins`.
fn installed(name: &str, pins: &str, install: impl FnOnce(&Path)) -> PathBuf {
    let root = Path::new(env!("CARGO_TARGET_TMPDIR")).join("clients");
    std::fs::create_dir_all(&root).unwrap();
    // One at a time, whoever else runs the tests.
    let lock = File::create(root.join(format!("{name}.lock"))).unwrap();
    lock.lock().unwrap();
    let (dir, done) = (root.join(name), root.join(format!("{name}.installed")));
    if !dir.exists() || std::fs::read_to_string(&done).ok().as_deref() != Some(pins) {
        let _ = std::fs::remove_file(&done);
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir_all(&dir).unwrap();
        install(&dir);
        std::fs::write(done, pins).unwrap();
    }
    dir
}

/// Runs a step of an installation.
fn step(command: &mut Command, remedy: &str) {
    let shown = format!("{command:?}");
    match command.stdin(Stdio::null()).output() {
        Ok(output) if output.status.success() => {}
        Ok(output) => panic!(
            "{shown} ended with {}; {remedy}\n{}{}",
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        ),
        Err(error) => panic!("{shown}: {error}; {remedy}"),
    }
}

/// A Python that has redis-py.
fn python() -> PathBuf {
    let pins = include_str!("clients/requirements.txt");
    let venv = installed("python", pins, |dir| {
        let remedy = "install the package python3-venv (scripts/test.sh does)";
        step(Command::new("python3").args(["-m", "venv"]).arg(dir), remedy);
        std::fs::write(dir.join("requirements.txt"), pins).unwrap();
        let install = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r"];
        step(
            Command::new(dir.join("bin/python")).args(install).arg(dir.join("requirements.txt")),
            "pip has to reach a package index; see its configuration",
        );
    });
    venv.join("bin/python")
}

/// A directory whose `node_modules` has ioredis and node-redis.
fn node_modules() -> PathBuf {
    let (package, lock) = (include_str!("clients/package.json"), include_str!("clients/package-lock.json"));
    installed("node", &[package, lock].concat(), |dir| {
        std::fs::write(dir.join("package.json"), package).unwrap();
        std::fs::write(dir.join("package-lock.json"), lock).unwrap();
        step(
            Command::new("npm").args(["ci", "--no-audit", "--no-fund"]).current_dir(dir),
            "install the packages nodejs (18 or newer) and npm (scripts/test.sh does); npm has to reach a registry",
        );
    })
}

/// A program that works until it is told to end, and says how far its slowest worker is.
struct Program {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Program {
    fn start(program: &Path, args: &[&str], address: &str) -> Self {
        let (host, port) = address.rsplit_once(':').unwrap();
        let mut child = tokio::process::Command::new(program)
            .args(args)
            .args([host, port])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap_or_else(|error| panic!("{}: {error}", program.display()));
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, lines }
    }

    /// The next line that begins with this word; what follows it.
    async fn line(&mut self, word: &str) -> String {
        loop {
            let line = timeout(PATIENCE, self.lines.next_line()).await.expect("it hangs").unwrap();
            match line.as_deref().and_then(|line| line.split_once(' ')) {
                Some((first, rest)) if first == word => return rest.to_owned(),
                // the end of a program that was not told to end
                Some(("done", _)) | None => panic!("it ended early: {}", self.errors().await),
                Some(_) => {}
            }
        }
    }

    async fn progress(&mut self, rounds: u64) {
        let (mut target, deadline) = (None, Instant::now() + PATIENCE);
        loop {
            let now: u64 = self.line("progress").await.parse().unwrap();
            if now >= *target.get_or_insert(now + rounds) {
                return;
            }
            assert!(Instant::now() < deadline, "a worker is stuck: {}", self.line("rounds").await);
        }
    }

    async fn errors(&mut self) -> String {
        let mut text = String::new();
        let mut errors = self.child.stderr.take().unwrap();
        let _ = timeout(Duration::from_secs(10), errors.read_to_string(&mut text)).await;
        text
    }

    /// Tells it to end; it has nothing to complain about.
    async fn finish(mut self) -> String {
        self.child.stdin.take().unwrap().write_all(b"end\n").await.unwrap();
        let done = self.line("done").await;
        let errors = self.errors().await;
        let status = timeout(PATIENCE, self.child.wait()).await.expect("it does not end").unwrap();
        assert!(status.success() && errors.is_empty(), "{status}\n{errors}");
        done
    }
}

/// Two cutovers and two rollbacks while it works.
async fn switch_under(lab: &mut Lab, mut program: Program) {
    program.progress(ROUNDS).await;
    lab.mirror().await;
    for turn in 0..4 {
        program.progress(ROUNDS).await;
        if turn % 2 == 0 {
            lab.cutover().await
        } else {
            lab.rollback().await
        };
    }
    program.progress(ROUNDS).await;
    eprintln!("{}", program.finish().await);
    lab.same().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_py_does_not_notice_the_switches() {
    let python = tokio::task::spawn_blocking(python).await.unwrap();
    let mut lab = Setup::new().build().await;
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/clients/python.py");
    let program = Program::start(&python, &[script], &lab.gateway.address());
    switch_under(&mut lab, program).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ioredis_and_node_redis_do_not_notice_the_switches() {
    let modules = tokio::task::spawn_blocking(node_modules).await.unwrap();
    let mut lab = Setup::new().build().await;
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/clients/node.mjs");
    let args = [script, modules.to_str().unwrap()];
    let program = Program::start(Path::new("node"), &args, &lab.gateway.address());
    switch_under(&mut lab, program).await;
}

/// A tool of the package redis-tools against `host:port`.
fn tool(name: &str, address: &str, args: &[&str]) -> tokio::process::Command {
    let (host, port) = address.rsplit_once(':').unwrap();
    let mut command = tokio::process::Command::new(name);
    command.args(["-h", host, "-p", port]).args(args).kill_on_drop(true);
    // its history and its preferences are somebody's
    command.env("HOME", env!("CARGO_TARGET_TMPDIR")).env("REDISCLI_HISTFILE", "/dev/null");
    command
}

fn hint(name: &str, error: &std::io::Error) -> String {
    format!("{name}: {error}; install the package redis-tools (scripts/test.sh does)")
}

/// What a tool says when it is given this input, and that it ends well.
async fn says(name: &str, address: &str, args: &[&str], input: &[u8]) -> String {
    let mut child = tool(name, address, args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{}", hint(name, &error)));
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    let feed = tokio::spawn(async move {
        // one that does not read its input may be gone already
        let _ = stdin.write_all(&input).await;
    });
    let ended = timeout(PATIENCE, child.wait_with_output()).await;
    let output = ended.unwrap_or_else(|_| panic!("{name} {args:?} does not end")).unwrap();
    feed.await.unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{name} {args:?}: {}\n{said}\n{errors}", output.status);
    said + &errors
}

/// Runs redis-cli against the active server and against the gateway: it says the same. Answers what.
async fn alike(lab: &Lab, args: &[&str], input: &[u8]) -> String {
    let (active, _) = lab.active().await;
    let direct = says("redis-cli", &active.address(), args, input).await;
    let through = says("redis-cli", &lab.gateway.address(), args, input).await;
    assert_eq!(through, direct, "redis-cli {args:?}");
    through
}

async fn cli_modes(lab: &Lab) {
    // bulk loading, with one command that is refused
    let mut bytes = Vec::new();
    for n in 0..5000 {
        encode(&mut bytes, &["SET", &format!("name:{n}"), &"v".repeat(n % 300)]);
    }
    let loaded = alike(lab, &["--pipe"], &bytes).await;
    assert!(loaded.ends_with("errors: 0, replies: 5000\n"), "{loaded}");
    encode(&mut bytes, &["LPUSH", "name:1", "x"]);
    // it ends with 1 when a command was refused
    let output = tool("redis-cli", &lab.gateway.address(), &["--pipe"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn();
    let mut child = output.unwrap();
    child.stdin.take().unwrap().write_all(&bytes).await.unwrap();
    let output = timeout(PATIENCE, child.wait_with_output()).await.expect("it does not end").unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(said.trim_end().ends_with("errors: 1, replies: 5001"), "{said}");

    let found = says("redis-cli", &lab.gateway.address(), &["--scan", "--pattern", "name:*"], b"").await;
    let names: BTreeSet<&str> = found.lines().collect();
    assert_eq!(names.len(), 5000);
    alike(lab, &["--scan"], b"").await;
    let big = alike(lab, &["--bigkeys"], b"").await;
    assert!(big.contains("Sampled 50") && big.contains("has 299 bytes"), "{big}");
    alike(lab, &["--memkeys"], b"").await;

    let latency = says("redis-cli", &lab.gateway.address(), &["--latency", "-i", "1", "--raw"], b"").await;
    let numbers: Vec<f64> = latency.split_whitespace().map(|n| n.parse().unwrap()).collect();
    assert!(numbers.len() == 4 && numbers[3] > 10.0, "least, most, average, samples: {latency}");

    let hash = ["HSET", "cli:hash", "a", "1", "b", "2"];
    says("redis-cli", &lab.gateway.address(), &["DEL", "cli:hash"], b"").await;
    says("redis-cli", &lab.gateway.address(), &hash, b"").await;
    for args in [
        &["-3", "HGETALL", "cli:hash"][..],
        &["-3", "--json", "HGETALL", "cli:hash"],
        &["-2", "HGETALL", "cli:hash"],
        &["--csv", "HGETALL", "cli:hash"],
        &["--no-raw", "HGETALL", "cli:hash"],
        &["-n", "3", "--raw", "SET", "cli:3", "x"],
        &["-r", "3", "-i", "0.01", "ECHO", "again"],
        &["EVAL", "return {1, 'two', {3}, false, redis.status_reply('OK')}", "0"],
        &["NOSUCHCOMMAND"],
        &["-3", "DEBUG", "PROTOCOL", "map"],
    ] {
        alike(lab, args, b"").await;
    }
    alike(lab, &["-x", "SET", "cli:stdin"], b"from its input").await;
    let session = b"MULTI\nSET cli:multi 1\nINCR cli:multi\nEXEC\nDISCARD\nSELECT 2\nSET cli:two 2\nGET cli:two\nHELLO\n";
    let without_ids = |said: String| said.lines().filter(|line| !line.chars().all(char::is_numeric)).count();
    let (active, _) = lab.active().await;
    let direct = says("redis-cli", &active.address(), &[], session).await;
    let through = says("redis-cli", &lab.gateway.address(), &[], session).await;
    assert_eq!(without_ids(through.clone()), without_ids(direct), "{through}");
    alike(lab, &["-3"], b"MULTI\nSET cli:multi 1\nINCR cli:multi\nEXEC\nHGETALL cli:hash\nGET none\n").await;
}

/// A redis-cli that goes on until it is ended.
struct Listener {
    _child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Listener {
    fn start(lab: &Lab, args: &[&str]) -> Self {
        let spawned = tool("redis-cli", &lab.gateway.address(), args)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn();
        let mut child = spawned.unwrap_or_else(|error| panic!("{}", hint("redis-cli", &error)));
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { _child: child, lines }
    }

    async fn next(&mut self) -> String {
        let line = timeout(PATIENCE, self.lines.next_line()).await.expect("it says nothing").unwrap();
        line.expect("it ended")
    }

    /// Passes over lines until one holds this.
    async fn until(&mut self, part: &str) {
        while !self.next().await.contains(part) {}
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_cli_says_what_it_says_of_the_server() {
    let mut lab = Setup::new().build().await;
    let mut client = Connection::open(&lab.gateway.address()).await.unwrap();
    let mut monitor = Listener::start(&lab, &["MONITOR"]);
    assert_eq!(monitor.next().await, "OK");
    let mut subscribers =
        [Listener::start(&lab, &["SUBSCRIBE", "news"]), Listener::start(&lab, &["-3", "PSUBSCRIBE", "n*"])];
    for (subscriber, word) in subscribers.iter_mut().zip(["subscribe", "psubscribe"]) {
        subscriber.until(word).await;
    }
    eventually("both subscribe", async || {
        client.must(&["PUBLISH", "news", "are you there"]).await.unwrap().number() == Some(2)
    })
    .await;
    cli_modes(&lab).await;
    lab.mirror().await;
    for turn in 0..3 {
        match turn {
            0 => {}
            1 => drop(lab.cutover().await),
            _ => drop(lab.rollback().await),
        }
        let message = format!("message {turn}");
        client.must(&["SET", "monitored", &message]).await.unwrap();
        monitor.until(&format!("\"SET\" \"monitored\" \"{message}\"")).await;
        assert_eq!(client.must(&["PUBLISH", "news", &message]).await.unwrap().number(), Some(2));
        for subscriber in &mut subscribers {
            subscriber.until(&message).await;
        }
        if turn == 1 {
            cli_modes(&lab).await;
        }
    }
    lab.same().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_benchmark_runs_through_the_gateway_and_over_a_switch() {
    let mut lab = Setup::new().build().await;
    lab.mirror().await;
    let address = lab.gateway.address();
    let tests = "ping_inline,ping_mbulk,set,get,incr,lpush,rpush,lpop,sadd,hset,zadd,mset";
    let args = ["-P", "16", "-q", "-n", "5000", "-r", "1000", "-t", tests];
    let said = says("redis-benchmark", &address, &args, b"").await;
    let results = said.lines().filter(|line| line.contains(" requests per second, p50=")).count();
    assert_eq!(results, tests.split(',').count(), "{said}");
    assert!(!said.to_lowercase().contains("error"), "{said}");

    // Each command once, whatever happens meanwhile.
    let counting = tokio::spawn({
        let address = address.clone();
        async move {
            let args = ["-P", "16", "-q", "-c", "20", "-n", "200000", "INCR", "counted"];
            says("redis-benchmark", &address, &args, b"").await
        }
    });
    let counted = async || {
        let (active, _) = lab.active().await;
        active.call(&["GET", "counted"]).await.unwrap().number().unwrap_or_default()
    };
    eventually("it counts", async || counted().await > 5000).await;
    lab.cutover().await;
    let at = counted().await;
    assert!(at < 200_000, "over before the switch");
    eventually("it goes on counting", async || counted().await > (at + 5000).min(199_999)).await;
    lab.rollback().await;
    let said = counting.await.unwrap();
    assert!(said.contains("requests per second"), "{said}");
    assert_eq!(counted().await, 200_000);
    lab.same().await;
}

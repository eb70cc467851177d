//! The receiver and the journal against real servers.
//!
//! The oracle is Redis: a server is started from the snapshot in the journal, fed the stream byte for byte, and its
//! `DEBUG DIGEST` compared with the source's. Offsets are compared with `master_repl_offset`.
//!
//! Older servers and forks are tried when `CROSSFADE_SERVERS` names a folder with `<name>/redis-server` or
//! `<name>/valkey-server` in it.

#![allow(clippy::unwrap_used, reason = "a test")]
#![allow(clippy::print_stderr, reason = "a test that fails shows the server's log")]

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossfade::Side;
use crossfade::replication::{
    Journal, JournalOptions, Link, Position, ReceiveFrom, Receiver, ReceiverHandle, ReceiverOptions,
};
use crossfade::resp::value::Value;
use crossfade::server::{Capabilities, Client, Endpoint};
use tokio::io::AsyncWriteExt;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

const PATIENCE: Duration = Duration::from_secs(60);

/// A real server; killed when dropped.
struct Server {
    child: Child,
    dir: tempfile::TempDir,
    port: u16,
    password: Option<&'static str>,
}

impl Server {
    async fn start(args: &[&str]) -> Self {
        Self::start_with(
            Path::new("redis-server"),
            &[&["--enable-debug-command", "yes"], args].concat(),
            None,
        )
        .await
    }

    async fn start_with(binary: &Path, args: &[&str], snapshot: Option<&Path>) -> Self {
        for _ in 0..5 {
            let dir = tempfile::tempdir().unwrap();
            if let Some(snapshot) = snapshot {
                std::fs::copy(snapshot, dir.path().join("dump.rdb")).unwrap();
            }
            let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
            let child = Command::new(binary)
                .args(["--port", &port.to_string(), "--bind", "127.0.0.1"])
                .args(["--save", "", "--appendonly", "no"])
                .args(args)
                .current_dir(dir.path())
                .stdout(std::fs::File::create(dir.path().join("log")).unwrap())
                .stderr(Stdio::null())
                .spawn()
                .unwrap();
            let mut server = Self { child, dir, port, password: None };
            if let Some(at) = args.iter().position(|arg| *arg == "--requirepass") {
                server.password = Some(Box::leak(args[at + 1].to_owned().into_boxed_str()));
            }
            let deadline = Instant::now() + PATIENCE;
            loop {
                if server.child.try_wait().unwrap().is_some() {
                    break;
                }
                if let Ok(mut client) = Client::open(&server.endpoint(), Duration::from_secs(5)).await
                    && client.command(&["PING"]).await.is_ok()
                {
                    return server;
                }
                assert!(Instant::now() < deadline, "the server does not answer");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            // The port was taken in between, most likely.
        }
        panic!("{} does not start", binary.display());
    }

    fn endpoint(&self) -> Endpoint {
        let login = self.password.map(|password| format!(":{password}@")).unwrap_or_default();
        Endpoint::parse(Side::Source, &format!("redis://{login}127.0.0.1:{}", self.port)).unwrap()
    }

    async fn client(&self) -> Client {
        Client::open(&self.endpoint(), Duration::from_secs(20)).await.unwrap()
    }

    async fn run(&self, command: &str) -> Value {
        let args: Vec<&str> = command.split(' ').collect();
        self.client().await.command(&args).await.unwrap()
    }

    async fn offset(&self) -> u64 {
        self.client().await.info("replication").await.unwrap().u64("master_repl_offset").unwrap()
    }

    async fn digest(&self) -> String {
        self.run("DEBUG DIGEST").await.as_str().unwrap().to_owned()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("{}", std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default());
        }
    }
}

/// A receiver with its journal.
struct Feed {
    handle: ReceiverHandle,
    journal: Arc<Journal>,
    applied: watch::Sender<u64>,
}

impl Feed {
    fn start(server: &Server, dir: &Path, from: ReceiveFrom) -> Self {
        let options = JournalOptions { segment_bytes: 256 * 1024, ..JournalOptions::default() };
        Self::start_on(server, Arc::new(Journal::open_with(dir, options).unwrap()), from)
    }

    fn start_on(server: &Server, journal: Arc<Journal>, from: ReceiveFrom) -> Self {
        let applied = watch::Sender::new(0);
        let cancel = CancellationToken::new();
        let mut options =
            ReceiverOptions::new(server.endpoint(), journal.clone(), from, applied.subscribe(), cancel);
        options.backoff = (Duration::from_millis(5), Duration::from_millis(200));
        Self { handle: Receiver::spawn(options), journal, applied }
    }

    async fn wait_link(&self, what: &str, is: impl Fn(&Link) -> bool) {
        let mut state = self.handle.state.clone();
        let waiting = state.wait_for(|state| is(&state.link));
        let outcome = tokio::time::timeout(PATIENCE, waiting).await;
        match outcome.map(|found| found.map(drop)) {
            Ok(Ok(())) => {}
            _ => panic!("{what}: {:?}", *self.handle.state.borrow()),
        }
    }

    /// Waits until the stream has been joined so often.
    async fn joined(&self, links: u64) {
        let mut state = self.handle.state.clone();
        let waiting = state.wait_for(|state| state.links >= links);
        tokio::time::timeout(PATIENCE, waiting).await.unwrap().unwrap();
    }

    async fn streaming(&self) {
        self.wait_link("streaming", |link| matches!(link, Link::Streaming)).await;
    }

    /// Waits until so many bytes more have come.
    async fn flows(&self, more: u64) {
        let (deadline, end) = (Instant::now() + PATIENCE, self.journal.received() + more);
        while self.journal.received() < end {
            assert!(Instant::now() < deadline, "nothing comes: {:?}", *self.handle.state.borrow());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Waits until everything that the server has written so far is here, and not a byte more.
    async fn caught_up(&self, server: &Server) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let (before, here, after) =
                (server.offset().await, self.journal.received(), server.offset().await);
            if before == here && here == after {
                return;
            }
            assert!(Instant::now() < deadline, "{before} {here} {after} {:?}", *self.handle.state.borrow());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    async fn stop(self) -> Arc<Journal> {
        self.handle.stop().await;
        self.journal
    }
}

/// Writes to several dbs as fast as one connection does, until told to end.
fn traffic(server: &Server) -> (CancellationToken, tokio::task::JoinHandle<u64>) {
    let stop = CancellationToken::new();
    let (token, endpoint) = (stop.clone(), server.endpoint());
    let writing = tokio::spawn(async move {
        let mut client = Client::open(&endpoint, Duration::from_secs(20)).await.unwrap();
        let mut rounds = 0u64;
        while !token.is_cancelled() {
            let (db, n) = (rounds % 3, rounds);
            let text = format!(
                "SELECT {db}\r\nINCR counter\r\nSET key:{n} {}\r\nLPUSH list {n}\r\nMULTI\r\nSADD set {n}\r\n\
                 APPEND log {n},\r\nEXEC\r\nHSET hash:{} field {n}\r\nDEL key:{}\r\nSET short{n} x PX 1000000\r\n",
                "v".repeat((n % 300) as usize + 1),
                n % 50,
                n.saturating_sub(90),
            );
            let replies = client.pipeline(text.as_bytes(), 10).await.unwrap();
            assert!(replies.iter().all(|reply| !reply.is_error()), "{replies:?}");
            rounds += 1;
        }
        rounds
    });
    (stop, writing)
}

/// What the snapshot and the stream in the journal make of an empty server.
async fn rebuilt(journal: &Journal, binary: &Path, args: &[&str]) -> String {
    let snapshot = journal.snapshot().unwrap();
    assert!(snapshot.complete);
    let replica = Server::start_with(binary, args, Some(&snapshot.path)).await;
    let mut socket = tokio::net::TcpStream::connect(("127.0.0.1", replica.port)).await.unwrap();
    let (mut from, mut to) = socket.split();
    let mut reader = journal.reader(snapshot.offset).unwrap();
    let end = journal.received();
    let feed = async {
        to.write_all(b"CLIENT REPLY OFF\r\n").await.unwrap();
        while reader.position() < end {
            to.write_all(&reader.next().await.unwrap().bytes).await.unwrap();
        }
        to.write_all(b"CLIENT REPLY ON\r\nECHO that-is-all\r\n").await.unwrap();
    };
    let drain = async {
        let mut tail = Vec::new();
        let mut buffer = vec![0; 65536];
        loop {
            let read = tokio::io::AsyncReadExt::read(&mut from, &mut buffer).await.unwrap();
            assert!(read > 0);
            tail.extend_from_slice(&buffer[..read]);
            if tail.ends_with(b"that-is-all\r\n") {
                return;
            }
            tail.drain(..tail.len().saturating_sub(20));
        }
    };
    tokio::join!(feed, drain);
    replica.digest().await
}

async fn in_step(feed: &Feed, server: &Server) {
    feed.caught_up(server).await;
    let theirs = server.digest().await;
    let args = ["--enable-debug-command", "yes"];
    assert_eq!(rebuilt(&feed.journal, Path::new("redis-server"), &args).await, theirs);
}

async fn a_link_that_is_cut_again_and_again(args: &[&str]) {
    let args = &[args, &["--repl-backlog-size", "100mb"]].concat();
    let server = Server::start(args).await;
    server.run("DEBUG POPULATE 50000 base 200").await;
    let (stop, writing) = traffic(&server);
    let dir = tempfile::tempdir().unwrap();
    let feed = Feed::start(&server, dir.path(), ReceiveFrom::FullSync);
    feed.wait_link("snapshot", |link| matches!(link, Link::Snapshot { .. } | Link::Streaming)).await;
    // Read the snapshot while it arrives.
    let journal = feed.journal.clone();
    let following = tokio::task::spawn_blocking(move || {
        let mut reader = journal.snapshot_reader().unwrap();
        let mut bytes = Vec::new();
        reader.read_to_end(&mut bytes).unwrap();
        bytes
    });
    feed.streaming().await;
    let followed = following.await.unwrap();
    let snapshot = feed.journal.snapshot().unwrap();
    assert!(followed.starts_with(b"REDIS") && followed.len() as u64 == snapshot.bytes);
    assert_eq!(followed, std::fs::read(&snapshot.path).unwrap());
    for links in 2..7 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let killed = server.run("CLIENT KILL TYPE replica").await;
        assert_eq!(killed.as_i64(), Some(1));
        feed.joined(links).await;
    }
    stop.cancel();
    assert!(writing.await.unwrap() > 100);
    in_step(&feed, &server).await;
    let state = feed.handle.state.borrow().clone();
    assert_eq!((state.generation, state.received), (1, server.offset().await));
    let replid = server.client().await.info("replication").await.unwrap();
    assert_eq!(state.replid.as_deref(), replid.get("master_replid"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_diskless_snapshot_and_a_link_that_is_cut() {
    a_link_that_is_cut_again_and_again(&["--repl-diskless-sync", "yes", "--repl-diskless-sync-delay", "0"])
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_from_disk_and_a_link_that_is_cut() {
    a_link_that_is_cut_again_and_again(&["--repl-diskless-sync", "no"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_journal_that_is_opened_again_goes_on() {
    let server = Server::start(&["--repl-diskless-sync-delay", "0", "--repl-backlog-size", "100mb"]).await;
    let dir = tempfile::tempdir().unwrap();
    let (stop, writing) = traffic(&server);
    let mut from = ReceiveFrom::FullSync;
    for _ in 0..4 {
        let feed = Feed::start(&server, dir.path(), from);
        let before = feed.journal.received();
        feed.streaming().await;
        let mut end = feed.journal.end();
        let more = end.wait_for(|end| *end > before + 100_000);
        tokio::time::timeout(PATIENCE, more).await.unwrap().unwrap();
        // One record is on disk, and there will be another one to tear.
        let deadline = Instant::now() + PATIENCE;
        while newest(dir.path()).is_none_or(|path| std::fs::metadata(path).unwrap().len() < 100) {
            assert!(Instant::now() < deadline, "nothing is written");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let here = feed.journal.received();
        let more = end.wait_for(|end| *end > here + 1000);
        let reached = *tokio::time::timeout(PATIENCE, more).await.unwrap().unwrap();
        let journal = feed.stop().await;
        assert!(journal.received() >= reached);
        // As kill -9 would leave it: the last record torn.
        drop(journal);
        tear(dir.path(), 5);
        from = ReceiveFrom::Journal;
    }
    // A destination that has applied something the journal holds, and one that is ahead of the journal.
    let journal = Journal::open(dir.path()).unwrap();
    let replid = journal.replid().unwrap();
    let (offset, end) = (journal.snapshot().unwrap().offset, journal.received());
    drop(journal);
    let position = Position { replid: replid.clone(), offset: offset + 100, db: 0 };
    let feed = Feed::start(&server, dir.path(), ReceiveFrom::Continue(position));
    feed.streaming().await;
    stop.cancel();
    writing.await.unwrap();
    in_step(&feed, &server).await;
    assert_eq!(feed.journal.generation(), 1);
    assert!(feed.journal.snapshot().is_some());
    feed.stop().await;

    let ahead = Position { replid, offset: server.offset().await, db: 0 };
    let lines = std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().path());
    for path in lines.filter(|path| path.extension().is_some_and(|ext| ext == "log")) {
        std::fs::remove_file(path).unwrap();
    }
    assert!(end < ahead.offset);
    let feed = Feed::start(&server, dir.path(), ReceiveFrom::Continue(ahead.clone()));
    let mut reader = feed.journal.reader(ahead.offset).unwrap();
    server.run("SET after all").await;
    feed.streaming().await;
    let chunk = tokio::time::timeout(PATIENCE, reader.next()).await.unwrap().unwrap();
    assert_eq!(chunk.offset, ahead.offset + 1);
    feed.caught_up(&server).await;
    assert_eq!(feed.journal.generation(), 1);
}

/// The segment that is written to.
fn newest(dir: &Path) -> Option<PathBuf> {
    let all = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    all.filter(|path| path.extension().is_some_and(|ext| ext == "log")).max()
}

/// Cuts bytes off the newest segment.
fn tear(dir: &Path, bytes: u64) {
    let newest = newest(dir).unwrap();
    let file = std::fs::OpenOptions::new().write(true).open(newest).unwrap();
    let length = file.metadata().unwrap().len();
    file.set_len(length.saturating_sub(bytes)).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_that_breaks_off_is_begun_anew() {
    // The delay makes the transfer slow enough to be cut.
    let server = Server::start(&["--repl-diskless-sync-delay", "0", "--rdb-key-save-delay", "30"]).await;
    server.run("DEBUG POPULATE 40000 base 1000").await;
    let dir = tempfile::tempdir().unwrap();
    let feed = Feed::start(&server, dir.path(), ReceiveFrom::FullSync);
    feed.wait_link("snapshot", |link| matches!(link, Link::Snapshot { read, .. } if *read > 0)).await;
    let mut reader = feed.journal.snapshot_reader().unwrap();
    let following = tokio::task::spawn_blocking(move || reader.read_to_end(&mut Vec::new()));
    assert_eq!(server.run("CLIENT KILL TYPE replica").await.as_i64(), Some(1));
    let outcome = following.await.unwrap();
    assert_eq!(outcome.unwrap_err().kind(), std::io::ErrorKind::ConnectionAborted);
    server.run("CONFIG SET rdb-key-save-delay 0").await;
    let mut state = feed.handle.state.clone();
    let again = state.wait_for(|state| state.generation == 2 && matches!(state.link, Link::Streaming));
    tokio::time::timeout(PATIENCE, again).await.unwrap().unwrap();
    in_step(&feed, &server).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_resynchronisation_that_nobody_asked_for_is_a_new_generation() {
    let server = Server::start(&["--repl-diskless-sync-delay", "0"]).await;
    server.run("SET before yes").await;
    let dir = tempfile::tempdir().unwrap();
    let feed = Feed::start(&server, dir.path(), ReceiveFrom::FullSync);
    feed.streaming().await;
    let mut reader = feed.journal.reader(feed.journal.received()).unwrap();
    let old = feed.journal.replid();
    server.run("DEBUG CHANGE-REPL-ID").await;
    server.run("CLIENT KILL TYPE replica").await;
    let mut state = feed.handle.state.clone();
    let again = state.wait_for(|state| state.generation == 2 && matches!(state.link, Link::Streaming));
    tokio::time::timeout(PATIENCE, again).await.unwrap().unwrap();
    assert_ne!(feed.journal.replid(), old);
    assert!(reader.is_superseded());
    let error = loop {
        if let Err(error) = reader.next().await {
            break error;
        }
    };
    assert!(error.retry, "{error}");
    in_step(&feed, &server).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failover_goes_on_under_another_id() {
    let primary = Server::start(&["--repl-diskless-sync-delay", "0"]).await;
    let replica = Server::start(&["--repl-diskless-sync-delay", "0"]).await;
    replica.run(&format!("REPLICAOF 127.0.0.1 {}", primary.port)).await;
    let deadline = Instant::now() + PATIENCE;
    let up = |info: crossfade::server::Info| info.get("master_link_status") == Some("up");
    while !up(replica.client().await.info("replication").await.unwrap()) {
        assert!(Instant::now() < deadline);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    primary.run("SET one 1").await;
    let dir = tempfile::tempdir().unwrap();
    let feed = Feed::start(&replica, dir.path(), ReceiveFrom::FullSync);
    feed.streaming().await;
    primary.run("SET two 2").await;
    feed.caught_up(&replica).await;
    let old = Position { replid: feed.journal.replid().unwrap(), offset: feed.journal.received(), db: 0 };
    replica.run("REPLICAOF NO ONE").await;
    let mut state = feed.handle.state.clone();
    let changed = state.wait_for(|state| state.replid.as_deref() != Some(old.replid.as_str()));
    tokio::time::timeout(PATIENCE, changed).await.unwrap().unwrap();
    feed.streaming().await;
    replica.run("SET three 3").await;
    in_step(&feed, &replica).await;
    assert_eq!(feed.journal.generation(), 1);
    assert!(feed.journal.covers(&old));
    let beyond = Position { offset: old.offset + 1, ..old };
    assert!(!feed.journal.covers(&beyond));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tail_has_the_stream_and_no_snapshot_and_wait_means_applied() {
    let server = Server::start(&["--repl-diskless-sync-delay", "0", "--requirepass", "p@ss/word"]).await;
    server.run("DEBUG POPULATE 1000").await;
    let dir = tempfile::tempdir().unwrap();
    let feed = Feed::start(&server, dir.path(), ReceiveFrom::Tail);
    feed.streaming().await;
    assert!(feed.journal.snapshot().is_none());
    let start = feed.journal.start();
    let mut reader = feed.journal.reader(start).unwrap();
    let mut client = server.client().await;
    client.command(&["SELECT", "3"]).await.unwrap();
    client.command(&["SET", "a", "b"]).await.unwrap();
    let mut seen = Vec::new();
    while !seen.ends_with(b"$1\r\na\r\n$1\r\nb\r\n") {
        seen.extend_from_slice(&reader.next().await.unwrap().bytes);
    }
    // A full synchronisation makes the source select its db anew.
    assert!(
        seen.windows(21).any(|bytes| bytes == b"*2\r\n$6\r\nSELECT\r\n$1\r\n3"),
        "{}",
        seen.escape_ascii()
    );
    // Received is not applied.
    assert_eq!(client.command(&["WAIT", "1", "300"]).await.unwrap().as_i64(), Some(0));
    let began = Instant::now();
    let (waited, ()) = tokio::join!(client.command(&["WAIT", "1", "10000"]), async {
        while server.client().await.info("clients").await.unwrap().u64("blocked_clients") != Some(1) {
            assert!(began.elapsed() < PATIENCE, "WAIT does not wait");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        feed.applied.send_replace(feed.journal.received());
    });
    assert_eq!(waited.unwrap().as_i64(), Some(1));
    assert!(began.elapsed() < Duration::from_millis(700), "{:?}", began.elapsed());
    feed.caught_up(&server).await;
    // A link that is cut: the stream goes on.
    server.run("CLIENT KILL TYPE replica").await;
    client.command(&["SET", "c", "d"]).await.unwrap();
    feed.caught_up(&server).await;
    assert_eq!(feed.journal.generation(), 1);
    assert_eq!(feed.journal.start(), start);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_without_psync_is_taken_by_sync() {
    for diskless in ["no", "yes"] {
        let args = ["--rename-command", "PSYNC", "", "--repl-diskless-sync", diskless];
        let server = Server::start(&[&args[..], &["--repl-diskless-sync-delay", "0"]].concat()).await;
        server.run("DEBUG POPULATE 1000").await;
        let (stop, writing) = traffic(&server);
        let dir = tempfile::tempdir().unwrap();
        let feed = Feed::start(&server, dir.path(), ReceiveFrom::FullSync);
        feed.streaming().await;
        feed.flows(50_000).await;
        server.run("CLIENT KILL TYPE replica").await;
        let mut state = feed.handle.state.clone();
        let again = state.wait_for(|state| state.generation == 2 && matches!(state.link, Link::Streaming));
        tokio::time::timeout(PATIENCE, again).await.unwrap().unwrap();
        stop.cancel();
        writing.await.unwrap();
        assert_eq!(feed.journal.replid(), None);
        // There is no offset to compare with: look for the last write instead.
        server.run("SET the-last one").await;
        let mut reader = feed.journal.reader(0).unwrap();
        let mut seen = Vec::new();
        while !seen.ends_with(b"the-last\r\n$3\r\none\r\n") {
            let chunk = tokio::time::timeout(PATIENCE, reader.next()).await.unwrap().unwrap();
            seen.extend_from_slice(&chunk.bytes);
        }
        let theirs = server.digest().await;
        let args = ["--enable-debug-command", "yes"];
        assert_eq!(rebuilt(&feed.journal, Path::new("redis-server"), &args).await, theirs);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_stops_the_receiver_and_nothing_is_lost() {
    let server = Server::start(&["--repl-diskless-sync-delay", "0"]).await;
    let probe = tempfile::tempdir().unwrap();
    let feed = Feed::start(&server, probe.path(), ReceiveFrom::Tail);
    feed.streaming().await;
    let journal = feed.stop().await;
    let position = Position { replid: journal.replid().unwrap(), offset: server.offset().await, db: 0 };
    // The first segment of a new journal will lie on a device that is always full.
    let dir = tempfile::tempdir().unwrap();
    let segment = dir.path().join(format!("stream-1-{:020}.log", position.offset));
    let journal = Arc::new(Journal::open(dir.path()).unwrap());
    std::os::unix::fs::symlink("/dev/full", &segment).unwrap();
    let feed = Feed::start_on(&server, journal, ReceiveFrom::Continue(position.clone()));
    let mut reader = feed.journal.reader(position.offset).unwrap();
    feed.streaming().await;
    server.run("SET first yes").await;
    // What has arrived can be applied all the same.
    let chunk = tokio::time::timeout(PATIENCE, reader.next()).await.unwrap().unwrap();
    assert_eq!(chunk.offset, position.offset + 1);
    feed.wait_link("failed", |link| {
        matches!(link, Link::Failed(error) if error.side == Side::Gateway && error.retry && error.remedy.is_some())
    })
    .await;
    server.run("SET second yes").await;
    std::fs::remove_file(&segment).unwrap();
    feed.streaming().await;
    feed.caught_up(&server).await;
    let end = feed.journal.received();
    drop(reader);
    drop(feed.stop().await);
    let journal = Journal::open(dir.path()).unwrap();
    assert_eq!(journal.received(), end);
    let mut reader = journal.reader(position.offset).unwrap();
    let mut seen = Vec::new();
    while reader.position() < end {
        seen.extend_from_slice(&reader.next().await.unwrap().bytes);
    }
    assert!(
        seen.windows(5).any(|bytes| bytes == b"first") && seen.windows(6).any(|bytes| bytes == b"second")
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refusals_end_the_receiver_and_absence_does_not() {
    let server = Server::start(&["--requirepass", "secret"]).await;
    let mut open = Server::start(&[]).await;
    let dir = tempfile::tempdir().unwrap();
    // No password at all.
    let anonymous = Endpoint::parse(Side::Source, &format!("redis://127.0.0.1:{}", server.port)).unwrap();
    let wrong = Endpoint::parse(Side::Source, &format!("redis://:wrong@127.0.0.1:{}", server.port)).unwrap();
    for endpoint in [anonymous, wrong] {
        let journal = Arc::new(Journal::open(dir.path()).unwrap());
        let applied = watch::Sender::new(0);
        let cancel = CancellationToken::new();
        let options = ReceiverOptions::new(
            endpoint,
            journal,
            ReceiveFrom::FullSync,
            applied.subscribe(),
            cancel.clone(),
        );
        let handle = Receiver::spawn(options);
        let mut state = handle.state.clone();
        let failed = state.wait_for(|state| matches!(&state.link, Link::Failed(error) if !error.retry));
        let error = tokio::time::timeout(PATIENCE, failed).await.unwrap().unwrap().link.clone();
        assert!(matches!(error, Link::Failed(error) if error.side == Side::Source && error.remedy.is_some()));
    }
    // A server that is away.
    let feed = Feed::start(&open, dir.path(), ReceiveFrom::FullSync);
    feed.wait_link("attached", |link| !matches!(link, Link::Connecting)).await;
    open.child.kill().unwrap();
    open.child.wait().unwrap();
    feed.wait_link("lost", |link| matches!(link, Link::Lost { .. })).await;
    let journal = tokio::time::timeout(Duration::from_secs(5), feed.stop()).await.unwrap();
    assert!(!journal.can_continue());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_other_server_that_is_here() {
    let Some(folder) = std::env::var_os("CROSSFADE_SERVERS").map(PathBuf::from) else {
        eprintln!("skipped: CROSSFADE_SERVERS does not name a folder of servers");
        return;
    };
    let mut found: Vec<PathBuf> = std::fs::read_dir(folder)
        .unwrap()
        .flat_map(|entry| {
            let dir = entry.unwrap().path();
            ["redis-server", "valkey-server", "redict-server"].map(|name| dir.join(name))
        })
        .filter(|binary| binary.exists())
        .collect();
    found.sort();
    found.dedup_by_key(|binary| binary.parent().map(Path::to_path_buf));
    for binary in found {
        let name = binary.parent().unwrap().file_name().unwrap().to_string_lossy().into_owned();
        let probe = Server::start_with(&binary, &[], None).await;
        let capabilities = Capabilities::probe(&mut probe.client().await).await.unwrap();
        drop(probe);
        let mut args = vec!["--repl-backlog-size", "100mb"];
        if capabilities.at_least(7, 0) {
            args.extend(["--enable-debug-command", "yes"]);
        }
        let snapshot_args = args.clone();
        if capabilities.at_least(3, 0) {
            args.extend(["--repl-diskless-sync", "yes", "--repl-diskless-sync-delay", "0"]);
        }
        for args in [snapshot_args.clone(), args] {
            let server = Server::start_with(&binary, &args, None).await;
            server.run("DEBUG POPULATE 20000").await;
            let (stop, writing) = traffic(&server);
            let dir = tempfile::tempdir().unwrap();
            let feed = Feed::start(&server, dir.path(), ReceiveFrom::FullSync);
            feed.streaming().await;
            feed.flows(100_000).await;
            // There is no TYPE before 2.8.12 and 3.2; and it was `slave` before 5.0.
            let mut client = server.client().await;
            let killed = client.call(&["CLIENT", "KILL", "TYPE", "slave"]).await.unwrap();
            if killed.as_i64() == Some(1) {
                feed.joined(2).await;
            }
            stop.cancel();
            writing.await.unwrap();
            feed.caught_up(&server).await;
            assert_eq!(feed.journal.generation(), 1);
            // CLIENT REPLY came with 3.2, and candidates of 4.0 crash in DEBUG DIGEST.
            if capabilities.at_least(5, 0) {
                let theirs = server.digest().await;
                assert_eq!(rebuilt(&feed.journal, &binary, &snapshot_args).await, theirs, "{name}");
            }
            let dir = tempfile::tempdir().unwrap();
            let tail = Feed::start(&server, dir.path(), ReceiveFrom::Tail);
            tail.streaming().await;
            server.run("SET behind it").await;
            tail.caught_up(&server).await;
            assert!(tail.journal.snapshot().is_none());
        }
        eprintln!("{name}: {capabilities}, RDB {}", capabilities.rdb_version);
    }
}

/// Not a test: `cargo test --release --test replication -- --ignored --nocapture how_fast`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement"]
async fn how_fast() {
    let server = Server::start(&["--repl-diskless-sync", "no", "--repl-backlog-size", "1gb"]).await;
    server.run("DEBUG POPULATE 2000000 base 100").await;
    server.run("BGSAVE").await;
    let dir = tempfile::tempdir_in(".").unwrap();
    let began = Instant::now();
    let feed = Feed::start(&server, dir.path(), ReceiveFrom::FullSync);
    feed.wait_link("snapshot", |link| matches!(link, Link::Snapshot { read, .. } if *read > 0)).await;
    let first = Instant::now();
    feed.streaming().await;
    let bytes = feed.journal.snapshot().unwrap().bytes as f64 / 1e6;
    let (wait, took) = (first - began, first.elapsed());
    eprintln!("snapshot: {bytes:.0} MB after {wait:?} in {took:?}, {:.0} MB/s", bytes / took.as_secs_f64());
    let began = Instant::now();
    let mut reader = feed.journal.snapshot_reader().unwrap();
    let mut buffer = vec![0; 256 * 1024];
    while reader.read(&mut buffer).unwrap() > 0 {}
    eprintln!("read again: {:.0} MB/s", bytes / began.elapsed().as_secs_f64());

    let start = feed.journal.received();
    let mut live = feed.journal.reader(start).unwrap();
    let end = start + 400_000_000;
    let following = tokio::spawn(async move {
        while live.position() < end {
            live.next().await.unwrap();
        }
    });
    let mut client = server.client().await;
    let line = format!("*3\r\n$3\r\nSET\r\n$3\r\nkey\r\n$1000\r\n{}\r\n", "x".repeat(1000)).repeat(1000);
    let began = Instant::now();
    while server.offset().await < end {
        client.pipeline(&line.as_bytes().repeat(10), 10_000).await.unwrap();
    }
    following.await.unwrap();
    eprintln!("live: {:.0} MB/s, as the server gives it", 400.0 / began.elapsed().as_secs_f64());
    let began = Instant::now();
    let mut behind = feed.journal.reader(start).unwrap();
    let mut chunks = 0;
    while behind.position() < end {
        behind.next().await.unwrap();
        chunks += 1;
    }
    eprintln!("behind: {:.0} MB/s in {chunks} pieces", 400.0 / began.elapsed().as_secs_f64());

    let mut live = feed.journal.reader(feed.journal.received()).unwrap();
    let mut times = Vec::new();
    for _ in 0..200 {
        while live.try_next().is_some() {}
        tokio::time::sleep(Duration::from_millis(5)).await;
        let began = Instant::now();
        client.command(&["SET", "a", "b"]).await.unwrap();
        live.next().await.unwrap();
        times.push(began.elapsed());
    }
    times.sort();
    eprintln!("from the write to the reader: median {:?}, 99% {:?}", times[100], times[198]);
}

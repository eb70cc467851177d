//! The mirror between real servers: a copy and a live stream of commands whose repetition or loss would show, with
//! connections cut, the destination out of memory, and the mirror itself ended at random instants.

#![allow(clippy::unwrap_used)]

#[allow(dead_code, unreachable_pub, reason = "shared with the end-to-end tests")]
#[path = "support/socket.rs"]
mod socket;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crossfade::cli::demo::connection::{Connection, Reply};
use crossfade::cli::demo::servers::{Server, server_binary};
use crossfade::config::{OnConflict, OnError, OnExistingKey};
use crossfade::mirror::{
    Direction, Mirror, MirrorOptions, MirrorState, POSITION_KEY, Position, Resolution, Stage, Start, expiry,
};
use crossfade::server::Endpoint;
use crossfade::{Side, verify};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

const PATIENCE: Duration = Duration::from_secs(60);

/// Ids of the tests' migrations; the part behind the dot is the epoch.
const ID: &str = "test.0";

struct Pair {
    from: Server,
    to: Server,
    dir: tempfile::TempDir,
}

impl Pair {
    async fn start() -> Self {
        Self::start_with("", &[], "", &[]).await
    }

    async fn start_with(from: &str, from_args: &[&str], to: &str, to_args: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let fast = ["--repl-diskless-sync-delay", "0", "--hz", "100"];
        let from_args: Vec<&str> = fast.iter().chain(from_args).copied().collect();
        let old = dir.path().join("from");
        let new = dir.path().join("to");
        Self {
            from: Server::start_as(&server_binary(from), &old, &from_args).await.unwrap(),
            to: Server::start_as(&server_binary(to), &new, to_args).await.unwrap(),
            dir,
        }
    }

    /// Servers by their names, of versions that may not know the options of newer ones.
    async fn start_as(from: &str, to: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (old, new) = (dir.path().join("from"), dir.path().join("to"));
        Self {
            from: Server::start_as(&server_binary(from), &old, &[]).await.unwrap(),
            to: Server::start_as(&server_binary(to), &new, &[]).await.unwrap(),
            dir,
        }
    }

    fn ends(&self) -> (Endpoint, Endpoint) {
        (
            Endpoint::parse(Side::Source, &self.from.url()).unwrap(),
            Endpoint::parse(Side::Destination, &self.to.url()).unwrap(),
        )
    }

    fn journal(&self) -> PathBuf {
        self.dir.path().join("journal")
    }

    fn options(&self, start: Start) -> MirrorOptions {
        let (from, to) = self.ends();
        MirrorOptions::new(from, to, Direction::Forward, self.journal(), ID, start)
    }

    fn spawn(&self, start: Start) -> Mirror {
        Mirror::spawn(self.options(start), CancellationToken::new())
    }

    async fn end(&self) -> u64 {
        // Without a section older servers do not understand what newer ones need to be asked for.
        let info = self.from.call(&["INFO", "replication"]).await.unwrap();
        let text = String::from_utf8_lossy(info.bytes().unwrap()).into_owned();
        text.lines()
            .find_map(|line| line.strip_prefix("master_repl_offset:"))
            .unwrap()
            .trim()
            .parse()
            .unwrap()
    }

    /// Waits until the destination has everything.
    async fn in_step(&self, mirror: &Mirror) {
        let end = self.end().await;
        if let Err(error) = mirror.wait_applied(end, Instant::now() + PATIENCE).await {
            panic!("{error}; {:?}", mirror.state().borrow());
        }
    }

    async fn same(&self, padded: bool) {
        let (from, to) = self.ends();
        let options = verify::VerifyOptions { padded, ..Default::default() };
        let report = verify::compare(&from, &to, options).await.unwrap();
        assert_eq!(report.difference_count, 0, "{:#?}", report.differences);
    }
}

async fn until(mirror: &Mirror, what: &str, reached: impl Fn(&MirrorState) -> bool) -> MirrorState {
    let mut state = mirror.state();
    let outcome = tokio::time::timeout(PATIENCE, state.wait_for(|now| reached(now))).await;
    match outcome {
        Ok(Ok(now)) => now.clone(),
        _ => panic!("not reached: {what}; {:?}", mirror.state().borrow()),
    }
}

async fn live(mirror: &Mirror) -> MirrorState {
    until(mirror, "live", |state| state.stage == Stage::Live).await
}

/// Waits until so many commands of the stream have been applied since the mirror was started.
async fn applies(mirror: &Mirror, commands: u64) {
    until(mirror, "commands are applied", |state| state.commands_applied >= commands).await;
}

fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as u64
}

/// A small generator; tests print its seed.
struct Rng(u64);

impl Rng {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }
}

/// Writers whose commands show when one is lost or runs twice.
struct Load {
    stop: Arc<AtomicBool>,
    writers: Vec<JoinHandle<u64>>,
}

impl Load {
    fn start(server: &Server, writers: u64) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let address = server.address();
        let writers =
            (0..writers).map(|nth| tokio::spawn(write(address.clone(), nth, Arc::clone(&stop)))).collect();
        Self { stop, writers }
    }

    async fn stop(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        let mut total = 0;
        for writer in self.writers {
            total += writer.await.unwrap();
        }
        total
    }
}

async fn write(address: String, nth: u64, stop: Arc<AtomicBool>) -> u64 {
    let mut connection = Connection::open(&address).await.unwrap();
    let mut rng = Rng(nth + 1);
    let mut serial = 0u64;
    while !stop.load(Ordering::Relaxed) {
        let mut queued = 0;
        for _ in 0..1 + rng.below(16) {
            serial += 1;
            let text = format!("{nth}:{serial},");
            let key = |kind: &str, rng: &mut Rng| format!("{kind}:{}", rng.below(20));
            queued += 1;
            match rng.below(12) {
                0 => connection.queue(&["INCR", &key("n", &mut rng)]),
                1 => connection.queue(&["APPEND", &key("s", &mut rng), &text]),
                2 => connection.queue(&["LPUSH", &key("l", &mut rng), &text]),
                3 => connection.queue(&["XADD", &key("x", &mut rng), "*", "f", &text]),
                4 => connection.queue(&["SADD", &key("set", &mut rng), &text]),
                5 => connection.queue(&["SPOP", &key("set", &mut rng)]),
                6 => connection.queue(&["SELECT", &rng.below(4).to_string()]),
                7 => connection.queue(&["SET", &key("e", &mut rng), &text, "EX", "1000"]),
                8 => connection.queue(&["SET", &key("short", &mut rng), &text, "PX", "40"]),
                9 => connection.queue(&["INCRBYFLOAT", &key("float", &mut rng), "1.5"]),
                10 => connection.queue(&["RENAME", &key("e", &mut rng), &key("e", &mut rng)]),
                _ => {
                    connection.queue(&["MULTI"]);
                    connection.queue(&["INCR", &key("n", &mut rng)]);
                    connection.queue(&["RPUSH", &key("l", &mut rng), &text]);
                    connection.queue(&["EXEC"]);
                    queued += 3;
                }
            }
        }
        connection.flush().await.unwrap();
        for _ in 0..queued {
            connection.reply().await.unwrap();
        }
        sleep(Duration::from_micros(200)).await;
    }
    serial
}

/// Some of everything, in several dbs.
async fn fill(server: &Server, keys: u64) {
    let mut connection = server.connect().await.unwrap();
    for db in 0..3 {
        connection.queue(&["SELECT", &db.to_string()]);
        connection.queue(&["SET", "plain", "1"]);
        connection.queue(&["SET", "hours", "1", "EX", "7200"]);
        for nth in 0..keys {
            let key = format!("fill:{nth}");
            match nth % 4 {
                0 => connection.queue(&["SET", &key, "value"]),
                1 => connection.queue(&["RPUSH", &key, "a", "b", "c"]),
                2 => connection.queue(&["HSET", &key, "f", "v", "g", "w"]),
                _ => connection.queue(&["SET", &key, "v", "PX", &(60_000 + nth).to_string()]),
            }
        }
        connection.flush().await.unwrap();
        for _ in 0..keys + 3 {
            connection.reply().await.unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn copies_and_follows_under_load() {
    let pair = Pair::start().await;
    fill(&pair.from, 2000).await;
    let load = Load::start(&pair.from, 4);
    let mirror = pair.spawn(Start::Snapshot);
    live(&mirror).await;
    applies(&mirror, 1000).await;
    let written = load.stop().await;
    pair.in_step(&mirror).await;
    pair.same(true).await;
    let state = live(&mirror).await;
    assert!(written > 100 && state.commands_applied > 100, "{state:?}");
    assert!(state.snapshot.keys_loaded >= 6000, "{state:?}");
    assert_eq!((state.conflicts, state.full_resyncs, state.error), (0, 0, None));
    // Equal, so no lag but that of the last heartbeat; and the source's WAIT counts us.
    until(&mirror, "no lag", |state| state.lag_ms < 100.0 && state.applied == state.received).await;
    let mut connection = pair.from.connect().await.unwrap();
    connection.must(&["SET", "waited", "1"]).await.unwrap();
    assert_eq!(connection.must(&["WAIT", "1", "3000"]).await.unwrap().number(), Some(1));
    assert_eq!(pair.to.call(&["GET", "waited"]).await.unwrap().brief(), "1");
    mirror.stop().await;
    let stopped = mirror.state().borrow().stage;
    assert_eq!(stopped, Stage::Stopped);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_cut_at_random() {
    let pair = Pair::start().await;
    fill(&pair.from, 200).await;
    let mirror = pair.spawn(Start::Snapshot);
    live(&mirror).await;
    let load = Load::start(&pair.from, 4);
    let mut rng = Rng(now_ms());
    for _ in 0..40 {
        sleep(Duration::from_millis(rng.below(60))).await;
        // On the source only the replica: the load's own connections are normal ones.
        let (server, kind) = if rng.below(3) == 0 { (&pair.from, "replica") } else { (&pair.to, "normal") };
        let _ = server.call(&["CLIENT", "KILL", "TYPE", kind]).await;
    }
    let _ = load.stop().await;
    pair.in_step(&mirror).await;
    pair.same(true).await;
    assert_eq!(mirror.state().borrow().full_resyncs, 0);
    mirror.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ended_and_begun_again_at_random() {
    let pair = Pair::start().await;
    fill(&pair.from, 3000).await;
    let load = Load::start(&pair.from, 4);
    let mut rng = Rng(now_ms());
    let mut mirror = pair.spawn(Start::Snapshot);
    for round in 0..25 {
        sleep(Duration::from_millis(rng.below(if round < 8 { 30 } else { 120 }))).await;
        mirror.stop().await;
        mirror = pair.spawn(if rng.below(2) == 0 { Start::Snapshot } else { Start::Resume });
    }
    live(&mirror).await;
    let _ = load.stop().await;
    pair.in_step(&mirror).await;
    pair.same(true).await;
    assert_eq!(mirror.state().borrow().conflicts, 0);
    mirror.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_destination_is_killed_and_comes_back_with_its_data() {
    let mut pair = Pair::start_with("", &[], "", &["--appendonly", "yes", "--appendfsync", "always"]).await;
    let mirror = pair.spawn(Start::Snapshot);
    live(&mirror).await;
    let load = Load::start(&pair.from, 4);
    for _ in 0..5 {
        sleep(Duration::from_millis(150)).await;
        pair.to.restart().await.unwrap();
    }
    let _ = load.stop().await;
    pair.in_step(&mirror).await;
    pair.same(true).await;
    mirror.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_destination_that_comes_back_empty_is_recognised() {
    let mut pair = Pair::start().await;
    fill(&pair.from, 10).await;
    let mirror = pair.spawn(Start::Snapshot);
    live(&mirror).await;
    pair.to.restart().await.unwrap();
    pair.from.call(&["SET", "a", "1"]).await.unwrap();
    let state = until(&mirror, "failed", |state| state.stage == Stage::Failed).await;
    let trouble = state.error.unwrap();
    assert_eq!(trouble.side, Side::Destination);
    assert!(trouble.message.contains("emptied"), "{}", trouble.message);
    assert_eq!(pair.to.call(&["DBSIZE"]).await.unwrap().number(), Some(0), "nothing was written there");
    mirror.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_destination_is_waited_for() {
    let pair = Pair::start().await;
    let mirror = pair.spawn(Start::Snapshot);
    live(&mirror).await;
    pair.to.call(&["CONFIG", "SET", "maxmemory", "1"]).await.unwrap();
    let load = Load::start(&pair.from, 2);
    let state = until(&mirror, "trouble", |state| state.error.is_some()).await;
    let trouble = state.error.unwrap();
    assert!(trouble.message.contains("OOM") && trouble.retry_until.is_some(), "{trouble:?}");
    sleep(Duration::from_millis(300)).await;
    assert!(mirror.state().borrow().lag_ms > 0.0);
    pair.to.call(&["CONFIG", "SET", "maxmemory", "0"]).await.unwrap();
    let _ = load.stop().await;
    pair.in_step(&mirror).await;
    pair.same(true).await;
    assert_eq!(live(&mirror).await.error, None);
    mirror.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_command_stops_the_mirror_until_it_is_resolved() {
    let pair = Pair::start().await;
    let mirror = pair.spawn(Start::Snapshot);
    live(&mirror).await;
    pair.to.call(&["RPUSH", "k", "not a number"]).await.unwrap();
    pair.from.call(&["INCR", "k"]).await.unwrap();
    let state = until(&mirror, "failed", |state| state.stage == Stage::Failed).await;
    let message = state.error.unwrap().message;
    for part in ["INCR", "\"k\"", "db 0", "WRONGTYPE"] {
        assert!(message.contains(part), "{message}");
    }
    mirror.stop().await;
    // It stays so through a restart.
    let mirror = pair.spawn(Start::Resume);
    until(&mirror, "failed", |state| state.stage == Stage::Failed).await;
    pair.from.call(&["SET", "later", "1"]).await.unwrap();
    mirror.resolve(Resolution::Skip).await.unwrap();
    live(&mirror).await;
    pair.in_step(&mirror).await;
    assert_eq!(pair.to.call(&["GET", "later"]).await.unwrap().brief(), "1");
    assert_eq!(pair.to.call(&["LLEN", "k"]).await.unwrap().number(), Some(1));
    mirror.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_that_the_destination_does_not_know_can_be_skipped() {
    let pair = Pair::start_with("", &[], "", &["--rename-command", "LPUSH", ""]).await;
    let mirror = pair.spawn(Start::Snapshot);
    live(&mirror).await;
    pair.from.call(&["LPUSH", "k", "v"]).await.unwrap();
    let state = until(&mirror, "failed", |state| state.stage == Stage::Failed).await;
    assert!(state.error.unwrap().message.contains("LPUSH"));
    pair.from.call(&["SET", "later", "1"]).await.unwrap();
    mirror.resolve(Resolution::Skip).await.unwrap();
    live(&mirror).await;
    pair.in_step(&mirror).await;
    assert_eq!(pair.to.call(&["GET", "later"]).await.unwrap().brief(), "1");
    mirror.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_occupied_destination_is_refused() {
    let pair = Pair::start().await;
    pair.to.call(&["SET", "mine", "1"]).await.unwrap();
    let mirror = pair.spawn(Start::Snapshot);
    let state = until(&mirror, "failed", |state| state.stage == Stage::Failed).await;
    assert!(state.error.unwrap().message.contains("not empty"));
    mirror.stop().await;
    pair.to.call(&["DEL", "mine"]).await.unwrap();
    pair.to.call(&["SET", POSITION_KEY, "other.0 forward loading 1"]).await.unwrap();
    let mirror = pair.spawn(Start::Snapshot);
    let state = until(&mirror, "failed", |state| state.stage == Stage::Failed).await;
    assert!(state.error.unwrap().message.contains("other"));
    mirror.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn flushes_and_swaps_leave_the_position_where_it_is() {
    let pair = Pair::start().await;
    fill(&pair.from, 50).await;
    let mut options = pair.options(Start::Snapshot);
    options.own_keys = vec![("crossfade:epoch".into(), b"5".to_vec())];
    let mirror = Mirror::spawn(options, CancellationToken::new());
    live(&mirror).await;
    let mut connection = pair.from.connect().await.unwrap();
    for line in [
        "SET a 1",
        "SWAPDB 0 2",
        "SET b 2",
        "FLUSHDB",
        "SET c 3",
        "SWAPDB 1 0",
        "FLUSHALL",
        "SET d 4",
        "SELECT 3",
        "SET e 5",
        "SWAPDB 3 0",
        "SET f 6",
    ] {
        connection.must(&line.split(' ').collect::<Vec<_>>()).await.unwrap();
        sleep(Duration::from_millis(10)).await;
    }
    pair.in_step(&mirror).await;
    pair.same(true).await;
    let mut to = pair.to.connect().await.unwrap();
    for (db, own) in [("0", 1), ("1", 0), ("2", 0), ("3", 0)] {
        to.must(&["SELECT", db]).await.unwrap();
        let exists = to.must(&["EXISTS", POSITION_KEY]).await.unwrap().number();
        assert_eq!(exists, Some(own), "db {db}");
    }
    assert_eq!(pair.to.call(&["GET", "crossfade:epoch"]).await.unwrap().brief(), "5");
    mirror.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_that_lost_its_backlog_makes_a_new_copy() {
    let pair = Pair::start_with("", &["--repl-backlog-size", "16kb"], "", &[]).await;
    fill(&pair.from, 300).await;
    let mirror = pair.spawn(Start::Snapshot);
    live(&mirror).await;
    mirror.stop().await;
    let mut connection = pair.from.connect().await.unwrap();
    connection.must(&["DEL", "fill:0", "fill:1"]).await.unwrap();
    let big = "x".repeat(100_000);
    for nth in 0..40 {
        connection.must(&["SET", &format!("later:{nth}"), &big]).await.unwrap();
    }
    let mirror = pair.spawn(Start::Resume);
    live(&mirror).await;
    pair.in_step(&mirror).await;
    pair.same(true).await;
    assert_eq!(mirror.state().borrow().full_resyncs, 1);
    mirror.stop().await;
}

/// What the destination holds of its own must not go, and what was copied before must not be taken for that.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_copy_beside_keys_of_the_destination_stops() {
    for policy in [OnExistingKey::Keep, OnExistingKey::Replace] {
        let pair = Pair::start_with("", &["--repl-backlog-size", "16kb"], "", &[]).await;
        pair.to.call(&["SET", "own", "1"]).await.unwrap();
        pair.from.call(&["SET", "n", "1"]).await.unwrap();
        let spawn = |start| {
            let options = MirrorOptions { on_existing_key: policy, ..pair.options(start) };
            Mirror::spawn(options, CancellationToken::new())
        };
        let mirror = spawn(Start::Snapshot);
        live(&mirror).await;
        mirror.stop().await;
        let mut connection = pair.from.connect().await.unwrap();
        connection.must(&["INCR", "n"]).await.unwrap();
        for nth in 0..10 {
            connection.must(&["SET", &format!("later:{nth}"), &"x".repeat(100_000)]).await.unwrap();
        }
        let mirror = spawn(Start::Resume);
        let state = until(&mirror, "it stops", |state| state.stage == Stage::Failed).await;
        let message = state.error.unwrap().message;
        assert!(message.contains("keys of its own"), "{policy:?}: {message}");
        assert_eq!(pair.to.call(&["GET", "own"]).await.unwrap().brief(), "1", "{policy:?}");
        mirror.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pause_holds_back_and_resume_goes_on() {
    let pair = Pair::start().await;
    let mirror = pair.spawn(Start::Snapshot);
    live(&mirror).await;
    mirror.pause();
    until(&mirror, "paused", |state| state.stage == Stage::Paused).await;
    pair.from.call(&["SET", "a", "1"]).await.unwrap();
    until(&mirror, "received", |state| state.received > state.applied && state.lag_ms > 100.0).await;
    assert_eq!(pair.to.call(&["EXISTS", "a"]).await.unwrap().number(), Some(0));
    mirror.resume();
    pair.in_step(&mirror).await;
    assert_eq!(pair.to.call(&["GET", "a"]).await.unwrap().brief(), "1");
    mirror.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stalled_destination_is_waited_for() {
    let pair = Pair::start().await;
    let mirror = pair.spawn(Start::Snapshot);
    live(&mirror).await;
    let load = Load::start(&pair.from, 2);
    pair.to.signal("STOP").unwrap();
    let state = until(&mirror, "trouble", |state| state.error.is_some()).await;
    assert_ne!(state.stage, Stage::Live);
    assert!(state.lag_ms > 1000.0, "{state:?}");
    pair.to.signal("CONT").unwrap();
    let _ = load.stop().await;
    pair.in_step(&mirror).await;
    pair.same(true).await;
    live(&mirror).await;
    mirror.stop().await;
}

/// The stored expiry of a key on the destination.
async fn stored(server: &Server, db: u32, key: &str) -> i64 {
    let mut connection = server.connect().await.unwrap();
    connection.must(&["SELECT", &db.to_string()]).await.unwrap();
    connection.must(&["PEXPIRETIME", key]).await.unwrap().number().unwrap()
}

/// Waits until the expiry of a key is padded again.
async fn padded(server: &Server, db: u32, key: &str) {
    let deadline = Instant::now() + PATIENCE;
    while !expiry::is_padded(stored(server, db, key).await as u64) {
        assert!(Instant::now() < deadline, "{key} in db {db} is not padded");
        sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn expiries_are_padded_settled_and_padded_again() {
    let pair = Pair::start().await;
    fill(&pair.from, 2000).await;
    let mirror = pair.spawn(Start::Snapshot);
    live(&mirror).await;
    let mut from = pair.from.connect().await.unwrap();
    from.must(&["SET", "near", "1", "PX", "4000"]).await.unwrap();
    from.must(&["SET", "gone", "1", "PX", "4000"]).await.unwrap();
    from.must(&["SELECT", "2"]).await.unwrap();
    from.must(&["SET", "far", "1", "EX", "900"]).await.unwrap();
    pair.in_step(&mirror).await;
    assert!(expiry::is_padded(stored(&pair.to, 2, "far").await as u64));
    assert!(expiry::is_padded(stored(&pair.to, 1, "hours").await as u64));
    // On its own the destination expires nothing.
    let info = pair.to.info("expired_keys").await.unwrap();
    assert_eq!(info, "0");

    assert!(mirror.settle_last().await.is_err(), "not settled yet");
    let report = mirror.settle(Instant::now() + PATIENCE).await.unwrap();
    assert!(report.exact > 100 && report.near >= 2, "{report:?}");
    for (db, key) in [(2, "far"), (1, "hours")] {
        assert_eq!(stored(&pair.to, db, key).await, stored(&pair.from, db, key).await, "{key}");
    }
    assert!(expiry::is_padded(stored(&pair.to, 0, "near").await as u64));
    from.must(&["SET", "new", "1", "EX", "500"]).await.unwrap();
    from.must(&["SET", "new near", "1", "PX", "3000"]).await.unwrap();
    from.must(&["SELECT", "0"]).await.unwrap();
    from.must(&["DEL", "gone"]).await.unwrap();
    pair.in_step(&mirror).await;
    assert_eq!(stored(&pair.to, 2, "new").await, stored(&pair.from, 2, "new").await);
    assert!(expiry::is_padded(stored(&pair.to, 2, "new near").await as u64));
    mirror.settle_last().await.unwrap();
    for (db, key) in [(0, "near"), (2, "new near"), (2, "far"), (0, "gone")] {
        assert_eq!(stored(&pair.to, db, key).await, stored(&pair.from, db, key).await, "{key}");
    }
    pair.same(false).await;

    mirror.pad(Instant::now() + PATIENCE).await.unwrap();
    padded(&pair.to, 1, "hours").await;
    pair.in_step(&mirror).await;
    pair.same(true).await;
    mirror.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_gateways_own_keys_keep_their_expiries() {
    let pair = Pair::start().await;
    pair.to.call(&["SET", "crossfade:holder", "me", "EX", "500"]).await.unwrap();
    let exact = stored(&pair.to, 0, "crossfade:holder").await;
    fill(&pair.from, 100).await;
    let mirror = pair.spawn(Start::Snapshot);
    live(&mirror).await;
    mirror.settle(Instant::now() + PATIENCE).await.unwrap();
    mirror.pad(Instant::now() + PATIENCE).await.unwrap();
    for db in 0..3 {
        padded(&pair.to, db, "hours").await;
    }
    assert_eq!(stored(&pair.to, 0, "crossfade:holder").await, exact);
    mirror.stop().await;
}

fn back(pair: &Pair, dir: &Path, start: Start) -> Mirror {
    let (from, to) = pair.ends();
    let options = MirrorOptions::new(to, from, Direction::Reverse, dir.to_owned(), "test.1", start);
    Mirror::spawn(options, CancellationToken::new())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn there_and_back_by_a_standby() {
    let pair = Pair::start().await;
    fill(&pair.from, 500).await;
    let mirror = pair.spawn(Start::Snapshot);
    live(&mirror).await;
    let dir = pair.dir.path().join("back");
    let standby = back(&pair, &dir, Start::Standby);
    until(&standby, "standby", |state| state.stage == Stage::Standby).await;
    let load = Load::start(&pair.from, 3);
    applies(&mirror, 500).await;
    mirror.settle(Instant::now() + PATIENCE).await.unwrap();
    let _ = load.stop().await;
    pair.in_step(&mirror).await;
    mirror.settle_last().await.unwrap();
    let offset: u64 = pair.to.info("master_repl_offset").await.unwrap().parse().unwrap();
    // A writer that slips in before the mirror is engaged is not lost.
    let mut stray = pair.to.connect().await.unwrap();
    stray.must(&["SELECT", "3"]).await.unwrap();
    stray.must(&["INCR", "stray"]).await.unwrap();
    // The standby has read past the place where it will be engaged.
    let behind: u64 = pair.to.info("master_repl_offset").await.unwrap().parse().unwrap();
    assert!(behind > offset);
    standby.wait_applied(behind, Instant::now() + PATIENCE).await.unwrap();
    let position = standby.engage(offset, Instant::now() + PATIENCE).await.unwrap();
    assert_eq!(position.offset, offset);
    assert_eq!(pair.from.call(&["EXISTS", POSITION_KEY]).await.unwrap().number(), Some(0));
    mirror.stop().await;
    standby.go();
    live(&standby).await;
    let load = Load::start(&pair.to, 3);
    applies(&standby, 500).await;
    // Past the commit, after a crash: the same beginning, told again.
    standby.stop().await;
    let again = back(&pair, &dir, Start::At(position));
    applies(&again, 500).await;
    let _ = load.stop().await;
    let end: u64 = pair.to.info("master_repl_offset").await.unwrap().parse().unwrap();
    again.wait_applied(end, Instant::now() + PATIENCE).await.unwrap();
    let (from, to) = pair.ends();
    let deadline = Instant::now() + PATIENCE;
    loop {
        // The expiries of the old side are padded in the background.
        let options = verify::VerifyOptions { padded: true, ..Default::default() };
        let report = verify::compare(&to, &from, options).await.unwrap();
        if report.difference_count == 0 {
            break;
        }
        assert!(Instant::now() < deadline, "{:#?}", report.differences);
    }
    let mut old = pair.from.connect().await.unwrap();
    old.must(&["SELECT", "3"]).await.unwrap();
    assert_eq!(old.must(&["GET", "stray"]).await.unwrap().brief(), "1");
    again.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_position_that_nobody_wrote_yet_is_begun_with() {
    let pair = Pair::start().await;
    pair.from.call(&["SET", "before", "1"]).await.unwrap();
    // A replica of any kind gives the server a backlog to go on from.
    let standby = pair.spawn(Start::Standby);
    until(&standby, "standby", |state| state.stage == Stage::Standby).await;
    pair.from.call(&["SET", "a", "1"]).await.unwrap();
    let position = standby.engage(pair.end().await, Instant::now() + PATIENCE).await.unwrap();
    standby.stop().await;
    pair.from.call(&["SET", "b", "1"]).await.unwrap();
    let elsewhere = Pair { dir: tempfile::tempdir().unwrap(), ..pair };
    let mirror = elsewhere.spawn(Start::At(Position { ..position }));
    live(&mirror).await;
    elsewhere.in_step(&mirror).await;
    let exists = elsewhere.to.call(&["EXISTS", "before", "a", "b"]).await.unwrap().number();
    assert_eq!(exists, Some(1), "only what came behind the position");
    mirror.stop().await;
}

/// A destination whose keys somebody turns into something else.
async fn sabotage(server: String, stop: Arc<AtomicBool>) {
    let mut connection = Connection::open(&server).await.unwrap();
    let mut rng = Rng(99);
    while !stop.load(Ordering::Relaxed) {
        connection.call(&["SELECT", &rng.below(2).to_string()]).await.unwrap();
        connection.call(&["SET", &format!("l:{}", rng.below(8)), "not yours"]).await.unwrap();
        sleep(Duration::from_millis(7)).await;
    }
}

/// Lists whose every element counts, with commands that carry a wrong value from key to key.
async fn push_about(address: String, stop: Arc<AtomicBool>) {
    let mut connection = Connection::open(&address).await.unwrap();
    let mut rng = Rng(7);
    let mut serial = 0u64;
    while !stop.load(Ordering::Relaxed) {
        serial += 1;
        let [one, two] = [(); 2].map(|()| format!("l:{}", rng.below(8)));
        let text = serial.to_string();
        match rng.below(12) {
            0 => connection.queue(&["RENAME", &one, &two]),
            1 => connection.queue(&["RPOPLPUSH", &one, &two]),
            2 => connection.queue(&["COPY", &one, &two, "REPLACE"]),
            3 => connection.queue(&["SELECT", &rng.below(2).to_string()]),
            4 if rng.below(4) == 0 => connection.queue(&["SWAPDB", "0", "1"]),
            5 => connection.queue(&["EXPIRE", &one, "5000"]),
            6 => connection.queue(&["LTRIM", &one, "0", "40"]),
            // Not MOVE: it does nothing, and says no error, where somebody has put a key in its way.
            _ => connection.queue(&["LPUSH", &one, &text]),
        }
        connection.flush().await.unwrap();
        // RENAME and MOVE may find nothing to do.
        connection.reply().await.unwrap();
        sleep(Duration::from_micros(300)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_failed_in_the_batch_on_its_way_is_known_before_keys_are_copied_anew() {
    let pair = Pair::start_with("", &[], "", &["--enable-debug-command", "yes"]).await;
    let mut options = pair.options(Start::Snapshot);
    options.on_conflict = OnConflict::Copy;
    let mirror = Mirror::spawn(options, CancellationToken::new());
    live(&mirror).await;
    pair.to.call(&["SET", "list", "not yours"]).await.unwrap();
    // Behind its snapshot a source may hold the stream back until it hears of its replica.
    pair.from.call(&["SET", "flows", "1"]).await.unwrap();
    pair.in_step(&mirror).await;
    // The destination takes the batch, and answers later.
    let mut busy = pair.to.connect().await.unwrap();
    busy.queue(&["DEBUG", "SLEEP", "3"]);
    busy.flush().await.unwrap();
    let mut probe = pair.to.connect().await.unwrap();
    let mut asleep = async || {
        probe.queue(&["PING"]);
        probe.flush().await.unwrap();
        tokio::time::timeout(Duration::from_millis(50), probe.reply()).await.is_err()
    };
    while !asleep().await {}
    let unread = socket::unread_at(pair.to.port());
    pair.from.call(&["RPUSH", "list", "1"]).await.unwrap();
    let deadline = Instant::now() + PATIENCE;
    while socket::unread_at(pair.to.port()) <= unread {
        assert!(Instant::now() < deadline, "the batch is not sent");
        sleep(Duration::from_millis(2)).await;
    }
    let copied = mirror.copy_anew(vec![(0, b"other".as_slice().into())], Instant::now() + PATIENCE).await;
    copied.unwrap();
    assert_eq!(busy.reply().await.unwrap(), Reply::Simple(b"OK".to_vec()));
    pair.in_step(&mirror).await;
    until(&mirror, "the list is copied", |state| state.copied > 0 && state.error.is_none()).await;
    pair.in_step(&mirror).await;
    pair.same(true).await;
    mirror.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_stream_of_a_replica_goes_on_in_the_db_that_its_primary_had_selected() {
    let pair = Pair::start().await;
    let primary = Server::start(&pair.dir.path().join("primary"), &[]).await.unwrap();
    pair.from.call(&["REPLICAOF", "127.0.0.1", &primary.port().to_string()]).await.unwrap();
    let mut client = primary.connect().await.unwrap();
    client.must(&["SELECT", "3"]).await.unwrap();
    client.must(&["SET", "before", "1"]).await.unwrap();
    let deadline = Instant::now() + PATIENCE;
    let offset = async || primary.info("master_repl_offset").await.unwrap().parse::<u64>().unwrap();
    while pair.from.info("master_link_status").await.unwrap() != "up" {
        assert!(Instant::now() < deadline, "the replica does not follow");
        sleep(Duration::from_millis(20)).await;
    }
    client.must(&["SET", "between", "1"]).await.unwrap();
    while pair.end().await != offset().await {
        assert!(Instant::now() < deadline, "the replica does not come into step");
        sleep(Duration::from_millis(20)).await;
    }
    // From here on the primary has no reason to select anything.
    let mut mirror = pair.spawn(Start::Snapshot);
    live(&mirror).await;
    client.must(&["SET", "behind", "1"]).await.unwrap();
    mirror.stop().await;
    mirror = pair.spawn(Start::Snapshot);
    live(&mirror).await;
    client.must(&["SET", "last", "1"]).await.unwrap();
    mirror.wait_applied(offset().await, Instant::now() + PATIENCE).await.unwrap();
    let mut there = pair.to.connect().await.unwrap();
    there.must(&["SELECT", "3"]).await.unwrap();
    for key in ["before", "between", "behind", "last"] {
        assert_eq!(there.must(&["EXISTS", key]).await.unwrap(), Reply::Integer(1), "{key}");
    }
    mirror.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_that_differ_are_copied_anew_at_their_place_whatever_dies_when() {
    // Other versions: CROSSFADE_SERVERS=… CROSSFADE_PAIR=redis-3.2,redis-7.4 cargo test --test mirror keys_that_differ
    let named = std::env::var("CROSSFADE_PAIR").unwrap_or_else(|_| ",".into());
    let (from, to) = named.split_once(',').unwrap();
    let pair = if named == "," { Pair::start().await } else { Pair::start_as(from, to).await };
    let begin = || {
        let mut options = pair.options(Start::Snapshot);
        options.on_conflict = OnConflict::Copy;
        options.on_error = OnError::Copy;
        Mirror::spawn(options, CancellationToken::new())
    };
    let mut mirror = begin();
    live(&mirror).await;
    let (writing, sabotaging) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let writer = tokio::spawn(push_about(pair.from.address(), Arc::clone(&writing)));
    let other = tokio::spawn(sabotage(pair.to.address(), Arc::clone(&sabotaging)));
    let mut rng = Rng(now_ms());
    let seed = rng.0;
    let mut copied = 0;
    for _ in 0..12 {
        sleep(Duration::from_millis(100 + rng.below(150))).await;
        copied += mirror.state().borrow().copied;
        mirror.stop().await;
        mirror = begin();
    }
    until(&mirror, "keys are copied", |state| state.copied + copied > 5).await;
    sabotaging.store(true, Ordering::Relaxed);
    other.await.unwrap();
    sleep(Duration::from_millis(200)).await;
    writing.store(true, Ordering::Relaxed);
    writer.await.unwrap();
    // What still differs shows at the next command on it.
    for db in ["0", "1"] {
        let mut connection = pair.from.connect().await.unwrap();
        connection.must(&["SELECT", db]).await.unwrap();
        for nth in 0..8 {
            connection.must(&["LPUSH", &format!("l:{nth}"), "last"]).await.unwrap();
        }
    }
    pair.in_step(&mirror).await;
    let state = live(&mirror).await;
    assert_eq!(state.error, None, "seed {seed}");
    assert!(state.conflicts > 0 || state.copied + copied > 0);
    pair.same(true).await;
    mirror.stop().await;
    let notes = std::fs::read_dir(pair.journal()).unwrap();
    let left: Vec<_> =
        notes.map(|entry| entry.unwrap().file_name()).filter(|name| name == "copies.json").collect();
    assert!(left.is_empty());
}

//! H37: EVALSHA goes on behind a switch, for every way in which a script can have come.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use crossfade::cli::demo::connection::{Connection, Reply};

use crate::support::{PATIENCE, Setup, eventually, is_since};

async fn text(client: &mut Connection, command: &[&str]) -> String {
    let reply = client.must(command).await.unwrap();
    String::from_utf8_lossy(reply.bytes().unwrap_or_default()).into_owned()
}

/// Loads a script; its digest.
async fn digest(client: &mut Connection, script: &str) -> String {
    text(client, &["SCRIPT", "LOAD", script]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn h37_evalsha_finds_its_script_on_the_new_side() {
    let mut lab = Setup::new().build().await;
    let mut client = Connection::open(&lab.gateway.address()).await.unwrap();
    let loaded = digest(&mut client, "return 'loaded'").await;
    client.must(&["EVAL", "return 'evaluated'", "0"]).await.unwrap();
    // Asked past the gateway: it must not learn the script by this.
    let mut direct = Connection::open(&lab.source.address()).await.unwrap();
    let evaluated = digest(&mut direct, "return 'evaluated'").await;
    client.must(&["MULTI"]).await.unwrap();
    client.must(&["SCRIPT", "LOAD", "return 'queued'"]).await.unwrap();
    let queued = client.must(&["EXEC"]).await.unwrap();
    let queued = String::from_utf8_lossy(queued.items()[0].bytes().unwrap()).into_owned();
    let scripts = [(loaded, "loaded"), (evaluated, "evaluated"), (queued, "queued")];

    lab.mirror().await;
    lab.cutover().await;
    for (sha, says) in &scripts {
        assert_eq!(text(&mut client, &["EVALSHA", sha, "0"]).await, *says);
    }
    let late = digest(&mut client, "return 'late'").await;
    lab.rollback().await;
    assert_eq!(text(&mut client, &["EVALSHA", &late, "0"]).await, "late");

    // What a client flushed is not brought back to a server that never had it.
    client.must(&["SCRIPT", "FLUSH"]).await.unwrap();
    lab.destination.call(&["SCRIPT", "FLUSH"]).await.unwrap();
    lab.cutover().await;
    let reply = client.call(&["EVALSHA", &late, "0"]).await.unwrap();
    assert!(matches!(&reply, Reply::Error(text) if text.starts_with(b"NOSCRIPT")), "{reply:?}");
}

/// A gateway that was killed is started anew between SCRIPT LOAD and a switch: with the clients on the source, and on the
/// destination; where the file of scripts ends in the middle of one; behind SCRIPT FLUSH.
#[tokio::test(flavor = "multi_thread")]
async fn h37_scripts_outlive_the_gateway_that_heard_them() {
    let mut lab = Setup::new().build().await;
    lab.mirror().await;
    let file = lab.path().join("gateway/state/scripts");
    let mut known = Vec::new();
    for (turn, torn) in [false, false, true, true].into_iter().enumerate() {
        let mut client = Connection::open(&lab.gateway.address()).await.unwrap();
        let loaded = format!("return 'loaded {turn}'");
        known.push((digest(&mut client, &loaded).await, format!("loaded {turn}")));
        let evaluated = format!("return 'evaluated {turn}'");
        client.must(&["EVAL", &evaluated, "0"]).await.unwrap();
        let (active, passive) = lab.active().await;
        let mut direct = Connection::open(&active.address()).await.unwrap();
        known.push((digest(&mut direct, &evaluated).await, format!("evaluated {turn}")));
        let holds = |text: &str| {
            let bytes = std::fs::read(&file).unwrap_or_default();
            bytes.windows(text.len()).any(|window| window == text.as_bytes())
        };
        eventually("the file holds both", async || holds(&loaded) && holds(&evaluated)).await;
        // Other clients of that server may do this at any time.
        passive.call(&["SCRIPT", "FLUSH"]).await.unwrap();
        lab.gateway.kill();
        if torn {
            let whole = std::fs::read(&file).unwrap();
            std::fs::write(&file, [&whole[..], &whole[8..20]].concat()).unwrap();
        }
        lab.gateway.restart().await.unwrap();
        if turn % 2 == 0 {
            lab.gateway.wait_phase("mirroring", PATIENCE).await.unwrap();
            lab.cutover().await;
        } else {
            lab.gateway.wait_phase("cut-over", PATIENCE).await.unwrap();
            lab.rollback().await;
        }
        let mut client = Connection::open(&lab.gateway.address()).await.unwrap();
        for (sha, says) in &known {
            assert_eq!(text(&mut client, &["EVALSHA", sha, "0"]).await, *says, "turn {turn}");
        }
    }
    let mut client = Connection::open(&lab.gateway.address()).await.unwrap();
    client.must(&["SCRIPT", "FLUSH"]).await.unwrap();
    lab.destination.call(&["SCRIPT", "FLUSH"]).await.unwrap();
    eventually("the file is empty", async || std::fs::metadata(&file).unwrap().len() < 10).await;
    lab.gateway.kill();
    lab.gateway.restart().await.unwrap();
    lab.gateway.wait_phase("mirroring", PATIENCE).await.unwrap();
    lab.cutover().await;
    let mut client = Connection::open(&lab.gateway.address()).await.unwrap();
    for (sha, _) in &known {
        let reply = client.call(&["EVALSHA", sha, "0"]).await.unwrap();
        assert!(matches!(&reply, Reply::Error(text) if text.starts_with(b"NOSCRIPT")), "{reply:?}");
    }
}

/// Loads one script after the other and runs each at once, while clients are switched to and fro.
#[tokio::test(flavor = "multi_thread")]
async fn h37_scripts_that_come_during_a_switch_are_carried_too() {
    let mut lab = Setup::new().build().await;
    lab.mirror().await;
    // Before 7.0 a source sends each new script on, and the mirror has it on the disk before it goes further.
    let slowly = !is_since("7.0", "7.2");
    let (done, counted) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let mut clients = Vec::new();
    for client in 0..4 {
        let (address, done, counted) = (lab.gateway.address(), Arc::clone(&done), Arc::clone(&counted));
        clients.push(tokio::spawn(async move {
            let mut connection = Connection::open(&address).await.unwrap();
            let mut n = 0u64;
            while !done.load(Ordering::Relaxed) {
                let script = format!("return 'script {n} of {client}'");
                let sha = digest(&mut connection, &script).await;
                let said = text(&mut connection, &["EVALSHA", &sha, "0"]).await;
                assert_eq!(said, format!("script {n} of {client}"));
                n += 1;
                if slowly {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                counted.fetch_add(1, Ordering::Relaxed);
            }
        }));
    }
    for turn in 0..6 {
        let more = counted.load(Ordering::Relaxed) + 200;
        eventually("more scripts", async || counted.load(Ordering::Relaxed) >= more).await;
        if turn % 2 == 0 {
            lab.cutover().await;
        } else {
            lab.rollback().await;
        }
    }
    done.store(true, Ordering::Relaxed);
    for client in clients {
        client.await.unwrap();
    }
}

/// A scan that goes step by step over several connections, as a pool sends it.
struct Scan {
    command: Vec<&'static str>,
    cursor: String,
    found: HashSet<Vec<u8>>,
    /// Elements per name: a hash and a sorted set give pairs.
    width: usize,
    done: bool,
}

impl Scan {
    fn new(command: &[&'static str], width: usize) -> Self {
        Self { command: command.to_vec(), cursor: "0".into(), found: HashSet::new(), width, done: false }
    }

    async fn step(&mut self, client: &mut Connection) {
        if self.done {
            return;
        }
        let mut words = self.command.clone();
        words.extend([self.cursor.as_str(), "COUNT", "20"]);
        let reply = client.must(&words).await.unwrap();
        self.cursor = String::from_utf8(reply.items()[0].bytes().unwrap().to_vec()).unwrap();
        let elements = reply.items()[1].items();
        self.found.extend(elements.chunks(self.width).map(|some| some[0].bytes().unwrap().to_vec()));
        self.done = self.cursor == "0";
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn h37_a_scan_that_was_begun_before_a_switch_leaves_nothing_out() {
    const NAMES: usize = 2000;
    let mut lab = Setup::new().build().await;
    let address = lab.gateway.address();
    let mut client = Connection::open(&address).await.unwrap();
    for n in 0..NAMES {
        let (name, number) = (format!("name:{n}"), n.to_string());
        for command in [
            &["SET", &name, &number][..],
            &["HSET", "hash", &name, &number],
            &["SADD", "set", &name],
            &["ZADD", "zset", &number, &name],
        ] {
            client.must(command).await.unwrap();
        }
    }
    lab.mirror().await;
    let mut pool = Vec::new();
    for _ in 0..3 {
        pool.push(Connection::open(&address).await.unwrap());
    }
    // In the middle of a scan: a cutover; a rollback; a cutover and a restart of the gateway; none.
    for turn in 0..4 {
        let mut scans = [
            Scan::new(&["SCAN"], 1),
            Scan::new(&["HSCAN", "hash"], 2),
            Scan::new(&["SSCAN", "set"], 1),
            Scan::new(&["ZSCAN", "zset"], 2),
        ];
        let mut steps = 0;
        while scans.iter().any(|scan| !scan.done) {
            for scan in &mut scans {
                scan.step(&mut pool[steps % 3]).await;
            }
            steps += 1;
            assert!(steps < 10 * NAMES / 20, "the scan does not come to an end");
            if steps == 40 {
                assert!(scans.iter().all(|scan| !scan.done), "in the middle");
                match turn {
                    0 => drop(lab.cutover().await),
                    1 => drop(lab.rollback().await),
                    2 => {
                        lab.cutover().await;
                        lab.gateway.restart().await.unwrap();
                        for connection in &mut pool {
                            *connection = Connection::open(&address).await.unwrap();
                        }
                    }
                    _ => {}
                }
            }
        }
        for scan in &scans {
            let missing: Vec<_> =
                (0..NAMES).filter(|n| !scan.found.contains(format!("name:{n}").as_bytes())).collect();
            assert!(missing.is_empty(), "turn {turn}, {:?}: {} left out", scan.command, missing.len());
        }
        if turn == 3 {
            let wanted = steps;
            assert!(wanted < 2 * NAMES / 20, "without a switch nothing begins anew: {wanted} steps");
        }
    }
    // Replies of other kinds pass as they are.
    let reply = pool[0].call(&["HSCAN", "name:1", "0"]).await.unwrap();
    assert!(matches!(&reply, Reply::Error(_)), "{reply:?}");
}

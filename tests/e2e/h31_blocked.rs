//! H31: hundreds of clients that wait at the server while clients are switched to and fro.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crossfade::cli::demo::connection::{Connection, Reply};
use crossfade::cli::demo::servers::Server;
use tokio::task::JoinSet;

use crate::support::proxy::{Rules, Way as Direction};
use crate::support::{Setup, eventually, since};

const QUEUES: usize = 20;
const STREAMS: usize = 5;

/// A server looks at timeouts between its events, at the latest once per 1/hz: with its default of 10 it is itself up to
/// 105 ms late when nothing else happens, with or without a gateway.
const HZ: [&str; 2] = ["--hz", "100"];

/// What all waiting clients share.
#[derive(Default)]
struct Shared {
    /// No more elements come.
    ending: AtomicBool,
    taken: AtomicU64,
}

/// How a client waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Pop,
    PopRight,
    PopMany,
    Move,
    MoveRight,
    Min,
    Max,
    MinMany,
    Group,
    Read,
}

impl Way {
    const ALL: [Self; 10] = [
        Self::Pop,
        Self::PopRight,
        Self::PopMany,
        Self::Move,
        Self::MoveRight,
        Self::Min,
        Self::Max,
        Self::MinMany,
        Self::Group,
        Self::Read,
    ];

    /// Those that the servers know.
    fn known() -> impl Iterator<Item = Self> {
        let many = since("7.0", "7.2", "BLMPOP and BZMPOP");
        Self::ALL.into_iter().filter(move |way| many || !matches!(way, Self::PopMany | Self::MinMany))
    }

    /// Of each way, so many keys.
    fn keys(self) -> usize {
        if matches!(self, Self::Group | Self::Read) { STREAMS } else { QUEUES }
    }

    fn key(self, nth: usize) -> String {
        format!("{self:?}:{}", nth % self.keys())
    }

    /// The command of a client that waits for so many milliseconds.
    fn words(self, nth: usize, number: usize, ms: usize, behind: &str) -> Vec<String> {
        let (key, seconds) = (self.key(nth), ms as f64 / 1e3);
        let words = match self {
            Self::Pop => format!("BLPOP {key} {seconds}"),
            Self::PopRight => format!("BRPOP none {key} {seconds}"),
            Self::PopMany => format!("BLMPOP {seconds} 2 none {key} LEFT COUNT 3"),
            Self::Move => format!("BLMOVE {key} moved:{number} LEFT RIGHT {seconds}"),
            Self::MoveRight => format!("BRPOPLPUSH {key} moved:{number} {seconds}"),
            Self::Min => format!("BZPOPMIN {key} none {seconds}"),
            Self::Max => format!("BZPOPMAX {key} {seconds}"),
            Self::MinMany => format!("BZMPOP {seconds} 1 {key} MIN COUNT 3"),
            Self::Group => {
                format!("XREADGROUP GROUP g c{number} COUNT 1 BLOCK {ms} NOACK STREAMS {key} >")
            }
            Self::Read => format!("XREAD BLOCK {ms} STREAMS {key} {behind}"),
        };
        words.split(' ').map(str::to_owned).collect()
    }

    /// The command that brings an element.
    fn give(self, nth: usize, element: usize) -> Vec<String> {
        let key = self.key(nth);
        let words = match self {
            Self::Min | Self::Max | Self::MinMany => format!("ZADD {key} {element} {element}"),
            Self::Group | Self::Read => format!("XADD {key} * n {element}"),
            _ => format!("RPUSH {key} {element}"),
        };
        words.split(' ').map(str::to_owned).collect()
    }

    /// The elements in a reply; empty when the time was over. `behind` becomes the id of the last entry.
    fn elements(self, reply: &Reply, behind: &mut String) -> Vec<String> {
        if *reply == Reply::Nil {
            return Vec::new();
        }
        let items = reply.items();
        match self {
            Self::Pop | Self::PopRight | Self::Min | Self::Max => vec![text(&items[1])],
            Self::PopMany => items[1].items().iter().map(text).collect(),
            Self::Move | Self::MoveRight => vec![text(reply)],
            Self::MinMany => items[1].items().iter().map(|pair| text(&pair.items()[0])).collect(),
            Self::Group | Self::Read => {
                let entries = items[0].items()[1].items();
                *behind = text(&entries.last().unwrap().items()[0]);
                entries.iter().map(|entry| text(&entry.items()[1].items()[1])).collect()
            }
        }
    }
}

fn text(reply: &Reply) -> String {
    String::from_utf8_lossy(reply.bytes().unwrap_or_default()).into_owned()
}

/// Waits again and again, for 2 s each time; answers what it was given, in order.
async fn wait(address: String, way: Way, nth: usize, number: usize, shared: Arc<Shared>) -> Vec<String> {
    let mut client = Connection::open(&address).await.unwrap();
    let (mut got, mut behind) = (Vec::new(), "0-0".to_owned());
    loop {
        let ending = shared.ending.load(Ordering::Relaxed);
        let reply = client.must(&way.words(nth, number, 2000, &behind)).await.unwrap();
        let elements = way.elements(&reply, &mut behind);
        if elements.is_empty() && ending {
            return got;
        }
        shared.taken.fetch_add(elements.len() as u64, Ordering::Relaxed);
        got.extend(elements);
    }
}

/// Brings elements to all of these ways in turn until it is told to stop; answers what it brought to each key.
async fn produce(
    mut producer: Connection,
    ways: Vec<Way>,
    stop: Arc<AtomicBool>,
) -> HashMap<String, Vec<String>> {
    let mut brought = HashMap::<String, Vec<String>>::new();
    for n in 0.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let (way, nth) = (ways[n % ways.len()], n / ways.len());
        producer.must(&way.give(nth, n)).await.unwrap();
        brought.entry(way.key(nth)).or_default().push(n.to_string());
    }
    brought
}

async fn all_wait(server: &Server, clients: usize) {
    eventually("all of them wait", async || {
        server.info("blocked_clients").await.unwrap().parse::<usize>().unwrap() >= clients
    })
    .await;
}

async fn groups(client: &mut Connection) {
    for stream in 0..STREAMS {
        let key = Way::Group.key(stream);
        client.must(&["XGROUP", "CREATE", &key, "g", "$", "MKSTREAM"]).await.unwrap();
    }
}

/// So many clients wait in these ways in turn while clients are switched ten times; each element is given once, and to
/// each reader of a stream once.
async fn each_element_once(ways: Vec<Way>, clients: usize) {
    let mut lab = Setup::new().source(&HZ).destination(&HZ).build().await;
    let address = lab.gateway.address();
    let mut producer = Connection::open(&address).await.unwrap();
    groups(&mut producer).await;
    lab.mirror().await;
    let shared = Arc::new(Shared::default());
    let mut waiting = JoinSet::new();
    for number in 0..clients {
        let (way, nth) = (ways[number % ways.len()], number / ways.len());
        let waits = wait(address.clone(), way, nth, number, Arc::clone(&shared));
        waiting.spawn(async move { (way, nth, number, waits.await) });
    }
    all_wait(&lab.source, clients).await;
    let stop = Arc::new(AtomicBool::new(false));
    let mut kinds = Vec::new();
    for way in ways {
        if !kinds.contains(&way) {
            kinds.push(way);
        }
    }
    let producing = tokio::spawn(produce(producer, kinds, Arc::clone(&stop)));
    let mut holds = Vec::new();
    for turn in 0..10 {
        let more = shared.taken.load(Ordering::Relaxed) + 200;
        eventually("more elements", async || shared.taken.load(Ordering::Relaxed) >= more).await;
        let entry = if turn % 2 == 0 { lab.cutover().await } else { lab.rollback().await };
        holds.push(entry["max_hold_ms"].as_f64().unwrap());
    }
    stop.store(true, Ordering::Relaxed);
    let brought = producing.await.unwrap();
    // Whoever waits in vain from now on has left nothing behind.
    shared.ending.store(true, Ordering::Relaxed);

    let mut seen = HashMap::<String, Vec<String>>::new();
    let mut active = Connection::open(&address).await.unwrap();
    while let Some(ended) = waiting.join_next().await {
        let (way, nth, number, got) = ended.unwrap();
        let key = way.key(nth);
        if way == Way::Read {
            assert_eq!(Some(&got), brought.get(&key), "reader {number} of {key}");
            continue;
        }
        seen.entry(key).or_default().extend(got.iter().cloned());
        if matches!(way, Way::Move | Way::MoveRight) {
            let moved = active.must(&["LRANGE", &format!("moved:{number}"), "0", "-1"]).await.unwrap();
            let mut moved: Vec<String> = moved.items().iter().map(text).collect();
            if way == Way::MoveRight {
                moved.reverse();
            }
            assert_eq!(moved, got, "what client {number} was told is what was moved");
        }
    }
    let produced: usize = brought.values().map(Vec::len).sum();
    for (key, mut elements) in brought {
        if key.starts_with("Read") {
            continue;
        }
        let mut taken = seen.remove(&key).unwrap_or_default();
        elements.sort();
        taken.sort();
        assert_eq!(taken, elements, "{key}: each element once");
    }
    assert!(seen.values().all(Vec::is_empty), "from nowhere: {seen:?}");
    eprintln!("{produced} elements; holds {holds:.1?} ms");
    lab.same().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn h31_500_blocked_clients_get_each_element_once() {
    each_element_once(vec![Way::Pop, Way::Pop, Way::Move, Way::Group, Way::Group], 500).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn h31_the_other_blocking_commands_give_each_element_once() {
    let others = Way::known().filter(|way| !matches!(way, Way::Pop | Way::Move | Way::Group));
    each_element_once(others.collect(), 140).await;
}

/// A hundred clients wait for what never comes, from before a cutover until after it or the rollback behind it. A timeout
/// goes on where it was, whatever side it began on.
#[tokio::test(flavor = "multi_thread")]
async fn h31_timeouts_begun_before_a_switch_end_on_time_behind_it() {
    const CLIENTS: usize = 100;
    /// What a busy machine may add. A timeout begun anew would be late by all the time before the switch.
    const LATE: Duration = Duration::from_millis(300);
    const CUTOVER: Duration = Duration::from_millis(100);
    const ROLLBACK: Duration = Duration::from_millis(1000);
    let mut lab = Setup::new().source(&HZ).destination(&HZ).build().await;
    let address = lab.gateway.address();
    groups(&mut Connection::open(&address).await.unwrap()).await;
    lab.mirror().await;
    let mut clients = Vec::new();
    for _ in 0..CLIENTS {
        clients.push(Connection::open(&address).await.unwrap());
    }
    let ways: Vec<Way> = Way::known().collect();
    let mut waiting = JoinSet::new();
    for (number, mut client) in clients.into_iter().enumerate() {
        let way = ways[number % ways.len()];
        let ms = 2000 + number * 2000 / CLIENTS;
        waiting.spawn(async move {
            let words = way.words(number, number, ms, "$");
            let asked = Instant::now();
            let reply = client.must(&words).await.unwrap();
            assert_eq!(reply, Reply::Nil, "{words:?}");
            (asked, Duration::from_millis(ms as u64), Instant::now(), words)
        });
    }
    all_wait(&lab.source, CLIENTS).await;
    let began = Instant::now();
    tokio::time::sleep_until((began + CUTOVER).into()).await;
    let there = lab.cutover().await;
    let mut switched = vec![Instant::now()];
    tokio::time::sleep_until((began + ROLLBACK).into()).await;
    let back = lab.rollback().await;
    switched.push(Instant::now());
    let pauses = [&there, &back].map(|entry| entry["pause_ms"].as_f64().unwrap());
    // What ends inside a pause is answered behind it.
    let most = LATE + Duration::from_secs_f64(pauses.iter().sum::<f64>() / 1e3);
    let (mut late, mut early, mut crossed) = (Duration::ZERO, Duration::ZERO, [0; 3]);
    while let Some(ended) = waiting.join_next().await {
        let (asked, timeout, ended, words) = ended.unwrap();
        let due = asked + timeout;
        crossed[switched.iter().filter(|at| **at < due).count()] += 1;
        late = late.max(ended.saturating_duration_since(due));
        early = early.max(due.saturating_duration_since(ended));
        assert!(ended < due + most, "{words:?} ended {:?} late", ended - due);
        assert!(ended + Duration::from_millis(20) > due, "{words:?} ended {:?} early", due - ended);
    }
    eprintln!(
        "pauses {pauses:.1?} ms; across 0, 1, 2 switches: {crossed:?}; at most {late:?} late, {early:?} early"
    );
    assert!(crossed[1] + crossed[2] >= CLIENTS / 4, "too few waited across a switch: {crossed:?}");
}

/// XREAD with `$` waits for what comes after the moment at which it began to wait. A switch must not make that moment a
/// later one: the very first entry behind it is the one that everybody gets.
#[tokio::test(flavor = "multi_thread")]
async fn h31_xread_from_the_end_misses_nothing() {
    const READERS: usize = 40;
    let mut lab = Setup::new().proxies().build().await;
    let address = lab.gateway.address();
    let (mut writers, mut readers) = (Vec::new(), Vec::new());
    for _ in 0..10 {
        writers.push(Connection::open(&address).await.unwrap());
    }
    for _ in 0..READERS {
        readers.push(Connection::open(&address).await.unwrap());
    }
    let mut probe = Connection::open(&address).await.unwrap();
    writers[0].must(&["XADD", "s", "*", "n", "before"]).await.unwrap();
    lab.mirror().await;
    // The destination's answers take their time, so the pause is long enough to be seen.
    let slow = Rules { delay: Duration::from_millis(60), ..Default::default() };
    lab.destination_proxy.as_ref().unwrap().rules(Direction::Down, slow);
    for turn in 0..4 {
        for (number, reader) in readers.iter_mut().enumerate() {
            // Some wait for a stream that does not exist yet as well.
            let other = format!("none:{turn}:{number}");
            reader.queue(&["XREAD", "BLOCK", "0", "STREAMS", &other, "s", "$", "$"]);
            reader.flush().await.unwrap();
        }
        all_wait(&lab.source, READERS).await;
        let writing = async {
            let mut prompt = true;
            while prompt {
                let asked = Instant::now();
                probe.queue(&["PING"]);
                probe.flush().await.unwrap();
                prompt = tokio::time::timeout(Duration::from_millis(30), probe.reply()).await.is_ok();
                tokio::time::sleep_until((asked + Duration::from_millis(5)).into()).await;
            }
            // The gate is closed: these are held, and go first when it opens.
            let all = writers.iter_mut().map(|writer| writer.must(&["XADD", "s", "*", "n", "behind"]));
            for id in futures_util::future::join_all(all).await {
                id.unwrap();
            }
            probe.reply().await.unwrap();
        };
        tokio::join!(lab.cutover(), writing);
        let last = writers[0].must(&["XREVRANGE", "s", "+", "-", "COUNT", "10"]).await.unwrap();
        let first = text(&last.items().last().unwrap().items()[0]);
        for reader in &mut readers {
            let reply = tokio::time::timeout(Duration::from_secs(10), reader.reply()).await.unwrap().unwrap();
            let got = text(&reply.items()[0].items()[1].items()[0].items()[0]);
            assert_eq!(got, first, "turn {turn}");
        }
        lab.rollback().await;
    }
}

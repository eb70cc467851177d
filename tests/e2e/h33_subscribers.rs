//! H33: subscribers hear each message once while they are switched to and fro; tracking clients are told to forget.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crossfade::cli::demo::connection::Connection;
use serde_json::json;
use tokio::task::JoinSet;

use crate::support::proxy::{Rules, Way};
use crate::support::resp3::Client;
use crate::support::{Lab, PATIENCE, Setup, Stops, eventually, since};

/// Channels `c:0` to `c:2` and as many shards `s:0` to `s:2`.
const CHANNELS: usize = 3;
const PUBLISHERS: usize = 4;
/// Messages of one publisher that are on their way at a time.
const WINDOW: usize = 8;
const END: &str = "end";

/// What a subscriber asks for, and how many receivers each message to the channel (or shard) thereby gets.
#[derive(Debug, Clone, Copy)]
enum Ask {
    /// All channels by name.
    Channels,
    /// All channels by two patterns.
    Patterns,
    Shards,
    /// All of it.
    All,
}

impl Ask {
    fn commands(self) -> Vec<Vec<String>> {
        let names = |kind: &str| (0..CHANNELS).map(|n| format!("{kind}:{n}")).collect::<Vec<_>>();
        let command = |name: &str, args: Vec<String>| [vec![name.to_owned()], args].concat();
        let patterns = || vec!["c:*".to_owned(), "c:[0-9]".to_owned()];
        match self {
            Ask::Channels => vec![command("SUBSCRIBE", names("c"))],
            Ask::Patterns => vec![command("PSUBSCRIBE", patterns())],
            Ask::Shards => vec![command("SSUBSCRIBE", names("s"))],
            Ask::All => {
                [Ask::Channels, Ask::Patterns, Ask::Shards].map(|ask| ask.commands().remove(0)).into()
            }
        }
    }

    /// Receivers that each message to a channel gets by it, and to a shard.
    fn receivers(self) -> (usize, usize) {
        match self {
            Ask::Channels => (1, 0),
            Ask::Patterns => (2, 0),
            Ask::Shards => (0, 1),
            Ask::All => (3, 1),
        }
    }

    fn subscriptions(self) -> usize {
        self.commands().iter().map(|command| command.len() - 1).sum()
    }
}

/// Hears messages until the end has come by every way; in RESP3 it asks for other things meanwhile. Answers how many.
async fn listen(mut client: Client, number: usize, resp3: bool, ask: Ask) -> usize {
    let (channels, shards) = ask.receivers();
    let mut ends = CHANNELS * (channels + shards);
    // By the way it came (without the payload) and the publisher: what comes next.
    let mut next: HashMap<(String, String), u64> = HashMap::new();
    let (mut heard, mut asked, mut answered) = (0, 0u64, 0u64);
    let key = format!("listener:{number}");
    while ends > 0 || answered < asked {
        let frame = client.frame().await;
        if resp3 && !frame.push {
            answered += 1;
            assert_eq!(frame.text, answered.to_string(), "subscriber {number}: a reply among the messages");
            continue;
        }
        let words = frame.text.trim_matches(['[', ']']).to_owned();
        let (way, payload) = words.rsplit_once(' ').unwrap();
        assert!(way.contains("message "), "subscriber {number}: {words}");
        heard += 1;
        if payload == END {
            ends -= 1;
            continue;
        }
        let (publisher, n) = payload.split_once(':').unwrap();
        let next = next.entry((way.to_owned(), publisher.to_owned())).or_default();
        assert_eq!(n.parse::<u64>().unwrap(), *next, "subscriber {number} ({ask:?}, {resp3}): {words}");
        *next += 1;
        if resp3 && heard % 20 == 0 {
            client.queue(&["INCR", &key]);
            client.flush().await;
            asked += 1;
        }
    }
    heard
}

/// Publishes numbered messages to all channels in turn; each has as many receivers as there are subscriptions.
async fn publish(address: String, publisher: usize, shared: Arc<Shared>) {
    let mut client = Client::open_resp2(&address).await;
    let mut round = 0u64;
    while !shared.stop.load(Ordering::Relaxed) {
        for _ in 0..WINDOW {
            for channel in 0..CHANNELS {
                let message = format!("{publisher}:{round}");
                client.queue(&["PUBLISH", &format!("c:{channel}"), &message]);
                if shared.shards {
                    client.queue(&["SPUBLISH", &format!("s:{channel}"), &message]);
                }
            }
            round += 1;
        }
        client.flush().await;
        let kinds = 1 + usize::from(shared.shards);
        for n in 0..WINDOW * CHANNELS * kinds {
            let receivers = client.frame().await.text;
            let expected = if n % kinds == 0 { shared.receivers.0 } else { shared.receivers.1 };
            assert_eq!(receivers, expected.to_string(), "receivers of a message of publisher {publisher}");
            shared.published.fetch_add(1, Ordering::Relaxed);
        }
    }
}

struct Shared {
    receivers: (usize, usize),
    shards: bool,
    published: AtomicU64,
    stop: AtomicBool,
}

/// Cutover in even turns, rollback in odd ones.
async fn switch(lab: &Lab, turn: usize) {
    if turn.is_multiple_of(2) {
        lab.cutover().await
    } else {
        lab.rollback().await
    };
}

#[tokio::test(flavor = "multi_thread")]
async fn h33_subscribers_hear_each_message_once() {
    let mut lab = Setup::new().build().await;
    lab.mirror().await;
    let address = lab.gateway.address();
    let shards = since("7.0", "7.2", "shard channels");
    let mut listeners = JoinSet::new();
    let mut receivers = (0, 0);
    for number in 0..24 {
        let ask = if shards {
            [Ask::Channels, Ask::Patterns, Ask::Shards, Ask::All][number % 4]
        } else {
            [Ask::Channels, Ask::Patterns][number % 2]
        };
        let resp3 = number % 8 >= 4;
        let mut client =
            if resp3 { Client::open(&address).await } else { Client::open_resp2(&address).await };
        for command in ask.commands() {
            client.queue(&command.iter().map(String::as_str).collect::<Vec<_>>());
        }
        client.flush().await;
        for _ in 0..ask.subscriptions() {
            let confirmed = client.frame().await;
            assert!(confirmed.text.contains("subscribe ") && confirmed.push == resp3, "{confirmed:?}");
        }
        let (channels, shards) = ask.receivers();
        receivers = (receivers.0 + channels, receivers.1 + shards);
        listeners.spawn(listen(client, number, resp3, ask));
    }
    let shared =
        Arc::new(Shared { receivers, shards, published: AtomicU64::new(0), stop: AtomicBool::new(false) });
    let mut publishers = JoinSet::new();
    for publisher in 0..PUBLISHERS {
        publishers.spawn(publish(address.clone(), publisher, Arc::clone(&shared)));
    }
    for turn in 0..10 {
        let more = shared.published.load(Ordering::Relaxed) + 2000;
        eventually("more messages", async || {
            // whoever heard or was told something wrong says so now
            for ended in [publishers.try_join_next().map(drop), listeners.try_join_next().map(drop)] {
                assert!(ended.is_none(), "somebody ended early");
            }
            shared.published.load(Ordering::Relaxed) >= more
        })
        .await;
        switch(&lab, turn).await;
    }
    shared.stop.store(true, Ordering::Relaxed);
    while let Some(ended) = publishers.join_next().await {
        ended.unwrap();
    }
    let mut last = Client::open_resp2(&address).await;
    for channel in 0..CHANNELS {
        last.ask(&["PUBLISH", &format!("c:{channel}"), END]).await;
        if shards {
            last.ask(&["SPUBLISH", &format!("s:{channel}"), END]).await;
        }
    }
    let mut heard = 0;
    while let Some(ended) = listeners.join_next().await {
        heard += ended.unwrap();
    }
    let published = shared.published.load(Ordering::Relaxed) as usize;
    let kinds = 1 + usize::from(shards);
    let expected = published / kinds * (receivers.0 + receivers.1) + CHANNELS * (receivers.0 + receivers.1);
    assert_eq!(heard, expected, "every message by every way");
    eprintln!("{published} messages published, {heard} heard");
}

/// The old side says nothing more when the gate is closed, so the switch is given up. That ends its pause: nobody waits until the
/// subscribers' connections have been heard out, and none of them is closed for it.
#[tokio::test(flavor = "multi_thread")]
async fn h33_a_switch_that_is_given_up_keeps_its_subscribers() {
    let stops = Stops::new();
    let mut lab = stops.of(Setup::new()).build().await;
    lab.expect_log("");
    lab.mirror().await;
    let address = lab.gateway.address();
    let mut subscriber = Client::open_resp2(&address).await;
    subscriber.ask(&["SUBSCRIBE", "news"]).await;
    let mut other = Client::open_resp2(&address).await;
    assert_eq!(other.ask(&["SET", "k", "v"]).await, "OK");
    stops.arm(&["close_gate"]);
    let order = json!({"max_pause": "500ms"});
    let (answer, took) = tokio::join!(lab.gateway.post("/v1/cutover", &order), async {
        stops.at("close_gate", async || lab.source.signal("STOP").unwrap()).await;
        let closed = Instant::now();
        // It is answered by the gateway itself, as soon as the gate is open.
        assert_eq!(other.ask(&["CLIENT", "SETNAME", "other"]).await, "OK");
        let took = closed.elapsed();
        lab.source.signal("CONT").unwrap();
        took
    });
    let answer = answer.unwrap().1;
    assert_eq!(answer["outcome"], "aborted", "{answer}");
    assert!(took < Duration::from_millis(1200), "{took:?}: {answer}");
    let mut publisher = Client::open_resp2(&address).await;
    assert_eq!(publisher.ask(&["PUBLISH", "news", "still"]).await, "1");
    assert_eq!(subscriber.frame().await.text, "[message news still]");
    lab.gateway.wait_until("settled", PATIENCE, |status| status["phase"] == "mirroring").await.unwrap();
    lab.cutover().await;
    assert_eq!(publisher.ask(&["PUBLISH", "news", "moved"]).await, "1");
    assert_eq!(subscriber.frame().await.text, "[message news moved]");
}

/// The gate closes while a message goes up to the server, and the server sends it to a subscriber by several ways: the
/// answer to the publisher is there long before the last of them.
#[tokio::test(flavor = "multi_thread")]
async fn h33_a_message_that_is_on_its_way_at_the_switch_is_heard() {
    const SIZE: usize = 50_000;
    const WAYS: usize = 9;
    let mut lab = Setup::new().proxies().build().await;
    lab.mirror().await;
    let address = lab.gateway.address();
    let mut subscriber = Client::open_resp2(&address).await;
    let patterns: Vec<String> = (1..WAYS).map(|n| format!("{}*", &"big-news"[..n])).collect();
    subscriber.queue(&["SUBSCRIBE", "big-news"]);
    let patterns: Vec<&str> = [vec!["PSUBSCRIBE"], patterns.iter().map(String::as_str).collect()].concat();
    subscriber.queue(&patterns);
    subscriber.flush().await;
    for _ in 0..WAYS {
        subscriber.frame().await;
    }
    let listening = tokio::spawn(async move {
        // The numbers, as they came by each way.
        let mut heard: HashMap<String, Vec<usize>> = HashMap::new();
        let mut ends = 0;
        while ends < WAYS {
            let words = subscriber.frame().await.text;
            let (way, payload) = words.trim_end_matches(']').rsplit_once(' ').unwrap();
            if payload == END {
                ends += 1;
                continue;
            }
            let (number, padding) = payload.split_once(':').unwrap();
            assert_eq!(padding.len(), SIZE);
            heard.entry(way.to_owned()).or_default().push(number.parse().unwrap());
        }
        heard
    });
    let stop = Arc::new(AtomicBool::new(false));
    let publishing = tokio::spawn({
        let (stop, address) = (Arc::clone(&stop), address.clone());
        async move {
            let mut publisher = Client::open_resp2(&address).await;
            let padding = "p".repeat(SIZE);
            let mut number = 0;
            while !stop.load(Ordering::Relaxed) {
                let receivers = publisher.ask(&["PUBLISH", "big-news", &format!("{number}:{padding}")]).await;
                assert_eq!(receivers, WAYS.to_string());
                number += 1;
            }
            publisher.ask(&["PUBLISH", "big-news", END]).await;
            number
        }
    });
    for turn in 0..4 {
        // A third of a second up, half a second down by all ways together.
        let old = if turn % 2 == 0 { &lab.source_proxy } else { &lab.destination_proxy };
        let old = old.as_ref().unwrap();
        let rate = |bytes: usize| Rules { bytes_per_second: Some(bytes as u64), ..Rules::default() };
        old.rules(Way::Up, rate(SIZE * 3));
        old.rules(Way::Down, rate(SIZE * WAYS * 2));
        let order = if turn % 2 == 0 { "cutover" } else { "rollback" };
        lab.gateway.order(order, &json!({"max_pause": "20s"})).await.unwrap();
        lab.source_proxy.as_ref().unwrap().heal();
        lab.destination_proxy.as_ref().unwrap().heal();
        lab.in_step().await;
    }
    stop.store(true, Ordering::Relaxed);
    let published: Vec<usize> = (0..publishing.await.unwrap()).collect();
    let heard = listening.await.unwrap();
    assert_eq!(heard.len(), WAYS);
    for (way, numbers) in heard {
        assert_eq!(numbers, published, "{way}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn h33_tracking_clients_are_told_to_forget_and_tracking_goes_on() {
    let mut lab = Setup::new().build().await;
    lab.mirror().await;
    let address = lab.gateway.address();
    let mut writer = Client::open_resp2(&address).await;
    writer.ask(&["SET", "t:key", "0"]).await;
    let (mut plain, mut broadcast, mut opted, mut off) = (
        Client::open(&address).await,
        Client::open(&address).await,
        Client::open(&address).await,
        Client::open(&address).await,
    );
    for (client, how) in [
        (&mut plain, &["ON"][..]),
        (&mut broadcast, &["ON", "BCAST", "PREFIX", "t:"]),
        (&mut opted, &["ON", "OPTIN"]),
        (&mut off, &["ON"]),
    ] {
        assert_eq!(client.ask(&[&["CLIENT", "TRACKING"], how].concat()).await, "OK");
    }
    assert_eq!(off.ask(&["CLIENT", "TRACKING", "OFF"]).await, "OK");
    for turn in 0..6 {
        // Cached by the one that asks for all it reads, and by the one that asks for this.
        let before = turn.to_string();
        assert_eq!(plain.ask(&["GET", "t:key"]).await, before);
        assert_eq!(opted.ask(&["CLIENT", "CACHING", "YES"]).await, "OK");
        assert_eq!(opted.ask(&["GET", "t:key"]).await, before);
        assert_eq!(off.ask(&["GET", "t:key"]).await, before);

        switch(&lab, turn).await;

        // The new side does not know what they have: all of it is to be forgotten, once.
        for client in [&mut plain, &mut broadcast, &mut opted] {
            assert_eq!(client.push().await, "[invalidate nil]", "turn {turn}");
        }
        assert_eq!(plain.ask(&["GET", "t:key"]).await, before);
        assert_eq!(opted.ask(&["CLIENT", "CACHING", "YES"]).await, "OK");
        assert_eq!(opted.ask(&["GET", "t:key"]).await, before);
        assert_eq!(writer.ask(&["SET", "t:key", &(turn + 1).to_string()]).await, "OK");
        for client in [&mut plain, &mut broadcast, &mut opted] {
            assert_eq!(client.push().await, "[invalidate [t:key]]", "turn {turn}");
            assert!(client.kept().is_empty(), "{:?}", client.kept());
        }
        // Read without CACHING YES: not remembered by the server, nothing comes.
        assert_eq!(opted.ask(&["GET", "t:key"]).await, (turn + 1).to_string());
    }
    for client in [&mut opted, &mut off] {
        client.silence(Duration::from_millis(100)).await;
    }
    let info = plain.ask(&["CLIENT", "TRACKINGINFO"]).await;
    assert!(info.contains("on") && !info.contains("bcast"), "{info}");
}

/// What the servers say of changed keys goes on behind a switch; where the other server would say less, that is told before.
#[tokio::test(flavor = "multi_thread")]
async fn h33_keyspace_notifications_go_on_behind_a_switch() {
    let all = ["--notify-keyspace-events", "KEA"];
    let mut lab = Setup::new().source(&all).destination(&all).build().await;
    let address = lab.gateway.address();
    let mut subscriber = Connection::open(&address).await.unwrap();
    subscriber.must(&["PSUBSCRIBE", "__keyevent@0__:*"]).await.unwrap();
    let mut writer = Connection::open(&address).await.unwrap();
    lab.mirror().await;
    let plan =
        async |lab: &Lab| lab.gateway.order("cutover", &json!({"dry_run": true})).await.unwrap().to_string();
    assert!(!plan(&lab).await.contains("notify-keyspace-events"));
    lab.destination.call(&["CONFIG", "SET", "notify-keyspace-events", "Ex"]).await.unwrap();
    assert!(plan(&lab).await.contains("notify-keyspace-events $Kdeghlstz)"), "{}", plan(&lab).await);
    lab.destination.call(&["CONFIG", "SET", "notify-keyspace-events", "KEA"]).await.unwrap();
    for turn in 0..3 {
        let key = format!("turn:{turn}");
        writer.must(&["SET", &key, "1"]).await.unwrap();
        writer.must(&["DEL", &key]).await.unwrap();
        for event in ["set", "del"] {
            let wanted = format!("[pmessage __keyevent@0__:* __keyevent@0__:{event} {key}]");
            assert_eq!(subscriber.reply().await.unwrap().brief(), wanted);
        }
        if turn % 2 == 0 {
            lab.cutover().await;
        } else {
            lab.rollback().await;
        }
    }
}

/// Whoever has said MONITOR and reads slowly sees each command once and in order, before the switch and behind it: what the
/// old side still had to tell when the gate closed is not left behind.
#[tokio::test(flavor = "multi_thread")]
async fn h33_what_monitor_shows_goes_on_behind_a_switch() {
    const WRITES: [usize; 2] = [20_000, 500];
    let mut lab = Setup::new().build().await;
    let mut monitor = Connection::open(&lab.gateway.address()).await.unwrap();
    monitor.must(&["MONITOR"]).await.unwrap();
    lab.mirror().await;
    let mut writer = Connection::open(&lab.gateway.address()).await.unwrap();
    let value = "x".repeat(1000);
    let mut write = async |range: std::ops::Range<usize>| {
        for number in range.clone() {
            writer.queue(&["SET", &format!("seen:{number}"), &value]);
        }
        writer.flush().await.unwrap();
        for _ in range {
            assert_eq!(writer.reply().await.unwrap().bytes(), Some(&b"OK"[..]));
        }
    };
    // More than lies in sockets and in the gateway while nobody reads.
    write(0..WRITES[0]).await;
    lab.cutover().await;
    write(WRITES[0]..WRITES[0] + WRITES[1]).await;
    let mut next = 0;
    while next < WRITES[0] + WRITES[1] {
        let line = tokio::time::timeout(PATIENCE, monitor.reply()).await;
        let line = line.unwrap_or_else(|_| panic!("nothing is shown behind write {next}")).unwrap();
        let line = String::from_utf8_lossy(line.bytes().unwrap()).into_owned();
        if let Some(shown) = line.split("\"SET\" \"seen:").nth(1) {
            assert_eq!(shown.split('"').next().unwrap(), next.to_string());
            next += 1;
        }
    }
    lab.same().await;
}

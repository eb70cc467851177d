//! H32: what stands open when clients are switched: transactions, watched keys, half a pipeline, half a value, half a reply.

use crossfade::cli::demo::connection::{Connection, Reply, encode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::{Lab, PATIENCE, Setup, eventually};

/// Cutover, or rollback: whichever leads to the other side.
async fn switch(lab: &Lab) {
    let status = lab.gateway.status().await.unwrap();
    let entry = if status["active"] == "source" { lab.cutover().await } else { lab.rollback().await };
    assert_eq!(entry["outcome"], "committed");
}

fn error(reply: &Reply) -> String {
    match reply {
        Reply::Error(text) => String::from_utf8_lossy(text).into_owned(),
        other => panic!("not an error: {other:?}"),
    }
}

/// One client, and the keys that only it uses.
struct Client {
    connection: Connection,
    prefix: String,
}

impl Client {
    async fn open(lab: &Lab, prefix: String) -> Self {
        Self { connection: Connection::open(&lab.gateway.address()).await.unwrap(), prefix }
    }

    /// Sends words in which `@` stands for the prefix; the reply.
    async fn ask(&mut self, words: &str) -> Reply {
        let words = words.replace('@', &self.prefix);
        self.connection.call(&words.split(' ').collect::<Vec<_>>()).await.unwrap()
    }

    /// As [`Client::ask`]; what came is what was expected.
    async fn expect(&mut self, words: &str, reply: &str) {
        let came = self.ask(words).await.brief();
        assert_eq!(came, reply, "{words} of {}", self.prefix);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn h32_open_transactions_run_whole_on_the_new_side() {
    let mut lab = Setup::new().build().await;
    lab.mirror().await;
    for turn in 0..4 {
        let mut clients = Vec::new();
        for n in 0..4 {
            let mut client = Client::open(&lab, format!("turn:{turn}:{n}")).await;
            client.expect("SET @:before 1", "OK").await;
            client.expect("MULTI", "OK").await;
            client.expect("INCR @:counter", "QUEUED").await;
            client.expect("APPEND @:before 2", "QUEUED").await;
            client.expect("RPUSH @:list a b c", "QUEUED").await;
            client.expect("SELECT 3", "QUEUED").await;
            client.expect("SET @:there 1", "QUEUED").await;
            clients.push(client);
        }
        let mut binary = Connection::open(&lab.gateway.address()).await.unwrap();
        let value: Vec<u8> = (0..=255u8).cycle().take(100_000).collect();
        binary.must(&["MULTI"]).await.unwrap();
        binary.must(&[b"SET".as_slice(), b"binary", &value]).await.unwrap();
        let mut dropped = Client::open(&lab, format!("dropped:{turn}")).await;
        dropped.expect("MULTI", "OK").await;
        dropped.expect("SET @ 1", "QUEUED").await;
        let mut empty = Client::open(&lab, "empty".into()).await;
        empty.expect("MULTI", "OK").await;

        switch(&lab).await;

        for client in &mut clients {
            client.expect("INCR @:counter", "QUEUED").await;
            client.expect("EXEC", "[1 2 3 OK …]").await;
            client.expect("GET @:there", "1").await;
            client.expect("GET @:counter", "1").await; // the second INCR ran behind the SELECT
            client.expect("SELECT 0", "OK").await;
            client.expect("GET @:counter", "1").await;
            client.expect("GET @:before", "12").await;
            client.expect("LRANGE @:list 0 -1", "[a b c]").await;
        }
        assert_eq!(binary.must(&["EXEC"]).await.unwrap().brief(), "[OK]");
        let there = lab.active().await.0.call(&["GET", "binary"]).await.unwrap();
        assert!(there.bytes() == Some(&value[..]));
        dropped.expect("DISCARD", "OK").await;
        dropped.expect("EXISTS @", "0").await;
        empty.expect("EXEC", "[]").await;
        empty.expect("PING", "PONG").await;
        lab.same().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn h32_a_transaction_that_would_not_run_does_not_run_behind_the_switch() {
    let mut lab = Setup::new().build().await;
    lab.mirror().await;
    for turn in 0..2 {
        let open = async |what: &str| Client::open(&lab, format!("{what}:{turn}")).await;
        let mut watched = open("watched").await;
        watched.expect("SET @ old", "OK").await;
        watched.expect("WATCH @", "OK").await;
        let mut queued = open("queued").await;
        queued.expect("SET @ old", "OK").await;
        queued.expect("WATCH @ other", "OK").await;
        queued.expect("MULTI", "OK").await;
        queued.expect("SET @ new", "QUEUED").await;
        let mut unwatched = open("unwatched").await;
        unwatched.expect("WATCH @", "OK").await;
        unwatched.expect("UNWATCH", "OK").await;
        let mut later = open("later").await;
        later.expect("WATCH @", "OK").await;
        let mut discarded = open("discarded").await;
        discarded.expect("WATCH @", "OK").await;
        discarded.expect("MULTI", "OK").await;
        let mut tracking = open("tracking").await;
        tracking.expect("CLIENT NO-EVICT ON", "OK").await;
        tracking.expect("WATCH @", "OK").await;
        let mut wrong = open("wrong").await;
        wrong.expect("MULTI", "OK").await;
        wrong.expect("SET @ 1", "QUEUED").await;
        assert!(error(&wrong.ask("NOSUCHCOMMAND").await).starts_with("ERR unknown command"));
        let mut huge = open("huge").await;
        huge.expect("MULTI", "OK").await;
        let value = "v".repeat(33 << 20);
        for _ in 0..2 {
            huge.connection.must(&["SET", "huge", &value]).await.unwrap();
        }

        switch(&lab).await;

        // Nothing has changed the key, and nobody can say so any more: as after a conflict.
        watched.expect("MULTI", "OK").await;
        watched.expect("SET @ new", "QUEUED").await;
        watched.expect("EXEC", "nil").await;
        queued.expect("SET @ newer", "QUEUED").await;
        queued.expect("EXEC", "nil").await;
        for client in [&mut watched, &mut queued] {
            client.expect("GET @", "old").await;
            // tried again, as every client does
            client.expect("WATCH @", "OK").await;
            client.expect("MULTI", "OK").await;
            client.expect("SET @ new", "QUEUED").await;
            client.expect("EXEC", "[OK]").await;
            client.expect("GET @", "new").await;
        }
        unwatched.expect("MULTI", "OK").await;
        // What was watched is given up behind the switch.
        later.expect("UNWATCH", "OK").await;
        later.expect("MULTI", "OK").await;
        discarded.expect("DISCARD", "OK").await;
        discarded.expect("MULTI", "OK").await;
        tracking.expect("UNWATCH", "OK").await;
        tracking.expect("MULTI", "OK").await;
        for client in [&mut unwatched, &mut later, &mut discarded, &mut tracking] {
            client.expect("SET @ 1", "QUEUED").await;
            client.expect("EXEC", "[OK]").await;
            client.expect("GET @", "1").await;
        }
        wrong.expect("SET @:2 1", "QUEUED").await;
        assert!(error(&wrong.ask("EXEC").await).starts_with("EXECABORT"));
        wrong.expect("EXISTS @ @:2", "0").await;
        wrong.expect("MULTI", "OK").await;
        wrong.expect("SET @ 1", "QUEUED").await;
        wrong.expect("EXEC", "[OK]").await;
        assert!(error(&huge.ask("EXEC").await).contains("too large to be carried over the switch"));
        huge.expect("EXISTS huge", "0").await;
        lab.same().await;
    }
}

/// A pipeline in two pieces: wherever it is cut, each command runs once and the replies come in order.
#[tokio::test(flavor = "multi_thread")]
async fn h32_a_pipeline_goes_on_behind_the_switch() {
    const COMMANDS: usize = 400;
    let mut lab = Setup::new().build().await;
    lab.mirror().await;
    for turn in 0..4 {
        let mut sent = Vec::new();
        for client in 0..40 {
            let key = format!("pipe:{turn}:{client}");
            let (mut bytes, mut ends, mut expected) = (Vec::new(), Vec::new(), Vec::new());
            let mut counter = 0;
            for n in 0..COMMANDS {
                match n % 10 {
                    3 => {
                        encode(&mut bytes, &["ECHO", &n.to_string()]);
                        expected.push(n.to_string());
                    }
                    5 => {
                        encode(&mut bytes, &["MULTI"]);
                        expected.push("OK".into());
                    }
                    6 | 7 => {
                        encode(&mut bytes, &["INCR", &key]);
                        expected.push("QUEUED".into());
                    }
                    8 => {
                        encode(&mut bytes, &["EXEC"]);
                        expected.push(format!("[{} {}]", counter + 1, counter + 2));
                        counter += 2;
                    }
                    9 => {
                        encode(&mut bytes, &["EVAL", "return redis.call('INCR', KEYS[1])", "1", &key]);
                        counter += 1;
                        expected.push(counter.to_string());
                    }
                    _ => {
                        encode(&mut bytes, &["INCR", &key]);
                        counter += 1;
                        expected.push(counter.to_string());
                    }
                }
                ends.push((bytes.len(), counter));
            }
            // Behind some command of each kind, and some bytes into the next one.
            let at = 100 + client * 5 / 2;
            let cut = ends[at].0 + [0, 1, 9, 21][client % 4];
            let whole = ends.iter().rfind(|end| end.0 <= cut).unwrap().1;
            let mut stream = TcpStream::connect(lab.gateway.address()).await.unwrap();
            stream.write_all(&bytes[..cut]).await.unwrap();
            sent.push((stream, key, bytes.split_off(cut), expected, whole));
        }
        for (_, key, _, _, whole) in &sent {
            eventually("the first half was executed", async || {
                lab.active().await.0.call(&["GET", key]).await.unwrap().number() == Some(*whole)
            })
            .await;
        }

        switch(&lab).await;

        for (mut stream, key, rest, expected, _) in sent {
            stream.write_all(&rest).await.unwrap();
            let mut replies = Replies::new(stream);
            for (n, expected) in expected.iter().enumerate() {
                assert_eq!(replies.next().await.brief(), *expected, "reply {n} of {key}");
            }
        }
        lab.same().await;
    }
}

/// Replies of a pipeline whose bytes were written by hand.
struct Replies(Connection);

impl Replies {
    fn new(stream: TcpStream) -> Self {
        Self(Connection::from_stream(stream))
    }

    async fn next(&mut self) -> Reply {
        tokio::time::timeout(PATIENCE, self.0.reply()).await.expect("no reply came").unwrap()
    }
}

/// Bytes among which any shift would show.
fn noise(len: usize, seed: u32) -> Vec<u8> {
    (0..len as u32).map(|n| ((n ^ seed).wrapping_mul(2_654_435_761) >> 24) as u8).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn h32_a_value_of_100_mib_that_is_half_sent_arrives_whole() {
    let mut lab = Setup::new().build().await;
    lab.mirror().await;
    let value = noise(100 << 20, 1);
    for turn in 0..2 {
        let mut set = Vec::new();
        encode(&mut set, &[b"SET".as_slice(), b"large", &value]);
        let mut queued = Vec::new();
        encode(&mut queued, &["MULTI"]);
        let begins = queued.len();
        encode(&mut queued, &[b"SET".as_slice(), b"queued", &value[..20 << 20]]);
        encode(&mut queued, &["EXEC"]);
        let cut = begins + (10 << 20);
        let mut streams = Vec::new();
        for (bytes, cut) in [(&set, set.len() / 2), (&set, set.len() - 1), (&queued, cut)] {
            let mut stream = TcpStream::connect(lab.gateway.address()).await.unwrap();
            stream.write_all(&bytes[..cut]).await.unwrap();
            streams.push((stream, &bytes[cut..]));
        }
        let mut other = Client::open(&lab, "other".into()).await;
        other.expect("SET @ 1", "OK").await;

        switch(&lab).await;
        other.expect("GET @", "1").await;
        other.expect("EXISTS large queued", &(turn * 2).to_string()).await;
        // Each of them by itself: the last one that comes is the value that stays.
        for (index, (mut stream, rest)) in streams.into_iter().enumerate() {
            stream.write_all(rest).await.unwrap();
            let mut replies = Replies::new(stream);
            if index == 2 {
                assert_eq!(replies.next().await.brief(), "OK");
                assert_eq!(replies.next().await.brief(), "QUEUED");
                assert_eq!(replies.next().await.brief(), "[OK]");
                continue;
            }
            assert_eq!(replies.next().await.brief(), "OK");
            let there = lab.active().await.0.call(&["GET", "large"]).await.unwrap();
            assert!(there.bytes() == Some(&value[..]), "turn {turn}, client {index}");
            if index == 0 {
                other.expect("DEL large", "1").await;
            }
        }
        let there = lab.active().await.0.call(&["GET", "queued"]).await.unwrap();
        assert!(there.bytes() == Some(&value[..20 << 20]));
        lab.same().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn h32_a_reply_of_64_mib_that_is_half_read_comes_whole() {
    let mut lab = Setup::new().build().await;
    let value = noise(64 << 20, 2);
    let mut client = Connection::open(&lab.gateway.address()).await.unwrap();
    client.must(&[b"SET".as_slice(), b"large", &value]).await.unwrap();
    lab.mirror().await;
    for _ in 0..2 {
        // By a lane, and by a connection of its own (the reply of EXEC).
        let mut streams = Vec::new();
        for bytes in [&b"GET large\r\nINCR n\r\n"[..], b"MULTI\r\nGET large\r\nEXEC\r\nINCR n\r\n"] {
            let mut stream = TcpStream::connect(lab.gateway.address()).await.unwrap();
            stream.write_all(bytes).await.unwrap();
            let mut half = vec![0; 32 << 20];
            stream.read_exact(&mut half).await.unwrap();
            streams.push((stream, half));
        }
        switch(&lab).await;
        let (active, _) = lab.active().await;
        for (index, (mut stream, mut got)) in streams.into_iter().enumerate() {
            // Behind it, on the same connection, it goes on on the new side.
            stream.write_all(b"GETSET side new\r\nPING\r\n").await.unwrap();
            let mut buffer = vec![0; 1 << 20];
            while !got.ends_with(b"+PONG\r\n") {
                let read = tokio::time::timeout(PATIENCE, stream.read(&mut buffer)).await;
                let length = read.expect("the rest comes").unwrap();
                assert!(length > 0, "closed after {} bytes", got.len());
                got.extend_from_slice(&buffer[..length]);
            }
            let head: &[u8] = [&b"$67108864\r\n"[..], b"+OK\r\n+QUEUED\r\n*1\r\n$67108864\r\n"][index];
            assert!(got.starts_with(head), "{}", got[..40].escape_ascii());
            let (body, rest) = got[head.len()..].split_at(value.len());
            assert!(body == value, "client {index} read something else");
            assert!(rest.starts_with(b"\r\n:"), "{}", rest.escape_ascii());
            assert_eq!(active.call(&["GET", "side"]).await.unwrap().brief(), "new");
            active.call(&["DEL", "side"]).await.unwrap();
        }
        lab.same().await;
    }
}

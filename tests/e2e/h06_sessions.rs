//! H06: what belongs to one client (db, user, protocol, name, tracking, CLIENT REPLY) behaves as in Redis, stays with that
//! client, and goes with it over a switch.
//!
//! Most tests send the same commands in one pipeline to a server and to the gateway before it, and compare the bytes of
//! the replies. What must differ is replaced in both: the ids of clients ([`masked`]).

use std::time::Duration;

use crossfade::cli::demo::connection::{Connection, Reply, encode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::{Front, Setup, eventually, is_since, since};

/// Sends the lines, words apart at spaces, in one pipeline and then QUIT; everything that comes until the connection ends.
pub async fn transcript(address: &str, lines: &[&str]) -> String {
    let mut bytes = Vec::new();
    for line in lines.iter().chain(&["QUIT"]) {
        encode(&mut bytes, &line.split(' ').collect::<Vec<_>>());
    }
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(&bytes).await.unwrap();
    let mut text = Vec::new();
    let read = tokio::time::timeout(Duration::from_secs(20), stream.read_to_end(&mut text)).await;
    let text = String::from_utf8_lossy(&text).into_owned();
    assert!(matches!(read, Ok(Ok(_))), "{lines:?}: the connection does not end: {text:?}");
    text
}

/// The text with the ids of HELLO replaced: a client of the gateway has another id than a connection of the server.
pub fn masked(text: &str) -> String {
    let mut parts = text.split("$2\r\nid\r\n:");
    let mut out = parts.next().unwrap_or_default().to_string();
    for part in parts {
        let rest = part.trim_start_matches(|c: char| c.is_ascii_digit());
        out.push_str("$2\r\nid\r\n:(id)");
        out.push_str(rest);
    }
    out
}

/// Asserts that the gateway answers each script as the server does.
pub async fn same(front: &Front, scripts: &[&[&str]]) {
    for script in scripts {
        let script = &answered(script);
        front.server.call(&["FLUSHALL"]).await.ok();
        let direct = masked(&transcript(&front.server.address(), script).await);
        front.server.call(&["FLUSHALL"]).await.ok();
        let through = masked(&transcript(&front.address(), script).await);
        assert_eq!(through, direct, "{script:?}");
    }
}

/// The script without what the server itself leaves unanswered: from 7.2 on an AUTH that fails behind answers that have not
/// left yet (`addAuthErrReply` in `acl.c`). The gateway answers it.
fn answered<'a>(script: &[&'a str]) -> Vec<&'a str> {
    let fails = |line: &str| {
        line.split(' ').any(|word| word == "AUTH")
            && line.split(' ').any(|word| matches!(word, "wrong" | "bad" | "nobody"))
    };
    let mut lines = script.to_vec();
    if script.iter().skip(1).any(|line| fails(line)) && is_since("7.2", "7.2") {
        eprintln!("left out, as servers from 7.2 on do not answer it: AUTH that fails in {script:?}");
        let mut first = true;
        lines.retain(|line| std::mem::take(&mut first) || !fails(line));
    }
    lines
}

/// A connection that reads until it has seen something, for RESP3.
pub struct Raw {
    stream: TcpStream,
    seen: String,
}

impl Raw {
    pub async fn open(address: &str) -> Self {
        Self { stream: TcpStream::connect(address).await.unwrap(), seen: String::new() }
    }

    pub async fn send(&mut self, lines: &[&str]) {
        let mut bytes = Vec::new();
        for line in lines {
            encode(&mut bytes, &line.split(' ').collect::<Vec<_>>());
        }
        self.stream.write_all(&bytes).await.unwrap();
    }

    /// Reads until `text` has come; what came up to its end.
    pub async fn until(&mut self, text: &str) -> String {
        loop {
            if let Some(at) = self.seen.find(text) {
                let rest = self.seen.split_off(at + text.len());
                return std::mem::replace(&mut self.seen, rest);
            }
            let mut buf = [0; 4096];
            let read = tokio::time::timeout(Duration::from_secs(20), self.stream.read(&mut buf)).await;
            match read {
                Ok(Ok(n)) if n > 0 => self.seen.push_str(&String::from_utf8_lossy(&buf[..n])),
                other => panic!("waiting for {text:?}: {other:?} after {:?}", self.seen),
            }
        }
    }

    /// Waits until the connection ends.
    pub async fn ended(&mut self) {
        let mut rest = Vec::new();
        let read = tokio::time::timeout(Duration::from_secs(20), self.stream.read_to_end(&mut rest)).await;
        read.expect("the connection stays open").ok();
    }

    /// What has come when a marker that is sent now is echoed, without the marker.
    pub async fn settled(&mut self) -> String {
        self.send(&["ECHO ---"]).await;
        let mut text = self.until("$3\r\n---\r\n").await;
        text.truncate(text.len() - "$3\r\n---\r\n".len());
        text
    }
}

pub fn invalidates(key: &str) -> String {
    format!(">2\r\n$10\r\ninvalidate\r\n*1\r\n${}\r\n{key}\r\n", key.len())
}

pub async fn text(client: &mut Connection, words: &[&str]) -> String {
    let reply = client.must(words).await.unwrap();
    String::from_utf8_lossy(reply.bytes().unwrap_or_default()).into_owned()
}

pub async fn error(client: &mut Connection, words: &[&str]) -> String {
    match client.call(words).await.unwrap() {
        Reply::Error(text) => String::from_utf8_lossy(&text).into_owned(),
        other => panic!("{words:?}: an error was expected, not {other:?}"),
    }
}

pub async fn id(client: &mut Connection) -> String {
    client.must(&["CLIENT", "ID"]).await.unwrap().number().unwrap().to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn h06_any_order_in_one_pipeline_is_answered_as_by_the_server() {
    let front = Front::new().await;
    front.server.call(&["ACL", "SETUSER", "ann", "on", ">pw", "~a:*", "&*", "+@all"]).await.unwrap();
    same(
        &front,
        &[
            &["SET k 0", "SELECT 1", "GET k", "SET k 1", "SELECT 0", "GET k", "SELECT 1", "GET k"],
            &["SELECT 16", "SELECT -1", "SELECT x", "SELECT", "SELECT 1 2", "SELECT 0", "PING"],
            &[
                "HELLO 3",
                "HSET h f v",
                "HGETALL h",
                "HELLO 2",
                "HGETALL h",
                "HELLO 3",
                "GET no",
                "HELLO",
                "GET no",
            ],
            &[
                "HELLO 4",
                "HELLO x",
                "HELLO 3 AUTH",
                "HELLO 3 NOSUCH",
                "HELLO 3 SETNAME",
                "HELLO 2 AUTH a",
                "PING",
            ],
            &[
                "HELLO 3 SETNAME me",
                "CLIENT GETNAME",
                "HELLO 2 SETNAME you",
                "CLIENT GETNAME",
                "RESET",
                "CLIENT GETNAME",
            ],
            &[
                "HELLO 3 AUTH ann pw SETNAME ann",
                "ACL WHOAMI",
                "SET a:1 1",
                "SET b 1",
                "CLIENT GETNAME",
                "GET a:1",
            ],
            &[
                "HELLO 3 AUTH ann wrong SETNAME never",
                "CLIENT GETNAME",
                "ACL WHOAMI",
                "HELLO 3",
                "CLIENT GETNAME",
            ],
            &[
                "AUTH ann pw",
                "SET a:1 1",
                "SET b 1",
                "SELECT 3",
                "ACL WHOAMI",
                "RESET",
                "ACL WHOAMI",
                "SET b 1",
            ],
            &["AUTH ann wrong", "ACL WHOAMI", "AUTH", "AUTH a b c", "AUTH nobody x", "AUTH x", "ACL WHOAMI"],
            &["HELLO 3", "AUTH x", "AUTH ann pw", "ACL WHOAMI", "GET none"],
            &[
                "AUTH ann pw",
                "GET b",
                "AUTH ann wrong",
                "ACL WHOAMI",
                "GET b",
                "AUTH default any",
                "ACL WHOAMI",
                "GET b",
            ],
            &[
                "RESET", "RESET", "SELECT 2", "SET k 2", "HELLO 3", "RESET", "GET k", "SELECT 2", "GET k",
                "GET none",
            ],
            &[
                "MULTI", "SET k 1", "RESET", "EXEC", "GET k", "WATCH k", "RESET", "SET k 2", "MULTI",
                "GET k", "EXEC",
            ],
            &["SET k 1", "QUIT", "SET k 2"],
            &["MULTI", "SET k 1", "QUIT", "EXEC"],
            &["MULTI", "SELECT 5", "SET k 5", "EXEC", "GET k", "SELECT 0", "GET k"],
            // The same with a connection of one's own.
            &[
                "HELLO 3",
                "SUBSCRIBE c",
                "SELECT 1",
                "SET k 1",
                "HELLO 3 SETNAME own",
                "CLIENT GETNAME",
                "GET k",
            ],
            &[
                "HELLO 3",
                "SUBSCRIBE c",
                "AUTH ann pw",
                "SET b 1",
                "SET a:1 1",
                "UNSUBSCRIBE c",
                "SET b 1",
                "ACL WHOAMI",
            ],
            &[
                "HELLO 3",
                "SUBSCRIBE c",
                "HELLO 3 AUTH ann bad SETNAME x",
                "CLIENT GETNAME",
                "HELLO 5",
                "ACL WHOAMI",
            ],
            &["SUBSCRIBE c", "RESET", "SET k 1", "GET k"],
        ],
    )
    .await;
    // After all that, nobody else is anybody else.
    for _ in 0..20 {
        let mut client = Connection::open(&front.address()).await.unwrap();
        assert_eq!(text(&mut client, &["ACL", "WHOAMI"]).await, "default");
        client.must(&["MULTI"]).await.unwrap();
        client.must(&["ACL", "WHOAMI"]).await.unwrap();
        assert_eq!(client.must(&["EXEC"]).await.unwrap().items()[0].bytes(), Some(&b"default"[..]));
        assert_eq!(client.must(&["CLIENT", "GETNAME"]).await.unwrap(), Reply::Nil);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn h06_client_reply_leaves_out_exactly_what_it_says() {
    let front = Front::new().await;
    front.server.call(&["ACL", "SETUSER", "ann", "on", ">pw", "~*", "&*", "+@all"]).await.unwrap();
    same(
        &front,
        &[
            &["CLIENT REPLY OFF", "SET k 1", "INCR k", "NOSUCH", "CLIENT REPLY ON", "GET k"],
            &[
                "CLIENT REPLY SKIP",
                "SET k 1",
                "GET k",
                "CLIENT REPLY SKIP",
                "CLIENT REPLY SKIP",
                "INCR k",
                "GET k",
            ],
            &["CLIENT REPLY SKIP", "SELECT 7", "SET k 7", "CLIENT REPLY SKIP", "SELECT 99", "GET k"],
            &[
                "CLIENT REPLY SKIP",
                "AUTH ann pw",
                "ACL WHOAMI",
                "CLIENT REPLY SKIP",
                "AUTH ann bad",
                "ACL WHOAMI",
            ],
            &["CLIENT REPLY SKIP", "HELLO 3 SETNAME x", "CLIENT GETNAME", "GET none"],
            &[
                "CLIENT REPLY OFF",
                "SELECT 3",
                "HELLO 3",
                "AUTH ann bad",
                "CLIENT SETNAME n",
                "CLIENT REPLY ON",
                "CLIENT GETNAME",
                "GET none",
            ],
            &[
                "CLIENT REPLY SKIP",
                "CLIENT LIST TYPE nosuch",
                "PING",
                "CLIENT REPLY SKIP",
                "CLIENT KILL TYPE",
                "PING",
            ],
            &[
                "CLIENT REPLY SKIP",
                "BLPOP none 0.01",
                "PING",
                "CLIENT REPLY OFF",
                "BLPOP none 0.01",
                "CLIENT REPLY ON",
                "PING",
            ],
            &["CLIENT REPLY OFF", "MULTI", "SET k 1", "EXEC", "CLIENT REPLY ON", "GET k"],
            &["CLIENT REPLY OFF", "RESET", "PING"],
            &["CLIENT REPLY NEVER", "CLIENT REPLY", "PING"],
        ],
    )
    .await;
    // Redis 7.0 closes on QUIT when the reply was written, and here never; the gateway does.
    for script in [&["CLIENT REPLY OFF", "SET k 1"][..], &["CLIENT REPLY SKIP"]] {
        assert_eq!(transcript(&front.address(), script).await, "");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn h06_who_has_not_authenticated_gets_nothing() {
    let front = Front::new().await;
    front.server.call(&["CONFIG", "SET", "requirepass", "secret"]).await.unwrap();
    let reset = if since("7.0", "7.2", "RESET of a stranger, which 6.2 refuses") { "RESET" } else { "PING" };
    same(
        &front,
        &[
            &[
                "GET k",
                "SET k 1",
                "SELECT 0",
                "SELECT 1",
                "MULTI",
                "SUBSCRIBE c",
                "BLPOP l 1",
                "HELLO",
                "HELLO 3",
            ],
            &["CLIENT LIST", "CLIENT KILL TYPE normal SKIPME no", "CLIENT KILL 127.0.0.1:1", "PING", reset],
            // What the gateway answers itself.
            &[
                "CLIENT ID",
                "CLIENT GETNAME",
                "CLIENT SETNAME x",
                "CLIENT INFO",
                "CLIENT REPLY ON",
                "CLIENT REPLY OFF",
                "CLIENT UNBLOCK 1",
                "CLIENT NOSUCH",
                "CLUSTER SLOTS",
                "CLUSTER INFO",
                "CLUSTER KEYSLOT k",
                "READONLY",
                "ASKING",
                "AUTH secret",
                "CLIENT SETNAME x",
                "CLIENT GETNAME",
                "RESET",
                "CLIENT GETNAME",
            ],
            &["AUTH wrong", "GET k", "AUTH secret", "GET k", "AUTH wrong", "GET k", "RESET", "GET k"],
            &[
                "HELLO 3 AUTH default wrong",
                "GET k",
                "HELLO 3 AUTH default secret",
                "GET k",
                "RESET",
                "GET k",
            ],
            &["AUTH default secret", "HELLO 3", "SELECT 2", "SET k 1", "GET k", "HELLO 2", "GET none"],
        ],
    )
    .await;
    let mut known = Connection::open(&front.address()).await.unwrap();
    known.must(&["AUTH", "secret"]).await.unwrap();
    let mut unknown = Connection::open(&front.address()).await.unwrap();
    let known_id = id(&mut known).await;
    assert!(error(&mut unknown, &["CLIENT", "KILL", "ID", &known_id]).await.starts_with("NOAUTH"));
    assert!(error(&mut unknown, &["CLIENT", "LIST"]).await.starts_with("NOAUTH"));
    known.must(&["SET", "still", "1"]).await.unwrap();
}

/// Two users with different rights pipeline through the same lanes' worker at once: each gets what its own rights allow.
#[tokio::test(flavor = "multi_thread")]
async fn h06_rights_of_one_user_never_serve_another() {
    let front = Front::new().await;
    for (user, pattern, may) in [("ann", "~a:*", "+@all"), ("bob", "~b:*", "+get")] {
        let rule =
            ["ACL", "SETUSER", user, "on", ">pw", pattern, "resetchannels", may, "+ping", "+multi", "+exec"];
        front.server.call(&rule).await.unwrap();
    }
    front.server.call(&["MSET", "a:1", "ann's", "b:1", "bob's"]).await.unwrap();
    let mut tasks = Vec::new();
    for n in 0..8 {
        let address = front.address();
        tasks.push(tokio::spawn(async move {
            let (user, own, other) = if n % 2 == 0 { ("ann", "a:1", "b:1") } else { ("bob", "b:1", "a:1") };
            let mut client = Connection::open(&address).await.unwrap();
            client.must(&["AUTH", user, "pw"]).await.unwrap();
            for round in 0..100 {
                for _ in 0..10 {
                    client.queue(&["GET", own]);
                    client.queue(&["GET", other]);
                    client.queue(&["SET", own, &format!("{user}'s")]);
                }
                // And over a connection of one's own, which comes from the pool and goes back.
                for words in [&["MULTI"][..], &["GET", own], &["EXEC"]] {
                    client.queue(words);
                }
                client.flush().await.unwrap();
                for _ in 0..10 {
                    let mine = client.reply().await.unwrap();
                    assert_eq!(mine.bytes(), Some(format!("{user}'s").as_bytes()), "round {round}");
                    let theirs = client.reply().await.unwrap();
                    assert!(theirs.brief().starts_with("-NOPERM"), "{user} read {other}: {theirs:?}");
                    let set = client.reply().await.unwrap();
                    assert_eq!(set.brief().starts_with("-NOPERM"), user == "bob", "{user}: {set:?}");
                }
                client.reply().await.unwrap();
                client.reply().await.unwrap();
                let done = client.reply().await.unwrap();
                assert_eq!(done.items()[0].bytes(), Some(format!("{user}'s").as_bytes()));
            }
        }));
    }
    for task in tasks {
        task.await.unwrap();
    }
    // Who may not list or end clients at the server may not at the gateway.
    let mut ann = Connection::open(&front.address()).await.unwrap();
    ann.must(&["AUTH", "ann", "pw"]).await.unwrap();
    let mut bob = Connection::open(&front.address()).await.unwrap();
    bob.must(&["AUTH", "bob", "pw"]).await.unwrap();
    let ann_id = id(&mut ann).await;
    assert!(error(&mut bob, &["CLIENT", "KILL", "ID", &ann_id]).await.starts_with("NOPERM"));
    assert!(error(&mut bob, &["CLIENT", "LIST"]).await.starts_with("NOPERM"));
    assert!(text(&mut ann, &["CLIENT", "LIST"]).await.contains(" user=bob "));
    assert!(ann.must(&["CLIENT", "KILL", "USER", "bob"]).await.unwrap().number() == Some(1));
    assert!(bob.call(&["PING"]).await.is_err(), "bob's connection was ended");
}

/// A connection of the pool must not keep what a transaction did to it: rights, protocol, tracking.
#[tokio::test(flavor = "multi_thread")]
async fn h06_nothing_that_changes_the_connection_runs_inside_multi() {
    let front = Front::new().await;
    front.server.call(&["ACL", "SETUSER", "root", "on", ">pw", "~*", "&*", "+@all"]).await.unwrap();
    for command in [
        "AUTH root pw",
        "HELLO 3",
        "CLIENT REPLY OFF",
        "CLIENT TRACKING ON REDIRECT 1",
        "CLIENT UNBLOCK 1",
        "CLIENT CAPA redirect",
        "SUBSCRIBE c",
        "MONITOR",
        "SYNC",
    ] {
        let said = transcript(&front.address(), &["MULTI", "SET k 1", command, "EXEC", "GET k"]).await;
        let wanted = "+OK\r\n+QUEUED\r\n-ERR Command not allowed inside a transaction\r\n\
                      -EXECABORT Transaction discarded because of previous errors.\r\n$-1\r\n+OK\r\n";
        assert_eq!(said, wanted, "{command}");
    }
    for _ in 0..20 {
        let said = transcript(&front.address(), &["MULTI", "ACL WHOAMI", "EXEC"]).await;
        assert_eq!(said, "+OK\r\n+QUEUED\r\n*1\r\n$7\r\ndefault\r\n+OK\r\n");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn h06_tracking_in_all_its_modes() {
    let front = Front::new().await;
    let mut writer = Connection::open(&front.address()).await.unwrap();
    writer.must(&["MSET", "a", "1", "b", "1", "p:a", "1"]).await.unwrap();

    let mut plain = Raw::open(&front.address()).await;
    plain.send(&["HELLO 3", "CLIENT TRACKING ON", "GET a"]).await;
    plain.until("$1\r\n1\r\n").await;
    writer.must(&["SET", "b", "2"]).await.unwrap();
    writer.must(&["SET", "a", "2"]).await.unwrap();
    assert_eq!(plain.until(&invalidates("a")).await, invalidates("a"), "b was never read");
    writer.must(&["SET", "a", "3"]).await.unwrap();
    assert_eq!(plain.settled().await, "", "told once, until it is read again");
    writer.must(&["FLUSHALL"]).await.unwrap();
    plain.until(">2\r\n$10\r\ninvalidate\r\n_\r\n").await;

    let mut broadcast = Raw::open(&front.address()).await;
    broadcast.send(&["HELLO 3", "CLIENT TRACKING ON BCAST PREFIX p: PREFIX q:"]).await;
    broadcast.until("+OK\r\n").await;
    for key in ["a", "q:1", "p:1"] {
        writer.must(&["SET", key, "1"]).await.unwrap();
        if key != "a" {
            assert_eq!(broadcast.until(&invalidates(key)).await, invalidates(key));
        }
    }

    let mut optin = Raw::open(&front.address()).await;
    optin.send(&["HELLO 3", "CLIENT TRACKING ON OPTIN", "GET a", "CLIENT CACHING YES", "GET q:1"]).await;
    optin.settled().await;
    writer.must(&["SET", "a", "2"]).await.unwrap();
    writer.must(&["SET", "q:1", "2"]).await.unwrap();
    assert_eq!(optin.until(&invalidates("q:1")).await, invalidates("q:1"));

    let mut optout = Raw::open(&front.address()).await;
    optout.send(&["HELLO 3", "CLIENT TRACKING ON OPTOUT", "CLIENT CACHING NO", "GET a", "GET q:1"]).await;
    optout.settled().await;
    writer.must(&["SET", "a", "3"]).await.unwrap();
    writer.must(&["SET", "q:1", "3"]).await.unwrap();
    assert_eq!(optout.until(&invalidates("q:1")).await, invalidates("q:1"));

    let mut noloop = Raw::open(&front.address()).await;
    noloop.send(&["HELLO 3", "CLIENT TRACKING ON NOLOOP", "GET a", "SET a 9", "GET a"]).await;
    let own = noloop.settled().await;
    assert!(own.ends_with("$1\r\n3\r\n+OK\r\n$1\r\n9\r\n"), "{own:?}");
    writer.must(&["SET", "a", "4"]).await.unwrap();
    assert_eq!(noloop.until(&invalidates("a")).await, invalidates("a"));

    // Off again, the connection serves others, who hear nothing.
    plain.send(&["CLIENT TRACKING OFF", "GET a"]).await;
    plain.settled().await;
    writer.must(&["SET", "a", "5"]).await.unwrap();
    assert_eq!(plain.settled().await, "");

    same(
        &front,
        &[
            &[
                "CLIENT CACHING YES",
                "CLIENT TRACKING MAYBE",
                "CLIENT TRACKING ON OPTIN OPTOUT",
                "CLIENT GETREDIR",
                "PING",
            ],
            &[
                "CLIENT TRACKING ON PREFIX a",
                "CLIENT TRACKING ON BCAST PREFIX a PREFIX ab",
                "CLIENT TRACKINGINFO",
            ],
            &[
                "CLIENT TRACKING ON REDIRECT 123456",
                "CLIENT TRACKING ON REDIRECT x",
                "CLIENT TRACKING ON REDIRECT",
            ],
            &[
                "CLIENT TRACKING ON BCAST",
                "CLIENT TRACKING ON",
                "CLIENT TRACKINGINFO",
                "CLIENT TRACKING OFF",
                "CLIENT TRACKINGINFO",
            ],
        ],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn h06_tracking_redirected_to_a_subscriber() {
    let front = Front::new().await;
    let mut target = Connection::open(&front.address()).await.unwrap();
    let target_id = id(&mut target).await;
    let mut client = Connection::open(&front.address()).await.unwrap();
    target.must(&["SUBSCRIBE", "__redis__:invalidate"]).await.unwrap();
    client.must(&["CLIENT", "TRACKING", "ON", "REDIRECT", &target_id]).await.unwrap();
    client.must(&["SET", "k", "1"]).await.unwrap();
    client.must(&["GET", "k"]).await.unwrap();
    let mut writer = Connection::open(&front.address()).await.unwrap();
    writer.must(&["SET", "k", "2"]).await.unwrap();
    let told = target.reply().await.unwrap();
    assert_eq!(told.items()[1].bytes(), Some(&b"__redis__:invalidate"[..]));
    assert_eq!(told.items()[2].items()[0].bytes(), Some(&b"k"[..]));
}

#[tokio::test(flavor = "multi_thread")]
async fn h06_clients_are_listed_named_and_killed() {
    let front = Front::new().await;
    let address = front.address();
    let mut one = Connection::open(&address).await.unwrap();
    let mut two = Connection::open(&address).await.unwrap();
    let (one_id, two_id) = (id(&mut one).await, id(&mut two).await);
    assert_ne!(one_id, two_id);
    two.must(&["CLIENT", "SETNAME", "second"]).await.unwrap();
    two.must(&["SELECT", "4"]).await.unwrap();
    assert_eq!(text(&mut two, &["CLIENT", "GETNAME"]).await, "second");
    let bad = error(&mut two, &["CLIENT", "SETNAME", "a b"]).await;
    assert_eq!(bad, "ERR Client names cannot contain spaces, newlines or special characters.");
    let info = text(&mut two, &["CLIENT", "INFO"]).await;
    for part in [&format!("id={two_id} "), "name=second ", "db=4 ", "user=default", "resp=2"] {
        assert!(info.contains(part), "{part} in {info}");
    }
    let list = text(&mut one, &["CLIENT", "LIST"]).await;
    assert_eq!(list.lines().count(), 2, "the clients of the gateway, not its connections: {list}");
    assert!(text(&mut one, &["CLIENT", "LIST", "ID", &two_id]).await.starts_with(&format!("id={two_id} ")));
    assert_eq!(text(&mut one, &["CLIENT", "LIST", "TYPE", "pubsub"]).await, "");
    // Redis 6.2 takes 0 for every client, and Valkey has other words for what is no number.
    let odd = since("7.0", "99.0", "CLIENT KILL and LIST with odd ids");
    let (zero, word) = if odd { ("CLIENT KILL ID 0", "CLIENT KILL ID x") } else { ("PING", "PING") };
    same(
        &front,
        &[
            &["CLIENT KILL 127.0.0.1:1", zero, word, "CLIENT KILL ID 999999", "CLIENT KILL"],
            &[
                "CLIENT KILL NOSUCH x",
                "CLIENT KILL ID 1 ADDR",
                "CLIENT KILL ID 999999 SKIPME maybe",
                "CLIENT KILL TYPE nosuch",
            ],
            &[
                "CLIENT KILL USER nosuch",
                "CLIENT LIST TYPE nosuch",
                if odd { "CLIENT LIST ID x" } else { "PING" },
                "CLIENT LIST ID",
                "CLIENT LIST x",
            ],
            &[
                "CLIENT SETNAME",
                "CLIENT SETNAME ok",
                "CLIENT GETNAME",
                "CLIENT NOSUCH",
                "CLIENT",
                "CLIENT ID x",
            ],
            &[
                "CLIENT NO-EVICT ON",
                "CLIENT NO-EVICT OFF",
                "CLIENT NO-EVICT x",
                "CLIENT NO-TOUCH ON",
                "CLIENT SETNAME a",
                "SET k 1",
            ],
            &[
                "CLIENT UNBLOCK 999999",
                "CLIENT UNBLOCK x",
                "CLIENT UNBLOCK 999999 TIMEOUT",
                "CLIENT UNBLOCK",
                "PING",
            ],
            &["CLIENT KILL TYPE pubsub SKIPME yes", "PING"],
        ],
    )
    .await;

    // By id.
    assert_eq!(one.must(&["CLIENT", "KILL", "ID", &two_id]).await.unwrap().number(), Some(1));
    assert!(two.call(&["PING"]).await.is_err());
    // By address, in the old form and the new.
    for old in [true, false] {
        let mut victim = Connection::open(&address).await.unwrap();
        let info = text(&mut victim, &["CLIENT", "INFO"]).await;
        let addr = info.split(' ').find_map(|part| part.strip_prefix("addr=")).unwrap().to_string();
        if old {
            assert_eq!(text(&mut one, &["CLIENT", "KILL", &addr]).await, "OK");
        } else {
            assert_eq!(one.must(&["CLIENT", "KILL", "ADDR", &addr]).await.unwrap().number(), Some(1));
        }
        assert!(victim.call(&["PING"]).await.is_err());
    }
    // A blocked one; and oneself only with SKIPME no.
    let mut blocked = Connection::open(&address).await.unwrap();
    let blocked_id = id(&mut blocked).await;
    blocked.queue(&["BLPOP", "none", "0"]);
    blocked.flush().await.unwrap();
    eventually("a client blocks", async || front.server.info("blocked_clients").await.unwrap() == "1").await;
    assert_eq!(one.must(&["CLIENT", "UNBLOCK", &blocked_id]).await.unwrap().number(), Some(1));
    assert_eq!(blocked.reply().await.unwrap(), Reply::Nil);
    assert_eq!(one.must(&["CLIENT", "UNBLOCK", &blocked_id]).await.unwrap().number(), Some(0));
    blocked.queue(&["BLPOP", "none", "0"]);
    blocked.flush().await.unwrap();
    eventually("it blocks again", async || front.server.info("blocked_clients").await.unwrap() == "1").await;
    assert_eq!(one.must(&["CLIENT", "UNBLOCK", &blocked_id, "ERROR"]).await.unwrap().number(), Some(1));
    assert!(blocked.reply().await.unwrap().brief().starts_with("-UNBLOCKED"));
    blocked.queue(&["BLPOP", "none", "0"]);
    blocked.flush().await.unwrap();
    eventually("it blocks again", async || front.server.info("blocked_clients").await.unwrap() == "1").await;
    assert_eq!(one.must(&["CLIENT", "KILL", "ID", &one_id]).await.unwrap().number(), Some(0));
    assert_eq!(one.must(&["CLIENT", "KILL", "TYPE", "normal"]).await.unwrap().number(), Some(1));
    assert!(blocked.reply().await.is_err());
    eventually("nobody blocks", async || front.server.info("blocked_clients").await.unwrap() == "0").await;
    let own = ["CLIENT", "KILL", "ID", &one_id, "SKIPME", "no"];
    assert_eq!(one.must(&own).await.unwrap().number(), Some(1), "the reply comes before the end");
    assert!(one.call(&["PING"]).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn h06_wait_speaks_of_what_the_client_wrote() {
    let front = Front::new().await;
    let dir = tempfile::tempdir().unwrap();
    let port = front.server.port().to_string();
    let replica = crate::support::start_server("", dir.path(), &[]).await;
    replica.call(&["REPLICAOF", "127.0.0.1", &port]).await.unwrap();
    eventually("the replica is there", async || {
        replica.info("master_link_status").await.is_ok_and(|status| status == "up")
    })
    .await;
    let mut client = Connection::open(&front.address()).await.unwrap();
    for n in 0..20 {
        let value = n.to_string();
        client.must(&["SET", "k", &value]).await.unwrap();
        assert_eq!(client.must(&["WAIT", "1", "20000"]).await.unwrap().number(), Some(1));
        assert_eq!(replica.call(&["GET", "k"]).await.unwrap().bytes(), Some(value.as_bytes()));
    }
    assert_eq!(client.must(&["WAIT", "2", "50"]).await.unwrap().number(), Some(1));
    same(&front, &[&["WAIT", "WAIT x 1", "WAIT 0 x", "WAIT 1 -1", "WAITAOF", "WAITAOF 1 x 0", "PING"]]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn h06_clients_keep_what_is_theirs_over_a_cutover_and_a_rollback() {
    let mut lab = Setup::new().build().await;
    for server in [&lab.source, &lab.destination] {
        let rule = ["ACL", "SETUSER", "ann", "on", ">pw", "~a:*", "&*", "+@all"];
        server.call(&rule).await.unwrap();
    }
    let address = lab.gateway.address();
    let mut named = Connection::open(&address).await.unwrap();
    named.must(&["CLIENT", "SETNAME", "kept"]).await.unwrap();
    named.must(&["SELECT", "6"]).await.unwrap();
    named.must(&["SET", "k", "six"]).await.unwrap();
    let named_id = id(&mut named).await;
    let mut ann = Raw::open(&address).await;
    ann.send(&["HELLO 3 AUTH ann pw SETNAME ann", "SELECT 2", "SET a:k two"]).await;
    ann.settled().await;
    let mut quiet = Connection::open(&address).await.unwrap();
    quiet.queue(&["CLIENT", "REPLY", "OFF"]);
    quiet.flush().await.unwrap();
    let mut spoilt = Connection::open(&address).await.unwrap();
    spoilt.must(&["MULTI"]).await.unwrap();
    spoilt.must(&["SET", "spoilt", "1"]).await.unwrap();
    error(&mut spoilt, &["NOSUCHCOMMAND"]).await;
    let mut tracking = Raw::open(&address).await;
    tracking.send(&["SET cached 1", "HELLO 3", "CLIENT TRACKING ON", "GET cached"]).await;
    tracking.settled().await;
    let mut broadcast = Raw::open(&address).await;
    broadcast.send(&["HELLO 3", "CLIENT TRACKING ON BCAST PREFIX cached"]).await;
    broadcast.settled().await;

    lab.mirror().await;
    for turn in 0..2 {
        let mut probe = Connection::open(&address).await.unwrap();
        quiet.queue(&["INCR", "quiet"]);
        quiet.flush().await.unwrap();
        eventually("it was counted", async || {
            text(&mut probe, &["GET", "quiet"]).await == (turn + 1).to_string()
        })
        .await;
        if turn == 0 {
            lab.cutover().await;
        } else {
            lab.rollback().await;
        }
        let (active, _) = lab.active().await;
        assert_eq!(text(&mut named, &["CLIENT", "GETNAME"]).await, "kept");
        assert_eq!(id(&mut named).await, named_id);
        assert_eq!(text(&mut named, &["GET", "k"]).await, "six");
        ann.send(&["ACL WHOAMI", "CLIENT GETNAME", "GET a:k", "GET b", "GET a:none"]).await;
        let said = ann.settled().await;
        let wanted = "$3\r\nann\r\n$3\r\nann\r\n$3\r\ntwo\r\n-NOPERM";
        assert!(said.starts_with(wanted) && said.ends_with("\r\n_\r\n"), "{said:?}");
        // What was cached on the old side is forgotten, and tracking goes on.
        let flushed = ">2\r\n$10\r\ninvalidate\r\n_\r\n";
        for client in [&mut tracking, &mut broadcast] {
            assert_eq!(client.until(flushed).await, flushed);
        }
        tracking.send(&["GET cached"]).await;
        tracking.settled().await;
        active.call(&["SET", "cached", "2"]).await.unwrap();
        for client in [&mut tracking, &mut broadcast] {
            assert_eq!(client.until(&invalidates("cached")).await, invalidates("cached"));
        }
        if turn == 0 {
            assert!(error(&mut spoilt, &["EXEC"]).await.starts_with("EXECABORT"));
            assert_eq!(spoilt.must(&["EXISTS", "spoilt"]).await.unwrap().number(), Some(0));
        }
    }
    quiet.queue(&["CLIENT", "REPLY", "ON"]);
    quiet.flush().await.unwrap();
    assert_eq!(quiet.reply().await.unwrap().brief(), "OK");
    assert_eq!(text(&mut quiet, &["GET", "quiet"]).await, "2");
}

/// A user who may not ask for the id of a connection blocks over a switch like any other.
#[tokio::test(flavor = "multi_thread")]
async fn h06_a_user_with_few_rights_blocks_over_a_cutover() {
    let mut lab = Setup::new().build().await;
    for server in [&lab.source, &lab.destination] {
        server.call(&["ACL", "SETUSER", "few", "on", ">pw", "~*", "+blpop"]).await.unwrap();
    }
    let mut few = Connection::open(&lab.gateway.address()).await.unwrap();
    few.must(&["AUTH", "few", "pw"]).await.unwrap();
    lab.mirror().await;
    few.queue(&["BLPOP", "queue", "0"]);
    few.flush().await.unwrap();
    eventually("it blocks", async || lab.source.info("blocked_clients").await.unwrap() == "1").await;
    lab.cutover().await;
    let mut other = Connection::open(&lab.gateway.address()).await.unwrap();
    other.must(&["RPUSH", "queue", "x"]).await.unwrap();
    assert_eq!(few.reply().await.unwrap().brief(), "[queue x]");
}

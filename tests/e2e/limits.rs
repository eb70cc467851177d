//! What `[listen]` allows: how many clients, for how long without a word, how large a command, over which sockets; and what
//! clients are told when the server stays away, or when they have not authenticated.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use crate::support::certificates::certificates;
use crate::support::proxy::{Rules, Way};
use crate::support::resp3::Client;
use crate::support::{Lab, Setup, eventually};

/// What Redis says to one client too many.
const FULL: &str = "-ERR max number of clients reached";

async fn lab(config: &str) -> Lab {
    Setup::new().config(config).build().await
}

async fn open(lab: &Lab) -> Client {
    Client::open_resp2(&lab.gateway.address()).await
}

/// Waits until the status counts so many clients.
async fn counted(lab: &Lab, clients: usize) {
    eventually("all are counted, and nobody else", async || {
        lab.gateway.status().await.unwrap()["clients"]["connected"] == clients
    })
    .await;
}

/// Waits until the gateway knows that the connection over which clients' commands go is gone: a command that it had sent by then
/// would end with its client, since nobody could tell what has become of it.
async fn lane_is_lost(lab: &Lab) {
    eventually("the gateway notices", async || lab.gateway.log().contains("a lane lost its connection"))
        .await;
}

/// `[listen.tls]` with the certificates in `dir`.
fn tls_table(dir: &Path, demand: bool) -> String {
    let at = |name: &str| dir.join(name).display().to_string();
    let ca = if demand { format!("listen.tls.client_ca = {:?}\n", at("ca.pem")) } else { String::new() };
    format!("{ca}listen.tls.cert = {:?}\nlisten.tls.key = {:?}\n", at("server.pem"), at("server.key"))
}

/// A client over TLS that trusts the authority in `dir`, with its own certificate if it shows one.
async fn open_tls(lab: &Lab, dir: &Path, shows: bool) -> std::io::Result<Client<TlsStream<TcpStream>>> {
    let chain = |name: &str| CertificateDer::pem_file_iter(dir.join(name)).unwrap().map(Result::unwrap);
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(chain("ca.pem"));
    let provider = Arc::new(tokio_rustls::rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let config = config.with_root_certificates(roots);
    let config = if shows {
        let key = PrivateKeyDer::from_pem_file(dir.join("client.key")).unwrap();
        config.with_client_auth_cert(chain("client.pem").collect(), key).unwrap()
    } else {
        config.with_no_client_auth()
    };
    let tcp = TcpStream::connect(lab.gateway.address()).await.unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    Ok(Client::over(TlsConnector::from(Arc::new(config)).connect(name, tcp).await?))
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_max_clients() {
    for workers in [1, 3] {
        let lab = lab(&format!("listen.max_clients = 5\nlisten.workers = {workers}\n")).await;
        let mut clients = Vec::new();
        for _ in 0..5 {
            let mut client = open(&lab).await;
            assert_eq!(client.ask(&["PING"]).await, "PONG");
            clients.push(client);
        }
        for _ in 0..20 {
            let mut late = open(&lab).await;
            assert_eq!(late.frame().await.text, FULL, "it is told before it has asked anything");
            late.ended().await;
        }
        for client in &mut clients {
            assert_eq!(client.ask(&["PING"]).await, "PONG", "those who are in stay in");
        }
        drop(clients.pop());
        eventually("a place gets free", async || {
            let mut next = open(&lab).await;
            let is_in = next.ask(&["PING"]).await == "PONG";
            if is_in {
                clients.push(next);
            }
            is_in
        })
        .await;
        let mut late = open(&lab).await;
        assert_eq!(late.frame().await.text, FULL);
        counted(&lab, 5).await;
    }
}

/// As many workers as it takes for two to accept at the same instant: not one too many comes in.
#[tokio::test(flavor = "multi_thread")]
async fn limits_max_clients_is_exact_in_a_rush() {
    let lab = lab("listen.max_clients = 40\nlisten.workers = 8\n").await;
    for round in 0..8 {
        let ask = async || {
            let mut client = open(&lab).await;
            (client.ask(&["PING"]).await == "PONG").then_some(client)
        };
        let clients: Vec<Client> =
            futures_util::future::join_all((0..200).map(|_| ask())).await.into_iter().flatten().collect();
        assert_eq!(clients.len(), 40, "round {round}");
        drop(clients);
        counted(&lab, 0).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_max_clients_over_tls() {
    let dir = tempfile::tempdir().unwrap();
    if !certificates(dir.path()) {
        return eprintln!("skipped: no openssl to make certificates with");
    }
    let lab = lab(&format!("listen.max_clients = 1\n{}", tls_table(dir.path(), false))).await;
    let mut first = open_tls(&lab, dir.path(), false).await.unwrap();
    assert_eq!(first.ask(&["PING"]).await, "PONG");
    for _ in 0..20 {
        let mut late = open_tls(&lab, dir.path(), false).await.unwrap();
        assert_eq!(late.frame().await.text, FULL);
        assert!(late.ended().await, "closed in an orderly way");
    }
    assert_eq!(first.ask(&["PING"]).await, "PONG");
    drop(first);
    eventually("a place gets free", async || {
        open_tls(&lab, dir.path(), false).await.unwrap().ask(&["PING"]).await == "PONG"
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_tls_towards_clients() {
    let dir = tempfile::tempdir().unwrap();
    if !certificates(dir.path()) {
        return eprintln!("skipped: no openssl to make certificates with");
    }
    let mut lab = lab(&tls_table(dir.path(), true)).await;
    let mut client = open_tls(&lab, dir.path(), true).await.unwrap();
    let mut listener = open_tls(&lab, dir.path(), true).await.unwrap();
    listener.ask(&["SUBSCRIBE", "news"]).await;
    let large = "x".repeat(5 << 20);
    lab.mirror().await;
    for turn in 0..3 {
        match turn {
            1 => drop(lab.cutover().await),
            2 => drop(lab.rollback().await),
            _ => {}
        }
        assert_eq!(client.ask(&["SET", "large", &large]).await, "OK");
        assert!(client.ask(&["GET", "large"]).await == large, "turn {turn}");
        assert_eq!(client.ask(&["PUBLISH", "news", "one"]).await, "1");
        assert_eq!(listener.frame().await.text, "[message news one]");
    }
    // Who shows no certificate, and who does not speak TLS, is sent away; the others go on.
    let nameless = async {
        let mut client = open_tls(&lab, dir.path(), false).await?;
        // With TLS 1.3 a client learns of the refusal by its first read.
        client.queue(&["PING"]);
        client.flush().await;
        Ok::<bool, std::io::Error>(client.ended().await)
    };
    assert!(!matches!(nameless.await, Ok(true)), "a client without a certificate is told so");
    let mut plain = open(&lab).await;
    plain.queue(&["PING"]);
    plain.flush().await;
    let mut rest = Vec::new();
    let mut stream = plain.into_stream();
    let _ = tokio::io::AsyncReadExt::read_to_end(&mut stream, &mut rest).await;
    assert!(!rest.starts_with(b"+PONG"), "{}", rest.escape_ascii());
    assert_eq!(client.ask(&["QUIT"]).await, "OK");
    assert!(client.ended().await, "closed in an orderly way");
    assert_eq!(listener.ask(&["PING"]).await, "[pong ]");
    counted(&lab, 1).await;
}

/// Waits until the gateway closes the connection, and asserts that it did not do so at once. How long exactly it waits depends on
/// a clock that ticks every 100 ms, and later on a busy machine.
async fn ends_after(mut client: Client, since: Instant, what: &str) {
    client.ended().await;
    assert!(since.elapsed() > IDLE / 2, "{what}: after {:?}", since.elapsed());
}

const IDLE: Duration = Duration::from_millis(1500);

#[tokio::test(flavor = "multi_thread")]
async fn limits_idle_timeout() {
    let lab = lab("listen.idle_timeout = \"1500ms\"\n").await;
    let address = lab.gateway.address();

    // Those that wait for others are not idle.
    let mut blocked = open(&lab).await;
    blocked.queue(&["BLPOP", "queue", "0"]);
    blocked.flush().await;
    let mut listener = open(&lab).await;
    listener.ask(&["SUBSCRIBE", "news"]).await;
    let mut modern = Client::open(&address).await;
    modern.queue(&["SSUBSCRIBE", "shard"]);
    modern.flush().await;
    modern.push().await;
    let mut monitor = open(&lab).await;
    assert_eq!(monitor.ask(&["MONITOR"]).await, "OK");

    // Those that only have something for themselves are.
    let mut idle = Vec::new();
    let cases: [(&str, &[&[&str]]); 6] = [
        ("never said a word", &[]),
        ("an ordinary command", &[&["SET", "k", "1"]]),
        ("WATCH", &[&["WATCH", "k"]]),
        ("MULTI", &[&["MULTI"], &["SET", "k", "2"]]),
        ("tracking", &[&["HELLO", "3"], &["CLIENT", "TRACKING", "ON"]]),
        ("unsubscribed", &[&["SUBSCRIBE", "c"], &["UNSUBSCRIBE", "c"]]),
    ];
    for (what, commands) in cases {
        let mut client = open(&lab).await;
        for command in commands {
            client.ask(command).await;
        }
        idle.push(ends_after(client, Instant::now(), what));
    }
    let mut active = open(&lab).await;
    let all_ended = std::cell::Cell::new(false);
    let ending = async {
        futures_util::future::join_all(idle).await;
        all_ended.set(true);
    };
    let working = async {
        // A command well within the limit, again and again.
        while !all_ended.get() {
            assert_eq!(active.ask(&["PING"]).await, "PONG");
            tokio::time::sleep(IDLE / 10).await;
        }
    };
    tokio::join!(ending, working);
    assert_eq!(active.ask(&["PING"]).await, "PONG");

    // What was in the transaction that was given up has not happened.
    assert_eq!(active.ask(&["GET", "k"]).await, "1");
    assert_eq!(active.ask(&["PUBLISH", "news", "late"]).await, "1");
    assert_eq!(active.ask(&["SPUBLISH", "shard", "late"]).await, "1");
    assert_eq!(listener.frame().await.text, "[message news late]");
    assert_eq!(modern.push().await, "[smessage shard late]");
    while !monitor.frame().await.text.ends_with("\"SPUBLISH\" \"shard\" \"late\"") {}
    assert_eq!(active.ask(&["RPUSH", "queue", "late"]).await, "1");
    // Now it has been answered, its time begins.
    assert_eq!(blocked.frame().await.text, "[queue late]");
    ends_after(blocked, Instant::now(), "answered after a long time").await;
}

/// A client is not idle while its command takes long, and its time begins with the answer.
#[tokio::test(flavor = "multi_thread")]
async fn limits_idle_timeout_and_a_slow_command() {
    let lab = lab("listen.idle_timeout = \"1500ms\"\n").await;
    let mut client = open(&lab).await;
    assert_eq!(client.ask(&["DEBUG", "SLEEP", "2"]).await, "OK");
    ends_after(client, Instant::now(), "a slow command").await;
}

/// The kernel's timer of the gateway's end of a connection: its kind, and what is left of it. Kind 2 is keepalive.
fn timer(gateway: u16, client: u16) -> Option<(u8, Duration)> {
    let table = std::fs::read_to_string("/proc/net/tcp").ok()?;
    let (own, peer) = (format!(":{gateway:04X}"), format!(":{client:04X}"));
    let row = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>()).find(|row| {
        row.get(1).is_some_and(|at| at.ends_with(&own)) && row.get(2).is_some_and(|at| at.ends_with(&peer))
    })?;
    let (kind, left) = row.get(5)?.split_once(':')?;
    // In hundredths of a second, whatever the kernel's own ticks are.
    let left = u64::from_str_radix(left, 16).ok()?;
    Some((u8::from_str_radix(kind, 16).ok()?, Duration::from_millis(left * 10)))
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_tcp_keepalive() {
    for (text, wanted) in [("90s", Some(Duration::from_secs(90))), ("0", None)] {
        let lab = lab(&format!("listen.tcp_keepalive = {text:?}\n")).await;
        let mut client = open(&lab).await;
        assert_eq!(client.ask(&["PING"]).await, "PONG");
        let gateway = lab.gateway.address().rsplit(':').next().unwrap().parse().unwrap();
        let port = client.into_stream();
        let own = port.local_addr().unwrap().port();
        if timer(gateway, own).is_none() {
            return eprintln!("skipped: /proc/net/tcp does not show connections here");
        }
        match wanted {
            // While something is in flight the column shows another timer.
            Some(wanted) => {
                eventually("the keepalive timer runs", async || {
                    timer(gateway, own).is_some_and(|(kind, left)| {
                        kind == 2 && left <= wanted && left + Duration::from_secs(60) > wanted
                    })
                })
                .await;
            }
            None => {
                eventually("no timer", async || timer(gateway, own).is_some_and(|(kind, _)| kind == 0)).await
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_query_buffer() {
    let lab = lab("listen.query_buffer_limit = \"1MiB\"\n").await;
    let mut witness = open(&lab).await;
    let mut client = open(&lab).await;
    let below = "x".repeat((1 << 20) - 100);
    assert_eq!(client.ask(&["SET", "k", &below]).await, "OK");
    // A pipeline may be longer: it is no unfinished command.
    let set = format!("*3\r\n$3\r\nSET\r\n$1\r\nk\r\n${}\r\n{below}\r\n", below.len());
    let (most, end) = set.as_bytes().split_at(set.len() - 8192);
    for _ in 0..3 {
        client.queue_raw(set.as_bytes());
    }
    // The end of one comes with the beginning of another.
    client.queue_raw(most);
    client.flush().await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    client.queue_raw(end);
    client.queue_raw(set.as_bytes());
    client.flush().await;
    for _ in 0..5 {
        assert_eq!(client.frame().await.text, "OK");
    }
    // One that is never finished.
    let mut stream = client.into_stream();
    let head = format!("*3\r\n$3\r\nSET\r\n$1\r\nk\r\n${}\r\n{}", 2 << 20, "y".repeat((1 << 20) + 100));
    tokio::io::AsyncWriteExt::write_all(&mut stream, head.as_bytes()).await.unwrap();
    Client::over(stream).ended().await;
    assert_eq!(witness.ask(&["STRLEN", "k"]).await, below.len().to_string());
    assert!(lab.gateway.log().contains("listen.query_buffer_limit"));
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_unix_socket() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("redis.sock");
    let config = format!("listen.unix_socket = {path:?}\nlisten.workers = 3\nlisten.max_clients = 4\n");
    // What the mirror has not taken yet when the gateway dies fits there.
    const BACKLOG: [&str; 2] = ["--repl-backlog-size", "64mb"];
    let mut lab = Setup::new().source(&BACKLOG).destination(&BACKLOG).config(&config).build().await;
    let connect = async || Client::over(UnixStream::connect(&path).await.unwrap());
    let mut local = connect().await;
    let mut tcp = open(&lab).await;
    let mut listener = connect().await;
    listener.ask(&["SUBSCRIBE", "news"]).await;
    lab.mirror().await;
    for turn in 0..3 {
        match turn {
            1 => drop(lab.cutover().await),
            2 => drop(lab.rollback().await),
            _ => {}
        }
        let large = turn.to_string().repeat(3 << 20);
        assert_eq!(local.ask(&["SET", "large", &large]).await, "OK");
        assert!(tcp.ask(&["GET", "large"]).await == large, "turn {turn}");
        assert_eq!(tcp.ask(&["PUBLISH", "news", "one"]).await, "1");
        assert_eq!(listener.frame().await.text, "[message news one]");
    }
    // As Redis shows them.
    let info = local.ask(&["CLIENT", "INFO"]).await;
    assert!(info.contains(&format!(" addr={}:0 laddr={}:0 ", path.display(), path.display())), "{info}");
    // They count like all others.
    let _fourth = open(&lab).await;
    counted(&lab, 4).await;
    assert_eq!(connect().await.frame().await.text, FULL);
    // What a gateway that died has left is replaced by the next.
    lab.gateway.restart().await.unwrap();
    assert_eq!(connect().await.ask(&["EXISTS", "large"]).await, "1");
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_reconnect_wait_runs_out() {
    let mut lab = lab("server.reconnect_wait = \"1s\"\n").await;
    lab.expect_log("stayed away");
    let mut clients = Vec::new();
    for _ in 0..6 {
        let mut client = open(&lab).await;
        assert_eq!(client.ask(&["SET", "k", "1"]).await, "OK");
        clients.push(client);
    }
    let commands: [&[&str]; 6] = [
        &["GET", "k"],
        &["BLPOP", "queue", "5"],
        &["SELECT", "3"],
        &["MULTI"],
        &["CLIENT", "LIST"],
        &["NO.SUCH.COMMAND"],
    ];
    lab.source.kill();
    lane_is_lost(&lab).await;
    let asked = clients.iter_mut().zip(commands).map(|(client, command)| async move {
        let began = Instant::now();
        let reply = client.ask(command).await;
        let took = began.elapsed();
        assert!(reply.starts_with("-ERR ") && reply.contains("source"), "{command:?}: {reply}");
        assert!(took > Duration::from_millis(500), "{command:?}: {took:?}");
        // A pipeline behind it is answered command by command.
        client.queue(command);
        client.queue(&["GET", "k"]);
        client.queue(&["SET", "k", "2"]);
        client.flush().await;
        for _ in 0..3 {
            let reply = client.frame().await.text;
            assert!(reply.starts_with("-ERR ") && reply.contains("source"), "{command:?}: {reply}");
        }
    });
    futures_util::future::join_all(asked).await;
    // Who wants no replies gets none.
    let mut quiet = open(&lab).await;
    quiet.queue(&["CLIENT", "REPLY", "OFF"]);
    quiet.queue(&["SET", "k", "3"]);
    quiet.queue(&["BLPOP", "queue", "5"]);
    quiet.queue(&["CLIENT", "REPLY", "ON"]);
    quiet.flush().await;
    assert_eq!(quiet.frame().await.text, "OK");

    lab.source.restart().await.unwrap();
    for client in &mut clients {
        // Nothing that was refused has been run, and nobody is in another database or in a transaction.
        assert_eq!(client.ask(&["GET", "k"]).await, "nil");
        client.ask(&["INCR", "count"]).await;
    }
    assert_eq!(clients[0].ask(&["GET", "count"]).await, "6");
    assert_eq!(quiet.ask(&["GET", "k"]).await, "nil");
}

/// A server that takes connections and says nothing, as behind a firewall that drops everything.
#[tokio::test(flavor = "multi_thread")]
async fn limits_connect_timeout() {
    let config = "[server]\nconnect_timeout = \"300ms\"\nreconnect_wait = \"300ms\"\n";
    let mut lab = Setup::new().proxies().config(config).build().await;
    lab.expect_log("stayed away");
    let mut known = open(&lab).await;
    assert_eq!(known.ask(&["SET", "k", "1"]).await, "OK");
    let proxy = lab.source_proxy.as_ref().unwrap();
    for way in [Way::Up, Way::Down] {
        proxy.rules(way, Rules { black_hole: true, ..Rules::default() });
    }
    proxy.cut();
    lane_is_lost(&lab).await;
    let mut new = open(&lab).await;
    for command in [&["GET", "k"][..], &["BLPOP", "queue", "1"]] {
        for client in [&mut known, &mut new] {
            let began = Instant::now();
            let reply = client.ask(command).await;
            assert!(reply.starts_with("-ERR the source could not be reached within 300ms"), "{reply}");
            assert!(began.elapsed() < Duration::from_secs(4), "{command:?}: {:?}", began.elapsed());
        }
    }
    proxy.heal();
    for client in [&mut known, &mut new] {
        eventually("the source is there again", async || client.ask(&["GET", "k"]).await == "1").await;
    }
}

/// A server that refuses a client's new connection says so once, and its session goes on.
#[tokio::test(flavor = "multi_thread")]
async fn limits_a_refused_connection_is_one_error() {
    let lab = lab("").await;
    lab.source.call(&["ACL", "SETUSER", "app", "on", ">one", "~*", "&*", "+@all"]).await.unwrap();
    let mut clients = Vec::new();
    for _ in 0..3 {
        let mut client = open(&lab).await;
        assert_eq!(client.ask(&["AUTH", "app", "one"]).await, "OK");
        assert_eq!(client.ask(&["SET", "k", "1"]).await, "OK");
        clients.push(client);
    }
    lab.source.call(&["ACL", "SETUSER", "app", "resetpass", ">two"]).await.unwrap();
    // Connections that stand stay as they are; new ones are refused.
    lab.source.call(&["CLIENT", "KILL", "USER", "app"]).await.unwrap();
    lane_is_lost(&lab).await;
    for client in &mut clients {
        assert!(client.ask(&["BLPOP", "queue", "1"]).await.starts_with("-WRONGPASS"));
    }
    // Over the connection that clients share it is the last one: they authenticate when they connect, as after a server's restart.
    let mut old = clients.pop().unwrap();
    assert!(old.ask(&["GET", "k"]).await.starts_with("-WRONGPASS"));
    assert!(old.ended().await);
    for client in &mut clients {
        assert_eq!(client.ask(&["AUTH", "app", "two"]).await, "OK");
        assert_eq!(client.ask(&["GET", "k"]).await, "1");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_before_authentication() {
    const USER: [&str; 7] = ["--user", "gate", "on", ">of-the-gateway", "~*", "&*", "+@all"];
    let config = "[source]\nuser = \"gate\"\npassword = \"of-the-gateway\"\n";
    let lab = Setup::new().source(&USER).config(config).build().await;
    let mut server = lab.source.connect().await.unwrap();
    let words = "w ".repeat(11);
    let words: Vec<&str> = [&["RPUSH", "list"][..], &words.split(' ').collect::<Vec<_>>()].concat();
    let large = "x".repeat(20 << 10);

    // No password is demanded: anybody may send long commands, be it the first.
    let mut open_to_all = open(&lab).await;
    assert_eq!(open_to_all.ask(&words).await, (words.len() - 2).to_string());
    assert_eq!(open_to_all.ask(&["SET", "k", &large]).await, "OK");

    server.must(&["CONFIG", "SET", "requirepass", "secret"]).await.unwrap();
    // What stands, stands as before, as with Redis itself. The next connections of the gateway demand the password.
    server.must(&["CLIENT", "KILL", "USER", "default", "SKIPME", "yes"]).await.unwrap();
    eventually("the gateway's connections demand it", async || {
        open(&lab).await.ask(&["GET", "k"]).await.starts_with("-NOAUTH")
    })
    .await;
    for (head, text) in [
        ("*11\r\n", "-ERR Protocol error: unauthenticated multibulk length"),
        ("*2\r\n$3\r\nGET\r\n$16385\r\n", "-ERR Protocol error: unauthenticated bulk length"),
    ] {
        let mut stranger = open(&lab).await;
        stranger.queue(&["PING"]);
        stranger.queue_raw(head.as_bytes());
        stranger.flush().await;
        assert!(stranger.frame().await.text.starts_with("-NOAUTH"));
        assert_eq!(stranger.frame().await.text, text);
        stranger.ended().await;
    }
    // Just below.
    let mut client = open(&lab).await;
    assert!(client.ask(&words[..10]).await.starts_with("-NOAUTH"));
    assert!(client.ask(&["SET", "k", &large[..16384]]).await.starts_with("-NOAUTH"));
    assert_eq!(client.ask(&["AUTH", "secret"]).await, "OK");
    assert_eq!(client.ask(&["SET", "k", &large]).await, "OK");
    assert_eq!(client.ask(&words).await, (2 * (words.len() - 2)).to_string());
    let mut client = open(&lab).await;
    assert!(client.ask(&["HELLO", "3", "AUTH", "default", "secret"]).await.contains("proto 3"));
    assert_eq!(client.ask(&["SET", "k", &large]).await, "OK");

    // The password is given up: who never had it may send long commands again.
    server.must(&["CONFIG", "SET", "requirepass", ""]).await.unwrap();
    let mut client = open(&lab).await;
    assert_eq!(client.ask(&["SET", "k", &large]).await, "OK");
}

/// A command that nobody knows is looked up at the server. Where the client may not ask for that, it gets the server's answer to
/// the command itself.
#[tokio::test(flavor = "multi_thread")]
async fn limits_an_unknown_command_of_a_user_who_may_not_look_it_up() {
    let lab = lab("").await;
    lab.source.call(&["ACL", "SETUSER", "app", "on", ">one", "~*", "&*", "+@all", "-command"]).await.unwrap();
    let mut client = open(&lab).await;
    assert_eq!(client.ask(&["AUTH", "app", "one"]).await, "OK");
    assert!(client.ask(&["NO.SUCH.COMMAND", "x"]).await.starts_with("-ERR unknown command"));
    assert_eq!(client.ask(&["MULTI"]).await, "OK");
    assert!(client.ask(&["NO.SUCH.COMMAND", "x"]).await.starts_with("-ERR unknown command"));
    assert!(client.ask(&["EXEC"]).await.starts_with("-EXECABORT"));
    assert_eq!(client.ask(&["PING"]).await, "PONG");
}

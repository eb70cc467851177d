//! Endpoints, logins, TLS and capabilities against a real server.

#![allow(clippy::unwrap_used, reason = "a test")]

#[allow(unreachable_pub, reason = "shared with the end-to-end tests")]
#[path = "support/certificates.rs"]
mod certificates;

use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use certificates::certificates;
use crossfade::Side;
use crossfade::replication::{Journal, Link, ReceiveFrom, Receiver, ReceiverOptions};
use crossfade::resp::value::Value;
use crossfade::server::{Address, Capabilities, Client, Endpoint, Flavour, TlsOptions};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

const PATIENCE: Duration = Duration::from_secs(30);
const CALL: Duration = Duration::from_secs(5);

struct Server {
    child: Child,
    dir: tempfile::TempDir,
}

impl Server {
    /// Starts a server that listens on a unix socket, and wherever `args` say.
    async fn start(dir: tempfile::TempDir, args: &[&str]) -> Self {
        let child = Command::new("redis-server")
            .args(["--unixsocket", "redis.sock", "--save", "", "--appendonly", "no"])
            .args(args)
            .current_dir(dir.path())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let server = Self { child, dir };
        let deadline = Instant::now() + PATIENCE;
        while server.unix("").connect(CALL).await.is_err() {
            assert!(Instant::now() < deadline, "the server does not come up");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        server
    }

    fn unix(&self, login: &str) -> Endpoint {
        let path = self.dir.path().join("redis.sock");
        Endpoint::parse(Side::Source, &format!("unix://{login}{}", path.display())).unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

async fn refused(endpoint: &Endpoint) -> crossfade::Error {
    Client::open(endpoint, CALL).await.unwrap_err()
}

#[tokio::test]
async fn logins_dbs_and_what_the_server_can_do() {
    let server = Server::start(tempfile::tempdir().unwrap(), &["--port", "0"]).await;
    let mut client = Client::open(&server.unix(""), CALL).await.unwrap();
    let found = Capabilities::probe(&mut client).await.unwrap();
    assert_eq!(found.flavour, Flavour::Redis);
    assert!(found.at_least(5, 0) && found.psync && found.restore && found.client_unblock && found.unlink);
    let info = client.info("").await.unwrap();
    assert_eq!(info.get("redis_version").map(str::to_owned), {
        let (major, minor, patch) = found.version;
        Some(format!("{major}.{minor}.{patch}"))
    });
    client.command(&["SET", "a", "1"]).await.unwrap();
    let spaces = client.info("keyspace").await.unwrap().keyspace();
    assert_eq!((spaces[0].db, spaces[0].keys), (0, 1));
    // The version of a real payload.
    let dump = client.command(&["DUMP", "a"]).await.unwrap();
    let dump = dump.as_bytes().unwrap();
    assert_eq!(u32::from(dump[dump.len() - 10]), found.rdb_version);

    // A reply that is larger than any buffer, and a request that is, at the same time.
    let big = vec![b'x'; 20 << 20];
    let mut both = Vec::new();
    crossfade::resp::write::command(&mut both, &[b"ECHO".as_slice(), &big]);
    let twice = both.repeat(2);
    let replies = client.pipeline(&twice, 2).await.unwrap();
    assert!(replies.iter().all(|reply| reply.as_bytes() == Some(&big[..])));

    // Another db, and one that there is not.
    let mut endpoint = server.unix("");
    endpoint.db = 7;
    let mut other = Client::open(&endpoint, CALL).await.unwrap();
    assert_eq!(other.command(&["DBSIZE"]).await.unwrap().as_i64(), Some(0));
    endpoint.db = 99;
    let error = refused(&endpoint).await;
    assert!(!error.retry && error.to_string().contains("SELECT"), "{error}");

    // Users and passwords.
    assert!(!refused(&server.unix("x:y@")).await.retry);
    for user in ["on >p@ss/word ~* +@all", "on nopass ~* +ping +select +info"] {
        let name = if user.contains("nopass") { "bare" } else { "app" };
        let mut args = vec!["ACL", "SETUSER", name];
        args.extend(user.split(' '));
        client.command(&args).await.unwrap();
    }
    let mut app = Client::open(&server.unix("app:p@ss/word@"), CALL).await.unwrap();
    assert_eq!(app.command(&["ACL", "WHOAMI"]).await.unwrap().as_str(), Some("app"));
    let error = refused(&server.unix("app:wrong@")).await;
    assert!(!error.retry && error.remedy.is_some() && error.side == Side::Source, "{error}");
    // A user who may ask for little: the version decides what the server can do.
    let mut bare = Client::open(&server.unix("bare@"), CALL).await.unwrap();
    assert!(matches!(bare.call(&["COMMAND", "INFO", "get"]).await.unwrap(), Value::Error(_)));
    let less = Capabilities::probe(&mut bare).await.unwrap();
    assert_eq!((less.version, less.psync, less.rdb_version), (found.version, true, found.rdb_version));
    client.command(&["CONFIG", "SET", "requirepass", "only"]).await.unwrap();
    let mut only = Client::open(&server.unix(":only@"), CALL).await.unwrap();
    only.command(&["PING"]).await.unwrap();
    Client::open(&server.unix("default:only@"), CALL).await.unwrap();
    // Without a login, the first command says so.
    let mut none = Client::open(&server.unix(""), CALL).await.unwrap();
    assert!(none.command(&["PING"]).await.unwrap_err().to_string().contains("NOAUTH"));
}

#[tokio::test]
async fn nobody_there() {
    let nobody = Endpoint::parse(Side::Destination, &format!("redis://127.0.0.1:{}", free_port())).unwrap();
    let error = refused(&nobody).await;
    assert!(error.retry && error.side == Side::Destination, "{error}");
    // Answers nothing, ever.
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("redis://:pw@{}", silent.local_addr().unwrap());
    let endpoint = Endpoint::parse(Side::Source, &url).unwrap();
    let began = Instant::now();
    let error = Client::open(&endpoint, Duration::from_millis(200)).await.unwrap_err();
    assert!(error.retry && began.elapsed() < Duration::from_secs(2), "{error}");
}

#[tokio::test]
async fn tls_with_a_client_certificate() {
    let dir = tempfile::tempdir().unwrap();
    if !certificates(dir.path()) {
        eprintln!("skipped: no openssl to make certificates with");
        return;
    }
    let at = |name: &str| dir.path().join(name);
    let (port, path) = (free_port().to_string(), dir.path().to_path_buf());
    let options = TlsOptions {
        ca: Some(at("ca.pem")),
        cert: Some(at("client.pem")),
        key: Some(at("client.key")),
        server_name: None,
    };
    let args = ["--tls-port", &port, "--tls-cert-file", "server.pem", "--tls-key-file", "server.key"];
    let server =
        Server::start(dir, &[&["--port", "0", "--tls-ca-cert-file", "ca.pem"], &args[..]].concat()).await;
    for host in ["localhost", "127.0.0.1"] {
        let url = format!("rediss://{host}:{port}");
        let endpoint = Endpoint::parse_with(Side::Source, &url, Some(&options)).unwrap();
        assert!(matches!(&endpoint.address, Address::Tcp { host: named, .. } if named == host));
        let mut client = Client::open(&endpoint, CALL).await.unwrap();
        let big = "y".repeat(5 << 20);
        assert_eq!(client.command(&["ECHO", &big]).await.unwrap().as_str(), Some(&big[..]));
    }
    let url = format!("rediss://127.0.0.1:{port}");
    // A replica over TLS.
    let endpoint = Endpoint::parse_with(Side::Source, &url, Some(&options)).unwrap();
    let mut client = Client::open(&endpoint, CALL).await.unwrap();
    client.command(&["CONFIG", "SET", "repl-diskless-sync-delay", "0"]).await.unwrap();
    client.command(&["SET", "big", &"z".repeat(3 << 20)]).await.unwrap();
    let journal = Arc::new(Journal::open(path.join("journal")).unwrap());
    let applied = watch::Sender::new(0);
    let receiver = Receiver::spawn(ReceiverOptions::new(
        endpoint,
        journal.clone(),
        ReceiveFrom::FullSync,
        applied.subscribe(),
        CancellationToken::new(),
    ));
    let mut state = receiver.state.clone();
    let streaming = state.wait_for(|state| matches!(state.link, Link::Streaming));
    tokio::time::timeout(PATIENCE, streaming).await.unwrap().unwrap();
    client.command(&["SET", "more", "yes"]).await.unwrap();
    let theirs = client.info("replication").await.unwrap().u64("master_repl_offset").unwrap();
    let mut end = journal.end();
    tokio::time::timeout(PATIENCE, end.wait_for(|end| *end == theirs)).await.unwrap().unwrap();
    applied.send_replace(theirs);
    assert_eq!(client.command(&["WAIT", "1", "5000"]).await.unwrap().as_i64(), Some(1));
    receiver.stop().await;
    // An authority that is not ours.
    let endpoint = Endpoint::parse_with(
        Side::Source,
        &url,
        Some(&TlsOptions { ca: Some(path.join("client.pem")), ..options.clone() }),
    )
    .unwrap();
    let error = refused(&endpoint).await;
    assert!(!error.retry && error.remedy.is_some(), "{error}");
    // Another name.
    let elsewhere = TlsOptions { server_name: Some("db.example".into()), ..options.clone() };
    let error = refused(&Endpoint::parse_with(Side::Source, &url, Some(&elsewhere)).unwrap()).await;
    assert!(!error.retry && error.to_string().contains("certificate"), "{error}");
    let named = TlsOptions { server_name: Some("localhost".into()), ..options.clone() };
    Client::open(&Endpoint::parse_with(Side::Source, &url, Some(&named)).unwrap(), CALL).await.unwrap();
    // No client certificate, which this server wants.
    let anonymous = TlsOptions { cert: None, key: None, ..options };
    let endpoint = Endpoint::parse_with(Side::Source, &url, Some(&anonymous)).unwrap();
    let outcome = match Client::open(&endpoint, CALL).await {
        Ok(mut client) => client.command(&["PING"]).await.map(drop),
        Err(error) => Err(error),
    };
    assert!(outcome.is_err());
    drop(server);
}

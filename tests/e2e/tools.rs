//! The tests' own tools: the data set, the oracle, the fault proxy.

use std::time::Duration;

use crossfade::cli::demo::connection::Connection;
use crossfade::cli::demo::fill;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::support::oracle;
use crate::support::proxy::{Proxy, Rules, Way};
use crate::support::start_server;

#[tokio::test(flavor = "multi_thread")]
async fn the_oracle_sees_a_native_replica_as_equal_and_every_change() {
    let dir = tempfile::tempdir().unwrap();
    let source = start_server("", &dir.path().join("a"), &["--repl-diskless-sync-delay", "0"]).await;
    let replica = start_server("", &dir.path().join("b"), &[]).await;
    let filled = fill::fill(&source.address(), 20_000, 1 << 20).await.unwrap();
    assert!(filled.keys >= 20_000 && filled.databases == 3, "{filled:?}");
    replica.call(&["REPLICAOF", "127.0.0.1", &source.port().to_string()]).await.unwrap();
    crate::support::eventually("the replica is in step", async || {
        let offset = source.info("master_repl_offset").await.unwrap();
        let synced = replica.info("master_link_status").await.unwrap() == "up";
        synced && replica.info("slave_repl_offset").await.is_ok_and(|at| at == offset)
    })
    .await;
    replica.call(&["REPLICAOF", "NO", "ONE"]).await.unwrap();
    assert_eq!(oracle::compare(&source, &replica).await, Vec::<String>::new());
    let changes: [&[&str]; 6] = [
        &["SET", "session:1", "other"],
        &["DEL", "user:9"],
        &["PERSIST", "session:3"],
        &["XACK", "large:stream", "readers", "0-1"],
        &["XGROUP", "SETID", "large:stream", "idle", "0-1"],
        &["HSET", "large:hash", "field:7", "x"],
    ];
    let mut expected = 0;
    for change in changes {
        if replica.call(change).await.unwrap().number() != Some(0) || change[0] == "HSET" {
            expected += 1;
        }
    }
    let differences = oracle::compare(&source, &replica).await;
    assert_eq!(differences.len(), expected, "{differences:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_proxy_makes_its_faults() {
    let dir = tempfile::tempdir().unwrap();
    let server = start_server("", dir.path(), &[]).await;
    let proxy = Proxy::start(server.address()).await;
    let mut client = Connection::open(proxy.address()).await.unwrap();
    client.must(&["SET", "k", &"v".repeat(100)]).await.unwrap();
    proxy.rules(Way::Down, Rules { delay: Duration::from_millis(100), ..Rules::default() });
    let began = std::time::Instant::now();
    client.must(&["GET", "k"]).await.unwrap();
    assert!(began.elapsed() >= Duration::from_millis(95));
    proxy.rules(Way::Down, Rules { black_hole: true, ..Rules::default() });
    assert!(tokio::time::timeout(Duration::from_millis(100), client.call(&["GET", "k"])).await.is_err());
    proxy.heal();
    assert_eq!(client.reply().await.unwrap().bytes().unwrap().len(), 100);
    // `$100`, the value, two line ends: 108 bytes at 200 a second
    proxy.rules(Way::Down, Rules { bytes_per_second: Some(200), ..Rules::default() });
    let began = std::time::Instant::now();
    client.must(&["GET", "k"]).await.unwrap();
    assert!(began.elapsed() >= Duration::from_millis(500), "{:?}", began.elapsed());
    proxy.heal();
    proxy.rules(Way::Down, Rules { cut_after: Some(50), ..Rules::default() });
    assert!(client.call(&["GET", "k"]).await.is_err(), "cut in the middle of the reply");
    proxy.heal();
    let mut client = Connection::open(proxy.address()).await.unwrap();
    client.must(&["PING"]).await.unwrap();
    proxy.cut();
    assert!(client.call(&["PING"]).await.is_err());
    proxy.refuse(true);
    let refused = async { Connection::open(proxy.address()).await?.call(&["PING"]).await };
    assert!(refused.await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_proxy_closes_one_half_and_leaves_the_other() {
    let behind = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let proxy = Proxy::start(behind.local_addr().unwrap().to_string()).await;
    for way in [Way::Up, Way::Down] {
        let mut client = TcpStream::connect(proxy.address()).await.unwrap();
        let (mut server, _) = behind.accept().await.unwrap();
        client.write_all(b"up").await.unwrap();
        server.write_all(b"down").await.unwrap();
        let (mut up, mut down) = ([0; 2], [0; 4]);
        server.read_exact(&mut up).await.unwrap();
        client.read_exact(&mut down).await.unwrap();
        proxy.rules(way, Rules { half_close: true, ..Rules::default() });
        let (closed, open) =
            if way == Way::Up { (&mut server, &mut client) } else { (&mut client, &mut server) };
        assert_eq!(closed.read(&mut up).await.unwrap(), 0, "{way:?}: the end, in an orderly way");
        closed.write_all(b"back").await.unwrap();
        open.read_exact(&mut down).await.unwrap();
        assert_eq!(&down, b"back", "{way:?}: the other half goes on");
        proxy.heal();
    }
}

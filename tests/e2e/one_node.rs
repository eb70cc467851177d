//! Clients that know clusters, and replicas: the gateway is the one node of a cluster, and a replica may attach through
//! it where that is allowed.

use crossfade::cli::demo::connection::{Connection, Reply};
use crossfade::cli::demo::servers::Server;

use crate::support::{Front, PATIENCE, Setup, eventually};

fn text(reply: &Reply) -> String {
    match reply {
        Reply::Bulk(bytes) | Reply::Error(bytes) => String::from_utf8_lossy(bytes).into_owned(),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_gateway_is_the_one_node_of_a_cluster() {
    let front = Front::new().await;
    let mut client = Connection::open(&front.address()).await.unwrap();
    let (host, port) = front.address().rsplit_once(':').map(|(h, p)| (h.to_owned(), p.to_owned())).unwrap();
    let id = text(&client.must(&["CLUSTER", "MYID"]).await.unwrap());
    assert!(id.len() == 40 && id.bytes().all(|digit| digit.is_ascii_hexdigit()), "{id}");

    let slots = client.must(&["CLUSTER", "SLOTS"]).await.unwrap();
    let [range] = slots.items() else { panic!("{slots:?}") };
    let [from, to, node] = range.items() else { panic!("{slots:?}") };
    assert_eq!((from.number(), to.number()), (Some(0), Some(16383)));
    assert_eq!(node.brief(), format!("[{host} {port} {id} []]"));

    let bus = port.parse::<u32>().unwrap() + 10_000;
    let line = format!("{id} {host}:{port}@{bus} myself,master - 0 0 1 connected 0-16383\n");
    assert_eq!(text(&client.must(&["cluster", "nodes"]).await.unwrap()), line);
    assert!(text(&client.must(&["CLUSTER", "INFO"]).await.unwrap()).contains("cluster_state:ok\r\n"));
    let shards = client.must(&["CLUSTER", "SHARDS"]).await.unwrap();
    let [shard] = shards.items() else { panic!("{shards:?}") };
    let [_, range, _, nodes] = shard.items() else { panic!("{shards:?}") };
    assert_eq!(range.brief(), "[0 16383]");
    assert_eq!(nodes.items()[0].items().len(), 14);
    assert_eq!(client.must(&["CLUSTER", "KEYSLOT", "foo"]).await.unwrap().number(), Some(12182));
    for mode in ["READONLY", "READWRITE", "ASKING"] {
        assert_eq!(client.must(&[mode]).await.unwrap().brief(), "OK");
    }
    // What would change a cluster, only the server can answer: it has none.
    let refused = client.call(&["CLUSTER", "MEET", "127.0.0.1", "1"]).await.unwrap().brief();
    assert!(refused.contains("cluster support disabled"), "{refused}");
    assert_eq!(client.must(&["PING"]).await.unwrap().brief(), "PONG");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_is_refused_with_a_reason() {
    let front = Front::new().await;
    let mut client = Connection::open(&front.address()).await.unwrap();
    for command in [&["PSYNC", "?", "-1"][..], &["SYNC"], &["REPLCONF", "listening-port", "1"]] {
        let refused = text(&client.call(command).await.unwrap());
        assert!(refused.contains("not available through the gateway"), "{refused}");
        assert!(refused.contains("listen.allow_replicas"), "{refused}");
    }
    // The same on a connection that holds state.
    client.must(&["WATCH", "k"]).await.unwrap();
    let refused = text(&client.call(&["PSYNC", "?", "-1"]).await.unwrap());
    assert!(refused.contains("listen.allow_replicas"), "{refused}");
    assert_eq!(client.must(&["PING"]).await.unwrap().brief(), "PONG");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_may_attach_follows_the_active_side() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("crossfade.toml");
    std::fs::write(&file, "[listen]\nallow_replicas = true\n").unwrap();
    let mut lab = Setup::new().env("CROSSFADE_CONFIG", file.to_str().unwrap()).build().await;
    lab.mirror().await;
    let mut client = Connection::open(&lab.gateway.address()).await.unwrap();
    client.must(&["SET", "before", "1"]).await.unwrap();
    let replica = Server::start(&dir.path().join("replica"), &[]).await.unwrap();
    let (host, port) =
        lab.gateway.address().rsplit_once(':').map(|(h, p)| (h.to_owned(), p.to_owned())).unwrap();
    replica.call(&["REPLICAOF", &host, &port]).await.unwrap();
    let holds = async |key: &str, what: &str| {
        eventually(what, async || {
            replica.call(&["GET", key]).await.is_ok_and(|reply| reply.number() == Some(1))
        })
        .await;
    };
    holds("before", "the snapshot is there").await;
    client.must(&["SET", "live", "1"]).await.unwrap();
    holds("live", "the stream arrives").await;
    let list = text(&client.must(&["CLIENT", "LIST"]).await.unwrap());
    assert!(list.contains("flags=S"), "{list}");
    lab.cutover().await;
    client.must(&["SET", "behind", "1"]).await.unwrap();
    holds("behind", "it follows the other side").await;
    lab.gateway.wait_phase("cut-over", PATIENCE).await.unwrap();
}

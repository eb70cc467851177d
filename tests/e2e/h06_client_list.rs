//! H06: what CLIENT LIST, INFO and KILL know of the gateway's clients is what a server would know of them.

use std::collections::BTreeMap;

use crossfade::cli::demo::connection::Connection;

use super::h06_sessions::{Raw, error, id, same, text};
use crate::support::{Front, Setup, eventually, start_server};

/// The fields of the only line.
fn fields(line: &str) -> BTreeMap<String, String> {
    line.split_whitespace()
        .filter_map(|field| field.split_once('='))
        .map(|(name, value)| (name.to_string(), value.to_string()))
        .collect()
}

/// What CLIENT LIST shows of a client, as far as it must be the same at the server and at the gateway.
async fn shown(observer: &mut Connection, id: &str) -> BTreeMap<String, String> {
    let mut all = fields(&text(observer, &["CLIENT", "LIST", "ID", id]).await);
    let same = ["name", "db", "flags", "sub", "psub", "ssub", "multi", "cmd", "user", "redir", "resp"];
    all.retain(|name, _| same.contains(&name.as_str()));
    all
}

/// A client that has sent these lines, and its id.
async fn client(address: &str, lines: &[&str]) -> (Raw, String) {
    let mut client = Raw::open(address).await;
    client.send(&["CLIENT ID"]).await;
    let id = client.settled().await.trim_start_matches(':').trim_end().to_string();
    client.send(lines).await;
    (client, id)
}

#[tokio::test(flavor = "multi_thread")]
async fn h06_client_list_shows_what_the_server_would() {
    let front = Front::new().await;
    front.server.call(&["ACL", "SETUSER", "ann", "on", ">pw", "~*", "&*", "+@all"]).await.unwrap();
    let mut direct = Connection::open(&front.server.address()).await.unwrap();
    let mut through = Connection::open(&front.address()).await.unwrap();
    for (lines, cmd) in [
        (&["GET k"][..], "get"),
        (&["SET k 1", "get k", "DEL k"], "del"),
        (&["CONFIG GET maxmemory"], "config|get"),
        (&["GET k", "config NOSUCH"], "NULL"),
        (&["NOSUCHCOMMAND"], "NULL"),
        (&["GET"], "get"),
        (&["CLIENT"], "client"),
        (&["CLIENT SETNAME me", "SELECT 3"], "select"),
        (&["AUTH ann pw"], "auth"),
        (&["CLIENT SETNAME me", "HELLO 3 AUTH ann pw", "RESET"], "reset"),
        (&["HELLO 3 SETNAME new"], "hello"),
        (&["MULTI"], "multi"),
        (&["MULTI", "SET a 1", "INCR b", "GET c", "INCR d"], "incr"),
        (&["MULTI", "SET a 1", "NOSUCHCOMMAND"], "NULL"),
        (&["MULTI", "SET a 1", "DISCARD"], "discard"),
        (&["MULTI", "SET a 1", "SELECT 2", "EXEC"], "exec"),
        (&["WATCH a b"], "watch"),
        (&["WATCH a", "MULTI", "GET a"], "get"),
        (&["SUBSCRIBE a b", "PSUBSCRIBE x* y* z*", "SSUBSCRIBE s"], "ssubscribe"),
        (&["SUBSCRIBE a b c", "UNSUBSCRIBE b"], "unsubscribe"),
        (&["HELLO 3", "SUBSCRIBE a", "UNSUBSCRIBE", "CONFIG GET port"], "config|get"),
        (&["HELLO 3", "SUBSCRIBE a", "MULTI", "PING"], "ping"),
        (&["MONITOR"], "monitor"),
        (&["BLPOP none 0"], "blpop"),
        (&["CLIENT TRACKING ON"], "client|tracking"),
        (&["HELLO 3", "CLIENT TRACKING ON BCAST PREFIX a"], "client|tracking"),
        (&["HELLO 3", "CLIENT TRACKING ON", "CLIENT TRACKING OFF"], "client|tracking"),
        (&["CLIENT NO-EVICT ON"], "client|no-evict"),
        (&["CLIENT NO-EVICT ON", "CLIENT NO-EVICT OFF", "PING"], "ping"),
        (&["CLIENT REPLY OFF"], "client|reply"),
        (&["XGROUP CREATE none g $"], "xgroup|create"),
        (&["EVAL return(1) 0"], "eval"),
        (&["CLUSTER KEYSLOT k"], "cluster|keyslot"),
    ] {
        let (_server, server_id) = client(&front.server.address(), lines).await;
        let (_gateway, gateway_id) = client(&front.address(), lines).await;
        let done = async |observer: &mut Connection, id: &str| shown(observer, id).await["cmd"] == cmd;
        eventually(&format!("{lines:?} at the server"), async || done(&mut direct, &server_id).await).await;
        let wanted = shown(&mut direct, &server_id).await;
        let what = format!("{lines:?}: {wanted:?}");
        eventually(&what, async || shown(&mut through, &gateway_id).await == wanted).await;
    }
    // What Redis 7.0 does not show, or only with the id of another client.
    let (mut watches, watches_id) = client(&front.address(), &["WATCH a b a", "SELECT 1", "WATCH a"]).await;
    watches.settled().await;
    let line = text(&mut through, &["CLIENT", "LIST", "ID", &watches_id]).await;
    assert!(line.contains(" watch=3 "), "{line}");
    watches.send(&["UNWATCH"]).await;
    watches.settled().await;
    let line = text(&mut through, &["CLIENT", "LIST", "ID", &watches_id]).await;
    assert!(line.contains(" watch=0 "), "{line}");
    let redirect = format!("CLIENT TRACKING ON REDIRECT {watches_id}");
    let (mut tracks, tracks_id) = client(&front.address(), &["HELLO 3", &redirect, "GET k"]).await;
    tracks.settled().await;
    let line = text(&mut through, &["CLIENT", "LIST", "ID", &tracks_id]).await;
    assert!(line.contains(" flags=t ") && line.contains(&format!(" redir={watches_id} ")), "{line}");
    drop(watches);
    eventually("the redirection is found broken", async || {
        through.must(&["SET", "k", "1"]).await.unwrap();
        tracks.send(&["GET k"]).await;
        tracks.settled().await;
        let line = text(&mut through, &["CLIENT", "LIST", "ID", &tracks_id]).await;
        line.contains(" flags=tR ") && line.contains(&format!(" redir={watches_id} "))
    })
    .await;
    // Of itself a client knows the same.
    tracks.send(&["CLIENT INFO"]).await;
    let info = tracks.settled().await;
    assert!(info.contains(" flags=tR ") && info.contains(" cmd=client|info "), "{info}");
}

#[tokio::test(flavor = "multi_thread")]
async fn h06_client_list_goes_on_behind_a_switch() {
    let mut lab = Setup::new().build().await;
    let address = lab.gateway.address();
    let mut through = Connection::open(&address).await.unwrap();
    let mut clients = Vec::new();
    for lines in [
        &["SUBSCRIBE a b", "PSUBSCRIBE c*"][..],
        &["MULTI", "SET a 1", "INCR b"],
        &["BLPOP none 0"],
        &["HELLO 3", "CLIENT TRACKING ON BCAST"],
        &["CLIENT NO-EVICT ON"],
        &["MONITOR"],
        &["WATCH a"],
    ] {
        clients.push(client(&address, lines).await);
    }
    let mut before = Vec::new();
    for ((_, id), flags) in clients.iter().zip(["P", "x", "b", "tB", "e", "O", "N"]) {
        eventually("it has got so far", async || shown(&mut through, id).await["flags"] == flags).await;
        before.push(shown(&mut through, id).await);
    }
    lab.mirror().await;
    for there in [true, false] {
        if there {
            lab.cutover().await;
        } else {
            lab.rollback().await;
        }
        for ((_, id), before) in clients.iter().zip(&before) {
            assert_eq!(&shown(&mut through, id).await, before, "{there}");
        }
    }
    let (_, watches) = &clients[6];
    assert!(text(&mut through, &["CLIENT", "LIST", "ID", watches]).await.contains(" watch=0 "));
}

#[tokio::test(flavor = "multi_thread")]
async fn h06_clients_are_ended_by_what_they_are() {
    let lab = Setup::new().config("listen.allow_replicas = true\n").build().await;
    let address = lab.gateway.address();
    let mut admin = Connection::open(&address).await.unwrap();
    let admin_id = id(&mut admin).await;
    let dir = tempfile::tempdir().unwrap();
    let replica = start_server("", dir.path(), &[]).await;
    let port = lab.gateway.address().rsplit_once(':').unwrap().1.to_string();
    replica.call(&["REPLICAOF", "127.0.0.1", &port]).await.unwrap();
    let up = async || replica.info("master_link_status").await.is_ok_and(|status| status == "up");
    eventually("the replica is there", up).await;
    let ids = async |admin: &mut Connection, kind: &str| -> Vec<String> {
        let list = text(admin, &["CLIENT", "LIST", "TYPE", kind]).await;
        list.lines().map(|line| fields(line)["id"].clone()).collect()
    };
    let (mut hears, hears_id) = client(&address, &["SUBSCRIBE c"]).await;
    hears.until(":1\r\n").await;
    let (mut hears3, hears3_id) = client(&address, &["HELLO 3", "SUBSCRIBE c", "MULTI"]).await;
    hears3.until("+OK\r\n").await;
    let (mut watches, watches_id) = client(&address, &["MONITOR"]).await;
    watches.until("+OK\r\n").await;
    let replicas = ids(&mut admin, "replica").await;
    assert_eq!(replicas.len(), 1);
    assert_eq!(shown(&mut admin, &replicas[0]).await["flags"], "S");
    assert_eq!(ids(&mut admin, "SLAVE").await, replicas);
    assert_eq!(ids(&mut admin, "PubSub").await, [hears_id, hears3_id]);
    assert_eq!(ids(&mut admin, "normal").await, [admin_id, watches_id.clone()]);
    assert_eq!(ids(&mut admin, "master").await, [""; 0]);

    let mut kill = async |filter: &str| {
        let words: Vec<&str> = ["CLIENT", "KILL"].into_iter().chain(filter.split(' ')).collect();
        admin.must(&words).await.unwrap().number().unwrap()
    };
    assert_eq!(kill("TYPE master").await, 0);
    assert_eq!(kill(&format!("ID {watches_id} TYPE pubsub")).await, 0, "both must hold");
    assert_eq!(kill("TYPE pubsub MAXAGE 1000").await, 0);
    assert_eq!(kill("TYPE pubsub USER default LADDR 127.0.0.1:1").await, 0);
    assert_eq!(kill(&format!("TYPE pubsub USER default LADDR {address}")).await, 2);
    assert_eq!(kill(&format!("ID 1 ID {watches_id}")).await, 1, "the last one counts");
    assert_eq!(kill("TYPE normal").await, 0, "but not oneself");
    assert_eq!(kill("TYPE replica").await, 1);
    for mut client in [hears, hears3, watches] {
        client.ended().await;
    }
    eventually("the replica has come back", async || {
        let now = ids(&mut admin, "replica").await;
        now.len() == 1 && now != replicas
    })
    .await;
    assert_eq!(
        error(&mut admin, &["CLIENT", "KILL", "MAXAGE", "0"]).await,
        "ERR maxage should be greater than 0"
    );
    let front = Front::new().await;
    same(
        &front,
        &[&[
            "CLIENT KILL TYPE Slave",
            "CLIENT KILL TYPE x",
            "CLIENT KILL ID",
            "CLIENT KILL a b c",
            "CLIENT KILL SKIPME x",
        ]],
    )
    .await;
}

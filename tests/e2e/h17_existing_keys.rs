//! H17: a destination that holds keys already: refused, kept, or replaced, as configured; nothing is ever added to what was there.

use crossfade::cli::demo::servers::Server;

use crate::support::{Lab, PATIENCE, Setup};

/// One key of each type, with the same names on both sides and content that names the side; some of another type there.
async fn fill(server: &Server, side: &str) {
    let mut client = server.connect().await.unwrap();
    for line in [
        format!("SET string {side}"),
        format!("RPUSH list {side}:1 {side}:2"),
        format!("SADD set {side}:1 {side}:2"),
        format!("ZADD zset 1 {side}:1 2 {side}:2"),
        format!("HSET hash field {side} {side} 1"),
        format!("XADD stream 5-1 field {side}"),
        format!("SET expiring {side} PX 500000"),
    ] {
        client.must(&line.split(' ').collect::<Vec<_>>()).await.unwrap();
    }
    let odd = if side == "source" { ["RPUSH", "odd", "source"] } else { ["SADD", "odd", "destination"] };
    client.must(&odd).await.unwrap();
    // Above 16 MiB a value goes as commands, which add to what they find.
    let element = side.repeat(1000);
    for n in 0..3000 {
        client.queue(&["RPUSH", "large", &format!("{n}:{element}")]);
    }
    client.flush().await.unwrap();
    for _ in 0..3000 {
        client.reply().await.unwrap();
    }
}

const NAMES: [&str; 9] = ["string", "list", "set", "zset", "hash", "stream", "expiring", "odd", "large"];

async fn lab(policy: &str) -> Lab {
    let lab = Setup::new().config(&format!("[snapshot]\non_existing_key = \"{policy}\"\n")).build().await;
    fill(&lab.source, "source").await;
    fill(&lab.destination, "destination").await;
    lab.destination.call(&["SET", "own", "destination"]).await.unwrap();
    lab.source.call(&["SET", "new", "source"]).await.unwrap();
    lab
}

async fn digests(server: &Server) -> Vec<String> {
    let mut found = Vec::new();
    for name in NAMES {
        found.push(server.call(&["DEBUG", "DIGEST-VALUE", name]).await.unwrap().items()[0].brief());
    }
    found
}

async fn get(server: &Server, key: &str) -> String {
    server.call(&["GET", key]).await.unwrap().brief()
}

#[tokio::test(flavor = "multi_thread")]
async fn h17_refused_with_the_names_of_keys() {
    let lab = lab("fail").await;
    let error = lab.gateway.begin().await.unwrap_err().to_string();
    assert!(error.contains("not empty") && error.contains("10 keys"), "{error}");
    assert!(NAMES.iter().all(|name| error.contains(name)), "{error}");
    assert!(error.contains("on_existing_key"), "{error}");
    assert_eq!(get(&lab.destination, "own").await, "destination");
}

#[tokio::test(flavor = "multi_thread")]
async fn h17_kept_with_what_they_hold() {
    let mut lab = lab("keep").await;
    let before = digests(&lab.destination).await;
    lab.mirror().await;
    assert_eq!(digests(&lab.destination).await, before);
    assert_eq!(get(&lab.destination, "own").await, "destination");
    assert_eq!(get(&lab.destination, "new").await, "source");
    let left = lab.destination.call(&["PTTL", "expiring"]).await.unwrap().number().unwrap();
    assert!((1..=500_000).contains(&left), "{left}");
}

#[tokio::test(flavor = "multi_thread")]
async fn h17_replaced_as_a_whole() {
    let mut lab = lab("replace").await;
    lab.mirror().await;
    assert_eq!(digests(&lab.destination).await, digests(&lab.source).await);
    assert_eq!(get(&lab.destination, "own").await, "destination");
    assert_eq!(lab.destination.call(&["LLEN", "large"]).await.unwrap().number(), Some(3000));
    // The gateway that dies in between begins the load again, and replaces what it finds.
    lab.source.call(&["APPEND", "string", ":live"]).await.unwrap();
    lab.gateway.restart().await.unwrap();
    lab.gateway.wait_phase("mirroring", PATIENCE).await.unwrap();
    lab.in_step().await;
    assert_eq!(get(&lab.destination, "string").await, "source:live");
}

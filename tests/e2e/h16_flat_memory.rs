//! H16: the gateway's memory while it copies what is far larger. The whole size is that of `cargo bench --bench gateway -- --big`.

use std::time::Duration;

use crate::support::{Setup, eventually, memory_kib};

/// Of the hash; its values are of half a KiB.
const FIELDS: usize = 300_000;
/// What the gateway may have used at any moment.
const PEAK_KIB: u64 = 72 << 10;

async fn copy(method: &str) {
    let config = format!("[snapshot]\nmethod = \"{method}\"\n");
    let mut lab = Setup::new().config(&config).build().await;
    let mut client = lab.source.connect().await.unwrap();
    // What one script writes is one transaction of the stream, but there is no stream yet.
    let script =
        "for i=ARGV[1],ARGV[2] do redis.call('HSET',KEYS[1],'field:'..i,string.rep(tostring(i),80)) end";
    for part in 0..30 {
        let (first, last) = (part * FIELDS / 30, (part + 1) * FIELDS / 30 - 1);
        client.must(&["EVAL", script, "1", "hash", &first.to_string(), &last.to_string()]).await.unwrap();
    }
    let long = "x".repeat(1 << 20);
    for part in 0..96 {
        client.must(&["APPEND", "string", &long]).await.unwrap();
        client.must(&["RPUSH", "list", &part.to_string(), &long]).await.unwrap();
    }
    let writing = tokio::spawn(async move {
        for n in 0.. {
            let field = format!("field:{}", n * 7919 % FIELDS);
            client.must(&["HSET", "hash", &field, "written"]).await.unwrap();
            client.must(&["HDEL", "hash", &format!("field:{}", n * 31 % FIELDS)]).await.unwrap();
            client.must(&["LPUSH", "list", &n.to_string()]).await.unwrap();
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    });
    lab.mirror().await;
    writing.abort();
    let _ = writing.await;
    lab.same().await;
    let size: u64 = lab.source.info("used_memory").await.unwrap().parse().unwrap();
    assert!(size > 256 << 20, "{size}");
    let peak = memory_kib(lab.gateway.pid(), "VmHWM:");
    assert!(peak < PEAK_KIB, "{peak} KiB for {} KiB", size >> 10);
    eventually("the source holds nothing back for it", async || {
        let held: u64 = lab.source.info("mem_clients_slaves").await.unwrap().parse().unwrap();
        held < 16 << 20
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn h16_what_is_larger_than_memory_as_a_replica() {
    copy("auto").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn h16_what_is_larger_than_memory_by_commands() {
    copy("commands").await;
}

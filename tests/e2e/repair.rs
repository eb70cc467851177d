//! `verify --repair`: what differs is copied anew from the active side, while clients write.

use crossfade::cli::demo::connection::Connection;
use crossfade::cli::demo::servers::Server;
use crossfade::cli::demo::workload::{Plan, Workload};
use serde_json::json;

use crate::support::{Setup, operations, oracle};

/// Makes the keys that [`fill`] wrote wrong on the passive side, each in another way. Answers how many.
async fn spoil(server: &Server) -> u64 {
    let mut client = server.connect().await.unwrap();
    client.must(&["SELECT", "4"]).await.unwrap();
    for n in 0..200 {
        let key = format!("k:{n}");
        let args: Vec<&str> = match n % 5 {
            0 => vec!["SET", &key, "-77"],
            1 => vec!["DEL", &key],
            2 => vec!["APPEND", &key, "9"],
            3 => vec!["PEXPIRE", &key, "100000000"],
            _ => vec!["RENAME", &key, "k:hidden"],
        };
        client.must(&args).await.unwrap();
    }
    for line in ["RPOP list", "ZINCRBY zset 1 m", "HDEL hash f", "XADD stream * f 1", "SET more 1", "DEL set"]
    {
        client.must(&line.split(' ').collect::<Vec<_>>()).await.unwrap();
    }
    // Forty times the same new name.
    200 + 6 + 1
}

async fn fill(client: &mut Connection) {
    client.must(&["SELECT", "4"]).await.unwrap();
    for n in 0..200 {
        // Far from what INCR makes of a key that was removed: one that is behind by little looks the same a moment later.
        client.must(&["SET", &format!("k:{n}"), &(1_000_000 + n).to_string()]).await.unwrap();
    }
    for line in
        ["RPUSH list a b c", "ZADD zset 1 m", "HSET hash f 1 g 2", "XADD stream 1-1 f 1", "SADD set a b"]
    {
        client.must(&line.split(' ').collect::<Vec<_>>()).await.unwrap();
    }
    client.must(&["PEXPIRE", "list", "900000"]).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_differs_is_copied_anew_on_either_way_while_clients_write() {
    let mut lab = Setup::new().build().await;
    lab.expect_log("somebody writes to the destination without the gateway");
    lab.expect_log("somebody writes to the source without the gateway");
    let refused = lab.gateway.order("verify", &json!({"repair": true})).await.unwrap_err().to_string();
    assert!(refused.contains("no live mirror"), "{refused}");
    let mut client = Connection::open(&lab.gateway.address()).await.unwrap();
    fill(&mut client).await;
    lab.mirror().await;
    for round in 0..2 {
        let prefix = format!("live{round}");
        let plan = Plan { pace: Some(3000), prefix, ..Plan::new(lab.gateway.address()) };
        let workload = Workload::start(&plan);
        operations(&workload, 500).await;
        let (_, passive) = lab.active().await;
        let spoilt = spoil(passive).await;
        let found = lab.gateway.order("verify", &json!({"rounds": 2})).await.unwrap();
        // What is written all the time may look different at the moment.
        let near = |count: &serde_json::Value, exact: u64| {
            count.as_u64().is_some_and(|count| (exact..exact + 4).contains(&count))
        };
        assert!(near(&found["difference_count"], spoilt), "{found}");
        // Written to while they are copied: neither lost nor there twice.
        let address = lab.gateway.address();
        let writer = tokio::spawn(async move {
            let mut client = Connection::open(&address).await.unwrap();
            client.must(&["SELECT", "4"]).await.unwrap();
            for n in 0..3000 {
                client.must(&["INCR", &format!("k:{}", n % 200)]).await.unwrap();
                client.must(&["RPUSH", "list", &n.to_string()]).await.unwrap();
            }
        });
        let report = lab.gateway.order("verify", &json!({"repair": true, "rounds": 2})).await.unwrap();
        assert!(report["repaired"].as_u64() >= Some(spoilt - 3) && near(&report["left"], 0), "{report}");
        assert!(report["differences"].as_array().unwrap().len() <= 100, "{report}");
        writer.await.unwrap();
        lab.judge(workload).await;
        let report = lab.gateway.order("verify", &json!({})).await.unwrap();
        assert_eq!(report["difference_count"], 0, "{report}");
        if round == 0 {
            lab.cutover().await;
        }
    }
    lab.rollback().await;
    let differences = oracle::compare(&lab.source, &lab.destination).await;
    assert!(differences.is_empty(), "{differences:#?}");
}

//! redis-rs through the gateway and across a cutover and a rollback: its multiplexed connection, its connection manager,
//! and its cluster client, to which the gateway is a cluster of one node.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use redis::AsyncCommands;
use redis::aio::ConnectionLike;
use tokio::task::JoinHandle;

use crate::support::{Lab, PATIENCE, Setup, eventually};

/// What one kind of client did: how often, for the sum at the end.
struct Busy {
    rounds: Arc<AtomicU64>,
    task: JoinHandle<redis::RedisResult<()>>,
}

/// Counts, pushes, runs a transaction and a script, until it is told to end. The first error ends it.
fn work<C>(name: &'static str, mut client: C, stop: &Arc<AtomicBool>) -> Busy
where
    C: ConnectionLike + AsyncCommands + Send + 'static,
{
    let rounds = Arc::new(AtomicU64::new(0));
    let (stop, counted) = (Arc::clone(stop), Arc::clone(&rounds));
    let task = tokio::spawn(async move {
        let script = redis::Script::new("return redis.call('INCRBY', KEYS[1], ARGV[1])");
        while !stop.load(Ordering::Relaxed) {
            let round = counted.load(Ordering::Relaxed) + 1;
            // One slot, as a cluster wants it.
            let key = |what: &str| format!("{{{name}}}:{what}");
            let count: u64 = client.incr(key("count"), 1).await?;
            assert_eq!(count, round, "{name}");
            let length: u64 = client.rpush(key("list"), round).await?;
            assert_eq!(length, round, "{name}");
            let both: (u64, u64) =
                redis::pipe().atomic().incr(key("a"), 1).incr(key("b"), 1).query_async(&mut client).await?;
            assert_eq!(both, (round, round), "{name}");
            let sum: u64 = script.key(key("sum")).arg(2).invoke_async(&mut client).await?;
            assert_eq!(sum, 2 * round, "{name}");
            counted.store(round, Ordering::Relaxed);
        }
        Ok(())
    });
    Busy { rounds, task }
}

async fn on(clients: &[(&str, Busy)]) {
    let before: Vec<u64> = clients.iter().map(|(_, busy)| busy.rounds.load(Ordering::Relaxed)).collect();
    eventually("every client gets on", async || {
        clients.iter().zip(&before).all(|((name, busy), before)| {
            assert!(!busy.task.is_finished(), "{name} has ended");
            busy.rounds.load(Ordering::Relaxed) > before + 20
        })
    })
    .await;
}

async fn clients(lab: &Lab, stop: &Arc<AtomicBool>) -> Vec<(&'static str, Busy)> {
    let url = format!("redis://{}", lab.gateway.address());
    let resp3 = format!("{url}/?protocol=resp3");
    let client = redis::Client::open(url.as_str()).unwrap();
    let multiplexed = client.get_multiplexed_async_connection().await.unwrap();
    let client3 = redis::Client::open(resp3.as_str()).unwrap();
    let multiplexed3 = client3.get_multiplexed_async_connection().await.unwrap();
    let manager = client.get_connection_manager().await.unwrap();
    let cluster = redis::cluster::ClusterClient::new(vec![url.clone()]).unwrap();
    let cluster = cluster.get_async_connection().await.unwrap();
    vec![
        ("multiplexed", work("multiplexed", multiplexed, stop)),
        ("resp3", work("resp3", multiplexed3, stop)),
        ("manager", work("manager", manager, stop)),
        ("cluster", work("cluster", cluster, stop)),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_rs_works_through_the_gateway_and_across_switches() {
    let mut lab = Setup::new().build().await;
    let stop = Arc::new(AtomicBool::new(false));
    let clients = clients(&lab, &stop).await;
    on(&clients).await;
    lab.mirror().await;
    on(&clients).await;
    lab.cutover().await;
    on(&clients).await;
    lab.rollback().await;
    on(&clients).await;
    stop.store(true, Ordering::Relaxed);
    for (name, busy) in clients {
        tokio::time::timeout(PATIENCE, busy.task).await.unwrap().unwrap().unwrap();
        let rounds = busy.rounds.load(Ordering::Relaxed) as i64;
        let list = lab.source.call(&["LLEN", &format!("{{{name}}}:list")]).await.unwrap();
        assert_eq!(list.number(), Some(rounds), "{name}");
    }
    lab.same().await;
}

//! H04: clients that wait at the server, a thousand of them, and those that do not.

use std::time::{Duration, Instant};

use crossfade::cli::demo::connection::{Connection, Reply};

use crate::support::{Front, eventually, since};

#[tokio::test(flavor = "multi_thread")]
async fn h04_a_thousand_blocked_clients_are_served_in_turn_and_delay_nobody() {
    const CLIENTS: usize = 1000;
    rlimit::increase_nofile_limit(CLIENTS as u64 * 2 + 1024).unwrap();
    let front = Front::new().await;
    let mut waiting = Vec::new();
    for index in 0..CLIENTS {
        let address = front.address();
        waiting.push(tokio::spawn(async move {
            let mut client = Connection::open(&address).await.unwrap();
            client.must(&["BLPOP", "turn", "120"]).await.unwrap()
        }));
        // fairness is by the order of arrival: let each arrive by itself
        let blocked = (index + 1).to_string();
        eventually("the client is blocked", async || {
            front.server.info("blocked_clients").await.unwrap() == blocked
        })
        .await;
    }
    let mut free = Connection::open(&front.address()).await.unwrap();
    let began = Instant::now();
    for number in 0..1000 {
        free.must(&["SET", "free", &number.to_string()]).await.unwrap();
    }
    assert!(began.elapsed() < Duration::from_secs(5), "others are delayed: {:?}", began.elapsed());
    for number in 0..CLIENTS {
        free.must(&["RPUSH", "turn", &number.to_string()]).await.unwrap();
    }
    for (index, client) in waiting.into_iter().enumerate() {
        let reply = client.await.unwrap();
        assert_eq!(
            reply.items()[1].number(),
            Some(index as i64),
            "as in Redis, who came first is served first"
        );
    }
    assert_eq!(free.must(&["LLEN", "turn"]).await.unwrap(), Reply::Integer(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn h04_every_blocking_command() {
    let front = Front::new().await;
    let mut setup = front.server.connect().await.unwrap();
    setup.must(&["XGROUP", "CREATE", "stream", "g", "$", "MKSTREAM"]).await.unwrap();
    setup.must(&["XGROUP", "CREATE", "stream2", "g", "$", "MKSTREAM"]).await.unwrap();
    let cases: [(&[&str], &[&str], &str); 8] = [
        (&["BLPOP", "l1", "20"], &["RPUSH", "l1", "v"], "[l1 v]"),
        (&["BRPOP", "l2", "none", "20"], &["RPUSH", "l2", "v"], "[l2 v]"),
        (&["BLMOVE", "l3", "d", "LEFT", "RIGHT", "20"], &["RPUSH", "l3", "v"], "v"),
        (&["BRPOPLPUSH", "l4", "d", "20"], &["RPUSH", "l4", "v"], "v"),
        (&["BLMPOP", "20", "1", "l5", "LEFT", "COUNT", "2"], &["RPUSH", "l5", "v"], "[l5 [v]]"),
        (&["BZPOPMIN", "z1", "20"], &["ZADD", "z1", "1", "m"], "[z1 m 1]"),
        (
            &["XREAD", "BLOCK", "20000", "STREAMS", "stream", "$"],
            &["XADD", "stream", "1-1", "f", "v"],
            "[[stream [[1-1 [f v]]]]]",
        ),
        (
            &["XREADGROUP", "GROUP", "g", "c", "BLOCK", "20000", "STREAMS", "stream2", ">"],
            &["XADD", "stream2", "1-1", "f", "v"],
            "[[stream2 [[1-1 [f v]]]]]",
        ),
    ];
    let mut pusher = Connection::open(&front.address()).await.unwrap();
    let many = since("7.0", "7.2", "BLMPOP");
    for (wait, wake, expected) in cases.into_iter().filter(|(wait, ..)| many || wait[0] != "BLMPOP") {
        let (address, command) = (front.address(), wait.iter().map(ToString::to_string).collect::<Vec<_>>());
        let waiter = tokio::spawn(async move {
            let mut client = Connection::open(&address).await.unwrap();
            let reply = client.must(&command).await.unwrap();
            // the connection is good for ordinary commands afterwards
            client.must(&["PING"]).await.unwrap();
            reply
        });
        eventually("the client is blocked", async || {
            front.server.info("blocked_clients").await.unwrap() == "1"
        })
        .await;
        pusher.must(wake).await.unwrap();
        assert_eq!(waiter.await.unwrap().brief(), expected, "{wait:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn h04_timeouts_end_on_time_and_a_client_that_leaves_takes_nothing() {
    let front = Front::new().await;
    let mut client = Connection::open(&front.address()).await.unwrap();
    let began = Instant::now();
    assert_eq!(client.must(&["BLPOP", "nothing", "0.2"]).await.unwrap(), Reply::Nil);
    let took = began.elapsed();
    assert!(took >= Duration::from_millis(195) && took < Duration::from_secs(2), "{took:?}");
    client.queue(&["BLPOP", "left", "0"]);
    client.flush().await.unwrap();
    eventually("blocked", async || front.server.info("blocked_clients").await.unwrap() == "1").await;
    drop(client);
    eventually("gone", async || front.server.info("blocked_clients").await.unwrap() == "0").await;
    let mut other = Connection::open(&front.address()).await.unwrap();
    other.must(&["RPUSH", "left", "v"]).await.unwrap();
    assert_eq!(
        other.must(&["LLEN", "left"]).await.unwrap(),
        Reply::Integer(1),
        "nobody was there to take it"
    );
    // a blocked command in a pipeline holds up what stands behind it, and only that
    for command in [&["BLPOP", "p", "20"][..], &["SET", "after", "1"], &["GET", "after"]] {
        other.queue(command);
    }
    other.flush().await.unwrap();
    eventually("blocked", async || front.server.info("blocked_clients").await.unwrap() == "1").await;
    let mut third = Connection::open(&front.address()).await.unwrap();
    assert_eq!(third.must(&["EXISTS", "after"]).await.unwrap(), Reply::Integer(0));
    third.must(&["RPUSH", "p", "x"]).await.unwrap();
    assert_eq!(other.reply().await.unwrap().brief(), "[p x]");
    assert_eq!(other.reply().await.unwrap().brief(), "OK");
    assert_eq!(other.reply().await.unwrap().brief(), "1");
}

#[tokio::test(flavor = "multi_thread")]
async fn h04_wait_covers_what_went_down_the_lane() {
    let front = Front::new().await;
    let dir = tempfile::tempdir().unwrap();
    let replica = crate::support::start_server("", dir.path(), &[]).await;
    replica.call(&["REPLICAOF", "127.0.0.1", &front.server.port().to_string()]).await.unwrap();
    eventually("the replica is there", async || replica.info("master_link_status").await.unwrap() == "up")
        .await;
    let mut client = Connection::open(&front.address()).await.unwrap();
    for number in 0..20 {
        client.must(&["SET", "waited", &number.to_string()]).await.unwrap();
        assert_eq!(client.must(&["WAIT", "1", "5000"]).await.unwrap(), Reply::Integer(1));
        assert_eq!(replica.call(&["GET", "waited"]).await.unwrap().number(), Some(number));
    }
}

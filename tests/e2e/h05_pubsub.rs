//! H05: subscribers, RESP3 pushes, order per channel, keyspace notifications, MONITOR.

use crossfade::cli::demo::connection::Connection;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::{Front, eventually, since};

#[tokio::test(flavor = "multi_thread")]
async fn h05_channels_patterns_and_shards_in_order() {
    let front = Front::new().await;
    let mut subscriber = Connection::open(&front.address()).await.unwrap();
    assert_eq!(subscriber.must(&["SUBSCRIBE", "news", "more"]).await.unwrap().brief(), "[subscribe news 1]");
    assert_eq!(subscriber.reply().await.unwrap().brief(), "[subscribe more 2]");
    assert_eq!(subscriber.must(&["PSUBSCRIBE", "n*"]).await.unwrap().brief(), "[psubscribe n* 3]");
    let shards = since("7.0", "7.2", "shard channels");
    if shards {
        assert_eq!(subscriber.must(&["SSUBSCRIBE", "shard"]).await.unwrap().brief(), "[ssubscribe shard 1]");
    }
    assert_eq!(subscriber.must(&["PING", "still"]).await.unwrap().brief(), "[pong still]");
    let mut publisher = Connection::open(&front.address()).await.unwrap();
    for number in 0..500 {
        publisher.queue(&["PUBLISH", "news", &number.to_string()]);
    }
    publisher.flush().await.unwrap();
    for _ in 0..500 {
        assert_eq!(publisher.reply().await.unwrap().number(), Some(2));
    }
    for number in 0..500 {
        assert_eq!(subscriber.reply().await.unwrap().brief(), format!("[message news {number}]"));
        assert_eq!(subscriber.reply().await.unwrap().brief(), format!("[pmessage n* news {number}]"));
    }
    if shards {
        assert_eq!(publisher.must(&["SPUBLISH", "shard", "s"]).await.unwrap().number(), Some(1));
        assert_eq!(subscriber.reply().await.unwrap().brief(), "[smessage shard s]");
    }
    let refused = subscriber.call(&["GET", "k"]).await.unwrap().brief();
    assert!(refused.starts_with("-ERR Can't execute 'get'"), "{refused}");
    subscriber.must(&["UNSUBSCRIBE"]).await.unwrap();
    subscriber.reply().await.unwrap();
    subscriber.must(&["PUNSUBSCRIBE"]).await.unwrap();
    if shards {
        assert_eq!(subscriber.must(&["SUNSUBSCRIBE"]).await.unwrap().brief(), "[sunsubscribe shard 0]");
    }
    // an ordinary client again
    subscriber.must(&["SET", "k", "1"]).await.unwrap();
    assert_eq!(subscriber.must(&["GET", "k"]).await.unwrap().brief(), "1");
    assert_eq!(publisher.must(&["PUBLISH", "news", "x"]).await.unwrap().number(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn h05_resp3_pushes_stand_between_replies() {
    let front = Front::new().await;
    let mut client = TcpStream::connect(front.address()).await.unwrap();
    client
        .write_all(b"HELLO 3\r\nSUBSCRIBE c\r\nSET k 1\r\nPUBLISH c hello\r\nGET k\r\nQUIT\r\n")
        .await
        .unwrap();
    let mut text = String::new();
    tokio::time::timeout(std::time::Duration::from_secs(10), client.read_to_string(&mut text))
        .await
        .unwrap()
        .unwrap();
    let text = text[text.find(">3").unwrap()..].to_string();
    assert!(text.starts_with(">3\r\n$9\r\nsubscribe\r\n$1\r\nc\r\n:1\r\n+OK\r\n"), "{text:?}");
    assert!(text.contains(">3\r\n$7\r\nmessage\r\n$1\r\nc\r\n$5\r\nhello\r\n"), "{text:?}");
    assert!(text.contains(":1\r\n") && text.ends_with("$1\r\n1\r\n+OK\r\n"), "{text:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn h05_keyspace_notifications_and_monitor() {
    let front = Front::new().await;
    front.server.call(&["CONFIG", "SET", "notify-keyspace-events", "KEA"]).await.unwrap();
    let mut subscriber = Connection::open(&front.address()).await.unwrap();
    subscriber.must(&["PSUBSCRIBE", "__keyspace@0__:*"]).await.unwrap();
    let mut monitor = Connection::open(&front.address()).await.unwrap();
    monitor.must(&["MONITOR"]).await.unwrap();
    let mut client = Connection::open(&front.address()).await.unwrap();
    client.must(&["SET", "seen", "1"]).await.unwrap();
    client.must(&["DEL", "seen"]).await.unwrap();
    assert!(subscriber.reply().await.unwrap().brief().ends_with("__keyspace@0__:seen set]"));
    assert!(subscriber.reply().await.unwrap().brief().ends_with("__keyspace@0__:seen del]"));
    loop {
        let line = monitor.reply().await.unwrap().brief();
        if line.contains("\"SET\" \"seen\" \"1\"") {
            break;
        }
    }
    drop(monitor);
    drop(subscriber);
    eventually("the subscriber is gone", async || front.server.info("pubsub_patterns").await.unwrap() == "0")
        .await;
}

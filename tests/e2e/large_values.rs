//! Large values: they come through whole and in order, on a lane or on a connection of one's own, and nobody waits
//! behind them.

use std::time::{Duration, Instant};

use crossfade::cli::demo::connection::{Connection, encode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::{Front, eventually};

/// Bytes that show where they belong.
fn value(seed: usize, size: usize) -> Vec<u8> {
    (0..size).map(|at| (at * 31 + seed * 7 + at / 251) as u8).collect()
}

/// Small and large commands and replies in one pipeline, over and over: a client changes lanes only when nothing of its
/// is on the way, so everything is answered in order.
#[tokio::test(flavor = "multi_thread")]
async fn small_and_large_in_one_pipeline_are_answered_in_order() {
    let front = Front::new().await;
    let clients = (0..6usize).map(|number| {
        let address = front.address();
        tokio::spawn(async move {
            let mut client = Connection::open(&address).await.unwrap();
            for turn in 0..25usize {
                let sizes: Vec<usize> = (0..12usize)
                    .map(|step| match (number * 5 + turn * 3 + step * step) % 11 {
                        0 => 3_000_000,
                        1 | 2 => 70_000 + step * 1000,
                        3 => 65_530 + step,
                        _ => step * 40,
                    })
                    .collect();
                for (step, size) in sizes.iter().enumerate() {
                    let key = format!("{number}:{}", step % 4);
                    client.queue(&[b"SET".as_slice(), key.as_bytes(), &value(turn + step, *size)]);
                    client.queue(&["GET", &key]);
                    client.queue(&["ECHO", &format!("{number} {turn} {step}")]);
                }
                client.flush().await.unwrap();
                for (step, size) in sizes.iter().enumerate() {
                    assert_eq!(client.reply().await.unwrap().brief(), "OK");
                    let got = client.reply().await.unwrap();
                    assert!(got.bytes() == Some(&value(turn + step, *size)), "{number} {turn} {step}");
                    assert_eq!(client.reply().await.unwrap().brief(), format!("{number} {turn} {step}"));
                }
            }
        })
    });
    for client in clients.collect::<Vec<_>>() {
        client.await.unwrap();
    }
}

/// A reply on a connection of one's own is passed on as it comes; a client that does not read holds it back at the
/// server instead of filling the gateway's memory.
#[tokio::test(flavor = "multi_thread")]
async fn a_large_reply_of_a_transaction_is_not_collected() {
    const SIZE: usize = 200 << 20;
    let front = Front::new().await;
    // In pieces, so that it is not the request that needs the memory.
    let mut direct = Connection::open(&front.server.address()).await.unwrap();
    let piece = value(1, 1 << 20);
    for number in 0..SIZE >> 20 {
        let offset = (number << 20).to_string();
        direct.must(&[b"SETRANGE".as_slice(), b"large", offset.as_bytes(), &piece]).await.unwrap();
    }
    let mut stream = TcpStream::connect(front.address()).await.unwrap();
    let mut ask = Vec::new();
    for command in [&["MULTI"][..], &["GET", "large"], &["ECHO", "behind"], &["EXEC"], &["ECHO", "after"]] {
        encode(&mut ask, command);
    }
    stream.write_all(&ask).await.unwrap();
    let head = format!("+OK\r\n+QUEUED\r\n+QUEUED\r\n*2\r\n${SIZE}\r\n");
    let mut start = vec![0; head.len()];
    stream.read_exact(&mut start).await.unwrap();
    assert_eq!(start.escape_ascii().to_string(), head.as_bytes().escape_ascii().to_string());
    // Nothing is read for a while: it settles, far below the size of the reply.
    let mut before = 0;
    eventually("the gateway takes no more", async || {
        tokio::time::sleep(Duration::from_millis(200)).await;
        let now = front.rss_kib();
        let settled = now == before;
        before = now;
        settled
    })
    .await;
    assert!(before < 100 << 10, "{before} KiB resident with {} KiB unread", SIZE >> 10);
    let mut witness = Connection::open(&front.address()).await.unwrap();
    witness.must(&["PING"]).await.unwrap();
    let mut buffer = vec![0; 1 << 20];
    for number in 0..SIZE >> 20 {
        stream.read_exact(&mut buffer).await.unwrap();
        assert!(buffer == piece, "MiB {number}");
    }
    let tail = "\r\n$6\r\nbehind\r\n$5\r\nafter\r\n";
    let mut end = vec![0; tail.len()];
    stream.read_exact(&mut end).await.unwrap();
    assert_eq!(end.escape_ascii().to_string(), tail.as_bytes().escape_ascii().to_string());
}

/// While one client moves large values, what another asks for stands behind none of them.
#[tokio::test(flavor = "multi_thread")]
async fn nobody_waits_behind_large_values() {
    const SIZE: usize = 64 << 20;
    let front = Front::behind_proxy().await;
    let mut other = Connection::open(&front.address()).await.unwrap();
    other.must(&["SET", "small", "1"]).await.unwrap();
    let mut mover = Connection::open(&front.address()).await.unwrap();
    let large = value(3, SIZE);
    mover.must(&[b"SET".as_slice(), b"large", &large]).await.unwrap();
    // Now a reply takes three seconds on its way, and a request as long.
    let slow = crate::support::proxy::Rules { bytes_per_second: Some(SIZE as u64 / 3), ..Default::default() };
    let proxy = front.proxy.as_ref().unwrap();
    proxy.rules(crate::support::proxy::Way::Down, slow);
    let moving = tokio::spawn(async move {
        let got = mover.must(&["GET", "large"]).await.unwrap();
        assert!(got.bytes() == Some(&large));
    });
    let began = Instant::now();
    let mut longest = Duration::ZERO;
    while !moving.is_finished() {
        let asked = Instant::now();
        assert_eq!(other.must(&["GET", "small"]).await.unwrap().brief(), "1");
        longest = longest.max(asked.elapsed());
    }
    assert!(began.elapsed() > Duration::from_secs(1), "the large reply was not slow");
    assert!(longest < Duration::from_secs(1), "a small reply took {longest:?}");
    moving.await.unwrap();
}

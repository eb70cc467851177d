//! H02: ten thousand clients, some of which leave in the middle of a command or of a reply. No reply ever reaches
//! another client, nobody waits for those who left, and their memory comes back.

use std::sync::Arc;
use std::time::Duration;

use crossfade::cli::demo::connection::Connection;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;

use crate::support::{Front, eventually};

const CROWD: usize = 10_000;
/// Clients that speak at the same time.
const AT_ONCE: usize = 500;

/// What only this client knows.
fn secret(number: usize, turn: usize) -> String {
    format!("{number}/{turn}:{}", "s".repeat(number * 7 % 300))
}

/// A pipeline of this client's own, whose replies only it can have.
async fn check(client: &mut Connection, number: usize, turn: usize) {
    let key = format!("k{number}");
    for step in 0..3 {
        client.queue(&["SET", &key, &secret(number, turn + step)]);
        client.queue(&["GET", &key]);
        client.queue(&["ECHO", &secret(number, turn)]);
    }
    client.flush().await.unwrap();
    for step in 0..3 {
        assert_eq!(client.reply().await.unwrap().brief(), "OK", "client {number}");
        let own = secret(number, turn + step);
        assert_eq!(client.reply().await.unwrap().bytes(), Some(own.as_bytes()), "client {number}");
        let own = secret(number, turn);
        assert_eq!(client.reply().await.unwrap().bytes(), Some(own.as_bytes()), "client {number}");
    }
}

/// What becomes of a client.
async fn live(address: &str, number: usize) -> Option<Connection> {
    match number % 10 {
        // Leaves in the middle of a command.
        0 => {
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream.write_all(b"*3\r\n$3\r\nSET\r\n$4\r\nhalf\r\n$100\r\nabc").await.unwrap();
            None
        }
        // Asks for much and leaves in the middle of the reply.
        1 => {
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream.write_all(&b"*2\r\n$3\r\nGET\r\n$5\r\nlarge\r\n".repeat(3)).await.unwrap();
            let mut some = [0; 1000];
            assert!(stream.read(&mut some).await.unwrap() > 0);
            None
        }
        // Asks and leaves without waiting.
        2 => {
            let mut stream = TcpStream::connect(address).await.unwrap();
            let own = format!("GET k{number}\r\nECHO {}\r\n", secret(number, 0));
            stream.write_all(own.as_bytes()).await.unwrap();
            None
        }
        _ => {
            let mut client = Connection::open(address).await.unwrap();
            check(&mut client, number, 0).await;
            Some(client)
        }
    }
}

async fn crowd(address: &str) -> Vec<(usize, Connection)> {
    let room = Arc::new(Semaphore::new(AT_ONCE));
    let mut tasks = Vec::with_capacity(CROWD);
    for number in 0..CROWD {
        let (room, address) = (Arc::clone(&room), address.to_owned());
        tasks.push(tokio::spawn(async move {
            let _seat = room.acquire().await.unwrap();
            live(&address, number).await.map(|client| (number, client))
        }));
    }
    let mut stayed = Vec::new();
    for task in tasks {
        stayed.extend(task.await.unwrap());
    }
    stayed
}

async fn everybody_again(clients: Vec<(usize, Connection)>, turn: usize) -> Vec<(usize, Connection)> {
    let room = Arc::new(Semaphore::new(AT_ONCE));
    let tasks: Vec<_> = clients
        .into_iter()
        .map(|(number, mut client)| {
            let room = Arc::clone(&room);
            tokio::spawn(async move {
                let _seat = room.acquire().await.unwrap();
                check(&mut client, number, turn).await;
                (number, client)
            })
        })
        .collect();
    let mut all = Vec::new();
    for task in tasks {
        all.push(task.await.unwrap());
    }
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn h02_ten_thousand_clients_that_come_and_go() {
    rlimit::increase_nofile_limit(CROWD as u64 * 2 + 1024).unwrap();
    let front = Front::new().await;
    let mut witness = Connection::open(&front.address()).await.unwrap();
    witness.must(&["SET", "large", &"x".repeat(200_000)]).await.unwrap();
    let mut peaks = Vec::new();
    for wave in 0..3 {
        let stayed = crowd(&front.address()).await;
        assert_eq!(stayed.len(), CROWD / 10 * 7);
        let stayed = everybody_again(stayed, 10 * (wave + 1)).await;
        // A tenth of those who stayed leaves; the others do not notice.
        let stayed: Vec<_> = stayed.into_iter().filter(|(number, _)| number % 10 != 3).collect();
        let stayed = everybody_again(stayed, 10 * (wave + 1) + 5).await;
        peaks.push(front.rss_kib());
        drop(stayed);
        eventually("all of them are gone", async || {
            let list = witness.must(&["CLIENT", "LIST"]).await.unwrap();
            list.bytes().unwrap().iter().filter(|byte| **byte == b'\n').count() == 1
        })
        .await;
    }
    // What one crowd took is there for the next one: no wave costs more than the first, but for a little.
    assert!(peaks[2] < peaks[0] + peaks[0] / 5, "resident KiB after each wave: {peaks:?}");
    let asked = std::time::Instant::now();
    witness.must(&["PING"]).await.unwrap();
    assert!(asked.elapsed() < Duration::from_secs(1));
}

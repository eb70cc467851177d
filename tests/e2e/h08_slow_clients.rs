//! H08: clients that do not read, that read slowly, that close one half, that leave in the middle of a command. Others
//! do not notice, and memory stays bounded.

use std::time::{Duration, Instant};

use crossfade::cli::demo::connection::Connection;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::{Lab, Setup, eventually};

/// A gateway that keeps at most 8 MiB of unread replies for a client.
async fn lab() -> (Lab, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("crossfade.toml");
    std::fs::write(&file, "[listen]\noutput_buffer_limit = \"8MiB\"\n").unwrap();
    let lab = Setup::new().env("CROSSFADE_CONFIG", file.to_str().unwrap()).build().await;
    (lab, dir)
}

fn value(length: usize) -> String {
    (0..length).map(|n| char::from(b'a' + (n % 23) as u8)).collect()
}

/// Replies of somebody else take less than this, whatever goes on.
const PROMPT: Duration = Duration::from_millis(500);

async fn prompt(client: &mut Connection) {
    let asked = Instant::now();
    client.must(&["PING"]).await.unwrap();
    assert!(asked.elapsed() < PROMPT, "{:?}", asked.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn h08_a_client_that_never_reads_is_closed_and_delays_nobody() {
    let (lab, _dir) = lab().await;
    let address = lab.gateway.address();
    let mut other = Connection::open(&address).await.unwrap();
    other.must(&["SET", "large", &value(100_000)]).await.unwrap();
    let mut deaf = TcpStream::connect(&address).await.unwrap();
    let ask = b"*2\r\n$3\r\nGET\r\n$5\r\nlarge\r\n".repeat(10);
    let began = Instant::now();
    // 100 MB of replies, were it not closed before.
    let mut sent = 0;
    while sent < 100 && began.elapsed() < Duration::from_secs(20) {
        match tokio::time::timeout(Duration::from_millis(200), deaf.write_all(&ask)).await {
            Ok(Ok(())) => sent += 1,
            // Closed, or its own socket is full: the gateway takes no more from it.
            Ok(Err(_)) | Err(_) => break,
        }
        prompt(&mut other).await;
    }
    let mut clients = async || {
        let list = other.must(&["CLIENT", "LIST"]).await.unwrap();
        String::from_utf8_lossy(list.bytes().unwrap()).lines().count()
    };
    eventually("it is closed", async || clients().await == 1).await;
    assert!(lab.gateway.log().contains("output_buffer_limit"), "the log says why");
}

#[tokio::test(flavor = "multi_thread")]
async fn h08_a_client_that_reads_byte_by_byte_gets_every_byte() {
    let (lab, _dir) = lab().await;
    let address = lab.gateway.address();
    let mut other = Connection::open(&address).await.unwrap();
    let value = value(3_000_000);
    other.must(&["SET", "large", &value]).await.unwrap();
    let mut slow = TcpStream::connect(&address).await.unwrap();
    slow.write_all(b"*2\r\n$3\r\nGET\r\n$5\r\nlarge\r\n*1\r\n$4\r\nPING\r\n").await.unwrap();
    let wanted = format!("${}\r\n{value}\r\n+PONG\r\n", value.len());
    let mut got = Vec::new();
    for _ in 0..20 {
        got.push(slow.read_u8().await.unwrap());
        prompt(&mut other).await;
    }
    let mut rest = vec![0; wanted.len() - got.len()];
    slow.read_exact(&mut rest).await.unwrap();
    got.extend(rest);
    assert!(got == wanted.as_bytes(), "all of it, in order");
}

#[tokio::test(flavor = "multi_thread")]
async fn h08_a_half_closed_client_gets_what_it_asked_for() {
    let (lab, _dir) = lab().await;
    let mut client = TcpStream::connect(lab.gateway.address()).await.unwrap();
    let mut commands = Vec::new();
    for _ in 0..1000 {
        commands.extend_from_slice(b"*2\r\n$4\r\nINCR\r\n$1\r\nn\r\n");
    }
    // And a transaction, a subscription to leave again, half a command.
    commands.extend_from_slice(
        b"MULTI\r\nINCR n\r\nEXEC\r\nSUBSCRIBE c\r\nUNSUBSCRIBE c\r\n*3\r\n$3\r\nSET\r\n$1\r\nx\r\n$5\r\nab",
    );
    client.write_all(&commands).await.unwrap();
    client.shutdown().await.unwrap();
    let mut replies = String::new();
    client.read_to_string(&mut replies).await.unwrap();
    let mut wanted: String = (1..=1000).map(|n| format!(":{n}\r\n")).collect();
    wanted += "+OK\r\n+QUEUED\r\n*1\r\n:1001\r\n";
    wanted += "*3\r\n$9\r\nsubscribe\r\n$1\r\nc\r\n:1\r\n*3\r\n$11\r\nunsubscribe\r\n$1\r\nc\r\n:0\r\n";
    assert_eq!(replies, wanted);
    assert_eq!(lab.source.call(&["EXISTS", "x"]).await.unwrap().number(), Some(0), "half a command is none");
}

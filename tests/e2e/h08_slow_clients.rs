//! H08: clients that do not read, that read slowly, that close one half, that leave in the middle of a command. Others
//! do not notice, and memory stays bounded.

use std::time::{Duration, Instant};

use crossfade::cli::demo::connection::{Connection, Reply, encode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::proxy::{Proxy, Rules, Way};
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

/// Waits until the gateway has no client but this.
async fn alone(client: &mut Connection) {
    let mut clients = async || {
        let list = client.must(&["CLIENT", "LIST"]).await.unwrap();
        String::from_utf8_lossy(list.bytes().unwrap()).lines().count()
    };
    eventually("the other client is gone", async || clients().await == 1).await;
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
    alone(&mut other).await;
    assert!(lab.gateway.log().contains("output_buffer_limit"), "the log says why");
}

/// A byte a second for some seconds: nobody else waits for it, nothing that the gateway holds for it is lost.
#[tokio::test(flavor = "multi_thread")]
async fn h08_a_client_that_reads_one_byte_a_second_gets_every_byte() {
    let (lab, _dir) = lab().await;
    let address = lab.gateway.address();
    let proxy = Proxy::start(address.clone()).await;
    let mut other = Connection::open(&address).await.unwrap();
    let value = value(3_000_000);
    other.must(&["SET", "large", &value]).await.unwrap();
    let mut slow = TcpStream::connect(proxy.address()).await.unwrap();
    slow.write_all(b"PING\r\n").await.unwrap();
    let mut pong = [0; 7];
    slow.read_exact(&mut pong).await.unwrap();
    proxy.rules(Way::Down, Rules { bytes_per_second: Some(1), ..Rules::default() });
    let get = b"*2\r\n$3\r\nGET\r\n$5\r\nlarge\r\n";
    let began = Instant::now();
    slow.write_all(&[get, get, b"PING\r\n".as_slice()].concat()).await.unwrap();
    let reply = format!("${}\r\n{value}\r\n", value.len());
    let wanted = format!("{reply}{reply}+PONG\r\n");
    let mut got = Vec::new();
    while got.len() < 4 {
        match tokio::time::timeout(Duration::from_millis(20), slow.read_u8()).await {
            Ok(byte) => got.push(byte.unwrap()),
            Err(_) => assert!(began.elapsed() < Duration::from_secs(30), "{} bytes", got.len()),
        }
        prompt(&mut other).await;
        assert_eq!(other.must(&["STRLEN", "large"]).await.unwrap().number(), Some(3_000_000));
    }
    assert!(began.elapsed() >= Duration::from_millis(3900), "a byte a second: {:?}", began.elapsed());
    // The rest within a second or so: still many waits for it.
    proxy.rules(Way::Down, Rules { bytes_per_second: Some(6_000_000), ..Rules::default() });
    let mut rest = vec![0; wanted.len() - got.len()];
    slow.read_exact(&mut rest).await.unwrap();
    got.extend(rest);
    assert!(got == wanted.as_bytes(), "all of it, in order");
    prompt(&mut other).await;
}

/// The network closes the client's sending half while replies are on their way and trickle out.
#[tokio::test(flavor = "multi_thread")]
async fn h08_a_half_closed_slow_client_gets_what_it_asked_for() {
    let (lab, _dir) = lab().await;
    let address = lab.gateway.address();
    let proxy = Proxy::start(address.clone()).await;
    let mut other = Connection::open(&address).await.unwrap();
    let value = value(1_000_000);
    other.must(&["SET", "large", &value]).await.unwrap();
    proxy.rules(Way::Down, Rules { bytes_per_second: Some(2_000_000), ..Rules::default() });
    let mut client = TcpStream::connect(proxy.address()).await.unwrap();
    let get = b"*2\r\n$3\r\nGET\r\n$5\r\nlarge\r\n".as_slice();
    client.write_all(&[get, b"INCR n\r\n", get, b"INCR n\r\nSET half"].concat()).await.unwrap();
    let reply = format!("${}\r\n{value}\r\n", value.len());
    let wanted = format!("{reply}:1\r\n{reply}:2\r\n");
    let mut got = vec![0; 1000];
    client.read_exact(&mut got).await.unwrap();
    eventually("all of it was asked for", async || {
        other.must(&["GET", "n"]).await.unwrap().number() == Some(2)
    })
    .await;
    proxy.rules(Way::Up, Rules { half_close: true, ..Rules::default() });
    // What the client still says goes nowhere.
    client.write_all(b" x\r\nINCR n\r\n").await.unwrap();
    client.read_to_end(&mut got).await.unwrap();
    assert!(got == wanted.as_bytes(), "{} bytes of {}", got.len(), wanted.len());
    assert_eq!(other.must(&["GET", "n"]).await.unwrap().number(), Some(2));
    assert_eq!(other.must(&["EXISTS", "half"]).await.unwrap().number(), Some(0));
    alone(&mut other).await;
}

/// The connection is reset in the middle of a command, of a transaction, and of a reply: half a command is none, and those
/// who share lanes with it get their own replies.
#[tokio::test(flavor = "multi_thread")]
async fn h08_a_client_cut_in_the_middle_of_a_frame_leaves_nothing_behind() {
    let (lab, _dir) = lab().await;
    let address = lab.gateway.address();
    let proxy = Proxy::start(address.clone()).await;
    let mut other = Connection::open(&address).await.unwrap();
    let value = value(2_000_000);
    let mut commands = Vec::new();
    encode(&mut commands, &["SET", "cut", &value]);
    let large = commands.clone();
    commands.clear();
    encode(&mut commands, &["MULTI"]);
    encode(&mut commands, &["SET", "cut", "queued"]);
    encode(&mut commands, &["EXEC"]);
    let (transaction, whole) = (commands.clone(), commands.len() as u64);
    let set = large.len() as u64;
    let cuts = [(&large, 1), (&large, 20), (&large, set / 2), (&large, set - 1)];
    let in_transaction = [(&transaction, 16), (&transaction, 40), (&transaction, whole - 1)];
    for (round, (bytes, after)) in cuts.into_iter().chain(in_transaction).enumerate() {
        let mut client = TcpStream::connect(proxy.address()).await.unwrap();
        client.write_all(b"INCR n\r\n").await.unwrap();
        let mut reply = [0; 4];
        client.read_exact(&mut reply).await.unwrap();
        assert_eq!(reply[..], *format!(":{}\r\n", round + 1).as_bytes());
        proxy.rules(Way::Up, Rules { cut_after: Some(after), ..Rules::default() });
        // It may be cut before all of it is written.
        let _ = client.write_all(bytes).await;
        let mut rest = Vec::new();
        let _ = client.read_to_end(&mut rest).await;
        proxy.heal();
        alone(&mut other).await;
        assert_eq!(other.must(&["EXISTS", "cut"]).await.unwrap().number(), Some(0), "{after} bytes of it");
    }
    other.must(&["SET", "large", &value]).await.unwrap();
    for after in [1, 5, 1_000_000, 2_000_010] {
        let mut client = TcpStream::connect(proxy.address()).await.unwrap();
        proxy.rules(Way::Down, Rules { cut_after: Some(after), ..Rules::default() });
        client.write_all(b"GET large\r\n").await.unwrap();
        let mut got = Vec::new();
        assert!(client.read_to_end(&mut got).await.is_err(), "{after}: reset");
        assert!(got.len() as u64 <= after);
        proxy.heal();
        prompt(&mut other).await;
        assert_eq!(other.must(&["GETRANGE", "large", "0", "4"]).await.unwrap().brief(), "abcde");
        alone(&mut other).await;
    }
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

/// Whether so many bytes wait at one of the server's connections for it to read them.
fn waits_at(port: u16, bytes: usize) -> bool {
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let local = format!(":{port:04X}");
    let queue = format!(":{bytes:08X}");
    table.lines().skip(1).any(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        fields[1].ends_with(&local) && fields[4].ends_with(&queue)
    })
}

/// What comes while the server is busy waits at the server, not at the gateway behind the command before it: the server reads
/// all of it when it is done, and not what came later first.
#[tokio::test(flavor = "multi_thread")]
async fn h08_what_comes_while_the_server_is_busy_waits_at_the_server() {
    let lab = Setup::new().build().await;
    let mut clients = Vec::new();
    for _ in 0..3 {
        let mut client = Connection::open(&lab.gateway.address()).await.unwrap();
        client.must(&["PING"]).await.unwrap();
        clients.push(client);
    }
    lab.source.signal("STOP").unwrap();
    let mut command = Vec::new();
    encode(&mut command, &["APPEND", "order", "x"]);
    let mut all = 0;
    for client in &mut clients {
        client.queue_raw(&command);
        client.flush().await.unwrap();
        all += command.len();
        eventually("the command is at the server", async || waits_at(lab.source.port(), all)).await;
    }
    lab.source.signal("CONT").unwrap();
    for (client, length) in clients.iter_mut().zip(1..) {
        assert_eq!(client.reply().await.unwrap(), Reply::Integer(length));
    }
}

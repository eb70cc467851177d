//! What a replica says before it gets a snapshot: `PING`, `AUTH`, `REPLCONF …`, `PSYNC <id> <offset>`.

use std::fs::File;
use std::io::Read;

use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::resp::value::{Bounds, Decoder, Value};

/// No word of a handshake is longer, and no command has more words.
const BOUNDS: Bounds = Bounds { depth: 2, bytes: 4096, elements: 64 };

/// Answers a replica until it asks for the snapshot. It must name `replid`: a server that was a primary asks by its own
/// replication id whether it may go on from there (`replicationCacheMasterUsingMyself`), and nobody else knows that id.
///
/// # Errors
/// What it said instead.
pub(super) async fn greet(socket: &mut TcpStream, replid: &str) -> Result<(), String> {
    let mut input = BytesMut::new();
    let mut decoder = Decoder::new(BOUNDS);
    loop {
        while let Some(command) = decoder.next(&mut input).map_err(|error| error.to_string())? {
            let words: Vec<&str> =
                command.as_array().unwrap_or_default().iter().filter_map(Value::as_str).collect();
            let name = words.first().map(|name| name.to_ascii_uppercase()).unwrap_or_default();
            let answer = match (name.as_str(), &words[..]) {
                ("PING", _) => "+PONG\r\n",
                ("AUTH" | "REPLCONF", _) => "+OK\r\n",
                ("PSYNC", [_, id, ..]) if *id == replid => return Ok(()),
                ("PSYNC", [_, id, ..]) => return Err(format!("PSYNC of {id}")),
                _ => return Err(format!("the command {}", name.escape_debug())),
            };
            socket.write_all(answer.as_bytes()).await.map_err(|error| error.to_string())?;
        }
        if socket.read_buf(&mut input).await.map_err(|error| error.to_string())? == 0 {
            return Err("it closed the connection".into());
        }
    }
}

/// Forty hexadecimal digits that nobody can guess.
///
/// # Errors
/// The system has no random numbers.
pub(super) fn random_hex() -> std::io::Result<String> {
    let mut bytes = [0; 20];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    async fn greeted(said: &str) -> (Result<(), String>, String) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (ours, theirs) =
            tokio::join!(listener.accept(), TcpStream::connect(listener.local_addr().unwrap()));
        let (mut ours, mut theirs) = (ours.unwrap().0, theirs.unwrap());
        theirs.write_all(said.as_bytes()).await.unwrap();
        theirs.shutdown().await.unwrap();
        let outcome = greet(&mut ours, "my-own-id").await;
        drop(ours);
        let mut answers = String::new();
        let _ = theirs.read_to_string(&mut answers).await;
        (outcome, answers)
    }

    #[tokio::test]
    async fn only_who_names_the_id_is_greeted() {
        let begin = "*1\r\n$4\r\nPING\r\n*3\r\n$8\r\nREPLCONF\r\n$4\r\ncapa\r\n$3\r\neof\r\n";
        let (outcome, answers) =
            greeted(&format!("{begin}*3\r\n$5\r\nPSYNC\r\n$9\r\nmy-own-id\r\n$2\r\n77\r\n")).await;
        assert_eq!((outcome, answers.as_str()), (Ok(()), "+PONG\r\n+OK\r\n"));
        for wrong in [
            "*3\r\n$5\r\nPSYNC\r\n$1\r\n?\r\n$2\r\n-1\r\n",
            "*1\r\n$4\r\nSYNC\r\n",
            "*1\r\n$5\r\nPSYNC\r\n",
            "*1\r\n$8\r\nFLUSHALL\r\n",
            "GET / HTTP/1.1\r\n",
            "*9999999\r\n",
            "",
        ] {
            let (outcome, _) = greeted(&format!("{begin}{wrong}")).await;
            assert!(outcome.is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn marks_differ() {
        let marks = [random_hex().unwrap(), random_hex().unwrap()];
        assert!(marks[0] != marks[1] && marks.iter().all(|mark| mark.len() == 40));
    }
}

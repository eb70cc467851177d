//! The receiver against a source that follows a script, for what real servers do not do on demand.

use std::io::Read;

use tokio::net::{TcpListener, TcpStream};

use super::*;

const ID: &str = "0123456789abcdef0123456789abcdef01234567";
const OTHER: &str = "89abcdef0123456789abcdef0123456789abcdef";
const MARK: &str = "fedcba9876543210fedcba9876543210fedcba98";
const PATIENCE: Duration = Duration::from_secs(20);

struct Lab {
    listener: TcpListener,
    handle: ReceiverHandle,
    journal: Arc<Journal>,
    applied: watch::Sender<u64>,
    _dir: tempfile::TempDir,
}

impl Lab {
    async fn new(start: ReceiveFrom, prepare: impl FnOnce(&mut ReceiverOptions)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("redis://{}", listener.local_addr().unwrap());
        let journal = Arc::new(Journal::open(dir.path()).unwrap());
        let applied = watch::Sender::new(0);
        let endpoint = Endpoint::parse(Side::Source, &url).unwrap();
        let cancel = CancellationToken::new();
        let mut options = ReceiverOptions::new(endpoint, journal.clone(), start, applied.subscribe(), cancel);
        options.backoff = (Duration::from_millis(1), Duration::from_millis(10));
        prepare(&mut options);
        Self { listener, handle: Receiver::spawn(options), journal, applied, _dir: dir }
    }

    /// Takes the next connection through the introduction, and gives the question.
    async fn accept(&self) -> (TcpStream, String) {
        let (mut socket, _) = tokio::time::timeout(PATIENCE, self.listener.accept()).await.unwrap().unwrap();
        loop {
            let command = command(&mut socket).await;
            match command.split(' ').next().unwrap() {
                "PSYNC" => return (socket, command),
                "PING" => socket.write_all(b"+PONG\r\n").await.unwrap(),
                // As a server does that knows none of it.
                _ => socket.write_all(b"-ERR Unrecognized REPLCONF option\r\n").await.unwrap(),
            }
        }
    }

    async fn until(&self, what: &str, is: impl FnMut(&ReceiverState) -> bool) -> ReceiverState {
        let mut state = self.handle.state.clone();
        match tokio::time::timeout(PATIENCE, state.wait_for(is)).await {
            Ok(Ok(state)) => state.clone(),
            _ => panic!("{what}: {:?}", *self.handle.state.borrow()),
        }
    }
}

/// One command of the receiver, its arguments separated by blanks.
async fn command(socket: &mut TcpStream) -> String {
    async fn line(socket: &mut TcpStream) -> String {
        let mut line = Vec::new();
        while !line.ends_with(b"\r\n") {
            line.push(tokio::time::timeout(PATIENCE, socket.read_u8()).await.unwrap().unwrap());
        }
        String::from_utf8(line).unwrap().trim_end().to_owned()
    }
    let count: usize = line(socket).await.strip_prefix('*').unwrap().parse().unwrap();
    let mut words = Vec::new();
    for _ in 0..count {
        line(socket).await;
        words.push(line(socket).await);
    }
    words.join(" ")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_byte_on_its_own() {
    let lab = Lab::new(ReceiveFrom::FullSync, |_| {}).await;
    let (mut socket, question) = lab.accept().await;
    assert_eq!(question, "PSYNC ? -1");
    let stream = "*1\r\n$4\r\nPING\r\n";
    let wire = format!("\n\n+FULLRESYNC {ID} 1000\r\n\n\n$EOF:{MARK}\r\nREDIS-{MARK}", MARK = MARK);
    for byte in wire.as_bytes() {
        socket.write_all(&[*byte]).await.unwrap();
        tokio::task::yield_now().await;
    }
    // The source streams only after an ACK.
    assert_eq!(command(&mut socket).await, "REPLCONF ACK 0");
    for byte in stream.as_bytes() {
        socket.write_all(&[*byte]).await.unwrap();
    }
    let state = lab.until("all", |state| state.received == 1000 + stream.len() as u64).await;
    assert_eq!((state.generation, state.links, state.replid.as_deref()), (1, 1, Some(ID)));
    let mut snapshot = String::new();
    lab.journal.snapshot_reader().unwrap().read_to_string(&mut snapshot).unwrap();
    assert_eq!(snapshot, "REDIS-");
    let mut reader = lab.journal.reader(1000).unwrap();
    let mut seen = Vec::new();
    while reader.position() < state.received {
        seen.extend_from_slice(&reader.next().await.unwrap().bytes);
    }
    assert_eq!(seen, stream.as_bytes());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_counted_snapshot_and_its_stream_in_one_write_then_a_cut() {
    let lab = Lab::new(ReceiveFrom::FullSync, |_| {}).await;
    let (mut socket, _) = lab.accept().await;
    // Cut in the snapshot: the next question is for everything again.
    socket.write_all(format!("+FULLRESYNC {ID} 5\r\n$10\r\n0123").as_bytes()).await.unwrap();
    lab.until("a piece", |state| matches!(state.link, Link::Snapshot { read: 4, expected: Some(10) })).await;
    drop(socket);
    let (mut socket, question) = lab.accept().await;
    assert_eq!(question, "PSYNC ? -1");
    socket.write_all(format!("+FULLRESYNC {ID} 7\r\n$10\r\n0123456789stream").as_bytes()).await.unwrap();
    lab.until("the stream", |state| state.received == 13 && state.generation == 2).await;
    drop(socket);
    // Cut in the stream: it goes on at the byte behind, with an id or without.
    let (mut socket, question) = lab.accept().await;
    assert_eq!(question, format!("PSYNC {ID} 14"));
    socket.write_all(b"+CONTINUE\r\n and on").await.unwrap();
    lab.until("more", |state| state.received == 20).await;
    drop(socket);
    let (mut socket, question) = lab.accept().await;
    assert_eq!(question, format!("PSYNC {ID} 21"));
    socket.write_all(format!("+CONTINUE {OTHER}\r\n!").as_bytes()).await.unwrap();
    let state = lab.until("the new id", |state| state.received == 21).await;
    assert_eq!((state.replid.as_deref(), state.generation), (Some(OTHER), 2));
    drop(socket);
    let (mut socket, question) = lab.accept().await;
    assert_eq!(question, format!("PSYNC {OTHER} 22"));
    // Refused for now, then for good.
    socket.write_all(b"-NOMASTERLINK Can't SYNC while not connected with my master\r\n").await.unwrap();
    let (mut socket, _) = lab.accept().await;
    assert!(matches!(&lab.handle.state.borrow().link, Link::Lost { error, .. }
        if error.retry && error.to_string().contains("NOMASTERLINK")));
    socket.write_all(b"-NOPERM this user has no permissions\r\n").await.unwrap();
    lab.until("the end", |state| matches!(&state.link, Link::Failed(error) if !error.retry)).await;
    let mut reader = lab.journal.reader(7).unwrap();
    let mut seen = Vec::new();
    while reader.position() < 21 {
        seen.extend_from_slice(&reader.next().await.unwrap().bytes);
    }
    assert_eq!(seen, b"stream and on!");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acks_carry_what_is_applied_and_come_at_once_when_asked_for() {
    let position = Position { replid: ID.into(), offset: 100, db: 0 };
    let lab = Lab::new(ReceiveFrom::Continue(position), |_| {}).await;
    lab.applied.send_replace(90);
    let (mut socket, question) = lab.accept().await;
    assert_eq!(question, format!("PSYNC {ID} 101"));
    socket.write_all(b"+CONTINUE\r\n").await.unwrap();
    let began = Instant::now();
    assert_eq!(command(&mut socket).await, "REPLCONF ACK 90");
    let demand = b"*3\r\n$8\r\nREPLCONF\r\n$6\r\nGETACK\r\n$1\r\n*\r\n";
    socket.write_all(&demand[..20]).await.unwrap();
    lab.until("a half", |state| state.received == 120).await;
    socket.write_all(&demand[20..]).await.unwrap();
    assert_eq!(command(&mut socket).await, "REPLCONF ACK 90");
    // From now on each step is told, until everything before the demand is applied.
    lab.applied.send_replace(110);
    assert_eq!(command(&mut socket).await, "REPLCONF ACK 110");
    lab.applied.send_replace(100 + demand.len() as u64);
    assert_eq!(command(&mut socket).await, "REPLCONF ACK 137");
    assert!(began.elapsed() < Duration::from_millis(900), "these were no periodic ones");
    lab.applied.send_replace(1000);
    assert_eq!(command(&mut socket).await, "REPLCONF ACK 1000");
    assert!(began.elapsed() > Duration::from_millis(900), "this was the periodic one");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_source_is_a_lost_one() {
    let idle = |options: &mut ReceiverOptions| options.idle_timeout = Duration::from_millis(300);
    let lab = Lab::new(ReceiveFrom::FullSync, idle).await;
    let mut kept = Vec::new();
    // Before the answer, in the snapshot, in the stream. Keep-alives count as life.
    for said in [
        String::new(),
        format!("+FULLRESYNC {ID} 0\r\n\n$5\r\n012"),
        format!("+FULLRESYNC {ID} 0\r\n$1\r\n0"),
    ] {
        let (mut socket, question) = lab.accept().await;
        assert_eq!(question, "PSYNC ? -1");
        for _ in 0..3 {
            tokio::time::sleep(Duration::from_millis(200)).await;
            socket.write_all(b"\n").await.unwrap();
        }
        socket.write_all(said.as_bytes()).await.unwrap();
        kept.push(socket);
    }
    let (_socket, question) = lab.accept().await;
    assert_eq!(question, format!("PSYNC {ID} 1"));
    assert!(
        matches!(&lab.handle.state.borrow().link, Link::Lost { error, .. } if error.to_string().contains("silent"))
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tail_lets_go_of_a_snapshot_that_cannot_be_empty() {
    let lab = Lab::new(ReceiveFrom::Tail, |_| {}).await;
    let (mut socket, question) = lab.accept().await;
    assert_eq!(question, "PSYNC ? -1");
    socket.write_all(format!("+FULLRESYNC {ID} 70\r\n").as_bytes()).await.unwrap();
    let (mut socket, question) = lab.accept().await;
    assert_eq!(question, format!("PSYNC {ID} 71"));
    // No backlog there: then it is taken, and thrown away.
    socket.write_all(format!("+FULLRESYNC {OTHER} 80\r\n$4\r\nfullstream").as_bytes()).await.unwrap();
    let state = lab.until("the stream", |state| state.received == 86).await;
    assert_eq!((state.generation, state.replid.as_deref()), (2, Some(OTHER)));
    assert!(lab.journal.snapshot().is_none());
    assert_eq!(&lab.journal.reader(80).unwrap().next().await.unwrap().bytes[..], b"stream");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_knows_neither_psync_nor_sync_ends_it() {
    let lab = Lab::new(ReceiveFrom::FullSync, |_| {}).await;
    let (mut socket, _) = lab.accept().await;
    socket.write_all(b"-ERR unknown command 'PSYNC'\r\n").await.unwrap();
    assert_eq!(command(&mut socket).await, "SYNC");
    socket.write_all(b"-ERR unknown command 'SYNC'\r\n").await.unwrap();
    let state = lab.until("the end", |state| matches!(&state.link, Link::Failed(_))).await;
    assert!(matches!(state.link, Link::Failed(error) if !error.retry && error.remedy.is_some()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stopping_is_prompt_and_keeps_what_came() {
    let position = Position { replid: ID.into(), offset: 100, db: 0 };
    let lab = Lab::new(ReceiveFrom::Continue(position), |_| {}).await;
    let (mut socket, _) = lab.accept().await;
    socket.write_all(b"+CONTINUE\r\nlast words").await.unwrap();
    lab.until("them", |state| state.received == 110).await;
    tokio::time::timeout(Duration::from_secs(2), lab.handle.stop()).await.unwrap();
    let again = Journal::open(lab.journal.dir()).unwrap();
    assert_eq!(again.received(), 110);
}

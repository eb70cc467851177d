//! H03: transactions through the gateway behave as they do in Redis.

use crossfade::cli::demo::connection::{Connection, Reply};

use crate::support::Front;

fn error(reply: &Reply) -> String {
    match reply {
        Reply::Error(text) => String::from_utf8_lossy(text).into_owned(),
        other => panic!("an error was expected, not {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn h03_multi_exec_discard() {
    let front = Front::new().await;
    let mut client = Connection::open(&front.address()).await.unwrap();
    client.must(&["MULTI"]).await.unwrap();
    assert_eq!(client.must(&["SET", "a", "1"]).await.unwrap().bytes(), Some(&b"QUEUED"[..]));
    assert_eq!(client.must(&["SELECT", "1"]).await.unwrap().bytes(), Some(&b"QUEUED"[..]));
    assert_eq!(client.must(&["SET", "b", "2"]).await.unwrap().bytes(), Some(&b"QUEUED"[..]));
    assert_eq!(client.must(&["EXEC"]).await.unwrap().items().len(), 3);
    // the SELECT inside counts for what follows
    assert_eq!(client.must(&["GET", "b"]).await.unwrap().bytes(), Some(&b"2"[..]));
    assert_eq!(client.must(&["GET", "a"]).await.unwrap(), Reply::Nil);
    client.must(&["SELECT", "0"]).await.unwrap();
    client.must(&["MULTI"]).await.unwrap();
    client.must(&["SET", "a", "other"]).await.unwrap();
    client.must(&["DISCARD"]).await.unwrap();
    assert_eq!(client.must(&["GET", "a"]).await.unwrap().bytes(), Some(&b"1"[..]));
    assert_eq!(error(&client.call(&["EXEC"]).await.unwrap()), "ERR EXEC without MULTI");
    assert_eq!(error(&client.call(&["DISCARD"]).await.unwrap()), "ERR DISCARD without MULTI");
}

#[tokio::test(flavor = "multi_thread")]
async fn h03_errors_at_queue_time_and_at_run_time() {
    let front = Front::new().await;
    let mut client = Connection::open(&front.address()).await.unwrap();
    client.must(&["MULTI"]).await.unwrap();
    // Redis and Valkey have words of their own for it.
    let nested = error(&client.call(&["MULTI"]).await.unwrap());
    assert!(nested.contains("nested") || nested.contains("not allowed inside a transaction"), "{nested}");
    client.must(&["DISCARD"]).await.unwrap();
    client.must(&["MULTI"]).await.unwrap();
    client.must(&["SET", "x", "1"]).await.unwrap();
    assert!(error(&client.call(&["NOSUCHCOMMAND"]).await.unwrap()).starts_with("ERR unknown command"));
    client.must(&["SET", "y", "1"]).await.unwrap();
    assert!(error(&client.call(&["EXEC"]).await.unwrap()).starts_with("EXECABORT"));
    assert_eq!(client.must(&["EXISTS", "x", "y"]).await.unwrap(), Reply::Integer(0));
    client.must(&["MULTI"]).await.unwrap();
    client.must(&["SET", "text", "abc"]).await.unwrap();
    client.must(&["INCR", "text"]).await.unwrap();
    client.must(&["SET", "after", "1"]).await.unwrap();
    let replies = client.must(&["EXEC"]).await.unwrap();
    assert!(matches!(replies.items(), [Reply::Simple(_), Reply::Error(_), Reply::Simple(_)]), "{replies:?}");
    assert_eq!(client.must(&["GET", "after"]).await.unwrap().bytes(), Some(&b"1"[..]));
}

#[tokio::test(flavor = "multi_thread")]
async fn h03_watch_conflicts_and_does_not() {
    let front = Front::new().await;
    let (mut one, mut two) = (
        Connection::open(&front.address()).await.unwrap(),
        Connection::open(&front.address()).await.unwrap(),
    );
    one.must(&["WATCH", "w"]).await.unwrap();
    two.must(&["SET", "w", "theirs"]).await.unwrap();
    one.must(&["MULTI"]).await.unwrap();
    one.must(&["SET", "w", "mine"]).await.unwrap();
    assert_eq!(one.must(&["EXEC"]).await.unwrap(), Reply::Nil);
    assert_eq!(one.must(&["GET", "w"]).await.unwrap().bytes(), Some(&b"theirs"[..]));
    one.must(&["WATCH", "w"]).await.unwrap();
    two.must(&["SET", "elsewhere", "1"]).await.unwrap();
    one.must(&["MULTI"]).await.unwrap();
    one.must(&["SET", "w", "mine"]).await.unwrap();
    assert_eq!(one.must(&["EXEC"]).await.unwrap().items().len(), 1);
    // UNWATCH forgets; so does an EXEC
    one.must(&["WATCH", "w"]).await.unwrap();
    two.must(&["SET", "w", "theirs"]).await.unwrap();
    one.must(&["UNWATCH"]).await.unwrap();
    one.must(&["MULTI"]).await.unwrap();
    one.must(&["SET", "w", "mine"]).await.unwrap();
    assert_eq!(one.must(&["EXEC"]).await.unwrap().items().len(), 1);
    // a client that leaves with keys watched and a transaction open leaves nothing behind for the next
    one.must(&["WATCH", "w"]).await.unwrap();
    one.must(&["MULTI"]).await.unwrap();
    one.must(&["SET", "w", "half"]).await.unwrap();
    drop(one);
    for _ in 0..20 {
        let mut next = Connection::open(&front.address()).await.unwrap();
        two.must(&["SET", "w", "again"]).await.unwrap();
        next.must(&["MULTI"]).await.unwrap();
        next.must(&["INCR", "next"]).await.unwrap();
        assert_eq!(next.must(&["EXEC"]).await.unwrap().items().len(), 1);
    }
    assert_eq!(two.must(&["GET", "w"]).await.unwrap().bytes(), Some(&b"again"[..]));
}

#[tokio::test(flavor = "multi_thread")]
async fn h03_transactions_of_two_clients_do_not_mix() {
    let front = Front::new().await;
    let (mut one, mut two) = (
        Connection::open(&front.address()).await.unwrap(),
        Connection::open(&front.address()).await.unwrap(),
    );
    for round in 0..200 {
        for client in [&mut one, &mut two] {
            client.must(&["MULTI"]).await.unwrap();
            client.must(&["INCR", "m"]).await.unwrap();
        }
        for client in [&mut one, &mut two] {
            client.must(&["INCR", "m"]).await.unwrap();
        }
        let (first, second) = (one.must(&["EXEC"]).await.unwrap(), two.must(&["EXEC"]).await.unwrap());
        let base = round * 4;
        let numbers = |reply: &Reply| reply.items().iter().map(|n| n.number().unwrap()).collect::<Vec<_>>();
        assert_eq!(numbers(&first), [base + 1, base + 2]);
        assert_eq!(numbers(&second), [base + 3, base + 4]);
    }
}

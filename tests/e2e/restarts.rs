//! A gateway that comes back knows at once where it stands.

use serde_json::Value as Json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::Setup;

/// The status, if the gateway answers.
async fn ask(admin: &str) -> Option<Json> {
    let mut stream = TcpStream::connect(admin).await.ok()?;
    let request = format!("GET /v1/status HTTP/1.1\r\nHost: {admin}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.ok()?;
    serde_json::from_str(answer.split_once("\r\n\r\n")?.1).ok()
}

/// Whoever asks in the first moment must not hear that there is no migration, and that clients are on the source.
#[tokio::test(flavor = "multi_thread")]
async fn restarts_never_show_a_status_that_is_not_true() {
    let mut lab = Setup::new().build().await;
    lab.mirror().await;
    lab.cutover().await;
    for turn in 0..20 {
        lab.gateway.kill();
        let admin = lab.gateway.admin();
        let first = async {
            loop {
                if let Some(status) = ask(&admin).await {
                    return status;
                }
                tokio::task::yield_now().await;
            }
        };
        let (restarted, status) = tokio::join!(lab.gateway.restart(), first);
        restarted.unwrap();
        assert_eq!(
            (&status["active"], &status["epoch"]),
            (&"destination".into(), &1.into()),
            "{turn}: {status}"
        );
        assert_ne!(status["phase"], "forwarding", "{turn}: {status}");
    }
    // Each came back whole.
    lab.same().await;
    lab.rollback().await;
}

/// A server that comes back counts its stream from 0 again: tests that wait until the other side is in step must not take
/// the offset of its former life, which is further, for that.
#[tokio::test(flavor = "multi_thread")]
async fn restarts_of_the_active_server_are_waited_for_by_the_tests() {
    let mut lab = Setup::new().durable().build().await;
    lab.expect_log("");
    lab.mirror().await;
    for turn in 0..3 {
        let number = turn.to_string();
        for _ in 0..100 {
            lab.source.call(&["SET", "long", &"x".repeat(10_000)]).await.unwrap();
        }
        lab.in_step().await;
        lab.source.restart().await.unwrap();
        lab.source.call(&["SET", "mark", &number]).await.unwrap();
        lab.in_step().await;
        assert_eq!(lab.destination.call(&["GET", "mark"]).await.unwrap().brief(), number);
    }
}

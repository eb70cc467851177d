//! A command that fails on the other side: the mirror stops, `status` says what failed and what to do, and
//! `resume --skip-failed` goes on without it.

use std::process::Command;

use crossfade::cli::demo::connection::Connection;
use serde_json::{Value as Json, json};

use crate::support::{EXE, Lab, PATIENCE, Setup};

/// What the command line answers to `resume`: exit status and JSON.
fn resume(lab: &Lab, args: &[&str]) -> (i32, Json) {
    let output = Command::new(EXE)
        .args(["resume", "--json", "--admin", &lab.gateway.admin()])
        .args(args)
        .output()
        .unwrap();
    (output.status.code().unwrap(), serde_json::from_slice(&output.stdout).unwrap())
}

/// The status once the mirror has stopped.
async fn stopped(lab: &mut Lab) -> Json {
    let failed = |status: &Json| status["phase"] == "failed";
    lab.gateway.wait_until("the mirror stops", PATIENCE, failed).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_failed_is_named_and_can_be_skipped() {
    let mut lab = Setup::new().build().await;
    lab.expect_log("the mirror");
    let nothing = |(code, answer): (i32, Json)| {
        let error = &answer["error"];
        assert_eq!((code, &error["side"]), (1, &json!("gateway")), "{answer}");
        assert!(error["remedy"].is_string(), "{answer}");
        error["message"].as_str().unwrap().to_owned()
    };
    let mut client = Connection::open(&lab.gateway.address()).await.unwrap();
    client.must(&["SET", "before", "1"]).await.unwrap();
    assert!(nothing(resume(&lab, &["--skip-failed"])).contains("nothing is paused"));
    lab.mirror().await;
    assert!(nothing(resume(&lab, &["--skip-failed"])).contains("nothing is paused"));

    // Paused is not failed: there is nothing to skip, and it stays paused.
    lab.gateway.order("pause", &json!({})).await.unwrap();
    assert!(nothing(resume(&lab, &["--skip-failed"])).contains("no failed command"));
    assert_eq!(lab.gateway.status().await.unwrap()["phase"], "paused");
    assert_eq!(resume(&lab, &[]).0, 0);
    lab.gateway.wait_phase("mirroring", PATIENCE).await.unwrap();

    lab.destination.call(&["SET", "queue", "written by somebody else"]).await.unwrap();
    client.must(&["LPUSH", "queue", "job"]).await.unwrap();
    client.must(&["SET", "behind", "1"]).await.unwrap();
    let status = stopped(&mut lab).await;
    let error = &status["error"];
    assert_eq!(error["side"], "destination", "{status}");
    for part in ["LPUSH", "\"queue\"", "db 0", "WRONGTYPE"] {
        assert!(error["message"].as_str().unwrap().contains(part), "{status}");
    }
    assert!(error["remedy"].as_str().unwrap().contains("crossfade resume --skip-failed"), "{status}");

    // Clients are served all the while, and what they write arrives once the command is skipped.
    client.must(&["SET", "meanwhile", "1"]).await.unwrap();
    let (code, answer) = resume(&lab, &["--skip-failed"]);
    assert_eq!(code, 0, "{answer}");
    lab.gateway.wait_phase("mirroring", PATIENCE).await.unwrap();
    client.must(&["SET", "afterwards", "1"]).await.unwrap();
    lab.in_step().await;
    for key in ["behind", "meanwhile", "afterwards"] {
        assert_eq!(lab.destination.call(&["GET", key]).await.unwrap().bytes(), Some(&b"1"[..]), "{key}");
    }
    let other = lab.destination.call(&["GET", "queue"]).await.unwrap();
    assert_eq!(other.bytes(), Some(&b"written by somebody else"[..]), "the command was left out");

    client.must(&["DEL", "queue"]).await.unwrap();
    client.must(&["LPUSH", "queue", "job"]).await.unwrap();
    lab.same().await;
    assert!(nothing(resume(&lab, &["--skip-failed"])).contains("nothing is paused"));
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_failed_command_there_is_nothing_to_skip() {
    let mut lab = Setup::new().build().await;
    lab.expect_log("the mirror");
    lab.mirror().await;
    // The position is gone: nothing that can be skipped.
    lab.destination.call(&["FLUSHALL"]).await.unwrap();
    lab.destination.call(&["CLIENT", "KILL", "TYPE", "normal"]).await.unwrap();
    stopped(&mut lab).await;
    let (code, answer) = lab.gateway.post("/v1/resume", &json!({"skip_failed": true})).await.unwrap();
    assert_eq!(code, 409, "{answer}");
    assert!(answer["error"]["message"].as_str().unwrap().contains("no failed command"), "{answer}");
    assert!(answer["error"]["remedy"].as_str().unwrap().contains("crossfade status"), "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_the_destination_does_not_know_can_be_skipped() {
    let mut lab = Setup::new().destination(&["--rename-command", "LPUSH", ""]).build().await;
    lab.expect_log("the mirror");
    lab.expect_log("the destination refuses a command");
    lab.mirror().await;
    let mut client = Connection::open(&lab.gateway.address()).await.unwrap();
    client.must(&["LPUSH", "queue", "job"]).await.unwrap();
    client.must(&["SET", "behind", "1"]).await.unwrap();
    let status = stopped(&mut lab).await;
    assert!(status["error"]["message"].as_str().unwrap().contains("LPUSH of key \"queue\""), "{status}");
    assert_eq!(resume(&lab, &["--skip-failed"]).0, 0);
    lab.in_step().await;
    assert_eq!(lab.destination.call(&["GET", "behind"]).await.unwrap().bytes(), Some(&b"1"[..]));
    client.must(&["DEL", "queue"]).await.unwrap();
    lab.same().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_destination_without_mset_gets_every_set_by_itself() {
    let mut lab = Setup::new().destination(&["--rename-command", "MSET", ""]).build().await;
    lab.mirror().await;
    let mut client = Connection::open(&lab.gateway.address()).await.unwrap();
    // One write to the source's stream, so that they are collected together.
    client.must(&["MULTI"]).await.unwrap();
    for number in 0..40 {
        client.must(&["SET", &format!("k{number}"), "1"]).await.unwrap();
    }
    client.must(&["EXEC"]).await.unwrap();
    lab.same().await;
    assert_eq!(lab.destination.call(&["DBSIZE"]).await.unwrap().number(), Some(42));
    assert!(lab.gateway.log().contains("refuses an MSET"), "it was never asked for one");
}

//! A command that fails on the other side: the mirror stops, `status` says what failed and what to do, and
//! `resume --skip-failed` goes on without it, `resume --copy-failed` with its keys copied anew; or the configuration decides.

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

/// A gateway with `[mirror]` keys in a file of its own, which has to outlive it.
fn configured(mirror: &str) -> (tempfile::TempDir, Setup) {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("crossfade.toml");
    std::fs::write(&file, format!("[mirror]\n{mirror}\n")).unwrap();
    let setup = Setup::new().gateway(&["--config", file.to_str().unwrap()]);
    (dir, setup)
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_of_a_command_that_failed_are_copied_anew_on_request() {
    let mut lab = Setup::new().build().await;
    lab.expect_log("the mirror");
    lab.mirror().await;
    let mut client = Connection::open(&lab.gateway.address()).await.unwrap();
    client.must(&["RPUSH", "queue", "1", "2"]).await.unwrap();
    lab.in_step().await;
    lab.destination.call(&["SET", "queue", "written by somebody else"]).await.unwrap();
    client.must(&["RPUSH", "queue", "3"]).await.unwrap();
    let status = stopped(&mut lab).await;
    assert!(status["error"]["remedy"].as_str().unwrap().contains("resume --copy-failed"), "{status}");
    let (code, answer) =
        lab.gateway.post("/v1/resume", &json!({"skip_failed": true, "copy_failed": true})).await.unwrap();
    assert_eq!(code, 409, "{answer}");
    // Written while the mirror stands, and after it.
    client.must(&["RPUSH", "queue", "4"]).await.unwrap();
    let (code, answer) = resume(&lab, &["--copy-failed"]);
    assert_eq!(code, 0, "{answer}");
    client.must(&["RPUSH", "queue", "5"]).await.unwrap();
    lab.gateway.wait_phase("mirroring", PATIENCE).await.unwrap();
    lab.same().await;
    let mirror = lab.gateway.status().await.unwrap()["mirror"].clone();
    assert_eq!((&mirror["copied"], &mirror["skipped"]["count"]), (&json!(1), &json!(0)), "{mirror}");
    let (code, answer) = resume(&lab, &["--copy-failed"]);
    assert_eq!(code, 1, "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_are_copied_anew_where_the_configuration_says_so() {
    let (_config, setup) = configured("on_conflict = \"copy-key\"\non_error = \"copy-key\"");
    let mut lab = setup.destination(&["--rename-command", "LPUSH", ""]).build().await;
    lab.expect_log("its keys are copied anew");
    lab.expect_log("the destination refuses a command");
    lab.mirror().await;
    let mut client = Connection::open(&lab.gateway.address()).await.unwrap();

    // Refused: nothing of the batch ran. In another db, with an expiry, under a key that is no text.
    let odd: &[u8] = b"\xff\x00\r\n";
    client.must(&["SELECT", "3"]).await.unwrap();
    client.must(&[b"LPUSH", odd, b"1"]).await.unwrap();
    client.must(&[b"PEXPIRE", odd, b"100000000"]).await.unwrap();
    client.must(&[b"LPUSH", odd, b"2"]).await.unwrap();
    lab.same().await;

    // Failed: the rest of the batch ran. What it touches together with another key takes that key along.
    client.must(&["SELECT", "0"]).await.unwrap();
    client.must(&["SADD", "one", "a", "b"]).await.unwrap();
    client.must(&["INCR", "number"]).await.unwrap();
    lab.in_step().await;
    for key in ["one", "number"] {
        lab.destination.call(&["DEL", key]).await.unwrap();
        lab.destination.call(&["HSET", key, "not", "yours"]).await.unwrap();
    }
    client.must(&["MULTI"]).await.unwrap();
    client.must(&["INCR", "number"]).await.unwrap();
    client.must(&["SUNIONSTORE", "two", "one"]).await.unwrap();
    client.must(&["SADD", "one", "c"]).await.unwrap();
    client.must(&["EXEC"]).await.unwrap();
    client.must(&["INCR", "number"]).await.unwrap();
    lab.same().await;
    let status = lab.gateway.status().await.unwrap();
    let copied = status["mirror"]["copied"].as_u64().unwrap();
    assert!(copied >= 4 && status["error"].is_null(), "{status}");
    lab.cutover().await;
    lab.same().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_configuration_skips_is_counted_and_named() {
    let (_config, setup) = configured("on_conflict = \"skip\"\non_error = \"skip\"");
    let mut lab = setup.destination(&["--rename-command", "LPUSH", ""]).build().await;
    lab.expect_log("left out");
    lab.expect_log("the destination refuses a command");
    lab.mirror().await;
    let mut client = Connection::open(&lab.gateway.address()).await.unwrap();
    lab.destination.call(&["RPUSH", "number", "not a number"]).await.unwrap();
    client.must(&["LPUSH", "queue", "job"]).await.unwrap();
    client.must(&["INCR", "number"]).await.unwrap();
    client.must(&["SET", "behind", "1"]).await.unwrap();
    let arrived = async |lab: &mut Lab| {
        lab.in_step().await;
        assert_eq!(lab.destination.call(&["GET", "behind"]).await.unwrap().bytes(), Some(&b"1"[..]));
        let skipped = lab.gateway.status().await.unwrap()["mirror"]["skipped"].clone();
        assert_eq!(skipped["count"], 2, "{skipped}");
        for (nth, part) in ["LPUSH of key \"queue\"", "INCR of key \"number\""].iter().enumerate() {
            assert!(skipped["named"][nth].as_str().unwrap().contains(part), "{skipped}");
        }
    };
    arrived(&mut lab).await;
    let (_, metrics) = lab.gateway.get("/metrics").await.unwrap();
    assert!(
        metrics
            .lines()
            .any(|line| line.starts_with("crossfade_mirror_skipped_total{") && line.ends_with(" 2"))
    );
    lab.gateway.restart().await.unwrap();
    lab.gateway.wait_phase("mirroring", PATIENCE).await.unwrap();
    arrived(&mut lab).await;
    for key in ["queue", "number"] {
        client = Connection::open(&lab.gateway.address()).await.unwrap();
        client.must(&["DEL", key]).await.unwrap();
    }
    lab.same().await;
}

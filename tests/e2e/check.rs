//! What `check` finds on real servers.

use serde_json::Value as Json;

use crate::support::{EXE, start_server};

/// `LEVEL: what` of each finding about a side that is no "ok".
fn trouble(document: &Json, side: &str) -> Vec<String> {
    let findings = document["findings"].as_array().unwrap();
    let about = |finding: &&Json| finding["side"] == side && finding["level"] != "ok";
    let line = |finding: &Json| {
        format!("{}: {}", finding["level"].as_str().unwrap(), finding["what"].as_str().unwrap())
    };
    findings.iter().filter(about).map(line).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_gateways_user_may_not_do_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let source = start_server("", &dir.path().join("a"), &["--repl-diskless-sync-delay", "0"]).await;
    let destination = start_server("", &dir.path().join("b"), &[]).await;
    if source.call(&["ACL", "DRYRUN", "default", "ping"]).await.is_err() {
        return; // before 7.0 a server cannot be asked
    }
    let check = async |rights: &[&str]| -> Json {
        let user =
            [&["ACL", "SETUSER", "mover", "reset", "on", ">secret", "~*", "&*", "+@all"], rights].concat();
        source.call(&user).await.unwrap();
        let output = tokio::process::Command::new(EXE)
            .args(["check", "--json", "--listen=127.0.0.1:0", "--admin=127.0.0.1:0"])
            .args(["--source", &format!("redis://mover:secret@{}", source.address())])
            .args(["--destination", &destination.url()])
            .current_dir(dir.path())
            .output()
            .await
            .unwrap();
        serde_json::from_slice(&output.stdout).unwrap()
    };
    let all = trouble(&check(&[]).await, "source");
    assert!(!all.iter().any(|line| line.contains("may")), "{all:?}");
    // Either will do.
    for one in [&["-pfcount"][..], &["-eval"]] {
        assert_eq!(trouble(&check(one).await, "source"), all);
    }
    let new = |document: &Json| -> Vec<String> {
        trouble(document, "source").into_iter().filter(|line| !all.contains(line)).collect()
    };
    let [recalls] = &new(&check(&["-pfcount", "-eval"]).await)[..] else { panic!("one more") };
    assert!(recalls.starts_with("warn: ") && recalls.contains("neither PFCOUNT nor EVAL"), "{recalls}");
    let document = check(&["-exec", "-client|unblock"]).await;
    let [denied] = &new(&document)[..] else { panic!("one more: {document}") };
    assert!(denied.starts_with("error: ") && denied.contains("CLIENT UNBLOCK, EXEC"), "{denied}");
    assert_eq!(document["ok"], false);
}

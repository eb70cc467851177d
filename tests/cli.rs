//! What the binary says to wrong input, and with which exit status: 2 wrong usage or configuration, 3 nobody there.

#![allow(clippy::unwrap_used)] // helpers of tests are tests, too

use assert_cmd::Command;
use serde_json::Value as Json;

/// The binary, without what the developer's own environment says to it.
fn crossfade(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_crossfade"));
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("CROSSFADE_")) {
        command.env_remove(name);
    }
    command.args(args).timeout(std::time::Duration::from_secs(30));
    command
}

/// Exit status, stdout, stderr.
fn run(command: &mut Command) -> (i32, String, String) {
    let output = command.output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap_or(-1), text(output.stdout), text(output.stderr))
}

fn with_file(content: &str, args: &[&str]) -> (i32, String, String) {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("orders.toml"), content).unwrap();
    run(crossfade(args).args(["--config", "orders.toml"]).current_dir(&dir))
}

/// A port on which nobody listens.
fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

#[test]
fn a_wrong_key_names_its_line_and_the_nearest_one() {
    let (code, out, error) = with_file("name = 'x'\n\n[listen]\nadress = '127.0.0.1:0'\n", &["run"]);
    assert_eq!((code, out.as_str()), (2, ""));
    insta::assert_snapshot!(error, @r"
    crossfade: orders.toml:4: unknown key 'adress' in [listen]
      what to do: did you mean 'address'?
    ");
    let (code, _, error) = with_file("[source]\nurl = 'redis://a'\n[cutover]\nmax_pause = 500\n", &["check"]);
    assert_eq!(code, 2);
    insta::assert_snapshot!(error, @r#"crossfade: orders.toml:4: 'cutover.max_pause': '500' is no duration; write the unit too, as in "500ms", "10s" or "12h""#);
}

#[test]
fn a_key_without_a_function_yet_is_refused() {
    let (code, _, error) = with_file("[source]\nurl = 'redis://a'\n[shadow]\nsample = 0.5\n", &["run"]);
    assert_eq!(code, 2);
    insta::assert_snapshot!(error, @r"
    crossfade: [shadow] is not in this version
      what to do: take it out
    ");
}

#[test]
fn wrong_addresses() {
    for (args, part) in [
        (&["run"][..], "no source is given"),
        (&["run", "--source", "http://a:1"], "'http://' is no known kind of URL"),
        (&["run", "--source", "a:6379"], "a URL is expected"),
        (&["run", "--source", "redis://a:x"], "port"),
        (&["run", "--source", "redis://a:1", "--destination", "redis://a:1"], "the same server"),
        (&["run", "--source", "redis://a:1", "--listen", "localhost"], "the port is missing"),
        (&["run", "--source", "redis://a:1", "--start"], "--start needs a destination"),
        (&["run", "--config", "does-not-exist.toml"], "cannot be read"),
        (&["run", "--source", "redis+cluster://a:1"], "not in this version"),
        (&["check", "--source", "redis+sentinel://a:1/main"], "not in this version"),
        (&["status", "--admin", "https://a:1"], "an address is expected"),
        (&["--log", "a=b=c", "status"], "log filter"),
    ] {
        let (code, out, error) = run(&mut crossfade(args));
        assert_eq!((code, out.as_str()), (2, ""), "{args:?}: {error}");
        assert!(error.contains(part), "{args:?}: {error}");
    }
}

#[test]
fn wrong_arguments() {
    for args in [
        &["cutover", "--dry-run", "--rehearse"][..],
        &["cutover", "--max-pause", "500"],
        &["status", "--wait", "nowhere"],
        &["status", "--timeout", "1s"],
        &["throttle"],
        &["throttle", "--mirror-ops", "quick"],
        &["verify", "--rounds", "0"],
        &["explode"],
        &[],
    ] {
        let (code, _, error) = run(&mut crossfade(args));
        assert_eq!(code, 2, "{args:?}: {error}");
    }
}

#[test]
fn an_admin_address_for_all_needs_a_token() {
    let args = ["run", "--source", "redis://a:1", "--admin", "0.0.0.0:6401"];
    let (code, _, error) = run(&mut crossfade(&args));
    assert_eq!(code, 2);
    insta::assert_snapshot!(error, @r"
    crossfade: admin.address 0.0.0.0:6401 can be reached from other machines but has no token
      what to do: set token or token_file in [admin] or CROSSFADE_ADMIN_TOKEN, or listen on 127.0.0.1
    ");
}

#[test]
fn no_gateway_is_exit_3_for_every_command() {
    let admin = format!("127.0.0.1:{}", free_port());
    for args in [
        &["status"][..],
        &["start"],
        &["cutover"],
        &["rollback", "--dry-run"],
        &["verify"],
        &["pause"],
        &["resume"],
        &["finish"],
        &["abort"],
        &["throttle", "--mirror-ops", "off"],
        &["status", "--watch"],
        &["status", "--wait", "mirroring", "--timeout", "200ms"],
    ] {
        let (code, out, error) = run(crossfade(args).args(["--admin", &admin]));
        assert_eq!((code, out.as_str()), (3, ""), "{args:?}: {error}");
        assert!(error.contains("no gateway answers at") && error.contains("what to do"), "{error}");
        let (code, out, _) = run(crossfade(args).args(["--json"]).env("CROSSFADE_ADMIN", &admin));
        assert_eq!(code, 3, "{args:?}");
        let document: Json = serde_json::from_str(&out).unwrap();
        assert_eq!(document["error"]["side"], "gateway", "{args:?}: {document}");
        assert!(document["error"]["remedy"].is_string(), "{args:?}: {document}");
    }
}

#[test]
fn a_stranger_at_the_admin_address_is_no_gateway() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let admin = listener.local_addr().unwrap().to_string();
    let stranger = std::thread::spawn(move || {
        use std::io::{Read, Write};
        let (mut stream, _) = listener.accept().unwrap();
        let mut request = [0; 1024];
        let _ = stream.read(&mut request).unwrap();
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello").unwrap();
    });
    let (code, _, error) = run(crossfade(&["status"]).args(["--admin", &admin]));
    assert_eq!(code, 1);
    assert!(error.contains("is no gateway of this version"), "{error}");
    stranger.join().unwrap();
}

#[test]
fn check_says_which_server_cannot_be_reached() {
    let (source, destination) = (free_port(), free_port());
    let dir = tempfile::tempdir().unwrap();
    let arguments = [
        "--source".to_owned(),
        format!("redis://:hunter2@127.0.0.1:{source}"),
        "--destination".to_owned(),
        format!("redis://127.0.0.1:{destination}"),
        "--listen=127.0.0.1:0".to_owned(),
        "--admin=127.0.0.1:0".to_owned(),
    ];
    let (code, out, error) = run(crossfade(&["check", "--json"]).args(&arguments).current_dir(&dir));
    assert_eq!(code, 3, "{error}");
    assert!(!out.contains("hunter2") && !error.contains("hunter2"));
    let document: Json = serde_json::from_str(&out).unwrap();
    let of = |side: &str| {
        let findings = document["findings"].as_array().unwrap();
        findings.iter().any(|f| f["side"] == side && f["level"] == "error" && f["remedy"].is_string())
    };
    assert!(of("source") && of("destination") && document["ok"] == false, "{document}");
    let (code, out, _) = run(crossfade(&["check"]).args(&arguments).current_dir(&dir));
    assert!(code == 3 && out.contains("ERROR") && out.contains("→"), "{out}");
    assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 0, "check changes nothing");
}

#[test]
fn flags_win_over_the_environment_which_wins_over_the_file() {
    // A wrong value shows which of the three was used.
    let file = "[source]\nurl = 'redis://a'\n[listen]\naddress = 'from-file'\n";
    let (_, _, error) = with_file(file, &["run"]);
    assert!(error.contains("from-file"), "{error}");
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("orders.toml"), file).unwrap();
    let command = |args: &[&str]| {
        let mut command = crossfade(args);
        command
            .current_dir(&dir)
            .env("CROSSFADE_CONFIG", "orders.toml")
            .env("CROSSFADE_LISTEN", "from-environment");
        command
    };
    let (_, _, error) = run(&mut command(&["run"]));
    assert!(error.contains("from-environment"), "{error}");
    let (_, _, error) = run(&mut command(&["run", "--listen", "from-flag"]));
    assert!(error.contains("from-flag"), "{error}");
}

#[test]
fn secrets_do_not_show_in_help_or_errors() {
    let (code, out, error) = run(crossfade(&["run", "--help"])
        .env("CROSSFADE_SOURCE", "redis://:hunter2@a:1")
        .env("CROSSFADE_ADMIN_TOKEN", "hunter2"));
    assert!(code == 0 && !out.contains("hunter2") && !error.contains("hunter2"), "{out}");
    let (code, _, error) = run(&mut crossfade(&["run", "--source", "redis://:hunter2@a:bad"]));
    assert!(code == 2 && !error.contains("hunter2"), "{error}");
}

#[test]
fn completions_and_manual() {
    for shell in ["bash", "zsh", "fish"] {
        let (code, out, _) = run(&mut crossfade(&["completions", shell]));
        assert!(code == 0 && out.contains("crossfade") && out.contains("cutover"), "{shell}");
    }
    let (code, out, _) = run(&mut crossfade(&["man"]));
    assert!(code == 0 && out.contains(".TH crossfade") && out.contains("cutover"), "{out}");
    let (code, out, _) = run(&mut crossfade(&["man", "cutover"]));
    assert!(code == 0 && out.contains("rehearse"), "{out}");
    let (code, _, _) = run(&mut crossfade(&["man", "explode"]));
    assert_eq!(code, 2);
    let (code, out, _) = run(&mut crossfade(&["--version"]));
    assert!(code == 0 && out.starts_with("crossfade "), "{out}");
}

//! H12 with a gateway whose clock is wrong: what an old source says of an expiry counts from when it said so, by its own clock.

use std::path::PathBuf;
use std::time::Duration;

use crossfade::cli::demo::connection::Connection as Client;
use crossfade::cli::demo::gateway::{Gateway, GatewayOptions};

use crate::now_ms;
use crate::server::{Connection, Server};

const EXE: &str = env!("CARGO_BIN_EXE_crossfade");
const PATIENCE: Duration = Duration::from_secs(30);
/// How exact this test sees, on a busy machine. A clock that is not minded shows as thousands.
const WITHIN_MS: i64 = 100;

/// The library that `faketime` preloads.
fn library() -> PathBuf {
    let folders = std::fs::read_dir("/usr/lib").unwrap().flatten();
    let found =
        folders.map(|folder| folder.path().join("faketime/libfaketime.so.1")).find(|path| path.exists());
    found.expect("the package faketime")
}

/// When keys come due on a server, by its own account.
fn due(server: &mut Connection, keys: &[&str]) -> Vec<i64> {
    let left = keys.iter().map(|key| server.must(&["PTTL", key]).as_i64().unwrap());
    left.map(|left| {
        assert!(left > 0);
        now_ms() + left
    })
    .collect()
}

pub async fn run(from: &'static str, to: &'static str, ahead: &str) {
    let (source, destination) = (Server::start(from), Server::start(to));
    let (mut at_source, mut at_destination) = (source.connect(), destination.connect());
    let folder = tempfile::tempdir().unwrap();
    let mut options = GatewayOptions::new(EXE, folder.path(), &source.url(), &destination.url());
    let set = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    options.env.push(set("LD_PRELOAD", library().to_str().unwrap()));
    options.env.push(set("FAKETIME", ahead));
    options.env.push(set("FAKETIME_DONT_FAKE_MONOTONIC", "1"));
    let mut gateway = Gateway::start(options).await.unwrap();
    let mut client = Client::open(&gateway.address()).await.unwrap();
    client.must(&["SET", "before", "v", "EX", "100"]).await.unwrap();
    gateway.begin().await.unwrap();
    gateway.wait_phase("mirroring", PATIENCE).await.unwrap();
    client.must(&["SETEX", "setex", "100", "v"]).await.unwrap();
    client.must(&["SET", "set", "v", "PX", "14000"]).await.unwrap();
    client.must(&["SET", "expire", "v"]).await.unwrap();
    client.must(&["EXPIRE", "expire", "3600"]).await.unwrap();
    client.must(&["SET", "again", "v", "EX", "10"]).await.unwrap();
    client.must(&["PEXPIRE", "again", "50000"]).await.unwrap();
    let keys = ["before", "setex", "set", "expire", "again"];
    let meant = due(&mut at_source, &keys);
    gateway.cutover().await.unwrap();
    let found = due(&mut at_destination, &keys);
    for ((key, meant), found) in keys.iter().zip(meant).zip(found) {
        assert!(
            (meant - found).abs() <= WITHIN_MS,
            "{from} -> {to}, {ahead}: {key} is {} ms off",
            found - meant
        );
    }
}

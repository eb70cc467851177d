//! Every server version to every other through the whole gateway: one data set with every type and edge, and while it
//! is copied, and after, every command that writes (H10, H11, H20).
//!
//! The servers' own command tables say which commands write; one that `writes.txt` lacks fails the test.
//! `redis-server` is taken from PATH. `CROSSFADE_SERVERS` may name a folder of further servers, each as
//! `NAME/redis-server`; `CROSSFADE_PAIRS` chooses among the pairs by a part of "FROM -> TO"; several by commas.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]
#![allow(clippy::print_stderr, reason = "the pairs and their times")]
#![allow(unreachable_pub, missing_docs, reason = "nothing outside this binary sees it")]
#![allow(dead_code, reason = "what is shared serves other tests too")]

mod clocks;
mod fields;
#[path = "../rdb/fill.rs"]
mod fill;
mod pair;
#[path = "../rdb/server.rs"]
mod server;
mod versions;
mod writes;

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, PoisonError};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use server::servers;

/// The tests of this file take all of the machine each.
static ALONE: Mutex<()> = Mutex::new(());

/// Pairs that run at the same time.
const AT_ONCE: usize = 3;

const ALL: [&str; 18] = [
    "redis-2.8",
    "redis-3.0",
    "redis-3.2",
    "redis-4.0rc",
    "redis-5.0",
    "redis-6.0",
    "redis-6.2",
    "redis-7.0",
    "redis-7.2",
    "redis-7.4",
    "redis-8.0",
    "redis-8.2",
    "redis-8.6",
    "redis-8.10",
    "valkey-8.0",
    "valkey-8.1",
    "valkey-9.0",
    "valkey-9.1",
];

/// Where everybody goes, besides a server of the same version.
const TO: [&str; 3] = ["redis-7.0", "redis-8.10", "valkey-9.1"];

/// Further back.
const BACK: [(&str, &str); 4] = [
    ("redis-7.4", "redis-6.2"),
    ("redis-8.0", "redis-5.0"),
    ("redis-8.10", "redis-5.0"),
    ("redis-6.2", "redis-5.0"),
];

/// Where a newer source may hold what the destination has no command for.
const LACKING: [(&str, &str); 4] = [
    ("redis-8.10", "redis-5.0"),
    ("redis-8.10", "valkey-9.1"),
    ("redis-7.4", "redis-6.2"),
    ("valkey-9.1", "redis-7.0"),
];

/// Servers of which both know expiries of fields, and how the snapshot is to travel.
const FIELDS: [(&str, &str, &str); 8] = [
    ("redis-7.4", "redis-7.4", "auto"),
    ("redis-7.4", "redis-8.10", "commands"),
    ("redis-8.10", "redis-8.10", "auto"),
    ("redis-8.10", "redis-7.4", "commands"),
    ("redis-8.10", "valkey-9.1", "commands"),
    ("valkey-9.1", "redis-8.10", "commands"),
    ("valkey-9.0", "valkey-9.1", "auto"),
    ("valkey-9.1", "valkey-9.1", "commands"),
];

/// Sources that tell expiries as what is left, and as a time; and how far ahead the gateway's clock is.
const CLOCKS: [(&str, &str, &str); 5] = [
    ("redis-2.8", "redis-7.0", "+7s"),
    ("redis-5.0", "redis-8.10", "-7s"),
    ("redis-6.2", "valkey-9.1", "+400s"),
    ("redis-7.0", "redis-7.0", "-7s"),
    ("", "", "+7s"),
];

fn pairs() -> VecDeque<(&'static str, &'static str)> {
    let there = servers(&ALL);
    if there == [""] {
        return [("", "")].into();
    }
    let mut pairs = Vec::new();
    for from in ALL {
        pairs.push((from, from));
        pairs.extend(TO.iter().filter(|to| **to != from).map(|to| (from, *to)));
    }
    pairs.extend(BACK);
    let chosen = std::env::var("CROSSFADE_PAIRS").unwrap_or_default();
    pairs.retain(|(from, to)| {
        let name = format!("{from} -> {to}");
        there.contains(from)
            && there.contains(to)
            && (chosen.is_empty() || chosen.split(',').any(|part| name.contains(part)))
    });
    pairs.into()
}

fn now_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as i64
}

/// Runs a test with clients that write while it looks.
fn block_on(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    runtime.block_on(test);
}

#[test]
fn h12_a_gateway_whose_clock_is_wrong() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let there = servers(&ALL);
    for (from, to, ahead) in CLOCKS {
        if there.contains(&from) && there.contains(&to) {
            block_on(clocks::run(from, to, ahead));
        }
    }
}

#[test]
fn h10_h11_every_version_to_every_other() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let pairs = Mutex::new(pairs());
    let wrong = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                loop {
                    let Some((from, to)) = pairs.lock().unwrap().pop_front() else { return };
                    let begun = Instant::now();
                    let result = catch_unwind(AssertUnwindSafe(|| pair::run(from, to)));
                    let seconds = begun.elapsed().as_secs_f64();
                    let result = result.unwrap_or_else(|panic| {
                        let text = panic.downcast_ref::<String>().cloned();
                        Err(text.unwrap_or_else(|| "it panicked".into()))
                    });
                    match result {
                        Ok(said) => eprintln!("{from} -> {to}: {seconds:.1} s{said}"),
                        Err(what) => {
                            eprintln!("{from} -> {to}: {seconds:.1} s, FAILED\n{what}");
                            wrong.lock().unwrap().push(format!("{from} -> {to}: {what}"));
                        }
                    }
                }
            });
        }
    });
    let wrong = wrong.into_inner().unwrap();
    assert!(wrong.is_empty(), "{} pairs failed:\n{}", wrong.len(), wrong.join("\n\n"));
}

#[test]
fn what_the_destination_lacks_stops_the_copy_or_is_dropped_and_named() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let there = servers(&ALL);
    for (from, to) in LACKING {
        if there.contains(&from) && there.contains(&to) {
            let said = pair::lacking(from, to).unwrap_or_else(|what| panic!("{from} -> {to}: {what}"));
            eprintln!("{from} -> {to}: {said}");
        }
    }
}

#[test]
fn h12_fields_whose_life_changes_while_the_mirror_is_behind() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let there = servers(&ALL);
    let (there, chosen) = (&there, std::env::var("CROSSFADE_PAIRS").unwrap_or_default());
    for some in FIELDS.chunks(AT_ONCE) {
        std::thread::scope(|scope| {
            for (from, to, method) in some {
                let name = format!("{from} -> {to}");
                let wanted = chosen.is_empty() || chosen.split(',').any(|part| name.contains(part));
                if wanted && there.contains(from) && there.contains(to) {
                    std::thread::Builder::new()
                        .name(format!("{name}, {method}"))
                        .spawn_scoped(scope, || block_on(fields::run(from, to, method)))
                        .unwrap();
                }
            }
        });
    }
}

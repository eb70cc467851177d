//! `[map]`: other names of keys and databases, in the copy, the mirror, the comparison, and over switches.

use crossfade::cli::demo::connection::Connection;
use serde_json::json;

use crate::support::{Lab, PATIENCE, Setup, oracle};

const MAP: &str = r#"
[map]
databases = { 0 = 2, 1 = 0, 2 = 1 }
prefixes = { "user:" = "people:", "user:tmp:" = "t:" }
"#;

/// What [`MAP`] makes of a key, by itself.
fn on_destination(db: u32, key: &[u8]) -> (u32, Vec<u8>) {
    let text = String::from_utf8(key.to_vec()).unwrap();
    let text = match (text.strip_prefix("user:tmp:"), text.strip_prefix("user:")) {
        (Some(rest), _) => format!("t:{rest}"),
        (None, Some(rest)) => format!("people:{rest}"),
        _ => text,
    };
    ([2, 0, 1].get(db as usize).copied().unwrap_or(db), text.into_bytes())
}

/// Every way in which a command can name a key or a database. `names`: those of the side that the client is on.
async fn write(client: &mut Connection, round: usize, names: impl Fn(u32, &str) -> (u32, String)) {
    let key = |name: &str| names(0, name).1;
    let db = |db: u32| names(db, "").0.to_string();
    let r = round.to_string();
    let (one, tmp, other) =
        (key(&format!("user:{r}")), key(&format!("user:tmp:{r}")), key(&format!("other:{r}")));
    let [list, set, hash, zset, stream, union, gone, geo] =
        ["user:l", "user:s", "user:h", "user:z", "user:x", "user:u", "user:gone", "user:geo"].map(key);
    client.must(&["SELECT", &db(0)]).await.unwrap();
    for line in [
        format!("SET {one} {r}"),
        format!("SET {tmp} {r} EX 100"),
        format!("SET {other} {one}"),
        format!("MSET {one}:m 1 {other}:m 2 {tmp}:m 3"),
        format!("EXPIRE {one}:m 1000"),
        format!("RPUSH {list} {r} {one}"),
        format!("LMOVE {list} {other}:l LEFT RIGHT"),
        format!("SADD {set} {r} user:{r}"),
        format!("HSET {hash} user:{r} {r}"),
        format!("ZADD {zset} {r} user:{r}"),
        format!("ZRANGESTORE {tmp}:z {zset} 0 3"),
        format!("SUNIONSTORE {union} {set} {other}:none"),
        format!("XADD {stream} * user:f {r}"),
        format!("BITOP NOT {one}:n {one}"),
        format!("SORT {list} ALPHA STORE {union}:sorted"),
        format!("GEOADD {geo} 13.3 38.1 user:{r}"),
        format!("GEOSEARCHSTORE {tmp}:near {geo} FROMLONLAT 13 38 BYRADIUS 200 km"),
        format!("SET {gone} {r}"),
        format!("RENAME {gone} {tmp}:back"),
        format!("COPY {one} {tmp}:copy"),
        format!("COPY {one} {one} DB {} REPLACE", db(1)),
        format!("DEL {one}:m {tmp}:copy"),
        format!("PFADD {union}:pf {r}"),
    ] {
        client.must(&line.split(' ').collect::<Vec<_>>()).await.unwrap();
    }
    // Refused where it is there already; databases change places below.
    client.call(&["XGROUP", "CREATE", &stream, "user:group", "0"]).await.unwrap();
    client.must(&["XREADGROUP", "GROUP", "user:group", "c", "STREAMS", &stream, ">"]).await.unwrap();
    let script = "redis.call('incr',KEYS[1])redis.call('append',KEYS[2],ARGV[1])";
    client.must(&["EVAL", script, "2", &key("user:counter"), &key("user:text"), &r]).await.unwrap();
    client.must(&["MULTI"]).await.unwrap();
    client.must(&["INCR", &key("user:tx")]).await.unwrap();
    client.must(&["SELECT", &db(1)]).await.unwrap();
    client.must(&["SET", &key(&format!("user:tx:{r}")), &r, "PX", "500000"]).await.unwrap();
    client.must(&["SET", &key(&format!("user:moved:{r}")), &r]).await.unwrap();
    client.must(&["EXEC"]).await.unwrap();
    client.must(&["MOVE", &key(&format!("user:moved:{r}")), &db(3)]).await.unwrap();
    client.must(&["SELECT", &db(3)]).await.unwrap();
    client.must(&["INCR", &key("user:three")]).await.unwrap();
    client.must(&["SELECT", &db(2)]).await.unwrap();
    client.must(&["SET", &key(&format!("user:tmp:two:{r}")), &r]).await.unwrap();
    if round % 7 == 6 {
        client.must(&["SWAPDB", &db(0), &db(2)]).await.unwrap();
    }
    if round == 30 {
        client.must(&["FLUSHDB"]).await.unwrap();
    }
}

fn source(db: u32, key: &str) -> (u32, String) {
    (db, key.to_owned())
}

fn destination(db: u32, key: &str) -> (u32, String) {
    let (db, key) = on_destination(db, key.as_bytes());
    (db, String::from_utf8(key).unwrap())
}

/// Asserts that the destination holds what the source holds, under its other names, and nothing else; by the oracle and by
/// the gateway's own comparison.
async fn same(lab: &mut Lab) {
    lab.in_step().await;
    let differences = oracle::compare_renamed(&lab.source, &lab.destination, on_destination).await;
    assert!(differences.is_empty(), "{} differences: {differences:#?}", differences.len());
    let report = lab.gateway.order("verify", &json!({})).await.unwrap();
    assert_eq!(report["difference_count"], 0, "{report}");
    assert!(report["compared"].as_u64() > Some(100) && report["keys_a"] == report["keys_b"], "{report}");
}

async fn there_and_back(method: &str) {
    let mut lab = Setup::new().config(&format!("{MAP}[snapshot]\nmethod = \"{method}\"\n")).build().await;
    let mut client = Connection::open(&lab.gateway.address()).await.unwrap();
    for round in 0..40 {
        write(&mut client, round, source).await;
    }
    let big = "x".repeat(3 << 20);
    client.must(&["SET", "user:big", &big]).await.unwrap();
    lab.gateway.begin().await.unwrap();
    for round in 40..80 {
        write(&mut client, round, source).await;
    }
    let status = lab.gateway.wait_phase("mirroring", PATIENCE).await.unwrap();
    assert_eq!(status["snapshot"]["method"] == "replication", method == "auto", "{status}");
    for round in 80..90 {
        write(&mut client, round, source).await;
    }
    same(&mut lab).await;

    // The comparison is not blind, and names what differs as the source does.
    let mut there = lab.destination.connect().await.unwrap();
    there.must(&["SELECT", "3"]).await.unwrap();
    there.must(&["INCR", "people:three"]).await.unwrap();
    there.must(&["SET", "people:more", "1"]).await.unwrap();
    let report = lab.gateway.order("verify", &json!({"rounds": 1})).await.unwrap();
    let mut found: Vec<_> = report["differences"].as_array().unwrap().iter().map(|one| &one["key"]).collect();
    found.sort_by_key(|key| key.to_string());
    assert_eq!(found, ["user:more", "user:three"], "{report}");
    there.must(&["DECR", "people:three"]).await.unwrap();
    there.must(&["DEL", "people:more"]).await.unwrap();
    lab.expect_log("somebody writes to the destination without the gateway");
    // A connection that wrote there keeps a cutover from being begun.
    drop(there);
    same(&mut lab).await;

    let refused = lab.gateway.order("cutover", &json!({})).await.unwrap_err().to_string();
    assert!(refused.contains("[map]") && refused.contains("--clients-know-the-map"), "{refused}");
    let entry = lab.gateway.order("cutover", &json!({"clients_know_the_map": true})).await.unwrap();
    assert_eq!(entry["outcome"], "committed", "{entry}");
    for round in 90..110 {
        write(&mut client, round, destination).await;
    }
    lab.in_step().await;
    // Expiries of the passive side are padded; the oracle takes that off on either side.
    let differences = oracle::compare_renamed(&lab.source, &lab.destination, on_destination).await;
    assert!(differences.is_empty(), "{} differences: {differences:#?}", differences.len());
    let report = lab.gateway.order("verify", &json!({})).await.unwrap();
    assert_eq!(report["difference_count"], 0, "{report}");
    lab.rollback().await;
    for round in 110..120 {
        write(&mut client, round, source).await;
    }
    same(&mut lab).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn names_there_and_back_as_a_replica() {
    there_and_back("auto").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn names_there_and_back_by_commands() {
    there_and_back("commands").await;
}

/// Two keys never become one: the copy, or the mirror, stops at the first that would, and names both.
#[tokio::test(flavor = "multi_thread")]
async fn two_keys_never_get_one_name() {
    let mut lab = Setup::new().config(MAP).build().await;
    for text in ["refuses a command", "the mirror has stopped", "the mirror stopped"] {
        lab.expect_log(text);
    }
    let failed = |status: &serde_json::Value| status["phase"] == "failed";
    lab.source.call(&["SET", "user:1", "1"]).await.unwrap();
    lab.source.call(&["SET", "people:1", "other"]).await.unwrap();
    lab.gateway.begin().await.unwrap();
    let status = lab.gateway.wait_until("the refusal", PATIENCE, failed).await.unwrap();
    let message = status["error"]["message"].as_str().unwrap();
    assert!(message.contains("\"people:1\"") && message.contains("\"user:1\""), "{status}");
    lab.source.call(&["DEL", "people:1"]).await.unwrap();
    lab.gateway.order("abort", &json!({})).await.unwrap();
    lab.gateway.wait_phase("finished", PATIENCE).await.unwrap();
    lab.destination.call(&["FLUSHALL"]).await.unwrap();
    lab.mirror().await;

    lab.source.call(&["SET", "people:2", "other"]).await.unwrap();
    lab.source.call(&["SET", "user:2", "2"]).await.unwrap();
    let status = lab.gateway.wait_until("the refusal", PATIENCE, failed).await.unwrap();
    let message = status["error"]["message"].as_str().unwrap();
    assert!(message.contains("SET") && message.contains("\"people:2\""), "{status}");
    lab.gateway.order("resume", &json!({"skip_failed": true})).await.unwrap();
    lab.gateway.wait_phase("mirroring", PATIENCE).await.unwrap();
    lab.in_step().await;
    let mut there = lab.destination.connect().await.unwrap();
    there.must(&["SELECT", "2"]).await.unwrap();
    for (key, value) in [("people:1", 1), ("people:2", 2)] {
        assert_eq!(there.must(&["GET", key]).await.unwrap().number(), Some(value), "{key}");
    }
    let report = lab.gateway.order("verify", &json!({"rounds": 1, "repair": true})).await.unwrap();
    let differences = report["differences"].as_array().unwrap();
    assert_eq!(
        (differences.len(), &report["repaired"], &report["left"]),
        (1, &json!(0), &json!(1)),
        "{report}"
    );
    assert_eq!(differences[0]["key"], "people:2", "{report}");
    assert_eq!(lab.gateway.status().await.unwrap()["phase"], "mirroring");
}

/// Several applications on one destination: each of their keys below a prefix, and what is not ours is nobody's loss.
#[tokio::test(flavor = "multi_thread")]
async fn a_prefix_of_its_own_on_a_shared_destination() {
    let config = "[map]\nprefixes = { \"\" = \"shop:\" }\n[snapshot]\non_existing_key = \"keep\"\n";
    let mut lab = Setup::new().config(config).build().await;
    lab.destination.call(&["SET", "bank:1", "theirs"]).await.unwrap();
    lab.source.call(&["SET", "bank:1", "ours", "EX", "1000"]).await.unwrap();
    lab.destination.call(&["SET", "bank:soon", "theirs", "EX", "5000"]).await.unwrap();
    lab.mirror().await;
    lab.source.call(&["SET", "bank:2", "ours"]).await.unwrap();
    lab.in_step().await;
    let report = lab.gateway.order("verify", &json!({})).await.unwrap();
    assert_eq!((&report["difference_count"], &report["keys_b"]), (&json!(0), &json!(2)), "{report}");
    lab.gateway.order("cutover", &json!({"clients_know_the_map": true})).await.unwrap();
    let mut client = Connection::open(&lab.gateway.address()).await.unwrap();
    client.must(&["SET", "bank:3", "theirs"]).await.unwrap();
    client.must(&["APPEND", "shop:bank:2", "!"]).await.unwrap();
    client.must(&["DEL", "shop:bank:1", "bank:1"]).await.unwrap();
    lab.rollback().await;
    let theirs = lab.destination.call(&["TTL", "bank:soon"]).await.unwrap().number().unwrap();
    assert!((4900..=5000).contains(&theirs), "their expiries are not ours to pad: {theirs}");
    for (key, value) in [("bank:1", None), ("bank:2", Some("ours!")), ("bank:3", None), ("shop:bank:2", None)]
    {
        let found = lab.source.call(&["GET", key]).await.unwrap();
        assert_eq!(found.bytes(), value.map(str::as_bytes), "{key}");
    }
    assert_eq!(lab.destination.call(&["GET", "bank:3"]).await.unwrap().brief(), "theirs");
    // Nothing that empties the source may empty what others have there.
    for text in ["refuses a command", "the mirror has stopped", "the mirror stopped"] {
        lab.expect_log(text);
    }
    lab.source.call(&["FLUSHDB"]).await.unwrap();
    let failed = |status: &serde_json::Value| status["phase"] == "failed";
    let status = lab.gateway.wait_until("the refusal", PATIENCE, failed).await.unwrap();
    let error = &status["error"];
    assert!(error["message"].as_str().unwrap().contains("FLUSHDB") && error["side"] == "gateway", "{status}");
    assert_eq!(lab.destination.call(&["GET", "bank:3"]).await.unwrap().brief(), "theirs");
}

/// Databases that are not exchanged: where the gateway's own keys live, nothing of the other side's may be.
#[tokio::test(flavor = "multi_thread")]
async fn databases_that_leave_a_gap() {
    for (from, to) in [(0, 3), (1, 0)] {
        let mut lab = Setup::new().config(&format!("[map]\ndatabases = {{ {from} = {to} }}\n")).build().await;
        let on_b = |db: u32, key: &[u8]| (if db == from { to } else { db }, key.to_vec());
        let mut client = Connection::open(&lab.gateway.address()).await.unwrap();
        client.must(&["SELECT", &from.to_string()]).await.unwrap();
        client.must(&["SET", "k", "1", "EX", "5000"]).await.unwrap();
        lab.mirror().await;
        // What belongs to no database comes from one that cannot be sent there.
        let mut other = Connection::open(&lab.gateway.address()).await.unwrap();
        other.must(&["PUBLISH", "channel", "x"]).await.unwrap();
        other
            .must(&["FUNCTION", "LOAD", "#!lua name=f\nredis.register_function('f',function() end)"])
            .await
            .unwrap();
        client.must(&["INCR", "k"]).await.unwrap();
        lab.in_step().await;
        let report = lab.gateway.order("verify", &json!({})).await.unwrap();
        assert_eq!((&report["difference_count"], &report["compared"]), (&json!(0), &json!(1)), "{report}");
        lab.gateway.order("cutover", &json!({"clients_know_the_map": true})).await.unwrap();
        client.must(&["SELECT", &to.to_string()]).await.unwrap();
        client.must(&["INCR", "k"]).await.unwrap();
        other.must(&["PUBLISH", "channel", "x"]).await.unwrap();
        lab.in_step().await;
        let report = lab.gateway.order("verify", &json!({})).await.unwrap();
        assert_eq!((&report["difference_count"], &report["compared"]), (&json!(0), &json!(1)), "{report}");
        let differences = oracle::compare_renamed(&lab.source, &lab.destination, on_b).await;
        assert!(differences.is_empty(), "{differences:#?}");
        lab.rollback().await;
    }
}

/// Small letters: a copy that is kept in step, without a switch, since nothing leads back.
#[tokio::test(flavor = "multi_thread")]
async fn letters_have_no_way_back() {
    let mut lab = Setup::new().config("[map]\nkey_case = \"lower\"\n").build().await;
    lab.source.call(&["SET", "User:1", "One"]).await.unwrap();
    let status = lab.mirror().await;
    assert_eq!(
        status["snapshot"]["method"], "commands",
        "two keys of one name would end a replica: {status}"
    );
    lab.source.call(&["RPUSH", "User:L", "Two"]).await.unwrap();
    lab.source.call(&["SET", "User:e", "Three", "EX", "1000"]).await.unwrap();
    lab.in_step().await;
    let lower = |db: u32, key: &[u8]| (db, key.to_ascii_lowercase());
    let differences = oracle::compare_renamed(&lab.source, &lab.destination, lower).await;
    assert!(differences.is_empty(), "{differences:#?}");
    let report = lab.gateway.order("verify", &json!({})).await.unwrap();
    assert_eq!((&report["difference_count"], &report["compared"]), (&json!(0), &json!(3)), "{report}");
    let known = json!({"clients_know_the_map": true});
    let refused = lab.gateway.order("cutover", &known).await.unwrap_err().to_string();
    assert!(refused.contains("key_case") && refused.contains("no way back"), "{refused}");
    lab.gateway.order("finish", &json!({})).await.unwrap();
    lab.gateway.wait_phase("finished", PATIENCE).await.unwrap();
    let left = lab.destination.call(&["TTL", "user:e"]).await.unwrap().number().unwrap();
    assert!((900..=1000).contains(&left), "{left}");
}

/// A gateway that comes back with another choice would continue a copy that was begun by the first one.
#[tokio::test(flavor = "multi_thread")]
async fn another_choice_in_the_middle_is_refused() {
    let mut lab = Setup::new().config(MAP).build().await;
    lab.source.call(&["SET", "user:1", "1"]).await.unwrap();
    lab.mirror().await;
    lab.gateway.kill();
    let file = lab.path().join("crossfade.toml");
    std::fs::write(&file, MAP.replace("people", "folk")).unwrap();
    let refused = lab.gateway.restart().await.unwrap_err().to_string();
    assert!(refused.contains("[map]") && refused.contains("people:"), "{refused}");
    std::fs::write(&file, MAP).unwrap();
    lab.gateway.restart().await.unwrap();
    lab.gateway.wait_phase("mirroring", PATIENCE).await.unwrap();
    lab.source.call(&["INCR", "user:1"]).await.unwrap();
    lab.in_step().await;
    let differences = oracle::compare_renamed(&lab.source, &lab.destination, on_destination).await;
    assert!(differences.is_empty(), "{differences:#?}");
}

//! `[filter]`: what is outside stays where it is, on either side, in the copy, the mirror, and over switches.

use crossfade::cli::demo::connection::{Connection, Reply};
use crossfade::cli::demo::servers::Server;

use crate::support::{Lab, PATIENCE, Setup};

/// All keys of a db with their values.
async fn content(server: &Server, db: u32, inside: impl Fn(&str) -> bool) -> Vec<(String, String)> {
    let mut client = server.connect().await.unwrap();
    client.must(&["SELECT", &db.to_string()]).await.unwrap();
    let mut found = Vec::new();
    for key in client.must(&["KEYS", "*"]).await.unwrap().items() {
        let key = key.brief();
        if !key.starts_with("crossfade:") && inside(&key) {
            let read = match client.must(&["TYPE", &key]).await.unwrap().brief().as_str() {
                "string" => vec!["GET", &key],
                "list" => vec!["LRANGE", &key, "0", "-1"],
                "set" => vec!["SMEMBERS", &key],
                other => panic!("{key} is a {other}"),
            };
            let value = client.must(&read).await.unwrap();
            let mut items: Vec<String> = value.items().iter().map(Reply::brief).collect();
            if read[0] == "SMEMBERS" {
                items.sort();
            }
            found.push((key.clone(), if read[0] == "GET" { value.brief() } else { items.join(" ") }));
        }
    }
    found.sort();
    found
}

/// Asserts that of db 0 and 3 the destination holds what the source holds inside the filter, and nothing else.
async fn same_inside(lab: &mut Lab) {
    lab.in_step().await;
    let inside = |key: &str| key.starts_with("user:") && !key.starts_with("user:tmp:");
    for db in [0, 3] {
        let expected = content(&lab.source, db, inside).await;
        assert!(!expected.is_empty());
        let found = content(&lab.destination, db, |_| true).await;
        let differ: Vec<_> = expected.iter().filter(|one| !found.contains(one)).collect();
        let more: Vec<_> = found.iter().filter(|one| !expected.contains(one)).collect();
        assert!(differ.is_empty() && more.is_empty(), "db {db}: {differ:?}, the destination has {more:?}");
    }
    assert!(content(&lab.destination, 1, |_| true).await.is_empty());
}

/// Commands on both sides of the filter, and across it.
async fn write(client: &mut Connection, round: usize) {
    let lines = [
        format!("SET user:{round} {round}"),
        format!("SET other:{round} {round}"),
        format!("SET user:tmp:{round} {round} EX 1000"),
        format!("MSET user:m:{round} 1 other:m:{round} 2"),
        format!("RPUSH other:list {round}"),
        "LMOVE other:list user:list LEFT RIGHT".to_owned(),
        format!("RPUSH user:list after:{round}"),
        format!("SADD other:set {round}"),
        format!("SADD user:set u:{round}"),
        format!("SUNIONSTORE user:union:{} other:set user:set", round % 3),
        format!("SADD user:union:{} more", round % 3),
        "INCR user:counter".to_owned(),
        format!("SET other:renamed {round}"),
        "RENAME other:renamed user:renamed".to_owned(),
        format!("APPEND user:renamed :{round}"),
        format!("SET user:away {round}"),
        "RENAME user:away other:away".to_owned(),
        format!("DEL user:{} other:{}", round / 2, round / 2),
        "EVAL redis.call('incr',KEYS[1])redis.call('incr',KEYS[2]) 2 user:script other:script".to_owned(),
        format!("PUBLISH user:channel {round}"),
    ];
    for line in &lines {
        client.must(&line.split(' ').collect::<Vec<_>>()).await.unwrap();
    }
    client.must(&["MULTI"]).await.unwrap();
    for line in [
        "INCR user:tx".to_owned(),
        "COPY other:set user:copied REPLACE".to_owned(),
        "INCR other:tx".to_owned(),
    ] {
        client.must(&line.split(' ').collect::<Vec<_>>()).await.unwrap();
    }
    client.must(&["EXEC"]).await.unwrap();
    for db in ["1", "3"] {
        client.must(&["SELECT", db]).await.unwrap();
        client.must(&["INCR", "user:here"]).await.unwrap();
        client.must(&["SET", &format!("user:moved:{round}"), "v"]).await.unwrap();
    }
    client.must(&["MOVE", &format!("user:moved:{round}"), "1"]).await.unwrap_or_else(|_| panic!("MOVE"));
    client.must(&["SELECT", "0"]).await.unwrap();
}

const FILTER: &str =
    "[filter]\ninclude_keys = [\"user:*\"]\nexclude_keys = [\"regex:^user:tmp:\"]\ndatabases = [0, 3]\n";

async fn across(method: &str) {
    let mut lab = Setup::new().config(&format!("{FILTER}[snapshot]\nmethod = \"{method}\"\n")).build().await;
    let mut client = Connection::open(&lab.gateway.address()).await.unwrap();
    for round in 0..20 {
        write(&mut client, round).await;
    }
    lab.gateway.begin().await.unwrap();
    for round in 20..60 {
        write(&mut client, round).await;
    }
    let status = lab.gateway.wait_phase("mirroring", PATIENCE).await.unwrap();
    assert_eq!(status["snapshot"]["method"] == "replication", method == "auto", "{status}");
    for round in 60..70 {
        write(&mut client, round).await;
    }
    same_inside(&mut lab).await;
    let report = lab.gateway.order("verify", &serde_json::json!({})).await.unwrap();
    assert_eq!(report["difference_count"], 0, "{report}");
    assert!(report["compared"].as_u64() > Some(10), "{report}");
    lab.source.call(&["SELECT", "0"]).await.unwrap();
    // The source's own, and the destination's own after the switch.
    let outside = |key: &str| !key.starts_with("user:") || key.starts_with("user:tmp:");
    let before = content(&lab.source, 0, outside).await;

    let refused = lab.gateway.order("cutover", &serde_json::json!({})).await.unwrap_err().to_string();
    assert!(refused.contains("[filter]") && refused.contains("--clients-know-the-map"), "{refused}");
    let known = serde_json::json!({"clients_know_the_map": true});
    let entry = lab.gateway.order("cutover", &known).await.unwrap();
    assert_eq!(entry["outcome"], "committed", "{entry}");
    for n in 0..10 {
        for line in [format!("SET user:late:{n} 1"), format!("SET other:{n} 2"), "INCR other:late".to_owned()]
        {
            client.must(&line.split(' ').collect::<Vec<_>>()).await.unwrap();
        }
    }
    lab.in_step().await;
    assert_eq!(content(&lab.source, 0, outside).await, before, "what is outside is the source's own");
    lab.rollback().await;
    assert_eq!(lab.source.call(&["GET", "user:late:9"]).await.unwrap().number(), Some(1));
    assert_eq!(lab.destination.call(&["GET", "other:late"]).await.unwrap().number(), Some(10));
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_and_databases_as_a_replica() {
    across("auto").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_and_databases_by_commands() {
    across("commands").await;
}

/// Where the destination has keys of its own, nothing may empty it.
#[tokio::test(flavor = "multi_thread")]
async fn a_flush_beside_keys_of_the_destination_stops_and_can_be_left_out() {
    let config = format!("{FILTER}[snapshot]\non_existing_key = \"keep\"\n");
    let mut lab = Setup::new().config(&config).build().await;
    lab.expect_log("refuses a command");
    lab.expect_log("the mirror has stopped");
    lab.expect_log("the mirror stopped");
    lab.destination.call(&["SET", "own", "1"]).await.unwrap();
    lab.source.call(&["SET", "user:1", "1"]).await.unwrap();
    lab.mirror().await;
    lab.source.call(&["FLUSHALL"]).await.unwrap();
    lab.source.call(&["SET", "user:2", "2"]).await.unwrap();
    let failed = |status: &serde_json::Value| status["phase"] == "failed";
    let status = lab.gateway.wait_until("the refusal", PATIENCE, failed).await.unwrap();
    let message = status["error"]["message"].as_str().unwrap();
    assert!(message.contains("FLUSHALL") && message.contains("[filter]"), "{status}");
    lab.gateway.order("resume", &serde_json::json!({"skip_failed": true})).await.unwrap();
    lab.gateway.wait_phase("mirroring", PATIENCE).await.unwrap();
    lab.in_step().await;
    for (key, value) in [("own", 1), ("user:1", 1), ("user:2", 2)] {
        assert_eq!(lab.destination.call(&["GET", key]).await.unwrap().number(), Some(value), "{key}");
    }
}

/// A key by its type; keys of other types are not there.
async fn of_types(server: &Server, types: &[&str]) -> Vec<String> {
    let mut client = server.connect().await.unwrap();
    let mut found = Vec::new();
    for key in client.must(&["KEYS", "*"]).await.unwrap().items() {
        let key = key.brief();
        let kind = client.must(&["TYPE", &key]).await.unwrap().brief();
        if !key.starts_with("crossfade:") && types.contains(&kind.as_str()) {
            let value = client.must(&["DEBUG", "DIGEST-VALUE", &key]).await.unwrap();
            found.push(format!("{key} {kind} {}", value.items()[0].brief()));
        }
    }
    found.sort();
    found
}

/// Keys of all types, and keys that change theirs, in every way in which that can be done.
async fn write_types(client: &mut Connection, round: usize) {
    let k = round % 12;
    let lines = [
        format!("SET s:{round} {round}"),
        format!("APPEND s:{k} x"),
        format!("RPUSH l:{k} {round}"),
        format!("HSET h:{k} f {round}"),
        format!("SADD set:{k} {round}"),
        format!("ZADD z:{k} {round} m:{round}"),
        format!("XADD x:{k} * f {round}"),
        format!("PEXPIRE h:{k} 900000"),
        // From inside to outside, and back.
        format!("DEL turns:{k}"),
        format!("HSET turns:{k} f 1"),
        format!("SET turns:{k} outside"),
        format!("SET over:{k} outside"),
        format!("DEL over:{k}"),
        format!("RPUSH over:{k} a {round}"),
        format!("RPUSH from:{k} a"),
        format!("SET to:{k} outside"),
        format!("RENAME from:{k} to:{k}"),
        format!("SET from:{k} outside"),
        format!("DEL into:{k}"),
        format!("RPUSH into:{k} a"),
        format!("RENAME from:{k} into:{k}"),
        format!("COPY h:{k} copied:{k} REPLACE"),
        format!("COPY s:{k} h:{} REPLACE", (k + 5) % 12),
        format!("DEL h:{}", (k + 5) % 12),
        format!("SORT l:{k} ALPHA STORE sorted:{k}"),
        format!("SUNIONSTORE sorted:{} set:{k}", (k + 3) % 12),
        format!("ZUNIONSTORE z:all 2 z:{k} set:{k}"),
        format!("MSET over:m:{k} 1 l:{} 2", (k + 7) % 12),
        format!("DEL l:{}", (k + 7) % 12),
        format!("LMOVE l:{k} l:other LEFT RIGHT"),
    ];
    for line in &lines {
        client.must(&line.split(' ').collect::<Vec<_>>()).await.unwrap();
    }
    let dump = client.must(&["DUMP", &format!("h:{k}")]).await.unwrap();
    let restored = format!("restored:{k}");
    let args = [b"RESTORE", restored.as_bytes(), b"0", dump.bytes().unwrap(), b"REPLACE"];
    client.must(&args).await.unwrap();
}

async fn types(method: &str) {
    let config =
        format!("[filter]\ntypes = [\"list\", \"hash\", \"stream\"]\n[snapshot]\nmethod = \"{method}\"\n");
    let mut lab = Setup::new().config(&config).build().await;
    let mut client = Connection::open(&lab.gateway.address()).await.unwrap();
    for round in 0..30 {
        write_types(&mut client, round).await;
    }
    lab.gateway.begin().await.unwrap();
    for round in 30..60 {
        write_types(&mut client, round).await;
    }
    let status = lab.gateway.wait_phase("mirroring", PATIENCE).await.unwrap();
    assert_eq!(status["snapshot"]["method"] == "replication", method == "auto", "{status}");
    for round in 60..75 {
        write_types(&mut client, round).await;
    }
    lab.in_step().await;
    let (inside, all) = (["list", "hash", "stream"], ["string", "list", "set", "zset", "hash", "stream"]);
    let expected = of_types(&lab.source, &inside).await;
    assert!(expected.len() > 60, "{}", expected.len());
    assert_eq!(of_types(&lab.destination, &all).await, expected);
    let report = lab.gateway.order("verify", &serde_json::json!({})).await.unwrap();
    assert_eq!(report["difference_count"], 0, "{report}");
    let others = of_types(&lab.source, &["string", "set", "zset"]).await;

    let known = serde_json::json!({"clients_know_the_map": true});
    lab.gateway.order("cutover", &known).await.unwrap();
    for n in 0..20 {
        for line in
            [format!("SET late:{n} 1"), format!("RPUSH late:l:{n} 2"), format!("HSET h:{} g 1", n % 12)]
        {
            client.must(&line.split(' ').collect::<Vec<_>>()).await.unwrap();
        }
    }
    lab.in_step().await;
    assert_eq!(of_types(&lab.source, &["string", "set", "zset"]).await, others, "these are the source's own");
    assert_eq!(of_types(&lab.source, &inside).await, of_types(&lab.destination, &inside).await);
    lab.rollback().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn types_as_a_replica() {
    types("auto").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn types_by_commands() {
    types("commands").await;
}

/// A key of the source that changes its type by a command which asks for the key that was there.
#[tokio::test(flavor = "multi_thread")]
async fn a_string_in_the_place_of_another_type_keeps_its_expiry() {
    let config = "[filter]\ntypes = [\"string\"]\n";
    let mut lab = Setup::new().config(config).build().await;
    let mut client = Connection::open(&lab.gateway.address()).await.unwrap();
    client.must(&["RPUSH", "before", "a"]).await.unwrap();
    lab.gateway.begin().await.unwrap();
    lab.gateway.wait_phase("mirroring", PATIENCE).await.unwrap();
    for line in [
        "SET before v XX",
        "RPUSH xx a",
        "SET xx v XX",
        "RPUSH ttl a",
        "PEXPIRE ttl 900000",
        "SET ttl v KEEPTTL",
        "SET float 1",
        "INCRBYFLOAT float 1.5",
    ] {
        client.must(&line.split(' ').collect::<Vec<_>>()).await.unwrap();
    }
    lab.in_step().await;
    let expected = of_types(&lab.source, &["string"]).await;
    assert_eq!(expected.len(), 4);
    assert_eq!(of_types(&lab.destination, &["string"]).await, expected);
    let left = lab.destination.call(&["PTTL", "ttl"]).await.unwrap().number().unwrap();
    assert!(left > 0, "{left}");
    let report = lab.gateway.order("verify", &serde_json::json!({})).await.unwrap();
    assert_eq!(report["difference_count"], 0, "{report}");
}

/// Other types are not compared, and not counted.
#[tokio::test(flavor = "multi_thread")]
async fn only_keys_of_the_types_are_counted_as_compared() {
    let mut lab = Setup::new().config("[filter]\ntypes = [\"list\"]\n").build().await;
    let mut client = Connection::open(&lab.gateway.address()).await.unwrap();
    for n in 0..40 {
        client.must(&["SET", &format!("s:{n}"), "v"]).await.unwrap();
        if n < 7 {
            client.must(&["RPUSH", &format!("l:{n}"), "v"]).await.unwrap();
        }
    }
    lab.gateway.begin().await.unwrap();
    lab.gateway.wait_phase("mirroring", PATIENCE).await.unwrap();
    lab.in_step().await;
    let report = lab.gateway.order("verify", &serde_json::json!({})).await.unwrap();
    assert_eq!((&report["difference_count"], &report["compared"]), (&0.into(), &7.into()), "{report}");
}

/// What the source has of other types is its own also after a switch: its expiries are not touched.
#[tokio::test(flavor = "multi_thread")]
async fn expiries_of_other_types_stay_as_they_are_on_the_way_back() {
    let mut lab = Setup::new().config("[filter]\ntypes = [\"list\"]\n").build().await;
    let mut client = Connection::open(&lab.gateway.address()).await.unwrap();
    for n in 0..20 {
        client.must(&["SET", &format!("s:{n}"), "v", "PX", "900000"]).await.unwrap();
        client.must(&["RPUSH", &format!("l:{n}"), "v"]).await.unwrap();
    }
    lab.gateway.begin().await.unwrap();
    lab.gateway.wait_phase("mirroring", PATIENCE).await.unwrap();
    let known = serde_json::json!({"clients_know_the_map": true});
    lab.gateway.order("cutover", &known).await.unwrap();
    lab.in_step().await;
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(3);
    while std::time::Instant::now() < deadline {
        let left = lab.source.call(&["PTTL", "s:3"]).await.unwrap().number().unwrap();
        assert!((1..=900_000).contains(&left), "{left}");
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    lab.rollback().await;
}

/// What is not copied may be of any size.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_left_out_is_not_read() {
    let mut lab = Setup::new().config("[filter]\ntypes = [\"list\"]\n").build().await;
    let mut client = Connection::open(&lab.gateway.address()).await.unwrap();
    lab.gateway.begin().await.unwrap();
    lab.gateway.wait_phase("mirroring", PATIENCE).await.unwrap();
    // Above what is copied anew.
    client.must(&["SETRANGE", "large", "140000000", "x"]).await.unwrap();
    for line in ["RPUSH l a", "RPUSH there a", "RENAME large there", "RENAME l moved"] {
        client.must(&line.split(' ').collect::<Vec<_>>()).await.unwrap();
    }
    lab.in_step().await;
    let expected = of_types(&lab.source, &["list"]).await;
    assert_eq!(expected.len(), 1, "`there` is a string now");
    assert_eq!(of_types(&lab.destination, &["string", "list"]).await, expected);
}

/// Names are not kept apart by type: what the source keeps to itself survives what clients do under its name on the destination.
#[tokio::test(flavor = "multi_thread")]
async fn what_the_source_keeps_to_itself_is_not_overwritten_on_the_way_back() {
    let mut lab = Setup::new().config("[filter]\ntypes = [\"string\", \"set\"]\n").build().await;
    lab.expect_log("refuses a command");
    lab.expect_log("the mirror has stopped");
    lab.expect_log("the mirror stopped");
    let mut client = Connection::open(&lab.gateway.address()).await.unwrap();
    let own = ["list", "hash", "zset", "stream"];
    for line in
        ["RPUSH a 1", "HSET b f 1", "ZADD c 1 m", "XADD d 1-1 f v", "RPUSH e 1", "SET ours 1", "SADD s 1"]
    {
        client.must(&line.split(' ').collect::<Vec<_>>()).await.unwrap();
    }
    let kept = of_types(&lab.source, &own).await;
    assert_eq!(kept.len(), 5);
    lab.gateway.begin().await.unwrap();
    lab.gateway.wait_phase("mirroring", PATIENCE).await.unwrap();
    lab.gateway.order("cutover", &serde_json::json!({"clients_know_the_map": true})).await.unwrap();

    // Of types that are left out, on both sides: nothing reaches the source.
    for line in
        ["RPUSH a 2", "DEL a", "HSET b g 2", "PEXPIRE b 50", "RPUSH fresh 1", "RENAME fresh d", "DEL d"]
    {
        client.must(&line.split(' ').collect::<Vec<_>>()).await.unwrap();
    }
    for line in ["APPEND ours 2", "MSET m:1 1 m:2 2", "DEL m:1 none", "SET px v PX 900000", "SUNIONSTORE t s"]
    {
        client.must(&line.split(' ').collect::<Vec<_>>()).await.unwrap();
    }
    lab.in_step().await;
    let ours = of_types(&lab.destination, &["string", "set"]).await;
    assert_eq!(ours.len(), 5, "{ours:?}");
    assert_eq!(of_types(&lab.source, &["string", "set"]).await, ours);
    assert_eq!(of_types(&lab.source, &own).await, kept);

    // Of a type that is copied: there is no right answer, and a person gives it.
    let failed = |status: &serde_json::Value| status["phase"] == "failed";
    for line in ["SET a v", "MSET c v ours 3", "SUNIONSTORE b s", "COPY ours e"] {
        client.must(&line.split(' ').collect::<Vec<_>>()).await.unwrap();
        let status = lab.gateway.wait_until("the refusal", PATIENCE, failed).await.unwrap();
        let message = status["error"]["message"].as_str().unwrap();
        assert!(message.contains("not part of the copy"), "{line}: {status}");
        lab.gateway.order("resume", &serde_json::json!({"skip_failed": true})).await.unwrap();
        lab.gateway.wait_phase("cut-over", PATIENCE).await.unwrap();
    }
    for line in ["PEXPIRE a 50", "PERSIST a", "DEL c", "DEL b", "DEL a"] {
        client.call(&line.split(' ').collect::<Vec<_>>()).await.unwrap();
    }
    lab.in_step().await;
    assert_eq!(of_types(&lab.source, &own).await, kept);
    lab.rollback().await;
    assert_eq!(of_types(&lab.source, &own).await, kept);
    assert_eq!(client.must(&["LRANGE", "a", "0", "-1"]).await.unwrap().items().len(), 1);
}

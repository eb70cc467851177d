//! H07: scripts, functions, and commands that speak of the server, as the server itself answers them.

use std::time::Duration;

use crossfade::cli::demo::connection::{Connection, Reply};

use super::h06_sessions::{same, transcript};
use crate::support::{Front, eventually, since};

const LIBRARY: &str = "#!lua name=lib\n\
    redis.register_function('put', function(keys, args) return redis.call('SET', keys[1], args[1]) end)\n\
    redis.register_function{function_name='get', callback=function(keys) return redis.call('GET', keys[1]) end, \
    flags={'no-writes'}}";

/// Runs the same commands at the server and through the gateway and compares the replies; words are given one by one.
async fn alike(front: &Front, script: &[&[&str]]) {
    let mut replies = Vec::new();
    for address in [front.server.address(), front.address()] {
        for cleared in [&["FLUSHALL"][..], &["SCRIPT", "FLUSH"], &["FUNCTION", "FLUSH"]] {
            // Before 7.0 there are no functions.
            front.server.connect().await.unwrap().call(cleared).await.unwrap();
        }
        let mut client = Connection::open(&address).await.unwrap();
        for words in script {
            client.queue(words);
        }
        client.flush().await.unwrap();
        let mut got = Vec::new();
        for words in script {
            got.push((words.join(" "), client.reply().await.unwrap()));
        }
        replies.push(got);
    }
    for (direct, through) in replies[0].iter().zip(&replies[1]) {
        assert_eq!(through, direct);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn h07_scripts_and_functions_are_answered_as_by_the_server() {
    let front = Front::new().await;
    let sha = "e0e1f9fabfc9d4800c877a703b823ac0578ff8db"; // return 1
    alike(
        &front,
        &[
            &["EVALSHA", sha, "0"],
            &["SCRIPT", "EXISTS", sha],
            &["SCRIPT", "LOAD", "return 1"],
            &["SCRIPT", "EXISTS", sha, "none"],
            &["EVALSHA", sha, "0"],
            &["EVALSHA_RO", sha, "0"],
            &["SCRIPT", "FLUSH"],
            &["EVALSHA", sha, "0"],
            &["EVAL", "return redis.call('SET', KEYS[1], ARGV[1])", "1", "k", "v"],
            &["EVAL_RO", "return redis.call('GET', KEYS[1])", "1", "k"],
            &["EVAL_RO", "return redis.call('SET', KEYS[1], '2')", "1", "k"],
            &["EVAL", "return {1, {2, 'x'}, redis.error_reply('E no'), false}", "0"],
            &["EVAL", "this is not lua", "0"],
            &["EVAL", "return redis.call('NOSUCH')", "0"],
            &["EVAL", "return 1", "x"],
            &["EVAL", "return 1", "5"],
            &["SCRIPT", "LOAD", "return ("],
            &["SCRIPT", "KILL"],
            &["SCRIPT", "NOSUCH"],
            &["SELECT", "3"],
            &["EVAL", "redis.call('SELECT', 4); return redis.call('SET', 'in4', '1')", "0"],
            &["DBSIZE"],
        ],
    )
    .await;
    if !since("7.0", "7.2", "functions") {
        return;
    }
    alike(
        &front,
        &[
            &["FUNCTION", "LOAD", LIBRARY],
            &["FUNCTION", "LOAD", LIBRARY],
            &["FUNCTION", "LOAD", "REPLACE", LIBRARY],
            &["FUNCTION", "LOAD", "no shebang"],
            &["FUNCTION", "LIST", "LIBRARYNAME", "none"],
            &["FCALL", "put", "1", "k", "v"],
            &["FCALL", "get", "1", "k"],
            &["FCALL_RO", "get", "1", "k"],
            &["FCALL_RO", "put", "1", "k", "w"],
            &["FCALL", "none", "0"],
            &["FUNCTION", "KILL"],
            &["FUNCTION", "STATS"],
            &["FUNCTION", "DELETE", "lib"],
            &["FUNCTION", "DELETE", "lib"],
            &["FCALL", "get", "1", "k"],
        ],
    )
    .await;
    let mut client = Connection::open(&front.address()).await.unwrap();
    client.must(&["FUNCTION", "LOAD", LIBRARY]).await.unwrap();
    let listed = client.must(&["FUNCTION", "LIST", "WITHCODE"]).await.unwrap();
    assert_eq!(listed.items().len(), 1);
    assert!(listed.items()[0].items().iter().any(|item| item.bytes() == Some(LIBRARY.as_bytes())));
}

/// SCRIPT KILL must get past the script that keeps the lane, and the lane goes on.
#[tokio::test(flavor = "multi_thread")]
async fn h07_a_running_script_is_killed_while_the_lane_waits_for_it() {
    let front = Front::new().await;
    front.server.call(&["CONFIG", "SET", "lua-time-limit", "20"]).await.unwrap();
    let address = front.address();
    let mut clients = Vec::new();
    for _ in 0..3 {
        let mut client = Connection::open(&address).await.unwrap();
        client.must(&["SET", "before", "1"]).await.unwrap();
        clients.push(client);
    }
    let (mut runs, mut waits, mut kills) =
        (clients.pop().unwrap(), clients.pop().unwrap(), clients.pop().unwrap());
    for function in [false, true] {
        if function && !since("7.0", "7.2", "functions") {
            continue;
        }
        if function {
            let endless =
                "#!lua name=endless\nredis.register_function('endless', function() while true do end end)";
            kills.must(&["FUNCTION", "LOAD", endless]).await.unwrap();
            runs.queue(&["FCALL", "endless", "0"]);
        } else {
            runs.queue(&["EVAL", "while true do end", "0"]);
        }
        runs.queue(&["INCR", "after"]);
        runs.flush().await.unwrap();
        let mut direct = Connection::open(&front.server.address()).await.unwrap();
        eventually("the script runs", async || {
            direct.call(&["GET", "k"]).await.unwrap().brief().starts_with("-BUSY")
        })
        .await;
        waits.queue(&["GET", "before"]);
        waits.flush().await.unwrap();
        let family = if function { "FUNCTION" } else { "SCRIPT" };
        let killed = tokio::time::timeout(Duration::from_secs(20), kills.must(&[family, "KILL"])).await;
        assert_eq!(killed.unwrap().unwrap().brief(), "OK");
        let ended = runs.reply().await.unwrap().brief();
        assert!(ended.starts_with("-ERR Error running script") || ended.starts_with("-ERR"), "{ended}");
        // BUSY or the answer: when the server came to read it decides, as without the gateway.
        let next = runs.reply().await.unwrap();
        assert!(next.number().is_some() || next.brief().starts_with("-BUSY"), "{next:?}");
        let other = waits.reply().await.unwrap();
        assert!(other.number() == Some(1) || other.brief().starts_with("-BUSY"), "{other:?}");
        assert_eq!(waits.must(&["GET", "before"]).await.unwrap().number(), Some(1));
        assert!(kills.call(&[family, "KILL"]).await.unwrap().brief().starts_with("-NOTBUSY"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn h07_commands_of_keys_and_of_the_server_are_answered_as_by_the_server() {
    let front = Front::new().await;
    // Without jemalloc the same value takes now more, now less.
    let exact = front.server.info("mem_allocator").await.unwrap().starts_with("jemalloc");
    let (usage, samples) =
        if exact { ("MEMORY USAGE k", "MEMORY USAGE k SAMPLES 0") } else { ("PING", "PING") };
    same(
        &front,
        &[
            &[
                "RPUSH l 3 1 2",
                "SORT l",
                "SORT l DESC STORE s",
                "LRANGE s 0 -1",
                "SORT_RO l",
                "SORT none STORE s",
                "EXISTS s",
            ],
            &[
                "MSET w_1 3 w_2 2 w_3 1",
                "RPUSH l 1 2 3",
                "SORT l BY w_* GET # GET w_* STORE s",
                "LRANGE s 0 -1",
            ],
            &[
                "GEOADD g 13.361389 38.115556 P 15.087269 37.502669 C",
                "GEOSEARCHSTORE d g FROMLONLAT 15 37 BYRADIUS 200 km ASC STOREDIST",
                "ZRANGE d 0 -1 WITHSCORES",
                "GEOSEARCH g FROMMEMBER P BYBOX 400 400 km ASC",
                "GEOSEARCHSTORE d g FROMMEMBER none BYRADIUS 1 m",
            ],
            &[
                "SET k v",
                "COPY k c",
                "COPY k c",
                "COPY k c REPLACE",
                "COPY k c DB 5",
                "SELECT 5",
                "GET c",
                "COPY c c",
                "COPY c x DB 99",
            ],
            &[
                "SET i 1",
                "SET s text",
                "HSET h f v",
                "OBJECT ENCODING i",
                "OBJECT ENCODING s",
                "OBJECT ENCODING h",
                "OBJECT ENCODING no",
                "OBJECT REFCOUNT s",
                "OBJECT IDLETIME s",
                "OBJECT FREQ s",
                "OBJECT NOSUCH s",
                "OBJECT",
            ],
            &[
                "CONFIG SET maxmemory-policy allkeys-lfu",
                "SET s 1",
                "OBJECT FREQ s",
                "OBJECT IDLETIME s",
                "CONFIG SET maxmemory-policy noeviction",
            ],
            &["DEBUG SLEEP 0.01", "SET k 1", "DEBUG SLEEP x", "DEBUG NOSUCH", "DEBUG OBJECT none", "DEBUG"],
            &[
                "CONFIG GET maxmemory-policy",
                "CONFIG GET hz timeout",
                "CONFIG SET hz 20",
                "CONFIG GET hz",
                "CONFIG SET nosuch 1",
                "CONFIG SET hz x",
                "CONFIG GET nosuch",
                "CONFIG SET hz 10",
                "CONFIG",
            ],
            &["HELLO 3", "CONFIG GET hz", "OBJECT ENCODING no", "COMMAND INFO get nosuch", "MEMORY USAGE no"],
            &["SET k v", usage, samples, "MEMORY USAGE no", "MEMORY USAGE", "MEMORY NOSUCH"],
            &[
                "LATENCY RESET",
                "LATENCY LATEST",
                "LATENCY HISTORY none",
                "LATENCY NOSUCH",
                "LATENCY GRAPH none",
            ],
            &[
                "COMMAND COUNT",
                "COMMAND DOCS get",
                "COMMAND DOCS nosuch",
                "COMMAND INFO set",
                "COMMAND GETKEYS MSET a 1 b 2",
                "COMMAND GETKEYS GET",
            ],
            &["FAILOVER", "FAILOVER ABORT", "FAILOVER TO 127.0.0.1 1", "ROLE", "PING"],
            &[
                "SET k 1",
                "SELECT 1",
                "SET k 2",
                "SWAPDB 0 1",
                "GET k",
                "MOVE k 2",
                "RENAME k r",
                "EXISTS k",
                "FLUSHDB",
                "DBSIZE",
            ],
            &["REPLICAOF no", "SLOWLOG LEN x", "ACL CAT nosuch", "MODULE LIST", "PFSELFTEST", "PING"],
            &["NOSUCH", "NOSUCH a b", "GET", "SET k", "PING a b", "ECHO", "PING"],
        ],
    )
    .await;
    let mut client = Connection::open(&front.address()).await.unwrap();
    client.must(&["SET", "k", "1"]).await.unwrap();
    let object = client.must(&["DEBUG", "OBJECT", "k"]).await.unwrap();
    assert!(String::from_utf8_lossy(object.bytes().unwrap()).contains("encoding:int"), "{object:?}");
    assert!(client.must(&["COMMAND"]).await.unwrap().items().len() > 200);
    // What was set through the gateway is set at the server.
    client.must(&["CONFIG", "SET", "maxmemory-samples", "7"]).await.unwrap();
    let set = front.server.call(&["CONFIG", "GET", "maxmemory-samples"]).await.unwrap();
    assert_eq!(set.items()[1].number(), Some(7));
}

#[tokio::test(flavor = "multi_thread")]
async fn h07_replication_commands_are_refused_and_the_connection_goes_on() {
    let front = Front::new().await;
    let refused = |name: &str| {
        format!(
            "-ERR {name} is not available through the gateway; connect to the server itself, or set listen.allow_replicas\r\n"
        )
    };
    for (command, name) in [
        ("PSYNC ? -1", "PSYNC"),
        ("SYNC", "SYNC"),
        ("REPLCONF listening-port 1", "REPLCONF"),
        ("sync", "SYNC"),
    ] {
        let said = transcript(&front.address(), &["SET k 1", command, "GET k"]).await;
        assert_eq!(said, format!("+OK\r\n{}$1\r\n1\r\n+OK\r\n", refused(name)));
        // Also where replies are left out, and on a connection of its own.
        let said = transcript(&front.address(), &["CLIENT REPLY SKIP", command, "GET k"]).await;
        assert_eq!(said, "$1\r\n1\r\n+OK\r\n");
        let said = transcript(&front.address(), &["WATCH k", command, "MULTI", "GET k", "EXEC"]).await;
        assert_eq!(said, format!("+OK\r\n{}+OK\r\n+QUEUED\r\n*1\r\n$1\r\n1\r\n+OK\r\n", refused(name)));
    }
    assert_eq!(front.server.info("connected_slaves").await.unwrap(), "0");
}

#[tokio::test(flavor = "multi_thread")]
async fn h07_shutdown_of_the_server_leaves_the_gateway_and_its_clients() {
    let mut front = Front::new().await;
    let mut idle = Connection::open(&front.address()).await.unwrap();
    idle.must(&["SET", "k", "1"]).await.unwrap();
    let mut client = Connection::open(&front.address()).await.unwrap();
    assert!(client.call(&["SHUTDOWN", "NOSUCH"]).await.unwrap().brief().starts_with("-ERR syntax"));
    // Redis says nothing more: the connection ends.
    assert!(client.call(&["SHUTDOWN", "NOSAVE"]).await.is_err());
    eventually("the server is gone", async || front.server.connect().await.is_err()).await;
    let mut new = Connection::open(&front.address()).await.unwrap();
    // Asked while there is no server: they wait for the next one on that port, which kept nothing.
    let asked = async { (idle.must(&["EXISTS", "k"]).await, new.must(&["EXISTS", "k"]).await) };
    let (restarted, (one, two)) = tokio::join!(front.server.restart(), asked);
    restarted.unwrap();
    assert_eq!(one.unwrap(), Reply::Integer(0), "who had nothing in flight does not notice");
    assert_eq!(two.unwrap(), Reply::Integer(0));
}

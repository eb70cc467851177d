//! H38: the way back after much has happened on the destination: the source has all of it, and can hand over again.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crossfade::cli::demo::connection::{Connection, Reply};
use crossfade::cli::demo::fill;
use crossfade::cli::demo::servers::Server;
use crossfade::cli::demo::workload::{Plan, Workload};
use crossfade::mirror::POSITION_KEY;

use crate::support::proxy::{Rules, Way};
use crate::support::{Lab, Setup, eventually, operations};

/// Every write command that a server of 7.0 has, on keys of its own; `@` is the prefix. Some need what others made.
const WRITES: &str = r"
SET @s value
SETEX @setex 1000 v
PSETEX @psetex 1000000 v
SETNX @setnx v
GETSET @s other
SET @getdel v
GETDEL @getdel
GETEX @s EX 2000
APPEND @s more
SETRANGE @s 3 x
SETBIT @bits 17 1
BITFIELD @bits SET u8 32 7
BITOP NOT @not @bits
INCR @n
INCRBY @n 41
DECR @n
DECRBY @n 2
INCRBYFLOAT @f 1.5
MSET @m1 1 @m2 2
MSETNX @m3 3 @m4 4
PFADD @hll a b c
PFMERGE @merged @hll
HSET @h a 1 b 2 c 3
HMSET @h d 4
HSETNX @h e 5
HINCRBY @h a 10
HINCRBYFLOAT @h b 0.5
HDEL @h c
RPUSH @l a b c d e f g h i j k l m n
LPUSH @l z
LPUSHX @l y
RPUSHX @l o
LINSERT @l BEFORE c between
LSET @l 0 first
LREM @l 1 d
LTRIM @l 0 20
LPOP @l
RPOP @l 2
LMOVE @l @l2 LEFT RIGHT
BLMOVE @l @l2 LEFT RIGHT 1
RPOPLPUSH @l @l2
BRPOPLPUSH @l @l2 1
LMPOP 1 @l LEFT
BLMPOP 1 1 @l LEFT
BLPOP @l 1
BRPOP @l 1
SADD @set a b c d e
SADD @set2 c d e f
SREM @set a
SPOP @set
SMOVE @set2 @set3 f
SDIFFSTORE @sdiff @set @set2
SINTERSTORE @sinter @set @set2
SUNIONSTORE @sunion @set @set2
ZADD @z 1 a 2 b 3 c 4 d 5 e 6 f 7 g 8 h 9 i 10 j 11 k 12 l 13 m
ZADD @z2 1 c 1 d 1 zz
ZINCRBY @z 0.5 a
ZREM @z b
ZREMRANGEBYLEX @z2 [zz [zz
ZREMRANGEBYRANK @z 0 0
ZREMRANGEBYSCORE @z 13 13
ZPOPMIN @z
ZPOPMAX @z
BZPOPMIN @z 1
BZPOPMAX @z 1
ZMPOP 1 @z MIN
BZMPOP 1 1 @z MAX
ZUNIONSTORE @zunion 2 @z @z2 WEIGHTS 2 3
ZINTERSTORE @zinter 2 @z @z
ZDIFFSTORE @zdiff 2 @z @z2
ZRANGESTORE @zrange @z 0 2
GEOADD @geo 13.361389 38.115556 Palermo 15.087269 37.502669 Catania
GEOSEARCHSTORE @near @geo FROMLONLAT 15 37 BYRADIUS 200 km
GEORADIUS @geo 15 37 200 km STORE @radius
GEORADIUSBYMEMBER @geo Palermo 300 km STOREDIST @bymember
XADD @x * a 1
XADD @x * a 2
XADD @x 99999999999999-1 a 3
XADD @x 99999999999999-2 a 4
XADD @x 99999999999999-3 a 5
XGROUP CREATE @x g 0
XGROUP CREATE @x gone 0
XGROUP CREATECONSUMER @x g idle
XGROUP CREATECONSUMER @x g left
XREADGROUP GROUP g reader COUNT 4 STREAMS @x >
XACK @x g 99999999999999-1
XCLAIM @x g other 0 99999999999999-2
XAUTOCLAIM @x g third 0 0 COUNT 1
XGROUP DELCONSUMER @x g left
XGROUP SETID @x gone 99999999999999-1
XGROUP DESTROY @x gone
XDEL @x 99999999999999-3
XTRIM @x MAXLEN 3
XSETID @x 99999999999999-9
SET @expire v
EXPIRE @expire 3000
SET @pexpire v
PEXPIRE @pexpire 3000000
SET @expireat v
EXPIREAT @expireat 33333333333
SET @pexpireat v
PEXPIREAT @pexpireat 33333333333333
SET @persist v EX 100
PERSIST @persist
SET @old v
RENAME @old @renamed
SET @old2 v
RENAMENX @old2 @renamed2
COPY @h @copy
COPY @l2 @copied DB 6
SET @moved v
MOVE @moved 6
RPUSH @unsorted 3 1 2
SORT @unsorted STORE @sorted
SET @gone v
DEL @gone
SET @gone v
UNLINK @gone
EVAL for~i=1,20~do~redis.call('RPUSH',KEYS[1],i)~end~return~redis.call('INCR',KEYS[2]) 2 @scripted @n
SELECT 10
SET @flushed v
FLUSHDB
SELECT 11
SET @swapped v
SWAPDB 11 12
SELECT 12
APPEND @swapped -and-found
FUNCTION LOAD REPLACE #!lua~name=gone\nredis.register_function('gone',function()~return~1~end)
FUNCTION DELETE gone
FUNCTION LOAD REPLACE #!lua~name=kept\nredis.register_function('kept',function(k)~return~redis.call('SET',k[1],'by-function')~end)
FCALL kept 1 @function
";

/// Write commands that are not run above: with binary arguments or a server of their own, or run elsewhere in the test.
const ELSEWHERE: [&str; 7] =
    ["flushall", "function|flush", "function|restore", "migrate", "pfdebug", "restore", "restore-asking"];

/// Runs all writes, the binary ones too, from database `db` on. Answers the names of the commands.
async fn write_everything(client: &mut Connection, db: u32, prefix: &str) -> BTreeSet<String> {
    client.must(&["SELECT", &db.to_string()]).await.unwrap();
    let mut run = BTreeSet::new();
    for line in WRITES.lines().filter(|line| !line.is_empty()) {
        let line = line.replace('@', prefix).replace("\\n", "\n");
        let words: Vec<String> = line.split(' ').map(|word| word.replace('~', " ")).collect();
        client.must(&words).await.unwrap_or_else(|error| panic!("{line}: {error}"));
        let name = words[0].to_lowercase();
        run.insert(match name.as_str() {
            "xgroup" | "function" => format!("{name}|{}", words[1].to_lowercase()),
            _ => name,
        });
    }
    client.must(&["SELECT", &db.to_string()]).await.unwrap();
    let dump = client.must(&["DUMP", &format!("{prefix}z")]).await.unwrap();
    let restored = format!("{prefix}restored");
    let restore = [b"RESTORE".as_slice(), restored.as_bytes(), b"700000", dump.bytes().unwrap(), b"REPLACE"];
    client.must(&restore).await.unwrap();
    run
}

async fn expiry(server: &Server, key: &str) -> i64 {
    server.call(&["PEXPIRETIME", key]).await.unwrap().number().unwrap()
}

async fn exists(server: &Server, key: &str) -> bool {
    server.call(&["EXISTS", key]).await.unwrap() == Reply::Integer(1)
}

/// Waits until a key's life is over, as a client of the active side sees it.
async fn wait_expired(lab: &Lab, keys: &[&str]) {
    let mut client = Connection::open(&lab.gateway.address()).await.unwrap();
    for key in keys {
        eventually(&format!("{key} expires"), async || {
            client.must(&["EXISTS", key]).await.unwrap() == Reply::Integer(0)
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn h38_the_source_has_everything_that_was_written_on_the_destination() {
    let mut lab = Setup::new().build().await;
    lab.expect_log("without the gateway");
    let mut client = Connection::open(&lab.gateway.address()).await.unwrap();
    // What is written on the source meets another fate on the destination.
    for (key, value, life) in [
        ("from:plain", "1", None),
        ("from:gone", "1", None),
        ("from:retyped", "1", None),
        ("from:persisted", "1", Some("5000")),
        ("from:limited", "1", None),
        ("from:prolonged", "1", Some("5000")),
        ("from:expires", "1", Some("3000")),
    ] {
        match life {
            Some(ms) => client.must(&["SET", key, value, "PX", ms]).await.unwrap(),
            None => client.must(&["SET", key, value]).await.unwrap(),
        };
    }
    write_everything(&mut client, 0, "source:").await;
    lab.mirror().await;
    lab.cutover().await;

    // Through the gateway, and past it: its stream has both.
    let workload = Workload::start(&Plan::new(lab.gateway.address()));
    let mut run = write_everything(&mut client, 0, "gateway:").await;
    client.must(&["SELECT", "0"]).await.unwrap();
    let mut direct = lab.destination.connect().await.unwrap();
    write_everything(&mut direct, 4, "direct:").await;
    run.extend(ELSEWHERE.map(str::to_owned));
    let table = lab.destination.call(&["COMMAND", "LIST", "FILTERBY", "ACLCAT", "write"]).await.unwrap();
    let names = table.items().iter().map(|name| String::from_utf8(name.bytes().unwrap().to_vec()).unwrap());
    let left_out: Vec<String> = names.filter(|name| !run.contains(name)).collect();
    assert!(left_out.is_empty(), "write commands of this server that the test leaves out: {left_out:?}");

    for words in [
        "DEL from:gone",
        "DEL from:retyped",
        "RPUSH from:retyped a b",
        "PERSIST from:persisted",
        "PEXPIRE from:limited 900000",
        "PEXPIRE from:prolonged 800000",
        "SET to:lease 1 PX 700000",
        "SET to:short 1 PX 300",
    ] {
        client.must(&words.split(' ').collect::<Vec<_>>()).await.unwrap();
    }
    fill::fill(&lab.gateway.address(), 20_000, 8 << 20).await.unwrap();
    operations(&workload, 20_000).await;
    wait_expired(&lab, &["from:expires", "to:short"]).await;
    client.must(&["SET", "to:outlives-the-rollback", "1", "PX", "6000"]).await.unwrap();
    let leases = ["from:limited", "from:prolonged", "to:lease", "gateway:expireat", "gateway:restored"];
    let mut due = BTreeMap::new();
    for key in leases.into_iter().chain(["to:outlives-the-rollback"]) {
        due.insert(key, expiry(&lab.destination, key).await);
    }

    lab.rollback().await;
    for (key, due) in &due {
        assert_eq!(expiry(&lab.source, key).await, *due, "{key} on the source, not padded any more");
    }
    for gone in ["from:gone", "from:expires", "to:short"] {
        assert!(!exists(&lab.source, gone).await, "{gone}");
    }
    assert_eq!(expiry(&lab.source, "from:persisted").await, -1);
    assert_eq!(lab.source.call(&["LRANGE", "from:retyped", "0", "-1"]).await.unwrap().brief(), "[a b]");
    assert_eq!(client.must(&["FCALL", "kept", "1", "by-function"]).await.unwrap().brief(), "OK");
    operations(&workload, 5000).await;
    lab.judge(workload).await;
    // The source lets them go by itself again, and the destination hears of it.
    wait_expired(&lab, &["to:outlives-the-rollback"]).await;
    lab.same().await;
    assert!(!exists(&lab.destination, "to:outlives-the-rollback").await);

    // And once more to the other side, from what came back.
    let workload =
        Workload::start(&Plan { prefix: "again".into(), seed: 2, ..Plan::new(lab.gateway.address()) });
    write_everything(&mut client, 0, "again:").await;
    operations(&workload, 10_000).await;
    lab.cutover().await;
    operations(&workload, 5000).await;
    lab.judge(workload).await;
    assert_eq!(expiry(&lab.destination, "to:lease").await, due["to:lease"]);
}

/// The destination is emptied while it serves, filled again, and handed back.
#[tokio::test(flavor = "multi_thread")]
async fn h38_what_was_flushed_on_the_destination_does_not_come_back() {
    let mut lab = Setup::new().build().await;
    fill::fill(&lab.source.address(), 3000, 0).await.unwrap();
    lab.mirror().await;
    lab.cutover().await;
    let mut client = Connection::open(&lab.gateway.address()).await.unwrap();
    let library = client.must(&["FUNCTION", "DUMP"]).await.unwrap();
    client.must(&["FUNCTION", "FLUSH"]).await.unwrap();
    client.must(&["FLUSHALL"]).await.unwrap();
    client.must(&["SET", "new", "1"]).await.unwrap();
    lab.rollback().await;
    for (server, side) in [(&lab.source, "source"), (&lab.destination, "destination")] {
        eventually(&format!("nothing else is on the {side}"), async || {
            let keys = server.call(&["KEYS", "[^c]*"]).await.unwrap();
            keys.brief() == "[new]"
        })
        .await;
        assert_eq!(server.call(&["FUNCTION", "LIST"]).await.unwrap().items().len(), 0, "{side}");
    }
    client.must(&[b"FUNCTION".as_slice(), b"RESTORE", library.bytes().unwrap()]).await.unwrap();
    tokio::time::timeout(Duration::from_secs(30), lab.cutover()).await.unwrap();
    assert_eq!(client.must(&["FCALL", "demo_double", "0", "21"]).await.unwrap().number(), Some(42));
    lab.same().await;
}

/// The destination counts its stream from 0 again, and the source still holds the mark of the first mirror back, with an
/// offset far above. The second one must not take it for its own: the source would be emptied and copied anew.
#[tokio::test(flavor = "multi_thread")]
async fn h38_a_restart_between_two_cutovers_costs_no_full_copy() {
    let mut lab = Setup::new().destination(&["--appendonly", "yes"]).build().await;
    lab.expect_log("the mirror waits");
    let mut client = Connection::open(&lab.gateway.address()).await.unwrap();
    client.must(&["SET", "here", "from the beginning"]).await.unwrap();
    lab.mirror().await;
    lab.cutover().await;
    for _ in 0..50 {
        client.must(&["SET", "large", &"x".repeat(100_000)]).await.unwrap();
    }
    lab.in_step().await;
    lab.rollback().await;
    lab.destination.restart().await.unwrap();
    client.must(&["SET", "mark", "1"]).await.unwrap();
    eventually("the mirror goes on", async || {
        lab.destination.call(&["GET", "mark"]).await.is_ok_and(|held| held.number() == Some(1))
    })
    .await;
    lab.cutover().await;
    client.must(&["SET", "mark", "2"]).await.unwrap();
    eventually("the mirror back runs", async || {
        lab.source.call(&["GET", "mark"]).await.unwrap().number() == Some(2)
    })
    .await;
    assert!(!lab.gateway.log().contains("full synchronisation"), "{}", lab.gateway.log());
    assert_eq!(lab.source.call(&["EXISTS", "here"]).await.unwrap().number(), Some(1));
    lab.same().await;
}

/// The destination's new history makes the gateway copy everything back anew, and the gateway dies in the middle of that.
#[tokio::test(flavor = "multi_thread")]
async fn h38_a_crash_while_the_source_is_copied_anew() {
    let setup = Setup::new().destination(&["--appendonly", "yes"]).proxies();
    let mut lab = setup.config("[snapshot]\nmethod = \"commands\"\n").build().await;
    lab.expect_log("");
    fill::fill(&lab.source.address(), 3000, 1 << 20).await.unwrap();
    lab.mirror().await;
    lab.cutover().await;
    let slow = Rules { bytes_per_second: Some(200_000), ..Rules::default() };
    lab.source_proxy.as_ref().unwrap().rules(Way::Up, slow);
    lab.destination.restart().await.unwrap();
    eventually("the copy has begun", async || {
        lab.source.call(&["GET", POSITION_KEY]).await.unwrap().brief().contains(" loading ")
    })
    .await;
    lab.gateway.restart().await.unwrap();
    lab.source_proxy.as_ref().unwrap().heal();
    let mut client = Connection::open(&lab.gateway.address()).await.unwrap();
    client.must(&["SET", "mark", "1"]).await.unwrap();
    eventually("everything is copied anew", async || {
        let status = lab.gateway.status().await.unwrap();
        assert!(status["phase"] != "failed", "{status}");
        lab.gateway.log().matches("the snapshot is loaded").count() == 2
    })
    .await;
    // Once more from the record: the place where the first mirror back began is of the old history.
    let copies = lab.gateway.log().matches("is emptied for it").count();
    lab.gateway.restart().await.unwrap();
    let mut client = Connection::open(&lab.gateway.address()).await.unwrap();
    client.must(&["SET", "mark", "2"]).await.unwrap();
    eventually("the mirror back goes on", async || {
        lab.source.call(&["GET", "mark"]).await.unwrap().number() == Some(2)
    })
    .await;
    assert_eq!(lab.gateway.log().matches("is emptied for it").count(), copies, "{}", lab.gateway.log());
    lab.same().await;
}

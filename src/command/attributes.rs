//! What no server says of its commands: how each crosses the lane, the mirror and the switch.
//!
//! Reasons stand beside the exceptions. What is not named here has one reply, no state on the connection
//! and no surprise: a shared lane carries it.

use super::blocking::{Rule, Unit};
use super::keys::Movable;
use super::{Effect, Kind, Lane, Pin, Row, Spec, Sub, Switch, flags};

/// A row of the table with everything that was added by hand.
pub(super) fn spec(id: u16, row: &Row, subs: &'static [Sub]) -> Spec {
    let name = row.name;
    let kind = kind(name, row.flags);
    let lane = lane(name);
    Spec {
        id,
        name,
        arity: row.arity,
        flags: row.flags,
        kind,
        lane,
        effect: effect(name, kind, row.flags),
        switch: switch(name, lane),
        blocks: blocks(name),
        key_specs: row.keys,
        movable: movable(name),
        subs,
    }
}

/// By name where the flags do not say it.
pub(super) fn kind(name: &str, bits: u32) -> Kind {
    let family = name.split_once('|').map_or(name, |(parent, _)| parent);
    match family {
        "multi" | "exec" | "discard" | "watch" | "unwatch" => Kind::Transaction,
        "eval" | "evalsha" | "eval_ro" | "evalsha_ro" | "fcall" | "fcall_ro" | "script" | "function" => {
            Kind::Script
        }
        "subscribe" | "unsubscribe" | "psubscribe" | "punsubscribe" | "ssubscribe" | "sunsubscribe"
        | "publish" | "spublish" | "pubsub" => Kind::PubSub,
        "client" | "hello" | "auth" | "select" | "quit" | "reset" | "ping" | "echo" | "asking"
        | "readonly" | "readwrite" => Kind::Connection,
        // Without flags, because they are read or written key by key, or speak of nothing but the server.
        "object" | "xinfo" => Kind::Read,
        "xgroup" | "himport" => Kind::Write,
        "keys" | "scan" | "randomkey" | "dbsize" => Kind::Read,
        "lolwut" | "host:" | "post" => Kind::Admin,
        _ if bits & flags::ADMIN != 0 => Kind::Admin,
        _ if bits & flags::WRITE != 0 => Kind::Write,
        _ if bits & flags::READONLY != 0 => Kind::Read,
        _ => Kind::Admin,
    }
}

fn lane(name: &str) -> Lane {
    match name {
        "multi" | "exec" | "discard" | "watch" | "unwatch" => Lane::Pinned(Pin::Transaction),
        "blpop" | "brpop" | "brpoplpush" | "blmove" | "blmovem" | "blmpop" | "bzpopmin" | "bzpopmax"
        | "bzmpop" => Lane::Pinned(Pin::Blocking),
        "subscribe" | "unsubscribe" | "psubscribe" | "punsubscribe" | "ssubscribe" | "sunsubscribe" => {
            Lane::Pinned(Pin::Subscribe)
        }
        "monitor" => Lane::Pinned(Pin::Monitor),
        "wait" | "waitaof" => Lane::Pinned(Pin::Wait),
        "client|tracking" | "client|caching" | "client|trackinginfo" | "client|getredir" => {
            Lane::Pinned(Pin::Tracking)
        }
        "client|reply" => Lane::Pinned(Pin::ReplyMode),
        // Valkey's import source is a mark on the connection; fieldsets of HIMPORT live as long as it does.
        "client|no-evict"
        | "client|no-touch"
        | "client|import-source"
        | "script|debug"
        | "himport|prepare"
        | "himport|set"
        | "himport|discard"
        | "himport|discardall" => Lane::Pinned(Pin::Other),
        // FAILOVER holds writes, as CLIENT PAUSE does, and its ABORT must get past them.
        "client|pause" | "client|unpause" | "failover" | "script|kill" | "function|kill"
        | "function|stats" | "shutdown" => Lane::Pinned(Pin::Aside),
        // CLIENT CAPA says which redirections a client understands; it never meets one behind a gateway.
        "hello" | "auth" | "select" | "quit" | "reset" | "asking" | "readonly" | "readwrite" | "client"
        | "client|id" | "client|setname" | "client|getname" | "client|setinfo" | "client|info"
        | "client|list" | "client|kill" | "client|unblock" | "client|capa" => Lane::Local,
        // To clients the gateway is the one node of a cluster.
        "cluster|slots" | "cluster|shards" | "cluster|nodes" | "cluster|info" | "cluster|myid"
        | "cluster|myshardid" | "cluster|keyslot" | "cluster|replicas" | "cluster|slaves"
        | "cluster|links" => Lane::Local,
        // `host:` and `post` are how a server recognises a misled HTTP client: it closes the connection, which
        // would be everybody's lane.
        "sync" | "psync" | "replconf" | "cluster|syncslots" | "host:" | "post" => Lane::Refused,
        _ => Lane::Shared,
    }
}

fn effect(name: &str, kind: Kind, bits: u32) -> Effect {
    match name {
        "eval" | "evalsha" | "fcall" => Effect::Any,
        "eval_ro" | "evalsha_ro" | "fcall_ro" | "watch" | "pfselftest" => Effect::None,
        "script|load" | "script|flush" | "function|load" | "function|delete" | "function|flush"
        | "function|restore" => Effect::Scripts,
        "flushall" | "flushdb" | "swapdb" => Effect::Keyspace,
        "publish" | "spublish" => Effect::Publish,
        // It may store the cardinality that it computed, and then replicates.
        "pfcount" | "pfdebug" => Effect::Keys,
        "expire" | "pexpire" | "expireat" | "pexpireat" | "persist" | "set" | "setex" | "psetex"
        | "getex" | "getdel" | "getset" | "setnx" | "mset" | "msetnx" | "msetex" | "increx" | "delex"
        | "restore" | "restore-asking" | "copy" | "move" | "rename" | "renamenx" | "migrate" | "sort"
        | "hexpire" | "hpexpire" | "hexpireat" | "hpexpireat" | "hpersist" | "hsetex" | "hgetex" | "hset"
        | "hmset" | "himport|set" => Effect::Expiry,
        "debug" | "client|pause" | "client|unpause" => Effect::Node,
        "cluster|flushslot" | "trimslots" => Effect::Keyspace,
        _ if name.starts_with("xgroup|") && !name.ends_with("|help") => Effect::Keys,
        _ if kind == Kind::Write && bits & flags::WRITE != 0 => Effect::Keys,
        _ if kind == Kind::Admin && bits & flags::ADMIN != 0 && bits & flags::READONLY == 0 => Effect::Node,
        _ => Effect::None,
    }
}

fn switch(name: &str, lane: Lane) -> Switch {
    match (name, lane) {
        ("scan", _) => Switch::Cursor(1),
        ("hscan" | "sscan" | "zscan", _) => Switch::Cursor(2),
        ("evalsha" | "evalsha_ro", _) => Switch::ScriptCache,
        ("eval" | "eval_ro" | "script|load", _) => Switch::BringsScript,
        ("xread" | "xreadgroup", _) => Switch::Reissue,
        (_, Lane::Pinned(Pin::Blocking | Pin::Wait)) => Switch::Reissue,
        (_, Lane::Pinned(Pin::Transaction)) => Switch::Replay,
        (_, Lane::Pinned(Pin::Subscribe)) => Switch::Resubscribe,
        (_, Lane::Pinned(Pin::Aside)) | (_, Lane::Shared | Lane::Refused) => Switch::Finish,
        (_, Lane::Pinned(_) | Lane::Local) => Switch::Carried,
    }
}

fn blocks(name: &str) -> Option<Rule> {
    Some(match name {
        "blpop" | "brpop" | "brpoplpush" | "bzpopmin" | "bzpopmax" => Rule::Last(Unit::Seconds),
        "blmove" | "blmovem" => Rule::At(5, Unit::Seconds),
        "blmpop" | "bzmpop" => Rule::At(1, Unit::Seconds),
        "wait" => Rule::At(2, Unit::Milliseconds),
        "waitaof" => Rule::At(3, Unit::Milliseconds),
        "xread" | "xreadgroup" => Rule::AfterBlock,
        _ => return None,
    })
}

fn movable(name: &str) -> Movable {
    match name {
        "sort" | "sort_ro" => Movable::Sort,
        "georadius" | "georadiusbymember" => Movable::GeoRadius,
        "migrate" => Movable::Migrate,
        "xread" | "xreadgroup" => Movable::Streams,
        "stralgo" => Movable::Stralgo,
        _ => Movable::BySpec,
    }
}

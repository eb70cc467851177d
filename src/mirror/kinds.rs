//! Of which type the values are that a command works on, and those of a snapshot: for a `[filter]` that chooses by type.
//!
//! What a command that is not listed here leaves behind is looked at on the server itself.

use crate::config::ValueType;
use crate::rdb;

/// What a command tells of the type of what it changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Works {
    /// It changes values of this type and makes new ones; to others the server says WRONGTYPE.
    On(ValueType),
    /// It puts a value of this type in the place of whatever was there. What it reads is of the same type.
    Becomes(ValueType),
    /// It does the same to all types, and nothing to a key that is not there.
    OnAny,
}

/// What a command works on; `None`: that depends.
pub fn works(name: &[u8]) -> Option<Works> {
    use ValueType::{Hash, List, Module, Set, Stream, String, Zset};
    use Works::{Becomes, On, OnAny};
    let name = name.to_ascii_lowercase();
    Some(match &name[..] {
        b"set" | b"setex" | b"psetex" | b"getset" | b"mset" | b"msetex" | b"bitop" => Becomes(String),
        b"append" | b"incr" | b"decr" | b"incrby" | b"decrby" | b"incrbyfloat" | b"setrange" | b"setbit"
        | b"bitfield" | b"setnx" | b"msetnx" | b"pfadd" | b"pfmerge" | b"pfcount" | b"getdel" | b"getex" => {
            On(String)
        }
        b"lpush" | b"rpush" | b"lpushx" | b"rpushx" | b"linsert" | b"lset" | b"lrem" | b"ltrim" | b"lpop"
        | b"rpop" | b"lmpop" | b"lmove" | b"rpoplpush" => On(List),
        b"sunionstore" | b"sinterstore" | b"sdiffstore" => Becomes(Set),
        b"sadd" | b"srem" | b"spop" | b"smove" => On(Set),
        b"zrangestore" | b"geosearchstore" | b"georadius" | b"georadiusbymember" => Becomes(Zset),
        b"zadd" | b"zincrby" | b"zrem" | b"zremrangebyrank" | b"zremrangebyscore" | b"zremrangebylex"
        | b"zpopmin" | b"zpopmax" | b"zmpop" | b"geoadd" => On(Zset),
        b"hset" | b"hmset" | b"hsetnx" | b"hdel" | b"hincrby" | b"hincrbyfloat" | b"hexpire"
        | b"hpexpire" | b"hexpireat" | b"hpexpireat" | b"hpersist" | b"hsetex" | b"hgetex" | b"hgetdel" => {
            On(Hash)
        }
        b"xadd" | b"xdel" | b"xtrim" | b"xgroup" | b"xsetid" | b"xack" | b"xclaim" | b"xautoclaim"
        | b"xackdel" | b"xdelex" | b"xreadgroup" => On(Stream),
        b"vadd" | b"vrem" | b"vsetattr" => On(Module),
        b"del" | b"unlink" | b"expire" | b"pexpire" | b"expireat" | b"pexpireat" | b"persist" => OnAny,
        _ => return None,
    })
}

/// What a command that overwrites asks of the value that it replaces, which may be of any type.
#[derive(Debug, PartialEq, Eq)]
pub enum Before<'a> {
    /// Nothing that another type than its own could answer.
    Nothing,
    /// That there is one (XX). The source only sends what took effect, so it goes without that word.
    Key(Vec<&'a [u8]>),
    /// Its expiry (KEEPTTL), unless it looks like INCRBYFLOAT, which only works on strings.
    Expiry,
}

/// What a command that overwrites asks of what was there.
pub fn before<'a>(args: &[&'a [u8]]) -> Before<'a> {
    let is = |word: &[u8], other: &str| word.eq_ignore_ascii_case(other.as_bytes());
    let name = args.first().copied().unwrap_or_default();
    let options = match () {
        () if is(name, "SET") => 3,
        // The number of pairs, and the pairs.
        () if is(name, "MSETEX") => {
            let pairs = args.get(1).and_then(|text| std::str::from_utf8(text).ok()?.parse::<usize>().ok());
            pairs.and_then(|pairs| pairs.checked_mul(2)?.checked_add(2)).unwrap_or(args.len())
        }
        () => return Before::Nothing,
    };
    let (head, options) = args.split_at(options.min(args.len()));
    // GET and the conditions on the value say WRONGTYPE to other types; behind a condition stands any text.
    let looks = |word: &&&[u8]| ["GET", "IFEQ", "IFNE", "IFDEQ", "IFDNE"].iter().any(|one| is(word, one));
    if options.iter().any(|word| looks(&word)) {
        return Before::Nothing;
    }
    if options.iter().any(|word| is(word, "KEEPTTL")) {
        return if is_sum(args) { Before::Nothing } else { Before::Expiry };
    }
    if !options.iter().any(|word| is(word, "XX")) {
        return Before::Nothing;
    }
    let kept = options.iter().filter(|word| !is(word, "XX"));
    Before::Key(head.iter().chain(kept).copied().collect())
}

/// Whether this is how a server sends INCRBYFLOAT (from 6.0 on): in these very letters, with a number as it writes them.
fn is_sum(args: &[&[u8]]) -> bool {
    let [b"SET", _, number, b"KEEPTTL"] = args else { return false };
    let number = number.strip_prefix(b"-").unwrap_or(number);
    let mut halves = number.splitn(2, |byte| *byte == b'.');
    halves.all(|half| !half.is_empty() && half.iter().all(u8::is_ascii_digit))
}

/// The type of a value by the number that a snapshot, or the payload of DUMP, begins it with.
pub fn of_number(type_id: u8) -> ValueType {
    of_name(rdb::type_name(type_id))
}

/// The type as TYPE names it.
pub fn of_name(name: &str) -> ValueType {
    match name {
        "string" => ValueType::String,
        "list" => ValueType::List,
        "set" => ValueType::Set,
        "zset" => ValueType::Zset,
        "hash" => ValueType::Hash,
        "stream" => ValueType::Stream,
        _ => ValueType::Module,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::{Effect, all};

    /// What is listed has to be known, and has to change values.
    #[test]
    fn what_is_listed_writes() {
        let listed: Vec<_> =
            all().filter(|spec| works(spec.name.as_bytes()).is_some() && !spec.is_container()).collect();
        assert!(listed.len() > 80, "{}", listed.len());
        for spec in listed {
            assert!(matches!(spec.effect, Effect::Keys | Effect::Expiry), "{}", spec.name);
        }
        assert_eq!(works(b"RENAME"), None);
        assert_eq!(works(b"hIncrBy"), Some(Works::On(ValueType::Hash)));
    }

    #[test]
    fn what_was_there_before_may_count() {
        let asks = |line: &'static str| before(&line.split(' ').map(str::as_bytes).collect::<Vec<_>>());
        let without = |line: &'static str| Before::Key(line.split(' ').map(str::as_bytes).collect());
        for nothing in [
            "SET k v",
            "SET k XX",
            "SET XX KEEPTTL",
            "SET k v PXAT 5",
            "SET k v NX",
            "SET k v xx GET",
            "SET k v GET KEEPTTL",
            "SET k v IFEQ XX",
            "SET k v ifne KEEPTTL",
            "GETSET k XX",
            "MSET a XX",
            "MSETEX 1 a XX",
            "MSETEX 1 a KEEPTTL NX",
            "MSETEX 99999999999999999999 a XX",
            "MSETEX",
            "SET",
        ] {
            assert_eq!(asks(nothing), Before::Nothing, "{nothing}");
        }
        for sum in ["SET k 10.5 KEEPTTL", "SET k -3 KEEPTTL"] {
            assert_eq!(asks(sum), Before::Nothing, "{sum}");
        }
        for expiry in [
            "SET k 1. KEEPTTL",
            "SET k 1e5 KEEPTTL",
            "SET k 1.5.2 KEEPTTL",
            "SET k - KEEPTTL",
            "set k 1 KEEPTTL",
            "SET k 1 XX KEEPTTL",
            "SET k v KEEPTTL",
            "set k v xx keepttl",
            "MSETEX 2 a 1 b 2 KEEPTTL",
        ] {
            assert_eq!(asks(expiry), Before::Expiry, "{expiry}");
        }
        assert_eq!(asks("SET k XX xx"), without("SET k XX"));
        assert_eq!(asks("SET k v XX PX 5"), without("SET k v PX 5"));
        assert_eq!(asks("MSETEX 1 XX v XX EX 5"), without("MSETEX 1 XX v EX 5"));
    }

    #[test]
    fn types_have_one_name() {
        assert_eq!(
            (of_number(0), of_number(18), of_number(25)),
            (ValueType::String, ValueType::List, ValueType::Hash)
        );
        assert_eq!(
            (of_number(27), of_number(7), of_number(28)),
            (ValueType::Stream, ValueType::Module, ValueType::Module)
        );
        assert_eq!((of_name("zset"), of_name("vectorset")), (ValueType::Zset, ValueType::Module));
    }
}

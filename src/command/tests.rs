use std::time::Duration;

use super::*;

fn spec(name: &str) -> &'static Spec {
    lookup(name.as_bytes()).unwrap_or_else(|| panic!("{name} is not in the table"))
}

fn split(line: &str) -> Vec<&str> {
    line.split(' ').collect()
}

#[test]
fn every_row_is_found_in_every_case() {
    for row in table::ROWS {
        let (parent, sub) = row.name.split_once('|').map_or((row.name, None), |(p, s)| (p, Some(s)));
        for name in [parent.to_owned(), parent.to_uppercase()] {
            let found = spec(&name);
            assert_eq!(found.name, parent);
            if let Some(sub) = sub {
                assert_eq!(subcommand(found, sub.as_bytes()).unwrap().name, row.name);
                assert_eq!(subcommand(found, sub.to_uppercase().as_bytes()).unwrap().name, row.name);
            }
        }
    }
    assert!(all().count() > 300);
}

#[test]
fn what_is_no_command_is_not_found() {
    for name in [&b""[..], b"ge", b"gett", b"g\x25t", b"GE\x54\x00", b"\xc7et", b"[et", b"restore\rasking"] {
        assert!(lookup(name).is_none(), "{}", name.escape_ascii());
    }
    assert!(lookup(&[b'x'; 25]).is_none());
    assert!(lookup(&vec![b'x'; 1 << 20]).is_none());
    // Every single-byte change of a name is another name.
    for row in table::ROWS.iter().filter(|row| !row.name.contains('|')) {
        for at in 0..row.name.len() {
            for byte in 0..=255u8 {
                let mut name = row.name.as_bytes().to_vec();
                name[at] = byte;
                let lower = name.to_ascii_lowercase();
                if let Some(found) = lookup(&name) {
                    assert_eq!(found.name.as_bytes(), lower, "{}", name.escape_ascii());
                }
            }
        }
    }
}

#[test]
fn lanes() {
    let route = |line: &str| {
        let args = split(line);
        route(spec(args[0]), &args).1
    };
    assert_eq!(route("GET a"), Lane::Shared);
    assert_eq!(route("EVAL x 0"), Lane::Shared);
    assert_eq!(route("SCRIPT LOAD x"), Lane::Shared);
    assert_eq!(route("CONFIG SET a b"), Lane::Shared);
    assert_eq!(route("MULTI"), Lane::Pinned(Pin::Transaction));
    assert_eq!(route("XREAD STREAMS a 0"), Lane::Shared);
    assert_eq!(route("XREAD COUNT 1 BLOCK 0 STREAMS a 0"), Lane::Pinned(Pin::Blocking));
    assert_eq!(route("XREAD STREAMS block block"), Lane::Shared);
    assert_eq!(route("XREADGROUP GROUP block streams STREAMS a >"), Lane::Shared);
    assert_eq!(route("xreadgroup group g c block 5 streams a >"), Lane::Pinned(Pin::Blocking));
    assert_eq!(route("BLPOP a 0"), Lane::Pinned(Pin::Blocking));
    assert_eq!(route("CLIENT TRACKING ON"), Lane::Pinned(Pin::Tracking));
    assert_eq!(route("client setname x"), Lane::Local);
    assert_eq!(route("CLIENT REPLY OFF"), Lane::Pinned(Pin::ReplyMode));
    assert_eq!(route("CLIENT SOMETHING"), Lane::Pinned(Pin::Other));
    assert_eq!(route("CLIENT HELP"), Lane::Shared);
    assert_eq!(route("CLIENT"), Lane::Shared);
    assert_eq!(route("CLIENT UNPAUSE"), Lane::Pinned(Pin::Aside));
    assert_eq!(route("SCRIPT KILL"), Lane::Pinned(Pin::Aside));
    assert_eq!(route("SCRIPT DEBUG yes"), Lane::Pinned(Pin::Other));
    assert_eq!(route("WAIT 1 0"), Lane::Pinned(Pin::Wait));
    assert_eq!(route("PSYNC ? -1"), Lane::Refused);
    assert_eq!(route("HELLO 3"), Lane::Local);
}

#[test]
fn whatever_may_block_at_the_server_has_a_rule() {
    for spec in all() {
        assert_eq!(
            spec.has(flags::BLOCKING) || spec.name == "wait" || spec.name == "waitaof",
            spec.may_block(),
            "{}",
            spec.name
        );
    }
}

#[test]
fn every_write_has_an_effect() {
    for spec in all().chain(all().flat_map(Spec::subcommands)) {
        if spec.has(flags::WRITE) {
            assert!(spec.may_write(), "{}", spec.name);
        }
        if spec.has(flags::READONLY) && !matches!(spec.name, "pfcount") {
            assert!(!spec.may_write(), "{}", spec.name);
        }
    }
    assert!(spec("eval").may_write());
    assert!(!spec("eval_ro").may_write());
}

#[test]
fn timeouts() {
    let timeout = |line: &str| {
        let args = split(line);
        let form = blocking_form(spec(args[0]), &args)?;
        Some((form.timeout_arg, form.timeout(&args)))
    };
    let some = |ms| Some(Some(Duration::from_millis(ms)));
    assert_eq!(timeout("BLPOP a b 1.5"), Some((3, some(1500))));
    assert_eq!(timeout("BLPOP a b 0"), Some((3, Some(None))));
    assert_eq!(timeout("BLPOP a b x"), Some((3, None)));
    assert_eq!(timeout("BLPOP a b -1"), Some((3, None)));
    assert_eq!(timeout("BLPOP"), None);
    assert_eq!(timeout("BLMOVE a b LEFT RIGHT 2"), Some((5, some(2000))));
    assert_eq!(timeout("BLMOVEM a b LEFT RIGHT 2 COUNT 3 OBO"), Some((5, some(2000))));
    assert_eq!(timeout("BRPOPLPUSH a b 2"), Some((3, some(2000))));
    assert_eq!(timeout("BZMPOP 3 2 a b MIN"), Some((1, some(3000))));
    assert_eq!(timeout("XREAD BLOCK 7 STREAMS a $"), Some((2, some(7))));
    assert_eq!(timeout("XREAD STREAMS a $"), None);
    assert_eq!(timeout("WAITAOF 1 1 9"), Some((3, some(9))));
    assert_eq!(timeout("BLMOVE a b"), None);
    let seconds = Blocking { timeout_arg: 1, unit: Unit::Seconds };
    assert_eq!(seconds.text(Duration::from_millis(1050)), "1.050");
    assert_eq!(seconds.text(Duration::ZERO), "0.001");
}

#[test]
fn numbers_name_their_commands() {
    let mut seen = std::collections::HashSet::new();
    for spec in all().flat_map(|spec| std::iter::once(spec).chain(spec.subcommands())) {
        assert_eq!(name_of(spec.id), Some(spec.name));
        assert!(seen.insert(spec.id), "{}", spec.name);
    }
    assert_eq!((name_of(0), name_of(u16::MAX)), (None, None));
}

#[test]
fn keys_of_calls() {
    fn keys(line: &str) -> Result<Vec<&str>, KeyError> {
        let args = split(line);
        super::keys(spec(args[0]), &args).map(|list| list.iter().map(|at| args[*at as usize]).collect())
    }
    assert_eq!(keys("MSET a 1 b 2"), Ok(vec!["a", "b"]));
    assert_eq!(keys("EVAL x 2 a b c"), Ok(vec!["a", "b"]));
    assert_eq!(keys("EVAL x 0"), Ok(vec![]));
    assert_eq!(keys("EVAL x 3 a b"), Err(KeyError));
    assert_eq!(keys("EVAL x -1 a b"), Err(KeyError));
    assert_eq!(keys("EVAL x 9223372036854775807 a b"), Err(KeyError));
    assert_eq!(keys("SORT a BY store LIMIT 0 store GET store STORE b STORE c"), Ok(vec!["a", "c"]));
    assert_eq!(keys("GEORADIUS a 0 0 1 m STORE b STOREDIST c"), Ok(vec!["a", "c"]));
    assert_eq!(keys("MIGRATE h 1 k 0 5"), Ok(vec!["k"]));
    assert_eq!(keys("XREADGROUP GROUP streams c STREAMS a b > >"), Ok(vec!["a", "b"]));
    assert_eq!(keys("XREAD STREAMS a b 0"), Err(KeyError));
    assert_eq!(keys("XREAD COUNT 1"), Err(KeyError));
    assert_eq!(keys("OBJECT ENCODING a"), Ok(vec!["a"]));
    assert_eq!(keys("XGROUP CREATE a g $"), Ok(vec!["a"]));
    assert_eq!(keys("PING"), Ok(vec![]));
    assert_eq!(keys("SPUBLISH ch m"), Ok(vec![]));
    assert_eq!(keys("GET"), Err(KeyError));
    assert_eq!(keys("DEL a b c d e f g h"), Ok(vec!["a", "b", "c", "d", "e", "f", "g", "h"]));
    let args = ["MIGRATE", "h", "1", "", "0", "5", "AUTH", "KEYS", "KEYS", "a", "b"];
    assert_eq!(&*super::keys(spec("migrate"), &args).unwrap(), &[9, 10]);
}

use super::*;
use crate::mirror::expiry::{FIELD_PAD_MS, PAD_MS};
use crate::resp::scan::{CommandScanner, Limits};

const NOW: u64 = 1_790_000_000_000;

fn encode(line: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    write::command(&mut bytes, &line.split(' ').collect::<Vec<_>>());
    bytes
}

fn lines(mut bytes: &[u8]) -> Vec<String> {
    let mut lines = Vec::new();
    while let Some(frame) = CommandScanner::default().next(bytes, &Limits::default()).unwrap() {
        let words: Vec<String> =
            frame.args(bytes).map(|word| String::from_utf8_lossy(word).into_owned()).collect();
        lines.push(words.join(" "));
        bytes = &bytes[frame.len..];
    }
    lines
}

/// What becomes of a command in db 3: `None` when nothing does.
fn run(transform: &mut Transform, line: &str) -> Option<Vec<String>> {
    let bytes = encode(line);
    let command = Command::alone(&bytes, NOW);
    match transform.plan(&command) {
        Plan::Skip => None,
        Plan::Raw => Some(vec![line.to_owned()]),
        Plan::Rewrite(class) => {
            let mut out = b"before".to_vec();
            let commands = transform.write(class, &command, 3, &mut out);
            let lines = lines(&out[6..]);
            assert_eq!(lines.len(), commands as usize, "{line}");
            Some(lines)
        }
        other => Some(vec![format!("{other:?}")]),
    }
}

fn fresh(dialect: Dialect) -> Transform {
    let mut transform = Transform::new(dialect, vec![(b"crossfade:epoch".to_vec(), b"7".to_vec())]);
    transform.tick(NOW);
    transform
}

#[test]
fn what_becomes_of_commands() {
    let in_5s = NOW + 5000 + PAD_MS;
    let at = 1_800_000_000_000 + PAD_MS;
    let same = |line: &str| (line.to_owned(), vec![line.to_owned()]);
    let into = |line: &str, result: String| (line.to_owned(), vec![result]);
    let field = |at: u64| at + FIELD_PAD_MS;
    for (line, result) in [
        same("SET k v"),
        same("SET k v KEEPTTL"),
        same("SET k v NX"),
        same("set k v bogus 1 PX 5000"),
        same("SET k v PX x"),
        same("INCR k"),
        same("EVALSHA unknown 1 k"),
        same("PUBLISH crossfade:x hello"),
        same("DEL a b"),
        same("RESTORE k 0 payload REPLACE"),
        same("RENAME a b"),
        same("MOVE a 2"),
        same("FLUSHALL"),
        same("FLUSHDB ASYNC"),
        same("SWAPDB 1 2"),
        same("SCRIPT LOAD return_1"),
        same("EXPIRE k"),
        same("EXPIRE k 99999999999999999999"),
        same("HSETEX k KEEPTTL FIELDS 1 f v"),
        same("PEXPIRE k 9223372036854775807"),
        into("SELECT 5", "Select(5)".into()),
        into("multi", "Multi".into()),
        into("EXEC", "Exec".into()),
        into("SET k v EX 5", format!("SET k v PXAT {in_5s}")),
        into("SET k v px 5000 nx get", format!("SET k v PXAT {in_5s}")),
        into("SET k v EXAT 1800000000", format!("SET k v PXAT {at}")),
        into("SET k v PXAT 1800000000000", format!("SET k v PXAT {at}")),
        into("SET k v IFEQ old PX 5000", format!("SET k v PXAT {in_5s}")),
        into("SETEX k 5 v", format!("SET k v PXAT {in_5s}")),
        into("PSETEX k 5000 v", format!("SET k v PXAT {in_5s}")),
        into("GETEX k EX 5", format!("PEXPIREAT k {in_5s}")),
        into("GETEX k PERSIST", "PERSIST k".into()),
        into("EXPIRE k 5", format!("PEXPIREAT k {in_5s}")),
        into("EXPIRE k 5 GT", format!("PEXPIREAT k {in_5s}")),
        into("pexpire k 5000 NX", format!("PEXPIREAT k {in_5s}")),
        into("EXPIREAT k 1800000000 LT", format!("PEXPIREAT k {at}")),
        into("PEXPIREAT k 1800000000000", format!("PEXPIREAT k {at}")),
        into("PEXPIREAT k 9000000000000000000", "PEXPIREAT k 9000000000000000000".into()),
        into("RESTORE k 5000 payload REPLACE", format!("RESTORE k {in_5s} payload REPLACE ABSTTL")),
        into("RESTORE k 1800000000000 p absttl FREQ 3", format!("RESTORE k {at} p FREQ 3 ABSTTL")),
        into("HEXPIRE k 5 NX FIELDS 2 a b", format!("HPEXPIREAT k {} NX FIELDS 2 a b", field(NOW + 5000))),
        into("HPEXPIRE k 5000 FIELDS 1 a", format!("HPEXPIREAT k {} FIELDS 1 a", field(NOW + 5000))),
        into(
            "HEXPIREAT k 1800000000 GT FIELDS 1 a",
            format!("HPEXPIREAT k {} GT FIELDS 1 a", field(1_800_000_000_000)),
        ),
        same("HPEXPIREAT k 17592186044416 FIELDS 1 a"),
        into("HSETEX k FNX EX 5 FIELDS 1 f v", format!("HSETEX k PXAT {} FIELDS 1 f v", field(NOW + 5000))),
        into("HGETEX k PX 5000 FIELDS 1 f", format!("HPEXPIREAT k {} FIELDS 1 f", field(NOW + 5000))),
        into("HGETEX k PERSIST FIELDS 1 f", "HPERSIST k FIELDS 1 f".into()),
        into("DEL a crossfade:position b", "DEL a b".into()),
        (
            "MSETEX 2 a 1 b 2 EX 5".into(),
            vec![format!("SET a 1 PXAT {in_5s}"), format!("SET b 2 PXAT {in_5s}")],
        ),
        (
            "SWAPDB 0 2".into(),
            ["SWAPDB 0 2", "SELECT 2", "DEL crossfade:position crossfade:epoch", "SELECT 3"]
                .map(str::to_owned)
                .to_vec(),
        ),
    ] {
        assert_eq!(run(&mut fresh(Dialect::of_version(8, 10)), &line), Some(result), "{line}");
    }
    for line in [
        "PING",
        "ping hello",
        "REPLCONF GETACK *",
        "SET crossfade:position x",
        "SET crossfade:holder x PXAT 5",
        "PEXPIREAT crossfade:holder 5",
        "DEL crossfade:a crossfade:b",
        "UNLINK crossfade:a",
        "INCR crossfade:epoch",
    ] {
        assert_eq!(run(&mut fresh(Dialect::of_version(8, 10)), line), None, "{line}");
    }
}

#[test]
fn an_old_destination_gets_what_it_understands() {
    let mut old = fresh(Dialect::of_version(4, 0));
    let in_5s = NOW + 5000 + PAD_MS;
    assert_eq!(
        run(&mut old, "SET k v EX 5 NX").unwrap(),
        ["SET k v".to_owned(), format!("PEXPIREAT k {in_5s}")]
    );
    assert_eq!(
        run(&mut old, "RESTORE k 5000 p REPLACE").unwrap(),
        [format!("RESTORE k {} p REPLACE", 5000 + PAD_MS)]
    );
}

#[test]
fn while_settling_far_expiries_are_exact_and_near_ones_are_remembered() {
    let mut transform = fresh(Dialect::of_version(8, 10));
    transform.set_mode(Mode::Settling { window_ms: 10_000 });
    transform.set_soon(60_000);
    assert_eq!(
        run(&mut transform, "SET far v EX 3600").unwrap(),
        [format!("SET far v PXAT {}", NOW + 3_600_000)]
    );
    assert_eq!(
        run(&mut transform, "SET soon v EX 20").unwrap(),
        [format!("SET soon v PXAT {}", NOW + 20_000)]
    );
    assert_eq!(
        run(&mut transform, "SET near v EX 10").unwrap(),
        [format!("SET near v PXAT {}", NOW + 10_000 + PAD_MS)]
    );
    assert_eq!(run(&mut transform, "RENAME near near2").unwrap(), ["RENAME near near2"]);
    assert_eq!(
        run(&mut transform, "COPY near near3 DB 5 REPLACE").unwrap(),
        ["COPY near near3 DB 5 REPLACE"]
    );
    assert_eq!(run(&mut transform, "MOVE near 6").unwrap(), ["MOVE near 6"]);
    assert_eq!(run(&mut transform, "SWAPDB 5 7").unwrap(), ["SWAPDB 5 7"]);
    let mut near: Vec<_> =
        transform.near().iter().map(|(db, key)| (*db, String::from_utf8_lossy(key).into_owned())).collect();
    near.sort();
    let expected = [(3, "near"), (3, "near2"), (6, "near"), (7, "near3")];
    assert_eq!(near, expected.map(|(db, key)| (db, key.to_owned())));
    let soon: Vec<_> = transform.soon().iter().cloned().collect();
    assert_eq!(soon, [(3, b"soon"[..].into())]);
}

#[test]
fn what_takes_the_own_keys_away_is_noticed() {
    for (line, db, wiped) in [
        ("FLUSHALL", 3, true),
        ("FLUSHDB", 0, true),
        ("FLUSHDB", 3, false),
        ("SWAPDB 4 0", 3, true),
        ("SWAPDB 4 5", 3, false),
    ] {
        let mut transform = fresh(Dialect::of_version(8, 10));
        let bytes = encode(line);
        let command = Command::alone(&bytes, NOW);
        let Plan::Rewrite(class) = transform.plan(&command) else { panic!("{line}") };
        transform.write(class, &command, db, &mut Vec::new());
        assert_eq!(transform.take_wiped(), wiped, "{line} in {db}");
        assert!(!transform.take_wiped());
    }
    let mut out = Vec::new();
    assert_eq!(fresh(Dialect::of_version(8, 10)).put_back(&mut out), 1);
    assert_eq!(lines(&out), ["SET crossfade:epoch 7"]);
}

#[test]
fn names_are_recognised_in_any_case_and_no_other_name_is() {
    assert_eq!(classify(b"SeT"), Class::Set);
    assert_eq!(classify(b"RESTORE-ASKING"), Class::Restore);
    for other in [&b"setrange"[..], b"s", b"HSET", b"hincrbyfloatxx", b"a-name-longer-than-any", b"\0\0\0"] {
        assert_eq!(classify(other), Class::Other, "{other:?}");
    }
}

#[test]
fn commands_that_the_destination_does_not_know_are_left_out_and_counted() {
    let mut transform = fresh(Dialect::of_version(8, 10));
    transform.leave_out([b"vadd".to_vec()].into());
    assert_eq!(run(&mut transform, "VADD k VALUES 1 1 e"), None);
    assert_eq!(run(&mut transform, "SADD k e"), Some(vec!["SADD k e".into()]));
    assert_eq!((transform.take_left_out(), transform.take_left_out()), (1, 0));
}

#[test]
fn scripts_go_in_their_frame_with_the_time_of_arrival() {
    let mut transform = fresh(Dialect::of_version(8, 10));
    let lines = run(&mut transform, "EVAL return_1 1 k a").unwrap();
    assert!(lines[0].starts_with("EVAL local at="), "{lines:?}");
    assert!(lines[0].contains("return_1") && lines[0].ends_with(&format!(" 1 k a {NOW}")), "{lines:?}");
    transform.set_mode(Mode::Settling { window_ms: 1000 });
    run(&mut transform, "EVAL return_1 1 k a");
    assert_eq!(transform.near().len(), 1);
}

#[test]
fn fields_are_settled_as_keys_are() {
    let mut transform = fresh(Dialect::of_version(8, 0));
    transform.set_mode(Mode::Settling { window_ms: 10_000 });
    transform.set_soon(60_000);
    let one = |transform: &mut Transform, line: &str| run(transform, line).unwrap().remove(0);
    assert_eq!(one(&mut transform, "RENAME a b"), "RENAME a b");
    assert!(transform.near_fields().is_empty(), "no field expires as far as is known");
    let (near, soon, far) = (NOW + 9000, NOW + 11_000, NOW + 90_000);
    let line = |at: u64| format!("HPEXPIREAT k {at} FIELDS 2 a b");
    assert_eq!(one(&mut transform, &line(near)), line(near + FIELD_PAD_MS));
    assert_eq!(one(&mut transform, &line(soon)), line(soon));
    assert_eq!(one(&mut transform, &line(far)), line(far));
    let set = format!("HSETEX k PXAT {near} FIELDS 1 c v");
    assert_eq!(one(&mut transform, &set), format!("HSETEX k PXAT {} FIELDS 1 c v", near + FIELD_PAD_MS));
    one(&mut transform, "RENAME k moved");
    one(&mut transform, "MOVE k 5");
    let field = |db: u32, key: &str, name: Option<&str>| Field {
        hash: (db, key.as_bytes().into()),
        name: name.map(|name| name.as_bytes().into()),
    };
    let moved = [field(3, "moved", None), field(5, "k", None)];
    let near = ["a", "b", "c"].map(|name| field(3, "k", Some(name)));
    assert_eq!(*transform.near_fields(), near.into_iter().chain(moved).collect());
    assert_eq!(*transform.soon_fields(), ["a", "b"].map(|name| field(3, "k", Some(name))).into());
    one(&mut transform, "SWAPDB 3 4");
    assert!(transform.near_fields().contains(&field(4, "k", Some("a"))));
    assert_eq!(transform.take_swap(0), Err(NotYet));
    assert_eq!((transform.take_swap(1 << 40), transform.take_swap(0)), (Ok(Some((3, 4))), Ok(None)));

    // What is stored cannot be compared any more, until all of it is padded again.
    let compared = one(&mut transform, &format!("HPEXPIREAT k {far} gt FIELDS 2 a b"));
    assert!(
        compared.starts_with("EVAL ") && compared.ends_with(&format!(" 1 k GT {far} {far}  a b")),
        "{compared}"
    );
    let both = one(&mut transform, &format!("HPEXPIREAT k {far} xx Lt FIELDS 1 a"));
    assert!(both.ends_with(&format!(" 1 k LT {far} {far} XX a")), "{both}");
    assert!(one(&mut transform, &format!("HPEXPIREAT k {far} NX FIELDS 1 a")).starts_with("HPEXPIREAT"));
    transform.set_mode(Mode::Padded);
    transform.all_soon();
    assert!(transform.near_fields().is_empty() && transform.soon_fields().len() > 4);
    assert!(one(&mut transform, &format!("HPEXPIREAT k {far} LT FIELDS 1 a")).starts_with("EVAL "));
    transform.set_mixed(false);
    assert!(one(&mut transform, &format!("HPEXPIREAT k {far} LT FIELDS 1 a")).starts_with("HPEXPIREAT"));
}

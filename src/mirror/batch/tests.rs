use std::collections::BTreeMap;

use super::*;
use crate::mirror::transform::Dialect;
use crate::resp::scan::{CommandScanner, Limits};

/// xorshift64*: seeds replay a failure.
struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() >> 11) as usize % bound
    }

    fn chance(&mut self, one_in: usize) -> bool {
        self.below(one_in) == 0
    }
}

fn commands(mut bytes: &[u8]) -> Vec<Vec<Vec<u8>>> {
    let mut all = Vec::new();
    while let Some(frame) = CommandScanner::default().next(bytes, &Limits::default()).unwrap() {
        all.push(frame.args(bytes).map(<[u8]>::to_vec).collect());
        bytes = &bytes[frame.len..];
    }
    assert!(bytes.is_empty());
    all
}

/// A server that knows a few commands whose repetition shows.
#[derive(Debug, Clone, Default, PartialEq)]
struct Model {
    data: BTreeMap<(u32, Vec<u8>), Vec<u8>>,
    db: u32,
}

impl Model {
    fn run(&mut self, args: &[Vec<u8>]) -> Vec<u8> {
        let text = |nth: usize| std::str::from_utf8(&args[nth]).unwrap();
        let place = |db: u32| (db, args.get(1).cloned().unwrap_or_default());
        match text(0).to_uppercase().as_str() {
            "SELECT" => self.db = text(1).parse().unwrap(),
            "SET" => {
                self.data.insert(place(self.db), args[2].clone());
            }
            "MSET" => {
                for pair in args[1..].chunks(2) {
                    self.data.insert((self.db, pair[0].clone()), pair[1].clone());
                }
            }
            "DEL" => {
                for key in &args[1..] {
                    self.data.remove(&(self.db, key.clone()));
                }
            }
            "INCR" => {
                let value = self.data.entry(place(self.db)).or_insert_with(|| b"0".to_vec());
                let number: u64 = std::str::from_utf8(value).unwrap().parse().unwrap();
                *value = (number + 1).to_string().into_bytes();
                return format!(":{}\r\n", number + 1).into_bytes();
            }
            "APPEND" => {
                let value = self.data.entry(place(self.db)).or_default();
                value.extend_from_slice(&args[2]);
                return format!(":{}\r\n", value.len()).into_bytes();
            }
            "FLUSHALL" => self.data.clear(),
            "SWAPDB" => {
                let (one, two): (u32, u32) = (text(1).parse().unwrap(), text(2).parse().unwrap());
                let swap = |db| {
                    if db == one {
                        two
                    } else if db == two {
                        one
                    } else {
                        db
                    }
                };
                self.data = std::mem::take(&mut self.data)
                    .into_iter()
                    .map(|((db, key), v)| ((swap(db), key), v))
                    .collect();
            }
            "BIG" => return b"*2\r\n$3\r\n-no\r\n*1\r\n:5\r\n".to_vec(),
            "FAIL" => return b"-WRONGTYPE Operation against a key\r\n".to_vec(),
            "PING" => {}
            other => panic!("{other}"),
        }
        b"+OK\r\n".to_vec()
    }

    /// The replies to a batch, which runs as a whole, or not at all when it is `refused`.
    fn batch(&mut self, wire: &[u8], refused: bool) -> Vec<u8> {
        let commands = commands(wire);
        assert_eq!(commands[0], [b"MULTI"]);
        assert_eq!(commands.last().unwrap(), &[b"EXEC"]);
        let body = &commands[1..commands.len() - 1];
        let mut replies = b"+OK\r\n".to_vec();
        for (nth, _) in body.iter().enumerate() {
            let oom = refused && nth + 1 == body.len();
            replies.extend_from_slice(if oom { b"-OOM no memory\r\n" } else { b"+QUEUED\r\n" });
        }
        if refused {
            replies.extend_from_slice(b"-EXECABORT Transaction discarded because of previous errors.\r\n");
            return replies;
        }
        replies.extend_from_slice(format!("*{}\r\n", body.len()).as_bytes());
        for args in body {
            replies.extend(self.run(args));
        }
        assert_eq!(self.db, 0, "a batch ends in db 0");
        replies
    }

    fn position(&self) -> Option<(u64, u32)> {
        let text = std::str::from_utf8(self.data.get(&(0, POSITION_KEY.into()))?).unwrap();
        let (offset, db) = text.split_once(' ').unwrap();
        Some((offset.parse().unwrap(), db.parse().unwrap()))
    }
}

/// A stream, and what a server holds after it.
fn stream(rng: &mut Rng, length: usize) -> (Vec<u8>, Model) {
    let mut bytes = Vec::new();
    let mut model = Model::default();
    let one = |rng: &mut Rng, bytes: &mut Vec<u8>, model: &mut Model, serial: usize| {
        let key = format!("k{}", rng.below(5));
        let args: Vec<String> = match rng.below(80) {
            // Many of these stand next to one another.
            40.. => vec!["SET".into(), key, format!("{serial}")],
            0..=12 => vec!["INCR".into(), format!("n{}", rng.below(5))],
            13..=25 => vec!["APPEND".into(), key, format!("{serial},")],
            26 => vec!["DEL".into(), key, "crossfade:position".into()],
            27 => vec!["DEL".into(), "crossfade:position".into()],
            28 => vec!["SET".into(), "crossfade:position".into(), "somebody else".into()],
            29 => vec!["SET".into(), key, "x".repeat(rng.below(600))],
            30 => vec!["FLUSHALL".into()],
            31 => vec!["SWAPDB".into(), rng.below(3).to_string(), rng.below(3).to_string()],
            _ => vec!["SELECT".into(), rng.below(3).to_string()],
        };
        write::command(bytes, &args);
        let args: Vec<Vec<u8>> = args.into_iter().map(String::into_bytes).collect();
        let ours = |arg: &Vec<u8>| arg.starts_with(b"crossfade:");
        if !args.get(1).is_some_and(ours) {
            model.run(&args);
        }
    };
    for serial in 0..length {
        match rng.below(12) {
            0 => write::command(&mut bytes, &["PING"]),
            1 => write::command(&mut bytes, &["REPLCONF", "GETACK", "*"]),
            2 => bytes.push(b'\n'),
            3 | 4 => {
                write::command(&mut bytes, &["MULTI"]);
                for _ in 0..rng.below(30) {
                    one(rng, &mut bytes, &mut model, serial);
                }
                write::command(&mut bytes, &["EXEC"]);
            }
            _ => one(rng, &mut bytes, &mut model, serial),
        }
    }
    (bytes, model)
}

fn collector(after: u64, db: u32, limits: BatchLimits) -> Collector {
    let own = vec![(b"crossfade:epoch".to_vec(), b"1".to_vec())];
    Collector::new(after, db, Transform::new(Dialect::of_version(7, 0), own), limits)
}

fn mark(offset: u64, db: u32) -> String {
    format!("{offset} {db}")
}

/// The stream reaches the destination through crashes, refusals and cuts, once.
fn simulate(seed: u64) {
    let mut rng = Rng(seed | 1);
    let length = 20 + rng.below(300);
    let (bytes, expected) = stream(&mut rng, length);
    let first = 1000;
    let limits = BatchLimits { commands: 1 + rng.below(20), bytes: 50 + rng.below(2000) };
    let mut server = Model::default();
    let own = [("crossfade:epoch", "1")];
    for (key, value) in own {
        server.data.insert((0, key.into()), value.into());
    }
    server.data.insert((0, POSITION_KEY.into()), mark(first, 0).into_bytes());
    let mut collector = collector(first, 0, limits);
    let mut in_flight: Option<(Batch, Vec<u8>, Replies)> = None;
    let crash_one_in = 5 + rng.below(100);
    let mut applied = first;
    let mut calm = 0;
    loop {
        calm += 1;
        assert!(calm < 200_000, "seed {seed:#x} does not come to an end");
        if rng.chance(crash_one_in) && calm < 5000 {
            // Whatever is on its way has run already or is lost; we know only what the server says.
            in_flight = None;
            let (offset, db) = server.position().unwrap_or_else(|| panic!("seed {seed:#x}: no position"));
            assert!(offset >= applied, "seed {seed:#x}: the position went back");
            if rng.chance(2) {
                collector = super::tests::collector(offset, db, limits);
            } else {
                collector.restart(offset, db);
            }
            continue;
        }
        let at = (collector.received() - first) as usize;
        if rng.chance(2) && !collector.is_full() && at < bytes.len() {
            let piece = (1 + rng.below(200)).min(bytes.len() - at);
            collector.push(&bytes[at..at + piece], 1);
        }
        if rng.chance(2) {
            collector.collect().unwrap();
        }
        match in_flight.take() {
            None => {
                let anyway = rng.chance(20);
                if let Some(batch) = collector.take(anyway, mark) {
                    let refused = rng.chance(30);
                    // A crash before this line: nothing ran. Behind it: all of it did.
                    let mut replies = if rng.chance(crash_one_in) {
                        Vec::new()
                    } else {
                        server.batch(&batch.wire, refused)
                    };
                    if replies.is_empty() {
                        let (offset, db) = server.position().unwrap();
                        collector.restart(offset, db);
                        continue;
                    }
                    replies.reverse();
                    let reader = Replies::new(batch.len());
                    in_flight = Some((batch, replies, reader));
                }
            }
            Some((batch, mut replies, mut reader)) => {
                // The server's bytes come in pieces; what was not done with is shown again.
                let arrived = 1 + rng.below(replies.len());
                let mut window: Vec<u8> = replies.split_off(replies.len() - arrived);
                window.reverse();
                let (done, answer) = reader.feed(&window).unwrap();
                replies.extend(window[done..].iter().rev());
                match answer {
                    None => in_flight = Some((batch, replies, reader)),
                    Some(Answer::Applied { failed }) => {
                        assert!(failed.is_empty() && replies.is_empty());
                        applied = batch.end;
                        assert_eq!(server.position(), Some((batch.end, batch.db)));
                        collector.recycle(batch);
                    }
                    Some(Answer::Refused { text, .. }) => {
                        assert!(text.starts_with("OOM"));
                        let (offset, db) = server.position().unwrap();
                        collector.restart(offset, db);
                    }
                    Some(Answer::Torn { .. }) => panic!("seed {seed:#x}"),
                }
            }
        }
        let all_read = collector.received() - first == bytes.len() as u64;
        if all_read
            && in_flight.is_none()
            && !collector.has_effects()
            && collector.sealed().0 == collector.received()
        {
            break;
        }
    }
    for key in [POSITION_KEY, "crossfade:epoch"] {
        assert!(server.data.remove(&(0, key.into())).is_some(), "seed {seed:#x}: {key} is gone");
    }
    assert_eq!(server.data, expected.data, "seed {seed:#x}");
}

#[test]
fn every_command_is_applied_once_whatever_dies_when() {
    if let Ok(seed) = std::env::var("CROSSFADE_SEED") {
        let seed = u64::from_str_radix(seed.trim_start_matches("0x"), 16).unwrap();
        return simulate(seed);
    }
    for seed in 1..=300u64 {
        simulate(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    }
}

fn fill(collector: &mut Collector, lines: &[&str]) {
    let mut bytes = Vec::new();
    for line in lines {
        write::command(&mut bytes, &line.split(' ').collect::<Vec<_>>());
    }
    collector.push(&bytes, 5);
    collector.collect().unwrap();
}

fn lines(batch: &Batch) -> Vec<String> {
    let words = |args: &Vec<Vec<u8>>| {
        args.iter().map(|arg| String::from_utf8_lossy(arg).into_owned()).collect::<Vec<_>>().join(" ")
    };
    commands(&batch.wire).iter().map(words).collect()
}

#[test]
fn a_batch_as_it_goes_over_the_wire() {
    let mut collector = collector(0, 0, BatchLimits::default());
    fill(
        &mut collector,
        &[
            "SELECT 2", "SET a 1", "MULTI", "SET b 2", "SET c 3", "EXEC", "PING", "FLUSHALL", "MULTI",
            "SET d 4",
        ],
    );
    let (end, db) = collector.sealed();
    let batch = collector.take(false, mark).unwrap();
    assert_eq!(
        lines(&batch),
        [
            "MULTI",
            "SELECT 2",
            "SET a 1",
            "MSET b 2 c 3",
            "FLUSHALL",
            "SELECT 0",
            "SET crossfade:epoch 1",
            &format!("SET crossfade:position {end} {db}"),
            "EXEC"
        ]
    );
    assert_eq!((batch.len(), batch.commands, batch.db, batch.oldest_ms), (7, 4, 2, 5));
    assert_eq!((0..7).filter(|&index| batch.is_joined(index)).collect::<Vec<_>>(), [2]);
    assert!(collector.take(false, mark).is_none(), "the open transaction waits");
    fill(&mut collector, &["EXEC"]);
    let named = batch.name(2);
    assert_eq!((named.name.as_str(), named.key.as_deref(), named.db), ("MSET", Some(&b"b"[..]), 2));
    let batch = collector.take(false, mark).unwrap();
    assert_eq!(lines(&batch)[..3], ["MULTI", "SELECT 2", "SET d 4"]);
    let idle = collector.take(true, mark).unwrap();
    assert_eq!(
        lines(&idle),
        ["MULTI".to_owned(), format!("SET crossfade:position {} 2", batch.end), "EXEC".into()]
    );
}

#[test]
fn sets_are_joined() {
    let mut collector = collector(0, 0, BatchLimits::default());
    let sets: Vec<String> = (0..20).map(|n| format!("set k{n} {n}")).collect();
    let mut all: Vec<&str> = sets.iter().map(String::as_str).collect();
    let large = format!("SET big {}", "x".repeat(SMALL));
    all.extend(["SET e 1 EX 100", &large, "SET l 1", "MULTI", "SET m 2", "SET n 3"]);
    fill(&mut collector, &all);
    let batch = collector.take(false, mark).unwrap();
    let sixteen: Vec<String> = (0..16).map(|n| format!("k{n} {n}")).collect();
    let now = lines(&batch);
    assert_eq!(now[1..3], [format!("MSET {}", sixteen.join(" ")), "MSET k16 16 k17 17 k18 18 k19 19".into()]);
    assert!(now[3].starts_with("SET e 1 PXAT "), "{}", now[3]);
    assert_eq!(now[4..6], [large, "SET l 1".into()]);
    assert_eq!((now.len(), batch.commands), (8, 23));
    // The rest of a transaction that has begun takes what it joined along.
    fill(&mut collector, &["SET o 4", "EXEC", "SET p 5"]);
    let batch = collector.take(false, mark).unwrap();
    assert_eq!(lines(&batch)[1..3], ["MSET m 2 n 3", "MSET o 4 p 5"]);
    assert!(batch.is_joined(0) && batch.is_joined(1) && !batch.is_joined(2));
    collector.join_nothing();
    fill(&mut collector, &["SET a 1", "SET b 2"]);
    assert_eq!(lines(&collector.take(false, mark).unwrap())[1..3], ["SET a 1", "SET b 2"]);
}

#[test]
fn a_transaction_beyond_the_limits_is_one_batch() {
    let mut collector = collector(0, 0, BatchLimits { commands: 2, bytes: 100 });
    fill(&mut collector, &["MULTI", "INCR a", "INCR b", "INCR c", "EXEC", "INCR d"]);
    assert!(collector.is_full());
    assert_eq!(collector.take(false, mark).unwrap().commands, 3);
    collector.collect().unwrap();
    assert_eq!(collector.take(false, mark).unwrap().commands, 1);
}

#[test]
fn standby_discards_up_to_an_offset_and_holds_there() {
    let mut collector = collector(0, 0, BatchLimits::default());
    collector.discard_until(u64::MAX);
    fill(&mut collector, &["SELECT 1", "SET a 1", "MULTI", "SET b 2", "EXEC"]);
    let (engaged, db) = collector.sealed();
    assert!(!collector.has_effects());
    assert_eq!((engaged, db), (collector.received(), 1));
    collector.discard_until(engaged);
    collector.hold_at(engaged);
    fill(&mut collector, &["SET c 3"]);
    assert_eq!(collector.sealed().0, engaged);
    collector.hold_at(u64::MAX);
    collector.collect().unwrap();
    assert_eq!(lines(&collector.take(false, mark).unwrap())[1..3], ["SELECT 1", "SET c 3"]);
}

#[test]
fn a_command_can_be_left_out() {
    let mut first = collector(0, 0, BatchLimits::default());
    fill(&mut first, &["SET a 1"]);
    let end = first.sealed().0;
    let mut collector = collector(0, 0, BatchLimits::default());
    collector.skip(end);
    fill(&mut collector, &["SET a 1", "SET b 2"]);
    assert_eq!(lines(&collector.take(false, mark).unwrap())[1], "SET b 2");
}

#[test]
fn answers() {
    let feed = |commands: usize, text: &[u8]| {
        let mut whole = Replies::new(commands);
        let (_, at_once) = whole.feed(text).unwrap();
        // Byte by byte it comes to the same.
        let mut reader = Replies::new(commands);
        let mut window = Vec::new();
        let mut answer = None;
        for byte in text {
            window.push(*byte);
            let (done, now) = reader.feed(&window).unwrap();
            window.drain(..done);
            answer = answer.or(now);
        }
        assert_eq!(answer, at_once);
        at_once
    };
    let applied = |failed: &[(usize, &str)]| {
        Some(Answer::Applied {
            failed: failed.iter().map(|(nth, text)| (*nth, (*text).to_owned())).collect(),
        })
    };
    assert_eq!(feed(1, b"+OK\r\n+QUEUED\r\n*1\r\n+OK\r\n"), applied(&[]));
    assert_eq!(
        feed(2, b"+OK\r\n+QUEUED\r\n+QUEUED\r\n*2\r\n*2\r\n$3\r\n-no\r\n*1\r\n:5\r\n+OK\r\n"),
        applied(&[])
    );
    assert_eq!(
        feed(3, b"+OK\r\n+QUEUED\r\n+QUEUED\r\n+QUEUED\r\n*3\r\n$-1\r\n-WRONGTYPE x\r\n$4\r\n\r\n-x\r\n"),
        applied(&[(1, "WRONGTYPE x")])
    );
    assert_eq!(
        feed(2, b"+OK\r\n+QUEUED\r\n-OOM y\r\n-EXECABORT z\r\n"),
        Some(Answer::Refused { index: Some(1), text: "OOM y".into() })
    );
    assert_eq!(
        feed(1, b"+OK\r\n+QUEUED\r\n-MISCONF z\r\n"),
        Some(Answer::Refused { index: None, text: "MISCONF z".into() })
    );
    assert_eq!(feed(2, b"-BUSY x\r\n-BUSY x\r\n:5\r\n"), Some(Answer::Torn { text: "BUSY x".into() }));
    assert_eq!(feed(1, b"+OK\r\n+QUEUED\r\n*1\r\n"), None);
    for wrong in [
        &b"+OK\r\n+OKAY\r\n"[..],
        b"+OK\r\n+QUEUED\r\n*2\r\n",
        b"+OK\r\n+QUEUED\r\n*-1\r\n",
        b"+OK\r\n:1\r\n",
    ] {
        assert!(Replies::new(1).feed(wrong).is_err(), "{wrong:?}");
    }
}

#[test]
fn what_is_made_of_wrong_keys_is_wrong_too() {
    // The keys that are wrong when the commands of these indexes among those with keys failed.
    let wrong = |lines: &[&str], failed: &[usize]| {
        let mut stream = Vec::new();
        for line in lines {
            write::command(&mut stream, &line.split(' ').collect::<Vec<_>>());
        }
        let transform = Transform::new(Dialect::of_version(7, 0), Vec::new());
        let mut collector = Collector::new(0, 0, transform, BatchLimits::default());
        collector.push(&stream, 1);
        collector.collect().unwrap();
        let batch = collector.take(false, |_, _| "mark".into()).unwrap();
        let with_keys: Vec<usize> = (0..batch.len()).filter(|at| batch.name(*at).name != "SELECT").collect();
        let failed: Vec<usize> = failed.iter().map(|nth| with_keys[*nth]).collect();
        let wrong = batch.spread(&failed)?;
        Some(wrong.iter().map(|(db, key)| format!("{db} {}", key.escape_ascii())).collect::<Vec<_>>())
    };
    let found = |keys: &[&str]| Some(keys.iter().map(|key| (*key).to_owned()).collect::<Vec<_>>());
    let moved = ["RPOPLPUSH a b", "COPY a c REPLACE", "LPUSH d 1", "RENAME c e", "COPY d f"];
    assert_eq!(wrong(&moved, &[0]), found(&["0 a", "0 b", "0 c", "0 e"]));
    assert_eq!(wrong(&moved, &[2]), found(&["0 d", "0 f"]));
    assert_eq!(wrong(&moved, &[3]), found(&["0 c", "0 e"]), "what came before is right");
    assert_eq!(wrong(&moved, &[0, 2]), found(&["0 a", "0 b", "0 c", "0 d", "0 e", "0 f"]));
    let swapped = ["SELECT 1", "LPUSH a 1", "SWAPDB 0 1", "SELECT 0", "COPY a b", "SELECT 1", "COPY a c"];
    assert_eq!(wrong(&swapped, &[0]), found(&["0 a", "0 b"]));
    let others = ["LPUSH a 1", "MOVE a 3", "SELECT 3", "SUNIONSTORE d x y", "SORT a STORE z"];
    assert_eq!(wrong(&others, &[0]), found(&["0 a", "3 a", "3 z"]));
    assert_eq!(wrong(&["LPUSH a 1", "EVAL x 0", "SET b 1"], &[0]), None, "nobody knows");
}

//! The scanner against `redis-protocol` as an oracle, cut everywhere, and against garbage.

use bytes::{Bytes, BytesMut};
use proptest::prelude::*;
use redis_protocol::{resp2, resp3};

use super::scan::{CommandScanner, Frame, Limits, ProtocolError, ReplyScanner, split_inline};
use super::value::{Bounds, Decoder, Value, decode};
use super::write;

/// A reply as it stands on the wire, and whether RESP2 has it.
fn reply() -> impl Strategy<Value = Vec<u8>> {
    let line = proptest::collection::vec(
        any::<u8>().prop_filter("no line break", |b| !matches!(b, b'\r' | b'\n')),
        0..12,
    );
    let leaf = prop_oneof![
        line.clone().prop_map(|text| [b"+", &text[..], b"\r\n"].concat()),
        line.prop_map(|text| [b"-", &text[..], b"\r\n"].concat()),
        any::<i64>().prop_map(|n| format!(":{n}\r\n").into_bytes()),
        proptest::collection::vec(any::<u8>(), 0..40).prop_map(|text| {
            let mut out = Vec::new();
            write::bulk(&mut out, &text);
            out
        }),
        Just(b"$-1\r\n".to_vec()),
        Just(b"*-1\r\n".to_vec()),
        Just(b"*0\r\n".to_vec()),
    ];
    leaf.prop_recursive(5, 64, 8, |inner| {
        proptest::collection::vec(inner, 1..8).prop_map(|items| {
            let mut out = Vec::new();
            write::array_header(&mut out, items.len());
            out.extend(items.concat());
            out
        })
    })
}

/// A RESP3 reply that the oracle can represent: scalars as keys and members.
fn reply3() -> impl Strategy<Value = Vec<u8>> {
    let scalar = prop_oneof![
        any::<i64>().prop_map(|n| format!(":{n}\r\n").into_bytes()),
        any::<i32>().prop_map(|n| format!(",{n}.5\r\n").into_bytes()),
        any::<bool>().prop_map(|b| if b { b"#t\r\n".to_vec() } else { b"#f\r\n".to_vec() }),
        Just(b"_\r\n".to_vec()),
        "[a-z]{0,9}".prop_map(|s| format!("+{s}\r\n").into_bytes()),
        "[ -~]{0,9}".prop_map(|s| format!("-{s}\r\n").into_bytes()),
        "[0-9]{20,30}".prop_map(|s| format!("({s}\r\n").into_bytes()),
        proptest::collection::vec(any::<u8>(), 0..20).prop_map(|text| {
            let mut out = Vec::new();
            write::bulk(&mut out, &text);
            out
        }),
        "[ -~]{0,9}".prop_map(|s| format!("={}\r\ntxt:{s}\r\n", s.len() + 4).into_bytes()),
        "[ -~]{0,9}".prop_map(|s| format!("!{}\r\n{s}\r\n", s.len()).into_bytes()),
    ];
    let key = "[a-z]{0,9}".prop_map(|s| format!("+{s}\r\n").into_bytes());
    scalar.prop_recursive(4, 48, 6, move |inner| {
        let item = inner.clone();
        prop_oneof![
            (prop_oneof![Just('*'), Just('>')], proptest::collection::vec(item, 0..6))
                .prop_map(|(marker, items)| [aggregate(marker, items.len()), items.concat()].concat()),
            proptest::collection::vec(key.clone(), 0..6).prop_map(|items| [
                aggregate('~', items.len()),
                items.concat()
            ]
            .concat()),
            proptest::collection::vec((key.clone(), inner), 0..4).prop_map(|pairs| {
                let len = pairs.len();
                let body: Vec<u8> = pairs.into_iter().flat_map(|(k, v)| [k, v].concat()).collect();
                [aggregate('%', len), body].concat()
            }),
        ]
    })
}

fn aggregate(marker: char, len: usize) -> Vec<u8> {
    format!("{marker}{len}\r\n").into_bytes()
}

/// Bytes that look like RESP more often than not.
fn garbage() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        4 => proptest::sample::select(b"*$+-:,#(_~%>|=!0123456789\r\n \"'\\x".to_vec()).prop_map(|b| vec![b]),
        2 => Just(b"\r\n".to_vec()),
        1 => (0..5u8).prop_map(|n| vec![b'*', b'0' + n, b'\r', b'?']),
        1 => (0..3u8).prop_map(|n| [b"$", &[b'0' + n][..], b"\r?ab?"].concat()),
        1 => any::<u8>().prop_map(|b| vec![b]),
        1 => (0..70i64).prop_map(|n| format!("*{n}\r\n").into_bytes()),
        2 => (-2..9i64).prop_map(|n| format!("${n}\r\n").into_bytes()),
        1 => any::<i64>().prop_map(|n| format!("%{n}\r\n").into_bytes()),
        1 => Just(b"$3\r\nabc\r\n".to_vec()),
    ];
    proptest::collection::vec(piece, 0..60).prop_map(|pieces| pieces.concat())
}

fn cuts(len: usize, seeds: &[usize]) -> Vec<usize> {
    let mut at: Vec<usize> = seeds.iter().map(|seed| seed % (len + 1)).collect();
    at.push(len);
    at.sort_unstable();
    at.dedup();
    at
}

/// Feeds a scanner as a connection does: what it did not consume is shown again with more behind it.
fn feed_in_pieces(buf: &[u8], cuts: &[usize]) -> Result<Option<usize>, ProtocolError> {
    let mut scanner = ReplyScanner::default();
    let mut at = 0;
    for cut in cuts {
        if *cut <= at {
            continue;
        }
        let feed = scanner.feed(&buf[at..*cut])?;
        at += feed.consumed;
        if feed.complete {
            assert!(!scanner.is_midway());
            return Ok(Some(at));
        }
    }
    Ok(None)
}

fn feed_at_once(buf: &[u8]) -> Result<Option<usize>, ProtocolError> {
    let feed = ReplyScanner::default().feed(buf)?;
    Ok(feed.complete.then_some(feed.consumed))
}

fn scan_in_pieces(buf: &[u8], cuts: &[usize], limits: &Limits) -> Result<Option<Frame>, ProtocolError> {
    let mut scanner = CommandScanner::default();
    for cut in cuts {
        if let Some(frame) = scanner.next(&buf[..*cut], limits)? {
            return Ok(Some(frame));
        }
        assert!(scanner.need() == 0 || scanner.need() > *cut);
    }
    Ok(None)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn replies_end_where_the_oracle_says(text in reply(), tail in garbage()) {
        let oracle = resp2::decode::decode_range(&text).unwrap().unwrap().1;
        prop_assert_eq!(oracle, text.len());
        let whole = [&text[..], &tail].concat();
        prop_assert_eq!(feed_at_once(&whole), Ok(Some(oracle)));
        for cut in 0..text.len() {
            prop_assert_eq!(feed_at_once(&text[..cut]), Ok(None));
            prop_assert_eq!(feed_in_pieces(&text, &[cut, text.len()]), Ok(Some(oracle)));
        }
        let each: Vec<usize> = (0..=text.len()).collect();
        prop_assert_eq!(feed_in_pieces(&text, &each), Ok(Some(oracle)));
    }

    #[test]
    fn resp3_replies_end_where_the_oracle_says(text in reply3()) {
        let oracle = resp3::decode::complete::decode_range(&text).unwrap().unwrap().1;
        prop_assert_eq!(feed_at_once(&text), Ok(Some(oracle)));
        let each: Vec<usize> = (0..=text.len()).collect();
        prop_assert_eq!(feed_in_pieces(&text, &each), Ok(Some(oracle)));
        let (value, used) = decode(&text).unwrap().unwrap();
        prop_assert_eq!(used, oracle);
        prop_assert!(!matches!(value, Value::Error(_)) || matches!(text[0], b'-' | b'!'));
    }

    #[test]
    fn values_are_those_of_the_oracle(text in reply()) {
        let (value, used) = decode(&text).unwrap().unwrap();
        prop_assert_eq!(used, text.len());
        // The oracle's owned frames refuse errors that are not UTF-8.
        if let Ok(Some((frame, _))) = resp2::decode::decode_bytes(&Bytes::from(text.clone())) {
            prop_assert_eq!(value, same(frame));
        }
    }

    #[test]
    fn commands_are_those_of_the_oracle(
        args in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..30), 1..20),
        tail in garbage(),
    ) {
        let mut text = Vec::new();
        write::command(&mut text, &args);
        let (frame, len) = resp2::decode::decode_bytes(&Bytes::from(text.clone())).unwrap().unwrap();
        let resp2::types::BytesFrame::Array(items) = frame else { panic!("an array") };
        let whole = [&text[..], &tail].concat();
        let frame = CommandScanner::default().next(&whole, &Limits::default()).unwrap().unwrap();
        prop_assert_eq!(frame.len, len);
        prop_assert_eq!(frame.argc, args.len());
        prop_assert_eq!(&whole[frame.name.clone()], &args[0][..]);
        let ours: Vec<Value> =
            frame.args(&whole).map(|arg| Value::Bulk(Bytes::copy_from_slice(arg))).collect();
        prop_assert_eq!(ours, items.into_iter().map(same).collect::<Vec<_>>());
        for cut in 0..text.len() {
            prop_assert_eq!(CommandScanner::default().next(&text[..cut], &Limits::default()), Ok(None));
            let limits = Limits::default();
            prop_assert_eq!(scan_in_pieces(&text, &[cut, text.len()], &limits), Ok(Some(frame.clone())));
        }
    }

    #[test]
    fn garbage_in_pieces_is_garbage_at_once(
        text in garbage(),
        seeds in proptest::collection::vec(any::<usize>(), 0..20),
    ) {
        let cuts = cuts(text.len(), &seeds);
        prop_assert_eq!(feed_in_pieces(&text, &cuts), feed_at_once(&text));
        let limits = Limits::default();
        let once = CommandScanner::default().next(&text, &limits);
        prop_assert_eq!(scan_in_pieces(&text, &cuts, &limits), once.clone());
        if let Ok(Some(frame)) = once {
            prop_assert!(frame.len <= text.len());
            if !frame.inline {
                prop_assert_eq!(frame.args(&text).count(), frame.argc);
            }
        }
        let bounds = Bounds { depth: 8, bytes: 64, elements: 64 };
        let mut decoder = Decoder::new(bounds);
        let mut buf = BytesMut::from(&text[..]);
        while let Ok(Some(_)) = decoder.next(&mut buf) {}
    }

    #[test]
    fn small_limits_hold(text in garbage()) {
        let limits = Limits { inline: 16, arguments: 4, bulk: 8 };
        if let Ok(Some(frame)) = CommandScanner::default().next(&text, &limits)
            && !frame.inline {
                prop_assert!(frame.argc <= 4);
                prop_assert!(frame.args(&text).all(|arg| arg.len() <= 8));
            }
    }

    #[test]
    fn inline_words_come_back_however_they_are_quoted(
        words in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..12), 1..6)
    ) {
        let line: Vec<u8> = words.iter().flat_map(|word| {
            let hex: String = word.iter().map(|byte| format!("\\x{byte:02X}")).collect();
            format!(" \"{hex}\"\t").into_bytes()
        }).collect();
        prop_assert_eq!(split_inline(&line), Some(words));
    }
}

fn same(frame: resp2::types::BytesFrame) -> Value {
    use resp2::types::BytesFrame;
    match frame {
        BytesFrame::SimpleString(text) => Value::Simple(text),
        BytesFrame::Error(text) => Value::Error(text.into_inner()),
        BytesFrame::Integer(number) => Value::Integer(number),
        BytesFrame::BulkString(text) => Value::Bulk(text),
        BytesFrame::Array(items) => Value::Array(items.into_iter().map(same).collect()),
        BytesFrame::Null => Value::Nil,
    }
}

fn refusal(text: &[u8], limits: &Limits) -> String {
    CommandScanner::default().next(text, limits).unwrap_err().to_string()
}

#[test]
fn limits_have_the_texts_of_redis() {
    let limits = Limits::default();
    assert_eq!(refusal(b"*2147483648\r\n", &limits), "Protocol error: invalid multibulk length");
    assert_eq!(refusal(b"*1048577\r\n", &limits), "Protocol error: invalid multibulk length");
    assert_eq!(refusal(b"*1\r\n$536870913\r\n", &limits), "Protocol error: invalid bulk length");
    assert_eq!(refusal(b"*1\r\n$-1\r\n", &limits), "Protocol error: invalid bulk length");
    assert_eq!(refusal(b"*1\r\n:1\r\n", &limits), "Protocol error: expected '$', got ':'");
    assert_eq!(refusal(b"a \"b\r\n", &limits), "Protocol error: unbalanced quotes in request");
    let long = vec![b'1'; 64 * 1024 + 2];
    assert_eq!(refusal(&[b"*", &long[..]].concat(), &limits), "Protocol error: too big mbulk count string");
    assert_eq!(
        refusal(&[b"*1\r\n$", &long[..]].concat(), &limits),
        "Protocol error: too big bulk count string"
    );
    assert_eq!(refusal(&long, &limits), "Protocol error: too big inline request");
    let limits = Limits::unauthenticated();
    assert_eq!(refusal(b"*11\r\n", &limits), "Protocol error: unauthenticated multibulk length");
    assert_eq!(refusal(b"*1\r\n$16385\r\n", &limits), "Protocol error: unauthenticated bulk length");
}

#[test]
fn empty_commands_are_passed_over() {
    for text in [&b"*0\r\n"[..], b"*-1\r\n", b"*-5\r\n", b"\r\n", b"\n", b"  \t \r\n"] {
        let frame = CommandScanner::default().next(text, &Limits::default()).unwrap().unwrap();
        assert_eq!((frame.argc, frame.len), (0, text.len()));
    }
}

#[test]
fn a_byte_in_the_place_of_the_line_feed_is_passed_over() {
    let text = b"*2\rx$3\r\rfooxy$1\r\0b\n\r";
    let frame = CommandScanner::default().next(text, &Limits::default()).unwrap().unwrap();
    assert_eq!(frame.len, text.len());
    assert_eq!(frame.args(text).collect::<Vec<_>>(), [&b"foo"[..], b"b"]);
}

#[test]
fn a_bomb_costs_nothing() {
    // Announced, not sent: neither memory nor time in proportion.
    let mut scanner = CommandScanner::default();
    assert_eq!(scanner.next(b"*1048576\r\n$536870912\r\n", &Limits::default()), Ok(None));
    assert_eq!(scanner.need(), 10 + 12 + 536_870_912 + 2);
    assert_eq!(feed_at_once(&b"*1\r\n".repeat(1_000_000)), Ok(None));
    assert_eq!(feed_at_once(&b"|1099511627775\r\n".repeat(10_000)), Ok(None));
    assert_eq!(feed_at_once(b"%1099511627775\r\n"), Ok(None));
    let mut scanner = ReplyScanner::default();
    let mut error = None;
    for _ in 0..(1 << 23) + 8 {
        if let Err(found) = scanner.feed(b"|1099511627775\r\n") {
            error = Some(found);
            break;
        }
    }
    assert!(error.unwrap().text.contains("too many elements"));
    assert!(decode(b"*1000000000000\r\n").unwrap().is_none());
}

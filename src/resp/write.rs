//! Writes commands, and the replies that the gateway gives itself.
//!
//! Everything goes to a [`BufMut`] that grows (`Vec<u8>`, `BytesMut`). Replies that differ between the two
//! protocols take a [`Proto`]. Text of errors and simple strings loses its line breaks, as Redis does it
//! (`addReplyErrorFormat`), so that no text can forge a reply.

use bytes::BufMut;

/// The protocol that a client speaks; RESP2 until `HELLO 3`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Proto {
    /// What every client begins with.
    #[default]
    Resp2,
    /// After `HELLO 3`.
    Resp3,
}

/// `*N` and each argument as a bulk string.
#[inline]
pub fn command<B: BufMut, A: AsRef<[u8]>>(out: &mut B, args: &[A]) {
    array_header(out, args.len());
    for arg in args {
        bulk(out, arg.as_ref());
    }
}

/// How many bytes [`command`] will write.
pub fn command_len<A: AsRef<[u8]>>(args: &[A]) -> usize {
    let bulks: usize = args
        .iter()
        .map(|arg| {
            let len = arg.as_ref().len();
            len + digits(len) + 5
        })
        .sum();
    bulks + digits(args.len()) + 3
}

fn digits(number: usize) -> usize {
    number.checked_ilog10().map_or(1, |log| log as usize + 1)
}

#[inline]
fn header<B: BufMut>(out: &mut B, marker: u8, number: usize) {
    out.put_u8(marker);
    let mut text = itoa::Buffer::new();
    out.put_slice(text.format(number).as_bytes());
    out.put_slice(b"\r\n");
}

/// `*N`; N values are to follow.
#[inline]
pub fn array_header<B: BufMut>(out: &mut B, len: usize) {
    header(out, b'*', len);
}

/// A map of N pairs: `%N`, or in RESP2 an array of 2 N.
pub fn map_header<B: BufMut>(out: &mut B, proto: Proto, pairs: usize) {
    match proto {
        Proto::Resp2 => header(out, b'*', pairs * 2),
        Proto::Resp3 => header(out, b'%', pairs),
    }
}

/// A set of N members: `~N`, or in RESP2 an array.
pub fn set_header<B: BufMut>(out: &mut B, proto: Proto, len: usize) {
    header(out, if proto == Proto::Resp3 { b'~' } else { b'*' }, len);
}

/// An out-of-band message of N values: `>N`, or in RESP2 an array.
pub fn push_header<B: BufMut>(out: &mut B, proto: Proto, len: usize) {
    header(out, if proto == Proto::Resp3 { b'>' } else { b'*' }, len);
}

/// `$N` and the bytes.
#[inline]
pub fn bulk<B: BufMut>(out: &mut B, bytes: &[u8]) {
    header(out, b'$', bytes.len());
    out.put_slice(bytes);
    out.put_slice(b"\r\n");
}

/// A text for people: `=N txt:…`, or in RESP2 a bulk string.
pub fn verbatim<B: BufMut>(out: &mut B, proto: Proto, text: &[u8]) {
    match proto {
        Proto::Resp2 => bulk(out, text),
        Proto::Resp3 => {
            header(out, b'=', text.len() + 4);
            out.put_slice(b"txt:");
            out.put_slice(text);
            out.put_slice(b"\r\n");
        }
    }
}

/// `:N`
#[inline]
pub fn integer<B: BufMut>(out: &mut B, number: i64) {
    out.put_u8(b':');
    let mut text = itoa::Buffer::new();
    out.put_slice(text.format(number).as_bytes());
    out.put_slice(b"\r\n");
}

/// `#t` or `#f`, or in RESP2 `:1` or `:0`.
pub fn boolean<B: BufMut>(out: &mut B, proto: Proto, flag: bool) {
    out.put_slice(match (proto, flag) {
        (Proto::Resp2, true) => b":1\r\n",
        (Proto::Resp2, false) => b":0\r\n",
        (Proto::Resp3, true) => b"#t\r\n",
        (Proto::Resp3, false) => b"#f\r\n",
    });
}

/// `,…`, or in RESP2 the same text as a bulk string.
pub fn double<B: BufMut>(out: &mut B, proto: Proto, number: f64) {
    let text = if number.is_nan() {
        "nan".to_owned()
    } else if number.is_infinite() {
        if number > 0.0 { "inf".to_owned() } else { "-inf".to_owned() }
    } else {
        number.to_string()
    };
    match proto {
        Proto::Resp2 => bulk(out, text.as_bytes()),
        Proto::Resp3 => {
            out.put_u8(b',');
            out.put_slice(text.as_bytes());
            out.put_slice(b"\r\n");
        }
    }
}

/// `-…`; `text` begins with its code, as in `ERR no such key`.
pub fn error<B: BufMut>(out: &mut B, text: impl AsRef<[u8]>) {
    line(out, b'-', text.as_ref());
}

/// `+…`
pub fn simple<B: BufMut>(out: &mut B, text: impl AsRef<[u8]>) {
    line(out, b'+', text.as_ref());
}

/// `+OK`
#[inline]
pub fn ok<B: BufMut>(out: &mut B) {
    out.put_slice(b"+OK\r\n");
}

fn line<B: BufMut>(out: &mut B, marker: u8, text: &[u8]) {
    out.put_u8(marker);
    if memchr::memchr2(b'\r', b'\n', text).is_none() {
        out.put_slice(text);
    } else {
        for byte in text {
            out.put_u8(if matches!(byte, b'\r' | b'\n') { b' ' } else { *byte });
        }
    }
    out.put_slice(b"\r\n");
}

/// No value: `_`, or in RESP2 `$-1`.
pub fn null<B: BufMut>(out: &mut B, proto: Proto) {
    out.put_slice(if proto == Proto::Resp3 { b"_\r\n" } else { b"$-1\r\n" });
}

/// No array, as EXEC answers after a conflict: `_`, or in RESP2 `*-1`.
pub fn null_array<B: BufMut>(out: &mut B, proto: Proto) {
    out.put_slice(if proto == Proto::Resp3 { b"_\r\n" } else { b"*-1\r\n" });
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::resp::scan::{CommandScanner, Limits};
    use crate::resp::value::{Value, decode};

    #[test]
    fn a_command_comes_back() {
        let long = vec![b'x'; 1000];
        for args in [vec![&b"PING"[..]], vec![b"SET", b"", &long], vec![b"a"; 11], vec![&long; 100]] {
            let mut out = Vec::new();
            command(&mut out, &args);
            assert_eq!(out.len(), command_len(&args));
            let frame = CommandScanner::default().next(&out, &Limits::default()).unwrap().unwrap();
            assert_eq!(frame.len, out.len());
            assert_eq!(frame.args(&out).collect::<Vec<_>>(), args);
        }
    }

    fn back(proto: Proto, write: impl Fn(&mut Vec<u8>, Proto)) -> Value {
        let mut out = Vec::new();
        write(&mut out, proto);
        let (value, used) = decode(&out).unwrap().unwrap();
        assert_eq!(used, out.len());
        value
    }

    #[test]
    fn replies_come_back() {
        use Proto::{Resp2, Resp3};
        for proto in [Resp2, Resp3] {
            assert_eq!(back(proto, null), Value::Nil);
            assert_eq!(back(proto, null_array), Value::Nil);
            assert_eq!(back(proto, |out, _| integer(out, i64::MIN)), Value::Integer(i64::MIN));
            assert_eq!(back(proto, |out, p| verbatim(out, p, b"a:1")).as_str(), Some("a:1"));
            assert_eq!(
                back(proto, |out, _| error(out, "ERR a\r\nb")),
                Value::Error(Bytes::from_static(b"ERR a  b"))
            );
            let map = back(proto, |out, p| {
                map_header(out, p, 1);
                bulk(out, b"k");
                boolean(out, p, true);
            });
            assert_eq!(map.field("k").and_then(Value::as_i64), Some(1));
            assert_eq!(back(proto, |out, p| push_header(out, p, 0)).into_array(), Some(vec![]));
            assert_eq!(back(proto, |out, p| set_header(out, p, 0)).into_array(), Some(vec![]));
        }
        assert_eq!(back(Resp3, |out, p| double(out, p, -0.5)), Value::Double(-0.5));
        assert_eq!(back(Resp2, |out, p| double(out, p, f64::NEG_INFINITY)).as_str(), Some("-inf"));
        assert!(back(Resp2, |out, _| ok(out)).is_ok());
        assert_eq!(back(Resp2, |out, _| simple(out, "a\nb")).as_str(), Some("a b"));
    }
}

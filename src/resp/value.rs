//! Replies as values, for the cold paths: INFO, replies to the gateway's own commands, verification.
//!
//! Guarantees: bytes are kept as they came (an error that is not UTF-8, a duplicate member of a set, the
//! order of a map); nesting is bounded by [`Bounds::depth`], memory by [`Bounds::bytes`] and
//! [`Bounds::elements`]; a reply that arrives in many pieces is looked at once, not once per piece.
//!
//! The work is divided: [`ReplyScanner`] finds where the reply ends; an outline of it checks depth and size;
//! then `redis-protocol` decodes it. Its RESP2 decoder takes whole replies, as ranges over the buffer, since
//! its owned frames refuse an error that is not UTF-8. Its RESP3 decoder gets one scalar at a time and the
//! aggregates are put together here, since its maps forget their order, its sets drop duplicates, and both
//! refuse aggregates as members (which `COMMAND INFO` sends).

use bytes::{Bytes, BytesMut};
use redis_protocol::{resp2, resp3};

use super::scan::{ProtocolError, ReplyScanner};

/// One decoded reply.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// `$-1`, `*-1` or `_`.
    Nil,
    /// `+…`
    Simple(Bytes),
    /// `-…` or `!…`, without the marker.
    Error(Bytes),
    /// `:…`
    Integer(i64),
    /// `$…`, and the text of a verbatim string (`=…`) without its format.
    Bulk(Bytes),
    /// `*…`
    Array(Vec<Value>),
    /// `%…`, in the order of the wire.
    Map(Vec<(Value, Value)>),
    /// `~…`, in the order of the wire, duplicates included.
    Set(Vec<Value>),
    /// `,…`
    Double(f64),
    /// `#t` or `#f`.
    Boolean(bool),
    /// `(…`: the digits.
    BigNumber(Bytes),
    /// `>…`: out of band, no reply to any command.
    Push(Vec<Value>),
}

impl Value {
    /// The bytes of a string, of whatever marker, or of an error.
    pub fn as_bytes(&self) -> Option<&[u8]> {
        match self {
            Value::Simple(bytes) | Value::Bulk(bytes) | Value::Error(bytes) | Value::BigNumber(bytes) => {
                Some(bytes)
            }
            _ => None,
        }
    }

    /// [`Self::as_bytes`] when they are UTF-8.
    pub fn as_str(&self) -> Option<&str> {
        std::str::from_utf8(self.as_bytes()?).ok()
    }

    /// An integer, also one that was sent as a string. Errors are none.
    pub fn as_i64(&self) -> Option<i64> {
        match self {
            Value::Integer(number) => Some(*number),
            Value::Boolean(flag) => Some(i64::from(*flag)),
            Value::Error(_) => None,
            _ => self.as_str()?.parse().ok(),
        }
    }

    /// Whether it is an error reply.
    pub fn is_error(&self) -> bool {
        matches!(self, Value::Error(_))
    }

    /// The text of an error reply, lossy where it is not UTF-8.
    pub fn error(&self) -> Option<String> {
        match self {
            Value::Error(text) => Some(String::from_utf8_lossy(text).into_owned()),
            _ => None,
        }
    }

    /// Whether it is `+OK`.
    pub fn is_ok(&self) -> bool {
        matches!(self, Value::Simple(text) if text.as_ref() == b"OK")
    }

    /// Whether it is one of the nils.
    pub fn is_nil(&self) -> bool {
        matches!(self, Value::Nil)
    }

    /// The members of an array, set or push.
    pub fn as_array(&self) -> Option<&[Value]> {
        match self {
            Value::Array(items) | Value::Set(items) | Value::Push(items) => Some(items),
            _ => None,
        }
    }

    /// The members of an array, set or push; a map gives keys and values in turn, as RESP2 sends it.
    pub fn into_array(self) -> Option<Vec<Value>> {
        match self {
            Value::Array(items) | Value::Set(items) | Value::Push(items) => Some(items),
            Value::Map(pairs) => Some(pairs.into_iter().flat_map(|(key, value)| [key, value]).collect()),
            _ => None,
        }
    }

    /// The value beside `key` in a map, or in a flat array of keys and values as RESP2 sends it.
    pub fn field(&self, key: &str) -> Option<&Value> {
        match self {
            Value::Map(pairs) => {
                pairs.iter().find(|(k, _)| k.as_bytes() == Some(key.as_bytes())).map(|(_, v)| v)
            }
            Value::Array(items) => items
                .chunks_exact(2)
                .find(|pair| pair[0].as_bytes() == Some(key.as_bytes()))
                .map(|pair| &pair[1]),
            _ => None,
        }
    }
}

/// How large a reply may be before decoding it is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Aggregates inside one another.
    pub depth: usize,
    /// Bytes of the whole reply on the wire.
    pub bytes: usize,
    /// Values in the whole reply: each costs tens of bytes here, and may cost three on the wire.
    pub elements: usize,
}

impl Default for Bounds {
    fn default() -> Self {
        Self { depth: 128, bytes: 1 << 30, elements: 1 << 24 }
    }
}

/// Decodes the reply at the front of `buf`: the value and the bytes that it took. `None`: it is not whole.
///
/// # Errors
/// Bytes that are no reply, or a reply beyond the default [`Bounds`].
pub fn decode(buf: &[u8]) -> Result<Option<(Value, usize)>, ProtocolError> {
    let bounds = Bounds::default();
    let mut scanner = ReplyScanner::default();
    let feed = scanner.feed(buf)?;
    check_size(buf.len().min(feed.consumed), &bounds)?;
    if !feed.complete {
        return Ok(None);
    }
    let value = whole(Bytes::copy_from_slice(&buf[..feed.consumed]), &bounds)?;
    Ok(Some((value, feed.consumed)))
}

/// Decodes replies from a connection's buffer, without looking twice at what a read cut in the middle.
#[derive(Debug, Default)]
pub struct Decoder {
    scanner: ReplyScanner,
    /// Bytes at the front of the buffer that the scanner has consumed.
    seen: usize,
    bounds: Bounds,
}

impl Decoder {
    /// A decoder with other bounds than the default.
    pub fn new(bounds: Bounds) -> Self {
        Self { bounds, ..Self::default() }
    }

    /// Takes the reply at the front of `buf` out of it. `None`: read more behind it, and call again.
    ///
    /// # Errors
    /// As [`decode`]. Nothing that follows on the connection can be trusted.
    pub fn next(&mut self, buf: &mut BytesMut) -> Result<Option<Value>, ProtocolError> {
        let feed = self.scanner.feed(&buf[self.seen..])?;
        self.seen += feed.consumed;
        check_size(self.seen, &self.bounds)?;
        if !feed.complete {
            return Ok(None);
        }
        let frame = buf.split_to(std::mem::take(&mut self.seen)).freeze();
        whole(frame, &self.bounds).map(Some)
    }
}

fn check_size(bytes: usize, bounds: &Bounds) -> Result<(), ProtocolError> {
    if bytes > bounds.bytes {
        return Err(ProtocolError::new(format!("a reply is larger than {} bytes", bounds.bytes)));
    }
    Ok(())
}

/// Decodes a frame whose end the scanner has found.
fn whole(frame: Bytes, bounds: &Bounds) -> Result<Value, ProtocolError> {
    if outline(&frame, bounds)? {
        return assemble(&frame);
    }
    match resp2::decode::decode_range(&frame) {
        Ok(Some((range, used))) if used == frame.len() => Ok(from_resp2(&frame, range)),
        _ => Err(malformed()),
    }
}

fn malformed() -> ProtocolError {
    ProtocolError::new("a reply is malformed")
}

fn too_deep(bounds: &Bounds) -> ProtocolError {
    ProtocolError::new(format!("a reply is nested deeper than {}", bounds.depth))
}

/// The marker, line and children of the value that begins at `at`; `next` is where what follows begins.
struct Item {
    kind: u8,
    next: usize,
    children: usize,
}

fn item(frame: &[u8], at: usize) -> Result<Item, ProtocolError> {
    let rest = frame.get(at..).unwrap_or_default();
    let end = memchr::memchr(b'\n', rest).ok_or_else(malformed)?;
    let kind = rest[0];
    let mut next = at + end + 1;
    let mut children = 0;
    if matches!(kind, b'$' | b'=' | b'!' | b'*' | b'~' | b'%' | b'>' | b'|') {
        let line = rest[1..end].strip_suffix(b"\r").ok_or_else(malformed)?;
        let number: i64 =
            std::str::from_utf8(line).ok().and_then(|n| n.parse().ok()).ok_or_else(malformed)?;
        let number = usize::try_from(number).ok();
        match kind {
            b'$' | b'=' | b'!' => {
                if let Some(len) = number {
                    next = len.checked_add(next + 2).filter(|n| *n <= frame.len()).ok_or_else(malformed)?;
                }
            }
            b'%' | b'|' => children = number.unwrap_or(0).checked_mul(2).ok_or_else(malformed)?,
            _ => children = number.unwrap_or(0),
        }
    }
    Ok(Item { kind, next, children })
}

/// Walks over the frame with a stack of its own: checks depth and number of values, and says whether there
/// is anything in it that only RESP3 has.
fn outline(frame: &[u8], bounds: &Bounds) -> Result<bool, ProtocolError> {
    let mut open: Vec<usize> = Vec::new();
    let (mut at, mut elements, mut resp3) = (0, 0usize, false);
    loop {
        let Item { kind, next, children } = item(frame, at)?;
        at = next;
        elements += 1;
        if elements > bounds.elements {
            return Err(ProtocolError::new(format!("a reply has more than {} values", bounds.elements)));
        }
        resp3 |= !matches!(kind, b'+' | b'-' | b':' | b'$' | b'*');
        // The value that an attribute describes is one more child of it here: the attribute itself is none.
        let children = if kind == b'|' { children + 1 } else { children };
        if children > 0 {
            if open.len() == bounds.depth {
                return Err(too_deep(bounds));
            }
            open.push(children);
            continue;
        }
        while let Some(left) = open.last_mut() {
            *left -= 1;
            if *left > 0 {
                break;
            }
            open.pop();
        }
        if open.is_empty() {
            return if at == frame.len() { Ok(resp3) } else { Err(malformed()) };
        }
    }
}

fn from_resp2(frame: &Bytes, range: resp2::types::RangeFrame) -> Value {
    use resp2::types::RangeFrame as Range;
    match range {
        Range::SimpleString((from, to)) => Value::Simple(frame.slice(from..to)),
        Range::Error((from, to)) => Value::Error(frame.slice(from..to)),
        Range::Integer(number) => Value::Integer(number),
        Range::BulkString((from, to)) => Value::Bulk(frame.slice(from..to)),
        Range::Null => Value::Nil,
        Range::Array(items) => {
            Value::Array(items.into_iter().map(|inner| from_resp2(frame, inner)).collect())
        }
    }
}

/// Puts a RESP3 frame together, its depth and size being checked.
fn assemble(frame: &Bytes) -> Result<Value, ProtocolError> {
    struct Open {
        kind: u8,
        left: usize,
        items: Vec<Value>,
    }
    let mut open: Vec<Open> = Vec::new();
    let mut at = 0;
    loop {
        let Item { kind, next, children } = item(frame, at)?;
        let mut done = match kind {
            b'|' => {
                open.push(Open { kind, left: children + 1, items: Vec::new() });
                at = next;
                continue;
            }
            b'*' | b'~' | b'>' | b'%' if children > 0 => {
                open.push(Open { kind, left: children, items: Vec::with_capacity(children.min(1024)) });
                at = next;
                continue;
            }
            b'*' if frame[at + 1] == b'-' => Value::Nil,
            b'*' | b'~' | b'>' | b'%' => aggregate(kind, Vec::new()),
            _ => scalar(frame, at, next)?,
        };
        at = next;
        loop {
            let Some(parent) = open.last_mut() else { return Ok(done) };
            parent.items.push(done);
            parent.left -= 1;
            if parent.left > 0 {
                break;
            }
            let Some(Open { kind, mut items, .. }) = open.pop() else { return Err(malformed()) };
            done = if kind == b'|' { items.pop().ok_or_else(malformed)? } else { aggregate(kind, items) };
        }
    }
}

fn aggregate(kind: u8, items: Vec<Value>) -> Value {
    match kind {
        b'~' => Value::Set(items),
        b'>' => Value::Push(items),
        b'%' => {
            let mut pairs = Vec::with_capacity(items.len() / 2);
            let mut items = items.into_iter();
            while let (Some(key), Some(value)) = (items.next(), items.next()) {
                pairs.push((key, value));
            }
            Value::Map(pairs)
        }
        _ => Value::Array(items),
    }
}

fn scalar(frame: &Bytes, from: usize, to: usize) -> Result<Value, ProtocolError> {
    use resp3::types::RangeFrame as Range;
    let bytes = frame.slice(from..to);
    if bytes.as_ref() == b"$-1\r\n" {
        return Ok(Value::Nil);
    }
    if bytes[0] == b'=' {
        // The library knows the formats `txt` and `mkd` only.
        let body = memchr::memchr(b'\n', &bytes).map_or(0, |end| end + 1);
        let (body, end) = (body + 4, bytes.len().saturating_sub(2));
        return if body <= end { Ok(Value::Bulk(bytes.slice(body..end))) } else { Err(malformed()) };
    }
    let decoded = resp3::decode::complete::decode_range(&bytes).map_err(|_| malformed())?;
    let Some((range, used)) = decoded else { return Err(malformed()) };
    if used != bytes.len() {
        return Err(malformed());
    }
    Ok(match range {
        Range::BlobString { data: (from, to), .. } => Value::Bulk(bytes.slice(from..to)),
        Range::SimpleString { data: (from, to), .. } => Value::Simple(bytes.slice(from..to)),
        Range::BlobError { data: (from, to), .. } | Range::SimpleError { data: (from, to), .. } => {
            Value::Error(bytes.slice(from..to))
        }
        Range::BigNumber { data: (from, to), .. } => Value::BigNumber(bytes.slice(from..to)),
        Range::Boolean { data, .. } => Value::Boolean(data),
        Range::Number { data, .. } => Value::Integer(data),
        Range::Double { data, .. } => Value::Double(data),
        Range::Null => Value::Nil,
        _ => return Err(malformed()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(text: &[u8]) -> Value {
        let (value, used) = decode(text).unwrap().expect("whole");
        assert_eq!(used, text.len());
        for cut in 0..text.len() {
            assert_eq!(decode(&text[..cut]).unwrap(), None, "cut at {cut} of {:?}", text.escape_ascii());
        }
        let mut decoder = Decoder::default();
        let mut buf = BytesMut::new();
        for (at, byte) in text.iter().enumerate() {
            buf.extend_from_slice(&[*byte]);
            let got = decoder.next(&mut buf).unwrap();
            assert_eq!(got.is_some(), at + 1 == text.len());
            if let Some(got) = got {
                assert_eq!(got, value);
                assert!(buf.is_empty());
            }
        }
        value
    }

    fn bulk(text: &'static str) -> Value {
        Value::Bulk(Bytes::from_static(text.as_bytes()))
    }

    #[test]
    fn resp2() {
        assert!(one(b"+OK\r\n").is_ok());
        assert_eq!(one(b"-ERR a\xff\xfeb\r\n"), Value::Error(Bytes::from_static(b"ERR a\xff\xfeb")));
        assert_eq!(one(b":-42\r\n").as_i64(), Some(-42));
        assert_eq!(one(b"$-1\r\n"), Value::Nil);
        assert_eq!(one(b"*-1\r\n"), Value::Nil);
        assert_eq!(one(b"*0\r\n"), Value::Array(vec![]));
        assert_eq!(one(b"$0\r\n\r\n"), bulk(""));
        assert_eq!(
            one(b"*3\r\n$1\r\na\r\n*2\r\n:1\r\n$-1\r\n+b\r\n"),
            Value::Array(vec![
                bulk("a"),
                Value::Array(vec![Value::Integer(1), Value::Nil]),
                Value::Simple(Bytes::from_static(b"b")),
            ])
        );
    }

    #[test]
    fn resp3() {
        assert_eq!(
            one(b"%2\r\n$1\r\nb\r\n:1\r\n$1\r\na\r\n*-1\r\n"),
            Value::Map(vec![(bulk("b"), Value::Integer(1)), (bulk("a"), Value::Nil)])
        );
        assert_eq!(
            one(b"~3\r\n:1\r\n:1\r\n%1\r\n+k\r\n_\r\n"),
            Value::Set(vec![
                Value::Integer(1),
                Value::Integer(1),
                Value::Map(vec![(Value::Simple(Bytes::from_static(b"k")), Value::Nil)]),
            ])
        );
        assert_eq!(one(b",1.10\r\n"), Value::Double(1.1));
        assert_eq!(one(b",inf\r\n"), Value::Double(f64::INFINITY));
        assert_eq!(one(b",-inf\r\n"), Value::Double(f64::NEG_INFINITY));
        assert_eq!(one(b"#t\r\n"), Value::Boolean(true));
        assert_eq!(one(b"=8\r\ntxt:abcd\r\n"), bulk("abcd"));
        assert_eq!(one(b"=5\r\nxyz:a\r\n"), bulk("a"));
        assert_eq!(one(b"(123456789012345678901234567890\r\n").as_bytes().map(<[u8]>::len), Some(30));
        assert_eq!(one(b"!5\r\nERR \xff\r\n"), Value::Error(Bytes::from_static(b"ERR \xff")));
        assert_eq!(one(b"|1\r\n+ttl\r\n:3\r\n*1\r\n#f\r\n"), Value::Array(vec![Value::Boolean(false)]));
        assert_eq!(one(b">1\r\n+x\r\n"), Value::Push(vec![Value::Simple(Bytes::from_static(b"x"))]));
    }

    #[test]
    fn a_depth_bomb_is_refused() {
        for marker in ["*1\r\n", "~1\r\n", ">1\r\n", "|0\r\n", "%1\r\n:1\r\n"] {
            let mut bomb = marker.repeat(100_000);
            bomb.push_str(":1\r\n");
            let error = decode(bomb.as_bytes()).unwrap_err();
            assert!(error.text.contains("nested deeper"), "{error}");
        }
        let mut deep = "*1\r\n".repeat(128);
        deep.push_str(":1\r\n");
        assert!(decode(deep.as_bytes()).unwrap().is_some());
    }

    #[test]
    fn bounds_hold() {
        let mut decoder = Decoder::new(Bounds { depth: 2, bytes: 64, elements: 4 });
        assert!(decoder.next(&mut BytesMut::from("*4\r\n:1\r\n:1\r\n:1\r\n:1\r\n")).is_err());
        let mut decoder = Decoder::new(Bounds { depth: 2, bytes: 8, elements: 4 });
        assert!(decoder.next(&mut BytesMut::from("$100\r\n0123456789")).is_err());
        assert_eq!(one(b"*2\r\n+a\r\n+1\r\n").field("a").and_then(Value::as_i64), Some(1));
    }
}

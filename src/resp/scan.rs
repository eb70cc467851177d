//! Finds where commands and replies end, in place and resumably.
//!
//! Guarantees: no allocation in proportion to a length that the peer merely announced; no recursion,
//! whatever the nesting; a byte that was passed over once is not looked at again, except the line that
//! a read cut in the middle. Errors carry the text that Redis itself answers with.
//!
//! A command is `*N\r\n` followed by N bulk strings, or one inline line. A reply is any RESP2 or RESP3
//! value; nesting needs no stack, since the number of elements still outstanding says when the outermost
//! value ends.

use std::ops::Range;

/// How much a peer may ask for; the defaults are those of Redis (`server.h`: `PROTO_INLINE_MAX_SIZE`,
/// `proto-max-bulk-len`, and the 1,048,576 arguments of `processMultibulkBuffer`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// The longest inline command and the longest header line, in bytes.
    pub inline: usize,
    /// The most arguments of one command.
    pub arguments: usize,
    /// The longest argument, in bytes.
    pub bulk: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { inline: 64 * 1024, arguments: 1024 * 1024, bulk: 512 * 1024 * 1024 }
    }
}

impl Limits {
    /// What Redis allows a client that has not authenticated yet (since 6.2.6: 10 arguments of 16 KiB).
    pub fn unauthenticated() -> Self {
        Self { inline: 64 * 1024, arguments: 10, bulk: 16 * 1024 }
    }
}

/// Bytes that are no RESP. `text` is the error as Redis words it, without the leading `-ERR `.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("Protocol error: {text}")]
pub struct ProtocolError {
    /// The part after `Protocol error: `.
    pub text: String,
}

impl ProtocolError {
    /// An error with the given text.
    pub fn new(text: impl Into<String>) -> Self {
        Self { text: text.into() }
    }
}

/// One whole command at the front of a buffer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// Bytes from the start of the buffer to the end of the command.
    pub len: usize,
    /// Arguments, the command's name included. 0 for an empty line or `*0`, which Redis passes over.
    pub argc: usize,
    /// Where the name stands.
    pub name: Range<usize>,
    /// Whether it came as an inline command. Its arguments are [`split_inline`].
    pub inline: bool,
}

impl Frame {
    /// The arguments, name first, as slices of the buffer that the frame was found in.
    /// For an inline frame with quotes use [`split_inline`] on its line.
    pub fn args<'a>(&self, buf: &'a [u8]) -> Args<'a> {
        debug_assert!(!self.inline, "an inline command has to be split");
        let start = if self.argc == 0 { self.len } else { header_end(buf) };
        Args { rest: &buf[start..self.len], left: self.argc }
    }
}

fn header_end(buf: &[u8]) -> usize {
    // Like Redis, the scanner looks for the CR only and passes over whatever stands in the LF's place.
    memchr::memchr(b'\r', buf).map_or(buf.len(), |at| (at + 2).min(buf.len()))
}

/// Iterates over the arguments of a scanned multibulk command.
#[derive(Debug, Clone)]
pub struct Args<'a> {
    rest: &'a [u8],
    left: usize,
}

impl<'a> Iterator for Args<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        if self.left == 0 {
            return None;
        }
        self.left -= 1;
        let (len, used) = short_length(self.rest)?;
        let arg = self.rest.get(used..used + len)?;
        self.rest = self.rest.get(used + len + 2..)?;
        Some(arg)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}

/// Reads `$len\r\n` that is known to be well formed: the length and the bytes that the line takes.
#[inline]
fn short_length(buf: &[u8]) -> Option<(usize, usize)> {
    let mut value = 0usize;
    let mut at = 1;
    loop {
        let byte = *buf.get(at)?;
        if byte == b'\r' {
            return Some((value, at + 2));
        }
        value = value.wrapping_mul(10).wrapping_add(usize::from(byte.wrapping_sub(b'0')));
        at += 1;
    }
}

/// Finds commands. One scanner serves one connection; it remembers how far it got with a command that
/// has not arrived whole.
#[derive(Debug, Clone, Default)]
pub struct CommandScanner {
    /// Offset of the next byte to look at, from the start of the command.
    at: usize,
    /// Arguments that are still missing; meaningful once `argc` is set.
    left: usize,
    argc: usize,
    name: Range<usize>,
    /// The buffer must be at least this long before another attempt can make progress.
    need: usize,
}

impl CommandScanner {
    /// The number of bytes that the command at the front needs at least, as far as it is known. A reader
    /// may size its buffer by it; it never exceeds what has arrived by more than `limits.bulk` + 2.
    pub fn need(&self) -> usize {
        self.need
    }

    /// Whether a command has begun to arrive.
    pub fn is_midway(&self) -> bool {
        self.at > 0
    }

    /// Finds the end of the command at the front of `buf`. `None`: more bytes are needed; call again with
    /// the same bytes and more behind them. After a frame or an error the scanner is ready for the next command.
    ///
    /// # Errors
    /// The text that Redis answers with before it closes the connection.
    #[inline]
    pub fn next(&mut self, buf: &[u8], limits: &Limits) -> Result<Option<Frame>, ProtocolError> {
        if buf.len() < self.need {
            return Ok(None);
        }
        let outcome = self.advance(buf, limits);
        match &outcome {
            Ok(None) => {}
            _ => *self = Self::default(),
        }
        outcome
    }

    fn advance(&mut self, buf: &[u8], limits: &Limits) -> Result<Option<Frame>, ProtocolError> {
        if self.at == 0 {
            match buf.first() {
                None => return Ok(None),
                Some(b'*') => {}
                Some(_) => return self.inline(buf, limits),
            }
            let Some((count, used)) = number_line(&buf[1..], limits.inline, "too big mbulk count string")?
            else {
                return Ok(None);
            };
            let count = match count {
                Some(n) if n <= limits.arguments as i64 => n,
                Some(_) if limits.arguments < 1024 => {
                    return Err(ProtocolError::new("unauthenticated multibulk length"));
                }
                _ => return Err(ProtocolError::new("invalid multibulk length")),
            };
            self.at = 1 + used;
            if count <= 0 {
                return Ok(Some(Frame { len: self.at, argc: 0, name: 0..0, inline: false }));
            }
            self.argc = count as usize;
            self.left = self.argc;
        }
        while self.left > 0 {
            let Some(&first) = buf.get(self.at) else {
                self.need = self.at + 1;
                return Ok(None);
            };
            if first != b'$' {
                return Err(ProtocolError::new(format!("expected '$', got '{}'", printable(first))));
            }
            let line = &buf[self.at + 1..];
            let Some((len, used)) = number_line(line, limits.inline, "too big bulk count string")? else {
                self.need = buf.len() + 1;
                return Ok(None);
            };
            let len = match len {
                Some(n) if n >= 0 && n as u64 <= limits.bulk as u64 => n as usize,
                Some(n) if n >= 0 && limits.bulk < 1024 * 1024 => {
                    return Err(ProtocolError::new("unauthenticated bulk length"));
                }
                _ => return Err(ProtocolError::new("invalid bulk length")),
            };
            let start = self.at + 1 + used;
            let end = start + len + 2;
            if buf.len() < end {
                // The length line is read again with the next attempt: `at` stays before it.
                self.need = end;
                return Ok(None);
            }
            if self.left == self.argc {
                self.name = start..start + len;
            }
            self.at = end;
            self.left -= 1;
        }
        Ok(Some(Frame { len: self.at, argc: self.argc, name: self.name.clone(), inline: false }))
    }

    fn inline(&mut self, buf: &[u8], limits: &Limits) -> Result<Option<Frame>, ProtocolError> {
        let Some(end) = memchr::memchr(b'\n', buf) else {
            if buf.len() > limits.inline {
                return Err(ProtocolError::new("too big inline request"));
            }
            self.need = buf.len() + 1;
            return Ok(None);
        };
        let line = &buf[..end];
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        let words = split_inline(line).ok_or_else(|| ProtocolError::new("unbalanced quotes in request"))?;
        Ok(Some(Frame { len: end + 1, argc: words.len(), name: 0..0, inline: true }))
    }
}

fn printable(byte: u8) -> char {
    if byte.is_ascii_graphic() || byte == b' ' { byte as char } else { '?' }
}

/// A decimal number and a CRLF. Outer `None`: the line is not whole. Inner `None`: no number.
#[inline]
fn number_line(
    buf: &[u8],
    limit: usize,
    too_long: &str,
) -> Result<Option<(Option<i64>, usize)>, ProtocolError> {
    // The usual case: a few digits and CRLF.
    let mut value = 0i64;
    let mut at = 0;
    while at < buf.len() && at < 18 {
        let byte = buf[at];
        if byte.is_ascii_digit() {
            value = value * 10 + i64::from(byte - b'0');
            at += 1;
        } else if byte == b'\r' && at > 0 {
            // `string2ll` takes no leading zero.
            let number = (buf[0] != b'0' || at == 1).then_some(value);
            return if at + 1 < buf.len() { Ok(Some((number, at + 2))) } else { Ok(None) };
        } else {
            break;
        }
    }
    let Some(end) = memchr::memchr(b'\r', buf) else {
        return if buf.len() > limit { Err(ProtocolError::new(too_long)) } else { Ok(None) };
    };
    if end + 1 >= buf.len() {
        return Ok(None);
    }
    let digits = buf[..end].strip_prefix(b"-").unwrap_or(&buf[..end]);
    let strict = matches!(digits, [b'1'..=b'9', ..]);
    let number = std::str::from_utf8(&buf[..end]).ok().filter(|_| strict);
    Ok(Some((number.and_then(|text| text.parse().ok()), end + 2)))
}

/// Splits an inline command as Redis does (`sdssplitargs`): blanks separate, double quotes know
/// `\xHH \n \r \t \b \a \\ \"`, single quotes know `\'`. `None` when quotes do not balance.
pub fn split_inline(line: &[u8]) -> Option<Vec<Vec<u8>>> {
    // to `sdssplitargs` the line is a C string
    let line = &line[..memchr::memchr(0, line).unwrap_or(line.len())];
    let mut words = Vec::new();
    let mut at = 0;
    loop {
        while at < line.len() && is_space(line[at]) {
            at += 1;
        }
        if at >= line.len() {
            return Some(words);
        }
        let mut word = Vec::new();
        let (mut double, mut single) = (false, false);
        loop {
            let Some(&byte) = line.get(at) else {
                if double || single {
                    return None;
                }
                break;
            };
            if double {
                if let (b'\\', Some(b'x'), Some(high), Some(low)) = (
                    byte,
                    line.get(at + 1),
                    line.get(at + 2).copied().and_then(hex),
                    line.get(at + 3).copied().and_then(hex),
                ) {
                    word.push(high * 16 + low);
                    at += 4;
                    continue;
                }
                if byte == b'\\' && at + 1 < line.len() {
                    at += 1;
                    word.push(match line[at] {
                        b'n' => b'\n',
                        b'r' => b'\r',
                        b't' => b'\t',
                        b'b' => 8,
                        b'a' => 7,
                        other => other,
                    });
                } else if byte == b'"' {
                    if line.get(at + 1).is_some_and(|next| !is_space(*next)) {
                        return None;
                    }
                    at += 1;
                    break;
                } else {
                    word.push(byte);
                }
            } else if single {
                if byte == b'\\' && line.get(at + 1) == Some(&b'\'') {
                    at += 1;
                    word.push(b'\'');
                } else if byte == b'\'' {
                    if line.get(at + 1).is_some_and(|next| !is_space(*next)) {
                        return None;
                    }
                    at += 1;
                    break;
                } else {
                    word.push(byte);
                }
            } else {
                match byte {
                    b' ' | b'\n' | b'\r' | b'\t' => break,
                    b'"' => double = true,
                    b'\'' => single = true,
                    other => word.push(other),
                }
            }
            at += 1;
        }
        words.push(word);
    }
}

fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | b'\r' | 0x0b | 0x0c)
}

fn hex(byte: u8) -> Option<u8> {
    (byte as char).to_digit(16).map(|digit| digit as u8)
}

/// How far a piece of input took a reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Feed {
    /// Bytes of the input that belong to the reply and may be passed on. The rest is to be shown again,
    /// with more behind it.
    pub consumed: usize,
    /// Whether the reply ends at `consumed`.
    pub complete: bool,
}

/// Finds the end of replies. It may be fed in pieces of any size: what it consumed can be passed on at
/// once, also when the reply has not ended.
#[derive(Debug, Clone, Default)]
pub struct ReplyScanner {
    /// Values that must still end before the outermost value ends; 0 between replies.
    outstanding: u64,
    /// Bytes of a bulk body, with its CRLF, that are still to come.
    body: u64,
}

/// The longest line in a reply: an error or a simple string. Redis writes no longer ones than its
/// 64 KiB inline limit, but scripts can return larger status replies.
const LONGEST_REPLY_LINE: usize = 16 * 1024 * 1024;
/// The longest bulk in a reply: `proto-max-bulk-len` can be raised, so this only bounds arithmetic.
const LONGEST_REPLY_BULK: i64 = 1 << 40;

impl ReplyScanner {
    /// Whether a reply has begun and not ended.
    pub fn is_midway(&self) -> bool {
        self.outstanding > 0
    }

    /// Takes the bytes at the front of `buf` as far as they are whole.
    ///
    /// # Errors
    /// Bytes that no Redis sends. The connection must be closed: nothing after them can be trusted.
    #[inline]
    pub fn feed(&mut self, buf: &[u8]) -> Result<Feed, ProtocolError> {
        let mut at = 0;
        if self.outstanding == 0 {
            if buf.is_empty() {
                return Ok(Feed { consumed: 0, complete: false });
            }
            self.outstanding = 1;
        }
        loop {
            if self.body > 0 {
                let take = self.body.min((buf.len() - at) as u64);
                self.body -= take;
                at += take as usize;
                if self.body > 0 {
                    return Ok(Feed { consumed: at, complete: false });
                }
                self.outstanding -= 1;
            }
            if self.outstanding == 0 {
                return Ok(Feed { consumed: at, complete: true });
            }
            let Some(&kind) = buf.get(at) else {
                return Ok(self.pause(at));
            };
            match kind {
                b'+' | b'-' | b':' | b',' | b'#' | b'(' | b'_' => {
                    let Some(end) = memchr::memchr(b'\n', &buf[at..]) else {
                        return self.midline(buf, at);
                    };
                    at += end + 1;
                    self.outstanding -= 1;
                }
                b'$' | b'=' | b'!' | b'*' | b'~' | b'%' | b'>' | b'|' => {
                    let line = &buf[at + 1..];
                    let Some((number, used)) = number_line(line, LONGEST_REPLY_LINE, "too long a line")?
                    else {
                        return self.midline(buf, at);
                    };
                    let Some(number) = number.filter(|n| (-1..LONGEST_REPLY_BULK).contains(n)) else {
                        return Err(ProtocolError::new("a length in a reply is no number"));
                    };
                    at += 1 + used;
                    match kind {
                        b'$' | b'=' | b'!' if number >= 0 => self.body = number as u64 + 2,
                        b'*' | b'~' | b'>' if number > 0 => self.grow(number as u64)?,
                        b'%' if number > 0 => self.grow(number as u64 * 2)?,
                        // An attribute stands before the value that it describes and does not count as one.
                        b'|' => {
                            self.outstanding += 1;
                            self.grow(number.max(0) as u64 * 2)?;
                        }
                        _ => self.outstanding -= 1,
                    }
                }
                other => {
                    return Err(ProtocolError::new(format!("a reply cannot begin with byte 0x{other:02x}")));
                }
            }
        }
    }

    /// An aggregate of `elements` values takes the place of one.
    fn grow(&mut self, elements: u64) -> Result<(), ProtocolError> {
        self.outstanding = (self.outstanding - 1)
            .checked_add(elements)
            .ok_or_else(|| ProtocolError::new("a reply announces too many elements"))?;
        Ok(())
    }

    fn midline(&mut self, buf: &[u8], at: usize) -> Result<Feed, ProtocolError> {
        if buf.len() - at > LONGEST_REPLY_LINE {
            return Err(ProtocolError::new("a line in a reply does not end"));
        }
        Ok(self.pause(at))
    }

    fn pause(&mut self, at: usize) -> Feed {
        Feed { consumed: at, complete: false }
    }
}

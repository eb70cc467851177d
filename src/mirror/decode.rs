//! Stream bytes to commands, counted to the byte.
//!
//! A master sends multibulk commands and nothing else; a bare line end is a keep-alive. Every byte
//! counts for the offset, whatever it belongs to. Chunks are cut anywhere: a command is handed out once it
//! is whole, as a slice of the decoder's own buffer, together with the offset of its last byte and the time
//! at which its first byte arrived (that is nearest to the moment at which the source ran it).

use std::collections::VecDeque;

use crate::resp::scan::{Args, CommandScanner, Frame, Limits, ProtocolError};

/// What a source may send. It accepted these commands itself, under limits that may have been raised, so
/// the bounds only keep arithmetic sane; memory is taken only for what arrived.
const LIMITS: Limits = Limits { inline: 64 * 1024, arguments: i32::MAX as usize, bulk: 1 << 40 };

/// Bytes that stay in front of the unread part before they are moved away.
const SLACK: usize = 256 * 1024;

/// The commands that stand in `bytes` one behind the other, each with its place; up to the first that is not whole.
pub(super) fn frames(bytes: &[u8]) -> impl Iterator<Item = (usize, Frame)> {
    let mut at = 0;
    std::iter::from_fn(move || {
        let frame = CommandScanner::default().next(&bytes[at..], &LIMITS).ok().flatten()?;
        let place = at;
        at += frame.len;
        Some((place, frame))
    })
}

/// One command of the stream.
#[derive(Debug)]
pub struct Command<'a> {
    /// The command as it stands in the stream.
    pub bytes: &'a [u8],
    /// The offset of its last byte.
    pub end: u64,
    /// When its first byte arrived (unix milliseconds).
    pub arrived_ms: u64,
    frame: Frame,
}

impl<'a> Command<'a> {
    /// A whole command that stands alone in `bytes`.
    #[cfg(test)]
    pub(crate) fn alone(bytes: &'a [u8], arrived_ms: u64) -> Self {
        let frame = CommandScanner::default().next(bytes, &LIMITS).ok().flatten();
        Command { bytes, end: bytes.len() as u64, arrived_ms, frame: frame.expect("one whole command") }
    }

    /// A command that is run in place of this one; `None` when `bytes` are not one whole command.
    pub fn instead<'b>(&self, bytes: &'b [u8]) -> Option<Command<'b>> {
        let frame = CommandScanner::default().next(bytes, &LIMITS).ok().flatten()?;
        Some(Command { bytes, end: self.end, arrived_ms: self.arrived_ms, frame })
    }

    /// The command's name; empty for a keep-alive.
    pub fn name(&self) -> &'a [u8] {
        &self.bytes[self.frame.name.clone()]
    }

    /// The number of arguments, the name included.
    pub fn argc(&self) -> usize {
        self.frame.argc
    }

    /// The arguments, name first.
    pub fn args(&self) -> Args<'a> {
        self.frame.args(self.bytes)
    }
}

/// Cuts the stream into commands.
#[derive(Debug)]
pub struct Decoder {
    buf: Vec<u8>,
    head: usize,
    /// Offset of the last stream byte in front of `buf[head]`.
    before: u64,
    scanner: CommandScanner,
    /// For each chunk that still has bytes here: the offset of its last byte, and when it arrived.
    arrivals: VecDeque<(u64, u64)>,
}

impl Decoder {
    /// A decoder for the stream behind offset `before`.
    pub fn new(before: u64) -> Self {
        Self {
            buf: Vec::new(),
            head: 0,
            before,
            scanner: CommandScanner::default(),
            arrivals: VecDeque::new(),
        }
    }

    /// The offset of the last byte that was pushed.
    pub fn received(&self) -> u64 {
        self.before + (self.buf.len() - self.head) as u64
    }

    /// When the first byte arrived that has not been handed out; `None` when there is none.
    pub fn oldest_ms(&self) -> Option<u64> {
        if self.head == self.buf.len() { None } else { self.arrivals.front().map(|&(_, at)| at) }
    }

    /// Takes the bytes that follow what was pushed before.
    pub fn push(&mut self, bytes: &[u8], arrived_ms: u64) {
        if bytes.is_empty() {
            return;
        }
        if self.head == self.buf.len() {
            self.buf.clear();
            self.head = 0;
            self.arrivals.clear();
        } else if self.head > SLACK && self.head > self.buf.len() / 2 {
            self.buf.drain(..self.head);
            self.head = 0;
        }
        self.buf.extend_from_slice(bytes);
        let end = self.received();
        match self.arrivals.back_mut() {
            Some(back) if back.1 == arrived_ms => back.0 = end,
            _ => self.arrivals.push_back((end, arrived_ms)),
        }
    }

    /// The next whole command, if there is one.
    ///
    /// # Errors
    /// The bytes are no replication stream.
    #[inline]
    pub fn command(&mut self) -> Result<Option<Command<'_>>, ProtocolError> {
        let Some(frame) = self.scanner.next(&self.buf[self.head..], &LIMITS)? else {
            return Ok(None);
        };
        if frame.inline && frame.argc > 0 {
            return Err(ProtocolError::new("an inline command in the replication stream"));
        }
        let start = self.head;
        self.head += frame.len;
        let first = self.before + 1;
        self.before += frame.len as u64;
        while self.arrivals.len() > 1 && self.arrivals.front().is_some_and(|&(end, _)| end < first) {
            self.arrivals.pop_front();
        }
        let arrived_ms = self.arrivals.front().map_or(0, |&(_, at)| at);
        while self.arrivals.len() > 1 && self.arrivals.front().is_some_and(|&(end, _)| end <= self.before) {
            self.arrivals.pop_front();
        }
        Ok(Some(Command { bytes: &self.buf[start..self.head], end: self.before, arrived_ms, frame }))
    }

    /// Gives back the memory that one very large command took.
    pub fn shrink(&mut self) {
        if self.head == self.buf.len() && self.buf.capacity() > 4 * 1024 * 1024 {
            self.buf = Vec::new();
            self.head = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resp::write;

    /// The arguments of a command, and the offset of its last byte.
    type Seen = (Vec<Vec<u8>>, u64);

    fn stream() -> (Vec<u8>, Vec<Seen>) {
        let big = vec![b'x'; 3000];
        let commands: Vec<Vec<&[u8]>> = vec![
            vec![b"SELECT", b"0"],
            vec![b"set", b"k", b"v"],
            vec![b"MULTI"],
            vec![b"RPUSH", b"list\r\n*1", b"", b"\0\r\n$3"],
            vec![b"SET", b"big", &big],
            vec![b"EXEC"],
            vec![b"PING"],
            vec![b"REPLCONF", b"GETACK", b"*"],
        ];
        let mut bytes = Vec::new();
        let mut expected = Vec::new();
        for (nth, args) in commands.iter().enumerate() {
            if nth == 3 {
                bytes.push(b'\n');
                expected.push((Vec::new(), 100 + bytes.len() as u64));
            }
            write::command(&mut bytes, args);
            expected.push((args.iter().map(|arg| arg.to_vec()).collect(), 100 + bytes.len() as u64));
        }
        (bytes, expected)
    }

    fn drain(decoder: &mut Decoder, into: &mut Vec<Seen>) {
        while let Some(command) = decoder.command().unwrap() {
            let args = if command.argc() == 0 {
                Vec::new()
            } else {
                command.args().map(|arg| arg.to_vec()).collect()
            };
            into.push((args, command.end));
        }
    }

    #[test]
    fn commands_and_offsets_survive_a_cut_at_every_byte() {
        let (bytes, expected) = stream();
        for cut in 0..=bytes.len() {
            let mut decoder = Decoder::new(100);
            let mut got = Vec::new();
            decoder.push(&bytes[..cut], 1);
            drain(&mut decoder, &mut got);
            decoder.push(&bytes[cut..], 2);
            drain(&mut decoder, &mut got);
            assert_eq!(got, expected, "cut at {cut}");
            assert_eq!(decoder.received(), 100 + bytes.len() as u64);
            assert_eq!(decoder.oldest_ms(), None);
        }
        let mut decoder = Decoder::new(100);
        let mut got = Vec::new();
        for byte in &bytes {
            decoder.push(std::slice::from_ref(byte), 1);
            drain(&mut decoder, &mut got);
        }
        assert_eq!(got, expected, "byte by byte");
    }

    #[test]
    fn a_command_arrived_when_its_first_byte_did() {
        let mut bytes = Vec::new();
        write::command(&mut bytes, &["SET", "a", "1"]);
        let one = bytes.len();
        write::command(&mut bytes, &["SET", "b", "2"]);
        let mut decoder = Decoder::new(0);
        decoder.push(&bytes[..5], 10);
        decoder.push(&bytes[5..one], 20);
        assert_eq!(decoder.oldest_ms(), Some(10));
        assert_eq!(decoder.command().unwrap().unwrap().arrived_ms, 10);
        assert_eq!(decoder.oldest_ms(), None);
        decoder.push(&bytes[one..], 30);
        assert_eq!(decoder.oldest_ms(), Some(30));
        assert_eq!(decoder.command().unwrap().unwrap().arrived_ms, 30);
    }

    #[test]
    fn what_no_master_sends_is_refused() {
        for bytes in [&b"PING\r\n"[..], b"*1\r\n+PING\r\n", b"*x\r\n"] {
            let mut decoder = Decoder::new(0);
            decoder.push(bytes, 0);
            assert!(decoder.command().is_err(), "{bytes:?}");
        }
    }

    #[test]
    fn a_command_of_100_mib_comes_through_in_pieces() {
        let value = vec![b'v'; 100 * 1024 * 1024];
        let mut bytes = Vec::new();
        write::command(&mut bytes, &[&b"SET"[..], b"k", &value]);
        let mut decoder = Decoder::new(0);
        for (nth, chunk) in bytes.chunks(1024 * 1024).enumerate() {
            assert!(decoder.command().unwrap().is_none());
            decoder.push(chunk, nth as u64);
        }
        assert_eq!(decoder.command().unwrap().unwrap().bytes.len(), bytes.len());
        decoder.shrink();
        assert_eq!(decoder.buf.capacity(), 0);
    }
}

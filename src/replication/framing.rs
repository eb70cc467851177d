//! How a snapshot stands on the wire, and how a demand for an ACK is found in the stream. No I/O.
//!
//! ```text
//! \n \n …                       the source forks; one byte a second says that it lives
//! $<length>\r\n <length bytes>                       no CRLF behind them; the stream follows at once
//! $EOF:<40 bytes>\r\n <bytes> <the same 40 bytes>    a diskless transfer; the source then waits for an ACK
//! -<error>\r\n                                       it could not make a snapshot
//! ```

use memchr::memmem::Finder;

/// The bytes that end a diskless transfer.
pub(super) const MARK: usize = 40;

/// The longest line that a source may send before a snapshot.
const LONGEST_LINE: usize = 64 * 1024;

/// What announces a snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Header {
    /// So many bytes.
    Length(u64),
    /// Bytes up to this mark.
    Mark([u8; MARK]),
    /// No snapshot: the source says why.
    Refused(String),
}

/// One line, without its end, and the bytes it took, keep-alives before it included. `None`: it is not whole;
/// the keep-alives may be dropped ([`keepalives`]).
///
/// # Errors
/// What came is no line.
pub(super) fn line(buf: &[u8]) -> Result<Option<(&[u8], usize)>, String> {
    let start = keepalives(buf);
    let rest = &buf[start..];
    match memchr::memchr(b'\n', rest) {
        Some(end) => Ok(Some((rest[..end].strip_suffix(b"\r").unwrap_or(&rest[..end]), start + end + 1))),
        None if rest.len() > LONGEST_LINE => Err("a line without an end came instead of an answer".into()),
        None => Ok(None),
    }
}

/// How many bare line feeds stand at the front.
pub(super) fn keepalives(buf: &[u8]) -> usize {
    buf.iter().take_while(|byte| **byte == b'\n').count()
}

/// The announcement at the front of `buf`, and the bytes it took. `None`: more bytes are needed.
///
/// # Errors
/// What came announces no snapshot.
pub(super) fn header(buf: &[u8]) -> Result<Option<(Header, usize)>, String> {
    let Some((line, used)) = line(buf)? else { return Ok(None) };
    let header = match line.split_first() {
        Some((b'-', text)) => Header::Refused(String::from_utf8_lossy(text).into_owned()),
        Some((b'$', text)) => {
            if let Some(mark) = text.strip_prefix(b"EOF:") {
                let mark = mark.try_into().map_err(|_| "a snapshot's end mark is not 40 bytes long")?;
                Header::Mark(mark)
            } else {
                let length = std::str::from_utf8(text).ok().and_then(|digits| digits.parse().ok());
                Header::Length(length.ok_or("a snapshot's length is no number")?)
            }
        }
        _ => return Err(format!("no snapshot, but \"{}\"", line[..line.len().min(80)].escape_ascii())),
    };
    Ok(Some((header, used)))
}

/// Finds the end of a snapshot's body in the pieces that arrive.
#[derive(Debug)]
pub(super) enum Body {
    /// Bytes that are still to come.
    Length(u64),
    /// The mark to look for.
    Mark(Box<Finder<'static>>),
}

/// What a piece of a snapshot's body holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Piece {
    /// The first `body` bytes belong to the snapshot. The rest, fewer than 40, may be the beginning of the
    /// mark: show it again with more behind it.
    More {
        /// Bytes of snapshot.
        body: usize,
    },
    /// The snapshot ends after `body` bytes, and the stream begins `next` bytes from the start.
    End {
        /// Bytes of snapshot.
        body: usize,
        /// Where the stream begins.
        next: usize,
    },
}

impl Body {
    pub(super) fn new(header: &Header) -> Option<Self> {
        match header {
            Header::Length(length) => Some(Body::Length(*length)),
            Header::Mark(mark) => Some(Body::Mark(Box::new(Finder::new(mark).into_owned()))),
            Header::Refused(_) => None,
        }
    }

    /// How many bytes may be read at most without reading into the stream, if that is known.
    pub(super) fn bound(&self) -> Option<u64> {
        match self {
            Body::Length(left) => Some(*left),
            Body::Mark(_) => None,
        }
    }

    pub(super) fn take(&mut self, buf: &[u8]) -> Piece {
        match self {
            Body::Length(left) => {
                let body = usize::try_from(*left).map_or(buf.len(), |left| left.min(buf.len()));
                *left -= body as u64;
                if *left == 0 { Piece::End { body, next: body } } else { Piece::More { body } }
            }
            // The mark is 40 random hex digits; Redis itself compares only the end of what has arrived.
            Body::Mark(mark) => match mark.find(buf) {
                Some(at) => Piece::End { body: at, next: at + MARK },
                None => Piece::More { body: buf.len().saturating_sub(MARK - 1) },
            },
        }
    }
}

/// `REPLCONF GETACK *` as servers write it into the stream, from its name on.
const GETACK: &[u8] = b"REPLCONF\r\n$6\r\nGETACK\r\n";

/// Looks for a demand for an ACK in the bytes of the stream, wherever reads cut them. A value that happens to
/// hold the same bytes costs one needless ACK.
#[derive(Debug)]
pub(super) struct AckScan {
    finder: Finder<'static>,
    /// The end of what was seen, shorter than the text that is looked for.
    tail: Vec<u8>,
}

impl Default for AckScan {
    fn default() -> Self {
        Self { finder: Finder::new(GETACK), tail: Vec::with_capacity(2 * GETACK.len()) }
    }
}

impl AckScan {
    /// Whether a demand ends in `bytes`, which follow what was shown before.
    pub(super) fn feed(&mut self, bytes: &[u8]) -> bool {
        let keep = GETACK.len() - 1;
        // The seam: what was kept, and as much of the new bytes as a demand could reach into.
        self.tail.extend_from_slice(&bytes[..bytes.len().min(keep)]);
        let found = self.finder.find(&self.tail).is_some() || self.finder.find(bytes).is_some();
        if bytes.len() >= keep {
            self.tail.clear();
            self.tail.extend_from_slice(&bytes[bytes.len() - keep..]);
        } else {
            let excess = self.tail.len().saturating_sub(keep);
            self.tail.drain(..excess);
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn announcements_cut_at_every_byte() {
        let mark = [b'7'; MARK];
        let marked = [b"\n\n$EOF:".as_slice(), &mark, b"\r\n"].concat();
        for (text, expected) in [
            (b"\n\n\n$12345\r\n".to_vec(), Header::Length(12345)),
            (b"$0\r\n".to_vec(), Header::Length(0)),
            (marked, Header::Mark(mark)),
            (b"-ERR no fork\r\n".to_vec(), Header::Refused("ERR no fork".into())),
        ] {
            for cut in 0..text.len() {
                assert_eq!(header(&text[..cut]), Ok(None), "{cut}");
            }
            assert_eq!(header(&text), Ok(Some((expected, text.len()))));
        }
    }

    #[test]
    fn what_announces_nothing() {
        for text in
            ["$\r\n", "$-1\r\n", "$x\r\n", "$EOF:short\r\n", "+OK\r\n", "\r\n", "$99999999999999999999\r\n"]
        {
            assert!(header(text.as_bytes()).is_err(), "{text:?}");
        }
        assert!(header(&vec![b'x'; LONGEST_LINE + 1]).is_err());
    }

    /// Feeds `wire` in pieces that end at the cuts, as the receiver does, and gives body and rest.
    fn run(header: &Header, wire: &[u8], cuts: &[usize]) -> (Vec<u8>, Vec<u8>) {
        let mut body = Body::new(header).unwrap();
        let (mut out, mut held, mut from) = (Vec::new(), Vec::new(), 0);
        for cut in cuts.iter().copied().chain([wire.len()]) {
            held.extend_from_slice(&wire[from..cut]);
            from = cut;
            match body.take(&held) {
                Piece::More { body } => {
                    out.extend(held.drain(..body));
                    assert!(held.len() < MARK);
                }
                Piece::End { body, next } => {
                    out.extend_from_slice(&held[..body]);
                    return (out, [&held[next..], &wire[from..]].concat());
                }
            }
        }
        panic!("no end was found");
    }

    #[test]
    fn bodies_cut_at_every_byte() {
        let mark: [u8; MARK] = *b"0123456789abcdef0123456789abcdef01234567";
        // The body ends with a beginning of the mark.
        let content = [b"REDIS0010".as_slice(), &mark[..39], b"tail", &mark[..20]].concat();
        let stream = b"*1\r\n$4\r\nPING\r\n";
        let marked = [&content[..], &mark, stream].concat();
        let counted = [&content[..], stream].concat();
        for one in 0..content.len() + MARK {
            for two in [one, (one + 1).min(content.len()), (one + 39).min(marked.len())] {
                let cuts = if two > one { vec![one, two] } else { vec![one] };
                let (body, rest) = run(&Header::Mark(mark), &marked, &cuts);
                assert_eq!((&body[..], &rest[..]), (&content[..], &stream[..]));
                if *cuts.last().unwrap() <= content.len() {
                    let (body, rest) = run(&Header::Length(content.len() as u64), &counted, &cuts);
                    assert_eq!((&body[..], &rest[..]), (&content[..], &stream[..]));
                }
            }
        }
        let every: Vec<usize> = (1..marked.len()).collect();
        assert_eq!(run(&Header::Mark(mark), &marked, &every).0, content);
        assert_eq!(run(&Header::Length(0), stream, &[]), (vec![], stream.to_vec()));
    }

    #[test]
    fn a_demand_for_an_ack_is_found_wherever_it_is_cut() {
        let wire =
            b"*3\r\n$3\r\nSET\r\n$1\r\na\r\n$1\r\nb\r\n*3\r\n$8\r\nREPLCONF\r\n$6\r\nGETACK\r\n$1\r\n*\r\n";
        for one in 0..wire.len() {
            for two in one..wire.len() {
                let mut scan = AckScan::default();
                let found = [&wire[..one], &wire[one..two], &wire[two..]].map(|part| scan.feed(part));
                assert_eq!(found.iter().filter(|found| **found).count(), 1, "{one} {two}");
                assert!(!scan.feed(b"*1\r\n$4\r\nPING\r\n"));
            }
        }
        let mut scan = AckScan::default();
        assert_eq!(wire.iter().filter(|byte| scan.feed(&[**byte])).count(), 1);
    }
}

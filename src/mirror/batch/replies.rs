//! What the destination answers to a batch.

use crate::resp::scan::{ProtocolError, ReplyScanner};

/// What the destination said to a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// It ran. The commands in the list failed; all others, and the position, are applied.
    Applied {
        /// Index of the command in the batch, and the error.
        failed: Vec<(usize, String)>,
    },
    /// Nothing of it ran.
    Refused {
        /// The command that the server did not take, when it was one.
        index: Option<usize>,
        /// The error that says most.
        text: String,
    },
    /// MULTI was refused and something behind it was not: commands may have run without the position.
    Torn {
        /// The error to MULTI.
        text: String,
    },
}

/// Reads the replies to one batch.
#[derive(Debug)]
pub struct Replies {
    /// Commands between MULTI and EXEC.
    commands: usize,
    /// Replies read so far; the one to MULTI counts.
    seen: usize,
    /// Whether the elements of EXEC's reply are being read.
    inside: bool,
    scanner: ReplyScanner,
    refused: Option<(Option<usize>, String)>,
    failed: Vec<(usize, String)>,
}

/// The longest error that is waited for.
const LONGEST_ERROR: usize = 64 * 1024;

impl Replies {
    /// For a batch of that many commands.
    pub fn new(commands: usize) -> Self {
        Self {
            commands,
            seen: 0,
            inside: false,
            scanner: ReplyScanner::default(),
            refused: None,
            failed: Vec::new(),
        }
    }

    /// Reads replies from the front of `buf`: how many bytes are done with, and the answer once it is known.
    ///
    /// # Errors
    /// The bytes are not the answer to a batch; the connection is of no use any more.
    pub fn feed(&mut self, buf: &[u8]) -> Result<(usize, Option<Answer>), ProtocolError> {
        const QUEUED: &[u8] = b"+QUEUED\r\n";
        let mut at = 0;
        loop {
            let rest = &buf[at..];
            if self.inside && self.seen == self.commands {
                return Ok((at, Some(self.answer())));
            }
            if self.scanner.is_midway() {
                let fed = self.scanner.feed(rest)?;
                at += fed.consumed;
                if !fed.complete {
                    return Ok((at, None));
                }
                self.seen += 1;
                continue;
            }
            let Some(&first) = rest.first() else {
                return Ok((at, None));
            };
            if !self.inside && rest.starts_with(QUEUED) && (1..=self.commands).contains(&self.seen) {
                at += QUEUED.len();
                self.seen += 1;
                continue;
            }
            if !self.inside || first == b'-' {
                // Lines, all of them: OK, QUEUED, errors, the head of EXEC's reply.
                let Some(end) = memchr::memchr(b'\n', rest) else {
                    if rest.len() > LONGEST_ERROR {
                        return Err(ProtocolError::new("a line in a reply does not end"));
                    }
                    return Ok((at, None));
                };
                let line = rest[..end].strip_suffix(b"\r").unwrap_or(&rest[..end]);
                at += end + 1;
                if let Some(answer) = self.line(line)? {
                    return Ok((at, Some(answer)));
                }
                continue;
            }
            let fed = self.scanner.feed(rest)?;
            at += fed.consumed;
            if !fed.complete {
                return Ok((at, None));
            }
            self.seen += 1;
        }
    }

    fn line(&mut self, line: &[u8]) -> Result<Option<Answer>, ProtocolError> {
        let error = line.strip_prefix(b"-").map(|text| String::from_utf8_lossy(text).into_owned());
        if self.inside {
            self.failed.push((self.seen, error.unwrap_or_default()));
            self.seen += 1;
            return Ok(None);
        }
        if self.seen <= self.commands {
            if let Some(text) = error {
                let index = self.seen.checked_sub(1);
                self.refused.get_or_insert((index, text));
            } else if let Some((None, text)) = &self.refused {
                return Ok(Some(Answer::Torn { text: text.clone() }));
            } else if !matches!(line, b"+OK" | b"+QUEUED") {
                return Err(ProtocolError::new("a reply to a queued command is neither QUEUED nor an error"));
            }
            self.seen += 1;
            return Ok(None);
        }
        if let Some(text) = error {
            // "EXECABORT Transaction discarded because of previous errors" says less than the error before.
            let (index, text) = self.refused.take().unwrap_or((None, text));
            return Ok(Some(Answer::Refused { index, text }));
        }
        let elements =
            line.strip_prefix(b"*").and_then(|n| std::str::from_utf8(n).ok()?.parse::<usize>().ok());
        if elements != Some(self.commands) {
            return Err(ProtocolError::new("EXEC did not answer with one reply per command"));
        }
        self.inside = true;
        self.seen = 0;
        Ok(None)
    }

    fn answer(&mut self) -> Answer {
        Answer::Applied { failed: std::mem::take(&mut self.failed) }
    }
}

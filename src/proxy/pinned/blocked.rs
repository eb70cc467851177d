//! A command that waits at the server: what it is, and how it is issued again on the other side of a switch.

use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::command;
use crate::resp::value::{self, Value};
use crate::resp::write;

/// A command that waits at the server.
#[derive(Debug)]
pub(in crate::proxy) struct Blocked {
    args: Vec<Bytes>,
    form: command::Blocking,
    /// When the client asked: servers serve those first who have waited longest.
    pub(in crate::proxy) asked: Instant,
    /// When it was issued last.
    since: Instant,
    /// `None`: for ever.
    timeout: Option<Duration>,
    /// CLIENT UNBLOCK has been, or is being, asked for.
    pub(in crate::proxy) recalled: bool,
    /// Its timeout has a fraction that the client did not write.
    fractional: bool,
    /// It came back empty because of that; this is its empty answer, and whether the client wants none (CLIENT REPLY).
    pub(in crate::proxy) held: Option<(Bytes, bool)>,
}

impl Blocked {
    /// Asked just now, in a form that waits; `recalled`: as the field.
    pub(super) fn new(args: &[&[u8]], form: command::Blocking, recalled: bool) -> Self {
        let now = Instant::now();
        Self {
            args: args.iter().map(|arg| Bytes::copy_from_slice(arg)).collect(),
            form,
            asked: now,
            since: now,
            // A timeout that is no number: the server refuses it, and nothing blocks.
            timeout: form.timeout(args).flatten(),
            recalled,
            fractional: false,
            held: None,
        }
    }

    /// The streams that an XREAD follows from their end (`$`): where the id stands in the arguments, and the key.
    pub(in crate::proxy) fn open_ends(&self) -> Vec<(usize, Bytes)> {
        let is = |at: usize, word: &[u8]| self.args.get(at).is_some_and(|arg| arg.eq_ignore_ascii_case(word));
        let Some(streams) = (1..self.args.len()).find(|at| is(*at, b"STREAMS")).filter(|_| is(0, b"XREAD"))
        else {
            return Vec::new();
        };
        let count = (self.args.len() - streams - 1) / 2;
        let keys = streams + 1..streams + 1 + count;
        let ends = keys.filter(|key| self.args[key + count].as_ref() == b"$");
        ends.map(|key| (key + count, self.args[key].clone())).collect()
    }

    /// Follows a stream from behind this id.
    pub(in crate::proxy) fn set_id(&mut self, arg: usize, id: Bytes) {
        self.args[arg] = id;
    }

    /// Whether it waits for replicas.
    pub(in crate::proxy) fn is_wait(&self) -> bool {
        self.args
            .first()
            .is_some_and(|name| name.eq_ignore_ascii_case(b"wait") || name.eq_ignore_ascii_case(b"waitaof"))
    }

    /// Whether this is the answer of one that was recalled. WAIT and WAITAOF say then what has been confirmed so far
    /// (`replyToBlockedClientOnTimeout` in `blocked.c`).
    pub(super) fn ended_early(&self, frame: &[u8]) -> bool {
        if !self.is_wait() {
            return is_nil(frame);
        }
        let confirmed = match value::decode(frame) {
            Ok(Some((Value::Integer(count), _))) => vec![count],
            Ok(Some((Value::Array(counts), _))) => counts.iter().filter_map(Value::as_i64).collect(),
            _ => return false,
        };
        let wanted = self.args[1..].iter().map(|arg| std::str::from_utf8(arg).ok()?.parse::<i64>().ok());
        confirmed.iter().zip(wanted).any(|(have, wanted)| wanted.is_some_and(|wanted| *have < wanted))
    }

    /// What is left of this timeout.
    fn left(&self, timeout: Duration, now: Instant) -> Duration {
        timeout.saturating_sub(now.saturating_duration_since(self.since))
    }

    /// Whether its time is over.
    pub(super) fn is_over(&self, now: Instant) -> bool {
        self.timeout.is_some_and(|timeout| self.left(timeout, now).is_zero())
    }

    /// The command with the time that is left; `None` when none is.
    pub(in crate::proxy) fn reissue(&mut self, now: Instant) -> Option<Bytes> {
        if let Some(timeout) = self.timeout {
            let left = self.left(timeout, now);
            if left.is_zero() {
                return None;
            }
            let text = self.form.text(left);
            self.fractional = text.contains('.');
            self.args[self.form.timeout_arg] = Bytes::from(text);
            self.timeout = Some(left);
            self.since = now;
        }
        Some(self.command())
    }

    fn command(&self) -> Bytes {
        let mut bytes = Vec::new();
        write::command(&mut bytes, &self.args);
        bytes.into()
    }

    /// What to send instead to a server that answered `frame`: before 6.0 it takes whole seconds only.
    pub(super) fn in_whole_seconds(&mut self, frame: &[u8]) -> Option<Bytes> {
        if !frame.starts_with(b"-ERR timeout is not an integer") || !std::mem::take(&mut self.fractional) {
            return None;
        }
        let left = self.timeout?;
        let whole = left.as_secs() + u64::from(left.subsec_nanos() > 0);
        self.args[self.form.timeout_arg] = whole.to_string().into();
        Some(self.command())
    }
}

pub(super) fn is_nil(frame: &[u8]) -> bool {
    frame.starts_with(b"*-1") || frame.starts_with(b"$-1") || frame.starts_with(b"_")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blocked(words: &str) -> Blocked {
        let args: Vec<&[u8]> = words.split(' ').map(str::as_bytes).collect();
        let form = command::blocking_form(command::lookup(args[0]).unwrap(), &args).unwrap();
        Blocked::new(&args, form, false)
    }

    fn encoded(words: &str) -> Bytes {
        let mut bytes = Vec::new();
        write::command(&mut bytes, &words.split(' ').collect::<Vec<_>>());
        bytes.into()
    }

    #[test]
    fn it_is_issued_again_with_the_time_that_is_left() {
        let mut pop = blocked("BLPOP q 2");
        let at = |ms| pop.asked + Duration::from_millis(ms);
        let (first, second, late) = (at(500), at(1600), at(2000));
        assert_eq!(pop.reissue(first), Some(encoded("BLPOP q 1.500")));
        assert_eq!(pop.reissue(second), Some(encoded("BLPOP q 0.400")));
        assert_eq!(pop.reissue(late), None);
        let (mut old, refusal) =
            (blocked("BRPOP q 3"), b"-ERR timeout is not an integer or out of range\r\n");
        assert_eq!(old.in_whole_seconds(refusal), None, "the client's own");
        let later = old.asked + Duration::from_millis(1700);
        assert_eq!(old.reissue(later), Some(encoded("BRPOP q 1.300")));
        assert_eq!(old.in_whole_seconds(b"-WRONGTYPE\r\n"), None);
        assert_eq!(old.in_whole_seconds(refusal), Some(encoded("BRPOP q 2")));
        assert_eq!(old.in_whole_seconds(refusal), None);
        let mut for_ever = blocked("XREAD BLOCK 0 STREAMS s $");
        let later = for_ever.asked + Duration::from_secs(1000);
        assert_eq!(for_ever.reissue(later), Some(encoded("XREAD BLOCK 0 STREAMS s $")));
    }

    #[test]
    fn what_a_recalled_command_answers_is_told_from_an_answer() {
        assert!(blocked("BLPOP q 0").ended_early(b"*-1\r\n"));
        assert!(!blocked("BLPOP q 0").ended_early(b"*2\r\n$1\r\nq\r\n$1\r\nx\r\n"));
        assert!(blocked("WAIT 2 0").ended_early(b":1\r\n"));
        assert!(!blocked("WAIT 2 0").ended_early(b":2\r\n"));
        assert!(blocked("WAITAOF 1 2 0").ended_early(b"*2\r\n:1\r\n:0\r\n"));
        assert!(blocked("WAITAOF 1 1 0").ended_early(b"*2\r\n:0\r\n:1\r\n"));
        assert!(!blocked("WAITAOF 1 1 0").ended_early(b"*2\r\n:1\r\n:2\r\n"));
        assert!(!blocked("WAIT 2 0").ended_early(b"-ERR\r\n"));
    }
}

//! Cursors of the SCAN family, which mean nothing to another server.
//!
//! A cursor names a place in one server's hash table; another server, with a seed and a table size of its own, would go
//! on somewhere else and leave elements out. So behind the first switch cursors carry the epoch in which they were given
//! out, and one of another epoch begins anew at 0: SCAN may name an element twice, it may not leave one out.
//! The mark is in the cursor itself and not in a session: connection pools send each step of a scan over whichever
//! connection is free.
//!
//! ```text
//!  bits 63-53    52-46               45-0
//!       0        epoch modulo 128    the server's cursor
//! ```
//! A standalone server's cursor is smaller than its table (2^46 buckets do not fit in memory), that of a cluster's node
//! has the slot in 14 bits below it; and 53 bits are exact where a client library keeps a cursor as a double. In epoch 0
//! the mark is 0: before the first switch nothing is changed, and SCAN travels down the lane.

use crate::resp::write;

const MARK_AT: u32 = 46;
const EPOCHS: u64 = 128;
const MARK: u64 = (EPOCHS - 1) << MARK_AT;

fn mark(epoch: u64) -> u64 {
    (epoch % EPOCHS) << MARK_AT
}

/// A cursor as servers read it: decimal digits and nothing else.
fn parse(cursor: &[u8]) -> Option<u64> {
    if cursor.is_empty() || !cursor.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(cursor).ok()?.parse().ok()
}

/// What the server is sent in place of a client's cursor, in this epoch; `None`: what the client wrote.
pub(super) fn for_server(cursor: &[u8], epoch: u64) -> Option<u64> {
    let cursor = parse(cursor)?;
    Some(if cursor & MARK == mark(epoch) { cursor & !MARK } else { 0 })
}

/// The command with the cursor, its argument `at`, as this epoch's server is to read it.
pub(super) fn command_for_server(args: &[&[u8]], at: usize, epoch: u64) -> Vec<u8> {
    let cursor = args.get(at).and_then(|cursor| for_server(cursor, epoch));
    let cursor = cursor.map(|cursor| cursor.to_string());
    let mut words = args.to_vec();
    if let (Some(word), Some(cursor)) = (words.get_mut(at), &cursor) {
        *word = cursor.as_bytes();
    }
    let mut command = Vec::new();
    write::command(&mut command, &words);
    command
}

/// The server's reply with its cursor marked; `None`: as it is (an error, the end of the scan).
pub(super) fn for_client(reply: &[u8], epoch: u64) -> Option<Vec<u8>> {
    let rest = reply.strip_prefix(b"*2\r\n$")?;
    let line = rest.windows(2).position(|two| two == b"\r\n")?;
    let length = usize::try_from(parse(&rest[..line])?).ok()?;
    let rest = &rest[line + 2..];
    let cursor = parse(rest.get(..length)?)?;
    let elements = rest.get(length + 2..)?;
    if cursor == 0 || cursor & MARK != 0 {
        return None;
    }
    let mut out = Vec::with_capacity(reply.len() + 20);
    write::array_header(&mut out, 2);
    write::bulk(&mut out, (cursor | mark(epoch)).to_string().as_bytes());
    out.extend_from_slice(elements);
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cursor_of(reply: &[u8]) -> Vec<u8> {
        let text = String::from_utf8(reply.to_vec()).unwrap();
        text.split("\r\n").nth(2).unwrap().as_bytes().to_vec()
    }

    #[test]
    fn a_cursor_comes_back_to_the_epoch_that_gave_it_and_to_no_other() {
        for epoch in [1, 2, 127, 128, 129, 1000] {
            for cursor in [1u64, 17, (1 << 46) - 1] {
                let raw = format!("*2\r\n${}\r\n{cursor}\r\n*1\r\n$1\r\na\r\n", cursor.to_string().len());
                let reply = for_client(raw.as_bytes(), epoch).unwrap();
                assert!(reply.ends_with(b"\r\n*1\r\n$1\r\na\r\n"));
                let given = cursor_of(&reply);
                assert_eq!(for_server(&given, epoch), Some(cursor));
                assert_eq!(for_server(&given, epoch + 1), Some(0));
                assert_eq!(for_server(&given, epoch - 1), Some(0));
                assert!(parse(&given).unwrap() < 1 << 53, "exact as a double");
            }
        }
    }

    #[test]
    fn what_is_no_cursor_stays_as_it_is() {
        assert_eq!(for_server(b"abc", 3), None);
        assert_eq!(for_server(b"-1", 3), None);
        assert_eq!(for_server(b"99999999999999999999999", 3), None);
        assert_eq!(for_server(b"0", 3), Some(0));
        assert_eq!(for_client(b"*2\r\n$1\r\n0\r\n*0\r\n", 3), None);
        assert_eq!(for_client(b"-ERR no\r\n", 3), None);
        assert_eq!(for_client(b"*2\r\n$2\r\n1", 3), None);
    }
}

//! Replies, at once and cut anywhere: the same end or the same error; what has an end can be decoded
//! within bounds, or is refused, and nothing panics. The first byte says where to cut.
#![no_main]

use bytes::BytesMut;
use crossfade::resp::scan::ReplyScanner;
use crossfade::resp::value::{Bounds, Decoder};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((&cut, buf)) = data.split_first() else { return };
    let once = ReplyScanner::default().feed(buf).map(|feed| feed.complete.then_some(feed.consumed));
    let cut = usize::from(cut).min(buf.len());
    let mut scanner = ReplyScanner::default();
    let pieces = scanner.feed(&buf[..cut]).and_then(|first| {
        if first.complete {
            return Ok(Some(first.consumed));
        }
        let second = scanner.feed(&buf[first.consumed..])?;
        Ok(second.complete.then_some(first.consumed + second.consumed))
    });
    assert_eq!(once, pieces);

    let mut decoder = Decoder::new(Bounds { depth: 32, bytes: 1 << 20, elements: 1 << 16 });
    let mut rest = BytesMut::from(buf);
    while let Ok(Some(_)) = decoder.next(&mut rest) {}
});

//! Commands, at once and cut anywhere: the same frame or the same error, within the limits.
//! The first byte says where to cut.
#![no_main]

use crossfade::resp::scan::{CommandScanner, Limits};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((&cut, buf)) = data.split_first() else { return };
    let limits = Limits { inline: 64 * 1024, arguments: 4096, bulk: 1 << 20 };
    let once = CommandScanner::default().next(buf, &limits);
    let cut = usize::from(cut).min(buf.len());
    let mut scanner = CommandScanner::default();
    let pieces = match scanner.next(&buf[..cut], &limits) {
        Ok(None) => {
            assert!(scanner.need() == 0 || scanner.need() > cut);
            scanner.next(buf, &limits)
        }
        early => early,
    };
    assert_eq!(once, pieces);
    if let Ok(Some(frame)) = once {
        assert!(frame.len <= buf.len());
        if !frame.inline {
            assert!(frame.argc <= limits.arguments);
            assert_eq!(frame.args(buf).count(), frame.argc);
            assert!(frame.args(buf).all(|arg| arg.len() <= limits.bulk));
        }
    }
});

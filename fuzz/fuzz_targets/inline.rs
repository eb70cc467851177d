//! Inline commands: never more bytes out than in, and what was split can be quoted and split again.
#![no_main]

use crossfade::resp::scan::split_inline;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some(words) = split_inline(data) else { return };
    assert!(words.iter().map(Vec::len).sum::<usize>() <= data.len());
    let quoted: Vec<String> = words
        .iter()
        .map(|word| format!("\"{}\"", word.iter().map(|b| format!("\\x{b:02x}")).collect::<String>()))
        .collect();
    assert_eq!(split_inline(quoted.join(" ").as_bytes()), Some(words));
});

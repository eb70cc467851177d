//! An RDB file of any bytes is read to an error or to its end: no panic, no endless loop, no memory beyond what the
//! bytes account for. The checksum is set to "none", so that damage gets as far as it can.

#![no_main]

use crossfade::mirror::expiry::field_padded;
use crossfade::rdb::{Dialect, Item, ReadOptions, Reader};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (u8, &[u8])| {
    let (first, rest) = input;
    let mut file = if first & 1 == 0 { b"REDIS0012".to_vec() } else { b"VALKEY080".to_vec() };
    file.extend_from_slice(rest);
    file.push(255);
    file.extend_from_slice(&[0; 8]);
    let big_value = if first & 2 == 0 { 1 << 20 } else { 16 };
    let mut reader = Reader::new(&file[..], ReadOptions { big_value, keep_templates: first & 8 != 0 });
    while let Ok(Some(item)) = reader.next_item() {
        match item {
            Item::Entry(entry) => {
                let _ = entry.value.plain_string();
                let _ = entry.value.module();
                let _ = entry.value.with_field_expiries(field_padded);
                let _ = entry.value.plain_payload();
                let _ = entry.value.commands(entry.key, &Dialect::default(), &mut |_| Ok(()));
            }
            Item::Big(entry) if first & 4 == 0 => {
                let _ = entry.copy(field_padded, &mut |_| Ok(()));
            }
            Item::Big(entry) => {
                let _ = entry.commands(&Dialect::default(), &mut |_| Ok(()));
            }
            _ => {}
        }
    }
});

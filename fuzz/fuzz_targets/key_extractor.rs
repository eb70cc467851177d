//! Calls with any arguments: every key is an argument, and no argument makes it panic or run long.
//! The input is split at zero bytes.
#![no_main]

use crossfade::command;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let args: Vec<&[u8]> = data.split(|byte| *byte == 0).collect();
    let Some(spec) = command::lookup(args[0]) else { return };
    let (_, _) = command::route(spec, &args);
    if let Some(form) = command::blocking_form(spec, &args) {
        assert!(form.timeout_arg < args.len());
        let _ = form.timeout(&args);
    }
    let mut found = 0;
    let _ = command::each_key(spec, &args, |at, _| {
        assert!(at > 0 && at < args.len());
        found += 1;
    });
    assert!(found <= 2 * args.len());
});

//! The `crossfade` binary: arguments in, exit status out.

fn main() {}

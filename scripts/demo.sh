#!/usr/bin/env bash
# The main job in one command: builds Crossfade, starts two real servers with live checked traffic, copies, cuts over,
# rolls back, cuts over again, and compares everything. Arguments go to `crossfade demo` (--json, --keep, --help).
set -euo pipefail
. "$(dirname "$0")/common.sh"
need redis-server redis-server
need_rust
say "building (the first time takes some minutes)"
cargo build --release --locked --manifest-path "$top/Cargo.toml" --bin crossfade >&2
say "running crossfade demo $*"
exec "$(target_dir)/release/crossfade" demo "$@"

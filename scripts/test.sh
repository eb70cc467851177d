#!/usr/bin/env bash
# Every test: units, properties, simulation, and end to end against real servers.
# Arguments go to cargo test, as in: scripts/test.sh --test e2e h13
set -euo pipefail
. "$(dirname "$0")/common.sh"
need redis-server redis-server
need redis-cli redis-tools
need faketime faketime
need_chromium
need_python_venv
need_node
need_rust
cd "$top"
say "testing with $(redis-server --version | cut -d' ' -f1-3), $(rustc --version)"
exec cargo test --locked --no-fail-fast "$@" </dev/null

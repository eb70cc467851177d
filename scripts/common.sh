# Sourced by the other scripts: says what is done, and installs what is missing.
# Everything goes to stderr, so that stdout stays free for documents.

say() { echo "==> $*" >&2; }
die() { echo "error: $*" >&2; exit 1; }

as_root() {
  if [ "$(id -u)" = 0 ]; then "$@"; elif command -v sudo >/dev/null; then sudo "$@"; else
    die "this needs root and there is no sudo: $*"
  fi
}

# need COMMAND PACKAGE: installs the Debian/Ubuntu package when the command is missing
need() {
  command -v "$1" >/dev/null && return
  command -v apt-get >/dev/null || die "$1 is missing; install it (package $2 on Debian and Ubuntu)"
  say "installing $2 ($1 is missing)"
  [ -n "${apt_updated:-}" ] || as_root env DEBIAN_FRONTEND=noninteractive apt-get update -q >&2 </dev/null
  apt_updated=1
  as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "$2" >&2 </dev/null
  command -v "$1" >/dev/null || die "$1 is still missing after installing $2"
}

# The dashboard is tested in a browser. Ubuntu's package needs snapd, so any Chromium that is there will do.
need_chromium() {
  for name in chromium chromium-browser google-chrome-stable google-chrome; do
    command -v "$name" >/dev/null && return
  done
  need chromium chromium
}

need_rust() {
  command -v cargo >/dev/null || { [ ! -f "$HOME/.cargo/env" ] || . "$HOME/.cargo/env"; }
  command -v cargo >/dev/null || die "cargo is missing; install a Rust toolchain (1.89 or newer) from https://rustup.rs"
  # ring compiles a little C and assembly
  need cc gcc
}

# Where cargo puts what it builds
target_dir() { echo "${CARGO_TARGET_DIR:-$top/target}"; }

top=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

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
  say "$1 is missing"
  install_package "$2"
  command -v "$1" >/dev/null || die "$1 is still missing after installing $2"
}

install_package() {
  command -v apt-get >/dev/null || die "install what is called $1 on Debian and Ubuntu"
  say "installing $1"
  [ -n "${apt_updated:-}" ] || as_root env DEBIAN_FRONTEND=noninteractive apt-get update -q >&2 </dev/null
  apt_updated=1
  as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "$1" >&2 </dev/null
}

# The dashboard is tested in a browser. Ubuntu's package needs snapd, so any Chromium that is there will do.
need_chromium() {
  for name in chromium chromium-browser google-chrome-stable google-chrome; do
    command -v "$name" >/dev/null && return
  done
  need chromium chromium
}

# redis-py is tested in an environment of its own. Debian's python3 has the module venv without what it installs.
need_python_venv() {
  need python3 python3
  ! python3 -c 'import ensurepip, venv' 2>/dev/null || return 0
  install_package python3-venv
  python3 -c 'import ensurepip, venv' || die "python3 still cannot make a virtual environment after installing python3-venv"
}

# ioredis and node-redis are tested with what npm installs
need_node() {
  need node nodejs
  need npm npm
  [ "$(node -p 'process.versions.node.split(".")[0]')" -ge 18 ] || die "node is older than 18; install a newer one"
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

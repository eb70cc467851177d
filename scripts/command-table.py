#!/usr/bin/env python3
"""Writes src/command/table.rs from what real servers answer to COMMAND.

    scripts/command-table.py SERVER... > src/command/table.rs

SERVER is a redis-server or valkey-server binary. Each is started on a unix socket in a directory of its
own, asked, and ended. Commands and subcommands of all servers are merged: flags and key specifications
are those of the last server in the list that has the command (so put the newest last), and the arity is
the loosest of all. Servers before 7.0 send neither subcommands nor key specifications; the older
first/last/step positions stand in for them.
"""

import socket
import subprocess
import sys
import tempfile
import time

FLAGS = {
    "write": "WRITE", "readonly": "READONLY", "denyoom": "DENYOOM", "admin": "ADMIN", "pubsub": "PUBSUB",
    "noscript": "NOSCRIPT", "blocking": "BLOCKING", "loading": "LOADING", "stale": "STALE", "fast": "FAST",
    "no_auth": "NO_AUTH", "allow_busy": "ALLOW_BUSY", "movablekeys": "MOVABLE", "no_multi": "NO_MULTI",
    "module": "MODULE",
}
# Flags that say nothing to a gateway.
IGNORED = {
    "asking", "may_replicate", "no_async_loading", "no_mandatory_keys", "random", "script_runner",
    "skip_commandlog", "skip_monitor", "skip_slowlog", "sort_for_script",
}
KEY_FLAGS = {
    "RO": "RO", "RW": "RW", "OW": "OW", "RM": "RM", "access": "ACCESS", "insert": "INSERT", "update": "UPDATE",
    "delete": "DELETE", "not_key": "CHANNEL", "incomplete": "INCOMPLETE", "variable_flags": "VARIABLE",
}


class Connection:
    """As much of RESP2 as COMMAND needs."""

    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(path)
        self.file = self.socket.makefile("rb")

    def call(self, *args):
        out = b"*%d\r\n" % len(args)
        for arg in args:
            out += b"$%d\r\n%s\r\n" % (len(arg), arg.encode())
        self.socket.sendall(out)
        return self.read()

    def read(self):
        line = self.file.readline()
        kind, rest = line[:1], line[1:-2]
        if kind == b"+":
            return rest.decode()
        if kind == b":":
            return int(rest)
        if kind == b"$":
            return None if rest == b"-1" else self.file.read(int(rest) + 2)[:-2].decode()
        if kind == b"*":
            return None if rest == b"-1" else [self.read() for _ in range(int(rest))]
        raise RuntimeError(f"unexpected reply {line!r}")


def ask(binary):
    """(name and version, reply to COMMAND) of one server."""
    with tempfile.TemporaryDirectory() as folder:
        path = folder + "/s"
        server = subprocess.Popen(
            [binary, "--port", "0", "--unixsocket", path, "--save", "", "--dir", folder],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )
        try:
            deadline = time.time() + 20
            while True:
                try:
                    connection = Connection(path)
                    break
                except OSError:
                    if time.time() > deadline or server.poll() is not None:
                        raise SystemExit(f"{binary} does not start")
                    time.sleep(0.05)
            lines = connection.call("INFO", "server").splitlines()
            info = dict(line.split(":", 1) for line in lines if ":" in line)
            name = "Valkey" if "valkey_version" in info else "Redis"
            version = info.get("valkey_version") or info["redis_version"]
            return f"{name} {version}", connection.call("COMMAND")
        finally:
            server.terminate()
            server.wait()


def pairs(flat):
    return dict(zip(flat[::2], flat[1::2]))


def half(search):
    """(type, spec) of one half of a key specification."""
    search = pairs(search)
    return search["type"], pairs(search["spec"])


def begin(search):
    kind, spec = half(search)
    if kind == "index":
        return f"Begin::Index({spec['index']})"
    if kind == "keyword":
        return f"Begin::Keyword(\"{spec['keyword'].lower()}\", {spec['startfrom']})"
    return "Begin::Unknown"


def find(search):
    kind, spec = half(search)
    if kind == "range":
        return f"Find::Range({spec['lastkey']}, {spec['keystep']}, {spec['limit']})"
    if kind == "keynum":
        return f"Find::Count({spec['keynumidx']}, {spec['firstkey']}, {spec['keystep']})"
    return "Find::Unknown"


def joined(names, known, ignored, what):
    for name in names:
        if name not in known and name not in ignored:
            print(f"command-table: unknown {what} {name!r}", file=sys.stderr)
    return " | ".join(known[name] for name in sorted(names) if name in known) or "0"


def keys(row):
    if len(row) > 8:
        specs = [pairs(spec) for spec in row[8]]
        return [
            f"k({begin(s['begin_search'])}, {find(s['find_keys'])}, "
            f"{joined(s['flags'], KEY_FLAGS, set(), 'key flag')})"
            for s in specs
        ]
    first, last, step = row[3:6]
    if first == 0:
        return []
    last = last - first if last >= 0 else last
    flags = "RW" if "write" in row[2] else "RO"
    return [f"k(Begin::Index({first}), Find::Range({last}, {step}, 0), {flags})"]


def loosest(rows):
    arities = {row[1] for row in rows}
    if len(arities) == 1:
        return arities.pop()
    return -min(abs(arity) for arity in arities)


def main():
    if len(sys.argv) < 2:
        raise SystemExit(__doc__)
    merged = {}
    names = []
    for binary in sys.argv[1:]:
        name, reply = ask(binary)
        names.append(name)
        for row in reply:
            for each in [row] + (row[9] if len(row) > 9 and row[9] else []):
                merged.setdefault(each[0].lower(), []).append(each)
    print("//! What the servers' own COMMAND says of every command and subcommand.")
    print("//!")
    print("//! Written by `scripts/command-table.py`; do not edit. Asked were:")
    for start in range(0, len(names), 6):
        end = "." if start + 6 >= len(names) else ","
        print("//! " + ", ".join(names[start:start + 6]) + end)
    print()
    print("use super::flags::*;")
    print("use super::keys::{Begin, Find, access::*, spec as k};")
    print("use super::{Row, row as r};")
    print()
    print("/// Sorted by name; a subcommand is `parent|sub`.")
    print("#[rustfmt::skip]")
    print("pub(super) static ROWS: &[Row] = &[")
    for name in sorted(merged):
        rows = merged[name]
        newest = rows[-1]
        flags = joined(newest[2], FLAGS, IGNORED, "flag")
        print(f"    r(\"{name}\", {loosest(rows)}, {flags}, &[{', '.join(keys(newest))}]),")
    print("];")


if __name__ == "__main__":
    main()

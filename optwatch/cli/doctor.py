"""`optwatch doctor`: looks over this set-up, and says of each thing that is wrong what to do."""

import argparse
import importlib.metadata
import os
import resource
import shutil
import sqlite3
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import zmq

from optwatch import __version__
from optwatch.cli.show import GREEN, RED, YELLOW, print_json, print_table
from optwatch.client import Client, DaemonError
from optwatch.client.link import resolve
from optwatch.wire.keys import KeyFileError, key_pair
from optwatch.wire.places import config_dir, connection_file, read_connection, state_dir

HELP = "Look over this set-up: packages, keys, the daemon, the store, the terminal; exit 1 where it fails."
EXAMPLE = "optwatch doctor"

PACKAGES = {"torch": "attach()", "textual": "the TUI", "tensorboard": "TensorBoard files"}
ROOM = 1 << 30
"""Free bytes below which a store's disk is nearly full."""
QUICK = 1 << 30
"""Size of a store up to which it is read through here."""
SKEW = 2.0
FILES = 4_096
REMOTE = ("nfs", "cifs", "smb", "lustre", "gpfs", "ceph", "fuse.sshfs", "9p", "beegfs")

Verdict = Literal["ok", "look", "wrong"]
GLYPHS: dict[Verdict, tuple[str, str]] = {"ok": ("✓", GREEN), "look": ("▲", YELLOW), "wrong": ("✖", RED)}


@dataclass(frozen=True)
class Check:
    """One thing that was looked at. `remedy`: what to do, "" where it is well."""

    name: str
    verdict: Verdict
    found: str
    remedy: str = ""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--store", metavar="DIR", type=Path, help="the store to look at (default: your own)")


def run(args: argparse.Namespace) -> int:
    checks = [check for look in _looks(args.store or state_dir()) for check in look()]
    if args.json:
        print_json(checks)
    else:
        print_table(
            ("", "what", "found"),
            [(GLYPHS[c.verdict], c.name, c.found + (f": {c.remedy}" if c.remedy else "")) for c in checks],
        )
    return int(any(check.verdict == "wrong" for check in checks))


def _looks(store: Path) -> list[Callable[[], Iterator[Check]]]:
    return [_packages, _compiled_pass, _libzmq, _keys, _daemon, lambda: _store(store), _limits, _terminal]


def _packages() -> Iterator[Check]:
    python = ".".join(map(str, sys.version_info[:3]))
    yield Check("Python", "ok", f"{python}, optwatch {__version__}")
    for package, use in PACKAGES.items():
        try:
            yield Check(package, "ok", importlib.metadata.version(package))
        except importlib.metadata.PackageNotFoundError:
            extra = {"textual": "tui"}.get(package, package)
            yield Check(package, "look", "not installed", f"for {use}, pip install 'optwatch[{extra}]'")


def _compiled_pass() -> Iterator[Check]:
    """Whether trainings on this host measure tensors at the price that they could."""
    if find_spec("torch") is None:
        return
    from optwatch_agent import compiled, kernels

    if compiled.is_kept_off():
        yield Check(
            "compiled pass", "look", "kept off", "unset OPTWATCH_COMPILED, and samples cost a fraction"
        )
    elif kernels.is_whole(compiled.directory()):
        yield Check("compiled pass", "ok", f"in {compiled.directory()}")
    elif kernels.can_build():
        yield Check("compiled pass", "ok", "not built yet: the first training on the CPU does it")
    else:
        remedy = "pip install 'optwatch[compiled]', and samples on the CPU cost a fraction"
        yield Check("compiled pass", "look", "no C compiler to build it", remedy)


def _libzmq() -> Iterator[Check]:
    found = f"libzmq {zmq.zmq_version()}, pyzmq {zmq.pyzmq_version()}"
    if zmq.has("curve"):
        yield Check("ZeroMQ", "ok", f"{found}, with CURVE")
    else:
        yield Check("ZeroMQ", "wrong", f"{found}, without CURVE", "install pyzmq from its own wheel")


def _keys() -> Iterator[Check]:
    directory = config_dir() / "keys"
    if not directory.is_dir():
        yield Check("keys", "ok", "none yet: the first command makes them")
        return
    if directory.stat().st_mode & 0o077:
        yield Check("keys", "look", f"others can see into {directory}", f"chmod 700 {directory}")
    for owner in ("user", "daemon"):
        if not (directory / f"{owner}.json").exists():
            continue
        try:
            yield Check(f"{owner}'s key", "ok", key_pair(owner).public)
        except (KeyFileError, OSError) as error:
            yield Check(f"{owner}'s key", "wrong", str(error), "see the file named")


def _daemon() -> Iterator[Check]:
    path, connection = connection_file(), read_connection()
    if connection is not None:
        yield Check("connection file", "ok", f"{path} names {connection.address}")
    elif path.exists():
        yield Check("connection file", "wrong", f"{path} is not yours, or no connection", f"delete {path}")
    try:
        address, _ = resolve(None)
        before = time.time()
        with Client(timeout=2.0) as client:
            greeting, after = client.greeting, time.time()
    except DaemonError as error:
        verdict: Verdict = "wrong" if connection or "OPTWATCH_DAEMON" in os.environ else "look"
        yield Check("daemon", verdict, "none is reached", str(error))
        return
    told = f"{address}, process {greeting.pid}, optwatch {greeting.version}, you are its {greeting.role}"
    if greeting.version == __version__:
        yield Check("daemon", "ok", told)
    else:
        yield Check("daemon", "look", told, f"this is {__version__}: run the same on both sides")
    if greeting.trouble:
        yield Check("daemon's trouble", "wrong", greeting.trouble, "nothing is recorded until it is mended")
    skew = greeting.time - (before + after) / 2
    if abs(skew) <= SKEW + (after - before):
        yield Check("clocks", "ok", f"the daemon's is {skew:+.1f} s off")
    else:
        yield Check("clocks", "look", f"the daemon's is {skew:+.1f} s off", "set both by NTP")


def _store(directory: Path) -> Iterator[Check]:
    from optwatch.daemon.errors import StartError
    from optwatch.daemon.retention import used
    from optwatch.daemon.store import FILE
    from optwatch.daemon.tables import VERSION, connect

    there = next(path for path in (directory, *directory.parents) if path.exists())
    free = shutil.disk_usage(there).free
    told = f"{free / 2**30:,.1f} GiB free at {there}"
    if free < ROOM:
        remedy = "make room, or keep less: optwatch daemon --max-size, optwatch store compact"
        yield Check("disk", "wrong", told, remedy)
    elif (kind := _file_system(there)).startswith(REMOTE):
        yield Check("disk", "look", f"{told}, a file system of kind {kind}", "keep the store on a local disk")
    else:
        yield Check("disk", "ok", told)
    path = directory / FILE
    if not path.is_file():
        yield Check("store", "ok", f"none yet in {directory}")
        return
    try:
        connection = connect(str(path), read_only=True)
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        size = used(connection)
        small = size <= QUICK
        problems = connection.execute("PRAGMA quick_check(1)").fetchall() if small else [("ok",)]
        (runs,) = connection.execute("SELECT COUNT(*) FROM run").fetchone()
        connection.close()
    except (sqlite3.Error, StartError) as error:
        yield Check("store", "wrong", f"{path}: {error}", f"optwatch store check --store {directory}")
        return
    told = f"{path}: {runs} runs, {size / 2**20:,.1f} MiB"
    if version > VERSION:
        yield Check("store", "wrong", f"{told}, of a newer optwatch", "upgrade optwatch")
    elif problems != [("ok",)]:
        yield Check(
            "store", "wrong", f"{told}, {problems[0][0]}", f"optwatch store check --store {directory}"
        )
    else:
        yield Check("store", "ok", told + ("" if small else " (large: not read through)"))


def _limits() -> Iterator[Check]:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY or hard >= FILES:
        yield Check("open files", "ok", "as many as one likes" if hard < 0 else f"up to {hard:,}")
    else:
        yield Check("open files", "look", f"up to {hard}", "each agent of a daemon takes one: ulimit -Hn")


def _terminal() -> Iterator[Check]:
    if not sys.stdout.isatty():
        yield Check("terminal", "ok", "this is none")
        return
    size = shutil.get_terminal_size()
    kind = os.environ.get("TERM", "")
    found = f"{size.columns}×{size.lines}, {kind or 'unnamed'}, {sys.stdout.encoding}"
    if size.columns < 80 or size.lines < 24:
        yield Check("terminal", "look", found, "the TUI wants 80×24")
    elif kind in ("", "dumb"):
        yield Check("terminal", "look", found, "set TERM to your terminal's kind, such as xterm-256color")
    elif (sys.stdout.encoding or "").lower().replace("-", "") != "utf8":
        yield Check("terminal", "look", found, "set LANG to a UTF-8 locale, such as C.UTF-8")
    else:
        yield Check("terminal", "ok", found)


def _file_system(path: Path) -> str:
    """The kind of the file system that a path is on, "" where that cannot be told."""
    try:
        mounts = [line.split()[1:3] for line in Path("/proc/mounts").read_text().splitlines()]
    except OSError:
        return ""
    real = str(path.resolve())
    over = [
        (where, kind) for where, kind in mounts if real == where or real.startswith(where.rstrip("/") + "/")
    ]
    return max(over, key=lambda pair: len(pair[0]), default=("", ""))[1]

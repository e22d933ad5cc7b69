"""Upkeep of a store: is all of it readable, and can it be smaller?"""

import sqlite3
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from optwatch.daemon.chunks import kind_of, split
from optwatch.daemon.commands import Entry
from optwatch.daemon.diagnosis import Checkpoint
from optwatch.daemon.errors import StartError
from optwatch.daemon.head import Head
from optwatch.daemon.store import FILE, lock
from optwatch.daemon.tables import VERSION, connect, migrate
from optwatch.daemon.writer import LEVELS, merge_level, read_schema
from optwatch.wire.findings import Finding
from optwatch.wire.messages import Hello

DAY = 86_400.0
KEEP_EVERY = 10
"""Of the per-tensor records that are thinned, one in so many stays."""
AROUND = 200
"""Steps around a finding within which every record stays."""


@dataclass(frozen=True)
class Report:
    """What a check found. `problems` is empty for a sound store."""

    runs: int
    chunks: int
    rows: int
    size: int
    problems: tuple[str, ...]


@dataclass(frozen=True)
class Gain:
    """What a compaction did. Sizes in bytes."""

    before: int
    after: int
    runs_deleted: int
    records_thinned: int


def check(directory: Path) -> Report:
    """Read everything in a store, also while a daemon uses it.

    Raises:
        StartError: there is no store, or it cannot be opened.
    """
    path = _existing(directory)
    try:
        connection = connect(str(path), read_only=True)
        connection.execute("BEGIN")  # one view of the file, whatever a daemon writes meanwhile
        return _check(connection, path)
    except sqlite3.DatabaseError as error:
        return Report(0, 0, 0, path.stat().st_size, (f"{path} cannot be read: {error}",))


@dataclass(frozen=True)
class Audited:
    """One wish of a client, as it was noted. `at`: unix seconds; `what`: the request, or "refused"."""

    at: float
    who: str
    run: str
    what: str
    detail: str


def audit(directory: Path) -> list[Audited]:
    """What clients have asked to be done, and who they were, the oldest first; also while a daemon has it.

    Raises:
        StartError: there is no store, or it cannot be read.
    """
    path = _existing(directory)
    try:
        rows = connect(str(path), read_only=True).execute(
            "SELECT at, who, run, what, detail FROM audit ORDER BY id"
        )
        return [Audited(*row) for row in rows]
    except sqlite3.DatabaseError as error:
        raise StartError(f"{path} cannot be read: {error}") from None


def compact(directory: Path, *, thin_after: float | None = None, delete_after: float | None = None) -> Gain:
    """Merge small chunks, apply the retention that is asked for, give the space back.

    Args:
        thin_after: days since a run was last heard of, after which of its per-tensor records one in
            `KEEP_EVERY` stays, and all within `AROUND` steps of a finding. Scalars stay whole.
        delete_after: days after which a run is deleted.

    Raises:
        StartError: there is no store, it cannot be written, or a daemon has it.
    """
    path = _existing(directory)
    with lock(directory):
        try:
            connection = connect(str(path))
            migrate(connection, str(path))
            before = _size(path)
            now = time.time()
            deleted = _delete(connection, now - delete_after * DAY) if delete_after is not None else 0
            thinned = _thin(connection, now - thin_after * DAY) if thin_after is not None else 0
            _merge(connection)
            connection.execute("VACUUM")
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            connection.close()
        except (sqlite3.Error, ValueError) as error:
            raise StartError(f"cannot compact {path}: {error}; try `optwatch store check`") from None
    return Gain(before, _size(path), deleted, thinned)


def _check(connection: sqlite3.Connection, path: Path) -> Report:
    problems = [
        f"SQLite: {text}" for (text,) in connection.execute("PRAGMA integrity_check(20)") if text != "ok"
    ]
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version != VERSION:
        problems.append(f"version {version}, this optwatch knows {VERSION}")
        return Report(0, 0, 0, _size(path), tuple(problems))
    for table, kind in (
        ("run", Head),
        ("finding", Finding),
        ("command", Entry),
        ("checkpoint", Checkpoint),
        ("session", Hello),
    ):
        column = {"run": "head", "session": "hello"}.get(table, "data")
        for run, data in connection.execute(f"SELECT run, {column} FROM {table}"):  # noqa: S608
            try:
                msgspec.msgpack.decode(data, type=kind)
            except msgspec.DecodeError as error:
                problems.append(f"run {run}: a {table} cannot be read: {error}")
    chunks = rows = 0
    query = "SELECT id, run, optimizer, kind, schema, first, last, rows, data FROM chunk"
    for number, run, optimizer, kind, digest, first, last, count, data in connection.execute(query):
        chunks += 1
        rows += count
        try:
            schema = read_schema(connection, run, optimizer, digest)
            step = split(kind_of(kind), schema, count, data)[0][:, 0]
            if count and (step.min() != first or step.max() != last):
                problems.append(f"run {run}: chunk {number} holds other steps than it says")
        except ValueError as error:
            problems.append(f"run {run}: chunk {number}: {error}")
    (runs,) = connection.execute("SELECT COUNT(*) FROM run").fetchone()
    return Report(runs, chunks, rows, _size(path), tuple(problems))


def _merge(connection: sqlite3.Connection) -> None:
    """Bring the chunks of every stream to the highest level."""
    streams = connection.execute("SELECT DISTINCT run, optimizer, kind, rank FROM chunk").fetchall()
    for stream in streams:
        connection.execute("BEGIN IMMEDIATE")
        for level in range(LEVELS - 1):
            merge_level(connection, stream, level)
        connection.execute("COMMIT")


def _delete(connection: sqlite3.Connection, before: float) -> int:
    runs = connection.execute("SELECT run FROM run WHERE heard < ?", (before,)).fetchall()
    connection.execute("BEGIN IMMEDIATE")
    for table in ("chunk", "schema", "marker", "finding", "command", "checkpoint", "session", "run"):
        connection.executemany(f"DELETE FROM {table} WHERE run = ?", runs)  # noqa: S608
    connection.execute("COMMIT")
    return len(runs)


def _thin(connection: sqlite3.Connection, before: float) -> int:
    """Thin the per-tensor records of the runs that were last heard of before a time; how many went."""
    gone = 0
    for (run,) in connection.execute("SELECT run FROM run WHERE heard < ?", (before,)).fetchall():
        kept = list(_kept_ranges(connection, run))
        connection.execute("BEGIN IMMEDIATE")
        numbers = connection.execute("SELECT id FROM chunk WHERE run = ? AND kind = 't'", (run,)).fetchall()
        for (number,) in numbers:
            gone += _thin_chunk(connection, run, number, kept)
        connection.execute("COMMIT")
    return gone


def _thin_chunk(connection: sqlite3.Connection, run: str, number: int, kept: list[tuple[int, int]]) -> int:
    optimizer, digest, rows, data = connection.execute(
        "SELECT optimizer, schema, rows, data FROM chunk WHERE id = ?", (number,)
    ).fetchone()
    blocks = split("t", read_schema(connection, run, optimizer, digest), rows, data)
    step = blocks[0][:, 0]
    # By the step's own number, so that a second thinning finds nothing more to take.
    stays = step % KEEP_EVERY == 0
    for first, last in kept:
        stays |= (step >= first) & (step <= last)
    if stays.all():
        return 0
    left = int(np.count_nonzero(stays))
    if left:
        connection.execute(
            "UPDATE chunk SET first = ?, last = ?, rows = ?, data = ? WHERE id = ?",
            (
                int(step[stays].min()),
                int(step[stays].max()),
                left,
                b"".join(block[stays].tobytes() for block in blocks),
                number,
            ),
        )
    else:
        connection.execute("DELETE FROM chunk WHERE id = ?", (number,))
    return int(rows) - left


def _kept_ranges(connection: sqlite3.Connection, run: str) -> Iterator[tuple[int, int]]:
    for (data,) in connection.execute("SELECT data FROM finding WHERE run = ?", (run,)):
        finding = msgspec.msgpack.decode(data, type=Finding)
        yield finding.onset_step - AROUND, (finding.resolved_step or finding.step) + AROUND


def _existing(directory: Path) -> Path:
    path = directory / FILE
    if not path.is_file():
        raise StartError(f"there is no store in {directory}")
    return path


def _size(path: Path) -> int:
    return sum(file.stat().st_size for file in path.parent.glob(f"{path.name}*"))

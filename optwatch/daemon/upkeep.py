"""Upkeep of a store: is all of it readable, and can it be smaller?"""

import sqlite3
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import msgspec

from optwatch.daemon.chunks import kind_of, split
from optwatch.daemon.diagnosis import Checkpoint
from optwatch.daemon.entries import Entry
from optwatch.daemon.errors import StartError
from optwatch.daemon.head import Head
from optwatch.daemon.resume import LaneState
from optwatch.daemon.retention import Limits, delete_run, next_job, used
from optwatch.daemon.schemas import read_schema
from optwatch.daemon.store import FILE, lock
from optwatch.daemon.tables import VERSION, connect, migrate
from optwatch.daemon.thinning import Thinned, thin_run
from optwatch.daemon.writer import LEVELS, merge_level
from optwatch.wire.findings import Finding
from optwatch.wire.messages import Hello

NO_LIMITS = Limits()


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
    """Per-tensor records and histograms."""
    scalars_thinned: int
    """Rows of scalars, one for each rank and step."""


def check(directory: Path) -> Report:
    """Read everything in a store, also while a daemon uses it.

    Raises:
        StartError: there is no store, or it cannot be opened.
    """
    return check_file(_existing(directory))


def check_file(path: Path) -> Report:
    """The same of a store's file."""
    try:
        with closing(connect(str(path), read_only=True)) as connection:
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


def compact(directory: Path, limits: Limits = NO_LIMITS) -> Gain:
    """Merge small chunks, hold the store to the limits that are given, give the space back.

    Raises:
        StartError: there is no store, it cannot be written, or a daemon has it.
    """
    path = _existing(directory)
    with lock(directory):
        try:
            connection = connect(str(path))
            migrate(connection, str(path))
            before = _size(path)
            deleted, thinned = _hold_to(connection, limits)
            _merge(connection)
            connection.execute("PRAGMA auto_vacuum = INCREMENTAL")  # a store of an earlier version
            connection.execute("VACUUM")
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            connection.close()
        except (sqlite3.Error, ValueError) as error:
            raise StartError(f"cannot compact {path}: {error}; try `optwatch store check`") from None
    return Gain(before, _size(path), deleted, thinned.records, thinned.scalars)


def _hold_to(connection: sqlite3.Connection, limits: Limits) -> tuple[int, Thinned]:
    """How many runs were deleted, and what was thinned out."""
    deleted = records = scalars = 0
    thinned: set[str] = set()
    while True:
        heard = connection.execute("SELECT run, heard FROM run").fetchall()
        job = next_job(heard, thinned, used(connection), limits, time.time())
        if job is None:
            return deleted, Thinned(records, scalars)
        thinned.add(job.run)
        if job.do == "delete":
            delete_run(connection, job.run)
            deleted += 1
        else:
            gone = thin_run(connection, job.run)
            records, scalars = records + gone.records, scalars + gone.scalars


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
        ("lane", LaneState),
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
    for run, rank, first, last in connection.execute("SELECT run, rank, first, last FROM covered"):
        if first > last:
            problems.append(f"run {run}: rank {rank} is said to have had the steps {first} to {last}")
    for run, size in connection.execute("SELECT run, length(steps) FROM thinning"):
        if size % 8:
            problems.append(f"run {run}: what is to stay of it cannot be read")
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


def _existing(directory: Path) -> Path:
    path = directory / FILE
    if not path.is_file():
        raise StartError(f"there is no store in {directory}")
    return path


def _size(path: Path) -> int:
    return sum(file.stat().st_size for file in path.parent.glob(f"{path.name}*"))

"""Retention: which run is thinned or deleted next, and how, a little at a time.

By age, counted from when a run was last heard of; by size, the oldest runs first thinned and then deleted.
Thinned are per-tensor records and histograms: one in `KEEP_EVERY` stays, and all within `AROUND` steps of a
finding. Scalars stay whole as long as the run does.
"""

import sqlite3
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import msgspec
import numpy as np

from optwatch.daemon.chunks import kind_of, pack_blocks, split
from optwatch.daemon.writer import read_schema
from optwatch.wire.findings import Finding

DAY = 86_400.0
KEEP_EVERY = 10
"""Of the per-tensor records that are thinned, one in so many stays."""
AROUND = 200
"""Steps around a finding within which every record stays."""
AT_ONCE = 32
"""Rows that one transaction deletes, so that nobody waits long for the store."""
OF_A_RUN = ("chunk", "page", "lane", "schema", "marker", "finding", "command", "checkpoint", "session", "run")
"""The tables that have rows of a run; the run's own last, so that what is begun can be ended."""


@dataclass(frozen=True)
class Limits:
    """How long and how much is kept; None: for ever, all of it. Days, bytes."""

    thin_after: float | None = None
    delete_after: float | None = None
    max_size: int | None = None

    def __bool__(self) -> bool:
        return any(limit is not None for limit in (self.thin_after, self.delete_after, self.max_size))


class Job(NamedTuple):
    """What is to be done to a run, and why."""

    do: Literal["thin", "delete"]
    run: str
    why: str


def next_job(
    heard: Sequence[tuple[str, float]], thinned: Collection[str], size: int, limits: Limits, now: float
) -> Job | None:
    """The next thing to do. heard: (run, unix seconds of its last sign) of all that may be touched."""
    oldest_first = sorted(heard, key=lambda pair: pair[1])
    for run, at in oldest_first:
        if limits.delete_after is not None and at < now - limits.delete_after * DAY:
            return Job("delete", run, f"not heard of for {limits.delete_after:g} days")
    for run, at in oldest_first:
        if limits.thin_after is not None and at < now - limits.thin_after * DAY and run not in thinned:
            return Job("thin", run, f"not heard of for {limits.thin_after:g} days")
    if limits.max_size is None or size <= limits.max_size or not oldest_first:
        return None
    why = f"the store is over {limits.max_size / 2**20:,.0f} MiB"
    for run, _ in oldest_first:
        if run not in thinned:
            return Job("thin", run, why)
    return Job("delete", oldest_first[0][0], why)


def used(connection: sqlite3.Connection) -> int:
    """Bytes of a store that hold something."""
    (pages,), (free,), (size,) = (
        connection.execute(f"PRAGMA {name}").fetchone()
        for name in ("page_count", "freelist_count", "page_size")
    )
    return int((pages - free) * size)


def delete_run(connection: sqlite3.Connection, run: str) -> None:
    """Delete all of a run, a few rows at a time."""
    some = "DELETE FROM chunk WHERE id IN (SELECT id FROM chunk WHERE run = ? LIMIT ?)"
    while connection.execute(some, (run, AT_ONCE)).rowcount:
        pass
    connection.execute("BEGIN IMMEDIATE")
    for table in OF_A_RUN:
        connection.execute(f"DELETE FROM {table} WHERE run = ?", (run,))  # noqa: S608
    connection.execute("COMMIT")


def thin_run(connection: sqlite3.Connection, run: str) -> int:
    """Thin the per-tensor records and histograms of a run; how many went.

    Raises:
        ValueError: a chunk does not fit its schema.
    """
    kept = list(_kept_ranges(connection, run))
    numbers = connection.execute(
        "SELECT id FROM chunk WHERE run = ? AND kind IN ('t', 'h')", (run,)
    ).fetchall()
    gone = 0
    for (number,) in numbers:
        connection.execute("BEGIN IMMEDIATE")
        try:
            gone += _thin_chunk(connection, run, number, kept)
        finally:
            connection.execute("COMMIT")
    return gone


def _thin_chunk(connection: sqlite3.Connection, run: str, number: int, kept: list[tuple[int, int]]) -> int:
    row = connection.execute(
        "SELECT optimizer, kind, schema, rows, data FROM chunk WHERE id = ?", (number,)
    ).fetchone()
    if row is None:  # merged into another one meanwhile
        return 0
    optimizer, kind, digest, rows, data = row
    blocks = split(kind_of(kind), read_schema(connection, run, optimizer, digest), rows, data)
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
                pack_blocks(kind_of(kind), *(block[stays] for block in blocks)),
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

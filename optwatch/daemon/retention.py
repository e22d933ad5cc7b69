"""Retention: which run is thinned (`thinning`) or deleted next, and how one is deleted, a little at a time.

By age, counted from when a run was last heard of; by size, the oldest runs first thinned and then deleted.
"""

import sqlite3
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

DAY = 86_400.0
AT_ONCE = 32
"""Rows that one transaction deletes, so that nobody waits long for the store."""
OF_A_RUN = (
    *("chunk", "covered", "thinning", "page", "lane", "schema", "marker", "finding", "command", "checkpoint"),
    *("session", "run"),
)
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

"""Thinning: a run's series made coarser, and left whole where something was found.

Of per-tensor records and histograms one in `KEEP_EVERY` stays, and all within `AROUND` steps of a finding. Of
the scalars stay besides: in each `WINDOW` steps the least and the greatest value of every column of the
merged series, all that is not finite, of any rank, and where each incarnation begins and ends. All ranks keep
the same steps, so that what is merged of them is what it was. The steps that were recorded are remembered
(`covered`): what was thinned out is no gap.

A chunk at a time, so that others get at the store in between. What stays is worked out once and kept in the
store (`thinning`) until all of it is done: after a kill the rest is thinned to the same steps.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from optwatch.daemon.chunks import kind_of, pack_blocks, split
from optwatch.daemon.history import History
from optwatch.daemon.schemas import read_schema
from optwatch.series.coverage import Coverage
from optwatch.series.points import Points
from optwatch.wire.findings import Finding

KEEP_EVERY = 10
"""Of what is thinned, one step in so many stays."""
AROUND = 200
"""Steps around a finding within which everything stays."""
WINDOW = 20 * KEEP_EVERY
"""Steps of which the extremes stay."""

Steps = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


class Thinned(NamedTuple):
    """What went: per-tensor records and histograms, and rows of scalars, one for each rank and step."""

    records: int
    scalars: int


def thin_run(connection: sqlite3.Connection, run: str) -> Thinned:
    """Thin a run.

    Raises:
        ValueError: a chunk does not fit its schema.
    """
    found = list(_around_findings(connection, run))
    kept = {
        optimizer: _planned(connection, run, optimizer)
        for (optimizer,) in connection.execute(
            "SELECT DISTINCT optimizer FROM chunk WHERE run = ?", (run,)
        ).fetchall()
    }
    # The merged series as it was saved: what is left is merged anew by whoever looks at the run next.
    for table in ("lane", "page"):
        connection.execute(f"DELETE FROM {table} WHERE run = ?", (run,))  # noqa: S608
    records = scalars = 0
    chunks = connection.execute("SELECT id, optimizer, kind FROM chunk WHERE run = ?", (run,)).fetchall()
    for number, optimizer, kind in chunks:
        own = kept[optimizer] if kind == "s" else None
        with _transaction(connection):
            gone = _thin_chunk(connection, run, number, found, own)
        if kind == "s":
            scalars += gone
        else:
            records += gone
    connection.execute("DELETE FROM thinning WHERE run = ?", (run,))
    return Thinned(records, scalars)


def _thin_chunk(
    connection: sqlite3.Connection,
    run: str,
    number: int,
    found: list[tuple[int, int]],
    kept: Steps | None,
) -> int:
    """Thin one chunk; how many rows went. `kept`: the steps that stay besides, of scalars."""
    row = connection.execute(
        "SELECT optimizer, kind, rank, incarnation, schema, rows, data FROM chunk WHERE id = ?", (number,)
    ).fetchone()
    if row is None:  # merged into another one meanwhile
        return 0
    optimizer, kind, rank, incarnation, digest, rows, data = row
    blocks = split(kind_of(kind), read_schema(connection, run, optimizer, digest), rows, data)
    step = blocks[0][:, 0]
    # By the step's own number, so that a second thinning finds nothing more to take.
    stays = step % KEEP_EVERY == 0
    for first, last in found:
        stays |= (step >= first) & (step <= last)
    if kept is not None:
        stays |= np.isin(step, kept) | (
            step > kept[-1:].max(initial=-1)
        )  # what came since is not planned for
    if stays.all():
        return 0
    if kept is not None:
        _cover(connection, (run, optimizer, rank, incarnation), step)
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


def _planned(connection: sqlite3.Connection, run: str, optimizer: int) -> Steps:
    """The steps whose scalars stay, besides one in `KEEP_EVERY` and those near findings, in order: as a
    thinning that was cut short had planned, else as the series says."""
    key = run, optimizer
    row = connection.execute("SELECT steps FROM thinning WHERE run = ? AND optimizer = ?", key).fetchone()
    if row is not None:
        return np.frombuffer(row[0], dtype="<i8")
    edges = connection.execute(
        "SELECT MIN(first), MAX(last) FROM chunk WHERE run = ? AND optimizer = ? AND kind = 's' "
        "GROUP BY incarnation",
        key,
    ).fetchall()
    parts = [np.array(edges, dtype=np.int64).reshape(-1)]
    parts += [points.step[_extreme(points)] for points in History(connection).points(run, optimizer)]
    parts += list(_not_finite(connection, run, optimizer))
    steps = np.unique(np.concatenate(parts))
    connection.execute("INSERT INTO thinning VALUES (?, ?, ?)", (*key, steps.astype("<i8").tobytes()))
    return steps


def _extreme(points: Points) -> Mask:
    """Where some column has its least or its greatest value of `WINDOW` steps."""
    window = points.step // WINDOW
    out = np.zeros(len(points), dtype=bool)
    for column in points.columns.values():
        at = np.flatnonzero(column.logged & np.isfinite(column.values))
        if not len(at):
            continue
        at = at[np.lexsort((column.values[at], window[at]))]
        begins = np.flatnonzero(np.diff(window[at], prepend=-1))
        out[at[begins]] = True
        out[at[np.append(begins[1:], len(at)) - 1]] = True
    return out


def _not_finite(connection: sqlite3.Connection, run: str, optimizer: int) -> Iterator[Steps]:
    """The steps at which some rank logged a value that is not finite."""
    numbers = connection.execute(
        "SELECT id FROM chunk WHERE run = ? AND optimizer = ? AND kind = 's'", (run, optimizer)
    ).fetchall()
    for (number,) in numbers:
        row = connection.execute("SELECT schema, rows, data FROM chunk WHERE id = ?", (number,)).fetchone()
        if row is None:  # merged into another one, which was read or will be looked at by its other ranks
            continue
        digest, rows, data = row
        schema = read_schema(connection, run, optimizer, digest)
        step, _, values, logged = split("s", schema, rows, data)
        yield step[((logged != 0) & ~np.isfinite(values)).any(axis=1), 0]


def _cover(connection: sqlite3.Connection, stream: tuple[str, int, int, int], step: Steps) -> None:
    """Remember that steps of a rank were recorded. stream: run, optimizer, rank, incarnation."""
    where = "WHERE run = ? AND optimizer = ? AND rank = ? AND incarnation = ?"
    coverage = Coverage()
    for first, last in connection.execute(f"SELECT first, last FROM covered {where}", stream):  # noqa: S608
        coverage.add_range(first, last)
    coverage.add(step)
    connection.execute(f"DELETE FROM covered {where}", stream)  # noqa: S608
    connection.executemany(
        "INSERT INTO covered VALUES (?, ?, ?, ?, ?, ?)", [(*stream, *each) for each in coverage.ranges()]
    )


def _around_findings(connection: sqlite3.Connection, run: str) -> Iterator[tuple[int, int]]:
    for (data,) in connection.execute("SELECT data FROM finding WHERE run = ?", (run,)):
        finding = msgspec.msgpack.decode(data, type=Finding)
        yield finding.onset_step - AROUND, (finding.resolved_step or finding.step) + AROUND


@contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        if connection.in_transaction:  # what cut it short may have rolled it back
            connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")

"""Resume: what a lane needs to go on after a restart, as the store keeps it.

It is written in one unit with the checkpoint of the diagnosis, behind all that was taken until then. So a
daemon that comes after a kill reads this, and of the ranks' series only what lies behind it. The merged
series is kept in pages of rows, of which only those that changed are written. What cannot be read is dropped:
then the whole series is read and merged anew.
"""

import logging
import sqlite3
from dataclasses import dataclass
from typing import Literal

import msgspec
import numpy as np

from optwatch.daemon.store import Store
from optwatch.series.norms import Family, Norms
from optwatch.series.timeline import CAPACITY, PAGE, Page, Timeline

log = logging.getLogger(__name__)


class LaneState(msgspec.Struct, kw_only=True, frozen=True):
    """What the store keeps of a lane beside its pages."""

    version: Literal[1]
    columns: tuple[str, ...]
    rows: int
    last_step: int
    """Of the merged series: they tell whether the pages are those that belong to this."""
    merged: int
    """The last step handed on, before which the merged series may hold what a newer incarnation repeats."""
    incarnation: int
    families: tuple[tuple[Family, int], ...]


@dataclass(frozen=True)
class Saved:
    """A lane as it was saved."""

    state: LaneState
    timeline: Timeline

    def norms(self) -> Norms:
        return Norms(self.state.incarnation, dict(self.state.families))


def write(
    store: Store, run: str, optimizer: int, timeline: Timeline, merged: int, incarnation: int, norms: Norms
) -> None:
    """Put a lane into the unit that is about to be submitted: its state, and the pages that changed."""
    for number, step, values, logged in timeline.changed():
        store.save_page(run, optimizer, number, step.tobytes() + values.tobytes() + logged.tobytes())
    store.drop_pages(run, optimizer, -(-len(timeline) // PAGE))
    state = LaneState(
        version=1,
        columns=timeline.columns,
        rows=len(timeline),
        last_step=timeline.last_step,
        merged=merged,
        incarnation=incarnation,
        families=tuple(norms.families.items()),
    )
    store.save_lane(run, optimizer, msgspec.msgpack.encode(state))


def read(connection: sqlite3.Connection, run: str, optimizer: int) -> Saved | None:
    """A lane as it was saved, None where it was not, or by another version of optwatch."""
    row = connection.execute(
        "SELECT data FROM lane WHERE run = ? AND optimizer = ?", (run, optimizer)
    ).fetchone()
    if row is None:
        return None
    try:
        state = msgspec.msgpack.decode(row[0], type=LaneState)
        rows = connection.execute(
            "SELECT number, data FROM page WHERE run = ? AND optimizer = ? ORDER BY number", (run, optimizer)
        )
        timeline = Timeline.restored(state.columns, [_page(state, number, data) for number, data in rows])
        if (len(timeline), timeline.last_step) != (state.rows, state.last_step):
            raise ValueError(f"{len(timeline)} rows to step {timeline.last_step}, not {state.rows}")
        return Saved(state, timeline)
    except (msgspec.DecodeError, ValueError) as error:
        log.warning("run %s: its series is merged anew (%s)", run, error)
        return None


def _page(state: LaneState, number: int, data: bytes) -> Page:
    n = min(state.rows - number * PAGE, PAGE)
    if not 0 <= number * PAGE < state.rows <= CAPACITY:
        raise ValueError(f"a page {number} of {state.rows} rows")
    columns, rest = divmod(len(data) - 8 * n, 9 * n)
    if rest or not 0 <= columns <= len(state.columns):
        raise ValueError(f"a page of {len(data)} bytes for {n} rows")
    step = np.frombuffer(data, "<i8", n)
    values = np.frombuffer(data, "<f8", n * columns, 8 * n).reshape(n, columns)
    logged = np.frombuffer(data, "?", n * columns, 8 * n * (1 + columns)).reshape(n, columns)
    return number, step, values, logged

"""What a lane needs to go on: in pages, of which the changed ones are written; dropped where damaged."""

import sqlite3
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optwatch.daemon import resume
from optwatch.daemon.store import FILE, Store
from optwatch.series.norms import Norms
from optwatch.series.points import Column, Points
from optwatch.series.timeline import PAGE, Page, Timeline

NORMS = Norms(3, {("grad_norm", (("dp", 2),), "11111111"): 2})


def points(first: int, n: int, columns: tuple[str, ...] = ("a", "b")) -> Points:
    step = np.arange(first, first + n)
    return Points(step, {c: Column(step + at * 0.1, step % 3 != at) for at, c in enumerate(columns)})


def same(one: Timeline, other: Timeline) -> bool:
    assert one.columns == other.columns
    blocks = [t.window(None, None, t.columns, None) for t in (one, other)]
    return [block.tobytes() for block in blocks[0]] == [block.tobytes() for block in blocks[1]]


@settings(max_examples=50)
@given(st.lists(st.tuples(st.integers(1, 700), st.integers(0, 300), st.integers(1, 4)), max_size=12))
def test_pages_are_those_of_the_timeline_however_it_grew(growth: list[tuple[int, int, int]]) -> None:
    timeline = Timeline(capacity=1_024)
    pages: dict[int, Page] = {}
    for n, back, columns in growth:
        timeline.append(points(max(timeline.last_step + 1 - back, 1), n, ("a", "b", "c", "d")[:columns]))
        pages |= {page[0]: tuple(np.copy(part) for part in page) for page in timeline.changed()}
        for number in [number for number in pages if number * PAGE >= len(timeline)]:
            del pages[number]
    assert timeline.changed() == []
    again = Timeline.restored(timeline.columns, [pages[number] for number in sorted(pages)], 1_024)
    assert same(again, timeline)
    more = points(timeline.last_step + 1, 3)
    again.append(more)
    timeline.append(more)
    assert same(again, timeline)
    assert [number for number, *_ in again.changed()] == [number for number, *_ in timeline.changed()]


def saved(directory: Path) -> Timeline:
    """A timeline that is written thrice, and has become shorter on the way."""
    store = Store(directory)
    timeline = Timeline()
    for first, n in ((1, 1_000), (1_001, 20), (501, 100)):
        timeline.append(points(first, n))
        resume.write(store, "r", 0, timeline, 600, 3, NORMS)
        store.submit()
    store.close()
    return timeline


def test_it_comes_back_as_it_was(tmp_path: Path) -> None:
    timeline = saved(tmp_path)
    found = resume.read(sqlite3.connect(tmp_path / FILE), "r", 0)
    assert found is not None
    assert same(found.timeline, timeline)
    assert (found.state.merged, found.norms().incarnation) == (600, 3)
    assert found.norms().families == NORMS.families
    assert resume.read(sqlite3.connect(tmp_path / FILE), "r", 1) is None


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE page SET data = substr(data, 1, length(data) - 1) WHERE number = 2",
        "UPDATE page SET data = x'' WHERE number = 2",
        "UPDATE page SET number = 1000 WHERE number = 2",
        "DELETE FROM page WHERE number = 2",
        "DELETE FROM page",
        "UPDATE page SET data = zeroblob(length(data))",
        "UPDATE lane SET data = x'00'",
        "UPDATE lane SET data = substr(data, 1, length(data) - 1)",
    ],
)
def test_what_is_damaged_is_dropped(tmp_path: Path, damage: str) -> None:
    saved(tmp_path)
    connection = sqlite3.connect(tmp_path / FILE)
    assert connection.execute(damage).rowcount > 0
    assert resume.read(connection, "r", 0) is None

"""The timeline: in full while there is room, then coarser with age, and never losing an extreme."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from optwatch.series.points import Column, Points
from optwatch.series.reduce import reduce_rows
from optwatch.series.timeline import Timeline


def points(first: int, values: list[float], name: str = "loss") -> Points:
    column = Column(np.array(values, dtype=np.float64), np.ones(len(values), dtype=bool))
    return Points(np.arange(first, first + len(values), dtype=np.int64), {name: column})


def test_columns_come_as_they_are_seen() -> None:
    timeline = Timeline()
    timeline.append(points(1, [1.0, 2.0]))
    timeline.append(points(3, [5.0], "lr"))
    step, values, logged = timeline.window(None, None, ("lr", "loss"), None)
    assert step.tolist() == [1, 2, 3]
    assert logged.tolist() == [[False, True], [False, True], [True, False]]
    assert values[2, 0] == 5.0
    assert timeline.last("loss") == 2.0
    assert timeline.now("loss") is None
    assert timeline.last("nothing") is None


def test_a_repeated_step_replaces_what_follows() -> None:
    timeline = Timeline()
    timeline.append(points(1, [1.0, 2.0, 3.0, 4.0]))
    timeline.append(points(3, [30.0]))
    step, values, _ = timeline.window(None, None, ("loss",), None)
    assert step.tolist() == [1, 2, 3]
    assert values[:, 0].tolist() == [1.0, 2.0, 30.0]


@given(st.lists(st.integers(1, 90), min_size=1, max_size=60), st.integers(0, 2**32 - 1))
def test_memory_is_bounded_and_extremes_stay(sizes: list[int], seed: int) -> None:
    capacity = 64
    timeline = Timeline(capacity)
    everything = np.random.default_rng(seed).normal(size=sum(sizes))
    step = 1
    for size in sizes:
        timeline.append(points(step, everything[step - 1 : step - 1 + size].tolist()))
        step += size
    assert len(timeline) <= capacity
    steps, values, _ = timeline.window(None, None, ("loss",), None)
    assert steps[0] == 1
    assert np.all(np.diff(steps) >= 0)
    assert timeline.last_step == len(everything)
    assert values.min() == everything.min()
    assert values.max() == everything.max()


@pytest.mark.parametrize("n", [1, 7, 8, 9, 1000])
def test_reducing_gives_minimum_and_maximum_of_each_bucket(n: int) -> None:
    values = np.random.default_rng(n).normal(size=(n, 2))
    logged = np.random.default_rng(n + 1).random((n, 2)) < 0.7
    step = np.arange(n)
    out_step, out, out_logged = reduce_rows(step, values, logged, 4)
    if n <= 8:
        assert out is values
        return
    assert len(out_step) == 8
    starts = [*(np.arange(4) * n // 4).tolist(), n]
    for bucket in range(4):
        part = slice(starts[bucket], starts[bucket + 1])
        assert out_step[2 * bucket] == out_step[2 * bucket + 1] == starts[bucket]
        for column in range(2):
            known = values[part, column][logged[part, column]]
            assert out_logged[2 * bucket, column] == bool(len(known))
            if len(known):
                assert out[2 * bucket, column] == known.min()
                assert out[2 * bucket + 1, column] == known.max()


def test_a_nan_that_was_logged_stays_to_be_seen() -> None:
    values = np.arange(20.0).reshape(20, 1)
    values[3] = np.nan
    values[17] = np.inf
    _, out, logged = reduce_rows(np.arange(20), values, np.ones((20, 1), dtype=bool), 2)
    assert logged.all()
    assert out[0, 0] == 0.0
    assert np.isnan(out[1, 0])
    assert out[3, 0] == np.inf

"""Many values at once are remembered as one after the other is, to the last bit."""

import msgspec
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from optwatch.detect.memory import Blocks, Extent, trend

VALUES = st.lists(st.floats(-1e150, 1e150), max_size=120)


@given(first=VALUES, then=VALUES, blocks=st.integers(1, 4), size=st.integers(1, 7))
def test_an_extent_ahead_is_what_it_becomes(
    first: list[float], then: list[float], blocks: int, size: int
) -> None:
    extent, one_by_one = Extent(blocks, size), Extent(blocks, size)
    for value in first:
        extent.add(value)
        one_by_one.add(value)
    if then:
        ahead = np.array(extent.ahead(np.array(then)))
        for i, value in enumerate(then):
            assert (ahead[:, i] == (one_by_one.low, one_by_one.high)).all()
            one_by_one.add(value)
    extent.extend(np.array(then))
    assert msgspec.structs.astuple(extent) == msgspec.structs.astuple(one_by_one)


@given(values=VALUES, cuts=st.lists(st.integers(1, 9), min_size=1))
def test_blocks_that_are_filled_at_once(values: list[float], cuts: list[int]) -> None:
    blocks, one_by_one = Blocks(most=8, size=2), Blocks(most=8, size=2)
    for value in values:
        one_by_one.add(value)
    for i in range(len(values) * 9):
        if not values:
            break
        many = min(cuts[i % len(cuts)], blocks.room)
        blocks.extend(values[:many])
        values = values[many:]
    assert blocks == one_by_one


@given(st.lists(st.integers(-3, 3).map(float), min_size=2, max_size=40))
def test_the_trend_is_that_of_all_pairs(values: list[float]) -> None:
    n = len(values)
    score = sum((b > a) - (b < a) for i, a in enumerate(values) for b in values[i + 1 :])
    assert trend(values) == score / np.sqrt(n * (n - 1) * (2 * n + 5) / 18)

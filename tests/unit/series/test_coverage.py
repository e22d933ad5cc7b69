"""Coverage keeps exactly the steps that it was given."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from optwatch.series.coverage import Coverage

STEPS = st.lists(st.lists(st.integers(0, 60), max_size=20), max_size=8)


@given(STEPS)
def test_it_equals_a_set(chunks: list[list[int]]) -> None:
    coverage, steps = Coverage(), set()
    for chunk in chunks:
        coverage.add(np.array(sorted(chunk), dtype=np.int64))
        steps |= set(chunk)
    assert coverage.count == len(steps)
    assert {s for first, last in coverage.ranges() for s in range(first, last + 1)} == steps
    missing = set(range(min(steps), max(steps) + 1)) - steps if steps else set()
    assert {s for first, last in coverage.gaps() for s in range(first, last + 1)} == missing
    assert coverage.last == max(steps, default=0)


@given(STEPS, STEPS)
def test_merging_is_union(one: list[list[int]], other: list[list[int]]) -> None:
    parts = [Coverage(), Coverage()]
    for coverage, chunks in zip(parts, (one, other), strict=True):
        for chunk in chunks:
            coverage.add(np.array(chunk, dtype=np.int64))
    parts[0].merge(parts[1])
    assert parts[0].count == len({s for chunk in one + other for s in chunk})

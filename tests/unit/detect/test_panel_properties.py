"""What holds for every detector on any numbers."""

from itertools import cycle
from typing import Any

import msgspec
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from optwatch.detect.panel import Panel
from optwatch.series.points import Points, Samples
from optwatch.wire.findings import Finding
from optwatch.wire.messages import COUNTS, STATS
from tests.unit.detect.series import chunks, falling, points

NUMBERS = st.floats(allow_nan=True, allow_infinity=True, allow_subnormal=True)


@st.composite
def runs(draw: st.DrawFn) -> Points:
    """A run of up to 600 points that goes wrong in any way, with tensors."""
    n = draw(st.integers(0, 600))
    seed = draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    loss = falling(max(n, 1), seed)[:n] * draw(st.sampled_from([1, 1e-300, 1e300, 0, -1]))
    norm = falling(max(n, 1), seed + 1)[:n]
    lr = np.where(rng.random(n) < 0.02, 0.1, 0.01)
    for column in (loss, norm, lr):
        for _ in range(draw(st.integers(0, 4))):
            start = draw(st.integers(0, max(n - 1, 0)))
            column[start : start + draw(st.integers(1, 60))] = draw(NUMBERS)
    sampled = np.arange(1, n + 1, draw(st.integers(1, 7)), dtype=np.int64)
    tensors = draw(st.integers(0, 4))
    stats = np.exp(rng.normal(-3, 2, (len(STATS), len(sampled), tensors)))
    stats[rng.random(stats.shape) < 0.02] = draw(st.floats(width=32))
    counts = rng.integers(0, 3, (len(COUNTS), len(sampled), tensors)) // 2
    samples = Samples(
        step=sampled,
        names=tuple(f"layer{i}.weight" for i in range(tensors)),
        numel=np.full(tensors, 2_000),
        stats={name: stats[i].astype(np.float32) for i, name in enumerate(STATS)},
        counts={name: counts[i].astype(np.uint64) for i, name in enumerate(COUNTS)},
    )
    return points(loss=loss, grad_norm=norm, lr=lr, val_loss=loss, samples=samples)


def take(panel: Panel, parts: Any) -> tuple[Finding, ...]:
    for part in parts:
        panel.update(part)
    return panel.findings


def same(a: object, b: object) -> bool:
    """Equal, a NaN to a NaN too."""
    return msgspec.msgpack.encode(a) == msgspec.msgpack.encode(b)


@settings(max_examples=30)
@given(run=runs(), sizes=st.lists(st.integers(1, 90), min_size=1, max_size=5))
def test_no_numbers_raise_and_the_cut_into_chunks_makes_no_difference(run: Points, sizes: list[int]) -> None:
    whole = take(Panel("run"), [run])
    assert same(whole, take(Panel("run"), chunks(run, cycle(sizes))))
    assert same(whole, take(Panel("run"), chunks(run, cycle([1]))))


CHANGES = st.lists(
    st.tuples(st.integers(1, 600), st.sampled_from(["restart", "scale_lr", "clip", "rollback", ""])),
    max_size=3,
)


def planned(changes: list[tuple[int, str]]) -> Panel:
    """A panel that is told of actions and marks ("") before their points come."""
    panel = Panel("run")
    for step, action in changes:
        if action:
            panel.acted(step, action)
        else:
            panel.mark(step)
    return panel


@settings(max_examples=30)
@given(run=runs(), changes=CHANGES, sizes=st.lists(st.integers(1, 90), min_size=1, max_size=5))
def test_nor_does_it_around_actions_and_marks(
    run: Points, changes: list[tuple[int, str]], sizes: list[int]
) -> None:
    assert same(take(planned(changes), [run]), take(planned(changes), chunks(run, cycle(sizes))))


@settings(max_examples=30)
@given(run=runs(), changes=CHANGES, cut=st.integers(1, 600))
def test_saved_and_restored_at_any_point_the_findings_are_the_same(
    run: Points, changes: list[tuple[int, str]], cut: int
) -> None:
    whole = take(planned(changes), [run])
    first, *rest = [*chunks(run, iter([cut, 10_000])), *[run][:0]] or [run]
    panel = planned(changes)
    panel.update(first)
    state = msgspec.msgpack.decode(msgspec.msgpack.encode(panel.state()))
    restored = Panel("run")
    restored.restore(state)
    assert same(whole, take(restored, rest))


@settings(max_examples=30)
@given(run=runs())
def test_the_state_stays_bounded(run: Points) -> None:
    panel = Panel("run")
    panel.update(run)
    state = panel.state()
    del state["findings"], state["open"]
    assert len(msgspec.msgpack.encode(state)) < 200_000

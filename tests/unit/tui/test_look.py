"""Windows, the cursor and smoothing, as numbers."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from optwatch_tui.charts import CHARTS, Mark, marks_near, picture
from optwatch_tui.look import Look, Window, nearest, smoothed
from tests.unit.tui import recorded

WHOLE = (1.0, 1_000.0)


@given(st.floats(1, 1_000), st.floats(10, 900), st.floats(0, 900), st.sampled_from([0.5, 0.8, 1.25, 2.0]))
def test_a_zoom_keeps_the_place_under_the_pointer(at: float, span: float, back: float, factor: float) -> None:
    before = Window(span, min(back, 999 - span)) if span < 999 else Window()
    first, last = before.edges(WHOLE)
    at = min(max(at, first), last)
    after = before.zoomed(factor, WHOLE, at)
    new_first, new_last = after.edges(WHOLE)
    assert new_first >= 1 - 1e-6
    if after.span is not None and after.span > 10 and 0 < after.back < 999 - after.span - 1e-6:
        assert np.isclose((at - first) / (last - first), (at - new_first) / (new_last - new_first))


@given(st.floats(1, 1_000))
def test_a_window_moves_until_a_step_is_in_view(step: float) -> None:
    first, last = Window(50, 300).showing(step, WHOLE).edges(WHOLE)
    assert first - 1e-6 <= step <= last + 1e-6


def test_the_nearest_place() -> None:
    places = np.array([1, 5, 5, 9])
    assert [nearest(places, at) for at in (-3, 2.9, 3.1, 7.5, 50)] == [1, 1, 5, 9, 9]
    assert nearest(places[:0], 3) is None


@given(st.integers(500, 3_000), st.sampled_from(["light", "strong"]), st.integers(0, 100))
def test_smoothing_is_the_weighted_mean_of_what_came_before(n: int, how: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    step = np.cumsum(rng.integers(1, 4, n))
    values = rng.normal(size=n)
    view = (float(step[0]), float(step[-1]))
    tau = {"light": 0.01, "strong": 0.03}[how] * (view[1] - view[0])
    found = smoothed(step, values, view, how)  # type: ignore[arg-type]
    for at in (0, 1, n // 2, n - 1):
        weights = np.exp(-(step[at] - step[: at + 1]) / tau)
        assert np.isclose(found[at], (weights * values[: at + 1]).sum() / weights.sum())


def test_smoothing_leaves_holes_pairs_and_sparse_lines_as_they_are() -> None:
    step = np.repeat(np.arange(500), 2)
    values = np.tile([1.0, 3.0], 500)
    values[400] = np.nan
    found = smoothed(step, values, (0, 500), "strong")
    assert np.isnan(found[400])
    assert np.isfinite(np.delete(found, 400)).all()
    pairs = np.delete(found, [400, 401]).reshape(-1, 2)
    assert np.array_equal(pairs[:, 0], pairs[:, 1])
    few = values[:20]
    assert smoothed(step[:20], few, (0, 500), "strong") is few
    assert smoothed(step, values, (0, 500), "off") is values


def test_smoothing_far_beyond_the_view_does_not_overflow() -> None:
    step, values = np.arange(100_000), np.ones(100_000)
    found = smoothed(step, values, (99_000, 100_000), "light")
    assert np.allclose(found, 1)


def test_a_smoothed_chart_keeps_what_was_measured() -> None:
    shown = picture(CHARTS[0], recorded.snapshot(last=2_000), Look(smoothing="strong"), None)
    loss, val = shown.lines
    assert loss.raw is not None
    assert val.raw is None
    assert np.diff(loss.value).std() < 0.2 * np.diff(loss.raw).std()
    lr = picture(CHARTS[2], recorded.snapshot(last=2_000), Look(smoothing="strong"), None)
    assert all(line.raw is None for line in lr.lines)


def test_the_values_at_a_place_are_those_measured_nearest() -> None:
    (line, _) = picture(CHARTS[0], recorded.snapshot(last=2_000), Look(smoothing="strong"), None).lines
    assert line.raw is not None
    assert line.at(1_234.4) == (line.raw[1_233], line.raw[1_233])


@pytest.mark.parametrize(("within", "found"), [(1, ["b"]), (10, ["b", "a"]), (0, [])])
def test_marks_near_a_place_come_in_order_of_distance(within: float, found: list[str]) -> None:
    given = (Mark(90, "▲", "warning", "a"), Mark(100, "✓", "ok", "b"), Mark(200, "◆", "third", "c"))
    assert [mark.text for mark in marks_near(given, 99, within)] == found

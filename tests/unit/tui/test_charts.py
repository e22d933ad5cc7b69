import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from optwatch_tui import charts, heat, layout
from optwatch_tui.charts import CHARTS, extent
from optwatch_tui.heat import STATISTICS, group_bounds, heat_grid
from optwatch_tui.look import Look, Window
from optwatch_tui.widgets.chart import axis_label
from tests.unit.tui import recorded

SNAPSHOT = recorded.snapshot(last=2_000)


def lines(key: str) -> dict[str, charts.Line]:
    (spec,) = (spec for spec in CHARTS if spec.key == key)
    return {line.label: line for line in spec.lines(SNAPSHOT)}


def test_the_lr_is_shown_as_scheduled_and_as_scaled() -> None:
    both = lines("lr")
    share = both[""].value / both["scheduled"].value
    assert set(np.unique(share.round(6))) == {0.5, 1.0}
    assert share[-1] == 0.5


def test_the_update_ratio_is_the_quotient_of_the_norms() -> None:
    columns = SNAPSHOT.columns
    expected = (columns.last("update_norm") or 0) / (columns.last("param_norm") or 1)
    assert np.isclose(lines("update_ratio")[""].value[-1], expected)


def test_a_validation_loss_has_a_line_of_its_own() -> None:
    assert len(lines("loss")["val"].step) == 40


def test_marks_are_alarms_actions_and_the_users_own() -> None:
    assert {(mark.step, mark.glyph) for mark in charts.marks(SNAPSHOT)} == {
        (6_000, "◆"),
        (12_910, "✓"),
        (4_100, "▲"),
        (10_800, "▲"),
        (12_894, "✖"),
    }


def test_a_spike_asks_for_a_log_axis_and_a_negative_loss_forbids_it() -> None:
    spec = CHARTS[0]
    assert not charts.picture(spec, SNAPSHOT, Look(), None).log
    values = SNAPSHOT.columns.values.copy()
    values[1_000, 0] = 1e5
    spiked = charts.wants_log((charts.Line("", "first", SNAPSHOT.columns.step, values[:, 0]),))
    assert spiked
    values[1, 0] = -1.0
    assert not charts.wants_log((charts.Line("", "first", SNAPSHOT.columns.step, values[:, 0]),))


@given(st.lists(st.sampled_from(["in", "out", "left", "right", "around"]), max_size=20))
def test_a_window_stays_within_the_run(moves: list[str]) -> None:
    window = Window()
    for move in moves:
        if move == "around":
            window = Window.around(1_234, extent(SNAPSHOT))
        elif move in ("in", "out"):
            window = window.zoomed(0.5 if move == "in" else 2.0, extent(SNAPSHOT))
        else:
            window = window.panned(-0.5 if move == "left" else 0.5, extent(SNAPSHOT))
        first, last = window.edges(extent(SNAPSHOT))
        assert first < last
        assert first >= 1 - 1e-6
        if window.span is not None:
            assert last <= 2_000 + 1e-6


def test_going_to_a_step_puts_it_into_view() -> None:
    for step in (1, 1_234, 2_000):
        first, last = Window.around(step, extent(SNAPSHOT)).edges(extent(SNAPSHOT))
        assert first - 1e-6 <= step <= last + 1e-6


def test_the_whole_run_stands_still_while_it_grows() -> None:
    edges = {Window().edges(extent(recorded.snapshot(last=last))) for last in range(1_510, 1_530, 4)}
    assert len(edges) == 1


@given(st.integers(1, 5_000), st.integers(1, 100))
def test_groups_cover_every_tensor_once(tensors: int, rows: int) -> None:
    bounds = group_bounds(tensors, rows)
    assert len(bounds) == min(tensors, rows)
    assert [at for start, stop in bounds for at in range(start, stop)] == list(range(tensors))


def test_a_heat_map_shows_geometric_means_where_they_were_measured() -> None:
    shown = heat.heat(SNAPSHOT, STATISTICS[1], Look())
    grid = heat_grid(shown, [(0, 2), (2, 50)], 1)
    pair = shown.values[:, :2]
    assert np.isclose(grid[0, 0], np.exp(np.log(pair).mean()))


@pytest.mark.parametrize("statistic", STATISTICS, ids=lambda s: s.key)
def test_a_silent_layer_is_seen(statistic: heat.Statistic) -> None:
    shown = heat.heat(SNAPSHOT, statistic, Look())
    assert shown.values.shape == (len(SNAPSHOT.samples.step), 50)
    if statistic.key in ("update_ratio", "grad_rms"):
        grid = heat_grid(shown, group_bounds(50, 10), 40)
        newest = grid[:, np.isfinite(grid).all(axis=0)][:, -1]
        assert newest[0] < 0.02 * newest[-1]


@given(st.integers(1, 400), st.integers(1, 200))
def test_panels_fill_the_terminal_exactly(width: int, height: int) -> None:
    plan = layout.arrange(width, height)
    used = plan.upper + plan.lower + plan.heat + plan.lists
    assert used == max(3, height - 3)
    assert plan.upper >= 3
    assert "loss" in plan.upper_charts


@pytest.mark.parametrize(
    ("place", "label"),
    [(950, "950"), (1_000, "1k"), (1_050, "1,050"), (1_100, "1.1k"), (12_500, "12.5k"), (123_500, "123,500"),
     (124_000, "124k"), (1_050_000, "1,050,000"), (1_100_000, "1.1M"), (0.5, "0.5")],
)  # fmt: skip
def test_no_two_places_on_the_axis_are_called_the_same(place: float, label: str) -> None:
    picture = charts.picture(CHARTS[0], SNAPSHOT, Look(), None)
    assert axis_label(picture, place) == label

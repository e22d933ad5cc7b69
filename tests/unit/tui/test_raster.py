import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from optwatch_tui import raster
from optwatch_tui.raster import Scale


def scale(first: float = 0, last: float = 100, low: float = 0, high: float = 1, log: bool = False) -> Scale:
    return Scale(first, last, low, high, log)


def test_a_rising_line_goes_from_the_lower_left_to_the_upper_right() -> None:
    step = np.arange(8)
    picture = raster.dots(step, step / 7, scale(0, 7), 4, 2)
    assert picture[-1, 0]
    assert picture[0, -1]
    assert not picture[0, 0]
    assert picture.any(axis=0).all()


def test_a_spike_of_one_step_among_many_is_drawn_to_its_top() -> None:
    step = np.arange(10_000)
    values = np.zeros(10_000)
    values[5_000] = 1.0
    picture = raster.dots(step, values, scale(0, 9_999), 20, 5)
    assert picture[0].sum() == 1
    assert picture[:, np.flatnonzero(picture[0])[0]].all()


def test_points_far_apart_are_joined() -> None:
    picture = raster.dots(np.array([0, 20, 40]), np.array([0.5, 0.5, 0.5]), scale(), 10, 2)
    assert picture[:, :8].any(axis=0).all()


def test_where_nothing_was_measured_for_long_the_line_is_only_hinted_at() -> None:
    seen = raster.dots(np.array([0, 100]), np.array([0.5, 0.5]), scale(), 30, 2).any(axis=0)
    assert seen[0]
    assert seen[-1]
    assert 15 <= seen.sum() <= 25


def test_a_line_runs_into_the_window_and_out_of_it() -> None:
    picture = raster.dots(np.array([-50, 150]), np.array([0.5, 0.5]), scale(), 10, 2)
    assert picture[:, :5].any()
    assert picture[:, -5:].any()


def test_values_that_are_not_finite_are_left_out() -> None:
    values = np.array([0.5, np.nan, np.inf, 0.5])
    picture = raster.dots(np.array([0, 30, 60, 100]), values, scale(), 10, 2)
    assert picture[:, 0].any()
    assert picture[:, -1].any()
    assert picture.any(axis=1).sum() == 1
    assert not raster.dots(np.array([0, 1]), np.array([np.nan, np.inf]), scale(), 10, 2).any()


def test_a_log_axis_has_no_place_for_zero() -> None:
    share = scale(low=-2, high=0, log=True).heights(np.array([0.0, -1.0, 0.01, 0.1, 1.0]))
    assert np.isnan(share[:2]).all()
    assert np.allclose(share[2:], [0, 0.5, 1])


def test_a_ridge_is_a_thin_line_through_the_means() -> None:
    rng = np.random.default_rng(0)
    step = np.arange(20_000)
    values = 0.5 + 0.2 * rng.normal(size=20_000)
    band = raster.dots(step, values, scale(0, 19_999), 20, 10)
    ridge = raster.dots(step, values, scale(0, 19_999), 20, 10, ridge=True)
    assert ridge.sum(axis=0).max() <= 3 < band.sum(axis=0).min()


def test_cells_hold_the_bits_of_braille() -> None:
    picture = np.zeros((4, 4), dtype=bool)
    picture[0, 0] = picture[3, 1] = True
    picture[:, 2:] = True
    assert [chr(raster.BRAILLE + int(code)) for code in raster.cells(picture)[0]] == ["⢁", "⣿"]


@given(
    hnp.arrays(np.float64, st.integers(1, 60), elements=st.floats(allow_nan=True, allow_infinity=True)),
    st.integers(1, 40),
    st.integers(1, 12),
    st.booleans(),
    st.booleans(),
)
def test_no_numbers_whatever_break_a_picture(
    values: np.ndarray, width: int, height: int, log: bool, ridge: bool
) -> None:
    step = np.arange(len(values))
    low, high = raster.value_range([values], log, height)
    assert np.isfinite([low, high]).all()
    assert low < high
    edges = scale(0, max(1, len(values) - 1), low, high, log)
    picture = raster.dots(step, values, edges, width, height, ridge=ridge)
    assert picture.shape == (4 * height, 2 * width)
    if np.isfinite(edges.heights(values)).any():
        assert picture.any()


@given(st.floats(1e-12, 1e12), st.integers(1, 30))
def test_ticks_are_round_and_few(span: float, parts: int) -> None:
    step = raster.nice_step(span, parts)
    assert span / step <= parts * 1.01
    mantissa = step / 10 ** np.floor(np.log10(step) + 1e-9)
    assert min(abs(mantissa - round_number) for round_number in (1, 2, 5, 10)) < 1e-6


def test_a_flat_line_is_not_blown_up() -> None:
    low, high = raster.value_range([np.array([5.0, 5.0000001])], False, 10)
    assert high - low > 1e-3
    assert low < 5 < high

"""Histograms of one tensor: what the grid and its bars say of the counts, and the screen that shows them."""

import numpy as np
import pytest

from optwatch.wire.histograms import WIDTH
from optwatch_tui.spread import MOST, Spread, spread_grid
from tests.histograms import counted
from tests.unit.tui import recorded
from tests.unit.tui.recorded import RecordedFeed
from tests.unit.tui.test_screens import shown, text


def of(*rows: list[float], steps: tuple[int, ...] = (10, 20, 40)) -> Spread:
    counts = np.array([counted(row) for row in rows], dtype=np.uint64)
    return Spread("r", "w", np.array(steps[: len(rows)], dtype=np.int64), counts)


def test_the_bars_are_the_shares_of_the_chosen_histogram_by_sign() -> None:
    spread = of([1.0, -1.0, 0.25, 0.0], [4.0, 4.0, 0.0, np.inf, -0.3])
    newest = spread_grid(spread, (0, 20), 10, 8, None)
    assert newest is not None
    assert newest.lowest == (2, 1, 0, -1, -2)
    assert [(bar.negative, bar.positive) for bar in newest.bars] == [
        (0, 0.4), (0, 0), (0, 0), (0, 0), (0.2, 0),
    ]  # fmt: skip
    assert (newest.zeros, newest.nonfinite, newest.step) == (0.2, 0.2, 20)
    before = spread_grid(spread, (0, 20), 10, 8, 19.0)
    assert before is not None
    assert before.step == 10
    assert before.zeros == 0.25
    assert spread_grid(spread, (0, 20), 10, 8, 9.0) is None


def test_a_histogram_stands_until_the_next_one_and_not_before_its_step() -> None:
    grid = spread_grid(of([1.0, 1.0], [1.0, 2.0]), (0, 40), 41, 4, None)
    assert grid is not None
    ones = grid.share[grid.lowest.index(0)]
    assert np.isnan(ones[:10]).all()
    assert (ones[10:20] == 1).all()
    assert ones[20] == 0.5
    assert np.isnan(ones[22:]).all()  # nothing is known beyond the newest


def test_many_powers_share_lines_and_no_element_is_lost() -> None:
    values = 2.0 ** np.arange(-60, 30)
    grid = spread_grid(of(list(values)), (0, 20), 5, 7, None)
    assert grid is not None
    assert len(grid.lowest) == len(grid.bars) <= 7
    assert sum(bar.negative + bar.positive for bar in grid.bars) == pytest.approx(1)
    assert grid.per_line * len(grid.bars) >= len(values)


def test_what_was_not_measured_is_no_histogram() -> None:
    nothing = Spread("r", "w", np.array([5], np.int64), np.zeros((1, WIDTH), np.uint64))
    assert spread_grid(nothing, (0, 10), 5, 5, None) is None
    zeros = spread_grid(of([0.0, 0.0]), (0, 10), 5, 5, None)
    assert zeros is not None
    assert zeros.zeros == 1


def test_no_more_than_so_many_are_kept() -> None:
    spread = of([1.0])
    for step in range(11, 11 + MOST):
        spread = spread.followed_by(np.array([step]), spread.counts[:1])
    assert len(spread.step) == len(spread.counts) == MOST
    assert spread.step[-1] == 10 + MOST


@pytest.mark.parametrize("size", [(80, 24), (200, 60)])
async def test_the_screen_of_a_tensor_asks_for_its_histograms_shows_them_and_lets_go(
    size: tuple[int, int],
) -> None:
    feed = recorded.live_run()
    async with shown(feed, size=size) as pilot:
        await pilot.press("t", "enter")
        assert feed.looked_into == ["embed.weight"]
        if size == (80, 24):
            assert "gradient by size" not in text(pilot)
            await pilot.press("h")
        assert "zero 3.1 %" in text(pilot)
        assert "step 18,420" in text(pilot).split("gradient by size")[1]
        await pilot.press("i", *["less_than_sign"] * 3)
        assert "step 18,420" not in text(pilot).split("gradient by size")[1]
        await pilot.press("escape", "escape")
        assert feed.looked_into == ["embed.weight", None]


async def test_a_tensor_without_histograms_says_so() -> None:
    class Silent(RecordedFeed):
        def look_into(self, run: str, tensor: str | None) -> None:
            pass

    async with shown(Silent(*recorded.live_run().messages), size=(80, 24)) as pilot:
        await pilot.press("t", "enter", "h")
        assert "not measured yet" in text(pilot)

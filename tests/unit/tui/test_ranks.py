"""The screen of ranks: grid, list and details, from one rank to a thousand."""

import re

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from optwatch_tui import rank_grid
from optwatch_tui.rank_grid import STATISTICS
from optwatch_tui.screens.ranks import RanksScreen
from optwatch_tui.screens.run import RunScreen
from optwatch_tui.widgets.rank_grid import RankGrid
from tests.unit.tui import recorded
from tests.unit.tui.recorded import RecordedFeed
from tests.unit.tui.test_screens import shown, text


def ranks_of(world_size: int) -> RecordedFeed:
    return recorded.live_run(world_size=world_size, ranks=recorded.ranks(world_size))


def grid_cells(screen: str) -> str:
    """The cells of the grid, without labels and gaps."""
    lines = [re.match(r"│ +(\d+) (.*)│", line) for line in screen.splitlines()]
    return "".join(re.sub(r"[\s\[\]]", "", line[2]) for line in lines if line)


@pytest.mark.parametrize("size", [(80, 24), (120, 40), (200, 60)])
@pytest.mark.parametrize("world_size", [1, 4, 64, 1_000, 1_024])
async def test_every_rank_has_its_cell(world_size: int, size: tuple[int, int]) -> None:
    feed = recorded.live_run(world_size=world_size)
    async with shown(feed, size=size) as pilot:
        await pilot.press("k")
        assert isinstance(pilot.app.screen, RanksScreen)
        assert grid_cells(text(pilot)).count("●") == world_size
        assert "rank 0 on node0" in text(pilot)


async def test_a_thousand_ranks_show_the_few_that_are_sick_at_80x24() -> None:
    async with shown(ranks_of(1_024), size=(80, 24)) as pilot:
        await pilot.press("k")
        cells = grid_cells(text(pilot))
        assert (len(cells), cells.index("✖"), cells.count("✖")) == (1_024, 40, 1)
        assert "rank 40 on node10:1040" in text(pilot)
        assert "step 18,300 (120 behind)" in text(pilot)
        for _ in range(4):
            await pilot.press("s")
        cells = grid_cells(text(pilot))
        assert "lateness" in text(pilot).splitlines()[2]
        assert (cells.index("9"), cells.count("9")) == (17, 1)
        assert "21.6 ms" in text(pilot)
        await pilot.press("s", "s")
        cells = grid_cells(text(pilot))
        assert (cells.index("≠"), cells[5]) == (33, "·")
        assert "≠ differs 1  · not known 1" in text(pilot)


async def test_every_statistic_is_named_and_comes_round() -> None:
    async with shown(ranks_of(64)) as pilot:
        await pilot.press("k")
        titles = []
        for _ in STATISTICS:
            titles.append(text(pilot).splitlines()[2])
            await pilot.press("s")
        for statistic, title in zip(STATISTICS, titles, strict=True):
            assert f"ranks · {statistic.title}" in title
        assert text(pilot).splitlines()[2] == titles[0]


async def test_what_is_not_known_says_so() -> None:
    async with shown(recorded.live_run(world_size=8)) as pilot:
        await pilot.press("k")
        for words in ("lateness not known", "local norm not known", "checksum never compared"):
            assert words in text(pilot)
        await pilot.press("s", "s", "s", "s")
        assert "· not known of any rank" in text(pilot)
        assert grid_cells(text(pilot)) == "·" * 8


async def test_a_rank_that_was_never_heard_is_shown_as_such() -> None:
    heard = recorded.ranks(64)[:60]
    async with shown(recorded.live_run(world_size=64, ranks=heard)) as pilot:
        await pilot.press("k")
        assert "· not known 4" in text(pilot)
        await pilot.press("end")
        assert "rank 63 was not heard yet" in text(pilot)


async def test_the_worst_come_first_by_what_is_looked_at() -> None:
    async with shown(ranks_of(64), size=(120, 40)) as pilot:
        await pilot.press("k", "s", "s", "s", "s")
        first, second = [line for line in text(pilot).splitlines() if re.match(r"│ [●✖▸]", line)][:2]
        assert " 40 " in first
        assert "17      21.6 ms" in second
        await pilot.press("o")
        assert "by number" in text(pilot)
        rows = [line for line in text(pilot).splitlines() if re.match(r"│ ●", line)]
        assert re.match(r"│ ● up +0 ", rows[0])


async def test_the_cursor_moves_over_the_grid_and_the_list_follows() -> None:
    async with shown(ranks_of(64), size=(120, 40)) as pilot:
        await pilot.press("k", "home", "down", "right")
        assert "rank 33 on" in text(pilot)
        await pilot.press("up", "left")
        assert "rank 0 on" in text(pilot)
        await pilot.press("left", "up")
        assert "rank 0 on" in text(pilot)
        await pilot.press("o", "tab", "down")
        assert "rank 1 on" in text(pilot)
        assert pilot.app.screen.query_one(RankGrid).cursor == 1


async def test_ranks_are_filtered_by_host_and_number() -> None:
    async with shown(ranks_of(64), size=(120, 40)) as pilot:
        await pilot.press("k", "slash", *"node3", "enter")
        assert "4 of 64 match" in text(pilot)
        assert grid_cells(text(pilot)).count("·") == 60
        await pilot.press("escape")
        assert isinstance(pilot.app.screen, RunScreen)


async def test_a_click_selects_a_rank() -> None:
    async with shown(ranks_of(64), size=(80, 24)) as pilot:
        await pilot.press("k")
        line = next(line for line in text(pilot).splitlines() if "[✖]" in line)
        await pilot.click(RankGrid, offset=(line.index("[✖]") + 4, 3))
        assert "rank 41 on" in text(pilot)


@given(world=st.integers(1, 20_000), width=st.integers(10, 300), height=st.integers(1, 90))
def test_a_grid_holds_every_rank_within_its_width(world: int, width: int, height: int) -> None:
    grid = rank_grid.shape(world, width, height)
    assert grid.across * grid.down >= world
    assert grid.across * (grid.down - 1) < world
    assert grid.across * grid.cell + (grid.across - 1) // rank_grid.GAP <= max(width, 8)


@given(st.lists(st.one_of(st.floats(), st.none()), max_size=20))
def test_levels_keep_the_order_of_values(values: list[float | None]) -> None:
    of = np.array([np.nan if value is None else value for value in values], dtype=np.float64)
    level = rank_grid.levels(of, 24)
    there = ~np.isnan(of)
    assert ((level >= 0) == there).all()
    order = np.argsort(of[there], kind="stable")
    assert (np.diff(level[there][order]) >= 0).all()


def test_a_phase_of_another_agent_is_drawn_too() -> None:
    rank = msgspec.structs.replace(recorded.ranks(1)[0], phase="evaluation")
    phase = next(each for each in STATISTICS if each.key == "phase")
    assert phase.signs[int(phase.value(rank, 0) or 0)][2] == "another"

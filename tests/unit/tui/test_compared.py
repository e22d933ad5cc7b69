"""Runs over one another, glances of runs, and how long they go on."""

import math

import msgspec
import numpy as np
import pytest
from textual.pilot import Pilot

from optwatch.wire.messages import GroupInfo, OptimizerInfo
from optwatch_tui import compared, describe, formats, raster
from optwatch_tui.feed import ComparedChanged, GlancesChanged, LinkChanged, RunsChanged
from optwatch_tui.look import Look
from optwatch_tui.plan import planned_steps, seconds_left
from optwatch_tui.screens.compare import CompareScreen
from optwatch_tui.screens.run import RunScreen
from optwatch_tui.screens.runs import RunsScreen
from optwatch_tui.widgets.chart import Chart
from tests.unit.tui import recorded
from tests.unit.tui.recorded import RUNS, RecordedFeed
from tests.unit.tui.test_screens import shown, text


@pytest.mark.parametrize(
    ("config", "steps"),
    [
        ({"total_steps": 500}, 500),
        ({"trainer.max-steps": 7e3}, 7_000),
        ({"epochs": 3, "steps_per_epoch": 40}, 120),
        ({"epochs": 3}, None),
        ({"max_steps": True}, None),
        ({"max_steps": "many", "steps": 9}, 9),
        ({"max_steps": -1}, None),
        ({}, None),
    ],
)
def test_the_planned_end_is_read_from_the_usual_names(config: dict[str, object], steps: int | None) -> None:
    assert planned_steps(config) == steps  # type: ignore[arg-type]


def test_the_time_left() -> None:
    assert seconds_left(100, 2.0, 300) == 100
    assert seconds_left(400, 2.0, 300) == 0
    assert seconds_left(1, None, 300) is None
    assert seconds_left(1, 0.0, 300) is None
    assert seconds_left(1, 2.0, None) is None


def test_a_sparkline_falls_with_its_values() -> None:
    assert formats.sparkline([8, 7, 6, 5, 4, 3, 2, 1], 8) == "█▇▆▅▄▃▂▁"
    assert formats.sparkline([1.0, math.nan, 2.0], 8) == "▁✖█"
    assert formats.sparkline([3.0, 3.0], 8) == "▁▁"
    assert formats.sparkline([], 8) == ""
    assert len(formats.sparkline(range(100), 12)) == 12


@pytest.mark.parametrize("width", [40, 58, 78, 98, 118, 198])
def test_the_list_of_runs_fills_its_width_and_keeps_what_matters(width: int) -> None:
    head = "".join(span for span, _ in describe.run_head(width))
    item = describe.run_item(RUNS[0], recorded.NOW, width, recorded.glances()["7f3a2c10"], picked=True)
    (row,) = item.rows
    line = "".join(span for span, _ in row)
    assert len(line) == len(head)
    assert len(line) <= max(width, 62)
    for words in ("live", "gpt-small", "18,420", "2.314", "critical"):
        assert words in line
    assert ("11 min" in line) == (width >= 70)


def test_time_is_the_sum_of_the_step_times() -> None:
    (run,) = recorded.compared(1)
    places = run.places("time")
    assert np.allclose(places, np.cumsum(run.columns.column("step_time")[1]))
    assert np.array_equal(run.places("step"), run.columns.step)


def test_runs_are_drawn_each_with_its_own_line_and_number() -> None:
    runs = recorded.compared(3)
    by_step = compared.picture(compared.CHARTS[0], runs, "step", Look(), None)
    assert [(line.sign, line.role) for line in by_step.lines] == [("1", "run0"), ("2", "run1"), ("3", "run2")]
    assert by_step.last >= 2_200
    by_time = compared.picture(compared.CHARTS[0], runs, "time", Look(), None)
    ends = [line.step[-1] for line in by_time.lines]
    assert ends[1] / ends[0] == pytest.approx(2 * 2_100 / 2_000, rel=0.05)
    assert [mark.text.split()[0] for mark in by_time.marks] == ["1", "2", "3"]


def test_only_settings_that_differ_are_listed() -> None:
    first, second = recorded.compared(2)
    assert compared.differences([first, second]) == [("lr", ("0.001", "0.0005"))]
    other = OptimizerInfo("optimizer", "SGD", (GroupInfo({"lr": 0.1, "momentum": 0.9}, 48, 10),), "x")
    second = compared.ComparedRun(
        msgspec.structs.replace(second.status, optimizers=(other,), config={"lr": 1e-3}),
        second.columns,
        second.findings,
    )
    found = dict(compared.differences([first, second]))
    assert found == {
        "optimizer": ("AdamW", "SGD"),
        "optimizer.lr": ("0.0003", "0.1"),
        "optimizer.momentum": ("–", "0.9"),
    }


def test_round_lengths_of_time() -> None:
    assert [raster.nice_seconds(span, 4) for span in (20, 60, 200, 3_600, 20_000, 400_000)] == [
        5,
        15,
        60,
        900,
        7_200,
        172_800,
    ]


def several() -> RecordedFeed:
    return RecordedFeed(
        LinkChanged(recorded.LIVE),
        RunsChanged(tuple(msgspec.structs.replace(run, state="ended") for run in RUNS)),
        GlancesChanged(recorded.glances()),
    )


async def compare(pilot: Pilot[None], runs: int) -> None:
    await pilot.press("space", "space", "c")
    pilot.app.post_message(ComparedChanged(recorded.compared(runs)))
    await pilot.pause()


async def test_runs_are_picked_and_compared_and_let_go_again() -> None:
    feed = several()
    async with shown(feed) as pilot:
        assert isinstance(pilot.app.screen, RunsScreen)
        await pilot.press("c")
        assert "pick two runs or more" in text(pilot)
        await pilot.press("space")
        assert "+■" in text(pilot).splitlines()[4]
        await pilot.press("up", "space", "up")
        assert "+■" not in text(pilot)
        await compare(pilot, 2)
        assert isinstance(pilot.app.screen, CompareScreen)
        assert feed.compared == [("7f3a2c10", "12ab99ee")]
        for words in ("by step", "1 sweep-0", "2 sweep-1", "1 settings differ", "0.0005", "val loss"):
            assert words in text(pilot)
        await pilot.press("escape")
        assert isinstance(pilot.app.screen, RunsScreen)
        assert feed.compared[-1] == ()


async def test_what_the_keys_of_a_comparison_do() -> None:
    async with shown(several()) as pilot:
        await compare(pilot, 3)
        loss = pilot.app.screen.query_one("#chart-loss", Chart)
        assert loss.picture is not None
        steps = loss.picture.last
        await pilot.press("b")
        assert "by time" in text(pilot)
        assert loss.picture.seconds
        assert loss.picture.last != steps
        await pilot.press("b", "plus")
        assert loss.picture.last - loss.picture.first < 0.6 * steps
        await pilot.press("0", "n")
        cursor = pilot.app.screen.look.cursor  # type: ignore[attr-defined]
        assert loss.picture.cursor == cursor
        assert "divergence" in text(pilot).splitlines()[-1]
        await pilot.press("escape")
        assert isinstance(pilot.app.screen, CompareScreen)
        before = loss.logarithmic
        await pilot.press("y")
        assert loss.logarithmic != before
        await pilot.press("e")
        assert loss.picture.lines[0].raw is not None
        await pilot.press("space")
        pilot.app.post_message(ComparedChanged(recorded.compared(2)))
        await pilot.pause()
        assert "paused" in text(pilot)
        assert len(loss.picture.lines) == 3
        await pilot.press("end")
        assert len(loss.picture.lines) == 2


@pytest.mark.parametrize("size", [(80, 24), (120, 40), (200, 60)], ids=lambda s: f"{s[0]}x{s[1]}")
async def test_eight_runs_are_told_apart_at_every_size(size: tuple[int, int]) -> None:
    async with shown(several(), size=size) as pilot:
        await compare(pilot, 8)
        page = text(pilot)
        for number in "12345678":
            assert number in "".join(page.splitlines()[3 : size[1] * 2 // 3])  # on its line
            assert f" {number} " in page  # and in the table
        pilot.app.post_message(ComparedChanged(()))
        await pilot.pause()
        assert "waiting for the runs" in text(pilot)


async def test_the_list_shows_glances_and_goes_through_its_orders() -> None:
    async with shown(several()) as pilot:
        assert "█" in text(pilot).splitlines()[4]

        def first() -> str:
            return text(pilot).splitlines()[4].split()[3]

        order = [first()]
        for words in ("worst finding", "by name", "lowest loss", "newest first"):
            await pilot.press("o")
            assert words in text(pilot)
            order.append(first())
        assert order == ["gpt-small", "gpt-small", "digits-mlp", "resnet-cifar", "gpt-small"]


async def test_nine_runs_are_too_many() -> None:
    many = tuple(msgspec.structs.replace(RUNS[2], run=f"{at:08x}", name=f"s{at}") for at in range(9))
    feed = RecordedFeed(LinkChanged(recorded.LIVE), RunsChanged(many))
    async with shown(feed) as pilot:
        await pilot.press(*["space"] * 9)
        assert "8 runs are the most" in text(pilot)
        await pilot.press("enter")
        assert isinstance(pilot.app.screen, RunScreen)

"""Further charts, tensors, the pointer on the heat map, colours that are not there."""

import msgspec
import numpy as np
import pytest
from textual.filter import Monochrome

from optwatch_tui.feed import LinkChanged, RunChanged, RunsChanged
from optwatch_tui.screens.tensor import TensorScreen
from optwatch_tui.screens.tensors import TensorsScreen
from optwatch_tui.widgets.chart import Chart
from tests.unit.tui import recorded
from tests.unit.tui.recorded import RecordedFeed
from tests.unit.tui.test_screens import shown, text


async def test_a_tensor_shows_the_range_of_its_elements() -> None:
    async with shown() as pilot:
        await pilot.press("t", "enter")
        second = pilot.app.screen.query_one("#chart-second", Chart).picture
        assert second is not None
        mean, high, low = second.lines
        assert mean.low is not None
        assert mean.high is not None
        assert np.array_equal(mean.high, high.value)
        assert np.array_equal(mean.low, low.value)
        assert (mean.low <= mean.value).all()
        assert "share of elements" in text(pilot)


async def test_further_columns_are_a_page_away() -> None:
    model = recorded.model(last=500)
    delta, blocks, tensors = recorded.delta(11, 501, 600)
    named = msgspec.structs.replace(
        delta, series=msgspec.structs.replace(delta.series, columns=(*recorded.COLUMNS[:-1], "accuracy"))
    )
    model.update(named, blocks, tensors)
    feed = RecordedFeed(LinkChanged(recorded.LIVE), RunsChanged(recorded.RUNS), RunChanged(model.snapshot()))
    async with shown(feed, size=(80, 24)) as pilot:
        await pilot.pause()
        seen = []
        for _ in range(3):
            seen.append(text(pilot))
            await pilot.press("p")
            await pilot.pause()
        for page, titles in zip(
            seen, (("lr", "update/param"), ("moments rms", "step ms"), ("RMS_t", "accuracy")), strict=True
        ):
            assert all(title in page for title in titles)
        assert "scheduled" in text(pilot)


async def test_a_click_on_the_heat_map_selects_and_another_one_opens() -> None:
    async with shown() as pilot:
        await pilot.press("t")
        await pilot.click("#tensors", offset=(5, 4))
        assert isinstance(pilot.app.screen, TensorsScreen)
        await pilot.click("#tensors", offset=(5, 4))
        await pilot.pause()
        assert isinstance(pilot.app.screen, TensorScreen)


async def test_the_time_left_is_told_where_the_configuration_says_the_end() -> None:
    async with shown(recorded.live_run(config={"max_steps": 30_000}), size=(160, 50)) as pilot:
        assert "left 19 min" in text(pilot).splitlines()[0]


async def test_without_colours_shades_tell_the_values_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    async with shown() as pilot:
        assert any(isinstance(each, Monochrome) for each in pilot.app.get_line_filters())
        await pilot.press("t")
        assert {"░", "▒", "▓"} & set(text(pilot))


@pytest.mark.parametrize(
    ("state", "size"),
    [
        *((state, size) for state in ("live", "well") for size in ((80, 24), (120, 40), (200, 60))),
        *((state, (80, 24)) for state in ("stale", "ended", "new")),
        ("live", (400, 100)),
    ],
)
async def test_every_screen_in_every_state_at_every_size(size: tuple[int, int], state: str) -> None:
    changes: dict[str, object] = {"findings": (), "commands": ()} if state == "well" else {"state": state}
    nothing_yet = RecordedFeed(LinkChanged(recorded.LIVE), RunsChanged(recorded.RUNS))
    feed = nothing_yet if state == "new" else recorded.live_run(last=2_000, **changes)
    async with shown(feed, size=size) as pilot:
        for keys, titles in (
            ([], ("loss", "grad norm", "findings", "lr")),
            (["t"], ("tensors by depth",)),
            (["enter"], ("gradient", "2nd moment", "RMS_t") if state != "new" else ()),
        ):
            await pilot.press(*keys)
            await pilot.pause()
            page = text(pilot)
            assert [title for title in titles if title not in page] == []
            lines = page.splitlines()
            assert len(lines) == size[1]
            assert all(len(line) <= size[0] for line in lines)
            if state in ("live", "stale", "ended"):
                assert state in lines[0]

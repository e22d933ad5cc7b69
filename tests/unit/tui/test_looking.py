"""Cursor, pointer, smoothing and saving on the screens, on recorded values."""

import csv
from pathlib import Path

import pytest
from textual.events import MouseScrollUp
from textual.pilot import Pilot

from optwatch_tui.feed import LinkChanged, RunChanged, RunsChanged
from optwatch_tui.formats import number
from optwatch_tui.screens.run import RunScreen
from optwatch_tui.screens.save import SaveScreen
from optwatch_tui.widgets.chart import Chart
from tests.unit.tui import recorded
from tests.unit.tui.recorded import RecordedFeed
from tests.unit.tui.test_screens import shown, text


def chart(pilot: Pilot[None], key: str) -> Chart:
    return pilot.app.screen.query_one(f"#chart-{key}", Chart)


def cursor(pilot: Pilot[None]) -> float | None:
    return pilot.app.screen.look.cursor  # type: ignore[attr-defined, no-any-return]


def edges(pilot: Pilot[None], key: str = "loss") -> tuple[float, float]:
    picture = chart(pilot, key).picture
    assert picture is not None
    return picture.first, picture.last


def title(pilot: Pilot[None], key: str) -> str:
    return "".join(span for span, _ in chart(pilot, key).title())


async def test_the_cursor_tells_the_values_of_one_step_in_all_charts() -> None:
    async with shown() as pilot:
        await pilot.press("i")
        assert cursor(pilot) == 18_420
        await pilot.press(*["less_than_sign"] * 3)
        step = cursor(pilot)
        assert step is not None
        assert step < 18_420
        columns = recorded.snapshot().columns
        for key in ("loss", "grad_norm"):
            value = columns.column(key)[1][int(step) - 1]
            assert f"@{int(step):,} {number(value)}" in title(pilot, key)
        assert f"@{int(step):,}" in title(pilot, "lr")
        drawn = [line.count("│") for line in text(pilot).splitlines()[3:10]]
        await pilot.press("i")
        assert cursor(pilot) is None
        without = [line.count("│") for line in text(pilot).splitlines()[3:10]]
        assert all(a >= b for a, b in zip(drawn, without, strict=True))
        assert sum(drawn) > sum(without)


async def test_the_cursor_moves_by_columns_and_by_single_steps_where_these_are_wider() -> None:
    async with shown() as pilot:
        await pilot.press("i", "comma")
        far = cursor(pilot)
        await pilot.press("full_stop")
        assert far is not None
        assert far < (cursor(pilot) or 0) <= 18_420
        await pilot.press("i", *["plus"] * 11, "i")
        first, last = edges(pilot)
        assert last - first == 10
        await pilot.press("comma")
        assert cursor(pilot) == 18_419
        await pilot.press("greater_than_sign")
        assert cursor(pilot) == 18_420


async def test_the_window_follows_the_cursor() -> None:
    async with shown() as pilot:
        await pilot.press(*["plus"] * 6, "i", *["less_than_sign"] * 12)
        first, last = edges(pilot)
        assert first <= (cursor(pilot) or 0) <= last
        assert last < 18_420
        await pilot.press("end")
        assert edges(pilot)[1] == 18_420


async def test_zoom_goes_to_the_cursor() -> None:
    async with shown() as pilot:
        await pilot.press("i", *["less_than_sign"] * 2)
        at = cursor(pilot) or 0
        first, last = edges(pilot)
        share = (at - first) / (last - first)
        await pilot.press("plus")
        first, last = edges(pilot)
        assert abs((at - first) / (last - first) - share) < 0.02


async def test_n_goes_from_finding_to_finding_and_says_what_is_there() -> None:
    async with shown(size=(160, 50)) as pilot:
        await pilot.press("n")
        assert cursor(pilot) == 12_894
        assert "✖ divergence: The gradient norm is 12 × its median" in text(pilot).splitlines()[-1]
        await pilot.press("n")
        assert cursor(pilot) == 10_800
        await pilot.press("N")
        assert cursor(pilot) == 12_894
        await pilot.press("escape")
        assert isinstance(pilot.app.screen, RunScreen)
        assert cursor(pilot) is None


async def test_on_a_tensor_n_goes_through_the_findings_in_order_of_step() -> None:
    async with shown() as pilot:
        await pilot.press("t", "enter", "n")
        assert cursor(pilot) == 4_100
        await pilot.press("n", "n")
        assert cursor(pilot) == 12_894
        await pilot.press("n")
        assert "no further finding" in text(pilot)
        await pilot.press("N")
        assert cursor(pilot) == 10_800


async def test_marks_and_actions_say_what_they_were() -> None:
    async with shown(size=(200, 60)) as pilot:
        screen = pilot.app.screen
        for step, words in ((6_000, "◆ curriculum stage 2"), (12_910, "✓ LR × 0.5 over 50 steps: helped")):
            screen.point_at(step)  # type: ignore[attr-defined]
            await pilot.pause()
            assert words in text(pilot).splitlines()[-1]


async def test_smoothing_goes_round_and_stays_for_the_next_screen() -> None:
    async with shown() as pilot:
        pictures = [chart(pilot, "loss").picture]
        for word in ("light", "strong"):
            await pilot.press("e")
            assert f"smoothing {word}" in text(pilot)
            assert f"smooth {word}" in text(pilot).splitlines()[2]
            pictures.append(chart(pilot, "loss").picture)
        assert [p is not None and p.lines[0].raw is not None for p in pictures] == [False, True, True]
        await pilot.press("t", "enter")
        assert pilot.app.screen.look.smoothing == "strong"  # type: ignore[attr-defined]
        await pilot.press("e")
        assert pilot.app.screen.look.smoothing == "off"  # type: ignore[attr-defined]


async def test_the_wheel_zooms_at_the_pointer_and_a_drag_pans() -> None:
    async with shown() as pilot:
        loss = chart(pilot, "loss")
        left, right = edges(pilot)
        place = loss._place(30)
        for _ in range(8):
            await pilot._post_mouse_events([MouseScrollUp], loss, offset=(30, 5))
        await pilot.pause()
        first, last = edges(pilot)
        assert last - first < 0.3 * (right - left)
        assert edges(pilot, "grad_norm") == (first, last)
        assert abs((loss._place(30) or 0) - (place or 0)) < 0.02 * (right - left)
        await pilot.mouse_down(loss, offset=(30, 5))
        await pilot.hover(loss, offset=(20, 5))
        await pilot.mouse_up(loss, offset=(20, 5))
        await pilot.pause()
        assert edges(pilot)[0] > first


async def test_hovering_shows_values_until_the_pointer_leaves_and_a_click_keeps_them() -> None:
    async with shown() as pilot:
        await pilot.hover("#chart-loss", offset=(30, 5))
        await pilot.pause()
        hovered = cursor(pilot)
        assert hovered is not None
        await pilot.hover("#status", offset=(3, 0))
        await pilot.pause()
        assert cursor(pilot) is None
        await pilot.click("#chart-loss", offset=(30, 5))
        await pilot.pause()
        assert cursor(pilot) == hovered
        await pilot.hover("#chart-loss", offset=(40, 5))
        await pilot.hover("#status", offset=(3, 0))
        await pilot.pause()
        assert cursor(pilot) == hovered


async def test_clicking_twice_enlarges_a_chart() -> None:
    async with shown() as pilot:
        await pilot.click("#chart-grad_norm", offset=(30, 5), times=2)
        await pilot.pause()
        assert chart(pilot, "grad_norm").size.height > 30


async def test_a_long_pause_does_not_stop_the_cursor() -> None:
    model = recorded.model(last=1_000)
    feed = RecordedFeed(LinkChanged(recorded.LIVE), RunsChanged(recorded.RUNS), RunChanged(model.snapshot()))
    async with shown(feed) as pilot:
        await pilot.press("space")
        model.update(*recorded.delta(11, 1_001, 1_400))
        pilot.app.post_message(RunChanged(model.snapshot()))
        await pilot.pause()
        await pilot.press("i")
        assert cursor(pilot) == 1_000
        await pilot.press("end")
        assert "paused" not in text(pilot).splitlines()[0]
        await pilot.press("i", "i")
        assert cursor(pilot) == 1_400


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("c", "optwatch-gpt-small-loss.csv"),
        ("s", "optwatch-gpt-small-loss.svg"),
        ("p", "optwatch-gpt-small-loss.png"),
        ("S", "optwatch-gpt-small.svg"),
        ("P", "optwatch-gpt-small.png"),
    ],
)
async def test_charts_and_screens_are_saved_beside_where_it_was_started(
    key: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    async with shown(size=(200, 50)) as pilot:
        await pilot.press("v")
        assert isinstance(pilot.app.screen, SaveScreen)
        await pilot.press(key)
        await pilot.pause()
        assert str(tmp_path / name) in text(pilot)
    content = (tmp_path / name).read_bytes()
    if key == "c":
        assert len(list(csv.DictReader(content.decode().splitlines()))) == 18_420
    elif key in "sS":
        assert b"<svg" in content
        assert b"save loss" not in content
    else:
        assert content.startswith(b"\x89PNG")


async def test_numbers_are_copied_as_csv() -> None:
    async with shown() as pilot:
        await pilot.press("tab", *["plus"] * 11, "v", "down", "enter")
        await pilot.pause()
        assert "copied 11 rows" in text(pilot)
        copied = pilot.app.clipboard
        assert copied.splitlines()[0] == "step,grad norm"
        assert copied.splitlines()[-1].startswith("18420,")


async def test_saving_can_be_left_and_a_screen_without_charts_saved_whole() -> None:
    async with shown() as pilot:
        await pilot.press("v", "escape", "k", "v")
        assert "whole screen as SVG" in text(pilot)
        assert "numbers" not in text(pilot)


async def test_what_cannot_be_saved_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    async with shown() as pilot:
        gone.rmdir()
        await pilot.press("v", "c")
        await pilot.pause()
        assert "cannot save" in text(pilot)

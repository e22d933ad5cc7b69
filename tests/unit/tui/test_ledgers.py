"""The screens of findings and of actions."""

import msgspec
import pytest

from optwatch.wire.findings import KINDS
from optwatch.wire.requests import Approve, Dismiss, Undo
from optwatch_tui import evidence
from optwatch_tui.screens.actions import ActionsScreen
from optwatch_tui.screens.findings import FindingsScreen
from optwatch_tui.screens.run import RunScreen
from optwatch_tui.screens.text import TextScreen
from optwatch_tui.widgets.chart import Chart
from tests.unit.tui import recorded
from tests.unit.tui.test_screens import RUN, asked, shown, text

SIZES = [(80, 24), (120, 40), (200, 60)]
MANY = tuple(
    msgspec.structs.replace(
        recorded.FINDINGS[1],
        id=at,
        step=200 * at,
        onset_step=200 * at - 10,
        resolved_step=None if at % 2 else 200 * at + 50,
    )
    for at in range(1, 60)
)


@pytest.mark.parametrize("size", SIZES)
async def test_findings_are_told_in_full_with_the_chart_they_were_read_from(size: tuple[int, int]) -> None:
    async with shown(size=size) as pilot:
        await pilot.press("f")
        assert isinstance(pilot.app.screen, FindingsScreen)
        for words in (
            "divergence  since 12,894",
            "The gradient norm is 12 ×",
            "vanishing_gradient",
            "▴ 12,894",
        ):
            assert words in text(pilot)
        chart = pilot.app.screen.query_one(Chart)
        assert chart.display
        assert "loss @12,894" in text(pilot)
        await pilot.press("down")
        assert "h.0.mlp.fc.weight" in text(pilot)
        assert "gradient @10,800" in text(pilot)
        await pilot.press("enter")
        assert isinstance(pilot.app.screen, TextScreen)
        assert "falls 40 × over each of 5 layers" in text(pilot)
        await pilot.press("escape", "escape")
        assert isinstance(pilot.app.screen, RunScreen)


async def test_evidence_causes_and_remedies_are_all_there() -> None:
    async with shown(size=(120, 40)) as pilot:
        await pilot.press("f")
        for words in (
            "median_grad_norm",
            "70%",
            "is at its peak",
            "LR × 0.5 over 50 steps",
            "won back such runs",
        ):
            assert words in text(pilot)
        await pilot.press("tab", "tab", "down", "down")
        assert "lengthen the warm-up" in text(pilot)


async def test_findings_are_filtered_by_text_severity_and_whether_they_are_over() -> None:
    async with shown(size=(120, 40)) as pilot:
        await pilot.press("f", "s", "s")
        assert "shown: critical" in text(pilot)
        assert "1 of 3" in text(pilot)
        await pilot.press("s", "s", "o")
        assert "open  2 of 3" in text(pilot)
        await pilot.press("o")
        assert "over  1 of 3" in text(pilot)
        assert "over at 4,310" in text(pilot)
        await pilot.press("o", "slash", *"vanish", "enter")
        assert "1 of 3" in text(pilot)
        await pilot.press("slash", *"xyz", "enter")
        assert "nothing matches" in text(pilot)
        await pilot.press("slash", "escape")
        assert "all  3" in text(pilot)


@pytest.mark.parametrize("size", SIZES)
async def test_many_findings_and_none(size: tuple[int, int]) -> None:
    async with shown(recorded.live_run(findings=MANY), size=size) as pilot:
        await pilot.press("f", "end")
        assert "all  59" in text(pilot)
        assert "over at 450" in text(pilot)
        await pilot.press("home")
        assert "since 11,790" in text(pilot)
    async with shown(recorded.live_run(findings=(), commands=()), size=size) as pilot:
        await pilot.press("f")
        assert "nothing was found so far" in text(pilot)
        await pilot.press("enter", "down", "s", "o", "j")
        assert "nothing was done or proposed so far" in text(pilot)
        await pilot.press("enter", "down")
        assert isinstance(pilot.app.screen, ActionsScreen)


@pytest.mark.parametrize("size", SIZES)
async def test_an_action_is_told_from_the_asking_to_the_outcome(size: tuple[int, int]) -> None:
    async with shown(size=size) as pilot:
        await pilot.press("j")
        assert isinstance(pilot.app.screen, ActionsScreen)
        for words in ("proposed   asked 30 s ago by policy", "the moments still hold"):
            assert words in text(pilot)
        await pilot.press("down", "enter")
        for words in (
            "by policy",
            "divergence since 12,894",
            "factor     0.5",
            "at step 12,910, on 4 of 4: ranks 0-3",
            "helped",
            "loss_change -0.21",
            "to undo    u",
        ):
            assert words in text(pilot)


async def test_the_votes_of_an_action_under_way_are_named() -> None:
    command = msgspec.structs.replace(recorded.COMMANDS[1], state="scheduled", due=18_430, votes=(0, 1, 3))
    async with shown(recorded.live_run(commands=(command,))) as pilot:
        await pilot.press("j")
        assert "3 of 4 for step 18,430: ranks 0-1, 3" in text(pilot)
        await pilot.press("o", "o")
        assert "over  0 of 1" in text(pilot)


async def test_actions_are_filtered() -> None:
    async with shown() as pilot:
        await pilot.press("j", "slash", *"helped", "enter")
        assert "1 of 2" in text(pilot)
        assert "LR × 0.5" in text(pilot)


@pytest.mark.parametrize("screen", ["f", "j"])
async def test_one_acts_from_there_too(screen: str) -> None:
    async with shown() as pilot:
        await pilot.press(screen, "a", "y", "d", "y", "u", "y")
        assert asked(pilot) == [Approve(RUN, "2"), Dismiss(RUN, "2", ""), Undo(RUN, "1")]


async def test_findings_and_actions_lead_to_one_another_and_back_to_the_run() -> None:
    async with shown() as pilot:
        await pilot.press("f", "j", "f", "j")
        assert isinstance(pilot.app.screen, ActionsScreen)
        await pilot.press("escape")
        assert isinstance(pilot.app.screen, RunScreen)


@pytest.mark.parametrize("screen", ["f", "j"])
async def test_nothing_can_be_done_there_read_only(screen: str) -> None:
    async with shown(readonly=True) as pilot:
        await pilot.press(screen, *"alrcdumxM")
        assert asked(pilot) == []
        assert "read-only: started with --readonly" in text(pilot)


def test_the_timeline_shows_what_was_open_when() -> None:
    cells = evidence.timeline(recorded.FINDINGS, 0, 20_000, 101)
    glyphs = "".join(glyph for glyph, _ in cells)
    assert [glyphs.index(sign) for sign in "▲✖"] == [20, 64]
    assert glyphs[:20] == "─" * 20
    assert cells[23][0] == "─"
    assert [role for _, role in cells][55:57] == ["warning", "warning"]
    assert {role for _, role in cells[65:]} == {"critical"}


def test_each_kind_has_a_chart() -> None:
    snapshot = recorded.snapshot()
    for kind in KINDS:
        finding = msgspec.structs.replace(recorded.DIVERGENCE, kind=kind)
        assert evidence.finding_picture(finding, snapshot).lines, kind


async def test_the_header_says_what_was_done_or_where_to_read_what_helps() -> None:
    applied, proposed = recorded.COMMANDS
    waiting = msgspec.structs.replace(applied, state="applied", outcome=None)
    for commands, words in (
        ((applied, proposed), "restart proposed"),
        ((applied,), "LR × 0.5 over 50 steps applied at 12,910, helped"),
        ((waiting,), "LR × 0.5 over 50 steps applied at 12,910, outcome awaited"),
        ((), "f why, and what helps"),
    ):
        async with shown(recorded.live_run(commands=commands)) as pilot:
            assert words in text(pilot).splitlines()[1]

"""What the keys do, on recorded values."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
import pytest
from textual.pilot import Pilot

from optwatch.wire.requests import Act, Approve, Dismiss, SetMode, Undo
from optwatch_tui.app import OptwatchApp
from optwatch_tui.bindings import KEYS
from optwatch_tui.feed import Answered, LinkChanged, RunChanged, RunsChanged
from optwatch_tui.model import Link
from optwatch_tui.screens.confirm import ConfirmScreen
from optwatch_tui.screens.run import RunScreen
from optwatch_tui.screens.runs import RunsScreen
from optwatch_tui.screens.tensor import TensorScreen
from optwatch_tui.screens.tensors import TensorsScreen
from optwatch_tui.screens.text import TextScreen
from optwatch_tui.widgets.chart import Chart
from optwatch_tui.widgets.listing import Listing
from tests.unit.tui import recorded
from tests.unit.tui.recorded import NOW, RecordedFeed

RUN = "7f3a2c10"


@asynccontextmanager
async def shown(
    feed: RecordedFeed | None = None, size: tuple[int, int] = (120, 40), readonly: bool = False
) -> AsyncIterator[Pilot[None]]:
    app = OptwatchApp(feed or recorded.live_run(), readonly=readonly, clock=lambda: NOW)
    async with app.run_test(size=size) as pilot:
        await pilot.pause()
        yield pilot


def text(pilot: Pilot[None]) -> str:
    """All that can be read on the screen."""
    width, height = pilot.app.size
    strips = pilot.app.screen._compositor.render_strips()
    return "\n".join("".join(s.text for s in strip)[:width] for strip in strips[:height])


def asked(pilot: Pilot[None]) -> list[object]:
    return list(pilot.app.feed.asked)  # type: ignore[attr-defined]


async def test_the_first_live_run_opens_by_itself() -> None:
    async with shown() as pilot:
        assert isinstance(pilot.app.screen, RunScreen)
        assert "gpt-small" in text(pilot)
        assert "divergence" in text(pilot)


@pytest.mark.parametrize(
    ("key", "down", "action", "args"),
    [
        ("r", 0, "restart", {}),
        ("r", 1, "restart", {"warmup": 100}),
        ("l", 0, "scale_lr", {"factor": 0.5}),
        ("l", 1, "scale_lr", {"factor": 0.1}),
        ("l", 4, "scale_lr", {"reset": True}),
        ("c", 0, "clip", {"max_norm": "auto"}),
    ],
)
async def test_an_action_is_asked_for_only_once_confirmed(
    key: str, down: int, action: str, args: dict[str, object]
) -> None:
    async with shown() as pilot:
        await pilot.press(key, *["down"] * down)
        assert isinstance(pilot.app.screen, ConfirmScreen)
        assert asked(pilot) == []
        await pilot.press("y")
        (request,) = asked(pilot)
        assert isinstance(request, Act)
        assert (request.run, request.action, request.args) == (RUN, action, args)


@pytest.mark.parametrize("key", ["r", "l", "c", "a", "d", "u", "m"])
async def test_escape_leaves_everything_as_it_is(key: str) -> None:
    async with shown() as pilot:
        await pilot.press(key)
        assert isinstance(pilot.app.screen, ConfirmScreen)
        await pilot.press("escape")
        assert isinstance(pilot.app.screen, RunScreen)
        assert asked(pilot) == []


async def test_a_proposal_is_approved_or_dismissed_with_a_reason() -> None:
    async with shown() as pilot:
        await pilot.press("a", "enter", "d", "down", "y")
        assert asked(pilot) == [Approve(RUN, "2"), Dismiss(RUN, "2", "false alarm")]


async def test_of_several_proposals_one_is_chosen() -> None:
    other = msgspec.structs.replace(
        recorded.COMMANDS[1], id="3", action="scale_lr", args={"factor": 0.1}, why="x"
    )
    async with shown(recorded.live_run(commands=(*recorded.COMMANDS, other))) as pilot:
        await pilot.press("a")
        assert "approve which proposal?" in text(pilot)
        assert "the moments still hold" not in text(pilot).split("to undo")[0].split("approve which")[1]
        await pilot.press("down", "y")
        assert asked(pilot) == [Approve(RUN, "2")]


async def test_undo_and_mode() -> None:
    async with shown() as pilot:
        await pilot.press("u", "y", "m", "down", "y")
        assert asked(pilot) == [Undo(RUN, "1"), SetMode(RUN, "auto")]


async def test_what_a_preview_says() -> None:
    async with shown() as pilot:
        await pilot.press("r")
        for words in ("all 4 ranks", "step count", "cannot be undone", "18,420"):
            assert words in text(pilot)


async def test_obstacles_are_said_beforehand() -> None:
    feed = recorded.live_run(control="2 of 4 ranks are connected", allow=("clip",))
    async with shown(feed) as pilot:
        await pilot.press("r")
        assert "control is not armed: 2 of 4 ranks" in text(pilot)


@pytest.mark.parametrize("key", ["r", "l", "c", "a", "d", "u", "m"])
async def test_read_only_changes_nothing_and_says_so(key: str) -> None:
    async with shown(readonly=True) as pilot:
        await pilot.press(key)
        assert isinstance(pilot.app.screen, RunScreen)
        assert "read-only: started with --readonly" in text(pilot)
        assert "approve" not in text(pilot)
        assert asked(pilot) == []


async def test_nothing_proposed_and_nothing_to_undo_are_said() -> None:
    async with shown(recorded.live_run(commands=())) as pilot:
        await pilot.press("a")
        assert "nothing is proposed" in text(pilot)
        await pilot.press("u")
        assert "nothing to undo" in text(pilot)


async def test_a_refusal_is_shown() -> None:
    async with shown() as pilot:
        await pilot.press("c", "y")
        (request,) = asked(pilot)
        pilot.app.post_message(Answered(request, None, "this client may only look"))
        await pilot.pause()
        assert "this client may only look" in text(pilot)


async def test_the_end_of_a_command_is_announced_on_its_way() -> None:
    model = recorded.model()
    async with shown(
        RecordedFeed(LinkChanged(recorded.LIVE), RunsChanged(recorded.RUNS), RunChanged(model.snapshot()))
    ) as pilot:
        for seq, (state, step) in enumerate((("scheduled", None), ("applied", 18_425)), start=11):
            command = msgspec.structs.replace(recorded.COMMANDS[1], state=state, step=step)
            model.update(*recorded.delta(seq, 18_410 + seq, 18_410 + seq, commands=(command,)))
            pilot.app.post_message(RunChanged(model.snapshot()))
            await pilot.pause()
            assert f"restart {state}" in text(pilot) or f"restart  {state}" in text(pilot)
        assert "restart applied at step 18,425" in text(pilot)


async def test_pause_holds_the_charts_while_the_header_goes_on() -> None:
    model = recorded.model(last=1_000)
    feed = RecordedFeed(LinkChanged(recorded.LIVE), RunsChanged(recorded.RUNS), RunChanged(model.snapshot()))
    async with shown(feed) as pilot:
        await pilot.press("space")
        before = text(pilot).splitlines()
        assert "paused" in before[0]
        model.update(*recorded.delta(11, 1_001, 1_400))
        pilot.app.post_message(RunChanged(model.snapshot()))
        await pilot.pause()
        after = text(pilot).splitlines()
        assert "1,400" in after[0]
        assert after[2:] == before[2:]
        await pilot.press("space")
        assert text(pilot).splitlines()[2:] != before[2:]


async def test_zoom_pan_and_back_to_the_whole_run() -> None:
    async with shown() as pilot:
        whole = text(pilot)
        await pilot.press("plus", "plus", "plus")
        zoomed = text(pilot)
        assert zoomed != whole
        await pilot.press("left")
        assert text(pilot) != zoomed
        await pilot.press("right")
        assert text(pilot) == zoomed
        await pilot.press("minus", "minus", "minus")
        assert text(pilot) == whole
        await pilot.press("plus", "0")
        assert text(pilot) == whole


async def test_the_charts_go_to_the_selected_finding() -> None:
    async with shown() as pilot:
        whole = text(pilot)
        await pilot.press("g")
        assert text(pilot) != whole
        assert "12.5k" in text(pilot) or "13k" in text(pilot)
        await pilot.press("0", "escape")
        assert text(pilot) == whole


async def test_a_light_terminal_gets_the_light_theme(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLORFGBG", "0;15")
    async with shown() as pilot:
        assert pilot.app.theme == "optwatch-light"


async def test_log_y_is_for_the_focused_chart() -> None:
    async with shown() as pilot:
        loss, norm = (pilot.app.screen.query_one(f"#chart-{key}", Chart) for key in ("loss", "grad_norm"))
        assert (loss.logarithmic, norm.logarithmic) == (False, True)
        await pilot.press("y")
        assert (loss.logarithmic, norm.logarithmic) == (True, True)
        await pilot.press("tab", "y")
        assert (loss.logarithmic, norm.logarithmic) == (True, False)


async def test_a_chart_is_enlarged_and_put_back() -> None:
    async with shown() as pilot:
        before = text(pilot)
        await pilot.press("enter")
        await pilot.pause()
        assert pilot.app.screen.query_one("#chart-loss", Chart).size.height > 30
        await pilot.press("escape")
        await pilot.pause()
        assert isinstance(pilot.app.screen, RunScreen)
        assert text(pilot) == before


async def test_a_finding_opens_with_evidence_causes_and_remedies() -> None:
    async with shown() as pilot:
        await pilot.press("n", "enter")
        assert isinstance(pilot.app.screen, TextScreen)
        for words in ("median_grad_norm", "lr_too_high", "update/param is 1.3e-3", "LR × 0.5 over 50 steps"):
            assert words in text(pilot)
        await pilot.press("escape", "n", "enter")
        assert "vanishing_gradient" in text(pilot)


async def test_tensors_filter_order_and_statistic() -> None:
    async with shown(size=(120, 60)) as pilot:
        await pilot.press("t")
        assert isinstance(pilot.app.screen, TensorsScreen)
        assert "head.weight" in text(pilot)
        await pilot.press("s")
        assert "gradient rms" in text(pilot)
        await pilot.press("slash", *"mlp.fc", "enter")
        assert "head.weight" not in text(pilot)
        assert "12 tensors" in text(pilot)
        first = text(pilot).splitlines()[3]
        await pilot.press("o")
        assert text(pilot).splitlines()[3] != first
        await pilot.press("escape")
        assert isinstance(pilot.app.screen, RunScreen)


async def test_a_tensor_opens_with_its_own_history() -> None:
    async with shown() as pilot:
        await pilot.press("t", "down", "down", "enter")
        assert isinstance(pilot.app.screen, TensorScreen)
        assert "h.0.mlp.fc.weight" in text(pilot)
        gradient = pilot.app.screen.query_one("#chart-gradient", Chart)
        assert gradient.logarithmic
        before = text(pilot)
        await pilot.press("plus")
        assert text(pilot) != before
        await pilot.press("0", "y")
        assert not gradient.logarithmic
        await pilot.press("escape")
        assert isinstance(pilot.app.screen, TensorsScreen)


async def test_the_list_of_runs_is_filtered_and_opened() -> None:
    feed = recorded.live_run()
    async with shown(feed) as pilot:
        await pilot.press("escape")
        assert isinstance(pilot.app.screen, RunsScreen)
        await pilot.press("slash", *"digits", "enter", "enter")
        assert isinstance(pilot.app.screen, RunScreen)
        assert feed.watched == [RUN, None, "12ab99ee"]


async def test_a_filter_is_dropped_with_escape() -> None:
    async with shown() as pilot:
        await pilot.press("escape", "slash", *"digits")
        assert "1 of 3 match" in text(pilot)
        await pilot.press("escape")
        assert isinstance(pilot.app.screen, RunsScreen)
        assert "resnet-cifar" in text(pilot)


async def test_a_lost_link_is_shown_at_once_and_blocks_actions() -> None:
    async with shown() as pilot:
        pilot.app.post_message(LinkChanged(Link("lost", recorded.ADDRESS, NOW - 12, "no daemon answers")))
        await pilot.pause()
        assert "lost 12 s" in text(pilot)
        assert "no daemon answers" in text(pilot)
        await pilot.press("r")
        assert "no link to the daemon" in text(pilot)
        pilot.app.post_message(LinkChanged(recorded.LIVE))
        await pilot.pause()
        assert "lost" not in text(pilot).splitlines()[0]


async def test_no_run_at_all_says_what_to_do() -> None:
    async with shown(RecordedFeed(LinkChanged(recorded.LIVE), RunsChanged(()))) as pilot:
        assert "optwatch.attach(optimizer)" in text(pilot)
        await pilot.press("enter", "down", "slash")
        assert isinstance(pilot.app.screen, RunsScreen)


@pytest.mark.parametrize("size", [(20, 6), (40, 12), (60, 16), (80, 24), (300, 90)])
async def test_any_size_is_drawn(size: tuple[int, int]) -> None:
    async with shown(size=size) as pilot:
        assert "gpt" in text(pilot)
        await pilot.press("l")
        await pilot.press("escape", "question_mark", "escape", "t", "escape", "k", "escape")
        await pilot.resize_terminal(100, 30)
        await pilot.pause()
        assert "grad norm" in text(pilot)


async def test_a_run_without_numbers_is_drawn() -> None:
    async with shown(RecordedFeed(LinkChanged(recorded.LIVE), RunsChanged(recorded.RUNS))) as pilot:
        assert isinstance(pilot.app.screen, RunScreen)
        await pilot.press("y", "plus", "left", "n", "enter", "s", "space", "r", "u")
        assert asked(pilot) == []


async def test_help_lists_every_key_of_the_table() -> None:
    async with shown(size=(120, 140)) as pilot:
        await pilot.press("question_mark")
        for key in KEYS:
            assert key.help in text(pilot)


async def test_the_palette_finds_actions_by_name() -> None:
    async with shown() as pilot:
        await pilot.press("ctrl+p", *"restart")
        await pilot.pause(0.5)
        await pilot.press("enter")
        await pilot.pause()
        assert isinstance(pilot.app.screen, ConfirmScreen)


async def test_the_theme_goes_round() -> None:
    async with shown() as pilot:
        names = []
        for _ in range(3):
            await pilot.press("T")
            names.append(pilot.app.theme)
        assert len(set(names)) == 3


async def test_escape_codes_in_names_are_harmless() -> None:
    async with shown(recorded.live_run(name="evil\x1b]0;owned\x07")) as pilot:
        assert "\x1b" not in text(pilot)
        assert "evil" in text(pilot)


async def test_clicking_selects_and_opens() -> None:
    async with shown() as pilot:
        await pilot.click(Listing, offset=(5, 2))
        await pilot.pause()
        assert isinstance(pilot.app.screen, TextScreen)


@pytest.mark.parametrize("key", ["q", "ctrl+c"])
async def test_quit_closes_the_feed(key: str) -> None:
    async with shown() as pilot:
        await pilot.press(key)
    assert pilot.app.return_code == 0


async def test_why_there_are_no_runs_is_told_to_the_end() -> None:
    reason = "cannot start a daemon: " + "for a long reason " * 6 + "at the end"
    feed = RecordedFeed(LinkChanged(Link("lost", recorded.ADDRESS, NOW - 12, reason)))
    async with shown(feed, size=(80, 24)) as pilot:
        assert "at the end" in text(pilot)

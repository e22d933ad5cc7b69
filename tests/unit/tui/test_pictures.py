"""Pictures of every screen at named sizes, on recorded values and a held clock.

After a wanted change: look at the report, then `pytest tests/unit/tui/test_pictures.py --snapshot-update`.
"""

from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import msgspec
import pytest
from textual.pilot import Pilot

from optwatch_tui.app import OptwatchApp
from optwatch_tui.feed import LinkChanged, RunChanged, RunsChanged
from optwatch_tui.model import Link
from tests.unit.tui import recorded
from tests.unit.tui.recorded import NOW, RecordedFeed

Compare = Callable[..., bool]

MADE_WITH = "8.2.8"
"""The version of Textual that drew the pictures: another one may draw the same screen in other words."""

pytestmark = pytest.mark.skipif(
    version("textual") != MADE_WITH, reason=f"the pictures were made with textual {MADE_WITH}"
)


def app(feed: RecordedFeed | None = None, **options: Any) -> OptwatchApp:
    return OptwatchApp(feed or recorded.live_run(), clock=lambda: NOW, **options)


async def settled(pilot: Pilot[None]) -> None:
    await pilot.pause()


@pytest.mark.parametrize("size", [(80, 24), (120, 40), (160, 50), (200, 60)], ids=lambda s: f"{s[0]}x{s[1]}")
def test_a_run(snap_compare: Compare, size: tuple[int, int]) -> None:
    assert snap_compare(app(), terminal_size=size, run_before=settled)


@pytest.mark.parametrize("presses", [1, 2], ids=["light", "contrast"])
def test_themes(snap_compare: Compare, presses: int) -> None:
    assert snap_compare(app(), press=["T"] * presses, terminal_size=(120, 40), run_before=settled)


@pytest.mark.parametrize("key", ["r", "l", "c", "a", "d", "u", "m"])
def test_questions(snap_compare: Compare, key: str) -> None:
    assert snap_compare(app(), press=[key], terminal_size=(80, 24), run_before=settled)


@pytest.mark.parametrize(
    "size",
    [(80, 24), (120, 40), pytest.param((200, 60), marks=pytest.mark.slow)],
    ids=lambda s: f"{s[0]}x{s[1]}",
)
@pytest.mark.parametrize(
    ("keys", "feed"),
    [
        (["t"], {}),
        (["t", "down", "down", "enter"], {}),
        (["t", "down", "down", "enter", "h"], {}),
        (["k"], {"world_size": 64, "ranks": recorded.ranks(64)}),
        (["k", *"ssss"], {"world_size": 1024, "ranks": recorded.ranks(1024)}),
        (["f"], {}),
        (["j"], {}),
        (["n", "enter"], {}),
        (["question_mark"], {}),
        (["space", "plus", "plus"], {}),
        (["escape"], {}),
        (["enter"], {}),
    ],
    ids=[
        "tensors",
        "tensor",
        "histogram",
        "ranks",
        "thousand_ranks",
        "findings",
        "actions",
        "finding",
        "help",
        "paused",
        "runs",
        "enlarged",
    ],
)
def test_other_screens(
    snap_compare: Compare, keys: list[str], feed: dict[str, object], size: tuple[int, int]
) -> None:
    shown = app(recorded.live_run(**feed))
    assert snap_compare(shown, press=keys, terminal_size=size, run_before=settled)


STATES = {
    "no_run": RecordedFeed(LinkChanged(recorded.LIVE), RunsChanged(())),
    "connecting": RecordedFeed(LinkChanged(Link("connecting", recorded.ADDRESS, NOW))),
    "lost": RecordedFeed(
        LinkChanged(Link("lost", recorded.ADDRESS, NOW - 90, f"no daemon answers at {recorded.ADDRESS}")),
        RunsChanged(recorded.RUNS),
        RunChanged(recorded.snapshot()),
    ),
    "stale": recorded.live_run(state="stale", control="0 of 4 ranks are connected"),
    "well": recorded.live_run(findings=(), commands=()),
    "many_runs": RecordedFeed(
        LinkChanged(recorded.LIVE),
        RunsChanged(
            tuple(
                msgspec.structs.replace(recorded.RUNS[2], run=f"{at:08x}", name=f"sweep-{at:03}")
                for at in range(100)
            )
        ),
    ),
    "many_findings": recorded.live_run(
        findings=tuple(msgspec.structs.replace(recorded.FINDINGS[1], id=at) for at in range(1, 60))
    ),
}


@pytest.mark.parametrize("state", STATES)
def test_states(snap_compare: Compare, state: str) -> None:
    assert snap_compare(app(STATES[state]), terminal_size=(80, 24), run_before=settled)


@pytest.mark.slow
@pytest.mark.parametrize("size", [(120, 40), (200, 60)], ids=lambda s: f"{s[0]}x{s[1]}")
@pytest.mark.parametrize("state", STATES)
def test_states_on_larger_screens(snap_compare: Compare, state: str, size: tuple[int, int]) -> None:
    assert snap_compare(app(STATES[state]), terminal_size=size, run_before=settled)


def test_read_only(snap_compare: Compare) -> None:
    assert snap_compare(app(readonly=True), terminal_size=(80, 24), run_before=settled)

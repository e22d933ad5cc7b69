"""Every screen in every state at every size: what must always hold, whatever there is to show."""

from collections.abc import Callable
from dataclasses import dataclass

import msgspec
import pytest
from rich.cells import cell_len
from textual.pilot import Pilot

from optwatch_tui.app import OptwatchApp
from optwatch_tui.feed import ComparedChanged, LinkChanged, RunChanged, RunsChanged
from optwatch_tui.model import Link, Snapshot
from optwatch_tui.screens.base import WatchScreen
from optwatch_tui.screens.run import RunScreen
from optwatch_tui.screens.runs import RunsScreen
from tests.unit.tui import recorded
from tests.unit.tui.recorded import ADDRESS, LIVE, NOW, RUNS, RecordedFeed
from tests.unit.tui.test_screens import text

SIZES = [(80, 24), (120, 40), (200, 60)]
LAST = 2_000


@dataclass(frozen=True)
class State:
    """What the app is told, and the words by which its screens show it. `run`: None where there is none."""

    link: Link
    run: Callable[[], Snapshot] | None
    words: tuple[str, ...]
    runs: int = 1
    readonly: bool = False
    on_runs: tuple[str, ...] = ()
    """Other words of the list of runs."""


def run(**changes: object) -> Callable[[], Snapshot]:
    return lambda: recorded.snapshot(LAST, ranks=recorded.ranks(64), world_size=64, **changes)


LOST = Link("lost", ADDRESS, NOW - 90, f"no daemon answers at {ADDRESS}")
STATES = {
    "live": State(LIVE, run(), ("live",)),
    "no run": State(LIVE, None, ("live",), runs=0),
    "connecting": State(Link("connecting", ADDRESS, NOW), None, ("connecting",), runs=0),
    "lost": State(LOST, run(), ("lost",), on_runs=("no daemon answers",)),
    "lost before it was there": State(LOST, None, ("no daemon answers",), runs=0),
    "stale": State(
        LIVE, run(state="stale", control="0 of 64 ranks are connected"), ("stale",), on_runs=("live",)
    ),
    "ended": State(LIVE, run(state="ended"), ("ended",), on_runs=("live",)),
    "read-only": State(LIVE, run(), ("read-only",), readonly=True),
    "a hundred runs": State(LIVE, run(), ("live",), runs=100),
    "nothing found": State(LIVE, run(findings=(), commands=()), ("live",)),
    "much found": State(
        LIVE,
        run(
            findings=tuple(msgspec.structs.replace(recorded.FINDINGS[1], id=at) for at in range(1, 60)),
            commands=tuple(msgspec.structs.replace(recorded.COMMANDS[1], id=str(at)) for at in range(60)),
        ),
        ("live",),
    ),
}
ON_RUN = {
    "run": (),
    "findings": ("f",),
    "finding": ("n", "enter"),
    "actions": ("j",),
    "tensors": ("t",),
    "tensor": ("t", "enter"),
    "histogram": ("t", "enter", "h"),
    "ranks": ("k",),
    "rank statistic": ("k", "s", "s"),
    "charts alone": ("tab", "enter"),
    "help": ("question_mark",),
    "question": ("l",),
    "any action": ("x",),
    "save": ("v",),
}
"""The keys that lead from the screen of a run to each."""
FAST = [("lost", (80, 24)), ("connecting", (80, 24)), ("read-only", (200, 60))]


@pytest.mark.parametrize(
    ("state", "size"),
    [
        pytest.param(state, size, marks=() if (state, size) in FAST else pytest.mark.slow)
        for state in STATES
        for size in SIZES
    ],
    ids=lambda value: value if isinstance(value, str) else f"{value[0]}x{value[1]}",
)
async def test_every_screen(state: str, size: tuple[int, int]) -> None:
    given = STATES[state]
    listed = tuple(
        msgspec.structs.replace(
            RUNS[0], run=f"{at:08x}", name=f"sweep-{at:03}", state="live" if at == 0 else "ended"
        )
        for at in range(given.runs)
    )
    feed = RecordedFeed(LinkChanged(given.link), RunsChanged(listed))
    app = OptwatchApp(feed, run="late", readonly=given.readonly, clock=lambda: NOW)
    async with app.run_test(size=size) as pilot:
        await pilot.pause()
        if given.run is not None:
            app.post_message(RunChanged(given.run()))
            await pilot.pause()
        for name, keys in ON_RUN.items():
            await pilot.press(*keys)
            await pilot.pause()
            check(pilot, f"{name}, {state}, {size}", given.words)
            await back(pilot)
        await pilot.press("escape")
        assert isinstance(app.screen, RunsScreen)
        check(pilot, f"runs, {state}, {size}", given.on_runs or given.words)
        if given.runs:
            app.compare(tuple(run.run for run in listed[:8]))
            app.post_message(ComparedChanged(recorded.compared(min(8, given.runs), LAST)))
            await pilot.pause()
            check(pilot, f"compare, {state}, {size}", ())


async def back(pilot: Pilot[None]) -> None:
    for _ in range(6):
        if isinstance(pilot.app.screen, RunScreen) and len(pilot.app.screen_stack) == 3:
            if not pilot.app.screen.back():
                return
            await pilot.pause()
        else:
            await pilot.press("escape")
    raise AssertionError(f"no way back:\n{text(pilot)}")


def check(pilot: Pilot[None], where: str, words: tuple[str, ...]) -> None:
    """What holds on every screen."""
    width, height = pilot.app.size
    seen = text(pilot)
    lines = seen.split("\n")
    what = f"{where}:\n{seen}"
    assert len(lines) == height, what
    assert {cell_len(line) for line in lines} == {width}, what
    assert all(line.isprintable() for line in lines), what
    assert sum(bool(line.strip()) for line in lines) > 2, what
    if isinstance(pilot.app.screen, WatchScreen):  # a question may cover any of it
        for line in lines:
            assert line.count("╭") == line.count("╮"), what
            assert line.count("╰") == line.count("╯"), what
        assert seen.count("╭") == seen.count("╰"), what
        assert "…" not in lines[0], what
        assert "…" not in lines[1].rpartition("proposed")[2], what
        for word in words:
            assert word in seen, what
    for wrong in ("None", "Traceback", "<function", "{'"):
        assert wrong not in seen, what

"""Starts and ends at any moment, while the feed says all that there is: nothing raises."""

import asyncio
import random
import threading
from pathlib import Path

import msgspec
import numpy as np
import pytest

from optwatch.wire.frames import SeriesBlocks
from optwatch.wire.requests import Act, Series
from optwatch_tui.app import OptwatchApp
from optwatch_tui.feed import (
    Answered,
    ComparedChanged,
    GlancesChanged,
    LinkChanged,
    Post,
    RunChanged,
    RunsChanged,
    SpreadChanged,
)
from optwatch_tui.model import Link
from tests.unit.tui import recorded
from tests.unit.tui.recorded import LIVE, NOW, RUNS, RecordedFeed

COMPARED = recorded.compared(2, 200)
LOST = LinkChanged(Link("lost", recorded.ADDRESS, NOW, "no daemon answers"))
KEYS = (
    *"tfjknNsopa",
    "enter",
    "escape",
    "h",
    "question_mark",
    "v",
    "l",
    "x",
    "slash",
    "tab",
    "space",
    "c",
    "T",
    "i",
)


class Chatter(RecordedFeed):
    """A feed that says everything twice a second, and names a further column each time."""

    def __init__(self) -> None:
        super().__init__()
        self.stopped = threading.Event()
        self.thread = threading.Thread(target=self.chat, daemon=True)

    def start(self, post: Post) -> None:
        self.post = post
        self.thread.start()

    def chat(self) -> None:
        model = recorded.model(200)
        step = 200
        act = Answered(Act(run="r", action="clip", args={}), None, "refused")
        while not self.stopped.is_set():
            step += 1
            delta, _, empty = recorded.delta(10 + step - 200, step, step)
            named = Series(columns=("loss", f"extra{step}"), reduced=False)
            rows = SeriesBlocks(np.array([step]), np.array([[2.0, 1.0]]), np.ones((1, 2), np.uint8))
            model.update(msgspec.structs.replace(delta, series=named), rows, empty)
            for message in (
                LinkChanged(LIVE),
                RunsChanged(RUNS),
                RunChanged(model.snapshot()),
                GlancesChanged(recorded.glances()),
                SpreadChanged(recorded.spread("embed.weight", 200, 5)),
                ComparedChanged(COMPARED),
                LOST,
                act,
            ):
                self.post(message)
            self.stopped.wait(0.5)

    def close(self) -> None:
        self.stopped.set()
        self.thread.join()


@pytest.mark.parametrize("cycles", [2, pytest.param(60, marks=[pytest.mark.slow, pytest.mark.timeout(900)])])
async def test_it_may_end_at_any_moment(cycles: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # some of the keys save a chart beside where it was started
    dice = random.Random(cycles)
    for _ in range(cycles):
        app = OptwatchApp(Chatter(), clock=lambda: NOW)
        async with app.run_test(size=(100, 30)) as pilot:
            for _ in range(dice.randrange(4)):
                app.simulate_key(dice.choice(KEYS))
                await asyncio.sleep(dice.random() * 0.1)
            if dice.random() < 0.5:
                await pilot.press("ctrl+c")
        assert app.return_code in (0, None)

"""What the terminal UI costs: `python -m tests.benchmarks.tui`.

CPU per tick of the run screen with 4 large charts × 2,000 points, 500 tensors and 64 ranks, at 160×50;
key to screen under that load; start to the first frame; memory.
"""

import asyncio
import resource
import statistics
import subprocess
import sys
import time

from optwatch_tui.app import OptwatchApp
from optwatch_tui.feed import LinkChanged, RunChanged, RunsChanged
from tests.unit.tui import recorded
from tests.unit.tui.recorded import RecordedFeed

TICKS = 60
POINTS = 2_000
LAYERS = 125
"""Of four tensors each."""


def _model() -> "recorded.RunModel":
    names, blocks = recorded.tensors(POINTS, layers=LAYERS)
    return recorded.model(last=POINTS, world_size=64, tensor_view=(names, blocks))


async def _measure() -> None:
    model = _model()
    feed = RecordedFeed(LinkChanged(recorded.LIVE), RunsChanged(recorded.RUNS), RunChanged(model.snapshot()))
    app = OptwatchApp(feed)
    async with app.run_test(size=(160, 50)) as pilot:
        await pilot.pause()
        ticks, keys = [], []
        for at in range(TICKS):
            model.update(*recorded.delta(11 + at, POINTS + 1 + at * 5, POINTS + 5 + at * 5))
            before = time.process_time()
            app.post_message(RunChanged(model.snapshot()))
            await pilot.pause()
            ticks.append(time.process_time() - before)
            before = time.perf_counter()
            await pilot.press("plus" if at % 2 == 0 else "minus")
            keys.append(time.perf_counter() - before)
        await pilot.press("t")
        tensors = []
        for at in range(TICKS):
            model.update(*recorded.delta(11 + TICKS + at, POINTS + 301 + at * 5, POINTS + 305 + at * 5))
            before = time.process_time()
            app.post_message(RunChanged(model.snapshot()))
            await pilot.pause()
            tensors.append(time.process_time() - before)
    tick = statistics.median(ticks)
    print(f"CPU per tick of the run screen   {tick * 1e3:6.1f} ms  ({tick * 4:.1%} of a core at 4 Hz)")
    print(f"CPU per tick of the tensors      {statistics.median(tensors) * 1e3:6.1f} ms")
    print(f"key to screen, median            {statistics.median(keys) * 1e3:6.1f} ms")
    print(
        f"memory, most                     {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:6.1f} MB"
    )


_FIRST_FRAME = """
import asyncio
from optwatch_tui.app import OptwatchApp
from optwatch_tui.daemon_feed import DaemonFeed
async def main():
    async with OptwatchApp(DaemonFeed("tcp://127.0.0.1:9")).run_test(size=(160, 50)) as pilot:
        await pilot.pause()
asyncio.run(main())
"""


def _start() -> float:
    before = time.perf_counter()
    subprocess.run([sys.executable, "-c", _FIRST_FRAME], check=True)  # noqa: S603
    return time.perf_counter() - before


if __name__ == "__main__":
    asyncio.run(_measure())
    starts = [_start() for _ in range(5)]
    print(f"start to the first frame and out {statistics.median(starts) * 1e3:6.0f} ms")

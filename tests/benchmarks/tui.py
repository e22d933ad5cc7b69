"""What the terminal UI costs: `python -m tests.benchmarks.tui`.

CPU per tick of the run screen with 4 large charts × 2,000 points, 500 tensors and 64 ranks, at 160×50;
key to screen under that load; start to the first frame; memory.
"""

import asyncio
import contextlib
import fcntl
import os
import pty
import resource
import select
import statistics
import struct
import sys
import termios
import time

from optwatch_tui.app import OptwatchApp
from optwatch_tui.feed import LinkChanged, RunChanged, RunsChanged
from optwatch_tui.model import RunModel
from tests.unit.tui import recorded
from tests.unit.tui.recorded import RecordedFeed

TICKS = 60
POINTS = 2_000
LAYERS = 125
"""Of four tensors each."""


def loaded() -> RunModel:
    """A run with everything that the benchmark asks for."""
    names, blocks = recorded.tensors(POINTS, layers=LAYERS)
    return recorded.model(last=POINTS, world_size=64, tensor_view=(names, blocks))


async def _measure() -> None:
    model = loaded()
    feed = RecordedFeed(LinkChanged(recorded.LIVE), RunsChanged(recorded.RUNS), RunChanged(model.snapshot()))
    app = OptwatchApp(feed)
    async with app.run_test(size=(160, 50)) as pilot:
        await pilot.pause()
        ticks = []
        for at in range(TICKS):
            model.update(*recorded.delta(11 + at, POINTS + 1 + at * 5, POINTS + 5 + at * 5))
            before = time.process_time()
            app.post_message(RunChanged(model.snapshot()))
            await pilot.pause()
            ticks.append(time.process_time() - before)
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
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"memory, most                     {memory:6.1f} MB")


_CHILD = """
from optwatch_tui.app import OptwatchApp
from optwatch_tui.feed import LinkChanged, RunChanged, RunsChanged
from tests.benchmarks.tui import loaded
from tests.unit.tui import recorded
run = RunChanged(loaded().snapshot())
OptwatchApp(recorded.RecordedFeed(LinkChanged(recorded.LIVE), RunsChanged(recorded.RUNS), run)).run()
"""


class _Terminal:
    """The app in a pseudo-terminal, as a user has it."""

    def __init__(self) -> None:
        self.started = time.perf_counter()
        self._pid, self._end = pty.fork()
        if self._pid == 0:
            os.environ.update(TERM="xterm-256color", COLUMNS="160", LINES="50")
            os.execv(sys.executable, [sys.executable, "-c", _CHILD])
        fcntl.ioctl(self._end, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 160, 0, 0))

    def seen(self, wanted: bytes, most: float = 20.0) -> float:
        """When `wanted` was written."""
        text = b""
        end = time.perf_counter() + most
        while wanted not in text:
            assert time.perf_counter() < end, text[-500:]
            if select.select([self._end], [], [], 0.1)[0]:
                text += os.read(self._end, 1 << 16)
        return time.perf_counter()

    def quiet(self, seconds: float = 0.3) -> None:
        """Read until nothing more comes."""
        while select.select([self._end], [], [], seconds)[0]:
            os.read(self._end, 1 << 16)

    def key_to_screen(self, key: bytes) -> float:
        self.quiet()
        before = time.perf_counter()
        os.write(self._end, key)
        select.select([self._end], [], [], 5)
        os.read(self._end, 1 << 16)
        return time.perf_counter() - before

    def close(self) -> None:
        os.write(self._end, b"q")
        with contextlib.suppress(OSError):
            self.quiet()
        os.waitpid(self._pid, 0)
        os.close(self._end)


def _in_a_terminal() -> None:
    starts, keys = [], []
    for _ in range(3):
        terminal = _Terminal()
        starts.append(terminal.seen(b"gpt-small") - terminal.started)
        keys += [terminal.key_to_screen(key) for key in (b"+", b"-", b"y", b"y") * 3]
        terminal.close()
    print(f"start to the first frame         {statistics.median(starts) * 1e3:6.0f} ms")
    print(f"key to screen, median            {statistics.median(keys) * 1e3:6.0f} ms")


if __name__ == "__main__":
    asyncio.run(_measure())
    _in_a_terminal()

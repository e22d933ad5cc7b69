"""What the terminal UI costs: `python -m tests.benchmarks.tui [--json PATH]`.

4 charts × 2,000 points, 500 tensors and 64 ranks at 4 Hz, at 160×50, with the cursor and smoothing on: CPU of
a tick; key to screen; start to the first frame; memory; and a day of history in a real daemon until its run
is shown. Goals: 12 % of a core, 50 ms, 1 s, 200 MB, 1 s. A day is a lot to take in: what is there after a
minute and a half has to do, and its length is told.
"""

import argparse
import asyncio
import contextlib
import fcntl
import json
import os
import pty
import select
import statistics
import struct
import sys
import tempfile
import termios
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import msgspec
import numpy as np
from textual.pilot import Pilot

from optwatch.client import Client
from optwatch.wire.frames import TensorBlocks
from optwatch_tui.app import OptwatchApp
from optwatch_tui.daemon_feed import DaemonFeed
from optwatch_tui.feed import LinkChanged, RunChanged, RunsChanged
from optwatch_tui.model import RunModel
from tests.daemons import DaemonProcess
from tests.peers import AgentPeer
from tests.unit.tui import recorded
from tests.unit.tui.recorded import RecordedFeed

TICKS = 60
HERTZ = 4
POINTS = 2_000
LAYERS = 125
"""Of four tensors each."""
DAY = 864_000
"""Steps of a day at 10 a second."""
MOST_SECONDS = 90
"""For sending them."""
SIZE = (160, 50)


@dataclass(frozen=True)
class Figure:
    """One measured number. `goal`: the most that it should be, None for what only explains another one."""

    name: str
    value: float
    unit: str
    goal: float | None


def loaded() -> RunModel:
    """A run with everything that the benchmark asks for."""
    names, blocks = recorded.tensors(POINTS, layers=LAYERS)
    return recorded.model(last=POINTS, world_size=64, tensor_view=(names, blocks))


async def _ticks(pilot: Pilot[None], model: RunModel, seq: int, step: int) -> float:
    """Median CPU seconds of a tick, from the delta with a sample of all tensors to the screen, of all
    threads."""
    spent = []
    for at in range(TICKS):
        delta, rows, _ = recorded.delta(seq + at, step + 1 + at * 5, step + 5 + at * 5)
        names, two = recorded.tensors(step + 5 + at * 5, layers=LAYERS, samples=2)
        newest = TensorBlocks(two.step[1:], two.stats[1:], two.counts[1:])
        delta = msgspec.structs.replace(delta, tensors=names)
        before = time.process_time()
        model.update(delta, rows, newest)
        pilot.app.post_message(RunChanged(model.snapshot()))
        await pilot.pause()
        spent.append(time.process_time() - before)
    return statistics.median(spent)


async def _cpu() -> list[Figure]:
    model = loaded()
    feed = RecordedFeed(LinkChanged(recorded.LIVE), RunsChanged(recorded.RUNS), RunChanged(model.snapshot()))
    app = OptwatchApp(feed)
    async with app.run_test(size=SIZE) as pilot:
        await pilot.pause()
        plain = await _ticks(pilot, model, 11, POINTS)
        await pilot.press("e", "i", *["less_than_sign"] * 2)
        full = await _ticks(pilot, model, 11 + TICKS, POINTS + 5 * TICKS)
        await pilot.press("escape", "t")
        tensors = await _ticks(pilot, model, 11 + 2 * TICKS, POINTS + 10 * TICKS)
    return [
        Figure("run screen, share of a core", full * HERTZ * 100, "%", 12),
        Figure("  without cursor and smoothing", plain * HERTZ * 100, "%", None),
        Figure("tensors, share of a core", tensors * HERTZ * 100, "%", 12),
    ]


_CHILD = """
from optwatch_tui.app import OptwatchApp
from optwatch_tui.feed import LinkChanged, RunChanged, RunsChanged
from tests.benchmarks.tui import loaded
from tests.unit.tui import recorded
run = RunChanged(loaded().snapshot())
OptwatchApp(recorded.RecordedFeed(LinkChanged(recorded.LIVE), RunsChanged(recorded.RUNS), run)).run()
"""
_REAL = "import optwatch_tui; optwatch_tui.run({address!r}, watch={run!r})"


class _Terminal:
    """The app in a pseudo-terminal, as a user has it."""

    def __init__(self, program: str) -> None:
        self.started = time.perf_counter()
        self.pid, self._end = pty.fork()
        if self.pid == 0:
            os.environ.update(TERM="xterm-256color", COLUMNS=str(SIZE[0]), LINES=str(SIZE[1]))
            os.execv(sys.executable, [sys.executable, "-c", program])
        fcntl.ioctl(self._end, termios.TIOCSWINSZ, struct.pack("HHHH", SIZE[1], SIZE[0], 0, 0))

    def seen(self, wanted: bytes, most: float = 60.0) -> float:
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

    def memory(self) -> float:
        """Most MB that the process has held so far."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) / 1024

    def cpu(self) -> float:
        """CPU seconds that the process has taken so far."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def close(self) -> None:
        os.write(self._end, b"q")
        with contextlib.suppress(OSError):
            self.quiet()
        os.waitpid(self.pid, 0)
        os.close(self._end)


def _in_a_terminal() -> list[Figure]:
    starts, cpus, keys, memory = [], [], [], 0.0
    for _ in range(3):
        terminal = _Terminal(_CHILD)
        starts.append(terminal.seen(b"gpt-small") - terminal.started)
        cpus.append(terminal.cpu())
        terminal.key_to_screen(b"e")
        terminal.key_to_screen(b"i")
        keys += [terminal.key_to_screen(key) for key in (b"+", b"-", b"<", b">", b"y", b"y") * 3]
        memory = max(memory, terminal.memory())
        terminal.close()
    return [
        Figure("key to screen, median", statistics.median(keys) * 1e3, "ms", 50),
        Figure("start to the first frame", statistics.median(starts) * 1e3, "ms", 1_000),
        Figure("  CPU until then, recorded run and imports", statistics.median(cpus) * 1e3, "ms", None),
        Figure("memory, most", memory, "MB", 200),
    ]


def _day() -> list[Figure]:
    """A day's run in a real daemon's store, opened by a TUI that has just started."""
    with tempfile.TemporaryDirectory(prefix="optwatch-bench-") as directory:
        places = {
            "XDG_STATE_HOME": f"{directory}/state",
            "XDG_RUNTIME_DIR": f"{directory}/run",
            "XDG_CONFIG_HOME": f"{directory}/config",
        }
        for place in places.values():
            Path(place).mkdir(mode=0o700)
        os.environ.update(places)
        daemon = DaemonProcess(Path(directory) / "daemon", "--store", f"{directory}/store").start()
        try:
            run, steps = _send_a_day(daemon.address)
            _progress(f"{steps:,} steps are in the store; opening them")
            with Client(daemon.address) as client:
                before = time.perf_counter()
                view, series, _ = client.view(run, points=8_000)
                answered = time.perf_counter() - before
                assert view.status.step == steps
                assert series.step[0] == 1
            daemon.restart()  # nothing of it is in memory any more
            with Client(daemon.address, timeout=60) as client:
                before = time.perf_counter()
                client.view(run, points=8_000)
                cold = time.perf_counter() - before
            opened = []
            for _ in range(3):
                terminal = _Terminal(_REAL.format(address=daemon.address, run=run))
                opened.append(terminal.seen(f"{steps:,}".encode()) - terminal.started)
                memory = terminal.memory()
                terminal.close()
            shown = asyncio.run(_open(daemon.address, run))
        finally:
            daemon.kill()
    return [
        Figure("steps of history in the daemon", steps, "", None),
        Figure("  share of a day at 10 a second", 100 * steps / DAY, "%", None),
        Figure("a day of history opens, from the list", shown * 1e3, "ms", 1_000),
        Figure("  from the command line, start included", statistics.median(opened) * 1e3, "ms", None),
        Figure("  the daemon's answer alone", answered * 1e3, "ms", None),
        Figure("  the same after the daemon's restart", cold * 1e3, "ms", None),
        Figure("memory with a day of history", memory, "MB", 200),
    ]


async def _open(address: str, run: str) -> float:
    """Seconds from choosing the run in the list until its charts are drawn."""
    app = OptwatchApp(DaemonFeed(address))
    async with app.run_test(size=SIZE) as pilot:
        await _until(pilot, lambda: app.link.state == "live" and app.runs)
        before = time.perf_counter()
        app.open_run(run)
        await _until(pilot, lambda: app.snapshot is not None)
        await pilot.pause()
        return time.perf_counter() - before


async def _until(pilot: Pilot[None], true: Callable[[], object]) -> None:
    end = time.perf_counter() + 60
    while not true():
        assert time.perf_counter() < end
        await pilot.pause(0.005)


def _send_a_day(address: str) -> tuple[str, int]:
    """864,000 steps, or as many as there is time for, by a peer that speaks for an agent: its run, steps."""
    peer = AgentPeer(address, name="a-day", tensors=6)
    peer.greet()
    rng = np.random.default_rng(0)
    rows, started, told = 4_000, time.perf_counter(), 0.0
    while peer.step < DAY and (spent := time.perf_counter() - started) < MOST_SECONDS:
        step = np.arange(peer.step + 1, peer.step + rows + 1)
        values = np.empty((rows, 4))
        values[:, 0] = 2 + 3 * np.exp(-step / 200_000) + 0.05 * rng.normal(size=rows)
        values[:, 1] = np.exp(0.3 * rng.normal(size=rows))
        values[:, 2:] = 0.1, 1e-3
        peer.batch(values, sampled=peer.step % 48_000 == 0)
        peer.beat()
        while len(peer.held) > 4:
            peer.receive(0.2)
        if spent - told >= 10:
            told = spent
            _progress(f"sent {peer.step:,} of {DAY:,} steps in {spent:.0f} s")
    peer.wait_acked()
    peer.bye()
    peer.wait_acked()
    peer.close()
    return peer.run, peer.step


def _progress(text: str) -> None:
    print(f"… {text}", file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the numbers there too")
    options = parser.parse_args()
    figures = []
    for what, measure in (
        ("the CPU of a tick", lambda: asyncio.run(_cpu())),
        ("start, keys and memory", _in_a_terminal),
        ("a day of history", _day),
    ):
        _progress(what)
        found = measure()
        figures += found
        _print(found)
    if options.json is not None:
        options.json.write_text(json.dumps([asdict(figure) for figure in figures], indent=1))


def _print(figures: list[Figure]) -> None:
    for figure in figures:
        goal = "" if figure.goal is None else f"goal {figure.goal:g}"
        over = "  OVER" if figure.goal is not None and figure.value > figure.goal else ""
        print(f"{figure.name:<44}{figure.value:>9.1f} {figure.unit:<3} {goal}{over}", flush=True)


if __name__ == "__main__":
    main()

"""`make pictures`: the README's pictures, taken of the terminal UI and of TensorBoard on a real run.

A real daemon in a directory of its own, the demo's training with its learning-rate spike, and the app with
the same keys that a user presses. Nothing in them is made up; another run looks a little different.
"""

import asyncio
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import resvg_py
from PIL import Image
from textual.pilot import Pilot

from optwatch_tui.app import OptwatchApp
from optwatch_tui.daemon_feed import DaemonFeed
from optwatch_tui.model import Snapshot
from tests.daemons import DaemonProcess
from tests.tensorboards import CHROMIUM, page_of, show_charts, tensorboard

TARGET = Path(__file__).parent.parent / ".github" / "pictures"
SIZE = (120, 36)
PATIENCE = 300
"""Seconds after which something does not come."""
STEPS = 2_400
AFTER = 500
"""Steps to be seen after the last action."""


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="optwatch-pictures-") as name:
        directory = Path(name)
        for variable in [variable for variable in os.environ if variable.startswith("OPTWATCH_")]:
            del os.environ[variable]
        for variable in ("CONFIG_HOME", "STATE_HOME", "RUNTIME_DIR"):
            os.environ[f"XDG_{variable}"] = str(directory / variable.lower())
        boards = directory / "runs"
        daemon = DaemonProcess(directory / "daemon", "--mode", "advise", "--tensorboard", str(boards)).start()
        command = [sys.executable, "-m", "optwatch_agent.demo", "--fault", "lr_spike"]
        command += ["--steps", str(STEPS), "--pace", "0.012", "--watch", "denoiser"]
        training = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            asyncio.run(take())
        finally:
            training.kill()
            training.wait()
            daemon.stop()
        asyncio.run(take_charts(boards, directory))


async def take() -> None:
    """Wait for the fault, approve what is proposed, and keep the screens on the way."""
    app = OptwatchApp(DaemonFeed())
    async with app.run_test(size=SIZE) as pilot:

        def now() -> Snapshot | None:
            return app.snapshot

        await until(pilot, lambda: (s := now()) is not None and s.proposals, "a proposal")
        await pilot.press("a")
        await pilot.pause(0.3)
        keep(app, "approve", "optwatch: what the proposed action would do")
        await pilot.press("y")
        while True:  # what is proposed after that, too
            await until(pilot, lambda: (s := now()) is not None and not s.under_way, "the action")
            snapshot = now()
            assert snapshot is not None
            if snapshot.proposals:
                await pilot.press("a", "y")
                await pilot.pause(0.5)
                continue
            last = max((c.step or 0 for c in snapshot.commands), default=0)
            if snapshot.status.step >= min(last + AFTER, STEPS - 50):
                break
            await pilot.pause(0.2)
        await pilot.pause(1.0)
        keep(app, "run", "optwatch: a divergence, the restart that was approved, and its outcome")
        await pilot.press("f")
        await pilot.pause(1.0)
        keep(app, "findings", "optwatch: the finding in full")


async def take_charts(boards: Path, home: Path) -> None:
    """The same run in TensorBoard."""
    if CHROMIUM is None or find_spec("playwright") is None:
        print("no picture of TensorBoard: it needs Chromium, and playwright (pip install playwright)")
        return
    path = TARGET / "tensorboard.png"
    with tensorboard(boards, home) as address:
        async with page_of(address, size=(1_240, 760)) as page:
            await show_charts(page)
            await page.wait_for_timeout(3_000)  # until all charts are there and nothing moves
            await page.screenshot(path=str(path))
    with Image.open(path) as drawn:
        drawn.convert("RGB").quantize(64).save(path, optimize=True)
    print(path, f"{path.stat().st_size / 1024:.0f} kB")


async def until(pilot: Pilot[None], true: Callable[[], object], what: str) -> None:
    end = time.monotonic() + PATIENCE
    while not true():
        if time.monotonic() > end:
            raise SystemExit(f"{what} did not come")
        await pilot.pause(0.1)


def keep(app: OptwatchApp, name: str, title: str) -> None:
    TARGET.mkdir(parents=True, exist_ok=True)
    path = TARGET / f"{name}.png"
    # The font would be fetched from a server: the one at hand is as good.
    drawn = re.sub(r"@font-face\s*\{[^}]*\}", "", app.export_screenshot(title=title))
    drawn = drawn.replace("Fira Code", "DejaVu Sans Mono")
    path.write_bytes(bytes(resvg_py.svg_to_bytes(svg_string=drawn, monospace_family="DejaVu Sans Mono")))
    print(path, f"{path.stat().st_size / 1024:.0f} kB")


if __name__ == "__main__":
    main()

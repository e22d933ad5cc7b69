"""The main job, by real processes: a training, its daemon, the TUI, a command, TensorBoard."""

import asyncio
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from optwatch.client import Client
from optwatch.wire.actions import Command
from optwatch.wire.requests import RunStatus
from tests.daemons import DaemonProcess
from tests.trainings import GUARD, Training


@pytest.fixture
def watched(home: Path) -> Iterator[DaemonProcess]:
    """A daemon that also writes TensorBoard files."""
    process = DaemonProcess(home / "daemon", "--tensorboard", str(home / "tensorboard")).start()
    yield process
    log = process.text()
    process.kill()
    print(log)


def eventually(there: Callable[[], bool]) -> None:
    """Wait for something to become true."""
    limit = time.monotonic() + GUARD
    while not there():
        assert time.monotonic() < limit, "it never came"
        time.sleep(0.05)


def only_run(client: Client) -> RunStatus | None:
    runs = client.runs()
    return client.status(runs[0].run) if runs else None


def reached(client: Client, step: int) -> bool:
    status = only_run(client)
    return status is not None and status.step >= step


@pytest.mark.timeout(4 * GUARD)
async def test_training_daemon_tui_command_and_tensorboard(home: Path, watched: DaemonProcess) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from optwatch_tui.app import OptwatchApp
    from optwatch_tui.daemon_feed import DaemonFeed

    end = home / "end"
    training = Training(
        "--steps",
        "300",
        "--pause",
        "0.01",
        "--until",
        str(end),
        "--watch",
        "main-job",
        daemon=watched.address,
    )
    try:
        with watched.client() as client:
            await asyncio.to_thread(eventually, lambda: reached(client, 50))
            app = OptwatchApp(DaemonFeed(watched.address))
            async with app.run_test(size=(120, 40)) as pilot:
                await _wait(pilot, lambda: app.snapshot is not None)
                await pilot.press("l")
                await pilot.pause()
                await pilot.press("y")
                await asyncio.to_thread(eventually, lambda: bool(_applied(client)))
                await _wait(
                    pilot,
                    lambda: (
                        app.snapshot is not None
                        and any(command.state == "applied" for command in app.snapshot.commands)
                    ),
                )
            (command,) = _applied(client)
            assert command.action == "scale_lr"
            assert command.ranks_applied == (0,)
            assert command.step is not None
            applied_at = command.step
            await asyncio.to_thread(eventually, lambda: reached(client, max(300, applied_at + 50)))
            end.touch()
            result = await asyncio.to_thread(training.result)
            await asyncio.to_thread(
                eventually, lambda: (status := only_run(client)) is not None and status.state == "ended"
            )
            status = only_run(client)
            assert status is not None
            assert status.steps_recorded == status.step == result["steps"]
            assert status.gaps == ()
            assert status.lr_scale == command.args["factor"]
            _, blocks = client.series(status.run, columns=("loss", "lr", "lr_scale"))
            loss, lr, scale = blocks.values.T
            assert np.isfinite(loss).all()
            assert (lr == 1e-3).all(), "the scheduled LR is as the script set it"
            scaled = blocks.logged[:, 2] == 1
            assert blocks.step[scaled].min() == applied_at, "in force from the very step on"
            assert (scale[scaled] == command.args["factor"]).all()
    finally:
        training.kill()
    assert watched.stop() == 0

    (directory,) = {path.parent for path in (home / "tensorboard").rglob("events.out.tfevents.*")}
    events = EventAccumulator(str(directory), size_guidance={"scalars": 0})
    events.Reload()
    logged = events.Scalars("loss/train")
    assert [event.step for event in logged] == blocks.step.tolist()
    assert np.allclose([event.value for event in logged], loss, rtol=1e-6)


@pytest.mark.timeout(4 * GUARD)
def test_the_daemon_is_killed_in_mid_run(daemon: DaemonProcess) -> None:
    steps = ("--steps", "900")
    plain = Training(*steps).result()
    training = Training(*steps, "--pause", "0.005", "--watch", "survivor", daemon=daemon.address)
    try:
        with daemon.client() as client:
            eventually(lambda: reached(client, 200))
        daemon.kill()
        before = time.monotonic()
        while time.monotonic() < before + 0.5:  # some steps pass without any daemon
            assert training.process.poll() is None
            time.sleep(0.05)
        daemon.start()
        result = training.result()
        with daemon.client() as client:
            eventually(lambda: (status := only_run(client)) is not None and status.state == "ended")
            assert len(client.runs()) == 1
            status = only_run(client)
            assert status is not None
            _, blocks = client.series(status.run, columns=("loss",))
    finally:
        training.kill()
    assert result == plain, "watching changes no bit of the parameters"
    assert status.steps_recorded == 900
    assert status.gaps == ()
    assert blocks.step.tolist() == list(range(1, 901))


def _applied(client: Client) -> list[Command]:
    status = only_run(client)
    return [c for c in client.commands(status.run) if c.state == "applied"] if status else []


async def _wait(pilot: object, there: Callable[[], bool]) -> None:
    limit = time.monotonic() + GUARD
    while not there():
        assert time.monotonic() < limit, "it never came"
        await asyncio.sleep(0.05)

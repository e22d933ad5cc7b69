"""Start trainings under torchrun, talk to the daemon about them, end them."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from optwatch.client import Client
from optwatch.wire.actions import Command
from tests.daemons import GUARD

Result = TypeVar("Result")

START = 3 * GUARD
"""Seconds that several ranks may take to import torch on a machine that is busy."""


class Job:
    """A script of ours, `tests/distributed/train.py` if not told otherwise, on ranks of this machine."""

    def __init__(
        self,
        directory: Path,
        ranks: int,
        *options: str,
        launcher: tuple[str, ...] = (),
        daemon: str | None = None,
        script: str = "train",
    ) -> None:
        self.directory = directory
        self.ranks = ranks
        directory.mkdir(exist_ok=True)
        self.log = directory / "log"
        with self.log.open("w") as out:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
                    *(f"--nproc-per-node={ranks}", "--monitor-interval=0.1", *launcher),
                    *("-m", f"tests.distributed.{script}", str(directory), *options),
                ],
                env={**os.environ, "OMP_NUM_THREADS": "1", **({"OPTWATCH_DAEMON": daemon} if daemon else {})},
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def __enter__(self) -> "Job":
        return self

    def __exit__(self, *_: object) -> None:
        end(self.process)
        print(self.text())  # pytest shows it with a failure only

    def text(self) -> str:
        return self.log.read_text()

    def end(self) -> list[dict[str, Any]]:
        """Let the training end by itself; what the ranks end with."""
        (self.directory / "stop").touch()
        assert self.process.wait(2 * GUARD) == 0, self.text()
        return [result for rank in range(self.ranks) if (result := self.result(rank)) is not None]

    def result(self, rank: int) -> dict[str, Any] | None:
        """What one rank ended with, None where it did not come to its end."""
        path = self.directory / f"rank-{rank}.json"
        return json.loads(path.read_text()) if path.exists() else None


def end(process: "subprocess.Popen[bytes]") -> None:
    """End a launcher, by SIGTERM first, so that it ends its ranks: they are in sessions of their own."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(GUARD)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@contextmanager
def started(*commands: list[str], log: Path, **environment: str) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Commands in sessions of their own, killed at the end with all that they began."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    processes = []
    try:
        with log.open("ab") as out:
            for each in commands:
                processes.append(
                    subprocess.Popen(
                        each,
                        env={**os.environ, "PATH": path, "OMP_NUM_THREADS": "1", **environment},
                        stdout=out,
                        stderr=subprocess.STDOUT,
                        start_new_session=True,
                    )
                )
        yield processes
    finally:
        for process in processes:
            end(process)
        print(log.read_text(errors="replace"))  # pytest shows it with a failure only


def until(client: Client, ask: Callable[[Client], Result | None], what: str, guard: float = GUARD) -> Result:
    """Ask the daemon until there is an answer."""
    end = time.monotonic() + guard
    while time.monotonic() < end:
        if (found := ask(client)) is not None:
            return found
        time.sleep(0.05)
    raise AssertionError(f"{what} did not come: {[client.status(run.run) for run in client.runs()]}")


def the_run(client: Client) -> str:
    """The id of the one run, armed or not."""
    return until(client, lambda c: c.runs()[0].run if c.runs() else None, "a run", START)


def armed_run(client: Client) -> str:
    """The id of the one run, once it can be commanded."""

    def ask(client: Client) -> str | None:
        runs = client.runs()
        return runs[0].run if len(runs) == 1 and client.status(runs[0].run).control == "armed" else None

    return until(client, ask, "an armed run", guard=START)


AGAIN = 2
"""Times that a command is given again which a busy machine let expire, on all ranks alike."""


def command(client: Client, run: str, action: str, args: dict[str, Any]) -> Command:
    """Command a run and wait until that is over; again, and said, where it expired."""
    for _ in range(AGAIN):
        done = _command_once(client, run, action, args)
        if done.state != "expired":
            return done
        print(f"{action} expired, commanded again: {done.reason}")
    return _command_once(client, run, action, args)


def _command_once(client: Client, run: str, action: str, args: dict[str, Any]) -> Command:
    number = client.act(run, action, args, "test").id

    def ask(client: Client) -> Command | None:
        (found,) = [c for c in client.commands(run) if c.id == number]
        return found if found.state not in ("sent", "scheduled") else None

    return until(client, ask, f"the end of {action}")


def first_logged(client: Client, run: str, rank: int, column: str) -> int | None:
    """The first step at which a rank logged a column, None if it did not yet."""
    series, blocks = client.series(run, rank=rank)
    if column not in series.columns:
        return None
    logged = blocks.step[blocks.logged[:, series.columns.index(column)] != 0]
    return int(logged[0]) if len(logged) else None

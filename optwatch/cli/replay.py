"""`optwatch replay RUN|PATH`: a recorded run or a log through the live daemon."""

import argparse
import math
import os
import signal
import socket
import sys
import time
import uuid
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from optwatch.cli.connect import connected
from optwatch.cli.diagnose import add_columns, wanted_columns
from optwatch.cli.errors import Wrong
from optwatch.cli.recording import LOG_PACE, PAUSE, Part, Recording, Track, cut, find_recording
from optwatch.cli.show import plain
from optwatch.client import Client, DaemonError, DaemonUnreachable
from optwatch.client.local import start_daemon
from optwatch.client.sender import Sender
from optwatch.wire.limits import MAX_NAME, PROTOCOL
from optwatch.wire.messages import Hello

HELP = "Send a recorded run or a log through the daemon again, as a new run that nothing can command."
EXAMPLE = "optwatch replay digits --speed 20"

TURN = 0.1
"""Seconds between two looks at what is due."""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "what",
        metavar="RUN|PATH",
        help="a log file, TensorBoard directory or store, else a run's name or the beginning of its id",
    )
    parser.add_argument(
        "--speed",
        type=_speed,
        default=1.0,
        metavar="X",
        help=f"times the recorded pace (1), where a pause is {PAUSE:g} s or ten usual steps at most; CSV and "
        f"JSON count as {LOG_PACE:g} points a second; max or 0: as fast as the daemon takes it",
    )
    parser.add_argument(
        "--store",
        metavar="DIR",
        type=Path,
        help="the store that has RUN (default: the running daemon's, else this user's)",
    )
    add_columns(parser)


def run(args: argparse.Namespace) -> int:
    recording = find_recording(args.what, args.store, wanted_columns(args.column))
    for note in recording.notes:
        _say(f"note: {note}")
    _have_daemon()
    hello = _hello(recording)
    try:
        sender = Sender(hello)
        try:
            with _interruptible() as interrupted:
                sent = play(recording, sender, args.speed, interrupted)
                sender.finish("interrupted" if interrupted else "done")
        finally:
            sender.close()
    except DaemonError as error:
        raise Wrong(str(error)) from None
    with connected(hello.run) as client:
        if (taken := client.status(hello.run).steps_recorded) != sent:
            raise Wrong(f"the daemon has {taken:,} of the {sent:,} steps that were sent: see its log")
    print(f"{plain(hello.name)}: {sent:,} of {recording.steps:,} steps, run {hello.run}")
    return 130 if interrupted else 0


def play(recording: Recording, sender: Sender, speed: float, interrupted: list[int]) -> int:
    """Send it all, each step when it is due, until something is put into `interrupted`; the steps sent.

    Only those of the first optimizer are counted.
    """
    reels = [Reel(track) for track in recording.tracks]
    events = deque(recording.events)
    began = time.monotonic()
    progress = Progress(recording.steps)
    while not interrupted:
        due = (time.monotonic() - began) * speed if speed < math.inf else math.inf
        parts = [(reel, part) for reel in reels if (part := reel.take(due)) is not None]
        for reel, (schema, blocks) in parts:
            # A mark goes before its step, so that detectors know of it when the step comes.
            while events and reel is reels[0] and events[0].step <= blocks.step[-1]:
                sender.event(events.popleft())
            sender.batch(schema, blocks)
        progress(reels[0].at)
        if all(reel.ended for reel in reels):
            while events:
                sender.event(events.popleft())
            break
        if not parts or max(reel.behind(due) for reel in reels) < TURN * speed:
            sender.idle(TURN)
    progress.end()
    return reels[0].at


class Reel:
    """A track as far as it was sent."""

    def __init__(self, track: Track) -> None:
        self.at = 0
        """Rows that were taken."""
        self._due = track.due
        self._parts = track.parts()
        self._rest: Part | None = None

    @property
    def ended(self) -> bool:
        return self.at == len(self._due)

    def behind(self, due: float) -> float:
        """Seconds of the recording that were due before `due` and are not taken yet."""
        return 0.0 if self.ended else due - float(self._due[self.at])

    def take(self, due: float) -> Part | None:
        """What comes next, at most up to what is due by then; None where nothing is."""
        rows = int(np.searchsorted(self._due, due, side="right")) - self.at
        if rows <= 0:
            return None
        schema, blocks = self._rest or next(self._parts)
        self._rest = None
        if rows < len(blocks.step):
            blocks, rest = cut(blocks, rows)
            self._rest = schema, rest
        self.at += len(blocks.step)
        return schema, blocks


class Progress:
    """How many steps were sent, on standard error where that is a terminal."""

    def __init__(self, steps: int) -> None:
        self._steps = steps
        self._told = -1
        self._on = sys.stderr.isatty()

    def __call__(self, sent: int) -> None:
        if self._on and sent != self._told:
            self._told = sent
            print(f"\r{sent:,} of {self._steps:,} steps", end="", file=sys.stderr, flush=True)

    def end(self) -> None:
        if self._on:
            print(file=sys.stderr)


def _hello(recording: Recording) -> Hello:
    return Hello(
        protocol=PROTOCOL,
        session=uuid.uuid4().hex,
        run=uuid.uuid4().hex,
        name=f"replay of {recording.name}"[:MAX_NAME],
        incarnation=0,
        job="",
        rank=0,
        world_size=1,
        host=socket.gethostname()[:MAX_NAME],
        pid=os.getpid(),
        started=time.time(),
        optimizers=recording.optimizers,
        allow=(),
        control="replayed",
        config=dict(recording.config),
        versions=dict(recording.versions),
    )


def _have_daemon() -> None:
    """The daemon that answers, else a local one that is started, unless another one was named."""
    try:
        Client().close()
    except DaemonUnreachable as error:
        if os.environ.get("OPTWATCH_DAEMON"):
            raise Wrong(str(error)) from None
        try:
            start_daemon()
        except DaemonUnreachable as failed:
            raise Wrong(str(failed)) from None
    except DaemonError as error:
        raise Wrong(str(error)) from None


@contextmanager
def _interruptible() -> Iterator[list[int]]:
    """A list that Ctrl-C puts something into; the second time it interrupts at once."""
    caught: list[int] = []

    def catch(number: int, frame: object) -> None:
        if caught:
            raise KeyboardInterrupt
        caught.append(number)

    former = signal.signal(signal.SIGINT, catch)
    try:
        yield caught
    finally:
        signal.signal(signal.SIGINT, former)


def _speed(text: str) -> float:
    try:
        value = math.inf if text == "max" else float(text)
    except ValueError:
        value = math.nan
    if not value >= 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no speed: a number such as 20, or max")
    return value or math.inf


def _say(text: str) -> None:
    print(f"optwatch replay: {plain(text)}", file=sys.stderr, flush=True)

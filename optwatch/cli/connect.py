"""A connection to the daemon for one subcommand; what goes wrong with it is said in one sentence."""

import argparse
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from optwatch.cli.errors import Wrong
from optwatch.client import Client, DaemonError
from optwatch.client.several import daemon_of
from optwatch.wire.actions import OPEN_STATES, Command

POLL = 0.1
"""Seconds between two looks at a command that is under way."""


@contextmanager
def connected(run: str | None = None) -> Iterator[Client]:
    """The daemon that $OPTWATCH_DAEMON, the connection file or the default address names; of several the one
    that has `run`, a name, an id or the beginning of one.

    Raises:
        Wrong: no daemon answers, or it refuses what it is asked in the `with` block.
    """
    try:
        with Client(None if run is None else daemon_of(run)) as client:
            yield client
    except DaemonError as error:
        raise Wrong(str(error)) from None


def add_run(parser: argparse.ArgumentParser) -> None:
    """RUN, as every subcommand takes it."""
    parser.add_argument(
        "run_", metavar="RUN", help="a run's name (its newest run) or the beginning of its id"
    )


def add_waiting(parser: argparse.ArgumentParser) -> None:
    """How long to wait for what becomes of a command."""
    parser.add_argument(
        "--wait",
        choices=("applied", "judged"),
        default="applied",
        help="return when it is applied (default), or when its effect was judged",
    )
    parser.add_argument(
        "--timeout", type=seconds, default=30.0, metavar="S", help="give up waiting after S seconds (30)"
    )


def seconds(text: str) -> float:
    """A positive number of seconds, for argparse."""
    return between(text, 0.0, 1e7, "positive number of seconds")


def between(text: str, low: float, high: float, what: str) -> float:
    """A number strictly between two others, for argparse."""
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not low < value < high:
        raise argparse.ArgumentTypeError(f"{text!r} is not a {what}")
    return value


def wait(
    client: Client,
    run: str,
    id: str,
    until: str,
    timeout: float,
    tell: Callable[[Command], None] = lambda command: None,
) -> Command:
    """Look at a command until it is applied (or judged), or can be no more, or the time is over.

    Args:
        run: The run's id.
        until: "applied" or "judged".
        timeout: Seconds.
        tell: Called with the command as it is under way, at each look.
    """
    end = time.monotonic() + timeout
    unfinished = OPEN_STATES | ({"applied"} if until == "judged" else frozenset())
    while True:
        command = next((command for command in client.commands(run) if command.id == id), None)
        if command is None:
            raise Wrong(f"the daemon knows no command {id} any more: was it started with another store?")
        if command.state not in unfinished or time.monotonic() >= end:
            return command
        tell(command)
        time.sleep(POLL)

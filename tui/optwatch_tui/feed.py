"""What screens are told, and whom they ask: messages with frozen data, and the source they come from."""

from collections.abc import Callable
from typing import Protocol

from textual.message import Message

from optwatch.wire.actions import Command
from optwatch.wire.requests import Greeting, Request, RunInfo
from optwatch_tui.model import Link, Snapshot

Post = Callable[[Message], object]


class LinkChanged(Message):
    """The daemon was reached, or lost."""

    def __init__(self, link: Link, greeting: Greeting | None = None) -> None:
        super().__init__()
        self.link = link
        self.greeting = greeting


class RunsChanged(Message):
    """The list of runs, the newest first."""

    def __init__(self, runs: tuple[RunInfo, ...]) -> None:
        super().__init__()
        self.runs = runs


class RunChanged(Message):
    """The run that is watched."""

    def __init__(self, snapshot: Snapshot) -> None:
        super().__init__()
        self.snapshot = snapshot


class Answered(Message):
    """A request was carried out, or not: `refusal` says why."""

    def __init__(self, request: Request, command: Command | None, refusal: str = "") -> None:
        super().__init__()
        self.request = request
        self.command = command
        self.refusal = refusal


class Feed(Protocol):
    """What an app asks of its source of data."""

    def start(self, post: Post) -> None:
        """Begin; from now on messages are posted, from any thread."""
        ...

    def watch(self, run: str | None) -> None:
        """Follow another run, or only the list of runs."""
        ...

    def ask(self, request: Request) -> None:
        """Have a request carried out; `Answered` follows."""
        ...

    def close(self) -> None:
        """End; nothing is posted after it."""
        ...

"""What screens are told, and whom they ask: messages with frozen data, and the source they come from."""

from collections.abc import Callable, Mapping
from typing import Protocol

from textual.message import Message

from optwatch.wire.actions import Command
from optwatch.wire.requests import Greeting, Request, RunInfo
from optwatch_tui.compared import ComparedRun
from optwatch_tui.model import Glance, Link, Snapshot
from optwatch_tui.spread import Spread

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


class GlancesChanged(Message):
    """What the list of runs shows beside what it is told of each, by run."""

    def __init__(self, glances: Mapping[str, Glance]) -> None:
        super().__init__()
        self.glances = glances


class ComparedChanged(Message):
    """The runs that are compared, in the order in which they were asked for."""

    def __init__(self, runs: "tuple[ComparedRun, ...]") -> None:
        super().__init__()
        self.runs = runs


class SpreadChanged(Message):
    """How the gradient of the tensor that is looked at was spread."""

    def __init__(self, spread: Spread) -> None:
        super().__init__()
        self.spread = spread


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

    def compare(self, runs: tuple[str, ...]) -> None:
        """Follow several runs to compare them; () for none."""
        ...

    def look_into(self, run: str, tensor: str | None) -> None:
        """Have the histograms of one tensor of a run; None for no more."""
        ...

    def ask(self, request: Request) -> None:
        """Have a request carried out; `Answered` follows."""
        ...

    def close(self) -> None:
        """End; nothing is posted after it."""
        ...

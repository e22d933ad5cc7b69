"""What a link carries, as its thread asks for it."""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy.typing as npt

from optwatch.wire.frames import BatchBlocks
from optwatch.wire.messages import (
    Ask,
    Batch,
    Beat,
    Bye,
    Checked,
    Event,
    Follow,
    Hello,
    News,
    Prepare,
    Report,
    Schema,
    Stack,
    Sums,
)

Durable = Batch | Event | Report | Checked | Bye
Answer = tuple[Sums | Stack, Sequence[npt.NDArray[Any]]]


class Source(Protocol):
    """What the link carries."""

    def ready(self) -> bool:
        """Whether it is known who this is. Called five times a second."""
        ...

    @property
    def run(self) -> str:
        """The run's id, the same on all ranks once this is `ready`."""
        ...

    def hello(self) -> Hello:
        """The first message of a connection."""
        ...

    def collect(self, everything: bool) -> list[tuple[Durable, BatchBlocks | None, Schema | None]]:
        """What has happened since the last call, in order, with seq 0."""
        ...

    def beat(self) -> Beat: ...

    def pressing(self) -> bool:
        """Whether the next beat has something to tell that should not wait for it."""
        ...

    def follow(self) -> Follow | None:
        """What is to be told of the run, None where nobody wants to know."""
        ...

    def hear(self, news: News) -> None: ...

    def take(self, prepare: Prepare) -> None: ...

    def assign(self, reduced: bool) -> None:
        """Send everything, or no per-tensor statistics."""
        ...

    def account(self, share: float) -> None:
        """Of each second, what the link takes lately."""
        ...

    def answer(self, ask: Ask) -> Answer | None:
        """The answer to a question of the daemon's, None where there is none."""
        ...

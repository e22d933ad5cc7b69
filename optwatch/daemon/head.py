"""Head: what the store keeps of a run beside its series."""

from collections.abc import Sequence
from typing import Protocol, TypeVar

import msgspec

from optwatch.wire.messages import ConfigValue, Hello, OptimizerInfo
from optwatch.wire.requests import Mode


class Head(msgspec.Struct, kw_only=True):
    """What the store keeps of a run beside its series."""

    run: str
    name: str
    job: str
    started: float
    world_size: int
    incarnation: int
    optimizers: tuple[OptimizerInfo, ...]
    allow: tuple[str, ...]
    config: dict[str, ConfigValue]
    versions: dict[str, str]
    mode: Mode
    ended: bool = False
    step: int = 0
    loss: float | None = None
    worst: str | None = None


def new_head(hello: Hello, mode: Mode) -> Head:
    """The head of a run that is heard of for the first time."""
    return Head(
        run=hello.run,
        name=hello.name,
        job=hello.job,
        started=hello.started,
        world_size=hello.world_size,
        incarnation=hello.incarnation,
        optimizers=hello.optimizers,
        allow=hello.allow,
        config=hello.config,
        versions=hello.versions,
        mode=mode,
    )


class HasHead(Protocol):
    """A run as far as it takes to find it."""

    @property
    def head(self) -> Head: ...


Found = TypeVar("Found", bound=HasHead)


class UnknownRun(LookupError):
    """No run, or more than one, is meant; the sentence names the runs there are."""


def find_run(runs: Sequence[Found], wanted: str) -> Found:
    """A run by its id, an unambiguous beginning of it (4 characters or more), or its name (the newest).

    Raises:
        UnknownRun: a sentence that names the runs there are.
    """
    newest = sorted(runs, key=lambda run: run.head.started, reverse=True)
    for run in newest:
        if run.head.run == wanted:
            return run
    for run in newest:
        if run.head.name == wanted:
            return run
    begun = [run for run in newest if len(wanted) >= 4 and run.head.run.startswith(wanted)]
    if len(begun) == 1:
        return begun[0]
    if begun:
        raise UnknownRun(f"{wanted!r} is the beginning of {len(begun)} runs: give more of it")
    names = ", ".join(dict.fromkeys(run.head.name for run in newest[:10]))
    raise UnknownRun(
        f"there is no run {wanted!r}: " + (f"there are {names}" if names else "there is none yet")
    )

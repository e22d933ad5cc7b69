"""Entries: a command with all that the daemon has to remember about it."""

from collections.abc import Iterable
from typing import Literal

import msgspec

from optwatch.wire.actions import OPEN_STATES, Command
from optwatch.wire.messages import Prepare

ReportState = Literal["pending", "applied", "aborted", "refused", "failed"]


class CommandError(Exception):
    """A command that cannot be; `code` as in `Refused`, the message is for the user."""

    def __init__(self, code: str, reason: str) -> None:
        super().__init__(reason)
        self.code = code


class Entry(msgspec.Struct, kw_only=True):
    """A command and what the daemon has to remember about it; this is what the store keeps."""

    command: Command
    vote: str = ""
    attempt: int = 0
    n: int = 0
    order: int = 0
    """Its place among those that fall on one step: the same on every rank, and each time it is sent."""
    sent_at: float = 0.0
    repeated_at: float = 0.0
    blocked_since: float | None = None
    """Since when something has stood in its way, such as a rank that is not there."""
    aborted_at: float | None = None
    """When the first rank told that the vote has failed."""
    sessions: dict[int, str] = {}
    """The process that each rank's proposal went to."""
    steps: tuple[int, ...] = ()
    reports: dict[int, ReportState] = {}
    refusal: str = ""
    """What the first rank said that would not do it, or could not."""
    before: float | str | None = None
    """What was in force before it was applied: the LR scale, or the clip."""
    after: float | str | None = None

    @property
    def open(self) -> bool:
        return self.command.state in OPEN_STATES


def in_order(entries: Iterable[Entry]) -> list[Entry]:
    """As the agents applied them: one that had to be voted on again may come behind a later one."""
    return sorted(entries, key=lambda entry: (entry.command.step or 0, entry.order))


def prepare(entry: Entry, session: str) -> Prepare:
    return Prepare(
        session=session,
        command=entry.command.id,
        vote=entry.vote,
        n=entry.n,
        steps=entry.steps,
        order=entry.order,
        action=entry.command.action,
        args=entry.command.args,
    )

"""Sessions: what one agent process has sent, in which order, and what of it is in the store."""

from collections import deque
from dataclasses import dataclass, field
from typing import Literal

from optwatch.wire.messages import Beat, Hello, Schema, Stack

SUSPECT = 3.0
DOWN = 10.0
"""Seconds without any message after which an agent is suspect, and down."""

Link = Literal["up", "suspect", "down", "left"]


@dataclass
class Session:
    """One agent process. Its durable messages are taken strictly in order, each once."""

    hello: Hello
    user: str
    """Who authenticated as its sender; nobody else may speak for it."""
    received: int
    """The last `seq` taken, or known to be lost."""
    acked: int
    """The last `seq` that is in the store."""
    identity: bytes = b""
    """Where to send to; empty until it greets this daemon."""
    heard: float = float("-inf")
    """Monotonic time of its last message."""
    left: bool = False
    control: str = ""
    """"armed", or why this process cannot be commanded, as it last said."""
    steps: tuple[int, ...] = ()
    """The last known global_step of each optimizer."""
    stepped: float = float("-inf")
    """Monotonic time at which `steps` was learned."""
    beat: Beat | None = None
    assigned: Beat | None = None
    """The beat that was answered with what to send: it is told again where a later one shows it was lost."""
    stack: Stack | None = None
    stacked: float = float("-inf")
    """The last answer to a question for its stack, and the monotonic time at which it came."""
    schemas: dict[tuple[int, str], Schema] = field(default_factory=dict)
    lost: int = 0
    """Durable messages that never came."""
    nudged: float = float("-inf")
    """When it was last asked to send again."""
    nudged_at: int = -1
    """What `received` was then."""
    received_at_beat: int = -1
    """What `received` was at the last beat."""
    unsettled: deque[tuple[int, int]] = field(default_factory=deque)
    """(store ticket, seq): acknowledged once the ticket is committed."""

    def link(self, now: float) -> Link:
        if self.left:
            return "left"
        silence = now - self.heard
        return "up" if silence < SUSPECT else "suspect" if silence < DOWN else "down"

    def advance(self, steps: tuple[int, ...], now: float) -> None:
        """The agent says how far its optimizers are."""
        self.steps = steps
        self.stepped = now

    def advance_one(self, optimizer: int, step: int, now: float) -> None:
        """A batch shows how far one optimizer is at least."""
        known = list(self.steps) or [0] * max(len(self.hello.optimizers), 1)
        if optimizer < len(known) and step > known[optimizer]:
            known[optimizer] = step
            self.advance(tuple(known), now)

    def expects(self, seq: int) -> Literal["now", "had", "early"]:
        """Whether a durable message is the next one, one that was taken, or one that comes too early."""
        if seq <= self.received:
            return "had"
        return "now" if seq == self.received + 1 else "early"

    def give_up_before(self, oldest: int) -> int:
        """The agent no longer has what is below `oldest`: go on there; how many messages that loses."""
        missing = max(oldest - 1 - self.received, 0)
        self.received += missing
        self.lost += missing
        return missing

    def settle(self, committed: int) -> bool:
        """Move `acked` up to what is in the store now; whether it moved."""
        before = self.acked
        while self.unsettled and self.unsettled[0][0] <= committed:
            self.acked = self.unsettled.popleft()[1]
        return self.acked > before


@dataclass
class Rank:
    """One rank of a run: the session that speaks for it now."""

    rank: int
    session: Session
    local_norm: float | None = None
    """The last norm of its own gradients."""

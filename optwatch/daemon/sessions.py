"""Sessions: what one agent process has sent, in which order, and what of it is in the store."""

import math
from collections import deque
from dataclasses import dataclass, field
from typing import Literal

from optwatch.wire.messages import Beat, Hello, Schema, Stack

SUSPECT = 3.0
DOWN = 10.0
"""Seconds without any message after which an agent is suspect, and down."""

WINDOW = 30.0
"""Seconds in which some message is taken to come without delay."""
LONGEST_DELAY = 10.0
"""Seconds that a message is believed to have been under way."""

Link = Literal["up", "suspect", "down", "left"]


class Transit:
    """How long messages of one sender are under way, beyond the quickest of the last half to whole minute.

    The two clocks need not agree, nor run quite alike: what the quickest one took counts as nothing.
    """

    __slots__ = ("_before", "_least", "_since")

    def __init__(self) -> None:
        self._least = self._before = math.inf
        """The least difference of the clocks that was seen in this window, and in the one before it."""
        self._since = -math.inf

    def delay(self, sent: float, now: float) -> float:
        """Seconds that a message was delayed that was sent at `sent` of the sender's clock and came `now`."""
        if now - self._since > WINDOW:
            self._before, self._least, self._since = self._least, math.inf, now
        self._least = min(self._least, now - sent)
        return min(now - sent - min(self._least, self._before), LONGEST_DELAY)


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
    """Monotonic time of which `steps` is known: when it was learned, less what it was under way."""
    transit: Transit = field(default_factory=Transit)
    delay: float = 0.0
    """Seconds that the last beat was delayed: what waits before this daemon delays all that comes."""
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

    def take_beat(self, beat: Beat, now: float) -> None:
        """The agent says where it is."""
        self.beat = beat
        self.control = beat.control
        if beat.clock:
            self.delay = self.transit.delay(beat.clock, now)
        self._advance(beat.steps, now)

    def advance(self, optimizer: int, step: int, now: float) -> None:
        """A batch shows how far one optimizer is at least."""
        known = list(self.steps) or [0] * max(len(self.hello.optimizers), 1)
        if optimizer < len(known) and step > known[optimizer]:
            known[optimizer] = step
            self._advance(tuple(known), now)

    def _advance(self, steps: tuple[int, ...], now: float) -> None:
        self.steps = steps
        self.stepped = now - self.delay

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

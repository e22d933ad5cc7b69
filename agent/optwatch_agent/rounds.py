"""Where the one step of many optimizers begins and ends, that are stepped one after another.

Within backward it is over with the pass. Behind it, it is over when all have stepped or the next begins.
"""

from optwatch_agent.phases import Phases

STEADY = 50
"""Steps in a row whose ends were seen in time, after which that of the next is thought to be."""


class Round:
    """Which members have stepped in the step of all, and which are still to come."""

    def __init__(self) -> None:
        self.under_way = False
        """Whether there is such a step."""
        self.phases: Phases | None = None
        """Those of the thread that takes it, or took the last."""
        self.in_backward = False
        """Whether it is taken within a backward pass that is not over."""
        self.begun: set[int] = set()
        """The members that have stepped, or begun to."""
        self.open: set[int] = set()
        """Those that are at it, or raised."""
        self.late = False
        """Whether its end was seen only when the next backward pass began."""
        self.in_time = 0
        """Ends in a row that were seen in time."""
        self.over: set[int] | None = None
        """Those that have stepped in the last one, if that was within backward, until the next pass."""
        self.mixed = False
        """Whether some members step within backward and others behind it."""
        self._was_in_backward = False
        self._missing: set[int] = set()

    @property
    def is_steady(self) -> bool:
        """Whether ends have been seen in time of late."""
        return self.in_time >= STEADY

    @property
    def is_complete(self) -> bool:
        """Whether none is still to come."""
        return not (self._missing or self.open)

    def begin(self, number: int, phases: Phases, there: set[int]) -> None:
        """A step begins with that of a member, of those that are there."""
        self.under_way, self.phases, self.late = True, phases, False
        self.in_backward = self._was_in_backward = phases.is_backward
        self._missing = there
        self.begun, self.open = set(), set()
        self.add(number)

    def add(self, number: int) -> None:
        """A member begins to step."""
        self.begun.add(number)
        self.open.add(number)
        self._missing.discard(number)

    def forget_open(self) -> None:
        """Those that are at it have raised, and are none of it."""
        self.begun -= self.open
        self.open.clear()

    def is_late_comer(self, number: int, phases: Phases) -> bool:
        """Whether a member belongs to the step that was thought to be over."""
        if self.over is None or number in self.over or phases.is_backward:
            return False
        self.over.add(number)
        self.mixed = True
        return True

    def end(self) -> None:
        """It is over."""
        self.in_time = 0 if self.late else self.in_time + 1
        self.over = self.begun if self._was_in_backward else None
        self.under_way = self.in_backward = False

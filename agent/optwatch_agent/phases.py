"""Where the training thread is within a step, and how long it works without waiting for other ranks.

Told by what is wrapped or hooked anyway: backward passes, `DataLoader`s, the optimizer's step.

Data-parallel ranks wait for each other inside the backward pass. So the time outside of it is a rank's
own: the rank that needs most of it holds up the others, although a whole step takes all of them as long.
Where they wait in the forward pass as well (`pace`), it is the time until that begins.
"""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from torch.utils.data import dataloader

from optwatch_agent.of_thread import OfThread
from optwatch_agent.patches import Patch

START = "start"
DATA = "data loading"
FORWARD = "before backward"
BACKWARD = "backward"
AFTER = "after backward"
STEP = "step"


class Phases:
    """The phase of one training thread, and what its own time adds up to. Written by that thread alone."""

    def __init__(self) -> None:
        self.now: tuple[str, float] = (START, time.perf_counter())
        """The phase, and since when, on the clock of `perf_counter`."""
        self.thread = threading.main_thread().ident
        """The thread that trains: until one is seen to, the main thread."""
        self.own = 0.0
        """Seconds so far in which this rank waited for no other."""
        self.passes = 0
        """Backward passes so far."""
        self._left = 0.0
        """Since when the time is this rank's own, 0 while it is not."""
        self.under_way: set[object] = set()
        """Backward passes that are, one within another. Each is something of its own, which is taken out by
        whoever put it in: a signal handler may have raised in between, and threads may take turns."""

    @property
    def is_backward(self) -> bool:
        """Whether a backward pass is under way."""
        return bool(self.under_way)

    def enter(self, phase: str, now: float) -> None:
        self.now = phase, now

    def begin_forward(self) -> None:
        """A forward pass begins in which ranks wait for each other."""
        if self._left and not self.under_way:
            self.own += time.perf_counter() - self._left
            self._left = 0.0

    def begin_backward(self, which: object, now: float) -> None:
        """A backward pass begins: what came since the last one was this rank's own time."""
        self.under_way.add(which)
        if len(self.under_way) > 1:  # a checkpointed part runs its own
            return
        if self._left:
            self.own += now - self._left
        self.passes += 1
        self.thread = threading.get_ident()
        self.now = BACKWARD, now

    def end_backward(self, which: object, raised: bool) -> None:
        """A backward pass is over."""
        self.under_way.discard(which)
        if not self.under_way:
            self._left = now = time.perf_counter()
            self.now = AFTER, now
            if BACKWARD_ENDS:
                for hook in tuple(BACKWARD_ENDS.values()):
                    hook(self, raised)


PHASES = OfThread(Phases)
BACKWARD_BEGINS: OrderedDict[int, Callable[[Phases], None]] = OrderedDict()
"""Called before a backward pass, with the phases of its thread."""
BACKWARD_ENDS: OrderedDict[int, Callable[[Phases, bool], None]] = OrderedDict()
"""Called after one that is within no other, with whether it raised."""


def _wrap_next(following: Callable[..., Any]) -> Callable[..., Any]:
    def watched(loader: Any) -> Any:
        phases = PHASES.here()
        if LOADING.users == 0 or threading.get_ident() != phases.thread:
            return following(loader)
        before = phases.now[0]
        phases.enter(DATA, time.perf_counter())
        try:
            return following(loader)
        finally:
            phases.enter(before, time.perf_counter())

    return watched


LOADING = Patch(dataloader._BaseDataLoaderIter, "__next__", _wrap_next)

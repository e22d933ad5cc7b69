"""Stragglers: which rank keeps the others waiting, step after step.

A step takes all data-parallel ranks equally long, since they wait for each other. What tells them apart
is each one's own time outside of the waiting (`arrival`). At each step it is compared with the others' at
that step, so that what slows all of them, as on a busy machine, cancels out: on 2 cores with a load of 12,
one rank's own time varies by 15 ms from step to step, and its lateness by 1 ms. One rank is always the last;
a straggler is late at nearly every step, and by an amount that matters.
"""

from collections import deque
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from optwatch.detect.base import Signal
from optwatch.series.points import Points
from optwatch.wire.findings import Cause, Remedy

WINDOW = 32
"""Steps that are looked at together."""
NEARLY_ALL = 0.8
"""Share of them at which a straggler is late."""
LEAST = 0.005
SHARE = 0.03
"""Seconds, and share of the step time, by which it is late: whichever is more."""
FOR = 6
"""Steps in a row for which all that has to hold."""
MAX_SECONDS = 1e6
"""A step's own time is less."""
MAX_WAITING = 512
"""Steps that wait for the times of all ranks."""

F8 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Late:
    """How late the ranks were over a window of steps, after the median of the others; all in seconds."""

    usually: F8
    """The median of each rank."""
    nearly_always: F8
    """What each rank exceeds at nearly all steps."""
    step_time: float

    @property
    def bound(self) -> float:
        """The lateness that matters."""
        return max(LEAST, SHARE * self.step_time)


class Stragglers:
    """Follows the ranks of one run. `take` their points, then `look`."""

    def __init__(self) -> None:
        self.lateness: dict[int, float] = {}
        """Of each rank, seconds after the earliest, the median of the last steps."""
        self._waiting: dict[int, dict[int, tuple[float, float]]] = {}
        self._window: deque[tuple[int, F8, float]] = deque(maxlen=WINDOW)
        self._ranks: tuple[int, ...] = ()
        self._suspects: dict[int, int] = {}
        """Rank → steps in a row for which it was late."""
        self._named: set[int] = set()

    def restore(self, ranks: Collection[int | None]) -> None:
        """Take up the ranks that were named when a daemon before this one ended."""
        self._named = {rank for rank in ranks if rank is not None}

    def take(self, rank: int, points: Points) -> None:
        """Take a rank's own points: its columns `arrival` and `step_time`."""
        if "arrival" not in points.columns:
            return
        arrival, time = points.column("arrival"), points.column("step_time")
        lists = points.step, arrival.values, arrival.logged, time.values, time.logged
        # Not by arrays: a batch has mostly one step, and there are ten thousand a second.
        for step, own, told, whole, timed in zip(*(each.tolist() for each in lists), strict=True):
            if told and 0 <= own < MAX_SECONDS:
                known = timed and 0 <= whole < MAX_SECONDS
                self._waiting.setdefault(step, {})[rank] = own, whole if known else np.nan
        if len(self._waiting) > MAX_WAITING:
            for step in sorted(self._waiting)[:-MAX_WAITING]:
                del self._waiting[step]

    def look(self, ranks: Collection[int]) -> list[Signal]:
        """Look at the steps of which all ranks have told; what began or is over.

        `ranks`: those that do the same work on other data, and wait for each other in each step.
        """
        signals: list[Signal] = []
        order = tuple(sorted(ranks))
        if len(order) < 2:
            return signals
        if order != self._ranks:
            self._ranks = order
            self._window.clear()
            self._suspects.clear()
        everybody = set(order)
        complete = [
            step
            for step, told in self._waiting.items()
            if len(told) >= len(order) and told.keys() >= everybody
        ]
        for step in sorted(complete):
            told = self._waiting.pop(step)
            for gone in [other for other in self._waiting if other < step]:
                del self._waiting[gone]
            times = np.array([told[rank][1] for rank in order])
            time = float(np.nanmax(times)) if np.isfinite(times).any() else 0.0
            self._window.append((step, np.array([told[rank][0] for rank in order]), time))
            if len(self._window) == WINDOW:
                signals += self._judge(step)
        return signals

    def _judge(self, step: int) -> list[Signal]:
        arrivals = np.stack([arrival for _, arrival, _ in self._window])
        after_first = np.median(arrivals - arrivals.min(axis=1, keepdims=True), axis=0)
        self.lateness = dict(zip(self._ranks, after_first.tolist(), strict=True))
        late = lateness(arrivals, [time for *_, time in self._window])
        signals = []
        for at, rank in enumerate(self._ranks):
            if rank in self._named:
                if late.usually[at] < late.bound / 2:
                    self._named.discard(rank)
                    signals.append(_over(step, rank))
                continue
            if late.nearly_always[at] <= late.bound:
                self._suspects.pop(rank, None)
                continue
            self._suspects[rank] = self._suspects.get(rank, 0) + 1
            if self._suspects[rank] >= FOR:
                del self._suspects[rank]
                self._named.add(rank)
                behind, always = float(late.usually[at]), float(late.nearly_always[at])
                signals.append(_signal(rank, behind, always, late.step_time, step, self._window[0][0]))
        return signals


def lateness(arrivals: F8, times: Collection[float]) -> Late:
    """How late ranks are, from their own times [steps, ranks >= 2] and the times of the steps."""
    others = np.stack(
        [np.median(np.delete(arrivals, rank, axis=1), axis=1) for rank in range(arrivals.shape[1])], axis=1
    )
    late = arrivals - others
    return Late(
        usually=np.median(late, axis=0),
        nearly_always=np.quantile(late, 1 - NEARLY_ALL, axis=0),
        step_time=float(np.median(np.array(list(times)))),
    )


def _signal(rank: int, behind: float, always: float, step_time: float, step: int, since: int) -> Signal:
    share = behind / step_time if step_time > 0 else 0.0
    return Signal(
        kind="straggler",
        step=step,
        summary=(
            f"rank {rank} keeps the others waiting: in the median of {WINDOW} steps it is "
            f"{1e3 * behind:.1f} ms later than they are, {share:.0%} of a step"
        ),
        severity="warning",
        onset_step=since,
        key=_key(rank),
        rank=rank,
        evidence={
            "behind": behind,
            "nearly_always_behind": always,
            "step_time": step_time,
            "steps": WINDOW,
        },
        causes=(
            Cause(
                "hardware_fault",
                0.5,
                f"{1e3 * behind:.1f} ms a step: a device that is slow or shared, or data that this rank "
                "loads more slowly",
            ),
        ),
        remedies=(
            Remedy("advice", {}, "see where its time goes: `optwatch stacks`, a few times"),
            Remedy(
                "advice", {}, "compare that rank's data loading, clocks and other processes with the others'"
            ),
        ),
    )


def _over(step: int, rank: int) -> Signal:
    return Signal(
        kind="straggler",
        step=step,
        summary="it keeps the others waiting no more",
        severity="warning",
        onset_step=step,
        key=_key(rank),
        over=True,
        rank=rank,
    )


def _key(rank: int) -> str:
    return f"rank {rank}"

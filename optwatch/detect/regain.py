"""Slow divergence: the loss gives back what it had won, too slowly to leave its range at once."""

import math
from bisect import bisect_right
from typing import Any, ClassVar

import msgspec

from optwatch.detect.base import Signal
from optwatch.detect.memory import FIRST, HUGE, from_state, median, push, start_of, to_state
from optwatch.series.points import Points

SPAN = 20
ALPHA = 2 / (SPAN + 1)
AVERAGE_SD = math.sqrt(ALPHA / (2 - ALPHA))
"""Standard deviation of the average of white noise of unit variance."""
RESIDUALS = 100
REFRESH = 25
"""Points between two estimates of the noise."""
WINSOR = 8.0
LOST, SIGMAS, RUN = 0.10, 6.0, 10
"""An alarm: this share of the progress is lost, by so many standard deviations, so many points in a row."""
JUMP, AFTERWARDS, LOST_AFTER_JUMP = 3.0, 200, 0.03
"""Less has to be lost in the 200 points after the LR rose at once by this factor over all it had been: it
is the likelier to be the reason."""
REARM = 0.05
BEGIN = 50
"""Points before anything is judged."""


class Memory(msgspec.Struct):
    seen: int = 0
    start: list[float] = []
    first: float = math.nan
    average: float = math.nan
    best: float = math.inf
    best_step: int = 0
    residuals: list[float] = []
    noise: float = math.inf
    run: int = 0
    onset: int = 0
    open: bool = False
    worst: float = 0.0
    top: float = 0.0
    """The greatest LR so far."""
    jumped: int = 0
    """Points left in which less has to be lost."""


class Regain:
    """R = (EMA - best) / (L0 - best) of the loss's EMA (span 20), its residuals held to 8 sigmas.

    sigma is the larger of 1.4826 MAD and 1.2533 mean |r| of the last 100 residuals, so that a heavy tail
    counts. The best is that of the segment; L0 - best counts as 5 % of |L0| at least.
    """

    name: ClassVar[str] = "regain"

    def __init__(self) -> None:
        self._memory = Memory()

    def update(self, points: Points) -> list[Signal]:
        loss, lr = points.column("loss"), points.column("lr")
        signals: list[Signal] = []
        m = self._memory
        for step, x, logged, rate in zip(
            points.step.tolist(), loss.values.tolist(), loss.logged.tolist(), lr.values.tolist(), strict=True
        ):
            if rate > m.top:
                if rate > JUMP * m.top > 0:
                    m.jumped = AFTERWARDS
                m.top = rate
            if logged and math.isfinite(x):
                self._point(step, x if -HUGE < x < HUGE else math.copysign(HUGE, x), signals)
        return signals

    def mark(self, step: int) -> None:
        """A new segment with its own best. L0 stays: progress is that of the run."""
        old = self._memory
        self._memory = Memory(first=old.first, open=old.open, onset=old.onset, top=old.top)

    def state(self) -> dict[str, Any]:
        return to_state(self._memory)

    def restore(self, state: dict[str, Any]) -> None:
        self._memory = from_state(state, Memory)

    def _point(self, step: int, x: float, signals: list[Signal]) -> None:
        m = self._memory
        m.seen += 1
        m.jumped = max(m.jumped - 1, 0)
        if m.seen <= FIRST:
            m.start.append(x)
            m.average = median(m.start)
            if m.seen == FIRST and math.isnan(m.first):
                m.first = start_of(m.start)
            return
        residual = x - m.average
        push(m.residuals, residual, RESIDUALS)
        if m.seen % REFRESH == 0 or m.seen == 2 * FIRST:
            m.noise = _noise(m.residuals[-RESIDUALS:])
        held = WINSOR * m.noise
        if residual > held:
            residual = held
        elif residual < -held:
            residual = -held
        m.average += ALPHA * residual
        if m.average < m.best:
            m.best, m.best_step = m.average, step
        if m.seen <= BEGIN:
            return
        rise = m.average - m.best
        if rise == 0:  # a new best
            m.run = 0
            if not m.open:
                return
        first = m.first
        won = max(first - m.best, 0.05 * abs(first))
        lost = rise / won if won > 0 else 0.0
        if lost > (LOST_AFTER_JUMP if m.jumped else LOST) and rise > SIGMAS * AVERAGE_SD * m.noise:
            m.run += 1
            if m.run == 1:
                m.onset = step
        else:
            m.run = 0
        m.worst = max(m.worst, lost) if m.open else lost
        if m.run >= RUN and not m.open:
            m.open = True
            signals.append(self._signal(step, lost, first))
        elif m.open and lost < (LOST_AFTER_JUMP / 2 if m.jumped else REARM):
            m.open = False
            signals.append(self._signal(step, lost, first))

    def _signal(self, step: int, lost: float, first: float) -> Signal:
        m = self._memory
        text = f"the loss has given back {lost:.0%} of what it won: {m.average:.4g}, best {m.best:.4g}"
        if not m.open:
            text = f"the loss is back within {REARM:.0%} of its best, after losing {m.worst:.0%}"
        return Signal(
            kind="slow_divergence",
            step=step,
            onset_step=m.onset,
            severity="warning",
            summary=text,
            over=not m.open,
            evidence={
                "progress_lost": m.worst,
                "average": m.average,
                "best": m.best,
                "best_step": m.best_step,
                "first": first,
                "noise": m.noise,
            },
        )


def _noise(residuals: list[float]) -> float:
    """The larger of the two estimates of a standard deviation, both robust."""
    center = median(residuals)
    sizes = sorted(abs(r - center) for r in residuals)
    deviation = 1.4826 * median(sizes)
    held = WINSOR * deviation
    within = bisect_right(sizes, held)
    mean = (sum(sizes[:within]) + held * (len(sizes) - within)) / len(sizes)
    return max(deviation, 1.2533 * mean)

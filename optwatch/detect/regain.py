"""Slow divergence: the loss gives back what it had won, too slowly to leave its range at once.

A loss that changes its level from one step to the next, and then stays or falls, while gradient and LR are
as usual, is what other data do to it: that is shown quietly, and is an alarm once the loss rises further.
"""

import math
from typing import Any, ClassVar

import msgspec
import numpy as np
import numpy.typing as npt

from optwatch.detect.base import Signal
from optwatch.detect.memory import (
    BATCH,
    F8,
    FIRST,
    HUGE,
    SINGLY,
    extend,
    from_state,
    median,
    push,
    rows,
    start_of,
    to_state,
    trend,
)
from optwatch.series.points import Points
from optwatch.wire.findings import Severity

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
COURSE, LEAST = 40, 5
"""Points that are looked over for a change of level, and that either side of it has at least."""
AT_ONCE = 0.6
"""The share of a change of level that the first points after it show already."""
THROWN = 10.0
"""A gradient norm of so many times the median before is an event of its own."""
RISING = 1.645
"""One-sided 5 % of the Mann-Kendall statistic."""
FURTHER = 1.5
"""A change of level is an alarm when the loss has risen to this many times it."""


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
    losses: list[float] = []
    norms: list[float] = []
    """The gradient norms of the same points, NaN where there is none."""
    severity: Severity = "warning"
    limit: float = math.inf
    """After a change of level: the average from which it is an alarm."""


class Regain:
    """R = (EMA - best) / (L0 - best) of the loss's EMA (span 20), its residuals held to 8 sigmas.

    sigma is the larger of 1.4826 MAD and 1.2533 mean |r| of the last 100 residuals, so that a heavy tail
    counts. The best is that of the segment; L0 - best counts as 5 % of |L0| at least.
    """

    name: ClassVar[str] = "regain"

    def __init__(self) -> None:
        self._memory = Memory()

    def update(self, points: Points) -> list[Signal]:
        loss, lr, norm = points.column("loss"), points.column("lr"), points.column("grad_norm")
        signals: list[Signal] = []
        at = 0
        while at < len(points):
            at += self._calm(points.step[at:], loss.values[at:], lr.values[at:], norm.values[at:])
            m = self._memory
            for step, x, rate, g in rows(at, points.step, loss.values, lr.values, norm.values):
                if rate > m.top:
                    if rate > JUMP * m.top > 0:
                        m.jumped = AFTERWARDS
                    m.top = rate
                if math.isfinite(x):
                    push(m.norms, g, COURSE)
                    self._point(step, x if -HUGE < x < HUGE else math.copysign(HUGE, x), signals)
            at += SINGLY
        return signals

    def mark(self, step: int) -> None:
        """A new segment with its own best. L0 stays: progress is that of the run."""
        old = self._memory
        self._memory = Memory(
            first=old.first,
            open=old.open,
            onset=old.onset,
            top=old.top,
            severity=old.severity,
            limit=old.limit,
        )

    def state(self) -> dict[str, Any]:
        return to_state(self._memory)

    def restore(self, state: dict[str, Any]) -> None:
        self._memory = from_state(state, Memory)

    def _calm(self, step: npt.NDArray[np.int64], loss: F8, lr: F8, norm: F8) -> int:
        """Take all at once, as many of the first points as surely lose too little to count; how many."""
        m = self._memory
        if len(step) < BATCH or m.open or m.jumped or m.seen < BEGIN:
            return 0
        tops = np.fmax.accumulate(np.concatenate(([m.top], lr)))
        jumps = np.flatnonzero((lr > JUMP * tops[:-1]) & (tops[:-1] > 0))
        calm = int(jumps[0]) if len(jumps) else len(step)
        known = np.flatnonzero(np.isfinite(loss[:calm]))
        x = np.clip(loss[known], -HUGE, HUGE).tolist()
        taken = self._average(step[known].tolist(), x)
        if taken < len(known):
            calm = int(known[taken])
        m.top = float(tops[calm])
        extend(m.losses, x[:taken], COURSE)
        extend(m.norms, norm[known[:taken]].tolist(), COURSE)
        return calm

    def _average(self, steps: list[int], losses: list[float]) -> int:
        """`_point` for the first points that lose too little to count; how many."""
        m = self._memory
        average, best, best_step, residuals = m.average, m.best, m.best_step, m.residuals
        held, enough = WINSOR * m.noise, SIGMAS * AVERAGE_SD * m.noise
        due = REFRESH - m.seen % REFRESH
        taken = 0
        for step, x in zip(steps, losses, strict=True):
            residual = x - average
            residuals.append(residual)
            if taken + 1 == due:
                noise = _noise(residuals[-RESIDUALS:])
                held, enough = WINSOR * noise, SIGMAS * AVERAGE_SD * noise
            if residual > held:
                residual = held
            elif residual < -held:
                residual = -held
            following = average + ALPHA * residual
            if following < best:
                best, best_step = following, step
            elif following - best > enough:
                won = max(m.first - best, 0.05 * abs(m.first))
                if won > 0 and (following - best) / won > LOST:
                    residuals.pop()
                    break
            average = following
            taken += 1
            if taken == due:
                m.noise = noise
                due += REFRESH
        if taken:
            m.run = 0
        m.seen += taken
        m.average, m.best, m.best_step = average, best, best_step
        del residuals[: -2 * RESIDUALS]
        return taken

    def _point(self, step: int, x: float, signals: list[Signal]) -> None:
        m = self._memory
        m.seen += 1
        push(m.losses, x, COURSE)
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
            level = math.nan if m.jumped else self._new_level()
            m.limit = m.best + FURTHER * (level - m.best) if math.isfinite(level) else -math.inf
            m.severity = "watch" if m.average <= m.limit else "warning"
            signals.append(self._signal(step, lost, first))
        elif m.open and m.severity == "watch" and m.average > m.limit:
            m.severity = "warning"
            signals.append(self._signal(step, lost, first))
        elif m.open and lost < (LOST_AFTER_JUMP / 2 if m.jumped else REARM):
            m.open = False
            signals.append(self._signal(step, lost, first))

    def _new_level(self) -> float:
        """The level that the loss changed to at once, of its own; NaN where it did not, or may not have."""
        losses, norms = self._memory.losses[-COURSE:], self._memory.norms[-COURSE:]
        if len(losses) < COURSE or not all(map(math.isfinite, norms)):
            return math.nan
        cut = max(range(LEAST, COURSE - LEAST), key=lambda k: _contrast(losses[:k], losses[k:]))
        before, level = median(losses[:cut]), median(losses[cut:])
        at_once = median(losses[cut : cut + LEAST]) - before > AT_ONCE * (level - before)
        thrown = max(norms[cut - 1 :]) > THROWN * median(norms[:cut])
        return level if at_once and not thrown and trend(losses[cut:]) < RISING else math.nan

    def _signal(self, step: int, lost: float, first: float) -> Signal:
        m = self._memory
        text = f"the loss has given back {lost:.0%} of what it won: {m.average:.4g}, best {m.best:.4g}"
        if m.severity == "watch":
            text += "; it changed its level at once, gradient and LR did not"
        if not m.open:
            text = f"the loss is back within {REARM:.0%} of its best, after losing {m.worst:.0%}"
        return Signal(
            kind="slow_divergence",
            step=step,
            onset_step=m.onset,
            severity=m.severity,
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


def _contrast(before: list[float], after: list[float]) -> float:
    """How far the means of two parts are apart, for the size of the parts: the greatest is where the level
    changed (the CUSUM statistic of a change in mean)."""
    a, b = len(before), len(after)
    return abs(sum(after) / b - sum(before) / a) * math.sqrt(a * b / (a + b))


def _noise(residuals: list[float]) -> float:
    """The larger of the two estimates of a standard deviation, both robust."""
    values = np.sort(residuals)
    sizes = np.sort(np.abs(values - _middle(values)))
    deviation = 1.4826 * _middle(sizes)
    held = WINSOR * deviation
    within = int(sizes.searchsorted(held, "right"))
    # Added up in order, not pairwise as numpy's sum does it: the same to the last bit everywhere.
    mean = (float(sizes[:within].cumsum()[-1]) + held * (len(sizes) - within)) / len(sizes)
    return max(deviation, 1.2533 * mean)


def _middle(ordered: npt.NDArray[np.float64]) -> float:
    """The median of sorted values."""
    return 0.5 * float(ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2])

"""Oscillation: the loss swings to and fro, giving back much of what it won each time."""

import math
from itertools import pairwise
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
    push,
    rows,
    start_of,
    to_state,
)
from optwatch.series.points import Points

SMOOTH = 3
WINDOW = 100
"""Points within which the swings have to come."""
SWINGS = 4
SIZE = 0.35
"""A swing gives back at least this share of what was won,"""
SMOOTHNESS = 0.6
"""and the course over the last 20 points is smooth: von Neumann's ratio, 1 for white noise, is below this."""
RATIO_WINDOW = 20
LEAST = 0.5
"""What was won counts as this share of |L0| at least: noise around the start is no oscillation."""
CALM = 100
"""Points without a swing after which it is over."""
BEGIN = 10


class Memory(msgspec.Struct):
    seen: int = 0
    first: float = math.nan
    start: list[float] = []
    best: float = math.inf
    raw: list[float] = []
    rising: bool = False
    low: float = math.inf
    """The least since the last swing came down."""
    high: float = -math.inf
    """The greatest of the swing that is up."""
    low_step: int = 0
    swings: list[tuple[int, int, float]] = []
    """Those of the window: when counted (by `seen`), the step it rose from, and its size."""
    onset: int = 0
    open: bool = False


class Oscillation:
    """Rises of the loss's median of 3 by >= 35 % of L0 - best; four within 100 points are an oscillation.

    Each has to be part of a smooth course: von Neumann's ratio mean((x' - x)²) / 2 var(x) over 20 points
    is 1 ± 0.22 under white noise, however heavy its tail or bimodal (mixup), and small where the loss
    swings (von Neumann, Annals of Mathematical Statistics 12, 1941).
    """

    name: ClassVar[str] = "oscillation"

    def __init__(self) -> None:
        self._memory = Memory()

    def update(self, points: Points) -> list[Signal]:
        loss = points.column("loss")
        signals: list[Signal] = []
        at = 0
        while at < len(points):
            at += self._calm(points.step[at:], loss.values[at:])
            for step, x in rows(at, points.step, loss.values):
                if math.isfinite(x):
                    self._point(step, x if -HUGE < x < HUGE else math.copysign(HUGE, x), signals)
            at += SINGLY
        return signals

    def mark(self, step: int) -> None:
        """Swings are counted anew."""
        old = self._memory
        self._memory = Memory(first=old.first, open=old.open, swings=old.swings[-1:], onset=old.onset)

    def state(self) -> dict[str, Any]:
        return to_state(self._memory)

    def restore(self, state: dict[str, Any]) -> None:
        self._memory = from_state(state, Memory)

    def _calm(self, step: npt.NDArray[np.int64], loss: F8) -> int:
        """Take all at once, as many of the first points as come before a swing up; how many."""
        m = self._memory
        if len(step) < BATCH or m.open or m.rising or math.isnan(m.first) or m.seen < SMOOTH:
            return 0
        known = np.flatnonzero(np.isfinite(loss))
        x = np.clip(loss[known], -HUGE, HUGE)
        a, b, c = (np.concatenate((m.raw[-2:], x))[i : i + len(x)] for i in range(SMOOTH))
        value = np.maximum(np.minimum(a, b), np.minimum(np.maximum(a, b), c))  # the median of three
        best = np.minimum.accumulate(np.concatenate(([m.best], value)))[1:]
        low = np.minimum.accumulate(np.concatenate(([m.low], value)))
        enough = SIZE * np.maximum(m.first - best, LEAST * abs(m.first))
        swings = np.flatnonzero((value >= low[:-1]) & (value - low[:-1] >= enough) & (enough > 0))
        taken = int(swings[0]) if len(swings) else len(known)
        if taken:
            lower = np.flatnonzero(value[:taken] < low[:taken])
            if len(lower):
                m.low, m.low_step = float(value[lower[-1]]), int(step[known[lower[-1]]])
            m.best = float(best[taken - 1])
            m.seen += taken
            extend(m.raw, x[:taken].tolist(), RATIO_WINDOW)
        return int(known[taken]) if taken < len(known) else len(step)

    def _point(self, step: int, x: float, signals: list[Signal]) -> None:
        m = self._memory
        m.seen += 1
        if math.isnan(m.first):
            m.start.append(x)
            m.first = start_of(m.start) if len(m.start) == FIRST else math.nan
        push(m.raw, x, RATIO_WINDOW)
        if math.isnan(m.first) or m.seen < SMOOTH:
            return
        a, b, c = m.raw[-3:]
        if a > b:
            a, b = b, a
        value = a if c < a else b if c > b else c  # the median of three
        if value < m.best:
            m.best = value
        enough = SIZE * max(m.first - m.best, LEAST * abs(m.first))
        if m.rising:
            m.high = max(m.high, value)
            if m.high - value >= 0.5 * enough:
                m.rising, m.low, m.low_step = False, value, step
        elif value < m.low:
            m.low, m.low_step = value, step
        elif value - m.low >= enough > 0:
            m.rising, m.high = True, value
            if _roughness(m.raw[-RATIO_WINDOW:]) < SMOOTHNESS:
                m.swings = [swing for swing in m.swings if swing[0] > m.seen - WINDOW]
                m.swings.append((m.seen, m.low_step, value - m.low))
                if len(m.swings) >= SWINGS and not m.open:
                    m.open, m.onset = True, m.swings[0][1]
                    signals.append(self._signal(step))
        if m.open and m.swings and m.seen - m.swings[-1][0] >= CALM:
            m.open = False
            signals.append(self._signal(step))

    def _signal(self, step: int) -> Signal:
        m = self._memory
        sizes = [size for _, _, size in m.swings]
        won = m.first - m.best
        text = f"the loss swung up {len(sizes)} times within {WINDOW} points, by up to {max(sizes):.3g}"
        if not m.open:
            text = f"no swing of the loss for {CALM} points"
        return Signal(
            kind="oscillation",
            step=step,
            onset_step=m.onset,
            severity="warning",
            summary=text,
            over=not m.open,
            evidence={
                "swings": len(sizes),
                "largest": max(sizes),
                "largest_share_of_progress": max(sizes) / won if won > 0 else math.inf,
                "roughness": _roughness(m.raw[-RATIO_WINDOW:]),
            },
        )


def _roughness(values: list[float]) -> float:
    """Von Neumann's ratio over twice its expectation under white noise, inf where nothing varies."""
    mean = sum(values) / len(values)
    spread = sum((value - mean) ** 2 for value in values) / len(values)
    change = sum((b - a) ** 2 for a, b in pairwise(values)) / max(len(values) - 1, 1)
    return change / (2 * spread) if 0 < spread < math.inf else math.inf

"""A clip that always cuts."""

import math
from typing import Any, ClassVar

import msgspec

from optwatch.detect.base import Signal
from optwatch.detect.memory import from_state, median, push, to_state
from optwatch.series.points import Points

WINDOW = 500
SATURATED, FREED = 0.95, 0.5
"""Share of the last 500 points that were clipped, from which on and below which it is over."""
DEPTH = 3.0
"""The norm before clipping over the one after, in the median, from which clipping is more than a guard."""


class Memory(msgspec.Struct):
    seen: int = 0
    ratios: list[float] = []
    open: bool = False
    onset: int = 0


class ClipSaturated:
    """Gradients clipped in > 95 % of 500 points, to a third or less: the clip sets the step's length."""

    name: ClassVar[str] = "clip_saturated"

    def __init__(self) -> None:
        self._memory = Memory()

    def update(self, points: Points) -> list[Signal]:
        raw, norm = points.column("grad_norm_raw"), points.column("grad_norm")
        if not raw.logged.any():
            return []
        signals: list[Signal] = []
        m = self._memory
        for step, before, after in zip(
            points.step.tolist(), raw.values.tolist(), norm.values.tolist(), strict=True
        ):
            if not (math.isfinite(before) and 0 < after < math.inf):
                continue
            m.seen += 1
            push(m.ratios, before / after, WINDOW)
            if m.seen < WINDOW or m.seen % 10:
                continue
            last = m.ratios[-WINDOW:]
            share = sum(ratio > 1.001 for ratio in last) / WINDOW
            if not m.open and share > SATURATED and median(last) > DEPTH:
                m.open, m.onset = True, step
                signals.append(self._signal(step, share, median(last)))
            elif m.open and share < FREED:
                m.open = False
                signals.append(self._signal(step, share, median(last)))
        return signals

    def mark(self, step: int) -> None:
        """The share is counted anew."""
        self._memory.ratios, self._memory.seen = [], 0

    def state(self) -> dict[str, Any]:
        return to_state(self._memory)

    def restore(self, state: dict[str, Any]) -> None:
        self._memory = from_state(state, Memory)

    def _signal(self, step: int, share: float, depth: float) -> Signal:
        return Signal(
            kind="clip_saturated",
            step=step,
            onset_step=self._memory.onset,
            severity="warning",
            summary=f"{share:.0%} of the last {WINDOW} steps were clipped, to 1/{depth:.3g} in the median",
            over=not self._memory.open,
            evidence={"share": share, "median_ratio": depth},
        )

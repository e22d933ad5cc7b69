"""A loss scale that collapses."""

import math
from typing import Any, ClassVar

import msgspec

from optwatch.detect.base import Signal
from optwatch.detect.memory import from_state, to_state
from optwatch.series.points import Points

LEAST_SCALE = 1.0
"""A loss scale below this makes small gradients smaller still."""


class Memory(msgspec.Struct):
    peak: float = 0.0
    open: bool = False
    onset: int = 0


class LossScale:
    """A GradScaler's scale below 1: it halves at every overflow, so that every step must overflow."""

    name: ClassVar[str] = "loss_scale"

    def __init__(self) -> None:
        self._memory = Memory()

    def update(self, points: Points) -> list[Signal]:
        scale = points.column("loss_scale")
        if not scale.logged.any():
            return []
        signals: list[Signal] = []
        m = self._memory
        for step, value in zip(points.step.tolist(), scale.values.tolist(), strict=True):
            if not math.isfinite(value):
                continue
            m.peak = max(m.peak, value)
            low = value < LEAST_SCALE
            if low != m.open:
                m.open = low
                m.onset = step if low else m.onset
                signals.append(
                    Signal(
                        kind="loss_scale_collapse",
                        step=step,
                        onset_step=m.onset,
                        severity="warning",
                        summary=f"the loss scale is {value:.3g}, at its peak it was {m.peak:.3g}",
                        over=not low,
                        evidence={"scale": value, "peak": m.peak},
                    )
                )
        return signals

    def mark(self, step: int) -> None:
        """Nothing here depends on the past."""

    def state(self) -> dict[str, Any]:
        return to_state(self._memory)

    def restore(self, state: dict[str, Any]) -> None:
        self._memory = from_state(state, Memory)

"""Non-finite values: a NaN or inf in the loss, the gradient norm, or a tensor's gradient or moments."""

import math
from typing import Any, ClassVar

import msgspec
import numpy as np

from optwatch.detect.base import Signal
from optwatch.detect.memory import from_state, to_state
from optwatch.series.points import Points

CALM = 20
"""Finite points in a row after which it is over."""
AMP_RUN = 5
"""Under a GradScaler an inf gradient is normal: it is one too many from this many in a row on,"""
AMP_WINDOW = 1_000
AMP_SHARE = 0.05
"""or above this share of the last 1,000 points. A falling scale is `loss_scale_collapse`."""


class Memory(msgspec.Struct):
    open: bool = False
    onset: int = 0
    count: int = 0
    calm: int = 0
    tensor: str | None = None
    where: str = ""
    """In what it was seen when it was last told of."""
    moments: bool = False
    """The last sample saw non-finite moments: they stay so, whatever the points between samples are."""
    scaled: bool = False
    """A loss scale was logged: AMP."""
    seen: int = 0
    run: int = 0
    overflows: list[int] = []
    """The numbers (by `seen`) of the points with an overflow among the last 1,000."""


class NonFinite:
    """At once, with the tensor in which it began. A column that was never finite is still the loss."""

    name: ClassVar[str] = "non_finite"

    def __init__(self) -> None:
        self._memory = Memory()

    def update(self, points: Points) -> list[Signal]:
        loss, norm = points.column("loss"), points.column("grad_norm")
        scaled = points.column("loss_scale").logged
        bad_loss = loss.logged & ~np.isfinite(loss.values)
        bad_norm = norm.logged & ~np.isfinite(norm.values)
        gradients, moments = _first(points, "grad_nonfinite"), _first(points, "moments_nonfinite")
        m = self._memory
        if not (
            m.open
            or m.overflows
            or bad_loss.any()
            or bad_norm.any()
            or any([*gradients.values(), *moments.values()])
        ):
            m.seen += len(points)
            m.scaled = m.scaled or bool(scaled.any())
            return []
        signals: list[Signal] = []
        for i, step in enumerate(points.step.tolist()):
            m.scaled = m.scaled or bool(scaled[i])
            m.seen += 1
            tensor, lasting = gradients.get(step), moments.get(step)
            m.moments = bool(lasting) if step in moments else m.moments
            where = (
                "loss" if bad_loss[i]
                else "gradient norm" if bad_norm[i]
                else "gradient" if tensor
                else "moments" if lasting
                else ""
            )  # fmt: skip
            if where and self._is_overflow(where):
                where = ""
            elif not where:
                m.run = 0
            if where or loss.logged[i] or norm.logged[i]:
                self._point(step, where, tensor or lasting, float(loss.values[i]), signals)
        return signals

    def mark(self, step: int) -> None:
        """A rollback is one: it mends the moments, unless the next sample says otherwise."""
        self._memory.moments = False

    def acted(self, step: int) -> None:
        """A restart mends them, too."""
        self._memory.moments = False

    def state(self) -> dict[str, Any]:
        return to_state(self._memory)

    def restore(self, state: dict[str, Any]) -> None:
        self._memory = from_state(state, Memory)

    def _is_overflow(self, where: str) -> bool:
        """Whether a non-finite gradient is AMP looking for its scale, which is normal."""
        m = self._memory
        if where in ("loss", "moments") or not m.scaled:
            return False
        m.run += 1
        m.overflows = [number for number in m.overflows if number > m.seen - AMP_WINDOW] + [m.seen]
        return m.run < AMP_RUN and len(m.overflows) <= max(AMP_RUN, AMP_SHARE * min(m.seen, AMP_WINDOW))

    def _point(self, step: int, where: str, tensor: str | None, loss: float, signals: list[Signal]) -> None:
        m = self._memory
        if where:
            first = not m.open
            if first:
                m.open, m.onset, m.count, m.tensor, m.where = True, step, 0, None, where
            m.count += 1
            m.calm = 0
            found = tensor is not None and m.tensor is None
            m.tensor = m.tensor or tensor
            lasts = where == "moments" != m.where
            if first or found or lasts:
                m.where = where
                signals.append(self._signal(step, where, loss))
        elif m.open and not m.moments:
            m.calm += 1
            if m.calm >= CALM:
                m.open = False
                signals.append(self._signal(step, "", loss))

    def _signal(self, step: int, where: str, loss: float) -> Signal:
        m = self._memory
        value = "NaN" if math.isnan(loss) else f"{loss}" if math.isinf(loss) else "finite"
        text = f"non-finite {where}" if where else f"finite again for {CALM} points"
        if m.tensor is not None:
            text += f", first in {m.tensor}"
        evidence: dict[str, float | int | str] = {"points": m.count, "loss": value}
        if where:
            evidence["where"] = where
        return Signal(
            kind="non_finite",
            step=step,
            onset_step=m.onset,
            severity="critical",
            summary=text,
            over=not where,
            tensor=m.tensor,
            evidence=evidence,
        )


def _first(points: Points, count: str) -> dict[int, str | None]:
    """Of each sampled step, the first tensor in the order of depth with such elements, None without one."""
    samples = points.samples
    if samples is None or count not in samples.counts:
        return {}
    bad = samples.counts[count] > 0
    return {
        step: samples.names[int(np.argmax(bad[row]))] if bad[row].any() else None
        for row, step in enumerate(samples.step.tolist())
    }

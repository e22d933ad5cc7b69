"""A net that is too sensitive at its start: gradients that explode over depth, over time, or by its input."""

from typing import Any, ClassVar

import msgspec
import numpy as np

from optwatch.detect.base import Signal
from optwatch.detect.memory import from_state, to_state
from optwatch.detect.vanishing import weights
from optwatch.series.points import Points

EARLY = 50
"""Points within which a sample is one of the start. Later a small loss alone makes the ratio large."""
SENSITIVE = 5.0
"""A fifth of a layer then changes the loss by as much as itself; nets as they are usually initialised, with
inputs of order one, are at 0.02 to 2."""


class Memory(msgspec.Struct):
    seen: int = 0
    done: bool = False


class Sensitivity:
    """One hint, from the first sample: a layer's E = |∇W| |W| / L is over 5.

    E bounds, to first order, the relative change of the loss L for a relative change of the weights W
    (Cauchy-Schwarz), and does not depend on how many elements the layer has nor on the loss's unit.
    """

    name: ClassVar[str] = "sensitivity"

    def __init__(self) -> None:
        self._memory = Memory()

    def update(self, points: Points) -> list[Signal]:
        m, samples = self._memory, points.samples
        early = points.step[: max(EARLY - m.seen, 0)]
        m.seen += len(points)
        if m.done or samples is None or not {"grad_rms", "param_rms"} <= samples.stats.keys():
            return []
        chosen = weights(samples)
        for at in np.flatnonzero(np.isin(samples.step, early)).tolist():
            step = int(samples.step[at])
            loss = float(points.column("loss").values[np.searchsorted(points.step, step)])
            gradient, weight = (
                samples.stats[name][at].astype(np.float64) for name in ("grad_rms", "param_rms")
            )
            ratio = np.where(chosen, gradient * weight * samples.numel / loss, np.nan)
            if not loss > 0 or not np.isfinite(ratio).any():
                continue
            m.done = True
            worst = int(np.nanargmax(np.where(np.isfinite(ratio), ratio, -1)))
            if ratio[worst] > SENSITIVE:
                return [_signal(step, samples.names[worst], float(ratio[worst]), loss)]
            break
        return []

    def mark(self, step: int) -> None:
        """The start is the run's."""

    def state(self) -> dict[str, Any]:
        return to_state(self._memory)

    def restore(self, state: dict[str, Any]) -> None:
        self._memory = from_state(state, Memory)


def _signal(step: int, tensor: str, ratio: float, loss: float) -> Signal:
    return Signal(
        kind="exploding_gradient",
        step=step,
        onset_step=step,
        severity="info",
        summary=f"a change of {tensor} by 1 % changes the loss by up to {ratio:.3g} %, from the start on",
        tensor=tensor,
        evidence={"sensitivity": ratio, "loss": loss},
    )

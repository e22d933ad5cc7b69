"""A gradient far above the usual that the moments hold, whether or not a step was looked at when it came.

The second moment cannot grow tenfold between two samples and be far above the square of the gradient at the
later one unless a gradient came in between that was far above both: sqrt(v̂) then holds every update down,
for about 1 / (1 - β2) steps. In the same way a first moment that grew and points elsewhere than the gradient
carries the parameters along with what is past.
"""

import math
from typing import Any, ClassVar

import msgspec
import numpy as np
import numpy.typing as npt

from optwatch.detect.base import Signal
from optwatch.detect.memory import from_state, to_state
from optwatch.detect.vanishing import median_layer, of_layers, weights
from optwatch.series.points import Points
from optwatch.wire.findings import Cause

GROWTH = 10.0
"""Growth of a moment from one sample to the next, in the median layer."""
RMS_T = 0.5
"""RMS of the gradient over sqrt(v̂), in the median layer, below which the second moment holds updates down;
1 where gradients are as they were."""
OVER, APART = 3.0, 0.5
"""Size of the first moment over that of the gradient, and cosine between the two, from which it carries on
what is past."""

Values = npt.NDArray[np.float64]


class Memory(msgspec.Struct):
    step: int = 0
    """Of the sample before."""
    first: list[float] = []
    """By layer, the RMS of its first moment then; NaN where it has none."""
    second: list[float] = []
    """By layer, v̂ then, as far as the gradient and RMS_t tell."""
    since: int | None = None
    """The step after which the gradient came that is held, None where none is."""
    tensor: str = ""
    """Which layer it rules most."""


class HeldGradient:
    """At the first sample that shows it; over as soon as one shows that it is forgotten."""

    name: ClassVar[str] = "held_gradient"

    def __init__(self) -> None:
        self._memory = Memory()

    def update(self, points: Points) -> list[Signal]:
        samples = points.samples
        if samples is None or not len(samples.step) or "exp_avg_rms" not in samples.stats:
            return []
        chosen = weights(samples)
        if not chosen.any():
            return []
        names = [name for name, keep in zip(samples.names, chosen, strict=True) if keep]
        columns = ("exp_avg_rms", "rms_t", "grad_rms", "cos_grad_exp_avg")
        stats = [of_layers(samples, name, chosen) for name in columns]
        return [
            signal
            for i, step in enumerate(samples.step.tolist())
            if (signal := self._sample(step, names, *(column[i] for column in stats))) is not None
        ]

    def mark(self, step: int) -> None:
        """What the moments hold does not depend on what was planned."""

    def state(self) -> dict[str, Any]:
        return to_state(self._memory)

    def restore(self, state: dict[str, Any]) -> None:
        self._memory = from_state(state, Memory)

    def _sample(
        self, step: int, names: list[str], first: Values, rms_t: Values, grad: Values, cosine: Values
    ) -> Signal | None:
        m = self._memory
        before = m.step
        with np.errstate(divide="ignore", invalid="ignore"):
            second = np.square(grad / rms_t)  # free of the bias that the stored moment has in its first steps
            over = median_layer(first / grad)
        known = len(m.first) == len(first)
        grown = [
            _growth(now, np.array(then)) for now, then in ((first, m.first), (second, m.second)) if known
        ]
        m.step, m.first, m.second = step, first.tolist(), second.tolist()
        lags = median_layer(rms_t) < RMS_T
        carries = over > OVER and median_layer(cosine) < APART
        if m.since is None:
            came = known and ((lags and grown[1] >= GROWTH) or (carries and grown[0] >= GROWTH))
            if not came:
                return None
            m.since, m.tensor = before, names[_worst(rms_t, first)]
            most = max(each for each in grown if not math.isnan(each))
            between = f"between steps {before} and {step}"
            text = f"the moments grew × {most:.3g} {between}, and the gradient did not"
            return self._signal(
                step,
                before,
                text,
                evidence={"grown": most, "rms_t": median_layer(rms_t)},
                causes=(
                    Cause("stale_moments", 0.7, text),
                    Cause("bad_batch", 0.3, "one gradient was far too large"),
                ),
            )
        if lags or carries:
            return None
        since, m.since = m.since, None
        return self._signal(step, since, "the moments have forgotten the gradient that they held", over=True)

    def _signal(self, step: int, since: int, text: str, **more: Any) -> Signal:
        tensor = self._memory.tensor
        return Signal(
            kind="exploding_gradient",
            key="held",
            severity="info",
            step=step,
            onset_step=since + 1,
            summary=f"{tensor}: {text}",
            tensor=tensor,
            **more,
        )


def _growth(now: Values, then: Values) -> float:
    """The median factor by which layers grew; NaN where none is known."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return median_layer(now / then)


def _worst(rms_t: Values, first: Values) -> int:
    """The layer whose updates are held down most; without a second moment, that of the largest first one."""
    if np.isfinite(rms_t).any():
        return int(np.nanargmin(rms_t))
    return int(np.nanargmax(first))

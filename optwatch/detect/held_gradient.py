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
from optwatch.detect.vanishing import weights
from optwatch.series.points import Points, Samples
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
        stats = [_column(samples, name, chosen) for name in columns]
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
            over = _median(first / grad)
        known = len(m.first) == len(first)
        grown = [
            _growth(now, np.array(then)) for now, then in ((first, m.first), (second, m.second)) if known
        ]
        m.step, m.first, m.second = step, first.tolist(), second.tolist()
        lags = _median(rms_t) < RMS_T
        carries = over > OVER and _median(cosine) < APART
        if m.since is None:
            came = known and ((lags and grown[1] >= GROWTH) or (carries and grown[0] >= GROWTH))
            if not came:
                return None
            m.since, m.tensor = before, names[_worst(rms_t, first)]
            largest = max(each for each in grown if not math.isnan(each))
            return self._signal(step, before, m.tensor, largest, rms_t)
        if lags or carries:
            return None
        since, m.since = m.since, None
        return Signal(
            kind="exploding_gradient",
            key="held",
            severity="info",
            step=step,
            onset_step=since + 1,
            over=True,
            summary=f"{m.tensor}: the moments have forgotten the gradient that they held",
            tensor=m.tensor,
        )

    def _signal(self, step: int, before: int, name: str, grown: float, rms_t: Values) -> Signal:
        text = f"the moments grew × {grown:.3g} between steps {before} and {step}, and the gradient did not"
        return Signal(
            kind="exploding_gradient",
            key="held",
            severity="info",
            step=step,
            onset_step=before + 1,
            summary=f"{name}: {text}",
            tensor=name,
            evidence={"grown": grown, "rms_t": _median(rms_t)},
            causes=(
                Cause("stale_moments", 0.7, text),
                Cause("bad_batch", 0.3, "one gradient was far too large"),
            ),
        )


def _column(samples: Samples, name: str, chosen: npt.NDArray[np.bool_]) -> Values:
    block = samples.stats.get(name)
    if block is None:
        return np.full((len(samples.step), int(chosen.sum())), np.nan)
    return block[:, chosen].astype(np.float64)


def _growth(now: Values, then: Values) -> float:
    """The median factor by which layers grew; NaN where none is known."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return _median(now / then)


def _worst(rms_t: Values, first: Values) -> int:
    """The layer whose updates are held down most; without a second moment, that of the largest first one."""
    if np.isfinite(rms_t).any():
        return int(np.nanargmin(rms_t))
    return int(np.nanargmax(first))


def _median(values: Values) -> float:
    known = values[np.isfinite(values)]
    return float(np.median(known)) if len(known) else float("nan")

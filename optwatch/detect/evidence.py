"""What the causes are judged by: the recent course of LR, gradient and tensors, and the optimizer."""

import math
import re
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np

from optwatch.detect.lint import betas
from optwatch.detect.memory import from_state, median, to_state
from optwatch.detect.vanishing import weights
from optwatch.series import noise
from optwatch.series.points import Points
from optwatch.wire.messages import OptimizerInfo

REACH = 600
"""Points that a question about the past looks over at most."""
KEPT = 2_800
"""Points of history: as much and what may have come since, at most 1,024 points, whatever the cut."""
BEFORE = 100
"""Points before an onset that say what was usual."""
INSIDE = ("input_", "dead/", "saturated/", "batch_size")
"""How the names of columns about the model's input and activations begin."""
MOST_INSIDE = 64
ATTENTION = re.compile(r"attn|attention|[qkv]_proj|encoder\.layers?\.\d", re.IGNORECASE)
CONVOLUTION = re.compile(r"conv|downsample", re.IGNORECASE)
"""Names of tensors by which transformers and convolutional nets are known."""
ADAPTIVE = (
    "Adam",
    "Lion",
    "LAMB",
    "RMSprop",
    "Adagrad",
    "Adadelta",
    "Adafactor",
    "AdaBelief",
    "NAdam",
    "RAdam",
)


class History(msgspec.Struct):
    steps: list[int] = []
    rates: list[float] = []
    norms: list[float] = []
    start: int = 0
    """The first step."""
    points: int = 0
    scaled_since: int | None = None
    clipped_since: int | None = None
    first_rate: float = math.nan
    """The LR at the first sample."""
    sampled: list[tuple[int, float, float]] = []
    """Step, the median update/param ratio of the layers, the first third's gradient over the last's."""
    noise: list[tuple[int, float, float]] = []
    """Step, trΣ and |G|² of the gradient (`series.noise`)."""
    inside: dict[str, list[tuple[int, float]]] = {}
    """Step and value of the columns about the model's input and activations."""
    attention: bool = False
    convolution: bool = False
    kind: str = ""
    beta2: float = math.nan
    epsilon: float = math.nan


class Evidence:
    """Asked as of a step: later points that it has seen already make no difference."""

    def __init__(self) -> None:
        self._history = History()

    def setup(self, optimizers: Sequence[OptimizerInfo]) -> None:
        """Remember the first optimizer's kind and its first group's numbers."""
        h = self._history
        for optimizer in optimizers[:1]:
            h.kind = optimizer.kind
            for group in optimizer.groups[:1]:
                if (pair := betas(group.options)) is not None:
                    h.beta2 = pair[1]
                epsilon = group.options.get("eps")
                if isinstance(epsilon, float):
                    h.epsilon = epsilon

    def noise_scale(self, step: int) -> float:
        """The gradient noise scale in batches as of a step, NaN where it is not known."""
        before = [row for row in self._history.noise if row[0] <= step]
        scale = noise.noise_scale(np.array([t for _, t, _ in before]), np.array([s for *_, s in before]))
        return math.nan if scale is None else scale

    def update(self, points: Points) -> None:
        """Remember at most 1,024 points at a time."""
        h = self._history
        if not len(points):
            return
        if h.points == 0:
            h.start = int(points.step[0])
        h.points += len(points)
        rate, norm = points.column("lr"), points.column("grad_norm")
        h.steps += points.step.tolist()
        trace, signal = points.column(noise.TRACE), points.column(noise.SIGNAL)
        for at in np.flatnonzero(trace.logged & signal.logged).tolist():
            h.noise.append((int(points.step[at]), float(trace.values[at]), float(signal.values[at])))
        del h.noise[: -2 * noise.WINDOW]
        h.rates += rate.values.tolist()
        h.norms += norm.values.tolist()
        if h.scaled_since is None:
            h.scaled_since = _since(points, "loss_scale")
        if h.clipped_since is None:
            h.clipped_since = _since(points, "grad_norm_raw")
        for values in (h.steps, h.rates, h.norms):
            del values[:-KEPT]
        self._look_inside(points)
        self._sample(points)

    @property
    def kind(self) -> str:
        """Of the optimizer: its class, "" where it is not known."""
        return self._history.kind

    @property
    def adaptive(self) -> bool:
        """Whether the optimizer keeps a second moment; where it is not known, it may."""
        return not self.kind or any(name in self.kind for name in ADAPTIVE)

    @property
    def layerwise(self) -> bool:
        """Whether the optimizer scales each layer's step by itself."""
        return self.kind.upper().endswith(("LAMB", "LARS"))

    @property
    def beta2(self) -> float:
        return self._history.beta2

    def held_down(self, ratio: float) -> float:
        """By what factor one gradient, `ratio` times the usual, shortens the updates that follow: the root of
        what it makes of the second moment, 1 + (1 - β2) ratio². 1 without one; nothing is known of β2: 1."""
        if not (self.adaptive and 0 < self.beta2 < 1 and math.isfinite(ratio)):
            return 1.0
        return math.sqrt(1 + (1 - self.beta2) * ratio**2)

    @property
    def epsilon(self) -> float:
        return self._history.epsilon

    @property
    def attention(self) -> bool:
        """Whether the tensors' names are those of a transformer."""
        return self._history.attention

    @property
    def convolution(self) -> bool:
        """Whether they are those of a convolutional net."""
        return self._history.convolution and not self._history.attention

    def batch_size(self, step: int) -> float:
        """Samples in a step's batch, NaN where that is not known."""
        return self.seen("batch_size", step)

    def scaled(self, step: int) -> bool:
        """Whether a loss scale was logged: AMP with fp16."""
        since = self._history.scaled_since
        return since is not None and since <= step

    def clipped(self, step: int) -> bool:
        """Whether the script clips gradients."""
        since = self._history.clipped_since
        return since is not None and since <= step

    def steps_from_start(self, step: int) -> int:
        return step - self._history.start

    def rate_rise(self, onset: int, step: int) -> tuple[float, float]:
        """The greatest LR of the 25 steps before `onset` up to `step`, and that over what was usual before.

        (nan, 1) where the LR is not known.
        """
        h = self._history
        around = _finite(h.steps, h.rates, onset - 25, step)
        before = _finite(h.steps, h.rates, onset - 25 - BEFORE, onset - 26)
        usual = median(before or around[:1])
        if not around or not usual > 0:
            return math.nan, 1.0
        return max(around), max(around) / usual

    def rate(self, step: int) -> float:
        """The LR at `step`, or the last one before it."""
        h = self._history
        known = _finite(h.steps, h.rates, step - 50, step)
        return known[-1] if known else math.nan

    def norm_rise(self, onset: int, step: int) -> float:
        """The greatest gradient norm of the 3 steps before `onset` up to `step`, over the usual one."""
        h = self._history
        around = _finite(h.steps, h.norms, onset - 3, step)
        usual = median(_finite(h.steps, h.norms, onset - 3 - BEFORE, onset - 4))
        return max(around) / usual if around and usual > 0 else math.nan

    def update_ratio(self, step: int) -> float:
        """The median layer's update/param ratio at the last sample up to `step`, NaN where unknown."""
        known = [ratio for at, ratio, _ in self._history.sampled if at <= step and math.isfinite(ratio)]
        return known[-1] if known else math.nan

    def update_fall(self, step: int) -> float:
        """The median layer's update/param ratio at the first samples over that at the last, each over its LR.

        NaN where either is unknown.
        """
        begin, end = self._history.first_rate, self.rate(step)
        known = [ratio for at, ratio, _ in self._history.sampled if at <= step and ratio > 0]
        if len(known) < 20 or not (begin > 0 and end > 0):
            return math.nan
        return median(known[:5]) / begin / (median(known[-5:]) / end)

    def first_over_last(self, step: int) -> float:
        """The first layers' gradient over the last layers' at the first samples, NaN where unknown."""
        known = [share for at, _, share in self._history.sampled[:5] if at <= step and math.isfinite(share)]
        return median(known)

    def seen(self, name: str, step: int) -> float:
        """The last value up to `step` of a column about the model's insides, NaN where unknown."""
        return next((x for at, x in reversed(self._history.inside.get(name, [])) if at <= step), math.nan)

    def worst(self, prefix: str, step: int) -> tuple[str, float]:
        """Of the modules whose columns begin so, the one with the greatest last value; ("", 0) if none."""
        known = [
            (name.removeprefix(prefix), self.seen(name, step))
            for name in self._history.inside
            if name.startswith(prefix)
        ]
        return max(
            ((n, x) for n, x in known if math.isfinite(x)), key=lambda pair: pair[1], default=("", 0.0)
        )

    def state(self) -> dict[str, Any]:
        return to_state(self._history)

    def restore(self, state: dict[str, Any]) -> None:
        """Raises `ValueError` where it is no such state."""
        self._history = from_state(state, History)

    def _look_inside(self, points: Points) -> None:
        inside = self._history.inside
        for name, column in points.columns.items():
            if not name.startswith(INSIDE) or (name not in inside and len(inside) >= MOST_INSIDE):
                continue
            at = column.logged.nonzero()[0]
            if len(at):
                kept = inside.setdefault(name, [])
                kept += zip(points.step[at].tolist(), column.values[at].tolist(), strict=True)
                del kept[:-REACH]

    def _sample(self, points: Points) -> None:
        samples = points.samples
        h = self._history
        if samples is None or not {"update_rms", "param_rms", "grad_rms"} <= samples.stats.keys():
            return
        h.attention = h.attention or any(map(ATTENTION.search, samples.names))
        h.convolution = h.convolution or any(map(CONVOLUTION.search, samples.names))
        chosen = weights(samples)
        count = int(chosen.sum())
        if not count:
            return
        third = max(count // 3, 1)
        ratios = samples.stats["update_rms"][:, chosen] / samples.stats["param_rms"][:, chosen]
        gradients = samples.stats["grad_rms"][:, chosen].astype(np.float64)
        for step, ratio, gradient in zip(samples.step.tolist(), ratios, gradients, strict=True):
            known = ratio[np.isfinite(ratio)].tolist()
            first, last = median(gradient[:third].tolist()), median(gradient[-third:].tolist())
            if not h.first_rate > 0:
                h.first_rate = self.rate(step)
            h.sampled.append((step, median(known), first / last if last > 0 else math.nan))
        # The first samples stay: they are the start that some causes are about.
        if len(h.sampled) > KEPT:
            del h.sampled[5:-REACH]


def _since(points: Points, name: str) -> int | None:
    logged = points.column(name).logged
    return int(points.step[np.argmax(logged)]) if logged.any() else None


def _finite(steps: list[int], values: list[float], low: int, high: int) -> list[float]:
    """The finite values from step `low` to `high`, both included."""
    start, stop = bisect_left(steps, low), bisect_right(steps, high)
    return [value for value in values[max(start, stop - REACH) : stop] if math.isfinite(value)]

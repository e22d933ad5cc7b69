"""One statistic of every tensor over depth and time, as a grid. Pure."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from optwatch_tui.charts import extent
from optwatch_tui.history import F8, Samples
from optwatch_tui.look import Look
from optwatch_tui.model import Snapshot


@dataclass(frozen=True)
class Statistic:
    """What a heat map can show. Values are compared as their logarithms."""

    key: str
    title: str


_ENOUGH = 8_192
"""Values that tell where the ramp should begin and end."""

STATISTICS: tuple[Statistic, ...] = (
    Statistic("update_ratio", "update/param"),
    Statistic("grad_rms", "gradient rms"),
    Statistic("exp_avg_rms", "1st moment rms"),
    Statistic("exp_avg_sq_mean", "2nd moment mean"),
    Statistic("rms_t", "RMS_t"),
    Statistic("eps_share", "share under ε"),
    Statistic("param_rms", "parameter rms"),
)


def statistic_values(samples: Samples, statistic: Statistic) -> F8:
    """A statistic over samples and tensors, f8[k, T], NaN where it was not measured."""
    if statistic.key == "update_ratio":
        update, param = samples.stat("update_rms"), samples.stat("param_rms")
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(param > 0, update / param, np.nan).astype(np.float64)
    return samples.stat(statistic.key).astype(np.float64)


@dataclass(frozen=True, eq=False)
class Heat:
    """What a heat map draws: `values` f8[k, T] at `step` i8[k], tensors in the order shown."""

    statistic: Statistic
    names: tuple[str, ...]
    step: npt.NDArray[np.int64]
    values: F8
    first: float
    last: float
    cursor: float | None = None
    flagged: frozenset[str] = frozenset()
    """Tensors that an open finding names."""

    @cached_property
    def limits(self) -> tuple[float, float]:
        """log10 of what the ends of the ramp stand for."""
        return ramp_limits(self.values)

    def column(self, step: float, width: int) -> int | None:
        """The column of the grid in which a step lies, None outside."""
        if not self.first <= step <= self.last:
            return None
        return round((step - self.first) / max(self.last - self.first, 1e-9) * (width - 1))


def group_bounds(tensors: int, lines: int) -> list[tuple[int, int]]:
    """Neighbours that share a line: (first, one past the last) of each, as even as can be."""
    cuts = np.linspace(0, tensors, min(tensors, max(lines, 1)) + 1).round().astype(int)
    return [(int(a), int(b)) for a, b in pairwise(cuts)]


def heat_grid(heat: Heat, groups: Sequence[tuple[int, int]], width: int) -> F8:
    """Geometric means over groups and time, f8[groups, width]; NaN: nothing measured there."""
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.log10(np.where(heat.values > 0, heat.values, np.nan))
    place = (heat.step - heat.first) / max(heat.last - heat.first, 1e-9) * (width - 1)
    at = np.rint(place).astype(np.int64)
    inside = (at >= 0) & (at < width)
    logs, at = logs[inside], at[inside]
    grid = np.full((len(groups), width), np.nan)
    if not len(at):
        return grid
    starts = np.flatnonzero(np.diff(at, prepend=at[0] - 1))
    bounds = [start for start, _ in groups]
    there = np.isfinite(logs)
    total = np.add.reduceat(np.add.reduceat(np.where(there, logs, 0.0), starts, axis=0), bounds, axis=1)
    number_of = np.add.reduceat(np.add.reduceat(there.astype(float), starts, axis=0), bounds, axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = 10 ** (total / number_of)
    # A sample stands until the next one: no stripes between sparse samples.
    held = np.searchsorted(at[starts], np.arange(width), side="right") - 1
    shown = (held >= 0) & (np.arange(width) <= at[-1])
    grid[:, shown] = mean.T[:, held[shown]]
    return grid


def ramp_limits(values: F8) -> tuple[float, float]:
    """log10 of what the ends of the ramp stand for: the 2nd and 98th percentile, a decade at least."""
    stride = values.size // _ENOUGH + 1
    while math.gcd(stride, values.shape[-1]) > 1:  # else it would meet the same few tensors again and again
        stride += 1
    some = values.ravel()[::stride]
    logs = np.log10(some[np.isfinite(some) & (some > 0)])
    if not len(logs):
        return -1.0, 0.0
    low, high = np.percentile(logs, [2, 98])
    if high - low < 1:
        low, high = (low + high - 1) / 2, (low + high + 1) / 2
    return float(low), float(high)


def heat(snapshot: Snapshot, statistic: Statistic, look: Look) -> Heat:
    """What a heat map shows of a snapshot, in the order of depth."""
    samples = snapshot.samples
    first, last = look.window.edges(extent(snapshot))
    if len(samples.step):
        last = min(last, max(float(samples.step[-1]), first + 1))
    return Heat(
        statistic=statistic,
        names=tuple(tensor.name for tensor in samples.tensors),
        step=samples.step,
        values=statistic_values(samples, statistic),
        first=first,
        last=last,
        cursor=look.cursor,
        flagged=frozenset(f.tensor for f in snapshot.open_findings if f.tensor is not None),
    )

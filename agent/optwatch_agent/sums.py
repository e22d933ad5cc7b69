"""What a measurement of many tensors comes to: mergeable sums, and the sample made of them."""

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from optwatch.wire.messages import COUNTS, STATS

F8 = npt.NDArray[np.float64]


class Sample(NamedTuple):
    """One measurement of T tensors: `stats` f4[T, len(STATS)], `counts` u8[T, len(COUNTS)], NaN where not
    measured, and the global norms, None where a tensor is missing in them."""

    stats: npt.NDArray[np.float32]
    counts: npt.NDArray[np.uint64]
    param_norm: float | None
    update_norm: float | None


class Sums:
    """Mergeable sums of T tensors in float64, to which passes add; roots and ratios are taken at the end."""

    COLUMNS = (
        "grad",
        "grad_max",
        "first",
        "second",
        "second_min",
        "second_max",
        "param",
        "param_max",
        "update",
        "rms_t",
        "dot",
        "eps",
    )
    """Each in the place of the statistic that is made of it."""
    PEAKS = ("grad_max", "param_max", "second_min", "second_max")

    def __init__(self, tensors: int) -> None:
        self.numel = np.zeros(tensors)
        """f8[T], elements."""
        self.values = np.zeros((tensors, len(self.COLUMNS)))
        """f8[T, COLUMNS], 0 where there is nothing yet."""
        self.seen = np.zeros(self.values.shape, dtype=bool)
        """Where there is something: a sum may well be NaN."""
        self.counts = np.zeros((tensors, len(COUNTS)), dtype=np.uint64)
        """u8[T, COUNTS]."""

    def add(self, name: str, i: int, value: float) -> None:
        """Add to the sum of one tensor."""
        at = i, _AT[name]
        self.values[at] += value
        self.seen[at] = True

    def peak(self, name: str, i: int, value: float) -> None:
        """Take a minimum or maximum of a part of one tensor into account."""
        at = i, _AT[name]
        pick = np.minimum if name == "second_min" else np.maximum
        self.values[at] = pick(self.values[at], value) if self.seen[at] else value
        self.seen[at] = True

    def count(self, name: str, where: int | npt.NDArray[np.int64], elements: npt.ArrayLike) -> None:
        """Add to a count of one tensor's elements, or of each of several tensors'."""
        self.counts[where, COUNTS.index(name)] += np.asarray(elements, dtype=np.uint64)

    def put(self, name: str, where: npt.NDArray[np.int64], values: F8) -> None:
        """Set the sums or peaks of several tensors at once."""
        self.values[where, _AT[name]] = values
        self.seen[where, _AT[name]] = True

    def sample(self) -> Sample:
        """Everything as it is reported."""
        all_seen = bool(np.logical_and.reduce(self.seen, axis=None))
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
            stats = self.values.copy() if all_seen else np.where(self.seen, self.values, np.nan)
            np.divide(stats, self.numel[:, None], out=stats, where=_ARE_MEANS)
            np.sqrt(stats, out=stats, where=_ARE_ROOTS)
            cosine = stats[:, _AT["dot"]]
            cosine /= stats[:, _AT["grad"]]
            cosine /= stats[:, _AT["first"]]
            np.minimum(np.maximum(cosine, -1.0, out=cosine), 1.0, out=cosine)
            # A tensor without a gradient was not updated, an empty one has no norm.
            params_seen = all_seen or bool((self.seen[:, _AT["param"]] | (self.numel == 0)).all())
            updates_seen = all_seen or bool((self.seen[:, _AT["update"]] | ~self.seen[:, _AT["grad"]]).all())
            return Sample(
                stats=stats.astype(np.float32),
                counts=self.counts,
                param_norm=self._norm("param") if params_seen else None,
                update_norm=self._norm("update") if params_seen and updates_seen else None,
            )

    def _norm(self, name: str) -> float:
        return math.sqrt(np.add.reduce(self.values[:, _AT[name]]))


_AT = {name: at for at, name in enumerate(Sums.COLUMNS)}
_ROOTS = ("grad", "first", "param", "update", "rms_t")
_ARE_ROOTS = np.isin(Sums.COLUMNS, _ROOTS)
_ARE_MEANS = np.isin(Sums.COLUMNS, [*_ROOTS, "second", "eps", "dot"])
assert len(STATS) == len(_AT)

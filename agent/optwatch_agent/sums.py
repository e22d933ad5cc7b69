"""What a measurement of many tensors comes to: mergeable sums, and the sample made of them."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from optwatch.wire.messages import COUNTS, STATS

F8 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Sample:
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
        self._values = np.zeros((tensors, len(self.COLUMNS)))
        # Apart from the values: a sum may well be NaN.
        self._seen = np.zeros(self._values.shape, dtype=bool)
        self._counts = np.zeros((tensors, len(COUNTS)), dtype=np.uint64)

    def add(self, name: str, i: int, value: float) -> None:
        """Add to the sum of one tensor."""
        at = i, _AT[name]
        self._values[at] += value
        self._seen[at] = True

    def peak(self, name: str, i: int, value: float) -> None:
        """Take a minimum or maximum of a part of one tensor into account."""
        at = i, _AT[name]
        pick = np.minimum if name == "second_min" else np.maximum
        self._values[at] = pick(self._values[at], value) if self._seen[at] else value
        self._seen[at] = True

    def count(self, name: str, where: int | npt.NDArray[np.int64], elements: npt.ArrayLike) -> None:
        """Add to a count of one tensor's elements, or of each of several tensors'."""
        self._counts[where, COUNTS.index(name)] += np.asarray(elements, dtype=np.uint64)

    def put(self, name: str, where: npt.NDArray[np.int64], values: F8) -> None:
        """Set the sums or peaks of several tensors at once."""
        self._values[where, _AT[name]] = values
        self._seen[where, _AT[name]] = True

    def put_all(
        self, where: npt.NDArray[np.int64], values: F8, seen: npt.NDArray[np.bool_], counts: F8
    ) -> None:
        """Set all of several tensors: `values` and whether they are known, f8 and bool[n, COLUMNS], and
        `counts`, f8[n, COUNTS]."""
        self._values[where] = np.where(seen, values, 0.0)
        self._seen[where] = seen
        self._counts[where] = counts.astype(np.uint64)

    def sample(self, numel: F8) -> Sample:
        """Everything as it is reported; `numel` f8[T]."""
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
            stats = np.where(self._seen, self._values, np.nan)
            lengths = np.sqrt(stats[:, _AT["grad"]]) * np.sqrt(stats[:, _AT["first"]])
            cosine = np.clip(stats[:, _AT["dot"]] / lengths, -1.0, 1.0)
            np.divide(stats, numel[:, None], out=stats, where=_ARE_MEANS)
            np.sqrt(stats, out=stats, where=_ARE_ROOTS)
            stats[:, _AT["dot"]] = cosine
            # A tensor without a gradient was not updated, an empty one has no norm.
            params_seen = (self._seen[:, _AT["param"]] | (numel == 0)).all()
            updates_seen = (self._seen[:, _AT["update"]] | ~self._seen[:, _AT["grad"]]).all()
            params, updates = np.sqrt(self._values[:, [_AT["param"], _AT["update"]]].sum(axis=0)).tolist()
            return Sample(
                stats=stats.astype(np.float32),
                counts=self._counts,
                param_norm=params if params_seen else None,
                update_norm=updates if params_seen and updates_seen else None,
            )


_AT = {name: at for at, name in enumerate(Sums.COLUMNS)}
_ROOTS = ("grad", "first", "param", "update", "rms_t")
_ARE_ROOTS = np.isin(Sums.COLUMNS, _ROOTS)
_ARE_MEANS = np.isin(Sums.COLUMNS, [*_ROOTS, "second", "eps"])
assert len(STATS) == len(_AT)

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

    NAMES = ("grad", "first", "second", "param", "update", "rms_t", "dot", "eps")
    PEAKS = ("grad_max", "param_max", "second_min", "second_max")

    def __init__(self, tensors: int) -> None:
        self._values: dict[str, F8] = {name: np.zeros(tensors) for name in (*self.NAMES, *self.PEAKS)}
        # Apart from the values: a sum may well be NaN.
        self._seen = {name: np.zeros(tensors, dtype=bool) for name in self._values}
        self._counts = np.zeros((tensors, len(COUNTS)), dtype=np.uint64)

    def add(self, name: str, i: int, value: float) -> None:
        """Add to the sum of one tensor."""
        self._values[name][i] += value
        self._seen[name][i] = True

    def peak(self, name: str, i: int, value: float) -> None:
        """Take a minimum or maximum of a part of one tensor into account."""
        column, seen = self._values[name], self._seen[name]
        pick = np.minimum if name == "second_min" else np.maximum
        column[i] = pick(column[i], value) if seen[i] else value
        seen[i] = True

    def count(self, name: str, where: int | npt.NDArray[np.int64], elements: npt.ArrayLike) -> None:
        """Add to a count of one tensor's elements, or of each of several tensors'."""
        self._counts[where, COUNTS.index(name)] += np.asarray(elements, dtype=np.uint64)

    def put(self, name: str, where: npt.NDArray[np.int64], values: F8) -> None:
        """Set the sums or peaks of several tensors at once."""
        self._values[name][where] = values
        self._seen[name][where] = True

    def sample(self, numel: F8) -> Sample:
        """Everything as it is reported; `numel` f8[T]."""
        seen = self._seen
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
            sums = {name: np.where(seen[name], column, np.nan) for name, column in self._values.items()}
            mean = {name: sums[name] / numel for name in self.NAMES}
            columns = {
                "grad_rms": np.sqrt(mean["grad"]),
                "grad_max": sums["grad_max"],
                "exp_avg_rms": np.sqrt(mean["first"]),
                "exp_avg_sq_mean": mean["second"],
                "exp_avg_sq_min": sums["second_min"],
                "exp_avg_sq_max": sums["second_max"],
                "param_rms": np.sqrt(mean["param"]),
                "param_max": sums["param_max"],
                "update_rms": np.sqrt(mean["update"]),
                "rms_t": np.sqrt(mean["rms_t"]),
                "cos_grad_exp_avg": np.clip(
                    sums["dot"] / (np.sqrt(sums["grad"]) * np.sqrt(sums["first"])), -1.0, 1.0
                ),
                "eps_share": mean["eps"],
            }
            stats = np.stack([columns[name] for name in STATS], axis=1).astype(np.float32)
            # A tensor without a gradient was not updated, an empty one has no norm.
            params_seen = seen["param"] | (numel == 0)
            updates_seen = seen["update"] | ~seen["grad"]
            return Sample(
                stats=stats,
                counts=self._counts,
                param_norm=float(np.sqrt(self._values["param"].sum())) if params_seen.all() else None,
                update_norm=float(np.sqrt(self._values["update"].sum()))
                if params_seen.all() and updates_seen.all()
                else None,
            )

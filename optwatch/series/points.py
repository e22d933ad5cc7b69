"""Points: consecutive steps of one series, as detectors and exporters see them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Column:
    """One quantity over n points. `values` f8[n]; `logged` bool[n]: False where nothing was logged.

    A value that was logged may be NaN or inf: it was non-finite in the run. One that was not logged
    is NaN here.
    """

    values: npt.NDArray[np.float64]
    logged: npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Samples:
    """Per-tensor statistics at k of the points' steps, T tensors in the order of depth.

    `step` i8[k]; `stats[name]` f4[k, T], NaN: not measured; `counts[name]` u8[k, T]; `numel` i8[T].
    """

    step: npt.NDArray[np.int64]
    names: tuple[str, ...]
    numel: npt.NDArray[np.int64]
    stats: Mapping[str, npt.NDArray[np.float32]]
    counts: Mapping[str, npt.NDArray[np.uint64]]


@dataclass(frozen=True)
class Points:
    """n consecutive points, merged over ranks. `step` i8[n], increasing.

    `wall` f8[n] is the agent's clock in unix seconds, None where a log has none.
    """

    step: npt.NDArray[np.int64]
    columns: Mapping[str, Column] = field(default_factory=dict)
    wall: npt.NDArray[np.float64] | None = None
    samples: Samples | None = None

    def __len__(self) -> int:
        return len(self.step)

    def column(self, name: str) -> Column:
        """A column, all of it not logged where the series has none of that name."""
        if (column := self.columns.get(name)) is not None:
            return column
        return _absent(len(self.step))


@lru_cache(maxsize=16)
def _absent(n: int) -> Column:
    values, logged = np.full(n, np.nan), np.zeros(n, dtype=bool)
    values.flags.writeable = logged.flags.writeable = False  # it is everybody's
    return Column(values, logged)

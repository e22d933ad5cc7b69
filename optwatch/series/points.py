"""Points: consecutive steps of one series, as detectors and exporters see them."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

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


class Table(Mapping[str, Column]):
    """Columns side by side in two matrices: what a batch brings, without an array for each of them.

    `matrix` f8[n, C], NaN where nothing was logged; `mask` bool[n, C], where something was; C in the order
    of `names`.
    """

    def __init__(
        self,
        names: tuple[str, ...],
        matrix: npt.NDArray[np.float64],
        mask: npt.NDArray[np.bool_],
    ) -> None:
        self.names = names
        self.matrix = matrix
        self.mask = mask

    def __getitem__(self, name: str) -> Column:
        at = _places(self.names)[name]
        return Column(self.matrix[:, at], self.mask[:, at])

    def __contains__(self, name: object) -> bool:
        return name in _places(self.names)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)

    def rows(self, where: npt.NDArray[Any] | slice) -> "Table":
        """The rows where a bool[n] is true, or of a slice."""
        return Table(self.names, self.matrix[where], self.mask[where])


@lru_cache(maxsize=256)
def _places(names: tuple[str, ...]) -> dict[str, int]:
    return {name: at for at, name in enumerate(names)}


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
        return self.columns[name] if name in self.columns else _absent(len(self.step))


@lru_cache(maxsize=16)
def _absent(n: int) -> Column:
    values, logged = np.full(n, np.nan), np.zeros(n, dtype=bool)
    values.flags.writeable = logged.flags.writeable = False  # it is everybody's
    return Column(values, logged)

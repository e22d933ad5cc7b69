"""Global norms from the parts that ranks send (`optwatch.wire.parts`)."""

from collections.abc import Iterable, Mapping
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from optwatch.series.points import Column
from optwatch.wire.parts import Part

Family = tuple[str, tuple[tuple[str, int], ...], str]

parse_part = lru_cache(maxsize=65_536)(Part.parse)


class Norms:
    """Adds parts up, where they are all there. It remembers which parts a run has."""

    def __init__(self, incarnation: int = 0, families: Mapping[Family, int] | None = None) -> None:
        self.incarnation = incarnation
        self.families: dict[Family, int] = dict(families or {})
        """For each family of parts that this incarnation has sent, how many there are."""

    def begin(self, incarnation: int) -> None:
        """What follows is of these processes; others may hold other parts."""
        if incarnation != self.incarnation:
            self.incarnation = incarnation
            self.families.clear()

    def fold(
        self, n: int, pieces: Iterable[tuple[Mapping[str, Column], npt.NDArray[np.intp]]]
    ) -> dict[str, Column]:
        """Norms over n rows, from ranks' columns and the rows that these belong to, each f8[n].

        A part that several ranks logged counts once, the first's. A row where a part is missing has no
        norm: what the others give would be too small.
        """
        parts: dict[Part, Column] = {}
        for columns, at in pieces:
            for name, column in columns.items():
                if (part := parse_part(name)) is None:
                    continue
                self.families.setdefault(part.family, part.siblings)
                mine = parts.setdefault(part, Column(np.full(n, np.nan), np.zeros(n, dtype=bool)))
                here = np.flatnonzero(column.logged & ~mine.logged[at])[::-1]
                new = at[here]
                mine.values[new] = column.values[here]  # the last to be written is the first there
                mine.logged[new] = True
        return {norm: self._norm(norm, n, parts) for norm in dict.fromkeys(part.norm for part in parts)}

    def _norm(self, norm: str, n: int, parts: Mapping[Part, Column]) -> Column:
        of_norm = [(part, column) for part, column in parts.items() if part.norm == norm]
        missing = np.zeros(n, dtype=bool)
        for family, siblings in self.families.items():
            if family[0] == norm:
                there = [column.logged for part, column in of_norm if part.family == family]
                missing |= np.sum(there, axis=0, dtype=np.int64) < siblings if there else True
        values = np.stack([column.values for _, column in of_norm])
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
            largest = np.max(np.abs(values), axis=0)  # squares of norms overflow before norms do
            scale = np.where(np.isfinite(largest) & (largest > 0), largest, 1.0)
            total = scale * np.sqrt(np.sum(np.square(values / scale), axis=0))
        return Column(np.where(missing, np.nan, total), ~missing)

"""Timeline: a whole series in bounded memory, the newest part of it in full."""

from collections.abc import Sequence

import numpy as np

from optwatch.series.points import Points
from optwatch.series.reduce import Logged, Steps, Values, reduce_rows

CAPACITY = 32_768
"""Rows kept. When they are full the older half is reduced 2:1, so what is older is coarser."""
PAGE = 128
"""Rows that are saved at once."""

Page = tuple[int, Steps, Values, Logged]
"""Its number, and the rows from `number · PAGE` on: step [n], values [n, C], logged [n, C]. C: the columns
that there were when it was saved; they may have become more since."""


class Timeline:
    """Rows of one merged series, in order of step. Columns come as they are first seen, and stay."""

    def __init__(self, capacity: int = CAPACITY) -> None:
        self.columns: tuple[str, ...] = ()
        self._capacity = capacity
        self._rows = 0
        self._saved = 0
        """Rows from the first on that are as `changed` last gave them."""
        self._step = np.empty(0, dtype=np.int64)
        self._values = np.empty((0, 0))
        self._logged = np.empty((0, 0), dtype=bool)

    def __len__(self) -> int:
        return self._rows

    @property
    def last_step(self) -> int:
        """The newest step, 0 where there is none."""
        return int(self._step[self._rows - 1]) if self._rows else 0

    def append(self, points: Points) -> None:
        """Add points behind the last step; from a step that is there already, they replace what follows."""
        if len(points) == 0:
            return
        if points.step[0] <= self.last_step:
            self._rows = int(np.searchsorted(self._step[: self._rows], points.step[0], side="left"))
            self._saved = min(self._saved, self._rows)
        self._widen(points)
        step, values, logged = rows(points, self.columns)
        for start in range(0, len(step), self._capacity // 4):
            part = slice(start, start + self._capacity // 4)
            self._append(step[part], values[part], logged[part])

    def changed(self) -> list[Page]:
        """The pages that are others than when this was last asked. There are `ceil(len(self) / PAGE)`."""
        if self._saved == self._rows:
            return []
        pages = []
        for start in range(self._saved // PAGE * PAGE, self._rows, PAGE):
            part = slice(start, min(start + PAGE, self._rows))
            pages.append((start // PAGE, self._step[part], self._values[part], self._logged[part]))
        self._saved = self._rows
        return pages

    @classmethod
    def restored(
        cls, columns: tuple[str, ...], pages: Sequence[Page], capacity: int = CAPACITY
    ) -> "Timeline":
        """A timeline as it was when these, in order, were all its pages."""
        timeline = cls(capacity)
        timeline.columns = columns
        timeline._rows = timeline._saved = sum(len(step) for _, step, _, _ in pages)
        timeline._step = np.concatenate([np.empty(0, np.int64), *(step for _, step, _, _ in pages)])
        timeline._values = np.full((timeline._rows, len(columns)), np.nan)
        timeline._logged = np.zeros((timeline._rows, len(columns)), dtype=bool)
        at = 0
        for _, step, values, logged in pages:
            there = slice(at, at + len(step)), slice(values.shape[1])
            timeline._values[there], timeline._logged[there] = values, logged
            at += len(step)
        return timeline

    def window(
        self, first: int | None, last: int | None, columns: tuple[str, ...], points: int | None
    ) -> tuple[Steps, Values, Logged]:
        """Rows from `first` to `last` (None: open), as read-only copies, reduced to about `points` rows."""
        steps = self._step[: self._rows]
        low = 0 if first is None else int(np.searchsorted(steps, first, side="left"))
        high = self._rows if last is None else int(np.searchsorted(steps, last, side="right"))
        chosen = [self.columns.index(name) for name in columns]
        step, values, logged = (
            steps[low:high].copy(),
            self._values[low:high][:, chosen],
            self._logged[low:high][:, chosen],
        )
        return reduce_rows(step, values, logged, max(points // 2, 1)) if points else (step, values, logged)

    def last(self, name: str) -> float | None:
        """The newest value that was logged in a column, None where there is none."""
        if name not in self.columns:
            return None
        at = self.columns.index(name)
        found = np.flatnonzero(self._logged[: self._rows, at])
        return float(self._values[found[-1], at]) if len(found) else None

    def newest(self, names: Sequence[str], most: int) -> list[float]:
        """The newest values, oldest first, of steps that logged one of the columns: the first of them."""
        values, logged = np.full(self._rows, np.nan), np.zeros(self._rows, dtype=bool)
        for name in reversed(names):
            if name in self.columns:
                at = self.columns.index(name)
                here = self._logged[: self._rows, at]
                values[here], logged = self._values[: self._rows, at][here], logged | here
        return [float(value) for value in values[logged][-most:]]

    def now(self, name: str) -> float | None:
        """The value of a column at the newest step, None where it was not logged there."""
        if name not in self.columns or not self._rows:
            return None
        at = self.columns.index(name)
        return float(self._values[self._rows - 1, at]) if self._logged[self._rows - 1, at] else None

    def _append(self, step: Steps, values: Values, logged: Logged) -> None:
        if self._rows + len(step) > self._capacity:
            self._thin()
        end = self._rows + len(step)
        if end > len(self._step):
            self._grow(min(max(2 * end, 1_024), self._capacity))
        self._step[self._rows : end] = step
        self._values[self._rows : end] = values
        self._logged[self._rows : end] = logged
        self._rows = end

    def _thin(self) -> None:
        half = self._rows // 2
        step, values, logged = reduce_rows(
            self._step[:half], self._values[:half], self._logged[:half], half // 4
        )
        kept = len(step) + self._rows - half
        self._step[len(step) : kept] = self._step[half : self._rows].copy()
        self._values[len(step) : kept] = self._values[half : self._rows].copy()
        self._logged[len(step) : kept] = self._logged[half : self._rows].copy()
        self._step[: len(step)], self._values[: len(step)], self._logged[: len(step)] = step, values, logged
        self._rows = kept
        self._saved = 0

    def _widen(self, points: Points) -> None:
        new = tuple(name for name in points.columns if name not in self.columns)
        if not new:
            return
        self.columns += new
        blank = np.full((len(self._step), len(new)), np.nan)
        self._values = np.concatenate([self._values, blank], axis=1)
        self._logged = np.concatenate([self._logged, np.zeros(blank.shape, dtype=bool)], axis=1)

    def _grow(self, rows: int) -> None:
        """Make room: most runs are short, and none takes the memory of a long one before it is one."""
        columns = len(self.columns)
        step, values = np.empty(rows, dtype=np.int64), np.empty((rows, columns))
        logged = np.empty((rows, columns), dtype=bool)
        used = slice(self._rows)
        step[used], values[used], logged[used] = self._step[used], self._values[used], self._logged[used]
        self._step, self._values, self._logged = step, values, logged


def rows(points: Points, columns: tuple[str, ...]) -> tuple[Steps, Values, Logged]:
    """Points as step [n], values [n, C] and logged [n, C], C in the order of `columns`."""
    values = np.empty((len(points), len(columns)))
    logged = np.empty((len(points), len(columns)), dtype=bool)
    for at, name in enumerate(columns):
        column = points.column(name)
        values[:, at], logged[:, at] = column.values, column.logged
    return points.step, values, logged

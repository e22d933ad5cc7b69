"""Pool: rows of many ranks that wait to be merged, side by side in a few arrays.

A thousand ranks send a few rows each, several times a second, and each time some of all of them are complete.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from optwatch.series.points import Column, Points, Table


@dataclass(frozen=True)
class _Rows:
    """n rows: rank i8[n], arrived f8[n] (seconds), step i8[n], wall f8[n], and their columns."""

    rank: npt.NDArray[np.int64]
    arrived: npt.NDArray[np.float64]
    step: npt.NDArray[np.int64]
    wall: npt.NDArray[np.float64]
    table: Table

    def where(self, rows: npt.NDArray[np.generic]) -> "_Rows":
        return _Rows(
            self.rank[rows], self.arrived[rows], self.step[rows], self.wall[rows], self.table.rows(rows)
        )


class Pool:
    """The rows of ranks that log the same columns, which have come and are not handed on yet."""

    def __init__(self) -> None:
        self._kept: _Rows | None = None
        self._new: list[tuple[int, float, Points]] = []

    def __bool__(self) -> bool:
        return self._kept is not None or bool(self._new)

    def add(self, rank: int, arrived: float, points: Points) -> None:
        """Take points of a rank that lie behind those of it that are here."""
        self._new.append((rank, arrived, points))

    def add_rows(self, ranks: npt.NDArray[np.int64], arrived: float, points: Points) -> None:
        """Take points of several ranks at once: `ranks` i8[n] says whose each is. Each rank's are in order of
        step, behind those of it that are here."""
        rows = _Rows(ranks, np.full(len(ranks), arrived), points.step, _wall(points), _table(points))
        kept = self._joined()
        self._kept = rows if kept is None else _below(kept, rows)

    def reached(self, before: float) -> int:
        """The last step of what came at a time or before, -1 where there is nothing."""
        steps = [int(points.step[-1]) for _, arrived, points in self._new if arrived <= before]
        if self._kept is not None:
            steps += self._kept.step[self._kept.arrived <= before].tolist()
        return max(steps, default=-1)

    def take(self, upto: int) -> list[tuple[int, Points]]:
        """Hand on what there is up to a step: each rank's, in order of rank and step."""
        rows = self._take(upto)
        if rows is None:
            return []
        first = np.flatnonzero(np.diff(rows.rank, prepend=rows.rank[0] - 1))
        ends = [*first[1:].tolist(), len(rows.rank)]
        return [
            (int(rows.rank[at]), _points(rows.where(np.arange(at, end))))
            for at, end in zip(first.tolist(), ends, strict=True)
        ]

    def take_together(self, upto: int) -> tuple[int, Points] | None:
        """The same as one, and of how many ranks it is; None where there is nothing."""
        rows = self._take(upto)
        return None if rows is None else (len(np.unique(rows.rank)), _points(rows))

    def cut(self, step: int) -> None:
        """Let go of what lies behind a step."""
        self._kept = self._take(step)

    def _take(self, upto: int) -> _Rows | None:
        rows, self._kept = self._joined(), None
        if rows is None:
            return None
        ready = rows.step <= upto
        if not ready.all():
            self._kept = rows.where(~ready)
            rows = rows.where(ready)
        return rows.where(np.argsort(rows.rank, kind="stable")) if len(rows.rank) else None

    def _joined(self) -> _Rows | None:
        new, self._new = self._new, []
        if not new:
            return self._kept
        parts = [points for _, _, points in new]
        sizes = [len(points) for points in parts]
        rows = _Rows(
            np.repeat([rank for rank, _, _ in new], sizes),
            np.repeat([arrived for _, arrived, _ in new], sizes),
            np.concatenate([points.step for points in parts]),
            np.concatenate([_wall(points) for points in parts]),
            stacked([_table(points) for points in parts]),
        )
        return rows if self._kept is None else _below(self._kept, rows)


def stacked(tables: Sequence[Table]) -> Table:
    """Tables of the same columns, one below the other."""
    return Table(
        tables[0].names,
        np.concatenate([table.matrix for table in tables]),
        np.concatenate([table.mask for table in tables]),
    )


def _below(rows: _Rows, more: _Rows) -> _Rows:
    return _Rows(
        np.concatenate([rows.rank, more.rank]),
        np.concatenate([rows.arrived, more.arrived]),
        np.concatenate([rows.step, more.step]),
        np.concatenate([rows.wall, more.wall]),
        stacked([rows.table, more.table]),
    )


def _points(rows: _Rows) -> Points:
    return Points(rows.step, rows.table, rows.wall)


def _wall(points: Points) -> npt.NDArray[np.float64]:
    return points.wall if points.wall is not None else np.full(len(points), np.inf)


def _table(points: Points) -> Table:
    if isinstance(points.columns, Table):
        return points.columns
    columns: list[Column] = list(points.columns.values())
    shape = len(points), len(columns)
    matrix, mask = np.empty(shape), np.empty(shape, dtype=bool)
    for at, column in enumerate(columns):
        matrix[:, at], mask[:, at] = column.values, column.logged
    return Table(tuple(points.columns), matrix, mask)

"""The rows a run has sent so far, bounded; only ever appended, so that what was handed out never changes."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from optwatch.wire.frames import SeriesBlocks, TensorBlocks
from optwatch.wire.messages import TensorInfo
from optwatch.wire.requests import Series, Tensors

F8 = npt.NDArray[np.float64]
I8 = npt.NDArray[np.int64]

MAX_ROWS = 24_000
"""Rows of a series that are kept; beyond, the older half is reduced to minima and maxima."""
MAX_TENSOR_BYTES = 48 << 20
"""Bytes of per-tensor statistics that are kept; beyond, every second older sample is let go."""
_BUCKET = 4


@dataclass(frozen=True)
class Columns:
    """n rows of C columns: `step` i8[n], not decreasing; `values` f8[n, C]; `logged` bool[n, C]."""

    names: tuple[str, ...]
    step: I8
    values: F8
    logged: npt.NDArray[np.bool_]

    def column(self, name: str) -> tuple[I8, F8]:
        """The steps at which a column was logged and its values there; empty where there is none."""
        if name not in self.names:
            return self.step[:0], np.empty(0)
        at = self.names.index(name)
        rows = self.logged[:, at]
        return self.step[rows], self.values[rows, at]

    def filled(self, name: str, absent: float) -> F8:
        """A column over all rows, `absent` where it was not logged. f8[n]."""
        if name not in self.names:
            return np.full(len(self.step), absent)
        at = self.names.index(name)
        return np.where(self.logged[:, at], self.values[:, at], absent)

    def last(self, name: str) -> float | None:
        """The newest logged value of a column."""
        values = self.column(name)[1]
        return float(values[-1]) if len(values) else None


NO_COLUMNS = Columns((), np.empty(0, dtype=np.int64), np.empty((0, 0)), np.empty((0, 0), dtype=np.bool_))


@dataclass(frozen=True)
class Samples:
    """Per-tensor statistics at k steps: `stats` f4[k, T, S], `counts` u8[k, T, C]."""

    tensors: tuple[TensorInfo, ...]
    stats: tuple[str, ...]
    counts: tuple[str, ...]
    step: I8
    stat_values: npt.NDArray[np.float32]
    count_values: npt.NDArray[np.uint64]

    def stat(self, name: str) -> npt.NDArray[np.float32]:
        """One statistic, f4[k, T]; NaN where it was not measured."""
        if name not in self.stats:
            return np.full(self.stat_values.shape[:2], np.nan, dtype=np.float32)
        return self.stat_values[:, :, self.stats.index(name)]

    def numel(self) -> F8:
        """Elements of each tensor, f8[T]."""
        return np.array([float(np.prod(tensor.shape)) for tensor in self.tensors])


NO_SAMPLES = Samples(
    (),
    (),
    (),
    np.empty(0, dtype=np.int64),
    np.empty((0, 0, 0), dtype=np.float32),
    np.empty((0, 0, 0), dtype=np.uint64),
)


class ColumnHistory:
    """Builds `Columns` out of the series of a view and of the deltas after it."""

    def __init__(self) -> None:
        self._names: tuple[str, ...] = ()
        self._step = _Rows((), np.int64)
        self._values = _Rows((0,), np.float64)
        self._logged = _Rows((0,), np.bool_)

    def append(self, series: Series, blocks: SeriesBlocks) -> None:
        """Take further rows. Steps seen before, after a restart from a checkpoint, replace the old ones."""
        if not len(blocks.step):
            return
        self._widen(series.columns)
        order = [series.columns.index(name) if name in series.columns else -1 for name in self._names]
        values = np.full((len(blocks.step), len(order)), np.nan)
        logged = np.zeros(values.shape, dtype=np.bool_)
        for at, source in enumerate(order):
            if source >= 0:
                values[:, at] = blocks.values[:, source]
                logged[:, at] = blocks.logged[:, source] != 0
        keep = int(np.searchsorted(self._step.array(), blocks.step[0]))
        for rows, new in ((self._step, blocks.step), (self._values, values), (self._logged, logged)):
            rows.cut(keep)
            rows.append(new)
        if len(self._step) > MAX_ROWS:
            self._reduce()

    def columns(self) -> Columns:
        return Columns(self._names, self._step.array(), self._values.array(), self._logged.array())

    def _widen(self, names: tuple[str, ...]) -> None:
        new = tuple(name for name in names if name not in self._names)
        if not new:
            return
        extra = (len(self._step), len(new))
        values = np.concatenate([self._values.array(), np.full(extra, np.nan)], axis=1)
        logged = np.concatenate([self._logged.array(), np.zeros(extra, dtype=np.bool_)], axis=1)
        self._names += new
        self._values = _Rows((len(self._names),), np.float64, values)
        self._logged = _Rows((len(self._names),), np.bool_, logged)

    def _reduce(self) -> None:
        old = self.columns()
        half = len(old.step) // 2 // _BUCKET * _BUCKET
        step, values, logged = _extremes(old.step[:half], old.values[:half], old.logged[:half])
        self._step = _Rows((), np.int64, np.concatenate([step, old.step[half:]]))
        width = (len(self._names),)
        self._values = _Rows(width, np.float64, np.concatenate([values, old.values[half:]]))
        self._logged = _Rows(width, np.bool_, np.concatenate([logged, old.logged[half:]]))


class SampleHistory:
    """Builds `Samples` out of the tensors of a view and of the deltas after it."""

    def __init__(self) -> None:
        self._names = Tensors(tensors=(), stats=(), counts=())
        self._rows = self._empty()

    def append(self, tensors: Tensors, blocks: TensorBlocks) -> None:
        """Take further samples. Other tensors than so far begin a new history."""
        if not len(blocks.step) or not tensors.tensors:
            return
        if tensors != self._names:
            self._names = tensors
            self._rows = self._empty()
        new = (blocks.step, blocks.stats, blocks.counts)
        keep = int(np.searchsorted(self._rows[0].array(), blocks.step[0]))
        crowded = self._rows[1].array().nbytes + blocks.stats.nbytes > MAX_TENSOR_BYTES
        for at, rows in enumerate(self._rows):
            rows.cut(keep)
            if crowded:
                rows.replace(rows.array()[::2].copy())
            rows.append(new[at])

    def samples(self) -> Samples:
        step, stats, counts = (rows.array() for rows in self._rows)
        names = self._names
        return Samples(names.tensors, names.stats, names.counts, step, stats, counts)

    def _empty(self) -> "tuple[_Rows, _Rows, _Rows]":
        names, t = self._names, len(self._names.tensors)
        return (
            _Rows((), np.int64),
            _Rows((t, len(names.stats)), np.float32),
            _Rows((t, len(names.counts)), np.uint64),
        )


class _Rows:
    """An array that grows at its end; views of what it held stay untouched."""

    def __init__(
        self, shape: tuple[int, ...], dtype: npt.DTypeLike, start: npt.NDArray[Any] | None = None
    ) -> None:
        self._buffer: npt.NDArray[Any] = np.empty((16, *shape), dtype=dtype) if start is None else start
        self._length = 0 if start is None else len(start)

    def __len__(self) -> int:
        return self._length

    def array(self) -> npt.NDArray[Any]:
        return self._buffer[: self._length]

    def append(self, rows: npt.NDArray[Any]) -> None:
        end = self._length + len(rows)
        if end > len(self._buffer):
            grown = np.empty((max(end, 2 * len(self._buffer)), *self._buffer.shape[1:]), self._buffer.dtype)
            grown[: self._length] = self.array()
            self._buffer = grown
        self._buffer[self._length : end] = rows
        self._length = end

    def replace(self, rows: npt.NDArray[Any]) -> None:
        self._buffer, self._length = rows, len(rows)

    def cut(self, length: int) -> None:
        if length < self._length:  # what follows would overwrite rows that somebody may still look at
            self._buffer = self._buffer[:length].copy()
            self._length = length


def _extremes(step: I8, values: F8, logged: npt.NDArray[np.bool_]) -> tuple[I8, F8, npt.NDArray[np.bool_]]:
    """Each bucket of rows as two: the minima and the maxima of what was logged in it."""
    shape = (len(step) // _BUCKET, _BUCKET, values.shape[1])
    there = logged.reshape(shape)
    cut = values.reshape(shape)
    low = np.where(there, cut, np.inf).min(axis=1)
    high = np.where(there, cut, -np.inf).max(axis=1)
    pairs = np.stack([low, high], axis=1).reshape(-1, values.shape[1])
    return (
        np.repeat(step.reshape(shape[:2])[:, 0], 2),
        pairs,
        np.repeat(there.any(axis=1), 2, axis=0),
    )

"""Rows of one optimizer on their way from the training thread to the link's thread.

The training thread only appends; the other thread takes. Deques make both safe without a lock. A row that a
device has yet to work out a number of is held back until that has arrived, and those behind it with it.
"""

import functools
import hashlib
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import replace

import msgspec
import numpy as np
import numpy.typing as npt
from torch import Tensor

from optwatch.wire.frames import BatchBlocks
from optwatch.wire.limits import (
    MAX_BLOCK_BYTES,
    MAX_HEADER_BYTES,
    MAX_NAME,
    MAX_SCALARS,
    MAX_TENSORS,
    fit,
)
from optwatch.wire.messages import COUNTS, STATS, Batch, Schema, TensorInfo
from optwatch_agent.later import Later
from optwatch_agent.probe import Sample
from optwatch_agent.tensors import on_device

_MOST_ROWS = 65_536
"""Rows kept while the link's thread cannot take them."""

_MOST_IN_BATCH = 4_096
_HELD_FOR = 0.5
"""Seconds that the newest row waits for values logged after its step."""

Value = float | Tensor
Counts = npt.NDArray[np.uint32]
Columns = Callable[[list[float]], Mapping[str, float]]
"""What the numbers that a device has worked out make of a row."""


class Row:
    """One completed step: global_step, unix seconds, and values by column."""

    __slots__ = ("awaits", "step", "values", "wall")

    def __init__(self, step: int, wall: float, values: dict[str, Value]) -> None:
        self.step = step
        self.wall = wall
        self.values = values
        self.awaits = 0
        """How many times numbers of it are yet to arrive."""


class Recorder:
    """The rows and samples of one optimizer, and the schema that names their columns."""

    def __init__(self, optimizer: int, tensors: tuple[TensorInfo, ...]) -> None:
        self.dropped = 0
        self.rename(tensors)
        self._optimizer = optimizer
        self._columns: dict[str, int] = {}
        self._last_schema: Schema | None = None
        self._newest: deque[Row] = deque(maxlen=1)
        self._rows: deque[Row] = deque()
        self._samples: deque[tuple[int, Sample, tuple[TensorInfo, ...]]] = deque()
        self._histograms: deque[tuple[int, Counts, tuple[TensorInfo, ...]]] = deque()
        self._later: Later[tuple[Row, Columns]] | None = None
        """Made for the first number that a device has yet to work out."""
        self._expected: list[tuple[Tensor, Columns]] = []

    # --- the training thread --------------------------------------------------------------------------

    def add(self, step: int, values: dict[str, Value]) -> None:
        """Record a completed step."""
        self.release()
        if len(self._rows) >= _MOST_ROWS:
            self._rows.popleft()
            self.dropped += 1
        row = Row(step, time.time(), values)
        if self._expected:
            for numbers, columns in self._expected:
                self._await(row, numbers, columns)
            self._expected = []
        for value in values.values():
            if type(value) is not float:
                self._await_values(row, values)
                break
        self._newest.append(row)

    def amend(self, values: Mapping[str, Value]) -> bool:
        """Add values to the newest step; False where it is on its way already."""
        try:
            row = self._newest.pop()
        except IndexError:
            return False
        row.values.update(values)
        self._await_values(row, values)
        self._newest.append(row)
        return True

    def expect(self, numbers: Tensor, columns: Columns) -> None:
        """Wait, with the row that is added next, for numbers of a device, which become columns of it."""
        self._expected.append((numbers, columns))

    def arrive(self) -> None:
        """Take what devices have got done. Never waits for one."""
        if self._later is not None:
            for (row, columns), numbers in self._later.take():
                _fill(row, columns, numbers)

    def settle(self) -> None:
        """Wait for all that devices have to work out: no step will come that could take it."""
        if self._later is not None:
            for (row, columns), numbers in self._later.finish():
                _fill(row, columns, numbers)

    def _await_values(self, row: Row, values: Mapping[str, Value]) -> None:
        for name, value in values.items():
            if isinstance(value, Tensor) and on_device(value):
                self._await(row, value, functools.partial(_still, row, name, value))

    def _await(self, row: Row, numbers: Tensor, columns: Columns) -> None:
        if self._later is None:
            self._later = Later()
        row.awaits += 1
        self._later.put((row, columns), numbers)

    def sample(self, step: int, sample: Sample) -> None:
        """Record a measurement of every tensor, taken at a step."""
        if self.told:
            self._samples.append((step, sample, self.told))

    def histogram(self, step: int, counts: Counts) -> None:
        """Record the histograms of every tensor at a step, u4[T, WIDTH]."""
        if self.told:
            self._histograms.append((step, counts, self.told))

    def rename(self, tensors: tuple[TensorInfo, ...]) -> None:
        """Other tensors from now on, as when parameters were added."""
        self.tensors = tensors
        """What the samples are of."""
        self.told = tensors if _fit(tensors) else ()
        """The same as the daemon hears of them: none of so many that their names do not go into a message."""

    def release(self) -> None:
        """Let go of the newest row: nothing will be added to it."""
        try:
            self._rows.append(self._newest.pop())
        except IndexError:
            return

    # --- the link's thread ----------------------------------------------------------------------------

    def take(self, session: str, everything: bool) -> list[tuple[Schema, Batch, BatchBlocks]]:
        """What was recorded since the last call, in order; `seq` of the batches is 0.

        `everything`: also the newest row, to which values might still be added, and rows without the numbers
        that have not arrived.
        """
        if self._newest and (everything or time.time() - self._newest[0].wall > _HELD_FOR):
            self.release()
        batches = []
        while (rows := _take(self._rows, _MOST_IN_BATCH, everything)) or self._samples or self._histograms:
            first = self._samples or self._histograms
            tensors = first[0][2] if first else self.told
            samples = []
            room = MAX_BLOCK_BYTES // 2
            while self._samples and self._samples[0][2] is tensors and room > 0:
                step, sample, _ = self._samples.popleft()
                samples.append((step, sample))
                room -= sample.stats.nbytes + sample.counts.nbytes
            histograms = []
            while self._histograms and self._histograms[0][2] is tensors and room > 0:
                step, counts, _ = self._histograms.popleft()
                histograms.append((step, counts))
                room -= counts.nbytes
            schema = self._schema(session, rows, tensors)
            batch = Batch(
                session=session,
                seq=0,
                optimizer=self._optimizer,
                schema=schema.digest,
                steps=len(rows),
                sampled=len(samples),
                dropped=self.dropped,
                histograms=len(histograms),
            )
            blocks = self._blocks(rows, samples, len(tensors))
            if histograms:
                blocks = replace(
                    blocks,
                    histogram_step=np.array([step for step, _ in histograms], dtype=np.int64),
                    histograms=np.stack([counts for _, counts in histograms]),
                )
            batches.append((schema, batch, blocks))
        return batches

    def _schema(self, session: str, rows: list[Row], tensors: tuple[TensorInfo, ...]) -> Schema:
        for row in rows:
            for name in row.values:
                if name not in self._columns and len(self._columns) < MAX_SCALARS:
                    self._columns[name] = len(self._columns)
        last = self._last_schema
        if last is None or last.tensors is not tensors or len(last.scalars) < len(self._columns):
            scalars = tuple(self._columns)
            told = self._optimizer, scalars, tensors  # those of twins are alike
            digest = hashlib.sha256(msgspec.msgpack.encode(told)).hexdigest()[:16]
            self._last_schema = last = Schema(
                session=session,
                optimizer=self._optimizer,
                digest=digest,
                scalars=scalars,
                tensors=tensors,
            )
        return last

    def _blocks(self, rows: list[Row], samples: list[tuple[int, Sample]], tensors: int) -> BatchBlocks:
        scalars = np.full((len(rows), len(self._columns)), np.nan)
        logged = np.zeros(scalars.shape, dtype=np.uint8)
        for i, row in enumerate(rows):
            for name, value in row.values.items():
                if (j := self._columns.get(name)) is None or (isinstance(value, Tensor) and on_device(value)):
                    continue
                scalars[i, j] = value.item() if isinstance(value, Tensor) else value
                logged[i, j] = 1
        return BatchBlocks(
            step=np.array([row.step for row in rows], dtype=np.int64),
            wall=np.array([row.wall for row in rows]),
            scalars=scalars,
            logged=logged,
            sample_step=np.array([step for step, _ in samples], dtype=np.int64),
            stats=np.stack([sample.stats for _, sample in samples])
            if samples
            else np.zeros((0, tensors, len(STATS)), dtype=np.float32),
            counts=np.stack([sample.counts for _, sample in samples])
            if samples
            else np.zeros((0, tensors, len(COUNTS)), dtype=np.uint64),
        )


def column_name(name: str) -> str:
    """A name that fits the wire."""
    return name if name.isascii() and len(name) <= MAX_NAME else fit(name)


def _fit(tensors: tuple[TensorInfo, ...]) -> bool:
    if len(tensors) > MAX_TENSORS:
        return False
    # The names of the columns go with them.
    return len(msgspec.msgpack.encode(tensors)) <= MAX_HEADER_BYTES - MAX_SCALARS * (MAX_NAME + 3)


def _take(rows: deque[Row], most: int, everything: bool) -> list[Row]:
    taken: list[Row] = []
    while rows and len(taken) < most and (everything or not rows[0].awaits):
        taken.append(rows.popleft())
    return taken


def _still(row: Row, name: str, value: Tensor, numbers: list[float]) -> Mapping[str, float]:
    """The number of a value that has not been logged anew meanwhile."""
    return {name: numbers[0]} if row.values.get(name) is value else {}


def _fill(row: Row, columns: Columns, numbers: list[float]) -> None:
    try:
        row.values.update(columns(numbers))
    finally:
        row.awaits -= 1

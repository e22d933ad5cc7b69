"""What a detector remembers: plain, typed, bounded, and carried exactly through a save and a restore."""

import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import sliding_window_view

F8 = npt.NDArray[np.float64]
Memory = TypeVar("Memory", bound=msgspec.Struct)


def to_state(memory: msgspec.Struct) -> dict[str, Any]:
    """A copy of a memory as plain values that msgpack can carry."""
    state: dict[str, Any] = msgspec.to_builtins(memory)
    return state


def from_state(state: dict[str, Any], kind: type[Memory]) -> Memory:
    """The memory that `to_state` gave.

    Raises:
        ValueError: it is not a state of this kind.
    """
    try:
        return msgspec.convert(state, kind)
    except msgspec.ValidationError as error:
        raise ValueError(f"not a state of {kind.__qualname__}: {error}") from None


def push(window: list[float], value: float, size: int) -> None:
    """Append to a window of which `window[-size:]` is read. It never holds more than twice its size."""
    window.append(value)
    if len(window) >= 2 * size:
        del window[:-size]


def extend(window: list[float], values: Sequence[float], size: int) -> None:
    """`push` for many values."""
    window += values
    if len(window) >= 2 * size:
        del window[:-size]


def median(values: list[float]) -> float:
    """The median of finite values, NaN of none. For short windows quicker than numpy's."""
    if not values:
        return float("nan")
    ordered = sorted(values)
    middle = len(ordered) // 2
    if len(ordered) % 2:
        return ordered[middle]
    return 0.5 * (ordered[middle - 1] + ordered[middle])


HUGE = 1e150
"""What a greater loss counts as: its square is still finite."""
FIRST = 5
"""Values that a start is judged by."""


def start_of(values: list[float]) -> float:
    """L0, the loss at the start, of the first values: the first or their mean, whichever is more.

    The first alone where their median is over twice as much: that is a loss that explodes, not noise. In
    the mean, no value counts as more than twice the median.
    """
    first, middle = values[0], median(values)
    if middle > 2 * abs(first):
        return first
    return max(first, sum(_held(values)) / len(values))


def start_error(values: list[float]) -> float:
    """The standard error of that mean."""
    held = _held(values)
    mean = sum(held) / len(held)
    return math.sqrt(sum((value - mean) ** 2 for value in held)) / len(held)


def _held(values: list[float]) -> list[float]:
    limit = 2 * abs(median(values))
    return [min(value, limit) for value in values]


BATCH = 48
"""Points from which on numpy is quicker than one point after the other."""
SINGLY = 128
"""Points that are taken one after the other before the next try to take many at once."""


def rows(start: int, *columns: npt.NDArray[Any]) -> Iterator[tuple[Any, ...]]:
    """The next points after `start` that are to be taken one after the other, as plain numbers."""
    return zip(*(column[start : start + SINGLY].tolist() for column in columns), strict=True)


class Extent(msgspec.Struct):
    """The least and the greatest of the last values, kept in blocks so that a value costs O(1).

    It covers at least `blocks` x `size` values and at most one block more.
    """

    blocks: int
    size: int
    lows: list[float] = []
    highs: list[float] = []
    count: int = 0
    """Values in the newest block."""
    low: float = float("inf")
    high: float = float("-inf")

    def add(self, value: float) -> None:
        if self.count == 0 or self.count == self.size:
            self.lows.append(value)
            self.highs.append(value)
            self.count = 0
            if len(self.lows) > self.blocks + 1:
                del self.lows[0], self.highs[0]
                self.low = min(self.lows)
                self.high = max(self.highs)
        elif value < self.lows[-1]:
            self.lows[-1] = value
        elif value > self.highs[-1]:
            self.highs[-1] = value
        self.count += 1
        if value < self.low:
            self.low = value
        if value > self.high:
            self.high = value

    def ahead(self, values: F8) -> tuple[F8, F8]:
        """The least and the greatest as they will be before each of the values is added, f8[n] each."""
        fill = self.count % self.size
        past = len(self.lows) - bool(fill)
        rows = -(-(fill + len(values)) // self.size)
        grid = np.full((2, rows * self.size), -np.inf)
        grid[:, fill : fill + len(values)] = -values, values
        if fill:
            grid[:, 0] = -self.lows[-1], self.highs[-1]
        within = np.maximum.accumulate(grid.reshape(2, rows, self.size), axis=2)
        tops = np.full((2, self.blocks + 1 + rows), -np.inf)
        if past:
            tops[0, self.blocks + 1 - past : self.blocks + 1] = np.negative(self.lows[:past])
            tops[1, self.blocks + 1 - past : self.blocks + 1] = self.highs[:past]
        tops[:, self.blocks + 1 :] = within[:, :, -1]
        older = sliding_window_view(tops[:, 1:-1], self.blocks, axis=1).max(axis=2)
        before = np.empty(within.shape)
        before[:, :, 0] = np.maximum(older, tops[:, :rows])  # the oldest block goes with the next one's first
        np.maximum(older[:, :, None], within[:, :, :-1], out=before[:, :, 1:])
        least, greatest = before.reshape(2, -1)[:, fill : fill + len(values)]
        return -least, greatest

    def extend(self, values: F8) -> None:
        """Add many values."""
        if not len(values):
            return
        rest = -self.count % self.size  # what the newest block has room for
        starts = np.arange(rest, len(values), self.size)
        if rest:
            starts = np.concatenate(([0], starts))
        lows = np.minimum.reduceat(values, starts).tolist()
        highs = np.maximum.reduceat(values, starts).tolist()
        if rest:
            self.lows[-1] = min(self.lows[-1], lows.pop(0))
            self.highs[-1] = max(self.highs[-1], highs.pop(0))
        self.lows = (self.lows + lows)[-self.blocks - 1 :]
        self.highs = (self.highs + highs)[-self.blocks - 1 :]
        self.count = (self.count + len(values) - 1) % self.size + 1
        self.low, self.high = min(self.lows), max(self.highs)


class Blocks(msgspec.Struct):
    """The whole course of a quantity as at most `most` means over blocks of equal length.

    When they are too many, neighbours are joined and the blocks are twice as long.
    """

    most: int = 400
    size: int = 10
    means: list[float] = []
    sum: float = 0.0
    count: int = 0
    """Values in the block that is not full yet."""

    @property
    def room(self) -> int:
        """Values that the newest block still takes."""
        return self.size - self.count

    def add(self, value: float) -> bool:
        """Take a finite value; whether it completed a block."""
        self.sum += value
        self.count += 1
        return self.count == self.size and self._complete()

    def extend(self, values: Sequence[float]) -> bool:
        """Take finite values, no more than there is room for; whether they completed a block."""
        total = self.sum
        for value in values:  # in this order, as `add` does it
            total += value
        self.sum = total
        self.count += len(values)
        return self.count == self.size and self._complete()

    def _complete(self) -> bool:
        self.means.append(self.sum / self.size)
        self.sum, self.count = 0.0, 0
        if len(self.means) >= self.most:
            self.means = [0.5 * (a + b) for a, b in zip(self.means[::2], self.means[1::2], strict=True)]
            self.size *= 2
        return True

    def last(self, values: int, groups: int) -> list[float]:
        """Medians of `groups` equal parts of the last `values` values, or [] where they are too few."""
        length = values // self.size // groups
        if length == 0 or len(self.means) < length * groups:
            return []
        recent = self.means[-length * groups :]
        if length == 1:
            return recent
        return [median(recent[i : i + length]) for i in range(0, length * groups, length)]


def trend(values: Sequence[float]) -> float:
    """The Mann-Kendall statistic S over its standard deviation: below -1.645 a decrease at 5 %."""
    n = len(values)
    score = 0
    before: list[float] = []
    for value in values:
        below, upto = bisect_left(before, value), bisect_right(before, value)
        score += below - (len(before) - upto)
        before.insert(upto, value)
    return score / math.sqrt(n * (n - 1) * (2 * n + 5) / 18)

"""Coverage: which steps of a series are recorded, as few intervals."""

from bisect import bisect_left

import numpy as np
import numpy.typing as npt


class Coverage:
    """A set of steps. Memory goes with the number of holes, not with the number of steps."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []  # inclusive

    def add(self, steps: npt.NDArray[np.int64]) -> None:
        """Add steps, in any order, with or without repetition."""
        if len(steps) == 0:
            return
        if len(steps) == 1 or np.all(np.diff(steps) == 1):
            self.add_range(int(steps[0]), int(steps[-1]))
            return
        steps = np.unique(steps)
        cuts = np.flatnonzero(np.diff(steps) != 1)
        firsts = steps[np.concatenate(([0], cuts + 1))]
        lasts = steps[np.concatenate((cuts, [len(steps) - 1]))]
        for first, last in zip(firsts.tolist(), lasts.tolist(), strict=True):
            self.add_range(first, last)

    def add_range(self, first: int, last: int) -> None:
        """Add all steps from `first` to `last`, both included."""
        if self._ends and first == self._ends[-1] + 1:  # as nearly always
            self._ends[-1] = last
            return
        low = bisect_left(self._ends, first - 1)
        high = low
        while high < len(self._starts) and self._starts[high] <= last + 1:
            first = min(first, self._starts[high])
            last = max(last, self._ends[high])
            high += 1
        self._starts[low:high] = [first]
        self._ends[low:high] = [last]

    def merge(self, other: "Coverage") -> None:
        """Add all steps of another one."""
        for first, last in zip(other._starts, other._ends, strict=True):
            self.add_range(first, last)

    @property
    def count(self) -> int:
        """How many steps there are."""
        return sum(self._ends) - sum(self._starts) + len(self._starts)

    @property
    def last(self) -> int:
        """The last step, 0 where there is none."""
        return self._ends[-1] if self._ends else 0

    @property
    def first(self) -> int:
        """The first step, 0 where there is none."""
        return self._starts[0] if self._starts else 0

    def holds(self, first: int, last: int) -> bool:
        """Whether all steps from `first` to `last`, both included, are there."""
        at = bisect_left(self._ends, last)
        return at < len(self._starts) and self._starts[at] <= first

    def upto(self, last: int) -> "Coverage":
        """The steps that are not beyond `last`."""
        out = Coverage()
        for start, end in zip(self._starts, self._ends, strict=True):
            if start <= last:
                out.add_range(start, min(end, last))
        return out

    def ranges(self) -> list[tuple[int, int]]:
        """The intervals, both ends included, in order."""
        return list(zip(self._starts, self._ends, strict=True))

    def gaps(self) -> list[tuple[int, int]]:
        """The ranges that are missing between the first and the last step, both ends included."""
        return [(end + 1, start - 1) for end, start in zip(self._ends[:-1], self._starts[1:], strict=True)]

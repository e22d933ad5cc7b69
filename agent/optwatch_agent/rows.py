"""Many tensors of a device laid out as rows of equal length under one another, and what becomes of each row's
numbers: those of its tensor.

What torch has no operation for over a list of tensors takes one over the rows of a matrix. Where which tensor
lies depends on their sizes only, so that it is worked out and copied to the device once.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import pad

BATCH = 1 << 22
"""Elements of a matrix: 32 MiB of float64."""
NARROW, WIDE = 1 << 10, 1 << 16
"""Elements of a row, of tensors of up to `WIDE` elements and of larger ones."""
_MOST_LAYOUTS = 64


def is_wide(numel: int) -> bool:
    """Whether a tensor takes wide rows."""
    return numel > WIDE


class Batch:
    """A matrix of rows: of `tensors` tensors from `first` on, of the outermost perhaps a part."""

    def __init__(
        self, first: int, width: int, parts: Sequence[tuple[int, int]], device: torch.device
    ) -> None:
        """`parts`: of each tensor, from which element to which."""
        self.first, self.tensors = first, len(parts)
        self._parts, self._width = parts, width
        sizes = np.array([stop - start for start, stop in parts])
        rows = -(-sizes // width)
        ends = np.cumsum(rows)
        self._rows = int(ends[-1])
        # Of each tensor its elements, and zeros to the end of its last row.
        self._split = np.stack([sizes, rows * width - sizes], axis=1).reshape(-1).tolist()
        at = np.arange(rows.max())
        # The rows of each tensor; the one behind the last stands for none.
        own = np.where(at < rows[:, None], (ends - rows)[:, None] + at, self._rows)
        filled = np.full(self._rows, width)
        filled[ends - 1] = sizes - (rows - 1) * width
        self._owner = uploaded(np.repeat(np.arange(first, first + len(parts)), rows), device)
        self._own = uploaded(own.reshape(-1), device)
        self._filled = uploaded(filled[:, None], device)

    def padding(self) -> Tensor:
        """Which elements are none of a tensor's, bool[rows, width]."""
        return torch.arange(self._width, device=self._filled.device) >= self._filled

    def joined(self, flat: Sequence[Tensor]) -> Tensor:
        """The batch's tensors, each flat, as float64[rows, width]."""
        out = torch.zeros(self._rows * self._width, dtype=torch.float64, device=self._owner.device)
        parts = [x.narrow(0, start, stop - start) for x, (start, stop) in zip(flat, self._parts, strict=True)]
        torch._foreach_copy_(list(torch.split(out, self._split)[::2]), parts)
        return out.view(self._rows, self._width)

    def of_rows(self, of_tensors: Tensor) -> tuple[Tensor, ...]:
        """Numbers of all tensors of the layout, [n, tensors], as n columns of the rows, [rows, 1]."""
        return of_tensors.index_select(1, self._owner).unsqueeze(2).unbind()

    def added(self, of_rows: Tensor) -> Tensor:
        """Sums over the rows of each tensor, [n, rows] to [n, tensors]."""
        return self._rows_of_each(pad(of_rows, (0, 1))).sum(-1)

    def highest(self, of_rows: Tensor) -> Tensor:
        """The same for maxima; NaN if one is."""
        return self._rows_of_each(pad(of_rows, (0, 1), value=-torch.inf)).amax(-1)

    def _rows_of_each(self, of_rows: Tensor) -> Tensor:
        return of_rows.index_select(1, self._own).view(len(of_rows), self.tensors, -1)


class Layouts:
    """The layouts of lists of tensors by their sizes."""

    def __init__(self) -> None:
        self._known: dict[tuple[torch.device, tuple[int, ...]], list[Batch]] = {}

    def of(self, sizes: tuple[int, ...], device: torch.device) -> list[Batch]:
        """The batches of tensors that are all wide, or none of them, and none empty."""
        key = device, sizes
        if key not in self._known:
            if len(self._known) >= _MOST_LAYOUTS:
                self._known.clear()
            width = WIDE if is_wide(sizes[0]) else NARROW
            self._known[key] = [Batch(first, width, parts, device) for first, parts in _cut(sizes, width)]
        return self._known[key]


def _cut(sizes: Sequence[int], width: int) -> Iterator[tuple[int, list[tuple[int, int]]]]:
    """The first tensor of each batch, and the parts of tensors in it."""
    first, parts, room = 0, [], BATCH // width
    for i, size in enumerate(sizes):
        start = 0
        while start < size:
            stop = min(size, start + room * width)
            parts.append((start, stop))
            room -= -(-(stop - start) // width)
            start = stop
            if room == 0:
                yield first, parts
                first, parts, room = i + (stop == size), [], BATCH // width
    if parts:
        yield first, parts


def uploaded(numbers: npt.NDArray[Any], device: torch.device) -> Tensor:
    """Numbers of the host's on a device, for which the host does not wait."""
    host = torch.from_numpy(numbers)
    return host.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else host.to(device)

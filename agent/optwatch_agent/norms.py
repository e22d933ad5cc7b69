"""Accurate norms of many tensors in one read.

torch's own norms add up float32 tensors in float32: the squared norm of 16 M elements is wrong by 1e-3,
that of 16 k equal ones by 1e-5. Here rows of 512 elements are multiplied with themselves by numpy's dot
kernel and combined in float64. Where the squares leave the range of float32 although the values do not,
they are computed anew in float64.
"""

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from optwatch_agent.tensors import array

ROW = 512
"""Elements that are added up in float32."""

_JOIN = 4_096
"""Elements below which tensors are joined: a copy takes less than a call for each."""
_PACK = 1 << 15
_SLICE = 1 << 16
"""Elements that are converted at once, and stay in the cache."""
_LEAST_MEAN_SQUARE = 1e-30
"""Below it, the squares of float32 values lose bits."""

EXACT = (torch.float32, torch.float64)
flatten: Callable[[Sequence[Tensor]], Tensor] = torch._utils._flatten_dense_tensors
"""Joins strided tensors of one dtype, flat; of one contiguous tensor it is a view."""

quiet = np.errstate(over="ignore", under="ignore", invalid="ignore", divide="ignore")
"""Numbers may leave the range of their dtype; that is seen from the result."""

Array = npt.NDArray[np.floating]
_ONES = {char: np.ones(ROW, char) for char in "fd"}


def _matmul_rows(x: Array, y: Array) -> Array:
    products: Array = np.matmul(x[:, None, :], y[:, :, None])[:, 0, 0]
    return products


# Since numpy 2.
_row_products: Callable[[Array, Array], Array] = getattr(np, "vecdot", _matmul_rows)


def dot(x: Array, y: Array) -> float:
    """Σ x y of two contiguous arrays of as many elements and one dtype, float32 or float64."""
    result = 0.0
    if (whole := x.size // ROW * ROW) < x.size:
        result = float(np.dot(x[whole:], y[whole:]))
        x, y = x[:whole], y[:whole]
    if whole:
        rows = _row_products(x.reshape(-1, ROW), y.reshape(-1, ROW))
        result += float(np.add.reduce(rows, dtype=np.float64))
    return result


def energy(x: Array) -> float:
    """Σ x² of a contiguous float32 or float64 array, accurate to 1e-6 at any size and magnitude."""
    fast = dot(x, x)
    if _LEAST_MEAN_SQUARE * x.size <= fast < math.inf:
        return fast
    values = x.astype(np.float64)
    return float(np.dot(values, values))


def sum_of_squares(x: Tensor) -> float:
    """Σ x² of a strided real tensor, accurate to 1e-6 at any size, dtype and magnitude."""
    if x.numel() == 0:
        return 0.0
    flat = x.reshape(-1)
    return _checked(_fast(flat), flat)


@quiet
def squares(tensors: Sequence[Tensor]) -> list[float]:
    """Σ x² of each of many strided real tensors."""
    return [sum_of_squares(x) for x in tensors]


@quiet
def total_norm(tensors: Sequence[Tensor]) -> float:
    """The 2-norm of all tensors together; inf or NaN if an element is."""
    small: dict[torch.dtype, list[Tensor]] = {}
    result = 0.0
    numel = 0
    for x in tensors:
        size = x.numel()
        numel += size
        if size < _JOIN:
            small.setdefault(x.dtype, []).append(x)
        else:
            result += _fast(x.reshape(-1))
    for some in small.values():
        for pack in _packs(some):
            result += _fast(flatten(pack))
    if not _LEAST_MEAN_SQUARE * numel <= result < math.inf:
        result = sum(squares(tensors))
    return math.sqrt(result)


def _packs(tensors: Sequence[Tensor]) -> Iterator[Sequence[Tensor]]:
    """Runs of tensors of about `_PACK` elements, which stay in the cache when they are joined."""
    start = size = 0
    for i, x in enumerate(tensors):
        if size >= _PACK:
            yield tensors[start:i]
            start, size = i, 0
        size += x.numel()
    yield tensors[start:]


def total(x: Array) -> float:
    """Σ x of a contiguous float32 or float64 array, float32 rows combined in float64."""
    everything, result = x, 0.0
    if (whole := x.size // ROW * ROW) < x.size:
        result = float(np.add.reduce(x[whole:], dtype=np.float64))
        x = x[:whole]
    rows = x.reshape(-1, ROW) @ _ONES[x.dtype.char]
    result += float(np.add.reduce(rows, dtype=np.float64))
    return result if math.isfinite(result) else float(np.add.reduce(everything, dtype=np.float64))


def _fast(flat: Tensor) -> float:
    if flat.dtype in EXACT:
        values = array(flat)
        return dot(values, values)
    result = 0.0
    for i in range(0, flat.numel(), _SLICE):
        values = array(flat[i : i + _SLICE].float())
        result += dot(values, values)
    return result


def _checked(fast: float, flat: Tensor) -> float:
    """`fast` = Σ x² as computed in float32, or the exact one where that left its range."""
    if _LEAST_MEAN_SQUARE * flat.numel() <= fast < math.inf:
        return fast
    result = 0.0
    for i in range(0, flat.numel(), _SLICE):
        values = array(flat[i : i + _SLICE].double())
        result += float(np.dot(values, values))
    return result

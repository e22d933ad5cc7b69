"""Accurate norms of many tensors in few passes.

torch's own norms add up large float32 tensors in float32: the squared norm of 16 M elements is wrong by
1e-3. Here rows of 4,096 elements are reduced by torch and combined in float64 (error ≤ 3e-7). Where the
squares leave the range of float32 although the values do not, they are computed anew in float64.
"""

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

ROW = 4096
CHUNK = 16_384
"""Elements above which torch's own float32 sum is too inexact."""

_LARGE = 1 << 18
"""Elements above which rows, which torch's threads share, are faster than chunks."""

_PACK = 1 << 15
_MANY = 64
"""Tensors from which joining small ones, a copy, takes less than a call for each."""

_SLICE = 1 << 20
_LEAST_MEAN_SQUARE = 1e-30
"""Below it, the squares of float32 values lose bits."""

_EXACT = (torch.float32, torch.float64)
flatten: Callable[[Sequence[Tensor]], Tensor] = torch._utils._flatten_dense_tensors
"""Joins strided tensors of one dtype, flat; of one contiguous tensor it is a view."""


def sum_of_squares(x: Tensor) -> float:
    """Σ x² of a strided real tensor, accurate to 1e-6 at any size, dtype and magnitude."""
    if x.numel() == 0:
        return 0.0
    return _checked(_fast(x), x)


def squares(tensors: Sequence[Tensor]) -> list[float]:
    """Σ x² of each of many strided real tensors; the small ones go through one foreach kernel."""
    small = [i for i, x in enumerate(tensors) if _is_small(x)]
    sums = [0.0] * len(tensors)
    if small:
        norms = torch.stack(torch._foreach_norm([tensors[i] for i in small])).double()
        for i, value in zip(small, norms.square_().tolist(), strict=True):
            sums[i] = _checked(value, tensors[i])
    if len(small) < len(tensors):
        for i, x in enumerate(tensors):
            if not _is_small(x):
                sums[i] = sum_of_squares(x)
    return sums


def total_norm(tensors: Sequence[Tensor]) -> float:
    """The 2-norm of all tensors together; inf or NaN if an element is."""
    alone: dict[torch.dtype, list[Tensor]] = {}
    joined: dict[torch.dtype, list[Tensor]] = {}
    norms: list[float] = []
    numel = 0
    join_below = ROW if len(tensors) >= _MANY else 0
    for x in tensors:
        dtype, size = x.dtype, x.numel()
        numel += size
        if dtype not in _EXACT:
            norms.append(math.sqrt(sum_of_squares(x)))
        elif size < join_below:
            joined.setdefault(dtype, []).append(x)
        elif size <= CHUNK:
            alone.setdefault(dtype, []).append(x)
        elif size <= _LARGE:
            alone.setdefault(dtype, []).extend(torch.split(x.reshape(-1), CHUNK))
        else:
            norms.append(math.sqrt(_fast(x)))
    for dtype, small in joined.items():
        alone.setdefault(dtype, []).extend(map(flatten, _packs(small)))
    for some in alone.values():
        norms += torch.stack(torch._foreach_norm(some)).tolist()
    norm = math.hypot(*norms)
    if _LEAST_MEAN_SQUARE * numel <= norm * norm < math.inf:
        return norm
    return math.sqrt(sum(squares(tensors)))


def _packs(tensors: Sequence[Tensor]) -> Iterator[Sequence[Tensor]]:
    """Runs of tensors of about `_PACK` elements, which stay in the cache when they are joined."""
    start = size = 0
    for i, x in enumerate(tensors):
        if size >= _PACK:
            yield tensors[start:i]
            start, size = i, 0
        size += x.numel()
    yield tensors[start:]


def total(x: Tensor) -> float:
    """Σ x of a contiguous tensor, float32 rows combined in float64."""
    if x.dtype == torch.float64 or x.numel() < ROW:
        return float(x.sum(dtype=torch.float64))
    whole = x.numel() // ROW * ROW
    rows = float(x[:whole].view(-1, ROW).sum(1).sum(dtype=torch.float64))
    return rows + (float(x[whole:].sum(dtype=torch.float64)) if whole < x.numel() else 0.0)


def _is_small(x: Tensor) -> bool:
    return 0 < x.numel() <= CHUNK and x.dtype in _EXACT


def _fast(x: Tensor) -> float:
    if x.dtype not in _EXACT:
        flat = x.reshape(-1)
        return sum(_fast(flat[i : i + _SLICE].float()) for i in range(0, flat.numel(), _SLICE))
    flat = x.reshape(-1)
    if flat.numel() <= CHUNK:
        return float(torch.dot(flat, flat))
    whole = flat.numel() // ROW * ROW
    rows = torch.linalg.vector_norm(flat[:whole].view(-1, ROW), dim=1).double()
    result = float(rows.square_().sum())
    if whole < flat.numel():
        result += float(torch.dot(flat[whole:], flat[whole:]))
    return result


def _checked(fast: float, x: Tensor) -> float:
    """`fast` = Σ x² as computed in x's own dtype, or the exact one where that left the dtype's range."""
    if _LEAST_MEAN_SQUARE * x.numel() <= fast < math.inf:
        return fast
    flat = x.reshape(-1)
    return sum(float(flat[i : i + _SLICE].double().square_().sum()) for i in range(0, flat.numel(), _SLICE))

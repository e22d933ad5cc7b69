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
LARGE = 16_384
"""Elements from which torch's own float32 sum is too inexact."""

_PACK = 1 << 15
_SLICE = 1 << 20
_LEAST_MEAN_SQUARE = 1e-30
"""Below it, the squares of float32 values lose bits."""

_EXACT = (torch.float32, torch.float64)
_flatten: Callable[[Sequence[Tensor]], Tensor] = torch._utils._flatten_dense_tensors


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
    joined: dict[torch.dtype, list[Tensor]] = {}
    rows: list[Tensor] = []
    others = 0.0
    numel = 0
    for x in tensors:
        dtype, size = x.dtype, x.numel()
        numel += size
        if dtype not in _EXACT:
            others += sum_of_squares(x)
        elif size < ROW:
            joined.setdefault(dtype, []).append(x)
        else:
            rows += _rows(x.reshape(-1))
    for small in joined.values():
        for pack in _packs(small):
            # One copy and one reduction take less than a call for each of many small tensors.
            rows += _rows(_flatten(pack) if len(pack) > 1 else pack[0].reshape(-1))
    if not rows:
        return math.sqrt(others)
    partial = torch.cat(rows) if len(rows) > 1 else rows[0]
    result = float(partial.double().square_().sum()) + others
    if _LEAST_MEAN_SQUARE * numel <= result < math.inf:
        return math.sqrt(result)
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


def _rows(flat: Tensor) -> list[Tensor]:
    """The norms of the rows of a contiguous tensor, and of the rest."""
    whole = flat.numel() // ROW * ROW
    norms = [torch.linalg.vector_norm(flat[:whole].view(-1, ROW), dim=1)] if whole else []
    if whole < flat.numel():
        norms.append(torch.linalg.vector_norm(flat[whole:]).view(1))
    return norms


def total(x: Tensor) -> float:
    """Σ x of a contiguous tensor, float32 rows combined in float64."""
    if x.dtype == torch.float64 or x.numel() < ROW:
        return float(x.sum(dtype=torch.float64))
    whole = x.numel() // ROW * ROW
    rows = float(x[:whole].view(-1, ROW).sum(1).sum(dtype=torch.float64))
    return rows + (float(x[whole:].sum(dtype=torch.float64)) if whole < x.numel() else 0.0)


def _is_small(x: Tensor) -> bool:
    return 0 < x.numel() < LARGE and x.dtype in _EXACT


def _fast(x: Tensor) -> float:
    if x.dtype not in _EXACT:
        flat = x.reshape(-1)
        return sum(_fast(flat[i : i + _SLICE].float()) for i in range(0, flat.numel(), _SLICE))
    flat = x.reshape(-1)
    if flat.numel() < LARGE:
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

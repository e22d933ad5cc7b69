"""How the gradient of every tensor is spread, as counts for each power of two (`optwatch.wire.histograms`).

A float holds its own logarithm: the bits of its sign and exponent are counted, block by block, and no
copy of a tensor is made. Twelve bits of a float64, nine of everything else, which is read as float32.
"""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from optwatch.wire.histograms import LEAST, MAX_COUNT, MOST, NONFINITE, POWERS, WIDTH, ZEROS
from optwatch.wire.limits import MAX_BLOCK_BYTES
from optwatch_agent.blocks import BLOCK
from optwatch_agent.pieces import wide
from optwatch_agent.shards import is_partial
from optwatch_agent.tensors import array, local, on_cpu

Counts = npt.NDArray[np.uint32]
_Row = npt.NDArray[np.int64]


def fits(tensors: int) -> bool:
    """Whether the histograms of so many tensors go into a message."""
    return 4 * WIDTH * tensors <= MAX_BLOCK_BYTES // 2


def measure(params: Sequence[Tensor], grads: Mapping[int, Tensor] | None = None) -> Counts:
    """Counts u4[T, WIDTH] of the gradients of T parameters; a row of zeros where there is none to read.

    `grads`: those that were kept before the step, by index, where it overwrites them.
    """
    out = np.zeros((len(params), WIDTH), dtype=np.int64)
    with torch.no_grad():
        for i, param in enumerate(params):
            grad = param.grad if grads is None else grads.get(i)
            if grad is None or is_partial(grad) or not on_cpu(grad):
                continue
            _count(local(grad), out[i])
    return np.minimum(out, MAX_COUNT).astype(np.uint32)


def _count(grad: Tensor, row: _Row) -> None:
    """Add the counts of one tensor."""
    double = grad.dtype == torch.float64
    mantissa, exponents = (52, 11) if double else (23, 8)
    counts = np.zeros(2 << exponents, dtype=np.int64)
    for bits in _blocks(grad, np.dtype(np.uint64 if double else np.uint32)):
        # Twelve bits at most: the same as a signed number, which is what is counted.
        signs_and_exponents = (bits >> np.array(mantissa, bits.dtype)).view(f"i{bits.itemsize}")
        found = np.bincount(signs_and_exponents, minlength=len(counts))
        counts += found
        if found[0] or found[1 << exponents]:
            _tiny(bits, mantissa, row)
    _fold(counts.reshape(2, -1), exponents, row)


def _tiny(bits: npt.NDArray[np.unsignedinteger], mantissa: int, row: _Row) -> None:
    """Zeros, and what is too small to have an exponent."""
    magnitude = bits << np.array(1, bits.dtype)
    zeros = int(np.count_nonzero(magnitude == 0))
    row[ZEROS] += zeros
    small = (magnitude >> np.array(mantissa + 1, bits.dtype) == 0) & (magnitude != 0)
    if not small.any():
        return
    positive = int(np.count_nonzero(small & (bits < magnitude)))
    row[POWERS] += positive
    row[0] += int(np.count_nonzero(small)) - positive


def _fold(counts: _Row, exponents: int, row: _Row) -> None:
    """Add counts by exponent, of positive and of negative elements, into those of the range."""
    positive, negative = counts
    last = (1 << exponents) - 1
    row[NONFINITE] += positive[last] + negative[last]
    powers = np.clip(np.arange(1, last) - (last >> 1), LEAST, MOST) - LEAST
    row[:POWERS] += np.bincount(powers, negative[1:last], POWERS).astype(np.int64)
    row[POWERS:ZEROS] += np.bincount(powers, positive[1:last], POWERS).astype(np.int64)


def _blocks(
    grad: Tensor, unsigned: "np.dtype[np.unsignedinteger]"
) -> Iterator[npt.NDArray[np.unsignedinteger]]:
    flat = _flat(grad)
    for start in range(0, flat.numel(), BLOCK):
        yield array(wide(flat[start : start + BLOCK])).view(unsigned)


def _flat(grad: Tensor) -> Tensor:
    """All elements in whatever order they lie in memory, where they lie without gaps."""
    if not grad.is_contiguous() and torch.ops.aten.is_non_overlapping_and_dense(grad):
        return grad.as_strided((grad.numel(),), (1,))
    return grad.reshape(-1)

"""Checksums of bits: whether two replicas hold exactly the same numbers.

A tensor's bytes, as 64-bit words in a grid, are added up by row and by column, with wraparound, and a
hash is taken of the sums. One changed word changes its row's sum, and of two or three changed words one
is alone in its row or in its column: so a change of up to three words is always in what is hashed. A
sum with odd weights would miss two flips of top bits, since 2^63 times any odd number is 2^63.
"""

from collections.abc import Mapping
from hashlib import blake2b
from typing import Any

import torch
from torch import Tensor

from optwatch_agent.tensors import array, local

NOTHING = 0
"""The checksum of what is not there."""

_WIDTH = 512
"""Words in a row."""
_ROWS = 512
"""Rows that are added up at a time: 2 MiB, so that the second pass finds them in the cache."""
_SMALL = 8 * 1024
"""Bytes up to which a tensor is hashed as it is."""
_DEEP = 4
"""Levels of lists and dicts in an optimizer's state."""


def checksum(value: Any, depth: int = _DEEP) -> int:
    """64 bits for a tensor (the elements that this rank holds), a number, or lists and dicts of them.

    `NOTHING` for what is none of these. Reads only; tensors have to be on the CPU.
    """
    if isinstance(value, Tensor):
        data = _bits(local(value))
    elif isinstance(value, (bool, int, float)):
        data = repr(value).encode()
    elif isinstance(value, (list, tuple)) and depth:
        data = b"".join(_word(checksum(item, depth - 1)) for item in value)
    elif isinstance(value, Mapping) and depth:
        data = b"".join(
            str(key).encode() + _word(checksum(value[key], depth - 1)) for key in sorted(value, key=str)
        )
    else:
        return NOTHING
    return int.from_bytes(blake2b(data, digest_size=8).digest(), "little") or 1


def combine(sums: bytes) -> int:
    """64 bits for many checksums in order."""
    return int.from_bytes(blake2b(sums, digest_size=8).digest(), "little")


def _bits(tensor: Tensor) -> bytes:
    """The tensor's bytes, or if they are many, the sums that stand for them. Any dtype, any strides."""
    with torch.no_grad():
        flat = tensor.contiguous().reshape(-1)
        if flat.stride(0) != 1:  # of a single element it may be anything
            flat = flat.clone(memory_format=torch.contiguous_format)
        flat = flat.view(torch.uint8)
        if flat.numel() <= _SMALL:
            return array(flat).tobytes()
        if flat.storage_offset() % 8:
            flat = flat.clone()
        row = 8 * _WIDTH
        whole = flat.numel() // row * row
        grid = flat[:whole].view(torch.int64).view(-1, _WIDTH)
        columns = torch.zeros(_WIDTH, dtype=torch.int64)
        rows = []
        for at in range(0, len(grid), _ROWS):
            block = grid[at : at + _ROWS]
            columns += block.sum(0)
            rows.append(block.sum(1))
        return b"".join(array(part).tobytes() for part in (columns, *rows, flat[whole:]))


def _word(number: int) -> bytes:
    return number.to_bytes(8, "little")

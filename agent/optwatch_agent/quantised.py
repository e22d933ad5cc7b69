"""Optimizer state that is kept in 8 bits or fewer, read as floating point.

bitsandbytes holds codes (uint8), a table of what they mean (qmap) and one scale for each block of elements
(absmax); torchao wraps the same in a tensor of its own that knows how to unpack itself. One tensor at a
time is unpacked, on sampled steps only.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

_TABLES = {"state1": ("qmap1", "absmax1"), "state2": ("qmap2", "absmax2")}
"""bitsandbytes: the keys of the table and of the scales that belong to codes."""


def readable(state: Mapping[str, Any], key: str) -> Tensor | None:
    """The state tensor `key` as real or complex floating point, None where it cannot be read as numbers."""
    value = state.get(key)
    if type(value) is Tensor and value.dtype is torch.float32 and value.numel() > 0:  # nearly always
        return value
    if not isinstance(value, Tensor) or value.numel() == 0:
        return None
    if value.dtype is torch.uint8:
        return _from_codes(state, key, value)
    if type(value).dequantize is not Tensor.dequantize:
        value = value.dequantize()
    return value if value.is_floating_point() or value.is_complex() else None


def set_all(state: dict[str, Any], key: str, value: Tensor, number: float) -> None:
    """Set every element of a state tensor in place, a quantised one to 0."""
    if value.dtype is torch.uint8 and key in _TABLES:
        value.zero_()
        for name in _TABLES[key][1:]:
            state[name].zero_()
    elif type(value).dequantize is not Tensor.dequantize:
        value.copy_(torch.full(value.shape, number, dtype=value.dtype, device=value.device))
    else:
        value.fill_(number)


def _from_codes(state: Mapping[str, Any], key: str, codes: Tensor) -> Tensor | None:
    table, scales = (state.get(name) for name in _TABLES.get(key, ("", "")))
    if not isinstance(table, Tensor) or not isinstance(scales, Tensor) or scales.numel() == 0:
        return None
    flat = codes.reshape(-1)
    block = (
        1 << (-(-flat.numel() // scales.numel()) - 1).bit_length()
    )  # a power of two; the last may be short
    return (table[flat.int()] * scales.repeat_interleave(block)[: flat.numel()]).view(codes.shape)

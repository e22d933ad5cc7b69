"""Accurate norms of many tensors on a device, in a few launches, as tensors that stay there.

The squares are added up in float64, so that they neither leave the range of float32 nor lose bits.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def norms(tensors: Sequence[Tensor]) -> Tensor:
    """The 2-norm of each of n strided real tensors, float64[n] on the device of the first."""
    if not tensors:
        return torch.zeros(0, dtype=torch.float64)
    found: list[Tensor] = [tensors[0]] * len(tensors)
    alike: dict[tuple[torch.device, torch.dtype], list[int]] = {}
    for i, tensor in enumerate(tensors):
        alike.setdefault((tensor.device, tensor.dtype), []).append(i)
    for where in alike.values():
        each = torch._foreach_norm([tensors[i] for i in where], 2, dtype=torch.float64)
        for i, norm in zip(where, each, strict=True):
            found[i] = norm
    home = tensors[0].device
    return torch.stack([norm.to(home, non_blocking=True) for norm in found])


def total_norm(tensors: Sequence[Tensor]) -> Tensor:
    """The 2-norm of all tensors together, float64[]; inf or NaN if an element is."""
    total: Tensor = torch.linalg.vector_norm(norms(tensors))
    return total


def joined(norms: Sequence[float | Tensor]) -> float | Tensor:
    """The 2-norm of all tensors whose norms are given, numbers or float64[]: a number where all are."""
    there = [norm for norm in norms if isinstance(norm, Tensor)]
    here = math.hypot(*[norm for norm in norms if not isinstance(norm, Tensor)])
    if not there:
        return here
    home = there[0].device
    total: Tensor = torch.linalg.vector_norm(
        torch.stack([norm.to(home, non_blocking=True) for norm in there])
    )
    return total.square().add(here**2).sqrt() if here else total


def clipped(tensors: Sequence[Tensor], norm: Tensor, limit: Tensor | float) -> Tensor:
    """Clip tensors whose total norm is `norm`, float64[], in place to another, as
    `torch.nn.utils.clip_grad_norm_` does; the norm after. One that is not finite clips nothing."""
    coefficient = torch.where(norm.isfinite(), (limit / (norm + 1e-6)).clamp(max=1.0), 1.0)
    narrow = all(tensor.dtype is not torch.float64 for tensor in tensors)
    torch._foreach_mul_(list(tensors), coefficient.float() if narrow else coefficient)
    return norm * coefficient

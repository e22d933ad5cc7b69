"""What the statistics read of a tensor: plain, strided, real, and local to this process."""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.dlpack import to_dlpack  # type: ignore[attr-defined, unused-ignore]

from optwatch_agent import shards

PLAIN = frozenset((Tensor, torch.nn.Parameter))
"""Types of tensors that are no more than their memory."""

DEVICES = {"cuda"}
"""Types of devices whose numbers nobody waits for: they are worked out there and arrive later (`later`). CUDA
stands for ROCm, too."""


def local(tensor: Tensor) -> Tensor:
    """The elements of `tensor` that this process holds, as a strided real tensor that shares memory.

    A DTensor gives its local shard, a sparse tensor its coalesced values, a complex one its parts.
    """
    if type(tensor) in PLAIN and tensor.layout is torch.strided and not tensor.is_complex():
        return tensor.detach() if tensor.requires_grad else tensor
    tensor = shards.local(tensor).detach()
    if tensor.layout is not torch.strided:
        tensor = tensor.coalesce().values()
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor)
    return tensor


def array(tensor: Tensor) -> npt.NDArray[Any]:
    """The memory of a strided CPU tensor, detached, to be read; of one that is negated lazily a copy.

    `Tensor.numpy` would forbid its storage to be resized, for good, and so end a training that does that.

    Raises:
        ValueError: its numbers are not in memory of its own, such as those of some subclasses.
    """
    values = np.from_dlpack(_Exported(tensor.resolve_neg() if tensor.is_neg() else tensor))
    if values.flags.owndata and values.size:  # numpy has made up for an address of 0
        raise ValueError(f"the numbers of a {type(tensor).__name__} cannot be read")
    return values


class _Exported:
    """A tensor as DLPack's protocol asks for it; torch's own implementation takes three times as long."""

    __slots__ = ("_tensor",)

    def __init__(self, tensor: Tensor) -> None:
        self._tensor = tensor

    def __dlpack__(self, **_: object) -> Any:
        return to_dlpack(self._tensor)

    def __dlpack_device__(self) -> tuple[int, int]:
        return 1, 0  # kDLCPU


def params_of(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """The parameters of an optimizer, in the order of its groups."""
    return [param for group in optimizer.param_groups for param in group["params"]]


def scalar(value: Any) -> float:
    """A number that torch may hold as a tensor (a step count, a capturable LR)."""
    return float(value.item()) if isinstance(value, Tensor) else float(value)


def number(value: Any) -> Any:
    """The same, but a tensor that is on a device, or of many numbers, stays one, in float64."""
    if isinstance(value, Tensor) and (on_device(value) or value.numel() > 1):
        return value.detach().double()
    return scalar(value)


def on_cpu(tensor: Tensor) -> bool:
    """Whether the host can read it at once."""
    return tensor.is_cpu and "cpu" not in DEVICES


def on_device(tensor: Tensor) -> bool:
    """Whether it is on a device that nobody waits for."""
    return tensor.device.type in DEVICES

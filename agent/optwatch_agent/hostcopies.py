"""Copies of tensors in the host's memory, alone or within lists and dicts, and the way back.

Of a tensor that is spread over ranks its local part is kept. From a device the copy is queued on the
current stream, into pinned memory; what the stream does next waits for it, and the host does not.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from optwatch_agent import shards

_PLAIN = (Tensor, torch.nn.Parameter)


class HostCopy:
    """One tensor's copy, in the memory of a former one where that fits."""

    def __init__(self, tensor: Tensor, former: Any = None) -> None:
        source = tensor.detach()
        self.spread = _spread(source)
        source = shards.local(source)
        self.device = source.device
        if type(source) not in _PLAIN or source.layout is not torch.strided:
            self.data = source.clone().to("cpu")  # one that keeps its numbers in a way of its own
            return
        room = former.data if isinstance(former, HostCopy) else None
        if room is None or room.shape != source.shape or room.dtype is not source.dtype:
            room = torch.empty_like(source, device="cpu", pin_memory=source.is_cuda)
        self.data = room.copy_(source, non_blocking=source.is_cuda)

    def into(self, tensor: Tensor) -> None:
        """Put the numbers back into a tensor that it is a copy of."""
        shards.local(tensor.detach()).copy_(self.data, non_blocking=True)

    def fits(self, tensor: Any) -> bool:
        """Whether it can be put back into a tensor as it is now."""
        if not isinstance(tensor, Tensor) or (self.spread is None) == shards.is_sharded(tensor):
            return False
        local = shards.local(tensor.detach())
        return local.shape == self.data.shape and local.dtype is self.data.dtype

    def anew(self) -> Tensor:
        """A tensor like the one that it is a copy of."""
        tensor = self.data.to(self.device, copy=True)
        if self.spread is None:
            return tensor
        from torch.distributed.tensor import DTensor

        mesh, placements, shape, stride = self.spread
        return DTensor.from_local(tensor, mesh, placements, run_check=False, shape=shape, stride=stride)


def copied(value: Any, former: Any = None) -> Any:
    """A copy on the host of tensors, in the memory of a former copy of the same where that fits."""
    if isinstance(value, Tensor):
        return HostCopy(value, former)
    if isinstance(value, Mapping):
        kept = former if isinstance(former, dict) else {}
        return {key: copied(item, kept.get(key)) for key, item in value.items()}
    if type(value) in (list, tuple):
        fits = isinstance(former, (list, tuple)) and len(former) == len(value)
        rooms = former if fits else [None] * len(value)
        return type(value)([copied(item, room) for item, room in zip(value, rooms, strict=True)])
    return value


def put_back(kept: Any, now: Any) -> Any:
    """What was kept: in `now` where that can take it in place, else made anew."""
    if isinstance(kept, HostCopy):
        if not kept.fits(now):
            return kept.anew()
        kept.into(now)
        return now
    if isinstance(kept, dict):
        into = now if isinstance(now, dict) else {}
        for key in [key for key in into if key not in kept]:
            del into[key]
        for key, item in kept.items():
            into[key] = put_back(item, into.get(key))
        return into
    if type(kept) in (list, tuple):
        held = now if isinstance(now, (list, tuple)) and len(now) == len(kept) else [None] * len(kept)
        return type(kept)([put_back(item, old) for item, old in zip(kept, held, strict=True)])
    return kept


def tensors_in(value: Any) -> Iterator[Tensor]:
    """The tensors within lists and dicts: of a spread one this rank's part, of a copy what it holds."""
    if isinstance(value, HostCopy):
        yield value.data
    elif isinstance(value, Tensor):
        yield shards.local(value.detach())
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from tensors_in(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from tensors_in(item)


def size_of(value: Any) -> int:
    """Bytes of the tensors within."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors_in(value))


def _spread(tensor: Tensor) -> tuple[Any, Any, torch.Size, tuple[int, ...]] | None:
    """How a DTensor is spread: its mesh, placements, and the whole's shape and stride."""
    if not shards.is_sharded(tensor):
        return None
    return tensor.device_mesh, tensor.placements, tensor.shape, tensor.stride()

"""Copies of tensors in the host's memory, alone or within lists and dicts, and the way back.

Of a tensor that is spread over ranks its local part is kept. From a device the copy is queued on the
current stream, into pinned memory; what the stream does next waits for it, and the host does not.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from optwatch_agent import shards


class HostCopy:
    """One tensor's copy, in the memory of a former one where that fits.

    Of a tensor that keeps its numbers in others, such as one of 8 bits, those are copied.
    """

    def __init__(self, tensor: Tensor, former: Any = None) -> None:
        source = tensor.detach()
        self.spread = _spread(source)
        source = shards.local(source)
        self.device = source.device
        self.data: Tensor
        self.parts: dict[str, HostCopy] = {}
        kind: Any = type(source)
        if inner := _inner_tensors(source):
            rooms = former.parts if isinstance(former, HostCopy) else {}
            self.parts = {name: HostCopy(each, rooms.get(name)) for name, each in inner.items()}
            self.made_of = kind, kind.__tensor_flatten__(source)[1], source.shape, source.stride()
            return
        room = former.data if isinstance(former, HostCopy) and not former.parts else None
        if source.layout is not torch.strided:
            self.data = source.clone().to("cpu")
            return
        if room is None or room.shape != source.shape or room.dtype is not source.dtype:
            room = torch.empty_like(source, device="cpu", pin_memory=source.is_cuda)
        self.data = room.copy_(source, non_blocking=source.is_cuda)

    def into(self, tensor: Tensor) -> None:
        """Put the numbers back into a tensor that it is a copy of."""
        target = shards.local(tensor.detach())
        for name, part in self.parts.items():
            part.into(getattr(target, name))
        if not self.parts:
            target.copy_(self.data, non_blocking=True)

    def fits(self, tensor: Any) -> bool:
        """Whether it can be put back into a tensor as it is now."""
        if not isinstance(tensor, Tensor) or (self.spread is None) == shards.is_sharded(tensor):
            return False
        target = shards.local(tensor.detach())
        if self.parts:
            inner = _inner_tensors(target)
            return inner.keys() == self.parts.keys() and all(
                part.fits(inner[name]) for name, part in self.parts.items()
            )
        return target.shape == self.data.shape and target.dtype is self.data.dtype

    def anew(self) -> Tensor:
        """A tensor like the one that it is a copy of."""
        if self.parts:
            kind, context, shape, stride = self.made_of
            inner = {name: part.anew() for name, part in self.parts.items()}
            tensor: Tensor = kind.__tensor_unflatten__(inner, context, shape, stride)
        else:
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
        yield from tensors_in(value.parts) if value.parts else (value.data,)
    elif isinstance(value, Tensor):
        held = shards.local(value.detach())
        yield from _inner_tensors(held).values() or (held,)
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from tensors_in(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from tensors_in(item)


def size_of(value: Any) -> int:
    """Bytes of the tensors within."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors_in(value))


def _inner_tensors(tensor: Any) -> dict[str, Tensor]:
    """The tensors that one of a kind of its own keeps its numbers in; empty of a plain one."""
    if type(tensor) in (Tensor, torch.nn.Parameter) or not is_traceable_wrapper_subclass(tensor):
        return {}
    return {name: getattr(tensor, name) for name in tensor.__tensor_flatten__()[0]}


def _spread(tensor: Tensor) -> tuple[Any, Any, torch.Size, tuple[int, ...]] | None:
    """How a DTensor is spread: its mesh, placements, and the whole's shape and stride."""
    if not shards.is_sharded(tensor):
        return None
    return tensor.device_mesh, tensor.placements, tensor.shape, tensor.stride()

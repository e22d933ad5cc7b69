"""What part of a tensor this rank holds.

A parameter that is spread over a device mesh (FSDP2, HSDP, tensor parallelism) is a DTensor. Its
`shard_key` says where its part lies: the coordinate along each mesh dimension that shards it. Ranks with
the same name and key hold replicas of the same numbers; the parts of all keys make up the tensor. This
holds for parameters of different meshes in one model, where counting a tensor's own replicas does not.
"""

import sys
from typing import TYPE_CHECKING, TypeGuard

import torch

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

ShardKey = tuple[tuple[str, int], ...]
"""(mesh dimension, coordinate) of each dimension that shards the tensor; () for a whole tensor."""


def is_sharded(tensor: torch.Tensor) -> "TypeGuard[DTensor]":
    """Whether a tensor is a DTensor. Costs nothing where nobody made one."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def local(tensor: torch.Tensor) -> torch.Tensor:
    """The elements that this rank holds, perhaps none, as a plain tensor; no copy, no collective."""
    if not is_sharded(tensor):
        return tensor
    with torch.no_grad():
        return tensor.to_local()


def shard_key(tensor: torch.Tensor) -> ShardKey:
    """Which part of the tensor this rank holds."""
    return tuple((name, at) for name, at, _ in _sharding(tensor))


def shard_sizes(tensor: torch.Tensor) -> tuple[int, ...]:
    """Into how many parts each dimension of its shard_key cuts the tensor."""
    return tuple(size for _, _, size in _sharding(tensor))


def is_only_copy(tensor: torch.Tensor, world_size: int) -> bool:
    """Whether no other rank holds the same elements: it is cut along every dimension of a mesh of all."""
    return (
        is_sharded(tensor)
        and tensor.device_mesh.size() == world_size
        and not any(p.is_replicate() or p.is_partial() for p in tensor.placements)
    )


def sharded_dimensions(tensor: "DTensor") -> tuple[int, ...]:
    """The dimensions of its mesh that shard it."""
    return tuple(
        i
        for i, placement in enumerate(tensor.placements)
        if not (placement.is_replicate() or placement.is_partial())
    )


def is_partial(tensor: torch.Tensor) -> bool:
    """Whether the numbers are summands yet to be added over ranks: no norm can be had from them."""
    return is_sharded(tensor) and any(placement.is_partial() for placement in tensor.placements)


def _sharding(tensor: torch.Tensor) -> list[tuple[str, int, int]]:
    """(mesh dimension, coordinate, size) of each dimension that shards the tensor."""
    if not is_sharded(tensor):
        return []
    mesh = tensor.device_mesh
    names = mesh.mesh_dim_names or tuple(f"dim{i}" for i in range(mesh.ndim))
    at = mesh.get_coordinate() or [-1] * mesh.ndim
    return [(names[i], at[i], mesh.size(i)) for i in sharded_dimensions(tensor)]

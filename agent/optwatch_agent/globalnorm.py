"""The norm of all gradients of an optimizer over all ranks, known to each of them at this step.

Ranks that hold parts of the gradients add up their squares, which is a collective: all ranks have to come
here at the same step. Where every mesh spans all ranks it is one sum of one number over all of them, to
which each of several replicas of a part gives its share. Else each mesh is added up over the groups of its
own dimensions (a model may have several, tensor parallelism leaves some layers out).
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor

from optwatch_agent.norms import squares, total_norm
from optwatch_agent.shards import is_partial, is_sharded, shard_sizes, sharded_dimensions
from optwatch_agent.tensors import local
from optwatch_agent.zero import partition_of

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


def gradients_of(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """The gradients that this rank has: under ZeroRedundancyOptimizer also those that others use."""
    partition = partition_of(optimizer)
    if partition is not None:
        params = partition.params
    else:
        params = [param for group in optimizer.param_groups for param in group["params"]]
    return [param.grad for param in params if param.grad is not None]


def is_spread(optimizer: torch.optim.Optimizer) -> bool:
    """Whether the norm takes a collective."""
    return any(is_sharded(param) for group in optimizer.param_groups for param in group["params"])


def is_unsummed(optimizer: torch.optim.Optimizer) -> bool:
    """Whether gradients are yet to be summed over ranks: no norm can be had from them."""
    return any(is_partial(grad) for grad in gradients_of(optimizer))


def global_norm(optimizer: torch.optim.Optimizer) -> float:
    """The 2-norm of all gradients, the same bits on every rank; NaN or inf if an element is.

    Where parameters are sharded this is a collective.
    """
    grads = gradients_of(optimizer)
    if not is_spread(optimizer):
        return total_norm([local(grad) for grad in grads])
    # The parameters are asked, not the gradients: a rank without any takes part all the same.
    params = [param for group in optimizer.param_groups for param in group["params"]]
    spanned = [param.device_mesh for param in params if is_sharded(param)]
    if all(mesh.size() == dist.get_world_size() for mesh in spanned):
        return math.sqrt(_of_all_ranks(params, spanned[0].device_type))
    meshes: dict[tuple[DeviceMesh, tuple[int, ...]], list[Tensor]] = {}
    whole: list[Tensor] = []
    for param in params:
        found = [] if param.grad is None else [local(param.grad)]
        if is_sharded(param):
            meshes.setdefault((param.device_mesh, sharded_dimensions(param)), []).extend(found)
        else:
            whole.extend(found)
    total = sum(squares(whole))
    for (mesh, dimensions), parts in meshes.items():
        total += _summed(sum(squares(parts)), mesh, dimensions)
    return math.sqrt(_agreed(total, [mesh for mesh, _ in meshes]))


def _of_all_ranks(params: Sequence[Tensor], device: str) -> float:
    """The sum of squares of gradients whose parameters every rank holds a part of, or the whole."""
    of_copies: dict[int, list[Tensor]] = {}
    for param in params:
        if param.grad is not None:
            parts = math.prod(shard_sizes(param))
            of_copies.setdefault(dist.get_world_size() // parts, []).append(local(param.grad))
    mine = sum(sum(squares(grads)) / copies for copies, grads in of_copies.items())
    number = torch.tensor([mine], dtype=torch.float64, device=device)
    dist.all_reduce(number)
    return number.item()


def _summed(value: float, mesh: "DeviceMesh", dimensions: Sequence[int]) -> float:
    """A number of each rank, added up over some dimensions of a mesh."""
    if not dimensions:
        return value
    number = torch.tensor([value], dtype=torch.float64, device=mesh.device_type)
    for dimension in dimensions:
        dist.all_reduce(number, group=mesh.get_group(dimension))
    return number.item()


def _agreed(total: float, meshes: Sequence["DeviceMesh"]) -> float:
    """One number of all ranks: replicas may have come to others in the last bit.

    Of a non-finite one only that it is none: NaN has no place in an order.
    """
    number = torch.tensor([total if math.isfinite(total) else math.inf], dtype=torch.float64)
    seen: set[str] = set()
    for mesh in meshes:
        number = number.to(mesh.device_type)
        for dimension in range(mesh.ndim):
            group = mesh.get_group(dimension)
            if group.group_name not in seen:
                seen.add(group.group_name)
                dist.all_reduce(number, op=dist.ReduceOp.MAX, group=group)
    agreed = number.item()
    return agreed if math.isfinite(agreed) or math.isfinite(total) else total

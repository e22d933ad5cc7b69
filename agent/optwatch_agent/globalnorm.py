"""The norm of all gradients of an optimizer over all ranks, known to each of them at this step.

Ranks that hold parts of the gradients add up their squares, which is a collective: all ranks have to come
here at the same step. Where every mesh spans all ranks it is one sum of one number over all of them, to
which each of several replicas of a part gives its share. Else each mesh is added up over the groups of its
own dimensions (a model may have several, tensor parallelism leaves some layers out).
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from optwatch_agent.norms import squares, total_norm
from optwatch_agent.shards import is_partial, is_sharded, shard_sizes, sharded_dimensions
from optwatch_agent.tensors import local, params_of
from optwatch_agent.zero import partition_of

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

Kind = TypeVar("Kind")


def gradients_of(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """The gradients that this rank has: under ZeroRedundancyOptimizer also those that others use."""
    partition = partition_of(optimizer)
    params = partition.params if partition is not None else params_of(optimizer)
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
    if is_spread(optimizer):
        return math.sqrt(spread_energy(optimizer, _energy).item())
    return total_norm([local(grad) for grad in gradients_of(optimizer)])


def _energy(grads: Sequence[Tensor]) -> Tensor:
    return torch.tensor(sum(squares(grads)), dtype=torch.float64)


def spread_energy(
    optimizer: torch.optim.Optimizer, energy_of: Callable[[Sequence[Tensor]], Tensor]
) -> Tensor:
    """The sum of squares, float64[], of gradients that are spread over ranks, the same bits on every rank.

    `energy_of` gives that of gradients of this rank. A collective, of tensors on the mesh's device.
    """
    # The parameters are asked, not the gradients: a rank without any takes part all the same.
    params = params_of(optimizer)
    meshes = list(dict.fromkeys(param.device_mesh for param in params if is_sharded(param)))
    device = meshes[0].device_type
    if all(mesh.size() == dist.get_world_size() for mesh in meshes):
        total = torch.zeros((), dtype=torch.float64, device=device)
        for copies, grads in _by(params, _copies).items():
            total += energy_of(grads).to(device) / copies
        dist.all_reduce(total)
        return total
    total = torch.zeros((), dtype=torch.float64, device=device)
    for where, grads in _by(params, _mesh_and_dimensions).items():
        energy = energy_of(grads).to(device)
        if where is not None:
            mesh, dimensions = where
            for dimension in dimensions:
                dist.all_reduce(energy, group=mesh.get_group(dimension))
        total += energy
    return _agreed(total, meshes)


def _by(params: Sequence[Tensor], kind_of: Callable[[Tensor], Kind]) -> dict[Kind, list[Tensor]]:
    """This rank's gradients by a property of their parameters, in the order of the parameters."""
    found: dict[Kind, list[Tensor]] = {}
    for param in params:
        grads = found.setdefault(kind_of(param), [])
        if param.grad is not None:
            grads.append(local(param.grad))
    return found


def _copies(param: Tensor) -> int:
    """How many ranks hold the same elements, where every rank holds a part or the whole."""
    return dist.get_world_size() // math.prod(shard_sizes(param))


def _mesh_and_dimensions(param: Tensor) -> "tuple[DeviceMesh, tuple[int, ...]] | None":
    return (param.device_mesh, sharded_dimensions(param)) if is_sharded(param) else None


def _agreed(total: Tensor, meshes: Iterable["DeviceMesh"]) -> Tensor:
    """One number of all ranks: replicas may have come to others in the last bit.

    Of a non-finite one only that it is none: NaN has no place in an order.
    """
    number = torch.where(total.isfinite(), total, math.inf)
    seen: set[str] = set()
    for mesh in meshes:
        for dimension in range(mesh.ndim):
            group = mesh.get_group(dimension)
            if group.group_name not in seen:
                seen.add(group.group_name)
                dist.all_reduce(number, op=dist.ReduceOp.MAX, group=group)
    return torch.where(number.isfinite() | total.isfinite(), number, total)

"""One small model, laid out over ranks in the ways that training jobs do it."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel

WIDTH = 16


def numel(width: int) -> int:
    """Elements of the model; 576 of the usual one."""
    return 2 * (width * width + width) + 2 * width


class Block(nn.Module):
    """A norm that tensor parallelism leaves whole between two layers that it cuts."""

    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, width)
        self.down = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(torch.relu(self.up(self.norm(x))))  # type: ignore[no-any-return]


def whole(width: int = WIDTH) -> Block:
    """The model as every rank begins with it."""
    torch.manual_seed(7)
    return Block(width)


def plain(ranks: int, width: int) -> nn.Module:
    return whole(width)


def ddp(ranks: int, width: int) -> nn.Module:
    return DistributedDataParallel(whole(width))


def fsdp(ranks: int, width: int) -> nn.Module:
    return fully_shard(whole(width), mesh=init_device_mesh("cpu", (ranks,), mesh_dim_names=("dp",)))


def hsdp(ranks: int, width: int) -> nn.Module:
    mesh = init_device_mesh("cpu", (2, ranks // 2), mesh_dim_names=("replicate", "shard"))
    return fully_shard(whole(width), mesh=mesh)


def tp(ranks: int, width: int) -> nn.Module:
    mesh = init_device_mesh("cpu", (ranks,), mesh_dim_names=("tp",))
    return parallelize_module(whole(width), mesh, {"up": ColwiseParallel(), "down": RowwiseParallel()})


def fsdp_tp(ranks: int, width: int) -> nn.Module:
    mesh = init_device_mesh("cpu", (ranks // 2, 2), mesh_dim_names=("dp", "tp"))
    model = parallelize_module(whole(width), mesh["tp"], {"up": ColwiseParallel(), "down": RowwiseParallel()})
    return fully_shard(model, mesh=mesh["dp"])


def hsdp_tp(ranks: int, width: int) -> nn.Module:
    mesh = init_device_mesh("cpu", (2, ranks // 4, 2), mesh_dim_names=("replicate", "shard", "tp"))
    model = parallelize_module(whole(width), mesh["tp"], {"up": ColwiseParallel(), "down": RowwiseParallel()})
    return fully_shard(model, mesh=mesh["replicate", "shard"])


LAYOUTS: dict[str, Callable[[int, int], nn.Module]] = {
    "plain": plain,
    "ddp": ddp,
    "fsdp": fsdp,
    "hsdp": hsdp,
    "tp": tp,
    "fsdp_tp": fsdp_tp,
    "hsdp_tp": hsdp_tp,
    "zero": ddp,
}


def optimizer(
    layout: str, kind: type[torch.optim.Optimizer], parameters: Iterable[nn.Parameter], **options: Any
) -> torch.optim.Optimizer:
    """The optimizer of a layout."""
    if layout == "zero":
        return ZeroRedundancyOptimizer(parameters, optimizer_class=kind, **options)
    return kind(parameters, **options)  # type: ignore[arg-type]


def batch(step: int, width: int = WIDTH) -> torch.Tensor:
    """The input of a step: the same on all ranks, as tensor parallelism asks for it."""
    return torch.randn(8, width, generator=torch.Generator().manual_seed(step))

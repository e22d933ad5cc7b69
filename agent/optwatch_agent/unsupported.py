"""What is told apart by its class and not attached to: its numbers would be wrong, or its ranks not alike.

Each of these cuts the parameters up in a way of its own, so that neither names nor norms nor a command on
the inner optimizer would mean what they say. They are known by name alone, since none has to be installed.
"""

from typing import Any

import torch
from torch import nn

_UNSUPPORTED = (
    ("deepspeed.", "DeepSpeed", "cuts the parameters up in a way of its own"),
    (
        "megatron.core.optimizer.distrib_optimizer",
        "DistributedOptimizer",
        "keeps flat parts of the parameters",
    ),
    ("torchft.", "OptimizerWrapper", "may commit a step on some ranks only"),
    ("torchft.", "Optimizer", "may commit a step on some ranks only"),
)
"""(module, how the class's name begins, why)."""

_FSDP1 = (
    "FullyShardedDataParallel of FSDP1 keeps flat parts of the parameters: use fully_shard, which is FSDP2"
)


def unsupported(given: Any) -> str:
    """Why an optimizer or a wrapper around one cannot be attached to, "" where it can."""
    for kind in type(given).__mro__:
        for module, name, why in _UNSUPPORTED:
            if f"{kind.__module__}.".startswith(module) and kind.__name__.startswith(name):
                return f"there is no adapter for {kind.__module__}.{kind.__name__} yet: it {why}"
    if isinstance(given, torch.optim.Optimizer) and any(
        getattr(param, "_is_flat_param", False) for group in given.param_groups for param in group["params"]
    ):
        return _FSDP1
    return ""


def unsupported_model(model: nn.Module) -> str:
    """The same of a model."""
    for module in model.modules():
        for kind in type(module).__mro__:
            if kind.__module__ == "torch.distributed.fsdp.fully_sharded_data_parallel":
                return _FSDP1
    return ""

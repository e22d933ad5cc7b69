"""Names, shapes and numbers that describe an optimizer to the daemon."""

import hashlib
from collections import Counter
from collections.abc import Iterable
from typing import Any

import msgspec
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from optwatch.wire.limits import MAX_TEXT, fit
from optwatch.wire.messages import ConfigValue, GroupInfo, OptimizerInfo, TensorInfo
from optwatch_agent import losses, zero
from optwatch_agent.joint import kind_of
from optwatch_agent.objective import why_loss_may_rise
from optwatch_agent.roles import is_known, roles_of
from optwatch_agent.shards import is_sharded, shard_key
from optwatch_agent.signals import let_through
from optwatch_agent.tensors import local

MISSING_NAMES = 8
_WRAPPERS = frozenset(("module", "_module", "_orig_mod", "_fsdp_wrapped_module"))
"""What DDP, Opacus, torch.compile and FSDP put into the names of a model's parameters."""


def names_of(model: nn.Module | None) -> dict[int, str]:
    """The names of a model's parameters by id; the wrappers' parts of them are left out, but where two would
    have the same."""
    if model is None:
        return {}
    params = dict(model.named_parameters())
    counts = Counter(map(plain_name, params))
    return {
        id(param): short if counts[short := plain_name(name)] == 1 else name for name, param in params.items()
    }


def plain_name(name: str) -> str:
    """The name of a parameter or a module without the wrappers' parts."""
    *path, last = name.split(".")
    return ".".join([*(part for part in path if part not in _WRAPPERS), last])


def is_replicated(model: nn.Module | None) -> bool:
    """Whether every rank holds a replica of the model, since DistributedDataParallel wraps it."""
    return model is not None and any(isinstance(m, DistributedDataParallel) for m in model.modules())


def tensors_of(optimizer: torch.optim.Optimizer, names: dict[int, str]) -> tuple[TensorInfo, ...]:
    """The parameters in the optimizer's order: named by the model, else by the group, else by number."""
    tensors: list[TensorInfo] = []
    partition = zero.partition_of(optimizer)
    owned = partition.owned if partition is not None else set()
    for number, group in enumerate(zero.groups_of(optimizer)):
        own = group.get("param_names") or ()
        for i, param in enumerate(group["params"]):
            name = names.get(id(param)) or (own[i] if i < len(own) else f"param.{len(tensors)}")
            shard = shard_key(param)
            held = local(param).numel() if is_sharded(param) else None
            if partition is not None:
                shard = ((zero.DIMENSION, partition.rank),)
                held = param.numel() if id(param) in owned else 0
            tensors.append(
                TensorInfo(
                    name=fit(name),
                    shape=tuple(param.shape),
                    dtype=str(param.dtype).removeprefix("torch."),
                    group=number,
                    shard=shard,
                    held=held,
                )
            )
    return tuple(tensors)


def describe(name: str, optimizer: torch.optim.Optimizer) -> OptimizerInfo:
    """What the daemon shows of an optimizer, and what has to agree over ranks."""
    kind = kind_of(optimizer).__name__
    of_all_ranks = zero.groups_of(optimizer)
    groups = tuple(
        GroupInfo(
            options={
                str(key): value
                for key, option in group.items()
                if key not in ("params", "param_names")
                for value in (plain(option),)
                if value is not None
            },
            tensors=len(group["params"]),
            numel=sum(param.numel() for param in group["params"]),
            twice=len(group["params"]) - len({id(param) for param in group["params"]}),
            half=any(param.dtype == torch.float16 for param in group["params"]),
        )
        for group in of_all_ranks
    )
    shapes = [[tuple(p.shape) for p in group["params"]] for group in of_all_ranks]
    digest = hashlib.sha256(msgspec.msgpack.encode((kind, shapes))).hexdigest()[:16]
    return OptimizerInfo(
        name=name,
        kind=kind,
        groups=groups,
        digest=digest,
        hints=_hints(optimizer),
        loss_may_rise=why_loss_may_rise(),
    )


def missing(model: nn.Module | None, optimizers: Iterable[torch.optim.Optimizer]) -> tuple[str, ...]:
    """The names of those parameters of a model that want a gradient and that no optimizer has, the first few.
    Where the optimizers' own are seen to have gradients by now, those that have none, as a target network's,
    want none.

    None where the optimizers have none of its parameters at all: then they train copies.
    """
    if model is None:
        return ()
    held = [p for optimizer in optimizers for group in zero.groups_of(optimizer) for p in group["params"]]
    ids = set(map(id, held))
    passed = losses.TAP.may_look and any(param.grad is not None for param in held)
    wanted = [
        (name, param)
        for name, param in model.named_parameters()
        if param.requires_grad and not (passed and param.grad is None)
    ]
    left = [fit(plain_name(name)) for name, param in wanted if id(param) not in ids]
    return tuple(left[:MISSING_NAMES]) if len(left) < len(wanted) else ()


def plain(value: Any) -> ConfigValue:
    """A value that the wire carries; others as text, None where there is nothing to show."""
    try:
        return _plain(value)
    except Exception as error:  # noqa: BLE001 - whose text is whatever its class makes of it
        let_through(error)
        return f"<{type(value).__name__}>"


def _plain(value: Any) -> ConfigValue:
    if isinstance(value, Tensor):
        return float(value.item()) if value.numel() == 1 and value.device.type == "cpu" else None
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, float):  # the wire takes none of a subclass
        return float(value)
    if isinstance(value, int) and abs(value) < 2**63:
        return int(value)
    if isinstance(value, tuple | list):
        return fit(", ".join(str(_plain(item)) for item in value[:MAX_TEXT]), MAX_TEXT)
    return fit(str(value), MAX_TEXT)


def _hints(optimizer: torch.optim.Optimizer) -> tuple[str, ...]:
    roles = roles_of(optimizer)
    hints = [f"{action}: {reason}" for action, reason in roles.refusals.items()]
    if not is_known(optimizer):
        kind = kind_of(optimizer).__name__
        hints.append(f"update: {kind} is not known; its updates are seen as differences")
    return tuple(hints)

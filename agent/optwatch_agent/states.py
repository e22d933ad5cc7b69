"""The state of an optimizer that nobody has described: the norm of what it keeps, by its own names."""

from collections.abc import Mapping

import torch
from torch import Tensor

from optwatch_agent import device_norms
from optwatch_agent.norms import total_norm
from optwatch_agent.recorder import Value, column_name
from optwatch_agent.tensors import local, on_cpu, on_device

_MOST_KEYS = 8


def state_norms(optimizer: torch.optim.Optimizer) -> dict[str, Value]:
    """`state_norm/KEY`: the 2-norm of the tensors under one key of all parameters' states, where some of them
    are on devices of those.

    Counts and other tensors of one element are left out, and what is not floating point.
    """
    found: dict[str, list[Tensor]] = {}
    for state in optimizer.state.values():
        if not isinstance(state, Mapping):
            continue
        for key, value in state.items():
            if type(value) is not Tensor or not (on_cpu(value) or on_device(value)):
                continue
            if value.numel() > 1 and value.is_floating_point():
                found.setdefault(str(key), []).append(local(value))
    return {column_name(f"state_norm/{key}"): _norm(found[key]) for key in sorted(found)[:_MOST_KEYS]}


def _norm(tensors: list[Tensor]) -> Value:
    there = [tensor for tensor in tensors if on_device(tensor)]
    return device_norms.total_norm(there) if there else total_norm([x for x in tensors if on_cpu(x)])

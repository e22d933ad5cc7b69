"""A restart of an optimizer in place: its moments are forgotten, its parameters stay."""

from typing import Any

import torch
from torch import Tensor

from optwatch.wire.actions import Restart
from optwatch_agent.joint import kind_of
from optwatch_agent.quantised import set_all
from optwatch_agent.roles import Roles, fresh, roles_of
from optwatch_agent.tensors import scalar


def refusal(optimizer: torch.optim.Optimizer, action: Restart) -> str | None:
    """Why an optimizer's moments cannot be zeroed, None where they can."""
    roles = roles_of(optimizer)
    kind = kind_of(optimizer).__name__
    if reason := roles.refusals.get("restart"):
        return reason
    if action.moments == "first" and roles.first is None:
        return f"{kind} has no first moment"
    if action.moments == "second":
        if roles.second is None:
            return f"{kind} has no second moment"
        if roles.first in ("exp_avg", "state1"):
            return f"{kind} corrects both moments by one step count: restart all of them"
    return None


def restart(optimizer: torch.optim.Optimizer, moments: str) -> None:
    """Zero the moments, and the step with them, in place, so that the next step is that of a new optimizer.

    A kept step would make the first update of Adam (1 - β1)/sqrt(1 - β2) ≈ 3.2 × too large. Counters that
    other packages keep in the group go too: left behind they disable the correction of the bias. Of slow
    weights see `optwatch_agent.roles`.
    """
    roles = roles_of(optimizer)
    with torch.no_grad():
        for group in optimizer.param_groups:
            for param in group["params"]:
                state = optimizer.state.get(param)
                if state is not None:
                    _restart_one(param, state, group, roles, moments)
            if moments in ("all", "second"):
                for key, value in roles.group_resets.items():
                    if isinstance(group.get(key), Tensor):
                        _fill(group, key, scalar(value))
                    elif key in group:
                        group[key] = fresh(value)


def _restart_one(
    param: Tensor, state: dict[str, Any], group: dict[str, Any], roles: Roles, moments: str
) -> None:
    if moments in ("all", "first") and roles.first is not None:
        if roles.drops_first and group.get("dampening"):
            state.pop(roles.first, None)
        else:
            _fill(state, roles.first, 0.0)
    if moments in ("all", "second"):
        if roles.second is not None:
            _fill(state, roles.second, 0.0)
        for key, value in roles.resets.items():
            _fill(state, key, scalar(group[value]) if isinstance(value, str) else value)
        for key in roles.copies:
            if isinstance(held := state.get(key), Tensor):
                held.copy_(param)


def _fill(held: dict[str, Any], key: str, number: float) -> None:
    """Set what is kept under a key, where there is something, to a number."""
    value = held.get(key)
    if isinstance(value, Tensor):
        set_all(held, key, value, number)
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        held[key] = type(value)(number)

"""How `step` was called, as its pre-hook sees it."""

import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from optwatch_agent.tensors import on_cpu


def closure_of(args: Any, kwargs: Any) -> Callable[..., Any] | None:
    """The closure that a step was given, None without one."""
    closure = kwargs.get("closure") if kwargs else None
    if closure is None and len(args) > 1 and callable(args[1]):
        closure = args[1]
    return closure


def is_rehearsal(optimizer: torch.optim.Optimizer) -> bool:
    """Whether a step with keywords is none of the training: torch.distributed.checkpoint takes one with an LR
    and gradients of 0, by `step(closure=None)`, where the state that it loads or saves is not there yet."""
    groups = optimizer.param_groups
    lr = groups[0].get("lr") if groups else None
    if isinstance(lr, Tensor):
        lr = float(lr.item()) if on_cpu(lr) and lr.numel() == 1 else None
    frame: Any = sys._getframe(1) if lr == 0 else None
    while frame is not None:
        if frame.f_code.co_name == "_init_optim_state":
            return True
        frame = frame.f_back
    return False


def is_nested(optimizer: torch.optim.Optimizer) -> bool:
    """Whether this pre-hook runs inside another step of the same optimizer.

    Told from the stack: after a step that raised no post-hook has run either.
    """
    return _steps([optimizer]) > 1


def is_stepping(optimizers: Sequence[torch.optim.Optimizer]) -> bool:
    """Whether this is called inside a step of one of the optimizers."""
    return _steps(optimizers) > 0


def _steps(optimizers: Sequence[torch.optim.Optimizer]) -> int:
    """How many steps of the optimizers this is called from."""
    found = 0
    frame: Any = sys._getframe(2)
    while frame is not None:
        if frame.f_code.co_name == "wrapper":
            found += any(frame.f_locals.get("self") is optimizer for optimizer in optimizers)
        frame = frame.f_back
    return found

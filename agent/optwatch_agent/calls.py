"""How `step` was called, as its pre-hook sees it."""

import sys
from collections.abc import Callable
from typing import Any

import torch


def closure_of(args: Any, kwargs: Any) -> Callable[..., Any] | None:
    """The closure that a step was given, None without one."""
    closure = kwargs.get("closure") if kwargs else None
    if closure is None and len(args) > 1 and callable(args[1]):
        closure = args[1]
    return closure


def is_nested(optimizer: torch.optim.Optimizer) -> bool:
    """Whether this pre-hook runs inside another step of the same optimizer.

    Told from the stack: after a step that raised no post-hook has run either.
    """
    outer = sys._getframe(2)
    found = 0
    frame: Any = outer
    while frame is not None:
        if frame.f_code.co_name == "wrapper" and frame.f_locals.get("self") is optimizer:
            found += 1
        frame = frame.f_back
    return found > 1

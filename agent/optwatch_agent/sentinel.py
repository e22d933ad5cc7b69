"""A sentinel: one small gradient, looked at in nearly every step, that calls for the norm of all of them.

The global norm is measured as often as the budget allows, and one huge gradient easily comes in between. The
first layers see what goes wrong anywhere behind them, so one small tensor of theirs is enough to tell that
something did. A look takes 10 us, and up to 50 where the model has emptied the caches: where steps take 20 ms
or more there is one in each.
"""

import math

import torch
from torch import Tensor

from optwatch_agent.tensors import on_cpu

LEAP = 10.0
"""A norm over so many times the usual one, or not finite, calls."""
_FAR = 2 * math.log(LEAP)
_LEARN = 20
"""Steps before it calls for the first time."""
_RATE = 0.1
_MOST_OVER = 2.0
"""What a spike counts for at most, which is not to raise what is usual."""
_REST = 100
"""Looks for which it rests where there was no tensor: to look at all of them takes its time."""
_MOST = 4096
"""Elements of the tensor that is looked at."""


class Sentinel:
    """Watches one tensor of an optimizer: the first in the order of the groups that is small and has a
    gradient, on the CPU."""

    def __init__(self) -> None:
        self._place = 0, 0
        """Its group's number and its own there. No weak reference: torch swaps no tensor that has one, and
        so converts no such model."""
        self._id: int | None = None
        """Of the tensor; None where there is none."""
        self._usual = 0.0
        """Exponential average of the logarithms of its squared norm."""
        self._seen = 0
        self._rest = 0

    def calls(self, optimizer: torch.optim.Optimizer) -> bool:
        """Whether this step's gradient is far out of what it has been."""
        grad = self._grad(optimizer)
        if grad is None and self._id is None and self._rest > 0:
            self._rest -= 1
            return False
        if grad is None:
            self._id = None
            if (place := _first(optimizer)) is None:
                self._rest = _REST
                return False
            self._place, self._seen = place, 0
            param = _at(optimizer, place)
            self._id, grad = id(param), param.grad
            assert grad is not None
        square = _square(grad)
        if not square < math.inf:
            return True
        if square == 0:
            return False
        over = math.log(square) - self._usual
        self._seen += 1
        if self._seen == 1:
            self._usual += over
            return False
        self._usual += _RATE * min(over, _MOST_OVER)
        return over > _FAR and self._seen > _LEARN

    def _grad(self, optimizer: torch.optim.Optimizer) -> Tensor | None:
        """The tensor's gradient, None where there is none, or another tensor in its place."""
        if self._id is None:
            return None
        try:
            param = _at(optimizer, self._place)
        except (IndexError, KeyError):
            return None
        return param.grad if id(param) == self._id else None


def _at(optimizer: torch.optim.Optimizer, place: tuple[int, int]) -> Tensor:
    group, i = place
    param: Tensor = optimizer.param_groups[group]["params"][i]
    return param


def _square(grad: Tensor) -> float:
    """The sum of squares; inf where it is beyond the dtype: then it is far out, too."""
    if grad.dim() == 1 and grad.dtype is torch.float32:  # a bias, as mostly: this takes less than the other
        return torch.dot(grad, grad).item()
    return float(torch.linalg.vector_norm(grad).item()) ** 2


def _first(optimizer: torch.optim.Optimizer) -> tuple[int, int] | None:
    for number, group in enumerate(optimizer.param_groups):
        for i, param in enumerate(group["params"]):
            grad = param.grad
            if (
                grad is not None
                and on_cpu(grad)
                and grad.layout is torch.strided
                and 1 < grad.numel() <= _MOST
            ):
                return number, i
    return None

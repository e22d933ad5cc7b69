"""A sentinel: one small gradient, looked at in every step, that calls for the norm of all of them.

The global norm is measured as often as the budget allows, and one huge gradient easily comes in between. The
first layers see what goes wrong anywhere behind them, so one small tensor of theirs is enough to tell that
something did, at the price of a few microseconds.
"""

import math
import weakref

import torch
from torch import Tensor

from optwatch_agent.tensors import on_cpu

LEAP = 10.0
"""A norm over so many times the usual one, or not finite, calls."""
_LEARN = 20
"""Steps before it calls for the first time."""
_RATE = 0.1
_MOST = 4096
"""Elements of the tensor that is looked at."""


class Sentinel:
    """Watches one tensor of an optimizer: the first in the order of the groups that is small and has a
    gradient, on the CPU."""

    def __init__(self) -> None:
        self._param: weakref.ref[Tensor] | None = None
        self._usual = 0.0
        """Exponential average of the logarithms of its norm."""
        self._seen = 0

    def calls(self, optimizer: torch.optim.Optimizer) -> bool:
        """Whether this step's gradient is far out of what it has been."""
        param = None if self._param is None else self._param()
        if param is None or param.grad is None:
            param = _first(optimizer)
            if param is None:
                return False
            self._param, self._seen = weakref.ref(param), 0
        assert param.grad is not None
        norm = _norm(param.grad)
        if not math.isfinite(norm):
            return True
        if norm <= 0:
            return False
        over = math.log(norm) - self._usual
        self._seen += 1
        if self._seen == 1:
            self._usual += over
            return False
        self._usual += _RATE * min(over, 1.0)  # a spike is not to raise what is usual
        return self._seen > _LEARN and over > math.log(LEAP)


def _norm(grad: Tensor) -> float:
    """The norm, or inf where its square is beyond the dtype: then it is far out, too."""
    if grad.dim() == 1 and grad.dtype is torch.float32:  # a bias, as mostly: this takes less than the other
        return math.sqrt(torch.dot(grad, grad).item())
    return float(torch.linalg.vector_norm(grad).item())


def _first(optimizer: torch.optim.Optimizer) -> Tensor | None:
    for group in optimizer.param_groups:
        for param in group["params"]:
            grad = param.grad
            if (
                grad is not None
                and on_cpu(grad)
                and grad.layout is torch.strided
                and 1 < grad.numel() <= _MOST
            ):
                return param  # type: ignore[no-any-return]
    return None

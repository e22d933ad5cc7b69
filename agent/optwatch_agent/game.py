"""Whether several optimizers of a training play against each other, as those of a GAN: then none of their
losses need fall."""

from collections.abc import Mapping

import torch

from optwatch_agent.tensors import local, params_of

_LOOKED_AT = 8
"""Parameters of each optimizer whose gradients are looked at."""
_STEPS = 200
"""Steps, of all optimizers together, within which it has to show."""
_SURE = 3
"""How often it has to."""

Mark = list[tuple[int, int] | None]
"""What gradient each of the first parameters has, and how often that was written to; None: it has none."""


class Game:
    """It is one where the backward pass of one goes through the parameters of another, which then steps by
    a loss of its own. Optimizers that share a loss step by the same pass, and where they have nothing to do
    with each other no pass goes through the other's parameters."""

    def __init__(self) -> None:
        self._left = _STEPS
        self._shown = 0
        self._marks: dict[int, Mark] = {}
        """By the number of an optimizer, as its last step left them."""
        self._touched: dict[int, int] = {}
        """The pass that has gone through an optimizer's parameters since, by number."""

    def after(self, number: int, optimizers: Mapping[int, torch.optim.Optimizer], passes: int) -> None:
        """Optimizer `number`, one of those that there are, has stepped by pass number `passes`."""
        if self._touched.pop(number, passes) != passes:
            self._shown += 1
        for other, mark in self._marks.items():
            if other != number and other in optimizers and _is_touched(optimizers[other], mark):
                self._touched[other] = passes
        self._marks[number] = _mark(optimizers[number])
        self._left -= 1

    @property
    def is_on(self) -> bool:
        """Whether they are known to play."""
        return self._shown >= _SURE

    @property
    def is_open(self) -> bool:
        """Whether it is not known yet."""
        return not self.is_on and self._left > 0


def _gradients(optimizer: torch.optim.Optimizer) -> list[torch.Tensor | None]:
    return [param.grad for param in params_of(optimizer)[:_LOOKED_AT]]


def _mark(optimizer: torch.optim.Optimizer) -> Mark:
    return [None if grad is None else (id(grad), grad._version) for grad in _gradients(optimizer)]


def _is_touched(optimizer: torch.optim.Optimizer, mark: Mark) -> bool:
    """Whether something was added to its gradients; to zero them is nothing, which a device is not asked."""
    for grad, before in zip(_gradients(optimizer), mark, strict=False):
        if grad is not None and (id(grad), grad._version) != before:
            return not grad.is_cpu or bool(local(grad).any())  # of its own: other ranks may not look
    return False

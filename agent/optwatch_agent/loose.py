"""An optimizer that is watched, yet not kept alive: a script that drops one has its memory back."""

import weakref
from collections.abc import Callable

import torch

from optwatch_agent.joint import Joint


class Loose:
    """A weak hold on an optimizer. A joint one, which nobody else holds, keeps none of its members."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._ref: Callable[[], torch.optim.Optimizer | None] = weakref.ref(optimizer)
        if isinstance(optimizer, Joint):
            self._ref = lambda: None if optimizer.gone else optimizer

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """The optimizer, while somebody else keeps it.

        Raises:
            ReferenceError: nobody does.
        """
        optimizer = self._ref()
        if optimizer is None:
            raise ReferenceError("the optimizer was dropped")
        return optimizer

    @property
    def gone(self) -> bool:
        return self._ref() is None

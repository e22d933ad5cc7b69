"""An optimizer that is watched, yet not kept alive: a script that drops one has its memory back."""

import weakref

import torch


class Loose:
    """A weak hold on an optimizer."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._ref = weakref.ref(optimizer)

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

"""What has to be seen of a step before it is taken.

The old parameters where the update is known only as a difference, and the gradients where the step
overwrites them: many optimizers outside torch add the decay to them, or divide them, in place. On sampled
steps only: of both the next few tensors in turn are copied, as many as the largest has elements, and of
gradients that will be overwritten is measured what needs nothing beside them.
"""

import time

import torch
from torch import Tensor

from optwatch_agent.device_sums import Tools
from optwatch_agent.probe import Gradients, Joined, Taken, take, take_gradients
from optwatch_agent.roles import Roles, roles_of
from optwatch_agent.tensors import local, params_of


class Before:
    """The copies that one optimizer's samples need."""

    def __init__(self) -> None:
        self.params: dict[int, Tensor] = {}
        """Old parameters in float64, by their place in the optimizer's order."""
        self.grads: dict[int, Tensor] | None = None
        """Gradients that the step got, None where they can be read after it."""
        self.measured: Gradients | None = None
        """What was measured of all of them, None where they can be read after it."""
        self.cost = 0.0
        """CPU seconds of all that."""
        self._tools = Tools()
        self._turn = 0
        self._chosen: list[int] = []

    def copy_params(self, optimizer: torch.optim.Optimizer) -> None:
        """Copy the parameters whose turn it is."""
        roles = roles_of(optimizer)
        self.params, self.grads, self.measured = {}, None if roles.keeps_grad else {}, None
        if not needs_copies(roles):
            return
        began = time.thread_time()
        params = params_of(optimizer)
        self._chosen = self._next(params)
        if roles.update is None:
            self.params = {i: local(params[i]).to(torch.float64, copy=True) for i in self._chosen}
        self.cost += time.thread_time() - began

    def see_grads(self, optimizer: torch.optim.Optimizer) -> None:
        """Copy the gradients of the same parameters and measure all, anew where a closure makes them more
        than once."""
        if self.grads is None:
            return
        began = time.thread_time()
        params = params_of(optimizer)
        with torch.no_grad():
            self.grads = {i: grad.clone() for i in self._chosen if (grad := params[i].grad) is not None}
        self.measured = take_gradients(params, self._tools)
        self.cost += time.thread_time() - began

    def take(self, optimizer: torch.optim.Optimizer, roles: Roles, tools: Tools) -> Taken:
        """Measure after the step, together with what was seen before it."""
        params = params_of(optimizer)
        after = take(optimizer, params, roles, self.differences(params), self.grads, tools)
        return after if self.measured is None else Joined(after, self.measured)

    def differences(self, params: list[Tensor]) -> dict[int, Tensor]:
        """The updates that can be seen now, in float64, of parameters that have a gradient."""
        copies, self.params = self.params, {}
        return {
            i: local(params[i]).double() - copy
            for i, copy in copies.items()
            if i < len(params)
            and (params[i].grad is not None or (self.grads is not None and i in self.grads))
        }

    def _next(self, params: list[Tensor]) -> list[int]:
        room = max((p.numel() for p in params), default=0)
        chosen = []
        for _ in params:
            i = self._turn % len(params)
            room -= params[i].numel()
            if room < 0:
                break
            self._turn = i + 1
            chosen.append(i)
        return chosen


def needs_copies(roles: Roles) -> bool:
    """Whether there is anything to be seen before a step of such an optimizer."""
    return roles.update is None or not roles.keeps_grad

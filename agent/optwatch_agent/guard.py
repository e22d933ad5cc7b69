"""The guard: what must happen within a step, before a daemon could know of it; where attach asks for it.

`skip_nonfinite`: a step whose gradients are not finite is not applied. The optimizer finds no gradients and
so changes nothing; what it counts in its groups all the same is put back, and the gradients are afterwards.
`clip`: gradients are clipped to a norm that follows what is usual.

Each rank decides alone, from a norm that is the same bits on all of them: replicas have summed the gradients
up before the optimizer steps, and where parameters are spread over ranks their norm is a collective.
"""

import logging
import math
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from optwatch_agent.device_guard import DeviceGuard, Outcome
from optwatch_agent.globalnorm import is_spread
from optwatch_agent.joint import ONE_BY_ONE, Joint
from optwatch_agent.reflexes import LAST, MOST_IN_A_ROW, MOST_OF_LAST, AdaptiveNorm
from optwatch_agent.roles import counters_of, fresh
from optwatch_agent.tensors import local, on_cpu, on_device, params_of

log = logging.getLogger("optwatch")


class Guard:
    """The reflexes of one optimizer. All of it is the training thread's but `news`."""

    def __init__(self, reflexes: Sequence[str], optimizer: torch.optim.Optimizer) -> None:
        self.news: deque[tuple[int, str]] = deque(maxlen=LAST)
        """(global_step, what the guard did), for the link's thread to report."""
        self.refused = _refusal(optimizer) if reflexes else ""
        """Why there is no guard although one was asked for."""
        self.collective = is_spread(optimizer)
        """Whether other ranks would wait for this one at the next step if it stopped."""
        self.skips = "skip_nonfinite" in reflexes and not self.refused
        self.adaptive = AdaptiveNorm() if "clip" in reflexes and not self.refused else None
        self.on = self.skips or self.adaptive is not None
        self.on_device: DeviceGuard | None = None
        """What acts in its place where the gradients are on a device."""
        if self.on and not all(map(on_cpu, params_of(optimizer))):
            self.on_device = DeviceGuard(self.skips, self.adaptive)
        self.skipped = 0
        """Steps that it has skipped so far."""
        self._recent: deque[int] = deque(maxlen=MOST_OF_LAST)
        self._row = 0
        self.skipping = False
        """Whether the step that is under way is skipped."""
        self._grads: list[tuple[Tensor, Tensor]] = []
        self._counters: list[tuple[dict[str, Any], dict[str, Any]]] = []

    def give_up(self, why: str) -> None:
        """Do nothing any more."""
        self.on = self.skips = False
        self.adaptive, self.on_device, self.refused = None, None, why
        log.warning("optwatch: no guard any more: %s", why)

    def passes(self) -> None:
        """The gradients of the step that is under way are finite."""
        self._row = 0

    def skip(self, optimizer: torch.optim.Optimizer, step: int) -> None:
        """Let a step change nothing, unless too many were skipped."""
        of_last = sum(step - LAST < former for former in self._recent)
        if self._row >= MOST_IN_A_ROW or of_last >= MOST_OF_LAST:
            why = f"{self._row} in a row" if self._row >= MOST_IN_A_ROW else f"{of_last} of the last {LAST:,}"
            self.news.append(
                (step, f"guard: gradients that are not finite were let through, {why} were skipped")
            )
            return
        self.skipping = True
        self._row += 1
        self.skipped += 1
        self._recent.append(step)
        self.news.append((step, "guard: a step was skipped, its gradients were not finite"))
        for group in optimizer.param_groups:
            self._counters.append((group, {key: fresh(group[key]) for key in counters_of(optimizer, group)}))
            for param in group["params"]:
                if param.grad is not None:
                    self._grads.append((param, param.grad))
                    param.grad = None

    def act_on_device(self, optimizer: torch.optim.Optimizer, step: int) -> None:
        """Have the device skip or clip a step, and take account of the ones that it has done with."""
        assert self.on_device is not None
        self.on_device.act(optimizer, step)
        self._tell(self.on_device.outcomes())

    def settle(self) -> None:
        """Wait for what the device has to tell of the last steps."""
        if self.on_device is not None:
            self._tell(self.on_device.last_outcomes())

    def _tell(self, outcomes: Iterable[Outcome]) -> None:
        """Take account of steps that the device has done with."""
        for former, norm, skipped, limit in outcomes:
            if self.skips and skipped:
                self.skipped += 1
                self.news.append((former, "guard: a step was skipped, its gradients were not finite"))
            elif self.skips and not math.isfinite(norm):
                limits = f"{MOST_IN_A_ROW} in a row or {MOST_OF_LAST} of the last {LAST:,} were skipped"
                self.news.append((former, f"guard: gradients that are not finite were let through, {limits}"))
            if self.adaptive is not None and math.isfinite(limit):
                self.adaptive.limit = limit

    def end(self) -> None:
        """Put back what a step was kept from. Also before a step, since one that raised has no end."""
        self.skipping = False
        if self.on_device is not None:
            self.on_device.end()
        for param, grad in self._grads:
            if param.grad is None:
                param.grad = grad
        for group, counters in self._counters:
            group.update(counters)
        self._grads, self._counters = [], []


def _refusal(optimizer: torch.optim.Optimizer) -> str:
    if isinstance(optimizer, torch.optim.LBFGS):
        return "LBFGS evaluates the loss more than once in a step"
    if isinstance(optimizer, Joint):
        return ONE_BY_ONE
    params = params_of(optimizer)
    if all(map(on_cpu, params)):
        return ""
    if len({local(param).device for param in params}) > 1 or not on_device(local(params[0])):
        return "the parameters are on several devices, or on one that is neither the CPU nor a CUDA device"
    return ""

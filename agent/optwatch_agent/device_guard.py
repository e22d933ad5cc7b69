"""The guard where the gradients are on a device: the verdict stays there, and nothing waits for it.

The norm, whether it is finite and how many steps were skipped lately are tensors; the host reads what became
of a step when the device has got that far. An optimizer whose step takes `found_inf`, a fused one, leaves out
a step that is skipped. Any other takes it with gradients of zero: no NaN comes in, but moments fade, decay
applies and the step counts.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from optwatch_agent.device_norms import norms, total_norm
from optwatch_agent.globalnorm import gradients_of, is_spread, spread_energy
from optwatch_agent.later import Later
from optwatch_agent.reflexes import LAST, MOST_IN_A_ROW, MOST_OF_LAST, AdaptiveNorm
from optwatch_agent.tensors import local


class DeviceGuard:
    """The reflexes of one optimizer whose parameters are on one device. Works on any."""

    def __init__(self, skips: bool, adaptive: AdaptiveNorm | None) -> None:
        self._skips = skips
        self._adaptive = adaptive
        self._later: Later[int] = Later()
        self._row: Tensor | None = None
        self._recent: Tensor | None = None
        self._optimizer: Any = None

    def act(self, optimizer: torch.optim.Optimizer, step: int) -> None:
        """Skip or clip the step that begins, if it has to be: both are queued on the device."""
        grads = [local(grad) for grad in gradients_of(optimizer)]
        if not grads and not is_spread(optimizer):
            return
        with torch.no_grad():
            norm = _norm(optimizer)
            finite = norm.isfinite()
            skip = self._verdict(finite, step) if self._skips else torch.zeros_like(finite)
            if self._skips:
                self._leave_out(optimizer, grads, skip)
            if self._adaptive is not None and self._adaptive.limit is not None:
                coefficient = (self._adaptive.limit / (norm + 1e-6)).clamp(max=1.0)
                coefficient = torch.where(finite, coefficient, 1.0)
                narrow = all(grad.dtype is not torch.float64 for grad in grads)
                torch._foreach_mul_(grads, coefficient.float() if narrow else coefficient)
                norm = norm * coefficient
            self._later.put(step, torch.stack([norm, finite.double(), skip.double()]))

    def end(self) -> None:
        """The step is over, or never came to its end."""
        optimizer, self._optimizer = self._optimizer, None
        if optimizer is not None:
            del optimizer.found_inf

    def outcomes(self) -> Iterator[tuple[int, float, bool]]:
        """(global_step, norm after the clip, whether it was skipped) of the steps that have arrived."""
        for step, (norm, _, skipped) in self._later.take():
            yield step, norm, bool(skipped)

    def last_outcomes(self) -> Iterator[tuple[int, float, bool]]:
        """The same of all steps, for which this waits."""
        for step, (norm, _, skipped) in self._later.finish():
            yield step, norm, bool(skipped)

    def _verdict(self, finite: Tensor, step: int) -> Tensor:
        """Whether to skip, which no more than so many steps are."""
        if self._row is None or self._recent is None:
            self._row = torch.zeros((), dtype=torch.int64, device=finite.device)
            self._recent = torch.zeros(LAST, dtype=torch.bool, device=finite.device)
        self._recent[step % LAST] = False
        within = (self._row < MOST_IN_A_ROW) & (self._recent.sum() < MOST_OF_LAST)
        skip = ~finite & within
        self._row = torch.where(finite, 0, self._row + skip)
        self._recent[step % LAST] = skip
        return skip

    def _leave_out(self, optimizer: Any, grads: Sequence[Tensor], skip: Tensor) -> None:
        if getattr(optimizer, "_step_supports_amp_scaling", False):
            optimizer.found_inf = skip.float()
            self._optimizer = optimizer
            return
        for grad in grads:
            grad.masked_fill_(skip, 0.0)


def _norm(optimizer: torch.optim.Optimizer) -> Tensor:
    """The global norm of the gradients, float64[]; where they are spread over ranks by an all_reduce."""
    if is_spread(optimizer):
        return spread_energy(optimizer, _energy).sqrt()
    return total_norm([local(grad) for grad in gradients_of(optimizer)])


def _energy(grads: Sequence[Tensor]) -> Tensor:
    """The sum of squares of gradients, float64[]."""
    return norms(grads).square().sum()

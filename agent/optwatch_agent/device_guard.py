"""The guard where the gradients are on a device: the verdict stays there, and nothing waits for it.

The norm, whether it is finite and how many steps were skipped lately are tensors; the host reads what became
of a step when the device has got that far. An optimizer whose step takes `found_inf`, a fused one, leaves out
a step that is skipped. Any other takes it with gradients of zero: no NaN comes in, but moments fade, decay
applies and the step counts.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from optwatch.wire.actions import AUTO_LEAST, AUTO_OVER
from optwatch_agent.device_norms import clipped, norms, total_norm
from optwatch_agent.globalnorm import gradients_of, is_spread, spread_energy
from optwatch_agent.later import Later
from optwatch_agent.reflexes import LAST, MOST_IN_A_ROW, MOST_OF_LAST, REFRESH, AdaptiveNorm
from optwatch_agent.rows import uploaded
from optwatch_agent.tensors import local


class DeviceGuard:
    """The reflexes of one optimizer whose parameters are on one device. Works on any."""

    def __init__(self, skips: bool, adaptive: AdaptiveNorm | None) -> None:
        self._skips = skips
        self._adapts = adaptive is not None
        self._usual: UsualNorm | None = None
        self._acted = 0
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
            norm = norm_there(optimizer)
            finite = norm.isfinite()
            skip = self._verdict(finite, step) if self._skips else torch.zeros_like(finite)
            if self._skips:
                self._leave_out(optimizer, grads, skip)
            limit = torch.full_like(norm, math.inf)
            if self._adapts:
                if self._usual is None:
                    self._usual = UsualNorm(norm.device)
                if self._acted >= AUTO_LEAST:  # before, there is no limit
                    norm = clipped(grads, norm, self._usual.limit)
                self._usual.see(norm)
                limit = self._usual.limit
            self._acted += 1
            self._later.put(step, torch.stack([norm, skip.double(), limit]))

    def end(self) -> None:
        """The step is over, or never came to its end."""
        optimizer, self._optimizer = self._optimizer, None
        if optimizer is not None:
            del optimizer.found_inf

    def outcomes(self) -> Iterator["Outcome"]:
        """What became of the steps that have arrived."""
        for step, (norm, skipped, limit) in self._later.take():
            yield Outcome(step, norm, bool(skipped), limit)

    def last_outcomes(self) -> Iterator["Outcome"]:
        """What became of all steps, for which this waits."""
        for step, (norm, skipped, limit) in self._later.finish():
            yield Outcome(step, norm, bool(skipped), limit)

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


class Outcome(NamedTuple):
    """What became of a step: the norm after the clip, whether it was skipped, and the limit from then on."""

    step: int
    norm: float
    skipped: bool
    limit: float
    """inf as long as too few norms are known."""


class UsualNorm:
    """`AdaptiveNorm` on the device: a limit that the host kept would be another one on each rank, since each
    hears of its norms when its device has got that far."""

    def __init__(self, device: torch.device, norms: Sequence[float] = (), limit: float = math.inf) -> None:
        """`norms`: the last ones, 200 at most; `limit`: the one at first."""
        logs = [math.log(norm) for norm in norms if 0 < norm < math.inf]
        self.limit = uploaded(np.array(limit, dtype=np.float64), device)
        """float64[]; inf as long as too few norms are known."""
        self._logs = uploaded(np.array([*logs, *[math.inf] * (AUTO_OVER - len(logs))]), device)
        self._seen = uploaded(np.array(len(logs)), device)

    def see(self, norm: Tensor) -> None:
        """Take account of a norm, float64[], after the clip. One that is 0 or not finite does not count."""
        counts = (norm > 0) & norm.isfinite()
        here = torch.arange(AUTO_OVER, device=norm.device) == self._seen % AUTO_OVER
        self._logs = torch.where(here & counts, norm.log(), self._logs)
        self._seen = self._seen + counts
        due = (self._seen % REFRESH == 0) | self.limit.isinf()
        self.limit = torch.where(counts & due & (self._seen >= AUTO_LEAST), self._of_logs(), self.limit)

    def _of_logs(self) -> Tensor:
        """exp(median + 4 MAD) of those there are."""
        known = self._seen.clamp(max=AUTO_OVER)
        middle = torch.stack([(known - 1).clamp(min=0) // 2, known // 2])

        def median(values: Tensor) -> Tensor:
            return values.sort().values.index_select(0, middle).mean()

        centre = median(self._logs)
        return (centre + 4 * median((self._logs - centre).abs())).exp()


def norm_there(optimizer: torch.optim.Optimizer) -> Tensor:
    """The global norm of gradients on a device, float64[]; an all_reduce where ranks have parts of them."""
    if is_spread(optimizer):
        return spread_energy(optimizer, _energy).sqrt()
    return total_norm([local(grad) for grad in gradients_of(optimizer)])


def _energy(grads: Sequence[Tensor]) -> Tensor:
    """The sum of squares of gradients, float64[]."""
    return norms(grads).square().sum()

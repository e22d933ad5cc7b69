"""The guard: what must happen within a step, before a daemon could know of it; where attach asks for it.

`skip_nonfinite`: a step whose gradients are not finite is not applied. The optimizer finds no gradients and
so changes nothing; what it counts in its groups all the same is put back, and the gradients are afterwards.
`clip`: gradients are clipped to a norm that follows what is usual.

Each rank decides alone, from a norm that is the same bits on all of them: replicas have summed the gradients
up before the optimizer steps, and where parameters are spread over ranks their norm is a collective.
"""

import logging
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from optwatch.wire.actions import AUTO_LEAST, AUTO_OVER, usual_norm
from optwatch_agent.globalnorm import is_spread
from optwatch_agent.roles import counters_of, fresh
from optwatch_agent.tensors import on_cpu

log = logging.getLogger("optwatch")

REFLEXES = ("skip_nonfinite", "clip")
MOST_IN_A_ROW = 3
MOST_OF_LAST = 20
LAST = 1_000
"""Steps that are skipped at most: in a row, and of the last 1,000. More than that is no accident."""
_REFRESH = 8
"""Steps between two looks at what is usual."""


class AdaptiveNorm:
    """A norm to clip to: exp(median + 4 MAD) of the logarithms of the last 200 gradient norms.

    Each counts as it was after the clip, so that a spike does not raise the limit for the next one.
    """

    def __init__(self, norms: Iterable[float] = (), limit: float | None = None) -> None:
        self.limit = limit
        """None as long as too few norms are known."""
        self._norms: deque[float] = deque(norms, maxlen=AUTO_OVER)
        self._seen = 0

    def see(self, norm: float) -> None:
        """Take account of a norm, after the clip. One that is 0 or not finite does not count."""
        if not 0 < norm < float("inf"):
            return
        self._norms.append(norm)
        self._seen += 1
        if len(self._norms) >= AUTO_LEAST and (self._seen % _REFRESH == 0 or self.limit is None):
            self.limit = usual_norm(self._norms)


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
        self.skipped = 0
        """Steps that it has skipped so far."""
        self._recent: deque[int] = deque(maxlen=MOST_OF_LAST)
        self._row = 0
        self.skipping = False
        """Whether the step that is under way is skipped."""
        self._grads: list[tuple[Tensor, Tensor]] = []
        self._counters: list[tuple[dict[str, Any], dict[str, Any]]] = []

    @property
    def on(self) -> bool:
        return self.skips or self.adaptive is not None

    def give_up(self, why: str) -> None:
        """Do nothing any more."""
        self.skips, self.adaptive, self.refused = False, None, why
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

    def end(self) -> None:
        """Put back what a step was kept from. Also before a step, since one that raised has no end."""
        self.skipping = False
        for param, grad in self._grads:
            if param.grad is None:
                param.grad = grad
        for group, counters in self._counters:
            group.update(counters)
        self._grads, self._counters = [], []


def _refusal(optimizer: torch.optim.Optimizer) -> str:
    if isinstance(optimizer, torch.optim.LBFGS):
        return "LBFGS evaluates the loss more than once in a step"
    if not all(on_cpu(param) for group in optimizer.param_groups for param in group["params"]):
        return "on a device each step would have to wait for the verdict"
    return ""

"""The user's own gradient clipping, seen where `torch.nn.utils.clip_grad_norm_` scales the gradients.

The function inside `torch.nn.utils.clip_grad` that does the scaling is handed the norm before clipping,
which no hook can see later. In a step that torch.compile compiles as a whole it is not seen.
"""

from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from optwatch_agent.outside import inlined, outside
from optwatch_agent.patches import Patch
from optwatch_agent.recorder import Value
from optwatch_agent.signals import let_through
from optwatch_agent.tensors import on_cpu, on_device

_RECENT = 100
_SETS = 16
"""Sets of parameters of which clippings are remembered."""


class Seen(NamedTuple):
    """The last clipping of a set of parameters: the norm before as torch found it, the norm allowed, and
    the share of the last hundred clippings that changed the gradients. Norm and share are tensors where the
    gradients are on a device."""

    norm: Value
    max_norm: float
    share: Value


class ClipTap:
    """What was clipped lately: for each set of parameters, the norms before and the norms allowed."""

    def __init__(self) -> None:
        self.patch = Patch(torch.nn.utils.clip_grad, "_clip_grads_with_norm_", self._wrap)
        self._clippings: OrderedDict[tuple[int, int], deque[tuple[Tensor, float]]] = OrderedDict()
        self._fresh: set[tuple[int, int]] = set()

    def take(self, params: Sequence[Tensor]) -> Seen | None:
        """The last clipping of just these parameters, None if there was none since the last call."""
        which = _fingerprint(params)
        if which not in self._fresh:
            return None
        self._fresh.discard(which)
        recent = self._clippings[which]
        newest, allowed = recent[-1]
        # A norm that is not a number is no clipping that helped, but it is no norm within bounds either.
        if on_cpu(newest):
            here = [(float(norm), most) for norm, most in recent if on_cpu(norm)]
            return Seen(float(newest), allowed, sum(not norm <= most for norm, most in here) / len(here))
        if not on_device(newest):
            return None
        there = [(norm, most) for norm, most in recent if norm.device == newest.device]
        within = torch.zeros((), device=newest.device)
        for bound in {most for _, most in there}:
            within = within + (torch.stack([norm for norm, most in there if most == bound]) <= bound).sum()
        return Seen(newest, allowed, 1.0 - within / len(there))

    def remove(self) -> None:
        """One user less; the last one's memory goes."""
        self.patch.remove()
        if self.patch.users == 0:
            self._clippings.clear()
            self._fresh.clear()

    def _wrap(self, original: Callable[..., Any]) -> Callable[..., Any]:
        saw = outside(self._saw)

        def watched(parameters: Any, max_norm: Any, total_norm: Any, *args: Any, **kwargs: Any) -> Any:
            if torch.compiler.is_compiling():  # with a break here the results would differ in the last bits
                return original(parameters, max_norm, total_norm, *args, **kwargs)
            if isinstance(parameters, Tensor):
                parameters = [parameters]
            parameters = list(parameters)  # it may be a generator
            result = original(parameters, max_norm, total_norm, *args, **kwargs)
            if self.patch.users:
                saw(parameters, max_norm, total_norm)
            return result

        return inlined(watched)

    def _saw(self, parameters: Sequence[Tensor], max_norm: Any, total_norm: Any) -> None:
        try:
            which = _fingerprint([p for p in parameters if p.grad is not None])
            if not isinstance(total_norm, Tensor) or (isinstance(max_norm, Tensor) and on_device(max_norm)):
                return
            recent = self._clippings.setdefault(which, deque(maxlen=_RECENT))
            recent.append((total_norm.detach(), float(max_norm)))
            self._fresh.add(which)
            if len(self._clippings) > _SETS:
                gone, _ = self._clippings.popitem(last=False)
                self._fresh.discard(gone)
        except Exception as error:  # noqa: BLE001 - never in the way of a training
            let_through(error)
            self._clippings.clear()
            self._fresh.clear()


def _fingerprint(params: Sequence[Tensor]) -> tuple[int, int]:
    """The same for the same set of parameters in any order."""
    return len(params), sum(map(id, params))


TAP = ClipTap()

"""The user's own gradient clipping, seen where `torch.nn.utils.clip_grad_norm_` scales the gradients.

The function inside `torch.nn.utils.clip_grad` that does the scaling is handed the norm before clipping,
which no hook can see later.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from optwatch_agent.patches import Patch


class ClipTap:
    """The last clipping since a step: which parameters, their norm before, and the norm allowed."""

    def __init__(self) -> None:
        self.patch = Patch(torch.nn.utils.clip_grad, "_clip_grads_with_norm_", self._wrap)
        self._seen: tuple[tuple[int, int], Tensor, float] | None = None

    def take(self, params: Sequence[Tensor]) -> tuple[Tensor, float] | None:
        """(norm before, max norm) of a clipping of just these parameters since the last call."""
        seen = self._seen
        if seen is None or seen[0] != _fingerprint(params):
            return None
        self._seen = None
        return seen[1], seen[2]

    def _wrap(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def watched(parameters: Any, max_norm: Any, total_norm: Any, *args: Any, **kwargs: Any) -> Any:
            if isinstance(parameters, Tensor):
                parameters = [parameters]
            parameters = list(parameters)  # it may be a generator
            result = original(parameters, max_norm, total_norm, *args, **kwargs)
            if self.patch.users and isinstance(total_norm, Tensor):
                with_grad = [p for p in parameters if p.grad is not None]
                self._seen = (_fingerprint(with_grad), total_norm.detach(), float(max_norm))
            return result

        disable: Any = torch._dynamo.disable
        wrapper: Callable[..., Any] = disable(watched, recursive=False)
        return wrapper


def _fingerprint(params: Sequence[Tensor]) -> tuple[int, int]:
    """The same for the same set of parameters in any order."""
    return len(params), sum(map(id, params))


TAP = ClipTap()

"""The user's own gradient clipping, seen where `torch.nn.utils.clip_grad_norm_` scales the gradients.

While an agent is attached, the function inside `torch.nn.utils.clip_grad` that does the scaling is
wrapped: it is handed the norm before clipping, which no hook can see later.
"""

import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

_lock = threading.Lock()
_NAME = "_clip_grads_with_norm_"
_module: Any = torch.nn.utils.clip_grad


class ClipTap:
    """The last clipping since a step: which parameters, their norm before, and the norm allowed."""

    def __init__(self) -> None:
        self.users = 0
        self._seen: tuple[tuple[int, int], Tensor, float] | None = None
        self._original: Callable[..., Any] | None = None
        self._wrapper: Callable[..., Any] | None = None

    def install(self) -> None:
        with _lock:
            self.users += 1
            if self.users == 1 and self._wrapper is None and hasattr(_module, _NAME):
                self._wrap()

    def remove(self) -> None:
        """Undo `install`; a wrapper that somebody has wrapped in turn stays, and does nothing."""
        with _lock:
            self.users -= 1
            self._seen = None
            if self.users == 0 and self._wrapper is not None and getattr(_module, _NAME) is self._wrapper:
                setattr(_module, _NAME, self._original)
                self._wrapper = self._original = None

    def take(self, params: Sequence[Tensor]) -> tuple[Tensor, float] | None:
        """(norm before, max norm) of a clipping of just these parameters since the last call."""
        seen = self._seen
        if seen is None or seen[0] != _fingerprint(params):
            return None
        self._seen = None
        return seen[1], seen[2]

    def _wrap(self) -> None:
        original = getattr(_module, _NAME)

        def watched(parameters: Any, max_norm: Any, total_norm: Any, *args: Any, **kwargs: Any) -> Any:
            if isinstance(parameters, Tensor):
                parameters = [parameters]
            parameters = list(parameters)  # it may be a generator
            result = original(parameters, max_norm, total_norm, *args, **kwargs)
            if self.users and isinstance(total_norm, Tensor):
                with_grad = [p for p in parameters if p.grad is not None]
                self._seen = (_fingerprint(with_grad), total_norm.detach(), float(max_norm))
            return result

        self._original = original
        disable: Any = torch._dynamo.disable
        self._wrapper = disable(watched, recursive=False)
        setattr(_module, _NAME, self._wrapper)


def _fingerprint(params: Sequence[Tensor]) -> tuple[int, int]:
    """The same for the same set of parameters in any order."""
    return len(params), sum(map(id, params))


TAP = ClipTap()

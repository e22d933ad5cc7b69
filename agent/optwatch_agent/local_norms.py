"""The norm of a rank's own gradients, before they are averaged over the ranks.

Seen where autograd has put a gradient into a parameter and `DistributedDataParallel` has not yet taken it
to reduce it: in a post-accumulate-grad hook. That changes nothing of the communication, unlike a
communication hook of DDP's, of which there can be one only: the user's, whatever it is, stays. And torch's
own allreduce hook divides where DDP without a hook multiplies by the inverse, which is not bitwise the
same on 3 ranks.

The hooks are there for one step, only at steps that are measured.
"""

import functools
import math
import time
from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.utils.hooks import RemovableHandle

from optwatch_agent.norms import sum_of_squares
from optwatch_agent.signals import let_through
from optwatch_agent.tensors import local, on_cpu


class LocalNorms:
    """Measures the gradients of one optimizer at the steps for which it is armed."""

    def __init__(self) -> None:
        self.cost = 0.0
        """CPU seconds that the last measurement took."""
        self._handles: list[RemovableHandle] = []
        self._squares: dict[int, float] = {}

    def arm(self, params: Sequence[Tensor]) -> None:
        """Measure in the backward passes that come until `take`."""
        began = time.thread_time()
        self.disarm()
        self._squares.clear()
        for i, param in enumerate(params):
            if param.requires_grad and param.is_leaf and on_cpu(param):
                register: Any = param.register_post_accumulate_grad_hook
                self._handles.append(register(functools.partial(self._saw, i)))
        self.cost = time.thread_time() - began

    def take(self) -> float | None:
        """The norm of what was accumulated, None where it was not armed or no gradient came."""
        if not self._handles:
            return None
        began = time.thread_time()
        self.disarm()
        self.cost += time.thread_time() - began
        return math.sqrt(math.fsum(self._squares.values())) if self._squares else None

    def disarm(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _saw(self, index: int, param: Tensor) -> None:
        """A gradient is there. With accumulation it comes several times: the last is the whole."""
        try:
            began = time.thread_time()
            if param.grad is not None:
                self._squares[index] = sum_of_squares(local(param.grad))
            self.cost += time.thread_time() - began
        except Exception as error:  # noqa: BLE001 - never into a backward pass
            let_through(error)
            self._squares[index] = math.nan

"""The loss of one optimizer's steps: what a closure returned, else what its backward passes began with.

With a closure the gradients of a step come within it, too: who waits for them is called then.
"""

import functools
from collections.abc import Callable
from typing import Any

from torch import Tensor

from optwatch_agent import losses
from optwatch_agent.haste import Range
from optwatch_agent.recorder import Value
from optwatch_agent.tensors import on_cpu


class StepLoss:
    """The loss of the step that is under way."""

    def __init__(self, see: bool, hurry: Callable[[], None]) -> None:
        """`see`: whether it is recorded; `hurry` is called when one is out of the range of the last."""
        self.awaits_closure = False
        """Whether the gradients of the step are yet to come, within it."""
        self.leapt = False
        """Whether the loss of the step is the first out of the range of the last."""
        self._see = see
        self._hurry = hurry
        self._range = Range()
        self._left = False
        self._of_closure: float | Tensor | None = None
        self._passes = 1

    @property
    def is_plain(self) -> bool:
        """Whether the step took no closure."""
        return self._of_closure is None and not self.awaits_closure

    def begin(self, awaits_closure: bool) -> None:
        """A step begins."""
        self.awaits_closure = awaits_closure
        self._of_closure = None
        self._passes = 1

    def wrap(
        self, closure: Callable[..., Any], args: Any, kwargs: Any, take_gradients: Callable[[], None]
    ) -> Any:
        """The arguments of `step` with a closure whose first loss counts, and which calls `take_gradients`
        whenever it has made them."""
        accumulated = losses.TAP.window.is_open

        @functools.wraps(closure)
        def watched() -> Any:
            loss = closure()
            if self._of_closure is None and accumulated:  # the closure ran the last of several passes
                self._of_closure, self._passes = losses.TAP.window.read()
            elif self._of_closure is None and isinstance(loss, (Tensor, float)):
                self._of_closure = loss.detach().clone() if isinstance(loss, Tensor) else loss
            self.awaits_closure = False
            take_gradients()
            return loss

        if kwargs.get("closure") is closure:
            return args, {**kwargs, "closure": watched}
        return (args[0], watched, *args[2:]), kwargs

    def add_columns(self, values: dict[str, Value], window: losses.Window) -> None:
        """Tell it in the step's row; `window`: the losses of the thread that takes the step."""
        self.leapt = False
        if not self._see:
            return
        loss: float | Tensor | None
        if self._of_closure is not None:
            loss, passes = self._of_closure, self._passes
        else:
            loss, passes = window.read()
        if loss is None:
            return
        values["loss"] = seen = loss.item() if isinstance(loss, Tensor) and on_cpu(loss) else loss
        if isinstance(seen, float):
            left = self._range.left_by(seen)
            self.leapt, self._left = left and not self._left, left
            if left:
                self._hurry()
        if passes > 1:
            values["backward_passes"] = float(passes)

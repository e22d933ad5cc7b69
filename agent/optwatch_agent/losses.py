"""The training loss, seen where every loop shows it: at backward().

While an agent is attached, `torch.autograd.backward` and `GradScaler.scale` are wrapped. The first
backward after any step opens a window; the step that follows reads it, and so does a second optimizer
that steps without another backward in between. `torch.autograd.grad` is not seen.
"""

import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from optwatch_agent.of_thread import OfThread
from optwatch_agent.outside import inlined, outside, skipped
from optwatch_agent.patches import Patch
from optwatch_agent.phases import BACKWARD_BEGINS, PHASES, Phases
from optwatch_agent.signals import let_through
from optwatch_agent.tensors import on_cpu

_DIVIDING = (
    "transformers.trainer",
    "lightning.pytorch.loops.optimization.automatic",
    "pytorch_lightning.loops.optimization.automatic",
)
"""Modules with loops that divide the loss of each of a step's passes: by how many there are, or mostly are,
or by the tokens of all."""
_SCALED = 4
"""Losses that may be scaled before the first of them is passed back."""


class Scaled(NamedTuple):
    """A loss: as a GradScaler gave it back, as it was, what it was divided by, and if the scaler is on."""

    result: "weakref.ref[Tensor]"
    loss: Tensor
    divisors: tuple[float, ...]
    is_on: bool


class Window:
    """The losses of the passes since the last step, in one training thread."""

    def __init__(self) -> None:
        self._values: list[Tensor | float] = []
        self._divisors: list[tuple[float, ...]] = []
        self._closed = True
        self._are_parts = False
        """Whether the losses are known to be parts of one, whose sum is the step's."""
        self._scaled: deque[Scaled] = deque(maxlen=_SCALED)
        self.number = 0
        """How many there were so far."""
        self._spent = 0.0

    @property
    def is_open(self) -> bool:
        """Whether a backward pass has been seen since the last step."""
        return not self._closed

    @property
    def scales(self) -> bool:
        """Whether a GradScaler that is on has scaled a loss."""
        return any(each.is_on for each in self._scaled)

    def read(self) -> tuple[Tensor | float | None, int]:
        """The loss of the step that ends, and how many backward passes it is made of.

        Several passes: the sum where each after the first, and so the first too, was divided by their
        number (gradient accumulation) or a framework makes them of which that is known; else the mean.
        """
        n = len(self._values)
        if n == 0:
            return None, 0
        if n == 1:
            return self._values[0], 1
        loss: Tensor | float = sum(self._values[1:], start=self._values[0])
        divided = all(any(abs(by / n - 1) < 1e-6 for by in divisors) for divisors in self._divisors)
        if not self._are_parts and not divided:
            loss = loss / n
        return loss, n

    def close(self) -> None:
        """A step was taken: the next backward opens a new window."""
        self._closed = True

    def take_spent(self) -> float:
        """Seconds that looking at backward passes took since the last call."""
        spent, self._spent = self._spent, 0.0
        return spent

    def begins(self, phases: Phases, which: object, tensors: Any, grad_tensors: Any) -> None:
        """A backward pass begins."""
        began = time.perf_counter()
        if BACKWARD_BEGINS:
            for hook in tuple(BACKWARD_BEGINS.values()):
                hook(phases)
        self._saw(tensors, grad_tensors)
        phases.begin_backward(which, began)
        self._spent += time.perf_counter() - began

    def saw_scaled(self, outputs: Any, result: Any) -> None:
        """A GradScaler scaled a loss."""
        if not (isinstance(outputs, Tensor) and isinstance(result, Tensor)):
            return
        is_on = result is not outputs
        if torch.compiler.is_compiling():
            self._scaled.append(Scaled(weakref.ref(result), outputs, (), is_on))
            return
        try:  # the loss alone: its graph is the script's
            self._scaled.append(Scaled(weakref.ref(result), outputs.detach(), _divisors(outputs), is_on))
        except Exception as error:  # noqa: BLE001 - never in the way of a training
            let_through(error)

    def _saw(self, tensors: Any, grad_tensors: Any) -> None:
        try:
            if not isinstance(tensors, Tensor):
                if not isinstance(tensors, (tuple, list)) or len(tensors) != 1:
                    return
                (tensors,) = tensors
            if grad_tensors is not None or tensors.numel() != 1:
                return
            if self._closed:
                self._values, self._closed = [], False
                self.number += 1
            scaled = next((each for each in self._scaled if each.result() is tensors), None)
            if self._values:  # looking at what was divided costs more than all the rest
                if len(self._values) == 1:
                    self._divisors, self._are_parts = [], _is_in_framework()
                self._divisors.append(_divisors(tensors) if scaled is None else scaled.divisors)
            if scaled is not None:
                tensors = scaled.loss
            self._values.append(tensors.item() if on_cpu(tensors) else tensors.detach().clone())
        except Exception as error:  # noqa: BLE001 - never in the way of a backward pass
            let_through(error)
            self._closed = True


class LossTap:
    """Sees the losses of all training threads."""

    def __init__(self) -> None:
        self.patches = (
            Patch(torch.autograd, "backward", self._wrap_backward),
            Patch(torch.amp.grad_scaler.GradScaler, "scale", self.wrap_scale),
        )
        self._windows = OfThread(Window)
        self._threads: set[int] = set()
        """Those in which passes began."""

    @property
    def may_look(self) -> bool:
        """Whether gradients can be looked at between steps, as where all passes that were seen are this
        thread's: where one of another writes to them in that moment, the process ends by a segmentation
        fault (torch 2.13)."""
        return bool(self._threads) and not self.others_pass

    @property
    def others_pass(self) -> bool:
        """Whether passes of other threads were seen."""
        return not self._threads <= {threading.get_ident()}

    @property
    def window(self) -> Window:
        """That of this thread."""
        return self._windows.here()

    def join(self) -> int:
        """An attachment is made in this thread; its number, for `leave`."""
        PHASES.join()
        return self._windows.join()

    def leave(self, thread: int) -> None:
        """It is over."""
        PHASES.leave(thread)
        self._windows.leave(thread)

    def install(self) -> None:
        for patch in self.patches:
            patch.install()

    def remove(self) -> None:
        for patch in self.patches:
            patch.remove()
        if self.patches[0].users == 0:
            self._windows, self._threads = OfThread(Window), set()
            PHASES.here().under_way.clear()  # whatever a signal handler has left there

    def _wrap_backward(self, backward: Callable[..., Any]) -> Callable[..., Any]:
        here, begins, ends = outside(PHASES.here), outside(self._begins), outside(_ends)

        def watched(tensors: Any, grad_tensors: Any = None, *args: Any, **kwargs: Any) -> Any:
            phases = here()
            which, raised = object(), True
            try:  # a signal handler may raise in what is ours as well
                begins(phases, which, tensors, grad_tensors)
                result = backward(tensors, grad_tensors, *args, **kwargs)
                raised = False
                return result
            finally:
                ends(phases, which, raised)

        # Not recursive: the code under it is the user's and may be compiled.
        return skipped(watched)

    def _begins(self, phases: Phases, which: object, tensors: Any, grad_tensors: Any) -> None:
        self._threads.add(threading.get_ident())
        if self.patches[0].users == 0:
            phases.begin_backward(which, time.perf_counter())
        else:
            self._windows.here().begins(phases, which, tensors, grad_tensors)

    def wrap_scale(self, scale: Callable[..., Any]) -> Callable[..., Any]:
        saw = outside(self._saw_scaled)

        def watched(scaler: Any, outputs: Any) -> Any:
            result = scale(scaler, outputs)
            if torch.compiler.is_compiling():  # which knows no threads
                self._windows.latest.saw_scaled(outputs, result)
            else:
                saw(outputs, result)
            return result

        return inlined(watched)

    def _saw_scaled(self, outputs: Any, result: Any) -> None:
        if self.patches[1].users:
            self._windows.here().saw_scaled(outputs, result)


def _ends(phases: Phases, which: object, raised: bool) -> None:
    phases.end_backward(which, raised)


def _is_in_framework() -> bool:
    """Whether this is called from within a loop that divides the losses of a step's passes."""
    frame = sys._getframe() if any(name in sys.modules for name in _DIVIDING) else None
    while frame is not None:
        if frame.f_globals.get("__name__") in _DIVIDING:
            return True
        frame = frame.f_back
    return False


def _divisors(loss: Tensor) -> tuple[float, ...]:
    """What a loss was divided by in the last operation on it, the last two, and so on."""
    divisors: list[float] = []
    node: Any = loss.grad_fn
    while node is not None and (name := node.name()) in ("DivBackward0", "MulBackward0"):
        other = node._saved_other
        if not isinstance(other, Tensor) or other.numel() != 1 or other.device.type != "cpu":
            break
        value = float(other.item())
        if value == 0:
            break
        divisors.append((divisors or [1.0])[-1] * (value if name == "DivBackward0" else 1.0 / value))
        node = node.next_functions[0][0]
    return tuple(divisors)


TAP = LossTap()

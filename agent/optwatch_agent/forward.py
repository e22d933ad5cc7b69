"""What passes through the model on sampled steps: its input, and what its activation modules make of it.

Columns, of the forward passes that train (a step may have several):

- `batch_size`: the first dimension of the input, summed over the passes;
- `input_mean`, `input_std`, `input_max` (max |x|) of the first floating input;
- `input_low`, `input_high`: the least and the greatest rms of a feature, or of a group of features where
  there are more than 64; features that are 0 throughout are left out;
- `zeros/NAME`: share of zeros behind a ReLU; `dead/NAME`: share of its units that are 0 for the whole batch;
- `saturated/NAME`: share behind a sigmoid or tanh where its slope is under a twentieth of its greatest.

Only modules are seen, not functions such as `F.relu`, and nothing inside of what torch.compile compiled or of
an `nn.TransformerEncoderLayer`.
"""

import contextlib
import logging
import math
import sys
import time
import weakref
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from optwatch_agent.naming import plain_name
from optwatch_agent.recorder import Value, column_name
from optwatch_agent.signals import let_through
from optwatch_agent.tensors import on_cpu

log = logging.getLogger("optwatch")

_MOST_MODULES = 24
"""Activation modules that are seen, spread over the depth of the model."""
_MOST_PASSES = 8
"""Passes of one step, and calls of one module in it, that are measured; further ones only count."""
_MOST_ELEMENTS = 1 << 20
"""Elements of a tensor that are looked at, about; of a larger one every k-th row of the batch."""
_GROUPS = 64

_RECTIFIERS = (nn.ReLU, nn.ReLU6)
_END = math.sqrt(0.95)
_ENDS: dict[type[nn.Module], tuple[float, float]] = {
    nn.Sigmoid: ((1 - _END) / 2, (1 + _END) / 2),  # y (1 - y) < 1/20 of 1/4
    nn.Tanh: (-_END, _END),  # 1 - y² < 1/20
}
"""Outputs below the first and above the second are saturated."""


class Forward:
    """Forward hooks on a model, there on steps that are measured only.

    A pass counts where the model is called in training mode with gradients on, and what its modules do
    counts within such a pass: no evaluation, and no activation that is computed again in backward. A model
    that is never called itself, such as a LightningModule, is seen where the first of its children is.
    """

    def __init__(self, model: nn.Module) -> None:
        self._failed = False
        # Modules are held weakly: a script that drops its model has the memory back.
        self._outer: weakref.ref[nn.Module] | None = None
        """The module whose call the pass under way is."""
        self._entry: weakref.ref[nn.Module] | None = None
        """The module whose calls are the passes of this step."""
        self._passes = self._batch = 0
        self._cost = 0.0
        self._inputs: list[tuple[int, Tensor, Tensor, Tensor]] = []
        """Of each pass: rows, and by feature mean, variance and max |x|."""
        self._shares: dict[str, list[Tensor]] = {}
        compiled = self._is_outside = hasattr(model, "_orig_mod")  # what is inside is not called
        entries = [model, *(() if compiled else model.children())]
        left_alone = _with_a_fast_path(model)
        entries = [each for each in entries if each not in left_alone and _takes_hooks(each)][:_MOST_MODULES]
        self._entries = list(map(weakref.ref, entries))
        activations = [] if compiled else _activations(model, left_alone)
        self._activations = [(name, weakref.ref(module)) for name, module in activations]
        self._handles: list[Any] = []
        self.armed = False
        """Whether the passes that come are measured."""
        # The first step is measured whatever the budget: what is wrong from the start shows there.
        self.arm(True)

    def arm(self, wanted: bool) -> None:
        """Whether to measure the passes that come. Not to be called from within one of them."""
        self._forget()
        self.armed = wanted and not self._failed
        # A module with hooks is slower, but one that is compiled with or without must stay so.
        if self.armed != bool(self._handles) and (self._is_outside or not _has_compiled()):
            self._take_off()
            if self.armed:
                try:
                    self._put_on()
                except Exception as error:  # noqa: BLE001 - a module of somebody's that takes no hooks
                    let_through(error)
                    self._take_off()
                    self._give_up(error)

    def _put_on(self) -> None:
        put_on = self._handles.append
        for held in self._entries:
            if (entry := held()) is not None:
                put_on(entry.register_forward_pre_hook(_Hook(self, self._enter), with_kwargs=True))
                put_on(entry.register_forward_hook(_Hook(self, self._leave)))
        for name, kept in self._activations:
            if (module := kept()) is not None:
                see = self._see_zeros if isinstance(module, _RECTIFIERS) else self._see_ends
                put_on(module.register_forward_hook(_Hook(self, see, name)))

    def _take_off(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def take(self) -> tuple[dict[str, Value], float]:
        """The columns of the step that ends, none where nothing was measured, and the CPU seconds it took."""
        if not self._passes:
            return {}, 0.0
        began = time.thread_time()
        values: dict[str, Value] = {"batch_size": float(self._batch)} if self._batch else {}
        try:
            if self._inputs:
                values.update(_described(self._inputs))
            for name, shares in self._shares.items():
                values[column_name(name)] = _number(torch.stack(shares).mean())
        except Exception as error:  # noqa: BLE001 - the step's other values are still recorded
            let_through(error)
            self._give_up(error)
        cost = self._cost + time.thread_time() - began
        self._forget()
        return values, cost

    def close(self) -> None:
        """Take the hooks off."""
        self.armed = False
        self._forget()
        self._take_off()

    def run(self, see: Callable[..., None], *seen: Any) -> None:
        """Look at what a hook was given."""
        began = time.thread_time()
        graded = torch.is_grad_enabled()
        try:
            if not _is_recorded():
                with torch.no_grad():
                    see(graded, *seen)
        except Exception as error:  # noqa: BLE001 - never into the training loop
            let_through(error)
            self._give_up(error)
        self._cost += time.thread_time() - began

    def _forget(self) -> None:
        self._outer = self._entry = None
        self._passes, self._batch, self._cost = 0, 0, 0.0
        self._inputs, self._shares = [], {}

    def _give_up(self, error: Exception) -> None:
        self._failed, self.armed = True, False
        log.warning("optwatch: inputs and activations are not measured any more: %r", error)

    # --- what the hooks see ---------------------------------------------------------------------------

    def _enter(self, graded: bool, _: str, module: nn.Module, args: Any, kwargs: Any) -> None:
        if self._outer is not None or not (module.training and graded) or _in_backward():
            return
        self._outer = weakref.ref(module)
        if self._entry is None:
            self._entry = self._outer
        if module is not self._entry():
            return
        self._passes += 1
        tensors = [t for t in _tensors([*args, *kwargs.values()]) if t.dim() and t.numel()]
        if tensors:
            self._batch += tensors[0].shape[0]
        floating = next(filter(_is_measurable, tensors), None)
        if floating is not None and self._passes <= _MOST_PASSES:
            x = _rows(floating)
            variance, mean = torch.var_mean(x, dim=0, correction=0)
            self._inputs.append((len(x), mean, variance, x.abs().amax(dim=0)))

    def _leave(self, graded: bool, _: str, module: nn.Module, args: Any, output: Any) -> None:
        if self._outer is not None and module is self._outer():
            self._outer = None

    def _see_zeros(self, graded: bool, name: str, module: nn.Module, args: Any, output: Any) -> None:
        if self._outer is not None and _is_measurable(output):
            zero = _rows(output) == 0
            self._add(f"zeros/{name}", zero)
            self._add(f"dead/{name}", zero.all(dim=0))

    def _see_ends(self, graded: bool, name: str, module: nn.Module, args: Any, output: Any) -> None:
        if self._outer is not None and _is_measurable(output):
            low, high = _ENDS[type(module)]
            x = _rows(output)
            self._add(f"saturated/{name}", (x < low) | (x > high))

    def _add(self, column: str, where: Tensor) -> None:
        shares = self._shares.setdefault(column, [])
        if len(shares) < _MOST_PASSES:
            shares.append(where.float().mean())


class Uncopied:
    """A hook that does nothing in a copy or a pickle of the model, which is loaded where no optwatch is."""

    def __reduce__(self) -> Any:
        return getattr, (contextlib.nullcontext(), "__exit__")  # takes anything, does nothing


class _Hook(Uncopied):
    """A hook that does nothing unless armed, nor under torch.compile."""

    def __init__(self, forward: Forward, see: Callable[..., None], name: str = "") -> None:
        self._forward = forward
        self._see = see
        self._name = name

    def __call__(self, module: nn.Module, *seen: Any) -> None:
        # Compiled, the first is true and all that is left of this.
        if not torch.compiler.is_compiling() and self._forward.armed:
            self._forward.run(self._see, self._name, module, *seen)


def _takes_hooks(module: nn.Module) -> bool:
    return not isinstance(module, torch.jit.ScriptModule)


def _with_a_fast_path(model: nn.Module) -> set[nn.Module]:
    """Modules that compute in another way when one of them has a hook: evaluations would differ in the last
    bits."""
    layers = [each for each in model.modules() if isinstance(each, nn.TransformerEncoderLayer)]
    return {each for layer in layers for each in layer.modules()}


def _activations(model: nn.Module, left_alone: set[nn.Module]) -> list[tuple[str, nn.Module]]:
    """The activation modules by name, each once, and not more than there is room for."""
    kinds = (*_RECTIFIERS, *_ENDS)
    found = [
        (plain_name(name), each)
        for name, each in model.named_modules()
        if type(each) in kinds and each not in left_alone
    ]
    every = max(math.ceil(len(found) / _MOST_MODULES), 1)
    return found[::every]


def _tensors(given: list[Any]) -> list[Tensor]:
    """The tensors among arguments, also those in a tuple, list or mapping."""
    found: list[Tensor] = []
    for each in given:
        if isinstance(each, Tensor):
            found.append(each)
        elif isinstance(each, Mapping):
            found += [item for item in each.values() if isinstance(item, Tensor)]
        elif isinstance(each, (list, tuple)):
            found += [item for item in each if isinstance(item, Tensor)]
    return found


def _is_measurable(x: Any) -> bool:
    """Whether it is plain numbers in memory."""
    return (
        type(x) in (Tensor, nn.Parameter)
        and x.layout is torch.strided
        and x.is_floating_point()
        and x.dim() > 0
        and x.numel() > 0
        and x.device.type != "meta"
        and not torch._C._functorch.is_functorch_wrapped_tensor(x)  # within vmap, grad and the like
    )


def _rows(x: Tensor) -> Tensor:
    """As [rows, features] in fp32 or fp64: an image's features are its channels, else they come last."""
    x = x.detach()[:: math.ceil(x.numel() / _MOST_ELEMENTS)]
    if x.dim() == 1:
        x = x[:, None]
    elif x.dim() > 3:
        x = x.movedim(1, -1)
    x = x.reshape(-1, x.shape[-1])
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def _described(inputs: list[tuple[int, Tensor, Tensor, Tensor]]) -> dict[str, Value]:
    """The columns about the input, from the passes that have as many features as the first."""
    alike = [each for each in inputs if each[1].shape == inputs[0][1].shape]
    rows = sum(n for n, _, _, _ in alike)
    mean = sum((m * (n / rows) for n, m, _, _ in alike), start=torch.zeros_like(alike[0][1]))
    variance = sum(
        ((v + (m - mean).square()) * (n / rows) for n, m, v, _ in alike), start=torch.zeros_like(mean)
    )
    square = variance + mean.square()
    groups = torch.stack(
        [part.mean() for part in torch.split(square, math.ceil(len(square) / _GROUPS))]
    ).sqrt()
    return {
        "input_mean": _number(mean.mean()),
        "input_std": _number((variance.mean() + mean.var(correction=0)).sqrt()),
        "input_max": _number(torch.stack([top.amax() for _, _, _, top in alike]).amax()),
        "input_low": _number(torch.where(groups == 0, math.inf, groups).amin()),
        "input_high": _number(groups.amax()),
    }


def _number(value: Tensor) -> Value:
    return float(value.item()) if on_cpu(value) else value


def _has_compiled() -> bool:
    """Whether torch.compile has compiled anything in this process."""
    dynamo = sys.modules.get("torch._dynamo.utils")
    return dynamo is not None and dynamo.counters["frames"]["total"] > 0


def _is_recorded() -> bool:
    """Whether somebody takes note of each operation and would take ours for the model's: a trace, the capture
    of a CUDA graph, or a dispatch mode, such as that of selective checkpointing, which expects the same
    operations when it computes a part again."""
    return torch._C._is_tracing() or torch._C._len_torch_dispatch_stack() > 0 or _is_capturing()


def _is_capturing() -> bool:
    started: Callable[[], bool] = torch.cuda.is_initialized
    return started() and torch.cuda.is_current_stream_capturing()


def _in_backward() -> bool:
    """Whether this runs in a backward pass: a checkpointed part that is computed again."""
    task: Any = getattr(torch._C, "_current_graph_task_id", None)
    return task is not None and task() != -1

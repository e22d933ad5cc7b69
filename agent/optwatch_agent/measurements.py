"""What is measured of one optimizer's steps: norms, and at some of them every tensor and histograms.

All is measured after the update, where gradients are unscaled and moments and parameters are new. What
would be gone by then is copied, or measured, before it. When there is something to measure the governor
says; where ranks measure together, at steps that they share.
"""

import functools
import time
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from optwatch_agent import histograms, naming, zero
from optwatch_agent.before import Before
from optwatch_agent.device_sums import Tools
from optwatch_agent.device_time import DeviceTime
from optwatch_agent.fused import Kernel, kernel_for
from optwatch_agent.governor import Governor
from optwatch_agent.gradients import Gradients, before_clipping
from optwatch_agent.joint import Joint
from optwatch_agent.local_norms import LocalNorms
from optwatch_agent.loose import Loose
from optwatch_agent.parts import in_step, parts_of
from optwatch_agent.piecemeal import Piecemeal
from optwatch_agent.probe import Taken
from optwatch_agent.recorder import Recorder, Value
from optwatch_agent.roles import is_known, roles_of
from optwatch_agent.sentinel import Sentinel
from optwatch_agent.signals import let_through
from optwatch_agent.states import state_norms
from optwatch_agent.sums import Sample
from optwatch_agent.tensors import on_cpu, params_of

_CALLS = 4.0
"""How often in a row gradients are measured out of turn at most."""


class Measurements:
    """Measures one optimizer. All of it is the training thread's."""

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        names: dict[int, str],
        recorder: Recorder,
        governor: Governor,
        local_norms: bool,
        hear_norm: Callable[[list[float]], Mapping[str, float]],
        failed: Callable[[Exception], None],
    ) -> None:
        """`hear_norm` is told the norm before any clipping whenever it is known, as one number; `failed` of
        an error in what a device has worked out, which arrives when no caller waits for it."""
        self.sampling = False
        """Whether every tensor is measured at the step that is under way."""
        self.keeps_grad: bool | None = None
        """Whether gradients can be read after the step, None before the first one."""
        self._held = Loose(optimizer)
        self.devices = tuple({param.device: None for param in self._params() if param.is_cuda})
        """The CUDA devices of the parameters."""
        self._names = names
        self._recorder = recorder
        self._governor = governor
        self._hear_norm = hear_norm
        self._failed = failed
        self._local = LocalNorms() if local_norms else None
        self._look_at_layout()
        self._before = Before()
        self._early: tuple[dict[str, Value], float] | None = None
        """Norms of gradients that the step overwrites, and the CPU seconds that they took before it."""
        self._gradients = Gradients()
        self._sentinel = Sentinel()
        self._unseen = 0
        """Steps since the sentinel was looked at."""
        self._calls = _CALLS
        """How often the gradients may be measured out of turn."""
        self._tools = Tools(_kernels(self.devices))
        self._piecemeal = Piecemeal(optimizer, self._tools) if isinstance(optimizer, Joint) else None
        self._norm_time, self._sample_time = DeviceTime(self.devices), DeviceTime(self.devices)

    @property
    def is_on_cpu(self) -> bool:
        """Whether there is a tensor that is measured by the host."""
        return any(map(on_cpu, self._params()))

    @property
    def is_plain(self) -> bool:
        """Whether this rank alone measures, and after the step."""
        return bool(self.keeps_grad) and not self._together

    @property
    def outdated(self) -> bool:
        """Whether parameters were added that the recorder does not name yet."""
        return _layout(self._optimizer) != self._layout

    def wants_sample(self, step: int) -> bool:
        """Whether a step is one at which every tensor should be measured."""
        governor = self._governor
        return governor.wants_sample and (self._parts is None or in_step(governor.sample_every, step))

    def _wants_norm(self, step: int) -> bool:
        governor = self._governor
        return governor.wants_norm and (not self._together or in_step(governor.norm_every, step))

    def _look_at_layout(self) -> None:
        """See how the parameters lie in groups, and over ranks."""
        self._layout = _layout(self._optimizer)
        self._parts = parts_of(self._optimizer, self._recorder.tensors)
        self._together = self._parts is not None or self._local is not None
        """Whether a norm is of use only where all ranks measure one."""

    # --- before the update ----------------------------------------------------------------------------

    def begin(self, step: int, may_sample: bool) -> bool:
        """A step begins; whether every tensor of it is measured, which `begin_sample` prepares."""
        self._early = None
        self._before.cost = 0.0
        self.sampling = may_sample and self.wants_sample(step)
        if self._piecemeal is not None:
            norm = may_sample and self._wants_norm(step)
            self._piecemeal.begin(norm, self.sampling, self.sampling and self._wants_histogram(step))
        return self.sampling

    def begin_sample(self) -> None:
        """Copy the parameters that will have to be compared."""
        if self._piecemeal is None:
            self._before.copy_params(self._optimizer)

    def drop_sample(self) -> None:
        """Measure no tensors of the step after all."""
        self.sampling = False
        if self._piecemeal is not None:
            self._piecemeal.begin(norm=False, sample=False, histogram=False)

    def look_at_roles(self) -> None:
        """See what will become of the gradients."""
        self.keeps_grad = self._piecemeal is None and roles_of(self._optimizer).keeps_grad

    def keep_gradients(self, step: int, clipped: bool) -> None:
        """See gradients that will not stay. `clipped`: their norm is known."""
        if self._piecemeal is not None:  # none of them may be there yet
            return
        if self.sampling:
            self._before.see_grads(self._optimizer)
        if not clipped and (self.sampling or self._wants_norm(step)):
            cpu = time.thread_time()
            with torch.no_grad():
                self._early = self._gradients.norms(self._optimizer, self._parts), time.thread_time() - cpu

    # --- after the update -----------------------------------------------------------------------------

    def due(self, optimizer: torch.optim.Optimizer, step: int, clipped: bool, leapt: bool) -> bool:
        """Whether there is something to measure of the step that is done. `leapt`: its loss did."""
        if self.sampling or clipped or self._wants_norm(step):
            return True
        # Where ranks measure together each would call by its part.
        return bool(self.keeps_grad) and not self._together and self.is_called(optimizer, leapt)

    def is_called(self, optimizer: torch.optim.Optimizer, leapt: bool) -> bool:
        """Whether the step that is done is so unusual that its gradients are measured at once.

        In the long run not more often than they are measured anyway: a run whose loss is NaN would ask for it
        at each step.
        """
        self._calls = min(self._calls + 1 / self._governor.norm_every, _CALLS)
        if self._calls >= 1 and (leapt or self._is_sentinel_calling(optimizer)):
            self._calls -= 1
            return True
        return False

    def _is_sentinel_calling(self, optimizer: torch.optim.Optimizer) -> bool:
        """Look at the sentinel, as often as can be afforded."""
        governor = self._governor
        self._unseen += 1
        if self._unseen < governor.look_every:
            return False
        self._unseen = 0
        began = time.perf_counter()
        called = self._sentinel.calls(optimizer)
        governor.look.see(time.perf_counter() - began)
        return called

    def add_norms(self, values: dict[str, Value], clipped: tuple[Value, Value] | None, scaled: bool) -> float:
        """Add the norms of the gradients to a row; the seconds it took.

        `clipped`: the norm before a clip of ours and after it; `scaled`: whether a GradScaler is at work.
        """
        self._norm_time.start()
        cost = self._add_norm(values, clipped) + self._add_local_norm(values, scaled)
        return cost + self._norm_time.stop()

    def _add_norm(self, values: dict[str, Value], clipped: tuple[Value, Value] | None) -> float:
        """The global norm of the gradients that the optimizer used; the CPU seconds it took."""
        began = time.thread_time()
        earlier = 0.0
        if clipped is not None:
            values["grad_norm_raw"], after = clipped
            if self._parts is None:
                values.update(self._gradients.clipped(self._optimizer, values["grad_norm_raw"]))
            values["grad_norm"] = after
        elif self._piecemeal is not None:
            earlier = self._piecemeal.finish()
            began = time.thread_time()
            values.update(self._piecemeal.norms(self._parts))
        elif self._early is not None:
            norms, earlier = self._early
            values.update(norms)
        else:
            values.update(self._gradients.norms(self._optimizer, self._parts))
        norm = before_clipping(values)
        if isinstance(norm, Tensor):
            self._recorder.expect(norm, self._hear_norm)
        elif norm is not None:
            self._hear_norm([norm])
        return earlier + time.thread_time() - began

    def _add_local_norm(self, values: dict[str, Value], scaled: bool) -> float:
        """The norm of this rank's own gradients where it was measured; the CPU seconds that took."""
        if self._local is None or (norm := self._local.take()) is None:
            return 0.0
        if not scaled:  # under a GradScaler they are multiplied by a scale that may change
            values["local_norm"] = norm
        return self._local.cost

    def add_sample(self, step: int, values: dict[str, Value]) -> float:
        """Record the statistics of every tensor, and add their norms to a row; the seconds it took."""
        self._sample_time.start()
        began = time.thread_time() - self._before.cost
        if self.outdated:
            self._look_again()
        taken: Taken
        if self._piecemeal is None:
            taken = self._before.take(self._optimizer, roles_of(self._optimizer), self._tools)
        else:
            taken = self._piecemeal.taken()
        if taken.numbers is None:
            values.update(self._sampled(step, taken.sample()))
        else:
            self._recorder.expect(taken.numbers, functools.partial(self._arrived, step, taken, self._layout))
        if self._parts is None and not is_known(self._optimizer):
            values.update(state_norms(self._optimizer))
        early = 0.0 if self._piecemeal is None else self._piecemeal.sample_cost
        return early + time.thread_time() - began + self._sample_time.stop()

    def _look_again(self) -> None:
        """Take account of parameters that were added."""
        self._gradients.look_again()
        self._recorder.rename(naming.tensors_of(self._optimizer, self._names))
        self._look_at_layout()

    def _sampled(self, step: int, sample: Sample) -> dict[str, float]:
        """Record a sample; the norms of all tensors that follow from it, as columns."""
        self._recorder.sample(step, zero.spread(sample, self._optimizer))
        if self._parts is not None:
            return self._parts.sampled(sample)
        norms = {"param_norm": sample.param_norm, "update_norm": sample.update_norm}
        return {name: norm for name, norm in norms.items() if norm is not None}

    def _arrived(
        self,
        step: int,
        taken: Taken,
        layout: tuple[int, ...],
        numbers: list[float],
    ) -> dict[str, float]:
        """Record a sample that a device has worked out, unless parameters were added meanwhile."""
        try:
            return self._sampled(step, taken.sample(numbers)) if layout == _layout(self._optimizer) else {}
        except Exception as error:  # noqa: BLE001 - the step's other values are still recorded
            let_through(error)
            self._failed(error)
            return {}

    def add_histogram(self, step: int) -> float | None:
        """Record how each gradient is spread, at a few of the steps that are sampled; the CPU seconds it
        took, None where it was not done."""
        kept, self._before.grads = self._before.grads, None
        if not self._wants_histogram(step):
            return None
        began = time.thread_time()
        if self._piecemeal is None:
            counts = histograms.measure(self._params(), kept)
        else:
            counts, began = self._piecemeal.counts(), began - self._piecemeal.histogram_cost
        self._recorder.histogram(step, zero.spread_counts(counts, self._optimizer))
        return time.thread_time() - began

    def _wants_histogram(self, step: int) -> bool:
        governor, tensors = self._governor, self._recorder.tensors
        meets = self.is_on_cpu and (self._parts is None or in_step(governor.histogram_every, step))
        return meets and governor.wants_histogram() and histograms.fits(len(tensors))

    def take_spent(self) -> float:
        """Seconds that following the members of a joint optimizer took since the last call, without what was
        measured of them."""
        return 0.0 if self._piecemeal is None else self._piecemeal.take_spent()

    # --- between two steps ----------------------------------------------------------------------------

    def arm_local_norm(self, step: int) -> None:
        """Measure this rank's own gradients as they come, where the step that comes next wants its norm."""
        if self._local is not None and self._wants_norm(step):
            self._local.arm(self._params())

    def close(self) -> None:
        """Take off what waits for gradients."""
        if self._local is not None:
            self._local.disarm()

    @property
    def _optimizer(self) -> torch.optim.Optimizer:
        return self._held.optimizer

    def _params(self) -> list[Tensor]:
        return params_of(self._optimizer)


def _layout(optimizer: torch.optim.Optimizer) -> tuple[int, ...]:
    return tuple(len(group["params"]) for group in optimizer.param_groups)


def _kernels(devices: Sequence[torch.device]) -> dict[torch.device, Kernel]:
    """Triton's kernel on each CUDA device, where it can be had."""
    kernels = {device: kernel_for(device) for device in devices}
    return {device: kernel for device, kernel in kernels.items() if kernel is not None}

"""One optimizer under watch: its step hooks, what they measure, and when they act."""

import functools
import logging
import math
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from optwatch_agent import histograms, losses, naming, probe, scalers, zero
from optwatch_agent.actuators import Actuators
from optwatch_agent.before import Before
from optwatch_agent.checks import Checks
from optwatch_agent.control import Control, ControlLost
from optwatch_agent.device_sums import Tools
from optwatch_agent.device_time import DeviceTime
from optwatch_agent.forward import Forward
from optwatch_agent.fused import Kernel, kernel_for
from optwatch_agent.governor import Governor
from optwatch_agent.gradients import Gradients, before_clipping
from optwatch_agent.guard import Guard
from optwatch_agent.haste import Range
from optwatch_agent.local_norms import LocalNorms
from optwatch_agent.loose import Loose
from optwatch_agent.membership import Membership
from optwatch_agent.parts import in_step, parts_of
from optwatch_agent.phases import FORWARD, PHASES, STEP
from optwatch_agent.recorder import Recorder, Value
from optwatch_agent.roles import is_known, roles_of, steps_of
from optwatch_agent.sentinel import Sentinel
from optwatch_agent.snapshots import SHARE, Snapshots
from optwatch_agent.states import state_norms
from optwatch_agent.sums import Sample
from optwatch_agent.tensors import on_cpu

log = logging.getLogger("optwatch")

_SKIPS = 1_000
_MOST_IN_VAIN = 8
"""Steps in a row that a GradScaler skips while it looks for its scale; with more, the run stands still."""

_FAILURES = 3
"""Exceptions of ours on one optimizer after which it is left alone."""


class Track:
    """Follows one optimizer from step to step.

    The pre-hook applies commands and what is in force; all that is measured is measured in the
    post-hook, where gradients are unscaled and moments and parameters are new.
    """

    def __init__(
        self,
        index: int,
        name: str,
        optimizer: torch.optim.Optimizer,
        names: dict[int, str],
        budget: float,
        step: int | None,
        see_loss: bool,
        hurry: Callable[[], None],
        membership: Membership,
        declared: bool,
        local_norms: bool,
        snapshots: Snapshots,
        guard: Sequence[str],
    ) -> None:
        self._held = Loose(optimizer)
        self.name = name
        self.completed = _steps_so_far(optimizer) if step is None else step
        """global_step of the last completed step."""
        self.under_way = self._start = self.completed
        self.active = True
        self.degraded = ""
        """Why nothing is measured any more, "" while it is."""
        self.reduced = False
        """Whether another rank measures the tensors, which are the same there; set by the link's thread."""
        self.skips: deque[int] = deque(maxlen=_SKIPS)
        """The steps after which a GradScaler skipped one; taken by the link's thread."""
        self.actuators = Actuators(optimizer, snapshots)
        self.guard = Guard(guard, optimizer)
        self.control: Control | None = None
        self.forward: Forward | None = None
        """What passes through the model on the steps that are sampled, where there is a model."""
        self._index = index
        self._names = names
        self._see_loss = see_loss
        self._hurry = hurry
        self._range = Range()
        self._layout = _layout(optimizer)
        tensors = naming.tensors_of(optimizer, names)
        self._parts = parts_of(optimizer, tensors)
        self.recorder = Recorder(index, tensors)
        numel = sum(p.numel() for group in optimizer.param_groups for p in group["params"])
        self.governor = Governor(budget, numel, len(tensors))
        self.checks = Checks(index, optimizer, budget, declared)
        self._membership = membership
        self._local = LocalNorms() if local_norms else None
        self._own = 0.0
        """`PHASES.own` at the end of the last step."""
        self._must_check = False
        self._logged: dict[str, Value] = {}
        self._skipped = 0
        self._in_vain = 0
        """Steps in a row that a GradScaler skipped without a trace."""
        self._depth = 0
        self._ended: float | None = None
        self._spent = 0.0
        self._sampling = False
        self._before = Before()
        self._devices = tuple({param.device: None for param in self._params() if param.is_cuda})
        self._tools = Tools(_kernels(self._devices))
        self._norm_time, self._sample_time = DeviceTime(self._devices), DeviceTime(self._devices)
        self._gradients = Gradients()
        self._sentinel = Sentinel()
        self._keeps_grad: bool | None = None
        """Whether gradients can be read after the step, None before the first one."""
        self._early: tuple[dict[str, Value], float] | None = None
        """Norms of gradients that the step overwrites, and the CPU seconds that they took before it."""
        self._closure_loss: float | Tensor | None = None
        self._passes = 1
        self._awaits_closure = False
        """Whether the gradients of the step are yet to come, within it."""
        self._clipped: tuple[Value, Value] | None = None
        self._noise: float | None = None
        self._acting = 0.0
        """Seconds in the pre-hook that are no cost of every step: a clip, a copy for a sample."""
        self._factor: float | None = None
        self._failures = 0
        scalers.TAP.install(self)
        # A compiled step keeps one graph.
        disable: Any = torch.compiler.disable
        self._handles = [
            optimizer.register_step_pre_hook(disable(self._pre)),
            optimizer.register_step_post_hook(disable(self._post)),
        ]

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        return self._held.optimizer

    @property
    def gone(self) -> bool:
        """Whether the script has dropped the optimizer."""
        return self._held.gone

    def is_on(self, optimizer: torch.optim.Optimizer) -> bool:
        return not self.gone and self.optimizer is optimizer

    @property
    def stepped(self) -> bool:
        """Whether a step has begun since it is followed."""
        return self.under_way > self._start

    @property
    def is_on_cpu(self) -> bool:
        """Whether there is a tensor that is measured here."""
        return any(map(on_cpu, self._params()))

    def log(self, values: Mapping[str, Value]) -> None:
        """Values for the step that was completed last, or for the next one once its backward has begun."""
        if not losses.TAP.is_open and self.recorder.amend(values):
            return
        self._logged.update(values)

    def scaled(self, scale: Value, ran: bool, skipped: bool) -> None:
        """A GradScaler ended a step. Of one that it skipped without a trace, the next row tells."""
        self.actuators.scaled = True
        if skipped:
            self.skips.append(self.completed)
            self._skipped += 1
        values: dict[str, Value] = {"loss_scale": scale, "skipped_steps": float(self._skipped)}
        self._in_vain = 0 if ran else self._in_vain + 1
        if self._in_vain > _MOST_IN_VAIN and self.active:
            self._stand_still(values)
        elif not ran or not self.recorder.amend(values):
            self._logged.update(values)
        if not ran:
            losses.TAP.close()

    def _stand_still(self, values: dict[str, Value]) -> None:
        """A step that was skipped, as all are by now, counts as one: its loss shows why, and commands that
        can end it wait for steps. Ranks skip the same steps, and count alike."""
        self.under_way = step = self.completed + 1
        if self.control is not None and self.control.pending:
            self.control.apply_due(self._index, step)
        self.completed = step
        self._add_loss(values)
        lrs = self.actuators.lr_scale.scheduled()
        values["lr"] = _number(lrs[0]) if lrs else float("nan")
        if self.control is not None and self.control.behind:
            self.actuators.loss = values.get("loss")
            self.control.apply_behind(self._index, step)
        self.recorder.add(step, values | self._logged)
        self._logged = {}

    def close(self) -> None:
        """Take the hooks off and undo what is in force. Inside a step the hooks stay, and do nothing."""
        self.active = False
        if self._depth == 0:
            for handle in self._handles:
                handle.remove()
        if self._local is not None:
            self._local.disarm()
        if self.forward is not None:
            self.forward.close()
        scalers.TAP.remove(self)
        self.actuators.release()
        self.recorder.release()
        if self._logged:  # for a step that will not come, such as the result of the last evaluation
            self.recorder.add(self.completed + 1, self._logged)
            self._logged = {}
            self.recorder.release()
        try:
            self.recorder.settle()
            self.guard.settle()
        except Exception as error:  # noqa: BLE001 - a device that failed has nothing to tell any more
            log.warning("optwatch: what the device worked out last is lost: %r", error)

    # --- hooks ----------------------------------------------------------------------------------------

    def _pre(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> Any:
        if not self.active or self._is_captured():
            return None
        try:
            began = time.perf_counter()
            if self._depth and _is_nested(optimizer):
                self._depth += 1  # a subclass that calls super().step()
                return None
            self._depth = 1
            closure = _closure_of(args, kwargs)
            self._awaits_closure = closure is not None
            self._begin()
            changed = None if closure is None else self._wrap_closure(closure, args, kwargs)
            self._spent = time.perf_counter() - began - self._acting
        except ControlLost:
            raise
        except Exception as error:  # noqa: BLE001 - never into the training loop
            self._failed(error)
            return None
        return changed

    def _post(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        if not self.active or self._depth == 0:
            return
        self._depth -= 1
        if self._depth:
            return
        try:
            self._end(time.perf_counter())
        except Exception as error:  # noqa: BLE001 - never into the training loop
            self._failed(error)
        finally:
            self.guard.end()
            losses.TAP.close()
            self.actuators.lr_scale.leave()

    def _is_captured(self) -> bool:
        """Whether the step goes into a CUDA graph: nothing is done then, and a replay calls no hook."""
        return bool(self._devices) and torch.cuda.is_current_stream_capturing()

    def _begin(self) -> None:
        self.under_way = step = self.completed + 1
        PHASES.enter(STEP)
        self._acting = 0.0
        self._must_check = False
        if self.control is not None and self.control.pending:
            # Whatever becomes of it here, another rank may apply it: all look what it did to the replicas.
            self._must_check = any(p.due(self._index, step) for p in self.control.pending)
            self.control.apply_due(self._index, step)
        actuators = self.actuators
        self._factor = actuators.lr_scale.enter()
        self._clipped = self._closure_loss = self._early = self._noise = None
        self.guard.end()
        self._passes = 1
        self._before.cost = 0.0
        self._sampling = False
        try:
            if self._index == 0:
                self.actuators.snapshots.begin(self.completed)
            self._sampling = not self.degraded and self._wants_sample()
            if self._sampling:
                began = time.perf_counter()
                self._before.copy_params(self.optimizer)
                self._acting += time.perf_counter() - began
        except Exception as error:  # noqa: BLE001 - the step is still counted
            self._failed_within(error)
        self._take_gradients()
        if actuators.lr_scale.armed and not actuators.lr_scale.in_force:
            self._disarm_when_idle()

    def _take_gradients(self) -> None:
        """The gradients are there: clip them where a clip is in force, see them where they will not stay.

        Also called inside the user's closure.
        """
        try:
            self._act_on_gradients()
        except Exception as error:  # noqa: BLE001 - never into the training loop
            self._failed_within(error)

    def _act_on_gradients(self) -> None:
        if self._keeps_grad is None:
            self._keeps_grad = roles_of(self.optimizer).keeps_grad
            self.actuators.look_at_gradients()
            if self.guard.on and self.actuators.unsummed:
                self.guard.give_up("the gradients are yet to be summed over ranks when the optimizer steps")
            if self.guard.on_device is not None and self.actuators.sparse:
                self.guard.give_up("there are sparse gradients, on a device")
        if self.actuators.max_norm is not None or self.actuators.noise is not None or self.guard.on:
            began = time.perf_counter()
            self._intervene()
            self._acting += time.perf_counter() - began
        if self.degraded or self._keeps_grad:
            return
        began = time.perf_counter()
        if self._sampling:
            self._before.copy_grads(self.optimizer)
        if self._clipped is None and (self._sampling or self._wants_norm()):
            cpu = time.thread_time()
            with torch.no_grad():
                self._early = self._gradients.norms(self.optimizer, self._parts), time.thread_time() - cpu
        self._acting += time.perf_counter() - began

    def _intervene(self) -> None:
        """Skip the step, clip its gradients or give them noise, where guard or command say so."""
        guard, actuators = self.guard, self.actuators
        if guard.on and guard.collective and losses.TAP.scales:
            guard.give_up(
                "a GradScaler may skip the step on one rank, and the others would wait for its norm"
            )
        decides = guard.on and not self._awaits_closure and getattr(self.optimizer, "found_inf", None) is None
        try:
            if decides and guard.on_device is not None:
                guard.act_on_device(self.optimizer, self.under_way)
                decides = False
            if actuators.max_norm is not None and actuators.there:
                self._clip_there()
            elif decides or actuators.max_norm is not None:
                self._guard_and_clip(decides)
        except Exception as error:
            if guard.on and guard.collective:  # the other ranks may be gone
                guard.give_up(f"the norm of all ranks failed: {error}")
            raise
        if actuators.noise is not None and not self._awaits_closure and not guard.skipping:
            self._noise = actuators.noise.add(self.optimizer, self.under_way)

    def _clip_there(self) -> None:
        """Clip gradients on a device, and hear later to what."""
        before, after, limit = self.actuators.clip_there()
        self._clipped = before, after
        if limit is not None:
            self.recorder.expect(limit, self.actuators.hear_limit)

    def _guard_and_clip(self, decides: bool) -> None:
        """`decides`: the guard has a say."""
        guard, actuators = self.guard, self.actuators
        norm = actuators.norm()
        if decides and guard.skips:
            if not math.isfinite(norm):
                guard.skip(self.optimizer, self.under_way)
                if guard.skipping:
                    self._sampling = False
                    return
            else:
                guard.passes()
        adaptive = guard.adaptive if decides else None
        limits = [actuators.max_norm, adaptive.limit if adaptive is not None else None]
        limit = min((each for each in limits if each is not None), default=None)
        if limit is not None:
            before, norm = actuators.clip(limit, norm)
            self._clipped = before, norm
            actuators.see_clipped(norm)
        if adaptive is not None:
            adaptive.see(norm)

    def _disarm_when_idle(self) -> None:
        waiting = self.control is not None and any(
            self._index in pending.armed for pending in self.control.pending
        )
        if not waiting:
            self.actuators.lr_scale.disarm()

    def _wrap_closure(self, closure: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """With a closure the gradients come during the step: its first loss counts, and so does a clip."""
        accumulated = losses.TAP.is_open

        @functools.wraps(closure)
        def watched() -> Any:
            loss = closure()
            if self._closure_loss is None and accumulated:  # the closure ran the last of several passes
                self._closure_loss, self._passes = losses.TAP.read()
            elif self._closure_loss is None and isinstance(loss, (Tensor, float)):
                self._closure_loss = loss.detach().clone() if isinstance(loss, Tensor) else loss
            self._awaits_closure = False
            self._take_gradients()
            return loss

        if kwargs.get("closure") is closure:
            return args, {**kwargs, "closure": watched}
        return (args[0], watched, *args[2:]), kwargs

    def _end(self, now: float) -> None:
        """Record the step that is done."""
        step = self.completed = self.under_way
        values: dict[str, Value] = {}
        self._add_loss(values)
        lrs = self.actuators.lr_scale.scheduled()
        values["lr"] = _number(lrs[0]) if lrs else float("nan")
        for i, lr in enumerate(lrs[1:], start=1):
            values[f"lr/{i}"] = _number(lr)
        step_time = now - self._ended if self._ended is not None else None
        if step_time is not None:
            values["step_time"] = step_time
        own, self._own = PHASES.own - self._own, PHASES.own
        if step_time is not None and self.checks.ranks > 1 and own > 0:
            values["arrival"] = own
        if self._factor is not None:
            values["lr_scale"] = self._factor
        if self.actuators.max_norm is not None:
            values["clip"] = self.actuators.max_norm
        if self._noise is not None:
            values["noise_std"] = self._noise
        if self.guard.adaptive is not None and self.guard.adaptive.limit is not None:
            values["guard_clip"] = self.guard.adaptive.limit
        if self.guard.skipping:
            values["guard_skips"] = float(self.guard.skipped)
            if not _is_finite(values.get("loss")):
                del values["loss"]  # it did nothing, as under a GradScaler that skips; an event tells of it
        if self._logged:
            logged, self._logged = self._logged, {}
            values.update(logged)
        norm_cost = sample_cost = histogram_cost = None
        wants_norm = (
            self._sampling or self._clipped is not None or self._wants_norm() or self._must_see_norm()
        )
        began = ended = time.perf_counter()
        if wants_norm and not self.degraded and not self.guard.skipping:
            try:
                with torch.no_grad():
                    self._norm_time.start()
                    norm_cost = self._add_norm(values) + self._add_local_norm(values)
                    norm_cost += self._norm_time.stop()
                    if self._sampling:
                        self._sample_time.start()
                        sample_cost = self._add_sample(step, values)
                        sample_cost += self._sample_time.stop()
                        histogram_cost = self._add_histogram(step)
            except Exception as error:  # noqa: BLE001 - the step's other values are still recorded
                self._failed(error)
            ended = time.perf_counter()
        if self.forward is not None and self.forward.armed:
            seen, cost = self.forward.take()
            values = seen | values  # what was logged overrides
            if seen or sample_cost is not None:  # attached after the pass, nothing was measured
                sample_cost = cost + (sample_cost or 0.0)
            ended = time.perf_counter()
        check_cost = self._look_behind(step, step_time, values.get("loss")) + self._check(step, step_time)
        if check_cost:
            ended = time.perf_counter()
        self.recorder.add(step, values)
        self.recorder.arrive()
        PHASES.enter(FORWARD)
        fixed = self._spent + losses.TAP.take_spent() + (began - now) + (time.perf_counter() - ended)
        self.governor.spent(step_time, fixed, norm_cost, sample_cost, check_cost, histogram_cost)
        if (
            self._local is not None
            and self.checks.ranks > 1
            and not self.degraded
            and self._wants_norm(ahead=1)
        ):
            self._local.arm(self._params())
        if self.forward is not None:
            self.forward.arm(not self.degraded and self._wants_sample(ahead=1))
        self._ended = time.perf_counter()

    def _look_behind(self, step: int, step_time: float | None, loss: Value | None) -> float:
        """What follows the update: commands that wait for it, and a snapshot; the CPU seconds of that."""
        snapshots = self.actuators.snapshots
        waiting = self.control is not None and bool(self.control.behind)
        due = self._index == 0 and snapshots.on and snapshots.due(step, step_time)
        if not waiting and not due:
            return 0.0
        began = time.thread_time()
        if self.control is not None and waiting:
            self.actuators.loss = loss
            self.control.apply_behind(self._index, step)
        if due:
            try:
                snapshots.take(step, loss)
            except Exception as error:
                snapshots.failed = f"taking a snapshot failed: {type(error).__name__}: {error}"
                log.warning("optwatch: %s; none is taken any more", snapshots.failed, exc_info=error)
        return time.thread_time() - began

    # --- measuring ------------------------------------------------------------------------------------

    def _check(self, step: int, step_time: float | None) -> float:
        """Take checksums where all ranks do; the CPU seconds that took."""
        if self._membership.alone or self.degraded or _layout(self.optimizer) != self._layout:
            return 0.0
        try:
            ranks = self._membership.who.world_size
            cost = self.checks.after(
                self.optimizer, step, step_time, ranks, self.recorder.tensors, self._must_check
            )
        except Exception as error:  # noqa: BLE001 - the step's values are still recorded
            self._failed(error)
            return 0.0
        self.governor.reserved = self.checks.share + (SHARE if self.actuators.snapshots.on else 0.0)
        return cost

    def _add_loss(self, values: dict[str, Value]) -> None:
        if not self._see_loss:
            return
        loss: float | Tensor | None
        if self._closure_loss is not None:
            loss, passes = self._closure_loss, self._passes
        else:
            loss, passes = losses.TAP.read()
        if loss is None:
            return
        values["loss"] = seen = loss.item() if isinstance(loss, Tensor) and on_cpu(loss) else loss
        if isinstance(seen, float) and self._range.left_by(seen):
            self._hurry()
        if passes > 1:
            values["backward_passes"] = float(passes)

    def _add_norm(self, values: dict[str, Value]) -> float:
        """The global norm of the gradients that the optimizer used; the CPU seconds it took."""
        began = time.thread_time()
        earlier = 0.0
        if self._clipped is not None:
            values["grad_norm_raw"], values["grad_norm"] = self._clipped
        elif self._early is not None:
            norms, earlier = self._early
            values.update(norms)
        else:
            values.update(self._gradients.norms(self.optimizer, self._parts))
        norm = before_clipping(values)
        if isinstance(norm, Tensor):
            self.recorder.expect(norm, self.actuators.hear_norm)
        elif norm is not None:
            self.actuators.recent_norms.append(norm)
        return earlier + time.thread_time() - began

    def _add_sample(self, step: int, values: dict[str, Value]) -> float:
        """The statistics of every tensor and their norms; the CPU seconds it took."""
        began = time.thread_time() - self._before.cost
        layout = _layout(self.optimizer)
        if layout != self._layout:  # parameters were added
            self._layout = layout
            self._gradients.look_again()
            tensors = naming.tensors_of(self.optimizer, self._names)
            self.recorder.rename(tensors)
            self._parts = parts_of(self.optimizer, tensors)
        params = self._params()
        before = self._before
        taken = probe.take(
            self.optimizer,
            params,
            roles_of(self.optimizer),
            before.differences(params),
            before.grads,
            self._tools,
        )
        if taken.numbers is None:
            values.update(self._sampled(step, taken.sample()))
        else:
            self.recorder.expect(taken.numbers, functools.partial(self._arrived, step, taken, self._layout))
        if self._parts is None and not is_known(self.optimizer):
            values.update(state_norms(self.optimizer))
        return time.thread_time() - began

    def _sampled(self, step: int, sample: Sample) -> dict[str, float]:
        """Record a sample; the norms of all tensors that follow from it, as columns."""
        self.recorder.sample(step, zero.spread(sample, self.optimizer))
        if self._parts is not None:
            return self._parts.sampled(sample)
        norms = {"param_norm": sample.param_norm, "update_norm": sample.update_norm}
        return {name: norm for name, norm in norms.items() if norm is not None}

    def _arrived(
        self, step: int, taken: probe.Taken, layout: tuple[int, ...], numbers: list[float]
    ) -> dict[str, float]:
        """Record a sample that a device has worked out, unless parameters were added meanwhile."""
        try:
            return self._sampled(step, taken.sample(numbers)) if layout == _layout(self.optimizer) else {}
        except Exception as error:  # noqa: BLE001 - the step's other values are still recorded
            self._failed(error)
            return {}

    def _add_histogram(self, step: int) -> float | None:
        """How each gradient is spread, at a few of the steps that are sampled; the CPU seconds it took."""
        kept, self._before.grads = self._before.grads, None
        meets = self.is_on_cpu and (self._parts is None or in_step(self.governor.histogram_every, step))
        if not (meets and self.governor.wants_histogram() and histograms.fits(len(self.recorder.tensors))):
            return None
        began = time.thread_time()
        counts = histograms.measure(self._params(), kept)
        self.recorder.histogram(step, zero.spread_counts(counts, self.optimizer))
        return time.thread_time() - began

    def _add_local_norm(self, values: dict[str, Value]) -> float:
        """The norm of this rank's own gradients where it was measured; the CPU seconds that took."""
        if self._local is None or (norm := self._local.take()) is None:
            return 0.0
        if not self.actuators.scaled:  # under a GradScaler they are multiplied by a scale that may change
            values["local_norm"] = norm
        return self._local.cost

    def _wants_sample(self, ahead: int = 0) -> bool:
        meets = self._parts is None or in_step(self.governor.sample_every, self.under_way + ahead)
        return meets and not self.reduced and self.governor.wants_sample()

    def _wants_norm(self, ahead: int = 0) -> bool:
        together = self._parts is not None or self._local is not None
        meets = not together or in_step(self.governor.norm_every, self.under_way + ahead)
        return meets and self.governor.wants_norm()

    def _must_see_norm(self) -> bool:
        """Whether the step's gradients are unusual enough to be measured out of turn. Never where ranks
        measure together: each would call by its own part."""
        together = self._parts is not None or self._local is not None
        if together or self.degraded or not self._keeps_grad:
            return False
        return self._sentinel.calls(self.optimizer)

    def _params(self) -> list[Tensor]:
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def _failed_within(self, error: Exception) -> None:
        """The same before the update of a step, which counts all the same: other ranks count it too."""
        depth = self._depth
        self._sampling = False
        self._failed(error)
        self._depth = depth

    def _failed(self, error: Exception) -> None:
        """Log once and go on with less: nothing measured, then nothing at all."""
        self._failures += 1
        self._depth = 0
        if not self.degraded:
            self.degraded = f"{type(error).__name__}: {error}"
            log.warning(
                "optwatch: measuring %s failed and stays off: %s", self.name, self.degraded, exc_info=error
            )
        elif self._failures >= _FAILURES:
            self.active = self.guard.on and self.guard.collective
            if self.control is not None:
                self.control.give_up(f"the agent's hooks failed: {self.degraded}")
            self.actuators.release()


def _steps_so_far(optimizer: torch.optim.Optimizer) -> int:
    """Where the optimizer's own count stands, 0 where it has none."""
    counts = [steps_of(state, {}) for state in optimizer.state.values() if isinstance(state, Mapping)]
    counts += [steps_of({}, group) for group in optimizer.param_groups]
    return int(max(counts, default=0.0))


def _layout(optimizer: torch.optim.Optimizer) -> tuple[int, ...]:
    return tuple(len(group["params"]) for group in optimizer.param_groups)


def _kernels(devices: Sequence[torch.device]) -> dict[torch.device, Kernel]:
    """Triton's kernel on each CUDA device, where it can be had."""
    kernels = {device: kernel_for(device) for device in devices}
    return {device: kernel for device, kernel in kernels.items() if kernel is not None}


def _number(lr: Any) -> Value:
    if isinstance(lr, Tensor):
        return float(lr.item()) if on_cpu(lr) else lr.detach().clone()
    return float(lr) if isinstance(lr, (int, float)) else float("nan")


def _closure_of(args: Any, kwargs: Any) -> Callable[..., Any] | None:
    """The closure that a step was given, None without one."""
    closure = kwargs.get("closure") if kwargs else None
    if closure is None and len(args) > 1 and callable(args[1]):
        closure = args[1]
    return closure


def _is_finite(value: Value | None) -> bool:
    """Whether a number is known to be finite, or is none that is known."""
    return not isinstance(value, float) or math.isfinite(value)


def _is_nested(optimizer: torch.optim.Optimizer) -> bool:
    """Whether this pre-hook runs inside another step of the same optimizer.

    Told from the stack: after a step that raised no post-hook has run either.
    """
    outer = sys._getframe(2)
    found = 0
    frame: Any = outer
    while frame is not None:
        if frame.f_code.co_name == "wrapper" and frame.f_locals.get("self") is optimizer:
            found += 1
        frame = frame.f_back
    return found > 1

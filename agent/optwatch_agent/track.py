"""One optimizer under watch: its step hooks, and in which order they act, measure and record."""

import logging
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.utils.hooks import RemovableHandle

from optwatch_agent import losses, naming, scalers
from optwatch_agent.actuators import Actuators
from optwatch_agent.calls import closure_of, is_nested, is_rehearsal, is_stepping
from optwatch_agent.checks import Checks
from optwatch_agent.control import Control, ControlLost
from optwatch_agent.forward import Forward
from optwatch_agent.governor import NOTHING, Costs, Governor
from optwatch_agent.guard import Guard
from optwatch_agent.interventions import Interventions
from optwatch_agent.joint import Joint
from optwatch_agent.loose import Loose
from optwatch_agent.lr_scale import add_lrs
from optwatch_agent.measurements import Measurements
from optwatch_agent.membership import Membership
from optwatch_agent.outside import outside
from optwatch_agent.phases import FORWARD, PHASES, STEP, Phases
from optwatch_agent.recorder import Recorder, Value
from optwatch_agent.roles import steps_so_far
from optwatch_agent.signals import is_the_scripts, let_through
from optwatch_agent.snapshots import SHARE, Snapshots
from optwatch_agent.step_loss import StepLoss

log = logging.getLogger("optwatch")

_SKIPS = 1_000
_MOST_IN_VAIN = 8
"""Steps in a row that a GradScaler skips while it looks for its scale; with more, the run stands still."""

_FAILURES = 3
"""Exceptions of ours on one optimizer after which it is left alone."""


class Track:
    """Follows one optimizer from step to step.

    The pre-hook applies commands and what is in force, the post-hook measures and records.
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
        self._joint = optimizer if isinstance(optimizer, Joint) else None
        self.name = name
        self.completed = steps_so_far(optimizer) if step is None else step
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
        self.stepped_by: Callable[[int, int], None] | None = None
        """Told the track's number and that of the pass at each step, where there are several tracks."""
        self.forward: Forward | None = None
        """What passes through the model on the steps that are sampled, where there is a model."""
        self._index = index
        tensors = naming.tensors_of(optimizer, names)
        self.recorder = Recorder(index, tensors)
        numel = sum(p.numel() for group in optimizer.param_groups for p in group["params"])
        self.governor = Governor(budget, numel, len(tensors))
        self.checks = Checks(index, optimizer, budget, declared)
        self._membership = membership
        self._loss = StepLoss(see_loss, hurry)
        self._interventions = Interventions(optimizer, self.actuators, self.guard, self.recorder)
        self._measurements = Measurements(
            optimizer,
            names,
            self.recorder,
            self.governor,
            local_norms,
            self.actuators.hear_norm,
            self._failed,
        )
        self._on_device = bool(self._measurements.devices)
        self._own = 0.0
        """`phases.own` at the end of the last step."""
        self._settled = False
        """Whether steps are quiet until a measurement is due or a command comes. See `_is_settled`."""
        self._quiet = False
        """Whether nothing is done to the step that is under way, and nothing but its row told of it."""
        self._must_check = False
        self.phases: Phases = PHASES.here()
        """Those of the thread that takes the steps."""
        self._losses = losses.TAP.window
        """Those that it has seen, of the step that is under way."""
        self._logged: dict[str, Value] = {}
        self._lrs: dict[str, Value] = {}
        """The LRs that the step of a joint optimizer began with."""
        self._skipped = 0
        self._in_vain = 0
        """Steps in a row that a GradScaler skipped without a trace."""
        self._depth = 0
        self._rehearses = False
        """Whether the step that is under way is none of the training."""
        self._ended: float | None = None
        self._spent = 0.0
        self._acting = 0.0
        """Seconds in the pre-hook that are no cost of every step: a clip, a copy for a sample."""
        self._failures = 0
        # A compiled step keeps one graph.
        pre, post, loaded = outside(self._pre), outside(self._post), outside(self._loaded)
        self._handles: list[RemovableHandle] = []
        try:
            self._handles.append(optimizer.register_step_pre_hook(pre))
            self._handles.append(optimizer.register_step_post_hook(post))
            if self._joint is not None:
                self._joint.hook(self._failed_within)
            if step is None and hasattr(optimizer, "_optimizer_load_state_dict_post_hooks"):
                self._handles.append(optimizer.register_load_state_dict_post_hook(loaded))
        except BaseException:
            self._take_off()
            if self._joint is not None:
                self._joint.unhook()
            raise
        scalers.TAP.install(self)

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        return self._held.optimizer

    @property
    def gone(self) -> bool:
        """Whether the script has dropped the optimizer."""
        return self._held.gone

    def is_on(self, optimizer: torch.optim.Optimizer) -> bool:
        if self.gone:
            return False
        return self.optimizer is optimizer or (self._joint is not None and self._joint.has(optimizer))

    @property
    def stepped(self) -> bool:
        """Whether a step has begun since it is followed."""
        return self.under_way > self._start

    @property
    def is_on_cpu(self) -> bool:
        """Whether there is a tensor that is measured by the host."""
        return self._measurements.is_on_cpu

    def log(self, values: Mapping[str, Value]) -> None:
        """Values for the step that was completed last, or for the next one once its backward has begun."""
        if not losses.TAP.window.is_open and self.recorder.amend(values):
            return
        self._logged.update(values)

    def settle(self) -> None:
        """No further member of a joint optimizer steps before the next backward pass."""
        if self._joint is not None:
            self._joint.settle()

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
            losses.TAP.window.close()

    def _stand_still(self, values: dict[str, Value]) -> None:
        """A step that was skipped, as all are by now, counts as one: its loss shows why, and commands that
        can end it wait for steps. Ranks skip the same steps, and count alike."""
        self.under_way = step = self.completed + 1
        self._settled = False
        if self.control is not None and self.control.pending:
            self.control.apply_due(self._index, step)
        self.completed = step
        self._loss.add_columns(values, losses.TAP.window)
        add_lrs(values, self.optimizer.param_groups)
        if self.control is not None and self._index in self.control.behind:
            self.actuators.loss = values.get("loss")
            self.control.apply_behind(self._index, step)
        self.recorder.add(step, values | self._logged)
        self._logged = {}

    def close(self) -> None:
        """Take the hooks off and undo what is in force. Inside a step the hooks stay, and do nothing."""
        self.settle()
        self.active = False
        if not self._is_inside():
            self._take_off()
        if self._joint is not None:
            self._joint.unhook()
        self._measurements.close()
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
            let_through(error)
            log.warning("optwatch: what the device worked out last is lost: %r", error)

    def _is_inside(self) -> bool:
        """Whether a step is under way: after one that raised there is a depth, and no step. What another
        thread does cannot be seen."""
        if self._depth == 0 or self.gone:
            return False
        thread = self.phases.thread
        if thread != threading.get_ident():
            return thread in sys._current_frames()
        return is_stepping([self.optimizer])

    def _take_off(self) -> None:
        for handle in self._handles:
            handle.remove()

    # --- hooks ----------------------------------------------------------------------------------------

    def _pre(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> Any:
        # Nothing is done for a step that goes into a CUDA graph, and a replay calls no hook.
        if not self.active or (self._on_device and torch.cuda.is_current_stream_capturing()):
            return None
        try:
            began = time.perf_counter()
            if self._depth and is_nested(optimizer):
                self._depth += 1  # a subclass that calls super().step()
                return None
            self._depth = 1
            self._rehearses = bool(kwargs) and is_rehearsal(optimizer)
            if self._rehearses:
                return None
            closure = closure_of(args, kwargs) if kwargs or len(args) > 1 else None
            self._begin(began, closure is not None)
            changed = None
            if closure is not None:
                changed = self._loss.wrap(closure, args, kwargs, self._take_gradients)
            self._spent = time.perf_counter() - began - self._acting
        except BaseException as error:
            if not isinstance(error, Exception) or isinstance(error, ControlLost) or is_the_scripts(error):
                self._interventions.end()  # the step will not be taken
                raise
            self._failed(error)
            return None
        return changed

    def _loaded(self, optimizer: torch.optim.Optimizer) -> None:
        """A checkpoint was loaded. Before the first step, the steps go on where it was saved."""
        try:
            if self.active and not self.stepped:
                self.completed = self.under_way = self._start = steps_so_far(optimizer)
                scalers.TAP.recount(self)
        except Exception as error:  # noqa: BLE001 - never in the way of a script
            let_through(error)
            self._failed(error)

    def _post(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        if not self.active or self._depth == 0:
            return
        self._depth -= 1
        if self._depth or self._rehearses:
            return
        try:
            self._end(optimizer, time.perf_counter())
        except Exception as error:  # noqa: BLE001 - never into the training loop
            let_through(error)
            self._failed(error)
        finally:
            if not self._quiet:
                self._interventions.end()
            self._losses.close()

    def _begin(self, began: float, awaits_closure: bool) -> None:
        self.under_way = self.completed + 1
        self.phases, self._losses = PHASES.here(), losses.TAP.window
        self.phases.enter(STEP, began)
        self._acting = 0.0
        governor, control = self.governor, self.control
        self._quiet = (
            self._settled
            and self._membership.alone
            and not (awaits_closure or governor.wants_norm or governor.wants_sample)
            and not (control is not None and control.pending)
        )
        if not self._quiet:
            self._prepare(self.under_way, awaits_closure)

    def _prepare(self, step: int, awaits_closure: bool) -> None:
        """All that is done before the update of a step that is not quiet."""
        self._settled = False  # until it has ended: it may raise
        if self._joint is not None:  # schedulers may step with each member
            self._lrs = {}
            add_lrs(self._lrs, self._joint.param_groups)
        self._loss.begin(awaits_closure)
        self._must_check = False
        if self.control is not None and self.control.pending:
            # Whatever becomes of it here, another rank may apply it: all look what it did to the replicas.
            self._must_check = any(p.due(self._index, step) for p in self.control.pending)
            self.control.apply_due(self._index, step)
        self._interventions.begin()
        try:
            if self._index == 0 and self.actuators.snapshots.on:
                self.actuators.snapshots.begin(self.completed)
            if self._measurements.begin(step, not self.degraded and not self.reduced):
                began = time.perf_counter()
                self._measurements.begin_sample()
                self._acting += time.perf_counter() - began
        except Exception as error:  # noqa: BLE001 - the step is still counted
            let_through(error)
            self._failed_within(error)
        self._take_gradients()
        if self.actuators.lr_scale.armed and not self.actuators.lr_scale.in_force:
            self._disarm_when_idle()

    def _take_gradients(self) -> None:
        """The gradients are there: act on them where that is in force, see them where they will not stay.

        Also called inside the user's closure.
        """
        interventions, measurements = self._interventions, self._measurements
        try:
            if measurements.keeps_grad is None:
                measurements.look_at_roles()
                interventions.look_at_gradients()
            if interventions.on_gradients:
                began = time.perf_counter()
                interventions.act(self.under_way, self._loss.awaits_closure)
                if self.guard.skipping:
                    measurements.drop_sample()
                self._acting += time.perf_counter() - began
            if not self.degraded and not measurements.keeps_grad:
                began = time.perf_counter()
                measurements.keep_gradients(self.under_way, interventions.clipped is not None)
                self._acting += time.perf_counter() - began
        except Exception as error:  # noqa: BLE001 - never into the training loop
            let_through(error)
            self._failed_within(error)

    def _disarm_when_idle(self) -> None:
        waiting = self.control is not None and any(
            self._index in pending.armed for pending in self.control.pending
        )
        if not waiting:
            self.actuators.lr_scale.disarm()

    def _end(self, optimizer: torch.optim.Optimizer, now: float) -> None:
        """Record the step that is done."""
        step = self.completed = self.under_way
        step_time = now - self._ended if self._ended is not None else None
        values: dict[str, Value] = {}
        self._loss.add_columns(values, self._losses)
        if self._joint is None:
            add_lrs(values, optimizer.param_groups)
        else:
            values.update(self._lrs)
        if step_time is not None:
            values["step_time"] = step_time
        costs, seconds = NOTHING, 0.0
        if not self._quiet or self._measurements.is_called(optimizer, self._loss.leapt):
            costs, seconds = self._look(optimizer, step, step_time, values)
        elif self._logged:
            self._add_logged(values)
        self.recorder.add(step, values)
        self.recorder.arrive()
        if self.stepped_by is not None:
            self.stepped_by(self._index, self._losses.number)
        self._own = self.phases.own
        spent = self._spent + self._losses.take_spent() + self._measurements.take_spent()
        fixed = spent + (time.perf_counter() - now) - seconds
        governor = self.governor
        governor.spent(step_time, fixed, costs)
        if not self._quiet or governor.wants_norm or governor.wants_sample:
            self._look_ahead(step + 1)
        self._ended = ended = time.perf_counter()
        self.phases.enter(FORWARD, ended)

    def _look(
        self,
        optimizer: torch.optim.Optimizer,
        step: int,
        step_time: float | None,
        values: dict[str, Value],
    ) -> tuple[Costs, float]:
        """Tell in a step's row what was done to it, and measure what is due; what that cost, and the seconds
        that it took."""
        interventions, measurements = self._interventions, self._measurements
        if self._quiet:
            measurements.begin(step, may_sample=False)
        if step_time is not None and self.checks.ranks > 1 and self.phases.own > self._own:
            values["arrival"] = self.phases.own - self._own
        interventions.add_columns(values)
        self._add_logged(values)
        clipped = interventions.clipped
        norm_cost = sample_cost = histogram_cost = None
        other_cost = 0.0
        due = self._quiet or (
            not (self.degraded or self.guard.skipping)
            and measurements.due(optimizer, step, clipped is not None, self._loss.leapt)
        )
        began = ended = time.perf_counter()
        if due:
            try:
                with torch.no_grad():
                    norm_cost = measurements.add_norms(values, clipped, self.actuators.scaled)
                    if measurements.sampling:
                        sample_cost = measurements.add_sample(step, values)
                        histogram_cost = measurements.add_histogram(step)
            except Exception as error:  # noqa: BLE001 - the step's other values are still recorded
                let_through(error)
                self._failed(error)
            ended = time.perf_counter()
        if self.forward is not None and self.forward.armed:
            seen, cost = self.forward.take()
            for name, value in seen.items():
                values.setdefault(name, value)  # what was logged overrides
            if sample_cost is not None:
                sample_cost += cost
            else:  # at the first step, say: as a sample's it would make the next ones seem cheap
                other_cost += cost
            ended = time.perf_counter()
        check_cost = self._look_behind(step, step_time, values.get("loss")) + self._check(step, step_time)
        if check_cost:
            ended = time.perf_counter()
        return Costs(norm_cost, sample_cost, histogram_cost, check_cost + other_cost), ended - began

    def _add_logged(self, values: dict[str, Value]) -> None:
        logged, self._logged = self._logged, {}
        values.update(logged)

    def _look_ahead(self, step: int) -> None:
        """Prepare what the step that comes next is to measure of its passes, and see whether the ones behind
        it are quiet."""
        if self.checks.ranks > 1 and not self.degraded:
            self._measurements.arm_local_norm(step)
        if self.forward is not None:
            wanted = not self.degraded and not self.reduced and self._measurements.wants_sample(step)
            if wanted or self.forward.armed:
                self.forward.arm(wanted)
        self._settled = self._is_settled()

    def _is_settled(self) -> bool:
        """Whether there is nothing to do at a step but to tell its loss, LR and time, as long as this rank is
        alone, no measurement is due and no command comes: only those change it."""
        return (
            not self.degraded
            and self._loss.is_plain
            and self._measurements.is_plain
            and not self._interventions.in_force
            and not self.actuators.snapshots.on
            and not (self.forward is not None and self.forward.armed)
            and not (self.control is not None and self._index in self.control.behind)
        )

    def _look_behind(self, step: int, step_time: float | None, loss: Value | None) -> float:
        """What follows the update: commands that wait for it, and a snapshot; the CPU seconds of that."""
        snapshots = self.actuators.snapshots
        waiting = self.control is not None and self._index in self.control.behind
        due = self._index == 0 and snapshots.on and snapshots.due(step, step_time)
        due = due and not (self._joint is not None and self._joint.is_late)
        if not waiting and not due:
            return 0.0
        began = time.thread_time()
        if self.control is not None and waiting:
            self.actuators.loss = loss
            self.control.apply_behind(self._index, step)
        if due:
            try:
                snapshots.take(step, loss)
            except Exception as error:  # noqa: BLE001 - the run goes on without
                let_through(error)
                snapshots.give_up(error)
        return time.thread_time() - began

    def _check(self, step: int, step_time: float | None) -> float:
        """Take checksums where all ranks do; the CPU seconds that took."""
        if self._membership.alone or self.degraded or self._measurements.outdated:
            return 0.0
        try:
            ranks = self._membership.who.world_size
            cost = self.checks.after(
                self.optimizer, step, step_time, ranks, self.recorder.tensors, self._must_check
            )
        except Exception as error:  # noqa: BLE001 - the step's values are still recorded
            let_through(error)
            self._failed(error)
            return 0.0
        self.governor.reserved = self.checks.share + (SHARE if self.actuators.snapshots.on else 0.0)
        return cost

    def _failed_within(self, error: Exception) -> None:
        """The same before the update of a step, which counts all the same: other ranks count it too."""
        depth = self._depth
        self._measurements.drop_sample()
        self._failed(error)
        self._depth = depth

    def _failed(self, error: Exception) -> None:
        """Log once and go on with less: nothing measured, then nothing at all."""
        self._failures += 1
        self._depth = 0
        self._settled = False
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

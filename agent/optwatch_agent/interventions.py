"""What is done to one optimizer's step before its update: its LR is scaled, and its gradients are left out,
clipped or given noise.

A command puts it in force (`actuators`), or it is what attach asked for (`guard`).
"""

import math

import torch

from optwatch_agent import losses
from optwatch_agent.actuators import Actuators
from optwatch_agent.guard import Guard
from optwatch_agent.loose import Loose
from optwatch_agent.recorder import Recorder, Value


class Interventions:
    """Applies what is in force to each step, and tells what it was. All of it is the training thread's."""

    def __init__(
        self, optimizer: torch.optim.Optimizer, actuators: Actuators, guard: Guard, recorder: Recorder
    ) -> None:
        self.clipped: tuple[Value, Value] | None = None
        """The global norm of the step's gradients before a clip of a command or the guard on the host, and
        after it; None where there was none."""
        self._held = Loose(optimizer)
        self._actuators = actuators
        self._lr_scale = actuators.lr_scale
        self._guard = guard
        self._recorder = recorder
        self._factor: float | None = None
        self._noise: float | None = None

    def begin(self) -> None:
        """A step begins."""
        self._factor = self._lr_scale.enter()
        self.clipped = self._noise = None
        if self._guard.on or self._guard.skipping:
            self._guard.end()

    def end(self) -> None:
        """The step is over."""
        if self._factor is not None:
            self._lr_scale.leave()
        self.clipped = self._factor = self._noise = None
        if self._guard.on or self._guard.skipping:
            self._guard.end()

    def look_at_gradients(self) -> None:
        """See what kind the gradients are, at the first step."""
        self._actuators.look_at_gradients()
        if self._guard.on and self._actuators.unsummed:
            self._guard.give_up("the gradients are yet to be summed over ranks when the optimizer steps")
        if self._guard.on_device is not None and self._actuators.sparse:
            self._guard.give_up("there are sparse gradients, on a device")

    @property
    def in_force(self) -> bool:
        """Whether anything is done to steps."""
        scale = self._lr_scale
        return self.on_gradients or self._guard.skipping or scale.in_force or scale.armed

    @property
    def on_gradients(self) -> bool:
        """Whether anything is in force that acts on gradients."""
        return self._actuators.max_norm is not None or self._actuators.noise is not None or self._guard.on

    def act(self, step: int, awaits_closure: bool) -> None:
        """Skip the step, clip its gradients or give them noise, where guard or command say so.

        `awaits_closure`: those that it will take are yet to come, within it.
        """
        guard, actuators = self._guard, self._actuators
        if guard.on and guard.collective and losses.TAP.window.scales:
            guard.give_up(
                "a GradScaler may skip the step on one rank, and the others would wait for its norm"
            )
        optimizer = self._held.optimizer
        decides = guard.on and not awaits_closure and getattr(optimizer, "found_inf", None) is None
        try:
            if decides and guard.on_device is not None:
                guard.act_on_device(optimizer, step)
                decides = False
            if actuators.max_norm is not None and actuators.there:
                self._clip_there()
            elif decides or actuators.max_norm is not None:
                self._guard_and_clip(step, decides)
        except Exception as error:
            if guard.on and guard.collective:  # the other ranks may be gone
                guard.give_up(f"the norm of all ranks failed: {error}")
            raise
        if actuators.noise is not None and not awaits_closure and not guard.skipping:
            self._noise = actuators.noise.add(optimizer, step)

    def _clip_there(self) -> None:
        """Clip gradients on a device, and hear later to what."""
        before, after, limit = self._actuators.clip_there()
        self.clipped = before, after
        if limit is not None:
            self._recorder.expect(limit, self._actuators.hear_limit)

    def _guard_and_clip(self, step: int, decides: bool) -> None:
        """`decides`: the guard has a say."""
        guard, actuators = self._guard, self._actuators
        norm = actuators.norm()
        if decides and guard.skips:
            if not math.isfinite(norm):
                guard.skip(self._held.optimizer, step)
                if guard.skipping:
                    return
            else:
                guard.passes()
        adaptive = guard.adaptive if decides else None
        limits = [actuators.max_norm, adaptive.limit if adaptive is not None else None]
        limit = min((each for each in limits if each is not None), default=None)
        if limit is not None:
            before, norm = actuators.clip(limit, norm)
            self.clipped = before, norm
            actuators.see_clipped(norm)
        if adaptive is not None:
            adaptive.see(norm)

    def add_columns(self, values: dict[str, Value]) -> None:
        """Tell in the step's row what was in force."""
        guard = self._guard
        if self._factor is not None:
            self._lr_scale.add_columns(values)
            values["lr_scale"] = self._factor
        if self._actuators.max_norm is not None:
            values["clip"] = self._actuators.max_norm
        if self._noise is not None:
            values["noise_std"] = self._noise
        if guard.adaptive is not None and guard.adaptive.limit is not None:
            values["guard_clip"] = guard.adaptive.limit
        if guard.skipping:
            values["guard_skips"] = float(guard.skipped)
            if not _is_finite(values.get("loss")):
                del values["loss"]  # it did nothing, as under a GradScaler that skips; an event tells of it


def _is_finite(value: Value | None) -> bool:
    """Whether a number is known to be finite, or is none that is known."""
    return not isinstance(value, float) or math.isfinite(value)

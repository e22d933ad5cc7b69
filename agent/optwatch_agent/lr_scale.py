"""A factor on the LR that is there during a step only, so that schedulers and checkpoints never see it.

`enter` multiplies the groups' lr before the update and `leave` puts it back after. Only a wrapper of
`step` can put it back when the step raises; it is there while a factor is in force.
"""

import functools
import numbers
import types
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from optwatch_agent.joint import Joint, members_of
from optwatch_agent.loose import Loose
from optwatch_agent.recorder import Value
from optwatch_agent.tensors import on_cpu

_MOST_GROUPS = 64
"""Groups whose LR is told."""


class Scaled(NamedTuple):
    """A group whose lr is multiplied."""

    group: dict[str, Any]
    lr: Any
    """What it holds: a number, or the tensor that is multiplied in place."""
    scheduled: Any
    scaled: Any


class LrScale:
    """The factor on one optimizer's LR."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.target = 1.0
        self.in_force = False
        self._held = Loose(optimizer)
        self._from = 1.0
        self._ramp = 0
        self._ramp_done = 0
        self._warmup = 0
        self._warmup_done = 0
        self._saved: dict[int, list[Scaled]] = {}
        """By the id of a member whose lr is multiplied now."""
        self._wrappers: list[tuple[types.MethodType, Any]] = []
        """What stands for `step` of each member, and what was set there before."""
        self._inside = False
        self._of_step: float | None = None
        """The factor of the step that is under way."""
        if isinstance(optimizer, Joint):
            optimizer.listeners.append(self)

    @property
    def _optimizer(self) -> torch.optim.Optimizer:
        return self._held.optimizer

    @property
    def factor(self) -> float:
        """The factor of the step that is under way or comes next."""
        factor = self.target
        if self._ramp_done < self._ramp:
            part = (self._ramp_done + 1) / (self._ramp + 1)
            factor = self._from + (self.target - self._from) * part
        if self._warmup_done < self._warmup:
            factor *= (self._warmup_done + 1) / (self._warmup + 1)
        return factor

    @property
    def ready(self) -> bool:
        """Whether the step that is under way came through the wrapper."""
        return self._inside

    @property
    def armed(self) -> bool:
        return bool(self._wrappers)

    def go_to(self, target: float, ramp: int) -> None:
        """Move the factor to `target` in `ramp` further steps, linearly; 0: at once."""
        self._from, self.target = self.factor if self.in_force else 1.0, target
        self._ramp, self._ramp_done = ramp, 0
        self._look()

    def warm_up(self, steps: int) -> None:
        """Begin with a small LR that rises to the full one over `steps` steps."""
        self._warmup, self._warmup_done = steps, 0
        self._look()

    def _look(self) -> None:
        """See whether any of it is in force."""
        ramps = self._ramp_done < self._ramp or self._warmup_done < self._warmup
        self.in_force = self.target != 1.0 or ramps

    def add_columns(self, values: dict[str, Value]) -> None:
        """Tell in a step's row the lr of each group as the schedule has it, while the factor is in."""
        if self._saved:
            scheduled = {id(each.group): each.scheduled for saved in self._saved.values() for each in saved}
            groups = self._optimizer.param_groups
            add_lrs(values, [{"lr": scheduled.get(id(group), group.get("lr"))} for group in groups])

    def enter(self) -> float | None:
        """Multiply the lr for the step that begins; the factor, None where none is in force."""
        self.leave()  # a step that raised was not left
        if not self.in_force:
            return None
        factor = self._of_step = self.factor
        self._ramp_done = min(self._ramp_done + 1, self._ramp)
        self._warmup_done = min(self._warmup_done + 1, self._warmup)
        self._look()
        if not isinstance(self._optimizer, Joint):
            self._multiply(self._optimizer)
        return factor

    @property
    def listens(self) -> bool:
        """Whether the members of a joint optimizer take their steps by a factor, one by one: in between a
        scheduler may step."""
        return self._of_step is not None

    def before_member(self, member: torch.optim.Optimizer, number: int) -> None:
        """A member of it steps."""
        self._multiply(member)

    def after_member(self, member: torch.optim.Optimizer, number: int) -> None:
        """It has."""
        self._put_back(id(member))

    def leave(self) -> None:
        """Put the scheduled lr back."""
        self._of_step = None
        for member in tuple(self._saved):
            self._put_back(member)

    def _multiply(self, member: torch.optim.Optimizer) -> None:
        if (factor := self._of_step) is None:
            return
        self._put_back(id(member))
        saved = self._saved.setdefault(id(member), [])
        kept: dict[int, Scaled] = {}  # groups may share one tensor
        for group in member.param_groups:
            lr = group["lr"]
            if not isinstance(lr, Tensor):
                saved.append(Scaled(group, lr, lr, lr * factor))
                group["lr"] = saved[-1].scaled
            elif (former := kept.get(id(lr))) is not None:
                saved.append(former._replace(group=group))
            else:
                with torch.no_grad():
                    # Noted before it is done: a signal handler may raise in between.
                    kept[id(lr)] = each = Scaled(group, lr, lr.detach().clone(), lr.detach() * factor)
                    saved.append(each)
                    lr.copy_(each.scaled)

    def _put_back(self, member: int) -> None:
        back: set[int] = set()  # tensors that are
        with torch.no_grad():  # and without waiting for a device
            for group, lr, scheduled, scaled in self._saved.get(member, ()):
                now = group.get("lr")
                follows = _followed(scheduled, scaled, now)
                if isinstance(lr, Tensor) and id(lr) not in back:
                    back.add(id(lr))
                    lr.copy_(follows if now is lr else scheduled)
                if "lr" in group and not (now is lr and isinstance(lr, Tensor)):
                    group["lr"] = follows
        self._saved.pop(member, None)

    def arm(self) -> None:
        """Wrap `step` so that the lr comes back also when it raises."""
        wrapped = {id(wrapper.__self__) for wrapper, _ in self._wrappers}
        for member in members_of(self._optimizer):
            if id(member) not in wrapped:
                former = vars(member).get("step")
                self._wrappers.append((self._wrap(member), former))

    def _wrap(self, member: Any) -> types.MethodType:
        former = member.step
        scale = self

        @functools.wraps(former.__func__ if isinstance(former, types.MethodType) else former)
        def step(self: Any, *args: Any, **kwargs: Any) -> Any:
            scale._inside = True
            try:
                return former(*args, **kwargs)
            finally:
                scale._inside = False
                scale._put_back(id(member))

        # A bound method: schedulers take `step.__func__`, which a plain function has not.
        wrapper = types.MethodType(step, member)
        member.step = wrapper
        return wrapper

    def disarm(self) -> None:
        """Take the wrapper off once nothing is in force; under somebody else's it stays and does nothing."""
        if not self._wrappers or self.in_force:
            return
        kept = []
        for wrapper, former in self._wrappers:
            member: Any = wrapper.__self__
            if vars(member).get("step") is not wrapper:
                kept.append((wrapper, former))
            elif former is not None:
                member.step = former
            else:
                del member.step
        self._wrappers = kept

    def release(self) -> None:
        """Leave no trace."""
        self.leave()
        self.target, self._ramp, self._warmup = 1.0, 0, 0
        self._look()
        self.disarm()


def _followed(scheduled: Any, scaled: Any, now: Any) -> Any:
    """The lr as scheduled, after a step that may have changed it. Nearer to the scaled one it was changed in
    proportion, as by optimizers that let it decay themselves; else it was set, and stays."""
    if isinstance(now, Tensor):
        ratio = now / scaled
        in_proportion = abs(ratio - 1) < abs(now / scheduled - 1)
        changed = torch.where(in_proportion, scheduled * ratio, now)
        return torch.where(now == scaled, scheduled, changed)
    if now == scaled:  # exactly what it was
        return scheduled
    if not (isinstance(now, numbers.Real) and scheduled and scaled):
        return now
    ratio = now / scaled
    return scheduled * ratio if abs(ratio - 1) < abs(now / scheduled - 1) else now


def add_lrs(values: dict[str, Value], groups: Sequence[dict[str, Any]]) -> None:
    """Tell in a step's row the lr of each group, NaN where it is none; of the first where there are many,
    as with one for each parameter."""
    for i, group in enumerate(groups[:_MOST_GROUPS]):
        lr = group.get("lr")
        values[f"lr/{i}" if i else "lr"] = lr if type(lr) is float else _number(lr)


def _number(lr: Any) -> Value:
    if isinstance(lr, Tensor):
        return float(lr.item()) if on_cpu(lr) else lr.detach().clone()
    return float(lr) if isinstance(lr, numbers.Real) else float("nan")

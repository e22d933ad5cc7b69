"""What is measured of a joint optimizer's step: each member by itself, whose gradients the script may drop as
soon as it has stepped. The norms and statistics of all are put together when the step is over."""

import math
import time
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from optwatch_agent import clips, device_norms, histograms, probe
from optwatch_agent.before import Before
from optwatch_agent.device_sums import Tools
from optwatch_agent.gradients import as_columns, norm_of
from optwatch_agent.joint import Joint
from optwatch_agent.parts import Parts
from optwatch_agent.probe import Joined, Sample, Taken
from optwatch_agent.recorder import Value
from optwatch_agent.roles import roles_of
from optwatch_agent.shards import is_partial


class Piecemeal:
    """Measures the members of one joint optimizer as they step."""

    def __init__(self, joint: Joint, tools: Tools) -> None:
        self.norm_cost = self.sample_cost = self.histogram_cost = 0.0
        """CPU seconds that the step which is under way has taken so far."""
        self._joint = joint
        self._tools = tools
        self._norm = self._sample = self._histogram = False
        self._norms: list[tuple[int, Value]] = []
        self._clip: clips.Seen | None = None
        """The user's clipping of all gradients, where they are there before the first member steps."""
        self._keeps_grad = True
        """Whether the gradients can be read after a step, which unscales those that a GradScaler has not."""
        self._known = True
        """Whether there is a norm of every gradient so far."""
        self._before: dict[int, Before] = {}
        self._taken: dict[int, Taken | Joined] = {}
        self._counts: dict[int, histograms.Counts] = {}
        self._first: dict[int, int] = {}
        """The index of each member's first parameter among those of all, by the member's number."""
        joint.listeners.append(self)

    def begin(self, norm: bool, sample: bool, histogram: bool) -> None:
        """A step begins of which these are wanted."""
        self._norm, self._sample, self._histogram = norm, sample, histogram
        self._norms, self._known = [], True
        self._before, self._taken, self._counts = {}, {}, {}
        self.norm_cost = self.sample_cost = self.histogram_cost = 0.0
        if norm or sample:
            self._keeps_grad = roles_of(self._joint).keeps_grad
            params = _params(self._joint)
            self._clip = clips.TAP.take([param for param in params if param.grad is not None])
            first = 0
            for number, member in self._joint.numbered:
                self._first[number] = first
                first += len(_params(member))

    def norms(self, parts: Parts | None) -> dict[str, Value]:
        """The norm of all gradients, or the parts of it; nothing where it is not known."""
        if not (self._known and self._norms):
            return {}
        if parts is not None:
            return parts.of_norms(self._norms)
        return as_columns(device_norms.joined([norm for _, norm in self._norms]), self._clip)

    def taken(self) -> "Together":
        """The measurements of all members. Of those that did not step, their parameters and moments."""
        taken, stepped = [], []
        for number, member in self._joint.numbered:
            stepped.append(number in self._taken)
            taken.append(
                self._taken[number]
                if stepped[-1]
                else probe.take(member, _params(member), roles_of(member), grads={}, tools=self._tools)
            )
        return Together(taken, stepped)

    def counts(self) -> histograms.Counts:
        """The histograms of all gradients, as of `histograms.measure`."""
        return np.concatenate(
            [
                self._counts[number] if number in self._counts else histograms.measure(_params(member), {})
                for number, member in self._joint.numbered
            ]
        )

    # --- by member ------------------------------------------------------------------------------------

    @property
    def listens(self) -> bool:
        """Whether anything is measured."""
        return self._norm or self._sample

    def before_member(self, member: torch.optim.Optimizer, number: int) -> None:
        """Measure what is gone after the update."""
        if self._norm and not self._keeps_grad:
            self._add_norms(member, number)
        if self._sample:
            before = self._before[number] = Before()
            before.copy_params(member)
            before.see_grads(member)
            self.sample_cost += before.cost

    def _add_norms(self, member: torch.optim.Optimizer, number: int) -> None:
        began = time.thread_time()
        with torch.no_grad():
            for i, param in enumerate(_params(member), self._first[number]):
                if (grad := param.grad) is not None:
                    norm = None if is_partial(grad) else norm_of([grad])
                    if norm is None:
                        self._known = False
                    else:
                        self._norms.append((i, norm))
        self.norm_cost += time.thread_time() - began

    def after_member(self, member: torch.optim.Optimizer, number: int) -> None:
        """Measure all the rest, before the script drops the gradient."""
        if self._norm and self._keeps_grad:
            self._add_norms(member, number)
        if not self._sample or (before := self._before.get(number)) is None:
            return
        began = time.thread_time()
        params = _params(member)
        with torch.no_grad():
            after = probe.take(
                member, params, roles_of(member), before.differences(params), before.grads, self._tools
            )
            self._taken[number] = after if before.measured is None else Joined(after, before.measured)
        self.sample_cost += time.thread_time() - began
        if self._histogram:
            began = time.thread_time()
            self._counts[number] = histograms.measure(params, before.grads)
            self.histogram_cost += time.thread_time() - began
        before.params, before.grads, before.measured = {}, None, None


class Together:
    """The measurements of all members, as one."""

    def __init__(self, taken: Sequence[Taken | Joined], stepped: Sequence[bool]) -> None:
        self._taken = taken
        self._stepped = stepped
        there = [each.numbers for each in taken if each.numbers is not None]
        home = there[0].device if there else None
        self.numbers = torch.cat([each.to(home, non_blocking=True) for each in there]) if there else None
        """As of `Taken`."""

    def sample(self, arrived: Sequence[float] = ()) -> Sample:
        """What it comes to; with the numbers, when they have arrived."""
        samples, start = [], 0
        for each in self._taken:
            end = start if each.numbers is None else start + len(each.numbers)
            samples.append(each.sample(arrived[start:end]))
            start = end
        updates = [sample.update_norm for sample, did in zip(samples, self._stepped, strict=True) if did]
        return Sample(
            stats=np.concatenate([sample.stats for sample in samples]),
            counts=np.concatenate([sample.counts for sample in samples]),
            param_norm=_joined([sample.param_norm for sample in samples]),
            update_norm=_joined(updates),
        )


def _joined(norms: Sequence[float | None]) -> float | None:
    known = [norm for norm in norms if norm is not None]
    return math.hypot(*known) if len(known) == len(norms) else None


def _params(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [param for group in optimizer.param_groups for param in group["params"]]

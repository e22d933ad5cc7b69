"""What is measured of a joint optimizer's step: each member by itself, whose gradients the script may drop as
soon as it has stepped. The norms and statistics of all are put together when the step is over."""

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from optwatch.wire.messages import COUNTS, STATS
from optwatch_agent import clips, device_norms, histograms, probe
from optwatch_agent.before import Before, needs_copies
from optwatch_agent.device_sums import Tools
from optwatch_agent.gradients import as_columns, norm_of
from optwatch_agent.joint import Joint
from optwatch_agent.parts import Parts
from optwatch_agent.probe import Bare, Sample, Taken
from optwatch_agent.recorder import Value
from optwatch_agent.roles import Roles, roles_of
from optwatch_agent.shards import is_partial
from optwatch_agent.tensors import params_of

_SMALL = 1 << 14
"""Elements of a gradient that may wait for others: to measure one by itself takes longer than many."""
_MOST_WAITING = 1 << 20
"""Elements of gradients that wait at most, as copies."""


class Waiting(NamedTuple):
    """A member that has stepped and is measured together with others."""

    first: int
    """The index of its parameter among those of all."""
    group: Mapping[str, Any]
    """Its options as they were."""
    param: Tensor
    state: Any
    grad: Tensor
    """A copy: the script may do to its gradient what it likes."""
    memory: list[int]
    """Where parameter and state are: with others in their places, the script keeps them elsewhere."""


class Piecemeal:
    """Measures the members of one joint optimizer as they step."""

    def __init__(self, joint: Joint, tools: Tools) -> None:
        self.norm_cost = self.sample_cost = self.histogram_cost = 0.0
        """CPU seconds that the step which is under way has taken so far."""
        self._joint = joint
        self._tools = tools
        self._norm = self._sample = self._histogram = False
        self._roles = Roles()
        self._clip: clips.Seen | None = None
        """The user's clipping of all gradients, where they are there before the first member steps."""
        self._norms: list[tuple[int, Value]] = []
        self._known = True
        """Whether there is a norm of every gradient so far."""
        self._waiting: list[Waiting] = []
        self._elements = 0
        """Of the gradients that wait."""
        self._stepped: set[int] = set()
        """Members that have stepped."""
        self._lost: set[int] = set()
        """Parameters whose memory the script has freed before they were measured, by index."""
        self._before: dict[int, Before] = {}
        self._seen: list[Part] = []
        self._counts: list[tuple[list[int], histograms.Counts]] = []
        """Histograms of parameters, by index."""
        self._places: dict[int, list[int]] = {}
        """The indices of each member's parameters among those of all, by the member's number."""
        joint.listeners.append(self)

    def begin(self, norm: bool, sample: bool, histogram: bool) -> None:
        """A step begins of which these are wanted."""
        self._norm, self._sample, self._histogram = norm, sample, histogram
        self._norms, self._known = [], True
        self._waiting, self._elements, self._stepped, self._lost = [], 0, set(), set()
        self._before, self._seen, self._counts = {}, [], []
        self.norm_cost = self.sample_cost = self.histogram_cost = 0.0
        if norm or sample:
            self._roles = roles_of(self._joint)
            self._clip = clips.TAP.take([p for p in params_of(self._joint) if p.grad is not None])
            self._places, first = {}, 0
            for number, member in self._joint.numbered:
                end = first + len(params_of(member))
                self._places[number] = [*range(first, end)]
                first = end

    def norms(self, parts: Parts | None) -> dict[str, Value]:
        """The norm of all gradients, or the parts of it; nothing where it is not known."""
        if not (self._known and self._norms):
            return {}
        if parts is not None:
            return parts.of_norms(self._norms)
        return as_columns(device_norms.joined([norm for _, norm in self._norms]), self._clip)

    def take_spent(self) -> float:
        """Seconds that following the members took since the last call, without what was measured of them."""
        measured = self.norm_cost + self.sample_cost + self.histogram_cost
        return max(self._joint.take_spent() - measured, 0.0)

    def finish(self) -> float:
        """Measure what still waits; the seconds that the norm took, and to follow the members for it."""
        following = self.take_spent()
        self._measure_waiting()
        return following + self.norm_cost

    def taken(self) -> "Together":
        """The measurements of all members. Of those that did not step, their parameters and moments."""
        for number, member in self._joint.numbered:
            places, params = self._places.get(number, []), params_of(member)
            if number in self._stepped or len(places) != len(params):
                continue
            if all(0 not in _memory(param, member.state.get(param)) for param in params):
                taken = probe.take(member, params, self._roles, grads={}, tools=self._tools)
                self._seen.append(Part(places, taken, stepped=False))
            else:
                self._lost.update(places)
        return Together(self._seen, sum(map(len, self._places.values())), whole=not self._lost)

    def counts(self) -> histograms.Counts:
        """The histograms of all gradients, as of `histograms.measure`."""
        out = histograms.measure(params_of(self._joint), {})
        for places, counts in self._counts:
            out[places] = counts
        return out

    # --- by member ------------------------------------------------------------------------------------

    @property
    def listens(self) -> bool:
        """Whether anything is measured."""
        return self._norm or self._sample

    def before_member(self, member: torch.optim.Optimizer, number: int) -> None:
        """Measure what is gone after the update."""
        if number in self._stepped:  # before, in this step of all
            return
        if self._norm and not self._roles.keeps_grad:
            self._add_norms(member, number)
        if self._sample and needs_copies(self._roles):
            before = self._before[number] = Before()
            before.copy_params(member)
            before.see_grads(member)
            self.sample_cost += before.cost

    def after_member(self, member: torch.optim.Optimizer, number: int) -> None:
        """Measure all the rest, before the script drops the gradient."""
        if number in self._stepped or number not in self._places:
            return
        self._stepped.add(number)
        before = self._before.pop(number, None)
        if before is None and (waiting := self._as_waiting(member, number)) is not None:
            self._waiting.append(waiting)
            self._elements += waiting.grad.numel()
            if self._elements > _MOST_WAITING:
                self._measure_waiting()
            return
        if self._norm and self._roles.keeps_grad:
            self._add_norms(member, number)
        if self._sample:
            self._measure(member, number, before)

    def _as_waiting(self, member: torch.optim.Optimizer, number: int) -> Waiting | None:
        """A member whose gradient can wait: one small plain tensor."""
        group = member.param_groups[0]
        if not self._roles.keeps_grad or len(self._places[number]) != 1:
            return None
        if any(isinstance(option, Tensor) for option in group.values()):
            return None
        (param,) = group["params"]
        grad = param.grad
        if type(grad) is not Tensor or grad.layout is not torch.strided or grad.numel() > _SMALL:
            return None
        options = {key: option for key, option in group.items() if key != "params"}
        state = member.state.get(param)
        with torch.no_grad():
            copy, memory = grad.clone(), _memory(param, state)
            return Waiting(self._places[number][0], options, param, state, copy, memory)

    def _measure_waiting(self) -> None:
        waiting, self._waiting, self._elements = self._waiting, [], 0
        if not waiting:
            return
        began = time.thread_time()
        with torch.no_grad():
            if self._norm:
                norm = norm_of([each.grad for each in waiting])
                self._known = self._known and norm is not None
                if norm is not None:
                    self._norms.append((waiting[0].first, norm))
            now = time.thread_time()
            self.norm_cost += now - began
            if not self._sample:
                return
            self._lost.update(
                each.first for each in waiting if _memory(each.param, each.state) != each.memory
            )
            waiting = [each for each in waiting if each.first not in self._lost]
            places = [each.first for each in waiting]
            grads = {i: each.grad for i, each in enumerate(waiting)}
            params = [each.param for each in waiting]
            groups = [{**each.group, "params": [each.param]} for each in waiting]
            bare = Bare(groups, {each.param: each.state for each in waiting})
            taken = probe.take(bare, params, self._roles, grads=grads, tools=self._tools)
            self._seen.append(Part(places, taken, stepped=True))
            began = time.thread_time()
            self.sample_cost += began - now
            if self._histogram:
                self._counts.append((places, histograms.measure(params, grads)))
                self.histogram_cost += time.thread_time() - began

    def _add_norms(self, member: torch.optim.Optimizer, number: int) -> None:
        began = time.thread_time()
        with torch.no_grad():
            for i, param in zip(self._places.get(number, ()), params_of(member), strict=False):
                if (grad := param.grad) is not None:
                    norm = None if is_partial(grad) else norm_of([grad])
                    if norm is None:
                        self._known = False
                    else:
                        self._norms.append((i, norm))
        self.norm_cost += time.thread_time() - began

    def _measure(self, member: torch.optim.Optimizer, number: int, before: Before | None) -> None:
        began = time.thread_time()
        before = before or Before()
        with torch.no_grad():
            taken = before.take(member, self._roles, self._tools)
        self._seen.append(Part(self._places[number], taken, stepped=True))
        now = time.thread_time()
        self.sample_cost += now - began
        if self._histogram:
            self._counts.append((self._places[number], histograms.measure(params_of(member), before.grads)))
            self.histogram_cost += time.thread_time() - now


class Part(NamedTuple):
    """A measurement of some parameters, by index, and whether they were stepped."""

    places: list[int]
    taken: Taken
    stepped: bool


class Together:
    """The measurements of all members, as one."""

    def __init__(self, parts: Sequence[Part], total: int, whole: bool) -> None:
        """`total`: parameters that there are; `whole`: all of them were measured."""
        self._whole = whole
        self._parts = parts
        self._total = total
        self.numbers = probe.on_one_device([part.taken.numbers for part in parts])
        """As of `Taken`."""

    def sample(self, arrived: Sequence[float] = ()) -> Sample:
        """As of `Taken`."""
        stats = np.full((self._total, len(STATS)), np.nan, np.float32)
        counts = np.zeros((self._total, len(COUNTS)), np.uint64)
        of_params, of_updates = [], []
        start = 0
        for places, taken, stepped in self._parts:
            end = start if taken.numbers is None else start + len(taken.numbers)
            sample = taken.sample(arrived[start:end])
            stats[places], counts[places] = sample.stats, sample.counts
            of_params.append(sample.param_norm)
            if stepped:
                of_updates.append(sample.update_norm)
            start = end
        if not self._whole:
            return Sample(stats, counts, None, None)
        return Sample(stats, counts, _joined(of_params), _joined(of_updates))


def _memory(param: Tensor, state: Any) -> list[int]:
    """Where a parameter and its state are in memory, 0 for one whose memory was freed."""
    held = [param, *(state.values() if isinstance(state, Mapping) else ())]
    plain = [each for each in held if type(each) in (Tensor, torch.nn.Parameter) and not each.is_meta]
    return [each.data_ptr() if each.numel() else 1 for each in plain]


def _joined(norms: Sequence[float | None]) -> float | None:
    known = [norm for norm in norms if norm is not None]
    return math.hypot(*known) if len(known) == len(norms) else None

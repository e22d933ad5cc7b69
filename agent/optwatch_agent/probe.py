"""Statistics of every tensor of one optimizer, measured after a step from gradients, state and parameters.

What the compiled pass can read goes through it in one call; the rest, and all where it is not there,
takes the base path. What is on a device is measured there, and the sample is whole when that has arrived.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from optwatch.wire.messages import COUNTS, STATS
from optwatch_agent import blocks, device_norms
from optwatch_agent.device_sums import DeviceSums, Tools
from optwatch_agent.norms import squares
from optwatch_agent.pieces import Reader
from optwatch_agent.roles import Roles
from optwatch_agent.shards import is_partial
from optwatch_agent.sums import Sample, Sums
from optwatch_agent.table import table as table_for
from optwatch_agent.tensors import local, on_cpu, on_device
from optwatch_agent.updates import nadam

__all__ = [
    "Bare",
    "Gradients",
    "Joined",
    "Sample",
    "Taken",
    "measure",
    "on_one_device",
    "take",
    "take_gradients",
]


class Taken(Protocol):
    """A measurement."""

    @property
    def numbers(self) -> Tensor | None:
        """What devices have yet to work out, float64[…] on one of them."""

    def sample(self, arrived: Sequence[float] = ()) -> Sample:
        """What it comes to; with the numbers, when they have arrived."""


class Known(NamedTuple):
    """A measurement of which nothing is open."""

    of: Sample
    numbers: None = None

    def sample(self, arrived: Sequence[float] = ()) -> Sample:
        """As of `Taken`."""
        return self.of


@dataclass
class AddedUp:
    """A measurement of which sums are known."""

    numbers: Tensor | None
    """As of `Taken`."""
    _sums: Sums
    _there: DeviceSums
    _updates: list[int]
    _knows_updates: bool

    def sample(self, arrived: Sequence[float] = ()) -> Sample:
        """As of `Taken`."""
        sums = self._sums
        if self.numbers is not None:
            updates, numbers = arrived[: len(self._updates)], arrived[len(self._updates) :]
            for i, norm in zip(self._updates, updates, strict=True):
                sums.add("update", i, norm**2)
            self._there.put(sums, numbers)
        sample = sums.sample()
        return sample if self._knows_updates else sample._replace(update_norm=None)


_OF_GRADIENTS = [STATS.index(name) for name in ("grad_rms", "grad_max")]
_COUNTS_OF_GRADIENTS = [COUNTS.index(name) for name in ("grad_zeros", "grad_nonfinite")]


@dataclass(frozen=True)
class Gradients:
    """What was measured of gradients before a step that overwrites them."""

    _total: int
    _where: list[int]
    """The indices of their parameters, of so many."""
    _taken: Taken

    @property
    def numbers(self) -> Tensor | None:
        return self._taken.numbers

    def put(self, sample: Sample, arrived: Sequence[float]) -> None:
        """Add them to a sample that was taken after the step, of the same parameters."""
        if len(sample.stats) != self._total:
            return
        found = self._taken.sample(arrived)
        for into, of, columns in (
            (sample.stats, found.stats, _OF_GRADIENTS),
            (sample.counts, found.counts, _COUNTS_OF_GRADIENTS),
        ):
            into[np.ix_(self._where, columns)] = of[:, columns]


class Joined:
    """A measurement after a step together with that of the gradients before it."""

    def __init__(self, taken: Taken, gradients: Gradients) -> None:
        self._taken, self._gradients = taken, gradients
        self.numbers = on_one_device([gradients.numbers, taken.numbers])
        """As of `Taken`."""

    def sample(self, arrived: Sequence[float] = ()) -> Sample:
        """As of `Taken`."""
        early = 0 if self._gradients.numbers is None else len(self._gradients.numbers)
        sample = self._taken.sample(arrived[early:])
        self._gradients.put(sample, arrived[:early])
        return sample


def measure(
    optimizer: torch.optim.Optimizer,
    params: Sequence[Tensor],
    roles: Roles,
    updates: Mapping[int, Tensor] | None = None,
    grads: Mapping[int, Tensor] | None = None,
) -> Sample:
    """Measure T parameters after a step and wait for the result; arguments as of `take`."""
    taken = take(optimizer, params, roles, updates, grads)
    return taken.sample([] if taken.numbers is None else taken.numbers.tolist())


def take_gradients(params: Sequence[Tensor], tools: Tools | None = None) -> Gradients:
    """Measure the gradients of T parameters before a step that overwrites them."""
    where, tensors, grads = [], [], []
    for i, param in enumerate(params):
        if (grad := param.grad) is not None:
            where.append(i)
            # A sparse gradient has fewer values than elements.
            tensors.append(grad if grad.layout is torch.strided else param)
            grads.append(grad)
    bare = Bare([{"params": tensors}], {})
    taken = take(bare, tensors, Roles(), grads=dict(enumerate(grads)), tools=tools)
    return Gradients(len(params), where, taken)


class Bare:
    """Stands for an optimizer with such groups and state."""

    def __init__(self, groups: list[dict[str, Any]], state: dict[Tensor, Any]) -> None:
        self.param_groups = groups
        self.state = state


def take(
    optimizer: torch.optim.Optimizer | Bare,
    params: Sequence[Tensor],
    roles: Roles,
    updates: Mapping[int, Tensor] | None = None,
    grads: Mapping[int, Tensor] | None = None,
    tools: Tools | None = None,
) -> Taken:
    """Measure T parameters after a step. `updates`: those that were seen as a difference, by index.

    Reads the gradients as they are now: after a step, those that the optimizer used. Where the step
    overwrites them, `grads` holds those that were kept, by index; of other parameters their own values and
    the moments are measured then, and nothing that takes both these and a gradient.
    """
    rest: list[_Rest] = []
    table = table_for(roles, overwritten=grads is not None)
    for group, places, of_group in _alike(optimizer.param_groups, roles):
        reader = Reader(group, roles)
        given = [p.grad if grads is None else grads.get(i) for i, p in zip(places, of_group, strict=True)]
        states = [state if isinstance(state := optimizer.state.get(p), dict) else {} for p in of_group]
        taken = set(() if table is None else table.take(places, reader, of_group, given, states))
        if len(taken) < len(places):
            members = zip(places, of_group, given, states, strict=True)
            rest.append((reader, group, [member for member in members if member[0] not in taken]))
    if table is not None and grads is None and not rest and not updates:
        return Known(table.sample())
    sums = Sums(len(params))
    if table is not None:
        table.add_to(sums)
    there = DeviceSums(roles, tools or Tools())
    with torch.no_grad():
        _measure_rest(sums, rest, there, roles, overwritten=grads is not None)
        seen_there = _measure_updates(sums, updates or {})
        norms = device_norms.norms([*seen_there.values()]) if seen_there else None
        numbers = on_one_device([norms, *there.launch()])
    # Of a gradient that was not kept it is not known whether there was one, and so an update.
    kept = grads is None or len(grads) == len(params)
    return AddedUp(numbers, sums, there, [*seen_there], kept)


_Rest = tuple[Reader, Mapping[str, Any], list[tuple[int, Tensor, Tensor | None, dict[str, Any]]]]
"""Parameters that the compiled pass does not read: what reads their state, their group, and of each its
number, itself, its gradient and its state."""


def _measure_rest(
    sums: Sums, rest: Sequence[_Rest], there: DeviceSums, roles: Roles, overwritten: bool
) -> None:
    """Measure by the base path what is here, and hand over what is on devices."""
    packs: dict[tuple[object, ...], blocks.Pack] = {}
    for reader, group, members in rest:
        for i, param, grad, state in members:
            whole = local(param)
            size = whole.numel()
            sums.numel[i] = size
            if size == 0:
                continue
            if grad is not None and is_partial(grad):  # summands say nothing about the sum
                grad = None
            if on_device(whole):
                there.add(i, whole, grad, state, group, overwritten)
                continue
            if not on_cpu(whole):
                continue
            if grad is None:
                blocks.add_param(sums, i, whole)
                if overwritten:
                    blocks.add_moments(sums, i, *reader.moments(state, size), reader.small(state))
                continue
            grad = local(grad if grad.layout is torch.strided else grad.to_dense())
            if grad.numel() != size:  # the parameter's data are others by now
                blocks.add_param(sums, i, whole)
                blocks.add_grad(sums, i, grad)
                continue
            piece, kind = reader.read(whole, grad, state)
            if blocks.is_large(size):
                blocks.add_large(sums, i, piece, roles)
            else:
                packs.setdefault(kind, []).append((i, piece))
    for pack in packs.values():
        blocks.add_packed(sums, pack, roles)


def _measure_updates(sums: Sums, updates: Mapping[int, Tensor]) -> dict[int, Tensor]:
    """Measure those that are here; the others."""
    seen_here: dict[int, Tensor] = {}
    seen_there: dict[int, Tensor] = {}
    for i, update in updates.items():
        (seen_there if on_device(update) else seen_here)[i] = update
    for i, energy in zip(seen_here, squares([*seen_here.values()]), strict=True):
        sums.add("update", i, energy)
    return seen_there


def on_one_device(parts: Sequence[Tensor | None]) -> Tensor | None:
    """The numbers of all parts that there are, one after another, None where there are none."""
    there = [part for part in parts if part is not None]
    if not there:
        return None
    home = there[0].device
    return torch.cat([part.reshape(-1).to(home, non_blocking=True) for part in there])


def _alike(
    groups: Sequence[Mapping[str, Any]], roles: Roles
) -> list[tuple[Mapping[str, Any], list[int], list[Tensor]]]:
    """Groups with the same options as one, with the indices of their parameters: to begin with one takes a
    while, and in some trainings each parameter has its own."""
    if len(groups) == 1:
        return [(groups[0], [*range(len(groups[0]["params"]))], groups[0]["params"])]
    # NAdam's state has a product of the options that a group has had so far.
    apart = roles.update is nadam
    found: dict[Any, tuple[Mapping[str, Any], list[int], list[Tensor]]] = {}
    index = 0
    for group in groups:
        options = tuple([(key, _value(option)) for key, option in group.items() if key not in _NAMES])
        if apart:
            options = (*options, ("", index))
        start, index = index, index + len(group["params"])
        _, places, params = found.setdefault(options, (group, [], []))
        places += range(start, index)
        params += group["params"]
    return list(found.values())


_NAMES = frozenset(("params", "param_names", "name", "group_name"))
"""What a group holds that is no option."""


def _value(option: Any) -> Any:
    """Something that is equal for equal options: a number or a few, else what the option is and where."""
    if type(option) in _NUMBERS:
        return option
    if type(option) is tuple and all(type(each) in _NUMBERS for each in option):
        return option
    return type(option), id(option)


_NUMBERS = frozenset((float, int, bool, type(None)))

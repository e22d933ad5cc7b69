"""The statistics of tensors that are on a device, worked out there.

One kernel does it (`fused`) or, where there is none or it cannot read them, torch's own operations in
float64: some eighty measure a matrix of rows (`rows`), however many tensors are in it. Nothing is read back,
and what follows from a count of steps that is on the device is worked out there as well.
"""

import logging
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from optwatch.wire.messages import COUNTS
from optwatch_agent.fused import Kernel, Tensors
from optwatch_agent.quotients import FORMS, TINY, Form, form
from optwatch_agent.roles import Roles
from optwatch_agent.rows import Batch, Layouts, is_wide, uploaded
from optwatch_agent.signals import let_through
from optwatch_agent.sums import Sums
from optwatch_agent.tensors import local, number, on_device, scalar
from optwatch_agent.updates import rprop

log = logging.getLogger("optwatch")

Columns = dict[str, Tensor]


class Entry(NamedTuple):
    """One parameter's tensors, flat and of as many elements."""

    i: int
    param: Tensor
    grad: Tensor | None
    first: Tensor | None
    second: Tensor | None
    extra: Mapping[str, Tensor]
    state: Mapping[str, Any]
    group: Mapping[str, Any]
    updates: bool
    """Whether there is an update to compute."""

    @property
    def has_numbers(self) -> bool:
        """Whether there is anything to reckon with beside the parameter."""
        return not (self.grad is None and self.first is None and self.second is None)

    @property
    def kind(self) -> tuple[Any, ...]:
        """What entries have in common that are measured together."""
        there = self.grad is None, self.first is None, self.second is None, *self.extra, self.updates
        return self.param.device, is_wide(self.param.numel()), there


class Tools:
    """What the measurements of one optimizer on devices share."""

    def __init__(self, fused: Mapping[torch.device, Kernel] | None = None) -> None:
        """`fused`: the kernel on each device that has one."""
        self.layouts = Layouts()
        self.fused = dict(fused or {})


class DeviceSums:
    """The tensors of one measurement that are on devices."""

    def __init__(self, roles: Roles, tools: Tools) -> None:
        self._roles = roles
        self._tools = tools
        self._entries: dict[tuple[Any, ...], list[Entry]] = {}
        self._found: list[tuple[list[int], list[str], Tensor]] = []
        """Of entries of one kind: their places among the T, the columns ("": none that they have), and
        float64[columns, entries]."""

    def add(
        self,
        i: int,
        param: Tensor,
        grad: Tensor | None,
        state: Mapping[str, Any],
        group: Mapping[str, Any],
        overwritten: bool = False,
    ) -> None:
        """Add tensor i, a local one that is not empty; of one without a gradient the parameter alone, or the
        moments as well where the step has `overwritten` it.

        A sparse gradient counts as none: how many values it has, the host would have to ask.
        """
        grad = None if grad is None or grad.layout is not torch.strided else local(grad)
        if grad is not None and (grad.numel() != param.numel() or grad.device != param.device):
            grad = None
        if grad is None and not overwritten:
            entry, made = Entry(i, param.reshape(-1), None, None, None, {}, {}, {}, False), False
        else:
            entry, made = self._read(i, param, grad, state, group)
        if made:  # the memory for one of them at a time
            self._measure([entry])
        else:
            self._entries.setdefault(entry.kind, []).append(entry)

    def launch(self) -> list[Tensor]:
        """All that is found, float64[columns, tensors] each; nothing waits for it."""
        for device, kernel in tuple(self._tools.fused.items()):
            try:
                self._measure_fused(device, kernel)
            except Exception as error:  # noqa: BLE001 - then without it
                let_through(error)
                del self._tools.fused[device]
                log.warning("optwatch: Triton's kernel failed on %s and stays off: %r", device, error)
        for entries in self._entries.values():
            self._measure(entries)
        self._entries = {}
        return [found for _, _, found in self._found]

    def put(self, sums: Sums, numbers: Sequence[float]) -> None:
        """Take the numbers, one after another, when they have arrived."""
        values = np.array(numbers)
        for places, names, _ in self._found:
            where = np.array(places)
            rows, values = np.split(values, [len(names) * len(places)])
            found = dict(zip(names, rows.reshape(len(names), -1), strict=True))
            found.pop("", None)
            for name, row in found.items():
                if name in COUNTS:
                    sums.count(name, where, row)
                elif name in sums.PEAKS:  # a maximum of Triton's loses NaN
                    lost = np.isnan(found[name.partition("_")[0]])
                    sums.put(name, where, np.where(lost, np.nan, -row if name == "second_min" else row))
                else:
                    sums.put(name, where, row)

    def _read(
        self, i: int, param: Tensor, grad: Tensor | None, state: Mapping[str, Any], group: Mapping[str, Any]
    ) -> tuple[Entry, bool]:
        """The entry, and whether a tensor of it was made for this."""
        roles, rule = self._roles, self._roles.update
        first, second, made = roles.moments(state, group)
        extra = {name: state.get(name) for name in (() if rule is None else rule.extra)}
        held: dict[str, Any] = {"first": first, "second": second, **extra}
        held = {name: tensor for name, tensor in held.items() if isinstance(tensor, Tensor)}
        fitting = {name: local(tensor) for name, tensor in held.items() if _fits(tensor, param)}
        # What is elsewhere is not taken for what does not exist.
        known = rule is not None and all(key in state for key in rule.needs) and len(fitting) == len(held)
        flat = _flat({"param": param, **({} if grad is None else {"grad": grad}), **fitting})
        first, second = flat.pop("first", None), flat.pop("second", None)
        param, grad = flat.pop("param"), flat.pop("grad", None)
        return Entry(i, param, grad, first, second, flat, state, group, known and grad is not None), made

    def _measure_fused(self, device: torch.device, kernel: Kernel) -> None:
        """Launch the measurement of all entries on a device that its kernel can read."""
        tensors: list[Tensors] = []
        numbers: list[Tensor] = []
        taken = []
        for kind, entries in self._entries.items():
            of_kind = [(each.grad, each.first, each.second, each.param) for each in entries]
            if entries[0].param.device == device and not entries[0].extra and all(map(kernel.takes, of_kind)):
                taken.append(kind)
                tensors += of_kind
                numbers.append(
                    _numbers_of(entries, self._roles) if entries[0].has_numbers else _harmless(entries)
                )
        if not taken:
            return
        out = kernel.measure(tensors, torch.cat(numbers, 1), self._roles.root == "itself")
        at = 0
        for kind in taken:
            entries = self._entries.pop(kind)
            names = [name if _has(entries[0], name) else "" for name in kernel.columns]
            self._found.append(([each.i for each in entries], names, out.narrow(1, at, len(entries))))
            at += len(entries)

    def _measure(self, entries: Sequence[Entry]) -> None:
        """Launch the measurement of entries of one kind."""
        device = entries[0].param.device
        numbers = _numbers_of(entries, self._roles) if entries[0].has_numbers else None
        sums, peaks = torch.empty(0), torch.empty(0)
        names: list[str] = []
        for batch in self._tools.layouts.of(tuple(each.param.numel() for each in entries), device):
            added, highest = _measured(batch, entries, numbers, self._roles)
            if not names:
                names = [*added, *highest]
                sums = torch.zeros(len(added), len(entries), dtype=torch.float64, device=device)
                peaks = torch.full(
                    (len(highest), len(entries)), -torch.inf, dtype=torch.float64, device=device
                )
            sums.narrow(1, batch.first, batch.tensors).add_(batch.added(torch.stack([*added.values()])))
            so_far = peaks.narrow(1, batch.first, batch.tensors)
            torch.maximum(so_far, batch.highest(torch.stack([*highest.values()])), out=so_far)
        self._found.append(([each.i for each in entries], names, torch.cat([sums, peaks])))


def _measured(
    batch: Batch, entries: Sequence[Entry], numbers: Tensor | None, roles: Roles
) -> tuple[Columns, Columns]:
    """Of each row of a batch, float64[rows]: what is to be added up, and of what the highest is wanted; the
    lowest of v as the highest of -v."""
    of_batch = entries[batch.first : batch.first + batch.tensors]
    p = batch.joined([each.param for each in of_batch])
    added, highest = {"param": p.square().sum(1)}, {"param_max": p.abs().amax(1)}
    if numbers is None:
        return added, highest
    none = batch.padding()
    *coefficients, hat_of_root, floor, low = batch.of_rows(numbers)
    g = m = v = root = None
    if of_batch[0].grad is not None:
        g = batch.joined([each.grad for each in of_batch if each.grad is not None])
        added["grad"], highest["grad_max"] = g.square().sum(1), g.abs().amax(1)
        added["grad_zeros"] = (g == 0).masked_fill_(none, False).sum(1, dtype=torch.float64)
        added["grad_nonfinite"] = _lost(g)
    if of_batch[0].first is not None:
        m = batch.joined([each.first for each in of_batch if each.first is not None])
        added["first"] = m.square().sum(1)
        if g is not None:
            added["dot"] = (g * m).sum(1)
        added["moments_nonfinite"] = _lost(m)
    if of_batch[0].second is not None:
        v = batch.joined([each.second for each in of_batch if each.second is not None])
        root = v if roles.root == "itself" else v.sqrt()
        added["second"], highest["second_max"] = v.sum(1), v.masked_fill(none, -torch.inf).amax(1)
        highest["second_min"] = v.neg().masked_fill_(none, -torch.inf).amax(1)
        added["moments_nonfinite"] = added.get("moments_nonfinite", 0.0) + _lost(v)
        hat = root * hat_of_root
        if g is not None:
            added["rms_t"] = g.div(torch.maximum(hat, floor)).square().sum(1)
        added["eps"] = (hat < low).masked_fill_(none, False).sum(1, dtype=torch.float64)
    extra = {name: batch.joined([each.extra[name] for each in of_batch]) for name in of_batch[0].extra}
    if g is not None and of_batch[0].updates:
        if roles.update is rprop:
            update = extra["prev"].sign().mul_(extra["step_size"])
        else:
            if (highest_v := extra.get("max_exp_avg_sq")) is not None:
                root = highest_v.sqrt()
            elif v is not None and (mean := extra.get("grad_avg")) is not None:
                root = v.addcmul(mean, mean, value=-1).sqrt_()
            update = _update(Form(*coefficients), g, m, p, root, none)
        added["update"] = update.square().sum(1)
    return added, highest


def _update(x: Form, g: Tensor, m: Tensor | None, p: Tensor, root: Tensor | None, none: Tensor) -> Tensor:
    """The update of this form; `m` and `root` where there are such."""
    update: Tensor = x.of_grad * g
    if m is not None:
        update.addcmul_(m, x.of_first)
    if root is not None:
        denominator = root.mul(x.of_root).add_(x.epsilon).add_(x.inside)
        update.addcmul_(p, x.inside).div_(denominator.masked_fill_(none, 1.0))
    update.addcmul_(p, x.of_param)
    return update


def _lost(x: Tensor) -> Tensor:
    """How many of each row are not finite."""
    lost: Tensor = (x - x).ne_(0).sum(1)
    return lost


def _numbers_of(entries: Sequence[Entry], roles: Roles) -> Tensor:
    """What entries of one kind are reckoned with, float64[9, entries]: the coefficients of their form; what
    sqrt(v) is multiplied by to give sqrt(v̂), the floor of that in rms_t, and 10 ε."""
    device, rule = entries[0].param.device, roles.update
    of_groups = []
    for _, run in groupby(entries, key=lambda each: id(each.group)):
        members = list(run)
        group, state = members[0].group, members[0].state
        steps = _vector([_steps(each.state, group) for each in members], device)
        begun = steps > 0
        found = Form()
        if members[0].updates and rule in FORMS:
            held = {"step": steps} if "step" in state else {}
            if "mu_product" in state:
                held["mu_product"] = _vector([each.state["mu_product"] for each in members], device)
            found = form(rule, rule.scalars(held, group), members[0].first is not None)
        numbers = [torch.zeros_like(steps).add_(each) for each in found]
        if "step" in state:  # a fused step that was skipped from the first has no update
            numbers = [torch.where(begun, each, still) for each, still in zip(numbers, Form(), strict=True)]
        hat: Any = 1.0
        if roles.corrected:
            hat = torch.where(begun, (1.0 - number(group["betas"][1]) ** steps).rsqrt(), 1.0)
        epsilon = roles.epsilon(group)
        others = (hat, max(epsilon, TINY), 10 * epsilon)
        numbers += [torch.zeros_like(steps).add_(each) for each in others]
        of_groups.append(torch.stack(numbers))
    return torch.cat(of_groups, 1)


def _harmless(entries: Sequence[Entry]) -> Tensor:
    """The same of entries without a gradient, of which nothing is reckoned."""
    of_each = np.array([[*Form(), 1.0, 1.0, 0.0]] * len(entries)).T
    return uploaded(np.ascontiguousarray(of_each), entries[0].param.device)


_OF_FIRST = ("first", "dot")
_OF_SECOND = ("second", "second_min", "second_max", "rms_t", "eps")


def _has(entry: Entry, column: str) -> bool:
    """Whether a column says something of an entry and those of its kind."""
    if column in ("param", "param_max"):
        return True
    if column in ("dot", "rms_t") and entry.grad is None:
        return False
    if column in _OF_FIRST:
        return entry.first is not None
    if column in _OF_SECOND:
        return entry.second is not None
    if column == "moments_nonfinite":
        return entry.first is not None or entry.second is not None
    return entry.updates if column == "update" else entry.grad is not None


def _steps(state: Mapping[str, Any], group: Mapping[str, Any]) -> Any:
    """A parameter's count of steps, by its own or its group's; 0 where nobody counts."""
    for counts, key in ((state, "step"), (group, "step"), (group, "k")):
        if isinstance(counts.get(key), (Tensor, int, float)):
            return counts[key]
    return 0.0


def _vector(values: Sequence[Any], device: torch.device) -> Tensor:
    """Numbers, which may be on the device or the host, as float64[n] on the device."""
    there = [isinstance(value, Tensor) and on_device(value) for value in values]
    if not any(there):
        return uploaded(np.array([scalar(value) for value in values], dtype=np.float64), device)
    if all(there) and len({value.dtype for value in values}) == 1:
        return torch.stack([value.detach().reshape(()) for value in values]).double()
    each = [number(value) if on_it else scalar(value) for value, on_it in zip(values, there, strict=True)]
    return torch.stack([torch.zeros((), dtype=torch.float64, device=device).add_(value) for value in each])


def _fits(tensor: Tensor, param: Tensor) -> bool:
    """Whether a state tensor has the parameter's elements on its device."""
    if tensor.layout is not torch.strided:
        return False
    tensor = local(tensor)
    return tensor.numel() == param.numel() and tensor.device == param.device


def _flat(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of one parameter, flat: in the order in which they lie in memory, where that is the same for
    all and without gaps (channels_last), and so without a copy."""
    one, *others = tensors.values()
    as_they_lie = (
        not one.is_contiguous()
        and all(other.stride() == one.stride() for other in others)
        and torch.ops.aten.is_non_overlapping_and_dense(one)
    )
    if as_they_lie:
        return {name: tensor.as_strided((tensor.numel(),), (1,)) for name, tensor in tensors.items()}
    return {name: tensor.reshape(-1) for name, tensor in tensors.items()}

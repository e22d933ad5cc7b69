"""Statistics of every tensor of one optimizer, measured after a step from gradients, state and parameters.

Small tensors of a group are packed together and large ones are cut into blocks, so that each pass of
torch's kernels works on about `BLOCK` elements that stay in the cache, whatever the model looks like.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from optwatch.wire.messages import COUNTS, STATS
from optwatch_agent.norms import sum_of_squares, total
from optwatch_agent.roles import Roles
from optwatch_agent.tensors import local, on_cpu
from optwatch_agent.updates import Slices

BLOCK = 65_536
"""Elements of one pass: a few arrays of them fit a core's cache."""

_TINY = 1e-37
"""Keeps a quotient from dividing by zero, in float32 too."""

F8 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Sample:
    """One measurement of T tensors: `stats` f4[T, len(STATS)], `counts` u8[T, len(COUNTS)], NaN where not
    measured, and the global norms."""

    stats: npt.NDArray[np.float32]
    counts: npt.NDArray[np.uint64]
    param_norm: float
    update_norm: float | None


class Sums:
    """Mergeable sums of T tensors in float64, to which passes add; roots and ratios are taken at the end."""

    NAMES = ("grad", "first", "second", "param", "update", "rms_t", "dot", "eps")

    def __init__(self, tensors: int) -> None:
        self.sums: dict[str, F8] = {name: np.full(tensors, np.nan) for name in self.NAMES}
        self.peaks: dict[str, F8] = {
            name: np.full(tensors, np.nan) for name in ("grad_max", "param_max", "second_min", "second_max")
        }
        self.counts = np.zeros((tensors, len(COUNTS)), dtype=np.uint64)

    def add(self, name: str, i: int, value: float) -> None:
        column = self.sums[name]
        column[i] = value if np.isnan(column[i]) else column[i] + value

    def peak(self, name: str, i: int, value: float) -> None:
        column = self.peaks[name]
        pick = np.fmin if name == "second_min" else np.fmax
        column[i] = value if np.isnan(column[i]) else pick(column[i], value)

    def sample(self, numel: F8) -> Sample:
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
            sums = self.sums
            mean = {name: sums[name] / numel for name in self.NAMES}
            columns = {
                "grad_rms": np.sqrt(mean["grad"]),
                "grad_max": self.peaks["grad_max"],
                "exp_avg_rms": np.sqrt(mean["first"]),
                "exp_avg_sq_mean": mean["second"],
                "exp_avg_sq_min": self.peaks["second_min"],
                "exp_avg_sq_max": self.peaks["second_max"],
                "param_rms": np.sqrt(mean["param"]),
                "param_max": self.peaks["param_max"],
                "update_rms": np.sqrt(mean["update"]),
                "rms_t": np.sqrt(mean["rms_t"]),
                "cos_grad_exp_avg": sums["dot"] / (np.sqrt(sums["grad"]) * np.sqrt(sums["first"])),
                "eps_share": mean["eps"],
            }
            stats = np.stack([columns[name] for name in STATS], axis=1).astype(np.float32)
        measured = ~np.isnan(sums["update"])
        with_grad = ~np.isnan(sums["grad"])
        return Sample(
            stats=stats,
            counts=self.counts,
            param_norm=float(np.sqrt(sums["param"].sum())),
            # A tensor without a gradient was not updated; another one without a number was not measured.
            update_norm=(
                float(np.sqrt(sums["update"][measured].sum())) if (measured >= with_grad).all() else None
            ),
        )


@dataclass(frozen=True)
class Member:
    """One tensor to measure: its place among the T, its flat tensors, and its rule's numbers."""

    index: int
    param: Tensor
    grad: Tensor
    first: Tensor | None
    second: Tensor | None
    extra: Mapping[str, Tensor]
    numbers: Mapping[str, float]
    correction: float
    epsilon: float

    def kind(self) -> tuple[object, ...]:
        """What members of one pack have in common, so that one rule with one set of numbers serves all."""
        return (
            self.first is not None,
            self.second is not None,
            tuple(self.extra),
            tuple(self.numbers.items()),
            self.correction,
            self.epsilon,
        )


def measure(
    optimizer: torch.optim.Optimizer,
    params: Sequence[Tensor],
    roles: Roles,
    updates: Mapping[int, Tensor] | None = None,
) -> Sample:
    """Measure T parameters after a step. `updates`: those that were seen as a difference, by index.

    Reads the gradients as they are now: after a step, those that the optimizer used.
    """
    sums = Sums(len(params))
    numel = np.zeros(len(params))
    packs: dict[tuple[object, ...], list[Member]] = {}
    with torch.no_grad():
        index = 0
        for group in optimizer.param_groups:
            for param in group["params"]:
                i, index = index, index + 1
                whole = local(param)
                numel[i] = whole.numel()
                if not on_cpu(whole) or whole.numel() == 0:
                    continue
                if param.grad is None:
                    _param_only(sums, i, whole)
                    continue
                member = _member(i, param, whole, optimizer.state.get(param, {}), group, roles)
                if member.grad.numel() != member.param.numel():  # a sparse gradient: its values alone
                    _param_only(sums, i, whole)
                    _grad_only(sums, i, member.grad)
                elif member.param.numel() >= BLOCK // 2:
                    for part in _blocks(member):
                        _block(sums, part, roles)
                else:
                    packs.setdefault(member.kind(), []).append(member)
        for members in packs.values():
            for pack in _cut(members):
                _pack(sums, pack, roles)
        for i, update in (updates or {}).items():
            sums.sums["update"][i] = sum_of_squares(update)
    return sums.sample(numel)


def _member(
    index: int,
    param: Tensor,
    whole: Tensor,
    state: Mapping[str, object],
    group: Mapping[str, object],
    roles: Roles,
) -> Member:
    grad = param.grad
    assert grad is not None
    numel = whole.numel()

    def flat(tensor: Tensor | None) -> Tensor | None:
        if tensor is None:
            return None
        tensor = local(tensor)
        return tensor.reshape(-1) if tensor.numel() == numel else None

    rule = roles.update
    extra = {
        key: found
        for key in (rule.extra if rule else ())
        if isinstance(value := state.get(key), Tensor) and (found := flat(value)) is not None
    }
    numbers = (
        rule.scalars(state, group) if rule is not None and all(key in state for key in rule.needs) else {}
    )
    if numbers.get("step", 1.0) <= 0:  # a fused step that was skipped from the first
        numbers = {}
    return Member(
        index=index,
        param=whole.reshape(-1),
        grad=local(grad).reshape(-1),
        first=flat(roles.first_moment(state)),
        second=flat(roles.second_moment(state)),
        extra=extra,
        numbers=numbers,
        correction=roles.correction(state, group),
        epsilon=roles.epsilon(group),
    )


def _blocks(member: Member) -> Iterator[Member]:
    """Cut a large tensor into blocks of float32 (float64 stays)."""
    for start in range(0, member.param.numel(), BLOCK):
        cut = slice(start, start + BLOCK)
        yield Member(
            index=member.index,
            param=_wide(member.param[cut]),
            grad=_wide(member.grad[cut]),
            first=None if member.first is None else _wide(member.first[cut]),
            second=None if member.second is None else _wide(member.second[cut]),
            extra={key: _wide(tensor[cut]) for key, tensor in member.extra.items()},
            numbers=member.numbers,
            correction=member.correction,
            epsilon=member.epsilon,
        )


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def _cut(members: Sequence[Member]) -> Iterator[list[Member]]:
    """Packs of about `BLOCK` elements."""
    pack: list[Member] = []
    size = 0
    for member in members:
        pack.append(member)
        size += member.param.numel()
        if size >= BLOCK:
            yield pack
            pack, size = [], 0
    if pack:
        yield pack


def _derived(x: Member, roles: Roles) -> tuple[Tensor | None, Tensor | None]:
    """The update and sqrt(v̂) of flat float tensors, None where they are not known."""
    update = None
    if roles.update is not None and x.numbers:
        a, b = roles.update.compute(Slices(x.grad, x.first, x.second, x.extra), x.numbers)
        update = a if isinstance(b, float) and b == 0.0 else a + b * ((x.param - a) / (1 + b))
    root = None
    if x.second is not None:
        root = x.second if roles.root == "itself" else (x.second / x.correction).sqrt_()
    return update, root


def _block(sums: Sums, x: Member, roles: Roles) -> None:
    """Add one block of one large tensor."""
    i, n = x.index, x.grad.numel()
    update, root = _derived(x, roles)
    _grad_only(sums, i, x.grad)
    _param_only(sums, i, x.param)
    if x.first is not None:
        sums.add("first", i, sum_of_squares(x.first))
        sums.add("dot", i, total(x.grad * x.first))
    if x.second is not None and root is not None:
        low, high = torch.aminmax(x.second)
        sums.peak("second_min", i, float(low))
        sums.peak("second_max", i, float(high))
        sums.add("second", i, total(x.second))
        sums.add("rms_t", i, sum_of_squares(x.grad / root.clamp(min=max(x.epsilon, _TINY))))
        sums.add("eps", i, n - int(torch.count_nonzero(root >= 10 * x.epsilon)))
    if update is not None:
        sums.add("update", i, sum_of_squares(update))


def _grad_only(sums: Sums, i: int, grad: Tensor) -> None:
    squares = sum_of_squares(grad)
    sums.add("grad", i, squares)
    if grad.numel() == 0:
        return
    low, high = torch.aminmax(grad)
    sums.peak("grad_max", i, max(-float(low), float(high)))
    sums.counts[i, 0] += np.uint64(grad.numel() - int(torch.count_nonzero(grad)))
    if not np.isfinite(squares):
        sums.counts[i, 1] += np.uint64(int(torch.count_nonzero(grad - grad)))


def _param_only(sums: Sums, i: int, param: Tensor) -> None:
    sums.add("param", i, sum_of_squares(param))
    low, high = torch.aminmax(param)
    sums.peak("param_max", i, max(-float(low), float(high)))


def _pack(sums: Sums, members: Sequence[Member], roles: Roles) -> None:
    """Measure several small tensors in one go, in float64."""
    one = members[0]

    def joined(tensors: Sequence[Tensor]) -> Tensor:
        return torch.cat(list(tensors)).double()

    x = Member(
        index=-1,
        param=joined([m.param for m in members]),
        grad=joined([m.grad for m in members]),
        first=joined([m.first for m in members if m.first is not None]) if one.first is not None else None,
        second=joined([m.second for m in members if m.second is not None])
        if one.second is not None
        else None,
        extra={key: joined([m.extra[key] for m in members]) for key in one.extra},
        numbers=one.numbers,
        correction=one.correction,
        epsilon=one.epsilon,
    )
    update, root = _derived(x, roles)
    where = np.array([m.index for m in members])
    sizes = np.array([m.param.numel() for m in members])
    starts = np.concatenate(([0], np.cumsum(sizes)[:-1]))

    def put(name: str, values: Tensor) -> None:
        sums.sums[name][where] = np.add.reduceat(values.numpy(), starts)

    with np.errstate(invalid="ignore", over="ignore"):
        put("grad", x.grad.square())
        put("param", x.param.square())
        sums.peaks["grad_max"][where] = np.maximum.reduceat(x.grad.abs().numpy(), starts)
        sums.peaks["param_max"][where] = np.maximum.reduceat(x.param.abs().numpy(), starts)
        sums.counts[where, 0] = np.add.reduceat((x.grad == 0).numpy(), starts, dtype=np.uint64)
        if not np.isfinite(sums.sums["grad"][where]).all():
            sums.counts[where, 1] = np.add.reduceat(~np.isfinite(x.grad.numpy()), starts, dtype=np.uint64)
        if x.first is not None:
            put("first", x.first.square())
            put("dot", x.grad * x.first)
        if x.second is not None and root is not None:
            second = x.second.numpy()
            sums.peaks["second_min"][where] = np.minimum.reduceat(second, starts)
            sums.peaks["second_max"][where] = np.maximum.reduceat(second, starts)
            put("second", x.second)
            put("rms_t", (x.grad / root.clamp(min=max(x.epsilon, _TINY))).square_())
            put("eps", (root < 10 * x.epsilon).double())
        if update is not None:
            put("update", update.square_())

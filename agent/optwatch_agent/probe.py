"""Statistics of every tensor of one optimizer, measured after a step from gradients, state and parameters.

Small tensors of a group are packed together and large ones are cut into blocks, so that each pass of
torch's kernels works on about `BLOCK` elements that stay in the cache, whatever the model looks like.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from optwatch.wire.messages import COUNTS, STATS
from optwatch_agent.norms import flatten, sum_of_squares, total
from optwatch_agent.roles import Roles
from optwatch_agent.shards import is_partial
from optwatch_agent.tensors import local, on_cpu, scalar
from optwatch_agent.updates import Slices

BLOCK = 65_536
"""Elements of one pass: a few arrays of them fit a core's cache."""

_TINY = 1e-37
"""Keeps a quotient from dividing by zero, in float32 too."""

_LEAST = 1e-30
"""Mean square below which products of float32 values lose bits."""

F8 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Sample:
    """One measurement of T tensors: `stats` f4[T, len(STATS)], `counts` u8[T, len(COUNTS)], NaN where not
    measured, and the global norms, None where a tensor is missing in them."""

    stats: npt.NDArray[np.float32]
    counts: npt.NDArray[np.uint64]
    param_norm: float | None
    update_norm: float | None


class Sums:
    """Mergeable sums of T tensors in float64, to which passes add; roots and ratios are taken at the end."""

    NAMES = ("grad", "first", "second", "param", "update", "rms_t", "dot", "eps")
    PEAKS = ("grad_max", "param_max", "second_min", "second_max")

    def __init__(self, tensors: int) -> None:
        self._values: dict[str, F8] = {name: np.zeros(tensors) for name in (*self.NAMES, *self.PEAKS)}
        # Apart from the values: a sum may well be NaN.
        self._seen = {name: np.zeros(tensors, dtype=bool) for name in self._values}
        self.counts = np.zeros((tensors, len(COUNTS)), dtype=np.uint64)

    def add(self, name: str, i: int, value: float) -> None:
        """Add to the sum of one tensor."""
        self._values[name][i] += value
        self._seen[name][i] = True

    def peak(self, name: str, i: int, value: float) -> None:
        """Take a minimum or maximum of a part of one tensor into account."""
        column, seen = self._values[name], self._seen[name]
        pick = np.minimum if name == "second_min" else np.maximum
        column[i] = pick(column[i], value) if seen[i] else value
        seen[i] = True

    def put(self, name: str, where: npt.NDArray[np.int64], values: F8) -> None:
        """Set the sums or peaks of several tensors at once."""
        self._values[name][where] = values
        self._seen[name][where] = True

    def sample(self, numel: F8) -> Sample:
        """Everything as it is reported; `numel` f8[T]."""
        seen = self._seen
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
            sums = {name: np.where(seen[name], column, np.nan) for name, column in self._values.items()}
            mean = {name: sums[name] / numel for name in self.NAMES}
            columns = {
                "grad_rms": np.sqrt(mean["grad"]),
                "grad_max": sums["grad_max"],
                "exp_avg_rms": np.sqrt(mean["first"]),
                "exp_avg_sq_mean": mean["second"],
                "exp_avg_sq_min": sums["second_min"],
                "exp_avg_sq_max": sums["second_max"],
                "param_rms": np.sqrt(mean["param"]),
                "param_max": sums["param_max"],
                "update_rms": np.sqrt(mean["update"]),
                "rms_t": np.sqrt(mean["rms_t"]),
                "cos_grad_exp_avg": sums["dot"] / (np.sqrt(sums["grad"]) * np.sqrt(sums["first"])),
                "eps_share": mean["eps"],
            }
            stats = np.stack([columns[name] for name in STATS], axis=1).astype(np.float32)
            # A tensor without a gradient was not updated, an empty one has no norm.
            params_seen = seen["param"] | (numel == 0)
            updates_seen = seen["update"] | ~seen["grad"]
            return Sample(
                stats=stats,
                counts=self.counts,
                param_norm=float(np.sqrt(self._values["param"].sum())) if params_seen.all() else None,
                update_norm=float(np.sqrt(self._values["update"].sum()))
                if params_seen.all() and updates_seen.all()
                else None,
            )


@dataclass(frozen=True)
class Piece:
    """Float tensors of as many elements of one parameter, flat of a block of it, or of several joined.

    `numbers` are those of the update rule, empty where there is no update to compute.
    """

    param: Tensor
    grad: Tensor
    first: Tensor | None
    second: Tensor | None
    extra: Mapping[str, Tensor]
    numbers: Mapping[str, float]
    correction: float
    epsilon: float

    def cut(self, part: slice) -> "Piece":
        """A block of it, in float32 (float64 stays)."""
        return replace(
            self,
            param=_wide(self.param[part]),
            grad=_wide(self.grad[part]),
            first=None if self.first is None else _wide(self.first[part]),
            second=None if self.second is None else _wide(self.second[part]),
            extra={key: _wide(tensor[part]) for key, tensor in self.extra.items()},
        )

    def flat(self) -> "Piece":
        """The same with flat tensors."""
        return replace(
            self,
            param=self.param.reshape(-1),
            grad=self.grad.reshape(-1),
            first=None if self.first is None else self.first.reshape(-1),
            second=None if self.second is None else self.second.reshape(-1),
            extra={key: tensor.reshape(-1) for key, tensor in self.extra.items()},
        )


Pack = list[tuple[int, Piece]]
"""Small tensors, by their place among the T, that one rule with one set of numbers serves."""


def measure(
    optimizer: torch.optim.Optimizer,
    params: Sequence[Tensor],
    roles: Roles,
    updates: Mapping[int, Tensor] | None = None,
    grads: Mapping[int, Tensor] | None = None,
) -> Sample:
    """Measure T parameters after a step. `updates`: those that were seen as a difference, by index.

    Reads the gradients as they are now: after a step, those that the optimizer used. Where the step
    overwrites them, `grads` holds those that were kept, by index; of other parameters nothing but their
    own values is measured then.
    """
    sums = Sums(len(params))
    numel = np.zeros(len(params))
    packs: dict[tuple[object, ...], Pack] = {}
    index = 0
    with torch.no_grad(), np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        for group in optimizer.param_groups:
            reader = Reader(group, roles)
            for param in group["params"]:
                i, index = index, index + 1
                whole = local(param)
                size = whole.numel()
                numel[i] = size
                if not on_cpu(whole) or size == 0:
                    continue
                given = param.grad if grads is None else grads.get(i)
                if given is None or is_partial(given):  # summands say nothing about the sum
                    _param_alone(sums, i, whole)
                    continue
                grad = local(given)
                if grad.numel() != size:  # a sparse gradient: its values alone
                    _param_alone(sums, i, whole)
                    for part in _slices(grad.numel()):
                        _grad(sums, i, _wide(grad.reshape(-1)[part]))
                    continue
                piece, kind = reader.read(whole, grad, optimizer.state.get(param, {}))
                if size >= BLOCK // 2:
                    flat = piece.flat()
                    for part in _slices(size):
                        _block(sums, i, flat.cut(part), roles)
                else:
                    packs.setdefault(kind, []).append((i, piece))
        for pack in packs.values():
            for members in _cut(pack):
                _pack(sums, members, roles)
        for i, update in (updates or {}).items():
            sums.add("update", i, sum_of_squares(update))
    sample = sums.sample(numel)
    # Of a gradient that was not kept it is not known whether there was one, and so an update.
    kept = grads is None or len(grads) == len(params)
    return sample if kept else replace(sample, update_norm=None)


class Reader:
    """Reads the state of one group's parameters; what they share is worked out once."""

    def __init__(self, group: Mapping[str, object], roles: Roles) -> None:
        self._group = group
        self._roles = roles
        self._epsilon = roles.epsilon(group)
        self._known: dict[tuple[object, ...], tuple[Mapping[str, float], float]] = {}

    def read(
        self, param: Tensor, grad: Tensor, state: Mapping[str, object]
    ) -> tuple[Piece, tuple[object, ...]]:
        """A parameter's tensors, and what has to be equal for parameters to be packed together."""
        roles, numel = self._roles, param.numel()
        first = _of_size(roles.first_moment(state), numel)
        second = _of_size(roles.second_moment(state), numel)
        extra: dict[str, Tensor] = {}
        if (rule := roles.update) is not None:
            for name in rule.extra:
                value = state.get(name)
                if isinstance(value, Tensor) and (tensor := _of_size(value, numel)) is not None:
                    extra[name] = tensor
        count = state.get("step")
        step = None if count is None else scalar(count)
        key = (id(self._group), step, first is None, second is None, *extra)
        if key not in self._known:
            self._known[key] = (self._numbers(state, step), roles.correction(state, self._group))
        numbers, correction = self._known[key]
        return Piece(param, grad, first, second, extra, numbers, correction, self._epsilon), key

    def _numbers(self, state: Mapping[str, object], step: float | None) -> Mapping[str, float]:
        rule = self._roles.update
        if rule is None or any(key not in state for key in rule.needs):
            return {}
        if step is not None and step <= 0:  # a fused step that was skipped from the first
            return {}
        return rule.scalars(state, self._group)


def _of_size(tensor: Tensor | None, numel: int) -> Tensor | None:
    if tensor is None:
        return None
    tensor = local(tensor)
    return tensor if tensor.numel() == numel else None


def _slices(numel: int) -> Iterator[slice]:
    for start in range(0, numel, BLOCK):
        yield slice(start, start + BLOCK)


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def _cut(pack: Pack) -> Iterator[Pack]:
    """Packs of about `BLOCK` elements."""
    members: Pack = []
    size = 0
    for member in pack:
        members.append(member)
        size += member[1].param.numel()
        if size >= BLOCK // 2:
            yield members
            members, size = [], 0
    if members:
        yield members


def _derive(x: Piece, roles: Roles) -> tuple[Tensor | None, Tensor | None]:
    """The update and sqrt(v̂), None where they are not known."""
    root = None
    if x.second is not None:
        root = x.second if roles.root == "itself" else x.second.sqrt()
        if x.correction != 1.0:
            root.mul_(x.correction**-0.5)
    if roles.update is None or not x.numbers:
        return None, root
    a, b = roles.update.compute(Slices(x.grad, x.first, x.second, root, x.extra), x.numbers)
    # p_new = p_old + a + b p_old, so that the update a + b p_old is (a + b p_new) / (1 + b).
    if isinstance(b, Tensor):
        return torch.addcmul(a, b, x.param).div_(b + 1), root
    if b != 0.0:
        return torch.add(a, x.param, alpha=b).div_(1 + b), root
    return a, root


def _block(sums: Sums, i: int, x: Piece, roles: Roles) -> None:
    """Add one block of one large tensor."""
    numel = x.grad.numel()
    update, root = _derive(x, roles)
    grad = _grad(sums, i, x.grad)
    _param(sums, i, x.param)
    if x.first is not None:
        first = sum_of_squares(x.first)
        sums.add("first", i, first)
        exact = min(grad, first) < numel * _LEAST
        pair = (x.grad.double(), x.first.double()) if exact else (x.grad, x.first)
        sums.add("dot", i, float(torch.dot(*pair)))
    if x.second is not None and root is not None:
        values = x.second.numpy()
        low, high = float(values.min()), float(values.max())
        sums.peak("second_min", i, low)
        sums.peak("second_max", i, high)
        sums.add("second", i, total(x.second))
        floor = max(x.epsilon, _TINY)
        least = low if roles.root == "itself" else (low / x.correction) ** 0.5
        sums.add("rms_t", i, sum_of_squares(x.grad / (root if least >= floor else root.clamp(min=floor))))
        few = 0 if least >= 10 * x.epsilon else int(np.count_nonzero(root.numpy() < 10 * x.epsilon))
        sums.add("eps", i, few)
    if update is not None:
        sums.add("update", i, sum_of_squares(update))


def _grad(sums: Sums, i: int, grad: Tensor) -> float:
    energy = sum_of_squares(grad)
    sums.add("grad", i, energy)
    values = grad.numpy()
    if values.size:
        sums.peak("grad_max", i, max(-float(values.min()), float(values.max())))
        sums.counts[i, 0] += np.uint64(np.count_nonzero(values == 0))
        if not np.isfinite(energy):
            sums.counts[i, 1] += np.uint64(np.count_nonzero(~np.isfinite(values)))
    return energy


def _param(sums: Sums, i: int, param: Tensor) -> None:
    sums.add("param", i, sum_of_squares(param))
    values = param.numpy()
    sums.peak("param_max", i, max(-float(values.min()), float(values.max())))


def _param_alone(sums: Sums, i: int, param: Tensor) -> None:
    for part in _slices(param.numel()):
        _param(sums, i, _wide(param.reshape(-1)[part]))


def _pack(sums: Sums, members: Pack, roles: Roles) -> None:
    """Measure several small tensors in one go, in float64."""
    where = np.array([i for i, _ in members])
    pieces = [piece for _, piece in members]
    one = pieces[0]
    x = replace(
        one,
        param=_joined([p.param for p in pieces]),
        grad=_joined([p.grad for p in pieces]),
        first=None if one.first is None else _joined([p.first for p in pieces]),
        second=None if one.second is None else _joined([p.second for p in pieces]),
        extra={key: _joined([p.extra[key] for p in pieces]) for key in one.extra},
    )
    update, root = _derive(x, roles)
    sizes = [p.param.numel() for p in pieces]
    starts = np.concatenate(([0], np.cumsum(sizes)[:-1]))

    def put(name: str, values: F8) -> None:
        sums.put(name, where, np.add.reduceat(values, starts))

    grad, param = x.grad.numpy(), x.param.numpy()
    put("grad", grad * grad)
    put("param", param * param)
    sums.put("grad_max", where, np.maximum.reduceat(np.abs(grad), starts))
    sums.put("param_max", where, np.maximum.reduceat(np.abs(param), starts))
    sums.counts[where, 0] = np.add.reduceat(grad == 0, starts, dtype=np.uint64)
    if not np.isfinite(grad.sum()):
        sums.counts[where, 1] = np.add.reduceat(~np.isfinite(grad), starts, dtype=np.uint64)
    if x.first is not None:
        first = x.first.numpy()
        put("first", first * first)
        put("dot", grad * first)
    if x.second is not None and root is not None:
        second, roots = x.second.numpy(), root.numpy()
        sums.put("second_min", where, np.minimum.reduceat(second, starts))
        sums.put("second_max", where, np.maximum.reduceat(second, starts))
        put("second", second)
        ratio = grad / np.maximum(roots, max(x.epsilon, _TINY))
        put("rms_t", np.square(ratio, out=ratio))
        put("eps", (roots < 10 * x.epsilon).astype(np.float64))
    if update is not None:
        put("update", update.square_().numpy())


def _joined(tensors: Sequence[Tensor | None]) -> Tensor:
    some = [tensor for tensor in tensors if tensor is not None]
    if any(tensor.dtype != some[0].dtype for tensor in some):
        some = [tensor.double() for tensor in some]
    return flatten(some).double()

"""The statistics with numpy and torch alone, the base path: whatever the rule, the dtype and the strides.

Small tensors of a group are packed together and large ones are cut into blocks, so that each pass works
on about `BLOCK` elements that stay in the cache, whatever the model looks like.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from optwatch_agent.norms import dot, flatten, sum_of_squares, total
from optwatch_agent.pieces import Piece, wide
from optwatch_agent.roles import Roles
from optwatch_agent.sums import F8, Sums
from optwatch_agent.updates import Slices

BLOCK = 32_768
"""Elements of one pass: a few arrays of them fit a core's cache."""

_TINY = 1e-37
"""Keeps a quotient from dividing by zero, in float32 too."""

_LEAST = 1e-30
"""Mean square below which products of float32 values lose bits."""

Pack = list[tuple[int, Piece]]
"""Small tensors, by their place among the T, that one rule with one set of numbers serves."""


def is_large(numel: int) -> bool:
    """Whether a tensor is measured by itself."""
    return numel >= BLOCK // 2


def add_large(sums: Sums, i: int, piece: Piece, roles: Roles) -> None:
    """Measure tensor i block by block."""
    flat = piece.flat()
    for part in _slices(flat.param.numel()):
        _block(sums, i, flat.cut(part), roles)


def add_packed(sums: Sums, pack: Pack, roles: Roles) -> None:
    """Measure small tensors that have the same numbers, about `BLOCK` elements at once."""
    for members in _cut(pack):
        _pack(sums, members, roles)


def add_grad(sums: Sums, i: int, grad: Tensor) -> None:
    """The gradient alone."""
    flat = grad.reshape(-1)
    for part in _slices(flat.numel()):
        _grad(sums, i, wide(flat[part]))


def add_param(sums: Sums, i: int, param: Tensor) -> None:
    """The parameter alone."""
    flat = param.reshape(-1)
    for part in _slices(flat.numel()):
        _param(sums, i, wide(flat[part]))


def _slices(numel: int) -> Iterator[slice]:
    for start in range(0, numel, BLOCK):
        yield slice(start, start + BLOCK)


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
    energy = _grad(sums, i, x.grad)
    _param(sums, i, x.param)
    grad = x.grad.numpy()
    if x.first is not None:
        values = x.first.numpy()
        first = sum_of_squares(x.first)
        sums.add("first", i, first)
        exact = min(energy, first) < numel * _LEAST
        pair = (grad.astype(np.float64), values.astype(np.float64)) if exact else (grad, values)
        sums.add("dot", i, dot(*pair))
    if x.second is not None and root is not None:
        values = x.second.numpy()
        low, high = float(values.min()), float(values.max())
        sums.peak("second_min", i, low)
        sums.peak("second_max", i, high)
        sums.add("second", i, total(values))
        floor = max(x.epsilon, _TINY)
        least = low if roles.root == "itself" else (low / x.correction) ** 0.5
        roots = root.numpy()
        few = 0 if least >= 10 * x.epsilon else int(np.count_nonzero(roots < 10 * x.epsilon))
        sums.add("eps", i, few)
        ratio = torch.div(x.grad, root if least >= floor else root.clamp(min=floor))
        sums.add("rms_t", i, sum_of_squares(ratio))
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


def _pack(sums: Sums, members: Pack, roles: Roles) -> None:
    """Measure several small tensors in one go, in float64."""
    where = np.array([i for i, _ in members])
    pieces = [piece for _, piece in members]
    one = pieces[0]
    x = one._replace(
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

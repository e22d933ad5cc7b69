"""The statistics with numpy and torch alone, the base path: whatever the rule, the dtype and the strides.

Small tensors of a group are packed together and large ones are cut into blocks, so that each pass works
on about as many elements that stay in the cache, whatever the model looks like.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from optwatch_agent.norms import EXACT, Array, dot, energy, flatten, quiet, sum_of_squares, total
from optwatch_agent.pieces import Piece, wide
from optwatch_agent.quotients import TINY, Quotient, quotient
from optwatch_agent.roles import Roles
from optwatch_agent.sums import F8, Sums
from optwatch_agent.tensors import array
from optwatch_agent.updates import Slices

BLOCK = 131_072
"""Elements of one pass over a large tensor: the numbers stay in a cache, and calls are few."""

_PACK = 65_536
"""Elements of small tensors that one pass takes, in float64."""

_LEAST = 1e-30
"""Mean square below which products of float32 values lose bits."""

_CANCELLED = 0.1
"""Share of its summands down to which a sum is as exact as they are."""

Pack = list[tuple[int, Piece]]
"""Small tensors, by their place among the T, that one rule with one set of numbers serves."""


def is_large(numel: int) -> bool:
    """Whether a tensor is measured by itself."""
    return numel >= _PACK // 2


@quiet
def add_large(sums: Sums, i: int, piece: Piece, roles: Roles) -> None:
    """Measure tensor i block by block."""
    x = piece.flat()
    readers = [_reader(each) for each in (x.grad, x.param, x.first, x.second)]
    simple = None
    if roles.root == "sqrt" and not x.extra:
        simple = quotient(roles.update, x.numbers, x.first is not None, x.second is not None)
    scratch = Scratch()
    for part in _slices(x.param.numel()):
        grad, param, first, second = (None if read is None else read(part) for read in readers)
        assert grad is not None
        assert param is not None
        _block(sums, i, Block(grad, param, first, second), x, part, roles, simple, scratch)


def _reader(flat: Tensor | None) -> Callable[[slice], Array] | None:
    """Reads parts in float32 (float64 stays). To make an array of a tensor costs more than to cut one."""
    if flat is None:
        return None
    if flat.dtype in EXACT:
        return array(flat).__getitem__
    tensor = flat
    return lambda part: array(tensor[part].float())


@quiet
def add_packed(sums: Sums, pack: Pack, roles: Roles) -> None:
    """Measure small tensors that have the same numbers, about `_PACK` elements at once."""
    for members in _cut(pack):
        _pack(sums, members, roles)


@quiet
def add_grad(sums: Sums, i: int, grad: Tensor) -> None:
    """The gradient alone."""
    flat = grad.reshape(-1)
    for part in _slices(flat.numel()):
        _grad(sums, i, array(wide(flat[part])))


@quiet
def add_moments(sums: Sums, i: int, first: Tensor | None, second: Tensor | None, small: float) -> None:
    """The moments alone; `small`: as of `Reader.small`."""
    if first is not None:
        flat = first.reshape(-1)
        for part in _slices(flat.numel()):
            _first(sums, i, array(wide(flat[part])))
    if second is not None:
        flat = second.reshape(-1)
        for part in _slices(flat.numel()):
            values = array(wide(flat[part]))
            low = _second(sums, i, values)
            sums.add("eps", i, 0 if low >= small**2 else int(np.count_nonzero(np.sqrt(values) < small)))


@quiet
def add_param(sums: Sums, i: int, param: Tensor) -> None:
    """The parameter alone."""
    flat = param.reshape(-1)
    for part in _slices(flat.numel()):
        _param(sums, i, array(wide(flat[part])))


def _slices(numel: int) -> Iterator[slice]:
    for start in range(0, numel, BLOCK):
        yield slice(start, start + BLOCK)


def _cut(pack: Pack) -> Iterator[Pack]:
    """Packs of about `_PACK` elements."""
    members: Pack = []
    size = 0
    for member in pack:
        members.append(member)
        size += member[1].param.numel()
        if size >= _PACK // 2:
            yield members
            members, size = [], 0
    if members:
        yield members


def _hat(x: Piece, roles: Roles) -> Tensor | None:
    """sqrt(v̂), None where there is none."""
    if x.second is None:
        return None
    if roles.root == "itself":
        return x.second
    root = x.second.sqrt()
    return root if x.correction == 1.0 else root.mul_(x.correction**-0.5)


def _update(x: Piece, roles: Roles, hat: Tensor | None) -> Tensor | None:
    """The update by its rule, None where there is none to compute."""
    if roles.update is None or not x.numbers:
        return None
    a, b = roles.update.compute(Slices(x.grad, x.first, x.second, hat, x.extra), x.numbers)
    # p_new = p_old + a + b p_old, so that the update a + b p_old is (a + b p_new) / (1 + b).
    if isinstance(b, Tensor):
        return torch.addcmul(a, b, x.param).div_(b + 1)
    if b != 0.0:
        return torch.add(a, x.param, alpha=b).div_(1 + b)
    return a


class Scratch:
    """Room for two intermediate blocks, since fresh memory costs more than what is done with it."""

    def __init__(self) -> None:
        self._room: dict[tuple[str, int], Array] = {}

    def one(self, like: Array) -> Array:
        return self._get(like, 0)

    def other(self, like: Array) -> Array:
        return self._get(like, 1)

    def _get(self, like: Array, which: int) -> Array:
        key = like.dtype.char, which
        if key not in self._room:
            self._room[key] = np.empty(BLOCK, like.dtype)
        return self._room[key][: like.size]


class Block(NamedTuple):
    """Arrays of as many elements of one tensor."""

    grad: Array
    param: Array
    first: Array | None
    second: Array | None


class Energies(NamedTuple):
    """Sums of squares of a block, and Σ grad · first."""

    grad: float
    first: float
    param: float
    product: float


def _block(
    sums: Sums,
    i: int,
    x: Block,
    whole: Piece,
    part: slice,
    roles: Roles,
    simple: Quotient | None,
    scratch: Scratch,
) -> None:
    """Add one block `x` of one large tensor, `part` of the whole."""
    grad, param, first, second = x
    energies = Energies(_grad(sums, i, grad), 0.0, _param(sums, i, param), 0.0)
    if first is not None:
        firsts = _first(sums, i, first)
        if min(energies.grad, firsts) < grad.size * _LEAST:
            product = dot(grad.astype(np.float64), first.astype(np.float64))
        else:
            product = dot(grad, first)
        energies = energies._replace(first=firsts, product=product)
        sums.add("dot", i, product)
    root, scale = None, 1.0
    if second is not None:
        low = _second(sums, i, second)
        if roles.root == "itself":
            root, least = second, low
        else:
            root = np.sqrt(second, out=scratch.one(second))
            least, scale = max(low, 0.0) ** 0.5, whole.correction**-0.5
        floor, few = max(whole.epsilon, TINY) / scale, 10 * whole.epsilon / scale
        sums.add("eps", i, 0 if least >= few else int(np.count_nonzero(root < few)))
        kept = root if least >= floor else np.maximum(root, floor)
        ratio = np.divide(grad, kept, out=scratch.other(grad))
        sums.add("rms_t", i, energy(ratio) / scale**2)
    of_update = None if simple is None else _energy(x, simple, root, scale, energies, scratch)
    if of_update is None:
        if root is not None and scale != 1.0:
            root *= scale
        piece = whole.cut(part)
        hat = piece.second if root is second or root is None else torch.from_numpy(root)
        update = _update(piece, roles, hat)
        of_update = None if update is None else sum_of_squares(update)
    if of_update is not None:
        sums.add("update", i, of_update)


def _energy(
    x: Block, update: Quotient, root: Array | None, scale: float, sums: Energies, scratch: Scratch
) -> float | None:
    """Σ update² from inner products, without forming the update; None where they would cancel."""
    a, k, b, epsilon = update
    if root is None:
        square = a * a * sums.grad + k * k * sums.first
        cross = 2 * a * k * sums.product
        parts = [(factor, array) for factor, array in ((a, x.grad), (k, x.first)) if factor]
    else:
        assert x.first is not None
        wide = np.add(root, epsilon / scale, out=scratch.other(x.first))
        quotients = np.divide(x.first, wide, out=wide)
        square, cross = (k / scale) ** 2 * energy(quotients), 0.0
        parts = [(k / scale, quotients)]
    whole = square + b * b * sums.param
    if b:
        if min(square, b * b * sums.param) < x.grad.size * _LEAST:
            return None
        cross += 2 * b * sum(factor * dot(array, x.param) for factor, array in parts if array is not None)
    return whole + cross if whole + cross >= _CANCELLED * whole else None


def _grad(sums: Sums, i: int, grad: Array) -> float:
    found = energy(grad)
    sums.add("grad", i, found)
    if grad.size:
        sums.peak("grad_max", i, _largest(grad))
        sums.count("grad_zeros", i, np.count_nonzero(grad == 0))
        _count_nonfinite(sums, "grad_nonfinite", i, grad, found)
    return found


def _param(sums: Sums, i: int, param: Array) -> float:
    found = energy(param)
    sums.add("param", i, found)
    sums.peak("param_max", i, _largest(param))
    return found


def _first(sums: Sums, i: int, first: Array) -> float:
    found = energy(first)
    sums.add("first", i, found)
    _count_nonfinite(sums, "moments_nonfinite", i, first, found)
    return found


def _second(sums: Sums, i: int, second: Array) -> float:
    """The least of them."""
    low = float(np.minimum.reduce(second))
    sums.peak("second_min", i, low)
    sums.peak("second_max", i, float(np.maximum.reduce(second)))
    found = total(second)
    sums.add("second", i, found)
    _count_nonfinite(sums, "moments_nonfinite", i, second, found)
    return low


def _largest(values: Array) -> float:
    """The largest magnitude; NaN if an element is."""
    return max(-float(np.minimum.reduce(values)), float(np.maximum.reduce(values)))


def _count_nonfinite(sums: Sums, name: str, i: int, values: Array, total: float) -> None:
    """Count elements that are not finite; without one a total of theirs is finite, or out of range."""
    if not math.isfinite(total):
        sums.count(name, i, np.count_nonzero(~np.isfinite(values)))


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
    root = _hat(x, roles)
    update = _update(x, roles, root)
    sizes = [p.param.numel() for p in pieces]
    starts = np.concatenate(([0], np.cumsum(sizes)[:-1]))

    def put(name: str, values: F8) -> None:
        sums.put(name, where, np.add.reduceat(values, starts))

    def count(name: str, those: npt.NDArray[np.bool_]) -> None:
        sums.count(name, where, np.add.reduceat(those, starts, dtype=np.uint64))

    grad, param = array(x.grad), array(x.param)
    put("grad", grad * grad)
    put("param", param * param)
    sums.put("grad_max", where, np.maximum.reduceat(np.abs(grad), starts))
    sums.put("param_max", where, np.maximum.reduceat(np.abs(param), starts))
    count("grad_zeros", grad == 0)
    if not np.isfinite(grad.sum()):
        count("grad_nonfinite", ~np.isfinite(grad))
    if x.first is not None:
        first = array(x.first)
        put("first", first * first)
        if not np.isfinite(first.sum()):
            count("moments_nonfinite", ~np.isfinite(first))
        put("dot", grad * first)
    if x.second is not None and root is not None:
        second, roots = array(x.second), array(root)
        sums.put("second_min", where, np.minimum.reduceat(second, starts))
        sums.put("second_max", where, np.maximum.reduceat(second, starts))
        put("second", second)
        if not np.isfinite(second.sum()):
            count("moments_nonfinite", ~np.isfinite(second))
        ratio = grad / np.maximum(roots, max(x.epsilon, TINY))
        put("rms_t", np.square(ratio, out=ratio))
        put("eps", (roots < 10 * x.epsilon).astype(np.float64))
    if update is not None:
        put("update", array(update.square_()))


def _joined(tensors: Sequence[Tensor | None]) -> Tensor:
    some = [tensor for tensor in tensors if tensor is not None]
    if any(tensor.dtype != some[0].dtype for tensor in some):
        some = [tensor.double() for tensor in some]
    return flatten(some).double()

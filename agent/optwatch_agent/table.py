"""What the compiled pass reads: tensors of one optimizer, in place, by their addresses.

An address must never be one of memory that is not there, not here or of another shape. Where tensors are
small it takes longer to ask for all that than to measure them. So many are asked one thing at a time.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from operator import add, attrgetter, le, mod, mul
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from optwatch.wire.messages import COUNTS, STATS
from optwatch_agent.compiled import COMPILER
from optwatch_agent.kernels import BF16, F16, F32, Common, Kernels, Tensors
from optwatch_agent.pieces import Reader
from optwatch_agent.quotients import FORMS, TINY, Form, form
from optwatch_agent.roles import Roles
from optwatch_agent.shards import is_partial
from optwatch_agent.sums import Sample, Sums
from optwatch_agent.tensors import DEVICES, PLAIN, local, scalar

_STRIDED = {torch.strided}
_KINDS = {torch.float32: F32, torch.bfloat16: BF16, torch.float16: F16}
_WIDTHS = 4, 2, 2
"""Bytes of an element, by kind."""
_RUN = 64
"""Parameters that are asked at a time: all of them are asked again where one cannot be read."""

_LEAST, _MOST = 1e-36, 1e36
"""Numbers that lie between keep their bits in float32."""

_GRAD, _UPDATE = Sums.COLUMNS.index("grad"), Sums.COLUMNS.index("update")

_is_cpu = attrgetter("is_cpu")
_layout = attrgetter("layout")
_dtype = attrgetter("dtype")


Alike = tuple[torch.dtype, float | None, bool, bool, bool]
"""What parameters share: dtype, count of steps, and whether there is a gradient, and a first and a second
moment in the state."""
Member = tuple[int, int, Tensor | None, Any, Any, Tensor]
"""A parameter's number, elements, gradient, first and second moment (whatever the state holds), itself."""


class Found(NamedTuple):
    """Of some parameters how many elements each has, and of gradients, moments and parameters where
    they are (0: there is none) and as what kind of number they are stored."""

    sizes: tuple[int, ...]
    addresses: list[list[int]]
    kinds: tuple[int, ...]


class Table:
    """The tensors of one measurement that the compiled pass reads."""

    def __init__(self, kernels: Kernels, roles: Roles, overwritten: bool) -> None:
        self._kernels = kernels
        self._roles = roles
        self._overwritten = overwritten
        self._tensors = Tensors(itself=roles.root == "itself")
        self._memory: list[torch.UntypedStorage] = []
        """What the addresses point into: `p.data = …` in another thread does not free it. (To resize the
        storage would.)"""

    def take(
        self,
        where: Sequence[int],
        reader: Reader,
        params: Sequence[Tensor],
        grads: Sequence[Tensor | None],
        states: Sequence[Mapping[str, Any]],
    ) -> Sequence[int]:
        """Add those of a group's tensors, numbered by `where`, that the pass can read in place.

        Returns the numbers of these.
        """
        to = self._tensors
        before = len(to.rows)
        known: dict[Alike, tuple[tuple[bool, ...], tuple[float, ...]] | None] = {}
        for alike, state, run in self._runs(where, params, grads, states):
            if alike not in known:
                known[alike] = self._numbers(reader, alike, state)
            if (numbers := known[alike]) is None:
                continue
            for members, found in self._readable(run):
                common = Common(found.kinds, *numbers)
                number = to.commons.setdefault(common, len(to.commons))
                to.rows.extend([i for i, *_ in members])
                to.sizes.extend(found.sizes)
                to.common_of.extend([number] * len(members))
                for so_far, more in zip(to.addresses, found.addresses, strict=True):
                    so_far.extend(more)
        return to.rows[before:]

    def _runs(
        self,
        where: Sequence[int],
        params: Sequence[Tensor],
        grads: Sequence[Tensor | None],
        states: Sequence[Mapping[str, Any]],
    ) -> Iterator[tuple[Alike, Mapping[str, Any], list[Member]]]:
        """Parameters here, with all that is made of them in their state, a run of those with the same in
        common at a time; and the state of one of them."""
        roles = self._roles
        of_first, of_second = roles.first or "", roles.second or ""
        extra = frozenset(() if roles.update is None else roles.update.extra)
        runs: dict[Alike, tuple[Mapping[str, Any], list[Member]]] = {}
        for i, param, grad, state in zip(where, params, grads, states, strict=True):
            if grad is None and not self._overwritten:
                continue
            if not param.is_cpu or not extra.isdisjoint(state):
                continue
            first, second, step = state.get(of_first), state.get(of_second), state.get("step")
            if second is None and roles.factors is not None:
                continue
            if type(param) not in PLAIN or param.dtype.is_complex:
                if grad is not None and is_partial(grad):
                    continue
                param, grad, first, second = map(_real, (param, grad, first, second))
            if (size := param.numel()) == 0:
                continue
            count = None if step is None else scalar(step)
            alike = param.dtype, count, grad is not None, first is not None, second is not None
            _, run = runs.setdefault(alike, (state, []))
            run.append((i, size, grad, first, second, param))
            if len(run) == _RUN:
                yield alike, *runs.pop(alike)
        for alike, (state, run) in runs.items():
            yield alike, state, run

    def _readable(self, members: list[Member]) -> Iterator[tuple[list[Member], Found]]:
        """Those whose addresses can be relied on."""
        if (found := self._find(members)) is not None:
            yield members, found
        elif half := len(members) // 2:
            yield from self._readable(members[:half])
            yield from self._readable(members[half:])

    def _find(self, members: list[Member]) -> Found | None:
        """What is found of them, None where it cannot be relied on of each and all."""
        _, sizes, *columns = zip(*members, strict=True)
        there = [k for k, column in enumerate(columns) if column[0] is not None]
        tensors = [tensor for k in there for tensor in columns[k]]
        all_sizes = sizes * len(there)
        if not _are_plain(tensors, all_sizes):
            return None
        dtypes = list(map(_dtype, tensors))
        kinds, n = [0, 0, 0, 0], len(sizes)
        for at, k in enumerate(there):
            kind = _KINDS.get(dtypes[at * n])
            if kind is None or len(set(dtypes[at * n : at * n + n])) > 1:
                return None
            kinds[k] = kind
        memory = list(map(Tensor.untyped_storage, tensors))
        found = _addresses(memory, tensors, all_sizes, [_WIDTHS[kinds[k]] for k in there for _ in sizes])
        if found is None:
            return None
        self._memory += memory
        addresses = [[0] * n] * 4
        for at, k in enumerate(there):
            addresses[k] = found[at * n : at * n + n]
        return Found(sizes, addresses, tuple(kinds))

    def _numbers(
        self, reader: Reader, alike: Alike, state: Mapping[str, Any]
    ) -> tuple[tuple[bool, ...], tuple[float, ...]] | None:
        """Which of the sums the pass finds of parameters, and what it needs to know of them; None where
        their rule has another form."""
        _, step, grad, first, second = alike
        rule = self._roles.update
        of_rule, correction = reader.numbers(alike, state, step)
        found = None
        if of_rule and rule is not None:
            there = {self._roles.first: first, self._roles.second: second}
            if rule not in FORMS or not all(there.get(key, True) for key in rule.needs):
                return None
            try:
                found = form(rule, of_rule, first)
            except ArithmeticError:
                return None
        a, k, inside, of_root, epsilon, b = numbers = [float(number) for number in found or Form()]
        if not all(number == 0 or _LEAST < abs(number) < _MOST for number in (*numbers, reader.epsilon)):
            return None
        of_hat = correction**-0.5, max(reader.epsilon, TINY), 10 * reader.epsilon
        if not second:
            of_hat = 1.0, 1.0, 0.0
        known = _known(found is not None, grad, first, second)
        return known, (a, k, inside, of_root, epsilon + inside, b, *of_hat)

    def add_to(self, sums: Sums) -> None:
        """Add up all of them, and let go of them."""
        if self._tensors.rows:
            self._kernels.add_up(self._tensors, sums.numel, sums.values, sums.seen, sums.counts)
        self._memory.clear()

    def sample(self) -> Sample:
        """Measure all of them, where these are all that there are, and let go of them."""
        tensors = len(self._tensors.rows)
        stats = np.empty((tensors, len(STATS)), dtype=np.float32)
        counts = np.empty((tensors, len(COUNTS)), dtype=np.uint64)
        param_norm, update_norm = self._kernels.measure(self._tensors, stats, counts)
        self._memory.clear()
        knows_updates = all(
            common.known[_UPDATE] or not common.known[_GRAD] for common in self._tensors.commons
        )
        return Sample(stats, counts, param_norm, update_norm if knows_updates else None)


def table(roles: Roles, overwritten: bool = False) -> Table | None:
    """A table to fill, None where the compiled pass is not ready.

    `overwritten`: of a parameter without a gradient, that is not known, and the moments are measured.
    """
    if COMPILER.kernels is None or "cpu" in DEVICES:
        return None
    return Table(COMPILER.kernels, roles, overwritten)


@cache
def _known(update: bool, grad: bool, first: bool, second: bool) -> tuple[bool, ...]:
    """Which of the sums the pass finds where there is an update to compute, a gradient, and moments."""
    unknown = {
        *(() if update else ("update",)),
        *(() if grad else ("grad", "grad_max", "dot", "rms_t", "update")),
        *(() if first else ("first", "dot")),
        *(() if second else ("second", "second_min", "second_max", "rms_t", "eps")),
    }
    return tuple(name not in unknown for name in Sums.COLUMNS)


def _real(x: Any) -> Any:
    """What this rank holds of a tensor, as real numbers; anything else as it is."""
    return local(x) if isinstance(x, Tensor) else x


def _are_plain(tensors: Sequence[Any], sizes: tuple[int, ...]) -> bool:
    """Whether all are as they should be: plain, here, contiguous and of their size."""
    return (
        PLAIN.issuperset(map(type, tensors))
        and all(map(_is_cpu, tensors))
        and _STRIDED.issuperset(map(_layout, tensors))
        and tuple(map(Tensor.numel, tensors)) == sizes
        and all(map(Tensor.is_contiguous, tensors))
        and not any(map(Tensor.is_neg, tensors))
    )


def _addresses(
    memory: list[torch.UntypedStorage], tensors: Sequence[Tensor], sizes: tuple[int, ...], widths: list[int]
) -> list[int] | None:
    """Where tensors begin in memory that is held, None where one is not aligned or reaches beyond it."""
    begins = list(map(mul, map(Tensor.storage_offset, tensors), widths))
    ends = map(add, begins, map(mul, sizes, widths))
    bases = list(map(torch.UntypedStorage.data_ptr, memory))
    addresses = list(map(add, bases, begins))
    aligned = all(bases) and not any(map(mod, addresses, widths))
    within = all(map(le, ends, map(torch.UntypedStorage.nbytes, memory)))
    return addresses if aligned and within else None

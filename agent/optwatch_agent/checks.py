"""Checks of one optimizer's replicas: checksums of parameters and state, at steps that all ranks share.

No rank waits for another and there is no collective: each reckons from its own costs how often it can
afford a check, rounds that up to a power of two, and checks at the multiples, so that all meet at those
of the one that checks most seldom. At the step at which a command may have been applied all check as well.
The checksums of whole groups of tensors go out; those of each tensor are kept for a while, for a daemon
that sees groups differ and asks.
"""

import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from optwatch.wire.messages import Checked, Sums, TensorInfo
from optwatch.wire.parts import tensor_digest
from optwatch_agent.checksums import NOTHING, checksum, combine
from optwatch_agent.governor import Cost, Usual, period
from optwatch_agent.parts import in_step
from optwatch_agent.shards import is_only_copy, is_sharded
from optwatch_agent.tensors import on_cpu, params_of
from optwatch_agent.zero import partition_of

SHARE = 0.1
"""Of the budget, for checks."""
APART = 0.25
"""Seconds between two checks at least, so that a daemon can ask about one before it is forgotten."""
_KEPT = 64
"""Checks whose per-tensor checksums are kept."""

U8 = npt.NDArray[np.uint64]


@dataclass(frozen=True)
class Check:
    """The checksums at a step: `<u8[tensors, parts]`, and what the rows and columns are."""

    step: int
    names: tuple[str, ...]
    groups: tuple[str, ...]
    parts: tuple[str, ...]
    sums: U8


class Checks:
    """Plans and takes the checks of one optimizer; its messages wait in `taken` for the link's thread.

    `declared`: the ranks are known to hold replicas, since the model is wrapped for that.
    """

    def __init__(self, index: int, optimizer: torch.optim.Optimizer, budget: float, declared: bool) -> None:
        self.ranks = 1
        """How many ranks there are, as last told."""
        self.taken: deque[Checked] = deque(maxlen=_KEPT)
        self.every = 0
        """Steps between two checks as this rank can afford them, 0 before that is known."""
        self._possible = False
        self._index = index
        self._budget = SHARE * budget
        self._declared = declared
        self._kept: deque[Check] = deque(maxlen=_KEPT)
        params = params_of(optimizer)
        bytes_held = sum(p.numel() * p.element_size() for p in params)
        # A first guess on the high side: parameters and two moments, read twice.
        self._cost = Cost(1e-4 + 1e-4 * len(params) + 3 * bytes_held * 2e-10)
        self._step_time: Usual | None = None
        self._tensors: tuple[TensorInfo, ...] = ()
        self._groups: tuple[str, ...] = ()

    @property
    def share(self) -> float:
        """Of the budget, what checks may spend."""
        return SHARE if self._possible else 0.0

    def after(
        self,
        optimizer: torch.optim.Optimizer,
        step: int,
        step_time: float | None,
        ranks: int,
        tensors: tuple[TensorInfo, ...],
        forced: bool,
    ) -> float:
        """Check after a step if all ranks do, or if `forced`; the CPU seconds it took.

        `step_time` in seconds, None where no step came before; `tensors` names the parameters in order.
        """
        if ranks != self.ranks:
            self.ranks = ranks
            self._possible = _has_replicas(optimizer, ranks)
        if not self._possible:
            return 0.0
        self._plan(step_time)
        if forced or (self.every > 0 and in_step(self.every, step)):
            return self.take(optimizer, step, tensors)
        return 0.0

    def _plan(self, step_time: float | None) -> None:
        if step_time is None:
            return
        if self._step_time is None:
            self._step_time = Usual(step_time)
        self._step_time.see(step_time)
        usual = max(self._step_time.value, 1e-9)
        self.every = max(period(self._cost.usual, self._budget * usual), period(APART, usual))

    def take(self, optimizer: torch.optim.Optimizer, step: int, tensors: tuple[TensorInfo, ...]) -> float:
        """Take the checksums after a step, of all parameters and all their state; the CPU seconds it took."""
        began = time.thread_time()
        params = params_of(optimizer)
        if tensors is not self._tensors:
            self._tensors, self._groups = tensors, _groups(tensors)
        held = [{"parameter": param, **_state(optimizer, param)} for param in params]
        parts = ("parameter", *sorted({key for each in held for key in each} - {"parameter"}))
        sums = np.array([[checksum(each.get(part)) for part in parts] for each in held], dtype=np.uint64)
        check = Check(step, tuple(t.name for t in tensors), self._groups, parts, sums.reshape(-1, len(parts)))
        self._kept.append(check)
        declared = self._declared or any(map(is_sharded, params))
        self.taken.append(
            Checked(
                session="", seq=0, optimizer=self._index, step=step, sums=_whole(check), declared=declared
            )
        )
        cost = time.thread_time() - began
        self._cost.debit(0.0, cost)
        return cost

    def detail(self, session: str, step: int) -> tuple[Sums, U8] | None:
        """What each tensor's checksums were at a step, None where that is forgotten. The link's thread."""
        check = next((check for check in tuple(self._kept) if check.step == step), None)
        if check is None:
            return None
        header = Sums(
            session=session,
            optimizer=self._index,
            step=step,
            names=check.names,
            groups=check.groups,
            parts=check.parts,
        )
        return header, check.sums


def _has_replicas(optimizer: torch.optim.Optimizer, ranks: int) -> bool:
    """Whether any other rank may hold the same numbers, and ours can be read without a wait."""
    params = params_of(optimizer)
    if ranks == 1 or partition_of(optimizer) is not None:  # there they are the same only later in the step
        return False
    return all(map(on_cpu, params)) and not all(is_only_copy(p, ranks) for p in params)


def _whole(check: Check) -> dict[str, int]:
    """One checksum for each group of tensors, over their names and what they and their state hold."""
    sums = {}
    for group in dict.fromkeys(check.groups):
        rows = [i for i, of in enumerate(check.groups) if of == group]
        order = sorted(rows, key=lambda i: check.names[i])
        there = [j for j in range(len(check.parts)) if (check.sums[rows, j] != NOTHING).any()]
        sums[group] = combine(
            "\0".join(check.parts[j] for j in there).encode() + check.sums[np.ix_(order, there)].tobytes()
        )
    return sums


def _groups(tensors: Sequence[TensorInfo]) -> tuple[str, ...]:
    """Of each tensor, the name of its group: tensors of one shard_key, which the same ranks hold."""
    keys = [t.shard for t in tensors]
    names = {}
    for key in dict.fromkeys(keys):
        digest = tensor_digest((t.name, t.shape) for t in tensors if t.shard == key)
        names[key] = ",".join(f"{name}={at}" for name, at in key) + f"#{digest}"
    return tuple(names[key] for key in keys)


def _state(optimizer: torch.optim.Optimizer, param: Tensor) -> Mapping[str, object]:
    state = optimizer.state.get(param)
    return {str(key): value for key, value in state.items()} if isinstance(state, Mapping) else {}

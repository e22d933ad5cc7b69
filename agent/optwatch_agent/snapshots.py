"""Snapshots: what a training consists of, copied to the host's memory, and put back by a rollback.

Parameters and state of all optimizers of an attachment, what wrappers around them keep (slow weights), the
model's buffers, the GradScaler's scale and the state of the random generators. The LR and what else a
schedule sets is none of it, nor is what commands have in force.

Taken at the end of a step: on a cadence that all ranks share, without a word between them, and on command.
Each rank may still hold snapshots of other steps than the next one; a rollback names a step, and a rank that
has none of it votes against it. Non-finite ones are never kept.
"""

import logging
import math
import random
import threading
import time
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from optwatch_agent import outer, scalers
from optwatch_agent.governor import Cost, Usual, period
from optwatch_agent.hostcopies import copied, put_back, size_of, tensors_in
from optwatch_agent.later import Later
from optwatch_agent.loose import Loose
from optwatch_agent.parts import in_step
from optwatch_agent.roles import counters_of
from optwatch_agent.signals import let_through
from optwatch_agent.tensors import on_cpu, params_of

log = logging.getLogger("optwatch")

SHARE = 1 / 3
"""Of the budget, for snapshots on the cadence."""
MOST = 8
"""Snapshots that are kept at most, however small they are."""
EVERY = 32
"""Steps between two snapshots on the cadence at least."""
_EARLY = (16, 32, 64)
"""Steps of a new run at which one is taken besides: much of what goes wrong does so at its beginning."""


@dataclass
class Snapshot:
    """What was kept after a step."""

    step: int
    kept: dict[str, Any]
    good: bool = True
    """Whether it is not known to be non-finite; a device tells later."""


class Snapshots:
    """The snapshots of one attachment, within `most_bytes` of the host's memory; 0: none.

    The training thread takes and restores; the link's thread asks what there is, and holds what a vote
    is about.
    """

    def __init__(
        self,
        optimizers: Sequence[torch.optim.Optimizer],
        model: nn.Module | None,
        scaler: torch.amp.grad_scaler.GradScaler | None,
        most_bytes: int,
        budget: float,
    ) -> None:
        self.most_bytes = most_bytes
        self.size: int | None = None
        """Bytes of one, None before the first step."""
        self.on = most_bytes > 0
        """Whether any are taken."""
        self.failed = ""
        """Why none is taken any more, "" while they are."""
        self._began = False
        self.every = EVERY
        self._held = [Loose(optimizer) for optimizer in optimizers]
        self._model = None if model is None else weakref.ref(model)
        self._scaler = None if scaler is None else weakref.ref(scaler)
        self._ring: list[Snapshot] = []
        self._later: Later[Snapshot] = Later()
        self._wanted: dict[str, int] = {}
        """Steps of snapshots that votes are about, by vote."""
        self._lock = threading.Lock()
        self._budget = SHARE * budget
        self._cost = Cost(0.01)
        self._step_time: Usual | None = None

    @property
    def steps(self) -> tuple[int, ...]:
        """The steps after which those that are held were taken."""
        return tuple(snapshot.step for snapshot in tuple(self._ring) if snapshot.good)

    # --- the link's thread ----------------------------------------------------------------------------

    def no_room(self) -> str:
        """Why none can be taken, "" where one can."""
        if not self.most_bytes:
            return "attach was given no memory for snapshots: attach(snapshots=BYTES)"
        if self.failed:
            return self.failed
        if self.size is not None and self.size > self.most_bytes:
            return (
                f"a snapshot takes {self.size:,} bytes, and attach(snapshots={self.most_bytes}) allows fewer"
            )
        if not self._ring and self.size is not None:
            free = _free_bytes()
            if free is not None and free < self.size:
                return f"a snapshot takes {self.size:,} bytes, and the host has {free:,} left"
        return ""

    def missing(self, step: int) -> str:
        """Why there is nothing to roll back to, "" where there is a snapshot of the step."""
        if not self.most_bytes:
            return self.no_room()
        steps = self.steps
        if step in steps:
            return ""
        there = f"there are those of {', '.join(map(str, steps))}" if steps else "there is none yet"
        return f"no snapshot of step {step} is held here: {there}"

    def hold(self, vote: str, step: int) -> bool:
        """Keep the snapshot of a step until `let_go`; False where there is none."""
        with self._lock:
            if step not in self.steps:
                return False
            self._wanted[vote] = step
            return True

    def let_go(self, vote: str) -> None:
        """The vote is over."""
        self._wanted.pop(vote, None)

    # --- the training thread --------------------------------------------------------------------------

    def begin(self, completed: int) -> None:
        """Take the first one before the first update, if they are on: a start that goes wrong can be made
        anew."""
        if not self._began:
            self._began = True
            self.take(completed, None)
            self.size = None  # the moments are yet to come

    def due(self, step: int, step_time: float | None) -> bool:
        """Whether one is to be taken after a step, if they are on; `step_time` in seconds."""
        for snapshot, (sound,) in self._later.take():
            snapshot.good = bool(sound)
        if self.size is None:
            self.size = size_of(self._state())
        if step_time is not None:
            if self._step_time is None:
                self._step_time = Usual(step_time)
            self._step_time.see(step_time)
        return (step in _EARLY or in_step(self.every, step)) and not self.no_room()

    def give_up(self, error: Exception) -> None:
        """Take none any more."""
        self.on = False
        self.failed = f"taking a snapshot failed: {type(error).__name__}: {error}"
        log.warning("optwatch: %s; none is taken any more", self.failed, exc_info=error)

    def refuse(self, reason: str) -> None:
        """Take none at all, although there is room for them."""
        if self.on:
            self.on, self.failed = False, reason
            log.warning("optwatch: no snapshots: %s", reason)

    def take(self, step: int, loss: Any) -> str:
        """Take one after a step with its loss; why there is none, "" where it is kept."""
        if reason := self.no_room():
            return reason
        if isinstance(loss, float) and not math.isfinite(loss):
            return f"the loss of step {step} is not finite"
        began = time.thread_time()
        state = self._state()
        self.size = size_of(state)
        if reason := self.no_room():
            return reason
        sound = _sound(state)
        if sound is not None and on_cpu(sound) and not bool(sound.item()):
            return f"after step {step}, parameters or state are not finite"
        with self._lock:
            room = self._make_room(step)
            if room is None:
                return "a vote holds the snapshots that there is memory for"
        kept = copied(state, room) | {"generators": _generators()}
        snapshot = Snapshot(step, kept)
        if sound is not None and not on_cpu(sound):
            self._later.put(snapshot, sound)
        with self._lock:
            self._ring.append(snapshot)
        self._cost.see(time.thread_time() - began)
        if self._step_time is not None:
            income = self._budget * max(self._step_time.value, 1e-9)
            self.every = max(EVERY, period(self._cost.usual, income, most=1 << 20))
        return ""

    def restore(self, step: int, rng: bool) -> None:
        """Put everything back to the snapshot of a step; those of later steps go.

        Raises:
            RuntimeError: it cannot be put back.
        """
        snapshot = next((each for each in self._ring if each.step == step), None)
        if snapshot is None:
            raise RuntimeError(self.missing(step))
        kept = snapshot.kept
        if [len(part) for part in kept["params"]] != [len(params_of(o)) for o in self._optimizers]:
            raise RuntimeError(f"parameters were added or removed since the snapshot of step {step}")
        with torch.no_grad():
            for number, optimizer in enumerate(self._optimizers):
                params = params_of(optimizer)
                for param, copy in zip(params, kept["params"][number], strict=True):
                    copy.into(param)
                for state, held in zip(_states(optimizer), kept["states"][number], strict=True):
                    _restore_state(state, params, held)
                for group, held in zip(optimizer.param_groups, kept["groups"][number], strict=True):
                    for key, item in held.items():
                        group[key] = put_back(item, group.get(key))
            put_back(kept["buffers"], self._buffers())
            put_back(kept["scaler"], self._scale())
        if rng:
            _restore_generators(kept["generators"])
        with self._lock:
            self._ring = [each for each in self._ring if each.step <= step]

    def clear(self) -> None:
        """Give the memory back."""
        self._ring = []

    # --- inside ---------------------------------------------------------------------------------------

    @property
    def _optimizers(self) -> list[torch.optim.Optimizer]:
        return [held.optimizer for held in self._held]

    def _make_room(self, step: int) -> dict[str, Any] | None:
        """Let go of what the ring cannot hold beside a new one; memory to reuse. None: votes hold all."""
        assert self.size is not None
        self._ring = [each for each in self._ring if each.step != step and each.good]
        most = min(MOST, self.most_bytes // max(self.size, 1))
        room: dict[str, Any] = {}
        while len(self._ring) >= most:
            free = [each for each in self._ring if each.step not in self._wanted.values()]
            if not free:
                return None
            steps = [*(each.step for each in self._ring), step]
            spare = min(free, key=lambda each: _worth(each.step, steps, self.every))
            self._ring.remove(spare)
            room = spare.kept
        return room

    def _state(self) -> dict[str, Any]:
        """All that a snapshot is of, as it is now."""
        optimizers = self._optimizers
        return {
            "params": [params_of(optimizer) for optimizer in optimizers],
            "states": [
                [_by_place(state, params_of(optimizer)) for state in _states(optimizer)]
                for optimizer in optimizers
            ],
            "groups": [
                [
                    {key: group[key] for key in counters_of(optimizer, group)}
                    for group in optimizer.param_groups
                ]
                for optimizer in optimizers
            ],
            "buffers": self._buffers(),
            "scaler": self._scale(),
        }

    def _buffers(self) -> dict[str, Tensor]:
        model = None if self._model is None else self._model()
        return {} if model is None else dict(model.named_buffers())

    def _scale(self) -> dict[str, Tensor]:
        scaler: Any = None if self._scaler is None else self._scaler()
        scaler = scaler or next(filter(None, map(scalers.TAP.scaler_of, self._optimizers)), None)
        held = {name: getattr(scaler, name, None) for name in ("_scale", "_growth_tracker")}
        return {name: value for name, value in held.items() if isinstance(value, Tensor)}


def _worth(step: int, steps: Sequence[int], every: int) -> float:
    """How much a snapshot is needed beside the others: the gap that it would leave, over its age.

    What is kept so is close together where it is new and far apart where it is old. The oldest of n stays
    until its age is 2^(n - 1) periods; of fewer than four it goes first.
    """
    at, kept = steps.index(step), len(steps) - 1
    age = steps[-1] - step
    if at == 0:
        return math.inf if kept >= 4 and age < every << (kept - 1) else 0.0
    return (steps[at + 1] - steps[at - 1]) / max(age, 1)


def _states(optimizer: torch.optim.Optimizer) -> Iterator[Any]:
    """The optimizer's state, and that of wrappers that keep one of their own."""
    yield optimizer.state
    yield from outer.states_of(optimizer)


def _by_place(state: Mapping[Any, Any], params: Sequence[Tensor]) -> list[Any]:
    """What is kept of each parameter in order, None where there is nothing, and behind it all else."""
    others = {key: value for key, value in state.items() if not isinstance(key, Tensor)}
    return [*(state.get(param) for param in params), others]


def _restore_state(state: Any, params: Sequence[Tensor], kept: Sequence[Any]) -> None:
    for param, held in zip(params, kept, strict=False):
        if held is None:
            state.pop(param, None)
        else:
            state[param] = put_back(held, state.get(param))
    for key, held in kept[-1].items():
        state[key] = put_back(held, state.get(key))


def _sound(state: dict[str, Any]) -> Tensor | None:
    """Whether parameters and state are finite, as a tensor of one element on their device; None of nothing.

    A sum is non-finite if a summand is.
    """
    sums: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
    with torch.no_grad():
        for tensor in tensors_in([state["params"], state["states"]]):
            if tensor.numel() > 1 and (tensor.is_floating_point() or tensor.is_complex()):
                if tensor.layout is not torch.strided:
                    continue
                small = tensor.dtype in (torch.float16, torch.bfloat16)
                total = tensor.sum(dtype=torch.float32 if small else None)
                sums.setdefault((total.dtype, total.device), []).append(total)
        if not sums:
            return None
        finite = [torch.isfinite(torch.stack(totals)).all() for totals in sums.values()]
        return torch.stack([each.to(finite[0].device, non_blocking=True) for each in finite]).all()


def _generators() -> dict[str, Any]:
    found = {"torch": torch.get_rng_state(), "python": random.getstate(), "numpy": np.random.get_state()}
    cuda: Any = torch.cuda
    if cuda.is_available() and cuda.is_initialized():
        found["cuda"] = cuda.get_rng_state_all()
    return found


def _restore_generators(kept: Mapping[str, Any]) -> None:
    torch.set_rng_state(kept["torch"])
    random.setstate(kept["python"])
    np.random.set_state(kept["numpy"])
    if "cuda" in kept:
        torch.cuda.set_rng_state_all(kept["cuda"])


def _free_bytes() -> int | None:
    """What the host has left, None where it does not say."""
    try:
        with open("/proc/meminfo") as lines:
            for line in lines:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError) as error:
        let_through(error)
    return None

"""An attached agent's samples of every step, beside what a test saw of the same steps itself."""

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import optwatch
from optwatch.wire.messages import Prepare
from optwatch_agent import Watch
from optwatch_agent.agent import Agent
from optwatch_agent.control import Outcome
from optwatch_agent.probe import Sample
from optwatch_agent.recorder import Row


class Kept(deque[Outcome]):
    """Outcomes that stay to be read when the link's thread has taken them."""

    def __init__(self) -> None:
        super().__init__()
        self.all: list[Outcome] = []

    def append(self, outcome: Outcome) -> None:
        self.all.append(outcome)
        super().append(outcome)


class Hand:
    """Commands an attached agent as the daemon does, without one."""

    def __init__(self, agent: Agent) -> None:
        self.agent = agent
        self.count = 0
        self._kept = agent.control.outcomes = Kept()

    def command(self, action: str, **args: Any) -> None:
        self.count += 1
        self.agent.take(
            Prepare(
                session=self.agent.identity.session,
                command=str(self.count),
                vote=f"vote-{self.count}",
                n=1,
                steps=(),
                order=self.count,
                action=action,
                args=args,
            )
        )

    def outcomes(self) -> list[tuple[str, str, str]]:
        return [(o.prepare.action, o.state, o.reason) for o in self._kept.all]


class Sight(list[Row]):
    """The rows that an agent records, kept from the link's thread."""

    def __init__(self, watch: Watch, track: int = 0) -> None:
        super().__init__()
        recorder = watch._agent.tracks[track].recorder
        recorder.add = lambda step, values: self.append(Row(step, 0.0, values))  # type: ignore[method-assign]
        recorder.amend = self._amend  # type: ignore[method-assign]

    def _amend(self, values: Any) -> bool:
        if self:
            self[-1].values.update(values)
        return bool(self)

    def column(self, name: str) -> list[Any]:
        return [row.values.get(name) for row in self]

    @property
    def steps(self) -> list[int]:
        return [row.step for row in self]


def watched(optimizer: Any, **options: Any) -> tuple[Watch, Sight]:
    watch = optwatch.attach(optimizer, **{"budget": 1.0, **options})
    return watch, Sight(watch)


def in_threads(count: int, run: Callable[[int], None]) -> None:
    """Run something, which is given its number, so many times at once."""
    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)


def measure_always(watch: Watch) -> None:
    """Let every step be sampled, whatever it costs."""
    for track in watch._agent.tracks:
        track.governor.budget = 1e9


def samples_of(watch: Watch, track: int = 0) -> dict[int, Sample]:
    """The samples that are taken from now on, by step; kept from the link's thread."""
    taken: dict[int, Sample] = {}
    recorder = watch._agent.tracks[track].recorder
    recorder.sample = taken.__setitem__  # type: ignore[method-assign]
    return taken


@dataclass
class Step:
    """One step as the test saw it: copies in float64 of each parameter and gradient that it began with, and
    of each parameter after it."""

    before: list[Tensor]
    grads: list[Tensor]
    after: list[Tensor]
    sample: Sample | None = None


def observe(
    make: Callable[..., Any],
    model: nn.Module,
    data: Iterator[tuple[Tensor, Tensor]],
    steps: int,
    look: Callable[[Any], None] = lambda optimizer: None,
) -> list[Step]:
    """Train with an agent that measures every step it can. `look` is called after each step."""
    optimizer = make(model.parameters())
    params = list(model.parameters())
    watch = optwatch.attach(optimizer)
    measure_always(watch)
    taken = samples_of(watch)
    seen = []
    for _ in range(steps):
        grads_of_loss(model, optimizer, data)
        before, grads = copies(params), copies(p.grad for p in params)
        optimizer.step()
        seen.append(Step(before, grads, copies(params)))
        look(optimizer)
    degraded = watch._agent.tracks[0].degraded
    watch.detach()
    assert not degraded
    for number, sample in taken.items():
        seen[number - 1].sample = sample
    return seen


def copies(tensors: Iterable[Tensor]) -> list[Tensor]:
    return [tensor.detach().to(torch.float64, copy=True) for tensor in tensors]


def grads_of_loss(model: nn.Module, optimizer: Any, data: Iterator[tuple[Tensor, Tensor]]) -> None:
    x, y = next(data)
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(x), y).backward()

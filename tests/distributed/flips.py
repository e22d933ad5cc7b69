"""Replicas in one process, trained as data-parallel ranks are, in which single bits are flipped.

Models, optimizers and gradients are real, so are the checksums of the agent and the comparison of the
daemon; only what carries the messages between them is left out. Whether the replicas differ is known
from their bytes.
"""

import copy
import random
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from optwatch.daemon.replicas import Replicas
from optwatch.detect.base import Signal
from optwatch_agent.checks import Checks
from optwatch_agent.naming import names_of, tensors_of

PARTS = ("parameter", "exp_avg", "exp_avg_sq", "gradient")


@dataclass(frozen=True)
class Flip:
    """One bit: of which rank, tensor and part of it."""

    rank: int
    tensor: int
    part: str
    element: int
    bit: int


class Training:
    """A small net on several ranks: each its own batch, one mean gradient for all."""

    def __init__(self, ranks: int, seed: int = 0) -> None:
        self.draw = random.Random(seed)
        self.step = 0
        self.replicas = Replicas()
        self.models = [self._model() for _ in range(ranks)]
        self.optimizers = [torch.optim.AdamW(model.parameters(), lr=1e-3) for model in self.models]
        self.checks = [Checks(0, optimizer, 1.0, declared=True) for optimizer in self.optimizers]
        self.names = [tensors_of(o, names_of(m)) for o, m in zip(self.optimizers, self.models, strict=True)]
        self._data = torch.Generator().manual_seed(seed)

    def _model(self) -> nn.Module:
        torch.manual_seed(5)
        return nn.Sequential(nn.Linear(24, 48), nn.Tanh(), nn.LayerNorm(48), nn.Linear(48, 10))

    def draw_flip(self, parts: tuple[str, ...]) -> Flip:
        """A random rank, tensor, part, element and bit."""
        shapes = self.names[0]
        tensor = self.draw.randrange(len(shapes))
        numel = int(np.prod(shapes[tensor].shape))
        return Flip(
            self.draw.randrange(len(self.models)),
            tensor,
            self.draw.choice(parts),
            self.draw.randrange(numel),
            self.draw.randrange(32),
        )

    def train(self, flip: Flip | None = None) -> None:
        """One step. A flip of a gradient comes before the update, any other one after it."""
        self.step += 1
        for model in self.models:
            model(torch.randn(8, 24, generator=self._data)).square().mean().backward()
        for of_all in zip(*(model.parameters() for model in self.models), strict=True):
            mean = torch.stack([parameter.grad for parameter in of_all]).mean(0)
            for parameter in of_all:
                parameter.grad = mean.clone()
        if flip is not None and flip.part == "gradient":
            self._flip(flip)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        if flip is not None and flip.part != "gradient":
            self._flip(flip)

    def check(self) -> list[Signal]:
        """What the daemon finds when all ranks check after this step."""
        for rank, check in enumerate(self.checks):
            check.take(self.optimizers[rank], self.step, self.names[rank])
            message = check.taken.popleft()
            self.replicas.take(rank, 0, message.step, message.sums, message.declared, float(self.step))
        everybody = range(len(self.models))
        signals = self.replicas.look(everybody, float(self.step))
        if questions := self.replicas.questions:
            for question in questions:
                answer = self.checks[question.rank].detail("", question.step)
                assert answer is not None
                self.replicas.detail(question.rank, *answer)
            self.replicas.questions = []
            signals += self.replicas.look(everybody, float(self.step))
        return signals

    def differ(self) -> bool:
        """Whether any bit of parameters or state differs between the ranks."""
        return len({self._bytes(rank) for rank in range(len(self.models))}) > 1

    def is_destroyed(self) -> bool:
        """Whether all ranks hold non-finite parameters."""
        return all(any(not p.isfinite().all() for p in model.parameters()) for model in self.models)

    def repair(self, rank: int) -> None:
        """Give a rank what the next one has."""
        other = (rank + 1) % len(self.models)
        self.models[rank].load_state_dict(self.models[other].state_dict())
        # The optimizer would share the tensors that it is given.
        self.optimizers[rank].load_state_dict(copy.deepcopy(self.optimizers[other].state_dict()))

    def _flip(self, flip: Flip) -> None:
        words = self._tensor(flip).view(-1).view(torch.int32).numpy()
        words[flip.element] ^= np.uint32(1 << flip.bit).astype(np.int32)

    def _tensor(self, flip: Flip) -> Tensor:
        parameter = list(self.models[flip.rank].parameters())[flip.tensor]
        if flip.part == "gradient":
            assert parameter.grad is not None
            return parameter.grad
        held = {"parameter": parameter, **self.optimizers[flip.rank].state[parameter]}
        return held[flip.part].detach()  # type: ignore[no-any-return]

    def _bytes(self, rank: int) -> bytes:
        parts = []
        for parameter in self.models[rank].parameters():
            state = self.optimizers[rank].state[parameter]
            for tensor in (parameter.detach(), *(state[key] for key in sorted(state))):
                parts.append(tensor.numpy().tobytes())
        return b"".join(parts)


@dataclass
class Score:
    """What became of the flips."""

    found: int = 0
    absorbed: int = 0
    """The step that followed left no bit different: nothing is wrong any more."""
    destroyed: int = 0
    """By the mean gradient, every rank has turned NaN alike: a finding of another kind."""
    missed: int = 0
    misnamed: int = 0
    false: int = 0
    """Findings in a check of replicas that agree."""
    clean: int = 0
    """Checks of replicas that agree."""


def trial(flips: int, parts: tuple[str, ...], *, ranks: int = 3, between: int = 0, seed: int = 0) -> Score:
    """Flip bits one after another; a check follows each, `between` further steps after it."""
    score = Score()
    training = begun(ranks, seed, score)
    for _ in range(flips):
        flip = training.draw_flip(parts)
        training.train(flip)
        for _ in range(between):
            training.train()
        differ = training.differ()
        signals = training.check()
        if not differ:
            score.false += len(signals)
            if training.is_destroyed():
                score.destroyed += 1
                training = begun(ranks, seed + score.destroyed, score)
            else:
                score.absorbed += 1
            continue
        if not signals:
            score.missed += 1
        else:
            score.found += 1
            score.misnamed += not _right(training, flip, signals, ranks)
        training.repair(flip.rank)
        assert not training.differ()
        over = training.check()
        assert [signal.over for signal in over] == [True] * len(signals), over
    return score


def begun(ranks: int, seed: int, score: Score) -> Training:
    """A training after its first steps, and a check."""
    training = Training(ranks, seed)
    for _ in range(3):
        training.train()
    clean_checks(training, 1, score)
    return training


def clean_checks(training: Training, checks: int, score: Score) -> None:
    """Check after each of some steps in which nothing goes wrong."""
    for _ in range(checks):
        training.train()
        assert not training.differ()
        score.clean += 1
        score.false += len(training.check())


def _right(training: Training, flip: Flip, signals: list[Signal], ranks: int) -> bool:
    """Whether the rank (where there is a majority), the tensor and its part are the flipped ones."""
    if len(signals) != 1:
        return False
    (signal,) = signals
    parts = str(signal.evidence["parts"]).split(", ")
    return (
        signal.rank == (flip.rank if ranks >= 3 else None)
        and signal.tensor == training.names[0][flip.tensor].name
        and (flip.part in parts or flip.part == "gradient")
        and signal.onset_step <= training.step
    )

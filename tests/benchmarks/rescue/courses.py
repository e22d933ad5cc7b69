"""The trainings that are to be rescued: the faults of the detection benchmark under other optimizers.

Digits from scikit-learn, seen through fresh noise in every batch: the loss then has a floor and is not
learned by heart, so that "within 5 % of the run without the fault" means something at the end of a short run.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tests.benchmarks.detection.trainings import EVALUATE_EVERY, Cell, Tokens, Training

STEPS = 1_000
NOISE = 0.5
"""Standard deviation of the noise on pixels in [0, 1]."""

REPAIRABLE = (
    "lr_too_high",
    "lr_jump",
    "gradient_spike",
    "recurring_spikes",
    "bad_batches",
    "stale_second_moment",
    "nan",
)
"""Faults that some action on a running optimizer may repair; the others want a change in the script."""
HEALTHY = (
    "plain",
    "late_starter",
    "warm_restart",
    "mixup",
    "converged",
    "curriculum",
    "rising_gradient_norm",
    "data_outliers",
    "batch_size_change",
)


def _cnn() -> nn.Module:
    return nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)),
        nn.Conv2d(1, 8, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(256, 10),
    )


LIGHTER: dict[str, Callable[[], nn.Module]] = {"cnn": _cnn, "transformer": lambda: Tokens(blocks=1)}
"""What stands in for two models of the detection benchmark, so that a training takes at most 5 seconds."""


def _lion(parameters: Iterable[nn.Parameter], lr: float) -> torch.optim.Optimizer:
    from lion_pytorch import Lion

    return Lion(parameters, lr=lr)


OPTIMIZERS: dict[str, tuple[float, Callable[..., torch.optim.Optimizer]]] = {
    "sgd": (0.05, lambda parameters, lr: torch.optim.SGD(parameters, lr=lr, momentum=0.9)),
    "adam": (1e-3, lambda parameters, lr: torch.optim.Adam(parameters, lr=lr)),
    "adamw": (1e-3, lambda parameters, lr: torch.optim.AdamW(parameters, lr=lr)),
    "lion": (2e-4, _lion),
    "rmsprop": (1e-3, lambda parameters, lr: torch.optim.RMSprop(parameters, lr=lr)),
}
"""Each with a learning rate at which the four models train well."""


@dataclass(frozen=True)
class Case:
    """One training without its arm: what the paired comparisons pair by."""

    what: str
    model: str
    optimizer: str
    seed: int

    @property
    def name(self) -> str:
        return f"{self.what}/{self.model}/{self.optimizer}/{self.seed}"

    @property
    def twin(self) -> "Case":
        """The same training without the fault."""
        return Case("plain", self.model, self.optimizer, self.seed)


class Course(Training):
    """The detection benchmark's training, with lighter models, noisy inputs and an optimizer of choice."""

    def __init__(self, case: Case) -> None:
        super().__init__(Cell(case.model, case.what, case.seed))
        if case.what != "late_starter":
            self.model = LIGHTER.get(case.model, lambda: self.model)()
        lr, make = OPTIMIZERS[case.optimizer]
        self.lr *= lr / 1e-3
        self.optimizer = make(list(self.model.parameters()), self.lr)
        self.held_x, self.held_y = self.held_x.repeat(8, 1), self.held_y.repeat(8)
        self.held_x = self.held_x + NOISE * torch.randn(
            self.held_x.shape, generator=torch.Generator().manual_seed(0)
        )

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        x, y = super().batch(step)
        return x + NOISE * torch.randn(x.shape, generator=self.draw), y

    def steps(self, hook: Callable[[int, float | None], None]) -> Iterator[tuple[int, float, float | None]]:
        """Train; after each step: which, its loss and, now and then, the held-out loss.

        `hook` is called between the backward pass and the optimizer's step, with the number and the loss
        of the step before.
        """
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        last: float | None = None
        scale = 1.0  # what a scheduler made of the rate of the step before
        for step in range(1, STEPS + 1):
            for group in self.optimizer.param_groups:
                group["lr"] = self.rate(step) * scale
            self.optimizer.zero_grad()
            loss = self.loss(step)
            loss.backward()  # type: ignore[no-untyped-call]
            self.corrupt(step, parameters)
            hook(step - 1, last)
            if self.rate(step):
                scale = self.optimizer.param_groups[0]["lr"] / self.rate(step)
            self.optimizer.step()
            last = float(loss.detach())
            yield step, last, self._evaluate(step) if step % EVALUATE_EVERY == 0 else None

    def _evaluate(self, step: int) -> float:
        """The held-out loss; on an eighth of the noisy copies before the last step, which is what counts."""
        rows = len(self.held_x) if step == STEPS else len(self.held_x) // 8
        with torch.no_grad():
            return float(nn.functional.cross_entropy(self.model(self.held_x[:rows]), self.held_y[:rows]))

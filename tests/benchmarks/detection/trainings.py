"""Small real trainings on scikit-learn's digits, each with one fault or one harmless peculiarity."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from optwatch.series.points import Column, Points, Samples
from optwatch.wire.messages import COUNTS, STATS
from optwatch_agent.forward import Forward
from optwatch_agent.naming import describe
from optwatch_agent.norms import total_norm
from optwatch_agent.probe import Sample, measure
from optwatch_agent.roles import roles_of
from tests.benchmarks.detection.recording import Recording

STEPS = 600
INJECTED = 200
"""The step at which a fault that begins in mid-run does."""
SAMPLE_EVERY = 5
"""Steps from one look at every tensor, and at what passes through the model, to the next."""
EVALUATE_EVERY = 50
BATCH = 64
LR = 1e-3

FROM_START = frozenset(
    {
        "lr_too_high",
        "lr_too_low",
        "low_beta2",
        "large_epsilon",
        "deep_sigmoid",
        "deep_rnn",
        "dead_relu",
        "unscaled_inputs",
        "noisy_labels",
        "batch_of_2",
        "stuck_init",
    }
)
"""Faults of the set-up; the others are injected in mid-run."""


@dataclass(frozen=True)
class Cell:
    """One training: a model, what is done to it (`plain` or a name of the answer key), a seed."""

    model: str
    what: str
    seed: int

    @property
    def name(self) -> str:
        return f"{self.model}/{self.what}/{self.seed}"


class Rows(nn.Module):
    """A recurrent net over the eight rows of an image."""

    def __init__(self, cell: type[nn.GRU] | type[nn.RNN], layers: int) -> None:
        super().__init__()
        self.cells = cell(8, 48, num_layers=layers, batch_first=True)
        self.head = nn.Linear(48, 10)

    def forward(self, x: Tensor) -> Tensor:
        hidden, _ = self.cells(x.view(-1, 8, 8))
        logits: Tensor = self.head(hidden[:, -1])
        return logits


class Tokens(nn.Module):
    """Transformer blocks over the eight rows of an image."""

    def __init__(self, blocks: int = 2) -> None:
        super().__init__()
        self.rows = nn.Linear(8, 32)
        self.places = nn.Parameter(0.02 * torch.randn(8, 32))
        block = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(block, blocks, enable_nested_tensor=False)
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.blocks(self.rows(x.view(-1, 8, 8)) + self.places).mean(1))
        return logits


def _mlp(depth: int, width: int, unit: type[nn.Module]) -> nn.Module:
    layers: list[nn.Module] = []
    for i in range(depth):
        layers += [nn.Linear(64 if i == 0 else width, width), unit()]
    return nn.Sequential(*layers, nn.Linear(width, 10))


def _cnn() -> nn.Module:
    return nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)),
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(512, 10),
    )


MODELS = {
    "mlp": lambda: _mlp(2, 96, nn.ReLU),
    "cnn": _cnn,
    "gru": lambda: Rows(nn.GRU, 1),
    "transformer": Tokens,
}


def _model(cell: Cell) -> nn.Module:
    """The cell's model. Where what is done to it is a model of its own, the four differ in depth."""
    variant = list(MODELS).index(cell.model)
    match cell.what:
        case "deep_sigmoid":
            return _mlp(6 + 2 * variant, 64, nn.Sigmoid)
        case "deep_rnn":
            model: nn.Module = Rows(nn.RNN, 2 + variant)
            for name, weight in model.named_parameters():
                if "weight_hh" in name:
                    nn.init.orthogonal_(weight, gain=4.0)
            return model
        case "late_starter":
            model = _mlp(3 + variant, 64, nn.Tanh)
            for layer in model:  # type: ignore[attr-defined]
                if isinstance(layer, nn.Linear):
                    nn.init.normal_(layer.weight, 0, 0.03)
            return model
    model = MODELS[cell.model]()
    if cell.what == "dead_relu":
        for layer in model.modules():
            if isinstance(layer, nn.Linear | nn.Conv2d) and layer.weight.shape[0] != 10:
                nn.init.constant_(layer.bias, -10.0)
    if cell.what == "stuck_init":
        for weight in model.parameters():
            nn.init.zeros_(weight)
    return model


class Training:
    """The loop: data, model, optimizer and what is done to them, and what an agent sees of it."""

    def __init__(self, cell: Cell) -> None:
        # The same for a faulty training and its healthy twin, another one for each model.
        seed = len(MODELS) * cell.seed + list(MODELS).index(cell.model)
        torch.manual_seed(seed)
        self.cell = cell
        self.draw = torch.Generator().manual_seed(seed + 1)
        digits = load_digits()
        x = torch.tensor(digits.data, dtype=torch.float32) / 16
        y = torch.tensor(digits.target)
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
        x, y = x[order], y[order]
        if cell.what == "unscaled_inputs":
            x = x * 255 * 16
        self.x, self.y, self.held_x, self.held_y = x[:1400], y[:1400].clone(), x[1400:], y[1400:]
        if cell.what == "noisy_labels":
            wrong = torch.rand(1400, generator=self.draw) < 0.4
            self.y[wrong] = torch.randint(0, 10, (int(wrong.sum()),), generator=self.draw)
        self.model = _model(cell)
        factor = {"lr_too_high": 100.0, "lr_too_low": 1e-3, "deep_rnn": 3.0}.get(cell.what, 1.0)
        self.lr = LR * factor
        beta2 = {"low_beta2": 0.5}.get(cell.what, 0.999)
        epsilon = {"large_epsilon": 1e-2}.get(cell.what, 1e-8)
        parameters = list(self.model.parameters())
        self.optimizer = torch.optim.AdamW(parameters, self.lr, betas=(0.9, beta2), eps=epsilon)

    def rate(self, step: int) -> float:
        match self.cell.what:
            case "lr_jump" if step >= INJECTED:
                return self.lr * 30
            case "warm_restart":
                return self.lr * (0.5 + 0.5 * math.cos(math.pi * (step % INJECTED) / INJECTED))
            case "converged":
                return self.lr * max(1 - step / 400, 0.0)
        return self.lr

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        size = {"batch_of_2": 2}.get(self.cell.what, BATCH)
        if self.cell.what == "batch_size_change" and step >= INJECTED:
            size = 16
        pick = torch.randint(0, len(self.x), (size,), generator=self.draw)
        x, y = self.x[pick], self.y[pick]
        match self.cell.what:
            case "bad_batches" if INJECTED <= step < INJECTED + 5:
                x, y = x * 100, (y + 5) % 10
            case "recurring_spikes" if step >= INJECTED and step % 40 == 0:
                x, y = x * 100, (y + 5) % 10
            case "data_outliers" if step >= INJECTED and step % 97 == 0:
                y = torch.where(torch.arange(size) < size // 2, (y + 5) % 10, y)
            case "curriculum" | "curriculum_marked" if step >= INJECTED:
                x = x + 0.3 * torch.randn(x.shape, generator=self.draw)
        return x, y

    def loss(self, step: int) -> Tensor:
        x, y = self.batch(step)
        if self.cell.what == "mixup":
            share = float(np.random.default_rng((self.cell.seed, step)).beta(0.2, 0.2))
            other = torch.randperm(len(x), generator=self.draw)
            logits = self.model(share * x + (1 - share) * x[other])
            entropy = nn.functional.cross_entropy
            return share * entropy(logits, y) + (1 - share) * entropy(logits, y[other])
        return nn.functional.cross_entropy(self.model(x), y)

    def corrupt(self, step: int, parameters: list[nn.Parameter]) -> None:
        """What is done to the gradients."""
        at = step == INJECTED
        match self.cell.what:
            case "gradient_spike" if at:
                factor = 1e3
            case "stale_second_moment" if at:
                factor = 1e5
            case "nan" if at:
                factor = math.nan
            case "amp_overflow" if step % 100 == 50:
                factor = math.inf
            case "rising_gradient_norm":
                factor = 1 + 4 * step / STEPS
            case _:
                return
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.grad.mul_(factor)

    def run(self) -> Recording:
        """Train, and record what an agent with `model=` sees."""
        watched = _Watch(self.model, self.optimizer)
        setup = describe("", self.optimizer)
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        scaled = self.cell.what == "amp_overflow"
        for step in range(1, STEPS + 1):
            for group in self.optimizer.param_groups:
                group["lr"] = self.rate(step)
            watched.begin(step)
            self.optimizer.zero_grad()
            loss = self.loss(step)
            loss.backward()  # type: ignore[no-untyped-call]
            self.corrupt(step, parameters)
            norm = total_norm([p.grad for p in parameters if p.grad is not None])
            if not (scaled and not math.isfinite(norm)):  # a GradScaler skips such a step
                self.optimizer.step()
            values = {"loss": float(loss.detach()), "grad_norm": norm, "lr": self.rate(step)}
            if scaled:
                values["loss_scale"] = 1024.0
            if step % EVALUATE_EVERY == 0:
                values["val_loss"] = self._held_out()
            watched.take(step, values)
        marks = (INJECTED,) if self.cell.what == "curriculum_marked" else ()
        return Recording(self._held_out(), marks, setup, watched.points())

    def _held_out(self) -> float:
        with torch.no_grad():
            return float(nn.functional.cross_entropy(self.model(self.held_x), self.held_y))


class _Watch:
    """What the agent's own probe and its hooks in the model see."""

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer
        self.forward = Forward(model)
        self.roles = roles_of(optimizer)
        self.names = tuple(name for name, _ in model.named_parameters())
        self.parameters = list(model.parameters())
        self.rows: list[tuple[int, dict[str, float]]] = []
        self.samples: list[tuple[int, Sample]] = []

    def begin(self, step: int) -> None:
        self.forward.arm(step % SAMPLE_EVERY == 1)

    def take(self, step: int, values: dict[str, float]) -> None:
        if self.forward.armed:
            seen, _ = self.forward.take()
            values = {name: float(value) for name, value in seen.items()} | values
            self.samples.append((step, measure(self.optimizer, self.parameters, self.roles)))
        self.rows.append((step, values))

    def points(self) -> Points:
        columns: dict[str, Column] = {}
        for name in {name for _, values in self.rows for name in values}:
            logged = np.array([name in values for _, values in self.rows])
            columns[name] = Column(np.array([values.get(name, math.nan) for _, values in self.rows]), logged)
        stats = np.stack([sample.stats for _, sample in self.samples])
        counts = np.stack([sample.counts for _, sample in self.samples])
        samples = Samples(
            step=np.array([at for at, _ in self.samples], np.int64),
            names=self.names,
            numel=np.array([p.numel() for p in self.parameters], np.int64),
            stats={name: stats[..., i] for i, name in enumerate(STATS)},
            counts={name: counts[..., i].astype(np.uint64) for i, name in enumerate(COUNTS)},
        )
        return Points(np.array([step for step, _ in self.rows], np.int64), columns, samples=samples)

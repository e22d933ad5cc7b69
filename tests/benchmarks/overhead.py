"""What watching adds to a training step, beside what others' ways of watching add.

    python -m tests.benchmarks.overhead [--seconds N] [--models mlp,gpt]

All ways run in turn in one process on one thread, round after round; a figure is the median over rounds
of (CPU time of the way - CPU time of nothing) / CPU time of nothing. CPU time of the whole process
counts the agent's thread too, and neighbours on the machine disturb it less than the wall clock. No
daemon listens.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import torch
from torch import Tensor, nn

import optwatch
from optwatch_agent.probe import measure
from optwatch_agent.roles import roles_of

ROUNDS = 5


class Gpt(nn.Module):
    """A decoder of 10 M parameters."""

    def __init__(self, width: int = 320, layers: int = 8, words: int = 256) -> None:
        super().__init__()
        self.embed = nn.Embedding(words, width)
        layer = nn.TransformerEncoderLayer(width, 4, 4 * width, dropout=0.0, batch_first=True)
        self.body = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.head = nn.Linear(width, words)

    def forward(self, x: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1])
        out: Tensor = self.head(self.body(self.embed(x), mask=mask, is_causal=True))
        return out


class Lstm(nn.Module):
    """8 M parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(256, 768, 2, batch_first=True)
        self.head = nn.Linear(768, 256)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.lstm(x)[0])
        return out


class Small(nn.Module):
    """1,000 tensors of 256 elements."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ParameterList(nn.Parameter(torch.randn(16, 16) * 0.25) for _ in range(1000))

    def forward(self, x: Tensor) -> Tensor:
        for part in self.parts:
            x = x + 0.01 * (x @ part).tanh()
        return x


def cnn() -> nn.Module:
    """A plain stack of convolutions, 5 M parameters."""
    layers: list[nn.Module] = []
    for before, after in ((3, 64), (64, 128), (128, 256), (256, 512), (512, 768)):
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(768, 10))


MODELS: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = {
    "mlp": lambda: (
        nn.Sequential(nn.Linear(784, 900), nn.ReLU(), nn.Linear(900, 300), nn.ReLU(), nn.Linear(300, 10)),
        torch.randn(64, 784),
    ),
    "cnn": lambda: (cnn(), torch.randn(8, 3, 32, 32)),
    "lstm": lambda: (Lstm(), torch.randn(8, 32, 256)),
    "gpt": lambda: (Gpt(), torch.randint(0, 256, (4, 128))),
    "small": lambda: (Small(), torch.randn(64, 16)),
}


class Way:
    """One way to watch: what is done before and after each step."""

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, stack: ExitStack) -> None:
        self.model = model
        self.optimizer = optimizer

    def before(self) -> None: ...

    def after(self) -> None: ...


class Optwatch(Way):
    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, stack: ExitStack) -> None:
        super().__init__(model, optimizer, stack)
        self.watch = stack.enter_context(optwatch.attach(optimizer, model=model))


class EveryTensor(Way):
    def after(self) -> None:
        measure(self.optimizer, list(self.model.parameters()), roles_of(self.optimizer))


class Floor(Way):
    """One read of gradients, both moments and parameters."""

    def after(self) -> None:
        tensors = []
        for p in self.model.parameters():
            state = self.optimizer.state[p]
            tensors += [p.detach(), state["exp_avg"], state["exp_avg_sq"]]
            if p.grad is not None:
                tensors.append(p.grad)
        for tensor in tensors:
            tensor.sum()


class ClipGradNorm(Way):
    def before(self) -> None:
        nn.utils.clip_grad_norm_(self.model.parameters(), 1e9)


class ComposerMonitor(Way):
    """The list of metrics of Composer's OptimizerMonitor for Adam, re-created: per tensor and in all."""

    def after(self) -> None:
        metrics: dict[str, float] = {}
        for name, p in self.model.named_parameters():
            state = self.optimizer.state[p]
            assert p.grad is not None
            m, v = state["exp_avg"], state["exp_avg_sq"]
            update = m / (v.sqrt() + 1e-8)
            for label, tensor in (
                ("grad", p.grad),
                ("moment", m),
                ("second_moment_sqrt", v.sqrt()),
                ("update", update),
            ):
                metrics[f"l2_norm/{label}/{name}"] = float(torch.linalg.vector_norm(tensor))


class Histograms(Way):
    """TensorBoard histograms of parameters and gradients."""

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, stack: ExitStack) -> None:
        super().__init__(model, optimizer, stack)
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(stack.enter_context(tempfile.TemporaryDirectory()))
        stack.callback(self.writer.close)
        self.step = 0

    def after(self) -> None:
        self.step += 1
        for name, p in self.model.named_parameters():
            self.writer.add_histogram(name, p, self.step)
            self.writer.add_histogram(f"{name}.grad", p.grad, self.step)


WAYS: dict[str, type[Way]] = {
    "nothing": Way,
    "optwatch, default": Optwatch,
    "every tensor, every step": EveryTensor,
    "floor: one read": Floor,
    "clip_grad_norm_": ClipGradNorm,
    "Composer's metric list": ComposerMonitor,
    "TensorBoard histograms": Histograms,
}


def cost(make: Callable[[], tuple[nn.Module, Tensor]], kind: type[Way], seconds: float) -> float:
    """CPU seconds of a training step under one way of watching, after a warm-up."""
    torch.manual_seed(0)
    model, x = make()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    with ExitStack() as stack:
        way = kind(model, optimizer, stack)

        def step() -> None:
            optimizer.zero_grad()
            model(x).square().mean().backward()
            way.before()
            optimizer.step()
            way.after()

        for _ in range(3):
            step()
        steps, began, end = 0, time.process_time(), time.monotonic() + seconds
        while time.monotonic() < end or steps < 3:
            step()
            steps += 1
        return (time.process_time() - began) / steps


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=2.0, help="of each way in each round")
    parser.add_argument("--models", default=",".join(MODELS))
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as home:
        for variable in ("XDG_CONFIG_HOME", "XDG_STATE_HOME", "XDG_RUNTIME_DIR"):
            (Path(home) / variable).mkdir(mode=0o700)
            os.environ[variable] = str(Path(home) / variable)
        models = options.models.split(",")
        print(f"| added CPU time per step | {' | '.join(models)} |\n|---|{'---|' * len(models)}")
        table: dict[str, list[str]] = {way: [] for way in WAYS}
        for name in models:
            rounds = [
                {way: cost(MODELS[name], kind, options.seconds) for way, kind in WAYS.items()}
                for _ in range(ROUNDS)
            ]
            for way in WAYS:
                added = statistics.median(each[way] / each["nothing"] - 1 for each in rounds)
                plain = statistics.median(each["nothing"] for each in rounds)
                table[way].append(f"{plain * 1e3:.1f} ms" if way == "nothing" else f"{added:+.1%}")
        for way, cells in table.items():
            print(f"| {way} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()

"""What watching adds to a training step, beside what others' ways of watching add.

    python -m tests.benchmarks.overhead [--seconds N] [--models mlp,gpt] [--json PATH]

Single steps under a way alternate with steps of the same model for which it is set aside. A figure is the
CPU time that it adds, in all steps together, with the 95 % interval of a bootstrap over pairs. (Two copies of
a model differ by several percent for where they lie in memory alone, and not always by the same.) What
optwatch does by default it does not do in every step, and the agent may spend a share of the time from one
step to the next: the other steps are taken out of that. "nothing" is measured the same way: what it differs
from 0 by is the error of the method. The CPU time of the agent's threads is counted too, and neighbours on
the machine disturb it less than the wall clock; what wandb's own process does is not counted. No daemon
listens.
"""

import argparse
import contextlib
import gc
import json
import os
import statistics
import tempfile
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import optwatch
from optwatch_agent import compiled, losses
from optwatch_agent.kernels import Kernels, build, can_build
from optwatch_agent.probe import measure
from optwatch_agent.roles import roles_of

FEWEST = 3
"""Pairs of steps of every way."""


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


class Block(nn.Module):
    """Two convolutions and a way around them."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(before, after, 3, stride, 1, bias=False),
            nn.BatchNorm2d(after),
            nn.ReLU(),
            nn.Conv2d(after, after, 3, 1, 1, bias=False),
            nn.BatchNorm2d(after),
        )
        same = before == after and stride == 1
        self.around = nn.Identity() if same else nn.Conv2d(before, after, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.body(x) + self.around(x))


def cnn() -> nn.Module:
    """The shape of ResNet-18, 11 M parameters."""
    layers: list[nn.Module] = [nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64), nn.ReLU()]
    width = 64
    for after, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
        layers += [Block(width, after, stride), Block(after, after, 1)]
        width = after
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 10))


MODELS: dict[str, tuple[str, Callable[[], tuple[nn.Module, Tensor]]]] = {
    "mlp": (
        "MLP 1 M",
        lambda: (
            nn.Sequential(nn.Linear(784, 900), nn.ReLU(), nn.Linear(900, 300), nn.ReLU(), nn.Linear(300, 10)),
            torch.randn(64, 784),
        ),
    ),
    "cnn": ("CNN 11 M", lambda: (cnn(), torch.randn(8, 3, 32, 32))),
    "lstm": ("LSTM 8 M", lambda: (Lstm(), torch.randn(8, 32, 256))),
    "gpt": ("GPT 10 M", lambda: (Gpt(), torch.randint(0, 256, (4, 128)))),
    "small": ("1,000 tensors", lambda: (Small(), torch.randn(64, 16))),
    "toy": ("toy", lambda: (nn.Linear(20, 20), torch.randn(8, 20))),
}


class Way:
    """One way to watch a training: what is done before and after each step."""

    @staticmethod
    def missing() -> str:
        """Why it cannot be measured here, "" where it can."""
        return ""

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, stack: ExitStack) -> None:
        self.model = model
        self.optimizer = optimizer
        self.on = True

    def before(self) -> None: ...

    def after(self) -> None: ...

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """For the time of a step, as if nothing watched."""
        self.on = False
        yield
        self.on = True


class Nothing(Way): ...


class Default(Way):
    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, stack: ExitStack) -> None:
        super().__init__(model, optimizer, stack)
        self.watch = stack.enter_context(optwatch.attach(optimizer, model=model))

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        (track,) = self.watch._agent.tracks
        optimizer, forward, began = self.optimizer, track.forward, time.perf_counter()
        hooks = optimizer._optimizer_step_pre_hooks, optimizer._optimizer_step_post_hooks
        backward, armed = torch.autograd.backward, forward.armed
        optimizer._optimizer_step_pre_hooks = OrderedDict()
        optimizer._optimizer_step_post_hooks = OrderedDict()
        torch.autograd.backward = losses.TAP.patches[0]._original
        if armed:
            forward.arm(False)
        yield
        if armed:
            forward.arm(True)
        torch.autograd.backward = backward
        optimizer._optimizer_step_pre_hooks, optimizer._optimizer_step_post_hooks = hooks
        if track._ended is not None:  # this step is none of its own
            track._ended += time.perf_counter() - began


class EveryTensor(Way):
    """All statistics of all tensors after every step, whatever they cost."""

    kernels: Kernels | None = None

    def after(self) -> None:
        former, compiled.COMPILER.kernels = compiled.COMPILER.kernels, self.kernels
        measure(self.optimizer, list(self.model.parameters()), roles_of(self.optimizer))
        compiled.COMPILER.kernels = former


class Compiled(EveryTensor):
    @staticmethod
    def missing() -> str:
        return "" if can_build() else "no C compiler"

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, stack: ExitStack) -> None:
        super().__init__(model, optimizer, stack)
        self.kernels = Kernels(compiled.directory())


class Floor(Way):
    """One read of gradients, both moments and parameters."""

    def after(self) -> None:
        for p in self.model.parameters():
            state = self.optimizer.state[p]
            assert p.grad is not None
            for tensor in (p.detach(), p.grad, state["exp_avg"], state["exp_avg_sq"]):
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


class Wandb(Way):
    """wandb.watch of gradients and parameters, offline."""

    @staticmethod
    def missing() -> str:
        return "" if find_spec("wandb") else "not installed"

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, stack: ExitStack) -> None:
        super().__init__(model, optimizer, stack)
        import wandb

        directory = stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True))
        settings = wandb.Settings(silent=True, console="off")
        self.run = wandb.init(mode="offline", dir=directory, settings=settings)
        stack.callback(self.run.finish)
        wandb.watch(model, log="all", log_freq=1)
        stack.callback(wandb.unwatch, model)

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        import wandb

        wandb.unwatch(self.model)
        with super().aside():
            yield
        wandb.watch(self.model, log="all", log_freq=1)

    def after(self) -> None:
        self.run.log({"step": 1})


WAYS: dict[str, type[Way]] = {
    "optwatch, default": Default,
    "nothing": Nothing,
    "floor: one read of the same bytes": Floor,
    "every tensor, every step": EveryTensor,
    "every tensor, every step, compiled": Compiled,
    "clip_grad_norm_": ClipGradNorm,
    "Composer's metric list": ComposerMonitor,
    "TensorBoard histograms": Histograms,
    "wandb.watch, offline": Wandb,
}
EVERY = ("every tensor, every step", "every tensor, every step, compiled")
FLOOR = "floor: one read of the same bytes"


class Training:
    """A copy of a model in training under one way of watching."""

    def __init__(
        self, make: Callable[[], tuple[nn.Module, Tensor]], kind: type[Way], stack: ExitStack
    ) -> None:
        torch.manual_seed(0)
        self.model, self.x = make()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4, fused=True)
        self.way = kind(self.model, self.optimizer, stack)
        self.step()

    def step(self) -> None:
        self.optimizer.zero_grad()
        self.model(self.x).square().mean().backward()
        if self.way.on:
            self.way.before()
        self.optimizer.step()
        if self.way.on:
            self.way.after()


Pair = tuple[float, float]
"""CPU seconds of a step that is watched and of one that is not."""


def alternate(make: Callable[[], tuple[nn.Module, Tensor]], kind: type[Way], seconds: float) -> list[Pair]:
    """Single steps of a model in turn: watched, and as if nothing watched."""
    with ExitStack() as stack:
        training = Training(make, kind, stack)
        pairs: list[Pair] = []
        own, all_threads, began = time.thread_time(), time.process_time(), time.monotonic()
        while time.monotonic() < began + seconds or len(pairs) < FEWEST:
            seen = {}
            for watched in (True, False) if len(pairs) % 2 else (False, True):
                with contextlib.nullcontext() if watched else training.way.aside():
                    before = time.thread_time()
                    training.step()
                    seen[watched] = time.thread_time() - before
            pairs.append((seen[True], seen[False]))
        # The agent's threads wake by the clock: in a training alone, as often as a step of it is long.
        others = (time.process_time() - all_threads) - (time.thread_time() - own)
        share = others / (time.monotonic() - began)
    return [(watched * (1 + share), nothing) for watched, nothing in pairs]


def fixed_cost(steps: int = 2_000, rounds: int = 15) -> dict[str, float]:
    """Microseconds that every step costs, norms and samples apart: no-op hooks, optwatch's, the loss it sees.

    The optimizer is one that has nothing to do, since its parameter has no gradient.
    """
    loss = torch.zeros((), requires_grad=True) * 1.0

    def idle() -> torch.optim.Optimizer:
        return torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)

    def cpu(optimizer: torch.optim.Optimizer, backward: bool) -> float:
        began = time.thread_time()
        for _ in range(steps):
            if backward:
                loss.backward(retain_graph=True)
            optimizer.step()
        return (time.thread_time() - began) / steps * 1e6

    plain, hooked, watched = idle(), idle(), idle()
    hooked.register_step_pre_hook(lambda *_: None)
    hooked.register_step_post_hook(lambda *_: None)
    found: dict[str, list[float]] = {
        "no-op hooks": [],
        "optwatch's hooks": [],
        "optwatch's hooks and loss": [],
    }
    for _ in range(rounds):
        nothing, with_loss = cpu(plain, False), cpu(plain, True)
        found["no-op hooks"].append(cpu(hooked, False) - nothing)
        with optwatch.attach(watched, budget=1e-9):
            found["optwatch's hooks"].append(cpu(watched, False) - nothing)
            found["optwatch's hooks and loss"].append(cpu(watched, True) - with_loss)
    return {name: statistics.median(values) for name, values in found.items()}


@contextlib.contextmanager
def home() -> Iterator[None]:
    """Directories of our own, and no word from others."""
    with tempfile.TemporaryDirectory() as path:
        for variable in ("XDG_CONFIG_HOME", "XDG_STATE_HOME", "XDG_RUNTIME_DIR"):
            (Path(path) / variable).mkdir(mode=0o700)
            os.environ[variable] = str(Path(path) / variable)
        yield


def compile_once() -> None:
    """As on a machine that has trained before: the first training on one compiles beside its steps."""
    if can_build():
        build(compiled.directory())


def added(pairs: list[Pair]) -> tuple[float, float, float]:
    """Share of a step that a way adds over all steps, in the middle of its 95 % interval."""
    rng = np.random.default_rng(0)
    seconds = np.array(pairs)
    watched, other = seconds.sum(axis=0)
    drawn = seconds[rng.integers(len(seconds), size=(2_000, len(seconds)))].sum(axis=1)
    low, high = np.quantile(drawn[:, 0] / drawn[:, 1] - 1, (0.025, 0.975))
    return float(low), float(watched / other - 1), float(high)


def cell(pairs: dict[str, list[Pair]], way: str) -> str:
    if way not in pairs:
        return WAYS[way].missing()
    low, middle, high = added(pairs[way])
    text = f"{middle:+.1%} ({low:+.1%} … {high:+.1%})"
    if way in EVERY:
        floor = added(pairs[FLOOR])[1]
        text += f" = {middle / floor:.1f} × floor" if floor > 0 else ""
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=15.0, help="of each way and model")
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--json", type=Path, help="also write every step's seconds to this file")
    options = parser.parse_args()
    models = options.models.split(",")
    print(f"about {(options.seconds + 4) * len(models) * len(WAYS) / 60:.0f} minutes", flush=True)
    torch.set_num_threads(1)
    results: dict[str, dict[str, list[Pair]]] = {}
    with home():
        compile_once()
        fixed = fixed_cost()
        for name in models:
            print(f"{name} …", flush=True)
            results[name] = {
                way: alternate(MODELS[name][1], kind, options.seconds)
                for way, kind in WAYS.items()
                if not kind.missing()
            }
            gc.collect()
    heads = [
        f"{MODELS[name][0]}, {statistics.median(plain for _, plain in pairs['nothing']) * 1e3:.1f} ms"
        for name, pairs in results.items()
    ]
    print(f"\n| added CPU time per step | {' | '.join(heads)} |")
    print(f"|---|{'---|' * len(models)}")
    for way in WAYS:
        print(f"| {way} | {' | '.join(cell(results[name], way) for name in models)} |")
    print("\nFixed cost of every step: " + ", ".join(f"{name} {us:.1f} µs" for name, us in fixed.items()))
    if options.json:
        options.json.write_text(json.dumps({"fixed_us": fixed, "seconds_per_step": results}, indent=1))


if __name__ == "__main__":
    main()

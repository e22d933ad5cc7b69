"""One training of the demo, from the seed to the held-out loss."""

import hashlib
import time
from collections.abc import Callable

import msgspec
import torch
from torch import nn
from torch.nn import functional as F

from optwatch_agent import attach
from optwatch_agent.demo import digits
from optwatch_agent.demo.faults import Fault, FaultName, setup_for

BATCH = 128


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """How a training ended. `parameters` is the SHA-256 of all final parameters, bit by bit."""

    final_loss: float
    onset: int | None
    parameters: str


def train(
    fault_name: FaultName,
    *,
    setup_of: FaultName,
    seed: int,
    steps: int,
    watch: str | None = None,
    pace: float = 0.0,
    progress: Callable[[int, float], None] = lambda step, loss: None,
) -> Result:
    """Train a denoising autoencoder on digits with Adam, on one thread, the same for the same seed.

    Args:
        fault_name: What to inject.
        setup_of: The fault whose training it is: another one than `fault_name` to compare with.
        seed: Of the network, the batches and the noise.
        steps: Optimizer steps.
        watch: Attach optwatch under this run name; None leaves the script plain.
        pace: Seconds that a step takes at least, for eyes to follow.
        progress: Told the step and its loss, ten times a training.
    """
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    setup, fault = setup_for(setup_of), Fault(fault_name, steps)
    data = digits.load(setup.noise)
    model = fault.network(setup)
    optimizer = torch.optim.Adam(model.parameters(), lr=setup.lr)
    watching = None
    if watch is not None:
        config = {"fault": fault_name, "seed": seed, "steps": steps, "batch": BATCH, "lr": setup.lr}
        watching = attach(optimizer, model=model, name=watch, config=config)
    draws = torch.Generator().manual_seed(seed + 1)

    due = time.monotonic()
    for step in range(1, steps + 1):
        chosen = torch.randint(len(data.train), (BATCH,), generator=draws)
        clean = fault.batch(step, data.train[chosen])
        noisy = clean + setup.noise * torch.randn(clean.shape, generator=draws)
        for group in optimizer.param_groups:
            group["lr"] = setup.lr * fault.lr_factor(step)
        loss = F.mse_loss(model(noisy), clean)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if step % max(1, steps // 10) == 0:
            progress(step, loss.item())
        if pace:
            due = max(due + pace, time.monotonic())
            time.sleep(max(0.0, due - time.monotonic()))
    if watching is not None:
        watching.detach()

    with torch.no_grad():
        held_out = F.mse_loss(model(data.held_out_noisy), data.held_out)
    return Result(final_loss=held_out.item(), onset=fault.onset, parameters=_digest(model))


def _digest(model: nn.Module) -> str:
    digest = hashlib.sha256()
    for parameter in model.parameters():
        digest.update(parameter.detach().numpy().tobytes())
    return digest.hexdigest()

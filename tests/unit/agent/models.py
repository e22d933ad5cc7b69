"""Small models, data and optimizers that tests of the agent share."""

import random
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": lambda p, **k: torch.optim.SGD(p, lr=0.05, **k),
    "sgd-decay": lambda p, **k: torch.optim.SGD(p, lr=0.05, weight_decay=0.1, **k),
    "sgd-maximize": lambda p, **k: torch.optim.SGD(p, lr=1e-3, maximize=True, weight_decay=0.1, **k),
    "momentum": lambda p, **k: torch.optim.SGD(
        p, lr=0.05, momentum=0.9, weight_decay=0.1, dampening=0.1, **k
    ),
    "nesterov": lambda p, **k: torch.optim.SGD(
        p, lr=0.05, momentum=0.9, nesterov=True, weight_decay=0.1, **k
    ),
    "adam": lambda p, **k: torch.optim.Adam(p, lr=1e-2, **k),
    "adam-decay": lambda p, **k: torch.optim.Adam(p, lr=1e-2, weight_decay=0.1, betas=(0.8, 0.95), **k),
    "amsgrad": lambda p, **k: torch.optim.Adam(p, lr=1e-2, amsgrad=True, **k),
    "adam-maximize": lambda p, **k: torch.optim.Adam(p, lr=1e-3, maximize=True, **k),
    "adamw": lambda p, **k: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.1, **k),
    "nadam": lambda p, **k: torch.optim.NAdam(p, lr=1e-2, **k),
    "nadam-decay": lambda p, **k: torch.optim.NAdam(p, lr=1e-2, weight_decay=0.1, **k),
    "nadam-decoupled": lambda p, **k: torch.optim.NAdam(
        p, lr=1e-2, weight_decay=0.1, decoupled_weight_decay=True, **k
    ),
    "radam": lambda p, **k: torch.optim.RAdam(p, lr=1e-2, **k),
    "radam-decoupled": lambda p, **k: torch.optim.RAdam(
        p, lr=1e-2, weight_decay=0.1, decoupled_weight_decay=True, **k
    ),
    "adamax": lambda p, **k: torch.optim.Adamax(p, lr=1e-2, weight_decay=0.1, **k),
    "rmsprop": lambda p, **k: torch.optim.RMSprop(p, lr=1e-3, weight_decay=0.1, **k),
    "rmsprop-centered": lambda p, **k: torch.optim.RMSprop(p, lr=1e-3, centered=True, **k),
    "rmsprop-momentum": lambda p, **k: torch.optim.RMSprop(p, lr=1e-3, momentum=0.9, **k),
    "adagrad": lambda p, **k: torch.optim.Adagrad(p, lr=1e-2, lr_decay=0.01, weight_decay=0.1, **k),
    "rprop": lambda p, **k: torch.optim.Rprop(p, lr=1e-3, **k),
    "adadelta": lambda p, **k: torch.optim.Adadelta(p, **k),
    "asgd": lambda p, **k: torch.optim.ASGD(p, **k),
    "adafactor": lambda p, **k: torch.optim.Adafactor(p, **k),
    "muon": lambda p, **k: torch.optim.Muon([q for q in p if q.ndim == 2], lr=1e-2, **k),
}
"""Constructors by name; those after `rprop` have no update rule."""

WITHOUT_RULE = ("adadelta", "asgd", "adafactor", "muon")


def classifier(seed: int = 0, width: int = 24, dtype: torch.dtype = torch.float32) -> nn.Sequential:
    """A small net with dropout, so that a stray use of the global generator shows."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(12, width),
        nn.ReLU(),
        nn.Dropout(0.2),
        nn.Linear(width, width),
        nn.Tanh(),
        nn.Linear(width, 3),
    ).to(dtype)


def batches(seed: int = 1, dtype: torch.dtype = torch.float32) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless batches from an own generator."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(3, 12, generator=generator)
    while True:
        y = torch.randint(0, 3, (32,), generator=generator)
        x = centres[y] + torch.randn(32, 12, generator=generator)
        yield x.to(dtype), y


def train(
    model: nn.Module, optimizer: torch.optim.Optimizer, data: Iterator[tuple[Tensor, Tensor]], steps: int
) -> list[float]:
    """A plain loop; the losses."""
    losses = []
    for _ in range(steps):
        x, y = next(data)
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def fingerprint(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[Any]:
    """Every bit that training depends on: parameters, optimizer state and the generators; and whether tensors
    can still be resized, and swapped, which weak references forbid."""
    state = optimizer.state_dict()

    def leaves(value: Any) -> Any:
        if isinstance(value, Tensor):
            references = weakref.getweakrefcount(value)
            value = value.detach().to_dense()
            resizable = value.untyped_storage().resizable()
            bits = value.clone().numpy().tobytes()  # of a copy: `numpy` ends that
            return (str(value.dtype), tuple(value.shape), resizable, references, bits)
        if isinstance(value, np.ndarray):
            return value.tobytes()
        if isinstance(value, dict):
            return [(key, leaves(item)) for key, item in value.items()]
        if isinstance(value, (list, tuple)):
            return [leaves(item) for item in value]
        return value

    generators = [torch.get_rng_state(), np.random.get_state(), random.getstate()]
    return [leaves(list(model.parameters())), leaves(state), leaves(generators)]

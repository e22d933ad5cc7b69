"""The faults that the demo injects, each with the training it is injected into."""

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import nn

FaultName = Literal["lr_spike", "bad_batch", "lr_too_high", "vanishing", "plateau", "none"]
FAULTS: tuple[FaultName, ...] = get_args(FaultName)

SPIKE_STEPS = 20


@dataclass(frozen=True)
class Setup:
    """A training before any fault. `noise` is the standard deviation added to the inputs."""

    lr: float
    noise: float
    normalised: bool

    def network(self) -> nn.Sequential:
        """A denoising autoencoder [batch, 64] → [batch, 64]; LayerNorm where it is normalised."""
        if self.normalised:
            return _stack((256, 256, 256), nn.ReLU, normalised=True)
        return _stack((256, 256, 32, 256, 256), nn.ReLU, normalised=False)


PLAIN = Setup(lr=1e-3, noise=0.5, normalised=False)
NORMALISED = Setup(lr=6e-4, noise=1.0, normalised=True)


def setup_for(fault: FaultName) -> Setup:
    """The training that a fault is shown on: one that it really hurts when nobody acts.

    A plain network is destroyed for good by an LR spike, and a normalised one shrugs off a bad batch.
    """
    return NORMALISED if fault == "lr_spike" else PLAIN


@dataclass(frozen=True)
class Fault:
    """What goes wrong in a training of `steps` steps. Steps count from 1."""

    name: FaultName
    steps: int

    @property
    def onset(self) -> int | None:
        """The first step it acts at, None for no fault."""
        if self.name == "none":
            return None
        return 1 if self.name in ("lr_too_high", "vanishing") else max(1, self.steps // 3)

    def network(self, setup: Setup) -> nn.Sequential:
        """The setup's network, or a deep sigmoid net in its place."""
        if self.name == "vanishing":
            return _stack((128,) * 12, nn.Sigmoid, normalised=False)
        return setup.network()

    def lr_factor(self, step: int) -> float:
        """What the LR is multiplied by at a step."""
        onset = self.onset or 0
        if self.name == "lr_spike" and onset <= step < onset + SPIKE_STEPS:
            return 30.0
        if self.name == "lr_too_high":
            return 100.0
        if self.name == "plateau" and step >= onset:
            return 1e-4
        return 1.0

    def batch(self, step: int, pixels: torch.Tensor) -> torch.Tensor:
        """The batch [batch, 64] of a step as the training gets it."""
        return pixels * 100 if self.name == "bad_batch" and step == self.onset else pixels


def _stack(widths: tuple[int, ...], activation: type[nn.Module], *, normalised: bool) -> nn.Sequential:
    layers: list[nn.Module] = []
    size = 64
    for width in widths:
        layers.append(nn.Linear(size, width))
        if normalised:
            layers.append(nn.LayerNorm(width))
        layers.append(activation())
        size = width
    return nn.Sequential(*layers, nn.Linear(size, 64))

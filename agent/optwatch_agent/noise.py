"""Noise on gradients or parameters, from generators of its own: those of the training are not touched.

Every tensor has a seed at every step, made of the command's, the step, the tensor's place and its shard_key:
replicas draw the same numbers, and different parts of a tensor different ones.
"""

from collections.abc import Iterator
from hashlib import blake2b

import torch
from torch import Tensor

from optwatch.wire.actions import Perturb
from optwatch_agent.shards import shard_key
from optwatch_agent.tensors import local


class Noise:
    """Gaussian noise on the gradients of one optimizer, of standard deviation std / (1 + t)^(decay / 2) after
    t steps: σ² = η / (1 + t)^γ (Neelakantan et al. 2015, "Adding Gradient Noise Improves Learning for Very
    Deep Networks")."""

    def __init__(self, action: Perturb, step: int) -> None:
        self.std = action.std or 0.0
        self._decay = action.decay
        self._seed = action.seed or 0
        self._since = step

    def std_at(self, step: int) -> float:
        """The standard deviation at a step."""
        return float(self.std / (1 + max(step - self._since, 0)) ** (self._decay / 2))

    def add(self, optimizer: torch.optim.Optimizer, step: int) -> float:
        """Add the noise of a step to the gradients; its standard deviation."""
        std = self.std_at(step)
        scaled_by = getattr(optimizer, "grad_scale", None)  # a fused step under a GradScaler
        with torch.no_grad():
            for param, number in _seeded(optimizer, self._seed, step):
                if param.grad is not None:
                    noise = _drawn(local(param.grad), number, std)
                    local(param.grad).add_(noise if scaled_by is None else noise * scaled_by)
        return std


def perturb_parameters(optimizer: torch.optim.Optimizer, action: Perturb, step: int) -> None:
    """Add noise to the parameters, once."""
    with torch.no_grad():
        for param, number in _seeded(optimizer, action.seed or 0, step):
            local(param).add_(_drawn(local(param), number, action.std or 0.0))


def _seeded(optimizer: torch.optim.Optimizer, seed: int, step: int) -> Iterator[tuple[Tensor, int]]:
    params = (param for group in optimizer.param_groups for param in group["params"])
    for place, param in enumerate(params):
        text = repr((seed, step, place, shard_key(param))).encode()
        yield param, int.from_bytes(blake2b(text, digest_size=8).digest(), "little") >> 1


def _drawn(like: Tensor, seed: int, std: float) -> Tensor:
    generator = torch.Generator(like.device).manual_seed(seed)
    noise = torch.randn(like.shape, generator=generator, device=like.device, dtype=torch.float32)
    return noise.mul_(std).to(like.dtype)

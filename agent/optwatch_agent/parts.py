"""Global norms of sharded tensors: what this rank holds of them, by shard_key (`optwatch.wire.parts`)."""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from optwatch.wire.messages import STATS, TensorInfo
from optwatch.wire.parts import Part, tensor_digest
from optwatch_agent import device_norms
from optwatch_agent.norms import squares
from optwatch_agent.probe import Sample
from optwatch_agent.recorder import Value
from optwatch_agent.shards import is_partial, is_sharded, shard_sizes
from optwatch_agent.tensors import local, on_device, params_of
from optwatch_agent.zero import DIMENSION, partition_of

F8 = npt.NDArray[np.float64]
Key = tuple[tuple[str, int, int], ...]
"""(dimension, coordinate, size) of each dimension that shards a tensor."""


class Parts:
    """The parts that the tensors of one optimizer fall into on this rank. Every rank sends all of its own,
    also those that are 0, so that a part that is missing is noticed."""

    def __init__(self, params: Sequence[Tensor], keys: Sequence[Key], digests: Mapping[Key, str]) -> None:
        """`keys`: of each parameter; `digests`: of all tensors that have a key, also on other ranks."""
        self._keys = list(digests)
        self._of = np.array([self._keys.index(key) for key in keys], dtype=np.intp)
        self._digests = list(digests.values())
        self._held: F8 = np.array([local(p).numel() for p in params], dtype=np.float64)

    def gradients(self, params: Sequence[Tensor]) -> dict[str, Value]:
        """The parts of `grad_norm`, as columns. None where a gradient is yet to be summed over ranks."""
        grads = [(i, p.grad) for i, p in enumerate(params) if p.grad is not None]
        if any(is_partial(grad) for _, grad in grads):
            return {}
        if any(on_device(local(param)) for param in params):
            return self._on_device([(i, local(grad)) for i, grad in grads])
        sums = np.zeros(len(params))
        sums[[i for i, _ in grads]] = squares([local(grad) for _, grad in grads])
        return dict(self._columns("grad_norm", sums))

    def of_norms(self, norms: Sequence[tuple[int, Value]]) -> dict[str, Value]:
        """The same from the norms of single gradients, by index."""
        columns: dict[str, Value] = {}
        for number, (key, digest) in enumerate(zip(self._keys, self._digests, strict=True)):
            held = [norm for i, norm in norms if self._of[i] == number]
            columns[Part("grad_norm", key, digest).column] = device_norms.joined(held)
        return columns

    def _on_device(self, grads: Sequence[tuple[int, Tensor]]) -> dict[str, Value]:
        """The same as tensors; none where a part of them is elsewhere."""
        if not all(on_device(grad) for _, grad in grads):
            return {}
        columns: dict[str, Value] = {}
        for number, (key, digest) in enumerate(zip(self._keys, self._digests, strict=True)):
            held = [grad for i, grad in grads if self._of[i] == number]
            columns[Part("grad_norm", key, digest).column] = device_norms.total_norm(held) if held else 0.0
        return columns

    def sampled(self, sample: Sample) -> dict[str, float]:
        """The parts of `param_norm` and `update_norm`, as columns, from per-tensor roots."""
        columns = {}
        with np.errstate(invalid="ignore", over="ignore"):
            mean = np.square(sample.stats.astype(np.float64))
        params = np.where(self._held > 0, mean[:, STATS.index("param_rms")] * self._held, 0.0)
        columns.update(self._columns("param_norm", params))
        updates = mean[:, STATS.index("update_rms")]
        still = np.isnan(mean[:, STATS.index("grad_rms")]) | (self._held == 0)  # no gradient, no update
        if not np.isnan(updates[~still]).any():
            columns.update(self._columns("update_norm", np.where(still, 0.0, updates * self._held)))
        return columns

    def _columns(self, norm: str, sums: F8) -> dict[str, float]:
        total = np.zeros(len(self._keys))
        np.add.at(total, self._of, sums)
        return {
            Part(norm, key, digest).column: float(value)
            for key, digest, value in zip(self._keys, self._digests, np.sqrt(total), strict=True)
        }


def parts_of(optimizer: torch.optim.Optimizer, tensors: Sequence[TensorInfo]) -> Parts | None:
    """The parts of an optimizer's tensors, None where this rank holds all of them whole."""
    params = params_of(optimizer)
    if (partition := partition_of(optimizer)) is not None:
        key: Key = ((DIMENSION, partition.rank, partition.size),)
        return Parts(params, [key] * len(params), {key: tensor_digest((t.name, t.shape) for t in tensors)})
    if not any(is_sharded(param) for param in params):
        return None
    keys: list[Key] = [
        tuple((name, at, size) for (name, at), size in zip(t.shard, shard_sizes(p), strict=True))
        for p, t in zip(params, tensors, strict=True)
    ]
    digests = {
        key: tensor_digest((t.name, t.shape) for t, k in zip(tensors, keys, strict=True) if k == key)
        for key in keys
    }
    return Parts(params, keys, digests)


def in_step(every: int, step: int) -> bool:
    """Whether all ranks measure at a step, whatever each can afford: parts are of use only together.

    A rank that could measure every 5 steps does so every 8, and meets one that does so every 16.
    """
    return step % (1 << (every - 1).bit_length()) == 0

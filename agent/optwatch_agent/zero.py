"""ZeroRedundancyOptimizer: every rank updates whole tensors, each a part of them.

The optimizer that does the work is the rank's local one, and it knows its own tensors only. To the daemon
this is a sharding like any other: along a dimension `zero` a rank holds all elements of the tensors that
it updates, and none of the others. All ranks have all gradients.
"""

import sys
import weakref
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from optwatch_agent.probe import Sample

Counts = npt.NDArray[np.uint32]

DIMENSION = "zero"
"""The name of the dimension in shard_keys."""

_outer: "weakref.WeakKeyDictionary[torch.optim.Optimizer, weakref.ref[Any]]" = weakref.WeakKeyDictionary()


class Partition:
    """The share of one rank. Reads the groups anew each time: groups may be added."""

    def __init__(self, outer: Any) -> None:
        self._outer = outer

    @property
    def groups(self) -> list[dict[str, Any]]:
        """The param_groups of all ranks together."""
        groups: list[dict[str, Any]] = self._outer.param_groups
        return groups

    @property
    def params(self) -> list[Tensor]:
        """The parameters of all ranks, in their order."""
        return [param for group in self.groups for param in group["params"]]

    @property
    def rank(self) -> int:
        return int(self._outer.rank)

    @property
    def size(self) -> int:
        return int(self._outer.world_size)

    @property
    def owned(self) -> set[int]:
        """The ids of the parameters that this rank updates."""
        return {id(param) for group in self._outer.optim.param_groups for param in group["params"]}


def remember(wrapper: Any, inner: torch.optim.Optimizer) -> None:
    """Note a wrapper that was taken off an optimizer, in case it is of this kind."""
    module = sys.modules.get("torch.distributed.optim")
    if module is not None and isinstance(wrapper, module.ZeroRedundancyOptimizer):
        _outer[inner] = weakref.ref(wrapper)


def partition_of(optimizer: torch.optim.Optimizer) -> Partition | None:
    """What share an optimizer has of a larger one, None where it has all of its own."""
    reference = _outer.get(optimizer)
    outer = None if reference is None else reference()
    return None if outer is None else Partition(outer)


def groups_of(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """The param_groups of an optimizer over all ranks."""
    partition = partition_of(optimizer)
    return optimizer.param_groups if partition is None else partition.groups


def spread(sample: Sample, optimizer: torch.optim.Optimizer) -> Sample:
    """A record of the tensors of all ranks from one of this rank's: of the others it says nothing."""
    if partition_of(optimizer) is None:
        return sample
    stats = _spread(sample.stats, optimizer, np.nan)
    return sample._replace(stats=stats, counts=_spread(sample.counts, optimizer, 0))


def spread_counts(counts: Counts, optimizer: torch.optim.Optimizer) -> Counts:
    """The same of histograms, u4[T, WIDTH]."""
    return counts if partition_of(optimizer) is None else _spread(counts, optimizer, 0)


def _spread(of_own: npt.NDArray[Any], optimizer: torch.optim.Optimizer, other: float) -> npt.NDArray[Any]:
    partition = partition_of(optimizer)
    assert partition is not None
    place = {id(param): at for at, param in enumerate(partition.params)}
    out = np.full((len(place), of_own.shape[1]), other, dtype=of_own.dtype)
    out[[place[id(param)] for group in optimizer.param_groups for param in group["params"]]] = of_own
    return out

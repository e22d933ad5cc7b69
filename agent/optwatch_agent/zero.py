"""ZeroRedundancyOptimizer: every rank updates whole tensors, each a part of them.

The optimizer that does the work is the rank's local one, and it knows its own tensors only. To the daemon
this is a sharding like any other: along a dimension `zero` a rank holds all elements of the tensors that
it updates, and none of the others. All ranks have all gradients.
"""

import dataclasses
import sys
import weakref
from typing import Any

import numpy as np
import torch
from torch import Tensor

from optwatch_agent.probe import Sample

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
    partition = partition_of(optimizer)
    if partition is None:
        return sample
    place = {id(param): at for at, param in enumerate(partition.params)}
    rows = [place[id(param)] for group in optimizer.param_groups for param in group["params"]]
    stats = np.full((len(place), sample.stats.shape[1]), np.nan, dtype=sample.stats.dtype)
    counts = np.zeros((len(place), sample.counts.shape[1]), dtype=sample.counts.dtype)
    stats[rows], counts[rows] = sample.stats, sample.counts
    return dataclasses.replace(sample, stats=stats, counts=counts)

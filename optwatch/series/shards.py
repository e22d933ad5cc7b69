"""Shards: the per-tensor records of ranks that hold parts of the tensors, merged into whole ones.

One record for each (name, shard_key) counts, the lowest rank's; the others are replicas. What is merged
is exact: sums of squares, sums, counts, minima and maxima are recovered from the roots and ratios of the
wire, weighted with the elements that each rank holds, in float64.
"""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from optwatch.wire.messages import Schema, TensorInfo

F8 = npt.NDArray[np.float64]
F4 = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint64]
Index = npt.NDArray[np.intp]
Shard = tuple[tuple[str, int], ...]

ROOTS = ("rms", "rms_t")
COSINE = "cos_grad_exp_avg"


class Holding:
    """What one rank holds, the tensors of each shard together: taken apart once, for there may be a thousand
    ranks with hundreds of tensors each, and plans come and go with them."""

    def __init__(self, schema: Schema) -> None:
        self.schema = schema
        self.held: F8 = np.array(
            [numel(tensor) if tensor.held is None else tensor.held for tensor in schema.tensors], np.float64
        )
        """Of each row, how many elements are there."""
        self.elements = float(self.held.sum())
        self.names = tuple(tensor.name for tensor in schema.tensors)
        rows: dict[Shard, dict[str, int]] = {}
        for row, tensor in enumerate(schema.tensors):
            rows.setdefault(tensor.shard, {}).setdefault(tensor.name, row)
        self.shards = [
            (shard, tuple(own), np.array(list(own.values()), np.intp)) for shard, own in rows.items()
        ]
        """Shard, the names of its tensors, and their rows."""

    @cached_property
    def whole(self) -> float:
        """How many elements its tensors have in all, wherever they are."""
        return float(sum(map(numel, self.schema.tensors)))


class Plan:
    """Which ranks' records are needed, and how they make up the whole tensors.

    `holdings`: rank → what it holds; all have the same statistics.
    """

    def __init__(self, holdings: Mapping[int, Holding]) -> None:
        order = sorted(holdings)
        self.stats = holdings[order[0]].schema.stats
        self.counts = holdings[order[0]].schema.counts
        tensors: dict[str, TensorInfo] = {}
        places: dict[tuple[str, ...], Index] = {}
        taken: dict[Shard, set[str]] = {}
        rows: dict[int, Index] = {}
        into: list[Index] = []
        held: list[F8] = []
        for rank in order:
            holding = holdings[rank]
            if holding.names not in places:
                for tensor in holding.schema.tensors:
                    if tensor.name not in tensors:
                        tensors[tensor.name] = msgspec.structs.replace(tensor, shard=(), held=None)
                number = {name: at for at, name in enumerate(tensors)}
                places[holding.names] = np.array([number[name] for name in holding.names], np.intp)
            own = [
                at if shard not in taken else at[[name not in taken[shard] for name in names]]
                for shard, names, at in holding.shards
            ]
            for shard, names, _ in holding.shards:
                taken.setdefault(shard, set()).update(names)
            needed = np.concatenate([np.empty(0, np.intp), *own])
            if len(needed):
                rows[rank] = needed
                into.append(places[holding.names][needed])
                held.append(holding.held[needed])
        self.tensors = tuple(tensors.values())
        """The whole tensors, as the lowest rank that has them orders them."""
        self.ranks = tuple(rows)
        """The ranks whose records are needed."""
        self._rows = rows
        self._into: Index = np.concatenate([*into, np.empty(0, np.intp)])
        self._held: F8 = np.concatenate([*held, np.empty(0)])
        self._total = self._add(self._held)
        self.complete = self._total.tolist() == [numel(tensor) for tensor in self.tensors]
        """Whether the ranks hold all elements of all tensors between them."""

    def merge(self, records: Mapping[int, tuple[F4, U8]]) -> tuple[F4, U8]:
        """Merge stats [T, S] and counts [T, C] of each of `ranks` into those of the whole tensors."""
        stats = np.concatenate([records[rank][0][self._rows[rank]] for rank in self.ranks]).astype(np.float64)
        merged = np.empty((len(self.tensors), len(self.stats)))
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
            for at, name in enumerate(self.stats):
                merged[:, at] = self._cosine(stats) if name == COSINE else self._one(name, stats[:, at])
            whole = merged.astype(np.float32)
        return whole, self.add_up({rank: records[rank][1] for rank in self.ranks})

    def add_up(self, records: Mapping[int, npt.NDArray[np.unsignedinteger[Any]]]) -> U8:
        """Add up counts [T, C] of each of `ranks` to those of the whole tensors."""
        counts = np.concatenate([records[rank][self._rows[rank]] for rank in self.ranks])
        total = np.zeros((len(self.tensors), counts.shape[1]), dtype=np.uint64)
        np.add.at(total, self._into, counts.astype(np.uint64, copy=False))
        return total

    def _one(self, name: str, values: F8) -> F8:
        if name.endswith("_max"):
            return self._extreme(np.maximum, values, -np.inf)
        if name.endswith("_min"):
            return self._extreme(np.minimum, values, np.inf)
        if name.endswith(ROOTS):
            return np.sqrt(self._mean(np.square(values)))
        return self._mean(values)

    def _add(self, values: F8) -> F8:
        out = np.zeros(len(self.tensors))
        np.add.at(out, self._into, values)
        return out

    def _sum(self, values: F8) -> F8:
        """Σ held · value. A rank that holds nothing of a tensor says nothing about it."""
        return self._add(np.where(self._held > 0, self._held * values, 0.0))

    def _mean(self, values: F8) -> F8:
        return self._sum(values) / self._total

    def _extreme(self, ufunc: np.ufunc, values: F8, start: float) -> F8:
        out = np.full(len(self.tensors), start)
        ufunc.at(out, self._into, np.where(self._held > 0, values, start))
        return np.where(self._total > 0, out, np.nan)

    def _cosine(self, stats: F8) -> F8:
        if not {"grad_rms", "exp_avg_rms"} <= set(self.stats):
            return np.full(len(self.tensors), np.nan)
        cosine, gradient, moment = (
            stats[:, self.stats.index(name)] for name in (COSINE, "grad_rms", "exp_avg_rms")
        )
        # Where either part is zero its cosine is undefined, and its share of the product nothing.
        product = np.where((gradient == 0) | (moment == 0), 0.0, cosine * gradient * moment)
        return self._sum(product) / np.sqrt(self._sum(np.square(gradient)) * self._sum(np.square(moment)))


def numel(tensor: TensorInfo) -> int:
    """Elements of the whole tensor, capped where a shape off the wire is absurd."""
    total = 1
    for length in tensor.shape:
        total = min(total * length, 1 << 62)
    return total


def same_tensors(schemas: Sequence[Schema]) -> bool:
    """Whether all hold the same parts of the same tensors: each is a replica of the others."""
    return len({tuple((t.name, t.shape, t.shard) for t in schema.tensors) for schema in schemas}) <= 1

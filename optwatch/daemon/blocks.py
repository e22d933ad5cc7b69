"""Blocks: rows of a batch or a chunk as points, per-tensor records as samples."""

from collections.abc import Sequence

import numpy as np

from optwatch.daemon.assembly import Record
from optwatch.series.points import Points, Samples, Table
from optwatch.wire.messages import Schema, TensorInfo


def scalar_points(
    step: np.ndarray,
    wall: np.ndarray,
    values: np.ndarray,
    logged: np.ndarray,
    names: tuple[str, ...],
) -> Points:
    """Blocks of a batch as points: step [n], wall [n], values [n, S], logged [n, S], and S names."""
    was = logged != 0
    table = Table(names, np.where(was, values, np.nan), was)
    return Points(step.copy(), table, wall.copy())  # no views that would keep a whole message


def samples(step: np.ndarray, stats: np.ndarray, counts: np.ndarray, schema: Schema) -> Samples | None:
    """Blocks of a batch as samples: step [k], stats [k, T, S], counts [k, T, C]; None for k = 0."""
    if len(step) == 0:
        return None
    return Samples(
        step,
        tuple(tensor.name for tensor in schema.tensors),
        np.array([_numel(tensor) for tensor in schema.tensors], dtype=np.int64),
        {name: stats[:, :, at] for at, name in enumerate(schema.stats)},
        {name: counts[:, :, at] for at, name in enumerate(schema.counts)},
    )


def with_samples(points: Points, records: Sequence[Record]) -> Points:
    """Points with the records of their steps: those that have the schema of the last of them."""
    own = [record for record in records if points.step[0] <= record.step <= points.step[-1]]
    own = [record for record in own if record.schema == own[-1].schema]
    return Points(points.step, points.columns, points.wall, record_samples(own)) if own else points


def record_samples(records: Sequence[Record]) -> Samples | None:
    """Records of one schema as samples."""
    if not records:
        return None
    return samples(
        np.array([record.step for record in records], dtype=np.int64),
        np.stack([record.stats for record in records]),
        np.stack([record.counts for record in records]),
        records[0].schema,
    )


def _numel(tensor: TensorInfo) -> int:
    numel = 1
    for length in tensor.shape:
        numel = min(numel * length, 1 << 62)
    return numel

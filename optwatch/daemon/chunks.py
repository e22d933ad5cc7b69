"""Chunks: the blocks of many batches as one blob, bit for bit as they came.

A chunk of kind "s" holds step <i8[n], wall <f8[n], values <f8[n, S], logged |u1[n, S] one behind the
other; one of kind "t" holds step <i8[k], stats <f4[k, T·S], counts <u8[k, T·C].
"""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from optwatch.wire.frames import BatchBlocks
from optwatch.wire.messages import Schema

ChunkKind = Literal["s", "t"]


def widths(kind: ChunkKind, schema: Schema) -> tuple[tuple[str, int], ...]:
    """Dtype and numbers per row of each block of a chunk."""
    if kind == "s":
        return ("<i8", 1), ("<f8", 1), ("<f8", len(schema.scalars)), ("|u1", len(schema.scalars))
    tensors = len(schema.tensors)
    return ("<i8", 1), ("<f4", tensors * len(schema.stats)), ("<u8", tensors * len(schema.counts))


def scalar_chunk(blocks: BatchBlocks) -> bytes:
    return _bytes(blocks.step, blocks.wall, blocks.scalars, blocks.logged)


def tensor_chunk(blocks: BatchBlocks) -> bytes:
    return _bytes(blocks.sample_step, blocks.stats, blocks.counts)


def split(kind: ChunkKind, schema: Schema, rows: int, data: bytes) -> list[npt.NDArray[Any]]:
    """The blocks of a chunk, each [rows, width], read-only.

    Raises:
        ValueError: the blob does not have the length that the schema and `rows` promise.
    """
    out = []
    offset = 0
    for dtype, width in widths(kind, schema):
        count = rows * width
        out.append(np.frombuffer(data, dtype, count, offset).reshape(rows, width))
        offset += count * np.dtype(dtype).itemsize
    if offset != len(data):
        raise ValueError(f"a chunk of {len(data)} bytes where {offset} were promised")
    return out


def join(kind: ChunkKind, schema: Schema, parts: Sequence[tuple[int, bytes]]) -> bytes:
    """One chunk out of several (rows, blob) of the same schema, in their order.

    Raises:
        ValueError: as `split`.
    """
    blocks = [split(kind, schema, rows, data) for rows, data in parts]
    return b"".join(array.tobytes() for column in zip(*blocks, strict=True) for array in column)


def _bytes(*arrays: npt.NDArray[Any]) -> bytes:
    return b"".join(array.tobytes() for array in arrays)

"""Chunks: the blocks of many batches as one blob, bit for bit as they came.

A chunk of kind "s" holds step <i8[n], wall <f8[n], values <f8[n, S], logged |u1[n, S] one behind the
other; one of kind "t" holds step <i8[k], stats <f4[k, T·S], counts <u8[k, T·C]; one of kind "h", compressed
by zlib since few of its counts are not 0, step <i8[h], histograms <u4[h, T·WIDTH].
"""

import zlib
from collections.abc import Sequence, Sized
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from optwatch.wire.frames import BatchBlocks
from optwatch.wire.histograms import WIDTH

ChunkKind = Literal["s", "t", "h"]

_EFFORT = 1
"""Of zlib: the quickest."""


def kind_of(text: str) -> ChunkKind:
    """A kind as the store names it.

    Raises:
        ValueError: there is none of that name.
    """
    match text:
        case "s" | "t" | "h":
            return text
    raise ValueError(f"a chunk of kind {text!r}")


class Shape(Protocol):
    """As much of a schema as says how large the blocks of a chunk are."""

    @property
    def scalars(self) -> Sized: ...

    @property
    def tensors(self) -> Sized: ...

    @property
    def stats(self) -> Sized: ...

    @property
    def counts(self) -> Sized: ...


def widths(kind: ChunkKind, schema: Shape) -> tuple[tuple[str, int], ...]:
    """Dtype and numbers per row of each block of a chunk."""
    if kind == "s":
        return ("<i8", 1), ("<f8", 1), ("<f8", len(schema.scalars)), ("|u1", len(schema.scalars))
    tensors = len(schema.tensors)
    if kind == "h":
        return ("<i8", 1), ("<u4", tensors * WIDTH)
    return ("<i8", 1), ("<f4", tensors * len(schema.stats)), ("<u8", tensors * len(schema.counts))


def scalar_chunk(blocks: BatchBlocks) -> bytes:
    return pack_blocks("s", blocks.step, blocks.wall, blocks.scalars, blocks.logged)


def tensor_chunk(blocks: BatchBlocks) -> bytes:
    return pack_blocks("t", blocks.sample_step, blocks.stats, blocks.counts)


def histogram_chunk(blocks: BatchBlocks) -> bytes:
    return pack_blocks("h", blocks.histogram_step, blocks.histograms)


def split(kind: ChunkKind, schema: Shape, rows: int, data: bytes) -> list[npt.NDArray[Any]]:
    """The blocks of a chunk, each [rows, width], read-only.

    Raises:
        ValueError: the blob does not have the length that the schema and `rows` promise.
    """
    return split_alike(kind, schema, rows, [_decompressed(data) if kind == "h" else data])


def split_alike(kind: ChunkKind, schema: Shape, rows: int, chunks: Sequence[bytes]) -> list[npt.NDArray[Any]]:
    """The blocks of N chunks of as many rows each, one below the other: each [N · rows, width], read-only.

    Raises:
        ValueError: as `split`.
    """
    shape = [(np.dtype(dtype), width) for dtype, width in widths(kind, schema)]
    size = sum(rows * width * dtype.itemsize for dtype, width in shape)
    if wrong := [len(data) for data in chunks if len(data) != size]:
        raise ValueError(f"a chunk of {wrong[0]} bytes where {size} were promised")
    whole = np.frombuffer(b"".join(chunks), np.uint8).reshape(len(chunks), size)
    out = []
    at = 0
    for dtype, width in shape:
        end = at + rows * width * dtype.itemsize
        block = np.ascontiguousarray(whole[:, at:end]).view(dtype).reshape(len(chunks) * rows, width)
        block.flags.writeable = False
        out.append(block)
        at = end
    return out


class Readable(Protocol):
    """A blob that can be read in part, such as `sqlite3.Blob`."""

    def __len__(self) -> int: ...

    def seek(self, offset: int, /) -> None: ...

    def read(self, length: int, /) -> bytes: ...


def split_rows(
    kind: Literal["s", "t"], schema: Shape, rows: int, blob: Readable, start: int, stop: int
) -> list[npt.NDArray[Any]]:
    """Some rows of the blocks of a chunk, from `start` to `stop`, without reading the others.

    Raises:
        ValueError: as `split`.
    """
    out = []
    offset = 0
    shape = [(np.dtype(dtype), width) for dtype, width in widths(kind, schema)]
    if sum(rows * width * dtype.itemsize for dtype, width in shape) != len(blob):
        raise ValueError(f"a chunk of {len(blob)} bytes where others were promised")
    for dtype, width in shape:
        row = width * dtype.itemsize
        blob.seek(offset + start * row)
        out.append(np.frombuffer(blob.read((stop - start) * row), dtype).reshape(stop - start, width))
        offset += rows * row
    return out


def join(kind: ChunkKind, schema: Shape, parts: Sequence[tuple[int, bytes]]) -> bytes:
    """One chunk out of several (rows, blob) of the same schema, in their order.

    Raises:
        ValueError: as `split`.
    """
    blocks = [split(kind, schema, rows, data) for rows, data in parts]
    return pack_blocks(kind, *(array for column in zip(*blocks, strict=True) for array in column))


def _decompressed(data: bytes) -> bytes:
    try:
        return zlib.decompress(data)
    except zlib.error as error:
        raise ValueError(f"a chunk that cannot be decompressed: {error}") from None


def pack_blocks(kind: ChunkKind, *arrays: npt.NDArray[Any]) -> bytes:
    """Blocks as a chunk of a kind holds them."""
    data = b"".join(array.tobytes() for array in arrays)
    return zlib.compress(data, _EFFORT) if kind == "h" else data

"""Messages to bytes and back: a msgpack header, then raw little-endian blocks of numbers.

Every length is checked against what the header and the schema promise and against `limits` before an
array is made of it. Arrays are views of the received bytes where alignment allows, and read-only.

One ROUTER serves both kinds of peers; the first frame says which one speaks:

    agent → daemon    [AGENT, header, block…]
    daemon → agent    [header]
    client → daemon   [CLIENT, number (8 bytes, the client's own), header]
    daemon → client   [number, header, block…]
    XPUB → SUB        [topic, header, block…]    topic: the run's id, or `runs`
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Self, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt

from optwatch.wire import limits
from optwatch.wire.histograms import WIDTH
from optwatch.wire.messages import AgentMessage, Batch, DaemonMessage, Schema
from optwatch.wire.requests import Publication, Reply, Request

Buffer = bytes | memoryview
Parts = Sequence[Buffer]
I8 = npt.NDArray[np.int64]
U8 = npt.NDArray[np.uint64]
F8 = npt.NDArray[np.float64]
F4 = npt.NDArray[np.float32]
U4 = npt.NDArray[np.uint32]
U1 = npt.NDArray[np.uint8]

Message = TypeVar("Message")

AGENT = b"A"
CLIENT = b"C"
RUNS_TOPIC = b"runs"


class WireError(ValueError):
    """What came over the wire is not what the protocol says."""


_KINDS = {name: np.dtype(name) for name in ("<i8", "<u8", "<f8", "<f4", "<u4", "|u1")}


def _number(value: Any) -> Any:
    """A number of numpy's as one of Python's."""
    if isinstance(value, np.generic):
        return value.item()
    raise NotImplementedError


_encoder = msgspec.msgpack.Encoder(enc_hook=_number)
agent_decoder: msgspec.msgpack.Decoder[AgentMessage] = msgspec.msgpack.Decoder(AgentMessage)
daemon_decoder: msgspec.msgpack.Decoder[DaemonMessage] = msgspec.msgpack.Decoder(DaemonMessage)
request_decoder: msgspec.msgpack.Decoder[Request] = msgspec.msgpack.Decoder(Request)
reply_decoder: msgspec.msgpack.Decoder[Reply] = msgspec.msgpack.Decoder(Reply)
publication_decoder: msgspec.msgpack.Decoder[Publication] = msgspec.msgpack.Decoder(Publication)


def pack(message: msgspec.Struct, blocks: Sequence[npt.NDArray[Any]] = ()) -> list[Buffer]:
    """The parts to send: the header, then each block's bytes. Of texts goes what UTF-8 can hold."""
    try:
        header = _encoder.encode(message)
    except UnicodeEncodeError:
        header = _encoder.encode(_fit(msgspec.to_builtins(message, builtin_types=(bytes,), enc_hook=_number)))
    return [header, *(b.tobytes() for b in blocks)]


def _fit(plain: Any) -> Any:
    if isinstance(plain, str):
        return limits.fit(plain, len(plain))
    if isinstance(plain, dict):
        return {_fit(key): _fit(value) for key, value in plain.items()}
    return [_fit(item) for item in plain] if isinstance(plain, (list, tuple)) else plain


def unpack(parts: Parts, decoder: "msgspec.msgpack.Decoder[Message]") -> tuple[Message, Parts]:
    """The header of a message, and its blocks as they came.

    Raises:
        WireError: too many or too large parts, or a header that is no such message.
    """
    if not 1 <= len(parts) <= limits.MAX_PARTS:
        raise WireError(f"a message of {len(parts)} parts")
    header, *blocks = parts
    sizes = [_size(part) for part in parts]
    if sizes[0] > limits.MAX_HEADER_BYTES:
        raise WireError(f"a header of {sizes[0]} bytes")
    if max(sizes) > limits.MAX_BLOCK_BYTES:
        raise WireError("a block over the size limit")
    if sum(sizes) > limits.MAX_MESSAGE_BYTES:
        raise WireError("a message over the size limit")
    try:
        return decoder.decode(header), blocks
    except (msgspec.DecodeError, RecursionError, ValueError) as error:
        raise WireError(f"a header that cannot be read: {error}") from None


@dataclass(frozen=True)
class BatchBlocks:
    """The numbers of a `Batch` of n steps, S scalars, k samples and h histograms of T tensors.

    One part: step <i8[n] global_step; wall <f8[n] unix seconds; scalars <f8[n, S]; logged |u1[n, S], 1 where
    a value was logged (it may be NaN or inf all the same). Another, where there are samples: sample_step
    <i8[k]; stats <f4[k, T, stats]; counts <u8[k, T, counts]. Another, where there are histograms
    (`wire.histograms`): histogram_step <i8[h]; histograms <u4[h, T, WIDTH].
    """

    step: I8
    wall: F8
    scalars: F8
    logged: U1
    sample_step: I8
    stats: F4
    counts: U8
    histogram_step: I8 = field(default_factory=lambda: np.empty(0, np.int64))
    histograms: U4 = field(default_factory=lambda: np.empty((0, 0, WIDTH), np.uint32))

    def blocks(self) -> tuple[U1, ...]:
        """The parts of the wire: the scalars; where there are any, the samples; the histograms."""
        parts: list[tuple[npt.NDArray[Any], ...]] = [(self.step, self.wall, self.scalars, self.logged)]
        if len(self.sample_step):
            parts.append((self.sample_step, self.stats, self.counts))
        if len(self.histogram_step):
            parts.append((self.histogram_step, self.histograms))
        return tuple(np.concatenate([_bytes_of(array) for array in arrays]) for arrays in parts)

    @classmethod
    def read(cls, blocks: Parts, batch: Batch, schema: Schema) -> Self:
        """Check the parts of a batch against its header and schema.

        Raises:
            WireError: a count over its cap or a part of the wrong length.
        """
        n, s = batch.steps, len(schema.scalars)
        k, t, h = batch.sampled, len(schema.tensors), batch.histograms
        if not all(0 <= rows <= limits.MAX_STEPS for rows in (n, k, h)):
            raise WireError(f"a batch of {n} steps, {k} samples and {h} histograms")
        if len(blocks) != 1 + bool(k) + bool(h):
            raise WireError(f"a batch of {len(blocks)} parts")
        step, wall, scalars, logged = _split(blocks[0], ("<i8", n), ("<f8", n), ("<f8", n, s), ("|u1", n, s))
        shapes = ("<i8", k), ("<f4", k, t, len(schema.stats)), ("<u8", k, t, len(schema.counts))
        sample_step, stats, counts = _split(blocks[1], *shapes) if k else _nothing(*shapes)
        shapes_h = ("<i8", h), ("<u4", h, t, WIDTH)
        histogram_step, histograms = _split(blocks[-1], *shapes_h) if h else _nothing(*shapes_h)
        return cls(step, wall, scalars, logged, sample_step, stats, counts, histogram_step, histograms)


_Shaped = tuple[Any, ...]
"""A dtype and a shape."""


def _bytes_of(array: npt.NDArray[Any]) -> U1:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def _split(data: Buffer, *arrays: _Shaped) -> list[npt.NDArray[Any]]:
    """Read-only arrays that lie one behind the other in received bytes.

    Raises:
        WireError: the bytes are not exactly those of these arrays.
    """
    sizes = [_KINDS[dtype].itemsize * math.prod(shape) for dtype, *shape in arrays]
    if _size(data) != sum(sizes):
        raise WireError(f"a block of {_size(data)} bytes where {sum(sizes)} were promised")
    whole = np.frombuffer(data, np.uint8)
    whole.flags.writeable = False
    out, at = [], 0
    for (dtype, *shape), size in zip(arrays, sizes, strict=True):
        out.append(whole[at : at + size].view(_KINDS[dtype]).reshape(shape))
        at += size
    return out


@lru_cache(maxsize=64)
def _nothing(*arrays: _Shaped) -> list[npt.NDArray[Any]]:
    """What most batches have of single tensors: arrays without a row, everybody's."""
    out = [np.empty(shape, _KINDS[dtype]) for dtype, *shape in arrays]
    for array in out:
        array.flags.writeable = False
    return out


def check_schema(schema: Schema) -> None:
    """Hold a schema to the caps.

    Raises:
        WireError: too many columns, tensors or statistics, or a name that is too long.
    """
    if (
        len(schema.scalars) > limits.MAX_SCALARS
        or len(schema.tensors) > limits.MAX_TENSORS
        or len(schema.stats) > limits.MAX_STATS
        or len(schema.counts) > limits.MAX_STATS
    ):
        raise WireError("a schema over the size limit")
    names = (*schema.scalars, *schema.stats, *schema.counts, *(tensor.name for tensor in schema.tensors))
    if any(len(name) > limits.MAX_NAME for name in names):
        raise WireError("a name over the size limit")
    if len(set(schema.scalars)) != len(schema.scalars):
        raise WireError("a schema that names a column twice")


@dataclass(frozen=True)
class SeriesBlocks:
    """step <i8[n], values <f8[n, C], logged |u1[n, C]."""

    step: I8
    values: F8
    logged: U1

    def blocks(self) -> tuple[npt.NDArray[Any], ...]:
        return (self.step, self.values, self.logged)

    @classmethod
    def read(cls, blocks: Parts, columns: int) -> Self:
        """Raises `WireError` where the lengths do not fit together."""
        if len(blocks) != 3:
            raise WireError(f"a series of {len(blocks)} blocks")
        n = _size(blocks[0]) // 8
        return cls(
            step=block(blocks[0], "<i8", (n,)),
            values=block(blocks[1], "<f8", (n, columns)),
            logged=block(blocks[2], "|u1", (n, columns)),
        )


@dataclass(frozen=True)
class TensorBlocks:
    """step <i8[k], stats <f4[k, T, S], counts <u8[k, T, C]."""

    step: I8
    stats: F4
    counts: U8

    def blocks(self) -> tuple[npt.NDArray[Any], ...]:
        return (self.step, self.stats, self.counts)

    @classmethod
    def read(cls, blocks: Parts, tensors: int, stats: int, counts: int) -> Self:
        """Raises `WireError` where the lengths do not fit together."""
        if len(blocks) != 3:
            raise WireError(f"tensors of {len(blocks)} blocks")
        k = _size(blocks[0]) // 8
        return cls(
            step=block(blocks[0], "<i8", (k,)),
            stats=block(blocks[1], "<f4", (k, tensors, stats)),
            counts=block(blocks[2], "<u8", (k, tensors, counts)),
        )


@dataclass(frozen=True)
class HistogramBlocks:
    """step <i8[h], counts <u8[h, T, WIDTH] (`wire.histograms`)."""

    step: I8
    counts: U8

    def blocks(self) -> tuple[npt.NDArray[Any], ...]:
        return (self.step, self.counts)

    @classmethod
    def read(cls, blocks: Parts, tensors: int) -> Self:
        """Raises `WireError` where the lengths do not fit together."""
        if len(blocks) != 2:
            raise WireError(f"histograms of {len(blocks)} blocks")
        h = _size(blocks[0]) // 8
        return cls(
            step=block(blocks[0], "<i8", (h,)),
            counts=block(blocks[1], "<u8", (h, tensors, WIDTH)),
        )


def block(data: Buffer, dtype: str, shape: tuple[int, ...]) -> npt.NDArray[Any]:
    """A read-only array over received bytes.

    Raises:
        WireError: the bytes are not exactly those of that shape.
    """
    (array,) = _split(data, (dtype, *shape))
    return array


def _size(part: Buffer) -> int:
    return len(part) if isinstance(part, bytes) else part.nbytes

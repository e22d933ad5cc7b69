"""The decoder under fuzzing: whatever the bytes, a message or a `WireError`."""

import contextlib

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optwatch.wire import limits
from optwatch.wire.frames import (
    BatchBlocks,
    HistogramBlocks,
    SeriesBlocks,
    TensorBlocks,
    WireError,
    agent_decoder,
    check_schema,
    daemon_decoder,
    pack,
    publication_decoder,
    reply_decoder,
    request_decoder,
    unpack,
)
from optwatch.wire.histograms import WIDTH
from optwatch.wire.messages import Batch, Beat, Schema, TensorInfo
from optwatch.wire.requests import GetSeries
from tests.peers import BEAT

DECODERS = [agent_decoder, daemon_decoder, request_decoder, reply_decoder, publication_decoder]
SCHEMA = Schema(
    session="s",
    optimizer=0,
    digest="d",
    scalars=("loss", "lr"),
    tensors=(TensorInfo("w", (2, 3), "float32", 0),),
    stats=("a", "b", "c"),
    counts=("z",),
)
MESSAGES = [
    SCHEMA,
    Batch(session="s", seq=1, optimizer=0, schema="d", steps=2, sampled=1, histograms=1),
    msgspec.structs.replace(BEAT, session="s", steps=(1,), phase_time=0.1),
    GetSeries(run="r"),
]


def batch_blocks(n: int, k: int, h: int = 0) -> BatchBlocks:
    return BatchBlocks(
        step=np.arange(n, dtype=np.int64),
        wall=np.arange(n, dtype=np.float64),
        scalars=np.arange(n * 2, dtype=np.float64).reshape(n, 2),
        logged=np.ones((n, 2), dtype=np.uint8),
        sample_step=np.arange(k, dtype=np.int64),
        stats=np.arange(k * 3, dtype=np.float32).reshape(k, 1, 3),
        counts=np.arange(k, dtype=np.uint64).reshape(k, 1, 1),
        histogram_step=np.arange(h, dtype=np.int64),
        histograms=np.arange(h * WIDTH, dtype=np.uint32).reshape(h, 1, WIDTH),
    )


@pytest.mark.parametrize("decoder", DECODERS)
@given(parts=st.lists(st.binary(max_size=200), max_size=14))
def test_any_bytes_are_a_message_or_a_wire_error(decoder: object, parts: list[bytes]) -> None:
    with contextlib.suppress(WireError):
        unpack(parts, decoder)  # type: ignore[arg-type]


@given(st.sampled_from(MESSAGES), st.data())
def test_a_message_with_changed_bytes_is_a_message_or_a_wire_error(
    message: msgspec.Struct, data: st.DataObject
) -> None:
    header = bytearray(pack(message)[0])
    for _ in range(data.draw(st.integers(1, 4))):
        header[data.draw(st.integers(0, len(header) - 1))] = data.draw(st.integers(0, 255))
    for decoder in DECODERS:
        try:
            decoded, _ = unpack([bytes(header)], decoder)  # type: ignore[arg-type]
            if isinstance(decoded, Schema):
                check_schema(decoded)
        except WireError:
            pass


@settings(max_examples=300)
@given(
    n=st.integers(-1, 4),
    k=st.integers(-1, 4),
    steps=st.integers(-(2**63), 2**64 - 1) | st.integers(-1, 4),
    sampled=st.integers(-(2**63), 2**64 - 1) | st.integers(-1, 4),
    h=st.integers(0, 2),
    histograms=st.integers(-(2**63), 2**64 - 1) | st.integers(-1, 2),
)
def test_blocks_fit_their_header_or_are_refused(
    n: int, k: int, steps: int, sampled: int, h: int, histograms: int
) -> None:
    blocks = [block.tobytes() for block in batch_blocks(max(n, 0), max(k, 0), h).blocks()]
    header = Batch(
        session="s", seq=1, optimizer=0, schema="d", steps=steps, sampled=sampled, histograms=histograms
    )
    if (steps, sampled, histograms) == (max(n, 0), max(k, 0), h):
        read = BatchBlocks.read(blocks, header, SCHEMA)
        assert [block.tobytes() for block in read.blocks()] == blocks
        assert not read.scalars.flags.writeable
    else:
        with pytest.raises(WireError):
            BatchBlocks.read(blocks, header, SCHEMA)


@given(st.lists(st.binary(max_size=80), max_size=10), st.integers(0, 5))
def test_any_blocks_are_a_series_or_a_wire_error(blocks: list[bytes], columns: int) -> None:
    for read in (
        lambda: SeriesBlocks.read(blocks, columns),
        lambda: TensorBlocks.read(blocks, columns, 2, 1),
        lambda: HistogramBlocks.read(blocks, columns),
        lambda: BatchBlocks.read(blocks, MESSAGES[1], SCHEMA),  # type: ignore[arg-type]
    ):
        with contextlib.suppress(WireError):
            read()


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ([], "0 parts"),
        ([b"x"] * (limits.MAX_PARTS + 1), "parts"),
        ([bytes(limits.MAX_HEADER_BYTES + 1)], "header of"),
        ([b"x", bytes(limits.MAX_BLOCK_BYTES + 1)], "block over"),
        ([b"x", bytes(limits.MAX_BLOCK_BYTES), bytes(limits.MAX_BLOCK_BYTES)], "message over"),
        ([b"\x91" * 100_000], "cannot be read"),
    ],
)
def test_too_much_is_refused_before_it_is_read(parts: list[bytes], words: str) -> None:
    with pytest.raises(WireError, match=words):
        unpack(parts, agent_decoder)


@pytest.mark.parametrize(
    "change",
    [
        {"scalars": ("x",) * 2},
        {"scalars": tuple(map(str, range(limits.MAX_SCALARS + 1)))},
        {"stats": ("x",) * (limits.MAX_STATS + 1)},
        {"scalars": ("x" * (limits.MAX_NAME + 1),)},
        {"tensors": (TensorInfo("x" * (limits.MAX_NAME + 1), (1,), "float32", 0),)},
    ],
)
def test_a_schema_beyond_the_caps_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(WireError):
        check_schema(msgspec.structs.replace(SCHEMA, **change))


def test_texts_that_utf8_cannot_hold_go_as_far_as_they_do() -> None:
    """Such as the name of a file in another encoding."""
    odd = msgspec.structs.replace(
        SCHEMA, scalars=("loss", "\udcff"), tensors=(TensorInfo("b\udcfeb", (2,), "float32", 0),)
    )
    message, _ = unpack(pack(odd), agent_decoder)
    assert isinstance(message, Schema)
    assert message.scalars == ("loss", "?")
    assert message.tensors[0] == TensorInfo("b?b", (2,), "float32", 0)
    assert msgspec.structs.replace(message, scalars=odd.scalars, tensors=odd.tensors) == odd


def test_numbers_of_numpy_go_as_numbers() -> None:
    odd = msgspec.structs.replace(BEAT, session="s", steps=(np.int64(7),), overhead=np.float64(0.5))
    message, _ = unpack(pack(odd), agent_decoder)
    assert message == odd
    assert isinstance(message, Beat)
    assert (type(message.steps[0]), type(message.overhead)) == (int, float)

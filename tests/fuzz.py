"""Coverage-guided fuzzing of the wire's decoders: `python -m tests.fuzz --runs 10000000` (needs atheris).

An input is a decoder's number and the parts of a message; the first ones are valid messages of all kinds.
Whatever comes, it is a message or a `WireError`: another exception, more than `--memory` MiB or an input that
takes 5 s ends the run and leaves the input behind.
"""

import argparse
import random
import struct
import sys
import tempfile
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import atheris
import msgspec

with atheris.instrument_imports(include=["optwatch.wire"]):
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
    from optwatch.wire.messages import AgentMessage, Batch, DaemonMessage, Schema, TensorInfo
    from optwatch.wire.requests import Publication, Reply, Request

DECODERS = (agent_decoder, daemon_decoder, request_decoder, reply_decoder, publication_decoder)
KINDS = (AgentMessage, DaemonMessage, Request, Reply, Publication)
SCHEMA = Schema(
    session="s",
    optimizer=0,
    digest="d",
    scalars=("loss", "lr"),
    tensors=(TensorInfo("w", (2, 3), "float32", 0, (("dp", 1),), 3),),
)
BLOCKS = (b"\x01" + bytes(7), bytes(8), bytes(16), b"\x01\x01", bytes(8), bytes(48), bytes(16))


def taken(data: bytes) -> bool:
    """Decode one input, as daemon or client would; whether it was a message."""
    if not data:
        return False
    parts, at = [], 1
    while at + 2 <= len(data):
        (size,) = struct.unpack_from("<H", data, at)
        parts.append(memoryview(data)[at + 2 : at + 2 + size])
        at += 2 + size
    try:
        message, blocks = unpack(parts, DECODERS[data[0] % len(DECODERS)])
        if isinstance(message, Batch):
            BatchBlocks.read(blocks, message, SCHEMA)
        elif isinstance(message, Schema):
            check_schema(message)
        elif blocks:
            for read in (
                lambda: SeriesBlocks.read(blocks[:3], 2),
                lambda: TensorBlocks.read(blocks[:3], 1, 12, 2),
                lambda: HistogramBlocks.read(blocks[:2], 1),
            ):
                read()
    except WireError:
        return False
    return True


def corpus() -> Iterator[bytes]:
    """A valid message of every kind."""
    for number, kinds in enumerate(KINDS):
        for kind in typing.get_args(kinds) or (kinds,):
            message = sample(kind)
            yield _joined(number, [bytes(part) for part in pack(message)] + list(BLOCKS))
            yield _joined(number, [bytes(part) for part in pack(message)])
    batch = Batch(session="s", seq=1, optimizer=0, schema="d", steps=1, sampled=1)
    yield _joined(0, [bytes(pack(batch)[0]), *BLOCKS])
    yield _joined(0, [bytes(pack(SCHEMA)[0])])


def sample(kind: Any) -> Any:
    """A value of a type that the messages are made of."""
    if typing.get_origin(kind) is typing.Annotated:
        return sample(typing.get_args(kind)[0])
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        hints = typing.get_type_hints(kind, include_extras=True)
        return kind(**{name: sample(hints[name]) for name in kind.__struct_fields__})
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Literal:
        return args[0]
    if origin is tuple:
        return tuple(sample(arg) for arg in args if arg is not Ellipsis)
    if origin is dict:
        return {sample(args[0]): sample(args[1])}
    if args:  # a union
        return sample(next(arg for arg in args if arg is not type(None)))
    return {str: "a", int: 1, float: 0.5, bool: True, bytes: b"b"}.get(kind, 1)


def _joined(decoder: int, parts: list[bytes]) -> bytes:
    return bytes([decoder]) + b"".join(struct.pack("<H", len(part)) + part for part in parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=10_000_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--memory", type=int, default=512, help="MiB that the process may have")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        valid = list(corpus())
        print(f"{len(valid)} valid inputs, {sum(map(taken, valid))} of them are messages whole", flush=True)
        for number, data in enumerate(valid):
            (Path(directory) / str(number)).write_bytes(data)
        options = (
            f"-runs={args.runs}",
            f"-seed={args.seed}",
            f"-rss_limit_mb={args.memory}",
            "-timeout=5",
            "-max_len=8192",
            "-print_final_stats=1",
        )

        def mutated(data: bytes, most: int, seed: int) -> bytes:
            """Half of the time from a valid message: the header's own decoder tells no coverage."""
            dice = random.Random(seed)
            return atheris.Mutate(dice.choice(valid) if dice.random() < 0.5 else data, most)

        atheris.Setup([sys.argv[0], *options, directory], taken, custom_mutator=mutated)
        atheris.Fuzz()


if __name__ == "__main__":
    main()

"""Schemas say what they said, and thousands of them share what they have in common."""

from pathlib import Path

import msgspec
import pytest

from optwatch.daemon.schemas import read_columns, read_schema, taken_in
from optwatch.daemon.store import Store
from optwatch.wire.messages import Schema, TensorInfo


def schema_of(rank: int, digest: str = "own") -> Schema:
    """As it comes off the wire: nothing in it is the object that another one has."""
    tensors = tuple(
        TensorInfo(f"layer.{i}.weight", (4096, i + 1), "bfloat16", i % 2, (("dp", rank),), 1000 * (i + 1))
        for i in range(5)
    )
    whole = TensorInfo("head.bias", (7,), "float32", 1)
    schema = Schema(
        session=f"s{rank}", optimizer=1, digest=digest, scalars=("loss", "lr"), tensors=(*tensors, whole)
    )
    return msgspec.msgpack.decode(msgspec.msgpack.encode(schema), type=Schema)


def test_what_ranks_say_alike_is_in_memory_once() -> None:
    first, second = taken_in(schema_of(0)), taken_in(schema_of(1))
    for one, other in zip(first.tensors, second.tensors, strict=True):
        assert one.name is other.name
        assert one.shape is other.shape
        assert one.dtype is other.dtype
    assert first.scalars is second.scalars
    for rank, taken in enumerate((first, second)):
        assert taken.tensors == schema_of(rank).tensors
        assert taken.optimizer == 1


def test_its_name_follows_from_what_it_says_alone() -> None:
    assert taken_in(schema_of(0, "mine")).digest == taken_in(schema_of(0, "yours")).digest
    assert taken_in(schema_of(0)).digest != taken_in(schema_of(1)).digest


def test_the_store_gives_it_back_whole_or_with_its_scalars_alone(tmp_path: Path) -> None:
    store = Store(tmp_path)
    try:
        schemas = [taken_in(schema_of(rank)) for rank in range(2)]
        for schema in schemas:
            store.save_schema("r", schema)
        store.submit()
        assert store.settle()
        for schema in schemas:
            assert read_schema(store.reader, "r", 1, schema.digest) == schema
            columns = read_columns(store.reader, "r", 1, schema.digest)
            assert (columns.scalars, columns.tensors) == (("loss", "lr"), ())
        for read in (read_schema, read_columns):
            with pytest.raises(ValueError, match="no schema of-nothing"):
                read(store.reader, "r", 1, "of-nothing")
    finally:
        store.close()

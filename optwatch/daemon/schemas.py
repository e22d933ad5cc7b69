"""Schemas: as ranks send them, and as the store has them.

A thousand ranks with a part of each of hundreds of tensors have half a million descriptions of tensors, in
which the same names and shapes come again and again.
"""

import hashlib
import sqlite3
from functools import lru_cache
from typing import Any

import msgspec

from optwatch.wire.messages import Schema, TensorInfo


def taken_in(schema: Schema) -> Schema:
    """A schema that came from an agent, under the store's own name for what it says: the agents' might stand
    for another one in another process."""
    named = schema.optimizer, schema.scalars, schema.tensors, schema.stats, schema.counts
    digest = hashlib.blake2b(msgspec.msgpack.encode(named), digest_size=12).hexdigest()
    return _in_common(msgspec.structs.replace(schema, session="", digest=digest))


def read_schema(connection: sqlite3.Connection, run: str, optimizer: int, digest: str) -> Schema:
    """A schema of the store.

    Raises:
        ValueError: there is none of that digest.
    """
    data = schema_data(connection, run, optimizer, digest)
    return _in_common(msgspec.msgpack.decode(data, type=Schema))


def read_columns(connection: sqlite3.Connection, run: str, optimizer: int, digest: str) -> Schema:
    """The same without its tensors: all that scalars need.

    Raises:
        ValueError: there is none of that digest.
    """
    named = msgspec.msgpack.decode(schema_data(connection, run, optimizer, digest), type=_Columns)
    return Schema(session="", optimizer=optimizer, digest=digest, scalars=_first(named.scalars), tensors=())


def schema_data(connection: sqlite3.Connection, run: str, optimizer: int, digest: str) -> bytes:
    """A schema of the store, encoded.

    Raises:
        ValueError: there is none of that digest.
    """
    row = connection.execute(
        "SELECT data FROM schema WHERE run = ? AND optimizer = ? AND digest = ?", (run, optimizer, digest)
    ).fetchone()
    if row is None:
        raise ValueError(f"no schema {digest} of run {run}")
    return bytes(row[0])


class _Columns(msgspec.Struct, tag="schema", frozen=True):
    scalars: tuple[str, ...]


def _in_common(schema: Schema) -> Schema:
    """A schema whose names and shapes are the objects that those of others are."""
    tensors = schema.tensors
    shards: dict[Any, Any] = {}
    made = map(
        TensorInfo,
        _first(tuple([tensor.name for tensor in tensors])),
        _first(tuple([tensor.shape for tensor in tensors])),
        _first(tuple([tensor.dtype for tensor in tensors])),
        [tensor.group for tensor in tensors],
        [shards.setdefault(tensor.shard, tensor.shard) for tensor in tensors],
        _first(tuple([tensor.held for tensor in tensors])),
    )
    return msgspec.structs.replace(schema, scalars=_first(schema.scalars), tensors=tuple(made))


@lru_cache(maxsize=256)
def _first(column: tuple[Any, ...]) -> tuple[Any, ...]:
    """The column that is equal to a given one and came first, a while ago at most."""
    return column

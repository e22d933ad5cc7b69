"""Schemas: as ranks send them, and as the store has them.

A thousand ranks with a part of each of hundreds of tensors have half a million descriptions of tensors, in
which the same names and shapes come again and again.
"""

import hashlib
import sqlite3
from functools import lru_cache
from typing import Any

import msgspec

from optwatch.wire.limits import MAX_NAME
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
    return Schema(
        session="", optimizer=optimizer, digest=digest, scalars=_the_same(named.scalars), tensors=()
    )


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
    tensors = tuple(
        [
            TensorInfo(
                name=_the_same(tensor.name),
                shape=_the_same(tensor.shape),
                dtype=_the_same(tensor.dtype),
                group=tensor.group,
                shard=_the_same(tensor.shard),
                held=tensor.held,
            )
            for tensor in schema.tensors
        ]
    )
    return msgspec.structs.replace(schema, scalars=_the_same(schema.scalars), tensors=tensors)


_first = lru_cache(maxsize=1 << 14)(lambda value: value)


def _the_same(value: Any) -> Any:
    """The object that is equal to a given one and came first; of long ones none is kept."""
    return _first(value) if len(value) <= MAX_NAME else value

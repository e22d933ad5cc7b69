"""Schemas: as ranks send them, and as the store has them.

A thousand ranks with a part of each of hundreds of tensors have half a million descriptions of tensors, in
which the same names and shapes come again and again.
"""

import hashlib
import sqlite3
import weakref
from typing import Any

import msgspec

from optwatch.daemon.chunks import Shape
from optwatch.wire.messages import Schema, TensorInfo


def taken_in(schema: Schema) -> Schema:
    """A schema that came from an agent, under the store's own name for what it says: the agents' might stand
    for another one in another process."""
    named = schema.optimizer, schema.scalars, schema.tensors, schema.stats, schema.counts
    digest = hashlib.blake2b(msgspec.msgpack.encode(named), digest_size=12).hexdigest()
    return in_common(msgspec.structs.replace(schema, session="", digest=digest))


def read_schema(connection: sqlite3.Connection, run: str, optimizer: int, digest: str) -> Schema:
    """A schema of the store.

    Raises:
        ValueError: there is none of that digest.
    """
    return msgspec.msgpack.decode(_data(connection, run, optimizer, digest), type=Schema)


def read_columns(connection: sqlite3.Connection, run: str, optimizer: int, digest: str) -> Schema:
    """The same without its tensors: all that scalars need.

    Raises:
        ValueError: there is none of that digest.
    """
    named = msgspec.msgpack.decode(_data(connection, run, optimizer, digest), type=_Columns)
    return Schema(session="", optimizer=optimizer, digest=digest, scalars=named.scalars, tensors=())


def read_shape(connection: sqlite3.Connection, run: str, optimizer: int, digest: str) -> Shape:
    """The same as far as merging needs it: not the tensors of each of a thousand ranks, every few seconds.

    Raises:
        ValueError: there is none of that digest.
    """
    return msgspec.msgpack.decode(_data(connection, run, optimizer, digest), type=_Shape)


class _Columns(msgspec.Struct, tag="schema", frozen=True):
    scalars: tuple[str, ...]


class _Shape(msgspec.Struct, tag="schema", frozen=True):
    scalars: tuple[str, ...]
    tensors: tuple[msgspec.Raw, ...]
    stats: tuple[str, ...]
    counts: tuple[str, ...]


_models: weakref.WeakValueDictionary[int, Schema] = weakref.WeakValueDictionary()
"""By the hash of its tensors' names, a schema that is in use somewhere; nothing is kept for others' sake."""


def in_common(schema: Schema) -> Schema:
    """A schema whose names and shapes are the objects that those of another one are, of the same model."""
    key = hash(tuple([tensor.name for tensor in schema.tensors]))
    model = _models.setdefault(key, schema)
    if model is schema or len(model.tensors) != len(schema.tensors):
        return schema
    shards: dict[Any, Any] = {}
    tensors = tuple(
        [
            TensorInfo(
                name=first.name if own.name == first.name else own.name,
                shape=first.shape if own.shape == first.shape else own.shape,
                dtype=first.dtype if own.dtype == first.dtype else own.dtype,
                group=own.group,
                shard=shards.setdefault(own.shard, own.shard),
                held=own.held,
            )
            for own, first in zip(schema.tensors, model.tensors, strict=True)
        ]
    )
    scalars = model.scalars if schema.scalars == model.scalars else schema.scalars
    return msgspec.structs.replace(schema, scalars=scalars, tensors=tensors)


def _data(connection: sqlite3.Connection, run: str, optimizer: int, digest: str) -> bytes:
    row = connection.execute(
        "SELECT data FROM schema WHERE run = ? AND optimizer = ? AND digest = ?", (run, optimizer, digest)
    ).fetchone()
    if row is None:
        raise ValueError(f"no schema {digest} of run {run}")
    return bytes(row[0])

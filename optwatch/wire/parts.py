"""Columns that hold one part of a global norm: `grad_norm@dp=0/2,tp=1/2#1a2b3c4d`.

A rank of several knows the norm of what it holds, not of the whole. It splits that into parts, one for
each shard_key that its tensors have, and names the columns by it. Columns of one name from two ranks are
replicas; the root of the sum of squares over different names is the global norm, under any sharding.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import blake2b
from typing import Self

NORMS = ("grad_norm", "grad_norm_raw", "update_norm", "param_norm")
"""The columns that may come in parts."""

_PATTERN = re.compile(r"(?P<norm>\w+)@(?P<key>[^#]*)#(?P<tensors>[0-9a-f]{8})")


@dataclass(frozen=True)
class Part:
    """Of which norm, which part: the coordinate and the size of each mesh dimension that shards it.

    `tensors` tells sets of tensors apart that have the same key.
    """

    norm: str
    key: tuple[tuple[str, int, int], ...]
    tensors: str

    @property
    def column(self) -> str:
        """The column's name."""
        key = ",".join(f"{name}={at}/{size}" for name, at, size in self.key)
        return f"{self.norm}@{key}#{self.tensors}"

    @property
    def siblings(self) -> int:
        """How many parts there are of this set of tensors, itself included."""
        count = 1
        for _, _, size in self.key:
            count *= size
        return count

    @property
    def family(self) -> tuple[str, tuple[tuple[str, int], ...], str]:
        """What it shares with its siblings."""
        return self.norm, tuple((name, size) for name, _, size in self.key), self.tensors

    @classmethod
    def parse(cls, column: str) -> Self | None:
        """Read a column's name; None where it is no part."""
        match = _PATTERN.fullmatch(column)
        if match is None or match["norm"] not in NORMS:
            return None
        key = []
        for dimension in filter(None, match["key"].split(",")):
            name, _, where = dimension.rpartition("=")
            at, _, size = where.partition("/")
            if not (name and at.isascii() and at.isdigit() and size.isascii() and size.isdigit()):
                return None
            if len(size) > 9 or not int(at) < int(size):
                return None
            key.append((name, int(at), int(size)))
        return cls(match["norm"], tuple(key), match["tensors"])


def tensor_digest(tensors: Iterable[tuple[str, tuple[int, ...]]]) -> str:
    """8 hex digits for a set of tensors by name and shape, whatever their order."""
    text = "\n".join(sorted(f"{name} {shape}" for name, shape in tensors))
    return blake2b(text.encode(), digest_size=4).hexdigest()

"""Ring: what the daemon has not acknowledged yet, in bounded memory.

When it is full, what is told of single tensors goes first, the oldest of it at first: scalars are small, and
a gap in them is what a user would see. Only when nothing else is left do whole messages go.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import msgspec

from optwatch.wire.frames import Buffer, pack
from optwatch.wire.messages import Batch

_SCALARS = 1
"""Of a batch's parts (`frames.BatchBlocks`), the one that is not about single tensors."""
_BYTES = 64 << 20


class Held(NamedTuple):
    """A durable message until it is acknowledged. `records`: the batch, where it tells of single tensors."""

    seq: int
    parts: list[Buffer]
    size: int
    steps: int
    """How many a loss of it would lose."""
    schema: str
    records: Batch | None


class Ring:
    """Messages in the order of `seq`, which has no holes."""

    def __init__(self, most: int = _BYTES) -> None:
        """`most`: bytes that are kept; the newest message is in any case."""
        self.dropped = 0
        """Steps that were lost because it was full."""
        self.thinned = 0
        """Per-tensor records and histograms that were let go of for the same reason."""
        self._most = most
        self._size = 0
        self._held: deque[Held] = deque()
        self._thick: deque[int] = deque()
        """The `seq` of those that have records, the oldest first."""

    def __len__(self) -> int:
        return len(self._held)

    def __iter__(self) -> Iterator[Held]:
        return iter(tuple(self._held))

    @property
    def oldest(self) -> int | None:
        """The lowest `seq` that is held, None where nothing is."""
        return self._held[0].seq if self._held else None

    def add(self, seq: int, parts: Sequence[Buffer], batch: Batch | None, schema: str) -> None:
        """Hold the message of the next `seq`, and make room for it. `batch`: its header, if it is one."""
        records = batch if batch is not None and batch.sampled + batch.histograms else None
        steps = batch.steps if batch is not None else 0
        self._held.append(Held(seq, list(parts), _size(parts), steps, schema, records))
        self._size += self._held[-1].size
        if records is not None:
            self._thick.append(seq)
        while self._size > self._most and len(self._held) > 1:
            if self._thick and self._thick[0] < seq:
                self._thin(self._thick.popleft())
            else:
                self.dropped += self._pop().steps

    def forget(self, acked: int) -> None:
        """Let go of all up to `acked`, which the daemon has."""
        while self._held and self._held[0].seq <= acked:
            self._pop()

    def _thin(self, seq: int) -> None:
        at = seq - self._held[0].seq
        held = self._held[at]
        assert held.records is not None
        self.thinned += held.records.sampled + held.records.histograms
        batch = msgspec.structs.replace(held.records, sampled=0, histograms=0)
        parts = [*pack(batch), held.parts[_SCALARS]]
        self._held[at] = held._replace(parts=parts, size=_size(parts), records=None)
        self._size += self._held[at].size - held.size

    def _pop(self) -> Held:
        held = self._held.popleft()
        self._size -= held.size
        if self._thick and self._thick[0] == held.seq:
            self._thick.popleft()
        return held


def _size(parts: Sequence[Buffer]) -> int:
    return sum(len(part) for part in parts)

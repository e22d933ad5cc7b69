"""Outbox: the durable messages of an attachment, numbered and kept until the daemon has acknowledged them."""

from collections.abc import Callable, Sequence

import msgspec

from optwatch.wire.frames import BatchBlocks, Buffer, pack
from optwatch.wire.leftovers import leave
from optwatch.wire.messages import Batch, Beat, Hello, Schema
from optwatch_agent.ring import Ring
from optwatch_agent.source import Durable

_IN_FLIGHT = 64
"""Messages that are sent before the first of them is acknowledged."""
_GONE = "the process has ended"


class Outbox:
    """What the daemon is to have, once and in order. Filled and emptied by the link's thread."""

    def __init__(self) -> None:
        self.ring = Ring()
        self.acked = 0
        self.sent = 0
        """The last seq that was sent by this connection."""
        self._seq = 0
        self._schemas: dict[str, list[Buffer]] = {}
        self._known: set[str] = set()
        """The schemas that the daemon has been sent by this connection."""

    @property
    def queued(self) -> int:
        """Messages that are not acknowledged."""
        return len(self.ring)

    @property
    def oldest(self) -> int:
        """The lowest seq that can still be sent, or that comes next."""
        return self.ring.oldest or self._seq + 1

    def hold(self, message: Durable, blocks: BatchBlocks | None = None, schema: Schema | None = None) -> None:
        """Take a message, with seq 0; the blocks and the schema are those of a batch."""
        self._seq += 1
        message = msgspec.structs.replace(message, seq=self._seq)
        parts = pack(message, blocks.blocks() if blocks is not None else ())
        if schema is not None and schema.digest not in self._schemas:
            self._schemas[schema.digest] = pack(schema)
        batch = message if isinstance(message, Batch) else None
        self.ring.add(self._seq, parts, batch, schema.digest if schema else "")

    def begin(self, acked: int) -> None:
        """A daemon welcomes this connection, and has all up to `acked`: what comes next is sent to it."""
        self.forget(acked)
        self.sent = max(acked, self.oldest - 1)
        self._known.clear()

    def forget(self, acked: int) -> None:
        """Let go of all up to `acked`, which the daemon has."""
        self.acked = max(self.acked, min(acked, self._seq))
        self.ring.forget(self.acked)

    def send(self, take: Callable[[Sequence[Buffer]], bool]) -> None:
        """Send what was not sent yet; `take` says whether the socket took a message."""
        for held in self.ring:
            if held.seq <= self.sent:
                continue
            if held.seq - self.acked > _IN_FLIGHT and held.seq - self.oldest >= _IN_FLIGHT:
                return
            if held.schema and held.schema not in self._known:
                if not take(self._schemas[held.schema]):
                    return
                self._known.add(held.schema)
            if not take(held.parts):
                return
            self.sent = held.seq

    def leave_behind(self, session: str, hello: Hello, beat: Beat) -> None:
        """Leave what no daemon has taken for the next one.

        Raises:
            OSError: it cannot be written.
        """
        schemas = {held.schema for held in self.ring if held.schema}
        leave(
            session,
            [
                pack(msgspec.structs.replace(hello, control=_GONE)),
                pack(msgspec.structs.replace(beat, control=_GONE)),
                *(self._schemas[digest] for digest in schemas),
                *(held.parts for held in self.ring),
            ],
        )

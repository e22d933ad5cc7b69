"""Follower: hears what changes, as the daemon publishes it."""

from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import zmq

from optwatch.wire.frames import SeriesBlocks, TensorBlocks, WireError, publication_decoder, unpack
from optwatch.wire.requests import Delta, Publication


@dataclass(frozen=True)
class News:
    """One publication; the blocks are there for a `Delta` only."""

    message: Publication
    series: SeriesBlocks | None = None
    tensors: TensorBlocks | None = None


class Follower:
    """A subscription. `Delta.seq` grows by one each time: after a gap, take the `View` again.

    A daemon that was restarted counts from 1 again, which is a gap too.
    """

    def __init__(self, socket: "zmq.Socket[Any]") -> None:
        self._socket = socket
        self.malformed = 0
        """Publications that could not be read."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def receive(self, timeout: float) -> News | None:
        """The next publication, None where there is none within `timeout` seconds."""
        if not self._socket.poll(int(timeout * 1_000)):
            return None
        _, *parts = self._socket.recv_multipart()
        try:
            message, blocks = unpack(parts, publication_decoder)
            if not isinstance(message, Delta):
                return News(message)
            tensors = message.tensors
            return News(
                message,
                SeriesBlocks.read(blocks[:3], len(message.series.columns)),
                TensorBlocks.read(blocks[3:], len(tensors.tensors), len(tensors.stats), len(tensors.counts)),
            )
        except WireError:
            self.malformed += 1
            return None

    def close(self) -> None:
        self._socket.close(linger=0)

"""Sending over ZeroMQ without waiting."""

from collections.abc import Sequence
from typing import Any

import zmq

from optwatch.wire.frames import Buffer

_NOBLOCK = int(zmq.NOBLOCK)
_MORE = int(zmq.NOBLOCK | zmq.SNDMORE)


def send(socket: "zmq.Socket[Any]", parts: Sequence[Buffer]) -> None:
    """Hand a message of at least one part to a socket: `send_multipart`, at a quarter of what that takes.

    Raises:
        zmq.ZMQError: the socket does not take it now (`zmq.Again`), or there is nobody to take it.
    """
    *more, last = parts
    for part in more:
        socket.send(part, _MORE)
    socket.send(last, _NOBLOCK)

"""Refusals: who was turned away, and why, in the log. A flood of them is a line and a number."""

import logging
import struct
import time
from collections import OrderedDict
from typing import Any

import zmq

log = logging.getLogger(__name__)

PERIOD = 60.0
"""Seconds in which the same of the same peer makes one line."""
MOST = 30
"""Lines in `PERIOD`, whoever is turned away."""
MOST_KNOWN = 1_000

_EVENT = struct.Struct("=hi")
"""What a monitor tells: the event, and its value. `zmq.utils.monitor` reads it too, and imports asyncio."""

_HANDSHAKES: dict[int, str] = {
    zmq.PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH: "it presents no key",
    zmq.PROTOCOL_ERROR_ZMTP_CRYPTOGRAPHIC: "it takes this daemon for one with another key, or is a forgery",
    zmq.PROTOCOL_ERROR_ZMTP_UNSPECIFIED: "its handshake is no answer to ours, such as a recorded one",
}


class Refusals:
    """Notes each kind of refusal of each peer, now and then."""

    def __init__(self) -> None:
        self._known: OrderedDict[tuple[str, str], tuple[float, int]] = OrderedDict()
        """By peer and reason: when it was last told, and how often it was not since."""
        self._began = float("-inf")
        self._lines = 0

    def note(self, who: str, why: str) -> bool:
        """Somebody was turned away; whether it was told."""
        now = time.monotonic()
        if now - self._began >= PERIOD:
            self._began, self._lines = now, 0
        told, untold = self._known.pop((who, why), (float("-inf"), 0))
        quiet = now - told < PERIOD or self._lines >= MOST
        self._known[who, why] = (told, untold + 1) if quiet else (now, 0)
        if len(self._known) > MOST_KNOWN:
            self._known.popitem(last=False)
        if quiet:
            return False
        self._lines += 1
        log.warning(
            "refused %s: %s%s", who, why, f" ({untold} times more since it was told)" if untold else ""
        )
        return True


class Handshakes:
    """Sees the connections to a socket that fail before anybody could be asked who it is."""

    def __init__(self, context: "zmq.Context[Any]", watched: "zmq.Socket[Any]", refusals: Refusals) -> None:
        """Before `watched` is bound. Poll `socket` in the serving thread, `look` when it has something."""
        address = f"inproc://optwatch.handshakes.{watched.underlying}"
        watched.monitor(address, zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL)
        self.socket = context.socket(zmq.PAIR)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.setsockopt(zmq.RCVHWM, 0)  # a full one would hold up ZeroMQ's own thread
        self.socket.connect(address)
        self._refusals = refusals

    def look(self) -> None:
        """Note what has failed since."""
        while True:
            try:
                event, _ = self.socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            (_, value) = _EVENT.unpack(event)
            why = _HANDSHAKES.get(value, "it does not speak as ZeroMQ does")
            self._refusals.note("a connection", why)

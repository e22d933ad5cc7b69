"""Inflow: cuts off a connection that sends and sends and never comes to the end of a message.

ZeroMQ hands on whole messages only and caps a part, not the number of parts: what does not end would be
kept in memory for ever, and nobody would see it. The kernel counts what a connection has received
(TCP_INFO), and each message names the connection that it came by. What came since the last message that was
taken can be no more than one message may be, and a queue that ZeroMQ itself bounds.
"""

import logging
import os
import socket
import stat
import struct

import zmq

from optwatch.wire import limits

log = logging.getLogger(__name__)

CAP = limits.MAX_MESSAGE_BYTES + (32 << 20)
"""Bytes after the last message, cipher and framing included."""
_BYTES_RECEIVED = 128
"""Offset of tcpi_bytes_received, a u64, in Linux's struct tcp_info (since 4.1)."""


class Inflow:
    """Of all connections to a daemon's ports. `look` now and then, in the serving thread."""

    def __init__(self, *addresses: str) -> None:
        """`addresses`: where it listens; nothing is done for those that are not TCP."""
        self.cut = 0
        """Connections cut off so far."""
        self._ports = {int(a.rpartition(":")[2]) for a in addresses if a.startswith("tcp://")}
        self._taken: set[int] = set()
        """Descriptors by which a message was taken since the last look."""
        self._spoke: set[int] = set()
        """Those by which one was taken before it, since the last but one."""
        self._there: set[int] = set()
        """Descriptors that were open at the last look."""
        self._base: dict[tuple[int, int], int] = {}
        """By descriptor and inode: what a connection had received after its last message was taken."""

    def took(self, frame: zmq.Frame) -> None:
        """A whole message was taken from a connection."""
        try:
            self._taken.add(int(frame.get(zmq.SRCFD)))
        except zmq.ZMQError:  # it came by no descriptor
            return

    def look(self) -> None:
        """Cut off what has no end."""
        if not self._ports:
            return
        base: dict[tuple[int, int], int] = {}
        there = _descriptors()
        # Not those that have sent whole messages since, nor newcomers, whose turn is the next look: there may
        # be a thousand, and to ask the kernel takes time.
        for descriptor in (there & self._there) - self._taken:
            if (found := self._received(descriptor)) is None:
                continue
            inode, received, peer = found
            key = descriptor, inode
            base[key] = self._base.get(key, received if key[0] in self._spoke else 0)
            if received - base[key] > CAP:
                self._cut(key[0], peer, received - base[key])
        self._base = base
        self._there, self._spoke, self._taken = there, self._taken, set()

    def _received(self, descriptor: int) -> tuple[int, int, str] | None:
        """Inode, bytes received and peer of a connection to the port; None for any other file."""
        try:
            file = os.fstat(descriptor)
            if not stat.S_ISSOCK(file.st_mode):
                return None
            with _borrowed(descriptor) as connection:
                if connection.getsockname()[1] not in self._ports:
                    return None
                info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
                (received,) = struct.unpack_from("=Q", info, _BYTES_RECEIVED)
                return file.st_ino, received, str(connection.getpeername()[0])
        except (OSError, struct.error, IndexError, TypeError):  # gone meanwhile, or no TCP connection
            return None

    def _cut(self, descriptor: int, peer: str, size: int) -> None:
        self.cut += 1
        log.warning("a connection from %s was cut off: %d MiB and no end of the message", peer, size >> 20)
        try:
            with _borrowed(descriptor) as connection:
                connection.shutdown(socket.SHUT_RDWR)  # its I/O thread sees the end, and frees what it has
        except OSError:
            return


class _borrowed:
    """A socket of ZeroMQ's by its descriptor, which stays open."""

    def __init__(self, descriptor: int) -> None:
        self._socket = socket.socket(fileno=os.dup(descriptor))

    def __enter__(self) -> socket.socket:
        return self._socket

    def __exit__(self, *_: object) -> None:
        self._socket.close()


def _descriptors() -> set[int]:
    try:
        return {int(name) for name in os.listdir("/proc/self/fd")}
    except OSError:  # not on Linux, or out of files
        return set()

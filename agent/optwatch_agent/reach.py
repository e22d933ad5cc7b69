"""Whether anybody listens at an address.

ZeroMQ does not say that a connection was refused, so that an agent would wait for a handshake that cannot
come while its daemon is started anew.
"""

import contextlib
import socket

_PATIENCE = 0.25
"""Seconds: who refuses does it at once."""


def refused(address: str) -> bool:
    """Whether a connection to a `tcp://host:port` or `ipc://path` is refused; False where it is not known."""
    family: int = socket.AF_INET  # what ZeroMQ makes of a name
    to: str | tuple[str, int] = address.removeprefix("ipc://")
    with contextlib.suppress(OSError, ValueError):
        if to != address:
            family = socket.AF_UNIX
        else:
            host, _, port = address.removeprefix("tcp://").rpartition(":")
            to = host, int(port)
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.settimeout(_PATIENCE)
            try:
                probe.connect(to)
            except (ConnectionRefusedError, FileNotFoundError):
                return True
    return False

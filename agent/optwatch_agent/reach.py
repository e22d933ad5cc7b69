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
    with contextlib.suppress(OSError, ValueError):
        try:
            if address.startswith("ipc://"):
                with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
                    probe.settimeout(_PATIENCE)
                    probe.connect(address.removeprefix("ipc://"))
            else:
                host, _, port = address.removeprefix("tcp://").rpartition(":")
                socket.create_connection((host.strip("[]"), int(port)), _PATIENCE).close()
        except (ConnectionRefusedError, FileNotFoundError):
            return True
    return False

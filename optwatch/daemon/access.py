"""Access: CURVE for everybody, and who may do what (ZAP, RFC 27).

The handler is a socket that the serving thread polls with the others: nothing in it can die in silence.
A key that is not known is turned away before its first message is read. What a peer may do hangs on the
key that it authenticated with, never on what it says about itself.
"""

import getpass
import logging
from typing import Any, Literal

import zmq
from zmq.utils import z85

from optwatch.wire.keys import KeyPair

log = logging.getLogger(__name__)

Role = Literal["agent", "viewer", "operator"]
DOMAIN = "optwatch"
ENDPOINT = "inproc://zeromq.zap.01"
ZAP_ENFORCE_DOMAIN = 93  # libzmq ≥ 4.3; not among pyzmq's names


class Access:
    """Which public keys are let in, and as what. With no `pair` everybody is (`--insecure`)."""

    def __init__(self, context: "zmq.Context[Any]", pair: KeyPair | None, user: KeyPair | None) -> None:
        self.refused = 0
        """Handshakes turned away so far."""
        self.socket = context.socket(zmq.ROUTER)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.bind(ENDPOINT)
        self._pair = pair
        self._peers: dict[str, tuple[str, Role]] = {}
        if user is not None:
            self._peers[user.public] = (own_name(), "operator")

    def guard(self, socket: "zmq.Socket[Any]") -> None:
        """Set a socket up before it is bound, so that only keys that are let in can talk to it."""
        if self._pair is None:
            return
        socket.setsockopt(zmq.CURVE_SERVER, 1)
        socket.setsockopt(zmq.CURVE_SECRETKEY, self._pair.secret.encode())
        socket.setsockopt(zmq.CURVE_PUBLICKEY, self._pair.public.encode())
        socket.setsockopt(zmq.ZAP_DOMAIN, DOMAIN.encode())
        socket.setsockopt(ZAP_ENFORCE_DOMAIN, 1)

    def answer(self) -> None:
        """Answer the handshakes that wait."""
        while True:
            try:
                request = self.socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            if len(request) < 8:  # only libzmq itself can write here; a later version might differ
                continue
            envelope, (version, number, domain, address, _, mechanism, *credentials) = (
                request[:2],
                request[2:],
            )
            key = z85.encode(credentials[0]).decode() if credentials and len(credentials[0]) == 32 else ""
            known = mechanism == b"CURVE" and domain == DOMAIN.encode() and key in self._peers
            if not known:
                self.refused += 1
                log.warning(
                    "refused a connection from %s: its key is not known", address.decode(errors="replace")
                )
            status = (b"200", b"OK", key.encode()) if known else (b"400", b"unknown key", b"")
            self.socket.send_multipart([*envelope, version, number, *status, b""])

    @property
    def public(self) -> str:
        """The daemon's public key, empty with `--insecure`."""
        return self._pair.public if self._pair is not None else ""

    @property
    def local_user(self) -> str:
        """Whose agents run on this host under this account."""
        return own_name() if self._pair is not None else "anyone"

    def who(self, frame: zmq.Frame) -> tuple[str, Role]:
        """The name and role of the peer that a frame came from."""
        if self._pair is None:
            return "anyone", "operator"
        try:
            key = frame.get("User-Id")
        except zmq.ZMQError:
            key = ""
        return self._peers.get(str(key), ("unknown", "viewer"))

    def close(self) -> None:
        self.socket.close()


def own_name() -> str:
    """The name of the user this process runs as."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return "user"

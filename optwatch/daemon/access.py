"""Access: CURVE for everybody, and who may do what (ZAP, RFC 27).

The handler is a socket that the serving thread polls with the others: nothing in it can die in silence.
A key that is not known is turned away before its first message is read. What a peer may do hangs on the
key that it authenticated with, never on what it says about itself.
"""

import getpass
import logging
from functools import lru_cache
from typing import Any

import zmq
from zmq.utils import z85

from optwatch.daemon.refusals import Refusals
from optwatch.wire.guests import Role, guests_file, read_guests
from optwatch.wire.keys import KeyFileError, KeyPair
from optwatch.wire.sending import send

log = logging.getLogger(__name__)

DOMAIN = "optwatch"
ENDPOINT = "inproc://zeromq.zap.01"
ZAP_ENFORCE_DOMAIN = 93  # libzmq ≥ 4.3; not among pyzmq's names


class Access:
    """Which public keys are let in, and as what. With no `pair` everybody is (`--insecure`)."""

    def __init__(self, context: "zmq.Context[Any]", pair: KeyPair | None, user: KeyPair | None) -> None:
        """Raises `KeyFileError` or `OSError` where the file of guests cannot be used."""
        self.refusals = Refusals()
        self.socket = context.socket(zmq.ROUTER)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.bind(ENDPOINT)
        self._pair = pair
        self._user = user
        self._peers: dict[str, tuple[str, Role]] = {}
        self._read = _stamp()
        self._load()

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
            key = _text_of(credentials[0]) if credentials and len(credentials[0]) == 32 else ""
            known = mechanism == b"CURVE" and domain == DOMAIN.encode() and key in self._peers
            if not known:
                who = f"a connection from {address.decode(errors='replace')}"
                self.refusals.note(who, "its key is not known")
            status = (b"200", b"OK", key.encode()) if known else (b"400", b"unknown key", b"")
            send(self.socket, [*envelope, version, number, *status, b""])

    @property
    def public(self) -> str:
        """The daemon's public key, empty with `--insecure`."""
        return self._pair.public if self._pair is not None else ""

    @property
    def local_user(self) -> str:
        """Whose agents run on this host under this account."""
        return own_name() if self._pair is not None else "anyone"

    def refresh(self) -> None:
        """Take the file of guests as it is now, where it is another; a wrong one changes nothing."""
        stamp = _stamp()
        if self._pair is None or stamp == self._read:
            return
        self._read = stamp
        try:
            self._load()
        except (KeyFileError, OSError) as error:
            log.error("the keys that are let in stay as they were: %s", error)
        else:
            log.info(
                "the keys that are let in: %s", ", ".join(sorted(name for name, _ in self._peers.values()))
            )

    def _load(self) -> None:
        peers: dict[str, tuple[str, Role]] = {}
        if self._user is not None:
            for guest in read_guests():
                # A guest of the user's own name would pass for the user in the audit log.
                name = f"{guest.name} (guest)" if guest.name == own_name() else guest.name
                peers[guest.public] = (name, guest.role)
            peers[self._user.public] = (own_name(), "operator")
        self._peers = peers

    def who(self, frame: zmq.Frame) -> tuple[str, Role] | None:
        """The name and role of the peer that a frame came from, None for a key that is let in no more."""
        if self._pair is None:
            return "anyone", "operator"
        try:
            key = frame.get("User-Id")
        except zmq.ZMQError:
            key = ""
        return self._peers.get(str(key))

    def close(self) -> None:
        self.socket.close()


@lru_cache(maxsize=1_024)  # a thousand agents of one user may come at once
def _text_of(key: bytes) -> str:
    return z85.encode(key).decode()


def own_name() -> str:
    """The name of the user this process runs as."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return "user"


def _stamp() -> tuple[int, int] | None:
    """What tells one version of the file of guests from another."""
    try:
        found = guests_file().stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ino

"""Where a client connects to, and with which keys."""

from typing import Any

import zmq

from optwatch.client.errors import DaemonUnreachable
from optwatch.wire import limits
from optwatch.wire.keys import KeyFileError, daemon_key, key_pair
from optwatch.wire.places import AddressError, find_daemon


def resolve(address: str | None, run: str | None = None) -> tuple[str, str]:
    """The daemon's address and its public key, "" for a daemon without keys; of several the one of a run.

    Raises:
        DaemonUnreachable: the address cannot be parsed, or nothing vouches for a key of it.
    """
    try:
        found = find_daemon(address, run)
    except AddressError as error:
        raise DaemonUnreachable(str(error)) from None
    key = daemon_key(found)
    if key is None:
        raise DaemonUnreachable(
            f"no daemon of yours is known at {found}: start one with `optwatch daemon`, or for one on "
            "another host set $OPTWATCH_DAEMON_KEY to its public key"
        )
    return found, key


def connect(context: "zmq.Context[Any]", kind: int, address: str, key: str) -> "zmq.Socket[Any]":
    """A socket on its way to a daemon, with this user's key.

    Raises:
        DaemonUnreachable: this user's key file cannot be used.
    """
    socket: zmq.Socket[Any] = context.socket(kind)
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.MAXMSGSIZE, limits.MAX_BLOCK_BYTES)
    socket.setsockopt(zmq.RECONNECT_IVL, 100)
    socket.setsockopt(zmq.RECONNECT_IVL_MAX, 1_000)
    socket.setsockopt(zmq.HEARTBEAT_IVL, 10_000)
    socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, 30_000)
    if key:
        try:
            pair = key_pair("user")
            socket.setsockopt(zmq.CURVE_SERVERKEY, key.encode())
        except (KeyFileError, OSError) as error:
            socket.close()
            raise DaemonUnreachable(str(error)) from None
        except zmq.ZMQError:
            socket.close()
            raise DaemonUnreachable(f"{key!r} is not a daemon's public key") from None
        socket.setsockopt(zmq.CURVE_SECRETKEY, pair.secret.encode())
        socket.setsockopt(zmq.CURVE_PUBLICKEY, pair.public.encode())
    socket.connect(address)
    return socket


def publish_address(published: str, address: str) -> str:
    """Where to subscribe: the daemon's port, on the host that this client reached it by."""
    if published.startswith("ipc://") or address.startswith("ipc://"):
        return published
    return f"{address.rpartition(':')[0]}:{published.rpartition(':')[2]}"

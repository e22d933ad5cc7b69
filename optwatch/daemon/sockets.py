"""The daemon's sockets: one ROUTER for agents and clients, one XPUB for changes."""

import errno
import logging
import resource
from typing import Any

import zmq

from optwatch.daemon.access import Access
from optwatch.daemon.errors import StartError
from optwatch.wire import limits
from optwatch.wire.places import is_loopback

log = logging.getLogger(__name__)

PORTS_TO_TRY = 20


def open_socket(context: "zmq.Context[Any]", kind: int, access: Access) -> "zmq.Socket[Any]":
    """A ROUTER or XPUB with this daemon's options, not bound yet."""
    socket: zmq.Socket[Any] = context.socket(kind)
    socket.setsockopt(zmq.LINGER, 300)
    socket.setsockopt(zmq.BACKLOG, 4096)
    socket.setsockopt(zmq.HANDSHAKE_IVL, 2_000)
    socket.setsockopt(zmq.HEARTBEAT_IVL, 10_000)
    socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, 30_000)
    socket.setsockopt(zmq.MAXMSGSIZE, limits.MAX_BLOCK_BYTES)
    socket.setsockopt(zmq.RCVHWM, 16)  # for each peer
    if kind == zmq.ROUTER:
        socket.setsockopt(zmq.ROUTER_HANDOVER, 1)
        socket.setsockopt(zmq.ROUTER_MANDATORY, 1)  # a peer that is gone raises, and is not waited for
        socket.setsockopt(zmq.SNDHWM, 64)
    else:
        socket.setsockopt(zmq.XPUB_VERBOSER, 1)
        socket.setsockopt(zmq.SNDHWM, 64)  # a viewer that never reads loses changes and asks again
    access.guard(socket)
    return socket


def bind(socket: "zmq.Socket[Any]", address: str, *, any_port: bool) -> str:
    """Bind; with `any_port` also to one of the next ports where this one is taken. The real address.

    Raises:
        StartError: it is taken, or cannot be bound.
    """
    host, _, port = address.rpartition(":")
    tries = PORTS_TO_TRY if any_port else 1
    for number in range(tries):
        at = address if address.startswith("ipc://") or port == "0" else f"{host}:{int(port) + number}"
        try:
            socket.bind(at)
        except zmq.ZMQError as error:
            if error.errno in (errno.EADDRINUSE, errno.EACCES) and number + 1 < tries:
                continue
            if error.errno == errno.EADDRINUSE:
                raise StartError(
                    f"{at} is taken: stop what listens there, or give another --listen"
                ) from None
            why = zmq.strerror(error.errno or 0)
            raise StartError(
                f"cannot listen on {at}: {why}; give an address of this host to --listen"
            ) from None
        return socket.getsockopt_string(zmq.LAST_ENDPOINT)
    raise AssertionError("unreachable")


def publish_address(address: str) -> str:
    """Where to bind the XPUB of a daemon that listens on `address`: the port behind it, if it is free."""
    if address.startswith("ipc://"):
        return f"{address}.pub"
    host, _, port = address.rpartition(":")
    return f"{host}:{int(port) + 1 if int(port) < 65_000 else 0}"


def check_exposure(address: str, *, insecure: bool) -> None:
    """Fail closed where there is no cryptography, and say what `--insecure` risks.

    Raises:
        StartError: this libzmq has no CURVE.
    """
    if insecure:
        reach = "on this host" if is_loopback(address) else "who can reach it over the network"
        log.warning("--insecure: anybody %s can read and command the runs at %s", reach, address)
    elif not zmq.has("curve"):
        raise StartError(
            "this libzmq was built without CURVE, so nobody can be kept out: install pyzmq from its own "
            "wheel, or start with --insecure"
        )


def raise_file_limit() -> None:
    """Allow as many open files as this user may have: each agent takes one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    elif hard == resource.RLIM_INFINITY and soft < 65_536:
        resource.setrlimit(resource.RLIMIT_NOFILE, (65_536, hard))

"""The link to the daemon: a thread that wakes five times a second and sends what is ready; in a job of many
ranks less often (`wire.pace`). What the daemon says it takes as it comes.
For a while after something unusual it wakes more often, so that the daemon hears of it in time.

Training never waits for it. Durable messages are kept until the daemon has acknowledged them (`outbox`), so
a daemon that was away is sent what it missed. Each connection is a socket of its own: after a loss the
address and the key are looked up anew, and nothing that was queued for the old daemon can reach another one.

A connection is there as long as its socket takes messages (ZMQ_IMMEDIATE: there is no pipe before the
handshake nor after the loss). Not by ZeroMQ's socket monitor: switching it off can block for ever while
it holds the interpreter, and training with it.
"""

import logging
import math
import os
import random
import socket
import threading
import time
from collections.abc import Sequence
from typing import Any

import zmq

from optwatch.wire.frames import AGENT, Buffer, WireError, daemon_decoder, pack, unpack
from optwatch.wire.keys import daemon_key, key_pair
from optwatch.wire.messages import Ack, Ask, Assign, Bye, Farewell, News, Prepare, Rejected, Welcome
from optwatch.wire.pace import TURN, Pace
from optwatch.wire.places import find_daemon
from optwatch.wire.sending import send
from optwatch_agent.outbox import Outbox
from optwatch_agent.reach import refused
from optwatch_agent.source import Source

log = logging.getLogger("optwatch")

_JITTER = random.Random()  # noqa: S311
"""Not the generator that the training draws from."""

_BEAT = 1.0
_ACCOUNT = 2.0
"""Seconds between two accounts of the time that the thread takes."""
_CIPHERS = 1.2
"""Times that, what it takes together with ZeroMQ's own thread, which sends and ciphers: as measured."""
_RETRY = (0.2, 0.6)
"""Seconds between two attempts to connect: at first, and at most."""
_REJECTED = 5.0
"""Seconds until a daemon that refuses this agent is asked again."""
_HANDSHAKE = 3.0
"""Seconds that a connection may take to be there."""
_PROBE = 0.15
"""Seconds until the first look, while it is not there, at whether anybody listens any more: before a daemon
that is started anew is back. Each later one comes after four times the time, and all later in a large job:
each is one more connection for a daemon that may be busy with a thousand others."""
_BLOCKED = 0.5
"""Seconds for which a socket takes nothing after which the connection is held lost."""
_WELCOME = 10.0
"""Seconds that the daemon may take to answer a hello."""
_ALONE = 1.0
"""Seconds between two looks at what has happened, while no daemon is there that could be told."""
_MOST_WAITING = 64
"""Messages that ZeroMQ holds for the daemon at most."""
_LINGER_MS = 300
# As plain numbers: an enum's operators take longer than the call that they are for.
_EVENTS, _POLLIN, _POLLOUT = int(zmq.EVENTS), int(zmq.POLLIN), int(zmq.POLLOUT)
_GRACE = 1.0
"""Seconds that the end of a run waits for the daemon to have everything."""
_LAST_CALL = 0.5
"""Seconds that the end of a run waits for a daemon to be there at all."""


class Link:
    """Carries one attachment's messages. All but `start`, `stop` and the properties is the thread's."""

    def __init__(self, source: Source, session: str, address: str | None) -> None:
        self.outbox = Outbox()
        self.welcomed = False
        """Whether a daemon is connected and has taken our hello."""
        self._source = source
        self._session = session
        self._address = address
        self._context: zmq.Context[zmq.Socket[bytes]] | None = None
        self._socket: zmq.Socket[bytes] | None = None
        self._connected = False
        self._speaks_again = False
        """Whether what a hello says has changed since the last one."""
        self._writable = 0.0
        """When the socket last would have taken a message, or was made."""
        self._greeted = 0.0
        """When hello was said, or the socket was made."""
        self._settled = 0.0
        """From when on what is held goes out: the other ranks of a large job may still wait for a welcome."""
        self._at = ""
        """The address that the socket is connected to, or is to be."""
        self._next_pack = 0.0
        self._next_probe = 0.0
        self._next_try = 0.0
        self._retry = _RETRY[0]
        self._next_beat = 0.0
        self._warned = ""
        self._reason = ""
        self._hasty_until = self._next_haste = 0.0
        self._used, self._accounted = 0.0, 0.0
        """The thread's CPU seconds at the last account, and when that was."""
        self._pace = Pace(1)
        self._stopping = False
        self._waker: tuple[socket.socket, socket.socket] | None = None
        """What other threads wake this one by: both ends."""
        self._thread = threading.Thread(target=self._run, name="optwatch-link", daemon=True)

    def start(self) -> None:
        self._waker = socket.socketpair()
        for end in self._waker:
            end.setblocking(False)
        self._thread.start()

    def hurry(self) -> None:
        """Be quick for a while: something unusual happened. Called by the training thread."""
        now = time.monotonic()
        if now >= self._next_haste:
            self._hasty_until, self._next_haste = now + self._pace.haste, now + self._pace.calm
            self._wake()

    def speak_again(self) -> None:
        """Say hello anew, where the daemon has heard one. Called by the training thread."""
        self._speaks_again = True
        self._wake()

    def stop(self, reason: str, timeout: float = _GRACE + 0.45) -> None:
        """Send what is left and end the thread; after `timeout` seconds at the latest it is left behind."""
        self._reason = reason
        self._stopping = True
        self._wake()
        if self._thread.ident is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout)

    def _wake(self) -> None:
        try:
            if self._waker is not None:
                self._waker[1].send(b"\0")
        except OSError:  # it is awake: full of such calls, or at its end
            return

    # --- the thread -----------------------------------------------------------------------------------

    def _run(self) -> None:
        self._used, self._accounted = time.thread_time(), time.monotonic()
        try:
            while not self._stopping:
                self._rest()
                if not self._stopping:
                    self._turn()
            self._finish()
        except Exception as error:  # noqa: BLE001 - training goes on, without a link
            log.warning("optwatch: the link to the daemon failed and stays off: %r", error)
        finally:
            self._disconnect()
            if self._context is not None:
                self._context.destroy(linger=_LINGER_MS)
            for end in self._waker or ():
                end.close()

    def _rest(self) -> None:
        """Wait for the next turn. It is due at once where somebody wakes it or the daemon wants something."""
        assert self._waker is not None
        end = time.monotonic() + self._pause()
        while (left := end - time.monotonic()) > 0:
            awaited: list[tuple[Any, int]] = [(self._waker[0].fileno(), _POLLIN)]
            if self._socket is not None:
                awaited.append((self._socket, _POLLIN if self._connected else _POLLOUT))
            for ready, _ in zmq.zmq_poll(awaited, math.ceil(left * 1_000)):
                if ready is not self._socket:
                    self._waker[0].recv(4_096)
                    return
                if not self._connected or self._receive():
                    return

    def _pause(self) -> float:
        """Seconds to the next turn. No two ranks of a job keep the same beat for long."""
        now = time.monotonic()
        if now < self._hasty_until:
            return self._pace.quick_turn
        turn = self._pace.turn * _JITTER.uniform(0.9, 1.1)
        if self._connected:
            return turn
        alone = self._socket is None
        due = (self._next_try if alone else self._next_probe) - now
        return min(due, _ALONE if alone else turn) if due > 0 else turn

    def _turn(self, everything: bool = False) -> None:
        now = time.monotonic()
        if self._connected or everything or now >= self._next_pack:
            self._next_pack = now + _ALONE
            for message, blocks, schema in self._source.collect(everything):
                self.outbox.hold(message, blocks, schema)
        if now - self._accounted >= _ACCOUNT:
            used = time.thread_time()
            self._source.account(_CIPHERS * (used - self._used) / (now - self._accounted))
            self._used, self._accounted = used, now
        ready = self._source.ready() or everything
        if self._socket is None and now >= self._next_try and ready:
            self._connect(now)
        if self._socket is not None:
            self._watch_connection(now)
        if self._socket is not None and self._connected:
            self._receive()
            if self.welcomed and (now >= self._settled or self._stopping):
                # First what can be rolled back to: what the points show may call for it.
                if now >= self._next_beat or self._source.pressing():
                    self._next_beat = now + _BEAT * _JITTER.uniform(0.9, 1.1)
                    self._send(pack(self._source.beat()))
                    if (follow := self._source.follow()) is not None:
                        self._send(pack(follow))
                self.outbox.send(self._send)

    def _finish(self) -> None:
        """Everything out, as far as a daemon takes it within the grace."""
        self._next_beat = 0.0
        self._turn(everything=True)
        self.outbox.hold(Bye(session=self._session, seq=0, reason=self._reason))
        self._next_try = 0.0
        began = time.monotonic()
        while self.outbox.queued and time.monotonic() < began + (_GRACE if self._connected else _LAST_CALL):
            self._turn()
            if self._socket is None:  # there is nobody to wait for
                break
            time.sleep(0.01)
        if self.outbox.queued:
            try:
                self.outbox.leave_behind(self._session, self._source.hello(), self._source.beat())
            except OSError as error:
                self._warn(
                    f"what no daemon has taken is lost, it cannot be written to {error.filename}: {error}"
                )

    # --- the connection -------------------------------------------------------------------------------

    def _connect(self, now: float) -> None:
        self._next_try = now + self._retry * _JITTER.uniform(0.8, 1.2)
        self._retry = min(self._retry * 1.5, _RETRY[1])
        try:
            address = find_daemon(self._address, self._source.run)
            key = daemon_key(address)
            if key is None:
                if self._address or os.environ.get("OPTWATCH_DAEMON"):
                    self._warn(f"no key is known for the daemon at {address}: set $OPTWATCH_DAEMON_KEY to it")
                return
            if refused(address):
                return
            pair = key_pair("user") if key else None
        except (ValueError, OSError) as error:
            self._warn(str(error))
            return
        if self._context is None:
            self._context = zmq.Context()
        socket = self._context.socket(zmq.DEALER)
        socket.setsockopt(zmq.LINGER, _LINGER_MS)
        socket.setsockopt(zmq.SNDHWM, _MOST_WAITING)
        socket.setsockopt(zmq.IMMEDIATE, 1)
        socket.setsockopt(zmq.RECONNECT_IVL, -1)
        socket.setsockopt(zmq.HANDSHAKE_IVL, 2000)
        socket.setsockopt(zmq.HEARTBEAT_IVL, 10_000)
        socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, 30_000)
        if pair is not None and key:
            socket.setsockopt(zmq.CURVE_SERVERKEY, key.encode())
            socket.setsockopt(zmq.CURVE_PUBLICKEY, pair.public.encode())
            socket.setsockopt(zmq.CURVE_SECRETKEY, pair.secret.encode())
        try:
            socket.connect(address)
        except zmq.ZMQError as error:
            self._warn(f"cannot connect to {address}: {error}")
            socket.close(0)
            return
        self._socket, self._at = socket, address
        self._writable = self._greeted = now
        self._next_probe = now + _PROBE * self._pace.turn / TURN

    def _watch_connection(self, now: float) -> None:
        """Say hello as soon as the connection is there, and notice when it is lost."""
        assert self._socket is not None
        if _takes(self._socket):
            self._writable = now
            if not self._connected or self._speaks_again:
                self._speaks_again = self.welcomed = False
                hello = self._source.hello()
                self._pace = Pace(hello.world_size)
                self._connected = self._send(pack(hello))
                self._greeted = now
        limit = _BLOCKED if self._connected else _HANDSHAKE
        gone = False
        if not self._connected and now >= self._next_probe:
            self._next_probe = now + 3 * (now - self._greeted)
            gone = refused(self._at)  # a daemon that ended in the handshake: ZeroMQ does not say so
        if gone or now - self._writable > limit or (not self.welcomed and now - self._greeted > _WELCOME):
            self._disconnect()
            # Not at once: one that was killed may close its connections before it is gone.
            self._next_try = now + self._retry * _JITTER.uniform(0.5, 1.0)

    def _disconnect(self) -> None:
        self._connected = self.welcomed = False
        self._source.assign(reduced=False)  # what the daemon knew of the other ranks is old when it is back
        socket, self._socket = self._socket, None
        if socket is not None:
            socket.close(_LINGER_MS)

    # --- messages -------------------------------------------------------------------------------------

    def _receive(self) -> bool:
        """Take what has come; whether it calls for an answer at once.

        A welcome does not: what is held goes out at the next turn, since a thousand agents may have come back
        at once, and some of them still wait for theirs.
        """
        more = False
        while self._socket is not None and _holds(self._socket):
            parts = self._socket.recv_multipart(zmq.NOBLOCK)
            try:
                message, _ = unpack(parts, daemon_decoder)
            except WireError as error:
                self._warn(f"the daemon sent what cannot be read: {error}")
                continue
            if message.session != self._session:
                continue
            more |= not isinstance(message, Ack | Welcome)
            match message:
                case Welcome(acked=acked):
                    self.outbox.begin(acked)
                    if not self.welcomed:
                        self._settled = time.monotonic() + self._pace.turn - TURN
                    self.welcomed = True
                    self._retry, self._next_beat = _RETRY[0], 0.0
                case Ack(acked=acked):
                    self.outbox.forget(acked)
                case Prepare():
                    self._source.take(message)
                case News():
                    self._source.hear(message)
                case Assign(reduced=reduced):
                    self._source.assign(reduced)
                    self._next_beat = 0.0
                case Ask():
                    if (answer := self._source.answer(message)) is not None:
                        self._send(pack(*answer))
                case Farewell(reason=reason):
                    log.info("optwatch: the daemon has stopped (%s): what is measured waits for one", reason)
                    self._disconnect()
                    # Where it is started anew it is soon back, but first it has to be gone.
                    self._retry, self._next_try = _RETRY[0], time.monotonic() + _RETRY[1]
                case Rejected(reason=reason):
                    self._warn(f"the daemon refuses this agent: {reason}")
                    self._disconnect()
                    self._next_try = time.monotonic() + _REJECTED
        return more

    def _send(self, parts: Sequence[Buffer]) -> bool:
        if self._socket is None:
            return False
        try:
            send(self._socket, [AGENT, *parts])
        except zmq.Again:
            return False
        return True

    def _warn(self, text: str) -> None:
        """Log what the user can put right, once."""
        if text != self._warned:
            self._warned = text
            log.warning("optwatch: %s", text)


def _takes(socket: "zmq.Socket[bytes]") -> bool:
    """Whether a socket would take a message."""
    return bool(int(socket.getsockopt(_EVENTS)) & _POLLOUT)


def _holds(socket: "zmq.Socket[bytes]") -> bool:
    """Whether a message has come to a socket."""
    return bool(int(socket.getsockopt(_EVENTS)) & _POLLIN)

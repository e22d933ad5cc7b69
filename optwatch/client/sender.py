"""Sender: speaks the agents' side of the wire for what trains no more, and waits for the daemon.

A training must never wait for its daemon, so its agent lets go of what cannot be sent. Here it is the other
way round: what is sent is held until the daemon has it, and nothing more is sent meanwhile than the daemon
can take.
"""

import contextlib
import time
from collections import deque
from typing import Any, NamedTuple

import msgspec
import zmq

from optwatch.client.errors import DaemonError, DaemonUnreachable
from optwatch.client.link import connect, resolve
from optwatch.wire.frames import AGENT, BatchBlocks, Buffer, WireError, daemon_decoder, pack, unpack
from optwatch.wire.messages import Ack, Batch, Beat, Bye, Event, Hello, Rejected, Schema, Welcome
from optwatch.wire.sending import send

IN_FLIGHT = 8
"""Messages that are not acknowledged beyond which `batch` and `event` wait."""
PATIENCE = 30.0
"""Seconds without anything acknowledged after which the daemon is held lost."""
_BEAT = 1.0
_SILENCE = 2.0
"""Seconds without an answer after which the daemon is greeted anew: it may be another process by now."""
_TURN = 0.05


class _Held(NamedTuple):
    seq: int
    parts: list[Buffer]
    schema: Schema | None


class Sender:
    """One rank's session, to be used by one thread. It survives a restart of the daemon.

    Args:
        hello: who is to be sent for. Its `control` says why nothing can be commanded.
        address: as `optwatch.wire.places.find_daemon` takes it.

    Raises:
        DaemonUnreachable: no daemon answers there.
        DaemonError: it refuses the session.
    """

    def __init__(self, hello: Hello, address: str | None = None) -> None:
        self.hello = hello
        self._address, key = resolve(address, hello.run)
        self._seq = 0
        self._steps = [0] * max(len(hello.optimizers), 1)
        self._held: deque[_Held] = deque()
        self._schemas: dict[Schema, Schema] = {}
        self._known: set[str] = set()
        self._welcomed = False
        self._heard = self._moved = time.monotonic()
        self._greeted = self._next_beat = float("-inf")
        self._context: zmq.Context[Any] = zmq.Context()
        try:
            self._socket = connect(self._context, zmq.DEALER, self._address, key)
            while not self._welcomed:
                self._turn(_TURN)
        except BaseException:
            self.close()
            raise

    def batch(self, schema: Schema, blocks: BatchBlocks) -> None:
        """Send steps of the schema's optimizer. Its session and digest are filled in here.

        Raises:
            DaemonUnreachable: the daemon takes nothing any more; so do all methods that send.
        """
        known = self._schemas.setdefault(
            schema,
            msgspec.structs.replace(schema, session=self.hello.session, digest=str(len(self._schemas))),
        )
        message = Batch(
            session=self.hello.session,
            seq=self._seq + 1,
            optimizer=schema.optimizer,
            schema=known.digest,
            steps=len(blocks.step),
            sampled=len(blocks.sample_step),
            histograms=len(blocks.histogram_step),
        )
        self._send(message, pack(message, blocks.blocks()), known)
        self._steps[schema.optimizer] = int(blocks.step[-1])

    def event(self, event: Event) -> None:
        """Send an event. Its session and number are filled in here."""
        message = msgspec.structs.replace(event, session=self.hello.session, seq=self._seq + 1)
        self._send(message, pack(message))

    def idle(self, seconds: float) -> None:
        """Let time pass, and be heard of."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self._turn(min(left, _TURN))

    def finish(self, reason: str) -> None:
        """Say that it is over, and wait until the daemon has everything."""
        message = Bye(session=self.hello.session, seq=self._seq + 1, reason=reason)
        self._send(message, pack(message))
        while self._held:
            self._turn(_TURN)

    def close(self) -> None:
        """Let go of the connection, whatever is still held."""
        self._context.destroy(linger=0)

    # --- what goes out --------------------------------------------------------------------------------

    def _send(self, message: Batch | Event | Bye, parts: list[Buffer], schema: Schema | None = None) -> None:
        while len(self._held) >= IN_FLIGHT:
            self._turn(_TURN)
        if not self._held:
            self._heard = self._moved = time.monotonic()
        self._seq = message.seq
        self._held.append(_Held(message.seq, parts, schema))
        self._transmit(self._held[-1])
        self._turn(0)

    def _transmit(self, held: _Held) -> None:
        if held.schema is not None and held.schema.digest not in self._known:
            self._put(pack(held.schema))
            self._known.add(held.schema.digest)
        self._put(held.parts)

    def _put(self, parts: list[Buffer]) -> None:
        with contextlib.suppress(zmq.Again):  # what is held is sent again after the next welcome
            send(self._socket, [AGENT, *parts])

    def _beat(self) -> Beat:
        return Beat(
            session=self.hello.session,
            steps=tuple(self._steps),
            phase="replay",
            phase_time=0.0,
            overhead=0.0,
            sample_every=0,
            queued=len(self._held),
            dropped=0,
            control=self.hello.control,
            oldest=self._held[0].seq if self._held else self._seq + 1,
        )

    # --- what comes in --------------------------------------------------------------------------------

    def _turn(self, timeout: float) -> None:
        """Say what is due, and take what comes within `timeout` seconds."""
        now = time.monotonic()
        if self._welcomed and now >= self._next_beat:
            self._next_beat = now + _BEAT
            self._put(pack(self._beat()))
        if self._held or not self._welcomed:
            if now - self._moved > PATIENCE:
                raise DaemonUnreachable(
                    f"the daemon at {self._address} has taken nothing for {PATIENCE:.0f} s: see its log"
                )
            silent = not self._welcomed or now - self._heard > _SILENCE
            if silent and now - self._greeted > _SILENCE:
                self._greeted = now
                self._put(pack(self.hello))
        if self._socket.poll(int(timeout * 1_000)):
            self._heard = time.monotonic()
            while self._socket.poll(0):
                self._take(self._socket.recv_multipart())

    def _take(self, parts: list[bytes]) -> None:
        try:
            message, _ = unpack(parts, daemon_decoder)
        except WireError as error:
            raise DaemonError(f"the daemon at {self._address} sent {error}") from None
        if message.session != self.hello.session:
            return
        match message:
            case Welcome(acked=acked):
                self._welcomed = True
                self._forget(acked)
                self._known.clear()
                for held in self._held:
                    self._transmit(held)
            case Ack(acked=acked):
                self._forget(acked)
            case Rejected(reason=reason):
                raise DaemonError(f"the daemon at {self._address} refuses: {reason}")

    def _forget(self, acked: int) -> None:
        while self._held and self._held[0].seq <= acked:
            self._held.popleft()
            self._moved = time.monotonic()

"""The server: one thread that polls all sockets and moves everything on."""

import logging
import math
import os
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import zmq

from optwatch.daemon.access import Access
from optwatch.daemon.announcement import Announcement
from optwatch.daemon.changes import Changes
from optwatch.daemon.desk import Desk
from optwatch.daemon.inflow import Inflow
from optwatch.daemon.ingest import Ingest
from optwatch.daemon.keeper import Keeper
from optwatch.daemon.leftovers import Leftovers
from optwatch.daemon.publish import Publisher
from optwatch.daemon.readout import Readout
from optwatch.daemon.refusals import Handshakes
from optwatch.daemon.retention import Limits
from optwatch.daemon.run import Run
from optwatch.daemon.runs import Runs
from optwatch.daemon.store import Store
from optwatch.wire.frames import AGENT, CLIENT, pack
from optwatch.wire.messages import Ask, Assign, DaemonMessage, News, Prepare
from optwatch.wire.requests import Accepted
from optwatch.wire.sending import send

log = logging.getLogger(__name__)

BURST = 0.05
"""Seconds for which messages are taken from the socket before everything else gets its turn."""
REST, SHORTEST_REST, LONGEST_REST = 3.0, 0.01, 0.2
"""How long messages alone are taken after everything else had its turn: so many times as long as that took,
within these seconds. Of a thousand ranks some have always sent something, and all would be looked through."""
GATHER = 0.005
"""Seconds after all messages were taken until the next look: of a thousand ranks one always comes, and to be
woken for each costs more than to take it."""
NOBLOCK = int(zmq.NOBLOCK)
TICK = 0.05
SLOW_TICK = 1.0
PARTING = 2.0
"""Seconds that connections stay after the last word at most, where the other side is slow to hang up."""


class Server:
    """Serves until `stop`."""

    def __init__(
        self,
        store: Store,
        runs: Runs,
        access: Access,
        handshakes: Sequence[Handshakes],
        router: "zmq.Socket[Any]",
        xpub: "zmq.Socket[Any]",
        wake: int,
        idle_exit: float | None,
        also: Sequence[Callable[[Run, Changes], None]],
        readout: Readout,
        announcement: Announcement,
        reread: Callable[[], None],
        limits: Limits,
    ) -> None:
        self._reread = reread
        self._announcement = announcement
        self._readout = readout
        self._store = store
        self._runs = runs
        self._access = access
        self._handshakes = handshakes
        self._router = router
        self._xpub = xpub
        self._wake = wake
        self._idle_exit = idle_exit
        self._stopping = False
        self._rereading = False
        self._busy = time.monotonic()
        self._next_slow = 0.0
        self._next_move = 0.0
        self._next_look = 0.0
        self._fresh = False
        """Whether something was taken since everything was moved on."""
        self._held: list[tuple[bytes, list[Any]]] = []
        self._outbox: deque[tuple[int, bytes, list[Any]]] = deque()
        """What may go out once the store has what it rests on: (ticket, routing id, parts)."""
        daemon = os.urandom(8).hex()
        self._publisher = Publisher(xpub, runs, also)
        self._ingest = Ingest(store, runs, self._send, self._prepare, daemon, access.refusals)
        self._keeper = Keeper(store, runs, limits)
        self._leftovers = Leftovers(self._ingest, access.local_user)
        publish = xpub.getsockopt_string(zmq.LAST_ENDPOINT)
        self._inflow = Inflow(router.getsockopt_string(zmq.LAST_ENDPOINT), publish)
        self._desk = Desk(store, runs, self._publisher, daemon, publish, self.stop, access.refusals)
        self._poller = zmq.Poller()
        for socket in (router, xpub, access.socket, *(each.socket for each in handshakes)):
            self._poller.register(socket, zmq.POLLIN)
        self._poller.register(wake, zmq.POLLIN)

    def stop(self) -> None:
        """End after the present turn. Safe in a signal handler."""
        self._stopping = True

    def reread(self) -> None:
        """Read the policy anew in the next turn. Safe in a signal handler."""
        self._rereading = True

    def serve(self) -> None:
        """Serve until told to stop, then take in and commit what has already arrived."""
        while not self._stopping:
            self._turn(TICK)
            self._watch_idleness(time.monotonic())
        for _ in range(8):
            if not self._drain(time.monotonic()):
                break
        for run in self._runs.by_id.values():
            if run.loaded and not run.head.ended and self._move(run, time.monotonic()):
                run.checkpoint()
                run.save_head()
        self._settle()
        self._store.settle()
        self._release()
        self._leftovers.close()
        self._keeper.close()
        self._publisher.tick(float("inf"))
        self._part()

    def _part(self) -> None:
        """Tell agents and followers that this daemon goes, so that none waits for a silence to be long.

        Who has heard it hangs up. The connections, and with them the bound sockets, stay until then: what
        came by one that is gone cannot be read any more. Newcomers wait at the door meanwhile.
        """
        reason = "it was told to end"
        self._publisher.part(reason)
        end = time.monotonic() + PARTING
        while self._ingest.part(reason) + len(self._publisher.subscribers) and time.monotonic() < end:
            time.sleep(TICK)
            self._publisher.subscriptions(end)

    def _turn(self, timeout: float) -> None:
        time.sleep(max(self._next_look - time.monotonic(), 0.0))
        if self._fresh and (due := self._next_move - time.monotonic()) > 0:
            timeout = min(timeout, due)
        events = dict(self._poller.poll(math.ceil(timeout * 1_000)))
        now = time.monotonic()
        if self._rereading:
            self._rereading = False
            self._reread()
        if self._access.socket in events:
            self._access.answer()
        for handshakes in self._handshakes:
            if handshakes.socket in events:
                handshakes.look()
        if self._wake in events:
            os.read(self._wake, 4_096)
            self._release()
        if self._xpub in events:
            self._publisher.subscriptions(now)
        if self._router in events and self._drain(now):
            self._fresh = True
        if (now := time.monotonic()) < self._next_move:  # what was taken took time
            return
        self._fresh = False
        self._leftovers.tick(now)
        self._advance(now)
        self._settle()
        self._publisher.tick(now)
        if self._readout.wanted:
            self._readout.take(self._runs, self._store, self._ingest, now)
        ended = time.monotonic()
        rest = min(max(REST * (ended - now), SHORTEST_REST), LONGEST_REST)
        self._next_move = min(ended + rest, self._publisher.due)

    def _drain(self, now: float) -> int:
        """Take the messages that are there, for a while; how many there were."""
        taken = 0
        end = time.monotonic() + BURST
        while time.monotonic() < end:
            try:
                frames = self._receive()
            except zmq.Again:
                self._next_look = time.monotonic() + GATHER
                break
            taken += 1
            try:
                self._take(frames, now)
            except Exception:
                # A fault of ours that one message brings out must not end the service of all the others.
                log.exception("a message could not be taken")
                self._ingest.counts["internal error"] += 1
        return taken

    def _receive(self) -> list[zmq.Frame]:
        """A whole message: as `recv_multipart`, which asks the socket after each part what the part knows."""
        frames = [self._router.recv(NOBLOCK, False)]
        while frames[-1].more:
            frames.append(self._router.recv(NOBLOCK, False))
        return frames

    def _take(self, frames: list[zmq.Frame], now: float) -> None:
        self._inflow.took(frames[-1])
        if len(frames) < 3:
            self._ingest.counts["malformed"] += 1
            return
        identity, kind = frames[0].bytes, frames[1].bytes
        if (who := self._access.who(frames[-1])) is None:
            self._ingest.counts["a key that is let in no more"] += 1
            self._access.refusals.note("an open connection", "its key is let in no more")
            return
        user, role = who
        if kind == AGENT:
            self._busy = now
            self._ingest.take(identity, user, role, [frame.buffer for frame in frames[2:]], now)
        elif kind == CLIENT and len(frames) == 4 and len(frames[2]) == 8:
            self._busy = now
            reply, blocks = self._desk.answer([frames[3].buffer], user, role, now)
            parts = [frames[2].bytes, *pack(reply, blocks)]
            if isinstance(reply, Accepted) and not self._store.trouble:  # then it is only a stop
                self._held.append((identity, parts))
            else:
                self._write(identity, parts)
        else:
            self._ingest.counts["malformed"] += 1

    def _advance(self, now: float) -> None:
        """Everything that follows from what was taken, and from time passing."""
        slow = now >= self._next_slow
        if slow:
            self._next_slow = now + SLOW_TICK
        for run in self._runs.by_id.values():
            if run.loaded and self._move(run, now) and slow:
                run.watch_links(now)
                run.assign(now, self._tell)
        if slow:
            self._runs.unload(now)
            self._ingest.forget(now)
            self._inflow.look()
            self._keeper.tick(now)
            self._announcement.look()
            self._access.refresh()

    def _move(self, run: Run, now: float) -> bool:
        """Move one run on; a fault of ours in it ends only that. Whether it is followed."""
        if run.fault:
            return False
        try:
            run.advance(now, self._prepare, self._publisher.of(run))
        except Exception as error:
            log.exception("run %s: it is not followed any more", run.head.name)
            run.fail(error)
        return not run.fault

    def _prepare(self, session: str, message: Prepare | Ask | News) -> None:
        """Send a command to an agent, or news of the run, but not before it is in the books."""
        found = self._ingest.sessions.get(session)
        if found is not None:
            self._held.append((found.identity, pack(message)))

    def _tell(self, session: str, message: Assign) -> None:
        """Tell an agent what rests on nothing in the store."""
        found = self._ingest.sessions.get(session)
        if found is not None:
            self._send(found.identity, message)

    def _settle(self) -> None:
        """Hand this turn's changes to the store, and send what rests on earlier ones."""
        self._ingest.describe()
        ticket = self._store.submit()
        self._ingest.submitted(ticket)
        self._outbox.extend((ticket, identity, parts) for identity, parts in self._held)
        self._held.clear()
        self._release()

    def _release(self) -> None:
        while self._outbox and self._outbox[0][0] <= self._store.committed:
            _, identity, parts = self._outbox.popleft()
            self._write(identity, parts)
        self._ingest.acknowledge()

    def _send(self, identity: bytes, message: DaemonMessage) -> bool:
        return self._write(identity, pack(message))

    def _write(self, identity: bytes, parts: list[Any]) -> bool:
        try:
            send(self._router, [identity, *parts])
        except zmq.ZMQError:  # gone, or it does not read: it will say hello, or ask, again
            return False
        return True

    def _watch_idleness(self, now: float) -> None:
        if self._idle_exit is None:
            return
        if self._publisher.subscribers:
            self._busy = now
        if now - self._busy > self._idle_exit:
            log.info("idle for %g s: ending", self._idle_exit)
            self.stop()

"""A bad link between agents and daemon: messages come late, some never, and at times it is down.

It stands between them as a process of its own would, speaks ZeroMQ to both sides (a daemon with
`--insecure`), and keeps the order of what it carries, as TCP does. For the protocol in which the daemon
decides it also plays that part: it counts the votes that pass and sends the verdict over the same link.
"""

import heapq
import itertools
import random
import threading
import time
from dataclasses import dataclass
from typing import Any

import msgspec
import zmq

from optwatch.wire.frames import agent_decoder, daemon_decoder, pack, unpack
from optwatch.wire.messages import Prepare, Report

VERDICT = "verdict"
"""The action of a `Prepare` that stands for a verdict of the daemon's."""


@dataclass(frozen=True, kw_only=True)
class Weather:
    """Seconds that a message takes on average, and the share that is lost."""

    delay: float = 0.006
    loss: float = 0.03
    seed: int = 0


class BadLink(threading.Thread):
    """Carries messages between `address`, where agents connect, and a daemon."""

    def __init__(self, daemon: str, weather: Weather, *, decides: bool = False) -> None:
        super().__init__(daemon=True)
        self.lost = self.carried = 0
        self._daemon = daemon
        self._weather = weather
        self._dice = random.Random(weather.seed)
        self._decides = decides
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._front = self._listen("tcp://127.0.0.1:0")
        self.address = self._front.getsockopt_string(zmq.LAST_ENDPOINT)
        self._backs: dict[bytes, zmq.Socket[bytes]] = {}
        self._last: dict[tuple[bool, bytes], float] = {}
        self._due: list[tuple[float, int, bool, bytes, list[bytes]]] = []
        self._number = itertools.count()
        self._votes: dict[str, tuple[Prepare, dict[bytes, str]]] = {}
        self._down = threading.Event()
        self._ended = threading.Event()

    def cut(self) -> None:
        """Everybody's connection is gone, and so is what was under way."""
        self._down.set()

    def heal(self) -> None:
        self._down.clear()

    def close(self) -> None:
        self._ended.set()
        self.join(10)

    def run(self) -> None:
        while not self._ended.is_set():
            if self._down.is_set():
                self._lie_down()
                continue
            self._take()
            self._deliver()
        self._hang_up()
        self._context.destroy(0)

    def _listen(self, address: str) -> "zmq.Socket[bytes]":
        front = self._context.socket(zmq.ROUTER)
        front.setsockopt(zmq.LINGER, 0)
        front.bind(address)
        return front

    def _lie_down(self) -> None:
        self._hang_up()
        while self._down.is_set() and not self._ended.is_set():
            time.sleep(0.01)
        if not self._ended.is_set():
            self._front = self._listen(self.address)

    def _hang_up(self) -> None:
        for socket in (self._front, *self._backs.values()):
            socket.close(0)
        self._backs.clear()
        self._due.clear()

    def _take(self) -> None:
        poller = zmq.Poller()
        for socket in (self._front, *self._backs.values()):
            poller.register(socket, zmq.POLLIN)
        wait = min(max(self._due[0][0] - time.monotonic(), 0), 0.02) if self._due else 0.02
        ready = dict(poller.poll(1_000 * wait))
        if self._front in ready:
            while self._front.poll(0):
                identity, *parts = self._front.recv_multipart()
                self._enter(True, identity, parts)
        for identity, back in self._backs.items():
            if back in ready:
                while back.poll(0):
                    self._enter(False, identity, back.recv_multipart())

    def _enter(self, up: bool, identity: bytes, parts: list[bytes]) -> None:
        if self._decides:
            self._decide(up, identity, parts)
        if self._dice.random() < self._weather.loss:
            self.lost += 1
            return
        at = max(
            self._last.get((up, identity), 0.0),
            time.monotonic() + self._dice.expovariate(1 / self._weather.delay),
        )
        self._last[up, identity] = at
        heapq.heappush(self._due, (at, next(self._number), up, identity, parts))

    def _deliver(self) -> None:
        while self._due and self._due[0][0] <= time.monotonic():
            _, _, up, identity, parts = heapq.heappop(self._due)
            self.carried += 1
            if not up:
                self._front.send_multipart([identity, *parts])
                continue
            if identity not in self._backs:
                self._backs[identity] = self._context.socket(zmq.DEALER)
                self._backs[identity].connect(self._daemon)
            self._backs[identity].send_multipart(parts)

    def _decide(self, up: bool, identity: bytes, parts: list[bytes]) -> None:
        """Count the votes, and let the verdict go the way of all messages."""
        message: Any = unpack(parts[1:], agent_decoder)[0] if up else unpack(parts, daemon_decoder)[0]
        if isinstance(message, Prepare):
            self._votes.setdefault(message.vote, (message, {}))
        elif isinstance(message, Report) and message.state == "pending" and message.vote in self._votes:
            proposal, voters = self._votes[message.vote]
            if identity not in voters:
                voters[identity] = message.session
                if len(voters) == proposal.n:
                    for voter, session in voters.items():
                        verdict = msgspec.structs.replace(proposal, session=session, action=VERDICT, args={})
                        self._enter(False, voter, [bytes(part) for part in pack(verdict)])

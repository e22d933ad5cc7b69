"""How long all agents of a large job take to be back: `python -m tests.reunion --agents 1024`.

The links are the agent's own, in a few processes, each taking a step in two seconds and knowing the daemon's
key from its environment, as the ranks of so large a job on their many hosts do; the links of a process share
a thread and a ZeroMQ context, since thousands of threads on one host would measure only each other. The
daemon is killed and started again at once, and once more after it was away for a while, so that all agents
wait for their next try. Told is the time from the new daemon's listening until each agent was welcome again
and until the daemon had what each had measured meanwhile; what the daemon used of a core until then, and its
busiest thread, which sets the time where the agents are on hosts of their own; what the simulation used, that
shares the cores with it here; and what was lost.
"""

import argparse
import heapq
import multiprocessing
import os
import threading
import time
import uuid
from collections.abc import Sequence
from functools import lru_cache
from multiprocessing.synchronize import Event
from typing import Any

import numpy as np
import zmq

from optwatch.wire.frames import BatchBlocks
from optwatch.wire.keys import daemon_key
from tests.benchmarks.ingest import cpu, cpu_by_thread
from tests.daemons import DaemonProcess, home_of_its_own

STEP_TIME = 2.0
LOOK = 0.04
"""Seconds between two looks at what has come to the links of a process. A link of its own sees it at once."""
PATIENCE = 600.0
"""Seconds after which something hangs, also on a host that is busy with other things."""


class Turns(threading.Thread):
    """Gives each link its turns, at the times at which its own thread would have taken them."""

    def __init__(self, links: list[Any]) -> None:
        super().__init__(daemon=True)
        self.welcomed: dict[Any, float] = {}
        """When each link that is welcome was so."""
        self.delivered: dict[Any, float] = {}
        """When the daemon first had all that each of them held."""
        self._links = links
        self._next_look = 0.0
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._context.set(zmq.MAX_SOCKETS, 2 * len(links) + 64)

    def run(self) -> None:
        due = []
        for at, link in enumerate(self._links):
            link._context = self._context
            due.append((time.monotonic() + at * 0.001, at))
        while True:
            when, at = due[0]
            time.sleep(max(min(when - time.monotonic(), LOOK), 0))
            self._look()
            if when <= time.monotonic():
                self._turn(self._links[at])
                heapq.heapreplace(due, (time.monotonic() + self._links[at]._pause(), at))

    def _look(self) -> None:
        """Do for all what each would do while it rests."""
        if time.monotonic() < self._next_look:
            return
        self._next_look = time.monotonic() + LOOK
        there = {link._socket: link for link in self._links if link._socket is not None}
        awaited = [(s, zmq.POLLIN if link._connected else zmq.POLLOUT) for s, link in there.items()]
        for socket, _ in zmq.zmq_poll(awaited, 0):
            link = there[socket]
            if not link._connected or link._receive():
                self._turn(link)
            self._note(link)

    def _turn(self, link: Any) -> None:
        link._turn()
        self._note(link)

    def _note(self, link: Any) -> None:
        if not link.welcomed:
            self.welcomed.pop(link, None)
            self.delivered.pop(link, None)
            return
        self.welcomed.setdefault(link, time.monotonic())
        if not link.outbox.queued:
            self.delivered.setdefault(link, time.monotonic())


def agents(
    address: str,
    key: str,
    run: str,
    numbers: range,
    total: int,
    shards: int,
    tensors: int,
    ended: Event,
    told: "multiprocessing.Queue[Any]",
) -> None:
    """Some of the agents. Told is, whenever all of them are back, when each was welcome and when it had
    delivered."""
    from tests.simulated import SimulatedRun, Trainings

    class Alike(SimulatedRun):
        """Ranks that measure the same, once for all: on hosts of their own each would do so for itself."""

        same = lru_cache(maxsize=64)(SimulatedRun.blocks)

        def blocks(self, rank: int, steps: Sequence[int], *, sampled: bool) -> BatchBlocks:
            return self.same(rank % self.shards, tuple(steps), sampled=sampled)

    os.environ["OPTWATCH_DAEMON_KEY"] = key
    here = Alike(
        "many",
        address,
        0,
        False,
        run=run,
        numbers=numbers,
        world_size=total,
        hasty=False,
        shards=shards,
        tensors=tensors,
    )
    trainings = Trainings([here], STEP_TIME)
    turns = Turns([rank.link for rank in here.ranks])
    turns.start()
    trainings.start()
    back = False
    while not ended.is_set():
        was, back = back, len(turns.delivered) == len(numbers)
        if back and not was:
            told.put((list(turns.welcomed.values()), list(turns.delivered.values())))
        time.sleep(0.02)
    trainings.stopped = True
    trainings.join()
    end = time.monotonic() + PATIENCE
    while any(rank.link.outbox.queued for rank in here.ranks) and time.monotonic() < end:
        time.sleep(0.05)
    told.put(sum(rank.link.outbox.ring.dropped + rank.link.outbox.queued for rank in here.ranks))
    told.close()
    told.join_thread()
    os._exit(0)  # a thousand links take their time to say goodbye


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--agents", type=int, default=1_024)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument(
        "--shards", type=int, default=2, help="parts of the tensors, of each as many replicas"
    )
    parser.add_argument("--tensors", type=int, default=3)
    parser.add_argument("--away", type=float, nargs="*", default=[0.0, 10.0], help="seconds that it is away")
    args = parser.parse_args()
    with home_of_its_own() as home:
        daemon = DaemonProcess(home).start()
        key = daemon_key(daemon.address)
        assert key
        spawn = multiprocessing.get_context("spawn")
        ended, run = spawn.Event(), uuid.uuid4().hex
        share = -(-args.agents // args.processes)
        queues, processes = [], []
        for first in range(0, args.agents, share):
            queues.append(spawn.Queue())
            numbers = range(first, min(first + share, args.agents))
            given = (
                daemon.address,
                key,
                run,
                numbers,
                args.agents,
                args.shards,
                args.tensors,
                ended,
                queues[-1],
            )
            processes.append(spawn.Process(target=agents, args=given, daemon=True))
            processes[-1].start()
        for queue in queues:
            queue.get(timeout=PATIENCE)
        for away in args.away:
            time.sleep(3)
            daemon.kill()
            time.sleep(away)
            used = sum(cpu(process.pid or 0) for process in processes)
            killed = time.monotonic()
            daemon.start()
            listening = time.monotonic()
            assert daemon.process is not None
            start = cpu_by_thread(daemon.process.pid)
            told = [queue.get(timeout=PATIENCE) for queue in queues]
            threads = cpu_by_thread(daemon.process.pid)
            own = [seconds - start.get(thread, 0.0) for thread, seconds in threads.items()]
            welcomed, delivered = (np.concatenate(times) - listening for times in zip(*told, strict=True))
            print(
                f"away {away:g} s and its start ({listening - killed:.1f} s): {args.agents} agents back in "
                f"{np.median(welcomed):.2f} s (median), {np.quantile(welcomed, 0.99):.2f} s (99 %), "
                f"{welcomed.max():.2f} s (the last), all they held after {delivered.max():.2f} s; CPU until "
                f"then: the daemon {sum(own):.2f} s, its busiest thread {max(own):.2f} s, the agents "
                f"{sum(cpu(process.pid or 0) for process in processes) - used:.2f} s",
                flush=True,
            )
        ended.set()
        lost = sum(queue.get(timeout=2 * PATIENCE) for queue in queues)
        with daemon.client() as client:
            status = client.status(run)
        print(f"{lost} messages lost or waiting; {status.steps_recorded} steps, gaps {status.gaps}")
        daemon.kill()


if __name__ == "__main__":
    main()

"""Of replicas one sends everything, and the next takes over where it falls silent."""

import time
import uuid
from collections.abc import Callable

import numpy as np

from optwatch.wire.messages import Assign
from tests.daemons import GUARD, DaemonProcess
from tests.peers import COLUMNS, AgentPeer, values


class Replica:
    """A rank that does as it is told, as the agent does."""

    def __init__(self, daemon: DaemonProcess, run: str, rank: int, tensors: int = 2) -> None:
        self.agent = AgentPeer(daemon.address, run=run, rank=rank, world_size=3, tensors=tensors)
        self.reduced = False
        self.agent.greet()

    def go_on(self) -> None:
        """Another step, sampled unless a replica does it, and what has come from the daemon."""
        self.agent.batch(values(1, len(COLUMNS)), sampled=not self.reduced)
        self.agent.beat(reduced=self.reduced)
        while (message := self.agent.receive(0)) is not None:
            if isinstance(message, Assign):
                self.reduced = message.reduced


def until(replicas: list[Replica], what: Callable[[], bool]) -> None:
    end = time.monotonic() + GUARD
    while not what():
        assert time.monotonic() < end, [replica.reduced for replica in replicas]
        for replica in replicas:
            replica.go_on()
        time.sleep(0.05)


def test_one_replica_sends_all_and_another_takes_over_when_it_is_silent(daemon: DaemonProcess) -> None:
    run = uuid.uuid4().hex
    replicas = [Replica(daemon, run, rank) for rank in range(3)]
    until(replicas, lambda: [r.reduced for r in replicas] == [False, True, True])
    with daemon.client() as client:
        until(replicas, lambda: [r.reduced for r in client.status(run).ranks] == [False, True, True])
        alone = replicas[1].agent.step
        until(replicas, lambda: replicas[1].agent.step > alone + 3)

        rest = replicas[1:]
        until(rest, lambda: [r.reduced for r in rest] == [False, True])
        taken_over = rest[0].agent.step
        until(rest, lambda: client.tensors(run)[1].step.tolist()[-1:] > [taken_over])
        until(rest, lambda: any("rank 0 is out of touch" in m.text for m in client.view(run)[0].markers))

        until(replicas, lambda: [r.reduced for r in replicas] == [False, True, True])
        # Whichever sent them, each record is one replica's: here all its numbers are its step.
        _, records = client.tensors(run)
        assert len(records.step) == len(set(records.step.tolist()))
        for step, stats in zip(records.step.tolist(), records.stats, strict=True):
            np.testing.assert_array_equal(stats, float(step))
    for replica in replicas:
        replica.agent.close()


def test_a_rank_that_holds_what_no_other_does_is_never_reduced(daemon: DaemonProcess) -> None:
    run = uuid.uuid4().hex
    replicas = [Replica(daemon, run, 0), Replica(daemon, run, 1), Replica(daemon, run, 2, tensors=3)]
    until(replicas, lambda: [r.reduced for r in replicas] == [False, True, False])
    at = replicas[0].agent.step
    until(replicas, lambda: replicas[0].agent.step > at + 40)
    assert [r.reduced for r in replicas] == [False, True, False]
    for replica in replicas:
        replica.agent.close()

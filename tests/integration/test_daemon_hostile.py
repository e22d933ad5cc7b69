"""What a peer with a key may send by mistake or by intent: the daemon serves everybody else all the same."""

import contextlib

import msgspec
import pytest

from optwatch.client import Refusal
from optwatch.wire.requests import Act, AddMark, GetSeries, Request
from tests.daemons import GUARD, DaemonProcess
from tests.peers import BEAT, AgentPeer, values


def beat_with(agent: AgentPeer, steps: tuple[int, ...]) -> None:
    agent.send(msgspec.structs.replace(BEAT, session=agent.session, steps=steps))


def recorded_after(daemon: DaemonProcess, agent: AgentPeer) -> int:
    """Steps of a run that are in the store once another batch was acknowledged."""
    agent.batch(values(4, start=agent.step))
    agent.wait_acked()
    with daemon.client() as client:
        return client.status(agent.run).steps_recorded


def test_a_step_that_no_store_can_hold_does_not_end_the_writing(daemon: DaemonProcess) -> None:
    agent = AgentPeer(daemon.address)
    agent.greet()
    agent.batch(values(4))
    beat_with(agent, (2**63 + 5,))
    agent.wait_acked()
    with daemon.client() as client:
        client.mark(agent.run, "after a beat from nowhere")
        assert client.status(agent.run).step == 4
    assert recorded_after(daemon, agent) == 8
    agent.close()


def test_ranks_that_count_other_optimizers_do_not_end_the_daemon(daemon: DaemonProcess) -> None:
    first = AgentPeer(daemon.address, rank=0, world_size=2)
    second = AgentPeer(daemon.address, run=first.run, rank=1, world_size=2)
    for agent, steps in ((first, (4,)), (second, (4, 4))):
        agent.greet()
        agent.batch(values(4))
        agent.wait_acked()
        beat_with(agent, steps)
    with daemon.client() as client:
        client.act(first.run, "restart", {})
        assert client.commands(first.run)
    first.batch(values(4, start=4))
    assert recorded_after(daemon, second) == 8
    first.close()
    second.close()


@pytest.mark.parametrize(
    "request_",
    [
        GetSeries(run="toy", columns=("loss",), first=2**64 - 1),
        GetSeries(run="toy", rank=0, first=2**64 - 1),
        GetSeries(run="toy", columns=("loss",) * 100_000, points=20_000),
        GetSeries(run="toy", optimizer=2**64 - 1),
        GetSeries(run="toy", points=1),
        AddMark("nobody's", "text"),
        Act(run="toy", action="clip", args={"max_norm": {}}, why=""),
    ],
    ids=lambda request: type(request).__name__,
)
def test_every_request_has_a_reply(daemon: DaemonProcess, request_: Request) -> None:
    agent = AgentPeer(daemon.address)
    agent.greet()
    agent.batch(values(4))
    agent.wait_acked()
    with daemon.client() as client:
        with contextlib.suppress(Refusal):  # that is a reply as well; none would be `DaemonUnreachable`
            client.ask(request_, timeout=GUARD)
        assert client.status("toy").step == 4
    agent.close()

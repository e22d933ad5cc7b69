"""What agents send comes back from the daemon bit by bit, once, in order."""

import numpy as np
import pytest

from optwatch.client import Refusal
from optwatch.wire.messages import Ack, Welcome
from tests.daemons import DaemonProcess
from tests.peers import COLUMNS, AgentPeer, values


def test_a_run_comes_back_as_it_was_sent(daemon: DaemonProcess) -> None:
    agent = AgentPeer(daemon.address)
    assert agent.greet().acked == 0
    numbers = values(40)
    numbers[7, 0], numbers[8, 0], numbers[9, 1] = np.nan, np.inf, -np.inf
    agent.batch(numbers[:20], sampled=True)
    agent.batch(numbers[20:], sampled=True)
    agent.event(25, "stage 2")
    agent.wait_acked()
    with daemon.client() as client:
        (info,) = client.runs()
        assert (info.run, info.name, info.step, info.state) == (agent.run, "toy", 40, "live")
        status = client.status("toy")
        assert status.steps_recorded == 40
        assert status.gaps == ()
        assert status.control == "armed"
        series, blocks = client.series(agent.run)
        assert series.columns == COLUMNS
        assert blocks.step.tolist() == list(range(1, 41))
        assert blocks.values.tobytes() == numbers.tobytes()
        assert blocks.logged.all()
        view, view_series, view_tensors = client.view("toy")
        assert view_series.values.tobytes() == numbers.tobytes()
        assert view_tensors.step.tolist() == [20, 40]
        assert view_tensors.stats[1].tolist() == np.full((2, len(view.tensors.stats)), 21.0).tolist()
        assert [marker.text for marker in view.markers] == ["stage 2"]
        tensors, tensor_blocks = client.tensors(agent.run)
        assert [tensor.name for tensor in tensors.tensors] == ["layer.0.weight", "layer.1.weight"]
        assert tensor_blocks.step.tolist() == [20, 40]
        with pytest.raises(Refusal, match="there are toy") as refusal:
            client.status("nobody")
        assert refusal.value.code == "unknown_run"
    agent.bye()
    agent.wait_acked()
    with daemon.client() as client:
        assert client.status("toy").state == "ended"
    agent.close()


def test_repeated_and_early_messages_are_taken_once_and_in_order(daemon: DaemonProcess) -> None:
    agent = AgentPeer(daemon.address)
    agent.greet()
    agent.batch(values(10))
    agent.wait_acked()
    held = dict(agent.held)
    agent.batch(values(10, start=100))
    lost = agent.held[2]
    agent.held = held
    agent.batch(values(10, start=200))
    early = agent.held[3]
    agent.send_raw(lost)
    agent.send_raw(lost)
    agent.send_raw(early)
    agent.send_raw(early)
    agent.wait_acked(3)
    with daemon.client() as client:
        _, blocks = client.series(agent.run)
    assert blocks.step.tolist() == list(range(1, 31))
    assert blocks.values[:, 0].tolist() == [
        *values(10)[:, 0],
        *values(10, start=100)[:, 0],
        *values(10, start=200)[:, 0],
    ]
    agent.close()


def test_what_the_agent_lost_is_a_gap_and_never_silent(daemon: DaemonProcess) -> None:
    agent = AgentPeer(daemon.address)
    agent.greet()
    agent.batch(values(10))
    agent.wait_acked()
    agent.seq += 2  # two batches, steps 11 to 30, that the agent's ring let go of
    agent.batch(values(10), first=31)
    agent.beat(oldest=agent.seq)
    agent.resend()
    agent.wait_acked()
    with daemon.client() as client:
        status = client.status(agent.run)
    assert status.gaps == ((11, 30),)
    assert status.steps_recorded == 20
    agent.close()


def test_an_agent_that_waits_for_an_answer_that_was_lost_is_asked_again(daemon: DaemonProcess) -> None:
    agent = AgentPeer(daemon.address)
    agent.greet()
    agent.batch(values(10))
    agent.wait_acked()
    agent.seq += 1
    agent.held[agent.seq] = []  # it may send no more before it is answered
    agent.beat()
    agent.beat()
    assert agent.wait_for(Welcome).acked == 1
    agent.close()


def test_who_has_not_heard_of_an_answer_hears_it_again_and_sends_nothing_again(daemon: DaemonProcess) -> None:
    agent = AgentPeer(daemon.address)
    agent.greet()
    agent.batch(values(10))
    agent.batch(values(10, start=100))
    agent.wait_acked()
    agent.messages.clear()
    for _ in range(3):  # as if the answers were still on the way: all that was sent has come
        agent.beat(oldest=1, queued=2, sent=2)
        assert agent.wait_for(Ack).acked == 2
    assert not any(isinstance(message, Welcome) for message in agent.messages)
    agent.beat(oldest=1, queued=3, sent=3)  # of which the third was lost
    assert agent.wait_for(Welcome).acked == 2
    agent.close()


def test_ranks_are_merged(daemon: DaemonProcess) -> None:
    first = AgentPeer(daemon.address, world_size=2)
    second = AgentPeer(daemon.address, run=first.run, rank=1, world_size=2)
    for agent in (first, second):
        agent.greet()
    first.batch(np.tile([1.0, 5.0, 0.01, 0.1], (10, 1)), sampled=True)
    first.wait_acked()
    with daemon.client() as client:
        _, early = client.series(first.run)
    assert bool(early.values.size) == bool(len(early.step)), "rows of no columns"
    second.batch(np.tile([3.0, 5.0, 0.03, 0.1], (10, 1)), sampled=True)
    for agent in (first, second):
        agent.wait_acked()
    with daemon.client() as client:
        _, merged = client.series(first.run)
        _, own = client.series(first.run, rank=1)
        status = client.status(first.run)
        _, series, tensors = client.view(first.run)
    assert merged.values.tolist() == np.tile([2.0, 5.0, 0.03, 0.1], (10, 1)).tolist()
    assert series.values.tolist() == merged.values.tolist()
    assert own.values[:, 0].tolist() == [3.0] * 10
    assert [rank.link for rank in status.ranks] == ["up", "up"]
    assert tensors.step.tolist() == [10]
    for agent in (first, second):
        agent.close()

"""Commands by hand: their life, their trail, and what is refused."""

import time

import pytest

from optwatch.client import Client, Refusal
from optwatch.wire.actions import Command
from optwatch.wire.messages import Prepare
from tests.daemons import GUARD, DaemonProcess
from tests.peers import AgentPeer, values


def state_of(client: Client, run: str, number: str, *wanted: str) -> Command:
    """The command once it is in one of the wanted states."""
    end = time.monotonic() + GUARD
    while True:
        command = next(c for c in client.commands(run) if c.id == number)
        if command.state in wanted or time.monotonic() > end:
            assert command.state in wanted, command
            return command
        time.sleep(0.02)


def test_one_rank_applies_at_once_and_an_undo_restores_the_scale(daemon: DaemonProcess) -> None:
    agent = AgentPeer(daemon.address)
    agent.greet()
    agent.batch(values(10))
    agent.beat()
    agent.wait_acked()
    with daemon.client() as client:
        asked = client.act("toy", "scale_lr", {"factor": 0.5}, why="too hot")
        assert (asked.id, asked.state, asked.why) == ("1", "sent", "too hot")
        prepare = agent.wait_for(Prepare)
        assert (prepare.n, prepare.steps, prepare.action, prepare.args) == (
            1,
            (),
            "scale_lr",
            {"factor": 0.5},
        )
        agent.report(prepare, "applied", step=11)
        applied = state_of(client, "toy", "1", "applied")
        assert (applied.step, applied.ranks_applied) == (11, (0,))
        assert client.status("toy").lr_scale == 0.5
        client.act("toy", "scale_lr", {"factor": 0.5})
        agent.report(agent.wait_for(Prepare), "applied", step=12)
        state_of(client, "toy", "2", "applied")
        assert client.status("toy").lr_scale == 0.25
        undo = client.undo("toy", "2")
        assert (undo.action, undo.args, undo.undo_of) == ("scale_lr", {"factor": 2.0}, "2")
        agent.report(agent.wait_for(Prepare), "applied", step=13)
        assert state_of(client, "toy", "2", "undone").step == 12
        assert client.status("toy").lr_scale == 0.5
        client.act("toy", "restart", {})
        agent.report(agent.wait_for(Prepare), "applied", step=14)
        state_of(client, "toy", "4", "applied")
        with pytest.raises(Refusal, match="cannot be undone"):
            client.undo("toy", "4")
    agent.close()


def test_what_cannot_be_is_refused_with_the_reason(daemon: DaemonProcess) -> None:
    agent = AgentPeer(daemon.address, allow=("scale_lr",))
    agent.greet()
    agent.batch(values(10))
    agent.beat()
    agent.wait_acked()
    with daemon.client() as client:
        for action, args, words in (
            ("restart", {}, "not allowed"),
            ("explode", {}, "unknown action"),
            ("scale_lr", {"factor": -1.0}, "factor"),
            ("scale_lr", {"factor": 0.001}, "of the schedule's"),
            ("scale_lr", {}, "needs either"),
        ):
            with pytest.raises(Refusal, match=words):
                client.act("toy", action, args)
        assert client.commands("toy") == ()
        client.act("toy", "scale_lr", {"factor": 0.5})
        agent.report(agent.wait_for(Prepare), "refused", reason="this optimizer has no lr")
        refused = state_of(client, "toy", "1", "refused")
        assert "no lr" in refused.reason
    agent.bye()
    agent.wait_acked()
    with daemon.client() as client, pytest.raises(Refusal, match="ended") as refusal:
        client.act("toy", "scale_lr", {"factor": 0.5})
    assert refusal.value.code == "unavailable"
    agent.close()


def test_ranks_vote_and_an_abort_is_held_again(daemon: DaemonProcess) -> None:
    first = AgentPeer(daemon.address, world_size=2)
    second = AgentPeer(daemon.address, run=first.run, rank=1, world_size=2)
    agents = (first, second)
    for agent in agents:
        agent.greet()
        agent.batch(values(10))
        agent.beat()
        agent.wait_acked()
    with daemon.client() as client:
        client.act("toy", "clip", {"max_norm": 1.0})
        votes = [agent.wait_for(Prepare) for agent in agents]
        assert [vote.n for vote in votes] == [2, 2]
        assert votes[0].vote == votes[1].vote
        assert votes[0].steps == votes[1].steps
        assert votes[0].steps[0] >= 12
        for agent, vote in zip(agents, votes, strict=True):
            agent.report(vote, "pending")
        state_of(client, "toy", "1", "scheduled")
        for agent, vote in zip(agents, votes, strict=True):
            agent.beat()
            agent.report(vote, "aborted", reason="a rank had passed the step")
        again = [agent.wait_for(Prepare) for agent in agents]
        assert again[0].command == "1"
        assert again[0].vote == again[1].vote != votes[0].vote
        for agent, vote in zip(agents, again, strict=True):
            agent.report(vote, "applied", step=vote.steps[0])
        applied = state_of(client, "toy", "1", "applied")
        assert applied.ranks_applied == (0, 1)
        assert applied.step == again[0].steps[0]
        assert client.status("toy").clip == 1.0
    for agent in agents:
        agent.close()


def test_nothing_is_proposed_while_a_rank_is_missing(daemon: DaemonProcess) -> None:
    agent = AgentPeer(daemon.address, world_size=2)
    agent.greet()
    agent.batch(values(10))
    agent.beat()
    agent.wait_acked()
    with daemon.client() as client:
        assert client.status("toy").control == "1 of 2 ranks are connected"
        client.act("toy", "restart", {})
        assert client.commands("toy")[0].state == "sent"
        late = AgentPeer(daemon.address, run=agent.run, rank=1, world_size=2)
        late.greet()
        late.batch(values(10))
        late.beat()
        agent.beat()
        assert agent.wait_for(Prepare).vote == late.wait_for(Prepare).vote
    agent.close()
    late.close()

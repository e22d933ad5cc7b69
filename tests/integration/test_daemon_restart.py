"""A daemon that is killed at any moment gives back all that it acknowledged, and goes on."""

import random
import socket
from pathlib import Path

import msgspec
import numpy as np
import pytest

from optwatch.wire.messages import Prepare
from optwatch.wire.pace import TURN, Pace
from tests.daemons import GUARD, DaemonProcess
from tests.integration.test_daemon_commands import state_of
from tests.integration.test_main_job import eventually
from tests.peers import AgentPeer, values


@pytest.mark.slow
@pytest.mark.parametrize("kills", [10, pytest.param(200, marks=pytest.mark.timeout(3_600))])
def test_all_that_was_acknowledged_survives_kills_under_load(home: Path, kills: int) -> None:
    pytest.importorskip("torch")  # the links are the agent's own
    from tests.onslaught import onslaught

    seed = random.randrange(1 << 30)
    print("seed", seed)
    outcome = onslaught(home / "daemon", kills, seed)
    print(outcome)
    assert not outcome.problems


def test_a_link_notices_that_its_daemon_ended_in_the_handshake(
    daemon: DaemonProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch")  # the link is the agent's own
    from optwatch_agent import link
    from tests.simulated import SimulatedRun

    for patience in ("_HANDSHAKE", "_WELCOME"):  # which would run out in the end
        monkeypatch.setattr(link, patience, float("inf"))
    daemon.kill()
    host, port = daemon.address.removeprefix("tcp://").split(":")
    with socket.create_server((host, int(port))) as ending:
        ending.settimeout(GUARD)
        run = SimulatedRun("alone", daemon.address, 0, False, numbers=[0], world_size=1)
        rank = run.ranks[0]
        rank.link.start()
        for _ in range(2):  # it looks whether anybody listens, and connects
            connection, _ = ending.accept()
            connection.recv(1)
            connection.close()
    daemon.start()
    eventually(lambda: rank.link.welcomed)
    rank.link.stop("done")


def test_the_ranks_of_a_large_job_let_each_other_come_back_first(daemon: DaemonProcess) -> None:
    pytest.importorskip("torch")  # the links are the agent's own
    from tests.simulated import SimulatedRun

    run = SimulatedRun("large", daemon.address, 0, False, numbers=range(8), world_size=1_024)
    for rank in run.ranks:
        rank.link.start()
    eventually(lambda: all(rank.served for rank in run.ranks))
    for rank in run.ranks:
        rank.link.stop("done")
    assert min(rank.welcomed - rank.greeted for rank in run.ranks) >= Pace(1_024).turn - TURN


def test_a_record_whose_parts_come_before_and_after_a_kill_is_whole(daemon: DaemonProcess) -> None:
    first = AgentPeer(daemon.address, world_size=2)
    second = AgentPeer(daemon.address, run=first.run, rank=1, world_size=2)
    for number, agent in enumerate((first, second)):
        agent.schema = msgspec.structs.replace(
            agent.schema,
            digest=f"part {number}",
            tensors=tuple(
                msgspec.structs.replace(
                    t, shape=(20, *t.shape[1:]), shard=(("dp", number),), held=10 * (i + 1)
                )
                for i, t in enumerate(agent.schema.tensors)
            ),
        )
        agent.greet()
    for number, agent in enumerate((first, second)):
        agent.batch(np.full((10, 4), float(number)), sampled=True)
        agent.wait_acked()
    first.batch(np.full((10, 4), 0.0), sampled=True)
    first.wait_acked()
    daemon.kill()
    daemon.start()
    again = [reconnect(agent, daemon) for agent in (first, second)]
    again[1].batch(np.full((10, 4), 1.0), sampled=True)
    again[1].wait_acked()
    with daemon.client() as client:
        _, series, tensors = client.view(first.run)
    # Merged of both ranks, not of the one that had sent its steps before the kill.
    assert series.values[:, 0].tolist() == [0.5] * 20
    assert tensors.step.tolist() == [10, 20]
    for agent in (first, second, *again):
        agent.close(linger=0)


def test_open_commands_go_on_after_a_kill(daemon: DaemonProcess) -> None:
    agent = AgentPeer(daemon.address)
    agent.greet()
    agent.batch(values(10))
    agent.beat()
    agent.wait_acked()
    with daemon.client() as client:
        client.act("toy", "scale_lr", {"factor": 0.5})
        before = agent.wait_for(Prepare)
        client.mark("toy", "written behind the command")
    daemon.kill()
    daemon.start()
    again = reconnect(agent, daemon)
    repeated = again.prepares[0] if again.prepares else again.wait_for(Prepare)
    assert repeated.vote == before.vote  # the agent knows it, and would not apply it twice
    again.report(repeated, "applied", step=11)
    with daemon.client() as client:
        assert state_of(client, "toy", "1", "applied").step == 11
        assert client.status("toy").lr_scale == 0.5
    daemon.restart()
    back = reconnect(again, daemon)
    with daemon.client() as client:
        (command,) = client.commands("toy")
        assert (command.state, command.step) == ("applied", 11)
        assert client.status("toy").lr_scale == 0.5  # the process has it still
        assert [m.text for m in client.view("toy")[0].markers] == ["written behind the command"]
    for each in (agent, again, back):
        each.close(linger=0)


def test_findings_survive_and_are_not_repeated(daemon: DaemonProcess) -> None:
    agent = AgentPeer(daemon.address)
    agent.greet()
    agent.batch(np.tile([1.0, 0.5, 0.01, 0.1], (60, 1)))
    agent.batch(np.tile([np.nan, np.nan, 0.01, 0.1], (5, 1)))
    agent.wait_acked()
    with daemon.client() as client:
        found = client.findings("toy")
    assert "non_finite" in [finding.kind for finding in found]
    daemon.kill()
    daemon.start()
    with daemon.client() as client:
        assert client.findings("toy") == found
    agent.close(linger=0)


def reconnect(agent: AgentPeer, daemon: DaemonProcess) -> AgentPeer:
    """The same session on a new connection, as an agent has it after the link came back."""
    again = AgentPeer(daemon.address, run=agent.run, session=agent.session)
    again.hello, again.schema = agent.hello, agent.schema
    again.seq, again.step, again.acked, again.held = agent.seq, agent.step, agent.acked, agent.held
    assert again.greet().acked >= agent.acked
    return again

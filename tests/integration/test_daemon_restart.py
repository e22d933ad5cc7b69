"""A daemon that is killed at any moment gives back all that it acknowledged, and goes on."""

import random

import numpy as np
import pytest

from optwatch.wire.messages import Prepare
from tests.daemons import DaemonProcess
from tests.integration.test_daemon_commands import state_of
from tests.peers import AgentPeer, values

MANY = pytest.param(200, marks=[pytest.mark.slow, pytest.mark.timeout(1_800)])


@pytest.mark.parametrize("kills", [6, MANY])
def test_all_that_was_acknowledged_survives_kills_under_load(daemon: DaemonProcess, kills: int) -> None:
    seed = random.randrange(1 << 30)
    print("seed", seed)
    dice = random.Random(seed)
    sent: list[np.ndarray] = []
    agent = AgentPeer(daemon.address)
    agent.greet()
    for kill in range(kills):
        for _ in range(dice.randint(1, 40)):
            n = dice.randint(1, 12)
            rows = np.random.default_rng(dice.randrange(1 << 30)).normal(size=(n, 4))
            rows[rng_mask(rows)] = np.nan
            agent.batch(rows, sampled=dice.random() < 0.3)
            sent.append(rows)
            agent.receive(0.001)
        daemon.kill()
        daemon.start()
        again = reconnect(agent, daemon)
        agent.close(linger=0)
        agent = again
        agent.resend()
        if kill % 2:
            agent.wait_acked()
    agent.wait_acked()
    with daemon.client() as client:
        status = client.status("toy")
        _, blocks = client.series("toy")
        everything = np.concatenate(sent)
        assert status.steps_recorded == len(everything)
        assert status.gaps == ()
        assert blocks.step.tolist() == list(range(1, len(everything) + 1))
        assert blocks.values.tobytes() == everything.tobytes()
        _, live, _ = client.view("toy", points=20_000)  # a longer run is reduced
        if len(everything) <= 20_000:
            assert live.values.tobytes() == everything.tobytes()
    agent.close()


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
    with daemon.client() as client:
        (command,) = client.commands("toy")
        assert (command.state, command.step) == ("applied", 11)
        assert [m.text for m in client.view("toy")[0].markers] == ["written behind the command"]
    agent.close(linger=0)
    again.close()


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
    again.hello = agent.hello
    again.seq, again.step, again.acked, again.held = agent.seq, agent.step, agent.acked, agent.held
    assert again.greet().acked >= agent.acked
    return again


def rng_mask(rows: np.ndarray) -> np.ndarray:
    return np.abs(rows) > 2.5

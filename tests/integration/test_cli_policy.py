"""A policy of the user's own, in a real daemon."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from optwatch.client import Client
from tests.daemons import DaemonProcess
from tests.peers import AgentPeer

CLIP = """
[limits]
cooldown = 50

[[rule]]
name = "clip what blows up"
why = "we always clip"
when = { kind = ["divergence", "exploding_gradient"] }
do = [{ action = "clip", max_norm = "auto" }]
"""


def test_a_policy_file_decides_what_is_proposed(home: Path) -> None:
    (home / "policy.toml").write_text(CLIP)
    daemon = DaemonProcess(home / "daemon", "--policy", str(home / "policy.toml")).start()
    peer = AgentPeer(daemon.address, name="digits")
    try:
        peer.greet()
        noise = np.random.default_rng(0).normal(0, 0.01, 120)
        loss = np.where(np.arange(120) < 100, 1.0, 9.0) + noise
        norm = np.where(np.arange(120) < 100, 1.0, 900.0) * (1 + noise)
        full = np.full(120, 1e-3)
        peer.batch(np.stack([loss, norm, full, full], axis=1))
        peer.beat()
        peer.wait_acked()
        with Client(daemon.address, timeout=30) as client:
            for _ in range(600):
                if commands := client.commands("digits"):
                    break
            (command,) = commands
        assert (command.action, command.args, command.state) == ("clip", {"max_norm": "auto"}, "proposed")
        assert "we always clip" in command.why
    finally:
        peer.close()
        daemon.kill()


@pytest.mark.parametrize(
    ("text", "says"), [("[limits]\ncooldown = 0\n", "line 2: limits.cooldown"), (None, "No such file")]
)
def test_a_wrong_policy_file_stops_the_start(home: Path, text: str | None, says: str) -> None:
    if text is not None:
        (home / "policy.toml").write_text(text)
    command = [sys.executable, "-m", "optwatch", "daemon", "--policy", str(home / "policy.toml")]
    command += ["--listen", "tcp://127.0.0.1:0"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert result.returncode == 2
    assert says in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_a_policy_that_does_not_help_gives_up_and_says_so(home: Path) -> None:
    daemon = DaemonProcess(home / "daemon", "--mode", "auto").start()
    peer = AgentPeer(daemon.address, name="digits")
    noise = np.random.default_rng(0).normal(0, 0.01, 20)
    full = np.full(20, 1e-3)
    answered = 0
    try:
        peer.greet()
        with Client(daemon.address, timeout=30) as client:
            for part in range(100):
                level = 1.0 if part < 10 else 9.0
                peer.batch(np.stack([level + noise, level**2 * (1 + noise), full, full], axis=1))
                peer.beat()
                peer.wait_acked()
                peer.receive(0.02)
                for prepare in peer.prepares[answered:]:
                    peer.report(prepare, "applied", step=peer.step + 1)
                    answered += 1
                notes = [marker.text for marker in client.view("digits")[0].markers if marker.kind == "note"]
                if notes:
                    break
            commands = client.commands("digits")
        assert "architecture" in notes[0]
        assert [c.action for c in commands if c.undo_of is None] == ["restart", "scale_lr"]
        assert [c.outcome.verdict for c in commands[:2] if c.outcome] == ["neutral", "neutral"]
    finally:
        peer.close()
        daemon.kill()

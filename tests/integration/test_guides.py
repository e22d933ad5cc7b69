"""The guides in `examples/` that need a daemon or a log: each does what it says."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from optwatch.policy.load import load_rules
from optwatch.wire.actions import Command
from tests.daemons import GUARD, DaemonProcess
from tests.integration.test_agent_daemon import Training, wait_until
from tests.integration.test_mirrors import spoil

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def careful(home: Path) -> Iterator[DaemonProcess]:
    """A daemon that follows the example of a policy by itself."""
    process = DaemonProcess(
        home / "daemon", "--policy", str(EXAMPLES / "policy.toml"), "--mode", "auto"
    ).start()
    yield process
    print(process.text())
    process.kill()


def example(name: str, *options: str, daemon: DaemonProcess | None = None) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, str(EXAMPLES / f"{name}.py"), *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | ({"OPTWATCH_DAEMON": daemon.address} if daemon else {}),
    )


def ended(process: "subprocess.Popen[str]") -> str:
    output = process.communicate(timeout=10 * GUARD)[0]
    assert process.returncode == 0, output
    return output


def test_the_policy_asks_a_lost_run_to_stop(careful: DaemonProcess) -> None:
    assert len(load_rules(EXAMPLES / "policy.toml").rule) == 3
    training = Training(name="lost", allow="all")
    training.connect()
    training.go(60)
    spoil(training)
    wait_until(lambda: training.watch.should_stop, "no stop", training.go)
    training.watch.detach()
    with careful.client() as client:
        (command,) = client.commands("lost")
    assert (command.action, command.state, command.asked_by) == ("stop", "applied", "policy")


def test_scheduled_restarts_come_at_growing_periods(home: Path) -> None:
    """The example, its periods a hundredth; and what came of each command is kept with it."""
    text = (EXAMPLES / "schedules.toml").read_text()
    (home / "soon.toml").write_text(
        text.replace("every = 2000", "every = 20").replace("warmup = 100", "warmup = 5")
    )
    daemon = DaemonProcess(home / "daemon", "--policy", str(home / "soon.toml"), "--mode", "auto").start()
    try:
        training = Training(name="warm")
        training.connect()

        def restarts() -> list[Command]:
            with daemon.client() as client:
                return [c for c in client.commands("warm") if c.step is not None]

        wait_until(lambda: len(restarts()) >= 3, "no third restart", training.go)
        wait_until(lambda: restarts()[0].outcome is not None, "not judged", training.go)
        training.watch.detach()
        planned = restarts()[:3]
        assert [c.action for c in planned] == ["restart"] * 3
        assert all((c.step or 0) >= due for c, due in zip(planned, (20, 60, 140), strict=True))
        first = planned[0]
        assert first.args == {"warmup": 5}
        assert (first.asked_by, first.state, first.undo_of) == ("policy", "judged", None)
        assert "scheduled every 20 steps, each period 2 times as long" in first.why
        assert first.outcome is not None
        assert first.outcome.verdict in ("helped", "neutral", "hurt", "unclear")
        assert not any(c.undo_of for c in restarts()), "what is planned stays"
    finally:
        daemon.kill()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_an_action_of_ones_own_answers_a_finding(daemon: DaemonProcess) -> None:
    output = ended(example("own_action", "--break-at", "800", daemon=daemon))
    assert "back to the last good weights" in output
    accuracy = float(re.findall(r"held-out accuracy ([\d.]+)", output)[0])
    assert accuracy > 0.8, output
    with daemon.client() as client:
        assert any("last good weights" in marker.text for marker in client.view("own-action")[0].markers)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_detector_of_ones_own_marks_a_run_and_acts_on_it(daemon: DaemonProcess) -> None:
    training = Training(name="long-updates")
    for group in training.optimizer.param_groups:
        group["lr"] = 1.0  # each step is as long as the parameters are large
    training.connect()
    beside = example("own_detector", "long-updates", "--halve", daemon=daemon)
    try:
        with daemon.client() as client:

            def applied() -> bool:
                commands = client.commands("long-updates")  # the daemon may propose something as well
                return [c.state for c in commands if c.why == "updates too long"] == ["applied"]

            wait_until(applied, "not applied", training.go)
            training.watch.detach()
        output = ended(beside)
    finally:
        beside.kill()
    assert "of the parameters" in output
    assert output.splitlines()[-1].endswith("the run is ended")
    assert "of the parameters" in ended(example("own_detector", "long-updates", daemon=daemon))


@pytest.mark.slow
def test_an_old_tensorboard_directory_is_diagnosed(home: Path) -> None:
    output = ended(example("diagnose_tensorboard"))
    assert re.search(r"broken: 1000 points\n(.*\n)+?.*divergence  from step 70\d", output), output
    assert "nothing wrong found" in output
    assert output.endswith("exit status 1: something was found\n")

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
            wait_until(lambda: bool(client.commands("long-updates")), "no command", training.go)
            wait_until(
                lambda: client.commands("long-updates")[0].state == "applied", "not applied", training.go
            )
            assert client.commands("long-updates")[0].why == "updates too long"
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

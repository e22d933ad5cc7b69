"""The demo's trainings and its command, by real processes."""

import subprocess
import sys

import msgspec
import pytest

from optwatch.cli.demo import FAULTS, Result
from tests.daemons import DaemonProcess


def train(*options: str) -> Result:
    command = [sys.executable, "-m", "optwatch_agent.demo", *options]
    output = subprocess.run(command, capture_output=True, timeout=300, check=True).stdout
    return msgspec.json.decode(output, type=Result)


def test_the_command_and_the_trainings_know_the_same_faults() -> None:
    from optwatch_agent.demo import faults

    assert tuple(FAULTS) == faults.FAULTS


def test_being_watched_changes_no_bit_of_the_training(daemon: DaemonProcess) -> None:
    plain = train("--fault", "none", "--steps", "300")
    watched = train("--fault", "none", "--steps", "300", "--watch", "demo")
    with daemon.client() as client:
        (run,) = client.runs()
        assert run.step == 300
    assert watched == plain


@pytest.mark.slow
def test_a_training_depends_on_its_seed_alone() -> None:
    first = train("--fault", "bad_batch", "--steps", "60", "--seed", "7")
    assert train("--fault", "bad_batch", "--steps", "60", "--seed", "7") == first
    assert train("--fault", "bad_batch", "--steps", "60", "--seed", "8").parameters != first.parameters
    assert first.onset == 20


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("fault", FAULTS)
def test_the_demo_finds_its_fault(fault: str) -> None:
    command = [sys.executable, "-m", "optwatch", "demo", "--fault", fault, "--json"]
    output = subprocess.run(command, capture_output=True, timeout=590, check=True).stdout
    report = msgspec.json.decode(output)
    assert set(report) == {
        "fault",
        "findings",
        "commands",
        "final_loss",
        "final_loss_without_fault",
        "final_loss_left_alone",
    }
    expected = {
        "lr_spike": {"divergence", "loss_spike", "exploding_gradient"},
        "bad_batch": {"divergence", "loss_spike", "exploding_gradient"},
        "lr_too_high": {"divergence", "non_finite", "oscillation", "plateau"},
        "vanishing": {"vanishing_gradient"},
        "plateau": {"plateau"},
    }
    kinds = {finding["kind"] for finding in report["findings"]}
    if fault == "none":
        assert {finding["severity"] for finding in report["findings"]} <= {"watch", "info"}
        assert report["final_loss"] == report["final_loss_without_fault"]
    else:
        assert kinds & expected[fault]
    if fault in ("lr_spike", "bad_batch"):
        clean, alone = report["final_loss_without_fault"], report["final_loss_left_alone"]
        assert alone >= 1.3 * clean
        assert report["final_loss"] <= 1.1 * clean
        assert alone - report["final_loss"] >= 0.5 * (alone - clean)


def test_wrong_use_of_the_demo_is_one_sentence() -> None:
    command = [sys.executable, "-m", "optwatch", "demo", "--steps", "0"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert result.returncode == 2
    assert result.stderr == "optwatch demo: --steps has to be at least 1, not 0\n"

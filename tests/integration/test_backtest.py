"""`optwatch backtest`: other thresholds on the same log, by the real command."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from optwatch.detect import divergence
from optwatch.detect.thresholds import changed, thresholds
from tests.unit.detect.series import falling


@pytest.fixture
def spike(tmp_path: Path) -> Path:
    """A log with a spike of the loss that comes back after 30 points."""
    loss = falling(400, noise=0.01)
    loss[300] = 10.0
    loss[301:330] += 0.085
    path = tmp_path / "spike.csv"
    np.savetxt(
        path, np.stack([np.arange(1, 401), loss], axis=1), delimiter=",", header="step,loss", comments=""
    )
    return path


def backtest(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "optwatch", "backtest", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def test_a_changed_threshold_changes_what_is_found_and_nothing_else_does(spike: Path) -> None:
    done = backtest(spike, "--set", "divergence.patience=40", "--json")
    assert done.returncode == 0, done.stderr
    ((run,)) = json.loads(done.stdout)
    assert run["points"] == 400
    assert [f["severity"] for f in run["findings"] if f["kind"] == "loss_spike"] == ["warning"]
    assert [f["severity"] for f in run["changed"] if f["kind"] == "loss_spike"] == ["info"]
    told = backtest(spike, "--set", "divergence.patience=40").stdout
    assert "loss_spike  warning → info, step" in told
    same = backtest(spike, "--set", "overfitting.patience=6", "--json")
    ((run,)) = json.loads(same.stdout)
    assert run["findings"] == run["changed"]


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("divergence.patience", "write DETECTOR.KEY=NUMBER"),
        ("divergence.nothing=1", "its thresholds are divergence.long_run"),
        ("nothing.at_all=1", "see --list"),
        ("divergence.patience=-1", "has to be a positive number"),
        ("divergence.patience=2.5", "has to be a whole number"),
        ("divergence.at_once=nan", "has to be a positive number"),
    ],
)
def test_a_wrong_setting_is_one_sentence(setting: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    from optwatch.cli import main

    assert main(["backtest", "log.csv", "--set", setting]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_every_threshold_can_be_changed_and_is_back_after() -> None:
    shipped = thresholds()
    assert len(shipped) > 50
    with changed({name: each.value * 2 for name, each in shipped.items()}):
        assert divergence.PATIENCE == 40
        assert all(each.value == 2 * shipped[name].value for name, each in thresholds().items())
    assert thresholds() == shipped


def test_what_others_are_computed_from_is_no_threshold() -> None:
    assert "regain.span" not in thresholds()
    assert "regain.lost" in thresholds()

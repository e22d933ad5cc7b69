"""Optuna itself, and trials of which the daemon says that they diverge."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.daemons import DaemonProcess

EXAMPLE = Path(__file__).parents[2] / "examples" / "optuna_search.py"
PRUNED = re.compile(r"lr \S+ +pruned +step \d+: critical (divergence|non_finite)")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_trials_that_go_wrong_are_pruned_and_the_best_one_stays(
    daemon: DaemonProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("optuna", reason="needs the tools: pip install --group integrations")
    monkeypatch.setenv("OPTWATCH_DAEMON", daemon.address)
    pruned, whole = (search("--trials", "9"), search("--trials", "9", "--unpruned"))
    assert best(pruned) == best(whole)
    assert steps(whole) == 9 * 1_500
    assert PRUNED.findall(pruned), pruned
    assert steps(pruned) < steps(whole)
    assert not PRUNED.findall(whole)


def search(*options: str) -> str:
    result = subprocess.run(
        [sys.executable, str(EXAMPLE), *options], capture_output=True, text=True, timeout=500
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def best(output: str) -> str:
    return next(line for line in output.splitlines() if line.startswith("best: "))


def steps(output: str) -> int:
    found = re.search(r"steps: ([\d,]+) of", output)
    assert found is not None
    return int(found[1].replace(",", ""))

"""The examples run as a user runs them, in a process of their own, with no daemon about."""

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.py"))


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_trains_without_a_daemon(path: Path) -> None:
    result = subprocess.run([sys.executable, str(path)], capture_output=True, text=True, timeout=590)
    assert result.returncode == 0, result.stderr
    assert "held-out" in result.stdout


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_optwatch_is_one_line_of_an_example(path: Path) -> None:
    lines = path.read_text().splitlines()
    assert len([line for line in lines if "optwatch.attach(" in line]) == 1
    assert len([line for line in lines if line == "import optwatch"]) == 1

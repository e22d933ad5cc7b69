"""The examples run as a user runs them, in a process of their own, with no daemon about."""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

NO_TRAININGS = {"diagnose_tensorboard", "own_detector"}
"""Those that look at what others have trained: `test_guides.py` runs them."""
EXAMPLES = sorted(
    path for path in (Path(__file__).parents[2] / "examples").glob("*.py") if path.stem not in NO_TRAININGS
)
WITH_AN_OWN_PART = {"optuna_search"}
"""Those that take something of ours beside the one line."""
OVER_RANKS = {"ddp", "fsdp2", "ray_train"}
"""Those that a launcher starts: `tests/distributed/test_examples.py` runs them."""
FRAMEWORKS = {
    "with_accelerate": "accelerate",
    "with_huggingface": "transformers",
    "with_lightning": "lightning",
    "optuna_search": "optuna",
}


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "path", [path for path in EXAMPLES if path.stem not in OVER_RANKS], ids=lambda path: path.stem
)
def test_an_example_trains_without_a_daemon(path: Path) -> None:
    if (needed := FRAMEWORKS.get(path.stem)) and find_spec(needed) is None:
        pytest.skip("needs the frameworks: pip install --group integrations")
    result = subprocess.run([sys.executable, str(path)], capture_output=True, text=True, timeout=590)
    assert result.returncode == 0, result.stderr
    assert "held-out" in result.stdout


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_optwatch_is_one_line_of_an_example(path: Path) -> None:
    lines = path.read_text().splitlines()
    one = [line for line in lines if "# the one line" in line]
    assert len(one) == 1
    assert "optwatch.attach(" in one[0] or "OptwatchCallback(" in one[0]
    ours = ("import optwatch", "from optwatch_agent.")
    assert len([line for line in lines if line.startswith(ours)]) == 1 + (path.stem in WITH_AN_OWN_PART)

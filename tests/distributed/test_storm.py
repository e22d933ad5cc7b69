"""Ranks act as one in a storm, and a storm finds out what only looks right."""

import os
from pathlib import Path

import pytest

from tests.distributed.storm import Storm, run

LONG = int(os.environ.get("OPTWATCH_TEST_COMMANDS", "1000"))


@pytest.fixture(autouse=True)
def _no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bad link reads what it carries."""
    monkeypatch.setenv("OPTWATCH_INSECURE", "1")


@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    "storm",
    [
        Storm(ranks=2, commands=40, seed=1, every=0.02, kill_every=0.0),
        pytest.param(Storm(ranks=2, commands=LONG // 5, seed=14, kill_every=30.0), marks=pytest.mark.slow),
        pytest.param(
            Storm(ranks=4, commands=LONG, seed=11, kill_every=40.0),
            marks=pytest.mark.slow,
        ),
        pytest.param(
            Storm(ranks=8, commands=LONG // 5, seed=13, kill_every=60.0),
            marks=pytest.mark.slow,
        ),
    ],
    ids=lambda storm: f"{storm.ranks}-ranks-{storm.commands}-commands",
)
def test_all_ranks_apply_each_command_at_one_step_or_none_does(storm: Storm, tmp_path: Path) -> None:
    verdict = run(storm, tmp_path, print)
    print(verdict)
    assert verdict.sound, verdict
    assert verdict.lost > 0
    assert verdict.states.get("applied", 0) + verdict.states.get("judged", 0) > storm.commands // 2, verdict


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("protocol", ["on_receipt", "daemon_decides"])
def test_a_protocol_that_only_looks_right_is_found_out(protocol: str, tmp_path: Path) -> None:
    storm = Storm(ranks=4, commands=60, seed=12, kill_every=0.0, most=120.0, protocol=protocol)
    verdict = run(storm, tmp_path, print)
    print(verdict)
    assert verdict.apart, verdict
    assert verdict.bits_differ, verdict

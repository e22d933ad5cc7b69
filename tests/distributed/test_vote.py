"""The vote under bad conditions, and that these conditions find out what only looks right."""

import os
from pathlib import Path

import pytest
import torch.distributed as dist

from optwatch_agent.arbiter import Arbiter, Ballot
from optwatch_agent.vote import Verdict, favour, oppose, peek
from tests.distributed.chaos import Conditions, Journal, disagreements, run

LONG = int(os.environ.get("OPTWATCH_TEST_COMMANDS", "1000"))


def held(journals: list[Journal], conditions: Conditions) -> int:
    """Assert what a sound protocol gives; how many commands were applied."""
    assert disagreements(journals) == []
    survivors = [journal for journal in journals if journal.parameter is not None]
    assert len(survivors) == conditions.ranks - conditions.kills
    assert len({journal.parameter for journal in survivors}) == 1
    assert len({tuple(journal.applied) for journal in survivors}) == 1
    assert {journal.lost for journal in survivors} == {""}
    return len(survivors[0].applied)


@pytest.mark.parametrize(
    "conditions",
    [
        pytest.param(Conditions(ranks=2, seed=1), marks=pytest.mark.slow),
        Conditions(ranks=4, seed=2),
        pytest.param(Conditions(ranks=8, seed=3, commands=60), marks=pytest.mark.slow),
        pytest.param(Conditions(ranks=4, seed=4, store="file", commands=60), marks=pytest.mark.slow),
    ],
    ids=lambda c: f"{c.store}-{c.ranks}",
)
def test_all_ranks_apply_a_command_at_the_same_step_or_none_does(
    conditions: Conditions, tmp_path: Path
) -> None:
    applied = held(run("vote", conditions, tmp_path), conditions)
    assert 0 < applied < conditions.commands, "the conditions let both happen: commit and abort"


def test_ranks_that_are_killed_take_nobody_along(tmp_path: Path) -> None:
    conditions = Conditions(ranks=4, seed=5, kills=2)
    held(run("vote", conditions, tmp_path), conditions)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("ranks", [4, 8])
def test_a_long_run(ranks: int, tmp_path: Path) -> None:
    conditions = Conditions(ranks=ranks, seed=ranks, commands=LONG)
    assert held(run("vote", conditions, tmp_path), conditions) > 0


@pytest.mark.parametrize("mutant", ["on_receipt", "daemon_decides"])
def test_the_conditions_find_out_a_protocol_that_only_looks_right(mutant: str, tmp_path: Path) -> None:
    conditions = Conditions(ranks=4, seed=2)
    assert disagreements(run(mutant, conditions, tmp_path)) != []


def stores(tmp_path: Path) -> list[dist.Store]:
    return [
        dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False),
        dist.FileStore(str(tmp_path / "store"), 1),
        dist.HashStore(),
    ]


def test_the_verdict_is_written_once(tmp_path: Path) -> None:
    for store in stores(tmp_path):
        assert peek(store, "a") is None
        assert favour(store, "a", 2) is None
        assert favour(store, "a", 2) is Verdict.COMMIT
        assert oppose(store, "a") is Verdict.COMMIT
        assert favour(store, "b", 2) is None
        assert oppose(store, "b") is Verdict.ABORT
        assert favour(store, "b", 2) is Verdict.ABORT
        assert peek(store, "b") is Verdict.ABORT
        assert peek(store, "c") is None


def test_two_arbiters_in_threads_on_a_hash_store() -> None:
    store = dist.HashStore()
    arbiters = [Arbiter(lambda: store) for _ in range(2)]
    ballots = [Ballot("one", 2) for _ in arbiters]
    for arbiter, ballot in zip(arbiters, ballots, strict=True):
        arbiter.favour(ballot)
    assert [ballot.wait(10) for ballot in ballots] == [Verdict.COMMIT] * 2
    for arbiter in arbiters:
        arbiter.close(10)
        assert arbiter.lost == ""


class Broken:
    """A store whose server is gone after the first call."""

    def __init__(self) -> None:
        self.calls = 0

    def add(self, key: str, amount: int, /) -> int:
        self.calls += 1
        return 1

    def compare_set(self, key: str, expected: str, desired: str, /) -> bytes:
        self.calls += 1
        raise dist.DistNetworkError("failed to recv, got 0 bytes\n#0 a long backtrace")

    def check(self, keys: list[str], /) -> bool:
        return False

    def get(self, key: str, /) -> bytes:
        raise AssertionError(key)


def test_after_the_first_error_of_the_store_control_is_lost_and_all_is_quiet() -> None:
    store = Broken()
    arbiter = Arbiter(lambda: store)
    first, second = Ballot("one", 2), Ballot("two", 2)
    arbiter.favour(first)
    assert arbiter.settle(first, timeout=30) is None
    assert arbiter.lost == "the job's store failed: failed to recv, got 0 bytes"
    arbiter.favour(second)
    assert arbiter.settle(second, timeout=30) is None
    assert store.calls == 2
    arbiter.close(10)

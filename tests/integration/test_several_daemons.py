"""Several daemons behind one address list: all ranks of a run meet at one, and clients know at which."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from optwatch.client import Client
from optwatch.client.several import daemon_of
from optwatch.wire.places import AddressError, find_daemon, read_connection
from optwatch.wire.requests import RunInfo
from tests.daemons import DaemonProcess
from tests.integration.test_agent_daemon import wait_until
from tests.integration.test_cli_runs import optwatch
from tests.simulated import SimulatedRank, SimulatedRun


@pytest.fixture
def several(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[DaemonProcess]]:
    """Two daemons, each with a store of its own, named by $OPTWATCH_DAEMON."""
    daemons = [
        DaemonProcess(home / name, "--store", str(home / name / "store")).start() for name in ("a", "b")
    ]
    connection = read_connection()
    assert connection is not None
    monkeypatch.setenv("OPTWATCH_DAEMON", ",".join(daemon.address for daemon in daemons))
    monkeypatch.setenv("OPTWATCH_DAEMON_KEY", connection.key)  # both have this user's
    yield daemons
    for daemon in daemons:
        daemon.kill()


@pytest.fixture
def runs(several: list[DaemonProcess]) -> Iterator[list[SimulatedRun]]:
    """Runs of two ranks each, enough that both daemons have some; their links know the list only."""
    runs: list[SimulatedRun] = []
    while len(runs) < 4 or len({find_daemon(None, run.run) for run in runs}) < 2:
        run = SimulatedRun(f"run-{len(runs)}", "", len(runs), False, numbers=range(2), world_size=2)
        for rank in run.ranks:
            rank.link._address = None
            rank.link.start()
        runs.append(run)
    yield runs
    for run in runs:
        for rank in run.ranks:
            rank.link.stop("done")


def test_all_ranks_of_a_run_meet_at_one_daemon_and_clients_find_it(
    several: list[DaemonProcess], runs: list[SimulatedRun]
) -> None:
    for run in runs:
        for _ in range(20):
            run.advance()
    wait_until(lambda: all(_taken(rank) == 20 for run in runs for rank in run.ranks), "not all was taken")
    there = {daemon.address: {info.name for info in _runs_of(daemon)} for daemon in several}
    for run in runs:
        mine = find_daemon(None, run.run)
        assert [address for address, names in there.items() if run.name in names] == [mine]
        assert daemon_of(run.name) == daemon_of(run.run) == daemon_of(run.run[:8]) == mine
        status = json.loads(optwatch("status", run.name, "--json").stdout)
        assert (status["run"], status["steps_recorded"]) == (run.run, 20)
        assert [rank["link"] for rank in status["ranks"]] == ["up", "up"]
    listed = json.loads(optwatch("runs", "--json").stdout)
    assert {info["run"] for info in listed} == {run.run for run in runs}
    table = optwatch("runs").stdout
    assert all(daemon.address in table for daemon in several)
    said = optwatch("findings", "nobody", expect=2).stderr
    assert "there is no run 'nobody' at any of 2 daemons: there are run-" in said
    assert "one daemon has to be named" in optwatch("daemon", "status", expect=2).stderr


def test_a_daemon_that_is_gone_keeps_nobody_from_the_others(
    several: list[DaemonProcess], runs: list[SimulatedRun]
) -> None:
    wait_until(lambda: all(rank.link.welcomed for run in runs for rank in run.ranks), "not all are there")
    gone, left = several
    gone.kill()
    said = optwatch("runs", "--json")
    kept = {run.run for run in runs if find_daemon(None, run.run) == left.address}
    assert {info["run"] for info in json.loads(said.stdout)} == kept
    assert gone.address in said.stderr
    lost = next(run for run in runs if run.run not in kept)
    assert f"no daemon answers at {gone.address}" in optwatch("status", lost.name, expect=2).stderr


def _taken(rank: SimulatedRank) -> int:
    """Steps of a rank that a daemon has acknowledged."""
    return sum(len(blocks.step) for _, blocks in rank.journal[: rank.acked] if blocks is not None)


def _runs_of(daemon: DaemonProcess) -> tuple[RunInfo, ...]:
    with Client(daemon.address) as client:
        return client.runs()


def test_the_choice_hangs_on_the_run_alone_and_a_new_daemon_takes_its_share_only() -> None:
    three = [f"tcp://host{i}:47017" for i in range(3)]
    runs = [f"{number:032x}" for number in range(3_000)]
    chosen = [find_daemon(",".join(three), run) for run in runs]
    assert chosen == [find_daemon(", ".join(reversed(three)), run) for run in runs]
    assert all(900 < chosen.count(daemon) < 1_100 for daemon in three)
    four = [*three, "tcp://host3:47017"]
    after = [find_daemon(",".join(four), run) for run in runs]
    moved = [new for old, new in zip(chosen, after, strict=True) if old != new]
    assert set(moved) == {four[3]}
    assert 650 < len(moved) < 850
    # What agents and clients of another version choose has to be the same.
    assert find_daemon("tcp://a:1,tcp://b:2", "0" * 32) == "tcp://b:2"
    with pytest.raises(AddressError, match="one daemon has to be named, of tcp://a:1, tcp://b:2"):
        find_daemon("a:1,b:2")
    with pytest.raises(AddressError, match="cannot parse the address 'nowhere'"):
        find_daemon("a:1,nowhere", "0" * 32)

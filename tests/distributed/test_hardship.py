"""What happens to jobs: ranks die, refuse, differ or have no store. Nothing of ours hangs or differs."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from optwatch.client import Client, Refusal
from tests.daemons import GUARD, DaemonProcess
from tests.distributed.jobs import START, Job, armed_run, command, the_run, until

HANG = 20.0
"""Seconds after which the end of an attachment hangs: ten times what it may take."""


def hardship(directory: Path, ranks: int, *options: str, launcher: tuple[str, ...] = ()) -> Job:
    return Job(directory, ranks, *options, launcher=launcher, script="hardship")


@pytest.mark.parametrize(
    ("ranks", "victim", "when", "store"),
    [
        (2, 0, "after", "launcher"),
        *(
            pytest.param(ranks, victim, when, store, marks=pytest.mark.slow)
            for ranks, victim, store in (
                *((2, victim, "launcher") for victim in range(2)),
                *((4, victim, "launcher") for victim in range(4)),
                (4, 0, "rank 0"),  # which dies with it
            )
            for when in ("before", "after")
            if (ranks, victim, when) != (2, 0, "after")
        ),
    ],
)
def test_survivors_let_go_when_a_rank_is_killed_at_its_vote_and_it_shows_as_down(
    ranks: int,
    victim: int,
    when: str,
    store: str,
    daemon: DaemonProcess,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if store == "rank 0":
        monkeypatch.setenv("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")
    options = ("--die", when, "--victim", str(victim))
    with hardship(tmp_path / "job", ranks, *options) as job, daemon.client() as client:
        run = armed_run(client)
        number = client.act(run, "restart", {}, "test").id
        assert job.process.wait(2 * GUARD) != 0
        survivors = []
        for rank in range(ranks):
            result = job.result(rank)
            assert (result is None) == (rank == victim), job.text()
            if result is not None:
                survivors.append(result)
                print(f"rank {rank} detached in {result['detach']:.2f} s")
        assert max(result["detach"] for result in survivors) < HANG
        applied = {vote: step for result in survivors for vote, step in result["applied"].items()}
        for result in survivors:
            for vote, step in applied.items():  # all at one step; who failed before that step, never
                assert result["applied"].get(vote, step) == step
                assert vote in result["applied"] or result["completed"] < step
        (ended,) = [c for c in client.commands(run) if c.id == number]
        assert ended.state not in ("applied", "judged"), ended
        links = {rank: "down" if rank == victim else "left" for rank in range(ranks)}
        began = time.monotonic()
        until(
            client,
            lambda c: {rank.rank: rank.link for rank in c.status(run).ranks} == links or None,
            "the rank that is down",
        )
        print(f"shown as down {time.monotonic() - began:.1f} s after the job")
        assert client.status(run).control == f"0 of {ranks} ranks are connected"


@pytest.mark.slow
def test_a_rank_that_refuses_stops_all(daemon: DaemonProcess, tmp_path: Path) -> None:
    with hardship(tmp_path / "job", 2, "--refuse", "1") as job, daemon.client() as client:
        run = armed_run(client)
        done = command(client, run, "clip", {"max_norm": 1e-3})
        assert done.state == "refused"
        assert done.reason == "rank 1: attach allows restart, scale_lr here, not clip"
        assert done.ranks_applied == ()
        done = command(client, run, "scale_lr", {"factor": 0.5})
        assert (done.state, done.ranks_applied) == ("applied", (0, 1)), done
        results = job.end()
        assert len({result["bits"] for result in results}) == 1


@pytest.mark.slow
def test_optimizers_that_differ_are_not_commanded(daemon: DaemonProcess, tmp_path: Path) -> None:
    with hardship(tmp_path / "job", 2, "--plain") as job, daemon.client() as client:
        run = the_run(client)
        reason = "the optimizers of the ranks differ"
        until(client, lambda c: c.status(run).control == reason or None, "the reason", START)
        done = command(client, run, "restart", {})
        assert (done.state, done.reason, done.votes) == ("refused", reason, ())
        job.end()


@pytest.mark.slow
def test_without_a_store_it_observes(daemon: DaemonProcess, tmp_path: Path) -> None:
    with hardship(tmp_path / "job", 2, "--store", "none") as job, daemon.client() as client:
        words = "observe only: 2 ranks have no process group to agree through"

        def ask(client: Client) -> bool | None:
            return any(words in client.status(run.run).control for run in client.runs()) or None

        until(client, ask, "the reason", START)
        job.end()


@pytest.mark.slow
def test_a_file_store_decides_as_well(daemon: DaemonProcess, tmp_path: Path) -> None:
    with hardship(tmp_path / "job", 2, "--store", "file") as job, daemon.client() as client:
        run = armed_run(client)
        done = command(client, run, "scale_lr", {"factor": 0.5})
        assert (done.state, done.ranks_applied) == ("applied", (0, 1)), done
        results = job.end()
        assert len({result["bits"] for result in results}) == 1


@contextmanager
def store_process() -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A store in a process of its own, and where it listens."""
    script = (
        "import sys, torch.distributed as dist;"
        "store = dist.TCPStore('127.0.0.1', 0, is_master=True, wait_for_workers=False);"
        "print(store.port, flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield process, f"127.0.0.1:{int(process.stdout.readline())}"
    finally:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()


@pytest.mark.slow
@pytest.mark.parametrize("strict", [False, True])
def test_a_store_that_falls_silent_costs_control_and_two_seconds_at_most(
    strict: bool, daemon: DaemonProcess, tmp_path: Path
) -> None:
    with store_process() as (store, address):
        options = ("--store", address, *(("--strict",) if strict else ()))
        with hardship(tmp_path / "job", 2, *options) as job, daemon.client() as client:
            run = armed_run(client)
            done = command(client, run, "scale_lr", {"factor": 0.5})
            assert (done.state, done.ranks_applied) == ("applied", (0, 1)), done
            os.kill(store.pid, signal.SIGSTOP)
            done = command(client, run, "restart", {})
            assert done.state == "failed"
            assert "the job's store did not answer" in done.reason
            if strict:
                assert job.process.wait(2 * GUARD) != 0
                results: list[Any] = [job.result(rank) for rank in range(2)]
                assert any(result and "control lost" in result["lost"] for result in results), job.text()
                return
            until(client, lambda c: "control lost" in c.status(run).control or None, "the loss of control")
            results = job.end()
            assert len({result["bits"] for result in results}) == 1
            for result in results:
                print(f"slowest step {result['slowest']:.2f} s, detached in {result['detach']:.2f} s")
                assert result["slowest"] < HANG
                assert result["detach"] < HANG


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_exit_status_is_0_without_destroy_process_group_20_times_of_20(
    daemon: DaemonProcess, tmp_path: Path
) -> None:
    for number in range(20):
        with hardship(tmp_path / f"job-{number}", 2) as job, daemon.client() as client:
            until(
                client,
                lambda c, n=number: (
                    (len(c.runs()) > n and c.status(c.runs()[0].run).control == "armed") or None
                ),
                "an armed run",
                START,
            )
            done = command(client, client.runs()[0].run, "scale_lr", {"factor": 0.5})
            assert done.state == "applied"
            job.end()
            assert "Traceback" not in job.text()


@pytest.mark.slow
def test_no_rank_rolls_back_to_a_snapshot_that_one_of_them_lacks(
    daemon: DaemonProcess, tmp_path: Path
) -> None:
    with hardship(tmp_path / "job", 2, "--forget", "1") as job, daemon.client() as client:
        run = armed_run(client)
        until(client, lambda c: c.status(run).step > 150 or None, "a snapshot of rank 0")
        with pytest.raises(Refusal, match="no snapshot is held by every rank: there are none"):
            client.act(run, "rollback", {}, "test")
        done = command(client, run, "rollback", {"to_step": 128})
        assert done.state == "refused"
        assert done.reason == "rank 1: attach was given no memory for snapshots: attach(snapshots=BYTES)"
        assert done.ranks_applied == ()
        done = command(client, run, "snapshot", {})
        assert done.state == "refused"
        results = job.end()
        assert [result["applied"] for result in results] == [{}, {}]
        assert len({result["bits"] for result in results}) == 1

"""Real ranks that stand still: named with the phase they are in, and where they are on request."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from optwatch.client import Client
from optwatch.daemon.hangs import BEHIND
from optwatch.wire.findings import Finding
from tests.daemons import GUARD, DaemonProcess
from tests.distributed.jobs import Job, armed_run, until

pytestmark = pytest.mark.timeout(300)


def stalled(client: Client, run: str, over: bool = False) -> Finding | None:
    found = [f for f in client.findings(run) if f.kind == "stalled_rank"]
    return next((f for f in found if (f.resolved_step is not None) is over), None)


def stacks(run: str, *options: str) -> tuple[int, Any]:
    """Exit status and output of `optwatch stacks`."""
    done = subprocess.run(
        [sys.executable, "-m", "optwatch", "stacks", run, "--json", *options],
        capture_output=True,
        timeout=2 * GUARD,
        check=False,
    )
    assert not done.stderr, done.stderr
    return done.returncode, json.loads(done.stdout)


def test_a_stopped_rank_is_named_and_cannot_say_where_it_is(daemon: DaemonProcess, tmp_path: Path) -> None:
    with Job(tmp_path / "job", 2) as job, daemon.client() as client:
        run = armed_run(client)
        (pid,) = (rank.pid for rank in client.status(run).ranks if rank.rank == 1)
        os.kill(pid, signal.SIGSTOP)
        try:
            found = until(client, lambda c: stalled(c, run), "the stalled rank")
            assert (found.rank, found.severity) == (1, "critical")
            status, (first, second) = stacks(run, "--timeout", "3")
            assert status == 1
            assert (first["answered"], second["answered"], second["frames"]) == (True, False, [])
            assert any("tests/distributed/train.py:" in frame for frame in first["frames"])
            assert second["silence"] > 1
        finally:
            os.kill(pid, signal.SIGCONT)
        until(client, lambda c: stalled(c, run, over=True), "the end of the stall")
        job.end()


@pytest.mark.slow
def test_a_rank_stuck_in_data_loading_is_named_with_its_phase(daemon: DaemonProcess, tmp_path: Path) -> None:
    directory = tmp_path / "job"
    with Job(directory, 3, "--stuck", "2") as job, daemon.client() as client:
        run = armed_run(client)
        (directory / "stuck").touch()
        found = until(client, lambda c: stalled(c, run), "the stalled rank", guard=BEHIND + 2 * GUARD)
        assert (found.rank, found.evidence["phase"]) == (2, "data loading"), found
        status, (stack,) = stacks(run, "--rank", "2")
        assert status == 0
        assert (stack["rank"], stack["phase"]) == (2, "data loading")
        assert "Batches.__iter__" in stack["frames"][-1]
        (directory / "stuck").unlink()
        until(client, lambda c: stalled(c, run, over=True), "the end of the stall")
        job.end()

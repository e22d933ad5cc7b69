"""A real rank that is slower than the others is named, from its own time, and nobody before."""

from pathlib import Path

import pytest

from optwatch.client import Client
from optwatch.wire.findings import Finding
from optwatch.wire.requests import RunStatus
from tests.daemons import GUARD, DaemonProcess
from tests.distributed.jobs import Job, armed_run, until

pytestmark = pytest.mark.timeout(300)

CLEAN = 150
"""Steps before the rank becomes slow."""


def straggler(client: Client, run: str) -> Finding | None:
    return next((f for f in client.findings(run) if f.kind == "straggler"), None)


def measured(client: Client, run: str, hooked: bool) -> RunStatus | None:
    """The status once all ranks were compared and, where `hooked`, have told of their gradients."""
    status = client.status(run)
    told = all(rank.lateness is not None for rank in status.ranks)
    if hooked:
        norms = all(rank.local_norm is not None for rank in status.ranks)
        told = told and norms and status.noise_scale is not None
    return status if told and status.steps_recorded >= CLEAN else None


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ranks", "layout"),
    [(3, "ddp"), (4, "ddp"), (2, "zero"), (2, "fsdp"), (3, "fsdp"), (2, "tp"), (4, "hsdp"), (4, "fsdp_tp")],
)
def test_a_rank_slowed_by_20_ms_is_named_within_50_steps(
    ranks: int, layout: str, daemon: DaemonProcess, tmp_path: Path
) -> None:
    directory = tmp_path / "job"
    hooked = layout == "ddp"
    options = ("--layout", layout, "--slow", "1", "--step-time", "0.01", *(("--comm-hook",) * hooked))
    with Job(directory, ranks, *options) as job, daemon.client() as client:
        run = armed_run(client)
        until(client, lambda c: measured(c, run, hooked), "the times of all ranks", guard=3 * GUARD)
        assert straggler(client, run) is None
        (directory / "slow").touch()
        found = until(client, lambda c: straggler(c, run), "the straggler", guard=2 * GUARD)
        slowed = int((directory / "slowed").read_text())
        assert (found.rank, found.severity) == (1, "warning"), found
        assert slowed < found.step <= slowed + 50
        print(f"named {found.step - slowed} steps after onset: {found.summary}")
        job.end()

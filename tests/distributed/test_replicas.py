"""Replicas of real ranks under torchrun: a bit that flips on one is found, and after commands all agree."""

from pathlib import Path

import pytest

from optwatch.client import Client
from optwatch.wire.findings import Finding
from tests.daemons import DaemonProcess
from tests.distributed.jobs import Job, armed_run, command, until

pytestmark = pytest.mark.timeout(300)


def checked(client: Client, run: str, agrees: bool | None, ranks: int) -> bool | None:
    """Whether all ranks have been compared, with this result."""
    told = [rank.agrees for rank in client.status(run).ranks if rank.checked_step is not None]
    return True if told == [agrees] * ranks else None


def desync(client: Client, run: str, over: bool) -> Finding | None:
    found = [f for f in client.findings(run) if f.kind == "replica_desync"]
    return next((f for f in found if (f.resolved_step is not None) is over), None)


def test_a_flipped_bit_is_named_with_rank_and_tensor_and_outlives_the_daemon(
    daemon: DaemonProcess, tmp_path: Path
) -> None:
    directory = tmp_path / "job"
    with Job(directory, 3, "--flip", "1") as job:
        with daemon.client() as client:
            run = armed_run(client)
            until(client, lambda c: checked(c, run, True, 3), "an agreement")
            done = command(client, run, "scale_lr", {"factor": 0.5})
            assert done.state == "applied"
            until(
                client,
                lambda c: next((True for k in c.commands(run) if k.id == done.id and k.replicas_agree), None),
                "the comparison after the command",
            )
            (directory / "flip").touch()
            found = until(client, lambda c: desync(c, run, False), "the finding")
            assert (found.severity, found.rank, found.tensor) == ("critical", 1, "norm.weight"), found
            assert "exp_avg_sq" in str(found.evidence["parts"]).split(", ")
            assert (found.evidence["replicas"], found.evidence["ranks_agreeing"]) == (3, "0, 2")
            assert found.causes[0].cause == "hardware_fault"
            assert {r.rank: r.agrees for r in client.status(run).ranks} == {0: True, 1: False, 2: True}
        daemon.kill()
        daemon.start()
        with daemon.client() as client:
            until(client, lambda c: _compared_anew(c, run), "a comparison by the new daemon")
            (same,) = [f for f in client.findings(run) if f.kind == "replica_desync"]
            assert (same.id, same.resolved_step) == (found.id, None)
        job.end()


def _compared_anew(client: Client, run: str) -> bool | None:
    ranks = client.status(run).ranks
    return True if len(ranks) == 3 and all(r.agrees is not None for r in ranks) else None


@pytest.mark.parametrize(
    ("ranks", "layout", "agrees"),
    [
        pytest.param(2, "fsdp", None, marks=pytest.mark.slow),
        pytest.param(2, "tp", True, marks=pytest.mark.slow),
        pytest.param(4, "hsdp", True, marks=pytest.mark.slow),
    ],
)
def test_only_true_replicas_are_compared(
    ranks: int, layout: str, agrees: bool | None, daemon: DaemonProcess, tmp_path: Path
) -> None:
    with Job(tmp_path / "job", ranks, "--layout", layout) as job, daemon.client() as client:
        run = armed_run(client)
        if agrees is None:
            until(client, lambda c: c.status(run).steps_recorded >= 100 or None, "100 steps")
            assert [rank.agrees for rank in client.status(run).ranks] == [None] * ranks
        else:
            until(client, lambda c: checked(c, run, agrees, ranks), "a comparison")
        assert desync(client, run, False) is None
        job.end()

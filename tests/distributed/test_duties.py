"""What ranks of a real job send, when replicas of the same tensors are about."""

from pathlib import Path

import pytest

from optwatch.client import Client
from tests.daemons import DaemonProcess
from tests.distributed.jobs import Job, armed_run, until


def senders(client: Client, run: str) -> list[int]:
    return [rank.rank for rank in client.status(run).ranks if rank.link == "up" and not rank.reduced]


@pytest.mark.parametrize(
    ("ranks", "layout", "needed", "left"),
    [
        pytest.param(2, "ddp", [0], [1], marks=pytest.mark.slow),
        pytest.param(4, "hsdp", [0, 1], [1, 2], marks=pytest.mark.slow),
    ],
)
def test_one_replica_of_each_part_sends_all_and_the_next_takes_over(
    ranks: int, layout: str, needed: list[int], left: list[int], daemon: DaemonProcess, tmp_path: Path
) -> None:
    with Job(tmp_path / "job", ranks, "--layout", layout) as job, daemon.client() as client:
        run = armed_run(client)
        until(client, lambda c: senders(c, run) == needed or None, "the roles")
        (tmp_path / "job" / "detach-0").touch()
        until(client, lambda c: senders(c, run) == left or None, "the replica that takes over")
        after = client.status(run).step
        until(client, lambda c: c.tensors(run)[1].step.tolist()[-1:] > [after] or None, "its records")
        until(
            client,
            lambda c: any("rank 0 is out of touch" in m.text for m in c.view(run)[0].markers) or None,
            "a note of the handover",
        )
        # The scalars of a rank that is reduced are still there for each of its steps.
        _, blocks = client.series(run, rank=ranks - 1, columns=("loss",))
        assert blocks.logged.all()
        assert len(blocks.step) >= after - 1
        job.end()

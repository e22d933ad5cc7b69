"""Commands on real ranks under torchrun: at one step on all of them, or on none; and nothing hangs."""

import os
import re
import signal
from pathlib import Path

import pytest

from tests.daemons import GUARD, DaemonProcess
from tests.distributed.jobs import Job, armed_run, command, first_logged, the_run, until


@pytest.mark.parametrize(
    ("ranks", "layout"),
    [
        (2, "ddp"),
        pytest.param(4, "ddp", marks=pytest.mark.slow),
        pytest.param(2, "fsdp", marks=pytest.mark.slow),
    ],
)
def test_a_command_is_applied_at_one_step_on_all_ranks_and_all_end_cleanly(
    ranks: int, layout: str, daemon: DaemonProcess, tmp_path: Path
) -> None:
    with Job(tmp_path / "job", ranks, "--layout", layout, "--leave") as job, daemon.client() as client:
        run = armed_run(client)
        done = command(client, run, "scale_lr", {"factor": 0.5})
        assert (done.state, done.ranks_applied) == ("applied", tuple(range(ranks))), done
        for rank in range(ranks):
            seen = until(client, lambda c, r=rank: first_logged(c, run, r, "lr_scale"), "the scale")
            assert seen == done.step
        done = command(client, run, "restart", {})
        assert (done.state, done.ranks_applied) == ("applied", tuple(range(ranks))), done
        results = job.end()
        assert len({result["step"] for result in results}) == 1
        if layout == "ddp":
            assert len({result["bits"] for result in results}) == 1
        assert client.status(run).world_size == ranks
        assert len(client.runs()) == 1
        # None of them has called destroy_process_group.
        assert "Traceback" not in job.text()
        assert "recvValue" not in job.text(), "a store call after the end of the job"


@pytest.mark.parametrize("ranks", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_all_ranks_leave_the_loop_at_the_step_of_a_stop(
    ranks: int, daemon: DaemonProcess, tmp_path: Path
) -> None:
    with Job(tmp_path / "job", ranks, "--obey") as job, daemon.client() as client:
        run = armed_run(client)
        done = command(client, run, "stop", {})
        assert (done.state, done.ranks_applied) == ("applied", tuple(range(ranks))), done
        assert job.process.wait(2 * GUARD) == 0, job.text()  # nobody has asked it to end otherwise
        results = [job.result(rank) for rank in range(ranks)]
        assert [result and result["step"] for result in results] == [done.step] * ranks


@pytest.mark.slow
def test_two_optimizers_that_step_at_different_rates(daemon: DaemonProcess, tmp_path: Path) -> None:
    with Job(tmp_path / "job", 2, "--optimizers", "2") as job, daemon.client() as client:
        run = armed_run(client)
        for action, args in (("scale_lr", {"factor": 0.5}), ("restart", {}), ("scale_lr", {"reset": True})):
            done = command(client, run, action, args)
            assert (done.state, done.ranks_applied) == ("applied", (0, 1)), done
        results = job.end()
        assert len({result["bits"] for result in results}) == 1


@pytest.mark.slow
def test_attached_on_one_rank_only_it_observes_and_nothing_hangs(
    daemon: DaemonProcess, tmp_path: Path
) -> None:
    with Job(tmp_path / "job", 2, "--attach", "rank0") as job, daemon.client() as client:
        run = the_run(client)
        until(client, lambda c: c.status(run).steps_recorded >= 20 or None, "20 steps")
        assert client.status(run).control == "1 of 2 ranks are connected"
        job.end()


@pytest.mark.slow
def test_attached_before_the_process_group_it_joins_later(daemon: DaemonProcess, tmp_path: Path) -> None:
    with Job(tmp_path / "job", 2, "--attach", "before") as job, daemon.client() as client:
        run = armed_run(client)
        done = command(client, run, "scale_lr", {"factor": 0.5})
        assert (done.state, done.ranks_applied) == ("applied", (0, 1)), done
        results = job.end()
        assert len({result["bits"] for result in results}) == 1


@pytest.mark.slow
def test_detach_returns_when_a_rank_was_killed(daemon: DaemonProcess, tmp_path: Path) -> None:
    with Job(tmp_path / "job", 2, "--detach") as job, daemon.client() as client:
        run = armed_run(client)
        pids = {rank.rank: rank.pid for rank in client.status(run).ranks}
        os.kill(pids[1], signal.SIGKILL)
        assert job.process.wait(GUARD) != 0
        assert not re.search("core dumped|terminate called", job.text())

"""Jobs that torchrun starts again: one run, its steps once each, and commands as before."""

import json
import os
import signal
import socket
from pathlib import Path

import pytest

from optwatch.client import Client
from optwatch.wire.actions import OPEN_STATES
from tests.daemons import GUARD, DaemonProcess
from tests.distributed.jobs import START, Job, armed_run, command, started, until


@pytest.fixture(autouse=True)
def _store_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """A new store for each attempt: in the one that torchrun shares, gloo finds addresses of dead ranks."""
    monkeypatch.setenv("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def steps_of(client: Client, run: str, rank: int | None) -> list[int]:
    """The steps of one rank, or of the merged series, as they are recorded."""
    _, blocks = client.series(run, rank=rank, columns=("loss",))
    return [int(step) for step in blocks.step]


def armed_with(client: Client, run: str, ranks: int, pids: set[int]) -> set[int]:
    """Wait until `ranks` processes, none of them one of `pids`, can be commanded; their pids."""

    def ask(client: Client) -> set[int] | None:
        status = client.status(run)
        now = {rank.pid for rank in status.ranks}
        ready = status.control == "armed" and status.world_size == len(now) == ranks
        return now if ready and not now & pids else None

    return until(client, ask, f"{ranks} new ranks", 2 * START)


@pytest.mark.timeout(400)
def test_a_job_that_is_started_again_goes_on_as_the_same_run(daemon: DaemonProcess, tmp_path: Path) -> None:
    launcher, options = ("--max-restarts=1",), ("--checkpoint", "200")
    job = Job(tmp_path / "job", 2, *options, launcher=launcher, script="hardship")
    with job, daemon.client() as client:
        run = armed_run(client)
        pids = {rank.rank: rank.pid for rank in client.status(run).ranks}
        done = command(client, run, "scale_lr", {"factor": 0.5})
        assert (done.state, done.ranks_applied) == ("applied", (0, 1)), done
        # What was on its way when it is killed must be trained again: it is behind the last checkpoint.
        until(
            client,
            lambda c: 0 < steps_of(c, run, 1)[-1] % 200 <= 100 or None,
            "a step that lies well before the next checkpoint",
        )
        number = client.act(run, "restart", {}, "under way").id
        os.kill(pids[1], signal.SIGKILL)
        armed_with(client, run, 2, set(pids.values()))
        ended = until(
            client,
            lambda c: next(
                (e for e in c.commands(run) if e.id == number and e.state not in OPEN_STATES), None
            ),
            "the end of what was under way",
        )
        assert ended.state in ("expired", "refused"), ended
        assert ended.reason
        assert client.status(run).lr_scale == 1.0, "the new processes know of no scale"
        done = command(client, run, "scale_lr", {"factor": 0.5})
        assert (done.state, done.ranks_applied) == ("applied", (0, 1)), done
        results = job.end()
        (last,) = {result["step"] for result in results}
        assert len({result["bits"] for result in results}) == 1
        until(client, lambda c: c.status(run).steps_recorded == last or None, "all steps")
        assert client.status(run).gaps == ()
        for rank in (0, 1, None):
            assert steps_of(client, run, rank) == list(range(1, last + 1))
        assert len(client.runs()) == 1


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_job_goes_on_as_the_same_run_with_more_and_with_fewer_ranks(
    daemon: DaemonProcess, tmp_path: Path
) -> None:
    directory = tmp_path / "job"
    directory.mkdir()
    node = [
        *("torchrun", "--nnodes=1:2", "--nproc-per-node=1", "--max-restarts=3", "--monitor-interval=0.1"),
        *("--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{free_port()}", "--rdzv-id=elastic"),
        "--rdzv-conf=last_call_timeout=3,keep_alive_interval=1,keep_alive_max_attempt=10",
        *("-m", "tests.distributed.hardship", str(directory), "--checkpoint", "200"),
    ]
    with started(node, log=directory / "log") as (first,), daemon.client() as client:
        run = armed_run(client)
        alone = armed_with(client, run, 1, set())
        assert command(client, run, "restart", {}).ranks_applied == (0,)
        with started(node, log=directory / "log-2") as (second,):
            # torchrun does not count this as a restart.
            both = armed_with(client, run, 2, alone)
            done = command(client, run, "restart", {})
            assert (done.state, done.ranks_applied) == ("applied", (0, 1)), done
            grown = client.status(run).step
            # As above: what was on its way must be trained again.
            until(
                client,
                lambda c: ((step := c.status(run).step) > grown + 60 and 0 < step % 200 <= 100) or None,
                "60 steps more, to one well before the next checkpoint",
            )
            os.killpg(second.pid, signal.SIGKILL)
            second.wait()
        armed_with(client, run, 1, both)
        assert command(client, run, "restart", {}).ranks_applied == (0,)
        (directory / "stop").touch()
        assert first.wait(2 * GUARD) == 0
        last = json.loads((directory / "rank-0.json").read_text())["step"]
        until(client, lambda c: c.status(run).steps_recorded == last or None, "all steps")
        assert client.status(run).gaps == ()
        for rank in (0, None):
            assert steps_of(client, run, rank) == list(range(1, last + 1))
        assert len(client.runs()) == 1

"""What a run could not send before it ended reaches the next daemon, once."""

import os
import time
from pathlib import Path

import numpy as np
import pytest

from optwatch.wire.leftovers import leave, leftovers_dir
from tests.daemons import DaemonProcess
from tests.integration.test_main_job import eventually, only_run
from tests.trainings import Training


@pytest.fixture
def left(home: Path) -> Path:
    """The queue of a training that never saw a daemon."""
    Training("--steps", "120", "--watch", "lonely").result()
    (path,) = leftovers_dir().iterdir()
    return path


def test_a_run_without_a_daemon_is_taken_in_by_the_next(left: Path, home: Path) -> None:
    assert os.stat(left).st_mode & 0o077 == 0
    queue = left.read_bytes()
    daemon = DaemonProcess(home / "daemon").start()
    try:
        with daemon.client() as client:
            eventually(lambda: not left.exists())
            status = only_run(client)
            assert status is not None
            assert (status.name, status.state, status.steps_recorded) == ("lonely", "ended", 120)
            assert status.gaps == ()
        left.write_bytes(queue)  # as after a crash between the commit and the deletion
        daemon.restart()
        with daemon.client() as client:
            eventually(lambda: not left.exists())
            again = only_run(client)
            assert again is not None
            assert (again.state, again.steps_recorded) == ("ended", 120)
            _, blocks = client.series(again.run, columns=("loss",))
            assert blocks.step.tolist() == list(range(1, 121))
    finally:
        daemon.kill()


def test_while_no_daemon_is_there_an_agent_packs_a_message_a_second(home: Path) -> None:
    pytest.importorskip("torch")  # the link is the agent's own
    from tests.simulated import SimulatedRun

    run = SimulatedRun("alone", "tcp://127.0.0.1:1", 0, False, numbers=[0], world_size=1, hasty=False)
    (rank,) = run.ranks
    rank.link.start()
    began = time.monotonic()
    for _ in range(60):
        run.advance()
        time.sleep(0.05)
    assert 2 <= rank.link.outbox.queued <= time.monotonic() - began + 1
    rank.link.stop("done")
    steps = np.concatenate([blocks.step for _, blocks in rank.journal if blocks is not None])
    assert steps.tolist() == list(range(1, 61))


@pytest.mark.parametrize("damage", ["cut", "garbage", "empty"])
def test_a_damaged_queue_is_set_aside(left: Path, home: Path, damage: str) -> None:
    data = left.read_bytes()
    left.write_bytes({"cut": data[: len(data) // 2], "garbage": b"\xff" * 100, "empty": b""}[damage])
    daemon = DaemonProcess(home / "daemon").start()
    try:
        eventually(lambda: not left.exists())
        assert left.with_suffix(".unreadable").exists()
        with daemon.client() as client:
            client.greet()
    finally:
        daemon.kill()


def test_the_oldest_queues_give_way(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("optwatch.wire.leftovers.MAX_TOTAL", 2_500)
    paths = []
    for number in range(4):
        paths.append(leave(f"session{number}", [[bytes(1_000)]]))
        os.utime(paths[-1], (number, number))
    assert [path.exists() for path in paths] == [False, False, True, True]

"""A daemon that is killed goes on from what it has saved: it reads of a long history only what came since."""

import sqlite3
import time
from contextlib import closing

import msgspec
import numpy as np
import pytest

from optwatch.daemon.resume import LaneState
from optwatch.daemon.store import FILE
from optwatch.wire.places import state_dir
from tests.daemons import GUARD, DaemonProcess
from tests.integration.test_daemon_restart import reconnect
from tests.peers import AgentPeer, values

STEPS = 40_000
"""More than a timeline holds in full."""


def opened() -> "closing[sqlite3.Connection]":
    return closing(sqlite3.connect(state_dir() / FILE, isolation_level=None))


def wait_saved(step: int) -> LaneState:
    """Wait until the lane is saved with this step."""
    end = time.monotonic() + GUARD
    while time.monotonic() < end:
        with opened() as store:
            row = store.execute("SELECT data FROM lane").fetchone()
        if row is not None and (state := msgspec.msgpack.decode(row[0], type=LaneState)).merged >= step:
            return state
        time.sleep(0.05)
    raise AssertionError(f"step {step} was not saved")


def whole(daemon: DaemonProcess, run: str) -> tuple[list[bytes], object]:
    """The series as screens get it, bit for bit, and what is told of it."""
    with daemon.client() as client:
        view, series, tensors = client.view(run, points=20_000)
        blocks = (*series.blocks(), *tensors.blocks())
        status = view.status
    told = (view.series.columns, status.step, status.steps_recorded, status.gaps, status.loss, view.findings)
    return [block.tobytes() for block in blocks], told


def two_ranks(daemon: DaemonProcess) -> list[AgentPeer]:
    first = AgentPeer(daemon.address, world_size=2)
    ranks = [first, AgentPeer(daemon.address, run=first.run, rank=1, world_size=2)]
    for rank in ranks:
        rank.greet()
    return ranks


def grow(ranks: list[AgentPeer], steps: int, batch: int = 1_000) -> None:
    """Both ranks send steps, with a spell of NaN in the last hundred; the second loses a few on the way."""
    for start in range(0, steps, batch):
        n = min(batch, steps - start)
        for rank in ranks:
            block = values(n, start=start)
            if start + n == steps and n > 100:
                block[-100:-90, 0] = np.nan
            hole = 7 if rank.hello.rank == 1 and start == 2 * batch else 0
            rank.batch(block[hole:], first=rank.step + 1 + hole, sampled=True)
        for rank in ranks:
            rank.wait_acked()


def test_a_long_history_is_there_at_once_and_was_not_read(daemon: DaemonProcess) -> None:
    ranks = two_ranks(daemon)
    grow(ranks, STEPS)
    wait_saved(STEPS)
    before = whole(daemon, ranks[0].run)
    daemon.kill()
    with opened() as store:  # whoever reads it fails
        cut = store.execute(
            "UPDATE chunk SET data = x'' WHERE kind = 's' AND rows = last - first + 1"
        ).rowcount
    assert cut > 20
    daemon.start()
    again = [reconnect(rank, daemon) for rank in ranks]
    assert whole(daemon, ranks[0].run) == before
    grow(again, 500)
    with daemon.client() as client:
        status = client.status(ranks[0].run)
        _, series = client.series(ranks[0].run, first=STEPS - 99, points=20_000)
    assert (status.step, status.steps_recorded) == (STEPS + 500, STEPS + 500)
    assert status.gaps == ((2_001, 2_007),)
    assert series.step.tolist() == list(range(STEPS - 99, STEPS + 501))
    assert "internal error" not in daemon.text()
    for each in (*ranks, *again):
        each.close(linger=0)


def test_what_came_behind_the_last_checkpoint_is_taken_from_the_store(daemon: DaemonProcess) -> None:
    ranks = two_ranks(daemon)
    grow(ranks, 3_000)
    wait_saved(3_000)
    for round in range(4):  # checkpoints are two seconds apart, these are not
        for rank in ranks:
            rank.batch(values(10, start=3_000 + 10 * round), sampled=True)
        ranks[0].wait_acked()
        ranks[1].wait_acked()
    ranks[0].batch(values(10, start=9_000))
    ranks[0].wait_acked()
    before = whole(daemon, ranks[0].run)
    daemon.kill()
    daemon.start()
    again = [reconnect(rank, daemon) for rank in ranks]
    again[1].batch(values(10, start=9_000))
    again[1].wait_acked()
    with daemon.client() as client:
        view, series, _ = client.view(ranks[0].run, points=20_000)
    assert series.step.tolist() == list(range(1, 3_051))
    wanted = np.frombuffer(before[0][1]).reshape(-1, len(view.series.columns))
    assert series.values[: len(wanted)].tobytes() == wanted.tobytes()
    assert series.values[-10:].tobytes() == values(10, start=9_000).tobytes()
    for each in (*ranks, *again):
        each.close(linger=0)


def test_what_another_version_saved_is_dropped(daemon: DaemonProcess) -> None:
    ranks = two_ranks(daemon)
    grow(ranks, 2_000, batch=500)
    wait_saved(2_000)
    before = whole(daemon, ranks[0].run)
    daemon.kill()
    with opened() as store:
        (data,) = store.execute("SELECT data FROM lane").fetchone()
        store.execute("UPDATE lane SET data = ?", (data.replace(b"\xa7version\x01", b"\xa7version\x63"),))
        store.execute("UPDATE page SET data = zeroblob(length(data))")  # shows if it is used
    daemon.start()
    again = [reconnect(rank, daemon) for rank in ranks]
    assert whole(daemon, ranks[0].run) == before
    assert "its series is merged anew" in daemon.text()
    for each in (*ranks, *again):
        each.close(linger=0)


@pytest.mark.parametrize("had_begun", [False, True], ids=["greeted", "sent"])
def test_steps_that_a_new_process_repeats_count_also_where_the_daemon_is_killed_meanwhile(
    daemon: DaemonProcess, had_begun: bool
) -> None:
    old = AgentPeer(daemon.address)
    old.greet()
    old.batch(np.full((100, 4), 1.0))
    old.wait_acked()
    wait_saved(100)
    new = AgentPeer(daemon.address, run=old.run, incarnation=1)
    new.greet()
    new.step = 50
    if had_begun:
        new.batch(np.full((10, 4), 2.0))
        new.wait_acked()
    daemon.kill()
    daemon.start()
    again = reconnect(new, daemon)
    again.batch(np.full((20, 4), 3.0))
    again.wait_acked()
    with daemon.client() as client:
        _, series, _ = client.view(old.run, points=20_000)
    loss = [1.0] * 50 + [2.0] * 10 * had_begun + [3.0] * 20
    assert series.values[:, 0].tolist() == loss
    assert series.step.tolist() == list(range(1, len(loss) + 1))
    for each in (old, new, again):
        each.close(linger=0)

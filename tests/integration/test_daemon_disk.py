"""A disk that fills up: the daemon goes on serving, says so, and takes everything once there is room."""

import resource
import sqlite3
import time

import numpy as np
import pytest

from optwatch.client import Client, Refusal
from optwatch.daemon.store import FILE
from optwatch.daemon.upkeep import check
from optwatch.wire.places import state_dir
from tests.daemons import GUARD, DaemonProcess
from tests.peers import AgentPeer, values


def limit_files(daemon: DaemonProcess, size: int) -> None:
    """No file of the daemon may grow beyond `size` bytes, as on a full disk."""
    assert daemon.process is not None
    resource.prlimit(daemon.process.pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def wait_for_log(daemon: DaemonProcess, words: str) -> None:
    end = time.monotonic() + GUARD
    while words not in daemon.text():
        assert time.monotonic() < end, f"the log never said {words!r}"
        time.sleep(0.05)


def test_it_goes_on_and_resumes(daemon: DaemonProcess) -> None:
    agent = AgentPeer(daemon.address)
    agent.greet()
    first = values(10)
    agent.batch(first)
    agent.wait_acked()
    limit_files(daemon, 200_000)
    sent = [first]
    for batch in range(20):
        sent.append(values(500, start=float(batch)))
        agent.batch(sent[-1])
    wait_for_log(daemon, "the store cannot be written")
    with daemon.client() as client:
        assert client.status("toy").state == "live"
        refused(client)
    assert agent.acked < agent.seq
    limit_files(daemon, resource.RLIM_INFINITY)
    wait_for_log(daemon, "can be written again")
    agent.wait_acked()
    daemon.kill()
    daemon.start()
    with daemon.client() as client:
        _, blocks = client.series("toy")
        assert blocks.values.tobytes() == np.concatenate(sent).tobytes()
        client.set_mode("toy", "auto")
    agent.close(linger=0)


def refused(client: Client) -> None:
    with pytest.raises(Refusal, match="cannot be written") as refusal:
        client.set_mode("toy", "auto")
    assert refusal.value.code == "unavailable"


def test_old_runs_go_while_it_serves(daemon: DaemonProcess) -> None:
    old = AgentPeer(daemon.address, name="old")
    old.greet()
    old.batch(values(500), sampled=True)
    old.bye()
    old.wait_acked()
    old.close()
    daemon.stop()
    connection = sqlite3.connect(state_dir() / FILE)
    with connection:
        connection.execute("UPDATE run SET heard = heard - 400 * 86400")
    connection.close()
    daemon.options = ("--delete-after", "365")
    daemon.start()
    agent = AgentPeer(daemon.address)
    agent.greet()
    agent.batch(values(10))
    wait_for_log(daemon, f"retention: delete run {old.run}: not heard of for 365 days")
    agent.wait_acked()
    with daemon.client() as client:
        assert [run.name for run in client.runs()] == ["toy"]
        assert client.status("toy").steps_recorded == 10
    daemon.stop()
    assert (check(state_dir()).runs, check(state_dir()).problems) == (1, ())
    agent.close(linger=0)

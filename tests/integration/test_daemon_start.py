"""Starting and ending: wrong use speaks, and nothing is left behind."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from optwatch.client import Client, DaemonUnreachable
from optwatch.client.local import start_daemon
from optwatch.wire.messages import Farewell
from optwatch.wire.places import connection_file, find_daemon, read_connection
from optwatch.wire.requests import Ended
from tests.daemons import GUARD, DaemonProcess
from tests.peers import AgentPeer, values


def run_daemon(*options: str) -> subprocess.CompletedProcess[str]:
    """`optwatch daemon` that is expected to end by itself."""
    return subprocess.run(
        [sys.executable, "-m", "optwatch", "daemon", *options],
        capture_output=True,
        text=True,
        timeout=GUARD,
        stdin=subprocess.DEVNULL,
    )


def fails(result: subprocess.CompletedProcess[str], *words: str) -> None:
    assert result.returncode == 2
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("optwatch daemon: ")]
    assert "Traceback" not in result.stderr
    for word in words:
        assert word in line


def test_an_address_that_cannot_be_parsed() -> None:
    fails(run_daemon("--listen", "nowhere"), "cannot parse the address 'nowhere'", "tcp://127.0.0.1:47017")


def test_an_address_of_another_host() -> None:
    fails(run_daemon("--listen", "tcp://192.0.2.1:0"), "cannot listen on tcp://192.0.2.1:0")


def test_a_port_that_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
        fails(run_daemon("--listen", address), f"{address} is taken")


def test_a_store_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a directory")
    fails(run_daemon("--listen", "127.0.0.1:0", "--store", str(tmp_path / "file")), "cannot write the store")


def test_a_store_that_is_no_store(tmp_path: Path) -> None:
    (tmp_path / "optwatch.db").write_text("no database" * 100)
    fails(run_daemon("--listen", "127.0.0.1:0", "--store", str(tmp_path)), "cannot use the store")


def test_a_second_daemon_on_one_store(daemon: DaemonProcess) -> None:
    fails(run_daemon("--listen", "127.0.0.1:0"), "another daemon has the store")


def test_a_key_file_that_others_can_read(daemon: DaemonProcess, home: Path) -> None:
    daemon.stop()
    key = home / "config" / "optwatch" / "keys" / "daemon.json"
    key.chmod(0o644)
    fails(run_daemon("--listen", "127.0.0.1:0"), "can be read by others", "chmod 600")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_ends_in_good_order(daemon: DaemonProcess, number: signal.Signals) -> None:
    assert daemon.process is not None
    assert connection_file().stat().st_mode & 0o777 == 0o600
    daemon.process.send_signal(number)
    assert daemon.process.wait(GUARD) == 0
    assert not connection_file().exists()
    assert "Traceback" not in daemon.text()


def test_its_end_is_told_to_agents_and_followers_after_all_is_acknowledged(daemon: DaemonProcess) -> None:
    peer = AgentPeer(daemon.address)
    peer.greet()
    peer.batch(values(5))
    peer.wait_acked()
    with daemon.client() as client, client.follow(peer.run) as run, client.follow(None) as runs:
        peer.batch(values(5))
        end = time.monotonic() + GUARD
        while client.status(peer.run).step < 10:  # until then it is on its way
            assert time.monotonic() < end
            time.sleep(0.01)
        assert daemon.stop() == 0
        farewell = peer.wait_for(Farewell)
        assert farewell.session == peer.session
        assert peer.acked == peer.seq
        for follower in (run, runs):
            last = None
            while (news := follower.receive(1.0)) is not None:
                last = news.message
            assert isinstance(last, Ended)
            assert last.reason == farewell.reason
    peer.close()


def test_it_leaves_another_ones_connection_file_alone(daemon: DaemonProcess, tmp_path: Path) -> None:
    second = DaemonProcess(tmp_path / "second", "--store", str(tmp_path / "store")).start()
    daemon.stop()
    connection = read_connection()
    assert connection is not None
    assert connection.address == second.address
    second.stop()
    assert read_connection() is None


def test_it_is_found_again_when_a_later_one_has_ended(daemon: DaemonProcess, tmp_path: Path) -> None:
    other = DaemonProcess(tmp_path / "other", "--store", str(tmp_path / "other" / "store")).start()
    assert find_daemon() == other.address
    other.stop()
    end = time.monotonic() + GUARD
    while read_connection() is None:
        assert time.monotonic() < end
        time.sleep(0.05)
    with Client(timeout=GUARD) as client:
        assert client.address == daemon.address


def test_a_client_ends_it(daemon: DaemonProcess) -> None:
    with daemon.client() as client:
        client.stop()
    assert daemon.process is not None
    assert daemon.process.wait(GUARD) == 0


def test_it_ends_when_it_is_idle(daemon: DaemonProcess) -> None:
    daemon.stop()
    daemon.options = ("--idle-exit", "0.2")
    daemon.start()
    assert daemon.process is not None
    assert daemon.process.wait(GUARD) == 0


def test_a_local_one_is_started_where_none_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DaemonUnreachable, match="optwatch daemon"):
        Client(timeout=0.2)
    address = start_daemon()
    connection = read_connection()
    assert connection is not None
    with Client() as client:
        assert client.address == address == connection.address
        assert client.greeting.pid == connection.pid
        os.kill(connection.pid, signal.SIGTERM)


def test_stop_and_status_find_the_daemon_that_runs(daemon: DaemonProcess) -> None:
    status = run_daemon("status", "--json")
    assert status.returncode == 0
    told = json.loads(status.stdout)
    assert daemon.process is not None
    assert (told["address"], told["pid"], told["runs"]) == (daemon.address, daemon.process.pid, 0)
    assert daemon.address in run_daemon("status").stdout
    assert run_daemon("stop").returncode == 0
    assert daemon.process.wait(GUARD) == 0
    fails(run_daemon("status"), "optwatch daemon")

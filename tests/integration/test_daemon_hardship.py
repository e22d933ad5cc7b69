"""What a daemon bears beside kills: it is stopped, cut off, out of files, its clock is set, nobody reads."""

import contextlib
import os
import resource
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import zmq

from optwatch.client.link import connect, resolve
from optwatch.wire.frames import CLIENT, pack
from optwatch.wire.messages import Prepare
from optwatch.wire.requests import GetView
from tests.daemons import GUARD, DaemonProcess
from tests.integration.test_daemon_commands import state_of
from tests.integration.test_daemon_restart import reconnect
from tests.peers import AgentPeer, values
from tests.wires import Wire

FAKETIME = "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1"


def pid(daemon: DaemonProcess) -> int:
    assert daemon.process is not None
    return daemon.process.pid


def open_files(daemon: DaemonProcess) -> int:
    return len(os.listdir(f"/proc/{pid(daemon)}/fd"))


def memory(daemon: DaemonProcess) -> float:
    """Resident MiB."""
    pages = int(Path(f"/proc/{pid(daemon)}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def until(what: Callable[[], bool], name: str, guard: float = GUARD) -> None:
    end = time.monotonic() + guard
    while not what():
        assert time.monotonic() < end, f"waited in vain for {name}"
        time.sleep(0.02)


def trouble(daemon: DaemonProcess) -> str:
    with daemon.client() as client:
        return client.greeting.trouble


def comes_back(daemon: DaemonProcess, agent: AgentPeer, sent: list[np.ndarray]) -> None:
    """All that was sent is there, bit by bit."""
    agent.wait_acked()
    with daemon.client() as client:
        _, blocks = client.series(agent.run)
        assert blocks.values.tobytes() == np.concatenate(sent).tobytes()
        assert client.status(agent.run).gaps == ()


def test_it_serves_on_when_it_was_stopped_for_a_while(daemon: DaemonProcess) -> None:
    agent = AgentPeer(daemon.address)
    agent.greet()
    os.kill(pid(daemon), signal.SIGSTOP)
    sent = [values(20, start=float(at)) for at in range(30)]
    for batch in sent:
        agent.batch(batch)
    assert agent.receive(1.0) is None
    os.kill(pid(daemon), signal.SIGCONT)
    comes_back(daemon, agent, sent)
    agent.close()


def test_without_files_nobody_new_comes_in_and_all_others_are_served(daemon: DaemonProcess) -> None:
    agent = AgentPeer(daemon.address)
    agent.greet()
    sent = [values(20)]
    agent.batch(sent[0])
    agent.wait_acked()
    there = open_files(daemon)
    before = resource.prlimit(pid(daemon), resource.RLIMIT_NOFILE)
    resource.prlimit(pid(daemon), resource.RLIMIT_NOFILE, (there, before[1]))
    port = int(daemon.address.rpartition(":")[2])
    with contextlib.ExitStack() as stack:
        for _ in range(20):
            stack.enter_context(socket.create_connection(("127.0.0.1", port)))
        end = time.monotonic() + 6  # longer than anything the daemon looks at now and then
        while time.monotonic() < end:
            sent.append(values(20, start=float(len(sent))))
            agent.batch(sent[-1])
            agent.beat()
            agent.wait_acked()
            time.sleep(0.2)
    resource.prlimit(pid(daemon), resource.RLIMIT_NOFILE, before)
    friend = AgentPeer(daemon.address, name="friend")
    friend.greet()
    comes_back(daemon, agent, sent)
    assert "Traceback" not in daemon.text()
    for each in (agent, friend):
        each.close()


def test_who_never_reads_holds_up_nobody(daemon: DaemonProcess) -> None:
    agent = AgentPeer(daemon.address)
    agent.greet()
    agent.batch(values(5_000))
    agent.wait_acked()
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    address, key = resolve(daemon.address)
    with daemon.client() as client:
        publish = client.greeting.publish
    deaf = connect(context, zmq.SUB, publish, key)
    deaf.setsockopt(zmq.RCVHWM, 1)
    deaf.setsockopt(zmq.SUBSCRIBE, agent.run.encode())
    asking = connect(context, zmq.DEALER, address, key)
    for number in range(200):
        asking.send_multipart(
            [CLIENT, number.to_bytes(8, "big"), *pack(GetView(run=agent.run, points=2_000))]
        )
    sent = [values(5_000)]
    for at in range(100):
        sent.append(values(100, start=float(at)))
        agent.batch(sent[-1])
        agent.wait_acked()
    assert memory(daemon) < 500
    comes_back(daemon, agent, sent)
    context.destroy(linger=0)
    agent.close()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_half_open_connection_is_given_up_on_both_sides(daemon: DaemonProcess) -> None:
    pytest.importorskip("torch")
    from tests.simulated import SimulatedRun, Trainings

    wire = Wire(daemon.address)
    wire.start()
    os.environ["OPTWATCH_DAEMON_KEY"] = resolve(daemon.address)[1]
    run = SimulatedRun("far", wire.address, 0, faults=False)
    trainings = Trainings([run])
    for rank in run.ranks:
        rank.link.start()
    trainings.start()
    try:
        until(lambda: all(rank.acked > 5 for rank in run.ranks), "the links")
        with daemon.client():
            pass
        before = open_files(daemon)
        wire.freeze()
        reached = {rank.number: rank.acked for rank in run.ranks}
        until(lambda: all(rank.acked > reached[rank.number] for rank in run.ranks), "new links", 90)
        until(lambda: open_files(daemon) <= before, "the old connections to be closed", 90)
        trainings.stopped = True
        trainings.join()
        until(lambda: not any(rank.link.outbox.queued for rank in run.ranks), "the rest")
        assert not any(rank.link.outbox.ring.dropped for rank in run.ranks)
        with daemon.client() as client:
            assert client.status(run.run).gaps == ()
            assert client.status(run.run).steps_recorded == run.step
    finally:
        del os.environ["OPTWATCH_DAEMON_KEY"]
        trainings.stopped = True
        for rank in run.ranks:
            rank.link.stop("done")
        wire.close()


@pytest.fixture
def set_clock(home: Path) -> Iterator[tuple[DaemonProcess, Callable[[str], None]]]:
    """A daemon whose wall clock can be set, and how."""
    if not Path(FAKETIME).exists():
        pytest.skip("needs libfaketime (the Debian package faketime)")
    moved = home / "clock"
    moved.write_text("+0")
    environment = {
        "LD_PRELOAD": FAKETIME,
        "FAKETIME_TIMESTAMP_FILE": str(moved),
        "FAKETIME_NO_CACHE": "1",
        "DONT_FAKE_MONOTONIC": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }
    daemon = DaemonProcess(home / "daemon", prefix=("env", *(f"{k}={v}" for k, v in environment.items())))
    daemon.start()

    def move(by: str) -> None:
        moved.write_text(by)

    yield daemon, move
    print(daemon.text())
    daemon.kill()


@pytest.mark.slow
@pytest.mark.parametrize("by", ["+3600", "-3600"])
def test_no_set_clock_expires_a_command_or_loses_an_agent(
    set_clock: tuple[DaemonProcess, Callable[[str], None]], by: str
) -> None:
    daemon, move = set_clock
    agents = [AgentPeer(daemon.address, world_size=2)]
    agents.append(AgentPeer(daemon.address, run=agents[0].run, rank=1, world_size=2))
    for agent in agents:
        agent.greet()
        agent.batch(values(10))
        agent.beat()
        agent.wait_acked()
    with daemon.client() as client:
        command = client.act("toy", "scale_lr", {"factor": 0.5})
        votes = [agent.wait_for(Prepare) for agent in agents]
        move(by)
        asked = time.time() + float(by)
        assert client.act("toy", "clip", {"off": True}).asked_at == pytest.approx(asked, abs=60)
        for _ in range(10):
            for agent in agents:
                agent.beat()
            time.sleep(0.1)
        assert {rank.link for rank in client.status("toy").ranks} == {"up"}
        assert state_of(client, "toy", command.id, "sent", "scheduled").id == command.id
        for agent, vote in zip(agents, votes, strict=True):
            agent.report(vote, "applied", step=vote.steps[0])
        state_of(client, "toy", command.id, "applied")
        for text in ("before", "and after"):
            client.mark("toy", text)
    for agent in agents:
        agent.close()


@pytest.mark.slow
def test_a_full_file_system_is_borne_until_there_is_room(home: Path) -> None:
    place = home / "small"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", str(place)], check=False, capture_output=True
    )
    if mounted.returncode:
        pytest.skip("no file system can be mounted here")
    try:
        daemon = DaemonProcess(home / "daemon", "--store", str(place / "store")).start()
        agent = AgentPeer(daemon.address)
        agent.greet()
        ballast = place / "ballast"
        sent: list[np.ndarray] = []
        for _ in range(3):  # full again and again, and killed while it is full
            with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
                while True:
                    file.write(bytes(64 << 10))
            with daemon.client() as client:
                told = False
                while not told:
                    sent.append(values(50, start=float(len(sent))))
                    agent.batch(sent[-1])
                    agent.receive(0.05)
                    told = bool(trouble(daemon))
                assert client.status(agent.run).state == "live"
            daemon.kill()
            ballast.unlink()
            daemon.start()
            agent, before = reconnect(agent, daemon), agent
            before.close(linger=0)
            agent.resend()
            agent.wait_acked()
        comes_back(daemon, agent, sent)
        agent.close()
        assert daemon.stop() == 0
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)

"""What the network between agents and daemon gives away, and what thousands of strangers can do: nothing."""

import contextlib
import resource
import socket
import time

import pytest

from optwatch.client.link import resolve
from optwatch.wire.frames import AGENT, pack
from optwatch.wire.messages import Prepare, Welcome
from tests.daemons import GUARD, DaemonProcess
from tests.integration.test_daemon_access import logged, new_pair
from tests.integration.test_daemon_hardship import memory, until
from tests.integration.test_keys import change
from tests.peers import AgentPeer, values
from tests.wires import Wire

SECRET = "a-name-that-nobody-is-to-see"


@pytest.fixture
def wire(daemon: DaemonProcess) -> Wire:
    tapped = Wire(daemon.address)
    tapped.start()
    return tapped


@pytest.mark.parametrize("secure", [True, False])
def test_an_eavesdropper_reads_nothing(daemon: DaemonProcess, secure: bool) -> None:
    if not secure:  # the tap would find it: what is not encrypted is there to be read
        daemon.options = ("--insecure",)
        daemon.restart()
    wire = Wire(daemon.address)
    wire.start()
    key = resolve(daemon.address)[1]
    numbers = values(50)
    agent = AgentPeer(wire.address, name=SECRET, server_key=key)
    agent.greet()
    agent.batch(numbers, sampled=True)
    agent.wait_acked()
    agent.event(50, SECRET)
    agent.wait_acked()
    heard = bytes(wire.heard)
    agent.close()
    wire.close()
    assert len(heard) > numbers.nbytes
    plain = [SECRET.encode(), b"grad_norm", b"layer.0.weight", numbers[3].tobytes(), b"welcome"]
    assert [text in heard for text in plain] == [not secure] * len(plain)


def test_what_was_recorded_cannot_be_sent_again(daemon: DaemonProcess, wire: Wire) -> None:
    """The bytes of a session, replayed on another connection, are no session: its keys are gone."""
    key = resolve(daemon.address)[1]
    agent = AgentPeer(wire.address, server_key=key)
    agent.greet()
    agent.batch(values(10))
    agent.wait_acked()
    recorded = bytes(wire.said)
    agent.close()
    wire.close()
    port = int(daemon.address.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port)) as replay:
        replay.settimeout(5)
        with contextlib.suppress(OSError):
            replay.sendall(recorded)
            while replay.recv(4_096):
                pass
    logged(daemon, "refused a connection: its handshake is no answer to ours")
    with daemon.client() as client:
        assert client.status(agent.run).steps_recorded == 10


def test_a_forged_command_reaches_no_agent(daemon: DaemonProcess) -> None:
    """Who has a key of an agent cannot command, nor speak for the session of somebody else."""
    agent = AgentPeer(daemon.address)
    agent.greet()
    agent.batch(values(10))
    agent.beat()
    agent.wait_acked()
    pair = new_pair()
    change(daemon, "add", "agent", pair.public, "mallory")
    forger = AgentPeer(daemon.address, run=agent.run, session=agent.session, keys=pair)
    forger.send(forger.hello)
    prepare = Prepare(
        session=agent.session, command="1", vote="x", n=1, steps=(), order=1, action="restart", args={}
    )
    for parts in ([AGENT, *pack(prepare)], [*pack(prepare)], [agent.session.encode(), *pack(prepare)]):
        forger.send_raw(parts)
    forger.seq = 1
    forger.batch(values(10, start=77.0))  # as if it were the agent's next one
    assert forger.receive(0.5) is None
    assert agent.receive(0.2) is None
    logged(daemon, "refused mallory: it speaks for a session of ")
    logged(daemon, "refused a message of mallory: it is not as the protocol says")
    with daemon.client() as client:
        assert client.status(agent.run).steps_recorded == 10
        assert client.commands(agent.run) == ()
    for each in (agent, forger):
        each.close(linger=0)


def test_a_message_without_end_is_cut_off(daemon: DaemonProcess) -> None:
    """Parts and parts, and always more to come: no message ever, only memory, if nobody looked.

    Spoken by hand and without a cipher: ZeroMQ itself sends no message before it has the whole.
    """
    daemon.options = ("--insecure",)
    daemon.restart()
    friend = AgentPeer(daemon.address, server_key="")
    friend.greet()
    before = memory(daemon)
    most = before
    greeting = b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32)
    ready = b"\x05READY\x0bSocket-Type\x00\x00\x00\x06DEALER"
    part = bytes(1 << 20)
    with socket.create_connection(("127.0.0.1", int(daemon.address.rpartition(":")[2])), GUARD) as hostile:
        hostile.sendall(greeting + b"\x04" + bytes([len(ready)]) + ready)
        try:
            for _ in range(4_096):  # it would have all of them
                hostile.sendall(b"\x03" + len(part).to_bytes(8, "big") + part)
                most = max(most, memory(daemon))
                time.sleep(0.002)
        except ConnectionError:
            pass
    until(lambda: "was cut off" in daemon.text(), "the end of it")
    assert most - before < 1_500
    until(lambda: memory(daemon) - before < 200, "the memory to be free again")
    friend.batch(values(10))
    friend.wait_acked()
    friend.close()


@pytest.mark.slow
def test_ten_thousand_raw_connections_keep_nobody_out(daemon: DaemonProcess) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = min(10_000, hard - 500)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    print(f"{wanted} connections")
    friend = AgentPeer(daemon.address)
    friend.greet()
    port = int(daemon.address.rpartition(":")[2])
    raw: list[socket.socket] = []
    try:
        for number in range(wanted):
            raw.append(socket.create_connection(("127.0.0.1", port), GUARD))
            if number % 500 == 0:
                friend.batch(values(10, start=float(number)))
                friend.wait_acked()
        late = AgentPeer(daemon.address, name="late")
        assert isinstance(late.greet(), Welcome)
        late.batch(values(10))
        late.wait_acked()
        with daemon.client() as client:
            assert {run.name for run in client.runs()} == {"toy", "late"}
        late.close()
    finally:
        for each in raw:
            each.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    friend.close()

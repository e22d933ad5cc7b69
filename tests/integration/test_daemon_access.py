"""Who is let in, and what hostile peers can do: nothing."""

import os
import socket
import time

import msgspec
import pytest
import zmq

from optwatch.client import Client, DaemonUnreachable
from optwatch.wire.frames import AGENT, CLIENT
from optwatch.wire.keys import KeyPair, daemon_key
from optwatch.wire.messages import Welcome
from tests.daemons import GUARD, DaemonProcess
from tests.peers import AgentPeer, values


def new_pair() -> KeyPair:
    public, secret = zmq.curve_keypair()
    return KeyPair(public.decode(), secret.decode())


def logged(daemon: DaemonProcess, line: str) -> None:
    end = time.monotonic() + GUARD
    while line not in daemon.text():
        assert time.monotonic() < end, f"{line!r} is not in the log:\n{daemon.text()}"
        time.sleep(0.02)


def test_a_key_that_is_not_known_is_turned_away(daemon: DaemonProcess) -> None:
    stranger = AgentPeer(daemon.address, keys=new_pair())
    stranger.send(stranger.hello)
    friend = AgentPeer(daemon.address)
    friend.greet()
    assert stranger.receive(0.5) is None
    with daemon.client() as client:
        assert [run.run for run in client.runs()] == [friend.run]
    logged(daemon, "refused a connection from 127.0.0.1: its key is not known")
    stranger.close(linger=0)
    friend.close()


def test_without_a_key_nobody_is_heard(daemon: DaemonProcess) -> None:
    # The stranger's own socket sees as well that the two do not fit: whoever sees it first hangs up.
    end = time.monotonic() + GUARD
    while (line := "refused a connection: it presents no key") not in daemon.text():
        assert time.monotonic() < end, f"{line!r} is not in the log:\n{daemon.text()}"
        stranger = AgentPeer(daemon.address, server_key="")
        stranger.send(stranger.hello)
        heard = stranger.receive(0.5)
        stranger.close(linger=0)
        assert heard is None
    with daemon.client() as client:
        assert client.runs() == ()


def test_a_client_trusts_only_the_key_it_knows(
    daemon: DaemonProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPTWATCH_DAEMON_KEY", new_pair().public)
    with pytest.raises(DaemonUnreachable, match="no daemon answers"):
        Client(daemon.address, timeout=0.5)
    logged(daemon, "refused a connection: it takes this daemon for one with another key")
    monkeypatch.setenv("OPTWATCH_DAEMON_KEY", "nonsense")
    with pytest.raises(DaemonUnreachable, match="not a daemon's public key"):
        Client(daemon.address, timeout=0.5)


def test_garbage_is_dropped_and_everybody_else_is_served(daemon: DaemonProcess) -> None:
    hostile = AgentPeer(daemon.address)
    for parts in (
        [b""],
        [AGENT],
        [CLIENT],
        [CLIENT, b"short", b"x"],
        [CLIENT, b"8 bytes!", b"\xc1"],
        [AGENT, b"\xff" * 100],
        [AGENT, b"\x81" * 5_000],
        [AGENT, msgspec.msgpack.encode({"type": "hello"})],
        [AGENT, *[b"x"] * 50],
        [b"Z", b"x", b"y"],
        [os.urandom(1) for _ in range(8)],
    ):
        hostile.send_raw(parts)
    hostile.send(msgspec.structs.replace(hostile.hello, rank=7))
    hostile.send(msgspec.structs.replace(hostile.hello, started=float("nan")))
    hostile.send(msgspec.structs.replace(hostile.hello, protocol=99))
    hostile.batch(values(3))  # before any hello
    with socket.create_connection(("127.0.0.1", int(daemon.address.rpartition(":")[2]))) as raw:
        raw.sendall(b"GET / HTTP/1.1\r\n\r\n")
        friend = AgentPeer(daemon.address)
        assert isinstance(friend.greet(), Welcome)
        friend.batch(values(3))
        friend.wait_acked()
    with daemon.client() as client:
        assert [run.run for run in client.runs()] == [friend.run]
    hostile.close(linger=0)
    friend.close()


def test_nobody_speaks_for_another_ones_rows(daemon: DaemonProcess) -> None:
    agent = AgentPeer(daemon.address)
    agent.greet()
    agent.batch(values(3))
    agent.wait_acked()
    agent.send(msgspec.structs.replace(agent.schema, scalars=("loss", "loss")))
    agent.schema = msgspec.structs.replace(agent.schema, digest="never told")
    agent.batch(values(3))
    with daemon.client() as client:
        _, blocks = client.series(agent.run)
    assert blocks.step.tolist() == [1, 2, 3]
    agent.close()


def test_insecure_lets_anybody_in_and_says_so(home: object, tmp_path: object, daemon: DaemonProcess) -> None:
    daemon.stop()
    daemon.options = ("--insecure",)
    daemon.start()
    assert daemon_key(daemon.address) == ""
    agent = AgentPeer(daemon.address, server_key="")
    agent.greet()
    with daemon.client() as client:
        assert len(client.runs()) == 1
    assert "--insecure: anybody" in daemon.text()
    agent.close()

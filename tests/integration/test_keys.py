"""`optwatch keys`: who is let in, as what, and what each may do; against a real daemon."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from optwatch.wire.guests import add_guest, guests_file, parse_guests
from optwatch.wire.keys import KeyFileError, KeyPair
from tests.daemons import GUARD, DaemonProcess
from tests.integration.test_daemon_access import logged, new_pair
from tests.peers import AgentPeer, values

Ended = subprocess.CompletedProcess[str]


class Person:
    """Somebody with a home of their own, on a host that knows the daemon by two variables."""

    def __init__(self, home: Path, daemon: DaemonProcess, daemon_key: str) -> None:
        self.home = home
        self.env = {
            **os.environ,
            "OPTWATCH_DAEMON": daemon.address,
            "OPTWATCH_DAEMON_KEY": daemon_key,
            **{f"XDG_{name}_HOME": str(home / name) for name in ("CONFIG", "STATE")},
            "XDG_RUNTIME_DIR": str(home / "runtime"),
        }
        self.key = json.loads(self.run("keys", "--json").stdout)["key"]

    def run(self, *arguments: str) -> Ended:
        return optwatch(*arguments, env=self.env)


def optwatch(*arguments: str, env: dict[str, str] | None = None) -> Ended:
    return subprocess.run(
        [sys.executable, "-m", "optwatch", *arguments],
        capture_output=True,
        text=True,
        timeout=GUARD,
        env=env,
        check=False,
    )


def until(said: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + GUARD
    while not said():
        assert time.monotonic() < end, f"{what} did not come"
        time.sleep(0.05)


@pytest.fixture
def agent(daemon: DaemonProcess) -> Iterator[AgentPeer]:
    """A run of the daemon's own user."""
    peer = AgentPeer(daemon.address)
    peer.greet()
    peer.batch(values(20))
    peer.wait_acked()
    yield peer
    peer.close(linger=0)


@pytest.fixture
def alice(daemon: DaemonProcess, tmp_path: Path) -> Person:
    shown = json.loads(optwatch("keys", "--json").stdout)
    assert shown["daemon"]["address"] == daemon.address
    return Person(tmp_path / "alice", daemon, shown["daemon"]["key"])


def change(daemon: DaemonProcess, *arguments: str) -> None:
    """Change the keys, and wait until the daemon has noticed."""
    before = daemon.text().count("the keys that are let in")
    ended = optwatch("keys", *arguments)
    assert (ended.returncode, ended.stderr) == (0, "")
    until(lambda: daemon.text().count("the keys that are let in") > before, "the daemon's note of the keys")


def let_in(daemon: DaemonProcess, role: str, key: str, name: str) -> None:
    change(daemon, "add", role, key, name)


def test_a_viewer_may_look_and_an_operator_act(
    daemon: DaemonProcess, agent: AgentPeer, alice: Person
) -> None:
    refused = alice.run("runs")
    assert refused.returncode == 2
    assert "no daemon answers" in refused.stderr
    let_in(daemon, "viewer", alice.key, "alice")
    assert json.loads(alice.run("runs", "--json").stdout)[0]["run"] == agent.run
    for wish in (["mode", "toy", "auto"], ["mark", "toy", "x"], ["command", "toy", "restart"]):
        refused = alice.run(*wish)
        assert refused.returncode in (1, 2)
        assert "the key of alice has the role viewer" in refused.stdout + refused.stderr
    change(daemon, "remove", "alice")
    let_in(daemon, "operator", alice.key, "alice")
    assert alice.run("mode", "toy", "auto").returncode == 0
    log = json.loads(optwatch("store", "audit", "--store", str(store(daemon)), "--json").stdout)
    assert [e["detail"].partition("(")[0] for e in log if (e["who"], e["what"]) == ("alice", "refused")] == [
        "SetMode",
        "AddMark",
        "Act",
    ]
    assert {e["run"] for e in log} == {"toy", agent.run}
    assert [e["who"] for e in log if e["what"] == "SetMode"] == ["alice"]


def test_an_agents_key_sends_and_asks_nothing(daemon: DaemonProcess, agent: AgentPeer, alice: Person) -> None:
    let_in(daemon, "agent", alice.key, "node-17")
    far = AgentPeer(daemon.address, name="far", keys=own_pair(alice))
    far.greet()
    far.batch(values(5))
    far.wait_acked()
    assert {run["name"] for run in json.loads(optwatch("runs", "--json").stdout)} == {"toy", "far"}
    refused = alice.run("runs")
    assert refused.returncode == 2
    assert "the key of node-17 has the role agent" in refused.stderr
    logged(daemon, "refused node-17: its role agent may not ask for ListRuns")
    # It may not speak for a run's rank that somebody else's process has.
    false = AgentPeer(daemon.address, session=agent.session, run=agent.run, keys=own_pair(alice))
    false.send(false.hello)
    assert false.receive(0.5) is None
    far.close(linger=0)
    false.close(linger=0)


def test_a_viewers_key_cannot_send(daemon: DaemonProcess, alice: Person) -> None:
    let_in(daemon, "viewer", alice.key, "alice")
    far = AgentPeer(daemon.address, name="far", keys=own_pair(alice))
    far.send(far.hello)
    assert far.receive(0.5) is None
    logged(daemon, "refused alice: a viewer's key may not send what an agent does")
    assert json.loads(optwatch("runs", "--json").stdout) == []
    far.close(linger=0)


def test_a_key_that_is_removed_is_refused_on_an_open_connection_too(
    daemon: DaemonProcess, alice: Person
) -> None:
    let_in(daemon, "agent", alice.key, "alice")
    far = AgentPeer(daemon.address, name="far", keys=own_pair(alice))
    far.greet()
    far.batch(values(5))
    far.wait_acked()
    before = daemon.text().count("the keys that are let in")
    assert optwatch("keys", "remove", "alice").returncode == 0
    until(lambda: daemon.text().count("the keys that are let in") > before, "the daemon's note")
    far.batch(values(5))
    assert far.receive(0.5) is None
    (run,) = json.loads(optwatch("runs", "--json").stdout)
    assert run["step"] == 5
    far.close(linger=0)


def test_a_wrong_file_changes_nothing_and_keeps_a_new_daemon_from_starting(
    daemon: DaemonProcess, agent: AgentPeer, alice: Person
) -> None:
    let_in(daemon, "viewer", alice.key, "alice")
    with guests_file().open("a") as file:
        file.write("boss oops\n")
    until(lambda: "stay as they were" in daemon.text(), "the complaint")
    assert f"{guests_file()}, line 3: a line is: role, public key, name" in daemon.text()
    assert alice.run("runs").returncode == 0
    daemon.stop()
    with pytest.raises(AssertionError, match="line 3"):
        daemon.start()
    for wish in (["keys"], ["keys", "remove", "alice"]):
        ended = optwatch(*wish)
        assert ended.returncode == 2
        assert "line 3" in ended.stderr
    guests_file().unlink()
    daemon.start()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("viewer short alice", "no public key"),
        (f"boss {'a' * 40} alice", "no role"),
        (f"viewer {'a' * 40} a/b", "no name"),
        (f"viewer {'a' * 40} alice\nagent {'a' * 40} bob", "line 2: this key is there already, as alice"),
        (f"viewer {'a' * 40} alice\nagent {'b' * 40} alice", "line 2: there is a key of alice already"),
    ],
)
def test_what_is_wrong_with_a_line_is_said(text: str, words: str) -> None:
    with pytest.raises(KeyFileError, match=words):
        parse_guests(text, "guests")


def test_a_file_that_others_may_write_is_not_believed(home: Path) -> None:
    add_guest("viewer", new_pair().public, "alice")
    assert guests_file().stat().st_mode & 0o777 == 0o600
    guests_file().chmod(0o622)
    ended = optwatch("keys")
    assert ended.returncode == 2
    assert "can be written by others" in ended.stderr


def test_keys_for_people(daemon: DaemonProcess, alice: Person) -> None:
    let_in(daemon, "viewer", alice.key, "alice")
    shown = optwatch("keys").stdout
    assert alice.key in shown
    assert "--listen" in shown
    wrong = optwatch("keys", "add", "viewer", alice.key, "bob")
    assert wrong.returncode == 2
    assert "as alice" in wrong.stderr
    assert optwatch("keys", "remove", "carol").returncode == 2


def test_hangup_reads_the_policy_anew(daemon: DaemonProcess, tmp_path: Path) -> None:
    policy = tmp_path / "policy.toml"
    policy.write_text("[limits]\ncooldown = 100\n")
    daemon.options = ("--policy", str(policy))
    daemon.restart()
    assert daemon.process is not None
    policy.write_text("[limits]\ncooldown = -1\n")
    daemon.process.send_signal(signal.SIGHUP)
    until(lambda: "the policy stays as it was" in daemon.text(), "the complaint")
    assert "line 2: limits.cooldown" in daemon.text()
    policy.write_text("[limits]\ncooldown = 300\n")
    daemon.process.send_signal(signal.SIGHUP)
    until(lambda: "was read anew" in daemon.text(), "the new policy")
    with daemon.client() as client:
        assert client.runs() == ()


def own_pair(person: Person) -> KeyPair:
    found = json.loads((person.home / "CONFIG" / "optwatch" / "keys" / "user.json").read_text())
    return KeyPair(**found)


def store(daemon: DaemonProcess) -> Path:
    with daemon.client() as client:
        return Path(client.greeting.store)

"""`optwatch status --watch` as it is typed: lines as things happen."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.daemons import GUARD, DaemonProcess
from tests.peers import AgentPeer, values


class Watching:
    """`optwatch status … --watch` as a child, with the lines that it has said."""

    def __init__(self, *args: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "optwatch", "status", *args],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=os.environ.copy(),
        )
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.decode())

    def wait_for(self, pattern: str, meanwhile: Callable[[], object] = lambda: None) -> str:
        """The first line that matches."""
        end = time.monotonic() + GUARD
        while True:
            if found := [line for line in self.lines if re.search(pattern, line)]:
                return found[0]
            assert time.monotonic() < end, f"no {pattern!r} in {self.lines}"
            meanwhile()
            time.sleep(0.05)

    def end(self, number: int | None = None) -> tuple[int, str]:
        """Its exit status and what it said on standard error."""
        if number is not None:
            self.process.send_signal(number)
        status = self.process.wait(GUARD)
        self._reader.join(GUARD)
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        said = self.process.stderr.read().decode()
        self.process.stdout.close()
        self.process.stderr.close()
        return status, said


@pytest.fixture
def peer(daemon: DaemonProcess) -> Iterator[AgentPeer]:
    agent = AgentPeer(daemon.address)
    agent.greet()
    agent.batch(values(10))
    agent.beat()
    agent.wait_acked()
    yield agent
    agent.close()


def test_a_run_is_told_in_sentences_until_it_ends(peer: AgentPeer, daemon: DaemonProcess) -> None:
    watching = Watching("toy", "--watch", "--interval", "0.5")
    assert "1 of 1 ranks, mode advise." in watching.wait_for(r"Step 10, loss 1, ")
    with daemon.client() as client:
        client.set_mode("toy", "observe")
        watching.wait_for(r"The mode is observe now\.", peer.beat)
        client.act("toy", "scale_lr", {"factor": 0.5}, why="too hot")
        prepare = None
        while prepare is None:
            peer.receive(1)
            prepare = next(iter(peer.prepares), None)
        peer.report(prepare, "applied", step=11)
        watching.wait_for(r"Applied: action 1, scale_lr factor=0\.5, at step 11, on 1 of 1 ranks", peer.beat)
        watching.wait_for(r"scaled by 0\.5 now, by 1 before", peer.beat)
    bad = values(5)
    bad[:, 0] = float("nan")
    peer.batch(bad)
    watching.wait_for(r"Found, critical: non finite, at step \d+, since step 11\.", peer.beat)
    peer.bye()
    status, said = watching.end()
    assert (status, said) == (0, "")
    assert "ended" in watching.lines[-1]
    assert not any("\x1b" in line for line in watching.lines)
    assert all(re.match(r"\d\d:\d\d:\d\d \S", line) for line in watching.lines)


def test_json_lines(peer: AgentPeer, daemon: DaemonProcess) -> None:
    watching = Watching("toy", "--watch", "--json", "--interval", "0.5")
    watching.wait_for(r'"event":"status"', peer.beat)
    bad = values(5)
    bad[:, 0] = float("nan")
    peer.batch(bad)
    line = watching.wait_for(r'"event":"finding"', peer.beat)
    event = json.loads(line)
    assert event["finding"]["kind"] == "non_finite"
    assert event["time"] > 1e9
    status = json.loads(watching.lines[0])["status"]
    assert (status["name"], status["step"], status["mode"]) == ("toy", 10, "advise")
    assert watching.end(signal.SIGINT) == (130, "")


def test_a_lost_daemon_is_said_and_its_return_too(peer: AgentPeer, daemon: DaemonProcess) -> None:
    watching = Watching("toy", "--watch", "--interval", "0.5")
    watching.wait_for("Step 10")
    daemon.kill()
    watching.wait_for("Link lost: ")
    daemon.start()
    watching.wait_for(r"The daemon answers again\.")
    assert watching.end(signal.SIGINT)[0] == 130


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("nosuchrun", "--watch"), "nosuchrun"),
        (("toy", "--interval", "5"), "--interval goes with --watch"),
        (("toy", "--watch", "--interval", "0"), "not a positive number of seconds"),
    ],
)
def test_wrong_use(peer: AgentPeer, args: tuple[str, ...], words: str) -> None:
    status, said = Watching(*args).end()
    assert status == 2
    assert words in said


def test_a_closed_pipe_ends_it(peer: AgentPeer, tmp_path: Path) -> None:
    command = f"{sys.executable} -m optwatch status toy --watch --interval 0.2 | head -1"
    shell = subprocess.Popen(command, shell=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    end = time.monotonic() + GUARD
    while shell.poll() is None:
        assert time.monotonic() < end
        peer.beat()
        time.sleep(0.1)
    out, err = shell.communicate()
    assert out.count(b"\n") == 1
    assert b"Traceback" not in err

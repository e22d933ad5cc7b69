"""Notifications from a real daemon, through the real Apprise, to a real mail server and a real webhook."""

import asyncio
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from email import message_from_bytes
from email.message import Message
from email.policy import default as policy
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from aiosmtpd.smtp import SMTP

from optwatch.export.post import Post
from tests.daemons import GUARD, DaemonProcess
from tests.peers import AgentPeer, values


class Sinks:
    """A mail server and a webhook, and what has come to both."""

    def __init__(self) -> None:
        self.mails: list[Message] = []
        self.posts: list[dict[str, Any]] = []
        self.status = 200
        self.arrived = threading.Condition()
        sinks = self

        class Hook(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                with sinks.arrived:
                    if sinks.status == 200:
                        sinks.posts.append(json.loads(body))
                    sinks.arrived.notify_all()
                self.send_response(sinks.status)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *args: object) -> None:
                pass

        self.web = ThreadingHTTPServer(("127.0.0.1", 0), Hook)
        self.web.daemon_threads = True
        threading.Thread(target=self.web.serve_forever, daemon=True).start()
        self.loop = asyncio.new_event_loop()
        self.smtp = self.loop.run_until_complete(
            self.loop.create_server(lambda: SMTP(self, loop=self.loop), "127.0.0.1", 0)
        )
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()

    async def handle_DATA(self, server: object, session: object, envelope: Any) -> str:
        with self.arrived:
            self.mails.append(message_from_bytes(envelope.content, policy=policy))
            self.arrived.notify_all()
        return "250 OK"

    @property
    def mail_url(self) -> str:
        port = self.smtp.sockets[0].getsockname()[1]
        return f"mailto://127.0.0.1:{port}?from=optwatch@example.org&to=me@example.org&mode=insecure"

    @property
    def hook_url(self) -> str:
        return f"json://me:topsecret@127.0.0.1:{self.web.server_port}/hidden-path"

    def wait(self, true: Callable[[], object]) -> None:
        with self.arrived:
            assert self.arrived.wait_for(lambda: bool(true()), GUARD), (self.mails, self.posts)

    def titles(self) -> list[str]:
        return [post["title"] for post in self.posts]

    def close(self) -> None:
        self.web.shutdown()
        self.web.server_close()
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.smtp.close()
        self.loop.run_until_complete(self.loop.shutdown_asyncgens())
        self.loop.close()


@pytest.fixture
def sinks() -> Iterator[Sinks]:
    found = Sinks()
    yield found
    found.close()


@pytest.fixture
def notifying(home: Path, sinks: Sinks) -> Iterator[Callable[[str], DaemonProcess]]:
    """Starts a daemon whose user has a notify.toml."""
    started: list[DaemonProcess] = []

    def start(text: str) -> DaemonProcess:
        write(home, text)
        started.append(DaemonProcess(home / "daemon", "--mode", "advise").start())
        return started[0]

    yield start
    for daemon in started:
        daemon.kill()
        print(daemon.text())
        assert "topsecret" not in daemon.text()
        assert "hidden-path" not in daemon.text()


def write(home: Path, text: str) -> Path:
    path = home / "config" / "optwatch" / "notify.toml"
    path.parent.mkdir(exist_ok=True)
    path.touch(mode=0o600)
    path.write_text(text)
    return path


def target(name: str, url: str, more: str = "") -> str:
    return f'[[target]]\nname = "{name}"\nurl = "{url}"\n{more}\n'


def diverging(n: int = 120) -> np.ndarray:
    """A loss and a gradient norm that explode after 100 steps."""
    noise = np.random.default_rng(0).normal(0, 0.01, n)
    loss = np.where(np.arange(n) < 100, 1.0, 9.0) + noise
    norm = np.where(np.arange(n) < 100, 1.0, 900.0) * (1 + noise)
    full = np.full(n, 1e-3)
    return np.stack([loss, norm, full, full], axis=1)


def test_a_finding_and_a_proposal_reach_mail_and_webhook(
    notifying: Callable[[str], DaemonProcess], sinks: Sinks
) -> None:
    text = target("mail", sinks.mail_url, 'about = ["finding"]\nseverity = ["critical"]')
    daemon = notifying(text + target("hook", sinks.hook_url))
    with closing(AgentPeer(daemon.address, name="digits")) as agent:
        agent.greet()
        agent.batch(diverging())
        agent.beat()
        agent.wait_acked()
        sinks.wait(lambda: sinks.mails and "approve" in json.dumps(sinks.posts))
        (mail,) = sinks.mails
        assert mail["To"] == "me@example.org"
        assert mail["Subject"].startswith("optwatch digits: critical divergence at step")
        html = mail.get_body(("html",)).get_content()  # type: ignore[attr-defined]
        assert "<strong>critical divergence</strong>" in html
        assert f"optwatch findings {agent.run[:8]}" in html
        again = diverging()
        agent.batch(again)  # the same kind in the same run: not told again
        agent.wait_acked()
        with daemon.client() as client:
            assert client.findings("digits")
    assert daemon.stop() == 0
    assert len(sinks.mails) == 1
    said = json.dumps(sinks.posts)
    assert said.count("critical divergence at step") == 1
    assert "waits for your approval" in said


@pytest.mark.slow
def test_a_lost_rank_and_a_lost_run_are_told(notifying: Callable[[str], DaemonProcess], sinks: Sinks) -> None:
    daemon = notifying(target("hook", sinks.hook_url, 'about = ["lost"]'))
    agents = [AgentPeer(daemon.address, run="r" * 32, rank=rank, world_size=2) for rank in (0, 1)]
    for agent in agents:
        agent.greet()
        agent.batch(values(20))
        agent.wait_acked()
    agents[1].close(linger=0)

    end = time.monotonic() + 2 * GUARD
    while len(sinks.titles()) < 2 and time.monotonic() < end:
        if not sinks.titles():  # the other rank goes on for as long
            agents[0].beat()
        time.sleep(0.2)
    first, last = sinks.titles()
    assert first == "optwatch toy: rank 1 is lost, nothing is heard of it; its last known step is 20"
    assert last == "optwatch toy is lost, no rank is in touch; its last known step is 20"
    agents[0].close(linger=0)


def test_a_sink_that_fails_costs_the_daemon_nothing_and_is_said_once(
    notifying: Callable[[str], DaemonProcess], sinks: Sinks
) -> None:
    sinks.status = 500
    daemon = notifying(target("hook", sinks.hook_url) + target("nowhere", "json://me:topsecret@127.0.0.1:9"))
    with closing(AgentPeer(daemon.address)) as agent:
        agent.greet()
        agent.batch(values(60))
        broken = values(5, start=61)
        broken[:, 0] = float("nan")
        agent.batch(broken)
        agent.wait_acked()
        while daemon.text().count("notifications do not reach") < 2:
            agent.batch(values(5, start=100))
            agent.wait_acked()
    assert daemon.stop() == 0
    assert daemon.text().count("notifications do not reach 'hook', it is tried again") == 1
    assert "notifications were not sent before the end" in daemon.text()


def test_sighup_reads_the_file_anew(
    home: Path, notifying: Callable[[str], DaemonProcess], sinks: Sinks
) -> None:
    daemon = notifying("")
    assert daemon.process is not None
    with closing(AgentPeer(daemon.address)) as agent:
        agent.greet()
        for text, says in [
            ("[[target]]\nname = 3\n", "line 2: target[0].name: Expected `str`"),
            (target("hook", "nosuch://topsecret"), "begins with nosuch://"),
            (target("hook", sinks.hook_url), "it names 1 targets"),
        ]:
            write(home, text)
            daemon.process.send_signal(signal.SIGHUP)
            while says not in daemon.text():
                agent.beat()
                agent.receive(0.05)
        broken = values(60)
        broken[55:, 0] = float("nan")
        agent.batch(broken)
        agent.wait_acked()
        sinks.wait(lambda: sinks.posts)
    assert "non_finite" in sinks.titles()[0]


def test_a_wrong_file_stops_the_start(home: Path) -> None:
    write(home, target("hook", "nosuch://topsecret"))
    command = [sys.executable, "-m", "optwatch", "daemon", "--listen", "tcp://127.0.0.1:0"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=GUARD, check=False)
    assert ended.returncode == 2
    assert "target 'hook': Apprise cannot use its URL, which begins with nosuch://" in ended.stderr
    assert "topsecret" not in ended.stderr


def notify(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "optwatch", "notify", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=GUARD, check=False)


def test_notify_test_says_what_was_sent(home: Path, sinks: Sinks) -> None:
    nobody = notify("test")
    assert nobody.returncode == 2
    assert "there is nobody to notify" in nobody.stderr
    text = target("mail", sinks.mail_url, 'quiet = "22:00-07:00"') + target("hook", sinks.hook_url)
    text += target("nowhere", "json://me:topsecret@127.0.0.1:9/hidden-path")
    text += '[[target]]\nname = "unset"\nurl_env = "OPTWATCH_TEST_URL"\n'
    write(home, text)
    one = notify("test", "hook", "--json")
    assert one.returncode == 0
    assert json.loads(one.stdout) == [{"target": "hook", "service": "JSON", "sent": True, "reason": ""}]
    every = notify("test")
    assert every.returncode == 1
    assert "✓ mail (E-Mail): sent" in every.stdout
    assert "warning and critical findings, actions, lost runs and ranks; quiet 22:00-07:00" in every.stdout
    assert "✖ nowhere (JSON): not sent: A Connection error" in every.stdout
    assert "$OPTWATCH_TEST_URL is not set" in every.stdout
    assert "topsecret" not in every.stdout + every.stderr
    assert [mail["Subject"] for mail in sinks.mails] == ["optwatch: a test message"]
    assert len(sinks.posts) == 2
    wrong = notify("test", "nobody")
    assert wrong.returncode == 2
    assert "names no target 'nobody': there are mail, hook, nowhere, unset" in wrong.stderr


@pytest.mark.filterwarnings("ignore:'imghdr':DeprecationWarning")
def test_apprise_knows_the_services_that_the_example_names() -> None:
    for url, service in [
        ("slack://AAAAAAAAA/BBBBBBBBB/cccccccccccccccccccccccc/#alerts", "Slack"),
        ("mailtos://me:app-password@example.org?to=me@example.org", "E-Mail"),
        ("jsons://hooks.example.org/optwatch", "JSON"),
    ]:
        assert Post(url).service == service

"""Fixtures for everybody: an isolated home, and a real daemon."""

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.daemons import DaemonProcess

# Each test has a home of its own, for which each would compile; the tests of the compiled pass turn it on.
os.environ["OPTWATCH_COMPILED"] = "0"

# A shell that puts the tests in the background has them ignore SIGINT, and so would all that they start.
signal.signal(signal.SIGINT, signal.default_int_handler)

# No test asserts how quick a machine is. The fast suite draws the same examples each time, for what fails
# there is then owed to the change at hand; the slow one searches on (--hypothesis-profile=search).
settings.register_profile("search", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("same", settings.get_profile("search"), derandomize=True)
settings.load_profile("same")

UNSET = ("OPTWATCH_DAEMON", "OPTWATCH_DAEMON_KEY", "OPTWATCH_INSECURE")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home of its own, in this process and in those it starts."""
    for variable, name in (
        ("HOME", "home"),
        ("XDG_CONFIG_HOME", "config"),
        ("XDG_STATE_HOME", "state"),
        ("XDG_CACHE_HOME", "cache"),
        ("XDG_RUNTIME_DIR", "runtime"),
    ):
        directory = tmp_path / name
        directory.mkdir(mode=0o700)
        monkeypatch.setenv(variable, str(directory))
    for variable in UNSET:
        monkeypatch.delenv(variable, raising=False)
    return tmp_path


@pytest.fixture(autouse=True)
def _isolated(request: pytest.FixtureRequest) -> None:
    """No integration test ever touches the real home."""
    if "integration" in request.node.path.parts or "distributed" in request.node.path.parts:
        request.getfixturevalue("home")


@pytest.fixture(autouse=True)
def _nothing_stays_compiled() -> Iterator[None]:
    """In a process that has compiled something agents leave a model's hooks as they are."""
    yield
    if (dynamo := sys.modules.get("torch._dynamo")) is not None and dynamo.utils.counters:
        dynamo.reset()
        dynamo.utils.counters.clear()


@pytest.fixture(autouse=True)
def _nothing_stays_attached() -> Iterator[None]:
    """An agent that a failed test leaves behind would have the next ones fail as well."""
    yield
    if (module := sys.modules.get("optwatch_agent.agent")) is not None:
        for agent in tuple(module._agents):
            agent.close("the test is over")


@pytest.fixture
def daemon(home: Path, request: pytest.FixtureRequest) -> Iterator[DaemonProcess]:
    """A daemon process on a free port; its log is shown where the test fails."""
    process = DaemonProcess(home / "daemon").start()
    yield process
    log = process.text()
    process.kill()
    print(log)  # pytest shows it with a failure only

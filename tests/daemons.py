"""A real daemon process for tests."""

import os
import resource
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from optwatch.client import Client

GUARD = 30
"""Seconds after which something hangs."""


@contextmanager
def home_of_its_own() -> Iterator[Path]:
    """For a harness that is no test: an empty home, and as many open files as this user may have."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    with tempfile.TemporaryDirectory() as home:
        set_home(Path(home))
        yield Path(home)


def set_home(folder: Path) -> None:
    """Where a daemon, and those that are to find it, keep keys and connection files."""
    folder.mkdir(exist_ok=True)
    for variable in ("HOME", "XDG_CONFIG_HOME", "XDG_STATE_HOME", "XDG_RUNTIME_DIR"):
        os.environ[variable] = str(folder)


class DaemonProcess:
    """`optwatch daemon` on a free port, with its log in a file."""

    def __init__(self, directory: Path, *options: str, prefix: tuple[str, ...] = ()) -> None:
        self.directory = directory
        self.options = options
        self.prefix = prefix
        """What runs it elsewhere, such as in another network namespace."""
        self.log = directory / "daemon-test.log"
        self.address = "tcp://127.0.0.1:0"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> "DaemonProcess":
        """Start it, at the former address where there is one, and wait until it serves."""
        directory = self.directory
        directory.mkdir(parents=True, exist_ok=True)
        before = self.log.stat().st_size if self.log.exists() else 0
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [
                    *(*self.prefix, sys.executable, "-m", "optwatch", "daemon"),
                    *("--listen", self.address, *self.options),
                ],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                env=os.environ.copy(),
            )
        assert self.process.stdout is not None
        line = self.process.stdout.readline().decode()
        if "listening on" not in line:
            self.kill()
            raise AssertionError(f"the daemon did not start: {self.log.read_bytes()[before:].decode()}")
        self.address = line.split()[-1]
        return self

    def client(self) -> Client:
        return Client(self.address, timeout=GUARD)

    def kill(self) -> None:
        """SIGKILL."""
        self._end(signal.SIGKILL)

    def stop(self) -> int:
        """SIGTERM; the exit status."""
        return self._end(signal.SIGTERM)

    def restart(self) -> "DaemonProcess":
        """Start it again at the same address."""
        if self.process is not None:
            self.stop()
        return self.start()

    def text(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def _end(self, number: int) -> int:
        process, self.process = self.process, None
        if process is None:
            return 0
        process.send_signal(number)
        try:
            status = process.wait(GUARD)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise
        assert process.stdout is not None
        process.stdout.close()
        return status

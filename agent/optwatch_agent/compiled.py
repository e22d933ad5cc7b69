"""The compiled pass of `kernels`: when it is ready.

Where the machine has a C compiler, the first training has a process of low priority build it, which takes a
second or so. Meanwhile the base path measures, and after it the pass does, as in every training to come. The
last detach ends a process that still compiles. OPTWATCH_COMPILED=0 keeps all that off.
"""

import hashlib
import logging
import os
import platform
import shlex
import socket
import subprocess
import sys
import threading
from contextlib import ExitStack, suppress
from pathlib import Path

from optwatch_agent import kernels
from optwatch_agent.kernels import Kernels
from optwatch_agent.signals import let_through

log = logging.getLogger("optwatch")

_APART = 'exec 3<&0; "$@" <&3 3<&- &'
"""Leaves a process behind that belongs to nobody, with the same standard input."""


class Compiler:
    """Brings the compiled pass about without holding up a training step."""

    def __init__(self) -> None:
        self.kernels: Kernels | None = None
        """The loaded pass, None as long as the base path measures."""
        self.why_not = ""
        """Why there will be none, "" while there may be."""
        self._build: Build | None = None
        self._users = 0
        self._lock = threading.Lock()

    def forget(self) -> None:
        """This process was just forked: it has no attachment, and what is built is the other one's."""
        if self._build is not None:
            self._build.close()
        self._build, self._users, self._lock = None, 0, threading.Lock()

    def prepare(self) -> None:
        """Load what is compiled, else start to compile. Called by `attach`, once for each `release`."""
        with self._lock:
            self._users += 1
            if self._build is None:
                self._go_on()

    def reap(self) -> None:
        """Load what was compiled meanwhile. Called by the link's thread."""
        if self._build is None:
            return
        with self._lock:
            if self._build is not None and self._build.ended:
                self._build.close()
                self._build = None
                self._go_on(tried=True)

    def release(self) -> None:
        """Leave no process behind after the last attachment."""
        with self._lock:
            self._users -= 1
            if self._users <= 0 and self._build is not None:
                self._build.end()
                self._build = None

    def _go_on(self, tried: bool = False) -> None:
        if self.kernels is not None or self.why_not:
            return
        try:
            self._load_or_build(tried)
        except Exception as error:  # noqa: BLE001 - whatever is wrong, there is the base path
            let_through(error)
            self._give_up(f"{type(error).__name__}: {error}")

    def _load_or_build(self, tried: bool) -> None:
        if is_kept_off():
            self.why_not = "OPTWATCH_COMPILED is 0"
        elif os.name != "posix":
            self.why_not = "processes cannot lock each other out here"
        elif kernels.is_whole(found := directory()):
            if _is_ours(found):
                self.kernels = Kernels(found)
            else:
                self._give_up(f"others may write to {found}")
        elif tried:
            self._give_up(f"it could not be compiled; to see why: {shlex.join(_command(found))}")
        elif not kernels.can_build():
            self.why_not = "there is no C compiler; pip install 'optwatch[compiled]' brings one"
        elif getattr(sys, "frozen", False) or not Path(sys.executable).name.startswith("python"):
            self.why_not = f"{sys.executable or 'sys.executable'} is no Python that could do it"
        else:
            self._build = Build(found)

    def _give_up(self, why_not: str) -> None:
        """It should have been there."""
        self.why_not = why_not
        log.info("optwatch: statistics are measured without the compiled pass: %s", why_not)


class Build:
    """A process that compiles. It is no child of this one: there are scripts that wait for any child.

    Each side sees from a socket that the other one is gone.
    """

    def __init__(self, wanted: Path) -> None:
        self._socket, its = socket.socketpair()
        self._socket.setblocking(False)
        with its, ExitStack() as undo:
            undo.callback(self.close)
            subprocess.run(  # noqa: S603 - our own module
                ["/bin/sh", "-c", _APART, "sh", *_command(wanted), "watched"],
                stdin=its.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env={**os.environ, "OPTWATCH_COMPILED": "0"},
                process_group=0,  # a Ctrl-C is not meant for it
                check=True,
            )
            undo.pop_all()

    @property
    def ended(self) -> bool:
        try:
            return not self._socket.recv(1)
        except BlockingIOError:
            return False
        except OSError:
            return True

    def end(self) -> None:
        """End it."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)  # also of the copies that forked processes have
        self.close()

    def close(self) -> None:
        """Let go of it."""
        self._socket.close()


def _command(wanted: Path) -> list[str]:
    return [sys.executable, "-P", kernels.__file__, str(wanted)]


def is_kept_off() -> bool:
    """Whether the user does without."""
    return os.environ.get("OPTWATCH_COMPILED") == "0"


def directory() -> Path:
    """Where the pass for this kind of machine, by this compiler, is once it was compiled and tried."""
    digest = hashlib.sha256()
    for path in (Path(kernels.__file__), Path(kernels.__file__).with_suffix(".c")):
        digest.update(path.read_bytes())
    digest.update(f"{os.environ.get('CC', '')}\n{_cpu()}".encode())
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "optwatch" / f"compiled-{digest.hexdigest()[:16]}"


def _cpu() -> str:
    """The kind of processor that is compiled for."""
    first = ""
    with suppress(OSError), Path("/proc/cpuinfo").open() as file:
        first = file.read(8192).partition("\n\n")[0]  # to read of all of many takes a while
    lines = (line for line in first.splitlines() if line.startswith(("model", "flags", "Features")))
    return "\n".join([platform.machine(), *lines])


def _is_ours(found: Path) -> bool:
    """Whether nobody else can have written what is in it."""
    stats = [path.lstat() for path in (found, *found.iterdir())]
    return all(stat.st_uid == os.geteuid() and not stat.st_mode & 0o022 for stat in stats)


COMPILER = Compiler()
os.register_at_fork(after_in_child=COMPILER.forget)

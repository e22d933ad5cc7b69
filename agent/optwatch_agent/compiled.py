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
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from optwatch_agent import kernels
from optwatch_agent.kernels import Kernels
from optwatch_agent.signals import let_through

log = logging.getLogger("optwatch")

_REAPED = 1.0
"""Seconds that the end of a killed process may take."""


class Compiler:
    """Brings the compiled pass about without holding up a training step."""

    def __init__(self) -> None:
        self.kernels: Kernels | None = None
        """The loaded pass, None as long as the base path measures."""
        self.why_not = ""
        """Why there will be none, "" while there may be."""
        self._process: subprocess.Popen[bytes] | None = None
        self._users = 0

    def prepare(self) -> None:
        """Load what is compiled, else start to compile. Called by `attach`, once for each `release`."""
        self._users += 1
        if self._process is None:
            self._go_on()

    def reap(self) -> None:
        """Load what was compiled meanwhile. Called by the link's thread."""
        process = self._process
        if process is not None and process.poll() is not None:
            self._process = None
            self._go_on(process)

    def release(self) -> None:
        """Leave no process behind after the last attachment."""
        self._users -= 1
        process = self._process
        if self._users > 0 or process is None:
            return
        self._process = None
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)  # with the compiler
        with suppress(subprocess.TimeoutExpired):
            process.wait(_REAPED)

    def _go_on(self, ended: subprocess.Popen[bytes] | None = None) -> None:
        if self.kernels is not None or self.why_not:
            return
        try:
            self._load_or_build(ended)
        except Exception as error:  # noqa: BLE001 - whatever is wrong, there is the base path
            let_through(error)
            self._give_up(f"{type(error).__name__}: {error}")

    def _load_or_build(self, ended: subprocess.Popen[bytes] | None) -> None:
        if os.environ.get("OPTWATCH_COMPILED", "1") == "0":
            self._give_up("OPTWATCH_COMPILED is 0")
        elif os.name != "posix":
            self._give_up("processes cannot lock each other out here")
        elif (found := directory()).exists():
            if _is_ours(found):
                self.kernels = Kernels(found)
            else:
                self._give_up(f"others may write to {found}")
        elif ended is not None:
            self._give_up(f"it could not be compiled; to see why: {shlex.join(_command(found))}")
        elif kernels.can_build():
            self._process = _build(found)
        else:
            self._give_up("there is no C compiler; pip install 'optwatch[compiled]' brings one")

    def _give_up(self, why_not: str) -> None:
        self.why_not = why_not
        log.info("optwatch: statistics are measured without the compiled pass: %s", why_not)


def _build(wanted: Path) -> subprocess.Popen[bytes]:
    nothing = subprocess.DEVNULL
    return subprocess.Popen(  # noqa: S603 - our own module
        _command(wanted), stdin=nothing, stdout=nothing, stderr=nothing, process_group=0
    )


def _command(wanted: Path) -> list[str]:
    return [sys.executable, "-P", kernels.__file__, str(wanted)]


def directory() -> Path:
    """Where the pass for this kind of machine is once it was compiled and tried."""
    digest = hashlib.sha256()
    for path in (Path(kernels.__file__), Path(kernels.__file__).with_suffix(".c")):
        digest.update(path.read_bytes())
    digest.update(_cpu().encode())
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

"""The compiled pass of `kernels`, where numba is installed: when it is ready.

Compiling is seconds of Python work, which would hold the interpreter lock against the training loop. So a
process of its own does it (`compiling`), for the trainings that come later: this one goes on with the base
path. What is compiled is loaded in `attach` and never while a training runs. The last detach ends a
process that still compiles. NUMBA_DISABLE_JIT=1 keeps numba out.
"""

import hashlib
import importlib.metadata
import importlib.util
import logging
import os
import platform
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from optwatch_agent.compiling import is_from_cache, load
from optwatch_agent.signals import let_through

log = logging.getLogger("optwatch")

_REAPED = 1.0
"""Seconds that the end of a killed process may take."""


class Compiler:
    """Brings the compiled pass about without holding up a training step."""

    def __init__(self) -> None:
        self.kernels: Any = None
        """The loaded module `kernels`, None as long as the base path measures."""
        self.why_not = ""
        """Why there will be none, "" while there may be."""
        self._process: subprocess.Popen[bytes] | None = None
        self._users = 0

    def prepare(self) -> None:
        """Load what is compiled, else start to compile. Called by `attach`, once for each `release`."""
        self._users += 1
        if self.kernels is not None or self.why_not:
            return
        try:
            self._start()
        except Exception as error:  # noqa: BLE001 - whatever is wrong, there is the base path
            let_through(error)
            self._give_up(f"{type(error).__name__}: {error}")

    def release(self) -> None:
        """Leave no process behind after the last attachment."""
        self._users -= 1
        process = self._process
        if self._users > 0 or process is None:
            return
        self._process = None
        process.kill()
        with suppress(subprocess.TimeoutExpired):
            process.wait(_REAPED)

    def reap(self) -> None:
        """See whether the process has ended, so that it is no zombie. Called by the link's thread."""
        process = self._process
        if process is not None:
            process.poll()

    def _start(self) -> None:
        if importlib.util.find_spec("numba") is None:
            self.why_not = "numba is not installed"
        elif os.environ.get("NUMBA_DISABLE_JIT", "0") != "0":
            self.why_not = "NUMBA_DISABLE_JIT is set"
        elif os.name != "posix":
            self.why_not = "processes cannot lock each other out here"
        elif (directory := _directory()).is_dir():
            self._load(directory)
        elif self._process is None:
            self._process = _compile(directory)
        elif self._process.poll() is not None:
            self._give_up(f"compiling left nothing and exit code {self._process.returncode}")

    def _load(self, directory: Path) -> None:
        kernels = load(directory)
        if is_from_cache(kernels):
            self.kernels = kernels
        else:
            self._give_up("what was compiled cannot be read on this machine")

    def _give_up(self, why_not: str) -> None:
        self.why_not = why_not
        log.info("optwatch: statistics are measured without numba: %s", why_not)


def _compile(directory: Path) -> subprocess.Popen[bytes]:
    here = Path(__file__).parent
    return subprocess.Popen(  # noqa: S603 - our own module
        [sys.executable, "-P", str(here / "compiling.py"), str(here / "kernels.py"), str(directory)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def _directory() -> Path:
    """Where the pass is once it was compiled on this host and tried."""
    digest = hashlib.sha256(Path(__file__).with_name("kernels.py").read_bytes())
    for part in (sys.executable, sys.version, importlib.metadata.version("numba"), platform.node(), _cpu()):
        digest.update(part.encode() + b"\0")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "optwatch" / f"compiled-{digest.hexdigest()[:16]}"


def _cpu() -> str:
    """The kind of processor, for which numba compiles."""
    try:
        lines = Path("/proc/cpuinfo").read_text().partition("\n\n")[0].splitlines()
    except OSError:
        return platform.machine()
    return "\n".join(line for line in lines if line.startswith(("model", "flags", "Features")))


COMPILER = Compiler()

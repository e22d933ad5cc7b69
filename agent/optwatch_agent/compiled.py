"""The compiled pass of `kernels`, where numba is installed: when it is ready, and what it measures.

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

import numpy as np
import torch
from torch import Tensor

from optwatch_agent.compiling import is_from_cache, load
from optwatch_agent.pieces import Piece
from optwatch_agent.quotients import Quotient, quotient
from optwatch_agent.roles import Roles
from optwatch_agent.sums import Sums

log = logging.getLogger("optwatch")

_PLAIN = (Tensor, torch.nn.Parameter)
_KINDS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
"""As in `kernels`, which only numba can load."""
_TINY = 1e-37
_SOURCES = (
    "GRAD",
    "GRAD_MAX",
    "FIRST",
    "SECOND",
    "SECOND_MIN",
    "SECOND_MAX",
    "PARAM",
    "PARAM_MAX",
    "UPDATE",
    "RMS_T",
    "DOT",
    "SMALL",
)
"""The columns of `kernels` that are the sums, in the order of those."""
_BITS = [Sums.COLUMNS.index(name) for name in Sums.PEAKS]
_SECOND = Sums.COLUMNS.index("second")
_EXTREMES = [Sums.COLUMNS.index(name) for name in ("second_min", "second_max")]
_REAPED = 1.0
"""Seconds that the end of a killed process may take."""


class Table:
    """The tensors of one measurement that the compiled pass reads, in place, by their addresses."""

    def __init__(self, kernels: Any, roles: Roles) -> None:
        self._kernels = kernels
        self._rule = roles.update
        self._of: list[int] = []
        self._addresses: list[tuple[int, int, int, int]] = []
        self._kinds: list[tuple[int, int, int, int]] = []
        self._sizes: list[int] = []
        self._numbers: list[tuple[float, ...]] = []
        self._seen: list[tuple[bool, ...]] = []
        self._known: dict[tuple[int, bool, bool], tuple[tuple[float, ...], tuple[bool, ...]] | None] = {}
        self._pieces: list[Piece] = []
        self._memory: list[torch.UntypedStorage] = []
        """What the addresses point into: also `p.data = …` in another thread does not free it."""

    def takes(self, i: int, x: Piece) -> bool:
        """Add tensor i, unless its rule, strides or dtypes are not those that the pass can read, or it would
        take memory to keep it until the measurement."""
        if x.made:
            return False
        self._pieces.append(x)  # `numbers` are known by their id
        known = (id(x.numbers), x.first is None, x.second is None)
        if known not in self._known:
            self._known[known] = self._read(x)
        if (numbers := self._known[known]) is None or x.extra:
            return False
        try:
            g, m, v, p = (self._place(each, x.param.numel()) for each in (x.grad, x.first, x.second, x.param))
        except _Unreadable:
            return False
        self._of.append(i)
        self._addresses.append((g[0], m[0], v[0], p[0]))
        self._kinds.append((g[1], m[1], v[1], p[1]))
        self._sizes.append(x.param.numel())
        self._numbers.append(numbers[0])
        self._seen.append(numbers[1])
        return True

    def _place(self, x: Tensor | None, numel: int) -> tuple[int, int]:
        """Where so many elements are and how they are stored."""
        if x is None:
            return 0, 0
        kind = _KINDS.get(x.dtype)
        if kind is None or type(x) not in _PLAIN or not x.is_cpu or x.layout is not torch.strided:
            raise _Unreadable
        if x.numel() != numel or not x.is_contiguous() or x.is_neg():
            raise _Unreadable
        memory, at, size = x.untyped_storage(), x.data_ptr(), x.element_size()
        if at == 0 or at % size or (x.storage_offset() + numel) * size > memory.nbytes():
            raise _Unreadable
        self._memory.append(memory)
        return at, kind

    def _read(self, x: Piece) -> tuple[tuple[float, ...], tuple[bool, ...]] | None:
        """The numbers for the pass, and which of the sums it finds."""
        update = quotient(self._rule, x)
        if update is None and self._rule is not None and x.numbers:
            return None
        a, k, b, epsilon = update or Quotient(0.0, 0.0, 0.0, 1.0)
        unknown = {
            *(() if update else ("update",)),
            *(() if x.first is not None else ("first", "dot")),
            *(() if x.second is not None else ("second", "second_min", "second_max", "rms_t", "eps")),
        }
        seen = tuple(name not in unknown for name in Sums.COLUMNS)
        if x.second is None:
            return (a, k, b, 1.0, 0.0, 1.0, 0.0), seen
        floor = max(x.epsilon, _TINY)
        return (a, k, b, x.correction**-0.5, epsilon, floor, 10 * x.epsilon), seen

    def measure(self, sums: Sums) -> None:
        """Measure all of them, and let go of them."""
        if not self._of:
            return
        k = self._kernels
        out = np.empty((len(self._of), k.COLUMNS))
        addresses = np.array(self._addresses, dtype=np.int64)
        kinds = np.array(self._kinds, dtype=np.int64)
        sizes = np.array(self._sizes, dtype=np.int64)
        k.measure(addresses, kinds, sizes, np.array(self._numbers, dtype=np.float32), out)
        self._pieces.clear()
        self._memory.clear()
        values = out[:, [getattr(k, name) for name in _SOURCES]]
        values[:, _BITS] = values[:, _BITS].astype(np.int32).view(np.float32)
        # Bits of a NaN order at either end.
        values[:, _EXTREMES] += np.where(np.isnan(values[:, [_SECOND]]), np.nan, 0.0)
        counts = out[:, [k.ZEROS, k.NONFINITE, k.LOST]]
        sums.put_all(np.array(self._of, dtype=np.int64), values, np.array(self._seen), counts)


class _Unreadable(Exception):
    """Not plain contiguous memory of a dtype that the pass knows."""


# --- getting ready ------------------------------------------------------------------------------------


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


def table(roles: Roles) -> Table | None:
    """A table to fill, None where the compiled pass is not ready or cannot read such an optimizer."""
    if COMPILER.kernels is None or roles.root != "sqrt":
        return None
    return Table(COMPILER.kernels, roles)

"""The compiled pass of `kernels`, where numba is installed: when it is ready, and what it measures.

Compiling is seconds of Python work, which would hold the interpreter lock against the training loop. So a
process of its own does it and leaves the result in numba's cache on disk; until it is there the base path
measures. What costs most of a load from the cache, importing numba, is done in `attach`, before the first
step. NUMBA_DISABLE_JIT=1 keeps numba out.
"""

import hashlib
import importlib
import importlib.metadata
import importlib.util
import logging
import os
import platform
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from optwatch_agent.pieces import Piece
from optwatch_agent.quotients import Quotient, quotient
from optwatch_agent.roles import Roles
from optwatch_agent.sums import Sums

log = logging.getLogger("optwatch")

_PLAIN = (Tensor, torch.nn.Parameter)
_KINDS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
"""As in `kernels`, which only numba can load."""
_TINY = 1e-37

_COMPILE = """
import importlib, os, sys, types
if hasattr(os, "nice"):
    os.nice(10)
package = types.ModuleType("optwatch_agent")  # without its own imports, torch among them
package.__path__ = [sys.argv[1]]
sys.modules["optwatch_agent"] = package
importlib.import_module("optwatch_agent.kernels")
os.makedirs(os.path.dirname(sys.argv[2]), exist_ok=True)
open(sys.argv[2], "w").close()
"""


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
        self._updated: list[bool] = []
        self._known: dict[tuple[int, bool, bool], tuple[tuple[float, ...], bool] | None] = {}
        self._alive: list[Piece] = []

    def takes(self, i: int, x: Piece) -> bool:
        """Add tensor i, unless its rule, strides or dtypes are not those that the pass can read."""
        self._alive.append(x)  # its memory is read later, and `numbers` are known by their id
        known = (id(x.numbers), x.first is None, x.second is None)
        if known not in self._known:
            self._known[known] = self._read(x)
        if (numbers := self._known[known]) is None or x.extra:
            return False
        try:
            g, m, v, p = _place(x.grad), _place(x.first), _place(x.second), _place(x.param)
        except _Unreadable:
            return False
        self._of.append(i)
        self._addresses.append((g[0], m[0], v[0], p[0]))
        self._kinds.append((g[1], m[1], v[1], p[1]))
        self._sizes.append(x.param.numel())
        self._numbers.append(numbers[0])
        self._updated.append(numbers[1])
        return True

    def _read(self, x: Piece) -> tuple[tuple[float, ...], bool] | None:
        """The numbers for the pass, and whether the update is among its results."""
        update = quotient(self._rule, x)
        if update is None and self._rule is not None and x.numbers:
            return None
        a, k, b, epsilon = update or Quotient(0.0, 0.0, 0.0, 1.0)
        if x.second is None:
            return (a, k, b, 1.0, 0.0, 1.0, 0.0), update is not None
        floor = max(x.epsilon, _TINY)
        return (a, k, b, x.correction**-0.5, epsilon, floor, 10 * x.epsilon), update is not None

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
        self._alive.clear()
        where = np.array(self._of, dtype=np.int64)
        sums.put("grad", where, out[:, k.GRAD])
        sums.put("grad_max", where, _floats(out[:, k.GRAD_MAX]))
        sums.put("param", where, out[:, k.PARAM])
        sums.put("param_max", where, _floats(out[:, k.PARAM_MAX]))
        sums.counts[where, 0] = out[:, k.ZEROS]
        sums.counts[where, 1] = out[:, k.NONFINITE]
        updated = np.array(self._updated)
        sums.put("update", where[updated], out[updated, k.UPDATE])
        has = addresses[:, 1] != 0
        sums.put("first", where[has], out[has, k.FIRST])
        sums.put("dot", where[has], out[has, k.DOT])
        has = addresses[:, 2] != 0
        out = out[has]
        lost = np.where(np.isnan(out[:, k.SECOND]), np.nan, 0.0)  # bits of a NaN order at either end
        sums.put("second", where[has], out[:, k.SECOND])
        sums.put("second_min", where[has], _floats(out[:, k.SECOND_MIN]) + lost)
        sums.put("second_max", where[has], _floats(out[:, k.SECOND_MAX]) + lost)
        sums.put("rms_t", where[has], out[:, k.RMS_T])
        sums.put("eps", where[has], out[:, k.SMALL])


class _Unreadable(Exception):
    """Not plain contiguous memory of a dtype that the pass knows."""


def _place(x: Tensor | None) -> tuple[int, int]:
    """Where the elements are and how they are stored."""
    if x is None:
        return 0, 0
    kind = _KINDS.get(x.dtype)
    is_plain = type(x) in _PLAIN and x.is_contiguous() and not x.is_neg()
    if kind is None or not is_plain or (at := x.data_ptr()) == 0:
        raise _Unreadable
    return at, kind


def _floats(bits: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return bits.astype(np.int32).view(np.float32).astype(np.float64)


# --- getting ready ------------------------------------------------------------------------------------


class Compiler:
    """Brings the compiled pass about without holding up a training step."""

    def __init__(self) -> None:
        self.kernels: Any = None
        """The loaded module `kernels`, None as long as the base path measures."""
        self.why_not = ""
        """Why there will be none, "" while there may be."""
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def prepare(self) -> None:
        """Load what is compiled, else start to compile. Called before the first step."""
        with self._lock:
            if self.kernels is not None or self._process is not None or self.why_not:
                return
            try:
                self._start()
            except Exception as error:  # noqa: BLE001 - whatever is wrong, there is the base path
                self._give_up(error)

    def _start(self) -> None:
        if importlib.util.find_spec("numba") is None:
            self.why_not = "numba is not installed"
        elif os.environ.get("NUMBA_DISABLE_JIT", "0") != "0":
            self.why_not = "NUMBA_DISABLE_JIT is set"
        elif _mark().exists():
            self._load()
        else:
            self._compile()
            self._warm_up()

    def _give_up(self, error: Exception) -> None:
        self.why_not = f"{type(error).__name__}: {error}"
        log.info("optwatch: statistics are measured without numba: %s", self.why_not)

    def look(self) -> None:
        """Load what has been compiled meanwhile. Called by the link's thread."""
        process = self._process
        if process is None or process.poll() is None:
            return
        with self._lock:
            self._process = None
            if process.returncode == 0:
                self._load()
            else:
                self.why_not = f"compiling failed with exit code {process.returncode}"

    def _compile(self) -> None:
        self._process = subprocess.Popen(  # noqa: S603 - our own module
            [sys.executable, "-c", _COMPILE, str(Path(__file__).parent), str(_mark())],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def _warm_up(self) -> None:
        """Import what a load needs, so that it takes little later on."""
        registry = importlib.import_module("numba.core.registry")
        registry.cpu_target.typing_context.refresh()
        registry.cpu_target.target_context.refresh()

    def _load(self) -> None:
        try:
            self.kernels = importlib.import_module("optwatch_agent.kernels")
        except Exception as error:  # noqa: BLE001 - whatever numba says, there is the base path
            self._give_up(error)


def _mark() -> Path:
    """A file that is there once the pass was compiled on this host, which tells it without loading numba."""
    digest = hashlib.sha256(Path(__file__).with_name("kernels.py").read_bytes())
    for part in (__file__, sys.version, importlib.metadata.version("numba"), platform.node()):
        digest.update(part.encode() + b"\0")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "optwatch" / f"compiled-{digest.hexdigest()[:16]}"


COMPILER = Compiler()


def table(roles: Roles) -> Table | None:
    """A table to fill, None where the compiled pass is not ready or cannot read such an optimizer."""
    if COMPILER.kernels is None or roles.root != "sqrt":
        return None
    return Table(COMPILER.kernels, roles)

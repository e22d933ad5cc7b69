"""The compiled pass of `kernels.c`: built, tried and loaded.

`python -P kernels.py DIRECTORY` builds it, in a process of its own that imports neither torch nor the rest of
the agent. The directory gets its name only when what is in it computes what it should, and nothing in it is
written again.
"""

import ctypes
import hashlib
import os
import select
import shlex
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

F4 = npt.NDArray[np.float32]
F8 = npt.NDArray[np.float64]
U8 = npt.NDArray[np.uint64]
Bool = npt.NDArray[np.bool_]

F32, BF16, F16 = 0, 1, 2
"""How the elements at an address are stored."""
LEAF = 2048
SUMS, COUNTS = 12, 3
"""Columns of the results."""

_COMMON = struct.Struct("4q12?9f")
_TENSORS = struct.Struct("9q")

_LIBRARY = "kernels.so"
_DIGEST = "kernels.so.sha256"

_FLAGS = [
    *("-std=c11", "-O3", "-shared", "-fPIC", "-ffp-contract=fast"),
    # NaN and infinities keep their meaning, and products their order. Never -ffast-math, which $CC may name:
    # a library linked with it has the whole process, and so the training, flush subnormal numbers.
    *("-fno-fast-math", "-fno-unsafe-math-optimizations", "-fno-finite-math-only", "-fno-associative-math"),
    *("-fopenmp-simd", "-fno-signed-zeros", "-fno-trapping-math", "-fno-math-errno"),
]

_PATIENCE = 120
"""Seconds that a compiler may take."""
_PAUSE = 0.02
"""Seconds from one look at what others do to the next."""


class Common(NamedTuple):
    """What tensors have in common."""

    kinds: tuple[int, ...]
    """How gradient, first and second moment and parameter are stored."""
    known: tuple[bool, ...]
    """Which of the sums are known."""
    numbers: tuple[float, ...]
    """Nine: the update is (n0 g + n1 m + n2 p) / (n3 r + n4) + n5 p, where r is sqrt(v), or v itself; sqrt(v̂)
    is n6 r, n7 its floor in rms_t, and n8 10 ε."""


class Tensors:
    """Where tensors of one optimizer are. All arrays are of int64, and of one length."""

    def __init__(self, itself: bool) -> None:
        """`itself`: their second moment is no square."""
        self.rows = array("q")
        """Of the results, one for each tensor."""
        self.sizes = array("q")
        """Elements."""
        self.addresses = array("q"), array("q"), array("q"), array("q")
        """Of gradient, first and second moment and parameter; 0 stands for zeros, and in place of a second
        moment for ones."""
        self.common_of = array("q")
        """The number of the `Common` that they have."""
        self.commons: dict[Common, int] = {}
        """The number of each, in their order."""
        self._itself = itself

    def packed(self) -> tuple[bytes, bytes]:
        """As C reads them, as long as no array grows: `Tensors`, and all `Common`."""
        columns = self.rows, self.sizes, *self.addresses, self.common_of
        at = [column.buffer_info()[0] for column in columns]
        commons = [_COMMON.pack(*each.kinds, *each.known, *each.numbers) for each in self.commons]
        return _TENSORS.pack(len(self.rows), *at, self._itself), b"".join(commons)


class Kernels:
    """The pass as a function.

    Raises:
        OSError: the library cannot be loaded.
    """

    def __init__(self, directory: Path) -> None:
        library = ctypes.CDLL(str(directory / _LIBRARY))
        self._add_up, self._measure = library.add_up, library.measure
        pointer = ctypes.c_void_p
        for function, results in ((self._add_up, 4), (self._measure, 3)):
            function.restype = None
            function.argtypes = [pointer] * (2 + results)

    def add_up(self, tensors: Tensors, numel: F8, sums: F8, seen: Bool, counts: U8) -> None:
        """Add up what statistics are made of, while the interpreter lock is let go.

        Args:
            tensors: where they are.
            numel: [T], elements of each; of this and the following, the rows are filled.
            sums: [T, SUMS].
            seen: [T, SUMS], which of them are known.
            counts: [T, COUNTS], of elements.
        """
        results = [result.ctypes.data for result in (numel, sums, seen, counts)]
        self._add_up(*tensors.packed(), *results)

    def measure(self, tensors: Tensors, stats: F4, counts: U8) -> tuple[float, float]:
        """Fill in the statistics, while the interpreter lock is let go.

        Args:
            tensors: where they are.
            stats: [T, SUMS], NaN where not known; of this and the following, the rows are filled.
            counts: [T, COUNTS], of elements.

        Returns:
            The norms of all parameters, and of all updates that are known.
        """
        norms = array("d", (0.0, 0.0))
        results = stats.ctypes.data, counts.ctypes.data, norms.buffer_info()[0]
        self._measure(*tensors.packed(), *results)
        return norms[0], norms[1]


def can_build() -> bool:
    """Whether there is a compiler."""
    return next(_compilers(), None) is not None


def is_whole(directory: Path) -> bool:
    """Whether a directory holds the library as it was built: a torn one ends the process that loads it."""
    try:
        return (directory / _DIGEST).read_text() == _digest(directory)
    except (OSError, UnicodeError):
        return False


def _digest(directory: Path) -> str:
    return hashlib.sha256((directory / _LIBRARY).read_bytes()).hexdigest()


def build(directory: Path, other: socket.socket | None = None) -> None:
    """Compile the pass, try it, and only then give the directory its name.

    Args:
        directory: where it is wanted.
        other: closes at its other end when nobody wants it any more.

    Raises:
        RuntimeError: no compiler, or what it made computes something else.
        OSError: nothing can be written there.
        SystemExit: nobody wants it any more.
    """
    directory.parent.mkdir(parents=True, exist_ok=True)
    with _alone(directory.parent / "compiling.lock", other):
        if not is_whole(directory):
            _build(directory, other)


def _build(directory: Path, other: socket.socket | None) -> None:
    fresh = directory.with_name(f"{directory.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(mode=0o700)
    try:
        _compile(fresh / _LIBRARY, fresh / "scratch", other)
        probe(Kernels(fresh))
        (fresh / _DIGEST).write_text(_digest(fresh))
        for path in fresh.iterdir():
            path.chmod(0o700)  # what others could write to is not loaded
        shutil.rmtree(directory, ignore_errors=True)  # one that is torn
        fresh.rename(directory)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


@contextmanager
def _alone(path: Path, other: socket.socket | None) -> Iterator[None]:
    """One process at a time."""
    import fcntl

    with path.open("w") as lock:  # it goes with the process, however that ends
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                _rest(other)
        yield


def _rest(other: socket.socket | None) -> None:
    """Wait a moment; SystemExit where the other end has closed."""
    if other is None:
        time.sleep(_PAUSE)
    elif select.select([other], [], [], _PAUSE)[0]:
        raise SystemExit(1)


def _compile(library: Path, scratch: Path, other: socket.socket | None) -> None:
    source = str(Path(__file__).with_suffix(".c"))
    places = ("TMPDIR", "ZIG_GLOBAL_CACHE_DIR", "ZIG_LOCAL_CACHE_DIR")
    environment = {**os.environ, **dict.fromkeys(places, str(scratch))}
    scratch.mkdir()
    said = scratch / "said"
    errors = []
    for compiler in _compilers():
        for machine in (["-march=native"], []):  # not every compiler knows every machine
            command = [*compiler, *_FLAGS, *machine, "-o", str(library), source, "-lm"]
            if _run(command, environment, said, other) == 0:
                shutil.rmtree(scratch)
                return
            errors.append(f"{shlex.join(command)}\n{said.read_text(errors='replace')}")
    raise RuntimeError("\n".join(errors) or "there is no C compiler")


def _run(command: list[str], environment: dict[str, str], said: Path, other: socket.socket | None) -> int:
    """The exit status of a compiler, which is ended where it takes too long or nobody wants it any more."""
    with said.open("wb") as file:
        process = subprocess.Popen(  # noqa: S603 - the user's own compiler
            command, env=environment, stdin=subprocess.DEVNULL, stdout=file, stderr=file, process_group=0
        )
    end = time.monotonic() + _PATIENCE
    try:
        while process.poll() is None and time.monotonic() < end:
            _rest(other)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)  # with what it has started
            process.wait()
    return process.returncode


def _compilers() -> Iterator[list[str]]:
    """$CC, or those that machines have, and the one that `pip install 'optwatch[compiled]'` brings."""
    if chosen := shlex.split(os.environ.get("CC", "")):
        if shutil.which(chosen[0]):
            yield chosen
    elif sys.platform == "linux":  # on macOS, one that is not installed asks the user to install it
        yield from ([name] for name in ("cc", "gcc", "clang") if shutil.which(name))
    if find_spec("ziglang") is not None:
        yield [sys.executable, "-P", "-m", "ziglang", "cc"]


def probe(kernels: Kernels) -> None:
    """Measure random tensors, and some with numbers that are none, and hold the results against numpy's.

    Raises:
        RuntimeError: a result is wrong, or the library has changed how this process reckons.
    """
    _check_subnormals()
    random = np.random.default_rng(0)
    sizes = [1, 7, LEAF - 1, LEAF, LEAF + 1, 5 * LEAF + 3]
    for kind in (F32, BF16):
        tensors = [random.standard_normal((4, n)).astype(np.float32) for n in sizes]
        for of in tensors:
            np.abs(of[2], out=of[2])
            of.view(np.uint32)[:] &= np.uint32(0xFFFF0000)  # also in bfloat16 they are exact
        exact = zip(*(_by_definition(*of.astype(np.float64)) for of in tensors), strict=True)
        *found, counts = _measured(kernels, kind, tensors)
        if not all(map(partial(np.allclose, rtol=1e-4, atol=1e-4), found, exact)):
            raise RuntimeError("the compiled pass computes something else")
        if counts.any():
            raise RuntimeError("the compiled pass counts what is not there")
    for bad in (np.inf, -np.inf, np.nan):
        of = np.ones((4, LEAF + 9), np.float32)
        of[:3, 5] = bad
        sums, stats, counts = _measured(kernels, F32, [of])
        if np.isfinite([sums[0, 0], stats[0, 0]]).any() or counts.tolist() != [[[0, 1, 2]]] * 2:
            raise RuntimeError("the compiled pass misses what is not finite")
    _check_subnormals()


def _check_subnormals() -> None:
    if np.float32(1e-40) * np.float32(1) == 0:
        raise RuntimeError("with the compiled pass, subnormal numbers count for zeros")


def _measured(kernels: Kernels, kind: int, tensors: list[F4]) -> tuple[F8, F4, U8]:
    """Sums, statistics, and the counts beside each, of tensors, given as f4[4, n]: gradient, first and
    second moment, parameter."""
    held = [(of.view(np.uint32) >> 16).astype(np.uint16) if kind == BF16 else of for of in tensors]
    where = Tensors(itself=False)
    where.rows.extend(range(len(held)))
    where.sizes.extend(of.shape[1] for of in held)
    where.common_of.extend(0 for _ in held)
    for k, column in enumerate(where.addresses):
        column.extend(of[k].ctypes.data for of in held)
    common = Common((kind,) * 4, (True,) * SUMS, (0.0, -0.1, 0.0, 1.0, 1e-8, 0.0, 1.0, 1e-8, 1e-7))
    where.commons[common] = 0
    numel, sums = np.empty(len(held)), np.empty((len(held), SUMS))
    seen, stats = np.empty(sums.shape, dtype=np.bool_), np.empty(sums.shape, dtype=np.float32)
    counts = np.empty((2, len(held), COUNTS), dtype=np.uint64)
    kernels.add_up(where, numel, sums, seen, counts[0])
    kernels.measure(where, stats, counts[1])
    return sums, stats, counts


def _by_definition(g: F8, m: F8, v: F8, p: F8) -> tuple[list[float], list[float]]:
    """Sums with the peaks, and the statistics that they come to."""
    root = np.sqrt(v)
    update = -0.1 * m / (root + 1e-8)
    ratio = g / np.maximum(root, 1e-8)
    g_max, v_min, v_max, p_max = np.abs(g).max(), v.min(), v.max(), np.abs(p).max()
    few = np.count_nonzero(root < 1e-7)
    sums = [
        g @ g,
        g_max,
        m @ m,
        v.sum(),
        v_min,
        v_max,
        p @ p,
        p_max,
        update @ update,
        ratio @ ratio,
        g @ m,
        few,
    ]
    g_rms, m_rms, p_rms, update_rms, rms_t = (np.sqrt((x @ x) / x.size) for x in (g, m, p, update, ratio))
    cosine = (g @ m) / np.sqrt((g @ g) * (m @ m))
    stats = [
        g_rms,
        g_max,
        m_rms,
        v.mean(),
        v_min,
        v_max,
        p_rms,
        p_max,
        update_rms,
        rms_t,
        cosine,
        few / g.size,
    ]
    return sums, stats


if __name__ == "__main__":
    os.nice(10)
    build(Path(sys.argv[1]), socket.socket(fileno=0) if sys.argv[2:] == ["watched"] else None)

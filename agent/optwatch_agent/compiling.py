"""Compiles `kernels` in a process of its own: `python -P compiling.py SOURCE DIRECTORY`.

numba's cache is not safe for several processes that write it at once: a training that loads what they left
may die. So one process at a time compiles, in a directory that no other one reads. Then a fresh
interpreter loads what is there, as a training does, and tries it. Only after that the directory gets its
name, and nothing in it is written again. Imports neither torch nor the rest of the agent.
"""

import importlib.util
import os
import shutil
import sys
from pathlib import Path
from typing import Any

NAME = "optwatch_compiled_kernels"
"""Of the loaded module: it is a copy of `kernels`, at another place."""


def load(directory: Path) -> Any:
    """The module that a directory holds. It compiles where nothing was compiled before."""
    spec = importlib.util.spec_from_file_location(NAME, directory / "kernels.py")
    assert spec is not None
    assert spec.loader is not None
    sys.modules[NAME] = module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[NAME]
        raise
    return module


def is_from_cache(kernels: Any) -> bool:
    """Whether it was loaded, and not compiled anew."""
    stats = kernels.measure.stats
    return bool(stats.cache_hits) and not stats.cache_misses


def build(source: Path, directory: Path) -> None:
    """Compile into a directory beside the one that is wanted, and go on to try it in a new interpreter."""
    import fcntl

    directory.parent.mkdir(parents=True, exist_ok=True)
    lock = os.open(directory.parent / "compiling.lock", os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)  # goes with the process, however it ends
    if directory.exists():
        return
    fresh = directory.with_name(f"{directory.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(mode=0o700)
    shutil.copyfile(source, fresh / "kernels.py")
    load(fresh)
    os.set_inheritable(lock, True)
    os.execv(sys.executable, [sys.executable, "-P", __file__, str(fresh), str(directory), "try"])  # noqa: S606


def accept(fresh: Path, directory: Path) -> None:
    """Give a directory its name if what is in it loads and computes what it should.

    Raises:
        RuntimeError: it does not.
    """
    kernels = load(fresh)
    if not is_from_cache(kernels):
        raise RuntimeError("numba did not find what it had compiled")
    probe(kernels)
    fresh.rename(directory)


def probe(kernels: Any) -> None:
    """Measure random tensors and hold some of the results against numpy's.

    Raises:
        RuntimeError: a result is wrong.
    """
    import numpy as np

    random = np.random.default_rng(0)
    sizes = [1, 7, kernels.LEAF - 1, kernels.LEAF, kernels.LEAF + 1, 5 * kernels.LEAF + 3]
    for kind in (kernels.F32, kernels.BF16):
        tensors = [[random.standard_normal(n).astype(np.float32) for _ in range(4)] for n in sizes]
        for of in tensors:
            np.abs(of[2], out=of[2])
            for values in of:  # also in bfloat16 they are exact
                values.view(np.uint32)[:] &= np.uint32(0xFFFF0000)
        held = tensors
        if kind == kernels.BF16:
            held = [[(x.view(np.uint32) >> 16).astype(np.uint16) for x in of] for of in tensors]
        out = np.empty((len(sizes), kernels.COLUMNS))
        kernels.measure(
            np.array([[of[k].ctypes.data for of in held] for k in range(4)], dtype=np.int64),
            np.array(sizes),
            np.zeros(len(sizes), dtype=np.int64),
            np.full((1, 4), kind),
            np.array([[0.0, -0.1, 0.0, 1.0, 1e-8, 1e-8, 1e-7]], dtype=np.float32),
            out,
        )
        for row, of in zip(out, tensors, strict=True):
            g, m, v, p = (x.astype(np.float64) for x in of)
            update = -0.1 * m / (np.sqrt(v) + 1e-8)
            pairs = {
                kernels.GRAD: g @ g,
                kernels.FIRST: m @ m,
                kernels.SECOND: v.sum(),
                kernels.PARAM: p @ p,
                kernels.UPDATE: update @ update,
            }
            if not np.allclose(row[list(pairs)], list(pairs.values()), rtol=1e-4, atol=0):
                raise RuntimeError("the compiled pass computes something else")


def main() -> None:
    if hasattr(os, "nice"):
        os.nice(10)
    if sys.argv[3:]:
        accept(Path(sys.argv[1]), Path(sys.argv[2]))
    else:
        build(Path(sys.argv[1]), Path(sys.argv[2]))


if __name__ == "__main__":
    main()

"""How the compiled pass comes about: built in a process of its own, tried, and loaded by all that come."""

import logging
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from optwatch_agent import compiled, kernels
from optwatch_agent.kernels import Kernels, Tensors

pytestmark = [
    pytest.mark.skipif(not kernels.can_build(), reason="no C compiler"),
    pytest.mark.usefixtures("home", "wanted"),
]

NEVER_ENDS = (
    f'{sys.executable} -c \'import os, time; os.mkdir(os.environ["TMPDIR"] + "/begun"); time.sleep(600)\''
)
"""A compiler that begins and never ends."""


@pytest.fixture
def wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where nobody keeps it off."""
    monkeypatch.delenv("OPTWATCH_COMPILED")


def until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def prepared(ended: bool = True) -> compiled.Compiler:
    """One that is used, and has loaded the pass or given up, if it has `ended`."""
    compiler = compiled.Compiler()
    compiler.prepare()
    if ended:
        wait_for(compiler)
    return compiler


def wait_for(compiler: compiled.Compiler) -> None:
    """Until it has loaded the pass or given up."""
    until(lambda: compiler.reap() or compiler._build is None)


def in_work() -> Path:
    """Where a process that compiles is at work."""
    return compiled.directory().with_name(f"{compiled.directory().name}.new")


def has_begun() -> bool:
    return (in_work() / "scratch" / "begun").exists()


def test_the_training_that_has_it_compiled_takes_it_up_and_all_after_it() -> None:
    compiler = prepared(ended=False)
    assert compiler.kernels is None
    wait_for(compiler)
    assert compiler.kernels is not None, compiler.why_not
    later = prepared(ended=False)
    assert later.kernels is not None
    kernels.probe(later.kernels)


def test_of_several_that_come_at_once_one_compiles() -> None:
    compilers = [prepared(ended=False) for _ in range(3)]
    for compiler in compilers:
        wait_for(compiler)
        assert compiler.kernels is not None, compiler.why_not
    names = {path.name for path in compiled.directory().parent.iterdir()}
    assert names == {compiled.directory().name, "compiling.lock"}  # nothing half done


class WrongSum(Kernels):
    """One number is a little too large."""

    def add_up(self, tensors: Tensors, *results: Any) -> None:
        super().add_up(tensors, *results)
        results[1][-1, 0] *= 1.01


class WrongStatistic(Kernels):
    """One number is a little too large."""

    def measure(self, tensors: Tensors, *results: Any) -> tuple[float, float]:
        norms = super().measure(tensors, *results)
        results[0][-1, 0] *= 1.01
        return norms


class Blind(Kernels):
    """It takes what is not finite for finite."""

    def measure(self, tensors: Tensors, *results: Any) -> tuple[float, float]:
        norms = super().measure(tensors, *results)
        results[1][:] = 0
        return norms


@pytest.mark.parametrize(
    ("kind", "message"),
    [(WrongSum, "something else"), (WrongStatistic, "something else"), (Blind, "not finite")],
)
def test_a_pass_that_computes_something_else_is_not_accepted(kind: type[Kernels], message: str) -> None:
    kernels.build(compiled.directory())
    with pytest.raises(RuntimeError, match=message):
        kernels.probe(kind(compiled.directory()))


@pytest.mark.parametrize("options", ["-ffast-math", "-ffinite-math-only", "-Ofast"])
def test_numbers_stay_what_they_are_whatever_the_users_compiler_is_told(
    options: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some ways to link a library make zeros of subnormal numbers, in the whole process."""
    monkeypatch.setenv("CC", f"cc {options}")
    if shutil.which("cc") is None:
        pytest.skip("no cc")
    compiler = prepared()
    assert compiler.kernels is not None, compiler.why_not
    kernels.probe(compiler.kernels)
    assert float(torch.tensor(1e-40) * 1.0) == pytest.approx(1e-40, rel=1e-3)
    assert float(np.float32(1e-40) * np.float32(1.0)) == pytest.approx(1e-40, rel=1e-3)


def test_the_last_detach_ends_the_process_and_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", NEVER_ENDS)
    compiler = prepared(ended=False)
    compiler.prepare()
    until(has_begun)
    compiler.release()
    compiler.reap()
    assert compiler._build is not None
    compiler.release()
    assert compiler._build is None
    until(lambda: not in_work().exists())


TRAINING = """
import os, sys
from optwatch_agent import compiled
compiler = compiled.Compiler()
compiler.prepare()
assert compiler._build is not None, compiler.why_not
try:
    os.wait()
except ChildProcessError:
    print("no child", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_it_is_no_child_of_the_training_and_ends_with_it(
    number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CC", NEVER_ENDS)
    with subprocess.Popen(
        [sys.executable, "-c", TRAINING], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as training:
        assert training.stdout is not None
        assert training.stdout.readline() == "no child\n"
        until(has_begun)
        training.send_signal(number)
    until(lambda: not in_work().exists())


FORKED = """
import os, time
from optwatch_agent.compiled import COMPILER
COMPILER.prepare()
assert COMPILER._build is not None, COMPILER.why_not
if (pid := os.fork()) == 0:
    assert COMPILER._build is None and not COMPILER.why_not
    COMPILER.prepare()
    COMPILER.release()
    os._exit(0)
assert os.waitpid(pid, 0)[1] == 0
while COMPILER._build is not None:
    time.sleep(0.01)
    COMPILER.reap()
assert COMPILER.kernels is not None, COMPILER.why_not
"""


def test_a_forked_process_leaves_it_to_the_other_one() -> None:
    subprocess.run([sys.executable, "-c", FORKED], check=True, timeout=300)


def test_the_process_that_compiles_needs_no_torch() -> None:
    code = f"import runpy, sys; runpy.run_path({kernels.__file__!r}); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-P", "-c", code], check=True, timeout=300)


def test_what_others_could_have_written_is_not_loaded() -> None:
    kernels.build(compiled.directory())
    for path in (compiled.directory(), *compiled.directory().iterdir()):
        before = path.stat().st_mode
        path.chmod(0o770)
        compiler = prepared()
        assert compiler.kernels is None
        assert compiler.why_not == f"others may write to {compiled.directory()}"
        path.chmod(before)
    assert prepared(ended=False).kernels is not None


@pytest.mark.parametrize("size", [None, 0, 4096, 12_288])
def test_a_library_that_is_torn_is_built_anew(size: int | None) -> None:
    """To load one may end the process."""
    kernels.build(compiled.directory())
    library = compiled.directory() / "kernels.so"
    if size is None:
        library.unlink()
    else:
        library.write_bytes(library.read_bytes()[:size])
    assert prepared().kernels is not None


def without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("CC", "no-such-compiler")
    monkeypatch.setattr(kernels, "find_spec", lambda _: None)
    return "there is no C compiler; pip install 'optwatch[compiled]' brings one"


def kept_off(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("OPTWATCH_COMPILED", "0")
    return "OPTWATCH_COMPILED is 0"


def without_a_place(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null")
    return "it could not be compiled; to see why: "


def with_one_that_fails(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("CC", "false")
    monkeypatch.setattr(kernels, "find_spec", lambda _: None)
    return "it could not be compiled; to see why: "


def in_an_application(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(sys, "executable", "/opt/train/train")
    return "/opt/train/train is no Python that could do it"


NOT_THERE = [without_a_compiler, kept_off, in_an_application]
BROKEN = [without_a_place, with_one_that_fails]


@pytest.mark.parametrize("spoil", [*NOT_THERE, *BROKEN])
def test_without_it_the_base_path_measures_and_what_is_broken_is_logged(
    spoil: Callable[[pytest.MonkeyPatch], str],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "optwatch")
    why_not = spoil(monkeypatch)
    compiler = prepared()
    assert compiler.kernels is None
    assert compiler.why_not.startswith(why_not)
    assert (why_not in caplog.text) == (spoil in BROKEN)
    compiler.prepare()  # not again
    assert compiler._build is None

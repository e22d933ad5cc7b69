"""`optwatch run` beside `python`: the same script must not be able to tell the difference."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.daemons import GUARD

ABOUT = """
import __main__, sys
print(__name__, __file__, __package__, __spec__ and __spec__.name, type(__loader__).__name__, sys.argv)
print(sorted(globals()), __main__.__dict__ is globals(), sys.path[:2], "torch" in sys.modules)
"""
FAILS = """
def inner():
    raise ValueError("from inside")
try:
    {}["missing"]
except KeyError as error:
    raise RuntimeError("broken") from error
"""
HOOK = """
import sys
sys.excepthook = lambda kind, error, trace: print("hooked", kind.__name__, trace.tb_frame.f_code.co_name)
raise ValueError
"""
SPAWNS = """
import multiprocessing, threading, time
def square(x):
    return x * x
class Thing:
    pass
if __name__ == "__main__":
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        print(pool.map(square, [3]))
    import pickle
    def late():
        time.sleep(0.2)
        print(type(pickle.loads(pickle.dumps(Thing()))).__name__)
    threading.Thread(target=late).start()
"""
SCRIPTS = {
    "about": ABOUT,
    "fails": FAILS,
    "hook": HOOK,
    "spawns": SPAWNS,
    "syntax": "x = = 1",
    "leaves": "import sys; sys.exit(7)",
    "leaves_with_text": "raise SystemExit('some text')",
    "stdin": "print(input() + '!')",
    "interrupted": "import os, signal; os.kill(os.getpid(), signal.SIGINT); import time; time.sleep(9)",
    "broken_pipe": "raise BrokenPipeError('mine')",
    "future": "def f(x: Undefined = 1): pass",
    "at_exit": "import atexit, __main__; atexit.register(lambda: print('end', __main__.x)); x = 1",
    "warns": "import warnings; warnings.warn('look out')",
}
OURS = "optwatch run: torch was not imported, so nothing was watched\n"


def outcome(*command: str, cwd: Path) -> tuple[int, str, str]:
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=2 * GUARD, cwd=cwd, input="a line\n"
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_runs_as_under_python(home: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / f"{name}.py").write_text(SCRIPTS[name])
    arguments = [f"{name}.py", "--name", "x y", "-m"]
    status, out, err = outcome(sys.executable, *arguments, cwd=tmp_path)
    command = Path(sys.executable).with_name("optwatch")
    assert outcome(str(command), "run", "--", *arguments, cwd=tmp_path) == (status, out, err + OURS)


@pytest.mark.parametrize("module", ["package.about", "package", "package.sibling", "package.fails"])
def test_a_module_runs_as_under_python(home: Path, tmp_path: Path, module: str) -> None:
    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").write_text("import sys; print('imported', sys.argv)")
    (package / "__main__.py").write_text(ABOUT)
    (package / "about.py").write_text(ABOUT)
    (package / "sibling.py").write_text("from . import other; from .other import VALUE; print(VALUE)")
    (package / "other.py").write_text("VALUE = 42")
    (package / "fails.py").write_text(FAILS)
    arguments = ["-m", module, "--flag", "x"]
    status, out, err = outcome(sys.executable, *arguments, cwd=tmp_path)
    frames_of_runpy = [line for line in err.splitlines(keepends=True) if "<frozen runpy>" not in line]
    for way in ([sys.executable, "-m", "optwatch"], [str(Path(sys.executable).with_name("optwatch"))]):
        done = outcome(*way, "run", *arguments, cwd=tmp_path)
        assert done == (status, out, "".join(frames_of_runpy) + OURS)


def test_ctrl_c_from_outside_ends_it_as_python_ends(home: Path, tmp_path: Path) -> None:
    (tmp_path / "waits.py").write_text("import time\nprint('here', flush=True)\ntime.sleep(600)\n")
    with subprocess.Popen(
        [sys.executable, "-m", "optwatch", "run", "--", "waits.py"],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stdout.readline() == "here\n"
        os.kill(process.pid, signal.SIGINT)
        _, err = process.communicate(timeout=GUARD)
    assert process.returncode == -signal.SIGINT
    assert err.rstrip().splitlines()[-2] == "KeyboardInterrupt"
    assert "optwatch/" not in err

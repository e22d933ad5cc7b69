"""The wheel as a stranger gets it, in a clean environment beside this one: python -m tests.package WHEEL

It is installed with its screens, without torch; the commands answer, the daemon starts and ends, the terminal
UI is there, and a user's script that asks for types is given them (mypy --strict, of this environment).
"""

import os
import signal
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

USER = '''
"""A user's script, typed."""

from optwatch.client import Client
from optwatch.wire.actions import Command
from optwatch.wire.findings import Finding


def alarms(run: str) -> list[str]:
    with Client() as client:
        return [finding.summary for finding in client.findings(run) if finding.severity == "critical"]


def heard(item: Finding | Command) -> None:
    print(item.run)


reveal_type(alarms("digits"))
'''


def main() -> None:
    wheel = Path(sys.argv[1]).resolve()
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        venv.create(directory / "clean", with_pip=True)
        binaries = directory / "clean" / "bin"
        environment = {"HOME": name, "PATH": f"{binaries}:{os.defpath}"}

        def run(*command: str, status: int = 0) -> str:
            done = subprocess.run(
                command, cwd=directory, env=environment, capture_output=True, text=True, timeout=600
            )
            assert done.returncode == status, f"{command}: {done.stdout}{done.stderr}"
            return done.stdout + done.stderr

        subprocess.run(  # by the settings of this user: it may take an index of its own to get there
            [
                binaries / "python",
                "-m",
                "pip",
                "--quiet",
                "--disable-pip-version-check",
                "install",
                f"{wheel}[tui]",
            ],
            check=True,
        )
        assert "optwatch demo" in run("optwatch", "--help")
        run("python", "-c", "import optwatch, optwatch_tui.app")
        assert "needs PyTorch" in run("python", "-c", "import optwatch; optwatch.attach", status=1)
        daemon = subprocess.Popen(
            ["optwatch", "daemon", "--listen", "tcp://127.0.0.1:0"],
            cwd=directory,
            env=environment,
            executable=binaries / "optwatch",
            stdout=subprocess.PIPE,
            text=True,
        )
        assert daemon.stdout is not None
        assert "listening on" in daemon.stdout.readline()
        assert run("optwatch", "runs", "--json").strip() == "[]"
        daemon.send_signal(signal.SIGTERM)
        assert daemon.wait(30) == 0
        (directory / "user.py").write_text(USER)
        checked = subprocess.run(
            [sys.executable, "-m", "mypy", "--strict", "--python-executable", binaries / "python", "user.py"],
            cwd=directory,
            capture_output=True,
            text=True,
        )
        assert checked.returncode == 0, checked.stdout + checked.stderr
        assert 'Revealed type is "list[str]"' in checked.stdout.replace("builtins.", ""), checked.stdout
    print(f"{wheel.name}: installs, answers, serves, and is typed")


if __name__ == "__main__":
    main()

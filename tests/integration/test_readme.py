"""What the README says is there, is there."""

import argparse
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path

import pytest
import torch

from optwatch.cli import SUBCOMMANDS
from optwatch.client import Client, DaemonError
from tests.daemons import GUARD
from tests.integration.test_cli_runs import ask

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
ROWS = [re.split(r"(?<!\\)\|", line)[1:3] for line in README.splitlines() if line.startswith("| `optwatch ")]
FENCED = re.findall(r"^```(\w*)\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
"""(language, text) of each code block."""
BLOCKS = [text for language, text in FENCED if language == "python"]
SHELL = [text for language, text in FENCED if language == "sh"]


def named(cell: str) -> list[str]:
    """The subcommands of a cell: `optwatch runs`, `status` are two."""
    return [span.removeprefix("optwatch ").split()[0] for span in re.findall(r"`([^`]+)`", cell)]


def test_the_table_names_every_command_and_no_other() -> None:
    assert {name for command, _ in ROWS for name in named(command)} == set(SUBCOMMANDS)


@pytest.mark.parametrize(("command", "text"), ROWS)
def test_the_options_of_the_table_are_there(command: str, text: str) -> None:
    for name in named(command):
        parser = argparse.ArgumentParser()
        import_module(SUBCOMMANDS[name]).configure(parser)
        for option in re.findall(r"`(--[a-z-]+)", text):
            assert option in parser.format_help(), name


def test_the_make_targets_are_there() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    used = set(re.findall(r"(?:^|`)make ([a-z-]+)", README, re.MULTILINE))
    assert {"demo", "test", "help"} <= used <= targets


@pytest.mark.parametrize("code", BLOCKS, ids=range(len(BLOCKS)))
def test_the_python_blocks_run(code: str) -> None:
    model = torch.nn.Linear(2, 1)
    names = {
        "model": model,
        "optimizer": torch.optim.Adam(model.parameters(), lr=1e-3),
        "val_loss": 0.5,
        "run": print,
    }
    exec(f"import optwatch\n{code}", names)
    names["watch"].detach()  # type: ignore[attr-defined]


def test_there_are_rows_and_no_block_is_left_out() -> None:
    assert len(ROWS) > 8
    assert len(BLOCKS) == 2
    assert len(SHELL) == 4
    (drawing,) = (text for language, text in FENCED if language not in ("python", "sh"))
    assert "→" in drawing  # nothing that could be run


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_two_commands(home: Path) -> None:
    """With this environment, which is set up already; of the second only what it would run: these tests."""
    two = SHELL[0]
    assert [line.split("#")[0].split() for line in two.splitlines()] == [["make", "demo"], ["make", "test"]]
    made = [f"VENV={sys.prefix}", "-o", f"{sys.prefix}/installed", "-o", f"{sys.prefix}/developed"]
    demo = subprocess.run(
        ["make", "demo", *made], cwd=ROOT, capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    assert demo.returncode == 0, demo.stderr
    assert "lr_spike" in demo.stdout
    test = subprocess.run(["make", "-n", "test", *made], cwd=ROOT, capture_output=True, text=True)
    assert f"{sys.prefix}/bin/python -m pytest" in test.stdout


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_five_minutes_with_a_script(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Start, look, ask and act, as the text goes: each block is given to a shell as it stands."""
    (home / ".venv").symlink_to(sys.prefix)
    (home / "examples").symlink_to(ROOT / "examples")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    start, look, act = SHELL[1:]
    with (home / "out").open("w") as out:
        first = subprocess.Popen(
            ["bash", "-eu", "-c", start], cwd=home, stdout=out, stderr=out, start_new_session=True
        )
    try:
        assert first.wait(GUARD) == 0
        monkeypatch.setenv("PATH", f"{sys.prefix}/bin:{os.environ['PATH']}")
        end = time.monotonic() + 4 * GUARD
        while steps_of("digits-mlp") < 100:
            assert time.monotonic() < end, (home / "out").read_text()
            time.sleep(0.5)
        assert "digits-mlp" in seen_in_a_terminal(look, home)
        done = subprocess.run(
            ["bash", "-eu", "-c", act], cwd=home, capture_output=True, text=True, timeout=4 * GUARD
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert "1 scale_lr" in done.stdout
        commands = [(command["action"], command["state"]) for command in ask("commands", "digits-mlp")]
        assert commands[:2] == [("scale_lr", "undone"), ("scale_lr", "applied")]
        assert list((home / "runs").rglob("events.out.tfevents.*"))
    finally:
        os.killpg(first.pid, signal.SIGTERM)


def steps_of(run: str) -> int:
    try:
        with Client() as client:
            return client.status(run).step
    except DaemonError:  # there is no daemon, or no such run, yet
        return 0


def seen_in_a_terminal(command: str, directory: Path) -> str:
    """What a shell command draws in a terminal, until the run's name is there; then `q` is pressed."""
    ours, theirs = pty.openpty()
    shell = subprocess.Popen(
        ["bash", "-c", command],
        cwd=directory,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
        env=os.environ | {"TERM": "xterm-256color", "COLUMNS": "100", "LINES": "30"},
    )
    os.close(theirs)
    drawn, end = "", time.monotonic() + 2 * GUARD
    try:
        while "digits-mlp" not in drawn and time.monotonic() < end:
            if select.select([ours], [], [], 1)[0]:
                drawn += os.read(ours, 65_536).decode(errors="replace")
        os.write(ours, b"q")
        while shell.poll() is None and time.monotonic() < end:
            if select.select([ours], [], [], 0.2)[0]:
                try:
                    os.read(ours, 65_536)
                except OSError:  # the terminal is gone with its last process
                    break
        assert shell.wait(GUARD) == 0
    finally:
        shell.kill()
        os.close(ours)
    return drawn

"""`optwatch tui` as it is typed."""

import os
import subprocess
import sys
from pathlib import Path


def tui(*args: str, **env: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "optwatch", "tui", *args],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, **env},
        check=False,
    )


def test_an_address_that_cannot_be_parsed() -> None:
    result = tui("nonsense")
    assert result.returncode == 2
    assert "cannot parse the address 'nonsense'" in result.stderr
    assert result.stderr.count("\n") == 1


def test_wrong_settings_are_named_with_their_line(tmp_path: Path) -> None:
    (tmp_path / "optwatch").mkdir()
    (tmp_path / "optwatch" / "tui.toml").write_text("[keys]\nrestrat = 'R'\n")
    result = tui(XDG_CONFIG_HOME=str(tmp_path))
    assert result.returncode == 2
    assert "tui.toml, line 2: there is no action 'restrat', did you mean restart?" in result.stderr
    assert result.stderr.count("\n") == 1


def test_without_a_terminal_it_says_what_to_use_instead() -> None:
    result = tui()
    assert result.returncode == 2
    assert "needs a terminal" in result.stderr


def test_without_its_extra_it_names_it(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import sys; sys.modules['textual'] = None\n")
    result = tui(PYTHONPATH=f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    assert result.returncode == 2
    assert "pip install 'optwatch[tui]'" in result.stderr
    assert result.stderr.count("\n") == 1


def test_help_shows_an_example() -> None:
    result = tui("--help")
    assert result.returncode == 0
    assert "--readonly" in result.stdout
    assert "example:" in result.stdout

"""`optwatch doctor`, the log as JSON, and the files for services."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from optwatch.cli import main
from optwatch.wire.places import config_dir, state_dir
from tests.daemons import GUARD, DaemonProcess

SERVICE = Path(__file__).parents[2] / "examples" / "service"


def looked_at(capsys: pytest.CaptureFixture[str], wanted: int) -> dict[str, dict[str, str]]:
    assert main(["doctor", "--json"]) == wanted
    return {check["name"]: check for check in json.loads(capsys.readouterr().out)}


def test_all_is_well_with_a_daemon(daemon: DaemonProcess, capsys: pytest.CaptureFixture[str]) -> None:
    checks = looked_at(capsys, 0)
    assert {"Python", "ZeroMQ", "user's key", "daemon's key", "daemon", "clocks", "disk", "store"} <= set(
        checks
    )
    assert [name for name, check in checks.items() if check["verdict"] == "wrong"] == []
    assert daemon.address in checks["daemon"]["found"]
    assert main(["doctor"]) == 0
    assert "✓" in capsys.readouterr().out


def test_what_is_wrong_is_named_with_its_remedy(
    daemon: DaemonProcess, capsys: pytest.CaptureFixture[str]
) -> None:
    daemon.kill()
    key = config_dir() / "keys" / "daemon.json"
    key.chmod(0o644)
    for path in state_dir().glob("optwatch.db-*"):  # what the killed one had in it would mend the file
        path.unlink()
    (state_dir() / "optwatch.db").write_bytes(b"no database" * 1_000)
    checks = looked_at(capsys, 1)
    assert "chmod 600" in checks["daemon's key"]["found"]
    assert checks["daemon"]["verdict"] == "wrong"
    assert "optwatch store check" in checks["store"]["remedy"]


def test_nothing_there_yet_is_nothing_wrong(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checks = looked_at(capsys, 0)
    assert checks["daemon"]["verdict"] == "look"
    assert "optwatch daemon" in checks["daemon"]["remedy"]


@pytest.mark.skipif(find_spec("torch") is None, reason="torch is not installed")
def test_it_says_what_is_with_the_compiled_pass(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from optwatch_agent import compiled, kernels

    assert looked_at(capsys, 0)["compiled pass"]["found"] == "kept off"
    monkeypatch.delenv("OPTWATCH_COMPILED")
    if kernels.can_build():
        assert "not built yet" in looked_at(capsys, 0)["compiled pass"]["found"]
        kernels.build(compiled.directory())
        assert looked_at(capsys, 0)["compiled pass"]["found"] == f"in {compiled.directory()}"
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / "another"))
    monkeypatch.setattr(kernels, "can_build", lambda: False)
    found = looked_at(capsys, 0)["compiled pass"]
    assert found["verdict"] == "look"
    assert "optwatch[compiled]" in found["remedy"]


def test_the_log_is_json_where_it_is_asked_for(daemon: DaemonProcess) -> None:
    daemon.stop()
    daemon.log.unlink()
    daemon.options = ("--log-format", "json")
    daemon.start()
    assert daemon.stop() == 0
    lines = [json.loads(line) for line in daemon.text().splitlines()]
    assert {"time", "level", "logger", "message"} == set(lines[0])
    assert any("listening on" in line["message"] for line in lines)


def test_the_unit_and_the_container_start_what_there_is(tmp_path: Path) -> None:
    unit = (SERVICE / "optwatch.service").read_text()
    container = (SERVICE / "Containerfile").read_text()
    (start,) = re.findall(r"^ExecStart=(.*)$", unit, re.MULTILINE)
    (entry,) = re.findall(r"^ENTRYPOINT (.*)$", container, re.MULTILINE)
    for command in (shlex.split(start)[1:], json.loads(entry)[1:]):
        tried = subprocess.run(
            [sys.executable, "-m", "optwatch", *command, "--help"],
            capture_output=True,
            timeout=GUARD,
            check=False,
        )
        assert tried.returncode == 0, command
        wrong = subprocess.run(
            [sys.executable, "-m", "optwatch", *command, "--listen", "nowhere"],
            capture_output=True,
            text=True,
            timeout=GUARD,
            check=False,
        )
        assert "cannot parse the address" in wrong.stderr, "an option that is not known"
    if shutil.which("systemd-analyze"):
        here = tmp_path / "optwatch.service"
        here.write_text(unit.replace(shlex.split(start)[0], sys.executable))
        said = subprocess.run(
            ["systemd-analyze", "verify", "--user", "--man=no", str(here)],
            capture_output=True,
            text=True,
            timeout=GUARD,
            check=False,
        )
        assert "optwatch.service" not in said.stderr, said.stderr

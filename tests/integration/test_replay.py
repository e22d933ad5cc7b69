"""`optwatch replay` as a user runs it: real processes, a real daemon, real files."""

import csv
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from optwatch.cli import main
from optwatch.client import Client
from optwatch.wire.frames import SeriesBlocks
from optwatch.wire.places import read_connection
from tests.daemons import GUARD, DaemonProcess
from tests.peers import AgentPeer, values
from tests.unit.detect.series import falling


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "optwatch", *map(str, arguments)]


def replay(*arguments: object, expect: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        command("replay", *arguments), capture_output=True, text=True, timeout=2 * GUARD, check=False
    )
    assert done.returncode == expect, done.stderr
    return done


def ended(client: Client, run: str) -> None:
    """Wait until all of a run was looked at."""
    end = time.monotonic() + GUARD
    while client.status(run).state != "ended":
        assert time.monotonic() < end
        time.sleep(0.02)


def started(client: Client) -> str:
    """Wait until the replay is under way; the id of its run."""
    end = time.monotonic() + GUARD
    while not (runs := client.runs()) or runs[0].step < 20:
        assert time.monotonic() < end
        time.sleep(0.02)
    return runs[0].run


def bits(blocks: SeriesBlocks) -> list[bytes]:
    return [np.ascontiguousarray(block).tobytes() for block in blocks.blocks()]


def plain(finding: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(finding[name] for name in ("kind", "severity", "step", "onset_step", "resolved_step"))


def test_a_log_leads_to_the_findings_of_diagnose_and_to_the_same_bits(
    daemon: DaemonProcess, tmp_path: Path
) -> None:
    loss = falling(3_000)
    loss[700] *= 40
    loss[2_500:] = 2.3 * 1.05 ** np.arange(500)
    norm = np.abs(np.random.default_rng(0).normal(1, 0.1, 3_000))
    norm[900] = np.nan
    log = tmp_path / "bad.csv"
    with log.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("step", "loss", "grad_norm"))
        writer.writerows(zip(range(0, 6_000, 2), loss, norm, strict=True))
    told = subprocess.run(
        command("diagnose", "--json", log), capture_output=True, text=True, timeout=2 * GUARD, check=False
    )
    (diagnosed,) = json.loads(told.stdout)
    assert diagnosed["findings"]

    line = replay(log, "--speed", "max").stdout.splitlines()[-1]
    assert line.startswith("replay of bad.csv: 3,000 of 3,000 steps, run ")
    run = line.split()[-1]
    with daemon.client() as client:
        ended(client, run)
        status = client.status(run)
        assert (status.name, status.allow, status.step) == ("replay of bad.csv", (), 5_998)
        found = [plain(msgspec.to_builtins(each)) for each in client.findings(run)]
        assert found == [plain(each) for each in diagnosed["findings"]]
        _, blocks = client.series(run, columns=("loss", "grad_norm"))
    assert blocks.step.tolist() == list(range(0, 6_000, 2))
    assert blocks.values.tobytes() == np.stack([loss, norm], axis=1).tobytes()
    assert blocks.logged.all()


def test_a_stored_run_comes_again_with_tensors_and_marks(daemon: DaemonProcess) -> None:
    peer = AgentPeer(daemon.address, name="first", tensors=3)
    peer.greet()
    for number in range(6):
        rows = values(7, start=peer.step)
        rows[3, 1] = np.inf
        peer.batch(rows, sampled=number % 2 == 0)
        if number == 2:
            peer.event(peer.step, "stage 2")
    peer.bye()
    peer.wait_acked()
    peer.close()
    run = replay("first", "--speed", "max").stdout.split()[-1]
    with daemon.client() as client:
        ended(client, run)
        (first, one), (again, other) = client.series("first"), client.series(run)
        assert again.columns == first.columns
        assert bits(other) == bits(one)
        (tensors, records), (copies, copied) = client.tensors("first"), client.tensors(run)
        assert copies == tensors
        assert len(records.step) == 3
        assert [block.tobytes() for block in copied.blocks()] == [
            block.tobytes() for block in records.blocks()
        ]
        view, _, _ = client.view(run)
        assert [(mark.step, mark.kind, mark.text) for mark in view.markers] == [(21, "mark", "stage 2")]
        assert client.status(run).optimizers == client.status("first").optimizers
    assert "and there is no run 'fist': there are replay of first, first" in replay("fist", expect=2).stderr


def test_what_cannot_be_replayed_is_said_in_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "below.csv").write_text("step,loss\n-1,2\n0,1\n")
    (tmp_path / "empty").mkdir()
    for what, sentence in (
        ("nothing.csv", "nothing.csv: no such file or directory, and there is no store in"),
        (tmp_path / "below.csv", "below.csv: its first step is -1, and a run has no step below 0"),
        (tmp_path / "empty", "neither TensorBoard files nor an optwatch store"),
    ):
        assert main(["replay", str(what)]) == 2
        said = capsys.readouterr().err
        assert sentence in said
        assert said.count("\n") == 1
    with pytest.raises(SystemExit, match="2"):
        main(["replay", "x", "--speed", "-1"])
    assert "'-1' is no speed: a number such as 20, or max" in capsys.readouterr().err
    assert read_connection() is None, "a daemon was started for nothing"


@pytest.mark.slow
def test_it_goes_on_after_a_restart_of_the_daemon(daemon: DaemonProcess, tmp_path: Path) -> None:
    log = tmp_path / "long.csv"
    log.write_text("loss\n" + "".join(f"{1 + 1e-9 * step}\n" for step in range(300)))
    with subprocess.Popen(
        command("replay", log, "--speed", "10"), stdout=subprocess.PIPE, text=True
    ) as process:
        with daemon.client() as client:
            started(client)
        daemon.kill()
        daemon.start()
        assert process.stdout is not None
        run = process.stdout.read().split()[-1]
        assert process.wait(GUARD) == 0
    with daemon.client() as client:
        status = client.status(run)
        assert (status.steps_recorded, status.gaps, status.state) == (300, (), "ended")


def test_ctrl_c_ends_the_run(daemon: DaemonProcess, tmp_path: Path) -> None:
    log = tmp_path / "long.csv"
    log.write_text("loss\n" + "1.0\n" * 10_000)
    process = subprocess.Popen(command("replay", log, "--speed", "5"), stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with daemon.client() as client:
        run = started(client)
        process.send_signal(signal.SIGINT)
        assert process.wait(GUARD) == 130
        status = client.status(run)
        assert status.state == "ended"
        assert 20 <= status.steps_recorded < 10_000
        line = process.stdout.read()
        assert line == (f"replay of long.csv: {status.steps_recorded:,} of 10,000 steps, run {status.run}\n")
    process.stdout.close()

"""`optwatch diagnose` as a user runs it: real processes over real files."""

import csv
import gzip
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.unit.detect.series import F8, falling


def diagnose(*arguments: object, expect: int) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "optwatch", "diagnose", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == expect, done.stderr
    return done


def as_json(*arguments: object, expect: int) -> list[dict[str, Any]]:
    shapes: list[dict[str, Any]] = json.loads(diagnose("--json", *arguments, expect=expect).stdout)
    return shapes


def kinds(shape: dict[str, Any]) -> list[str]:
    return [finding["kind"] for finding in shape["findings"]]


@pytest.fixture
def exploding() -> F8:
    loss = falling(300)
    loss[200:] = 2.3 * 1.5 ** np.arange(100)
    return loss


def write_csv(path: Path, **columns: Any) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))
    return path


def test_the_shape_and_the_exit_codes(tmp_path: Path, exploding: F8) -> None:
    bad = write_csv(tmp_path / "bad.csv", step=range(300), loss=exploding)
    good = write_csv(tmp_path / "good.csv", step=range(300), loss=falling(300))
    (shape,) = as_json(bad, expect=1)
    assert shape["path"] == str(bad)
    assert shape["points"] == 300
    assert kinds(shape) == ["divergence"]
    finding = shape["findings"][0]
    assert finding["severity"] == "critical"
    assert finding["onset_step"] in (200, 201)
    assert finding["causes"][0]["because"]
    assert finding["remedies"]
    assert as_json(good, expect=0) == [{"path": str(good), "points": 300, "findings": []}]
    assert [shape["path"] for shape in as_json(bad, good, expect=1)] == [str(bad), str(good)]


def test_the_report_shows_the_curve_and_the_cause(tmp_path: Path, exploding: F8) -> None:
    text = diagnose(write_csv(tmp_path / "a.csv", loss=exploding), expect=1).stdout
    assert "✖ divergence" in text
    assert "█" in text
    assert "cause  lr_too_high" in text
    assert "no step column" in text


def test_empty_cells_were_not_logged_and_nan_was_non_finite(tmp_path: Path) -> None:
    cells = [f"{value}" for value in falling(100)]
    cells[40:60] = [""] * 20
    assert as_json(write_csv(tmp_path / "gap.csv", loss=cells), expect=0)[0]["findings"] == []
    cells[50] = "nan"
    assert kinds(as_json(write_csv(tmp_path / "nan.csv", loss=cells), expect=1)[0]) == ["non_finite"]
    never = write_csv(tmp_path / "never.csv", loss=falling(50), grad_norm=["nan"] * 50)
    assert as_json(never, expect=0)[0]["findings"] == []
    assert "grad_norm: not one finite value" in diagnose(never, expect=0).stdout


def test_other_headers_and_separators(tmp_path: Path, exploding: F8) -> None:
    path = tmp_path / "odd.csv.gz"
    with gzip.open(path, "wt") as file:
        file.write("Global Step;ce;Learning-Rate\n")
        file.writelines(f"{i};{value};0.1\n" for i, value in enumerate(exploding))
    assert "loss" in diagnose(path, expect=2).stderr
    assert kinds(as_json(path, "--column", "loss=ce", expect=1)[0]) == ["divergence"]
    assert "'nothing'" in diagnose(path, "--column", "loss=nothing", expect=2).stderr
    assert "NAME=HEADER" in diagnose(path, "--column", "loss", expect=2).stderr


def test_json_lines_and_a_trainer_state(tmp_path: Path, exploding: F8) -> None:
    lines = tmp_path / "log.jsonl"
    lines.write_text(
        "".join(json.dumps({"step": i, "train": {"loss": x}}) + "\n" for i, x in enumerate(exploding))
    )
    assert kinds(as_json(lines, expect=1)[0]) == ["divergence"]
    history: list[dict[str, float]] = [
        {"step": i, "loss": x, "learning_rate": 1e-3} for i, x in enumerate(exploding)
    ]
    history += [{"step": i, "eval_loss": 1.0} for i in range(0, 300, 50)]
    state = tmp_path / "trainer_state.json"
    state.write_text(json.dumps({"log_history": history}))
    (shape,) = as_json(state, expect=1)
    assert shape["points"] == 300
    assert kinds(shape) == ["divergence"]


def test_tensorboard_directories(tmp_path: Path, exploding: F8) -> None:
    tensorboard = pytest.importorskip("tensorboard.summary.writer.event_file_writer")
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary

    for run, loss in (("a", exploding), ("b", falling(300))):
        writer = tensorboard.EventFileWriter(str(tmp_path / run))
        for step, value in enumerate(loss):
            summary = Summary(value=[Summary.Value(tag="loss/train", simple_value=value)])
            writer.add_event(Event(wall_time=1.0, step=step, summary=summary))
        writer.close()
    shapes = as_json(tmp_path, expect=1)
    assert [kinds(shape) for shape in shapes] == [["divergence"], []]
    assert [shape["points"] for shape in shapes] == [300, 300]


def test_bad_input_is_one_sentence(tmp_path: Path) -> None:
    for name, content in {
        "empty.csv": "",
        "word.csv": "step,loss\n1,2.0\n2,high\n",
        "short.csv": "step,loss\n1,2.0\n2\n",
        "no.json": "{",
        "other.json": '{"a": 1}',
        "binary.csv": "\x00\x01",
    }.items():
        path = tmp_path / name
        path.write_text(content)
        error = diagnose(path, expect=2).stderr
        assert error.startswith(f"optwatch diagnose: {path}: ")
        assert error.count("\n") == 1
    assert "no such file" in diagnose(tmp_path / "nowhere", expect=2).stderr
    (tmp_path / "void").mkdir()
    assert "neither" in diagnose(tmp_path / "void", expect=2).stderr


def test_steps_logged_again_after_a_resume_count_once(tmp_path: Path) -> None:
    loss = falling(300)
    steps = [*range(200), *range(150, 250)]
    (shape,) = as_json(write_csv(tmp_path / "resumed.csv", step=steps, loss=loss), expect=0)
    assert shape["points"] == 250

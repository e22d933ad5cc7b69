"""What is written is what TensorBoard's own reader reads."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.hparams import api_pb2, plugin_data_pb2
from tensorboard.util import tensor_util

from optwatch.export.tensorboard import ExportError, RunWriter, hyper_parameters, run_directory
from optwatch.series.points import Column, Points, Samples
from optwatch.wire.actions import Command, Outcome
from optwatch.wire.findings import Cause, Finding, Remedy
from optwatch.wire.messages import GroupInfo, OptimizerInfo
from tests.histograms import counted

RUN = "0f1e2d3c-aaaa-bbbb-cccc-000000000000"
EVERYTHING = {"scalars": 0, "tensors": 0}


def column(values: list[float | None]) -> Column:
    """None: not logged."""
    return Column(
        np.array([np.nan if value is None else value for value in values]),
        np.array([value is not None for value in values]),
    )


def some_points(first: int = 1) -> Points:
    return Points(
        np.arange(first, first + 4),
        {
            "loss": column([3.0, 2.5, np.nan, np.inf]),
            "val_loss": column([None, 2.75, None, None]),
            "lr": column([0.1, 0.1, 0.1, 0.1]),
            "lr_scale": column([None, None, 0.5, 0.5]),
            "update_norm": column([1.0, None, 2.0, 0.0]),
            "param_norm": column([10.0, 10.0, 10.0, 0.0]),
            "accuracy": column([None, 0.25, None, 0.5]),
        },
        wall=np.array([1e9, 1e9 + 1, 1e9 + 2.5, 1e9 + 3]) + first,
        samples=Samples(
            step=np.array([first + 1]),
            names=("a.weight", "b.weight"),
            numel=np.array([300, 100]),
            stats={
                "exp_avg_rms": np.array([[1.0, 3.0]], dtype=np.float32),
                "exp_avg_sq_mean": np.array([[1.0, 5.0]], dtype=np.float32),
                "rms_t": np.array([[1.5, np.nan]], dtype=np.float32),
            },
            counts={},
        ),
    )


def a_finding(**changes: object) -> Finding:
    values = {
        "run": RUN,
        "id": 1,
        "kind": "divergence",
        "severity": "critical",
        "step": 3,
        "onset_step": 2,
        "summary": "the loss is 12 × its median",
        "evidence": {"ratio": 12.0},
        "causes": (Cause("lr_too_high", 0.7, "LR 30 × | before"),),
        "remedies": (Remedy("restart", {}, "the moments are damaged"),),
    }
    return Finding(**values | changes)


def a_command(**changes: object) -> Command:
    values = {
        "id": "1",
        "run": RUN,
        "action": "scale_lr",
        "args": {"factor": 0.5},
        "state": "applied",
        "asked_by": "policy",
        "why": "the LR rose",
        "asked_at": 1e9,
        "step": 4,
        "ranks_applied": (0,),
    }
    return Command(**values | changes)


def read(directory: Path) -> EventAccumulator:
    return EventAccumulator(str(directory), size_guidance=EVERYTHING).Reload()


def scalars(directory: Path, tag: str) -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in read(directory).Scalars(tag)]


def texts(directory: Path, tag: str) -> list[str]:
    events = read(directory).Tensors(f"{tag}")
    return [tensor_util.make_ndarray(event.tensor_proto)[0].decode() for event in events]


def write(directory: Path, *parts: Points, tensors: bool = False) -> Path:
    writer = RunWriter(directory, RUN, "digits", tensors=tensors)
    for part in parts:
        writer.points(part)
    writer.close()
    return writer.path


def test_scalars_come_back_at_their_steps_and_times(tmp_path: Path) -> None:
    path = write(tmp_path, some_points())
    assert path == tmp_path / "digits-0f1e2d3c"
    events = read(path).Scalars("loss/train")
    assert [event.wall_time for event in events] == [1e9 + 1, 1e9 + 2, 1e9 + 3.5, 1e9 + 4]
    assert [event.step for event in events] == [1, 2, 3, 4]
    values = [event.value for event in events]
    assert values[:2] == [3.0, 2.5]
    assert np.isnan(values[2])
    assert values[3] == np.inf
    assert scalars(path, "loss/val") == [(2, 2.75)]
    assert scalars(path, "accuracy") == [(2, 0.25), (4, 0.5)]


def test_what_follows_from_the_columns_is_written_beside_them(tmp_path: Path) -> None:
    path = write(tmp_path, some_points())
    effective = dict(scalars(path, "optwatch/lr/effective"))
    assert effective == pytest.approx({1: 0.1, 2: 0.1, 3: 0.05, 4: 0.05})
    assert dict(scalars(path, "optwatch/ratio/update_param")) == pytest.approx({1: 0.1, 3: 0.2})
    assert dict(scalars(path, "optwatch/moment/exp_avg_rms")) == pytest.approx({2: np.sqrt(3.0)})
    assert dict(scalars(path, "optwatch/moment/exp_avg_sq_mean")) == pytest.approx({2: 2.0})
    assert dict(scalars(path, "optwatch/moment/rms_t_max")) == pytest.approx({2: 1.5})


def test_single_tensors_are_written_on_request_only(tmp_path: Path) -> None:
    plain, full = write(tmp_path / "a", some_points()), write(tmp_path / "b", some_points(), tensors=True)
    tag = "optwatch/tensor/exp_avg_rms/b.weight"
    assert tag not in read(plain).Tags()["scalars"]
    assert scalars(full, tag) == [(2, 3.0)]
    assert "optwatch/tensor/rms_t/b.weight" not in read(full).Tags()["scalars"]


def test_findings_and_commands_are_texts_and_markers(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path, RUN, "digits")
    writer.points(some_points())
    for _ in range(2):  # said twice, written once
        writer.finding(a_finding())
    for _ in range(2):
        writer.command(a_command(state="sent", step=None))
    for _ in range(2):
        writer.command(a_command())
    writer.finding(a_finding(resolved_step=40))
    outcome = Outcome("helped", {"before": 3.0, "after": 1.0})
    writer.command(a_command(state="judged", outcome=outcome))
    writer.close()
    found = texts(writer.path, "findings/1_divergence")
    assert len(found) == 2
    assert "**critical divergence** at step 3: the loss is 12 × its median" in found[0]
    assert "| lr_too_high | 0.70 | LR 30 × \\| before |" in found[0]
    assert "over: step 40" in found[1]
    told = texts(writer.path, "commands/1_scale_lr")
    assert [text.splitlines()[0] for text in told] == [
        f"**scale_lr** factor=0.5: {state}" for state in ("sent", "applied", "judged")
    ]
    assert "outcome: helped (before 3, after 1)" in told[2]
    assert scalars(writer.path, "optwatch/markers/finding/divergence") == [(3, 3.0)]
    assert scalars(writer.path, "optwatch/markers/command/scale_lr") == [(4, 1.0)]
    # Beside the curve of the loss, at the level that it had before: what is not finite does not count.
    assert scalars(writer.path, "optwatch/markers/on_loss/finding_1_divergence") == [(2, 3.0)]
    assert scalars(writer.path, "optwatch/markers/on_loss/command_1_scale_lr") == [(4, 2.75)]


def test_the_layout_of_the_custom_scalars_dashboard(tmp_path: Path) -> None:
    path = write(tmp_path, some_points())
    (event,) = read(path).Tensors("custom_scalars__config__")
    layout = layout_pb2.Layout.FromString(tensor_util.make_ndarray(event.tensor_proto).item())
    charts = {c.title: list(c.multiline.tag) for part in layout.category for c in part.chart}
    assert len(charts) == 11
    written = read(path).Tags()["scalars"]
    drawn = {
        title: sorted(t for t in written if any(re.match(expression, t) for expression in tags))
        for title, tags in charts.items()
    }
    assert drawn["loss: training, validation, findings, commands"] == ["loss/train", "loss/val"]
    assert drawn["learning rate, scheduled and effective"] == [
        "optwatch/lr/effective",
        "optwatch/lr/scheduled",
    ]
    assert drawn["first moment, root mean square"] == ["optwatch/moment/exp_avg_rms"]
    assert drawn["second moment, mean"] == ["optwatch/moment/exp_avg_sq_mean"]


def test_hyper_parameters(tmp_path: Path) -> None:
    groups = (
        GroupInfo(options={"lr": 0.1, "betas": "(0.9, 0.999)", "fused": None}, tensors=2, numel=10),
        GroupInfo(options={"lr": 0.01, "betas": "(0.9, 0.999)"}, tensors=2, numel=10),
    )
    optimizers = (OptimizerInfo(name="", kind="AdamW", groups=groups, digest="d"),)
    config = {"width": 64, "dropout": True, "dataset": "digits"}
    expected = {
        "width": 64,
        "dropout": True,
        "dataset": "digits",
        "optimizer": "AdamW",
        "optimizer/lr": 0.1,
        "optimizer/betas": "(0.9, 0.999)",
        "optimizer/lr/1": 0.01,
    }
    assert hyper_parameters(config, optimizers) == expected
    for _ in range(2):
        writer = RunWriter(tmp_path, RUN, "digits")
        writer.hparams(config, optimizers)
        writer.hparams(config, optimizers)
        writer.close()
    reader = read(writer.path)
    (_,) = reader.Tensors("_hparams_/session_start_info")
    content = reader.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    start = plugin_data_pb2.HParamsPluginData.FromString(content).session_start_info
    assert start.hparams["width"].number_value == 64
    assert start.hparams["dropout"].bool_value is True
    assert start.group_name == RUN


def test_the_outcome_is_told_once_the_run_has_ended(tmp_path: Path) -> None:
    for _ in range(2):
        writer = RunWriter(tmp_path, RUN, "digits")
        writer.hparams({"width": 64}, ())
        writer.points(some_points())
        writer.finding(a_finding())
        writer.finding(a_finding(id=2, kind="converged", severity="info"))
        writer.command(a_command())
        writer.end()
        writer.close()
    reader = read(writer.path)
    outcome = {
        tag: [(event.step, event.value) for event in reader.Scalars(tag)]
        for tag in reader.Tags()["scalars"]
        if tag.startswith("outcome/")
    }
    assert outcome == {
        "outcome/steps": [(4, 4.0)],
        "outcome/alarms": [(4, 1.0)],
        "outcome/critical_findings": [(4, 1.0)],
        "outcome/commands_applied": [(4, 1.0)],
        "outcome/loss": [(4, np.inf)],
    }
    content = reader.SummaryMetadata("_hparams_/session_end_info").plugin_data.content
    end = plugin_data_pb2.HParamsPluginData.FromString(content).session_end_info
    assert end.status == api_pb2.STATUS_FAILURE  # the last loss is inf
    assert end.end_time_secs == 1e9 + 4


def test_histograms_have_the_counts_of_the_elements_at_their_values(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    tensors = {"a": rng.normal(0, 1e-3, 5_000), "b": np.array([0.0, 0.0, -3.0, np.nan, 5.0])}
    counts = np.stack([counted(values) for values in tensors.values()]).astype(np.uint64)
    for every in (False, True):
        writer = RunWriter(tmp_path / str(every), RUN, "digits", tensors=every)
        for _ in range(2):
            writer.histograms(7, tuple(tensors), counts)
        writer.close()
        again = RunWriter(tmp_path / str(every), RUN, "digits", tensors=every)
        again.histograms(7, tuple(tensors), counts)
        again.close()
        names = ["all", "a", "b"] if every else ["all"]
        reader = read(writer.path)
        wanted = {f"optwatch/{kind}/{n}" for kind in ("gradient", "gradient_log2") for n in names}
        assert {tag for tag in reader.Tags()["tensors"] if "gradient" in tag} == wanted
        assert reader.SummaryMetadata("optwatch/gradient/all").plugin_data.plugin_name == "histograms"

    def buckets(tag: str) -> np.ndarray:
        (event,) = read(writer.path).Tensors(tag)
        assert event.step == 7
        return tensor_util.make_ndarray(event.tensor_proto)

    found = buckets("optwatch/gradient/a")
    assert (found[1:, 0] == found[:-1, 1]).all()  # in order, without gaps
    edges = np.append(found[:, 0], found[-1, 1])
    expected, _ = np.histogram(tensors["a"], edges)
    assert found[:, 2].tolist() == expected.tolist()
    assert found[:, 2].sum() == 5_000
    assert buckets("optwatch/gradient/b")[:, 2].tolist() == [1, 2, 0, 1]
    assert buckets("optwatch/gradient_log2/b").tolist() == [[1, 2, 1], [2, 3, 1]]
    assert buckets("optwatch/gradient/all")[:, 2].sum() == 5_004


def test_a_rank_apart_has_a_directory_of_its_own_below_the_runs(tmp_path: Path) -> None:
    for rank in (None, 3):
        writer = RunWriter(tmp_path, RUN, "digits", rank=rank)
        writer.points(some_points())
        writer.close()
    assert writer.path == tmp_path / "digits-0f1e2d3c" / "rank_3"
    assert [step for step, _ in scalars(writer.path, "loss/train")] == [1, 2, 3, 4]
    assert "custom_scalars__config__" not in read(writer.path).Tags()["tensors"]


def test_a_second_writer_goes_on_without_doubles(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path, RUN, "digits")
    writer.points(some_points())
    writer.finding(a_finding())
    writer.command(a_command())
    writer.close()
    again = RunWriter(tmp_path, RUN, "digits")
    again.points(some_points())
    again.points(some_points(first=3))
    again.finding(a_finding())
    again.command(a_command())
    again.close()
    assert [step for step, _ in scalars(again.path, "loss/train")] == [1, 2, 3, 4, 5, 6]
    assert len(texts(again.path, "findings/1_divergence")) == 1
    assert len(scalars(again.path, "optwatch/markers/command/scale_lr")) == 1
    assert len(read(again.path).Tensors("custom_scalars__config__")) == 1


@pytest.mark.parametrize("lost", [1, 20, 60])
def test_a_torn_file_is_gone_on_from(tmp_path: Path, lost: int) -> None:
    path = write(tmp_path, some_points(), some_points(first=5))
    (file,) = path.glob("events*")
    file.write_bytes(file.read_bytes()[:-lost])
    write(tmp_path, some_points(), some_points(first=5))
    steps = [step for step, _ in scalars(path, "optwatch/lr/effective")]
    assert steps == [1, 2, 3, 4, 5, 6, 7, 8]


def test_runs_of_one_name_have_their_own_directories() -> None:
    assert run_directory(RUN, "gpt small/../α/") == "gpt-small-0f1e2d3c"
    assert run_directory("12345678-9", "///") == "run-12345678"


def test_a_directory_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ExportError, match=r"cannot write TensorBoard files to .*file"):
        RunWriter(tmp_path / "file", RUN, "digits")


def test_without_tensorboard_it_says_which_extra_to_install(tmp_path: Path) -> None:
    script = (
        "import sys; sys.modules['tensorboard'] = None\n"
        "from pathlib import Path\n"
        "from optwatch.export.tensorboard import ExportError, RunWriter\n"
        f"try: RunWriter(Path({str(tmp_path)!r}), 'r', 'n')\n"
        "except ExportError as error: print(error)\n"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert "pip install 'optwatch[tensorboard]'" in result.stdout
    assert result.stderr == ""


def test_writing_needs_neither_torch_nor_tensorflow(tmp_path: Path) -> None:
    script = (
        "import sys\nfrom pathlib import Path\n"
        "from optwatch.export.tensorboard import RunWriter\n"
        "assert 'tensorboard' not in sys.modules\n"
        f"writer = RunWriter(Path({str(tmp_path)!r}), 'r', 'n')\n"
        "writer.hparams({'a': 1}, ()); writer.close()\n"
        "print({'torch', 'tensorflow'} & set(sys.modules))\n"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert result.stdout == "set()\n", result.stderr

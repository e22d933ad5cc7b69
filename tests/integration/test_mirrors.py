"""What the daemon knows of a run comes into the process that trains it, and into the tools it has open."""

import json
import logging
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from optwatch.wire.actions import Command
from optwatch.wire.findings import Finding
from tests.daemons import DaemonProcess
from tests.integration.test_agent_daemon import Training, wait_until

GROUP = "needs the tools: pip install --group integrations"


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def spoil(training: Training) -> None:
    """Let the loss become NaN, which is found at once."""
    with torch.no_grad():
        next(training.model.parameters()).fill_(float("nan"))
    training.go(2)


def test_a_function_hears_of_findings_and_actions_each_time_they_change(daemon: DaemonProcess) -> None:
    heard: list[Finding | Command] = []
    training = Training(name="heard")
    training.watch.mirror(heard.append)
    training.connect()
    with daemon.client() as client:
        client.act("heard", "scale_lr", {"factor": 0.5}, "")
        wait_until(lambda: any(c.state == "applied" for c in commands(heard)), "no action", training.go)
        spoil(training)
        wait_until(lambda: alarms(heard), "no finding")
        (found,) = alarms(heard)
        assert found in client.findings("heard")
        assert (found.kind, found.severity) == ("non_finite", "critical")
        daemon.restart()  # the new one tells all that it knows, of which nothing is new
        wait_until(lambda: training.watch._agent.link.welcomed, "no successor took the agent", training.go)
        client.act("heard", "restart", {}, "")
        wait_until(
            lambda: any(c.action == "restart" and c.state == "applied" for c in commands(heard)),
            "no action after the restart",
            training.go,
        )
    training.watch.detach()
    told = [(type(item), item.id, getattr(item, "state", "")) for item in heard if is_final(item)]
    assert len(told) == len(set(told))


def alarms(heard: list[Finding | Command]) -> list[Finding]:
    """The findings without the hint that the toy's LR is unusual."""
    return [item for item in heard if isinstance(item, Finding) and item.severity != "info"]


def commands(heard: list[Finding | Command]) -> list[Command]:
    return [item for item in heard if isinstance(item, Command)]


def is_final(item: Finding | Command) -> bool:
    return isinstance(item, Command) and item.state == "applied"


def test_a_mirror_that_raises_is_told_once_and_the_training_goes_on(
    daemon: DaemonProcess, caplog: pytest.LogCaptureFixture
) -> None:
    training = Training(name="raising")
    calls: list[object] = []

    def raising(item: object) -> None:
        calls.append(item)
        raise OSError("no disk")

    with caplog.at_level(logging.WARNING, "optwatch"):
        training.watch.mirror(raising)
        training.watch.mirror(7)
        training.connect()
        spoil(training)
        wait_until(lambda: bool(calls), "no finding", training.go)
        training.watch.detach()
    texts = [record.getMessage() for record in caplog.records]
    assert len([text for text in texts if "OSError: no disk" in text]) == 1
    assert "optwatch: mirror takes a W&B, MLflow or Trackio run, or a function, not int" in texts


# --- the tools themselves, offline ----------------------------------------------------------------------


def real(test: Any) -> Any:
    """Mark a test of a tool itself, whose own warnings are its own affair."""
    for mark in (pytest.mark.slow, pytest.mark.timeout(300), pytest.mark.filterwarnings("ignore")):
        test = mark(test)
    return test


SCALARS = ("loss", "grad_norm", "lr")


def mirrored(daemon: DaemonProcess, run: Any, name: str, log: Callable[[float], object]) -> Training:
    """A training that logs its own loss at each step, has an action applied and goes to NaN, and ends."""
    training = Training(name=name)
    training.watch.mirror(run, scalars=SCALARS)
    heard: list[Finding | Command] = []
    training.watch.mirror(heard.append)

    def step() -> None:
        training.go()
        log(training.losses[-1])

    wait_until(lambda: training.watch._agent.link.welcomed, "no daemon took the agent", step)
    with daemon.client() as client:
        client.act(name, "scale_lr", {"factor": 0.5}, "")
        wait_until(lambda: any(c.state == "applied" for c in commands(heard)), "no action", step)
        spoil(training)
        wait_until(lambda: any(isinstance(item, Finding) for item in heard), "no finding", step)
    step()
    training.watch.detach()
    return training


@pytest.mark.parametrize("own_steps", [False, True])
@real
def test_weights_and_biases(daemon: DaemonProcess, tmp_path: Path, own_steps: bool) -> None:
    wandb = pytest.importorskip("wandb", reason=GROUP)
    run = wandb.init(project="p", mode="offline", dir=tmp_path, settings=wandb.Settings(silent=True))
    count = 0

    def log(loss: float) -> None:
        nonlocal count
        run.log({"mine": loss}, step=10 * count if own_steps else None)
        count += 1

    mirrored(daemon, run, "digits", log)
    ledger = run.summary["optwatch/ledger"]
    run.finish()
    assert "critical non_finite" in ledger
    assert "scale_lr factor=0.5, asked by" in ledger
    (path,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    records: list[Any] = []

    def is_whole() -> bool:  # another process writes it
        records[:] = wandb_records(path.read_bytes())
        return any(record.HasField("exit") for record in records)

    wait_until(is_whole, "the end of the run in its file")
    history = [
        {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        for record in records
        if record.HasField("history")
    ]
    mine = [row for row in history if "mine" in row]
    assert len(mine) == count, "a row of the script's own is lost"
    assert [row["_step"] for row in mine] == [i * (10 if own_steps else 1) for i in range(count)]
    ours = [row for row in history if "optwatch/global_step" in row]
    assert ours
    assert {"optwatch/loss", "optwatch/lr"} <= set().union(*ours)
    assert ours[-1]["optwatch/actions"] == 1
    assert ours[-1]["optwatch/alarms"] >= 1
    axes = {record.metric.name or record.metric.glob_name for record in records if record.HasField("metric")}
    assert {"optwatch/global_step", "optwatch/*"} <= axes
    alerts = [record.alert for record in records if record.HasField("alert")]
    assert any(alert.title == "optwatch: non_finite" and alert.level == "ERROR" for alert in alerts)


def wandb_records(data: bytes) -> Iterator[Any]:
    """The records of an offline run: LevelDB's log format behind a header of 7 bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    at, block, whole = 7, 32_768, b""
    while at + 7 <= len(data):
        if block - at % block < 7:
            at += block - at % block
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # the whole record, or the last part of one
            record = Record()
            record.ParseFromString(whole)
            yield record
            whole = b""


@pytest.mark.parametrize("by_client", [False, True])
@real
def test_mlflow(daemon: DaemonProcess, tmp_path: Path, by_client: bool) -> None:
    mlflow = pytest.importorskip("mlflow", reason=GROUP)
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/mlflow.db")
    mlflow.create_experiment("e", artifact_location=(tmp_path / "artifacts").as_uri())
    mlflow.set_experiment("e")
    client = mlflow.MlflowClient()
    with mlflow.start_run() as run:
        training = mirrored(
            daemon, client if by_client else run, "digits", lambda loss: mlflow.log_metric("mine", loss)
        )
    number = run.info.run_id
    losses = client.get_metric_history(number, "optwatch/loss")
    assert losses
    for metric in losses:
        assert metric.value == pytest.approx(training.losses[metric.step - 1], nan_ok=True)
    norms = client.get_metric_history(number, "optwatch/grad_norm")
    assert norms
    assert client.get_metric_history(number, "optwatch/actions")[-1].value == 1
    assert client.get_metric_history(number, "optwatch/alarms")[-1].value >= 1
    assert len(client.get_metric_history(number, "mine")) > 1
    text = mlflow.artifacts.load_text(f"{run.info.artifact_uri}/optwatch/ledger.txt")
    assert "critical non_finite" in text
    assert "scale_lr factor=0.5" in text


@real
def test_trackio(daemon: DaemonProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    trackio = pytest.importorskip("trackio", reason=GROUP)
    from trackio.sqlite_storage import SQLiteStorage

    run = trackio.init(project="p", name="r", embed=False, auto_log_gpu=False, auto_log_cpu=False)
    count = 0

    def log(loss: float) -> None:
        nonlocal count
        trackio.log({"mine": loss})
        count += 1

    mirrored(daemon, run, "digits", log)
    trackio.finish()
    logs = SQLiteStorage.get_logs("p", "r")
    mine = [row["step"] for row in logs if "mine" in row]
    assert mine == list(range(count)), "the script's own steps are others"
    ours = [row for row in logs if "optwatch/global_step" in row]
    assert {"optwatch/loss", "optwatch/lr", "optwatch/actions", "optwatch/alarms"} <= set().union(*ours)
    alerts = SQLiteStorage.get_alerts("p", "r")
    assert ("optwatch: non_finite", "error") in [(alert["title"], alert["level"]) for alert in alerts]
    assert "optwatch: scale_lr" in [alert["title"] for alert in alerts]

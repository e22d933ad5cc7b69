"""A real `tensorboard` server shows what was written."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from optwatch.export.tensorboard import RunWriter
from optwatch.series.points import Column, Points
from tests.unit.export.test_tensorboard import RUN, a_command, a_finding


class Server:
    def __init__(self, port: int) -> None:
        self.address = f"http://127.0.0.1:{port}/data"

    def ask(self, path: str, **query: str) -> Any:
        url = f"{self.address}/{path}" + (f"?{urllib.parse.urlencode(query)}" if query else "")
        with urllib.request.urlopen(url, timeout=20) as answer:
            return json.load(answer)

    def post(self, path: str, body: dict[str, Any]) -> Any:
        request = urllib.request.Request(f"{self.address}/{path}", json.dumps(body).encode())
        request.add_header("Content-Type", "application/json")
        with urllib.request.urlopen(request, timeout=20) as answer:
            return json.load(answer)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    steps = np.arange(1, 301)
    logged = np.ones(300, dtype=bool)
    columns = {
        name: Column(values, logged)
        for name, values in {
            "loss": 1 / np.sqrt(steps),
            "grad_norm": np.full(300, 2.0),
            "lr": np.full(300, 1e-3),
        }.items()
    }
    logs = tmp_path / "logs"
    writer = RunWriter(logs, RUN, "digits")
    writer.points(Points(steps, columns, wall=1e9 + steps))
    writer.finding(a_finding(step=200))
    writer.command(a_command(step=202))
    writer.hparams({"width": 64}, ())
    writer.close()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(logs), "--host", "127.0.0.1"]
    environment = os.environ | {"HOME": str(tmp_path)}
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            [*command, "--port", str(port)], stdout=log, stderr=log, env=environment, cwd=tmp_path
        )
    found = Server(port)
    try:
        for _ in range(300):
            assert process.poll() is None, (tmp_path / "log").read_text()
            try:
                if "digits-0f1e2d3c" in found.ask("plugin/scalars/tags"):
                    break
            except (urllib.error.URLError, ConnectionError):
                pass
            time.sleep(0.2)
        yield found
    finally:
        process.terminate()
        process.wait(30)


@pytest.mark.timeout(180)
def test_a_server_shows_the_run(server: Server) -> None:
    tags = server.ask("plugin/scalars/tags")["digits-0f1e2d3c"]
    assert {"loss/train", "optwatch/grad_norm/global", "optwatch/lr/effective"} <= tags.keys()
    points = server.ask("plugin/scalars/scalars", run="digits-0f1e2d3c", tag="loss/train")
    assert points[-1] == [pytest.approx(1e9 + 300), 300, pytest.approx(300**-0.5)]

    layout = server.ask("plugin/custom_scalars/layout")
    charts = {chart["title"]: chart["multiline"]["tag"] for chart in layout["category"][0]["chart"]}
    drawn = server.ask(
        "plugin/custom_scalars/scalars",
        run="digits-0f1e2d3c",
        tag=charts["loss: training, validation, findings, commands"][0],
    )
    assert list(drawn["tag_to_events"]) == ["loss/train"]

    assert set(server.ask("plugin/text/tags")["digits-0f1e2d3c"]) == {
        "findings/1_divergence",
        "commands/1_scale_lr",
    }
    (text,) = server.ask("plugin/text/text", run="digits-0f1e2d3c", tag="findings/1_divergence")
    assert "<strong>critical divergence</strong>" in text["text"]

    experiment = server.post("plugin/hparams/experiment", {"experimentName": ""})
    assert [info["name"] for info in experiment["hparamInfos"]] == ["width"]

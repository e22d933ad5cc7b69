"""A real `tensorboard` server shows what was written."""

import json
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from optwatch.export.names import CHARTS
from optwatch.export.tensorboard import RunWriter
from optwatch.series.points import Column, Points
from tests.histograms import counted
from tests.tensorboards import CHROMIUM, page_of, show_charts, tensorboard
from tests.unit.export.test_tensorboard import RUN, a_command, a_finding


class Server:
    def __init__(self, address: str) -> None:
        self.address = address

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
def logs(tmp_path: Path) -> Path:
    """A run of 300 steps with a finding, a command and histograms."""
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
    writer.hparams({"width": 64}, ())
    writer.points(Points(steps, columns, wall=1e9 + steps))
    writer.finding(a_finding(step=200, onset_step=199))
    writer.command(a_command(step=202))
    spread = counted(np.random.default_rng(0).normal(size=(1, 1_000)))
    for step in (100, 200, 300):
        writer.histograms(step, ("weight",), spread[None].astype(np.uint64))
    writer.end()
    writer.close()
    return logs


@pytest.fixture
def server(logs: Path, tmp_path: Path) -> Iterator[Server]:
    with tensorboard(logs, tmp_path) as address:
        yield Server(f"{address}/data")


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
    metrics = {info["name"]["tag"] for info in experiment["metricInfos"]}
    assert {"loss/train", "outcome/loss", "outcome/critical_findings"} <= metrics

    assert set(server.ask("plugin/histograms/tags")["digits-0f1e2d3c"]) == {
        "optwatch/gradient/all",
        "optwatch/gradient_log2/all",
    }
    drawn = server.ask("plugin/histograms/histograms", run="digits-0f1e2d3c", tag="optwatch/gradient/all")
    assert [step for _, step, _ in drawn] == [100, 200, 300]
    assert sum(count for _, _, count in drawn[0][2]) == 1_000


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium")
async def test_a_browser_shows_the_charts_with_their_markers(logs: Path, tmp_path: Path) -> None:
    pytest.importorskip("playwright", reason="needs playwright: pip install playwright")
    with tensorboard(logs, tmp_path) as address:
        async with page_of(address) as page:
            await show_charts(page)
            for title in CHARTS["optwatch"]:
                await page.get_by_text(title, exact=True).first.wait_for()
            # A run's loss is one curve; what was found and done are a symbol each.
            first = page.locator("tf-custom-scalar-multi-line-chart-card").first
            symbols = first.locator(".scatter-plot path.symbol")
            while await symbols.count() < 3:
                await page.wait_for_timeout(100)
            picture = tmp_path / "tensorboard.png"
            await page.screenshot(path=str(picture))
            print("picture:", picture)
            await page.goto("/#text")
            await page.reload()
            await page.get_by_text("critical divergence").first.wait_for()
            await page.goto("/#histograms")
            await page.reload()
            await page.get_by_text("optwatch/gradient/all").first.wait_for()

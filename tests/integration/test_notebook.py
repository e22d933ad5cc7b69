"""A run as a notebook shows it: the `Watch` itself, and `optwatch.plot` from the daemon and the store."""

import html.parser
from pathlib import Path

import pytest
import torch

import optwatch
from tests.daemons import DaemonProcess
from tests.integration.test_agent_daemon import Training, wait_until
from tests.integration.test_mirrors import spoil

HOSTILE = "<script>alert(1)</script>&\"'"


class Tags(html.parser.HTMLParser):
    """The tags and the text of a fragment, each tag closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.append(tag)
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: object) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def test_a_watch_shows_itself_safely(daemon: DaemonProcess) -> None:
    training = Training(name=HOSTILE)
    training.watch.mirror(lambda item: None)
    training.connect()
    training.go(30)
    with daemon.client() as client:
        client.act(training.watch.run, "scale_lr", {"factor": 0.5}, "")
        wait_until(lambda: "scale_lr factor=0.5" in shown(training).text, "no action", training.go)
        spoil(training)
        wait_until(lambda: "critical non_finite" in shown(training).text, "no finding", training.go)
    fragment = shown(training)
    assert set(fragment.tags) <= {"div", "b", "span", "svg", "title", "line", "g", "polyline", "ul", "li"}
    assert HOSTILE in fragment.text
    assert "connected" in fragment.text
    assert "polyline" in fragment.tags
    training.watch.detach()
    assert "detached" in shown(training).text


def shown(training: Training) -> Tags:
    return Tags(training.watch._repr_html_())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::PendingDeprecationWarning")
def test_the_figure_is_the_same_from_the_daemon_and_from_the_store(daemon: DaemonProcess, home: Path) -> None:
    pytest.importorskip("matplotlib", reason="needs matplotlib: pip install --group integrations")
    training = Training(name="drawn $x_1$")
    training.connect()
    training.go(60)
    with daemon.client() as client:
        client.act(training.watch.run, "scale_lr", {"factor": 0.5}, "")
        wait_until(lambda: training.watch._agent.tracks[0].actuators.lr_scale.in_force, "", training.go)
    training.go(60)
    spoil(training)
    training.watch.detach()
    live = optwatch.plot(training.watch, daemon=daemon.address)
    daemon.stop()
    stored = optwatch.plot("drawn $x_1$")
    again = optwatch.plot("drawn $x_1$", store=home / "state" / "optwatch")
    for figure in (live, stored, again):
        loss, _, lr, _ = figure.axes
        assert loss.get_lines()[0].get_ydata().tolist() == pytest.approx(training.losses[:-2])
        assert {line.get_label() for line in lr.get_lines()} >= {"learning rate", "as scheduled"}
        assert "scale_lr factor=0.5" in figure._supxlabel.get_text()
        assert "critical non_finite" in figure._supxlabel.get_text()
        assert figure._repr_png_().startswith(b"\x89PNG")
    with pytest.raises(LookupError, match="no run"):
        optwatch.plot("unheard of")

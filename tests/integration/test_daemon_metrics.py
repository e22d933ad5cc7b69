"""`optwatch daemon --metrics`: scraped as Prometheus scrapes, from a real daemon with a real agent's data."""

import json
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import closing
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.daemons import GUARD, DaemonProcess
from tests.peers import AgentPeer, values

EXAMPLES = Path(__file__).parents[2] / "examples" / "prometheus"
EXPRESSION = re.compile(r"\boptwatch_[a-z_]+")


@pytest.fixture
def metered(daemon: DaemonProcess) -> DaemonProcess:
    daemon.options = ("--metrics", "0")
    return daemon.restart()


def url(daemon: DaemonProcess, path: str = "/metrics") -> str:
    (found,) = re.findall(r"metrics at (http://127\.0\.0\.1:\d+)/metrics", daemon.text())
    return f"{found}{path}"


def get(address: str) -> str:
    with urllib.request.urlopen(address, timeout=GUARD) as answer:
        assert answer.status == 200
        return str(answer.read().decode())


def samples(text: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_a_scrape_tells_of_runs_ranks_and_the_daemon(metered: DaemonProcess) -> None:
    with closing(AgentPeer(metered.address, world_size=2)) as agent:
        agent.greet()
        agent.batch(values(20))
        agent.wait_acked()
        found = samples(get(url(metered)))
        run = ("run", agent.run), ("name", "toy")
        assert found["optwatch_global_step", frozenset(run)] == 20
        assert found["optwatch_world_size", frozenset(run)] == 2
        assert found["optwatch_lr_scale", frozenset(run)] == 1
        assert found["optwatch_control_armed", frozenset(run)] == 0  # the other rank has not come
        assert found["optwatch_ranks", frozenset((*run, ("link", "up")))] == 1
        assert found["optwatch_rank_global_step", frozenset((*run, ("rank", "0")))] == 20
        assert found["optwatch_runs", frozenset([("state", "live")])] == 1
        assert found["optwatch_store_writable", frozenset()] == 1
        assert get(url(metered, "/healthz")) == "ok\n"
        names = {name for name, _ in found}
        assert names >= {"optwatch_loss", "optwatch_learning_rate", "optwatch_steps_per_second"}
        assert all(name.startswith("optwatch_") for name in names)


def test_findings_are_counted_by_kind_and_severity(metered: DaemonProcess) -> None:
    with closing(AgentPeer(metered.address)) as agent:
        agent.greet()
        agent.batch(values(60))
        broken = values(5, start=61)
        broken[:, 0] = float("nan")
        agent.batch(broken)
        agent.wait_acked()
        found = samples(get(url(metered)))
        key = frozenset(
            {("run", agent.run), ("name", "toy"), ("kind", "non_finite"), ("severity", "critical")}
        )
        assert found["optwatch_open_findings", key] == 1
        assert found["optwatch_findings_total", key] == 1


def test_other_paths_and_methods_get_nothing(metered: DaemonProcess) -> None:
    for path, status in (("/", 404), ("/metrics/../etc/passwd", 404)):
        with pytest.raises(urllib.error.HTTPError) as caught:
            get(url(metered, path))
        assert caught.value.code == status
        caught.value.close()
    post = urllib.request.Request(url(metered), data=b"x", method="POST")
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(post, timeout=GUARD)
    assert caught.value.code == 405
    caught.value.close()


def test_a_port_that_is_taken_or_none_is_said_in_a_sentence(home: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for given, words in ((str(port), f"cannot serve metrics on 127.0.0.1:{port}"), ("x", "is no port")):
            ended = subprocess.run(
                [sys.executable, "-m", "optwatch", "daemon", "--metrics", given],
                capture_output=True,
                text=True,
                timeout=GUARD,
                check=False,
            )
            assert ended.returncode == 2
            assert words in ended.stderr
            assert "Traceback" not in ended.stderr


def test_the_examples_ask_for_metrics_that_there_are(metered: DaemonProcess) -> None:
    text = get(url(metered))
    families = set(re.findall(r"^# TYPE (\S+)", text, re.MULTILINE))
    for name in ("alerts.yml", "grafana.json"):
        asked = set(EXPRESSION.findall((EXAMPLES / name).read_text()))
        assert asked
        assert asked <= families
    dashboard = json.loads((EXAMPLES / "grafana.json").read_text())
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("prometheus") is None, reason="needs prometheus (Debian: prometheus)")
def test_a_real_prometheus_scrapes_it_and_its_rules_fire(metered: DaemonProcess, tmp_path: Path) -> None:
    target = url(metered).removeprefix("http://").removesuffix("/metrics")
    config = (EXAMPLES / "prometheus.yml").read_text()
    config = config.replace("127.0.0.1:9464", target).replace("15s", "1s\n  evaluation_interval: 1s")
    (tmp_path / "prometheus.yml").write_text(config)
    shutil.copy(EXAMPLES / "alerts.yml", tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    server = subprocess.Popen(
        [
            "prometheus",
            f"--config.file={tmp_path}/prometheus.yml",
            f"--storage.tsdb.path={tmp_path}/data",
            f"--web.listen-address=127.0.0.1:{port}",
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        with closing(AgentPeer(metered.address)) as agent:
            agent.greet()
            broken = values(60)
            broken[55:, 0] = float("nan")
            agent.batch(broken)
            agent.wait_acked()
            alert = ask_until(f"http://127.0.0.1:{port}/api/v1/query?query=ALERTS", agent)
    finally:
        server.terminate()
        server.wait(GUARD)
    assert alert["alertname"] == "OptwatchCriticalFinding"
    assert (alert["alertstate"], alert["name"], alert["kind"]) == ("firing", "toy", "non_finite")


def ask_until(query: str, agent: AgentPeer) -> dict[str, str]:
    """The labels of the first result of a query, once there is one; the agent stays in touch meanwhile."""
    end = time.monotonic() + GUARD
    while time.monotonic() < end:
        agent.beat()
        try:
            found = json.loads(get(query))["data"]["result"]
        except OSError:  # it is not up yet
            found = []
        if found:
            return dict(found[0]["metric"])
        time.sleep(0.5)
    raise AssertionError("no result came")


@pytest.mark.skipif(shutil.which("promtool") is None, reason="needs promtool (Debian: prometheus)")
def test_promtool_takes_the_metrics_and_the_rules(metered: DaemonProcess) -> None:
    with closing(AgentPeer(metered.address)) as agent:
        agent.greet()
        agent.batch(values(20))
        agent.wait_acked()
        text = get(url(metered))
    subprocess.run(["promtool", "check", "metrics"], input=text, text=True, check=True, timeout=GUARD)
    subprocess.run(["promtool", "check", "config", EXAMPLES / "prometheus.yml"], check=True, timeout=GUARD)

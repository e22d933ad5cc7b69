"""`optwatch daemon --otlp`: metrics as a receiver gets them, decoded with OpenTelemetry's own messages."""

import gzip
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
)
from opentelemetry.proto.metrics.v1.metrics_pb2 import AggregationTemporality, Metric

from optwatch.daemon.errors import StartError
from optwatch.daemon.readout import Readout
from optwatch.daemon.telemetry import Telemetry
from optwatch.export.metrics import MOST_RANKS, Observed, Reading, Service
from optwatch.export.otel import Sender
from optwatch.export.prometheus import Readings
from optwatch.wire.requests import RankInfo, RunStatus
from tests.daemons import GUARD, DaemonProcess
from tests.peers import AgentPeer, values

Values = dict[tuple[str, frozenset[tuple[str, str]]], float]


class Receiver:
    """An OTLP/HTTP receiver for metrics."""

    def __init__(self) -> None:
        self.requests: list[tuple[dict[str, str], ExportMetricsServiceRequest]] = []
        self.status = 200
        self.arrived = threading.Condition()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                assert self.path == "/v1/metrics"
                assert self.headers["Content-Type"] == "application/x-protobuf"
                request = ExportMetricsServiceRequest.FromString(body)
                with receiver.arrived:
                    receiver.requests.append((dict(self.headers), request))
                    receiver.arrived.notify_all()
                answer = ExportMetricsServiceResponse().SerializeToString()
                self.send_response(receiver.status)
                self.send_header("Content-Type", "application/x-protobuf")
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def wait(self, true: Callable[[ExportMetricsServiceRequest], bool]) -> ExportMetricsServiceRequest:
        """The first request, from the next on, of which something is true."""
        with self.arrived:
            seen = len(self.requests)
            assert self.arrived.wait_for(lambda: any(true(r) for _, r in self.requests[seen:]), GUARD)
            return next(request for _, request in self.requests[seen:] if true(request))


@pytest.fixture
def start(home: Path) -> Iterator[Callable[..., DaemonProcess]]:
    """Starts a daemon with options, once."""
    started: list[DaemonProcess] = []

    def begin(*options: str) -> DaemonProcess:
        started.append(DaemonProcess(home / "daemon", *options).start())
        return started[0]

    yield begin
    started[0].kill()
    print(started[0].text())


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    found = Receiver()
    yield found
    found.server.shutdown()
    found.server.server_close()


def metrics(request: ExportMetricsServiceRequest) -> list[Metric]:
    (resource,) = request.resource_metrics
    (scope,) = resource.scope_metrics
    assert scope.scope.name == "optwatch"
    return list(scope.metrics)


def resource(request: ExportMetricsServiceRequest) -> dict[str, str]:
    attributes = request.resource_metrics[0].resource.attributes
    return {attribute.key: attribute.value.string_value for attribute in attributes}


def samples(request: ExportMetricsServiceRequest) -> Values:
    return {
        (
            metric.name,
            frozenset((each.key, each.value.string_value) for each in point.attributes),
        ): point.as_double if point.HasField("as_double") else point.as_int
        for metric in metrics(request)
        for point in (metric.sum if metric.HasField("sum") else metric.gauge).data_points
    }


def test_a_receiver_gets_what_prometheus_would_by_the_same_names(
    start: Callable[..., DaemonProcess], receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_METRIC_EXPORT_INTERVAL", "200")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "api-key=secret")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "service.name=mine,team=vision")
    daemon = start("--otlp", receiver.url)
    with closing(AgentPeer(daemon.address, world_size=2)) as agent:
        agent.greet()
        agent.batch(values(60))
        broken = values(5, start=61)
        broken[:, 0] = float("nan")
        agent.batch(broken)
        agent.wait_acked()
        run = ("run", agent.run), ("name", "toy")
        finding = frozenset((*run, ("kind", "non_finite"), ("severity", "critical")))
        request = receiver.wait(lambda request: ("optwatch.findings", finding) in samples(request))
    found = samples(request)
    assert found["optwatch.global_step", frozenset(run)] == 65
    assert found["optwatch.world_size", frozenset(run)] == 2
    assert found["optwatch.rank.global_step", frozenset((*run, ("rank", "0")))] == 65
    assert found["optwatch.ranks", frozenset((*run, ("link", "up")))] == 1
    assert found["optwatch.store.writable", frozenset()] == 1
    assert found["optwatch.findings", finding] == 1
    by_name = {metric.name: metric for metric in metrics(request)}
    assert all(name.startswith("optwatch.") for name in by_name)
    counter = by_name["optwatch.findings"].sum
    assert counter.is_monotonic
    assert counter.aggregation_temporality == AggregationTemporality.AGGREGATION_TEMPORALITY_CUMULATIVE
    assert by_name["optwatch.rank.phase"].unit == "s"
    assert by_name["optwatch.store.backlog"].unit == "By"
    assert resource(request)["service.name"] == "mine"
    assert resource(request)["team"] == "vision"
    assert resource(request)["service.instance.id"]
    assert receiver.requests[-1][0]["api-key"] == "secret"
    assert "secret" not in daemon.text()


def test_the_environment_names_the_collector(
    start: Callable[..., DaemonProcess], receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.url)
    start("--otlp")
    with receiver.arrived:  # the first goes out at once, not after the minute that is the default
        assert receiver.arrived.wait_for(lambda: bool(receiver.requests), GUARD)
    assert resource(receiver.requests[-1][1])["service.name"] == "optwatch"


def test_a_collector_that_fails_is_said_once_and_costs_the_daemon_nothing(
    start: Callable[..., DaemonProcess], receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_METRIC_EXPORT_INTERVAL", "50")
    receiver.status = 400
    daemon = start("--otlp", receiver.url)
    with closing(AgentPeer(daemon.address)) as agent:
        agent.greet()
        for _ in range(5):
            agent.batch(values(20))
            agent.wait_acked()
        with receiver.arrived:
            assert receiver.arrived.wait_for(lambda: len(receiver.requests) > 2, GUARD)
        assert daemon.text().count("metrics do not reach") == 1
        receiver.status = 200
        wait_for(daemon, "metrics reach")
    assert daemon.stop() == 0
    assert daemon.text().count("do not reach") == 1
    assert "opentelemetry" not in daemon.text().lower()


@pytest.mark.parametrize("where", ["http://127.0.0.1:9", "silent"])
def test_the_daemon_serves_and_ends_while_the_collector_is_out_of_reach(
    start: Callable[..., DaemonProcess], where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes connections, and never answers
        url = f"http://127.0.0.1:{silent.getsockname()[1]}" if where == "silent" else where
        monkeypatch.setenv("OTEL_METRIC_EXPORT_INTERVAL", "50")
        daemon = start("--otlp", url)
        with closing(AgentPeer(daemon.address)) as agent:
            agent.greet()
            agent.batch(values(20))
            agent.wait_acked()
            with daemon.client() as client:
                assert client.status("toy").step == 20
        assert daemon.stop() == 0
        assert daemon.text().count("do not reach") <= 1


@pytest.mark.parametrize(
    ("url", "environment", "says"),
    [
        ("localhost", {}, "'localhost' is no URL of a collector"),
        ("ftp://me:secret@host", {}, "'host' is no URL"),
        ("", {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "the environment asks for grpc"),
        ("", {"OTEL_METRIC_EXPORT_INTERVAL": "soon"}, "'soon': it is a number of milliseconds"),
    ],
)
def test_settings_that_cannot_be_are_said_in_a_sentence(
    url: str, environment: dict[str, str], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(StartError, match=says) as error:
        Telemetry(url, Readout(lambda: None))
    assert "secret" not in str(error.value)


def a_reading(ranks: int) -> Reading:
    rank = RankInfo(
        rank=0, host="h", pid=1, link="up", step=3, phase="forward", overhead=0.0,
        sample_every=1, dropped=0, control="armed", lateness=0.25, local_norm=1.0, agrees=True,
    )  # fmt: skip
    status = RunStatus(
        run="r", name="n", state="live", step=3, started=0.0, world_size=ranks, ranks=(rank,) * ranks,
        steps_recorded=3, gaps=((1, 2),), mode="advise", control="armed", loss=1.5, lr=0.1, lr_scale=1.0,
        clip=2.0, grad_norm=1.0, overhead=0.01, rate=10.0, optimizers=(), config={}, allow=(),
    )  # fmt: skip
    return Reading(Service({"live": 1}, {"x": 1}, 0, ""), (Observed(status, (), ()),))


def test_each_metric_has_the_name_that_prometheus_would_give_it() -> None:
    """By OpenTelemetry's rule: dots become underscores, the unit and `_total` are added."""
    reading = a_reading(1)
    units = {"": "", "1": "_ratio", "s": "_seconds", "By": "_bytes"}
    (resource_metrics,) = Sender("http://127.0.0.1:9").data(reading, time.time_ns()).resource_metrics
    theirs = {
        each.name.replace(".", "_") + units[each.unit or ""]
        for each in resource_metrics.scope_metrics[0].metrics
    }
    ours = {family.name for family in Readings(reading).collect() if family.samples}
    assert theirs == ours
    assert {"optwatch_rank_lateness_seconds", "optwatch_agent_overhead_ratio", "optwatch_lost_steps"} <= ours


def test_ranks_beyond_the_bound_have_no_metrics_of_their_own() -> None:
    (resource_metrics,) = (
        Sender("http://127.0.0.1:9").data(a_reading(MOST_RANKS + 7), time.time_ns()).resource_metrics
    )
    by_name = {each.name: each.data.data_points for each in resource_metrics.scope_metrics[0].metrics}
    assert len(by_name["optwatch.rank.up"]) == MOST_RANKS
    assert by_name["optwatch.ranks_left_out"][0].value == 7


def wait_for(daemon: DaemonProcess, text: str) -> None:
    end = time.monotonic() + GUARD
    while text not in daemon.text():
        assert time.monotonic() < end, f"the daemon's log never said {text!r}"
        time.sleep(0.05)

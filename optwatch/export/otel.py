"""Metrics as OpenTelemetry has them, sent over OTLP by the official SDK.

Importing this module needs the extra `otel`; the daemon says so in words.
"""

import socket
import time

from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    Gauge,
    Metric,
    MetricExportResult,
    MetricsData,
    NumberDataPoint,
    ResourceMetrics,
    ScopeMetrics,
    Sum,
)
from opentelemetry.sdk.resources import SERVICE_INSTANCE_ID, SERVICE_NAME, OTELResourceDetector, Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from optwatch import __version__
from optwatch.export.metrics import Family, Reading, families


class Sender:
    """Sends readings to a collector, over HTTP with protobuf."""

    def __init__(self, url: str) -> None:
        """`url`: the collector, such as http://localhost:4318; "" for what the SDK's variables say.

        Raises:
            ValueError: one of these variables cannot be used.
        """
        self._exporter = OTLPMetricExporter(endpoint=metrics_endpoint(url) if url else None)
        own = {SERVICE_NAME: "optwatch", SERVICE_INSTANCE_ID: socket.gethostname()}
        # What $OTEL_SERVICE_NAME and $OTEL_RESOURCE_ATTRIBUTES say stands before ours.
        self._resource = Resource.create(own).merge(OTELResourceDetector().detect())
        self._began = time.time_ns()

    def send(self, reading: Reading) -> bool:
        """Send a reading; whether it was taken. Waits, at most for $OTEL_EXPORTER_OTLP_TIMEOUT."""
        return self._exporter.export(self.data(reading, time.time_ns())) is MetricExportResult.SUCCESS

    def close(self) -> None:
        """Send no more; what is being sent is given up."""
        self._exporter.shutdown()

    def data(self, reading: Reading, now: int) -> MetricsData:
        """A reading as the SDK's own structs. `now`: unix time in ns."""
        metrics = [self._metric(family, now) for family in families(reading) if family.samples]
        scope = ScopeMetrics(InstrumentationScope("optwatch", __version__), metrics, schema_url="")
        return MetricsData([ResourceMetrics(self._resource, [scope], schema_url="")])

    def _metric(self, family: Family, now: int) -> Metric:
        points = [
            NumberDataPoint(dict(zip(family.labels, labels, strict=True)), self._began, now, value)
            for labels, value in family.samples
        ]
        data = Sum(points, AggregationTemporality.CUMULATIVE, True) if family.counter else Gauge(points)
        return Metric(family.name, family.text, family.unit, data)


def metrics_endpoint(url: str) -> str:
    """Where a collector takes metrics, as the SDK makes it from $OTEL_EXPORTER_OTLP_ENDPOINT."""
    return url if url.rstrip("/").endswith("/v1/metrics") else f"{url.rstrip('/')}/v1/metrics"

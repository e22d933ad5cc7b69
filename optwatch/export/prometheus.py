"""Metrics as Prometheus has them: names begin with `optwatch_`; what only grows ends in `_total`.

Importing this module needs the package `prometheus_client`; the daemon says so in words.
"""

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from optwatch.export.metrics import Family, Reading, families

_SUFFIXES = {"": "", "1": "_ratio", "s": "_seconds", "By": "_bytes"}


class Readings(Collector):
    """One moment's readings, for a registry."""

    def __init__(self, reading: Reading) -> None:
        self._reading = reading

    def collect(self) -> Iterator[Metric]:
        for family in families(self._reading):
            kind = CounterMetricFamily if family.counter else GaugeMetricFamily
            metric = kind(prometheus_name(family), family.text, labels=family.labels)
            for labels, value in family.samples:
                metric.add_metric(labels, value)
            yield metric


def prometheus_name(family: Family) -> str:
    """A metric's name in Prometheus, without the `_total` that its library gives a counter."""
    return family.name.replace(".", "_") + _SUFFIXES[family.unit]

"""Runs as Prometheus metrics.

Names begin with `optwatch_` and are in base units; what only grows ends in `_total`. Every metric of a run
has the labels `run` (its id) and `name`, those of a rank also `rank`; there is none per tensor.

Importing this module needs the package `prometheus_client`; the daemon says so in words.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

import msgspec
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from optwatch.wire.actions import Command
from optwatch.wire.findings import Finding
from optwatch.wire.requests import RankInfo, RunStatus

MOST_RANKS = 4_096
"""Ranks of all runs together that have metrics of their own: what a scrape may cost is bounded."""


class Observed(msgspec.Struct, frozen=True):
    """One run when it was asked about."""

    status: RunStatus
    findings: tuple[Finding, ...]
    commands: tuple[Command, ...]


class Service(msgspec.Struct, frozen=True):
    """The daemon itself when it was asked about."""

    runs: dict[str, int]
    """How many runs there are, by state."""
    refused: dict[str, int]
    """Messages that were not taken, by the reason."""
    backlog: int
    """Bytes that wait to be written to the store."""
    trouble: str
    """Why nothing is recorded now, "" while all is well."""


class Readings(Collector):
    """One moment's readings, for a registry."""

    def __init__(self, service: Service, runs: Sequence[Observed]) -> None:
        self._service = service
        self._runs = runs

    def collect(self) -> Iterator[Metric]:
        yield from _of_service(self._service)
        yield from _of_runs(self._runs)
        yield from _of_ranks([each.status for each in self._runs])


def _of_service(service: Service) -> Iterator[Metric]:
    runs = GaugeMetricFamily("optwatch_runs", "Runs that the daemon knows", labels=["state"])
    for state in ("live", "stale", "ended"):
        runs.add_metric([state], service.runs.get(state, 0))
    yield runs
    refused = CounterMetricFamily(
        "optwatch_refused_messages",
        "Messages that were not taken since the daemon started",
        labels=["reason"],
    )
    for reason, count in service.refused.items():
        refused.add_metric([reason], count)
    yield refused
    yield GaugeMetricFamily(
        "optwatch_store_backlog_bytes", "Bytes that wait to be written to the store", value=service.backlog
    )
    yield GaugeMetricFamily(
        "optwatch_store_writable",
        "1 while the store can be written, 0 while it cannot, as on a full disk",
        value=0 if service.trouble else 1,
    )


_RUN_GAUGES: tuple[tuple[str, str, str], ...] = (
    ("optwatch_global_step", "step", "The last completed step of the run's first optimizer"),
    ("optwatch_loss", "loss", "The training loss last logged"),
    ("optwatch_learning_rate", "lr", "The first param_group's learning rate as scheduled"),
    ("optwatch_lr_scale", "lr_scale", "What commands multiply the learning rate by"),
    ("optwatch_grad_norm", "grad_norm", "The global gradient norm last measured"),
    ("optwatch_clip_max_norm", "clip", "The norm that gradients are clipped to by command"),
    ("optwatch_steps_per_second", "rate", "Steps per second lately"),
    ("optwatch_agent_overhead_ratio", "overhead", "Share of the step time that the agent takes"),
    ("optwatch_world_size", "world_size", "Ranks of the run"),
)
"""Metric, field of `RunStatus` (a None is no sample), help."""


def _of_runs(runs: Sequence[Observed]) -> Iterator[Metric]:
    for metric, field, text in _RUN_GAUGES:
        gauge = GaugeMetricFamily(metric, text, labels=["run", "name"])
        for each in runs:
            if (value := getattr(each.status, field)) is not None:
                gauge.add_metric(_whose(each.status), value)
        yield gauge
    armed = GaugeMetricFamily(
        "optwatch_control_armed", "1 while the run can be commanded", labels=["run", "name"]
    )
    live = GaugeMetricFamily(
        "optwatch_run_live", "1 while any of its ranks is in touch", labels=["run", "name"]
    )
    lost = CounterMetricFamily("optwatch_lost_steps", "Steps whose scalars were lost", labels=["run", "name"])
    links = GaugeMetricFamily(
        "optwatch_ranks", "Ranks by the state of their link", labels=["run", "name", "link"]
    )
    open_findings = GaugeMetricFamily(
        "optwatch_open_findings",
        "Findings that are not over",
        labels=["run", "name", "kind", "severity"],
    )
    findings = CounterMetricFamily(
        "optwatch_findings", "Findings so far", labels=["run", "name", "kind", "severity"]
    )
    commands = GaugeMetricFamily(
        "optwatch_commands", "Commands by action and state", labels=["run", "name", "action", "state"]
    )
    for each in runs:
        whose, status = _whose(each.status), each.status
        armed.add_metric(whose, float(status.control == "armed"))
        live.add_metric(whose, float(status.state == "live"))
        lost.add_metric(whose, sum(last - first + 1 for first, last in status.gaps))
        for link, count in Counter(rank.link for rank in status.ranks).items():
            links.add_metric([*whose, link], count)
        _count(findings, whose, ((f.kind, f.severity) for f in each.findings))
        _count(
            open_findings,
            whose,
            ((f.kind, f.severity) for f in each.findings if f.resolved_step is None),
        )
        _count(commands, whose, ((c.action, c.state) for c in each.commands))
    yield from (armed, live, lost, links, open_findings, findings, commands)


_RANK_GAUGES: tuple[tuple[str, str, str], ...] = (
    ("optwatch_rank_global_step", "step", "The step that a rank has reached"),
    ("optwatch_rank_phase_seconds", "phase_time", "Seconds that a rank is in its phase of the step"),
    ("optwatch_rank_lateness_seconds", "lateness", "How much later than the first a rank has gradients"),
    ("optwatch_rank_local_grad_norm", "local_norm", "Norm of a rank's own gradients before they are reduced"),
    ("optwatch_rank_replica_agrees", "agrees", "1 where a rank's replica is bit for bit that of the others"),
)


def _of_ranks(runs: Iterable[RunStatus]) -> Iterator[Metric]:
    ranks = [(status, rank) for status in runs for rank in status.ranks]
    told = ranks[:MOST_RANKS]
    for metric, field, text in _RANK_GAUGES:
        gauge = GaugeMetricFamily(metric, text, labels=["run", "name", "rank"])
        for status, rank in told:
            if (value := getattr(rank, field)) is not None:
                gauge.add_metric([*_whose(status), str(rank.rank)], float(value))
        yield gauge
    up = GaugeMetricFamily("optwatch_rank_up", "1 while a rank is in touch", labels=["run", "name", "rank"])
    dropped = CounterMetricFamily(
        "optwatch_rank_dropped_steps", "Steps that a rank could not keep", labels=["run", "name", "rank"]
    )
    for status, rank in told:
        whose = [*_whose(status), str(rank.rank)]
        up.add_metric(whose, float(_in_touch(rank)))
        dropped.add_metric(whose, rank.dropped)
    yield from (up, dropped)
    yield GaugeMetricFamily(
        "optwatch_ranks_left_out",
        f"Ranks without metrics of their own, beyond the first {MOST_RANKS}",
        value=len(ranks) - len(told),
    )


def _in_touch(rank: RankInfo) -> bool:
    return rank.link in ("up", "suspect")


def _whose(status: RunStatus) -> list[str]:
    return [status.run, status.name]


def _count(
    family: CounterMetricFamily | GaugeMetricFamily, whose: list[str], keys: Iterable[tuple[str, str]]
) -> None:
    for key, count in Counter(keys).items():
        family.add_metric([*whose, *key], count)

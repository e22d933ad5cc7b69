"""Runs as metrics, whoever asks for them: names, units, labels, values.

Names are written as OpenTelemetry has them, `optwatch.rank.phase` in `s`; Prometheus's follow from them by
the usual rule, `optwatch_rank_phase_seconds`. Every metric of a run has the labels `run` (its id) and `name`,
those of a rank also `rank`; there is none per tensor.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

import msgspec

from optwatch.wire.actions import Command
from optwatch.wire.findings import Finding
from optwatch.wire.requests import RankInfo, RunStatus

MOST_RANKS = 4_096
"""Ranks of all runs together that have metrics of their own: what an export may cost is bounded."""

Unit = Literal["", "1", "s", "By"]
"""None, a share, seconds, bytes: UCUM, as OpenTelemetry writes units."""

Sample = tuple[tuple[str, ...], float]
"""The values of the labels, and the value."""


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


class Reading(msgspec.Struct, frozen=True):
    """The state of one moment."""

    service: Service
    runs: tuple[Observed, ...]


class Family(msgspec.Struct, frozen=True):
    """One metric with all its samples."""

    name: str
    text: str
    labels: tuple[str, ...]
    samples: tuple[Sample, ...]
    unit: Unit = ""
    counter: bool = False
    """Whether it only grows."""


def families(reading: Reading) -> Iterator[Family]:
    """All metrics of a reading."""
    yield from _of_service(reading.service)
    yield from _of_runs(reading.runs)
    yield from _of_ranks([each.status for each in reading.runs])


def _of_service(service: Service) -> Iterator[Family]:
    states = tuple(((state,), service.runs.get(state, 0)) for state in ("live", "stale", "ended"))
    yield Family("optwatch.runs", "Runs that the daemon knows", ("state",), states)
    yield Family(
        "optwatch.refused_messages",
        "Messages that were not taken since the daemon started",
        ("reason",),
        tuple(((reason,), count) for reason, count in service.refused.items()),
        counter=True,
    )
    yield Family(
        "optwatch.store.backlog",
        "Bytes that wait to be written to the store",
        (),
        (((), service.backlog),),
        unit="By",
    )
    yield Family(
        "optwatch.store.writable",
        "1 while the store can be written, 0 while it cannot, as on a full disk",
        (),
        (((), 0 if service.trouble else 1),),
    )


_RUN_GAUGES: tuple[tuple[str, str, Unit, str], ...] = (
    ("optwatch.global_step", "step", "", "The last completed step of the run's first optimizer"),
    ("optwatch.loss", "loss", "", "The training loss last logged"),
    ("optwatch.learning_rate", "lr", "", "The first param_group's learning rate as scheduled"),
    ("optwatch.lr_scale", "lr_scale", "", "What commands multiply the learning rate by"),
    ("optwatch.grad_norm", "grad_norm", "", "The global gradient norm last measured"),
    ("optwatch.clip_max_norm", "clip", "", "The norm that gradients are clipped to by command"),
    ("optwatch.steps_per_second", "rate", "", "Steps per second lately"),
    ("optwatch.agent.overhead", "overhead", "1", "Share of the step time that the agent takes"),
    ("optwatch.world_size", "world_size", "", "Ranks of the run"),
)
"""Metric, field of `RunStatus` (a None is no sample), unit, help."""

_RUN = ("run", "name")


def _of_runs(runs: Sequence[Observed]) -> Iterator[Family]:
    whose = [(each.status.run, each.status.name) for each in runs]
    named = list(zip(whose, runs, strict=True))
    for metric, field, unit, text in _RUN_GAUGES:
        values = ((who, getattr(each.status, field)) for who, each in named)
        there = tuple((who, value) for who, value in values if value is not None)
        yield Family(metric, text, _RUN, there, unit=unit)
    yield Family(
        "optwatch.control_armed",
        "1 while the run can be commanded",
        _RUN,
        tuple((who, float(each.status.control == "armed")) for who, each in named),
    )
    yield Family(
        "optwatch.run.live",
        "1 while any of its ranks is in touch",
        _RUN,
        tuple((who, float(each.status.state == "live")) for who, each in named),
    )
    yield Family(
        "optwatch.lost_steps",
        "Steps whose scalars were lost",
        _RUN,
        tuple((who, sum(last - first + 1 for first, last in each.status.gaps)) for who, each in named),
        counter=True,
    )
    yield Family(
        "optwatch.ranks",
        "Ranks by the state of their link",
        (*_RUN, "link"),
        _counted((*who, rank.link) for who, each in named for rank in each.status.ranks),
    )
    found = [((*who, f.kind, f.severity), f.resolved_step) for who, each in named for f in each.findings]
    yield Family(
        "optwatch.open_findings",
        "Findings that are not over",
        (*_RUN, "kind", "severity"),
        _counted(key for key, over in found if over is None),
    )
    yield Family(
        "optwatch.findings",
        "Findings so far",
        (*_RUN, "kind", "severity"),
        _counted(key for key, _ in found),
        counter=True,
    )
    yield Family(
        "optwatch.commands",
        "Commands by action and state",
        (*_RUN, "action", "state"),
        _counted((*who, c.action, c.state) for who, each in named for c in each.commands),
    )


_RANK_GAUGES: tuple[tuple[str, str, Unit, str], ...] = (
    ("optwatch.rank.global_step", "step", "", "The step that a rank has reached"),
    ("optwatch.rank.phase", "phase_time", "s", "Seconds that a rank is in its phase of the step"),
    ("optwatch.rank.lateness", "lateness", "s", "How much later than the first a rank has gradients"),
    ("optwatch.rank.local_grad_norm", "local_norm", "", "Norm of a rank's own gradients before reduction"),
    ("optwatch.rank.replica_agrees", "agrees", "", "1 where a rank's replica is bit for bit the others'"),
)

_RANK = (*_RUN, "rank")


def _of_ranks(runs: Iterable[RunStatus]) -> Iterator[Family]:
    ranks = [((status.run, status.name, str(rank.rank)), rank) for status in runs for rank in status.ranks]
    told = ranks[:MOST_RANKS]
    for metric, field, unit, text in _RANK_GAUGES:
        values = ((whose, getattr(rank, field)) for whose, rank in told)
        there = tuple((whose, float(value)) for whose, value in values if value is not None)
        yield Family(metric, text, _RANK, there, unit=unit)
    yield Family(
        "optwatch.rank.up",
        "1 while a rank is in touch",
        _RANK,
        tuple((whose, float(_in_touch(rank))) for whose, rank in told),
    )
    yield Family(
        "optwatch.rank.dropped_steps",
        "Steps that a rank could not keep",
        _RANK,
        tuple((whose, rank.dropped) for whose, rank in told),
        counter=True,
    )
    yield Family(
        "optwatch.rank.thinned_records",
        "Per-tensor records that a rank could not keep",
        _RANK,
        tuple((whose, rank.thinned) for whose, rank in told),
        counter=True,
    )
    yield Family(
        "optwatch.ranks_left_out",
        f"Ranks without metrics of their own, beyond the first {MOST_RANKS}",
        (),
        (((), len(ranks) - len(told)),),
    )


def _in_touch(rank: RankInfo) -> bool:
    return rank.link in ("up", "suspect")


def _counted(keys: Iterable[tuple[str, ...]]) -> tuple[Sample, ...]:
    return tuple(Counter(keys).items())

"""Assembly: the records of ranks that hold parts of the tensors become one record a step."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from optwatch.series.shards import Plan
from optwatch.wire.messages import Schema

MAX_WAITING = 64
"""Steps whose records wait for other ranks'. They all sample the same steps, but some more often."""


@dataclass(frozen=True)
class Record:
    """The per-tensor statistics of one step. stats f4[T, S], counts u8[T, C]."""

    step: int
    schema: Schema
    stats: np.ndarray
    counts: np.ndarray


class Assembly:
    """Collects the records of one optimizer from the ranks that are needed for the whole tensors."""

    def __init__(self) -> None:
        self._schemas: dict[int, Schema] = {}
        """What each live rank holds."""
        self._plan: Plan | None = None
        self._whole: Schema | None = None
        self._waiting: dict[int, dict[int, Record]] = {}

    def introduce(self, rank: int, schema: Schema) -> None:
        """A rank says what it holds before its first records: no replica steps in for it meanwhile."""
        if rank not in self._schemas:
            self._schemas[rank] = schema
            self._plan = None

    def needs(self, rank: int, schema: Schema) -> bool:
        """Whether the records of this rank count, which has this schema now; else they are replicas."""
        if self._schemas.get(rank) is not schema:
            self._schemas[rank] = schema
            self._plan = None
        return rank in self._planned().ranks

    def keep_only(self, live: Collection[int]) -> None:
        """Do without the ranks that are gone: where they have replicas, these take over."""
        for rank in [rank for rank in self._schemas if rank not in live]:
            del self._schemas[rank]
            self._plan = None

    def add(self, rank: int, records: list[Record]) -> list[Record]:
        """Take a rank's records; those of whole tensors that are complete now, in order of step."""
        plan = self._planned()
        assert self._whole is not None
        if plan.ranks == (rank,) and self._whole is self._schemas[rank]:
            return records
        done = []
        for record in records:
            there = self._waiting.setdefault(record.step, {})
            there[rank] = record
            if plan.complete and all(r in there and there[r].schema is self._schemas[r] for r in plan.ranks):
                done.append(combine(plan, self._whole, self._waiting.pop(record.step)))
        for step in sorted(self._waiting)[:-MAX_WAITING]:
            del self._waiting[step]
        return done

    def clear(self) -> None:
        """Other processes go on with the run, and hold what they hold."""
        self._schemas.clear()
        self._waiting.clear()
        self._plan = None

    def _planned(self) -> Plan:
        if self._plan is None:
            self._plan = Plan(alike(self._schemas))
            self._whole = whole(self._schemas[min(self._schemas)], self._plan)
        return self._plan


def alike(schemas: Mapping[int, Schema]) -> dict[int, Schema]:
    """Those that measure what the lowest rank measures: no others can be merged with it."""
    first = schemas[min(schemas)]
    return {
        rank: schema
        for rank, schema in schemas.items()
        if (schema.stats, schema.counts) == (first.stats, first.counts)
    }


def whole(schema: Schema, plan: Plan) -> Schema:
    """The schema of a plan's whole tensors: the given one where that is it already."""
    if schema.tensors == plan.tensors:
        return schema
    return Schema(
        session="",
        optimizer=schema.optimizer,
        digest=f"whole {schema.digest}",
        scalars=(),
        tensors=plan.tensors,
        stats=plan.stats,
        counts=plan.counts,
    )


def combine(plan: Plan, schema: Schema, parts: Mapping[int, Record]) -> Record:
    """One record from those of all the ranks of a plan."""
    step = next(iter(parts.values())).step
    stats, counts = plan.merge({rank: (parts[rank].stats, parts[rank].counts) for rank in plan.ranks})
    return Record(step, schema, np.asarray(stats), np.asarray(counts))


def assemble(steps: Sequence[Mapping[int, Record]]) -> list[Record]:
    """One record of whole tensors for each step (rank → its record) whose parts are all there."""
    plans: dict[tuple[tuple[int, str], ...], tuple[Plan, Schema]] = {}
    out = []
    for parts in steps:
        key = tuple((rank, parts[rank].schema.digest) for rank in sorted(parts))
        if key not in plans:
            plan = Plan(alike({rank: record.schema for rank, record in parts.items()}))
            plans[key] = plan, whole(parts[min(parts)].schema, plan)
        plan, schema = plans[key]
        if plan.ranks and schema is parts[plan.ranks[0]].schema:
            out.append(parts[plan.ranks[0]])
        elif plan.complete:
            out.append(combine(plan, schema, parts))
    return out

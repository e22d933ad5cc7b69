"""Assembly: the records of ranks that hold parts of the tensors become one record a step."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from optwatch.series.shards import Holding, Plan, numel
from optwatch.wire.messages import Schema, TensorInfo

Kind = tuple[tuple[TensorInfo, ...], tuple[str, ...], tuple[str, ...]]
"""What ranks hold, and what they measure of it."""

MAX_WAITING = 64
"""Steps whose records wait for other ranks'. They all sample the same steps, but some more often."""
MAX_WAITING_BYTES = 256 << 20
"""Of these records. Where a rank of a thousand that hold a part each is gone, they would wait for nothing."""


@dataclass(frozen=True)
class Record:
    """The per-tensor statistics of one step. stats f4[T, S], counts u8[T, C]."""

    step: int
    schema: Schema
    stats: np.ndarray
    counts: np.ndarray

    @property
    def size(self) -> int:
        """Bytes of the numbers."""
        return self.stats.nbytes + self.counts.nbytes


class Assembly:
    """Collects the records of one optimizer from the ranks that are needed for the whole tensors."""

    def __init__(self) -> None:
        self._schemas: dict[int, Schema] = {}
        """What each live rank holds."""
        self._kinds: dict[Kind, int] = {}
        self._holds: dict[int, int] = {}
        """A number for what each live rank holds: thousands of ranks may hold few different things."""
        self._firsts: dict[int, int] = {}
        """The lowest rank that holds it, for each such number: the others are replicas of it."""
        self._holdings: dict[int, Holding] = {}
        """The same taken apart."""
        self._plan: Plan | None = None
        """None where another rank is a first one since."""
        self._tried: Plan | None = None
        """What the waiting records were last held against."""
        self._whole: Schema | None = None
        self._waiting: dict[int, dict[int, Record]] = {}
        self._bytes = 0
        """Of all that waits."""

    def introduce(self, rank: int, schema: Schema) -> None:
        """A rank says what it holds before its first records: no replica steps in for it meanwhile."""
        if rank not in self._schemas:
            self._put(rank, schema)

    def hold(self, rank: int, schema: Schema) -> None:
        """This is what a rank holds now."""
        if self._schemas.get(rank) is not schema:
            self._put(rank, schema)

    def needs(self, rank: int) -> bool:
        """Whether the records of this rank count; else they are replicas."""
        return rank in self._holds and self._firsts[self._holds[rank]] == rank

    @property
    def known(self) -> set[int]:
        """The ranks that have said what they hold."""
        return set(self._schemas)

    def senders(self) -> set[int]:
        """The ranks whose records are needed for the whole tensors; all, where no tensors are told of."""
        if not self._schemas:
            return set()
        plan = self._planned()
        return set(plan.ranks) if plan.tensors else self.known

    def keep_only(self, live: Collection[int]) -> None:
        """Do without the ranks that are gone: where they have replicas, these take over."""
        gone = [rank for rank in self._schemas if rank not in live]
        leads = any(map(self.needs, gone))
        for rank in gone:
            del self._schemas[rank], self._holds[rank]
        if leads:
            self._look_for_firsts()

    def restore(self, parts: Sequence[Mapping[int, Record]]) -> list[Record]:
        """Take what ranks had sent before a restart of the daemon, of steps that others have yet to send.

        parts: rank → its record, one such mapping for each step. Those of whole tensors that are complete.
        """
        for there in parts:
            for rank, record in there.items():
                self._wait(rank, record)
                self.introduce(rank, record.schema)
        return self._complete(sorted(self._waiting)) if self._schemas else []

    def add(self, rank: int, records: list[Record]) -> list[Record]:
        """Take a rank's records; those of whole tensors that are complete now, in order of step."""
        done: list[Record] = []
        plan = self._planned() if self._may_be_whole() else None
        if plan is not None and plan.ranks == (rank,) and self._whole is self._schemas[rank]:
            return records
        for record in records:
            self._wait(rank, record)
        if plan is not None:
            # Where other ranks are needed now, what they had sent before may be all that was missing.
            steps = [record.step for record in records] if plan is self._tried else sorted(self._waiting)
            done = self._complete(steps)
        if len(self._waiting) > MAX_WAITING or self._bytes > MAX_WAITING_BYTES:
            self._give_up()
        return done

    def _wait(self, rank: int, record: Record) -> None:
        there = self._waiting.setdefault(record.step, {})
        self._bytes += record.size - (there[rank].size if rank in there else 0)
        there[rank] = record

    def _take(self, step: int) -> dict[int, Record]:
        there = self._waiting.pop(step)
        self._bytes -= sum(record.size for record in there.values())
        return there

    def _give_up(self) -> None:
        """Do without whole tensors of the oldest steps. What ranks sent of them is in the store."""
        for step in sorted(self._waiting)[:-1]:
            if len(self._waiting) <= MAX_WAITING and self._bytes <= MAX_WAITING_BYTES:
                return
            self._take(step)

    def _complete(self, steps: Sequence[int]) -> list[Record]:
        """Records of whole tensors out of what waits of these steps."""
        plan = self._tried = self._planned()
        assert self._whole is not None
        done = []
        for step in steps if plan.complete else ():
            there = self._waiting[step]
            if all(r in there and there[r].schema.digest == self._schemas[r].digest for r in plan.ranks):
                done.append(combine(plan, self._whole, self._take(step)))
        return done

    def clear(self) -> None:
        """Other processes go on with the run, and hold what they hold."""
        self._schemas.clear()
        self._holds.clear()
        self._look_for_firsts()
        self._waiting.clear()
        self._bytes = 0

    def _may_be_whole(self) -> bool:
        """Whether there may be a plan for whole tensors. While a thousand ranks with a part each come one
        after the other there is none, and to make one for each of them would take long."""
        if self._plan is not None:
            return True
        lowest = self._holdings[self._holds[min(self._holds)]]
        return sum(holding.elements for holding in self._holdings.values()) >= lowest.whole

    def _planned(self) -> Plan:
        if self._plan is None:
            firsts = {rank: self._holdings[number] for number, rank in self._firsts.items()}
            self._plan = Plan(alike(firsts))
            self._whole = whole(self._schemas[min(firsts)], self._plan)
        return self._plan

    def _put(self, rank: int, schema: Schema) -> None:
        kind = schema.tensors, schema.stats, schema.counts
        if kind not in self._kinds:
            self._kinds[kind] = max(self._kinds.values(), default=0) + 1
        number = self._kinds[kind]
        was_first = self.needs(rank)
        self._schemas[rank], self._holds[rank] = schema, number
        if was_first:
            self._look_for_firsts()
        elif rank < self._firsts.get(number, rank + 1):
            self._firsts[number], self._plan = rank, None
        if number not in self._holdings:
            self._holdings[number] = Holding(schema)

    def _look_for_firsts(self) -> None:
        """Find anew who is the lowest to hold what."""
        self._plan = None
        self._firsts = {}
        for rank in sorted(self._holds):
            self._firsts.setdefault(self._holds[rank], rank)
        self._kinds = {kind: number for kind, number in self._kinds.items() if number in self._firsts}
        self._holdings = {n: holding for n, holding in self._holdings.items() if n in self._firsts}


def alike(holdings: Mapping[int, Holding]) -> dict[int, Holding]:
    """Those that measure what the lowest rank measures: no others can be merged with it."""
    first = holdings[min(holdings)].schema
    return {
        rank: holding
        for rank, holding in holdings.items()
        if (holding.schema.stats, holding.schema.counts) == (first.stats, first.counts)
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


def add_up(plan: Plan, schema: Schema, parts: Mapping[int, Record]) -> Record:
    """The same of histograms, which are counts only. A tensor is whole or not measured."""
    step = next(iter(parts.values())).step
    counts = plan.add_up({rank: parts[rank].counts for rank in plan.ranks})
    counts[counts.sum(axis=1) != np.array([numel(tensor) for tensor in plan.tensors], np.uint64)] = 0
    return Record(step, schema, np.empty((len(counts), 0), np.float32), counts)


def assemble(
    steps: Iterable[Mapping[int, Record]],
    combine: Callable[[Plan, Schema, Mapping[int, Record]], Record] = combine,
) -> list[Record]:
    """One record of whole tensors for each step (rank → its record) whose parts are all there."""
    plans: dict[tuple[tuple[int, str], ...], tuple[Plan, Schema]] = {}
    out = []
    for parts in steps:
        key = tuple((rank, parts[rank].schema.digest) for rank in sorted(parts))
        if key not in plans:
            plan = Plan(alike({rank: Holding(record.schema) for rank, record in parts.items()}))
            plans[key] = plan, whole(parts[min(parts)].schema, plan)
        plan, schema = plans[key]
        if plan.ranks and schema is parts[plan.ranks[0]].schema:
            out.append(parts[plan.ranks[0]])
        elif plan.complete:
            out.append(combine(plan, schema, parts))
    return out

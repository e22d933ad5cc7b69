"""Ingest and desk under fuzzing: hostile messages are counted and dropped, and nothing is raised."""

import itertools
import random
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optwatch.daemon.changes import Changes
from optwatch.daemon.ingest import Ingest
from optwatch.daemon.refusals import Refusals
from optwatch.daemon.runs import Runs
from optwatch.daemon.status import run_info, run_status
from optwatch.daemon.store import Store
from optwatch.wire import limits
from optwatch.wire.frames import pack
from optwatch.wire.messages import (
    AgentMessage,
    Batch,
    Beat,
    Bye,
    Checked,
    Event,
    GroupInfo,
    Hello,
    OptimizerInfo,
    Report,
    Schema,
    Stack,
    Sums,
    TensorInfo,
)

numbers = st.integers(-(2**63), 2**64 - 1) | st.integers(-1, 6)
floats = st.floats(allow_nan=True, allow_infinity=True)
names = st.sampled_from(["", "a", "b", "loss", "x" * 300]) | st.text(max_size=8)
sessions = st.sampled_from(["one", "two"])
infos = st.builds(
    OptimizerInfo,
    name=names,
    kind=names,
    groups=st.lists(
        st.builds(GroupInfo, options=st.dictionaries(names, floats | names), tensors=numbers, numel=numbers),
        max_size=2,
    ).map(tuple),
    digest=names,
)
tensors = st.builds(
    TensorInfo,
    name=names,
    shape=st.lists(numbers, max_size=3).map(tuple),
    dtype=names,
    group=numbers,
    shard=st.lists(st.tuples(names, numbers), max_size=2).map(tuple),
    held=st.none() | numbers,
)
hellos = st.builds(
    Hello,
    protocol=st.just(limits.PROTOCOL) | numbers,
    session=sessions,
    run=st.sampled_from(["r", "q"]),
    name=names,
    incarnation=numbers,
    job=names,
    rank=numbers,
    world_size=numbers,
    host=names,
    pid=numbers,
    started=floats | st.just(1e9),
    optimizers=st.lists(infos, max_size=2).map(tuple),
    allow=st.lists(names, max_size=2).map(tuple),
    control=names,
)
others = st.one_of(
    st.builds(
        Schema,
        session=sessions,
        optimizer=st.just(0) | numbers,
        digest=st.sampled_from(["d", "e"]),
        scalars=st.lists(names, max_size=3).map(tuple),
        tensors=st.lists(tensors, max_size=3).map(tuple),
        stats=st.lists(names, max_size=3).map(tuple),
        counts=st.lists(names, max_size=2).map(tuple),
    ),
    st.builds(
        Event,
        session=sessions,
        seq=numbers,
        optimizer=numbers,
        step=numbers,
        kind=st.just("mark"),
        text=names,
    ),
    st.builds(
        Report,
        session=sessions,
        seq=numbers,
        command=names,
        vote=names,
        state=st.sampled_from(["pending", "applied", "failed"]),
        steps=st.lists(numbers, max_size=2).map(tuple),
        numbers=st.dictionaries(names, floats, max_size=2),
    ),
    st.builds(
        Checked,
        session=sessions,
        seq=numbers,
        optimizer=st.integers(-1, 3),
        step=numbers,
        sums=st.dictionaries(names, st.integers(-1, 2**64 - 1), max_size=3),
        declared=st.booleans(),
    ),
    st.builds(
        Sums,
        session=sessions,
        optimizer=numbers,
        step=numbers,
        names=st.lists(names, max_size=2).map(tuple),
        groups=st.lists(names, max_size=2).map(tuple),
        parts=st.lists(names, max_size=2).map(tuple),
    ),
    st.builds(
        Stack,
        session=sessions,
        steps=st.lists(numbers, max_size=2).map(tuple),
        phase=names,
        phase_time=floats,
        frames=st.lists(names, max_size=3).map(tuple),
    ),
    st.builds(Bye, session=sessions, seq=numbers, reason=names),
    st.builds(
        Beat,
        session=sessions,
        steps=st.lists(numbers, max_size=3).map(tuple),
        phase=names,
        phase_time=floats,
        overhead=floats,
        sample_every=numbers,
        queued=numbers,
        dropped=numbers,
        control=names,
        oldest=numbers,
    ),
)
GOOD = Hello(
    protocol=limits.PROTOCOL,
    session="one",
    run="r",
    name="n",
    incarnation=0,
    job="",
    rank=0,
    world_size=2,
    host="",
    pid=1,
    started=1e9,
    optimizers=(),
    allow=(),
    control="armed",
)


class Bench:
    """An ingest with a real store behind it."""

    def __init__(self, directory: Path) -> None:
        self.store = Store(directory)
        self.runs = Runs(self.store, "auto")
        self.ingest = Ingest(
            self.store, self.runs, lambda identity, message: True, lambda s, m: None, "d", Refusals()
        )
        self.clock = itertools.count()

    def take(self, message: AgentMessage, blocks: list[bytes], identity: bytes = b"i") -> None:
        now = float(next(self.clock))
        self.ingest.take(identity, "user", "operator", [*pack(message), *blocks], now)
        for run in self.runs.by_id.values():
            run.advance(now, lambda session, message: None, Changes())
            run_status(run, now)
        self.ingest.describe()
        self.ingest.submitted(self.store.submit())
        self.ingest.acknowledge()


@contextmanager
def new_bench() -> Iterator[Bench]:
    with tempfile.TemporaryDirectory() as directory:
        bench = Bench(Path(directory))
        try:
            yield bench
            assert bench.store.settle()
            assert not bench.store.trouble
        finally:
            bench.store.close()


@settings(max_examples=60)
@given(st.data())
def test_no_sequence_of_messages_raises(data: st.DataObject) -> None:
    with new_bench() as bench:
        bench.take(GOOD, [])
        bench.take(msgspec.structs.replace(GOOD, session="two", rank=1), [])
        for seq in range(data.draw(st.integers(1, 12))):
            message = data.draw(st.one_of(hellos, others, others))
            if hasattr(message, "seq") and data.draw(st.booleans()):
                message = msgspec.structs.replace(message, seq=seq + 1)
            bench.take(message, data.draw(st.lists(st.binary(max_size=30), max_size=8)))


HOSTILE_COLUMNS = (
    *("loss", "lr", "step_time", "grad_norm@dp=0/2#00000000", "grad_norm@dp=1/2#00000000", "x"),
    *("arrival", "local_norm", "grad_norm"),
)
HOSTILE_STATS = ("grad_rms", "update_rms", "cos_grad_exp_avg", "exp_avg_sq_min", "y")
HOSTILE_NUMBERS = (0.0, -1.0, 1.0, 1e308, 5e-324, float("nan"), float("inf"), float("-inf"))
HOSTILE_STEPS = (-(2**63), -1, 0, 1, 2, 3, 4, 5, 6, 7, 8, 2**53, 2**53 + 1, 2**63 - 1)


@pytest.mark.parametrize("seed", range(40))
def test_any_numbers_and_any_tensors_are_taken(seed: int) -> None:
    """Well-formed batches of hostile content, on two ranks whose schemas need not agree."""
    dice = random.Random(seed)
    with new_bench() as bench:
        schemas = []
        for rank, session in enumerate(("one", "two")):
            bench.take(msgspec.structs.replace(GOOD, session=session, rank=rank), [])
            schemas.append(hostile_schema(dice, session))
            bench.take(schemas[-1], [])
        seqs = [0, 0]
        for _ in range(12):
            rank = dice.randrange(2)
            seqs[rank] += 1
            bench.take(*hostile_batch(dice, schemas[rank], seqs[rank]))
        assert bench.store.settle()
        list(bench.runs.history.points("r", 0))
        bench.runs.history.records("r", 0, None, None, 10)
        run_info(bench.runs.by_id["r"], 1.0)


def hostile_schema(dice: random.Random, session: str) -> Schema:
    def some(words: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(dice.sample(words, dice.randint(0, len(words))))

    return Schema(
        session=session,
        optimizer=0,
        digest="d",
        scalars=some(HOSTILE_COLUMNS),
        tensors=tuple(
            TensorInfo(
                name=dice.choice("ab"),
                shape=tuple(dice.choice((-1, 0, 3, 2**63)) for _ in range(dice.randint(0, 3))),
                dtype="float32",
                group=0,
                shard=dice.choice(((), (("dp", 0),), (("dp", 1),), (("dp", -7),))),
                held=dice.choice((None, 0, 5, -5, 2**64 - 1)),
            )
            for _ in range(dice.randint(0, 4))
        ),
        stats=some(HOSTILE_STATS),
        counts=some(("grad_zeros", "z")),
    )


def hostile_batch(dice: random.Random, schema: Schema, seq: int) -> tuple[Batch, list[bytes]]:
    step = np.array(sorted(dice.sample(HOSTILE_STEPS, dice.randint(0, 5))), dtype=np.int64)
    n, k = len(step), dice.randint(0, len(step))
    tensors = len(schema.tensors)

    def some(*shape: int) -> np.ndarray:
        return np.array([dice.choice(HOSTILE_NUMBERS) for _ in range(int(np.prod(shape)))]).reshape(shape)

    with np.errstate(over="ignore"):
        blocks = (
            step,
            some(n),
            some(n, len(schema.scalars)),
            np.full((n, len(schema.scalars)), dice.randrange(256), dtype=np.uint8),
            step[:k],
            some(k, tensors, len(schema.stats)).astype(np.float32),
            np.full((k, tensors, len(schema.counts)), dice.choice((0, 2**64 - 1)), dtype=np.uint64),
        )
    header = Batch(session=schema.session, seq=seq, optimizer=0, schema="d", steps=n, sampled=k)
    return header, [block.tobytes() for block in blocks]

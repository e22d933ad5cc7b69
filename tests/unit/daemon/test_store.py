"""The store: whole units, bit by bit, few chunks, and a disk that fills up."""

import dataclasses
import gc
import sqlite3
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest

from optwatch.daemon import writer
from optwatch.daemon.assembly import Record
from optwatch.daemon.chunks import scalar_chunk
from optwatch.daemon.errors import StartError
from optwatch.daemon.history import History
from optwatch.daemon.store import FILE, Store
from optwatch.daemon.tables import MIGRATIONS, VERSION
from optwatch.wire.frames import BatchBlocks
from optwatch.wire.histograms import WIDTH
from optwatch.wire.messages import Schema, TensorInfo
from tests.unit.daemon.test_ingest import GOOD

SCHEMA = Schema(
    session="",
    optimizer=0,
    digest="d",
    scalars=("loss", "lr"),
    tensors=(TensorInfo("w", (2, 3), "float32", 0), TensorInfo("b", (3,), "float32", 0)),
    stats=("grad_rms",),
    counts=("grad_zeros",),
)


def blocks(first: int, n: int) -> BatchBlocks:
    """Numbers of every kind: ordinary, non-finite, and NaNs with a payload."""
    step = np.arange(first, first + n, dtype=np.int64)
    scalars = np.random.default_rng(first).normal(size=(n, 2))
    scalars[::3, 0] = np.inf
    scalars[1::3, 0] = np.frombuffer(np.uint64(0x7FF8DEADBEEF0000 + first).tobytes(), dtype="<f8")[0]
    k = n // 2
    return BatchBlocks(
        step,
        step * 0.5,
        scalars,
        (scalars > 0).astype(np.uint8),
        step[:k],
        np.random.default_rng(first + 1).normal(size=(k, 2, 1)).astype(np.float32),
        np.full((k, 2, 1), 2**63 + first, dtype=np.uint64),
        step[-1:],
        np.random.default_rng(first).integers(0, 2**32, (1, 2, WIDTH), dtype=np.uint32),
    )


def test_many_small_batches_become_few_chunks_of_the_same_bits(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.save_schema("r", SCHEMA)
    sent = []
    for batch in range(5 * writer.FAN_IN + 7):
        sent.append(blocks(1 + 4 * batch, 4))
        store.add_batch(GOOD, SCHEMA, sent[-1], tensors=True)
        store.submit()
    assert store.settle()
    store.close()
    again = Store(tmp_path)
    (chunks,) = again.reader.execute("SELECT COUNT(*) FROM chunk WHERE kind = 's'").fetchone()
    assert chunks < len(sent) / 2
    history = History(again.reader)
    points = list(history.points("r", 0))
    loss = np.concatenate([part.column("loss").values for part in points])
    logged = np.concatenate([part.column("loss").logged for part in points])
    wanted = np.concatenate([part.scalars[:, 0] for part in sent])
    was = np.concatenate([part.logged[:, 0] != 0 for part in sent])
    assert np.concatenate([part.step for part in points]).tolist() == list(range(1, 4 * len(sent) + 1))
    assert logged.tolist() == was.tolist()
    assert loss[was].tobytes() == wanted[was].tobytes()
    records = history.records("r", 0, None, None, limit=10_000)
    assert [record.step for record in records] == [s for part in sent for s in part.sample_step.tolist()]
    assert np.stack([r.stats for r in records]).tobytes() == np.concatenate([p.stats for p in sent]).tobytes()
    assert (
        np.stack([r.counts for r in records]).tobytes() == np.concatenate([p.counts for p in sent]).tobytes()
    )
    spread = history.histograms("r", 0, None, None, limit=10_000)
    assert [record.step for record in spread] == [int(part.step[-1]) for part in sent]
    whole = np.concatenate([part.histograms for part in sent])
    assert np.stack([record.counts for record in spread]).tobytes() == whole.tobytes()
    last = history.histograms("r", 0, None, sent[9].step[-1], limit=3, tensor="b")
    assert [record.schema.tensors for record in last] == [SCHEMA.tensors[1:]] * 3
    assert np.stack([record.counts for record in last]).tobytes() == whole[7:10, 1:].tobytes()
    assert history.histograms("r", 0, None, None, limit=3, tensor="none of them") == []
    again.close()


def test_ranks_whose_chunks_are_of_different_sizes_are_merged_step_by_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("optwatch.daemon.history.WINDOW", 512)
    store = Store(tmp_path)
    store.save_schema("r", SCHEMA)
    loss: dict[int, list[float]] = {}
    for rank, size in enumerate((3_000, 700, 1)):  # one chunk, a few, and one for each step
        hello = msgspec.structs.replace(GOOD, rank=rank)
        for first in range(1, 3_001, size):
            n = min(size, 3_001 - first)
            batch = blocks(first, n)
            batch.scalars[:] = np.arange(first, first + n)[:, None] * 10.0**rank
            batch.logged[:] = 1
            if rank == 1 and first > 1:  # a hole: the place of a row no longer follows from its step
                batch = _without(batch, 5)
            for step, value in zip(batch.step.tolist(), batch.scalars[:, 0].tolist(), strict=True):
                loss.setdefault(step, []).append(value)
            store.add_batch(hello, SCHEMA, batch, tensors=False)
    store.submit()
    assert store.settle()
    history = History(store.reader)
    for first, last in ((None, None), (1_234, 2_345), (2_999, None)):
        parts = list(history.points("r", 0, first=first, last=last))
        step = np.concatenate([part.step for part in parts])
        assert step.tolist() == list(range(first or 1, (last or 3_000) + 1))
        values = np.concatenate([part.column("loss").values for part in parts])
        assert values.tolist() == [sum(loss[at]) / len(loss[at]) for at in step.tolist()]
        assert max(map(len, parts)) < 1_500
    ((ranks, points),) = history.rows("r", 0, 2_900)
    for rank in range(3):
        assert points.step[ranks == rank].tolist() == list(range(2_900, 3_001))
    assert len(ranks) == 303
    store.close()


def _without(batch: BatchBlocks, row: int) -> BatchBlocks:
    kept = np.arange(len(batch.step)) != row
    names = ("step", "wall", "scalars", "logged")
    return dataclasses.replace(batch, **{name: getattr(batch, name)[kept] for name in names})


def test_records_of_many_parts_are_read_within_a_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """100 records of 8 parts of 32 kB each, each rank's in one chunk: 26 MB in all."""
    ranks, steps, tensors = 8, 100, 2_000
    store = Store(tmp_path)
    for rank in range(ranks):
        parts = tuple(TensorInfo(f"{n}", (8,), "float32", 0, (("dp", rank),), 1) for n in range(tensors))
        schema = msgspec.structs.replace(
            SCHEMA,
            digest=f"part {rank}",
            tensors=parts,
            stats=("grad_rms", "param_rms"),
            counts=("grad_zeros",),
        )
        store.save_schema("r", schema)
        sent = dataclasses.replace(
            blocks(1, steps),
            sample_step=np.arange(1, steps + 1),
            stats=np.full((steps, tensors, 2), float(rank), np.float32),
            counts=np.full((steps, tensors, 1), rank, np.uint64),
            histogram_step=np.empty(0, np.int64),
        )
        store.add_batch(msgspec.structs.replace(GOOD, rank=rank), schema, sent, tensors=True)
    store.submit()
    assert store.settle()
    history = History(store.reader)
    of_a_step = ranks * tensors * 16

    def peak(read: Callable[[], object]) -> int:
        tracemalloc.start()
        read()
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    def few() -> list[Record]:
        return history.records("r", 0, None, None, 100, size=3 * of_a_step)

    few()  # schemas are kept
    assert [record.step for record in few()] == [98, 99, 100]
    assert peak(few) < 16 * of_a_step
    every = history.records("r", 0, None, None, 1_000, size=None)
    assert [record.step for record in every] == list(range(1, 101))
    assert all((record.counts == sum(range(ranks))).all() for record in every)
    assert [record.step for record in history.records("r", 0, None, None, 100, size=1)] == [100]
    monkeypatch.setattr("optwatch.daemon.history.RECORD_BYTES", 2 * of_a_step)
    assert [sorted(parts) for parts in history.parts("r", 0, 50, limit=64)] == [list(range(ranks))] * 2
    store.close()


def test_a_read_under_way_sees_no_chunk_vanish(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("optwatch.daemon.history.WINDOW", 8)
    store = Store(tmp_path)
    store.save_schema("r", SCHEMA)

    def write(batches: range) -> None:
        for batch in batches:
            store.add_batch(GOOD, SCHEMA, blocks(1 + 4 * batch, 4), tensors=True)
            store.submit()
        assert store.settle()

    half = writer.FAN_IN // 2
    write(range(half))
    reading = History(store.reader).points("r", 0)
    seen = [next(reading)]
    write(range(half, 3 * writer.FAN_IN))  # its chunks are merged into others meanwhile
    seen.extend(reading)
    assert np.concatenate([part.step for part in seen]).tolist() == list(range(1, 4 * half + 1))
    again = np.concatenate([part.step for part in History(store.reader).points("r", 0)])
    assert again.tolist() == list(range(1, 12 * writer.FAN_IN + 1))
    store.close()


def test_a_later_incarnation_counts_from_where_it_began(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.save_schema("r", SCHEMA)
    first, second = blocks(1, 20), blocks(11, 5)
    store.add_batch(GOOD, SCHEMA, first, tensors=True)
    store.add_batch(msgspec.structs.replace(GOOD, incarnation=1), SCHEMA, second, tensors=True)
    store.submit()
    assert store.settle()
    history = History(store.reader)
    step = np.concatenate([part.step for part in history.points("r", 0)])
    lr = np.concatenate([part.column("lr").values for part in history.points("r", 0)])
    logged = np.concatenate([first.logged[:10, 1], second.logged[:, 1]]) != 0
    wanted = np.concatenate([first.scalars[:10, 1], second.scalars[:, 1]])
    assert step.tolist() == list(range(1, 16))
    assert lr[logged].tolist() == wanted[logged].tolist()
    assert [record.step for record in history.records("r", 0, None, None, 50)] == [*range(1, 11), 11, 12]
    assert [record.step for record in history.records("r", 0, 5, 11, 3)] == [9, 10, 11]
    store.close()


def test_a_unit_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    """The acknowledged number never runs ahead of the data, wherever the process is killed."""
    store = Store(tmp_path)
    store.save_schema("r", SCHEMA)
    store.save_session(GOOD, 0, False)
    for seq in range(1, 200):
        store.add_batch(GOOD, SCHEMA, blocks(seq, 1), tensors=False)
        store.acknowledge(GOOD.session, seq)
        store.submit()
        reader = sqlite3.connect(tmp_path / FILE)
        with reader:
            reader.execute("BEGIN")
            (acked,) = reader.execute("SELECT acked FROM session").fetchone() or (0,)
            (rows,) = reader.execute("SELECT COALESCE(SUM(rows), 0) FROM chunk").fetchone()
        reader.close()
        assert rows == acked
    store.close()


def test_what_sqlite_can_never_take_is_left_out_and_the_rest_is_written(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.save_schema("r", SCHEMA)
    store.save_session(GOOD, 0, False)
    store.acknowledge(GOOD.session, 2**64)
    store.acknowledge(GOOD.session, 7)
    store.submit()
    assert store.settle()
    assert not store.trouble
    assert store.reader.execute("SELECT acked FROM session").fetchone() == (7,)
    store.close()


def test_a_newer_store_is_not_touched(tmp_path: Path) -> None:
    Store(tmp_path).close()
    connection = sqlite3.connect(tmp_path / FILE)
    connection.execute(f"PRAGMA user_version = {VERSION + 1}")
    connection.close()
    with pytest.raises(StartError, match="upgrade optwatch"):
        Store(tmp_path)


@pytest.mark.parametrize("version", range(1, VERSION))
def test_an_older_store_becomes_one_of_this_version_and_keeps_what_is_in_it(
    tmp_path: Path, version: int
) -> None:
    fresh = Store(tmp_path / "fresh")
    (tmp_path / "old").mkdir()
    connection = sqlite3.connect(tmp_path / "old" / FILE)
    for statements in MIGRATIONS[:version]:
        connection.executescript(statements)
    connection.execute(f"PRAGMA user_version = {version}")
    connection.execute("INSERT INTO schema VALUES ('r', 0, 'd', ?)", (msgspec.msgpack.encode(SCHEMA),))
    chunk = scalar_chunk(blocks(1, 20))
    connection.execute(
        "INSERT INTO chunk (run, optimizer, kind, rank, level, schema, incarnation, first, last, rows, data) "
        "VALUES ('r', 0, 's', 0, 0, 'd', 0, 1, 20, 20, ?)",
        (chunk,),
    )
    connection.commit()
    connection.close()
    old = Store(tmp_path / "old")
    made = "SELECT type, name, tbl_name, sql FROM sqlite_master ORDER BY name"
    assert old.reader.execute(made).fetchall() == fresh.reader.execute(made).fetchall()
    assert old.reader.execute("PRAGMA user_version").fetchone() == (VERSION,)
    (points,) = History(old.reader).points("r", 0)
    np.testing.assert_array_equal(points.step, np.arange(1, 21))
    np.testing.assert_array_equal(points.column("loss").values, blocks(1, 20).scalars[:, 0])
    fresh.close()
    old.close()


def test_reading_blobs_in_part_leaves_nothing_behind(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.save_schema("r", SCHEMA)
    store.add_batch(GOOD, SCHEMA, blocks(1, 20), tensors=True)
    store.submit()
    assert store.settle()
    history = History(store.reader)

    def read() -> None:
        for _ in range(50):
            assert history.records("r", 0, None, None, 20, size=None)
            assert list(history.points("r", 0, first=5))
        gc.collect()

    read()
    tracemalloc.start()
    try:
        read()
        before, _ = tracemalloc.get_traced_memory()
        read()
        read()
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before < 40_000  # sqlite3 lets go of what cursors leave now and then; of blobs, never
    store.close()

"""Thinned scalars: what tells something stays, on all ranks alike, and nothing of it is a gap."""

import shutil
import sqlite3
from pathlib import Path

import msgspec
import numpy as np
import pytest

from optwatch.daemon.head import new_head
from optwatch.daemon.history import History
from optwatch.daemon.lane import Lane
from optwatch.daemon.retention import DAY, Limits
from optwatch.daemon.store import FILE, Store
from optwatch.daemon.tables import connect
from optwatch.daemon.thinning import AROUND, KEEP_EVERY, thin_run
from optwatch.daemon.transfer import export_run, import_run
from optwatch.daemon.upkeep import check, compact
from optwatch.series.points import Points
from optwatch.wire.frames import BatchBlocks
from optwatch.wire.messages import Schema
from tests.unit.daemon.test_ingest import GOOD
from tests.unit.daemon.test_transfer import rows
from tests.unit.daemon.test_upkeep import FOUND

STEPS, AT_ONCE, RANKS = 4_000, 50, 2
LOST = range(2_601, 2_601 + AT_ONCE)
"""Steps of rank 1 that never came."""
SPIKE, BAD, VALIDATED, ODD = 1_503, 2_222, 333, 7
"""A step with the greatest loss, one at which one rank has a NaN, and every how many steps `val_loss` is
logged, from which on."""
SCHEMA = Schema(session="", optimizer=0, digest="d", scalars=("loss", "lr", "val_loss"), tensors=())


def measured(rank: int, step: np.ndarray) -> BatchBlocks:
    loss = (
        2
        + np.exp(-step / 500)
        + rank * 0.25
        + np.random.default_rng((rank, step[0])).normal(0, 0.01, len(step))
    )
    loss[step == SPIKE] = 9.0
    loss[(step == BAD) & (rank == 1)] = np.nan
    scalars = np.stack([loss, np.full(len(step), 0.1), np.where(step % VALIDATED == ODD, loss, 0)], axis=1)
    logged = np.ones(scalars.shape, np.uint8)
    logged[:, 2] = step % VALIDATED == ODD
    nothing = step[:0], np.empty((0, 0, 12), np.float32), np.empty((0, 0, 3), np.uint64)
    return BatchBlocks(step, step * 0.5, scalars, logged, *nothing)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with a run of two ranks that was last heard of long ago."""
    directory = tmp_path_factory.mktemp("recorded")
    store = Store(directory)
    store.save_run("r", 1.0, 1.0, new_head(GOOD, "advise"))
    store.save_schema("r", SCHEMA)
    store.save_finding(msgspec.structs.replace(FOUND, step=3_000, onset_step=3_000, resolved_step=3_005))
    for first in range(1, STEPS, AT_ONCE):
        for rank in range(RANKS if first not in LOST else 1):
            hello = msgspec.structs.replace(GOOD, rank=rank, world_size=RANKS)
            store.add_batch(hello, SCHEMA, measured(rank, np.arange(first, first + AT_ONCE)), tensors=False)
        store.submit()
    store.close()
    return directory


@pytest.fixture
def store(recorded: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(recorded, tmp_path / "store"))


def series(directory: Path, rank: int | None = None) -> Points:
    connection = connect(str(directory / FILE), read_only=True)
    (points,) = History(connection).points("r", 0, rank)
    connection.close()
    return points


def test_what_tells_something_stays_as_it_was(store: Path) -> None:
    whole = series(store)
    gain = compact(store, Limits(thin_after=30))
    assert gain.scalars_thinned == RANKS * STEPS - AT_ONCE - check(store).rows > RANKS * STEPS / 2
    left = series(store)
    steps = set(left.step.tolist())
    assert {
        1,
        STEPS,
        SPIKE,
        BAD,
        *range(ODD, STEPS, VALIDATED),
        *range(KEEP_EVERY, STEPS, KEEP_EVERY),
    } <= steps
    assert set(range(3_000 - AROUND, 3_005 + AROUND + 1)) <= steps
    assert series(store, 0).step.tolist() == left.step.tolist()
    assert series(store, 1).step.tolist() == [step for step in left.step.tolist() if step not in LOST]
    same = np.isin(whole.step, left.step)
    for name, column in whole.columns.items():
        np.testing.assert_array_equal(left.columns[name].values, column.values[same])
        np.testing.assert_array_equal(left.columns[name].logged, column.logged[same])
    for first in range(0, STEPS, 200):
        window, kept = (
            p.column("loss").values[(p.step >= first) & (p.step < first + 200)] for p in (whole, left)
        )
        assert (np.nanmin(kept), np.nanmax(kept)) == (np.nanmin(window), np.nanmax(window))
    assert compact(store, Limits(thin_after=30)).scalars_thinned == 0
    assert check(store).problems == ()


def test_only_what_was_lost_is_a_gap_also_in_another_store(store: Path, tmp_path: Path) -> None:
    compact(store, Limits(thin_after=30))
    export_run(store, "r", tmp_path / "run.optwatch")
    import_run(tmp_path / "run.optwatch", tmp_path / "other")
    for directory in (store, tmp_path / "other"):
        opened, lane = Store(directory), Lane()
        lane.load(History(opened.reader), "r", 0, None, returning=False)
        opened.close()
        assert (lane.recorded(), lane.gaps()) == (STEPS, ((LOST[0], LOST[-1]),))


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_cut_short_anywhere_it_goes_on_to_the_same_end(store: Path, tmp_path: Path, share: float) -> None:
    other = Path(shutil.copytree(store, tmp_path / "other"))
    operations = thin(other, None)
    with pytest.raises(sqlite3.OperationalError, match="interrupted"):
        thin(store, int(share * operations))
    assert check(store).problems == ()
    assert rows(store) != rows(other)
    thin(store, None)
    assert rows(store) == rows(other)


def thin(directory: Path, most: int | None) -> int:
    """Thin the run; how many operations of SQLite that took, of which there may be `most`."""
    connection = connect(str(directory / FILE))
    done = 0

    def count() -> bool:
        nonlocal done
        done += 1
        return done == most

    connection.set_progress_handler(count, 1)
    try:
        thin_run(connection, "r")
    finally:
        connection.set_progress_handler(None, 1)
        connection.close()
    return done


def test_a_run_that_goes_on_is_whole_where_it_does(store: Path) -> None:
    compact(store, Limits(thin_after=30))
    opened = Store(store)
    opened.save_run("r", 1.0, DAY * 1e6, new_head(GOOD, "advise"))
    for rank in range(RANKS):
        hello = msgspec.structs.replace(GOOD, rank=rank, world_size=RANKS)
        opened.add_batch(hello, SCHEMA, measured(rank, np.arange(STEPS + 1, STEPS + 101)), tensors=False)
    opened.close()
    assert compact(store, Limits(thin_after=30)).scalars_thinned == 0
    assert series(store).step[-101:].tolist() == list(range(STEPS, STEPS + 101))

"""Upkeep: a check finds what is broken, a compaction loses only what it was asked to."""

import sqlite3
import time
from pathlib import Path

import numpy as np
import pytest

from optwatch.cli import main
from optwatch.daemon.errors import StartError
from optwatch.daemon.head import new_head
from optwatch.daemon.history import History
from optwatch.daemon.retention import DAY, Limits, next_job
from optwatch.daemon.store import FILE, Store
from optwatch.daemon.thinning import AROUND, KEEP_EVERY
from optwatch.daemon.upkeep import check, compact
from optwatch.wire.findings import Finding
from tests.unit.daemon.test_ingest import GOOD
from tests.unit.daemon.test_store import SCHEMA, blocks

BATCHES = 150
FOUND = Finding(
    run="r",
    id=1,
    kind="divergence",
    severity="critical",
    step=500,
    onset_step=500,
    summary="",
    resolved_step=505,
)


def fill(directory: Path) -> list[np.ndarray]:
    """A store with one run; its scalars."""
    store = Store(directory)
    store.save_run("r", 1.0, time.time(), new_head(GOOD, "advise"))
    store.save_schema("r", SCHEMA)
    store.save_finding(FOUND)
    sent = []
    for batch in range(BATCHES):
        data = blocks(1 + 16 * batch, 16)
        sent.append(data.scalars)
        store.add_batch(GOOD, SCHEMA, data, tensors=True)
        store.submit()
    store.close()
    return sent


def lr(directory: Path) -> tuple[np.ndarray, list[int]]:
    store = Store(directory)
    history = History(store.reader)
    column = [points.column("lr") for points in history.points("r", 0)]
    records = [record.step for record in history.records("r", 0, None, None, 100_000)]
    store.close()
    return np.concatenate([c.values[c.logged] for c in column]), records


def age(directory: Path, days: float) -> None:
    connection = sqlite3.connect(directory / FILE)
    with connection:
        connection.execute("UPDATE run SET heard = ?", (time.time() - days * DAY,))
    connection.close()


def test_compacting_keeps_every_bit_in_fewer_chunks(tmp_path: Path) -> None:
    fill(tmp_path)
    before, whole = check(tmp_path), lr(tmp_path)
    assert before.problems == ()
    compact(tmp_path)
    after = check(tmp_path)
    assert after.problems == ()
    assert (after.rows, after.runs) == (before.rows, before.runs)
    assert after.chunks == 3
    again = lr(tmp_path)
    assert again[0].tobytes() == whole[0].tobytes()
    assert again[1] == whole[1]


def test_thinning_keeps_what_is_near_a_finding(tmp_path: Path) -> None:
    fill(tmp_path)
    whole = lr(tmp_path)
    assert compact(tmp_path, Limits(thin_after=30)).records_thinned == 0
    age(tmp_path, 31)
    rows = check(tmp_path).rows
    gain = compact(tmp_path, Limits(thin_after=30))
    _, steps = lr(tmp_path)
    assert steps == [
        step for step in whole[1] if step % KEEP_EVERY == 0 or 500 - AROUND <= step <= 505 + AROUND
    ]
    assert gain.records_thinned > len(whole[1]) - len(steps)  # and histograms
    assert gain.records_thinned + gain.scalars_thinned == rows - check(tmp_path).rows
    again = compact(tmp_path, Limits(thin_after=30))
    assert (again.records_thinned, again.scalars_thinned) == (0, 0)
    assert check(tmp_path).problems == ()


def test_deleting_what_is_old_gives_the_space_back(tmp_path: Path) -> None:
    fill(tmp_path)
    age(tmp_path, 400)
    gain = compact(tmp_path, Limits(delete_after=365))
    assert gain.runs_deleted == 1
    assert gain.after < gain.before / 2
    assert check(tmp_path).runs == 0


def test_a_broken_chunk_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fill(tmp_path)
    assert main(["store", "check", "--store", str(tmp_path)]) == 0
    assert "nothing is wrong" in capsys.readouterr().out
    connection = sqlite3.connect(tmp_path / FILE)
    with connection:
        connection.execute("UPDATE chunk SET data = substr(data, 9) WHERE id = (SELECT MIN(id) FROM chunk)")
    connection.close()
    assert main(["store", "check", "--store", str(tmp_path)]) == 1
    assert "run r: chunk" in capsys.readouterr().out


def test_what_cannot_be(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["store", "check", "--store", str(tmp_path)]) == 2
    assert "there is no store" in capsys.readouterr().err
    store = Store(tmp_path)
    with pytest.raises(StartError, match="another daemon has the store"):
        compact(tmp_path)
    assert check(tmp_path).problems == ()  # a check disturbs nobody
    store.close()
    (tmp_path / FILE).write_bytes(b"no database" * 500)
    assert "cannot be read" in check(tmp_path).problems[0]


def test_the_oldest_go_first_and_are_thinned_before_they_are_deleted() -> None:
    now = 100 * DAY
    heard = [("new", now), ("old", now - 40 * DAY), ("older", now - 50 * DAY)]
    limits = Limits(thin_after=30, delete_after=45, max_size=10)
    thinned: set[str] = set()
    done = []
    size = 40
    while job := next_job(heard, thinned, size, limits, now):
        done.append((job.do, job.run))
        thinned.add(job.run)
        if job.do == "delete":
            heard = [pair for pair in heard if pair[0] != job.run]
            size -= 15
    assert done == [("delete", "older"), ("thin", "old"), ("thin", "new"), ("delete", "old")]
    assert next_job(heard, thinned, size, Limits(), now) is None

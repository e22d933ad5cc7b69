"""Runs that are over leave the memory, and come back as they were when somebody asks."""

import msgspec
import numpy as np

from optwatch.daemon.runs import KEPT_LOADED
from optwatch.daemon.status import run_info, run_status
from optwatch.wire.messages import Batch, Bye, Schema
from tests.unit.daemon.test_ingest import GOOD, new_bench
from tests.unit.daemon.test_store import SCHEMA, blocks


def test_a_run_that_is_over_is_unloaded_and_comes_back() -> None:
    with new_bench() as bench:
        schema: Schema = msgspec.structs.replace(SCHEMA, session="one")
        bench.take(msgspec.structs.replace(GOOD, world_size=1), [])
        bench.take(schema, [])
        for seq in range(1, 20):
            batch = blocks(1 + 8 * (seq - 1), 8)
            header = Batch(session="one", seq=seq, optimizer=0, schema="d", steps=8, sampled=4, histograms=1)
            bench.take(header, [block.tobytes() for block in batch.blocks()])
        bench.take(Bye(session="one", seq=20, reason="done"), [])
        run = bench.runs.by_id["r"]
        run.touched = False
        before = run_status(run, 0.0)
        window = run.lane(0).timeline.window(None, None, ("loss", "lr"), None)
        records = [(record.step, record.stats.tobytes()) for record in run.lane(0).records]
        bench.runs.unload(float("inf"))
        bench.ingest.submitted(bench.store.submit())
        assert not bench.runs.by_id["r"].loaded
        assert run_info(bench.runs.by_id["r"], 0.0).step == before.step == 19 * 8
        again = bench.runs.find("n")
        assert again is not run
        after = run_status(again, 0.0)
        assert msgspec.structs.replace(after, ranks=before.ranks, overhead=before.overhead) == before
        for one, other in zip(
            window, again.lane(0).timeline.window(None, None, ("loss", "lr"), None), strict=True
        ):
            np.testing.assert_array_equal(one, other)
        assert [(r.step, r.stats.tobytes()) for r in again.lane(0).records] == records
        bench.runs.unload(KEPT_LOADED / 2)
        assert bench.runs.by_id["r"].loaded

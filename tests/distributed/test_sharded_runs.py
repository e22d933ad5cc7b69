"""What a sharded training shows at the daemon, against the numbers of its whole tensors."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from tests.daemons import DaemonProcess
from tests.distributed.jobs import START, Job, armed_run, until
from tests.distributed.layouts import WIDTH, numel
from tests.histograms import sparse

CASES = [
    pytest.param(2, "fsdp", WIDTH, marks=pytest.mark.slow),
    pytest.param(2, "zero", WIDTH, marks=pytest.mark.slow),
    pytest.param(2, "ddp", WIDTH, marks=pytest.mark.slow),
    pytest.param(2, "tp", WIDTH, marks=pytest.mark.slow),
    pytest.param(3, "fsdp", WIDTH, marks=pytest.mark.slow),  # uneven shards
    pytest.param(4, "fsdp", 3, marks=pytest.mark.slow),  # an empty shard
    pytest.param(4, "zero", WIDTH, marks=pytest.mark.slow),
    pytest.param(4, "hsdp", WIDTH, marks=pytest.mark.slow),
    pytest.param(4, "fsdp_tp", WIDTH, marks=pytest.mark.slow),
    pytest.param(8, "hsdp_tp", WIDTH, marks=pytest.mark.slow),
]


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("ranks", "layout", "width"), CASES)
def test_norms_and_records_are_those_of_whole_tensors(
    ranks: int, layout: str, width: int, daemon: DaemonProcess, tmp_path: Path
) -> None:
    options = ("--layout", layout, "--width", str(width), "--truth")
    with Job(tmp_path / "job", ranks, *options) as job, daemon.client() as client:
        run = armed_run(client)
        until(client, lambda c: len(c.tensors(run)[1].step) >= 3 or None, "3 records", guard=START)
        until(client, lambda c: len(c.histograms(run)[1].step) >= 1 or None, "a histogram", guard=START)
        job.end()
        truth = {
            int(step): values
            for step, values in json.loads((tmp_path / "job" / "truth.json").read_text()).items()
        }
        series, blocks = client.series(run)
        compared = 0
        for norm in ("grad_norm", "param_norm"):
            at = series.columns.index(norm)
            for row, step in enumerate(blocks.step.tolist()):
                if blocks.logged[row, at]:
                    compared += 1
                    assert math.isclose(blocks.values[row, at], truth[step][norm], rel_tol=1e-6), (norm, step)
        assert compared >= 6
        tensors, records = client.tensors(run)
        assert sum(math.prod(t.shape) for t in tensors.tensors) == numel(width)
        assert [t.name for t in tensors.tensors] == list(next(iter(truth.values()))["tensors"])
        assert {t.shard for t in tensors.tensors} == {()}
        for row, step in enumerate(records.step.tolist()):
            for at, tensor in enumerate(tensors.tensors):
                wanted = truth[step]["tensors"][tensor.name]
                shown = dict(zip(tensors.stats, records.stats[row, at].tolist(), strict=True))
                for name, value in wanted["stats"].items():
                    np.testing.assert_allclose(shown[name], value, rtol=2e-6, err_msg=f"{tensor.name} {name}")
                counts = dict(zip(tensors.counts, records.counts[row, at].tolist(), strict=True))
                assert counts == wanted["counts"] | {"moments_nonfinite": 0}
        spread, histograms = client.histograms(run)
        assert [t.name for t in spread.tensors] == [t.name for t in tensors.tensors]
        for row, step in enumerate(histograms.step.tolist()):
            for at, tensor in enumerate(spread.tensors):
                assert sparse(histograms.counts[row, at]) == truth[step]["tensors"][tensor.name]["histogram"]

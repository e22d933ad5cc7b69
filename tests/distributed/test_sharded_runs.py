"""What a sharded training shows at the daemon, against the numbers of its whole tensors."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from tests.daemons import DaemonProcess
from tests.distributed.jobs import Job, armed_run, until
from tests.distributed.layouts import NUMEL


@pytest.mark.parametrize(
    ("ranks", "layout"), [(2, "fsdp"), pytest.param(4, "fsdp_tp", marks=pytest.mark.slow)]
)
def test_norms_and_records_are_those_of_whole_tensors(
    ranks: int, layout: str, daemon: DaemonProcess, tmp_path: Path
) -> None:
    with Job(tmp_path / "job", ranks, "--layout", layout, "--truth") as job, daemon.client() as client:
        run = armed_run(client)
        until(client, lambda c: len(c.tensors(run)[1].step) >= 3 or None, "3 records")
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
        assert sum(math.prod(t.shape) for t in tensors.tensors) == NUMEL
        assert {t.shard for t in tensors.tensors} == {()}
        for row, step in enumerate(records.step.tolist()):
            for at, tensor in enumerate(tensors.tensors):
                wanted = truth[step]["tensors"][tensor.name]
                shown = dict(zip(tensors.stats, records.stats[row, at].tolist(), strict=True))
                for name, value in wanted["stats"].items():
                    np.testing.assert_allclose(shown[name], value, rtol=2e-6, err_msg=f"{tensor.name} {name}")
                assert records.counts[row, at].tolist() == wanted["counts"]

"""The guard over ranks: all skip the same step, and there is none where each would decide for itself."""

import json
from pathlib import Path

import pytest

from tests.daemons import DaemonProcess
from tests.distributed.jobs import Job, armed_run, until


@pytest.mark.slow
@pytest.mark.parametrize(("ranks", "layout"), [(2, "ddp"), (4, "ddp"), (2, "zero")])
def test_all_ranks_skip_the_same_step(ranks: int, layout: str, daemon: DaemonProcess, tmp_path: Path) -> None:
    options = ("--layout", layout, "--guard", "skip_nonfinite", "--guard", "clip")
    with Job(tmp_path / "job", ranks, *options) as job, daemon.client() as client:
        run = armed_run(client)
        until(client, lambda c: c.status(run).step > 60 or None, "60 steps")
        (tmp_path / "job" / "spoil").touch()
        until(
            client,
            lambda c: len([m for m in c.view(run)[0].markers if m.kind == "skipped_step"]) >= ranks or None,
            "the news of each rank",
        )
        markers = [marker for marker in client.view(run)[0].markers if marker.kind == "skipped_step"]
        assert len({marker.step for marker in markers}) == 1
        until(client, lambda c: c.status(run).step > markers[0].step + 20 or None, "20 steps more")
        results = job.end()
        assert [f.kind for f in client.findings(run) if f.kind == "non_finite"] == []
    assert len({json.dumps(result["parameters"]) for result in results}) == 1
    assert "NaN" not in json.dumps(results[0]["parameters"])


@pytest.mark.slow
def test_there_is_none_where_parameters_are_spread(daemon: DaemonProcess, tmp_path: Path) -> None:
    options = ("--layout", "fsdp", "--guard", "skip_nonfinite")
    with Job(tmp_path / "job", 2, *options) as job, daemon.client() as client:
        armed_run(client)
        job.end()
        assert "no guard for o0: the parameters are spread over ranks" in job.text()

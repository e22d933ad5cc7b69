"""The guard over ranks: all skip and clip the same steps, as one process with the whole model does."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn

import optwatch
from optwatch_agent.device_guard import DeviceGuard
from optwatch_agent.shards import is_sharded
from tests.daemons import DaemonProcess
from tests.distributed.jobs import Job, armed_run, until
from tests.distributed.layouts import LAYOUTS, WIDTH, batch, optimizer, whole
from tests.distributed.ranks import on_ranks

STEPS = 40
SPOILED, SPIKE = 30, 35


def guarded(model: nn.Module, optimizer: Any, spoils: bool, on_device: bool = False) -> list[float]:
    """Train under the guard, with one NaN in the gradient of the holder that `spoils`, and a spike in all;
    what the guard clips to after each step. `on_device`: as where the parameters are on a device."""
    params = [p for p in model.parameters() if p.numel()]
    watch = optwatch.attach(optimizer, guard=("skip_nonfinite", "clip"))
    guard = watch._agent.tracks[0].guard
    if on_device:
        guard.on_device = DeviceGuard(guard.skips, guard.adaptive)
    limits = []
    for step in range(1, STEPS + 1):
        optimizer.zero_grad()
        model(batch(step)).square().mean().backward()
        for param in params:
            grad = param.grad.to_local() if is_sharded(param.grad) else param.grad
            if step == SPOILED and spoils and grad.numel():
                grad.view(-1)[0] = torch.nan
            if step == SPIKE:
                grad.mul_(1e4)
        optimizer.step()
        assert guard.adaptive is not None
        limits.append(guard.adaptive.limit or 0.0)
    assert guard.skipped == 1
    assert not watch._agent.tracks[0].degraded
    watch.detach()
    return limits


def at_home(directory: Path) -> None:
    """A rank may be of a process that began in another test's home."""
    for variable in ("HOME", "XDG_CONFIG_HOME", "XDG_STATE_HOME", "XDG_CACHE_HOME", "XDG_RUNTIME_DIR"):
        os.environ[variable] = str(directory)


def options_of(layout: str, on_device: bool) -> dict[str, Any]:
    """Fused where the guard takes another way then. torch's fused steps take no DTensors beside tensors."""
    return {"lr": 1e-3, "fused": on_device and "tp" not in layout}


def on_a_rank(rank: int, directory: Path, layout: str, ranks: int, on_device: bool) -> dict[str, Any]:
    at_home(directory)
    model = LAYOUTS[layout](ranks, WIDTH)
    adam = optimizer(layout, torch.optim.Adam, model.parameters(), **options_of(layout, on_device))
    limits = guarded(model, adam, rank == ranks - 1, on_device)
    return {
        "limits": limits,
        "parameters": {
            name.removeprefix("module."): (p.full_tensor() if is_sharded(p) else p).detach().numpy()
            for name, p in model.named_parameters()
        },
    }


@pytest.mark.parametrize(
    ("layout", "ranks"),
    [
        ("fsdp", 2),
        pytest.param("tp", 2, marks=pytest.mark.slow),
        pytest.param("fsdp", 4, marks=pytest.mark.slow),
        pytest.param("hsdp", 4, marks=pytest.mark.slow),
        pytest.param("fsdp_tp", 4, marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("on_device", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_guard_over_shards_is_that_of_the_whole_model(
    layout: str, ranks: int, on_device: bool, tmp_path: Path
) -> None:
    results = on_ranks(ranks, on_a_rank, tmp_path, tmp_path, layout, ranks, on_device)
    model = whole()
    adam = torch.optim.Adam(model.parameters(), **options_of(layout, on_device))
    limits = guarded(model, adam, True, on_device)
    for result in results:
        assert result["limits"] == results[0]["limits"], "not the same bits on all ranks"
        assert result["limits"] == pytest.approx(limits, rel=1e-6)
        for name, parameter in model.named_parameters():
            mine = result["parameters"][name]
            np.testing.assert_array_equal(mine, results[0]["parameters"][name])
            np.testing.assert_allclose(mine, parameter.detach().numpy(), rtol=1e-4, atol=1e-6)


def left_alone(rank: int, directory: Path) -> tuple[bool, str, str]:
    """A step whose process group is gone: whether it was taken, and what became of guard and agent."""
    at_home(directory)
    model = LAYOUTS["fsdp"](1, WIDTH)
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    watch = optwatch.attach(sgd, guard=("skip_nonfinite",))
    track = watch._agent.tracks[0]
    model(batch(0)).square().mean().backward()
    sgd.step()
    before = model.up.weight.to_local().clone()  # type: ignore[operator, union-attr]
    dist.destroy_process_group()
    sgd.step()
    moved = not torch.equal(before, model.up.weight.to_local())  # type: ignore[operator, union-attr]
    watch.detach()
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    return moved, track.guard.refused, track.degraded


def test_without_the_other_ranks_there_is_no_guard_any_more(tmp_path: Path) -> None:
    ((moved, refused, degraded),) = on_ranks(1, left_alone, tmp_path, tmp_path)
    assert moved
    assert refused.startswith("the norm of all ranks failed")
    assert degraded


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ranks", "layout"), [(2, "ddp"), (4, "ddp"), (2, "zero"), (2, "fsdp"), (4, "hsdp"), (4, "fsdp_tp")]
)
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

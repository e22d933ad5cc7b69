"""Clipping to the global norm of parameters that are spread over ranks, against one process that has all."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.distributed.tensor import DTensor, Partial, Shard

from optwatch.wire.actions import Clip
from optwatch_agent.actuators import Actuators
from optwatch_agent.attach import innermost
from optwatch_agent.globalnorm import global_norm, is_spread
from optwatch_agent.shards import is_sharded
from tests.distributed.layouts import LAYOUTS, WIDTH, batch, fsdp, optimizer, whole
from tests.distributed.ranks import on_ranks

MAX_NORM = 0.05
STEPS = 3
CASES = [
    pytest.param("fsdp", 2, WIDTH, marks=pytest.mark.slow),
    pytest.param("zero", 2, WIDTH, marks=pytest.mark.slow),
    pytest.param("fsdp", 4, 3, marks=pytest.mark.slow),  # a rank with an empty shard
    pytest.param("hsdp", 4, WIDTH, marks=pytest.mark.slow),
    pytest.param("tp", 2, WIDTH, marks=pytest.mark.slow),
    pytest.param("fsdp_tp", 4, WIDTH, marks=pytest.mark.slow),
    pytest.param("hsdp_tp", 8, WIDTH, marks=pytest.mark.slow),
]


def clipped(rank: int, layout: str, ranks: int, width: int) -> dict[str, Any]:
    """A few clipped steps of SGD; the norms, and the parameters before and after from whole tensors."""
    model = LAYOUTS[layout](ranks, width)
    outer = optimizer(layout, torch.optim.SGD, model.parameters(), lr=0.1)
    actuators = Actuators(innermost(outer))
    norms = []
    for step in range(STEPS):
        outer.zero_grad()
        model(batch(step, width)).square().mean().backward()
        norms.append(actuators.clip(MAX_NORM, actuators.norm()))
        outer.step()
    parameters = {
        name.removeprefix("module."): (p.full_tensor() if is_sharded(p) else p).detach().numpy()
        for name, p in model.named_parameters()
    }
    return {"norms": norms, "parameters": parameters}


@pytest.mark.parametrize(("layout", "ranks", "width"), CASES)
def test_it_is_the_clip_of_the_unsharded_model(layout: str, ranks: int, width: int, tmp_path: Path) -> None:
    results = on_ranks(ranks, clipped, tmp_path, layout, ranks, width)
    model = whole(width)
    reference = torch.optim.SGD(model.parameters(), lr=0.1)
    norms = []
    for step in range(STEPS):
        reference.zero_grad()
        model(batch(step, width)).square().mean().backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM)))
        reference.step()
    assert min(norms) > MAX_NORM
    for result in results:
        assert result["norms"] == results[0]["norms"], "not the same bits on all ranks"
        assert [before for before, _ in result["norms"]] == pytest.approx(norms, rel=1e-6)
        for name, parameter in model.named_parameters():
            mine = result["parameters"][name]
            np.testing.assert_allclose(mine, parameter.detach().numpy(), rtol=1e-6, atol=1e-8)
            np.testing.assert_array_equal(mine, results[0]["parameters"][name])


def odd(rank: int) -> dict[str, Any]:
    """What becomes of gradients that are non-finite on one rank, missing on one, or not yet summed."""
    model = fsdp(2, WIDTH)
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    actuators = Actuators(sgd)
    model(batch(0)).square().mean().backward()
    weight = model.up.weight
    if rank == 1:
        weight.grad.to_local()[0, 0] = torch.nan
    before = weight.grad.to_local().clone()
    bad = actuators.clip(MAX_NORM, actuators.norm())
    untouched = torch.equal(before, weight.grad.to_local().nan_to_num(nan=0.0)) or rank == 1
    if rank == 1:
        sgd.zero_grad()
    missing = global_norm(sgd)
    mesh = weight.device_mesh
    sgd.zero_grad()
    weight.grad = DTensor.from_local(torch.ones(WIDTH, WIDTH), mesh, [Partial()])
    actuators.look_at_gradients()
    unsummed = actuators.refusal(Clip(max_norm=1.0), 2)
    weight.grad = DTensor.from_local(torch.ones(WIDTH // 2, WIDTH), mesh, [Shard(0)])
    actuators.look_at_gradients()
    fine = actuators.refusal(Clip(max_norm=1.0), 2)
    actuators.scaled = True
    return {
        "bad": bad[0],
        "untouched": untouched,
        "missing": missing,
        "unsummed": unsummed,
        "fine": fine,
        "scaled": actuators.refusal(Clip(max_norm=1.0), 2),
        "spread": is_spread(sgd),
    }


def test_odd_gradients_are_left_alone_or_refused_alike_on_all_ranks(tmp_path: Path) -> None:
    first, second = on_ranks(2, odd, tmp_path)
    for result in (first, second):
        assert result["spread"]
        assert result["untouched"]
        assert not torch.tensor(result["bad"]).isfinite()
        assert "summed" in result["unsummed"]
        assert result["fine"] is None
        assert "GradScaler" in result["scaled"]
    assert first["missing"] == second["missing"] > 0

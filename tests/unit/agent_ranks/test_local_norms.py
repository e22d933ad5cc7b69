"""Norms of a rank's own gradients under DistributedDataParallel: right, and no trace in the results."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks import powerSGD_hook
from torch.nn.parallel import DistributedDataParallel

import optwatch
from tests.distributed.ranks import on_ranks
from tests.distributed.train import bits

STEPS = 24


def model() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(20, 40), nn.Tanh(), nn.Linear(40, 40), nn.Tanh(), nn.Linear(40, 5))


def batch(rank: int, step: int) -> torch.Tensor:
    return torch.randn(8, 20, generator=torch.Generator().manual_seed(100 * step + rank))


def train(rank: int, how: str, watched: bool) -> dict[str, Any]:
    """Train; the bits at the end, and at each step where it was measured the local norm and the true one."""
    wrapped = DistributedDataParallel(model(), gradient_as_bucket_view=how == "views")
    if how == "powersgd":
        state = powerSGD_hook.PowerSGDState(None, matrix_approximation_rank=1, start_powerSGD_iter=4)
        wrapped.register_comm_hook(state, powerSGD_hook.powerSGD_hook)
    optimizer = torch.optim.AdamW(wrapped.parameters(), lr=1e-2)
    watch = None
    rows: list[dict[str, Any]] = []
    if watched:
        watch = optwatch.attach(
            optimizer, model=wrapped, comm_hook=True, budget=1.0, daemon="tcp://127.0.0.1:1"
        )
        track = watch._agent.tracks[0]
        add = track.recorder.add
        track.recorder.add = lambda step, values: (rows.append(dict(values)), add(step, values))[1]
    true = []
    for step in range(STEPS):
        alone = model()
        alone.load_state_dict(wrapped.module.state_dict())
        alone(batch(rank, step)).square().mean().backward()
        true.append(torch.cat([p.grad.flatten() for p in alone.parameters()]).double().norm().item())
        if how == "accumulate":
            with wrapped.no_sync():
                (wrapped(batch(rank, step)).square().mean() / 2).backward()
            (wrapped(batch(rank, step)).square().mean() / 2).backward()
        else:
            wrapped(batch(rank, step)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    hooks = sum(len(p._post_accumulate_grad_hooks or ()) for p in wrapped.parameters())
    if watch is not None:
        watch.detach()
        hooks = sum(len(p._post_accumulate_grad_hooks or ()) for p in wrapped.parameters())
    pairs = [
        (row["local_norm"], true[i], row["grad_norm"]) for i, row in enumerate(rows) if "local_norm" in row
    ]
    return {"bits": bits({"o": optimizer}), "pairs": pairs, "hooks": hooks}


HOWS = ("plain", "views", "accumulate", "powersgd")


def train_both(rank: int) -> dict[str, Any]:
    """All kinds of training, watched and not."""
    return {f"{how} {watched}": train(rank, how, watched) for how in HOWS for watched in (True, False)}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return on_ranks(2, train_both, tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize("how", HOWS)
def test_local_norms_are_right_and_the_results_bitwise_the_same(
    how: str, results: list[dict[str, Any]]
) -> None:
    assert len({each[f"{how} {watched}"]["bits"] for each in results for watched in (True, False)}) == 1
    for each in results:
        result = each[f"{how} True"]
        assert result["hooks"] == 0
        assert len(result["pairs"]) >= 3
        for local, true, mean in result["pairs"]:
            assert local == pytest.approx(true, rel=1e-5)
            assert abs(local - mean) > 1e-9, "the norm of the mean is another one"


def test_it_needs_a_model_that_is_wrapped() -> None:
    plain = model()
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="DistributedDataParallel"):
        optwatch.attach(optimizer, model=plain, comm_hook=True)

"""The guard within the step: what it skips and clips, and that it changes nothing else."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from optwatch.wire.actions import AUTO_LEAST, usual_norm
from optwatch_agent.attach import attach
from optwatch_agent.reflexes import AdaptiveNorm
from tests.unit.agent.models import OPTIMIZERS, batches, classifier, fingerprint, train

FEW = ("adamw", "nesterov", "adafactor")


def spoil(model: nn.Module, optimizer: Any, data: Any, value: float = math.nan) -> list[Tensor]:
    """One step with a gradient that is not finite; the gradients that it was given."""
    x, y = next(data)
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(x), y).backward()
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    next(p for p in optimizer.param_groups[0]["params"]).grad.view(-1)[0] = value
    optimizer.step()
    return grads


@pytest.mark.parametrize(
    "name", [n if n in FEW else pytest.param(n, marks=pytest.mark.slow) for n in OPTIMIZERS]
)
def test_a_step_that_is_not_finite_changes_nothing(name: str) -> None:
    model = classifier()
    optimizer = OPTIMIZERS[name](model.parameters())
    watch = attach(optimizer, guard=("skip_nonfinite",))
    data = batches()
    train(model, optimizer, data, 3)
    before = fingerprint(model, optimizer)[:2]
    grads = spoil(model, optimizer, data)
    assert fingerprint(model, optimizer)[:2] == before
    assert all(p.grad is grad for p, grad in zip(model.parameters(), grads, strict=True))
    track = watch._agent.tracks[0]
    assert (track.completed, track.guard.skipped) == (4, 1)
    row = track.recorder._newest[0].values
    assert row["guard_skips"] == 1
    assert "grad_norm" not in row
    train(model, optimizer, data, 1)
    assert fingerprint(model, optimizer)[:2] != before
    watch.detach()
    assert not track.degraded


def test_a_guard_that_need_not_act_changes_no_bit() -> None:
    def run(**options: Any) -> list[Any]:
        model = classifier()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        watch = attach(optimizer, **options)
        train(model, optimizer, batches(), 40)
        watch.detach()
        return fingerprint(model, optimizer)

    assert run() == run(guard=("skip_nonfinite",))


def test_it_skips_so_many_in_a_row_and_then_says_that_it_lets_one_through(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = classifier()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    watch = attach(optimizer, guard="skip_nonfinite")
    told: list[tuple[int, str]] = []
    guard = watch._agent.tracks[0].guard
    guard.news = told  # type: ignore[assignment]
    data = batches()
    train(model, optimizer, data, 1)
    for _ in range(3):
        spoil(model, optimizer, data)
        assert all(p.isfinite().all() for p in model.parameters())
    spoil(model, optimizer, data)
    assert not all(p.isfinite().all() for p in model.parameters())
    assert guard.skipped == 3
    texts = [text for _, text in told]
    assert texts[:3] == ["guard: a step was skipped, its gradients were not finite"] * 3
    assert texts[3] == "guard: gradients that are not finite were let through, 3 in a row were skipped"
    told.clear()
    watch.detach()


def test_it_skips_so_many_of_a_thousand() -> None:
    parameter = nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([parameter], lr=0.0)
    watch = attach(optimizer, guard=("skip_nonfinite",))
    guard = watch._agent.tracks[0].guard
    for number in range(44):
        parameter.grad = torch.tensor([math.nan if number % 2 else 1.0])
        optimizer.step()
        if number == 40:
            assert (guard.skipped, bool(parameter.isfinite())) == (20, True)
    assert guard.skipped == 20
    watch.detach()


def test_with_a_closure_the_gradients_within_decide() -> None:
    parameter = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.Adam([parameter], lr=0.1)
    watch = attach(optimizer, guard=("skip_nonfinite",))
    values = [1.0, math.nan, 1.0]

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = (parameter * values.pop(0)).sum()
        loss.backward()
        return loss

    seen = []
    for _ in range(3):
        optimizer.step(closure)  # type: ignore[arg-type]
        seen.append(parameter.detach().clone())
    assert torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[1], seen[2])
    assert seen[2].isfinite().all()
    assert watch._agent.tracks[0].guard.skipped == 1
    watch.detach()


def test_the_adaptive_clip_follows_what_is_usual_and_no_spike_raises_it() -> None:
    adaptive = AdaptiveNorm()
    norms = [1 + 0.1 * math.sin(i) for i in range(40)]
    for norm in norms[: AUTO_LEAST - 1]:
        adaptive.see(norm)
    assert adaptive.limit is None
    for norm in norms[AUTO_LEAST - 1 :]:
        adaptive.see(norm)
    assert adaptive.limit == pytest.approx(usual_norm(norms), rel=0.05)
    limit = adaptive.limit
    for _ in range(8):
        adaptive.see(min(1e3, adaptive.limit or 0.0))
    assert adaptive.limit < 1.5 * limit, "of 8 spikes in a row, each is seen as it was after the clip"


def test_a_spike_is_clipped_to_what_is_usual() -> None:
    model = classifier()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    watch = attach(optimizer, guard=("clip",), budget=1.0)
    data = batches()
    train(model, optimizer, data, 60)
    limit = watch._agent.tracks[0].guard.adaptive
    assert limit is not None
    assert limit.limit is not None
    spoil(model, optimizer, data, value=1e6)
    row = watch._agent.tracks[0].recorder._newest[0].values
    assert row["grad_norm_raw"] > 1e5
    assert row["grad_norm"] == pytest.approx(row["guard_clip"], rel=0.2)
    assert math.sqrt(sum(float(p.grad.square().sum()) for p in model.parameters() if p.grad is not None)) < 10
    watch.detach()


def test_where_there_is_no_guard_a_warning_says_why(caplog: pytest.LogCaptureFixture) -> None:
    optimizer = torch.optim.LBFGS([nn.Parameter(torch.ones(2))])
    watch = attach(optimizer, guard=("skip_nonfinite",))
    assert "no guard for optimizer: LBFGS evaluates the loss more than once in a step" in caplog.text
    assert not watch._agent.tracks[0].guard.on
    watch.detach()
    with pytest.raises(ValueError, match="unknown reflex 'all' in guard: it is one of skip_nonfinite, clip"):
        attach(optimizer, guard=("all",))

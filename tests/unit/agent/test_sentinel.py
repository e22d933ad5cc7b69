"""A gradient that leaps is measured in its step, however seldom its turn comes."""

import math
from typing import Any

import pytest
import torch
from torch import nn

import optwatch
from tests.unit.agent.models import batches, classifier


def norms(factors: dict[int, float], steps: int = 120, **frozen: Any) -> dict[int, float]:
    """The gradient norms that an agent recorded, by step, where its budget pays for none of them; the
    gradients of some steps are multiplied."""
    model = classifier()
    if frozen:
        for param in next(iter(model.children())).parameters():
            param.requires_grad_(False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    watch = optwatch.attach(optimizer)
    track = watch._agent.tracks[0]
    track.governor.budget = 1e-9
    track.governor.look.value = 0.0  # as if a look cost nothing
    rows: dict[int, dict[str, Any]] = {}
    track.recorder.add = rows.__setitem__  # type: ignore[method-assign]
    data = batches()
    for step in range(1, steps + 1):
        x, y = next(data)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        for param in model.parameters():
            if param.grad is not None:
                param.grad *= factors.get(step, 1.0)
        optimizer.step()
    watch.detach()
    assert len(rows) == steps
    return {step: float(values["grad_norm"]) for step, values in rows.items() if "grad_norm" in values}


def test_a_huge_gradient_is_measured_in_its_step() -> None:
    seen = norms({80: 1e3})
    usual = [value for step, value in seen.items() if step != 80]
    assert seen[80] > 100 * max(usual, default=0.0)


def test_so_is_one_that_is_not_finite() -> None:
    assert not math.isfinite(norms({80: math.nan})[80])


def test_also_where_the_first_layer_gets_no_gradient() -> None:
    assert 80 in norms({80: 1e3}, first=True)


@pytest.mark.parametrize("factor", [1.0, 3.0])
def test_gradients_as_usual_do_not_call(factor: float) -> None:
    assert len([step for step in norms({80: factor}) if step > 40]) <= 4

"""A rank's own time ends where its model is called, if ranks wait for each other there."""

import copy
import time
from collections.abc import Iterator

import pytest
import torch
from torch import nn

from optwatch_agent.pace import Pace, waits_in_forward
from optwatch_agent.phases import PHASES


@pytest.fixture
def model() -> Iterator[nn.Module]:
    """A model after a backward pass, with a hook of its own."""
    model = nn.Linear(2, 2)
    model.register_forward_pre_hook(lambda module, args: seen.append(PHASES.here().own), prepend=True)
    PHASES.here().begin_backward(1, time.perf_counter())
    PHASES.here().end_backward(1, raised=False)
    yield model
    seen.clear()


seen: list[float] = []
"""The own time when the model's own hook, in which it may wait, was called."""


def own_of_a_step(model: nn.Module) -> tuple[float, float]:
    """Seconds of own time up to the model's hook, and from there to the backward pass."""
    before = PHASES.here().own
    model(torch.zeros(2, 2))
    PHASES.here().begin_backward(1, time.perf_counter())
    PHASES.here().end_backward(1, raised=False)
    return seen[-1] - before, PHASES.here().own - seen[-1]


def test_it_ends_before_the_models_own_hooks(model: nn.Module) -> None:
    pace = Pace(model)
    until, within = own_of_a_step(model)
    assert until > 0
    assert within == 0
    pace.close()
    until, within = own_of_a_step(model)
    assert until == 0
    assert within > 0


def test_a_copy_of_the_model_has_no_part_in_it(model: nn.Module) -> None:
    pace = Pace(model)
    before = PHASES.here().own
    copy.deepcopy(model)(torch.zeros(2, 2))
    assert PHASES.here().own == before
    pace.close()


def test_a_whole_model_waits_in_its_backward_pass_alone(model: nn.Module) -> None:
    assert not waits_in_forward(model)

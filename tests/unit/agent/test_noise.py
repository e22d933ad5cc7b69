"""Noise by command: as large as it was asked for, from a seed of its own, the training's dice at rest."""

from typing import Any

import pytest
import torch
from torch import nn

from optwatch.wire.actions import AUTO_LEAST, Perturb
from optwatch_agent.actuators import Actuators
from optwatch_agent.attach import attach
from optwatch_agent.noise import Noise
from tests.unit.agent.models import batches, classifier, train
from tests.unit.agent.observed import Hand


def resting(*shape: int) -> tuple[nn.Parameter, torch.optim.Optimizer]:
    """A parameter whose gradient is 0, so that SGD moves it by the noise alone."""
    parameter = nn.Parameter(torch.zeros(shape))
    parameter.grad = torch.zeros(shape)
    return parameter, torch.optim.SGD([parameter], lr=1.0)


def test_it_fades_as_published() -> None:
    parameter, optimizer = resting(20_000)
    noise = Noise(Perturb(std=0.3, decay=0.55, seed=7), step=11)
    for step in (11, 12, 111):
        assert parameter.grad is not None
        parameter.grad.zero_()
        told = noise.add(optimizer, step)
        assert told == pytest.approx((0.3**2 / (1 + step - 11) ** 0.55) ** 0.5)
        assert float(parameter.grad.std()) == pytest.approx(told, rel=0.03)
        assert abs(float(parameter.grad.mean())) < 0.05 * told


def test_a_seed_is_what_it_comes_from() -> None:
    def drawn(seed: int, step: int = 1) -> torch.Tensor:
        parameter, optimizer = resting(64)
        Noise(Perturb(std=1.0, seed=seed), step=1).add(optimizer, step)
        assert parameter.grad is not None
        return parameter.grad.clone()

    state = torch.get_rng_state()
    assert torch.equal(drawn(1), drawn(1))
    assert not torch.equal(drawn(1), drawn(2))
    assert not torch.equal(drawn(1, 1), drawn(1, 2))
    assert torch.equal(torch.get_rng_state(), state)


def test_two_tensors_get_noise_of_their_own() -> None:
    params = [nn.Parameter(torch.zeros(8)) for _ in range(2)]
    for parameter in params:
        parameter.grad = torch.zeros(8)
    Noise(Perturb(std=1.0, seed=1), step=1).add(torch.optim.SGD(params, lr=1.0), 1)
    assert params[0].grad is not None
    assert params[1].grad is not None
    assert not torch.equal(params[0].grad, params[1].grad)


@pytest.mark.parametrize("target", ["grad", "param"])
def test_by_command_and_off_again(target: str) -> None:
    parameter, optimizer = resting(1_000)
    watch = attach(optimizer, allow="all")
    hand = Hand(watch._agent)
    hand.command("perturb", std=0.1, seed=3, target=target)
    moved = []
    for _ in range(4):
        before = parameter.detach().clone()
        assert parameter.grad is not None
        parameter.grad.zero_()
        optimizer.step()
        moved.append(float((parameter.detach() - before).std()))
        if len(moved) == 2 and target == "grad":
            hand.command("perturb", off=True)
    assert moved[0] == pytest.approx(0.1, rel=0.1)
    assert (moved[1] > 0.05) == (target == "grad")
    assert moved[2:] == [0.0, 0.0]
    watch.detach()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda p: torch.optim.LBFGS(p), "LBFGS compares gradients"),
        (lambda p: torch.optim.SparseAdam(p), "sparse gradients"),
    ],
)
def test_where_there_can_be_none_it_is_refused(make: Any, words: str) -> None:
    embedding = nn.Embedding(4, 2, sparse=True)
    embedding(torch.tensor([1, 2])).sum().backward()
    optimizer = make(list(embedding.parameters()))
    actuators = Actuators(optimizer)
    actuators.look_at_gradients()
    assert words in (actuators.refusal(Perturb(std=0.1), 1) or "")


def test_a_clip_that_adapts_follows_the_norms_that_it_leaves() -> None:
    model = classifier()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    watch = attach(optimizer, allow="all")
    hand, actuators = Hand(watch._agent), watch._agent.tracks[0].actuators
    hand.command("clip", max_norm=0.5, adapt=True)
    data = batches()
    train(model, optimizer, data, AUTO_LEAST - 1)
    assert actuators.max_norm == 0.5
    train(model, optimizer, data, 40)
    assert actuators.max_norm is not None
    assert 0.4 < actuators.max_norm < 0.55, "all of them were clipped to 0.5"
    hand.command("clip", off=True)
    train(model, optimizer, data, 1)
    assert actuators.max_norm is None
    assert actuators.adaptive is None
    watch.detach()

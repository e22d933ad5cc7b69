"""Optimizers that play against each other are known by what their backward passes go through."""

import pytest
import torch
from torch import Tensor, nn

import optwatch


def step(optimizer: torch.optim.Optimizer, loss: Tensor, in_place: bool = False) -> None:
    optimizer.zero_grad(set_to_none=not in_place)
    loss.backward()
    optimizer.step()


def trained(kind: str, swapped: bool = False) -> str:
    """Why the loss need not fall, as the agent tells it after a few steps of two optimizers."""
    torch.manual_seed(0)
    one, two = nn.Linear(2, 2), nn.Linear(2, 2)
    a, b = (torch.optim.SGD(each.parameters(), lr=0.01) for each in (one, two))
    watch = optwatch.attach({"b": b, "a": a} if swapped else {"a": a, "b": b})
    x = torch.randn(4, 2)
    for _ in range(8):
        match kind:
            case "game":  # `one` tells real from fake, `two` makes the fakes
                step(a, one(two(x).detach()).mean() - one(x).mean())
                step(b, -one(two(x)).mean())
            case "one loss":
                step(a, two(one(x)).square().mean())
                b.step()
                b.zero_grad()
            case "apart" | "apart, in place":
                step(a, one(x).square().mean(), kind == "apart, in place")
                step(b, two(x).square().mean(), kind == "apart, in place")
            case "apart, zeroed at once":
                for optimizer in (a, b):
                    optimizer.zero_grad(set_to_none=False)
                one(x).square().mean().backward()
                a.step()
                for optimizer in (a, b):
                    optimizer.zero_grad(set_to_none=False)
                two(x).square().mean().backward()
                b.step()
    assert watch._agent is not None
    told = {each.loss_may_rise for each in watch._agent.hello().optimizers}
    watch.detach()
    assert len(told) == 1
    return told.pop()


@pytest.mark.parametrize("swapped", [False, True])
def test_where_the_gradients_of_one_go_through_another_the_loss_need_not_fall(swapped: bool) -> None:
    assert "play against each other" in trained("game", swapped)


@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize("kind", ["one loss", "apart", "apart, in place", "apart, zeroed at once"])
def test_all_others_have_losses_that_have_to_fall(kind: str, swapped: bool) -> None:
    assert trained(kind, swapped) == ""


def test_an_optimizer_that_is_dropped_leaves_the_other_watched() -> None:
    one, two = nn.Linear(2, 2), nn.Linear(2, 2)
    a, b = (torch.optim.SGD(each.parameters(), lr=0.01) for each in (one, two))
    watch = optwatch.attach({"a": a, "b": b})
    step(a, one(torch.ones(1, 2)).sum())
    step(b, two(torch.ones(1, 2)).sum())
    del b
    for _ in range(3):
        step(a, one(torch.ones(1, 2)).sum())
    assert watch._agent is not None
    assert not watch._agent.tracks[0].degraded
    watch.detach()

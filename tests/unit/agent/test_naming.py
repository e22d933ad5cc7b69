"""What the agent says of the set-up of a model and its optimizers."""

import sys
import warnings
from types import ModuleType

import pytest
import torch
from torch import nn

from optwatch_agent.losses import TAP
from optwatch_agent.naming import describe, missing, names_of


def test_what_no_optimizer_has_is_named_unless_it_is_frozen() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2), nn.Linear(2, 2))
    optimizer = torch.optim.SGD(model[0].parameters(), lr=0.1)
    for param in model[2].parameters():
        param.requires_grad_(False)
    assert missing(model, [optimizer]) == ("1.weight", "1.bias")
    other = torch.optim.SGD(model[1].parameters(), lr=0.1)
    assert missing(model, [optimizer, other]) == ()
    assert missing(nn.DataParallel(model), [optimizer]) == ("1.weight", "1.bias")


def test_once_there_are_gradients_what_gets_none_is_not_missing() -> None:
    """As the target network of a DQN, which wants one by its flag only."""
    model = nn.ModuleDict({name: nn.Linear(3, 1) for name in ("online", "target", "forgotten")})
    optimizer = torch.optim.SGD(model["online"].parameters(), lr=0.1)
    x = torch.ones(2, 3)
    with torch.no_grad():
        goal = model["target"](x)
    TAP.install()
    try:
        (model["online"](x) + model["forgotten"](x) - goal).square().mean().backward()
        assert missing(model, [optimizer]) == ("forgotten.weight", "forgotten.bias")
    finally:
        TAP.remove()
    assert len(missing(model, [optimizer])) == 4, "whose passes there were is not known"


def test_of_names_only_whole_parts_of_wrappers_are_left_out() -> None:
    model = nn.ModuleDict(
        {"mean_module": nn.Linear(1, 1, bias=False), "submodule": nn.Linear(1, 1, bias=False)}
    )
    wrapped = nn.DataParallel(torch.compile(model))  # type: ignore[arg-type]
    assert set(names_of(wrapped).values()) == {"mean_module.weight", "submodule.weight"}


def test_names_that_would_be_the_same_without_wrappers_stay_whole() -> None:
    inner = nn.Linear(1, 1, bias=False)
    inner.module = nn.Linear(1, 1, bias=False)
    assert set(names_of(inner).values()) == {"weight", "module.weight"}
    assert names_of(None) == {}


def test_an_optimizer_of_copies_has_nothing_missing() -> None:
    model = nn.Linear(3, 3)
    masters = [param.detach().clone().requires_grad_() for param in model.parameters()]
    assert missing(model, [torch.optim.SGD(masters, lr=0.1)]) == ()
    assert missing(None, [torch.optim.SGD(masters, lr=0.1)]) == ()


def test_what_is_listed_twice_and_what_is_half_precision_is_told() -> None:
    weight, half = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2, dtype=torch.float16))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        optimizer = torch.optim.SGD([{"params": [weight, weight]}, {"params": [half]}], lr=0.1)
    first, second = describe("o", optimizer).groups
    assert (first.twice, first.half) == (1, False)
    assert (second.twice, second.half) == (0, True)


def test_where_an_environment_is_at_hand_the_loss_need_not_fall(monkeypatch: pytest.MonkeyPatch) -> None:
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=0.1)
    assert describe("optimizer", optimizer).loss_may_rise == ""
    monkeypatch.setitem(sys.modules, "gymnasium", ModuleType("gymnasium"))
    assert describe("optimizer", optimizer).loss_may_rise == "reinforcement learning with gymnasium"

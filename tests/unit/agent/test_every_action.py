"""Every action, and what takes it back, on every optimizer: it is done, or refused with a reason and nothing
changes."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

from optwatch.wire.actions import ACTIONS
from optwatch_agent.attach import attach, innermost
from tests.unit.agent.models import OPTIMIZERS, batches, classifier, fingerprint, train
from tests.unit.agent.observed import Hand
from tests.unit.agent.test_other_packages import CASES, Case, build

ASKED: list[tuple[str, dict[str, Any], dict[str, Any] | None]] = [
    ("restart", {}, None),
    ("restart", {"moments": "first"}, None),
    ("restart", {"moments": "second"}, None),
    ("restart", {"warmup": 3}, None),
    ("scale_lr", {"factor": 0.5}, {"factor": 2.0}),
    ("scale_lr", {"factor": 0.25, "ramp": 3}, {"reset": True}),
    ("clip", {"max_norm": 1e-3}, {"off": True}),
    ("clip", {"max_norm": 0.5, "adapt": True}, {"off": True}),
    ("perturb", {"std": 1e-3, "seed": 1}, {"off": True}),
    ("perturb", {"std": 1e-4, "seed": 1, "target": "param"}, None),
    ("snapshot", {}, None),
    ("rollback", {}, None),
    ("stop", {}, None),
]
"""(action, its arguments, those that take it back)."""

REFUSED = {
    "sgd": {"restart first", "restart second"},
    "asgd": {"restart all", "restart first", "restart second"},
}
FEW = ("adamw", "nesterov", "asgd")


def walk(model: nn.Module, optimizer: Any, hand: Hand, track: Any, twin: Any = None) -> list[str]:
    """Do everything that is asked; what was refused, with what it was refused for."""
    inner = innermost(optimizer)
    data, refused = batches(dtype=next(model.parameters()).dtype), []
    train(model, optimizer, data, 3)
    lrs = [group["lr"] for group in inner.param_groups]
    for action, args, back in ASKED:
        before = everything(model, inner)
        hand.command(action, **args)
        name, state, reason = hand.outcomes()[-1]
        if state == "refused":
            assert name == action
            assert len(reason) > 10
            assert everything(model, inner) == before, "refused, and yet something has changed"
            refused.append(f"{action} {args.get('moments', 'all')}: {reason}")
            continue
        train(model, optimizer, data, 5)
        assert hand.outcomes()[-1][:2] == (action, "applied"), hand.outcomes()[-1]
        if back is not None:
            hand.command(action, **back)
            train(model, optimizer, data, 2)
            assert hand.outcomes()[-1][:2] == (action, "applied"), hand.outcomes()[-1]
        assert [group["lr"] for group in inner.param_groups] == lrs
        if twin is not None:
            check_at_rest(model, inner, twin)
    assert not track.degraded, track.degraded
    assert all(p.isfinite().all() for p in model.parameters())
    return refused


def check_at_rest(model: nn.Module, optimizer: Any, twin: Any) -> None:
    """With everything taken back, the training goes on as one that was never watched."""
    other = copy.deepcopy(model)
    fresh = twin(other.parameters())
    fresh.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    rng = torch.get_rng_state()
    train(model, optimizer, batches(5), 2)
    torch.set_rng_state(rng)
    train(other, fresh, batches(5), 2)
    assert fingerprint(model, optimizer)[:2] == fingerprint(other, fresh)[:2]


@pytest.mark.parametrize(
    "name", [n if n in FEW else pytest.param(n, marks=pytest.mark.slow) for n in OPTIMIZERS]
)
def test_of_torch(name: str) -> None:
    model = classifier()
    optimizer = OPTIMIZERS[name](model.parameters())
    watch = attach(optimizer, model=model, allow="all", snapshots=1 << 20)
    refused = walk(model, optimizer, Hand(watch._agent), watch._agent.tracks[0], OPTIMIZERS[name])
    print(*refused, sep="\n")
    whole = [each for each in refused if not each.startswith(("restart first", "restart second"))]
    assert bool(whole) == (name == "asgd"), whole
    watch.detach()
    assert "step" not in vars(optimizer)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", CASES)
def test_of_other_packages(name: str) -> None:
    case: Case = CASES[name]
    model, make = build(case)
    optimizer = make(model.parameters())
    watch = attach(optimizer, model=model, allow="all", snapshots=1 << 22)
    refused = walk(model, optimizer, Hand(watch._agent), watch._agent.tracks[0])
    print(*refused, sep="\n")
    watch.detach()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", CASES)
def test_a_rollback_of_other_packages_brings_back_the_bits(name: str) -> None:
    """Slow weights and averages too, so that the next synchronisation finds what the snapshot had.

    A Lookahead around the optimizer may synchronise after the inner update, at which a snapshot is taken.
    """
    case: Case = CASES[name]
    model, make = build(case)
    optimizer = make(model.parameters())
    inner = innermost(optimizer)
    watch = attach(optimizer, model=model, allow="all", snapshots=1 << 22)
    hand, data = Hand(watch._agent), batches(dtype=case.dtype)
    train(model, optimizer, data, 6)
    hand.command("snapshot")
    train(model, optimizer, data, 1)
    before = everything(model, inner)
    for parameter in model.parameters():
        parameter.data.fill_(torch.nan)
    train(model, optimizer, data, 4)
    hand.command("rollback", to_step=7)
    train(model, optimizer, data, 1)
    assert hand.outcomes()[-1][:2] == ("rollback", "applied"), hand.outcomes()[-1]
    assert everything(model, inner) == before or "Lookahead" in name
    train(model, optimizer, data, 8)
    assert all(p.isfinite().all() for p in model.parameters())
    for state in vars(optimizer).get("state", {}).values():
        assert all(torch.as_tensor(x).isfinite().all() for x in numbers(state).values())
    watch.detach()


def everything(model: nn.Module, optimizer: torch.optim.Optimizer) -> Any:
    """All numbers that a training depends on, bit for bit."""
    states = [numbers(optimizer.state.get(p, {})) for p in model.parameters()]
    groups = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
    return repr([[numbers(p) for p in model.parameters()], states, numbers(groups)])


def numbers(value: Any) -> Any:
    """Tensors as lists, also those that unpack themselves."""
    if isinstance(value, dict):
        return {key: numbers(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [numbers(item) for item in value]
    if isinstance(value, torch.Tensor):
        value = value.detach()
        return (
            value.dequantize() if type(value).dequantize is not torch.Tensor.dequantize else value
        ).tolist()
    return value


def test_every_action_is_among_them() -> None:
    assert {action for action, _, _ in ASKED} == set(ACTIONS)

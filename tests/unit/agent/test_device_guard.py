"""The guard whose verdict stays on the device, here on tensors of the CPU, beside that of the host."""

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from optwatch_agent.device_guard import DeviceGuard, UsualNorm
from optwatch_agent.guard import Guard
from optwatch_agent.reflexes import MOST_IN_A_ROW, MOST_OF_LAST, AdaptiveNorm
from tests.unit.agent.elsewhere import Device, device
from tests.unit.agent.models import batches, classifier

__all__ = ["device"]

FUSED = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, fused=True),
    "adam": lambda p: torch.optim.Adam(p, lr=1e-2, fused=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-2, fused=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=1e-2, fused=True),
}


def on_device(reflexes: tuple[str, ...], optimizer: torch.optim.Optimizer) -> Guard:
    """A guard as an optimizer gets it whose parameters are on a device."""
    guard = Guard(reflexes, optimizer)
    guard.on_device = DeviceGuard(guard.skips, guard.adaptive)
    return guard


def steps(
    model: nn.Module, optimizer: Any, guard: Guard, spoiled: set[int], count: int, first: int = 1
) -> None:
    """Train, with a NaN in the gradients of some steps."""
    data = batches()
    for _ in range(first - 1):
        next(data)
    for step in range(first, first + count):
        x, y = next(data)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        if step in spoiled:
            next(model.parameters()).grad.view(-1)[3] = math.nan  # type: ignore[union-attr]
        guard.act_on_device(optimizer, step)
        optimizer.step()
        guard.end()


def leaves(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[Tensor]:
    state = [
        value for each in optimizer.state.values() for value in each.values() if isinstance(value, Tensor)
    ]
    return [x.detach().clone() for x in (*model.parameters(), *state)]


@pytest.mark.parametrize("name", FUSED)
def test_a_fused_optimizer_leaves_the_step_out(name: str) -> None:
    model = classifier().eval()
    optimizer = FUSED[name](model.parameters())
    guard = on_device(("skip_nonfinite",), optimizer)
    steps(model, optimizer, guard, set(), 3)
    before = leaves(model, optimizer)
    steps(model, optimizer, guard, {4}, 1, first=4)
    assert all(torch.equal(one, other) for one, other in zip(before, leaves(model, optimizer), strict=True))
    assert not hasattr(optimizer, "found_inf")
    steps(model, optimizer, guard, set(), 1, first=5)
    assert not torch.equal(before[0], next(model.parameters()))
    assert guard.skipped == 1
    assert list(guard.news) == [(4, "guard: a step was skipped, its gradients were not finite")]


@pytest.mark.parametrize("name", FUSED)
def test_a_guard_that_need_not_act_changes_no_bit(name: str) -> None:
    model = classifier().eval()
    other = copy.deepcopy(model)
    optimizer, plain = FUSED[name](model.parameters()), FUSED[name](other.parameters())
    steps(model, optimizer, on_device(("skip_nonfinite", "clip"), optimizer), set(), 15)
    unguarded = Guard((), plain)
    unguarded.on_device = DeviceGuard(False, None)
    steps(other, plain, unguarded, set(), 15)
    pairs = zip(leaves(model, optimizer), leaves(other, plain), strict=True)
    assert all(torch.equal(one, two) for one, two in pairs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_any_other_optimizer_takes_a_step_of_zero_gradients(dtype: torch.dtype) -> None:
    params = [nn.Parameter(torch.ones(5, dtype=dtype)), nn.Parameter(torch.ones(2, 3, dtype=dtype))]
    twins = [nn.Parameter(p.detach().clone()) for p in params]
    optimizer, twin = (torch.optim.SGD(of, lr=0.1, momentum=0.5, foreach=False) for of in (params, twins))
    guard = on_device(("skip_nonfinite",), optimizer)
    for step in range(1, 4):
        for param, other in zip(params, twins, strict=True):
            param.grad = torch.full_like(param, 0.5)
            other.grad = param.grad * (step != 2)
        if step == 2:
            params[1].grad[0, 1] = math.inf  # type: ignore[index]
        guard.act_on_device(optimizer, step)
        optimizer.step()
        guard.end()
        twin.step()
        for param, other in zip(params, twins, strict=True):
            assert torch.equal(param, other)
    assert guard.skipped == 1


def test_it_skips_as_often_as_the_guard_of_the_host() -> None:
    spoiled = {5, 6, 7, 8, 9, 12, *range(20, 80, 2), 1100, 1101}
    verdicts = []
    for there in (True, False):
        param = nn.Parameter(torch.zeros(1))
        optimizer = torch.optim.SGD([param], lr=1.0, fused=True)
        guard = on_device(("skip_nonfinite",), optimizer) if there else Guard(("skip_nonfinite",), optimizer)
        skipped = []
        for step in range(1, 1103):
            bad = step in spoiled
            param.data.zero_()
            param.grad = torch.tensor([math.nan if bad else 1.0])
            if there:
                guard.act_on_device(optimizer, step)
            elif bad:
                guard.skip(optimizer, step)
            else:
                guard.passes()
            optimizer.step()
            guard.end()
            if bad and param.item() == 0.0:
                skipped.append(step)
        verdicts.append(skipped)
        assert guard.skipped == len(skipped)
    assert verdicts[0] == verdicts[1]
    assert verdicts[0][:4] == [5, 6, 7, 12]
    assert MOST_IN_A_ROW < len(verdicts[0]) == MOST_OF_LAST + 2


def test_a_spike_is_clipped_to_what_is_usual_and_does_not_raise_it() -> None:
    param = nn.Parameter(torch.zeros(4))
    optimizer = torch.optim.SGD([param], lr=1.0)
    guard = on_device(("clip",), optimizer)
    adaptive = guard.adaptive
    assert adaptive is not None
    for step in range(1, 80):
        param.data.zero_()
        grad = torch.tensor([1.0, 2.0, 0.0, 0.0]) * (1 + 0.1 * math.sin(step)) * (1e6 if step > 70 else 1.0)
        param.grad = grad.clone()
        limit = adaptive.limit
        guard.act_on_device(optimizer, step)
        optimizer.step()
        if step > 70:
            assert limit is not None
            assert float(param.detach().double().norm()) == pytest.approx(limit, rel=1e-5)
            assert limit < 5
        else:
            assert torch.equal(-param.detach(), grad)


def test_the_limit_is_that_of_the_host_step_for_step() -> None:
    generator = torch.Generator().manual_seed(0)
    here, there = AdaptiveNorm(), UsualNorm(torch.device("cpu"))
    for step in range(500):
        norm = float(torch.randn((), generator=generator).exp())
        norm = {7: 0.0, 12: math.nan, 300: math.inf}.get(step, norm)
        here.see(norm)
        there.see(torch.tensor(norm, dtype=torch.float64))
        assert float(there.limit) == pytest.approx(here.limit or math.inf, rel=1e-12)


def test_the_limit_does_not_depend_on_when_the_host_hears(device: Device) -> None:
    """Else each of several ranks would clip to one of its own."""

    def run(delay: int) -> Tensor:
        device.delay = delay
        param = nn.Parameter(torch.zeros(4))
        optimizer = torch.optim.SGD([param], lr=1.0)
        guard = on_device(("clip",), optimizer)
        for step in range(1, 60):
            param.grad = torch.tensor([1.0, 2.0, 0.0, 0.0]) * (1 + 0.1 * math.sin(step))
            if step > 40:
                param.grad *= 1e3
            guard.act_on_device(optimizer, step)
            optimizer.step()
        return param.detach()

    assert torch.equal(run(0), run(13))


def test_the_end_waits_for_the_last_outcome(device: Device) -> None:
    device.delay = 100
    model = classifier()
    optimizer = FUSED["sgd"](model.parameters())
    guard = on_device(("skip_nonfinite",), optimizer)
    steps(model, optimizer, guard, {3}, 3)
    assert guard.skipped == 0
    guard.settle()
    assert guard.skipped == 1


def test_on_several_devices_there_is_none() -> None:
    params = [nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2, device="meta"))]
    guard = Guard(("skip_nonfinite", "clip"), torch.optim.SGD(params, lr=0.1))
    assert "several devices" in guard.refused
    assert not guard.on
    assert guard.on_device is None

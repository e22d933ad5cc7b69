"""A scaled LR under every scheduler of torch: factor × the undisturbed schedule, and no trace after."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler as schedulers

from optwatch_agent.attach import attach
from tests.unit.agent.observed import Hand, watched

FOR = 40
ON, OFF, ON_AGAIN, RAISES = 10, 20, 26, 31
"""Steps at which the scale is commanded, taken back and commanded anew, and one that raises."""

SCHEDULERS: dict[str, Any] = {
    "LambdaLR": lambda o: schedulers.LambdaLR(o, lambda n: 0.9**n),
    "MultiplicativeLR": lambda o: schedulers.MultiplicativeLR(o, lambda n: 0.95),
    "StepLR": lambda o: schedulers.StepLR(o, 5),
    "MultiStepLR": lambda o: schedulers.MultiStepLR(o, [5, 12]),
    "ConstantLR": lambda o: schedulers.ConstantLR(o, 0.3, 7),
    "LinearLR": lambda o: schedulers.LinearLR(o, 0.2, total_iters=12),
    "ExponentialLR": lambda o: schedulers.ExponentialLR(o, 0.9),
    "PolynomialLR": lambda o: schedulers.PolynomialLR(o, 25, 2.0),
    "CosineAnnealingLR": lambda o: schedulers.CosineAnnealingLR(o, 15, eta_min=1e-3),
    "CosineAnnealingWarmRestarts": lambda o: schedulers.CosineAnnealingWarmRestarts(o, 6, eta_min=1e-3),
    "CyclicLR": lambda o: schedulers.CyclicLR(o, 1e-3, 0.1, 5, cycle_momentum=False),
    "CyclicLR-momentum": lambda o: schedulers.CyclicLR(o, 1e-3, 0.1, 5),
    "OneCycleLR": lambda o: schedulers.OneCycleLR(o, 0.1, FOR + 1),
    "ReduceLROnPlateau": lambda o: schedulers.ReduceLROnPlateau(o, factor=0.5, patience=3, cooldown=2),
    "SequentialLR": lambda o: schedulers.SequentialLR(
        o, [schedulers.LinearLR(o, 0.1, total_iters=5), schedulers.CosineAnnealingLR(o, 15, 1e-3)], [5]
    ),
    "ChainedScheduler": lambda o: schedulers.ChainedScheduler(
        [schedulers.ConstantLR(o, 0.1, 4), schedulers.ExponentialLR(o, 0.9)]
    ),
}


def test_no_scheduler_of_torch_is_left_out() -> None:
    assert set(schedulers.__all__) - {"LRScheduler"} <= {name.split("-")[0] for name in SCHEDULERS}


class Stumbling(torch.optim.SGD):
    """Raises in the middle of a step where it is told to."""

    used: list[list[float]]
    stumbles = False

    def step(self, closure: Any = None) -> Any:  # type: ignore[override]
        self.used.append([float(group["lr"]) for group in self.param_groups])
        result = super().step(closure)
        if self.stumbles:
            raise RuntimeError("stumbled")
        return result


def scheduled(make: Any, tensor_lr: bool, watched: bool) -> tuple[list[Any], list[Any], list[Any], Any]:
    """A training under a scheduler: the lr of all groups before each step, in its update, and after it, and
    the scheduler's end."""
    params = [nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(2))]
    lrs = [torch.tensor(lr, dtype=torch.float64) if tensor_lr else lr for lr in (0.1, 0.05)]
    groups = [{"params": [p], "lr": lr} for p, lr in zip(params, lrs, strict=True)]
    optimizer = Stumbling(groups, lr=0.1, momentum=0.9)
    optimizer.used = []
    watch = attach(optimizer) if watched else None
    hand = Hand(watch._agent) if watch is not None else None
    scheduler = make(optimizer)
    step_of_scheduler = vars(optimizer).get("step")
    before, after = [], []
    for step in range(1, FOR + 1):
        if hand is not None and step in (ON, ON_AGAIN):
            hand.command("scale_lr", factor=0.5)
        if hand is not None and step == OFF:
            hand.command("scale_lr", reset=True)
        before.append([float(group["lr"]) for group in optimizer.param_groups])
        for p in params:
            p.grad = torch.full_like(p, 0.01)
        optimizer.stumbles = step == RAISES
        if optimizer.stumbles:
            with pytest.raises(RuntimeError, match="stumbled"):
                optimizer.step()
        else:
            optimizer.step()
        after.append([float(group["lr"]) for group in optimizer.param_groups])
        if isinstance(scheduler, schedulers.ReduceLROnPlateau):
            scheduler.step(1.0)
        else:
            scheduler.step()
    if watch is not None and hand is not None:
        assert [state for _, state, _ in hand.outcomes() if state != "pending"] == ["applied"] * 3
        watch.detach()
        assert vars(optimizer).get("step") is step_of_scheduler
    state = {key: value for key, value in scheduler.state_dict().items() if not key.startswith("_")}
    if tensor_lr:
        assert all(group["lr"] is lr for group, lr in zip(optimizer.param_groups, lrs, strict=True))
    return before, optimizer.used, after, [repr(state), [float(x) for x in scheduler.get_last_lr()]]


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("tensor_lr", [False, True], ids=["number", "tensor"])
def test_scale_lr_is_exact_and_leaves_the_schedule_alone(name: str, tensor_lr: bool) -> None:
    make = SCHEDULERS[name]
    schedule, plain, _, end = scheduled(make, tensor_lr, watched=False)
    before, used, after, scaled_end = scheduled(make, tensor_lr, watched=True)
    assert plain == schedule
    assert before == schedule
    assert after == schedule, "also after the step that raised"
    assert scaled_end == end
    # A command is applied in the step after the one that sees it first, which puts the wrapper on.
    for step, (lrs, wanted) in enumerate(zip(used, schedule, strict=True), start=1):
        scaled = ON < step < OFF or step > ON_AGAIN
        assert lrs == [0.5 * lr if scaled else lr for lr in wanted], step


class Decaying(torch.optim.SGD):
    """Lets its LR decay by itself, as Pyro's ClippedAdam does, or sets it, as by a warm-up of its own."""

    def __init__(self, params: Any, lr: Any, sets: bool, replaces: bool) -> None:
        super().__init__(params, lr=lr)
        self.sets, self.replaces = sets, replaces
        self.used: list[float] = []

    def step(self, closure: Any = None) -> Any:  # type: ignore[override]
        self.used.append(float(self.param_groups[0]["lr"]))
        result = super().step(closure)
        for group in self.param_groups:
            changed = 0.1 / (len(self.used) + 1) if self.sets else group["lr"] * 0.97
            if isinstance(group["lr"], torch.Tensor) and not self.replaces:
                group["lr"].fill_(changed)
            else:
                group["lr"] = changed
        return result


@pytest.mark.parametrize("sets", [False, True], ids=["decays", "sets"])
@pytest.mark.parametrize(
    ("tensor_lr", "replaces"),
    [(False, True), (True, False), (True, True)],
    ids=["number", "tensor", "tensor that is replaced"],
)
def test_an_lr_that_the_optimizer_changes_in_its_step_goes_on_as_without_the_scale(
    tensor_lr: bool, replaces: bool, sets: bool
) -> None:
    def trained(watched: bool) -> list[float]:
        parameter = nn.Parameter(torch.ones(3))
        lr = torch.tensor(0.1, dtype=torch.float64) if tensor_lr else 0.1
        optimizer = Decaying([parameter], lr, sets, replaces)
        hand = Hand(attach(optimizer)._agent) if watched else None
        for step in range(1, FOR + 1):
            if hand is not None and step == ON:
                hand.command("scale_lr", factor=0.5)
            if hand is not None and step == OFF:
                hand.command("scale_lr", reset=True)
            parameter.grad = torch.ones(3)
            optimizer.step()
        return optimizer.used

    plain, used = trained(watched=False), trained(watched=True)
    scaled = [0.5 * lr if ON < step < OFF else lr for step, lr in enumerate(plain, start=1)]
    assert used == pytest.approx(scaled, rel=1e-12)


def test_groups_that_share_a_tensor_are_all_told_of_the_schedule() -> None:
    params, lr = [nn.Parameter(torch.ones(3)) for _ in range(2)], torch.tensor(0.1)
    optimizer = torch.optim.SGD([{"params": [param], "lr": lr} for param in params], foreach=False)
    watch, rows = watched(optimizer)
    Hand(watch._agent).command("scale_lr", factor=0.5)
    for _ in range(4):
        for param in params:
            param.grad = torch.ones(3)
        optimizer.step()
    watch.detach()
    assert rows.column("lr") == rows.column("lr/1") == pytest.approx([0.1] * 4)
    assert torch.equal(*params)
    assert float(params[0].detach()[0]) > 0.7, "scaled"

"""Restart, scale_lr and clip on real optimizers."""

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from optwatch.wire.actions import Clip, Restart, ScaleLr
from optwatch.wire.messages import Prepare
from optwatch_agent.actuators import Actuators
from optwatch_agent.attach import attach
from tests.unit.agent.models import OPTIMIZERS, batches, classifier, fingerprint, train
from tests.unit.agent.observed import Hand


@pytest.fixture
def optimizer() -> torch.optim.Optimizer:
    model = classifier()
    return torch.optim.SGD(model.parameters(), lr=0.1)


def test_scales_multiply_and_ramp(optimizer: torch.optim.Optimizer) -> None:
    watch = attach(optimizer)
    scale = watch._agent.tracks[0].actuators.lr_scale
    scale.go_to(0.5, 0)
    assert scale.factor == 0.5
    actuators = watch._agent.tracks[0].actuators
    assert actuators.apply(ScaleLr(factor=0.5)) == {"lr_scale": 0.25}
    actuators.apply(ScaleLr(factor=4.0, ramp=3))
    factors = []
    for _ in range(5):
        factors.append(scale.enter())
        scale.leave()
    assert factors[:3] == pytest.approx([0.4375, 0.625, 0.8125], rel=1e-12)
    assert factors[3:] == [None, None]
    watch.detach()


def test_the_lr_comes_back_when_a_step_raises() -> None:
    param = nn.Parameter(torch.ones(2))

    class Stumbling(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            if param.grad is not None and param.grad.isnan().any():
                raise RuntimeError("stumbled")
            return super().step(closure)

    optimizer = Stumbling([param], lr=0.1)
    watch = attach(optimizer)
    hand = Hand(watch._agent)
    param.grad = torch.ones(2)
    hand.command("scale_lr", factor=0.5)
    optimizer.step()
    optimizer.step()
    assert [state for _, state, _ in hand.outcomes()] == ["pending", "applied"]
    param.grad = torch.full((2,), torch.nan)
    with pytest.raises(RuntimeError, match="stumbled"):
        optimizer.step()
    assert optimizer.param_groups[0]["lr"] == 0.1
    completed = watch._agent.tracks[0].completed
    param.grad = torch.ones(2)
    optimizer.step()
    assert watch._agent.tracks[0].completed == completed + 1
    watch.detach()
    assert "step" not in vars(optimizer)


def test_checkpoints_hold_the_scheduled_lr(optimizer: torch.optim.Optimizer) -> None:
    watch = attach(optimizer)
    hand = Hand(watch._agent)
    hand.command("scale_lr", factor=0.25)
    for _ in range(3):
        for p in optimizer.param_groups[0]["params"]:
            p.grad = torch.ones_like(p)
        optimizer.step()
        assert optimizer.state_dict()["param_groups"][0]["lr"] == 0.1
    assert hand.outcomes()[-1][1] == "applied"
    watch.detach()


@pytest.mark.parametrize("max_norm", [0.01, 1.0, 1e3])
@pytest.mark.parametrize("fused", [False, True])
def test_clip_equals_clip_grad_norm(max_norm: float, fused: bool) -> None:
    def run(ours: bool) -> list[Tensor]:
        model = classifier()
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2, fused=fused)
        watch = attach(optimizer)
        if ours:
            Hand(watch._agent).command("clip", max_norm=max_norm)
        data = batches()
        for _ in range(20):
            x, y = next(data)
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            if not ours:
                nn.utils.clip_grad_norm_(model.parameters(), max_norm)
            optimizer.step()
        watch.detach()
        return [p.detach() for p in model.parameters()]

    for ours, theirs in zip(run(True), run(False), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_clip_off_and_auto() -> None:
    model = classifier()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    watch = attach(optimizer, budget=1.0)
    hand, actuators = Hand(watch._agent), watch._agent.tracks[0].actuators
    hand.command("clip", max_norm="auto")
    assert hand.outcomes()[-1][1] == "refused"
    for _ in range(1000):
        train(model, optimizer, batches(), 1)
        if len(actuators.recent_norms) >= 30:
            break
    hand.command("clip", max_norm="auto")
    train(model, optimizer, batches(), 1)
    logs = sorted(math.log(norm) for norm in list(actuators.recent_norms)[:-1])
    assert actuators.max_norm is not None
    assert math.exp(logs[len(logs) // 2 - 1]) < actuators.max_norm < math.exp(logs[-1]) * 10
    hand.command("clip", off=True)
    train(model, optimizer, batches(), 1)
    assert actuators.max_norm is None
    watch.detach()


def test_clip_auto_is_for_a_rank_alone() -> None:
    """Ranks that each take a number from their own norms could end up with different parameters."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(2))], lr=0.1)
    actuators = Actuators(optimizer)
    actuators.recent_norms.extend([1.0] * 200)
    assert actuators.refusal(Clip(max_norm="auto"), 1) is None
    assert "give one" in (actuators.refusal(Clip(max_norm="auto"), 2) or "")
    assert actuators.refusal(Clip(max_norm=1.0), 2) is None


RESTARTABLE = [name for name in OPTIMIZERS if name not in ("asgd",)]


@pytest.mark.parametrize("name", RESTARTABLE)
def test_restart_is_a_fresh_optimizer(name: str) -> None:
    """After a restart an optimizer goes on as a new one would on the same parameters."""
    model = classifier()
    optimizer = OPTIMIZERS[name](model.parameters())
    watch = attach(optimizer)
    train(model, optimizer, batches(), 10)
    twin = copy.deepcopy(model)
    fresh = OPTIMIZERS[name](twin.parameters())
    held = {id(value) for state in optimizer.state.values() for value in state.values()}
    Hand(watch._agent).command("restart")
    rng = torch.get_rng_state()
    train(model, optimizer, batches(3), 5)
    torch.set_rng_state(rng)
    train(twin, fresh, batches(3), 5)
    watch.detach()
    kept = {
        id(value)
        for state in optimizer.state.values()
        for value in state.values()
        if isinstance(value, Tensor)
    }
    if name != "momentum":  # a first buffer is the gradient itself, one of zeros would be damped
        assert kept <= held, "the state is cleared in place"
    for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)


def test_restart_of_lbfgs_forgets_its_history() -> None:
    x, y = next(batches())

    def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(x), y)
            loss.backward()
            return loss

        optimizer.step(closure)  # type: ignore[arg-type]

    model = classifier().eval()
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=3)
    watch = attach(optimizer)
    for _ in range(3):
        step(model, optimizer)
    twin = copy.deepcopy(model)
    Hand(watch._agent).command("restart")
    step(model, optimizer)
    watch.detach()
    step(twin, torch.optim.LBFGS(twin.parameters(), lr=0.1, max_iter=3))
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(
    ("name", "action", "says"),
    [
        ("sgd", Restart(moments="second"), "no second moment"),
        ("adam", Restart(moments="second"), "restart all"),
        ("adagrad", Restart(moments="first"), "no first moment"),
        ("asgd", Restart(), "average of the parameters"),
    ],
)
def test_what_cannot_be_done_is_refused(name: str, action: Restart, says: str) -> None:
    model = classifier()
    optimizer = OPTIMIZERS[name](model.parameters())
    watch = attach(optimizer)
    refusal = watch._agent.tracks[0].actuators.refusal(action, 1)
    watch.detach()
    assert refusal is not None
    assert says in refusal


def test_a_clip_on_a_device_that_is_not_known_is_refused() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(2, device="meta"))], lr=0.1)
    assert "neither CPU nor CUDA" in (Actuators(optimizer).refusal(Clip(max_norm=1.0), 1) or "")
    assert Actuators(optimizer).refusal(Clip(off=True), 1) is None


def test_warmup_after_a_restart(optimizer: torch.optim.Optimizer) -> None:
    watch = attach(optimizer)
    hand = Hand(watch._agent)
    for p in optimizer.param_groups[0]["params"]:
        p.grad = torch.ones_like(p)
    optimizer.step()
    hand.command("restart", warmup=3)
    rows = []
    for _ in range(7):
        optimizer.step()
        rows.append(watch._agent.tracks[0].recorder._newest[0].values.get("lr_scale"))
    watch.detach()
    assert rows == [None, 0.25, 0.5, 0.75, None, None, None]


def test_allow_binds_the_daemon(optimizer: torch.optim.Optimizer) -> None:
    watch = attach(optimizer, allow=("clip",))
    hand = Hand(watch._agent)
    hand.command("restart")
    assert hand.outcomes() == [("restart", "refused", "attach allows clip here, not restart")]
    hand.command("clip", max_norm=-1.0)
    assert hand.outcomes()[-1][1] == "refused"
    watch.detach()


def test_a_vote_is_taken_once_and_a_foreign_session_never(optimizer: torch.optim.Optimizer) -> None:
    watch = attach(optimizer)
    hand = Hand(watch._agent)
    hand.command("clip", max_norm=1.0)
    hand.count -= 1
    hand.command("clip", max_norm=1.0)
    assert len(watch._agent.control.pending) == 1
    foreign = Prepare(
        session="other", command="9", vote="v9", n=1, steps=(), order=9, action="clip", args={"max_norm": 1.0}
    )
    watch._agent.take(foreign)
    assert len(watch._agent.control.pending) == 1
    watch.detach()


def test_all_is_undone_by_detach(optimizer: torch.optim.Optimizer) -> None:
    model = classifier()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    watch = attach(optimizer)
    hand = Hand(watch._agent)
    hand.command("clip", max_norm=1e-6)
    hand.command("scale_lr", factor=1e-3)
    train(model, optimizer, batches(), 3)
    watch.detach()
    assert "step" not in vars(optimizer)
    twin = copy.deepcopy(model)
    other = torch.optim.Adam(twin.parameters(), lr=1e-2)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    rng = torch.get_rng_state()
    train(model, optimizer, batches(5), 5)
    torch.set_rng_state(rng)
    train(twin, other, batches(5), 5)
    assert fingerprint(model, optimizer)[0] == fingerprint(twin, other)[0]


class Touched(nn.Parameter):
    """A parameter that counts who reads its gradient."""

    reads = 0

    @property
    def grad(self) -> Tensor | None:
        Touched.reads += 1
        read: Tensor | None = Tensor.grad.__get__(self)  # type: ignore[attr-defined]
        return read


@pytest.mark.parametrize(
    "action", [Clip(max_norm=1.0), Clip(max_norm="auto"), Restart(), ScaleLr(factor=0.5)]
)
def test_whether_an_action_can_be_done_is_told_without_touching_a_gradient(action: Any) -> None:
    """It is asked by the link's thread, while a backward pass may set gradients without the lock."""
    parameter = Touched(torch.ones(3))
    optimizer = torch.optim.SGD([parameter], lr=0.1)
    actuators = Actuators(optimizer)
    actuators.look_at_gradients()
    assert Touched.reads > 0
    before = Touched.reads
    actuators.refusal(action, 2)
    assert Touched.reads == before

"""Optimizers of a parameter each, stepped within the backward pass or one after another behind it: watched,
and commanded, as the one optimizer that they are together."""

import contextlib
import copy
import gc
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import optwatch
from optwatch.wire.actions import Perturb
from optwatch_agent import Watch
from optwatch_agent.phases import BACKWARD_BEGINS, BACKWARD_ENDS
from tests.unit.agent.observed import Hand, Sight, in_threads, measure_always, samples_of

Make = Callable[..., torch.optim.Optimizer]


class Overwrites(torch.optim.Optimizer):
    """One that nobody has described, and that uses the gradient up."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, {"lr": 1e-2})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for param in group["params"]:
                if param.grad is not None:
                    state = self.state[param]
                    seen = state.setdefault("exp_avg", torch.zeros_like(param))
                    param.grad.add_(param, alpha=1e-2)
                    seen.lerp_(param.grad, 0.1)
                    param.add_(seen, alpha=-group["lr"])


KINDS: dict[str, Make] = {
    "adamw": lambda params: torch.optim.AdamW(params, lr=1e-2),
    "momentum": lambda params: torch.optim.SGD(params, lr=0.05, momentum=0.9),
    "adadelta": lambda params: torch.optim.Adadelta(params),
    "overwrites": Overwrites,
}


def network() -> nn.Sequential:
    torch.manual_seed(3)
    sizes = [(8, 16), *[(16, 16)] * 6, (16, 4)]
    return nn.Sequential(*[part for a, b in sizes for part in (nn.Linear(a, b), nn.Tanh())])


def losses_of(model: nn.Module) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(5)
    while True:
        x = torch.randn(16, 8, generator=generator)
        yield nn.functional.mse_loss(model(x), x[:, :4])


class Training:
    """A training whose parameters have an optimizer each, or one all together.

    `way`: "within" backward, one after another "behind" it, or "together" in one optimizer.
    """

    def __init__(self, kind: str, way: str) -> None:
        self.way = way
        self.model = network()
        self.losses = losses_of(self.model)
        params = list(self.model.parameters())
        self.optimizers = {p: KINDS[kind]([p]) for p in params}
        self.whole = KINDS[kind](params)
        self.after_member: Callable[[Tensor], None] = lambda param: None
        self.zeroes = False
        """Whether gradients are zeroed in place."""
        if way == "within":
            for param in params:
                param.register_post_accumulate_grad_hook(self.step)

    @property
    def given(self) -> Any:
        """What is attached to."""
        return self.whole if self.way == "together" else self.optimizers

    def step(self, param: Tensor) -> None:
        self.optimizers[param].step()
        self.optimizers[param].zero_grad(set_to_none=not self.zeroes)
        self.after_member(param)

    def train(self, steps: int) -> list[float]:
        seen = []
        for _ in range(steps):
            loss = next(self.losses)
            loss.backward()
            if self.way == "behind":
                for param in self.optimizers:
                    self.step(param)
            elif self.way == "together":
                self.whole.step()
                self.whole.zero_grad()
            seen.append(loss.item())
        return seen

    def watch(self, **options: Any) -> tuple[Watch, Sight, Hand]:
        watch = optwatch.attach(self.given, model=self.model, budget=1.0, **options)
        measure_always(watch)
        return watch, Sight(watch), Hand(watch._agent)

    def bits(self) -> list[Any]:
        states = [self.whole.state] if self.way == "together" else [o.state for o in self.optimizers.values()]
        kept = [value for state in states for each in state.values() for value in each.values()]
        return [
            value.tolist() if isinstance(value, Tensor) else value
            for value in (*self.model.parameters(), *kept)
        ]


@pytest.mark.parametrize("way", ["within", "behind"])
@pytest.mark.parametrize("kind", KINDS)
def test_all_is_measured_as_of_one_optimizer_and_nothing_changed(kind: str, way: str) -> None:
    alone, joint, whole = Training(kind, way), Training(kind, way), Training(kind, "together")
    losses = alone.train(12)
    seen = []
    for training in (joint, whole):
        watch, rows, _ = training.watch()
        samples = samples_of(watch)
        assert training.train(12) == losses
        assert [track.degraded for track in watch._agent.tracks] == [""]
        watch.detach()
        seen.append((rows, samples))
    assert joint.bits() == alone.bits()
    (rows, samples), (of_whole, samples_of_whole) = seen
    assert rows.steps == list(range(1, 13))
    assert rows.column("loss") == losses
    assert samples.keys() == samples_of_whole.keys() >= set(range(4, 13))
    for name in ("grad_norm", "param_norm", "update_norm"):
        pairs = [
            pair for pair in zip(rows.column(name), of_whole.column(name), strict=True) if None not in pair
        ]
        assert len(pairs) >= 8 or (kind, name) == ("overwrites", "update_norm") or kind == "adadelta"
        assert all(a == pytest.approx(b, rel=1e-6) for a, b in pairs)
    for step, sample in samples_of_whole.items():
        # Of unknown updates a single optimizer copies a few in turn, and each of many its own.
        known = ~np.isnan(sample.stats)
        np.testing.assert_allclose(samples[step].stats[known], sample.stats[known], rtol=1e-5)
        assert (samples[step].counts == sample.counts).all()


@pytest.mark.parametrize("way", ["within", "behind"])
def test_commands_act_on_all_at_one_step(way: str) -> None:
    """As on one optimizer: the same bits at every step."""
    runs = []
    for training in (Training("adamw", way), Training("adamw", "together")):
        watch, rows, hand = training.watch(allow="all", snapshots=1 << 20)
        losses = training.train(4)
        for action, args in (
            ("restart", {"warmup": 3}),
            ("scale_lr", {"factor": 0.5, "ramp": 2}),
            ("snapshot", {}),
            ("rollback", {}),
            ("scale_lr", {"reset": True}),
        ):
            hand.command(action, **args)
            losses += training.train(6)
        assert [state for _, state, _ in hand.outcomes()].count("applied") == 5
        watch.detach()
        steps = [outcome.steps for outcome in hand._kept.all]
        runs.append(
            (losses, [p.tolist() for p in training.model.parameters()], rows.column("lr_scale"), steps)
        )
        members = training.optimizers.values() if way != "together" else [training.whole]
        assert all("step" not in vars(member) for member in members)
    assert runs[0] == runs[1]


@pytest.mark.parametrize("way", ["within", "behind"])
def test_parameters_are_perturbed_when_backward_does_without_them(way: str) -> None:
    training, alone = Training("adamw", way), Training("adamw", way)
    watch, _, hand = training.watch(allow="all")
    hand.command("perturb", target="param", std=1e-3, seed=1)
    training.train(1)
    alone.train(1)
    assert hand.outcomes()[-1] == ("perturb", "applied", "")
    changes = [(a - b).std().item() for a, b in zip(training.optimizers, alone.optimizers, strict=True)]
    assert changes[:12:2] == pytest.approx([1e-3] * 6, rel=0.3)
    training.train(3)
    watch.detach()


def test_what_needs_all_gradients_is_refused_with_the_reason(caplog: pytest.LogCaptureFixture) -> None:
    training = Training("adamw", "within")
    watch, _, hand = training.watch(allow="all", guard=("clip",))
    assert "no guard for optimizer: the parameters have optimizers of their own" in caplog.text
    hand.command("clip", max_norm=1.0)
    hand.command("perturb", std=1e-3, seed=1)
    training.train(2)
    watch.detach()
    assert {(state, reason.partition(": ")[2]) for _, state, reason in hand.outcomes()} == {
        ("refused", "the parameters have optimizers of their own, which never see all gradients")
    }


@pytest.mark.parametrize("way", ["within", "behind"])
def test_a_scheduler_that_steps_with_each_member_never_sees_the_factor(way: str) -> None:
    training = Training("adamw", way)
    schedules = {
        param: torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
        for param, optimizer in training.optimizers.items()
    }
    training.after_member = lambda param: schedules[param].step()
    watch, rows, hand = training.watch()
    hand.command("scale_lr", factor=0.25)
    training.train(8)
    assert rows.column("lr_scale")[2:] == [0.25] * 6
    for column in ("lr", "lr/15"):
        assert rows.column(column) == pytest.approx([1e-2 * 0.9**i for i in range(8)], rel=1e-12)
    expected = pytest.approx(1e-2 * 0.9**8, rel=1e-12)
    assert all(o.param_groups[0]["lr"] == expected for o in training.optimizers.values())
    watch.detach()


@pytest.mark.parametrize("way", ["within", "behind"])
def test_a_step_in_which_something_is_raised_is_none(way: str) -> None:
    training = Training("adamw", way)
    watch, rows, hand = training.watch()
    hand.command("scale_lr", factor=0.25)
    training.train(3)

    def stumble(optimizer: Any, args: Any, kwargs: Any) -> None:
        raise RuntimeError("stumbled")

    member = [*training.optimizers.values()][5]
    handle = member.register_step_pre_hook(stumble)
    with pytest.raises(RuntimeError, match="stumbled"):
        training.train(1)
    handle.remove()
    assert {o.param_groups[0]["lr"] for o in training.optimizers.values()} == {1e-2}
    training.train(2)
    assert not watch._agent.tracks[0].degraded
    watch.detach()
    assert rows.steps == [1, 2, 3, 4, 5]
    assert not member._optimizer_step_pre_hooks
    assert not member._optimizer_step_post_hooks


@pytest.mark.parametrize("way", ["within", "behind"])
def test_members_that_do_not_step_hold_up_nothing(way: str) -> None:
    training = Training("adamw", way)
    watch, rows, _ = training.watch()
    samples = samples_of(watch)
    idle = next(iter(training.optimizers))
    training.train(4)
    idle.requires_grad_(False)
    every = training.optimizers
    if way == "behind":
        training.optimizers = {param: every[param] for param in every if param is not idle}
    losses = training.train(4)
    training.train(1)
    watch.detach()
    assert rows.steps[:8] == list(range(1, 9))
    assert rows.column("loss")[4:8] == losses
    assert np.isnan(samples[8].stats[0, 0])
    assert not np.isnan(samples[8].stats[1:, 0]).any()
    assert rows.column("update_norm")[7] is not None


def test_the_others_are_watched_on_when_a_member_is_dropped() -> None:
    training = Training("adamw", "behind")
    watch, rows, _ = training.watch()
    samples = samples_of(watch)
    training.train(6)
    training.optimizers.popitem()
    losses = training.train(4)
    assert not watch._agent.tracks[0].degraded
    watch.detach()
    assert (rows.steps, rows.column("loss")[6:]) == (list(range(1, 11)), losses)
    assert [len(samples[step].stats) for step in (6, 10)] == [16, 15]


@pytest.mark.parametrize("way", ["within", "behind", "in turn"])
def test_a_command_acts_once_on_optimizers_of_two_classes(way: str) -> None:
    """Their steps are under way at the same time."""
    training = Training("adamw", "within" if way == "within" else "behind")
    for number, param in enumerate(training.optimizers):
        if number % 2:
            training.optimizers[param] = KINDS["momentum"]([param])
    if way == "behind":
        order = sorted(training.optimizers.items(), key=lambda item: type(item[1]).__name__)
        training.optimizers = dict(order)
    watch, _, hand = training.watch(allow="all", snapshots=1 << 20)
    applied: list[tuple[int, str]] = []
    for index, track in enumerate(watch._agent.tracks):
        was = track.actuators.apply
        track.actuators.apply = lambda action, step=0, index=index, was=was: (  # type: ignore[method-assign]
            applied.append((index, type(action).__name__)) or was(action, step)
        )
    hand.command("perturb", target="param", std=1e-3, seed=1)
    hand.command("restart")
    training.train(4)
    hand.command("rollback")
    training.train(2)
    watch.detach()
    assert sorted(applied) == [(0, "Perturb"), (0, "Restart"), (1, "Perturb"), (1, "Restart")]
    assert hand.outcomes()[-1][1:] == (
        "refused",
        "parameters with optimizers of their own, of several classes, step in turn",
    )


def test_with_a_member_that_never_steps_nothing_is_written_too_late() -> None:
    """A rollback would write parameters that the backward pass which has begun needs as they were."""
    training = Training("adamw", "behind")
    idle = next(iter(training.optimizers))
    every = dict(training.optimizers)
    training.optimizers = {param: every[param] for param in every if param is not idle}
    watch = optwatch.attach(every, allow="all", snapshots=1 << 20)
    measure_always(watch)
    rows, hand = Sight(watch), Hand(watch._agent)
    losses = training.train(60)
    for action, args in (("snapshot", {}), ("perturb", {"target": "param", "std": 1e-3}), ("rollback", {})):
        hand.command(action, **args)
        losses += training.train(2)
        name, state, reason = hand.outcomes()[-1]
        assert (name, state) == (action, "failed")
        assert "do not step each time" in reason
    hand.command("scale_lr", factor=0.5)
    losses += training.train(3)
    watch.detach()
    assert rows.column("lr_scale")[-1] == 0.5
    assert (rows.steps, rows.column("loss")) == (list(range(1, 70)), losses)
    assert every


def test_where_other_members_step_each_time_nothing_is_written_too_late() -> None:
    """As of a mixture of experts: the end of such a step is seen when the next backward pass begins."""
    training = Training("adamw", "behind")
    every = dict(training.optimizers)
    watch, rows, hand = training.watch(allow="all", snapshots=1 << 20)
    losses, params = [], list(every)
    for step in range(80):
        skipped = params[step % 4]
        training.optimizers = {param: every[param] for param in params if param is not skipped}
        if step == 10:
            hand.command("perturb", target="param", std=1e-3)
        losses += training.train(1)
        skipped.grad = None
    actuators = watch._agent.tracks[0].actuators
    assert "do not step each time" in (actuators.refusal(Perturb(target="param", std=1.0), 2) or "")
    training.optimizers = every
    losses += training.train(60)
    assert actuators.refusal(Perturb(target="param", std=1.0), 2) is None
    watch.detach()
    assert hand.outcomes()[-1][1] == "failed"
    assert (rows.steps, rows.column("loss")) == (list(range(1, 141)), losses)


@pytest.mark.parametrize("fused", [False, True])
def test_gradients_are_unscaled_and_skipped_steps_counted_under_a_scaler(fused: bool) -> None:
    model = network()
    optimizers = {p: torch.optim.AdamW([p], lr=1e-3, fused=fused) for p in model.parameters()}
    watch = optwatch.attach(optimizers)
    measure_always(watch)
    rows = Sight(watch)
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0, growth_interval=1_000)
    seen, norms = [], []
    for step in range(8):
        loss = model(torch.randn(16, 8)).square().mean()
        scaler.scale(loss).backward()
        norms.append(float(torch.cat([p.grad.flatten() for p in model.parameters()]).double().norm()) / 64)
        if step == 5:  # one member is skipped
            next(iter(optimizers)).grad.fill_(torch.inf)
        for optimizer in optimizers.values():
            scaler.step(optimizer)
        scaler.update()
        for optimizer in optimizers.values():
            optimizer.zero_grad()
        seen.append(loss.item())
    watch.detach()
    assert rows.steps == list(range(1, 9))
    assert rows.column("loss") == seen
    assert rows.column("grad_norm")[2:5] == pytest.approx(norms[2:5], rel=1e-6)
    assert rows.column("loss_scale") == [64.0] * 6 + [32.0] * 2
    assert rows.column("skipped_steps") == [0.0] * 5 + [1.0] * 3


def test_the_users_clipping_of_all_gradients_is_seen() -> None:
    training = Training("adamw", "behind")
    params = list(training.model.parameters())
    watch, rows, _ = training.watch()
    norms = []
    for _ in range(5):
        next(training.losses).backward()
        norms.append(float(nn.utils.clip_grad_norm_(params, 1e-3)))
        for param in params:
            training.step(param)
    watch.detach()
    assert rows.column("grad_norm_raw")[2:] == pytest.approx(norms[2:], rel=1e-5)
    assert rows.column("grad_norm")[2:] == pytest.approx([1e-3] * 3, rel=1e-2)
    assert rows.column("user_max_norm")[2:] == [1e-3] * 3


FREED: dict[str, Callable[[Tensor], Any]] = {
    "zeroed": lambda param: param.grad.zero_(),
    "zeroed unseen": lambda param: param.grad.data.zero_(),
    "freed": lambda param: param.grad.untyped_storage().resize_(0),
    "replaced": lambda param: setattr(param.grad, "data", torch.zeros(0)),
}


@pytest.mark.parametrize("way", ["within", "behind"])
@pytest.mark.parametrize("kind", FREED)
def test_the_script_may_do_to_a_gradient_what_it_likes(kind: str, way: str) -> None:
    """As soon as the step is taken; it is measured as it was."""
    seen = []
    for frees in (FREED[kind], lambda param: None):
        training = Training("adamw", way)
        was = training.step

        def step(param: Tensor, was: Any = was, training: Any = training, frees: Any = frees) -> None:
            training.optimizers[param].step()
            frees(param)
            param.grad = None

        training.step = step  # type: ignore[method-assign]
        for param in training.model.parameters() if way == "within" else ():
            param._post_accumulate_grad_hooks.clear()
            param.register_post_accumulate_grad_hook(step)
        watch, rows, _ = training.watch()
        samples = samples_of(watch)
        losses = training.train(9)
        assert not watch._agent.tracks[0].degraded
        watch.detach()
        norms = [rows.column(f"{name}_norm") for name in ("grad", "update", "param")]
        seen.append(
            (losses, training.bits(), norms, {step: each.stats.tolist() for step, each in samples.items()})
        )
    assert str(seen[0]) == str(seen[1])
    assert None not in seen[0][2][0][2:]


def test_parameters_whose_memory_is_freed_after_their_step_are_left_out() -> None:
    """As a script does that keeps them elsewhere until the next pass."""
    training = Training("adamw", "within")
    offloaded = {}

    def offload(param: Tensor) -> None:
        if param.dim() == 2:
            offloaded[param] = param.detach().clone()
            param.untyped_storage().resize_(0)

    training.after_member = offload
    watch, rows, _ = training.watch()
    samples = samples_of(watch)
    for _ in range(8):
        training.train(1)
        for param, held in offloaded.items():
            param.untyped_storage().resize_(held.untyped_storage().nbytes())
            with torch.no_grad():
                param.copy_(held)
    assert not watch._agent.tracks[0].degraded
    watch.detach()
    assert None not in rows.column("grad_norm")[2:]
    assert rows.column("param_norm")[7] is None
    known = [not np.isnan(row[0]) for row in samples[8].stats]
    assert known == [param.dim() == 1 for param in training.optimizers]


def test_a_member_that_steps_twice_in_a_pass_is_measured_once() -> None:
    training = Training("adamw", "within")
    training.after_member = lambda param: None
    twice = next(iter(training.optimizers))
    was = training.optimizers[twice].step
    training.after_member = lambda param: was() if param is twice else None
    watch, rows, _ = training.watch()
    training.train(6)
    true = float(torch.cat([p.detach().flatten() for p in training.model.parameters()]).double().norm())
    watch.detach()
    assert rows.steps == [1, 2, 3, 4, 5, 6]
    assert rows.column("param_norm")[5] == pytest.approx(true, rel=1e-6)


def test_what_is_kept_beside_the_parameters_is_rolled_back() -> None:
    class Counts(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:  # type: ignore[override]
            self.state["steps"] = self.state.get("steps", 0) + 1  # type: ignore[index]
            return super().step(closure)

    model = network()
    optimizers = {p: Counts([p], lr=1e-3) for p in model.parameters()}
    slow = {p: torch.ones(1) for p in optimizers}

    class Lookahead:
        def __init__(self, optimizer: Any) -> None:
            self.optimizer = optimizer
            self.state = {p: {"slow": slow[p]} for group in optimizer.param_groups for p in group["params"]}

    wrapped = {p: Lookahead(optimizer) for p, optimizer in optimizers.items()}
    watch = optwatch.attach(wrapped, allow="all", snapshots=1 << 20)
    hand = Hand(watch._agent)

    def train(steps: int) -> None:
        for _ in range(steps):
            model(torch.randn(4, 8)).square().mean().backward()
            for optimizer in optimizers.values():
                optimizer.step()
                optimizer.zero_grad()

    train(3)
    hand.command("snapshot")
    train(3)
    for each in slow.values():
        each.fill_(9.0)
    hand.command("rollback", to_step=4)
    train(1)
    watch.detach()
    assert hand.outcomes()[-1] == ("rollback", "applied", "")
    assert {each.item() for each in slow.values()} == {1.0}
    assert {optimizer.state["steps"] for optimizer in optimizers.values()} == {4}  # type: ignore[index]


def test_closures_copies_and_members_that_raise_are_borne() -> None:
    training = Training("adamw", "behind")
    watch, rows, _ = training.watch()
    training.train(3)
    members = [*training.optimizers.values()]

    def closure() -> Tensor:
        for member in members:
            member.zero_grad()
        loss = next(training.losses)
        loss.backward()
        return loss

    for member in members:
        member.step(closure)  # type: ignore[arg-type]
    assert rows.steps == [1, 2, 3, 4]
    twin = copy.deepcopy(members[0])
    twin.step()

    def stumble(optimizer: Any, args: Any, kwargs: Any) -> None:
        raise RuntimeError("stumbled")

    handle = members[3].register_step_pre_hook(stumble)
    for _ in range(2):
        next(training.losses).backward()
        for member in members:
            with contextlib.suppress(RuntimeError):
                member.step()
    handle.remove()
    training.train(1)
    assert not watch._agent.tracks[0].degraded
    watch.detach()
    assert rows.steps == [1, 2, 3, 4, 5, 6, 7]


def test_members_within_backward_and_behind_it_are_one_step() -> None:
    training = Training("adamw", "behind")
    params = list(training.model.parameters())
    within = params[4:]
    for param in within:
        param.register_post_accumulate_grad_hook(training.step)
    every = training.optimizers
    watch, rows, _ = training.watch()
    losses = []
    for _ in range(6):
        loss = next(training.losses)
        loss.backward()
        for param in params[:4]:
            training.step(param)
        losses.append(loss.item())
    watch.detach()
    assert len(every) == 16
    assert (rows.steps, rows.column("loss")) == (list(range(1, 7)), losses)


@pytest.mark.parametrize("ways", [("within", "within"), ("within", "behind")], ids=str)
def test_in_two_threads_each_has_its_own_steps(ways: tuple[str, str]) -> None:
    start = threading.Barrier(2)
    seen: dict[int, tuple[list[int], list[Any], list[float]]] = {}

    def run(number: int) -> None:
        training = Training("adamw", ways[number])
        watch, rows, _ = training.watch(name=f"thread {number}")
        start.wait(60)
        losses = training.train(60)
        watch.detach()
        seen[number] = rows.steps, rows.column("loss"), losses

    in_threads(2, run)
    for number in range(2):
        steps, recorded, losses = seen[number]
        assert (steps, recorded) == (list(range(1, 61)), losses)


def test_detaching_within_a_members_step_leaves_the_hooks_of_that_one_alone() -> None:
    training = Training("adamw", "within")
    watch, _, hand = training.watch()
    hand.command("scale_lr", factor=0.5)
    training.train(3)
    members = [*training.optimizers.values()]
    handle = members[5].register_step_pre_hook(lambda *_: watch.detach())
    training.train(1)
    handle.remove()
    alone = Training("adamw", "within")
    training.train(2)
    alone.train(2)
    left = [number for number, member in enumerate(members) if member._optimizer_step_pre_hooks]
    assert left == [5]
    assert not BACKWARD_BEGINS
    assert not BACKWARD_ENDS
    assert all("step" not in vars(member) for member in members)
    assert {member.param_groups[0]["lr"] for member in members} == {1e-2}


def test_nothing_is_left_and_what_is_dropped_goes() -> None:
    training = Training("adamw", "within")
    watch, _, _ = training.watch()
    training.train(2)
    members = [*training.optimizers.values()]
    watch.detach()
    for member in members:
        hooks = (
            member._optimizer_step_pre_hooks,
            member._optimizer_step_post_hooks,
            member._optimizer_load_state_dict_post_hooks,
        )
        assert not any(hooks)
    assert not BACKWARD_BEGINS
    assert not BACKWARD_ENDS
    del training, members, member
    dropped = Training("adamw", "behind")  # a hook of a parameter would keep it
    watch, _, _ = dropped.watch()
    dropped.train(2)
    agent = watch._agent
    del dropped
    gc.collect()
    assert agent.tracks[0].gone


def test_steps_go_on_where_a_checkpoint_was_saved() -> None:
    saved, training = Training("adamw", "within"), Training("adamw", "within")
    saved.train(7)
    watch, rows, _ = training.watch()
    for old, new in zip(saved.optimizers.values(), training.optimizers.values(), strict=True):
        new.load_state_dict(old.state_dict())
    training.train(2)
    watch.detach()
    assert rows.steps == [8, 9]


@pytest.mark.parametrize(
    ("kinds", "each", "tracks"),
    [
        (["AdamW"] * 8, 1, 8),
        (["AdamW"] * 9, 1, 1),
        (["AdamW"] * 9, 2, 9),
        (["AdamW"] * 65, 2, 1),
        (["AdamW"] * 60 + ["SGD"] * 6, 2, 2),
    ],
    ids=["a few", "of one each", "of several", "too many", "of two kinds"],
)
def test_which_are_shown_as_one(kinds: list[str], each: int, tracks: int) -> None:
    optimizers = {
        f"part {i}": getattr(torch.optim, kind)([nn.Parameter(torch.ones(2)) for _ in range(each)], lr=0.1)
        for i, kind in enumerate(kinds)
    }
    watch = optwatch.attach(optimizers)
    described = watch._agent.hello().optimizers
    watch.detach()
    assert len(described) == tracks
    assert sum(len(one.groups) for one in described) == len(kinds)
    assert {one.kind for one in described} == set(kinds)

"""Optimizers of a parameter each, stepped within the backward pass or one after another behind it: watched,
and commanded, as the one optimizer that they are together."""

import gc
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import optwatch
from optwatch_agent import Watch
from optwatch_agent.phases import BACKWARD_BEGINS, BACKWARD_ENDS
from tests.unit.agent.observed import Hand, Sight, measure_always, samples_of

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
        if way == "within":
            for param in params:
                param.register_post_accumulate_grad_hook(self.step)

    @property
    def given(self) -> Any:
        """What is attached to."""
        return self.whole if self.way == "together" else self.optimizers

    def step(self, param: Tensor) -> None:
        self.optimizers[param].step()
        self.optimizers[param].zero_grad()
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

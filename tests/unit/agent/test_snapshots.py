"""Snapshots and rollbacks in one process: what is kept, what is refused, and that bits come back."""

import copy
import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from optwatch_agent import Watch
from optwatch_agent.attach import attach
from tests.unit.agent.models import OPTIMIZERS, batches, classifier, fingerprint, train
from tests.unit.agent.observed import Hand

ROOM = 1 << 20


def attached(optimizer: Any, **options: Any) -> tuple[Watch, Hand]:
    watch = attach(optimizer, **{"allow": "all", "snapshots": ROOM, **options})
    return watch, Hand(watch._agent)


def bits(model: nn.Module, optimizer: Any) -> list[Any]:
    """Parameters and state, but no generator."""
    return fingerprint(model, optimizer)[:2]


FEW = ("adamw", "momentum", "adafactor")


@pytest.mark.parametrize(
    "name", [n if n in FEW else pytest.param(n, marks=pytest.mark.slow) for n in OPTIMIZERS]
)
def test_a_run_that_turned_nan_goes_on_from_the_bits_of_its_snapshot(name: str) -> None:
    model = classifier()
    optimizer = OPTIMIZERS[name](model.parameters())
    watch, hand = attached(optimizer)
    data = batches()
    train(model, optimizer, data, 20)
    hand.command("snapshot")
    train(model, optimizer, data, 1)
    before = bits(model, optimizer)
    for parameter in optimizer.param_groups[0]["params"]:
        parameter.data.fill_(torch.nan)
    train(model, optimizer, data, 3)
    hand.command("rollback", to_step=21)
    train(model, optimizer, data, 1)
    assert bits(model, optimizer) == before
    assert watch._agent.snapshots.steps == (0, 16, 21)
    assert all(loss == loss for loss in train(model, optimizer, data, 5))
    assert hand.outcomes()[-1] == ("rollback", "applied", "")
    watch.detach()
    assert watch._agent.snapshots.steps == ()


def test_snapshots_change_nothing() -> None:
    def run(**options: Any) -> list[Any]:
        model = classifier()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        watch = attach(optimizer, model=model, **options)
        train(model, optimizer, batches(), 40)
        watch.detach()
        return fingerprint(model, optimizer)

    assert run() == run(snapshots=ROOM)


def test_buffers_scale_slow_weights_and_generators_come_back() -> None:
    class Slow(torch.optim.Optimizer):
        """A wrapper that keeps slow weights in a state of its own."""

        def __init__(self, optimizer: torch.optim.Optimizer) -> None:
            self.optimizer = optimizer
            self.param_groups = optimizer.param_groups
            self.state = {p: {"slow": p.detach().clone()} for p in optimizer.param_groups[0]["params"]}  # type: ignore[assignment]

    model = nn.Sequential(nn.Linear(12, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))
    inner = torch.optim.SGD(model.parameters(), lr=0.1)
    outer, scaler = Slow(inner), torch.amp.GradScaler("cpu", init_scale=8.0)
    scaler.scale(torch.ones(()))
    watch, hand = attached(outer, model=model, scaler=scaler)
    data = batches()
    train(model, inner, data, 1)
    hand.command("snapshot")
    train(model, inner, data, 1)
    buffers = copy.deepcopy(dict(model.named_buffers()))
    slow = copy.deepcopy([state["slow"] for state in outer.state.values()])
    drawn = torch.get_rng_state()
    torch.rand(3)
    for tensor in (*model.buffers(), *(state["slow"] for state in outer.state.values()), scaler._scale):
        assert isinstance(tensor, Tensor)
        tensor.fill_(7)
    hand.command("rollback", to_step=2, rng=True)
    train(model, inner, data, 1)
    assert hand.outcomes()[-1][1] == "applied"
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, buffers[name]), name
    for state, kept in zip(outer.state.values(), slow, strict=True):
        assert torch.equal(state["slow"], kept)
    assert scaler.get_scale() == 8.0
    assert torch.equal(torch.get_rng_state(), drawn)
    watch.detach()


def test_a_run_whose_scaler_skips_every_step_is_brought_back() -> None:
    """Parameters that are not finite let a GradScaler skip for ever: no step hook runs any more."""
    model = classifier()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    watch, hand = attached(optimizer, model=model, scaler=scaler)
    data = batches()

    def go(steps: int) -> list[float]:
        losses = []
        for _ in range(steps):
            x, y = next(data)
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(x), y)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            losses.append(loss.item())
        return losses

    go(20)
    for parameter in model.parameters():
        parameter.data.fill_(torch.nan)
    rows: dict[int, dict[str, Any]] = {}
    watch._agent.tracks[0].recorder.add = rows.__setitem__  # type: ignore[method-assign]
    go(8)
    assert rows == {}, "so few in a row are a scaler that looks for its scale"
    go(1)
    assert list(rows) == [21]
    assert rows[21]["loss"] != rows[21]["loss"]
    hand.command("rollback", to_step=16)
    go(1)
    assert hand.outcomes()[-1] == ("rollback", "applied", "")
    assert all(loss == loss for loss in go(5))
    assert list(rows) == list(range(21, 28))
    assert scaler.get_scale() == 4.0, "the snapshot's, halved by the update of the step that it skipped"
    watch.detach()


def test_a_start_that_went_wrong_is_made_anew() -> None:
    model = classifier()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    start = bits(model, optimizer)
    watch, hand = attached(optimizer)
    train(model, optimizer, batches(), 3)
    hand.command("rollback", to_step=0)
    train(model, optimizer, batches(), 1)
    assert hand.outcomes()[-1][1] == "applied"
    assert bits(model, optimizer) == start  # with no state, as before the first step
    watch.detach()


@pytest.mark.parametrize("what", ["loss", "parameter", "moment"])
def test_what_is_not_finite_is_never_kept(what: str) -> None:
    model = classifier()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    watch, hand = attached(optimizer)
    data = batches()
    train(model, optimizer, data, 2)
    hand.command("snapshot")
    x, y = next(data)
    optimizer.zero_grad()
    loss = nn.functional.cross_entropy(model(x), y)
    (loss * torch.inf if what == "loss" else loss).backward()
    for parameter in model.parameters():
        assert parameter.grad is not None
        parameter.grad.zero_()  # the loss alone is broken
    first = next(model.parameters())
    if what == "parameter":
        first.data[0, 0] = torch.nan
    if what == "moment":
        optimizer.state[first]["exp_avg_sq"][0, 0] = torch.inf
    optimizer.step()
    assert hand.outcomes()[-1][1] == "failed"
    assert "finite" in hand.outcomes()[-1][2]
    assert watch._agent.snapshots.steps == (0,)
    watch.detach()


def test_what_is_kept_is_close_together_where_it_is_new_and_reaches_back_to_the_start() -> None:
    model = classifier()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    watch, hand = attached(optimizer, snapshots=1 << 20)
    snapshots = watch._agent.snapshots
    train(model, optimizer, batches(), 16)
    for _ in range(24):
        hand.command("snapshot")
        train(model, optimizer, batches(), 8)
    steps = snapshots.steps
    gaps = [after - before for before, after in itertools.pairwise(steps)]
    assert (len(steps), steps[0]) == (8, 0)
    assert steps[-1] > 192
    assert gaps[-1] <= 8 < max(gaps)


def test_the_ring_keeps_to_its_bound_and_to_what_a_vote_is_about() -> None:
    model = classifier()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    train(model, optimizer, batches(), 1)
    size = sum(3 * p.numel() * 4 + 4 for p in model.parameters())
    watch, hand = attached(optimizer, snapshots=2 * size)
    snapshots = watch._agent.snapshots
    for _ in range(3):
        hand.command("snapshot")
        train(model, optimizer, batches(), 1)
    assert snapshots.size == size
    assert snapshots.steps == (3, 4)
    assert snapshots.hold("vote", 3)
    hand.command("snapshot")
    train(model, optimizer, batches(), 1)
    assert snapshots.steps == (3, 5)
    snapshots.let_go("vote")
    hand.command("snapshot")
    train(model, optimizer, batches(), 1)
    assert snapshots.steps == (5, 6)
    assert not snapshots.hold("vote", 3)
    watch.detach()


@pytest.mark.parametrize(
    ("action", "args", "room", "words"),
    [
        ("snapshot", {}, 0, "no memory for snapshots"),
        ("snapshot", {}, 100, "a snapshot takes 11,868 bytes, and attach(snapshots=100) allows fewer"),
        ("rollback", {"to_step": 3}, ROOM, "no snapshot of step 3 is held here: there are those of 0"),
        ("rollback", {}, 0, "no memory for snapshots"),
    ],
)
def test_what_cannot_be_is_refused_and_changes_nothing(
    action: str, args: dict[str, Any], room: int, words: str
) -> None:
    model = classifier()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    watch, hand = attached(optimizer, snapshots=room)
    train(model, optimizer, batches(), 2)
    before = fingerprint(model, optimizer)
    hand.command(action, **args)
    (outcome,) = hand.outcomes()
    assert outcome[:2] == (action, "refused")
    assert words in outcome[2]
    assert fingerprint(model, optimizer) == before
    watch.detach()


def test_a_rollback_after_parameters_were_added_fails_and_says_so() -> None:
    model, more = classifier(), nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    watch, hand = attached(optimizer)
    hand.command("snapshot")
    train(model, optimizer, batches(), 1)
    optimizer.add_param_group({"params": [more]})
    hand.command("rollback", to_step=1)
    train(model, optimizer, batches(), 1)
    assert hand.outcomes()[-1][1] == "failed"
    assert "parameters were added" in hand.outcomes()[-1][2]
    watch.detach()


def test_two_optimizers_go_back_together() -> None:
    models = [classifier(0), classifier(1)]
    optimizers = {f"o{i}": torch.optim.Adam(m.parameters(), lr=1e-2) for i, m in enumerate(models)}
    watch, hand = attached(optimizers)

    def both() -> None:
        for model, optimizer in zip(models, optimizers.values(), strict=True):
            train(model, optimizer, batches(), 1)

    def all_bits() -> list[Any]:
        return [bits(m, o) for m, o in zip(models, optimizers.values(), strict=True)]

    both()
    hand.command("snapshot")
    both()
    before = all_bits()
    both()
    hand.command("rollback", to_step=2)
    both()
    assert all_bits() == before
    watch.detach()


@pytest.mark.parametrize("snapshots", [-1, 1.5, True, "1G"])
def test_a_wrong_number_of_bytes_is_a_wrong_call(snapshots: Any) -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(2))], lr=0.1)
    with pytest.raises(ValueError, match="snapshots is a number of bytes"):
        attach(optimizer, snapshots=snapshots)

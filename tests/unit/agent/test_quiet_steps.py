"""Steps to which nothing is done take a shorter way through the hooks: what they tell and do is the same."""

from typing import Any

import pytest
import torch
from torch import nn

import optwatch
from optwatch_agent.track import Track
from tests.unit.agent.models import batches, classifier, fingerprint
from tests.unit.agent.observed import Hand, Sight

STEPS = 160
ASKED: dict[int, tuple[str, dict[str, Any]]] = {
    40: ("scale_lr", {"factor": 0.5}),
    50: ("scale_lr", {"factor": 0.5, "ramp": 4}),
    60: ("scale_lr", {"reset": True}),
    70: ("clip", {"max_norm": 0.05}),
    80: ("clip", {"off": True}),
    90: ("perturb", {"std": 1e-3, "seed": 1}),
    95: ("perturb", {"off": True}),
    120: ("restart", {"warmup": 5}),
    150: ("clip", {"max_norm": 0.05}),
    155: ("clip", {"off": True}),
}
"""Before which steps what is commanded."""
CLOSURE, LEAPS, RAISES = 105, 140, 150
"""The step that takes a closure, that whose loss leaps, and one that is tried again after an error."""


def fail() -> float:
    raise ValueError("in the closure")


def run() -> tuple[list[Any], list[dict[str, Any]], int]:
    """What a training with an agent ends with, its rows, and how many of its steps were quiet."""
    model = classifier()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 30, 0.5)
    watch = optwatch.attach(optimizer, model=model, allow="all")
    track, hand, quiet = watch._agent.tracks[0], Hand(watch._agent), 0
    track.governor.budget = 1e-9
    track.governor.look.value = 0.0
    rows = Sight(watch)
    data = batches()
    for step in range(1, STEPS + 1):
        if step in ASKED:
            action, args = ASKED[step]
            hand.command(action, **args)
        x, y = next(data)

        def loss_of(x: torch.Tensor = x, y: torch.Tensor = y, step: int = step) -> torch.Tensor:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(x), y) + (50.0 if step == LEAPS else 0.0)
            loss.backward()
            return loss

        if step == RAISES:
            with pytest.raises(ValueError, match="in the closure"):
                optimizer.step(fail)
        if step == CLOSURE:
            optimizer.step(loss_of)  # type: ignore[arg-type]
        else:
            loss_of()
            optimizer.step()
        schedule.step()
        if step % 25 == 0:
            watch.log(accuracy=step / 100)
        quiet += track._quiet
    assert not track.degraded
    states = [state for _, state, _ in hand.outcomes()]
    assert states.count("applied") == len(ASKED), hand.outcomes()
    watch.detach()
    return fingerprint(model, optimizer), [{"step": row.step, **row.values} for row in rows], quiet


def test_quiet_steps_tell_and_do_what_all_others_do(monkeypatch: pytest.MonkeyPatch) -> None:
    end, rows, quiet = run()
    monkeypatch.setattr(Track, "_is_settled", lambda self: False)
    other_end, other_rows, other_quiet = run()
    assert other_quiet == 0
    assert quiet > STEPS / 2
    assert end == other_end
    for row in (*rows, *other_rows):
        row["step_time"] = None
    assert rows == other_rows
    # `step` is wrapped before an LR is scaled, so that takes effect one step later.
    assert {row["step"] for row in rows if "lr_scale" in row} == {*range(41, 60), *range(121, 126)}
    assert {row["step"] for row in rows if "clip" in row} == {*range(70, 80), *range(150, 155)}


def test_a_loss_that_leaps_has_the_gradients_measured_in_its_step() -> None:
    _, rows, _ = run()
    assert LEAPS in {row["step"] for row in rows if "grad_norm" in row}


def test_what_is_commanded_while_a_scaler_skips_all_steps_is_in_force_after() -> None:
    model = classifier()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**4)
    watch = optwatch.attach(optimizer, scaler=scaler)
    track, hand = watch._agent.tracks[0], Hand(watch._agent)
    track.governor.budget = 1e-9
    rows = Sight(watch)
    data = batches()
    for step in range(80):
        x, y = next(data)
        optimizer.zero_grad()
        scaler.scale(nn.functional.cross_entropy(model(x), y)).backward()
        if 40 <= step < 60:
            next(model.parameters()).grad.fill_(torch.inf)  # type: ignore[union-attr]
        if step == 39:
            assert track._settled
        if step == 55:
            hand.command("clip", max_norm=0.01)
        scaler.step(optimizer)
        scaler.update()
    watch.detach()
    assert hand.outcomes()[-1][1] == "applied"
    assert all(rows.column("clip")[-20:])


@pytest.mark.parametrize("every", [1, 2, 7])
def test_a_loss_that_is_often_nan_does_not_have_the_gradients_measured_each_time(every: int) -> None:
    model = classifier()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    watch = optwatch.attach(optimizer)
    track = watch._agent.tracks[0]
    track.governor.budget = 1e-9
    rows = Sight(watch)
    data = batches()
    for step in range(300):
        x, y = next(data)
        optimizer.zero_grad()
        factor = torch.nan if step % every == 0 else 1.0
        (nn.functional.cross_entropy(model(x), y) * factor).backward()
        optimizer.step()
    watch.detach()
    assert 1 <= sum("grad_norm" in row.values for row in rows) <= 5

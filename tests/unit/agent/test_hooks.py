"""What is recorded of each step, in loops of every shape."""

import logging
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict

import optwatch
from tests.unit.agent.models import batches, classifier, train
from tests.unit.agent.observed import Sight, watched


def test_loss_lr_and_norm_of_every_step() -> None:
    model = classifier()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
    watch, rows = watched(optimizer)
    losses, norms, rates = [], [], []
    data = batches()
    for _ in range(10):
        losses += train(model, optimizer, data, 1)
        rates.append(optimizer.param_groups[0]["lr"])
        norms.append(float(torch.cat([p.grad.flatten() for p in model.parameters()]).double().norm()))
        scheduler.step()
    watch.detach()
    assert rows.steps == list(range(1, 11))
    assert rows.column("loss") == losses
    assert rows.column("lr") == rates
    seen = [(norm, true) for norm, true in zip(rows.column("grad_norm"), norms, strict=True) if norm]
    assert len(seen) > 3
    assert all(norm == pytest.approx(true, rel=1e-6) for norm, true in seen)
    assert rows[0].values.get("step_time") is None
    assert all(time > 0 for time in rows.column("step_time")[1:])


@pytest.mark.parametrize(
    "scale", [None, lambda loss: loss / 4, lambda loss: loss / 4 / 1, lambda loss: 0.25 * loss]
)
def test_accumulated_losses(scale: Any) -> None:
    """Divided by the number of passes they are summed, else averaged: the mean loss both ways.

    Frameworks may divide once more, by 1.
    """
    model = classifier().eval()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    watch, rows = watched(optimizer)
    data = batches()
    means = []
    for _ in range(3):
        optimizer.zero_grad()
        parts = []
        for _ in range(4):
            x, y = next(data)
            loss = nn.functional.cross_entropy(model(x), y)
            parts.append(loss.item())
            (scale(loss) if scale else loss).backward()
        means.append(sum(parts) / 4)
        optimizer.step()
    watch.detach()
    assert rows.column("loss") == pytest.approx(means, rel=1e-6)
    assert rows.column("backward_passes") == [4.0] * 3


def test_a_loss_changed_in_place_after_backward() -> None:
    param = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([param], lr=0.1)
    watch, rows = watched(optimizer)
    loss = param.sum()
    loss.backward()
    with torch.no_grad():
        loss.zero_()
    optimizer.step()
    watch.detach()
    assert rows.column("loss") == [2.0]


def test_a_group_for_each_parameter_leaves_room_for_all_else() -> None:
    params = [nn.Parameter(torch.ones(2)) for _ in range(600)]
    optimizer = torch.optim.SGD([{"params": [param]} for param in params], lr=0.1)
    watch, rows = watched(optimizer)
    for _ in range(3):
        optimizer.zero_grad()
        torch.stack([param.sum() for param in params]).sum().backward()
        optimizer.step()
    watch.detach()
    assert rows[-1].values["lr/63"] == 0.1
    assert "lr/64" not in rows[-1].values
    assert rows[-1].values["grad_norm"] == pytest.approx(1200**0.5)


def test_more_names_than_are_logged_are_told_once(caplog: pytest.LogCaptureFixture) -> None:
    model = classifier()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    watch, rows = watched(optimizer)
    for _ in range(2):
        train(model, optimizer, batches(), 1)
        watch.log(**{f"metric {i}": i for i in range(400)})
    watch.detach()
    assert rows[-1].values["metric 319"] == 319.0
    assert "metric 320" not in rows[-1].values
    said = [record.message for record in caplog.records]
    assert said == ["optwatch: log takes 320 names: metric 320 and others are ignored"]


def test_two_optimizers_of_a_gan() -> None:
    one, two = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))
    discriminator, generator = torch.optim.SGD([one], lr=0.1), torch.optim.Adam([two], lr=0.1)
    watch = optwatch.attach({"D": discriminator, "G": generator}, budget=1.0)
    rows_d, rows_g = Sight(watch, 0), Sight(watch, 1)
    for _ in range(3):
        (one * 3).sum().backward()
        discriminator.step()
        (two * 5).sum().backward()
        generator.step()
        generator.step()
    watch.detach()
    assert rows_d.steps == [1, 2, 3]
    assert rows_g.steps == [1, 2, 3, 4, 5, 6]
    assert rows_d.column("loss")[0] == 3.0
    assert rows_g.column("loss")[0] == 5.0
    assert rows_g.column("loss")[1] == 5.0
    assert [info.name for info in watch._agent.hello().optimizers] == ["D", "G"]


def test_the_budget_is_that_of_all_optimizers_together() -> None:
    optimizers = {str(i): torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1) for i in range(4)}
    watch = optwatch.attach(optimizers, budget=0.02)
    agent = watch._agent
    agent.account(0.004)
    governors = [track.governor for track in agent.tracks]
    assert sum(governor.budget for governor in governors) == pytest.approx(0.02)
    assert sum(governor.beside for governor in governors) == pytest.approx(0.004)
    for _ in range(3):
        for optimizer in optimizers.values():
            optimizer.step()
    shares = [governor.overhead for governor in governors]
    assert min(shares) > 0.001
    assert agent.beat().overhead == pytest.approx(sum(shares))
    watch.detach()


def test_gradients_and_losses_are_unscaled_under_a_scaler() -> None:
    for fused in (False, True):
        model = classifier().eval()
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=fused)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        watch, rows = watched(optimizer)
        data, losses = batches(), []
        for _ in range(5):
            x, y = next(data)
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(x), y)
            losses.append(loss.item())
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
        norm = float(torch.cat([p.grad.flatten() for p in model.parameters()]).double().norm())
        watch.detach()
        assert rows.column("loss") == pytest.approx(losses, rel=1e-7)
        last = [value for value in rows.column("grad_norm") if value is not None][-1]
        if rows.column("grad_norm")[-1] is not None:
            assert last == pytest.approx(norm, rel=1e-6)
        assert last < 100


def test_losses_that_are_scaled_before_any_is_passed_back() -> None:
    """And one that is passed back twice: each step has its loss unscaled, and no graph is kept."""
    models = [classifier(seed).eval() for seed in range(2)]
    optimizers = {name: torch.optim.SGD(m.parameters(), lr=0.1) for name, m in zip("ab", models, strict=True)}
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0, growth_interval=1_000)
    watch = optwatch.attach(optimizers, budget=1.0)
    seen = [Sight(watch, track) for track in range(2)]
    data, losses = batches(), []
    for _ in range(4):
        x, y = next(data)
        both = [nn.functional.cross_entropy(model(x), y) for model in models]
        for scaled, optimizer in zip(list(map(scaler.scale, both)), optimizers.values(), strict=True):
            optimizer.zero_grad()
            scaled.backward()
            scaler.step(optimizer)
        scaler.update()
        losses.append([loss.item() for loss in both])
        graph = weakref.ref(both[0])
    both = []
    del scaled, x, y
    assert graph() is None
    watch.detach()
    for track, rows in enumerate(seen):
        assert rows.column("loss") == [each[track] for each in losses]


def test_the_users_clipping_is_seen() -> None:
    model = classifier().eval()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    watch, rows = watched(optimizer)
    data = batches()
    for _ in range(30):
        x, y = next(data)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        true = float(torch.cat([p.grad.flatten() for p in model.parameters()]).double().norm())
        nn.utils.clip_grad_norm_(model.parameters(), 0.05)
        optimizer.step()
        if (raw := rows[-1].values.get("grad_norm_raw")) is not None:
            assert raw == pytest.approx(true, rel=1e-5)
            assert rows[-1].values["grad_norm"] == pytest.approx(min(true, 0.05), rel=1e-4)
    watch.detach()
    assert any(raw is not None for raw in rows.column("grad_norm_raw"))


def test_a_closure_is_called_as_often_as_without_and_its_first_loss_counts() -> None:
    def run(attached: bool) -> tuple[int, list[Any], list[float]]:
        model = classifier().eval()
        optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=5)
        watch, rows = watched(optimizer) if attached else (None, [])
        data = batches()
        calls, firsts = 0, []
        for _ in range(4):
            x, y = next(data)
            fresh = True

            def closure() -> Tensor:
                nonlocal calls, fresh
                calls += 1
                optimizer.zero_grad()
                loss = nn.functional.cross_entropy(model(x), y)  # noqa: B023 - called at once
                loss.backward()
                if fresh:
                    firsts.append(loss.item())
                fresh = False
                return loss

            optimizer.step(closure)  # type: ignore[arg-type]
        if watch is not None:
            watch.detach()
        return calls, rows, firsts

    calls, rows, firsts = run(True)
    assert calls == run(False)[0]
    assert isinstance(rows, Sight)
    assert rows.column("loss") == firsts
    assert rows.steps == [1, 2, 3, 4]


def test_a_subclass_that_calls_super_counts_once() -> None:
    class Loud(torch.optim.AdamW):
        def step(self, closure: Any = None) -> Any:
            return super().step(closure)

    model = classifier()
    optimizer = Loud(model.parameters(), lr=1e-3)
    watch, rows = watched(optimizer)
    train(model, optimizer, batches(), 5)
    watch.detach()
    assert rows.steps == [1, 2, 3, 4, 5]
    assert None not in rows.column("loss")


def test_a_step_that_raises_is_not_counted() -> None:
    param = nn.Parameter(torch.ones(2))

    class Stumbling(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            if param.grad is not None and bool(param.grad.isnan().any()):
                raise RuntimeError("stumbled")
            return super().step(closure)

    optimizer = Stumbling([param], lr=0.1)
    watch, rows = watched(optimizer)
    for broken in (False, True, True, False, True, False):
        param.grad = torch.full((2,), torch.nan if broken else 1.0)
        if broken:
            with pytest.raises(RuntimeError, match="stumbled"):
                optimizer.step()
        else:
            optimizer.step()
    watch.detach()
    assert rows.steps == [1, 2, 3]


class Calls(torch.optim.Adam):
    """A step that calls its base's, which is hooked as well."""

    def step(self, closure: Any = None) -> Any:
        return super().step(closure)


def test_a_rehearsed_step_that_calls_another_is_none() -> None:
    torch.optim.Adam([nn.Parameter(torch.ones(1))])
    model, fresh = classifier(), classifier()
    optimizer, other = Calls(model.parameters()), Calls(fresh.parameters())
    train(model, optimizer, batches(), 3)
    optimizer.zero_grad()
    watch, rows = watched(other)
    set_optimizer_state_dict(fresh, other, get_optimizer_state_dict(model, optimizer))
    train(fresh, other, batches(), 1)
    watch.detach()
    assert rows.steps == [4]


def test_a_step_that_is_skipped_after_a_checkpoint_was_loaded_is_none() -> None:
    weight = nn.Parameter(torch.ones(1))
    optimizer = torch.optim.Adam([weight])
    weight.grad = torch.ones(1)
    optimizer.step()
    saved = optimizer.state_dict()
    other = torch.optim.Adam([weight])
    watch, rows = watched(other)
    other.load_state_dict(saved)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    for factor in (torch.inf, 3.0):
        other.zero_grad()
        scaler.scale((weight * factor).sum()).backward()
        scaler.step(other)
        scaler.update()
    watch.detach()
    assert rows.steps == [2]
    assert rows.column("loss") == [pytest.approx(3.0, rel=0.01)]
    assert rows.column("skipped_steps") == [1.0]


def test_a_step_that_only_makes_the_state_is_none() -> None:
    """As when a checkpoint of plain SGD is saved: torch.distributed.checkpoint finds no state, at each."""
    model = classifier()
    optimizer = torch.optim.SGD(model.parameters(), lr=torch.tensor(0.1))
    watch, rows = watched(optimizer)
    for _ in range(3):
        train(model, optimizer, batches(), 1)
        optimizer.zero_grad()
        get_optimizer_state_dict(model, optimizer)
    optimizer.param_groups[0]["lr"].zero_()  # a warm-up begins so
    train(model, optimizer, batches(), 1)
    watch.detach()
    assert rows.steps == [1, 2, 3, 4]
    assert rows.column("lr") == pytest.approx([0.1, 0.1, 0.1, 0.0])


def test_what_is_logged_belongs_to_its_step() -> None:
    model = classifier()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    watch, rows = watched(optimizer)
    data = batches()
    for i in range(3):
        x, y = next(data)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        watch.log(during=i)
        optimizer.step()
        watch.log(after=torch.tensor(float(i)))
    watch.log(name="text", pair=torch.ones(2))
    watch.detach()
    watch.log(after=9)
    watch.mark("gone")
    assert rows.column("during") == [0.0, 1.0, 2.0]
    assert rows.column("after") == [0.0, 1.0, 2.0]


def test_loss_none_leaves_it_to_log() -> None:
    model = classifier()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    watch, rows = watched(optimizer, loss=None)
    train(model, optimizer, batches(), 1)
    watch.log(loss=0.5)
    watch.detach()
    assert rows.column("loss") == [0.5]


def test_added_parameters_are_named_and_measured() -> None:
    first, second = nn.Linear(4, 4), nn.Linear(4, 2)
    optimizer = torch.optim.SGD(first.parameters(), lr=0.1)
    watch, rows = watched(optimizer, model=nn.Sequential(first, second))
    first(torch.ones(1, 4)).sum().backward()
    optimizer.step()
    optimizer.add_param_group({"params": second.parameters(), "lr": 0.01})
    for _ in range(20):
        second(first(torch.ones(1, 4))).sum().backward()
        optimizer.step()
    recorder = watch._agent.tracks[0].recorder
    names = [tensor.name for tensor in recorder.tensors]
    watch.detach()
    assert names == ["0.weight", "0.bias", "1.weight", "1.bias"]
    assert rows[-1].values["lr/1"] == 0.01


def test_an_error_of_the_agent_never_reaches_the_loop(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = classifier()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    watch, rows = watched(optimizer)

    def broken(*_: Any) -> Any:
        raise ZeroDivisionError("a bug of ours")

    track = watch._agent.tracks[0]
    monkeypatch.setattr(track._measurements, "add_norms", broken)
    with caplog.at_level(logging.WARNING, "optwatch"):
        train(model, optimizer, batches(), 10)
    assert sum("a bug of ours" in record.getMessage() for record in caplog.records) == 1
    assert track.degraded
    assert rows.steps == list(range(1, 11)), "loss and LR are still recorded"
    watch.detach()


def test_the_budget_holds_the_cadence() -> None:
    """Under a tight budget every step has loss and LR, and few have more."""
    model = classifier()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    watch, rows = watched(optimizer, budget=1e-6)
    train(model, optimizer, batches(), 300)
    governor = watch._agent.tracks[0].governor
    watch.detach()
    assert None not in rows.column("loss")
    assert None not in rows.column("lr")
    assert sum(norm is not None for norm in rows.column("grad_norm")) <= 3
    assert governor.sample_every > 300


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.parametrize("breaks", [False, True])
@pytest.mark.parametrize("scales", [False, True])
def test_a_compiled_training_step_is_the_same_graphs(scales: bool, breaks: bool) -> None:
    """Other graphs are other numbers in the last bits, and what is ours would be compiled while training."""

    def graphs(watch_it: bool) -> list[str]:
        found = []

        def backend(module: Any, _: Any) -> Any:
            found.append(module.print_readable(print_output=False))
            return module.forward

        torch._dynamo.reset()
        model = classifier().eval()
        optimizer = torch.optim.AdamW(model.parameters(), lr=torch.tensor(0.01))
        scaler = torch.amp.GradScaler("cpu", init_scale=8.0, enabled=scales)
        rows: list[Any] = []
        watch = None
        if watch_it:
            watch, rows = watched(optimizer)

        @torch.compile(backend=backend)
        def step(x: Tensor, y: Tensor) -> None:
            optimizer.zero_grad()
            scaler.scale(nn.functional.cross_entropy(model(x), y)).backward()
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), 1.0, error_if_nonfinite=breaks)
            scaler.step(optimizer)
            scaler.update()

        data = batches()
        for _ in range(12):
            step(*next(data))
        if watch is not None:
            watch.detach()
            assert len(rows) == 12
        torch._dynamo.reset()
        return found

    assert sorted(graphs(watch_it=True)) == sorted(graphs(watch_it=False))


def test_a_clip_that_is_compiled_in_one_graph_stays_so() -> None:
    model = classifier()
    watch, _ = watched(torch.optim.SGD(model.parameters(), lr=0.1))
    clip = torch.compile(nn.utils.clip_grad_norm_, backend="eager", fullgraph=True)
    nn.functional.cross_entropy(model(torch.ones(4, 12)), torch.zeros(4, dtype=torch.long)).backward()
    clip(list(model.parameters()), 1e-3)
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    assert float(torch.nn.utils.get_total_norm(grads)) == pytest.approx(1e-3, rel=1e-2)
    watch.detach()
    torch._dynamo.reset()


class OwnScaler(torch.amp.GradScaler):
    def scale(self, outputs: Any) -> Any:
        return outputs * 8.0


def test_a_loss_that_is_scaled_in_one_graph_stays_so() -> None:
    model = classifier()
    scaler = OwnScaler("cpu")
    watch, rows = watched(optimizer := torch.optim.SGD(model.parameters(), lr=0.1), scaler=scaler)
    scaled = torch.compile(lambda x: scaler.scale(model(x).sum()), backend="eager", fullgraph=True)
    loss = scaled(torch.ones(4, 12))
    loss.backward()
    optimizer.step()
    watch.detach()
    torch._dynamo.reset()
    assert rows.column("loss") == [pytest.approx(loss.item() / 8)]


def test_compiled_models_and_steps() -> None:
    model = classifier().eval()
    optimizer = torch.optim.SGD(model.parameters(), lr=torch.tensor(0.1))
    watch, rows = watched(optimizer)
    graphs = torch._dynamo.utils.counters["stats"]
    graphs.clear()
    compiled = torch.compile(model, backend="eager")
    step = torch.compile(optimizer.step, backend="eager")
    data = batches()
    for _ in range(3):
        x, y = next(data)
        optimizer.zero_grad()
        nn.functional.cross_entropy(compiled(x), y).backward()
        step()
    watch.detach()
    torch._dynamo.reset()
    assert rows.steps == [1, 2, 3]
    assert None not in rows.column("loss")


@pytest.mark.parametrize("fused", [False, True])
def test_steps_skipped_by_a_scaler_are_counted(fused: bool) -> None:
    """A foreach step that is skipped leaves no row, a fused one does; both are counted."""
    param = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([param], lr=0.1, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0, growth_interval=1000)
    watch, rows = watched(optimizer)
    events = []
    watch._agent.event = lambda kind, text, step=None, optimizer=0: events.append((kind, step))  # type: ignore
    for factor in (1.0, torch.inf, torch.inf, 1.0, 1.0):
        optimizer.zero_grad()
        scaler.scale((param * factor).sum()).backward()
        scaler.step(optimizer)
        scaler.update()
    watch._agent.collect(True)
    watch.detach()
    if fused:
        assert rows.steps == [1, 2, 3, 4, 5]
        assert rows.column("skipped_steps") == [0, 1, 2, 2, 2]
        assert rows.column("loss_scale") == [64, 64, 32, 16, 16]
    else:
        assert rows.steps == [1, 2, 3]
        assert rows.column("loss")[1:] == pytest.approx([1.8, 1.6])
        assert rows.column("skipped_steps") == [0, 2, 2]
        assert rows.column("loss_scale") == [64, 16, 16]
    assert len([kind for kind, _ in events if kind == "skipped_step"]) == 2


@pytest.mark.parametrize("budget", [1e-6, 1.0])
def test_tensors_can_be_swapped_in_mid_training(budget: float) -> None:
    """As `Module.to` does with parameters of a tensor subclass, or with all where that is asked for."""
    model = classifier()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    watch = optwatch.attach(
        optimizer, model=model, budget=budget, guard=("skip_nonfinite", "clip"), snapshots=1 << 20
    )
    data = batches()
    train(model, optimizer, data, 30)
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        model.to(torch.float64)
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)
    for _ in range(3):
        x, y = next(data)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x.double()), y).backward()
        optimizer.step()
    assert watch._agent.tracks[0].completed == 33
    assert not watch._agent.tracks[0].degraded
    watch.detach()

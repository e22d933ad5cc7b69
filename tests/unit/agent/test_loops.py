"""Training loops of many shapes, each with what the agent makes of it."""

import copy
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset

import optwatch
from optwatch.wire.messages import STATS
from tests.unit.agent.models import batches, classifier, fingerprint, train
from tests.unit.agent.observed import Hand, Sight, in_threads, measure_always, samples_of, watched


def test_two_losses_of_one_graph() -> None:
    """Two backward passes before a step: the mean of the two losses, and both gradients."""
    model = classifier().eval()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    watch, rows = watched(optimizer)
    measure_always(watch)
    data, means, norms = batches(), [], []
    for _ in range(6):
        x, y = next(data)
        optimizer.zero_grad()
        out = model(x)
        first, second = nn.functional.cross_entropy(out, y), out.square().mean()
        first.backward(retain_graph=True)
        second.backward()
        means.append((first.item() + second.item()) / 2)
        norms.append(float(torch.cat([p.grad.flatten() for p in model.parameters()]).double().norm()))
        optimizer.step()
    watch.detach()
    assert rows.column("loss") == pytest.approx(means, rel=1e-6)
    assert rows.column("grad_norm")[2:] == pytest.approx(norms[2:], rel=1e-6)


@pytest.mark.parametrize("replace", ["the tensor", "its numbers"])
def test_passes_whose_gradients_make_those_of_the_step_are_of_it(replace: str) -> None:
    """As where several tasks' gradients are projected, or parts of a batch are added up by hand."""
    param = nn.Parameter(torch.ones(4))
    optimizer = torch.optim.SGD([param], lr=0.0)
    watch, rows = watched(optimizer)
    for divided_by in (1, 3):
        grads = []
        for factor in (1.0, 3.0, 5.0):
            optimizer.zero_grad()
            (param.sum() * factor / divided_by).backward()
            assert param.grad is not None
            grads.append(param.grad)
        if replace == "the tensor":
            param.grad = sum(grads[1:], start=grads[0])
        else:
            param.grad.data = sum(grads[1:], start=grads[0])
        optimizer.step()
    watch.detach()
    assert rows.column("loss") == pytest.approx([4 * 3.0, 4 * 3.0])
    assert rows.column("backward_passes") == [3.0, 3.0]


def test_parts_of_a_loss_count_wherever_their_gradients_went() -> None:
    param = nn.Parameter(torch.ones(4))
    optimizer = torch.optim.SGD([param], lr=0.0)
    watch, rows = watched(optimizer)
    for _ in range(2):
        total = torch.zeros(4)
        for factor in (1.0, 3.0, 5.0):
            optimizer.zero_grad()
            (param.sum() * factor / 3).backward()
            assert param.grad is not None
            total += param.grad
        param.grad.copy_(total)
        optimizer.step()
    watch.detach()
    assert rows.column("loss") == pytest.approx([12.0, 12.0])


def test_of_many_parts_that_are_added_up_by_hand_all_count() -> None:
    param = nn.Parameter(torch.ones(4))
    optimizer = torch.optim.SGD([param], lr=0.0)
    watch, rows = watched(optimizer)
    total = torch.zeros(4)
    for _ in range(100):
        optimizer.zero_grad()
        param.sum().backward()
        assert param.grad is not None
        total += param.grad
    param.grad = total
    optimizer.step()
    watch.detach()
    assert (rows.column("loss"), rows.column("backward_passes")) == ([4.0], [100.0])


def test_optimizers_whose_tensors_are_alike_are_told_apart() -> None:
    """As those of twin critics, without a model."""
    params = [nn.Parameter(torch.ones(3)) for _ in range(2)]
    optimizers = {f"q{i}": torch.optim.SGD([param], lr=0.1) for i, param in enumerate(params)}
    watch = optwatch.attach(optimizers)
    for param, optimizer in zip(params, optimizers.values(), strict=True):
        param.sum().backward()
        optimizer.step()
    schemas = [schema for _, _, schema in watch._agent.collect(everything=True) if schema is not None]
    watch.detach()
    assert len({schema.digest for schema in schemas}) == len(schemas) == 2


def test_passes_of_which_the_optimizer_sees_no_gradient_are_all_of_the_step() -> None:
    """As where it has copies of the parameters, which get theirs at the end."""
    param, copy = nn.Parameter(torch.ones(4)), nn.Parameter(torch.ones(4))
    optimizer = torch.optim.SGD([copy], lr=0.0)
    watch, rows = watched(optimizer)
    for _ in range(2):
        for factor in (1.0, 3.0):
            (param.sum() * factor).backward()
        copy.grad, param.grad = param.grad, None
        optimizer.step()
        optimizer.zero_grad()
    watch.detach()
    assert rows.column("loss") == pytest.approx([8.0, 8.0])


def test_trainings_in_threads_have_their_own_losses() -> None:
    """As in a search that runs several trials at a time."""
    start = threading.Barrier(3)
    seen: dict[int, tuple[Sight, list[float], str]] = {}

    def training(number: int) -> None:
        model = classifier(number, width=256)
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0 ** (number + 1), growth_interval=1_000)
        watch, rows = watched(optimizer, name=f"trial {number}")
        data, losses = batches(number), []
        start.wait(60)
        for _ in range(100):
            x, y = next(data)
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(x), y) * 10**number
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            losses.append(loss.item())
        watch.detach()
        seen[number] = rows, losses, watch._agent.tracks[0].degraded

    in_threads(3, training)
    for number in range(3):
        rows, losses, degraded = seen[number]
        assert (rows.steps, degraded) == (list(range(1, 101)), "")
        assert rows.column("loss") == losses
        assert rows.column("loss_scale") == [2.0 ** (number + 1)] * 100
        assert set(rows.column("backward_passes")) == {None}


@pytest.mark.parametrize("how", ["apart", "together", "unchanged"])
def test_no_gradient_is_looked_at_while_another_thread_writes_to_it(how: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.unit.agent.threaded_trainings", how],
        env=os.environ | {"HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr


def test_a_checkpointed_part_runs_its_own_pass() -> None:
    """And takes nothing away from the one that it is within."""
    model, part = nn.Linear(4, 4), nn.Linear(4, 4)
    params = [*model.parameters(), *(nn.Parameter(torch.ones(2)) for _ in range(8)), *part.parameters()]
    optimizer = torch.optim.SGD(params, lr=0.0)
    watch, rows = watched(optimizer)
    means = []
    for _ in range(3):
        optimizer.zero_grad()
        losses = []
        for factor in (1.0, 3.0):
            x = torch.full((4,), factor, requires_grad=True)
            loss = part(checkpoint(model, x, use_reentrant=True)).sum()
            loss.backward()
            losses.append(loss.item())
        optimizer.step()
        means.append(sum(losses) / 2)
    watch.detach()
    assert rows.column("loss") == pytest.approx(means)


@pytest.mark.parametrize("scaled", [False, True])
def test_backward_passes_in_other_threads_than_the_step(scaled: bool) -> None:
    """As of a training that has the parts of a batch done by a pool."""
    model = classifier().eval()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=1_000, enabled=scaled)
    watch, rows = watched(optimizer)
    data, losses = batches(), []
    with ThreadPoolExecutor(2) as pool:
        for step in range(8):
            x, y = next(data)
            optimizer.zero_grad()
            parts = [nn.functional.cross_entropy(model(x[i::2]), y[i::2]) / 2 for i in range(2)]
            for part in parts:
                loss = scaler.scale(part)
                if step == 0:  # the first by itself
                    loss.backward()
                else:
                    pool.submit(loss.backward).result(60)
            scaler.step(optimizer)
            scaler.update()
            losses.append(sum(part.item() for part in parts))
    watch.detach()
    assert rows.column("loss") == pytest.approx(losses, rel=1e-6)
    assert rows.column("backward_passes") == [2.0] * 8


def test_a_closure_for_an_optimizer_that_needs_none() -> None:
    """Gradients and loss are those that the closure makes, and a clip takes hold of them."""
    model = classifier().eval()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    watch, rows = watched(optimizer)
    measure_always(watch)
    hand = Hand(watch._agent)
    data, seen = batches(), []
    for step in range(6):
        if step == 3:
            hand.command("clip", max_norm=0.01)
        x, y = next(data)

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(x), y)  # noqa: B023 - called at once
            loss.backward()
            norm = float(torch.cat([p.grad.flatten() for p in model.parameters()]).double().norm())
            seen.append((loss.item(), norm))
            return loss

        optimizer.step(closure)  # type: ignore[arg-type]
    watch.detach()
    assert rows.column("loss") == [loss for loss, _ in seen]
    assert rows.column("grad_norm")[2] == pytest.approx(seen[2][1], rel=1e-6)
    assert rows.column("grad_norm_raw")[3:] == pytest.approx([norm for _, norm in seen[3:]], rel=1e-6)
    assert rows.column("grad_norm")[3:] == pytest.approx([0.01] * 3, rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("capturable", [False, True])
def test_a_compiled_step_keeps_one_graph(capturable: bool) -> None:
    from torch._dynamo.testing import CompileCounter

    def graphs(attached: bool) -> tuple[int, list[int]]:
        torch._dynamo.reset()
        model = classifier().eval()
        optimizer = torch.optim.Adam(model.parameters(), lr=torch.tensor(0.01), capturable=capturable)
        counter = CompileCounter()
        watch, rows = watched(optimizer) if attached else (None, None)
        step = torch.compile(optimizer.step, backend=counter)
        data = batches()
        for _ in range(3):
            x, y = next(data)
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            step()
        if watch is not None:
            watch.detach()
        torch._dynamo.reset()
        return counter.frame_count, rows.steps if rows is not None else [1, 2, 3]

    plain, steps = graphs(False), graphs(True)
    assert steps == plain


def test_frozen_and_thawed_parameters() -> None:
    model = classifier().eval()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    watch, rows = watched(optimizer, model=model)
    measure_always(watch)
    taken = samples_of(watch)
    data = batches()
    for step in range(1, 10):
        model[0].requires_grad_(step not in (4, 5, 6))
        train(model, optimizer, data, 1)
    assert not watch._agent.tracks[0].degraded
    watch.detach()
    assert rows.steps == list(range(1, 10))
    for step, sample in taken.items():
        frozen = step in (4, 5, 6)
        assert bool(torch.isnan(torch.tensor(sample.stats[0, 0]))) == frozen, step


@pytest.mark.parametrize("dtype", [torch.complex64, torch.bfloat16, torch.float16, torch.float64])
def test_every_dtype_is_seen_clipped_and_restarted(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    param = nn.Parameter(torch.randn(6, 5).to(dtype))
    optimizer = torch.optim.Adam([param], lr=1e-2, eps=1e-3)
    watch, rows = watched(optimizer)
    measure_always(watch)
    hand = Hand(watch._agent)

    def step() -> float:
        optimizer.zero_grad()
        param.abs().square().sum().backward()
        norm = float(
            torch.linalg.vector_norm(param.grad.to(torch.complex128 if dtype.is_complex else torch.float64))
        )
        optimizer.step()
        return norm

    norms = [step() for _ in range(4)]
    hand.command("clip", max_norm=0.5)
    clipped = step()
    hand.command("clip", off=True)
    hand.command("restart")
    step()
    first = optimizer.state[param]["exp_avg"].clone()
    expected = param.grad * 0.1
    assert [state for _, state, _ in hand.outcomes() if state != "pending"] == ["applied"] * 3
    assert not watch._agent.tracks[0].degraded
    watch.detach()
    assert rows.column("grad_norm")[2:4] == pytest.approx(norms[2:4], rel=1e-6)
    assert rows.column("grad_norm_raw")[4] == pytest.approx(clipped, rel=1e-6)
    torch.testing.assert_close(first, expected.to(dtype), rtol=1e-2, atol=1e-3)


def clipping(factor: Callable[[int], float], commanded: float | None = None) -> Sight:
    """The rows of a training whose script clips its gradients, all `factor(step)`, to a norm of 1, before a
    command clips them to another."""
    param = nn.Parameter(torch.ones(4))
    optimizer = torch.optim.SGD([param], lr=0.0)
    watch, rows = watched(optimizer)
    measure_always(watch)
    if commanded is not None:
        Hand(watch._agent).command("clip", max_norm=commanded)
    for step in range(8):
        optimizer.zero_grad()
        (param.sum() * factor(step)).backward()
        nn.utils.clip_grad_norm_([param], 1.0)
        optimizer.step()
    assert not watch._agent.tracks[0].degraded
    watch.detach()
    return rows


def test_the_users_clipping_and_how_often_it_bites() -> None:
    rows = clipping(lambda step: 10.0 if step % 4 == 0 else 0.1)
    assert rows.column("user_max_norm")[2:] == [1.0] * 6
    assert rows.column("user_clip_share")[2:] == pytest.approx([1 / 3, 1 / 4, 2 / 5, 2 / 6, 2 / 7, 2 / 8])
    assert rows.column("grad_norm_raw")[4] == pytest.approx(20.0, rel=1e-5)
    assert rows.column("grad_norm_raw")[5] == pytest.approx(0.2, rel=1e-5)


def test_the_users_clipping_is_told_also_where_a_command_clips_further() -> None:
    rows = clipping(lambda step: 10.0, commanded=0.5)
    assert rows.column("grad_norm")[2:] == pytest.approx([0.5] * 6, rel=1e-5)
    assert rows.column("grad_norm_raw")[2:] == pytest.approx([20.0] * 6, rel=1e-5)
    assert rows.column("user_max_norm")[2:] == [1.0] * 6


def test_an_infinite_gradient_that_the_user_clips_is_told() -> None:
    """torch multiplies it by 0, and it is NaN then."""
    rows = clipping(lambda step: torch.inf if step == 5 else 0.1)
    assert rows.column("grad_norm_raw")[5] == torch.inf
    assert rows.column("grad_norm_raw")[6] == pytest.approx(0.2, rel=1e-5)


def test_checkpoints_are_those_of_an_optimizer_alone() -> None:
    """The same bits, and loading one under way goes on as it would alone."""

    def run(attached: bool) -> list[Any]:
        model = classifier()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        watch = optwatch.attach(optimizer, model=model) if attached else None
        if watch is not None:
            measure_always(watch)
            Hand(watch._agent).command("clip", max_norm=1e9)
        data = batches()
        train(model, optimizer, data, 5)
        saved = copy.deepcopy(optimizer.state_dict())
        keys = [sorted(saved), sorted(saved["param_groups"][0]), [sorted(s) for s in saved["state"].values()]]
        train(model, optimizer, data, 5)
        optimizer.load_state_dict(saved)
        train(model, optimizer, data, 5)
        result = [keys, *fingerprint(model, optimizer)]
        if watch is not None:
            assert not watch._agent.tracks[0].degraded
            watch.detach()
        return result

    assert run(True) == run(False)


@pytest.mark.parametrize("way", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
@pytest.mark.filterwarnings("ignore")
def test_workers_of_a_data_loader(way: str) -> None:
    """They come and go under the agent, which stays the parent's."""
    x, y = next(batches())
    loader = DataLoader(TensorDataset(x, y), batch_size=8, num_workers=2, multiprocessing_context=way)
    model = classifier()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    watch, rows = watched(optimizer)
    for _ in range(2):
        for x, y in loader:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
    assert not watch._agent.closed
    watch.detach()
    assert rows.steps == list(range(1, 9))


class Sharded(torch.amp.grad_scaler.GradScaler):
    """Hides the methods of its base, as FSDP's does."""

    def scale(self, outputs: Any) -> Any:
        if self._scale is None:
            self._lazy_init_scale_growth_tracker(outputs.device)
        return outputs * self._scale

    def update(self, new_scale: Any = None) -> None:
        with torch.no_grad():
            found = sum(
                float(value)
                for state in self._per_optimizer_states.values()
                for value in state["found_inf_per_device"].values()
            )
            self._scale *= 0.5 if found else 1.0
        self._per_optimizer_states.clear()


class Polite(torch.amp.grad_scaler.GradScaler):
    """Overrides a method and calls that of its base."""

    def update(self, new_scale: Any = None) -> None:
        super().update(new_scale)


@pytest.mark.parametrize("kind", [Sharded, Polite])
def test_a_scaler_that_is_given(kind: Any) -> None:
    before = dict(vars(kind))
    param = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([param], lr=0.1)
    scaler = kind("cpu", init_scale=64.0)
    watch, rows = watched(optimizer, scaler=scaler)
    for factor in (1.0, torch.inf, 1.0, 1.0):
        optimizer.zero_grad()
        scaler.scale((param * factor).sum()).backward()
        scaler.step(optimizer)
        scaler.update()
    watch.detach()
    assert rows.column("loss")[0] == 2.0, "unscaled"
    assert rows.column("skipped_steps") == [0.0, 1.0, 1.0]
    assert rows.column("loss_scale") == [64.0, 32.0, 32.0]
    assert dict(vars(kind)) == before
    with pytest.raises(TypeError, match="GradScaler, not int"):
        optwatch.attach(optimizer, scaler=3)  # type: ignore[arg-type]


class Averaging(torch.optim.Optimizer):
    """An optimizer that nobody knows, with moments under names that can be guessed and another state."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, {"lr": 0.1})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                if not state:
                    state.update(exp_avg=torch.zeros_like(p), trail=p.clone(), count=0, parts=[p.clone()])
                state["exp_avg"].lerp_(p.grad, 0.1)
                state["trail"].lerp_(p, 0.5)
                p.grad.mul_(2)  # it is overwritten, as many do
                p.sub_(state["exp_avg"], alpha=group["lr"])


def test_an_optimizer_that_nobody_knows() -> None:
    model = classifier(dtype=torch.float64).eval()
    params = list(model.parameters())
    optimizer = Averaging(params)
    watch, rows = watched(optimizer)
    measure_always(watch)
    taken = samples_of(watch)
    data, norms, trails, moments = batches(dtype=torch.float64), [], [], []
    for _ in range(8):
        x, y = next(data)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        norms.append(float(torch.cat([p.grad.flatten() for p in params]).norm()))
        optimizer.step()
        trails.append(float(torch.cat([optimizer.state[p]["trail"].flatten() for p in params]).norm()))
        moments.append(float(optimizer.state[params[0]]["exp_avg"].square().mean().sqrt()))
    watch.detach()
    assert rows.column("grad_norm")[2:] == pytest.approx(norms[2:], rel=1e-6)
    assert rows.column("state_norm/trail")[2:] == pytest.approx(trails[2:], rel=1e-6)
    moment = STATS.index("exp_avg_rms")
    seen = {step: float(sample.stats[0, moment]) for step, sample in taken.items()}
    seen = {step: value for step, value in seen.items() if value == value}
    assert len(seen) >= 2
    for step, value in seen.items():
        assert value == pytest.approx(moments[step - 1], rel=1e-6)


def test_what_wraps_an_optimizer_in_several_ways() -> None:
    inner = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1)

    for attribute in ("optimizer", "base_optimizer", "_optimizer", "_base_optimizer", "optim", "base"):
        outer = type("Outer", (), {attribute: inner})()
        with optwatch.attach(outer) as watch:
            assert watch._agent.tracks[0].optimizer is inner, attribute

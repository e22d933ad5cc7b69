"""What is reported of inputs and activations, beside values computed independently."""

import copy
import functools
import io
import math
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

import optwatch
from optwatch_agent.forward import Forward
from tests.unit.agent.models import batches, classifier, fingerprint, train
from tests.unit.agent.observed import Sight


class Net(nn.Module):
    """Two calls of one activation, one of another, shared weights."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 6), nn.Linear(6, 1)
        self.relu, self.tanh = nn.ReLU(), nn.Tanh()
        self.wrap: Callable[..., Any] = lambda part, x: part(x)

    def forward(self, x: Tensor) -> Tensor:
        x = self.wrap(lambda x: self.relu(self.first(x)), x)
        x = self.wrap(lambda x: self.relu(self.first(x) - 5.0), x)
        out: Tensor = self.last(self.tanh(10 * x + 1))
        return out


def test_the_input_over_several_passes() -> None:
    model = nn.Linear(100, 1)
    forward = Forward(model)
    scales = torch.logspace(-2, 2, 100)
    parts = [torch.randn(n, 100) * scales + 3.0 for n in (5, 11)]
    for part in parts:
        model(part).sum().backward()
    values, cost = forward.take()
    x = torch.cat(parts).double()
    groups = x.square().mean(0).split(2)
    rms = torch.stack([group.mean() for group in groups]).sqrt()
    assert values == {
        "batch_size": 16.0,
        "input_mean": pytest.approx(float(x.mean()), rel=1e-5),
        "input_std": pytest.approx(float(x.std(correction=0)), rel=1e-5),
        "input_max": pytest.approx(float(x.abs().max()), rel=1e-6),
        "input_low": pytest.approx(float(rms.min()), rel=1e-5),
        "input_high": pytest.approx(float(rms.max()), rel=1e-5),
    }
    assert cost > 0
    assert forward.take() == ({}, 0.0)


def test_activations_of_a_module_that_is_called_twice() -> None:
    torch.manual_seed(0)
    model = Net()
    forward = Forward(model)
    x = torch.randn(32, 6)
    model(x).sum().backward()
    values, _ = forward.take()
    with torch.no_grad():
        one = model.first(x).relu()
        two = (model.first(one) - 5.0).relu()
        end = (10 * two + 1).tanh().double()
    assert values["zeros/relu"] == pytest.approx((float((one == 0).float().mean()) + 1.0) / 2)
    assert float((two == 0).float().mean()) == 1.0
    assert values["dead/relu"] == pytest.approx((float((one == 0).all(0).float().mean()) + 1.0) / 2)
    assert values["saturated/tanh"] == pytest.approx(float((1 - end**2 < 1 / 20).float().mean()))


@pytest.mark.parametrize("reentrant", [True, False])
def test_what_is_computed_again_counts_once(reentrant: bool) -> None:
    model = Net()
    x = torch.randn(8, 6, requires_grad=True)
    forward = Forward(model)
    model(x).sum().backward()
    plain, _ = forward.take()
    model.wrap = lambda part, x: checkpoint(part, x, use_reentrant=reentrant)
    model(x).sum().backward()
    assert forward.take()[0] == plain


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_model_that_is_checkpointed_as_a_whole(reentrant: bool) -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU())
    x = torch.randn(8, 3, requires_grad=True)
    forward = Forward(model)
    checkpoint(model, x, use_reentrant=reentrant).sum().backward()
    values, _ = forward.take()
    assert values.get("batch_size") in ({None, 8.0} if reentrant else {8.0})


def test_a_model_that_is_not_called_itself() -> None:
    """As Lightning does: a step calls the model's parts."""
    model = nn.ModuleDict({"encoder": nn.Sequential(nn.Linear(3, 4), nn.ReLU()), "head": nn.Linear(4, 1)})
    forward = Forward(model)
    x = torch.randn(8, 3)
    hidden = model["encoder"](x)
    model["head"](hidden).sum().backward()
    values, _ = forward.take()
    assert values["batch_size"] == 8.0
    assert values["input_max"] == pytest.approx(float(x.abs().max()))
    assert values["zeros/encoder.1"] == pytest.approx(float((hidden == 0).float().mean()))


def test_only_training_counts() -> None:
    model = Net()
    forward = Forward(model)
    x = torch.randn(4, 6)
    with torch.no_grad():
        model(x)
    model.eval()
    model(x)
    model.relu(x)
    assert forward.take() == ({}, 0.0)
    model.train()
    forward.arm(False)
    model(x)
    assert forward.take() == ({}, 0.0)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize(
    "given",
    [
        lambda model: model(tokens=torch.zeros(7, 3, dtype=torch.long)),
        lambda model: model({"tokens": torch.zeros(7, 3, dtype=torch.long)}),
    ],
)
def test_a_batch_of_tokens_has_a_size_only(given: Callable[[nn.Module], Tensor]) -> None:
    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(5, 2)

        def forward(self, tokens: Any) -> Tensor:
            out: Tensor = self.embed(tokens["tokens"] if isinstance(tokens, dict) else tokens)
            return out

    model = Words()
    forward = Forward(model)
    given(model)
    assert forward.take()[0] == {"batch_size": 7.0}


def test_selective_checkpoints_hold_none_of_the_operations_that_measure() -> None:
    """They would be taken for those of the model when a part of it is computed again: other gradients."""

    def everything(*_: Any, **__: Any) -> CheckpointPolicy:
        return CheckpointPolicy.MUST_SAVE

    contexts = functools.partial(create_selective_checkpoint_contexts, everything)
    net, x = Net(), torch.randn(7, 6)

    def part(run: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        out = run(x)
        return out * out.abs().mean() * (out == 0).float().mean()

    net.wrap = lambda run, x: checkpoint(part, run, x, use_reentrant=False, context_fn=contexts)

    def gradients() -> list[Tensor]:
        net.zero_grad()
        net(x).sum().backward()
        return [p.grad for p in net.parameters() if p.grad is not None]

    plain = gradients()
    forward = Forward(net)
    assert all(map(torch.equal, gradients(), plain))
    values, _ = forward.take()
    assert values["batch_size"] == 7.0
    assert "saturated/tanh" in values  # beside the checkpointed parts
    assert "zeros/relu" not in values


@pytest.mark.parametrize("activation", [nn.ReLU(), torch.relu])
def test_evaluations_of_a_watched_transformer_are_bit_by_bit_the_same(activation: Any) -> None:
    """Its layers compute in another way where one of their modules has a hook."""
    layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True, activation=activation)
    model = nn.Sequential(layer, nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.ReLU())
    x = torch.randn(20, 7, 32)

    def evaluated() -> Tensor:
        with torch.no_grad():
            out: Tensor = model.eval()(x)
        return out

    plain = evaluated()
    forward = Forward(model)
    assert torch.equal(evaluated(), plain)
    model.train()(x).sum().backward()
    values, _ = forward.take()
    assert values["batch_size"] == 20.0
    assert [name for name in values if name.startswith("zeros/")] == ["zeros/2"]


@pytest.mark.filterwarnings("ignore:`torch.jit.trace:DeprecationWarning")
def test_a_trace_of_a_watched_model_is_that_of_the_model() -> None:
    net, x = Net(), torch.randn(7, 6)

    def traces() -> list[str]:
        traced = str(torch.jit.trace(net, x).inlined_graph)
        return [re.sub(r"___torch_mangle_\d+\.", "", traced), str(make_fx(net)(x).graph)]

    plain = traces()
    forward = Forward(net)
    assert traces() == plain
    assert forward.take() == ({}, 0.0)


@pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning")
def test_a_scripted_module_takes_no_hooks() -> None:
    scripted = torch.jit.script(nn.Sequential(nn.Linear(2, 2), nn.ReLU()))
    model = nn.Sequential(scripted, nn.ReLU())
    forward = Forward(model)
    model(torch.randn(3, 2))
    assert forward.take()[0].keys() >= {"batch_size", "input_mean", "zeros/1"}
    forward = Forward(scripted)
    scripted(torch.randn(3, 2))
    assert forward.take() == ({}, 0.0)


def test_a_module_that_refuses_hooks_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    class Refuses(nn.ReLU):
        def register_forward_hook(self, *args: Any, **options: Any) -> Any:
            raise RuntimeError("not here")

    model = nn.Sequential(nn.Linear(2, 2), Refuses())
    forward = Forward(model)
    forward.arm(True)
    model(torch.randn(3, 2))
    assert forward.take() == ({}, 0.0)
    assert not any(each._forward_hooks or each._forward_pre_hooks for each in model.modules())
    assert [record.message for record in caplog.records] == [
        "optwatch: inputs and activations are not measured any more: RuntimeError('not here')"
    ]


def test_a_model_that_is_empty_so_far_is_seen() -> None:
    class Memory(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(2, 2)

        def __len__(self) -> int:
            return 0

        def forward(self, x: Any) -> Any:
            return self.inner(x[:4])

    model = Memory()
    forward = Forward(model)
    model(torch.randn(8, 2))
    assert forward.take()[0]["batch_size"] == 8.0


def test_what_cannot_be_measured_is_left_alone() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    forward = Forward(model)
    torch.func.vmap(lambda row: model(row[None]))(torch.randn(3, 2))
    assert forward.take()[0] == {"batch_size": 1.0}


def test_a_failure_is_told_once_and_stays_out_of_the_way(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(dict[str, Tensor]):
        def values(self) -> Any:
            raise OSError("the disk is gone")

    class Reads(nn.Linear):
        def forward(self, batch: Any) -> Tensor:
            return super().forward(batch["x"])

    model = Reads(2, 2)
    forward = Forward(model)
    for _ in range(3):
        model(Broken(x=torch.ones(1, 2)))
        forward.take()
        forward.arm(True)
    assert [record.message for record in caplog.records] == [
        "optwatch: inputs and activations are not measured any more: OSError('the disk is gone')"
    ]


def test_copies_and_pickles_carry_nothing_of_it(tmp_path: Path) -> None:
    model = classifier()
    forward = Forward(model)
    twin = copy.deepcopy(model)
    twin(torch.randn(3, 12))
    assert forward.take() == ({}, 0.0)
    saved = io.BytesIO()
    torch.save(model, saved)
    path = tmp_path / "model.pt"
    path.write_bytes(saved.getvalue())
    alone = (
        "import sys, torch; sys.modules['optwatch_agent'] = None; "
        f"m = torch.load({str(path)!r}, weights_only=False); print(m(torch.zeros(2, 12)).shape)"
    )
    done = subprocess.run([sys.executable, "-c", alone], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "[2, 3]" in done.stdout


def test_a_watched_model_trains_bit_by_bit_the_same_and_keeps_no_hook() -> None:
    ends = []
    for watched in (False, True):
        model = classifier()
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        if watched:
            watch = optwatch.attach(optimizer, model=model, budget=1.0)
            rows = Sight(watch)
        train(model, optimizer, batches(), 60)
        ends.append(fingerprint(model, optimizer))
        if watched:
            watch.detach()
    assert ends[0] == ends[1]
    assert len([size for size in rows.column("batch_size") if size == 32.0]) > 5
    assert any(share for share in rows.column("zeros/1") if share)
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in model.modules())


def test_the_first_step_which_has_no_sample_does_not_make_samples_seem_cheap() -> None:
    model = classifier()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    watch = optwatch.attach(optimizer, model=model)
    rows, governor = Sight(watch), watch._agent.tracks[0].governor
    expected = governor._sample.usual
    train(model, optimizer, batches(), 1)
    watch.detach()
    assert rows.column("batch_size") != [None], "the pass was seen"
    assert rows.column("param_norm") == [None]
    assert governor._sample.usual == expected
    assert governor.overhead == 0.0  # no step came before, so that its time is not known


def test_the_users_batch_size_overrides() -> None:
    model = classifier()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    watch = optwatch.attach(optimizer, model=model, budget=1.0)
    rows = Sight(watch)
    data = batches()
    for _ in range(40):
        x, y = next(data)
        nn.functional.cross_entropy(model(x), y).backward()
        watch.log(batch_size=512)
        optimizer.step()
    watch.detach()
    assert set(rows.column("batch_size")) == {512.0}
    assert any(isinstance(mean, float) and math.isfinite(mean) for mean in rows.column("input_mean"))


@pytest.mark.slow
@pytest.mark.parametrize("first", ["attached", "compiled"])
def test_a_compiled_model_keeps_its_graphs(first: str) -> None:
    from torch._dynamo.testing import CompileCounter

    counts = []
    for watched in (False, True):
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()  # as in a process that has compiled nothing yet
        counter = CompileCounter()
        model: Any = classifier().eval().train()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        if watched and first == "attached":
            watch = optwatch.attach(optimizer, model=model, budget=1.0)
        compiled = torch.compile(model, backend=counter)
        if watched and first == "compiled":
            watch = optwatch.attach(optimizer, model=compiled, budget=1.0)
        if watched:
            rows = Sight(watch)
        train(compiled, optimizer, batches(), 30)
        counts.append(counter.frame_count)
    watch.detach()
    assert counts == [1, 1]
    if first == "compiled":
        assert 32.0 in rows.column("batch_size"), "its input is seen outside of the graph"

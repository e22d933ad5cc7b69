"""Triton's kernel on tensors of the CPU, in a process in which Triton interprets (`test_fused`)."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from optwatch.wire.messages import COUNTS, STATS
from optwatch_agent import device_sums, tensors
from optwatch_agent.device_sums import Tools
from optwatch_agent.fused import Kernel
from optwatch_agent.probe import Sample, take
from optwatch_agent.roles import roles_of
from tests.unit.agent.models import OPTIMIZERS, WITHOUT_RULE, batches, classifier, train

CPU = torch.device("cpu")


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Iterator[Kernel]:
    monkeypatch.setattr(tensors, "DEVICES", {"cpu"})
    with np.errstate(all="ignore"):  # the interpreter reckons with numpy
        yield Kernel(CPU)


def both(optimizer: Any, kernel: Kernel) -> tuple[Sample, Sample]:
    """A sample by the kernel, and one by torch's own operations."""
    tools = Tools({CPU: kernel})
    params = [param for group in optimizer.param_groups for param in group["params"]]
    samples = []
    for each in (tools, Tools()):
        taken = take(optimizer, params, roles_of(optimizer), tools=each)
        assert taken.numbers is not None
        samples.append(taken.sample(taken.numbers.tolist()))
    assert tools.fused, "it did not fail"
    return samples[0], samples[1]


def assert_alike(optimizer: Any, kernel: Kernel, tolerance: float = 1e-6) -> Sample:
    one, other = both(optimizer, kernel)
    for j, name in enumerate(STATS):
        found, wanted = one.stats[:, j], other.stats[:, j]
        assert np.allclose(found, wanted, rtol=tolerance, atol=0, equal_nan=True), name
    assert np.array_equal(one.counts, other.counts)
    assert one.param_norm == pytest.approx(other.param_norm, rel=1e-9, nan_ok=True)
    assert one.update_norm == pytest.approx(other.update_norm, rel=1e-6, nan_ok=True)
    return one


class Counting:
    """How often a function was called."""

    def __init__(self, call: Any) -> None:
        self.call, self.count = call, 0

    def __call__(self, *args: Any) -> Any:
        self.count += 1
        return self.call(*args)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if name not in WITHOUT_RULE])
def test_every_optimizer(name: str, kernel: Kernel) -> None:
    model, data = classifier(), batches()
    optimizer = OPTIMIZERS[name](model.parameters())
    train(model, optimizer, data, 6)
    assert_alike(optimizer, kernel)


@pytest.mark.parametrize("name", ["nesterov", "adamw", "adamax", "rmsprop", "nadam-decay"])
def test_one_launch_for_all_tensors(name: str, kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two groups, three dtypes and several chunks, with and without a gradient or a state."""
    monkeypatch.setattr(kernel._triton, "CHUNK", 1024)
    generator = torch.Generator().manual_seed(0)
    shapes = [(3,), (7, 5), (2_500,), (100,), (2, 513), (4,)]
    dtypes = [torch.float32, torch.bfloat16, torch.float32, torch.float16, torch.float32, torch.float32]
    params = [
        nn.Parameter(torch.randn(shape, generator=generator).to(dtype))
        for shape, dtype in zip(shapes, dtypes, strict=True)
    ]
    optimizer = OPTIMIZERS[name](params[:3])
    optimizer.add_param_group({"params": params[3:], "lr": 3e-3})
    for _ in range(2):
        for param in params[:-1]:
            param.grad = torch.randn(param.shape, generator=generator).to(param.dtype)
        optimizer.step()
    launches = Counting(kernel.measure)
    monkeypatch.setattr(kernel, "measure", launches)
    rows = Counting(device_sums._measured)
    monkeypatch.setattr(device_sums, "_measured", rows)
    assert_alike(optimizer, kernel)
    assert launches.count == 1
    assert rows.count > 1, "by the other way only"


def test_bad_elements_zeros_and_values_out_of_range(kernel: Kernel) -> None:
    params = [nn.Parameter(torch.ones(1000)) for _ in range(5)]
    optimizer = torch.optim.Adam(params, lr=0.1)
    for param in params:
        param.grad = torch.linspace(-1, 1, 1000)
    optimizer.step()
    params[0].grad[3] = torch.nan  # type: ignore[index]
    params[1].grad[500:] = 0  # type: ignore[index]
    params[1].grad[1] = torch.inf  # type: ignore[index]
    optimizer.state[params[2]]["exp_avg"][999] = torch.nan
    optimizer.state[params[2]]["exp_avg_sq"][7] = torch.inf
    params[3].data.mul_(1e30)
    params[3].grad.mul_(1e-30)  # type: ignore[union-attr]
    optimizer.state[params[4]]["exp_avg_sq"][7] = torch.nan
    sample = assert_alike(optimizer, kernel)
    assert sample.counts[:, COUNTS.index("grad_nonfinite")].tolist() == [1, 1, 0, 0, 0]
    assert sample.counts[:, COUNTS.index("moments_nonfinite")].tolist() == [0, 0, 2, 0, 1]
    assert sample.counts[1, COUNTS.index("grad_zeros")] == 500
    for name in ("grad_rms", "grad_max"):
        assert np.isnan(sample.stats[0, STATS.index(name)])
    assert np.isnan(sample.stats[4, STATS.index("exp_avg_sq_min")])
    assert sample.stats[3, STATS.index("param_rms")] == pytest.approx(1e30, rel=0.1)


def test_what_it_cannot_read_is_measured_all_the_same(kernel: Kernel) -> None:
    """Tensors in float64, other state than the moments, and columns before rows."""
    for name, dtype in (("adamw", torch.float64), ("amsgrad", torch.float32), ("rprop", torch.float32)):
        model = classifier(dtype=dtype)
        optimizer = OPTIMIZERS[name](model.parameters())
        train(model, optimizer, batches(dtype=dtype), 3)
        assert_alike(optimizer, kernel)
    transposed = nn.Parameter(torch.randn(5, 7).t())
    optimizer = torch.optim.Adam([transposed], lr=0.1)
    transposed.grad = torch.randn(7, 5)
    optimizer.step()
    assert_alike(optimizer, kernel)


def test_tensors_that_have_moved_are_found(kernel: Kernel) -> None:
    param = nn.Parameter(torch.ones(10))
    optimizer = torch.optim.SGD([param], lr=0.1)
    param.grad = torch.ones(10)
    optimizer.step()
    kept = param.grad
    for value in (2.0, 3.0):
        param.grad = torch.full((10,), value)
        sample = assert_alike(optimizer, kernel)
        assert sample.stats[0, STATS.index("grad_rms")] == value
        assert kept is not param.grad


def test_where_it_fails_torch_measures(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    model, data = classifier(), batches()
    optimizer = torch.optim.AdamW(model.parameters())
    train(model, optimizer, data, 2)
    monkeypatch.setattr(kernel, "_triton", None)
    tools = Tools({CPU: kernel})
    taken = take(optimizer, list(model.parameters()), roles_of(optimizer), tools=tools)
    assert taken.numbers is not None
    sample = taken.sample(taken.numbers.tolist())
    assert not np.isnan(sample.stats).any()
    assert not tools.fused

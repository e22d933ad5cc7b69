"""How gradients are spread, against numpy in float64: every exponent, every dtype, in real trainings."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import optwatch
from optwatch.wire.histograms import LEAST, NONFINITE, POWERS, WIDTH, ZEROS
from optwatch_agent.blocks import BLOCK
from optwatch_agent.histograms import Counts, measure
from tests.histograms import counted
from tests.unit.agent.models import OPTIMIZERS, batches, classifier
from tests.unit.agent.observed import copies, grads_of_loss, measure_always


def of(grad: Tensor) -> list[int]:
    param = torch.zeros(grad.shape, dtype=grad.dtype, requires_grad=True)
    param.grad = grad
    (row,) = measure([param])
    return row.tolist()


def wanted(grad: Tensor) -> list[int]:
    return counted(grad.detach().double().numpy()).tolist()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_every_exponent_of_every_dtype(dtype: torch.dtype) -> None:
    """Numbers just below, at and just above each power of two of a dtype, subnormal ones included."""
    powers = torch.tensor(2.0, dtype=torch.float64) ** torch.arange(-1080, 1024)
    around = torch.cat([powers * (1 - 2**-8), powers, powers * (1 + 2**-7)])
    special = torch.tensor([0.0, -0.0, torch.inf, -torch.inf, torch.nan, 5e-324, -1.5], dtype=torch.float64)
    x = torch.cat([around, -around, special]).to(dtype)
    assert of(x) == wanted(x)


def test_all_of_a_large_tensor_counts() -> None:
    x = torch.randn(2 * BLOCK + 77, generator=torch.Generator().manual_seed(3)) * 1e-4
    x[::7], x[5::1001] = 0.0, torch.inf
    row = of(x)
    assert row == wanted(x)
    assert sum(row) == x.numel()


@pytest.mark.parametrize(
    "x",
    [
        torch.randn(4, 3, 5, 5).to(memory_format=torch.channels_last),
        torch.randn(6, 8)[:, ::2],
        torch.randn(8, 6).t(),
        torch.randn(()),
        torch.randn(0, 3),
        torch.randn(3).expand(5, 3),
    ],
    ids=["channels last", "strided", "transposed", "scalar", "empty", "expanded"],
)
def test_every_layout(x: Tensor) -> None:
    assert of(x) == wanted(x)


def test_complex_and_sparse_gradients_count_what_they_hold() -> None:
    x = torch.randn(9, dtype=torch.complex64)
    assert of(x) == wanted(torch.view_as_real(x))
    param = torch.zeros(5, 2, requires_grad=True)
    values = [[1.0, 2.0], [0.5, 0.0], [3.0, -8.0]]
    param.grad = torch.sparse_coo_tensor([[1, 3, 1]], values, (5, 2), check_invariants=True)
    assert measure([param])[0].tolist() == counted([4.0, -6.0, 0.5, 0.0]).tolist()


def test_what_was_not_measured_is_empty() -> None:
    frozen, other = torch.zeros(3), torch.zeros(3)
    assert not measure([frozen, other]).any()
    kept = measure([frozen, other], {1: torch.ones(3)})
    assert not kept[0].any()
    assert kept[1].tolist() == counted([1.0] * 3).tolist()


def test_the_range_ends_in_open_bins() -> None:
    row = of(torch.tensor([2.0**-126, -(2.0 ** (LEAST - 1)), 2.0**127, 0.0, torch.nan]))
    assert (row[POWERS], row[0], row[2 * POWERS - 1], row[ZEROS], row[NONFINITE]) == (1, 1, 1, 1, 1)


@pytest.mark.parametrize("name", ["sgd", "adamw", "muon"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_those_of_a_training_are_of_its_gradients(name: str, dtype: torch.dtype) -> None:
    model, data = classifier(dtype=dtype), batches(dtype=dtype)
    optimizer = OPTIMIZERS[name](model.parameters())
    params = [p for group in optimizer.param_groups for p in group["params"]]
    watch = optwatch.attach(optimizer)
    measure_always(watch)
    track = watch._agent.tracks[0]
    taken: dict[int, Counts] = {}
    track.recorder.histogram = taken.__setitem__  # type: ignore[method-assign]
    grads: dict[int, list[Tensor]] = {}
    for step in range(1, 12):
        track.governor.histogram_every = 3
        grads_of_loss(model, optimizer, data)
        grads[step] = copies(p.grad for p in params)
        optimizer.step()
    watch.detach()
    steps = sorted(taken)
    assert len(steps) >= 3
    assert set(np.diff(steps)) == {3}
    for step, counts in taken.items():
        assert counts.dtype == np.uint32
        assert counts.shape == (len(params), WIDTH)
        for row, grad in zip(counts, grads[step], strict=True):
            assert row.tolist() == counted(grad.numpy()).tolist()


def test_those_of_an_optimizer_that_overwrites_gradients_are_of_what_it_got() -> None:
    class Overwrites(torch.optim.Optimizer):
        def __init__(self, params: object) -> None:
            super().__init__(params, {"lr": 0.1})  # type: ignore[arg-type]

        @torch.no_grad()
        def step(self, closure: object = None) -> None:  # type: ignore[override]
            for param in self.param_groups[0]["params"]:
                param.grad.mul_(1e-3)
                param.sub_(param.grad)

    torch.manual_seed(0)
    model = nn.Linear(12, 3)
    optimizer = Overwrites(model.parameters())
    watch = optwatch.attach(optimizer)
    measure_always(watch)
    taken: dict[int, Counts] = {}
    watch._agent.tracks[0].recorder.histogram = taken.__setitem__  # type: ignore[method-assign]
    grads, data = [], batches()
    for _ in range(6):
        grads_of_loss(model, optimizer, data)
        grads.append(copies(p.grad for p in model.parameters()))
        optimizer.step()
    watch.detach()
    assert taken
    for step, counts in taken.items():
        for row, grad in zip(counts, grads[step - 1], strict=True):
            if row.any():  # what is copied before a step is as much as the largest tensor, in turn
                assert row.tolist() == counted(grad.numpy()).tolist()
        assert counts.any()

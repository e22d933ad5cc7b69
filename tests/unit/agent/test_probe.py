"""What is reported of each tensor, against values computed independently in float64."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from optwatch.wire.messages import COUNTS, STATS
from optwatch_agent import tensors
from optwatch_agent.blocks import BLOCK
from optwatch_agent.factored import Factors, multiplied
from optwatch_agent.probe import Joined, Sample, measure, take, take_gradients
from optwatch_agent.roles import roles_of
from tests.unit.agent.models import OPTIMIZERS, WITHOUT_RULE, batches, classifier, train

FIRST = ("exp_avg", "momentum_buffer")
SECOND = ("exp_avg_sq", "square_avg", "sum", "exp_inf", "variance")
CORRECTED = (torch.optim.Adam, torch.optim.AdamW, torch.optim.NAdam, torch.optim.RAdam)


@pytest.fixture(params=["host", "device"])
def place(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Where the tensors are taken to be; of the CPU they are."""
    if request.param == "device":
        monkeypatch.setattr(tensors, "DEVICES", {"cpu"})
    return str(request.param)


def rms(x: Tensor) -> float:
    return float(x.detach().double().square().mean().sqrt())


def found(state: Mapping[str, Any], keys: tuple[str, ...]) -> Tensor | None:
    for key in keys:
        if isinstance(state.get(key), Tensor) and state[key].numel():
            return state[key].double()
    if keys is SECOND and isinstance(rows := state.get("row_var"), Tensor):
        return rows.double() @ state["col_var"].double() / rows.double().mean(dim=-2, keepdim=True)
    return None


def expected(optimizer: torch.optim.Optimizer, param: Tensor, before: Tensor) -> dict[str, float]:
    """The statistics of one tensor by their definitions, NaN where the optimizer has no such thing."""
    state, group = optimizer.state[param], optimizer.param_groups[0]
    grad = param.grad.double()
    values = dict.fromkeys(STATS, np.nan)
    values |= {
        "grad_rms": rms(grad),
        "grad_max": float(grad.abs().max()),
        "param_rms": rms(param),
        "param_max": float(param.detach().abs().max()),
        "update_rms": rms(param.detach().double() - before),
    }
    first, second = found(state, FIRST), found(state, SECOND)
    if first is not None:
        values["exp_avg_rms"] = rms(first)
        values["cos_grad_exp_avg"] = float((grad * first).sum() / (grad.norm() * first.norm()))
    if second is not None and second.shape == grad.shape:
        values["exp_avg_sq_mean"] = float(second.mean())
        values["exp_avg_sq_min"] = float(second.min())
        values["exp_avg_sq_max"] = float(second.max())
        hat = second
        if isinstance(optimizer, CORRECTED):
            hat = second / (1 - group["betas"][1] ** float(state["step"]))
        eps = 0.0 if isinstance(optimizer, torch.optim.Adamax | torch.optim.Adafactor) else group["eps"]
        root = second if isinstance(optimizer, torch.optim.Adamax) else hat.sqrt()
        values["rms_t"] = rms(grad / root.clamp(min=eps))
        values["eps_share"] = float((root < 10 * eps).double().mean())
    return values


def check(sample: Sample, i: int, wanted: Mapping[str, float], tolerance: float) -> None:
    got = dict(zip(STATS, sample.stats[i].tolist(), strict=True))
    for name, value in wanted.items():
        assert got[name] == pytest.approx(value, rel=tolerance, abs=1e-7, nan_ok=True), name


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("way", ["foreach", "fused", "for-loop"])
@pytest.mark.parametrize("steps", [1, 7])
def test_statistics_of_every_optimizer(place: str, name: str, way: str, steps: int) -> None:
    """In float64, where the update can be seen as a difference."""
    model, data = classifier(dtype=torch.float64), batches(dtype=torch.float64)
    try:
        options = {"fused": True} if way == "fused" else {"foreach": way == "foreach"}
        optimizer = OPTIMIZERS[name](
            model.parameters(), **({} if name == "muon" and way == "for-loop" else options)
        )
    except (TypeError, RuntimeError):
        pytest.skip(f"there is no {way} {name}")
    params = list(optimizer.param_groups[0]["params"])
    train(model, optimizer, data, steps - 1)
    before = [p.detach().clone() for p in params]
    train(model, optimizer, data, 1)
    differences = {}
    if name in WITHOUT_RULE:
        differences = {i: p.detach() - b for i, (p, b) in enumerate(zip(params, before, strict=True))}
    sample = measure(optimizer, params, roles_of(optimizer), differences)
    wanted = [expected(optimizer, p, b) for p, b in zip(params, before, strict=True)]
    for i in range(len(params)):
        check(sample, i, wanted[i], 1e-6)
    updates = torch.cat([(p.detach() - b).flatten() for p, b in zip(params, before, strict=True)])
    assert sample.update_norm == pytest.approx(float(updates.norm()), rel=1e-6)
    whole = torch.cat([p.detach().flatten() for p in params])
    assert sample.param_norm == pytest.approx(float(whole.norm()), rel=1e-6)


@pytest.mark.parametrize("name", ["nesterov", "adamw", "rmsprop", "adagrad"])
def test_large_float32_tensors(place: str, name: str) -> None:
    """A tensor of several blocks and a remainder, beside small ones."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(301, 1009), nn.Tanh(), nn.Linear(1009, 7))
    optimizer = OPTIMIZERS[name](model.parameters())
    assert model[0].weight.numel() > 2 * BLOCK
    params = list(model.parameters())
    generator = torch.Generator().manual_seed(2)
    for _ in range(3):
        before = [p.detach().double() for p in params]
        optimizer.zero_grad()
        model(torch.randn(16, 301, generator=generator)).square().mean().backward()
        optimizer.step()
    sample = measure(optimizer, params, roles_of(optimizer))
    for i, (param, old) in enumerate(zip(params, before, strict=True)):
        wanted = expected(optimizer, param, old)
        seen = wanted.pop("update_rms")
        check(sample, i, wanted, 2e-6)
        # The difference of float32 parameters has lost bits that the rule has not.
        assert sample.stats[i, STATS.index("update_rms")] == pytest.approx(seen, rel=1e-3)


def test_groups_that_have_become_alike(place: str) -> None:
    """NAdam's state has a product of what the momentum has been."""
    model, data = classifier(), batches()
    groups: Any = [{"params": [p], "betas": (0.9 - 0.1 * i, 0.99)} for i, p in enumerate(model.parameters())]
    optimizer = torch.optim.NAdam(groups, lr=0.01)
    train(model, optimizer, data, 3)
    for group in optimizer.param_groups:
        group["betas"] = (0.9, 0.99)
    before = [p.detach().double().clone() for p in model.parameters()]
    train(model, optimizer, data, 1)
    sample = measure(optimizer, list(model.parameters()), roles_of(optimizer))
    for i, (param, old) in enumerate(zip(model.parameters(), before, strict=True)):
        wanted = rms(param.detach().double() - old)
        assert sample.stats[i, STATS.index("update_rms")] == pytest.approx(wanted, rel=1e-3)


@pytest.mark.parametrize("name", ["adamw", "nadam-decoupled", "momentum", "rmsprop"])
def test_groups_of_one_parameter_each(place: str, name: str) -> None:
    """Some with the same options as others, in any order."""
    model, data = classifier(), batches()
    decays = [0.0, 0.1, 0.0, 0.3, 0.1, 0.0]
    groups: Any = [
        {"params": [param], "weight_decay": decay, "name": str(i)}
        for i, (param, decay) in enumerate(zip(model.parameters(), decays, strict=True))
    ]
    optimizer = OPTIMIZERS[name](groups)
    train(model, optimizer, data, 4)
    before = [p.detach().double().clone() for p in model.parameters()]
    train(model, optimizer, data, 1)
    params = list(model.parameters())
    sample = measure(optimizer, params, roles_of(optimizer))
    for i, (param, old) in enumerate(zip(params, before, strict=True)):
        check(sample, i, expected(optimizer, param, old), 1e-3)


def test_on_a_device_a_sparse_gradient_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """The host would have to ask how many values it has."""
    monkeypatch.setattr(tensors, "DEVICES", {"cpu"})
    table = nn.Embedding(50, 4, sparse=True)
    optimizer = torch.optim.SparseAdam(table.parameters(), lr=0.1)
    table(torch.tensor([3, 7])).sum().backward()
    sample = measure(optimizer, [table.weight], roles_of(optimizer))
    assert np.isnan(sample.stats[0, STATS.index("grad_rms")])
    assert sample.stats[0, STATS.index("param_rms")] == pytest.approx(rms(table.weight), rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_parameters(place: str, dtype: torch.dtype) -> None:
    model, data = classifier(dtype=dtype), batches(dtype=dtype)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    train(model, optimizer, data, 3)
    params = list(model.parameters())
    sample = measure(optimizer, params, roles_of(optimizer))
    for i, param in enumerate(params):
        wanted = expected(optimizer, param, param.detach().double())
        del wanted["update_rms"]
        check(sample, i, wanted, 1e-6)


def test_parameters_of_two_dtypes_side_by_side(place: str) -> None:
    params = [nn.Parameter(torch.randn(40).to(dtype)) for dtype in (torch.bfloat16, torch.float32)]
    optimizer = torch.optim.SGD(params, lr=0.1, foreach=False)
    for param in params:
        param.grad = torch.randn(40).to(param.dtype)
    sample = measure(optimizer, params, roles_of(optimizer))
    for i, param in enumerate(params):
        assert sample.stats[i, STATS.index("param_rms")] == pytest.approx(rms(param), rel=1e-6)
        assert sample.stats[i, STATS.index("grad_rms")] == pytest.approx(rms(param.grad), rel=1e-6)


@pytest.mark.parametrize("same", [True, False])
def test_tensors_with_the_channels_last(place: str, same: bool) -> None:
    """All of them, or the gradient not."""
    layout = torch.channels_last
    param = nn.Parameter(torch.randn(6, 5, 3, 3, dtype=torch.float64).to(memory_format=layout))
    optimizer = torch.optim.AdamW([param], lr=0.1)
    for _ in range(2):
        before = param.detach().clone()
        grad = torch.randn(6, 5, 3, 3, dtype=torch.float64)
        param.grad = grad.to(memory_format=layout) if same else grad
        optimizer.step()
    sample = measure(optimizer, [param], roles_of(optimizer))
    check(sample, 0, expected(optimizer, param, before), 1e-6)


def test_complex_parameters(place: str) -> None:
    param = nn.Parameter(torch.randn(5, 3, dtype=torch.complex64))
    optimizer = torch.optim.Adam([param], lr=0.1)
    param.abs().square().sum().backward()
    optimizer.step()
    sample = measure(optimizer, [param], roles_of(optimizer))
    parts = torch.view_as_real(param.grad).double()
    assert sample.stats[0, STATS.index("grad_rms")] == pytest.approx(rms(parts), rel=1e-6)
    assert sample.stats[0, STATS.index("update_rms")] == pytest.approx(0.1, rel=1e-4)


@pytest.mark.parametrize("size", [10, 3 * BLOCK])
def test_a_gradient_that_is_only_marked_as_negative(place: str, size: int) -> None:
    param = nn.Parameter(torch.randn(size))
    optimizer = torch.optim.Adam([param])
    before = param.detach().double()
    param.grad = torch._neg_view(torch.randn(size))
    optimizer.step()
    sample = measure(optimizer, [param], roles_of(optimizer))
    wanted = expected(optimizer, param, before)
    del wanted["update_rms"]
    check(sample, 0, wanted, 2e-6)
    assert sample.stats[0, STATS.index("cos_grad_exp_avg")] == pytest.approx(1.0)


def test_zeros_and_non_finite_elements_are_counted(place: str) -> None:
    small, large = nn.Parameter(torch.ones(10)), nn.Parameter(torch.ones(3 * BLOCK))
    optimizer = torch.optim.SGD([small, large], lr=0.1)
    small.grad, large.grad = torch.ones(10), torch.ones(3 * BLOCK)
    small.grad[:3] = 0
    small.grad[5] = torch.inf
    large.grad[:BLOCK] = 0
    large.grad[-2:] = torch.nan
    counts = measure(optimizer, [small, large], roles_of(optimizer)).counts
    zeros, broken = COUNTS.index("grad_zeros"), COUNTS.index("grad_nonfinite")
    assert counts[:, zeros].tolist() == [3, BLOCK]
    assert counts[:, broken].tolist() == [1, 2]


@pytest.mark.parametrize("size", [100, 3 * BLOCK])
def test_moments_that_are_not_finite_are_counted_under_healthy_gradients(place: str, size: int) -> None:
    """Also the largest finite ones, whose sum is none, are finite."""
    spoiled, sound = nn.Parameter(torch.ones(size)), nn.Parameter(torch.ones(size))
    optimizer = torch.optim.Adam([spoiled, sound], lr=0.1)
    spoiled.grad, sound.grad = torch.ones(size), torch.ones(size)
    optimizer.step()
    optimizer.state[spoiled]["exp_avg"][size - 1] = torch.nan
    optimizer.state[spoiled]["exp_avg_sq"][:2] = torch.inf
    optimizer.state[sound]["exp_avg_sq"].fill_(torch.finfo(torch.float32).max)
    counts = measure(optimizer, [spoiled, sound], roles_of(optimizer)).counts
    assert counts[:, COUNTS.index("grad_nonfinite")].tolist() == [0, 0]
    assert counts[:, COUNTS.index("moments_nonfinite")].tolist() == [3, 0]


def test_frozen_and_unused_parameters(place: str) -> None:
    used, unused = nn.Parameter(torch.ones(4)), nn.Parameter(torch.full((4,), 2.0))
    optimizer = torch.optim.Adam([used, unused], lr=0.1)
    used.sum().backward()
    optimizer.step()
    sample = measure(optimizer, [used, unused], roles_of(optimizer))
    assert np.isnan(sample.stats[1, STATS.index("grad_rms")])
    assert sample.stats[1, STATS.index("param_rms")] == 2.0
    assert sample.update_norm == pytest.approx(0.2, rel=1e-4)


def test_sparse_gradients_and_the_moments_of_all_rows() -> None:
    """SparseAdam moves the moments of the rows that have a gradient alone."""
    table = nn.Embedding(50, 4, sparse=True, dtype=torch.float64)
    optimizer = torch.optim.SparseAdam(table.parameters(), lr=0.1, betas=(0.8, 0.9))
    first = second = torch.zeros(50, 4, dtype=torch.float64)
    for t in range(1, 6):
        rows = torch.tensor([3, 3, 7, t])
        optimizer.zero_grad()
        (table(rows) * torch.randn(4, 4, dtype=torch.float64)).sum().backward()
        grad = table.weight.grad.to_dense()
        touched = torch.zeros(50, 1, dtype=torch.float64).index_fill(0, rows, 1.0)
        first = torch.where(touched > 0, 0.8 * first + 0.2 * grad, first)
        second = torch.where(touched > 0, 0.9 * second + 0.1 * grad * grad, second)
        before = table.weight.detach().clone()
        optimizer.step()
        update = table.weight.detach() - before
        sample = measure(optimizer, [table.weight], roles_of(optimizer), {0: update})
        root = (second / (1 - 0.9**t)).sqrt()
        wanted = {
            "grad_rms": rms(grad),
            "grad_max": float(grad.abs().max()),
            "exp_avg_rms": rms(first),
            "exp_avg_sq_mean": float(second.mean()),
            "exp_avg_sq_min": 0.0,
            "exp_avg_sq_max": float(second.max()),
            "param_rms": rms(table.weight),
            "param_max": float(table.weight.detach().abs().max()),
            "update_rms": rms(update),
            "rms_t": rms(grad / root.clamp(min=1e-8)),
            "cos_grad_exp_avg": float((grad * first).sum() / (grad.norm() * first.norm())),
            "eps_share": float((root < 1e-7).double().mean()),
        }
        assert wanted.keys() == set(STATS)
        check(sample, 0, wanted, 1e-6)
        assert sample.counts[0, COUNTS.index("grad_zeros")] == int((grad == 0).sum())


@pytest.mark.parametrize("scale", [1.0, 1e-9])
@pytest.mark.parametrize("shape", [(7, 5), (2, 3, 4), (6,)])
def test_adafactors_second_moment_is_the_product_of_its_factors(
    place: str, shape: tuple[int, ...], scale: float
) -> None:
    """Followed from the gradients; of small ones, the mean over the rows is held up by eps."""
    param = nn.Parameter(torch.randn(shape, dtype=torch.float64))
    optimizer = torch.optim.Adafactor([param], lr=1e-2)
    whole = rows = columns = torch.zeros((), dtype=torch.float64)
    for t in range(1, 5):
        grad = param.grad = scale * torch.randn(shape, dtype=torch.float64)
        weight = t**-0.8
        square = grad * grad
        whole = whole + weight * (square - whole)
        before = param.detach().clone()
        optimizer.step()
        second = whole
        if param.ndim > 1:
            rows = rows + weight * (square.mean(dim=-1) - rows)
            columns = columns + weight * (square.mean(dim=-2) - columns)
            mean = rows.mean(dim=-1).clamp(min=torch.finfo(torch.float64).eps)
            second = torch.einsum("...i,...j,...->...ij", rows, columns, 1 / mean)
        update = param.detach() - before
        sample = measure(optimizer, [param], roles_of(optimizer), {0: update})
        wanted = {
            "exp_avg_rms": np.nan,
            "exp_avg_sq_mean": float(second.mean()),
            "exp_avg_sq_min": float(second.min()),
            "exp_avg_sq_max": float(second.max()),
            "rms_t": rms(grad / second.sqrt()),
            "update_rms": rms(update),
        }
        got = dict(zip(STATS, sample.stats[0].tolist(), strict=True))
        for name, value in wanted.items():
            assert got[name] == pytest.approx(value, rel=1e-6, abs=0, nan_ok=True), name


@pytest.mark.parametrize("size", [100, 3 * BLOCK])
def test_one_bad_element_is_never_lost(place: str, size: int) -> None:
    """Wherever it is, in a large tensor as in a small one."""
    for where in (0, size - 1):
        param = nn.Parameter(torch.ones(size))
        param.grad = torch.ones(size)
        param.grad[where] = torch.nan
        optimizer = torch.optim.SGD([param], lr=0.1)
        optimizer.step()
        sample = measure(optimizer, [param], roles_of(optimizer))
        for name in ("grad_rms", "grad_max", "param_rms", "param_max", "update_rms"):
            assert np.isnan(sample.stats[0, STATS.index(name)]), name
        assert sample.counts[0].tolist() == [0, 1, 0]
        assert sample.param_norm is not None
        assert np.isnan(sample.param_norm)


@pytest.mark.parametrize("size", [10, 3 * BLOCK])
def test_a_state_that_lacks_what_the_rule_needs_has_no_update(size: int) -> None:
    """A state as others may have left it; the rest is measured."""
    params = [nn.Parameter(torch.randn(size)) for _ in range(4)]
    optimizer = torch.optim.Adam(params)
    for param in params:
        param.grad = torch.randn(size)
    optimizer.step()
    optimizer.state[params[0]]["exp_avg"] = None
    optimizer.state[params[1]]["exp_avg_sq"] = torch.ones(size + 1)
    optimizer.state[params[2]] = [1, 2]  # type: ignore[assignment]
    sample = measure(optimizer, params, roles_of(optimizer))
    assert np.isnan(sample.stats[:, STATS.index("update_rms")]).tolist() == [True, True, True, False]
    assert np.isfinite(sample.stats[:, [STATS.index("grad_rms"), STATS.index("param_rms")]]).all()
    assert sample.update_norm is None


def test_a_tensor_elsewhere_is_not_measured_and_makes_no_norm() -> None:
    here, there = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3, device="meta"))
    here.grad, there.grad = torch.ones(3), torch.ones(3, device="meta")
    optimizer = torch.optim.SGD([here, there], lr=0.1)
    sample = measure(optimizer, [here, there], roles_of(optimizer))
    assert sample.param_norm is None
    assert sample.update_norm is None
    assert np.isnan(sample.stats[1]).all()


def test_factors_over_other_dimensions_are_no_second_moment() -> None:
    """timm's Adafactor keeps the means of a convolution [out, in, …] over `in` and over `out`."""
    state = {"exp_avg_sq_row": torch.ones(32, 3, 3), "exp_avg_sq_col": torch.ones(24, 3, 3)}
    assert multiplied(Factors("exp_avg_sq_row", "exp_avg_sq_col"), state, {}) is None


class Overwrites(torch.optim.Optimizer):
    """Adds to its gradients in place, as many optimizers outside torch do with the decay."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for param in group["params"]:
                if param.grad is not None:
                    grad, state = param.grad.to_dense().add_(param), self.state[param]
                    state["exp_avg"], state["exp_avg_sq"] = grad / 2, grad.square()
                    param.sub_(grad, alpha=group["lr"])


def test_gradients_that_a_step_overwrites_are_measured_before_it(place: str) -> None:
    torch.manual_seed(0)
    sizes = (40_000, 300, 7, 0, 20, 60, 50)
    params = [nn.Parameter(torch.randn(size)) for size in sizes]
    optimizer = Overwrites(params, {"lr": 0.1})
    for param in params[:-1]:  # the last one is not used
        param.grad = torch.randn_like(param)
    for param, zeros, lost in ((params[0], 9, 0), (params[1], 3, 2)):
        assert param.grad is not None
        param.grad[:zeros] = 0.0
        param.grad[zeros : zeros + lost] = torch.inf
    assert params[5].grad is not None
    params[5].grad[6:] = 0.0
    grads = [None if param.grad is None else param.grad.double() for param in params]
    if place == "host":  # on a device the host would have to ask how many values there are
        params[5].grad = params[5].grad.to_sparse()
    early = take_gradients(params)
    optimizer.step()
    joined = Joined(take(optimizer, params, roles_of(optimizer), grads={}), early)
    sample = joined.sample([] if joined.numbers is None else joined.numbers.tolist())
    of_grads = {"grad_rms", "grad_max"}
    others = ("update_rms", "rms_t", "cos_grad_exp_avg")
    for i, (param, grad) in enumerate(zip(params, grads, strict=True)):
        got = dict(zip(STATS, sample.stats[i].tolist(), strict=True))
        counts = dict(zip(COUNTS, sample.counts[i].tolist(), strict=True))
        if grad is None or not grad.numel():
            assert np.isnan([got[name] for name in of_grads]).all()
            assert set(counts.values()) == {0}
            continue
        assert got["grad_rms"] == pytest.approx(rms(grad), rel=1e-6)
        assert got["grad_max"] == pytest.approx(float(grad.abs().max()), rel=1e-6)
        assert counts["grad_zeros"] == int((grad == 0).sum())
        assert counts["grad_nonfinite"] == int((~grad.isfinite()).sum())
        assert got["param_rms"] == pytest.approx(rms(param), rel=1e-6)
        first, second = (optimizer.state[param][key].double() for key in ("exp_avg", "exp_avg_sq"))
        assert got["exp_avg_rms"] == pytest.approx(rms(first), rel=1e-6)
        assert got["exp_avg_sq_mean"] == pytest.approx(float(second.mean()), rel=1e-6)
        assert got["exp_avg_sq_min"] == pytest.approx(float(second.min()), rel=1e-6)
        assert got["exp_avg_sq_max"] == pytest.approx(float(second.max()), rel=1e-6)
        assert counts["moments_nonfinite"] == int((~first.isfinite()).sum() + (~second.isfinite()).sum())
        assert np.isnan([got[name] for name in others]).all()
    assert sample.update_norm is None
    del optimizer.param_groups[0]["params"][0]  # as if one had left in the step
    less = Joined(take(optimizer, params[1:], roles_of(optimizer), grads={}), early)
    sample = less.sample([] if less.numbers is None else less.numbers.tolist())
    assert np.isnan(sample.stats[:, STATS.index("grad_rms")]).all()

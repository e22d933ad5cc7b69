"""The compiled pass and the base path, against the statistics by their definitions in float64."""

import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Shard, distribute_tensor

from optwatch.wire.messages import STATS
from optwatch_agent import compiled, kernels, probe
from optwatch_agent.kernels import LEAF, Kernels
from optwatch_agent.pieces import Reader
from optwatch_agent.roles import roles_of
from optwatch_agent.sums import Sample
from optwatch_agent.table import Table, table

pytestmark = pytest.mark.skipif(not kernels.can_build(), reason="no C compiler")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache in which the pass is."""
    cache = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(cache))
        kernels.build(compiled.directory())
    return cache


@pytest.fixture(autouse=True, scope="module")
def compiled_pass(cache: Path) -> Iterator[None]:
    """The compiled pass in this process, whatever the others do."""
    (directory,) = (path for path in (cache / "optwatch").iterdir() if path.is_dir())
    compiled.COMPILER.kernels = Kernels(directory)
    yield
    compiled.COMPILER.kernels = None


def both(optimizer: torch.optim.Optimizer) -> tuple[Sample, Sample]:
    """As the compiled pass measures, and as the base path does."""
    params = [p for group in optimizer.param_groups for p in group["params"]]
    roles = roles_of(optimizer)
    fast = probe.measure(optimizer, params, roles)
    loaded, compiled.COMPILER.kernels = compiled.COMPILER.kernels, None
    try:
        base = probe.measure(optimizer, params, roles)
    finally:
        compiled.COMPILER.kernels = loaded
    return fast, base


def adam(param: Tensor, grad: Tensor, first: Tensor, second: Tensor, **options: float) -> torch.optim.AdamW:
    """An optimizer in a given state after its third step."""
    parameter = nn.Parameter(param)
    optimizer = torch.optim.AdamW([parameter], **{"lr": 1e-3, "weight_decay": 0.1, **options})
    parameter.grad = grad
    optimizer.state[parameter] = {"step": torch.tensor(3.0), "exp_avg": first, "exp_avg_sq": second}
    return optimizer


def by_definition(optimizer: torch.optim.Optimizer) -> dict[str, float]:
    """The statistics of an AdamW's only parameter in float64."""
    (group,) = optimizer.param_groups
    (p,) = group["params"]
    state = optimizer.state[p]
    grad, first, second, param = (
        x.detach().double().numpy() for x in (p.grad, state["exp_avg"], state["exp_avg_sq"], p)
    )
    beta1, beta2 = group["betas"]
    step = float(state["step"])

    def rms(x: np.ndarray) -> float:
        return float(np.sqrt(np.mean(np.square(x))))

    root = np.sqrt(second / (1 - beta2**step))
    decay = group["lr"] * group["weight_decay"]
    update = -group["lr"] / (1 - beta1**step) * first / (root + group["eps"])
    update = (update - decay * param) / (1 - decay)
    norms = float(np.linalg.norm(grad) * np.linalg.norm(first))
    return {
        "grad_rms": rms(grad),
        "grad_max": float(np.abs(grad).max()),
        "exp_avg_rms": rms(first),
        "exp_avg_sq_mean": float(second.mean()),
        "exp_avg_sq_min": float(second.min()),
        "exp_avg_sq_max": float(second.max()),
        "param_rms": rms(param),
        "param_max": float(np.abs(param).max()),
        "update_rms": rms(update),
        "rms_t": rms(grad / np.maximum(root, max(group["eps"], 1e-37))),
        "cos_grad_exp_avg": float(np.dot(grad, first)) / norms if norms else math.nan,
        "eps_share": float(np.mean(root < 10 * group["eps"])),
    }


def check(sample: Sample, wanted: dict[str, float]) -> None:
    for name, value in wanted.items():
        got = float(sample.stats[0, STATS.index(name)])
        with np.errstate(over="ignore"):
            as_sent = float(np.float32(value))
        # A subnormal float32 has fewer bits than six digits.
        assert got == pytest.approx(as_sent, rel=1e-6, abs=1e-44, nan_ok=True) or (
            name == "cos_grad_exp_avg" and abs(got - value) < 1e-6
        ), (name, got, value)


def test_groups_of_one_parameter_each_are_read_as_one_where_their_options_are_alike() -> None:
    torch.manual_seed(0)
    params = [nn.Parameter(torch.randn(50 + i)) for i in range(6)]
    decays = [0.0, 0.1, 0.0, 0.3, 0.1, 0.0]
    groups = [{"params": [p], "weight_decay": d} for p, d in zip(params, decays, strict=True)]
    optimizer = torch.optim.AdamW(groups, lr=1e-3)  # type: ignore[arg-type]
    for _ in range(3):
        for param in params:
            param.grad = torch.randn_like(param)
        optimizer.step()
    fast, base = both(optimizer)
    np.testing.assert_allclose(fast.stats, base.stats, rtol=1e-5)
    alone = [probe.measure(part_of(optimizer, i), [p], roles_of(optimizer)) for i, p in enumerate(params)]
    np.testing.assert_array_equal(fast.stats, np.concatenate([sample.stats for sample in alone]))


def part_of(optimizer: torch.optim.Optimizer, number: int) -> torch.optim.Optimizer:
    """One group of an optimizer, with its state."""
    part = torch.optim.AdamW([{**optimizer.param_groups[number]}])
    part.state = optimizer.state
    return part


@pytest.mark.parametrize("size", [1, 7, LEAF - 1, LEAF, LEAF + 1, 5 * LEAF + 13, 200_001])
def test_sizes_around_the_edges_of_leaves_and_blocks(size: int) -> None:
    draw = torch.Generator().manual_seed(size)
    grad, first, param = (torch.randn(size, generator=draw) for _ in range(3))
    optimizer = adam(param, grad, first * 0.1, grad.square() * 0.01)
    wanted = by_definition(optimizer)
    for sample in both(optimizer):
        check(sample, wanted)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_dtypes(dtype: torch.dtype) -> None:
    draw = torch.Generator().manual_seed(0)
    grad, first, param = (torch.randn(3 * LEAF + 5, generator=draw).to(dtype) for _ in range(3))
    grad[0], grad[1] = 0.0, torch.finfo(dtype).smallest_normal / 4  # a zero and a subnormal number
    optimizer = adam(param, grad, first, first.square() + 1e-3)
    wanted = by_definition(optimizer)
    for sample in both(optimizer):
        check(sample, wanted)
        assert sample.counts[0].tolist() == [1, 0, 0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bad", [math.inf, math.nan])
@pytest.mark.parametrize("moments", [("exp_avg",), ("exp_avg_sq",), ("exp_avg", "exp_avg_sq")])
def test_moments_that_are_not_finite_under_healthy_gradients(
    dtype: torch.dtype, bad: float, moments: tuple[str, ...]
) -> None:
    for size in (2, LEAF + 2, 100_000):
        one = torch.ones(size, dtype=dtype)
        optimizer = adam(one, one.clone(), one.clone(), one.clone())
        for key in moments:
            (state,) = optimizer.state.values()
            state[key][[0, -1]] = bad
        for sample in both(optimizer):
            assert sample.counts[0].tolist() == [0, 0, 2 * len(moments)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("at", [0, LEAF, 2 * LEAF + 1])
def test_one_element_that_is_not_finite(dtype: torch.dtype, bad: float, at: int) -> None:
    size = 2 * LEAF + 2
    grad = torch.ones(size, dtype=dtype)
    grad[at] = bad
    second = torch.ones(size, dtype=dtype)
    second[at] = bad
    optimizer = adam(torch.ones(size, dtype=dtype), grad, torch.ones(size, dtype=dtype), second)
    for sample in both(optimizer):
        got = dict(zip(STATS, sample.stats[0].tolist(), strict=True))
        assert sample.counts[0].tolist() == [0, 1, 1]
        assert not math.isfinite(got["grad_rms"])
        if math.isnan(bad):
            assert all(math.isnan(got[name]) for name in ("grad_max", "exp_avg_sq_min", "exp_avg_sq_max"))
        else:
            assert got["grad_max"] == math.inf
            assert got["exp_avg_sq_max" if bad > 0 else "exp_avg_sq_min"] == bad
        assert got["param_max"] == 1.0


MAGNITUDES = st.sampled_from([0.0, 1e-42, 1e-30, 1e-23, 1e-19, 1e-8, 1e-3, 1.0, 1e4, 1e19])


@settings(max_examples=60)
@given(
    size=st.sampled_from([1, 2, 300, LEAF, 2 * LEAF + 77]),
    grad=MAGNITUDES,
    first=MAGNITUDES,
    second=st.sampled_from([0.0, 1e-44, 1e-30, 1e-16, 1e-6, 1.0, 1e30, 1e36]),
    param=MAGNITUDES,
    eps=st.sampled_from([1e-15, 1e-8, 1e-3]),
    seed=st.integers(0, 99),
    equal=st.booleans(),
)
@example(size=LEAF, grad=1e4, first=1e-8, second=1e30, param=0.0, eps=1e-8, seed=0, equal=False)
@example(size=LEAF, grad=1e-8, first=1e4, second=1e30, param=1.0, eps=1e-8, seed=0, equal=False)
def test_any_magnitude(
    size: int, grad: float, first: float, second: float, param: float, eps: float, seed: int, equal: bool
) -> None:
    """Also where the squares leave the range of float32: (1e20)² is inf and (1e-23)² is 0."""
    draw = torch.Generator().manual_seed(seed)

    def some(scale: float) -> Tensor:
        values = torch.full((size,), 0.7) if equal else torch.rand(size, generator=draw) + 0.5
        return values * scale

    optimizer = adam(some(param), some(grad), -some(first), some(second), eps=eps)
    wanted = by_definition(optimizer)
    for sample in both(optimizer):
        check(sample, wanted)


PARTS = st.tuples(*[MAGNITUDES] * 3)


@settings(max_examples=60)
@given(
    grad=PARTS,
    first=PARTS,
    second=st.tuples(*[st.sampled_from([0.0, 1e-44, 1e-38, 1e-30, 1e-16, 1e-6, 1.0, 1e36])] * 3),
    param=PARTS,
    lr=st.sampled_from([1e-9, 1e-3]),
    eps=st.sampled_from([1e-21, 1e-15, 1e-8]),
)
@example(
    grad=(0.0,) * 3, first=(0.0, 0.0, 1e-8), second=(0.0, 1e-16, 1e-44), param=(0.0,) * 3, lr=1e-3, eps=1e-15
)
@example(
    grad=(1e-15, 1e-3, 1e-3),
    first=(1e-15, 1e-3, 1e-3),
    second=(1e-30, 1e-6, 1e-6),
    param=(0.0,) * 3,
    lr=1e-9,
    eps=1e-15,
)
@example(grad=(1.0,) * 3, first=(1.0,) * 3, second=(1e-39,) * 3, param=(1.0,) * 3, lr=1e-3, eps=1e-21)
def test_parts_of_any_magnitude(
    grad: tuple[float, ...],
    first: tuple[float, ...],
    second: tuple[float, ...],
    param: tuple[float, ...],
    lr: float,
    eps: float,
) -> None:
    """Such as the moments of dead units, that fade away: beside others they do not count."""
    draw = torch.Generator().manual_seed(0)

    def some(scales: tuple[float, ...]) -> Tensor:
        return torch.cat([(torch.rand(LEAF + 9, generator=draw) + 0.5) * scale for scale in scales])

    optimizer = adam(some(param), some(grad), -some(first), some(second), lr=lr, eps=eps)
    wanted = by_definition(optimizer)
    for sample in both(optimizer):
        check(sample, wanted)


MAKES: dict[str, Callable[[list[nn.Parameter]], torch.optim.Optimizer]] = {
    "sgd": lambda params: torch.optim.SGD(params, lr=0.1, weight_decay=0.1),
    "momentum": lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9),
    "nesterov": lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.1),
    "adam": lambda params: torch.optim.Adam(params, weight_decay=0.1),
    "amsgrad": lambda params: torch.optim.AdamW(params, amsgrad=True),
    "nadam": lambda params: torch.optim.NAdam(params, weight_decay=0.1),
    "nadamw": lambda params: torch.optim.NAdam(params, weight_decay=0.1, decoupled_weight_decay=True),
    "radam": lambda params: torch.optim.RAdam(params, weight_decay=0.1),
    "rectified": lambda params: torch.optim.RAdam(params, betas=(0.9, 0.5), decoupled_weight_decay=True),
    "adamax": lambda params: torch.optim.Adamax(params, weight_decay=0.1),
    "adagrad": lambda params: torch.optim.Adagrad(params, lr_decay=0.1, weight_decay=0.1),
    "rmsprop": lambda params: torch.optim.RMSprop(params, weight_decay=0.1),
    "rmsprop with momentum": lambda params: torch.optim.RMSprop(params, momentum=0.9),
    "centered": lambda params: torch.optim.RMSprop(params, centered=True),
    "adadelta": lambda params: torch.optim.Adadelta(params),
    "maximize": lambda params: torch.optim.AdamW(params, maximize=True, foreach=False),
}
OF_ANOTHER_FORM = {"amsgrad", "centered"}


@pytest.mark.parametrize("make", MAKES)
def test_optimizers_with_and_without_a_rule_of_this_form(make: str) -> None:
    """Each tensor is measured once, by whichever path can."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(40, 300), nn.Tanh(), nn.Linear(300, 5))
    optimizer = MAKES[make](list(model.parameters()))
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.randn(8, 40)).square().mean().backward()
        optimizer.step()
    fast, base = both(optimizer)
    np.testing.assert_allclose(fast.stats, base.stats, rtol=1e-6, atol=1e-7)
    np.testing.assert_array_equal(fast.counts, base.counts)
    assert fast.update_norm == pytest.approx(base.update_norm, rel=1e-6)
    assert fast.param_norm == pytest.approx(base.param_norm, rel=1e-6)
    assert sorted(taken(optimizer)) == ([] if make in OF_ANOTHER_FORM else [0, 1, 2, 3])


@pytest.mark.parametrize("size", [5, 5 * LEAF])
def test_what_an_update_does_not_depend_on_may_be_infinite(size: int) -> None:
    """A gradient that a GradScaler kept from the moments, or a parameter without decay."""
    param, grad = torch.ones(size), torch.ones(size)
    param[1] = grad[2] = math.inf
    optimizer = adam(param, grad, torch.ones(size), torch.ones(size), weight_decay=0.0)
    fast, base = both(optimizer)
    np.testing.assert_allclose(fast.stats, base.stats, rtol=1e-6)
    assert math.isfinite(fast.stats[0, STATS.index("update_rms")])


@pytest.mark.parametrize("size", [5, 5 * LEAF])
def test_a_second_moment_that_the_update_does_not_use_yet_may_be_infinite(size: int) -> None:
    """RAdam in float16 before it is rectified, and RMSprop with momentum."""
    for make in (torch.optim.RAdam, lambda params: torch.optim.RMSprop(params, momentum=0.9)):
        param = nn.Parameter(torch.ones(size))
        optimizer = make([param])
        for _ in range(2):
            param.grad = torch.randn(size)
            optimizer.step()
        key = "square_avg" if "square_avg" in optimizer.state[param] else "exp_avg_sq"
        optimizer.state[param][key][3] = math.inf
        fast, base = both(optimizer)
        np.testing.assert_allclose(fast.stats, base.stats, rtol=1e-6)
        assert math.isfinite(fast.stats[0, STATS.index("update_rms")])


def with_no_update_to_tell() -> Iterator[torch.optim.Optimizer]:
    """A decay that leaves nothing of the parameter, and betas for which the formula divides by zero."""
    param = nn.Parameter(torch.ones(40_000))
    yield torch.optim.AdamW([param], lr=1.0, weight_decay=1.0)
    yield torch.optim.NAdam([param], lr=1.0, weight_decay=1.0, decoupled_weight_decay=True)
    yield torch.optim.SGD([param], lr=1.0, weight_decay=1.0)
    yield torch.optim.RAdam([param], betas=(0.9, 0.6))


@pytest.mark.parametrize("optimizer", with_no_update_to_tell(), ids=lambda each: type(each).__name__)
def test_where_the_formula_divides_by_zero_all_else_is_measured(optimizer: torch.optim.Optimizer) -> None:
    (param,) = optimizer.param_groups[0]["params"]
    for _ in range(2):
        param.grad = torch.randn(40_000)
        optimizer.step()
    for sample in both(optimizer):
        rms = sample.stats[0, STATS.index("grad_rms")]
        assert rms == pytest.approx(float(param.grad.square().mean().sqrt()), rel=1e-5)


@pytest.mark.parametrize(
    "options", [{"lr": 1e-40}, {"lr": 1e39, "weight_decay": 0.0}, {"eps": 1e39}, {"eps": 1e-40}]
)
def test_options_beyond_float32_are_left_to_the_base_path(options: dict[str, float]) -> None:
    optimizer = adam(*(torch.ones(300) for _ in range(4)), **options)
    assert taken(optimizer) == []
    fast, base = both(optimizer)
    np.testing.assert_array_equal(fast.stats, base.stats)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_defaults_of_the_script_decide_on_nothing(dtype: torch.dtype) -> None:
    param = nn.Parameter(torch.randn(300))
    optimizer = torch.optim.RAdam([param], lr=1e-2)
    for _ in range(9):
        param.grad = torch.randn(300)
        optimizer.step()
    fast, _ = both(optimizer)
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(dtype)
        with torch.device("meta"):
            again, _ = both(optimizer)
    finally:
        torch.set_default_dtype(before)
    np.testing.assert_array_equal(again.stats, fast.stats)


def test_subnormal_numbers_of_float16_are_none_where_the_script_flushes_them() -> None:
    """They are normal ones in float32."""
    grad = torch.full((300,), 2e-5, dtype=torch.float16)
    grad[::2] = -3e-7
    optimizer = adam(torch.ones(300).half(), grad, grad.clone(), torch.ones(300).half())
    wanted = by_definition(optimizer)
    torch.set_flush_denormal(True)
    try:
        fast, _ = both(optimizer)
    finally:
        torch.set_flush_denormal(False)
    check(fast, wanted)
    assert fast.counts[0].tolist() == [0, 0, 0]


@pytest.mark.parametrize("flushes", [False, True])
def test_subnormal_numbers_are_to_the_script_what_they_were(flushes: bool) -> None:
    """The pass counts them for zeros meanwhile."""
    torch.set_flush_denormal(flushes)
    try:
        both(adam(*(torch.full((3 * LEAF,), 1e-40) for _ in range(4))))
        assert (float(np.float32(1e-40) * np.float32(1)) == 0) == flushes
        assert (float(torch.tensor([1e-40]) * 1) == 0) == flushes
    finally:
        torch.set_flush_denormal(False)


@pytest.mark.parametrize("size", [7, 3 * LEAF])
def test_a_second_moment_with_infinities_of_both_signs(size: int) -> None:
    second = torch.ones(size)
    second[0], second[-1] = math.inf, -math.inf
    optimizer = adam(torch.ones(size), torch.ones(size), torch.ones(size), second)
    for sample in both(optimizer):
        got = dict(zip(STATS, sample.stats[0].tolist(), strict=True))
        assert (got["exp_avg_sq_min"], got["exp_avg_sq_max"]) == (-math.inf, math.inf)


def test_strided_empty_and_unused_tensors() -> None:
    torch.manual_seed(0)
    params = [
        nn.Parameter(torch.randn(50, 60).t()),
        nn.Parameter(torch.zeros(0)),
        nn.Parameter(torch.ones(3)),
    ]
    optimizer = torch.optim.Adam(params)
    for param in params[:2]:
        param.grad = torch.randn(param.shape)
    optimizer.step()
    fast, base = both(optimizer)
    np.testing.assert_allclose(fast.stats, base.stats, rtol=1e-6, atol=1e-7)
    assert np.isnan(fast.stats[1:, STATS.index("grad_rms")]).all()


def taken(optimizer: torch.optim.Optimizer, read: Table | None = None) -> list[int]:
    """Which tensors of its only group the compiled pass reads."""
    roles = roles_of(optimizer)
    (group,) = optimizer.param_groups
    params = group["params"]
    read = read or table(roles)
    assert read is not None
    grads, states = [p.grad for p in params], [optimizer.state.get(p, {}) for p in params]
    return list(read.take(range(len(params)), Reader(group, roles), params, grads, states))


def with_second_moments(*seconds: Any) -> torch.optim.AdamW:
    """An optimizer of as many parameters of 8 elements."""
    params = [nn.Parameter(torch.ones(8)) for _ in seconds]
    optimizer = torch.optim.AdamW(params)
    for param, second in zip(params, seconds, strict=True):
        param.grad = torch.ones(8)
        optimizer.state[param] = {
            "step": torch.tensor(3.0), "exp_avg": torch.ones(8), "exp_avg_sq": second
        }  # fmt: skip
    return optimizer


def test_no_address_of_memory_that_is_not_there_or_not_here() -> None:
    """Of a second moment that is too small, freed in part, repeated, elsewhere or no such thing."""
    shrunk, expanded, misplaced = torch.ones(8), torch.ones(1).expand(8), torch.ones(9)[1:]
    shrunk.untyped_storage().resize_(4)
    misplaced.untyped_storage().resize_(32)
    wrong = [
        *(shrunk, expanded, misplaced, torch.ones(7), torch.ones(16)[::2], torch._neg_view(-torch.ones(8))),
        *(torch.ones(8, device="meta"), torch.ones(8).to_sparse(), torch.ones(8, dtype=torch.int32)),
        *([torch.ones(8)], np.ones(8), "second", 1.0, torch.zeros(0)),
    ]
    for bad in wrong:
        assert taken(with_second_moments(bad)) == []
    good = torch.ones(8)
    assert taken(with_second_moments(good)) == [0]
    mixed = [good, wrong[0], good, good, wrong[3], torch.ones(8).bfloat16(), None, torch.ones(9)[1:]]
    assert sorted(taken(with_second_moments(*mixed))) == [0, 2, 3, 5, 7]
    many = [wrong[i] if i % 11 == 0 and i < len(wrong) else torch.ones(8) for i in range(500)]
    assert sorted(taken(with_second_moments(*many))) == [i for i in range(500) if i not in (0, 11)]


def test_nothing_is_asked_of_a_parameter_elsewhere() -> None:
    """Its count of steps may be there, too, and to read that would be to wait for a device."""
    param = nn.Parameter(torch.ones(8, device="meta"))
    param.grad = torch.ones(8, device="meta")
    optimizer = torch.optim.AdamW([param])
    one = torch.ones((), device="meta")
    optimizer.state[param] = {"step": one, "exp_avg": param.grad, "exp_avg_sq": param.grad}
    with pytest.raises(RuntimeError):
        one.item()
    assert taken(optimizer) == []


@pytest.fixture
def mesh() -> Iterator[DeviceMesh]:
    """A job of one rank."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    torch.distributed.destroy_process_group()


def test_the_shards_of_this_rank_are_read_in_place(mesh: DeviceMesh) -> None:
    def sharded(size: int) -> Tensor:
        return distribute_tensor(torch.randn(size, 5), mesh, [Shard(0)])

    params = [nn.Parameter(sharded(size)) for size in (8, 3 * LEAF)]
    params.append(nn.Parameter(torch.randn(9)))
    optimizer = torch.optim.AdamW(params, foreach=False)
    params[0].grad, params[1].grad, params[2].grad = sharded(8), sharded(3 * LEAF), torch.randn(9)
    optimizer.step()
    assert sorted(taken(optimizer)) == [0, 1, 2]
    fast, base = both(optimizer)
    np.testing.assert_allclose(fast.stats, base.stats, rtol=1e-6, atol=1e-7)
    np.testing.assert_array_equal(fast.counts, base.counts)
    params[0].grad = DTensor.from_local(torch.randn(8, 5), mesh, [Partial()])
    assert sorted(taken(optimizer)) == [1, 2]  # summands say nothing about the sum


def test_complex_numbers_are_read_in_place() -> None:
    param = nn.Parameter(torch.randn(5, 300, dtype=torch.complex64))
    optimizer = torch.optim.Adam([param], lr=0.1)
    param.grad = torch.randn(5, 300, dtype=torch.complex64)
    optimizer.step()
    assert taken(optimizer) == [0]
    fast, base = both(optimizer)
    np.testing.assert_allclose(fast.stats, base.stats, rtol=1e-6, atol=1e-7)


def test_memory_stays_until_it_is_measured() -> None:
    """Also where somebody else replaces what a parameter holds meanwhile."""
    parameter = nn.Parameter(torch.full((300_000,), 2.0))
    parameter.grad = torch.ones(300_000)
    optimizer = torch.optim.SGD([parameter], lr=0.1)
    read = table(roles_of(optimizer))
    assert read is not None
    assert taken(optimizer, read) == [0]
    held = parameter.data.untyped_storage().data_ptr()
    parameter.data = torch.zeros(1)
    assert held in [memory.data_ptr() for memory in read._memory]
    assert read.sample().stats[0, STATS.index("param_rms")] == pytest.approx(2.0)
    assert not read._memory


def test_a_training_takes_its_samples_by_the_compiled_pass(home: Path, cache: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "tests.unit.agent.compiled_training"],
        env={**os.environ, "XDG_CACHE_HOME": str(cache), "OMP_NUM_THREADS": "1", "OPTWATCH_COMPILED": "1"},
        check=True,
        timeout=300,
    )

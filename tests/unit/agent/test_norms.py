"""Norms that stay accurate at any size, dtype and magnitude."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.masked import masked_tensor

from optwatch_agent.norms import squares, total, total_norm

SIZES = [1, 100, 65_535, 65_536, 70_001, 1 << 20, (1 << 22) + 17]


def exact(*tensors: torch.Tensor) -> float:
    return float(sum(t.double().square().sum() for t in tensors)) ** 0.5


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_norm_is_exact_to_one_in_a_million(size: int, dtype: torch.dtype) -> None:
    x = torch.rand(size, generator=torch.Generator().manual_seed(size)).to(dtype)
    assert total_norm([x]) == pytest.approx(exact(x), rel=1e-6)


@pytest.mark.parametrize("magnitude", [1e-42, 1e-23, 1e-19, 1e19, 1e30])
@pytest.mark.parametrize("size", [50, 200_000])
def test_squares_outside_of_float32(magnitude: float, size: int) -> None:
    x = torch.rand(size, generator=torch.Generator().manual_seed(0)) * magnitude
    assert total_norm([x, x]) == pytest.approx(exact(x, x), rel=1e-6)


def test_a_mixture_of_tensors() -> None:
    generator = torch.Generator().manual_seed(0)
    tensors = [
        torch.randn(7, 5, generator=generator),
        torch.randn(300, 400, generator=generator).t(),
        torch.randn(1, generator=generator),
        torch.zeros(0),
        torch.randn(100_000, generator=generator).bfloat16(),
    ]
    assert total_norm(tensors) == pytest.approx(exact(*tensors), rel=1e-6)
    for x, value in zip(tensors, squares(tensors), strict=True):
        assert value == pytest.approx(exact(x) ** 2, rel=1e-6)


def test_many_small_tensors() -> None:
    """So many that they are joined first; of two dtypes, strided, and some without elements."""
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(i % 7, 300, generator=generator) for i in range(300)]
    tensors[50:150] = [x.double() for x in tensors[50:150]]
    tensors[100:200] = [x.t() for x in tensors[100:200]]
    assert total_norm(tensors) == pytest.approx(exact(*tensors), rel=1e-6)
    tensors[5][4, 7] = torch.nan
    assert math.isnan(total_norm(tensors))


@pytest.mark.parametrize("size", [1, 511, 513, 16_384, 1 << 20])
@pytest.mark.parametrize("value", [0.1, 1 / 3, 7.7])
def test_equal_elements(size: int, value: float) -> None:
    """Where every addition rounds the same way."""
    x = torch.full((size,), value)
    assert total_norm([x]) == pytest.approx(math.sqrt(size) * x[0].item(), rel=3e-7)
    assert total(x.numpy()) == pytest.approx(size * x[0].item(), rel=1e-6)


@settings(max_examples=50)
@given(
    parts=st.lists(
        st.tuples(st.integers(0, 3_000), st.floats(-44, 30), st.booleans()), min_size=1, max_size=6
    )
)
def test_any_mixture_of_magnitudes(parts: list[tuple[int, float, bool]]) -> None:
    draw = torch.Generator().manual_seed(0)
    tensors = [
        (torch.ones(size) if equal else torch.rand(size, generator=draw)) * 10.0**exponent
        for size, exponent, equal in parts
    ]
    wanted = math.sqrt(math.fsum(v * v for x in tensors for v in x.double().tolist()))
    assert total_norm(tensors) == pytest.approx(wanted, rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sixty_seven_million_elements(dtype: torch.dtype) -> None:
    x = torch.full((1 << 26,), 0.1).to(dtype)
    assert total_norm([x]) == pytest.approx((1 << 13) * x[0].item(), rel=1e-6)


def test_zero_and_nothing() -> None:
    assert total_norm([]) == 0.0
    assert total_norm([torch.zeros(10), torch.zeros(100_000)]) == 0.0


@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
@pytest.mark.parametrize("size", [50, 200_000])
def test_one_bad_element_shows(bad: float, size: int) -> None:
    x = torch.ones(size)
    x[size // 2] = bad
    assert not torch.tensor(total_norm([torch.ones(3), x])).isfinite()


@pytest.mark.filterwarnings("ignore:The PyTorch API of MaskedTensors")
@pytest.mark.parametrize(
    "without_memory",
    [lambda: torch._efficientzerotensor(100), lambda: masked_tensor(torch.ones(100), torch.ones(100) > 0)],
)
def test_numbers_that_cannot_be_read_are_an_error_and_never_made_up(
    without_memory: Callable[[], Tensor],
) -> None:
    with pytest.raises(ValueError, match="cannot be read"):
        total_norm([without_memory()])


def test_sum() -> None:
    x = torch.rand((1 << 20) + 5, generator=torch.Generator().manual_seed(0))
    assert total(x.numpy()) == pytest.approx(float(x.double().sum()), rel=1e-6)

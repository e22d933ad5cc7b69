"""Norms that stay accurate at any size, dtype and magnitude."""

import math

import pytest
import torch

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


def test_zero_and_nothing() -> None:
    assert total_norm([]) == 0.0
    assert total_norm([torch.zeros(10), torch.zeros(100_000)]) == 0.0


@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
@pytest.mark.parametrize("size", [50, 200_000])
def test_one_bad_element_shows(bad: float, size: int) -> None:
    x = torch.ones(size)
    x[size // 2] = bad
    assert not torch.tensor(total_norm([torch.ones(3), x])).isfinite()


def test_sum() -> None:
    x = torch.rand((1 << 20) + 5, generator=torch.Generator().manual_seed(0))
    assert total(x) == pytest.approx(float(x.double().sum()), rel=1e-6)

"""The gradient noise scale where trΣ and |G|² are known."""

import numpy as np
import pytest

from optwatch.series.merge import Pending
from optwatch.series.noise import FEWEST, SIGNAL, TRACE, WINDOW, estimates, noise_scale
from optwatch.series.points import Column, Points

RANKS, BATCH, SIZE = 4, 8, 500


def norms(steps: int, seed: int) -> tuple[np.ndarray, np.ndarray, float, float]:
    """Norms of the ranks' own mean gradients [steps, ranks], of the mean over all [steps], trΣ, |G|²."""
    draw = np.random.default_rng(seed)
    true = draw.normal(size=SIZE)
    spread = draw.gamma(2.0, 3.0, size=SIZE)  # standard deviation of each element over samples
    own = true + spread * draw.normal(size=(steps, RANKS, BATCH, SIZE)).mean(axis=2)
    mean = own.mean(axis=1)
    local = np.sqrt(np.square(own).sum(-1))
    return (
        local,
        np.sqrt(np.square(mean).sum(-1)),
        float(np.square(spread).sum()),
        float(np.square(true).sum()),
    )


@pytest.mark.parametrize("seed", range(5))
def test_means_over_200_steps_are_within_10_percent(seed: int) -> None:
    local, mean, trace, signal = norms(WINDOW, seed)
    root = np.sqrt(np.square(local).mean(axis=1))
    traces, signals = estimates(root, mean, np.full(WINDOW, float(RANKS)))
    assert traces.mean() * RANKS * BATCH == pytest.approx(trace, rel=0.1)
    assert signals.mean() == pytest.approx(signal, rel=0.1)
    scale = noise_scale(traces, signals)
    assert scale is not None
    assert scale * RANKS * BATCH == pytest.approx(trace / signal, rel=0.1)


def test_ranks_are_merged_into_the_same_estimates_where_all_have_told() -> None:
    local, mean, _, _ = norms(30, 9)
    there = np.ones(30, dtype=bool)
    lacking = there.copy()
    lacking[3] = False
    parts = {}
    for rank in range(RANKS):
        columns = {
            "local_norm": Column(local[:, rank], lacking if rank == 2 else there),
            "grad_norm": Column(mean / 2, there),  # clipped
            "grad_norm_raw": Column(mean, there),
        }
        parts[rank] = Points(np.arange(30), columns)
    pending = Pending()
    for rank, points in parts.items():
        pending.add(rank, points)
    merged = pending.merge(RANKS * 30, None)
    assert merged is not None
    root = np.sqrt(np.square(local).mean(axis=1))
    traces, signals = estimates(root, mean, np.full(30, float(RANKS)))
    assert not merged.column(TRACE).logged[3]
    np.testing.assert_allclose(merged.column(TRACE).values[lacking], traces[lacking], rtol=1e-12)
    np.testing.assert_allclose(merged.column(SIGNAL).values[lacking], signals[lacking], rtol=1e-12)
    np.testing.assert_allclose(merged.column("local_norm").values[lacking], root[lacking], rtol=1e-12)


def test_too_few_measurements_and_pure_noise_have_no_finite_scale() -> None:
    few = np.ones(FEWEST - 1)
    assert noise_scale(few, few) is None
    many = np.ones(FEWEST)
    assert noise_scale(many, -many) == float("inf")
    assert noise_scale(-many, many) == 0.0
    assert noise_scale(np.full(FEWEST, np.nan), many) is None

"""The gradient noise scale from the norms of the ranks' own gradients and of their mean.

McCandlish, Kaplan et al., "An Empirical Model of Large-Batch Training" (2018), appendix A.1: with K ranks
of b samples each, s the mean over ranks of |g_local|² and B = |g_mean|²,

    |G|² = (K b B - b s) / (K b - b)          trΣ = (s - B) / (1/b - 1/(K b))

are unbiased for the true gradient's square and for the trace of the covariance of one sample's gradient.
Their ratio is the batch size at which noise and signal are alike. Both are noisy at one step, and only
the ratio of means over many steps is of use. Here b = 1/K: the unit is the batch of all ranks together, so
that a ratio above 1 says that a larger batch would still pay.
"""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from optwatch.series.points import Column

F8 = npt.NDArray[np.float64]

LOCAL = "local_norm"
TRACE, SIGNAL = "noise_trace", "noise_signal"
WINDOW = 200
"""Measurements in a mean."""
FEWEST = 20
"""Measurements without which there is no mean."""


def estimates(local: F8, mean: F8, ranks: F8) -> tuple[F8, F8]:
    """(trΣ, |G|²) at each step, float64; trΣ of the gradient of one batch of all ranks.

    Args:
        local: root of the mean over ranks of the squared norms of their own gradients.
        mean: norm of the mean gradient, before any clipping.
        ranks: how many ranks there are, at least 2.
    """
    s, b = np.square(local), np.square(mean)
    return (s - b) / (ranks - 1), (ranks * b - s) / (ranks - 1)


def noise_scale(trace: F8, signal: F8) -> float | None:
    """The noise scale from the last measurements, in batches of all ranks; None where there are too few.

    Infinite where the mean gradient is not to be told from noise.
    """
    trace, signal = trace[-WINDOW:], signal[-WINDOW:]
    good = np.isfinite(trace) & np.isfinite(signal)
    if good.sum() < FEWEST:
        return None
    above, below = float(np.mean(trace[good])), float(np.mean(signal[good]))
    return max(above, 0.0) / below if below > 0 else float("inf")


def fold(columns: Mapping[str, Column], ranks: npt.NDArray[np.intp], expected: int) -> dict[str, Column]:
    """The columns `noise_trace` and `noise_signal` of merged ones.

    `ranks`: at each row, how many ranks told their local norm; where not all `expected` did, or the norm of
    the mean is missing, there is nothing.
    """
    norm = columns.get("grad_norm")
    if norm is None or expected < 2:
        return {}
    raw = columns.get("grad_norm_raw")
    mean = norm.values if raw is None else np.where(raw.logged, raw.values, norm.values)
    local = columns[LOCAL]
    there = local.logged & norm.logged & (ranks == expected)
    if not there.any():
        return {}
    with np.errstate(all="ignore"):
        trace, signal = estimates(local.values, mean, np.maximum(ranks, 2).astype(np.float64))
    return {
        TRACE: Column(np.where(there, trace, np.nan), there),
        SIGNAL: Column(np.where(there, signal, np.nan), there.copy()),
    }

"""Published online rules, written anew from their formulas, with the defaults that were published.

Each takes the points of a run and gives the steps at which it alarms; one that is an alarm for many steps
on end gives them all.
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from optwatch.series.points import Points

Steps = tuple[int, ...]
Values = npt.NDArray[np.float64]


def _at(points: Points, where: npt.NDArray[np.bool_]) -> Steps:
    return tuple(points.step[where].tolist())


def _column(points: Points, name: str) -> Values:
    return points.column(name).values


def kill_loss_spike(
    points: Points, window: int = 100, factor: float = 2.0, patience: int = 4, cap: float = 10.0
) -> Steps:
    """llm-foundry's KillLossSpike, after a window: more than `patience` losses in a row of at least
    `factor` x the mean of the `window` before; or a mean of the window over `cap`."""
    loss = _column(points, "loss")
    found = np.zeros(len(loss), bool)
    high = 0
    for i in range(window, len(loss)):
        mean = loss[i - window : i].mean()
        high = high + 1 if not loss[i] < factor * mean else 0
        found[i] = high > patience or mean > cap
    return _at(points, found)


def skip_step(points: Points, window: int = 128, sigma: float = 6.0) -> Steps:
    """OLMo-core's skip-step optimizer: a loss or a gradient norm over mean + 6 deviations of the last 128."""
    found = np.zeros(len(points), bool)
    for name in ("loss", "grad_norm"):
        values = _column(points, name)
        for i in range(window, len(values)):
            past = values[i - window : i]
            found[i] |= not values[i] <= past.mean() + sigma * past.std(ddof=1)
    return _at(points, found)


def z_clip(points: Points, alpha: float = 0.97, z: float = 2.5, warm_up: int = 25) -> Steps:
    """ZClip (Kumar et al. 2025): the z-score of the gradient norm against exponential averages, which
    take in a clipped norm as clipped. A clip in the paper, taken here for an alarm."""
    norm = _column(points, "grad_norm")
    found = np.zeros(len(norm), bool)
    begin = norm[:warm_up]
    mean, variance = float(begin.mean()), float(begin.var())
    for i in range(warm_up, len(norm)):
        g = norm[i]
        deviation = np.sqrt(variance)
        if deviation > 0 and not (g - mean) / deviation <= z:
            found[i] = True
            score = (g - mean) / deviation
            g = mean + z * z / score * deviation if np.isfinite(score) and score > 0 else mean
        mean = alpha * mean + (1 - alpha) * g
        variance = alpha * variance + (1 - alpha) * (g - mean) ** 2
    return _at(points, found)


def reduce_on_plateau(points: Points, patience: int = 10, threshold: float = 1e-4) -> Steps:
    """torch's ReduceLROnPlateau on the training loss, a step for an epoch: more than `patience` losses
    without an improvement by the relative threshold."""
    best, bad = np.inf, 0
    found = np.zeros(len(points), bool)
    for i, loss in enumerate(_column(points, "loss")):
        best, bad = (loss, 0) if loss < best * (1 - threshold) else (best, bad + 1)
        if bad > patience:
            found[i], bad = True, 0
    return _at(points, found)


def loss_not_decreasing(points: Points, steps: int = 10, percent: float = 0.1) -> Steps:
    """SageMaker Debugger's LossNotDecreasing: the loss is not 0.1 % below that of 10 steps before."""
    loss = _column(points, "loss")
    found = np.zeros(len(loss), bool)
    for i in range(steps, len(loss), steps):
        found[i] = not loss[i] < loss[i - steps] * (1 - percent / 100)
    return _at(points, found)


def vanishing_gradient(points: Points, threshold: float = 1e-7) -> Steps:
    """SageMaker Debugger's VanishingGradient: a tensor's mean |g| is below 1e-7; its rms is taken here,
    which is never below that mean, and so alarms no more often."""
    assert points.samples is not None
    low = points.samples.stats["grad_rms"] < threshold
    return tuple(points.samples.step[low.any(axis=1)].tolist())


def update_ratio(points: Points, low: float = 1e-8, high: float = 10.0) -> Steps:
    """SageMaker Debugger's WeightUpdateRatio: a tensor's update over its parameter leaves [1e-8, 10]."""
    assert points.samples is not None
    stats = points.samples.stats
    with np.errstate(all="ignore"):
        ratio = stats["update_rms"] / stats["param_rms"]
    return tuple(points.samples.step[((ratio < low) | (ratio > high)).any(axis=1)].tolist())


def auto_trainer(points: Points) -> Steps:
    """AutoTrainer (Zhang et al. 2021): first over last layer's gradient < 1e-3 with the first < 1e-4
    (vanishing), over 70 (exploding), a layer with >= 70 % zero gradients (dying ReLU), or a non-finite
    loss. Its rules on accuracy need one."""
    samples = points.samples
    assert samples is not None
    weights = np.flatnonzero(samples.numel >= 100)
    gradient = samples.stats["grad_rms"][:, weights]
    with np.errstate(all="ignore"):
        ratio = gradient[:, 0] / gradient[:, -1]
    zeros = samples.counts["grad_zeros"][:, weights] / samples.numel[weights]
    found = ((ratio < 1e-3) & (gradient[:, 0] < 1e-4)) | (ratio > 70) | (zeros >= 0.7).any(axis=1)
    loss = _column(points, "loss")
    return tuple(sorted({*samples.step[found].tolist(), *_at(points, ~np.isfinite(loss))}))


def early_stopping(points: Points, patience: int = 3) -> Steps:
    """Lightning's EarlyStopping with check_finite: a non-finite validation loss, or `patience` evaluations
    without an improvement."""
    held = points.column("val_loss")
    best, bad = np.inf, 0
    found = np.zeros(len(points), bool)
    for i in np.flatnonzero(held.logged):
        value = held.values[i]
        best, bad = (value, 0) if value < best else (best, bad + 1)
        found[i] = bad >= patience or not np.isfinite(value)
    return _at(points, found)


RULES: dict[str, Callable[[Points], Steps]] = {
    "KillLossSpike (llm-foundry)": kill_loss_spike,
    "skip-step, 6 sigma (OLMo-core)": skip_step,
    "ZClip": z_clip,
    "ReduceLROnPlateau (torch)": reduce_on_plateau,
    "LossNotDecreasing (SageMaker Debugger)": loss_not_decreasing,
    "VanishingGradient (SageMaker Debugger)": vanishing_gradient,
    "WeightUpdateRatio (SageMaker Debugger)": update_ratio,
    "AutoTrainer": auto_trainer,
    "EarlyStopping, check_finite (Lightning)": early_stopping,
}

"""Did it help? The loss after an action, against the best before the event and the trend without it."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from optwatch.policy.history import History
from optwatch.wire.actions import Outcome, Verdict

F8 = npt.NDArray[np.float64]
AFTER = 50
"""The last steps of the trial, whose median loss is what the action led to."""
LEVEL = 10
"""The last points before the action, whose median loss is what it found."""
TREND = 200
"""Steps before the event from which noise and trend are taken."""
FEWEST = 8
"""Fewer points than this make no median and no trend."""


@dataclass(frozen=True)
class Trend:
    """loss ≈ level + slope · log(step), and the noise of one point about it (1.4826 MAD)."""

    level: float
    slope: float
    noise: float

    def at(self, step: float) -> float:
        return self.level + self.slope * float(np.log(max(step, 1.0)))


def fit_trend(steps: F8, losses: F8) -> Trend | None:
    """A line over log(step), blind to single outliers; None from too few finite points."""
    finite = np.isfinite(losses)
    line = _fit_line(np.log(np.maximum(steps[finite], 1.0)), losses[finite])
    return None if line is None else Trend(*line)


def _fit_line(x: F8, y: F8) -> tuple[float, float, float] | None:
    """Level, slope and noise (1.4826 MAD) by Theil and Sen; None from fewer than `FEWEST` points."""
    if len(x) < FEWEST:
        return None
    # The slopes between points half a window apart are enough, and linear in the number of points.
    half = len(x) // 2
    run = x[half:] - x[: len(x) - half]
    slope = float(np.median((y[half:] - y[: len(y) - half]) / np.maximum(run, 1e-12)))
    level = float(np.median(y - slope * x))
    residuals = y - level - slope * x
    return level, slope, float(1.4826 * np.median(np.abs(residuals)))


def judge(history: History, onset: int, applied: int, due: int) -> Outcome:
    """What an action did to the loss.

    Args:
        history: The run's points, up to the step `due` or beyond it.
        onset: The step at which the event began that the action answers, or `applied` without one.
        applied: The step before whose update it took effect.
        due: The last step of its trial.

    Returns:
        helped: at least half of the damage was won back, and more than the trend since the event would
        have brought; or, with no damage in the loss, the loss is below the trend from before.
        hurt: the loss got worse, or non-finite. neutral: it did neither. unclear: too few points, or it
        came back no faster than without the action. The numbers are losses: `best` before the event,
        `before` and `after` the action, `without` it (the counterfactual), `noise` of one point, and
        `recovered`, the share of the damage won back.
    """
    # The step `applied` saw parameters from before the action: its own loss belongs to the time before.
    prior_steps, prior = history.losses(onset - TREND - 1, onset - 1)
    event_steps, event = history.losses(onset - 1, applied)
    _, after = history.losses(max(applied, due - AFTER), due)
    found = event if onset < applied and len(event) else np.concatenate([prior, event])
    recent = found[-LEVEL:]
    if len(after) < FEWEST or not len(recent):
        return Outcome("unclear", {"points": float(len(after))})
    before, level = float(np.median(recent)), float(np.median(after))
    if not np.isfinite(level):
        verdict: Verdict = "neutral" if not np.isfinite(before) else "hurt"
        return Outcome(verdict, {"nonfinite": float(np.mean(~np.isfinite(after)))})
    trend = fit_trend(prior_steps, prior)
    best = history.best(onset)
    if not np.isfinite(before):
        return Outcome("helped", _numbers(best=best, after=level))
    if trend is None or not np.isfinite(best):
        return Outcome("unclear", _numbers(before=before, after=level))

    # A median over n points has about 1.25 / sqrt(n) of the noise of one.
    slack = 3 * 1.25 * trend.noise / np.sqrt(min(len(after), len(recent)))
    expected = trend.at(onset)
    damage = before - expected
    if damage > max(slack, 0.05 * abs(expected)):
        without = recovery_at(due, event_steps, event, best)
        return _judge_rescue(before, level, best, damage, trend.noise, slack, without)
    without = trend.at(due)
    gain = without - level
    verdict = "helped" if gain > 0 else "hurt"
    if abs(gain) <= max(slack, 0.02 * abs(without)):
        verdict = "neutral"
    numbers = _numbers(best=best, before=before, after=level, without=without, noise=trend.noise)
    return Outcome(verdict, numbers)


def recovery_at(step: int, steps: F8, losses: F8, best: float) -> float:
    """The loss that a recovery under way leads to at `step`; NaN where too few points say so.

    What is left above the former best may fall like a power of the time since the event, or
    exponentially at its latest pace: the better of the two, so that no action is praised for what the
    run does by itself.
    """
    above = np.isfinite(losses) & (losses > best)
    since, excess = steps[above] - steps[:1] + 1, np.log(losses[above] - best)
    latest = since > since[-1] / 2 if len(since) else above[:0]
    power, decay = _fit_line(np.log(since), excess), _fit_line(since[latest], excess[latest])
    if power is None:
        return float("nan")
    then = float(step - steps[0] + 1)
    left = [power[0] + power[1] * np.log(then)]
    if decay is not None:
        left.append(decay[0] + decay[1] * then)
    return best + float(np.exp(min(*left, 700.0)))  # the largest that does not overflow


def _judge_rescue(
    before: float,
    level: float,
    best: float,
    damage: float,
    noise: float,
    slack: float,
    without: float,
) -> Outcome:
    """The verdict where the loss shows damage: is it won back, and would it have been anyway?"""
    if not np.isfinite(without):
        # With too few points between event and action, nothing says that the loss would have moved.
        without = before
    recovered = (before - level) / damage
    smallest = max(slack, 0.1 * damage)
    if level > before + smallest:
        verdict: Verdict = "hurt"
    elif recovered >= 0.5:
        verdict = "helped" if without - level > smallest else "unclear"
    elif before - level <= smallest:
        verdict = "neutral"
    else:
        verdict = "unclear"
    numbers = _numbers(best=best, before=before, after=level, without=without, noise=noise)
    return Outcome(verdict, numbers | {"recovered": recovered})


def _numbers(**numbers: float) -> dict[str, float]:
    return {name: float(value) for name, value in numbers.items() if np.isfinite(value)}

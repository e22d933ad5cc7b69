"""What is done about a fault: by optwatch in mode auto, by trivial policies, and by what others publish."""

import hashlib
import math
from collections.abc import Callable
from pathlib import Path

import torch

from tests.benchmarks.rescue.courses import Case, Course

_ALWAYS = """
[limits]
lr_cuts = 1000
failures = 1000
[[rule]]
name = "always"
why = "whatever it is"
when = {{ severity = ["warning", "critical"] }}
do = [{action}]
times = 1000
"""
"""The same detectors, the same pause between two actions, one action for all: what choosing is worth."""

POLICIES: dict[str, str | None] = {
    "optwatch": None,
    "restart": _ALWAYS.format(action='{ action = "restart" }'),
    "lr_tenth": _ALWAYS.format(action='{ action = "scale_lr", factor = 0.1 }'),
    "clip": _ALWAYS.format(action='{ action = "clip", max_norm = "auto" }'),
    "rollback": _ALWAYS.format(action='{ action = "rollback" }'),
}
"""Policy files by name, None for the one that is shipped; each has a daemon of its own in mode auto."""

RANDOM = ("restart", "lr_tenth", "clip", "rollback")
WATCHED: dict[str, Callable[[Case], str]] = {
    "optwatch auto": lambda case: "optwatch",
    "always restart": lambda case: "restart",
    "always LR / 10": lambda case: "lr_tenth",
    "random action": lambda case: RANDOM[hashlib.sha256(case.name.encode()).digest()[0] % len(RANDOM)],
}
"""Arms that a daemon carries out, and the policy of each."""

Hook = Callable[[int, float | None], None]
"""Told the last step's number and loss (None before the first) right before the optimizer's step."""


def _nothing(course: Course) -> Hook:
    return lambda step, loss: None


def _clip(course: Course) -> Hook:
    """`clip_grad_norm_` to 1 at every step."""
    parameters = list(course.model.parameters())

    def hook(step: int, loss: float | None) -> None:
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)

    return hook


def _z_clip(course: Course, alpha: float = 0.97, z: float = 2.5, warm_up: int = 25) -> Hook:
    """ZClip (Kumar et al. 2025): a gradient norm with a z-score over 2.5 is clipped to mean + z² / score
    deviations; the exponential averages take in what was left."""
    parameters = list(course.model.parameters())
    begin: list[float] = []
    mean = variance = 0.0

    def hook(step: int, loss: float | None) -> None:
        nonlocal mean, variance
        norm = float(torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None]))
        if len(begin) < warm_up:
            begin.append(norm)
            mean = sum(begin) / len(begin)
            variance = sum((value - mean) ** 2 for value in begin) / len(begin)
            return
        deviation = math.sqrt(variance)
        score = (norm - mean) / deviation if deviation > 0 else 0.0
        if not score <= z:
            target = mean + z * z / score * deviation if math.isfinite(score) else mean
            torch.nn.utils.clip_grads_with_norm_(parameters, target, torch.tensor(norm))
            norm = target
        mean = alpha * mean + (1 - alpha) * norm
        variance = alpha * variance + (1 - alpha) * (norm - mean) ** 2

    return hook


def _reduce_on_plateau(course: Course) -> Hook:
    """torch's ReduceLROnPlateau with its defaults, fed the mean loss of every ten steps."""
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(course.optimizer)
    losses: list[float] = []

    def hook(step: int, loss: float | None) -> None:
        if loss is not None:
            losses.append(loss)
        if len(losses) == 10:
            scheduler.step(sum(losses) / 10)
            losses.clear()

    return hook


ALONE: dict[str, Callable[[Course], Hook]] = {
    "nothing": _nothing,
    "clip 1.0": _clip,
    "ReduceLROnPlateau": _reduce_on_plateau,
    "ZClip": _z_clip,
}
"""Arms that need no daemon: what they hook into the loop."""

ARMS = (*ALONE, *WATCHED)


def write_policies(folder: Path) -> dict[str, Path | None]:
    """The policies as files."""
    paths: dict[str, Path | None] = {}
    for name, text in POLICIES.items():
        paths[name] = None if text is None else folder / f"{name}.toml"
        if text is not None:
            (folder / f"{name}.toml").write_text(text)
    return paths

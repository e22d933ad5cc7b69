"""What a rule may ask about: the finding, and what the run's loss and LR did around it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from optwatch.policy.history import History
from optwatch.policy.judge import fit_trend
from optwatch.wire.actions import ACTIONS
from optwatch.wire.findings import Finding

LrFact = Literal["risen", "spiked", "unusual", "steady", "unknown"]
LossFact = Literal["up", "falling", "normal", "nonfinite", "bad_start", "unknown"]

RISE = 2.0
"""An LR at this multiple of its former median has risen; below its square root it is back."""
LR_WINDOW = 100
"""Steps before an event from which the former LR is taken, and in which a rise is recent."""
LATEST = 20
"""The last points, of whose loss it is said whether it has fallen since the start."""
UNLEARNED = 0.9
"""A loss that is not below this share of that of the first steps has not fallen."""
EARLY_PEAK = 2.0
"""A loss that rose to this multiple of its start in the first steps began badly, too."""
AGAIN = 1_000
"""Steps within which trouble of the same kind is held the same trouble."""
OPENING = 50
"""An event in the first steps of a run has no good level before it: the set-up itself is in doubt."""


@dataclass(frozen=True)
class Facts:
    """One open finding, seen from the run's last step.

    lr: risen (at least twice the former LR, and still so), spiked (it was, and is back), unusual (neither,
        and above what the optimizer is used with), steady.
    loss: its last points against the trend before the event: up, falling (up, and on its way back), normal;
        of what began in the first 50 steps, after as many: bad_start (the loss is not below its start, or
        rose to twice its start in these).
    age: steps since the onset.
    from_start: steps of the run before the onset.
    again: how many findings of its kind began in the last 1,000 steps before it, itself included.
    former_lr: the median LR before the rise, NaN where unknown.
    usual: the share of an unusual LR that is usual, 1 where it is not unusual.
    can: the actions that the run's agents take, and that can be done now.
    """

    finding: Finding
    lr: LrFact
    loss: LossFact
    age: int
    again: int
    from_start: int
    former_lr: float
    usual: float
    can: frozenset[str]


def gather(
    history: History, finding: Finding, onsets: Sequence[int], allow: Sequence[str], usual: float
) -> Facts:
    """The facts about an open finding.

    Args:
        history: The run's points.
        finding: The finding.
        onsets: The steps at which the run's findings of its kind began.
        allow: The actions that the run's agents take.
        usual: The share of its LR, as it is scaled, that the optimizer is used with; 1 where all of it is.
    """
    lr, former = lr_fact(history, finding.onset_step)
    if usual < 1 and lr in ("steady", "unknown"):
        lr = "unusual"
    return Facts(
        finding=finding,
        lr=lr,
        loss=_loss_fact(history, finding.onset_step),
        age=max(0, history.now - finding.onset_step),
        again=sum(finding.onset_step - AGAIN < onset <= finding.onset_step for onset in onsets),
        from_start=finding.onset_step - int(history.first or finding.onset_step),
        former_lr=former,
        usual=usual,
        can=frozenset(ACTIONS if "all" in allow else allow),
    )


def lr_fact(history: History, onset: int) -> tuple[LrFact, float]:
    """Whether the scheduled LR rose in the steps before an onset or since, and its median before.

    A rise may come first and show in the loss only 20 steps later, so what the LR was before is taken
    from the earlier half of the window.
    """
    before = history.lrs(onset - LR_WINDOW - 1, onset - LR_WINDOW // 5)
    since = history.lrs(onset - LR_WINDOW // 5, history.now)
    if not len(before) or not len(since) or np.median(before) <= 0:
        return "unknown", float("nan")
    former = float(np.median(before))
    if np.max(since) < RISE * former:
        return "steady", former
    return ("spiked" if is_back(float(since[-1]), former) else "risen"), former


def is_back(lr: float, former: float) -> bool:
    """Whether an LR that had risen has returned to what it was."""
    return bool(lr <= former * RISE**0.5)


def _loss_fact(history: History, onset: int) -> LossFact:
    _, last = history.losses(onset - 1, history.now)
    if not len(last):
        return "unknown"
    level = float(np.median(last[-5:]))
    if not np.isfinite(level):
        return "nonfinite"
    opening = onset - int(history.first or onset) < OPENING
    if opening and history.start is not None and len(last) >= OPENING:
        low = float(np.median(last[-LATEST:]))
        _, first = history.losses(-math.inf, int(history.first or 0) + OPENING)
        peaked = len(first) > 0 and float(np.max(first)) > EARLY_PEAK * abs(history.start)
        return "bad_start" if peaked or low > history.start * UNLEARNED else "normal"
    trend = fit_trend(*history.losses(onset - 2 * LR_WINDOW - 1, onset - 1))
    if trend is None or len(last) < 3:
        return "unknown"
    damage = level - trend.at(history.now)
    if damage <= max(3 * trend.noise, 0.05 * abs(level - damage)):
        return "normal"
    return "falling" if _is_falling(history, onset, damage) else "up"


def _is_falling(history: History, onset: int, damage: float) -> bool:
    """Whether the loss lost at least a twentieth of the damage, and more than its noise, lately.

    A recovery slows down as it goes on, so lately is half of the time since the onset: a loss that still
    falls at that pace is to be left alone.
    """
    first = max(onset, history.now - max(LR_WINDOW, (history.now - onset) // 2) + 1)
    steps, losses = history.losses(first - 1, history.now)
    if len(steps) < LR_WINDOW // 5 or (recent := fit_trend(steps, losses)) is None:
        return False
    drop = recent.at(first) - recent.at(history.now)
    return bool(drop > max(0.05 * damage, 6 * recent.noise / np.sqrt(len(steps))))

"""An LR that collapses at once, and whether the loss has stopped falling since."""

import math
from itertools import pairwise

import msgspec

from optwatch.detect.memory import F8, Blocks, extend, median, push, trend

FACTOR = 100.0
"""An LR that falls by this factor at once has collapsed: a step decay takes 2 to 10."""
_EXACTLY = FACTOR * (1 - 1e-9)
"""A hundredth that a scheduler has worked out may be a bit more than that."""
ABRUPT, HELD = 10, 100
"""Points that it falls within at most, and that say which LR was held before."""
NEAR = 0.5
"""Above this share of the LR held before, the fall begins at it, and is not the tail of a decay."""
BACK = 10.0
"""An LR within this factor of the former one is back."""
WINDOW = 200
"""Points that the loss is looked at before and since."""
GROUPS = 10
FALL = -1.645
"""One-sided 5 % of the Mann-Kendall statistic, and of a normal deviation."""
SLOWER = 3.0
"""A loss that falls so many times slower than before has stopped. A power law slows down by 2 to 4 over
twice its length."""


class Rates(msgspec.Struct):
    """The last LRs."""

    recent: list[float] = []

    def held_before(self, rate: float) -> float:
        """Take the next LR. The one that was held before if this one is a collapse from it, else 0."""
        held = 0.0
        highest = max(self.recent[-ABRUPT:], default=0.0)
        if 0 <= _EXACTLY * rate <= highest:
            usual = median(self.recent[-HELD:])
            if usual >= _EXACTLY * rate and highest >= NEAR * usual:
                held = usual
        push(self.recent, rate, HELD)
        return held

    def extend(self, rates: F8) -> bool:
        """Take many at once, if none of them can be a collapse; whether it did."""
        recent = self.recent[-ABRUPT:]
        highest = max(float(rates.max()), max(recent, default=0.0))
        if not _EXACTLY * float(rates.min()) > highest:
            return False
        extend(self.recent, rates[-HELD:].tolist(), HELD)
        return True


class Collapse(msgspec.Struct):
    """One that is in force. Paces are falls of the loss per point."""

    step: int
    former: float
    """The LR before."""
    points: int
    """Points of the run before it."""
    pace: float
    """0 where the loss did not fall significantly before."""
    pace_since: float = math.nan
    since: Blocks = msgspec.field(default_factory=Blocks)

    def back(self, rate: float) -> bool:
        """Whether this LR is about the former one."""
        return rate * BACK >= self.former

    def halted(self) -> bool:
        """Whether the loss fell before and, by a one-sided test at 5 %, falls at under a third since.

        Asked of at least 200 points since, and of no more than there were before: over a longer time a
        loss slows down by itself.
        """
        points = len(self.since.means) * self.since.size
        if self.pace <= 0 or not WINDOW <= points <= max(self.points, 2 * WINDOW):
            return False
        course = self.since.last(points, GROUPS)
        length = points // self.since.size // GROUPS * GROUPS * self.since.size
        self.pace_since = _pace(course, length)
        changes = [b - a for a, b in pairwise(course)]
        # The two ends that the pace is taken from are means of two groups each.
        error = math.sqrt(sum(change**2 for change in changes) / len(changes) / 2)
        return self.pace_since - FALL * error / (0.8 * length) < self.pace / SLOWER


def collapse(step: int, former: float, points: int, losses: Blocks) -> Collapse:
    """One at `step`, from the LR `former`, after `points` points with these losses."""
    window = max(min(points, WINDOW), points // 4)
    course = losses.last(window, GROUPS)
    fell = bool(course) and trend(course) < FALL
    length = window // losses.size // GROUPS * GROUPS * losses.size
    return Collapse(step, former, points, _pace(course, length) if fell else 0.0)


def _pace(course: list[float], points: int) -> float:
    """The fall per point between the first and the last fifth of a course over so many points."""
    return (median(course[:2]) - median(course[-2:])) / (0.8 * points)

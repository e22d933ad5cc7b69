"""The range that a loss or a gradient norm has had, and whether a new value is far out of it."""

import math
from collections.abc import Sequence
from itertools import accumulate

import msgspec
import numpy as np
import numpy.typing as npt

from optwatch.detect.memory import F8, FIRST, Extent, extend, median, push

BEGIN, ALARM = 10, 1e5
"""Norms before the e-detector begins, and what it alarms at."""
RECENT = 201
"""Norms that are kept: the newest, and the 200 that it is measured by."""


class LossRange(msgspec.Struct):
    """The loss over the last 20 and the last 200 points.

    Hot is what exceeds Lmax + k (Lmax - Lmin) + margin, with k = 1.5 over the short range and 0.5 over
    the long one; the margin is 0.1 |median of 50| and at least 5 % of what was won so far. Before there
    are five points, hot is more than twice the greatest.
    """

    seen: int = 0
    grace: int = 0
    """After a planned change, the points in which only a loss above 10 |L0| is hot."""
    first: float = math.nan
    """L0, the loss at the start."""
    best: float = math.inf
    recent: list[float] = []
    short: Extent = msgspec.field(default_factory=lambda: Extent(4, 5))
    long: Extent = msgspec.field(default_factory=lambda: Extent(10, 20))

    def quiet_limit(self) -> float:
        """What no hot value stays below; cheap."""
        if self.seen < max(FIRST, self.grace):
            return self._early_limit() if self.seen else math.inf
        return self.short.high

    def limits(self) -> tuple[float, float]:
        """The hot limits over the short and over the long range."""
        if self.seen < max(FIRST, self.grace):
            limit = self._early_limit()
            return limit, limit
        margin = max(0.1 * abs(median(self.recent[-50:])), 0.05 * (self.first - self.best))
        short = self.short.high + 1.5 * (self.short.high - self.short.low) + margin
        long = self.long.high + 0.5 * (self.long.high - self.long.low) + margin
        return short, long

    def quiet(self, values: F8) -> int:
        """How many of the first values are finite and surely not hot, however the median stands."""
        if self.seen < max(FIRST, self.grace):
            return 0
        lows, highs = self.short.ahead(values)
        return _first(~(values <= highs + 1.5 * (highs - lows)) | np.isinf(values))

    def _early_limit(self) -> float:
        if self.seen < self.grace:
            return 10 * abs(self.first)
        return self.short.high + abs(self.short.high)

    def add(self, value: float, limit: float) -> None:
        """Remember a finite value, as no more than `limit`: one outlier shall not hide the next."""
        if math.isnan(self.first):
            self.first = value
        self.seen += 1
        value = min(value, limit)
        self.best = min(self.best, value)
        self.short.add(value)
        self.long.add(value)
        push(self.recent, value, 50)

    def extend(self, values: F8) -> None:
        """Remember many that are `quiet`."""
        if not len(values):
            return
        self.seen += len(values)
        self.best = min(self.best, float(values.min()))
        self.short.extend(values)
        self.long.extend(values)
        extend(self.recent, values[-50:].tolist(), 50)


Course = tuple[Sequence[float], ...]
"""`average`, `weight` and `evidence` of a range before and after each of some norms; () of none."""


class NormRange(msgspec.Struct):
    """The gradient norm over the last 1,000 points, and its energy against its own average.

    Hot is a norm > 3 x the greatest of the last 1,000 and > 10 x the median of the last 200; or an
    alarm of the e-detector on the energy: with rho = g²/V, V the bias-corrected average of g² (beta 0.98)
    before this point, e = 1 + lambda (rho/(1 + delta) - 1) and M = max(M, 1) e, an alarm is M >= 1e5. If
    E[rho | past] <= 1 + delta, a false alarm takes 1e5 points or more on average, whatever the
    distribution (Shin, Ramdas, Rinaldo: E-detectors, 2023).
    """

    seen: int = 0
    recent: list[float] = []
    range: Extent = msgspec.field(default_factory=lambda: Extent(10, 100))
    average: float = 0.0
    """Of g², not corrected for bias."""
    weight: float = 0.0
    """What corrects it: 1 - beta^n."""
    evidence: float = 1.0
    """M of the e-detector."""

    def hot(self, g: float) -> bool:
        """Whether a finite norm is out of its range; remembers it."""
        hot = self._energy(g)
        high = self.range.high
        limit = math.inf
        if self.seen >= FIRST and g > 3 * high:
            hot = hot or g > 10 * median(self.recent[-200:])
            limit = 3 * high if high > 0 else math.inf
        self.seen += 1
        kept = min(g, limit)  # one outlier shall not hide the next
        self.range.add(kept)
        push(self.recent, kept, RECENT)
        return hot

    def quiet(self, values: F8) -> tuple[int, Course]:
        """How many of the first finite values are surely not hot, and the course of the energy over them."""
        if self.seen < BEGIN or not self.average > 0:
            return 0, ()
        _, highs = self.range.ahead(values)
        course = averages, _, evidence = self._course(values)
        hot = (values > 3 * highs) | ~(np.array(evidence[1:]) < ALARM) | ~(np.array(averages[:-1]) > 0)
        return _first(hot), course

    def extend(self, values: F8, course: Course) -> None:
        """Remember many that are `quiet`, the first of those that the course is of."""
        if not len(values):
            return
        self.average, self.weight, self.evidence = (part[len(values)] for part in course)
        self.seen += len(values)
        self.range.extend(values)
        extend(self.recent, values[-RECENT:].tolist(), RECENT)

    def _course(self, values: F8) -> Course:
        """`average`, `weight` and `evidence` as they are, and after each of the values if none is hot."""
        energy = np.minimum(values * values, 1e300)
        added = (0.02 * energy).tolist()
        averages = list(accumulate(added, lambda a, e: 0.98 * a + e, initial=self.average))
        weights = list(accumulate(added, lambda w, _: 0.98 * w + 0.02, initial=self.weight))
        rho = energy * np.array(weights[:-1]) / np.array(averages[:-1])
        factors = (1 + 0.1 * (rho / 1.5 - 1)).tolist()
        evidence = list(accumulate(factors, lambda m, f: (m if m > 1.0 else 1.0) * f, initial=self.evidence))
        return averages, weights, evidence

    def ratio(self, g: float) -> float:
        """A norm over the usual one, the median of the last 200."""
        usual = median(self.recent[-200:])
        return g / usual if usual > 0 else math.inf

    def newest_ratio(self, g: float) -> float:
        """The same of the newest norm, over those before it."""
        usual = median(self.recent[-201:-1])
        return g / usual if usual > 0 else math.inf

    def _energy(self, g: float) -> bool:
        """The e-detector. It begins at the tenth norm, and anew after an alarm."""
        energy = min(g * g, 1e300)
        alarm = False
        if self.seen >= BEGIN and self.average > 0:
            rho = energy * self.weight / self.average
            self.evidence = min(max(self.evidence, 1.0) * (1 + 0.1 * (rho / 1.5 - 1)), 1e9)
            # Where next to no gradient flows (a net that was initialised with zeros) any beginning is a rise.
            if self.evidence >= ALARM:
                alarm = median(self.recent[-200:]) > 1e-6
                self.evidence = 1.0
        self.average = 0.98 * self.average + 0.02 * energy
        self.weight = 0.98 * self.weight + 0.02
        return alarm


def _first(found: npt.NDArray[np.bool_]) -> int:
    """Where the first True is, the length where there is none."""
    return int(found.argmax()) if found.any() else len(found)

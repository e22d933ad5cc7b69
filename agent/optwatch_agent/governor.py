"""How often to measure, so that the agent holds its share of the step time."""

import math
from collections import deque
from typing import NamedTuple

_MOST = 1_024
"""Steps between two measurements at most, however little the budget allows."""

_OUTLIER = 2.0
"""Times its usual value that a single cost or step time is believed to be at most."""

_LEAST = 0.25
"""Share of the budget left for norms and samples, whatever the cost of every step; and share of what is
left for samples, however seldom that makes the norm."""

_UNSEEN = 0.1
"""Share of the budget that is kept for what the agent cannot see of itself: what it pushes out of the caches,
and the calls of its hooks."""

_LOOK = 0.25
"""Share of the budget that looks at the sentinel may take, of which there is one in `_MOST_UNSEEN` steps."""
_MOST_UNSEEN = 16

_SAVED = 8.0
"""Norms that can be paid from savings while steps are shorter than usual."""

_HISTOGRAMS = 0.2
"""Share of what is left for samples that histograms may take of it."""

_APART = (2.0, 60.0)
"""Seconds between two histograms at least, at first and however long the run has been."""

_RESOLUTION = 256
"""Of a long run, a histogram for every such part."""

_MOST_AT_ONCE = 16
"""Steps without a measurement that are accounted for together at most: an account of each has its price."""

_WEIGHT = 0.2
"""Weight of the newest value in a moving average."""


class Costs(NamedTuple):
    """What was measured of a step and how many seconds each took, None for what was not."""

    norm: float | None = None
    sample: float | None = None
    histogram: float | None = None
    reserved: float = 0.0
    """What the reserved share paid for, and what else there was."""


NOTHING = Costs()


class Governor:
    """Plans when gradient norms and per-tensor samples are taken, from what they and the steps cost.

    Every step earns `budget` × its time. What every step costs (loss, LR, time) and what the link takes
    beside it are paid first, then the gradient norm, and samples from what is left; now and then one comes
    with histograms. Norms and samples have purses of their own, so that a sample never silences the norm; and
    one cost far above the usual is no debt. It starts sparse: nothing is measured before the first steps have
    earned it, so that the beginning of a run holds the budget too.

    A step that the system interrupts inside the agent would have been interrupted without it too, so the
    costs of norms and samples should be CPU time. That of every step may be by the clock, which is cheaper
    to read: far above its average it is not believed.
    """

    def __init__(self, budget: float, numel: int, tensors: int) -> None:
        self.budget = budget
        self.reserved = 0.0
        """Of the budget, the share that is spent elsewhere: on checks of the replicas."""
        self.beside = 0.0
        """What the link's thread takes while the training steps, as a share of the time."""
        self.wants_norm = False
        """Whether the step that begins should measure the gradient norm."""
        self.wants_sample = False
        """Whether the step that begins should measure every tensor. The norm, which goes with it, is one that
        was wanted anyway."""
        self.look = Usual(3e-5)
        """What a look at the sentinel costs, in seconds."""
        self.look_every = 1
        """Steps from one look to the next."""
        self.norm_every = 1
        self.sample_every = _MOST
        self.histogram_every = 1
        # First guesses, on the high side: one read of the gradients, or a dozen passes over a
        # tensor. A compiled pass takes a fifth of that, which the first sample tells.
        self._norm = Cost(1e-5 + 1e-6 * tensors + numel * 4e-10)
        self._sample = Cost(1e-4 + 1e-5 * tensors + numel * 5e-9)
        self._histogram = Cost(1e-4 + 1e-5 * tensors + numel * 3e-9)
        self._fixed = Usual(3e-5)
        self._step_time: Usual | None = None
        self._for_norms = -self._norm.usual
        self._for_samples = -self._sample.usual
        self._since_norm = 0
        self._since_sample = 0
        self._since_histogram = math.inf
        self._steps = 0
        self._cost = self._time = 0.0
        self._open = 0
        """Steps that are yet to be accounted for, and below what they took."""
        self._open_time = self._open_fixed = 0.0
        self._room = 1
        """As many steps can pass until something may be due."""

    @property
    def overhead(self) -> float:
        """Share of the step time taken, an average over the last hundred steps or so."""
        return self._cost / self._time + self.beside if self._time else 0.0

    def wants_histogram(self) -> bool:
        """Whether a sample that is taken now should come with the histograms of its tensors."""
        return self._since_histogram + self._open + 1 >= self.histogram_every

    def spent(self, step_time: float | None, fixed: float, costs: Costs = NOTHING) -> None:
        """Take account of a step: its whole time, what the agent takes of every step, and what was measured.

        `step_time` is None where no step came before.
        """
        steps = 1
        if step_time is not None:
            self._open += 1
            self._open_time += step_time
            self._open_fixed += fixed
            if self._open < self._room and costs == NOTHING:
                return
            steps, step_time, fixed = self._open, self._open_time / self._open, self._open_fixed / self._open
            self._open, self._open_time, self._open_fixed = 0, 0.0, 0.0
        norm, sample, histogram, reserved = costs
        self._since_norm = 0 if norm is not None else self._since_norm + steps
        self._since_sample = 0 if sample is not None else self._since_sample + steps
        self._since_histogram = 0.0 if histogram is not None else self._since_histogram + steps
        self._steps += steps
        cost = steps * self._fixed.see(fixed, steps) + reserved
        if norm is not None:
            cost += norm
            self._for_norms = self._norm.debit(self._for_norms, norm)
        if sample is not None:
            cost += sample
            self._for_samples = self._sample.debit(self._for_samples, sample)
        if histogram is not None:
            cost += histogram
            self._for_samples -= self._histogram.see(histogram)
        if step_time is not None:
            kept = 0.99**steps
            self._cost = kept * self._cost + cost
            self._time = kept * self._time + steps * step_time
            if self._step_time is None:
                self._step_time = Usual(step_time)
            # An evaluation or a checkpoint between two steps is no reason to measure more.
            self._earn(steps, self._step_time.see(step_time, steps))
            income = self._income(self._step_time.value)
            self._plan(self._step_time.value, income)
            debt = -self._for_norms
            self._room = period(debt, income, _MOST_AT_ONCE) if debt > 0 else 1
        self.wants_norm = self._for_norms >= 0 or self._since_norm >= _MOST
        paid = self.wants_norm and self._for_samples >= 0
        self.wants_sample = paid or self._since_sample >= _MOST

    def _earn(self, steps: int, step_time: float) -> None:
        income = steps * self._income(step_time)
        for_samples = _LEAST * income
        # What was earned long ago is not saved up for a burst.
        self._for_norms += income - for_samples
        if (over := self._for_norms - _SAVED * self._norm.usual) > 0:
            self._for_norms -= over
            for_samples += over
        self._for_samples = min(self._for_samples + for_samples, 0.0)

    def _plan(self, step_time: float, income: float) -> None:
        self.look_every = period(self.look.value, _LOOK * self.budget * step_time, _MOST_UNSEEN)
        self.norm_every = period(self._norm.usual, (1 - _LEAST) * income)
        norms = min(self._norm.usual / self.norm_every, (1 - _LEAST) * income)
        self.sample_every = period(self._sample.usual, income - norms)
        # Evenly spread over a run, however long it gets.
        part, (least, most) = (
            self._steps / _RESOLUTION,
            (seconds / step_time for seconds in _APART),
        )
        affordable = period(self._histogram.usual, _HISTOGRAMS * (income - norms), most=1 << 30)
        self.histogram_every = max(affordable, math.ceil(min(max(part, least), most)))

    def _income(self, step_time: float) -> float:
        earned = (1.0 - self.reserved - _UNSEEN) * self.budget * step_time
        return max(earned - self._fixed.value - self.beside * step_time, _LEAST * earned)


class Usual:
    """A moving average that no single value moves far."""

    def __init__(self, value: float) -> None:
        self.value = value

    def see(self, value: float, times: int = 1) -> float:
        """Take account of a value, or of the mean of several; what of it is believed."""
        believed = min(value, _OUTLIER * self.value)
        self.value += (1.0 - (1.0 - _WEIGHT) ** times) * (believed - self.value)
        return believed


class Cost:
    """What something usually costs: the median of the last times, at first a guess."""

    def __init__(self, guess: float) -> None:
        self.usual = guess
        self._last: deque[float] = deque(maxlen=5)
        self._newest = deque([0.0, 0.0], maxlen=2)

    def see(self, cost: float) -> float:
        """Take account of a cost; what of it is believed."""
        if cost <= 0:  # then it was not done; as the usual cost it would make all others outliers
            return 0.0
        # The first time code runs it is slow. What costs so much three times in a row will do so again.
        believed = min(cost, max(_OUTLIER * self.usual, min(self._newest)))
        self._newest.append(cost)
        self._last.append(believed)
        self.usual = sorted(self._last)[(len(self._last) - 1) // 2]
        return believed

    def debit(self, purse: float, cost: float) -> float:
        """Take account of a cost; what it leaves of the purse. No debt is kept from a guess too high."""
        believed = self.see(cost)
        return max(purse - believed, -max(believed, _OUTLIER * self.usual))


def period(cost: float, income: float, most: int = _MOST) -> int:
    """Steps over which an income per step pays for a cost."""
    if cost > income * most:
        return most
    return max(1, math.ceil(cost / income))

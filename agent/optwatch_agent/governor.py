"""How often to measure, so that the agent holds its share of the step time."""

import math

_MOST = 1_024
"""Steps between two measurements at most, however little the budget allows."""

_OUTLIER = 4.0
"""Times the average that a single cost is believed to be at most."""

_WEIGHT = 0.2
"""Weight of the newest cost in its moving average."""


class Governor:
    """Plans when gradient norms and per-tensor samples are taken, from what they and the steps cost.

    Every step earns `budget` × its time. What every step costs (loss, LR, time) is paid first, then the
    gradient norm, then the samples. It starts sparse: nothing is measured before the first steps have
    earned it, so that the beginning of a run holds the budget too.
    """

    def __init__(self, budget: float, numel: int, tensors: int) -> None:
        self.budget = budget
        self.norm_every = 1
        self.sample_every = _MOST
        self._step_time: float | None = None
        self._fixed = 0.0
        # First guesses, on the high side: one read of the gradients, or twenty passes over a tensor.
        self._norm = 1e-5 + 1e-6 * tensors + numel * 4e-10
        self._sample = 1e-4 + 1e-5 * tensors + numel * 1e-8
        self._purse = 0.0
        self._since_norm = 0
        self._since_sample = 0
        self._cost = self._time = 0.0

    @property
    def overhead(self) -> float:
        """Share of the step time taken, an average over the last hundred steps or so."""
        return self._cost / self._time if self._time else 0.0

    def wants_norm(self) -> bool:
        """Whether the step that begins should measure the gradient norm."""
        return self._since_norm + 1 >= self.norm_every and (self._purse >= 0 or self._since_norm >= _MOST)

    def wants_sample(self) -> bool:
        """Whether the step that begins should measure every tensor."""
        due = self._since_sample + 1 >= self.sample_every
        return due and (self._purse >= 0 or self._since_sample >= _MOST)

    def spent(self, step_time: float | None, fixed: float, norm: float | None, sample: float | None) -> None:
        """Take account of a step: its whole time, and what the agent's parts took, in seconds."""
        self._since_norm = 0 if norm is not None else self._since_norm + 1
        self._since_sample = 0 if sample is not None else self._since_sample + 1
        self._fixed = _blend(self._fixed, fixed)
        # A part that the system interrupted says little about what it costs.
        if norm is not None:
            norm = min(norm, _OUTLIER * self._norm)
            self._norm = _blend(self._norm, norm)
        if sample is not None:
            sample = min(sample, _OUTLIER * self._sample)
            self._sample = _blend(self._sample, sample)
        if step_time is None:
            return
        self._step_time = step_time if self._step_time is None else _blend(self._step_time, step_time)
        cost = fixed + (norm or 0.0) + (sample or 0.0)
        self._cost = 0.99 * self._cost + cost
        self._time = 0.99 * self._time + step_time
        # What was earned long ago is not saved up for a burst, nor is a debt carried for ever.
        earned = self.budget * step_time - cost
        self._purse = min(max(self._purse + earned, -4 * self._sample), self._norm)
        self._plan()

    def _plan(self) -> None:
        assert self._step_time is not None
        income = self.budget * self._step_time - self._fixed
        self.norm_every = _period(self._norm, income)
        self.sample_every = _period(self._sample, income - self._norm / self.norm_every)


def _period(cost: float, income: float) -> int:
    if income <= 0 or cost > income * _MOST:
        return _MOST
    return max(1, math.ceil(cost / income))


def _blend(old: float, new: float) -> float:
    return old + _WEIGHT * (new - old)

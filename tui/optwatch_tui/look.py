"""How charts are looked at: which steps, with which smoothing, and where the cursor stands. Pure."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from optwatch_tui.history import F8

Extent = tuple[float, float]
"""The first and the newest place on the axis of steps (or of seconds)."""
Places = npt.NDArray[np.int64] | F8
"""Steps, or seconds where runs are aligned by time; not decreasing."""
Smoothing = Literal["off", "light", "strong"]

SMOOTHINGS: tuple[Smoothing, ...] = ("off", "light", "strong")
_SHARE = {"light": 0.01, "strong": 0.03}
"""The time constant of the average, as a share of what is in view."""
_FEWEST = 4
"""Points in a time constant, with fewer of which there is nothing to smooth."""
_LEAD = 20
"""Time constants before the view that still count."""


@dataclass(frozen=True)
class Window:
    """The steps that are looked at: the whole run, or `span` steps that end `back` before its newest."""

    span: float | None = None
    back: float = 0.0

    def edges(self, extent: Extent) -> Extent:
        first, last = extent
        if self.span is None:
            # Some room to grow into: the picture stands still while the line moves on.
            whole = max(last - first, 20.0)
            grain = 10 ** np.floor(np.log10(whole)) / 4
            return first, float(first + np.ceil(whole * 1.005 / grain) * grain)
        return last - self.back - self.span, last - self.back

    def zoomed(self, factor: float, extent: Extent, at: float | None = None) -> "Window":
        """Half or twice the steps. `at` stays where it is in the picture; without it, the newest in view."""
        first, last = extent
        span = (self.span or last - first) * factor
        if span >= last - first:
            return Window()
        span = max(span, 10.0)
        left, right = self.edges(extent)
        if at is None:
            return Window(span, min(self.back, max(0.0, last - first - span)))
        end = at + (right - at) / (right - left) * span
        return Window(span, min(max(0.0, last - end), max(0.0, last - first - span)))

    @classmethod
    def around(cls, step: float, extent: Extent) -> "Window":
        """A tenth of the run, or 100 steps at least, with a step in its middle."""
        first, last = extent
        span = max((last - first) / 10, 100.0)
        if span >= last - first:
            return cls()
        return cls(span, min(max(0.0, last - step - span / 2), last - first - span))

    def panned(self, share: float, extent: Extent) -> "Window":
        """Moved by a share of its span, within the run."""
        if self.span is None:
            return self
        most = max(0.0, extent[1] - extent[0] - self.span)
        return Window(self.span, min(max(0.0, self.back - share * self.span), most))

    def showing(self, step: float, extent: Extent) -> "Window":
        """Moved as little as brings a step into view."""
        left, right = self.edges(extent)
        if self.span is None or left <= step <= right:
            return self
        return self.panned((step - (left if step < left else right)) / self.span, extent)


@dataclass(frozen=True)
class Look:
    """`cursor`: the step whose values are told, None for the newest."""

    window: Window = Window()
    cursor: float | None = None
    smoothing: Smoothing = "off"


def nearest(places: Places, wanted: float) -> float | None:
    """Of places in order the nearest to the wanted one; None where there are none."""
    if not len(places):
        return None
    after = int(np.searchsorted(places, wanted))
    near = places[max(0, after - 1) : after + 1]
    return float(near[np.argmin(np.abs(near - wanted))])


def smoothed(places: Places, values: F8, view: Extent, smoothing: Smoothing) -> F8:
    """Exponential moving average of what is in view, f8[n]; as it was elsewhere, or where it is off.

    A point weighs exp(-d / τ) at a distance d behind, τ being a share of the view, over the sum of the
    weights (so the beginning is not pulled to zero). Points at one place share one average. What is not
    finite counts for nothing and stays. Where points are sparse the values are returned as they are.
    """
    if smoothing == "off":
        return values
    tau = max(_SHARE[smoothing] * (view[1] - view[0]), 1e-9)
    start = int(np.searchsorted(places, view[0] - _LEAD * tau))
    stop = int(np.searchsorted(places, view[1], side="right"))
    seen = stop - int(np.searchsorted(places, view[0]))
    if seen * _SHARE[smoothing] < _FEWEST:
        return values
    near, held = places[start:stop], values[start:stop]
    there = np.isfinite(held)
    grown = np.exp((near - near[0]) / tau)  # at most e^(100 + lead), far from an overflow
    total = np.cumsum(np.where(there, np.clip(held, -1e200, 1e200), 0.0) * grown)
    weight = np.cumsum(there * grown)
    shared = np.searchsorted(near, near, side="right") - 1
    mean = values.copy()
    mean[start:stop][there] = (total[shared] / np.maximum(weight[shared], 1.0))[there]
    return mean

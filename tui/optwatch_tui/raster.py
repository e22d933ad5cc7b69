"""Lines over steps as braille dots: pure numpy, two dots across and four down in each cell."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

F8 = npt.NDArray[np.float64]
I8 = npt.NDArray[np.int64]
Bool = npt.NDArray[np.bool_]

BRAILLE = 0x2800
_DOTS = (np.array([0, 1, 2, 0, 1, 2, 3, 3]), np.array([0, 0, 0, 1, 1, 1, 0, 1]))
"""Row and column of the dot in a cell that each bit stands for, the lowest first."""


_LONG = 6
"""Columns of dots without a point, from which on the line is dotted."""


@dataclass(frozen=True)
class Scale:
    """What the plot's edges stand for. `low`, `high`: values, or their log10 where `log`."""

    first: float
    last: float
    low: float
    high: float
    log: bool

    def heights(self, values: F8) -> F8:
        """Values as parts of the height, 0 at the bottom; NaN where a value has no place."""
        return (_scaled(values, self.log) - self.low) / (self.high - self.low)


def dots(
    step: I8 | F8,
    values: F8,
    scale: Scale,
    width: int,
    height: int,
    dashed: bool = False,
    ridge: bool = False,
) -> Bool:
    """One line's dots, bool[4 height, 2 width], the top row first.

    Each column of dots covers the minimum to the maximum of the points in it, joined to its
    neighbours by straight lines (dotted over long gaps), so that no spike is lost. As a `ridge`, the line
    runs through the mean of each column's points instead.
    """
    across, down = 2 * width, 4 * height
    picture = np.zeros((down, across), dtype=np.bool_)
    first, last = np.searchsorted(step, [scale.first, scale.last], side="left")
    # One point beyond each edge, so that the line runs into the picture and out of it.
    window = slice(max(0, int(first) - 1), int(last) + 2)
    share = scale.heights(values[window])
    there = ~np.isnan(share)
    if not there.any():
        return picture
    share = share[there]
    at = (step[window][there] - scale.first) / max(scale.last - scale.first, 1e-9) * (across - 1)
    column = np.rint(at).astype(np.int64)
    starts = np.flatnonzero(np.diff(column, prepend=column[0] - 1))
    ends = np.append(starts[1:], len(column)) - 1
    held = column[starts]
    if ridge:
        low = high = np.add.reduceat(share, starts) / (ends - starts + 1)
        places, joints = held.astype(np.float64), low
    else:
        low, high = np.minimum.reduceat(share, starts), np.maximum.reduceat(share, starts)
        places = np.stack([held - 0.25, held + 0.25], axis=1).ravel()
        joints = np.stack([share[starts], share[ends]], axis=1).ravel()

    centre = np.arange(across)
    edges = np.interp(np.arange(across + 1) - 0.5, places, joints)
    bottom, top = np.minimum(edges[:-1], edges[1:]), np.maximum(edges[:-1], edges[1:])
    inside = (held >= 0) & (held < across)
    bottom[held[inside]] = np.minimum(bottom[held[inside]], low[inside])
    top[held[inside]] = np.maximum(top[held[inside]], high[inside])
    drawn = (centre >= held[0]) & (centre <= held[-1])
    # Where nothing was measured for long, the line between is only hinted at.
    after = np.clip(np.searchsorted(held, centre), 0, len(held) - 1)
    before = np.clip(np.searchsorted(held, centre, side="right") - 1, 0, len(held) - 1)
    drawn &= (held[after] - held[before] <= _LONG) | (centre % 3 == 0)
    if dashed:
        drawn &= centre % 4 < 2

    lowest = np.rint((1 - bottom) * (down - 1))
    highest = np.rint((1 - top) * (down - 1))
    row = np.arange(down)[:, None]
    picture[:] = (row >= highest) & (row <= lowest) & drawn
    return picture


def band(step: I8 | F8, low: F8, high: F8, scale: Scale, width: int, height: int) -> Bool:
    """The range between two lines as dots, bool[4 height, 2 width]."""
    across, down = 2 * width, 4 * height
    bottom, top = scale.heights(low), scale.heights(high)
    there = ~np.isnan(bottom) & ~np.isnan(top)
    if not there.any():
        return np.zeros((down, across), dtype=np.bool_)
    at = (step[there] - scale.first) / max(scale.last - scale.first, 1e-9) * (across - 1)
    centre = np.arange(across)
    lowest = np.rint((1 - np.interp(centre, at, bottom[there])) * (down - 1))
    highest = np.rint((1 - np.interp(centre, at, top[there])) * (down - 1))
    row = np.arange(down)[:, None]
    inside = (centre >= at[0] - 0.5) & (centre <= at[-1] + 0.5)
    drawn: Bool = (row >= highest) & (row <= lowest) & inside
    return drawn


def cells(picture: Bool) -> npt.NDArray[np.uint8]:
    """Dots as the low byte of braille characters, u1[height, width]."""
    height, width = picture.shape[0] // 4, picture.shape[1] // 2
    blocks = picture.reshape(height, 4, width, 2).transpose(0, 2, 1, 3)
    return np.packbits(blocks[:, :, _DOTS[0], _DOTS[1]], axis=2, bitorder="little")[:, :, 0]


def cell_of(step: float, scale: Scale, width: int) -> int | None:
    """The column of cells in which a step lies, None outside."""
    if not scale.first <= step <= scale.last:
        return None
    return round((step - scale.first) / max(scale.last - scale.first, 1e-9) * (2 * width - 1)) // 2


def nice_step(span: float, parts: int) -> float:
    """A round distance between ticks (1, 2 or 5 times a power of ten) that cuts a span into about `parts`."""
    raw = max(span, 1e-300) / max(parts, 1)
    power = 10.0 ** np.floor(np.log10(raw))
    for factor in (1.0, 2.0, 5.0):
        if factor * power >= raw * 0.999:
            return float(factor * power)
    return float(10 * power)


def nice_seconds(span: float, parts: int) -> float:
    """As `nice_step`, for a length of time: whole minutes, hours and days."""
    for step in (*(10.0, 15.0, 30.0), *(60.0 * m for m in (1, 2, 5, 10, 15, 30))):
        if 10 <= span / max(parts, 1) <= step:
            return step
    if span / max(parts, 1) < 10:
        return nice_step(span, parts)
    unit = 3600.0 if span / max(parts, 1) <= 12 * 3600 else 86_400.0
    return max(1.0, nice_step(span / unit, parts)) * unit


def value_range(parts: "list[F8]", log: bool, rows: int) -> tuple[float, float]:
    """Edges for the height of a plot: round numbers just outside all finite values (their log10 if `log`)."""
    lows, highs = [], []
    for values in parts:
        scaled = _scaled(values, log)
        scaled = scaled[~np.isnan(scaled)]
        if len(scaled):
            lows.append(float(scaled.min()))
            highs.append(float(scaled.max()))
    if not lows:
        return 0.0, 1.0
    low, high = min(lows), max(highs)
    size = max(abs(high), abs(low))
    least = 0.2 if log else size * 1e-3 if size > 1e-290 else 1.0
    if high - low < least:  # a flat line lies in the middle and its noise is not blown up
        middle = (high + low) / 2
        low, high = middle - least / 2, middle + least / 2
    step = nice_step(high - low, max(2 * rows, 4))
    return float(np.floor(low / step + 1e-9) * step), float(np.ceil(high / step - 1e-9) * step)


def _scaled(values: F8, log: bool) -> F8:
    """Values or their log10, NaN where they have none; within ±1e300, so that differences are finite."""
    if not log:
        within = np.minimum(np.maximum(values, -1e300), 1e300)
        return np.where(np.isfinite(values), within, np.nan)
    there = np.isfinite(values) & (values > 0)
    return np.where(there, np.log10(np.where(there, values, 1.0)), np.nan)

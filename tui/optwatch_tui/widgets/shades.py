"""Lines of a heat map: levels of the ramp as spans, and the cursor through them."""

from itertools import pairwise

import numpy as np
import numpy.typing as npt

from optwatch_tui.history import F8
from optwatch_tui.rows import Span
from optwatch_tui.theme import RAMP_LEVELS

_SHADES = "·░░▒▒▓▓█"
"""Glyphs from quiet to loud, where there are no colours."""


def levels(share: F8) -> npt.NDArray[np.int64]:
    """Levels of the ramp for numbers from 0 to 1, -1 where there is none."""
    level = np.clip(np.nan_to_num(share, nan=0.0) * RAMP_LEVELS, 0, RAMP_LEVELS - 1).astype(np.int64)
    return np.where(np.isfinite(share), level, -1)


def shade(level: int, no_color: bool) -> Span:
    """One cell of a level."""
    glyph = _SHADES[level * len(_SHADES) // RAMP_LEVELS] if no_color else "█"
    return glyph, f"ramp{level}"


def shades(level: npt.NDArray[np.int64], no_color: bool) -> list[Span]:
    """A line of levels."""
    cuts = [0, *(np.flatnonzero(np.diff(level)) + 1).tolist(), len(level)]
    spans: list[Span] = []
    for a, b in pairwise(cuts):
        at = int(level[a])
        glyph, role = shade(at, no_color) if at >= 0 else (" ", "text")
        spans.append((glyph * (b - a), role))
    return spans


def with_cursor(spans: list[Span], cursor: int | None) -> list[Span]:
    """A line of shades with the cursor through it."""
    out: list[Span] = []
    start = 0
    for text, role in spans:
        if cursor is None or not start <= cursor < start + len(text):
            out.append((text, role))
        else:
            at = cursor - start
            out += [(text[:at], role), ("│", "focus"), (text[at + 1 :], role)]
        start += len(text)
    return out

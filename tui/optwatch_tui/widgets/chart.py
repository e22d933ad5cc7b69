"""A chart of lines over steps, in braille."""

from itertools import pairwise

import numpy as np
import numpy.typing as npt

from optwatch_tui import raster
from optwatch_tui.charts import Line, Picture
from optwatch_tui.formats import number, setting, short_count, tick
from optwatch_tui.raster import Scale
from optwatch_tui.rows import Row, Span
from optwatch_tui.widgets.frame import Framed

_LABELS = 7
"""Cells for the labels of the value axis."""
_BLANK = ord(" ")


class Chart(Framed, can_focus=True):
    """One chart: title with the newest value, lines, axes, level and marks."""

    def __init__(self, key: str, title: str, *, id: str) -> None:
        super().__init__(id=id)
        self.key = key
        self._title = title
        self._picture: Picture | None = None

    def show(self, picture: Picture) -> None:
        """Draw another picture."""
        self._picture = picture
        self.renew()

    @property
    def logarithmic(self) -> bool:
        """Whether the value axis is logarithmic now."""
        return self._picture is not None and self._picture.log

    def title(self) -> Row:
        spans: list[Span] = [(self._title, "title")]
        if self._picture is None or not self._picture.lines:
            return tuple(spans)
        for at, line in enumerate(self._picture.lines):
            if at:
                spans.append((" ┄" if line.dashed else " ─", line.role))
            if line.label:
                spans.append((f" {line.label}", line.role if at else "muted"))
            spans.append((f" {number(float(line.value[-1]))}", line.role))
        return tuple(spans)

    def note(self) -> Row:
        if self._picture is None:
            return ()
        spans: list[Span] = []
        if self._picture.level is not None:
            label, value = self._picture.level
            spans.append((f"{label} {setting(value)} ╌", "third"))
        if self._picture.log:
            spans.append((" log" if spans else "log", "muted"))
        return tuple(spans)

    def body(self, width: int, height: int) -> list[Row]:
        picture = self._picture
        plot = width - _LABELS
        if plot < 4 or height < 1:
            return []
        if picture is None or not picture.lines:
            return [*[()] * ((height - 1) // 2), (("not measured yet".center(width), "muted"),)]
        scale = _scale(picture, height)
        codes, roles = _cells(picture, scale, plot, height)
        names = ("text", *_ROLES)
        rows: list[Row] = []
        labels = _labels(scale, height)
        for y in range(height):
            spans: list[Span] = [
                (labels.get(y, "").rjust(_LABELS - 1), "muted"),
                ("┤" if y in labels else "│", "frame"),
            ]
            rows.append((*spans, *_runs(codes[y], roles[y], names)))
        return rows

    def foot(self, width: int) -> Row:
        """The step axis: round steps where they lie."""
        picture = self._picture
        plot = width - _LABELS
        if picture is None or not picture.lines or plot < 8:
            return super().foot(width)
        scale = Scale(picture.first, picture.last, 0, 1, False)
        text = ["─"] * plot
        roles = [self.edge] * plot
        step = max(1.0, raster.nice_step(picture.last - picture.first, max(1, plot // 12)))
        at = np.ceil(picture.first / step) * step
        free = 0
        while at <= picture.last:
            label = short_count(int(at)) if at == int(at) else tick(float(at))
            place = raster.cell_of(float(at), scale, plot)
            if place is not None:
                start = min(max(free, place - len(label) // 2), plot)
                if start + len(label) <= plot and abs(start + len(label) // 2 - place) <= 2:
                    text[start : start + len(label)] = label
                    roles[start : start + len(label)] = ["muted"] * len(label)
                    free = start + len(label) + 1
            at += step
        spans: list[Span] = [("─" * _LABELS, self.edge)]
        start = 0
        for end in range(1, plot + 1):
            if end == plot or roles[end] != roles[start]:
                spans.append(("".join(text[start:end]), roles[start]))
                start = end
        return tuple(spans)


_ROLES = ("band", "first", "second", "third", "frame", "muted", "ok", "info", "warning", "critical")


def _scale(picture: Picture, height: int) -> Scale:
    parts = []
    for line in picture.lines:
        first, last = np.searchsorted(line.step, [picture.first, picture.last + 1])
        seen = line.value[int(first) : int(last)]
        parts.append(seen if len(seen) else line.value)
    if picture.level is not None:
        parts.append(np.array([picture.level[1]]))
    low, high = raster.value_range(parts, picture.log, height)
    return Scale(picture.first, picture.last, low, high, picture.log)


def _crowded(line: Line, picture: Picture, width: int) -> bool:
    """Whether several points fall into each column of dots."""
    first, last = np.searchsorted(line.step, [picture.first, picture.last])
    return int(last - first) > 3 * width


def _labels(scale: Scale, height: int) -> dict[int, str]:
    """Where the value axis is labelled: its ends, and its middle where there is room."""
    places = [0, height - 1] if height < 7 else [0, height // 2, height - 1]
    labels = {}
    for y in places if height > 1 else [0]:
        # The middle of a row of cells is what its label stands for.
        share = 1 - (4 * y + 1.5) / (4 * height - 1) if 0 < y < height - 1 else float(y == 0)
        value = scale.low + share * (scale.high - scale.low)
        labels[y] = tick(float(f"{10**value:.1e}") if scale.log else value)
    return labels


def _cells(
    picture: Picture, scale: Scale, width: int, height: int
) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.int64]]:
    """Characters and roles (1 + place in `_ROLES`, 0: none) of the plot, [height, width] each."""
    dots = np.zeros((height, width), dtype=np.uint8)
    roles = np.zeros((height, width), dtype=np.int64)

    def draw(line: Line, role: str, ridge: bool) -> None:
        new = raster.cells(raster.dots(line.step, line.value, scale, width, height, line.dashed, ridge))
        roles[new > 0] = 1 + _ROLES.index(role)
        np.bitwise_or(dots, new, out=dots)

    main, *others = picture.lines
    if _crowded(main, picture, width):  # its range, with its mean as a ridge through it
        draw(main, "band", ridge=False)
    for line in others:
        draw(line, line.role, ridge=False)
    draw(main, main.role, ridge=_crowded(main, picture, width))
    codes = np.where(dots > 0, raster.BRAILLE + dots.astype(np.uint32), _BLANK).astype(np.uint32)

    if picture.level is not None:
        share = float(scale.heights(np.array([picture.level[1]]))[0])
        if 0 <= share <= 1:
            y = min(height - 1, int((1 - share) * height))
            free = (codes[y] == _BLANK) | (roles[y] == 1 + _ROLES.index("band"))
            codes[y, free], roles[y, free] = ord("╌"), 1 + _ROLES.index("third")
    for mark in picture.marks:
        at = raster.cell_of(mark.step, scale, width)
        if at is not None:  # a flag on a pole
            codes[0, at], roles[0, at] = ord(mark.glyph), 1 + _ROLES.index(mark.role)
            free = codes[:, at] == _BLANK
            role = "critical" if mark.role == "critical" else "frame"
            codes[free, at], roles[free, at] = ord("┊"), 1 + _ROLES.index(role)
    for line in picture.lines:
        for step in line.step[~np.isfinite(line.value)]:
            at = raster.cell_of(float(step), scale, width)
            if at is not None:
                codes[0, at], roles[0, at] = ord("✖"), 1 + _ROLES.index("critical")
    return codes, roles


def _runs(codes: npt.NDArray[np.uint32], roles: npt.NDArray[np.int64], names: tuple[str, ...]) -> list[Span]:
    """A row of cells as texts of one role each."""
    text = codes.astype("<u4").tobytes().decode("utf-32-le")
    cuts = [0, *(np.flatnonzero(np.diff(roles)) + 1).tolist(), len(text)]
    return [(text[a:b], names[int(roles[a])]) for a, b in pairwise(cuts)]
